//! What it costs to forget every other snapshot of a history of real guests, and to give their room back.
//!
//! What was written meanwhile is what lies in files that were not there before: what was moved, and indexes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::images::Image;
use super::measure::{Cost, printed};
use super::peers::{Kind, Peer};
use super::rounds::back_up;
use crate::run::run;

/// What one tool took for it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Collection {
    pub tool: Kind,
    #[serde(flatten)]
    pub cost: Cost,
    pub snapshots: usize,
    pub forgotten: usize,
    pub stored_bytes_before: u64,
    pub stored_bytes_after: u64,
    /// In new files.
    pub written_bytes: u64,
}

/// Backs all images up, forgets every other snapshot, and measures that and the collection after it. What is left must be
/// whole.
pub fn measure(peer: &Peer, images: &[Image]) -> Result<Collection> {
    peer.start_afresh()?;
    for (number, image) in images.iter().enumerate() {
        back_up(peer, image, number)?;
    }
    let snapshots = peer.snapshots()?;
    ensure!(snapshots.len() == images.len(), "{} snapshots of {} images", snapshots.len(), images.len());
    let forgotten: Vec<&str> = snapshots.iter().step_by(2).map(String::as_str).collect();
    let before = files(&peer.repository())?;
    let mut cost: Option<Cost> = None;
    for command in peer.collect(&forgotten)? {
        let (one, _) = printed(&command, None)?;
        cost = Some(cost.map_or(one, |sum| sum.and(one)));
    }
    let cost = cost.context("nothing collects")?;
    let after = files(&peer.repository())?;
    run(&mut peer.check()?)?;
    let written = after.iter().filter(|(path, _)| !before.contains_key(*path)).map(|(_, bytes)| bytes).sum();
    let collection = Collection {
        tool: peer.kind,
        cost,
        snapshots: snapshots.len(),
        forgotten: forgotten.len(),
        stored_bytes_before: before.values().sum(),
        stored_bytes_after: after.values().sum(),
        written_bytes: written,
    };
    collection.print();
    Ok(collection)
}

impl Collection {
    /// One line.
    pub fn print(&self) {
        let Self { cost: Cost { wall_seconds, cpu_seconds, peak_rss_bytes }, .. } = *self;
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        println!(
            "{:<18}{:<9}{wall_seconds:>9.2}{cpu_seconds:>9.2}{:>10.0}   {} of {} snapshots forgotten: {:.1} MB became {:.1} MB, \
             {:.1} MB were written",
            "collection",
            format!("{:?}", self.tool),
            megabytes(peak_rss_bytes),
            self.forgotten,
            self.snapshots,
            megabytes(self.stored_bytes_before),
            megabytes(self.stored_bytes_after),
            megabytes(self.written_bytes)
        );
    }
}

/// All files below a folder, with their sizes.
fn files(folder: &Path) -> Result<BTreeMap<PathBuf, u64>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in crate::tidy::entries(&folder)? {
            match path.is_dir() {
                true => folders.push(path),
                false => drop(found.insert(path.clone(), fs::metadata(&path)?.len())),
            }
        }
    }
    Ok(found)
}
