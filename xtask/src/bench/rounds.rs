//! What every tool is put through, and what came out of it.
//!
//! Steps of one guest are repeated and the best counts; all guests into one repository goes once, because its
//! figure of interest is what is stored.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::collections::{self, Collection};
use super::images::Image;
use super::measure::{Cost, measured, stored_bytes, warm};
use super::peers::{Kind, Peer};
use crate::run::{output, run};

/// One step's figures.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Step {
    #[serde(flatten)]
    pub cost: Cost,
    /// By how much the repository grew.
    pub stored_bytes: u64,
}

/// All that one tool did.
#[derive(Serialize)]
pub struct Outcome {
    pub tool: Kind,
    pub version: String,
    /// By the names in [`STEPS`].
    pub steps: BTreeMap<&'static str, Step>,
    /// Half of a history forgotten and collected.
    pub collection: Option<Collection>,
    /// Steps that were left out or failed, and why.
    pub missing: BTreeMap<&'static str, String>,
}

/// The steps, in the order in which they are printed.
pub const STEPS: [&str; 7] =
    ["first", "unchanged", "day 2", "restore", "restore on day 1", "device unchanged", "all guests"];

impl Outcome {
    /// A tool that could not be run to the end.
    pub fn failed(tool: Kind, why: &str) -> Self {
        let missing = STEPS.iter().map(|step| (*step, why.to_owned())).collect();
        Self { tool, version: "failed".to_owned(), steps: BTreeMap::new(), collection: None, missing }
    }
}

/// Puts one tool through everything.
pub fn all(peer: &Peer, images: &[Image], work: &Path, rounds: usize, is_quick: bool) -> Result<Outcome> {
    let mut outcome = Outcome {
        tool: peer.kind,
        version: peer.version.clone(),
        steps: BTreeMap::new(),
        collection: None,
        missing: BTreeMap::new(),
    };
    println!("\n{:?}: {}", peer.kind, peer.version);
    for round in 1..=rounds {
        println!("  round {round} of {rounds}");
        one_guest(peer, images, &mut outcome)?;
    }
    if let Err(why) = device(peer, &images[0], rounds, &mut outcome) {
        println!("  !!! device unchanged: LEFT OUT: {why:#}");
        outcome.missing.insert("device unchanged", format!("{why:#}"));
    }
    if is_quick {
        outcome.missing.insert("all guests", "left out by --quick".to_owned());
    } else {
        all_guests(peer, images, &mut outcome)?;
    }
    match collections::measure(peer, images) {
        Ok(collection) => outcome.collection = Some(collection),
        Err(why) => {
            println!("  !!! collection: LEFT OUT: {why:#}");
            outcome.missing.insert("collection", format!("{why:#}"));
        }
    }
    fs::remove_dir_all(work).with_context(|| format!("cannot remove {}", work.display()))?;
    Ok(outcome)
}

fn one_guest(peer: &Peer, images: &[Image], outcome: &mut Outcome) -> Result<()> {
    let guest = images[0].guest;
    let day = |wanted: usize| images.iter().find(|image| image.guest == guest && image.day == wanted);
    let first = day(1).context("no first day")?;
    let second = day(2).context("no second day")?;
    peer.start_afresh()?;
    for (number, (step, image)) in
        [("first", first), ("unchanged", first), ("day 2", second)].into_iter().enumerate()
    {
        let figures = backup(peer, &image.path, guest, number)?;
        note(outcome, step, figures);
    }
    for (step, stale) in [("restore", None), ("restore on day 1", Some(first))] {
        let (command, restored) = peer.restore(guest, 2)?;
        if let Some(stale) = stale {
            run(Command::new("cp").arg("--sparse=always").args([&stale.path, &restored]))?;
        }
        let cost = measured(&command, None)?;
        run(Command::new("cmp").args([&second.path, &restored]))
            .context("what was restored is not what was backed up")?;
        fs::remove_file(&restored)?;
        note(outcome, step, Step { cost, stored_bytes: 0 });
    }
    Ok(())
}

/// Backs up one image, unmeasured.
pub fn back_up(peer: &Peer, image: &Image, number: usize) -> Result<()> {
    backup(peer, &image.path, image.guest, number).map(drop)
}

fn backup(peer: &Peer, source: &Path, guest: &str, number: usize) -> Result<Step> {
    warm(source)?;
    let before = stored_bytes(&peer.repository()).unwrap_or(0);
    let (command, is_fed) = peer.backup(source, guest, number)?;
    let cost = measured(&command, is_fed.then_some(source))?;
    let after = stored_bytes(&peer.repository())?;
    Ok(Step { cost, stored_bytes: after.saturating_sub(before) })
}

fn note(outcome: &mut Outcome, name: &'static str, step: Step) {
    let Step { cost, stored_bytes } = step;
    println!(
        "    {name:<18}{:>8.2} s {:>8.2} CPU s {:>7.0} MB RSS {:>9.1} MB stored",
        cost.wall_seconds,
        cost.cpu_seconds,
        cost.peak_rss_bytes as f64 / 1e6,
        stored_bytes as f64 / 1e6
    );
    outcome
        .steps
        .entry(name)
        .and_modify(|best| {
            best.cost = best.cost.best(cost);
            best.stored_bytes = best.stored_bytes.min(stored_bytes);
        })
        .or_insert(step);
}

/// The same image as a device, which has no holes to skip.
fn device(peer: &Peer, image: &Image, rounds: usize, outcome: &mut Outcome) -> Result<()> {
    let device = LoopDevice::attach(&image.path)?;
    peer.start_afresh()?;
    backup(peer, &device.path, image.guest, 0)?;
    for number in 1..=rounds {
        let figures = backup(peer, &device.path, image.guest, number)?;
        note(outcome, "device unchanged", figures);
    }
    Ok(())
}

fn all_guests(peer: &Peer, images: &[Image], outcome: &mut Outcome) -> Result<()> {
    peer.start_afresh()?;
    let mut total: Option<Step> = None;
    for image in images {
        let step = backup(peer, &image.path, image.guest, image.day)?;
        total = Some(match total {
            None => step,
            Some(sum) => {
                Step { cost: sum.cost.and(step.cost), stored_bytes: sum.stored_bytes + step.stored_bytes }
            }
        });
    }
    note(outcome, "all guests", total.context("no images")?);
    Ok(())
}

/// A read-only loop device, detached when dropped.
struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    fn attach(image: &Path) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "a loop device needs root");
        let printed = output(Command::new("losetup").args(["--read-only", "--find", "--show"]).arg(image))
            .context("no loop device to be had")?;
        Ok(Self { path: PathBuf::from(printed.trim()) })
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if let Err(why) = run(Command::new("losetup").arg("--detach").arg(&self.path)) {
            eprintln!("bench: {} stays attached: {why:#}", self.path.display());
        }
    }
}
