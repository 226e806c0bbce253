//! `restore`: brings a snapshot back to a file, device or logical volume, by this process or by another host's agent.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use agent::{Failure, Queue, Repository, Targets};
use anyhow::{Context, bail};
use restorer::{Report, Restorer, Target};
use schema::keys::Identity;
use schema::messages::{About, JobOutcome, Message, NewVolume, Preparation, RestoreJob, Safety};
use schema::root::Root;
use serde::Serialize;
use volume_lvm::Tools;
use volume_lvm::target::LvmTargets;

use crate::app::App;
use crate::args::RestoreArgs;
use crate::embedded::Embedded;
use crate::progress::Display;
use crate::{backup, bus, cat, open, select, settings, text, undo, verify};

/// What a restore did, as it is printed.
#[derive(Debug, Serialize)]
struct Done {
    snapshot: String,
    volume: String,
    target: String,
    size: u64,
    bytes_written: u64,
    bytes_kept: u64,
    bytes_compared: u64,
    bytes_zeroed: u64,
    bytes_fetched: u64,
    chunks_rescued: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
    seconds: f64,
}

/// `lvkeep restore`.
pub async fn run(app: &App, args: &RestoreArgs) -> anyhow::Result<()> {
    app.stop_on_signals()?;
    match &args.to_host {
        Some(host) => by_agent(app, args, host).await,
        None => here(app, args).await,
    }
}

/// What is restored, each with its own target: one snapshot, or those of a group.
async fn chosen(repository: &Repository, args: &RestoreArgs) -> anyhow::Result<Vec<(Root, RestoreArgs)>> {
    if !args.group {
        return Ok(vec![(select::snapshot(repository, &args.snapshot).await?, args.clone())]);
    }
    let roots = select::group(repository, &args.snapshot).await?;
    check_whole(&roots, args)?;
    let with_target = |root: Root| {
        let name = root.volume.rsplit('/').next().unwrap_or(&root.volume);
        let target = format!("{}/{name}", args.target.trim_end_matches('/'));
        (root, RestoreArgs { target, ..args.clone() })
    };
    let chosen: Vec<(Root, RestoreArgs)> = roots.into_iter().map(with_target).collect();
    check_apart(chosen.iter().map(|(root, args)| (root.volume.as_str(), args.target.as_str())))?;
    Ok(chosen)
}

/// A run of a group in which a volume failed is not restored as if it were all of it.
fn check_whole(roots: &[Root], args: &RestoreArgs) -> anyhow::Result<()> {
    let missing = select::missing(roots.iter());
    if missing.is_empty() || args.force {
        return Ok(());
    }
    bail!(Failure::refused(format!(
        "{} is not whole: that run has no snapshot of {}; force restores the others, NAME@TIME an earlier run",
        args.snapshot,
        missing.join(", ")
    )))
}

/// Two volumes of one name must not overwrite each other. Takes volumes and their targets.
fn check_apart<'a>(chosen: impl Iterator<Item = (&'a str, &'a str)>) -> anyhow::Result<()> {
    let mut targets = BTreeMap::new();
    for (volume, target) in chosen {
        if let Some(other) = targets.insert(target, volume) {
            bail!(Failure::refused(format!(
                "{other} and {volume} would both be restored to {target}: restore them one by one"
            )));
        }
    }
    Ok(())
}

async fn here(app: &App, args: &RestoreArgs) -> anyhow::Result<()> {
    let mut work = match args.undo {
        true => Embedded::writing(app, None).await?,
        false => Embedded::reading(app).await?,
    };
    let restored = restore_all(app, args, &mut work).await;
    work.finish().await;
    restored
}

async fn restore_all(app: &App, args: &RestoreArgs, work: &mut Embedded) -> anyhow::Result<()> {
    let chosen = chosen(&work.repository, args).await?;
    let identity = open::identity(&app.settings, work.repository.key.repo())?.map(Arc::new);
    for (root, args) in chosen {
        let target = Target::new(PathBuf::from(&args.target), args.force).full(args.full);
        let range = args.range.as_deref().map(cat::parse).transpose()?;
        let target = target.only(range).prepared(preparation(&args)?);
        let target = match args.undo {
            true => {
                undo::keep(app, work, &args.target).await?;
                target.with_content()
            }
            false => target,
        };
        one(app, work, identity.clone(), &root, target).await?;
        if args.verify {
            verify::compare(app, work, &root, &args.target).await?;
        }
    }
    Ok(())
}

/// Restores one snapshot and says what was done.
pub async fn one(
    app: &App,
    work: &Embedded,
    identity: Option<Arc<Identity>>,
    root: &Root,
    target: Target,
) -> anyhow::Result<()> {
    let started = app.environment.elapsed();
    let name = target.path().display().to_string();
    let display = Display::new(app);
    let bar = display.bar(&root.volume);
    let restorer = make(app, work, identity);
    let restored = restorer.restore(root.clone(), target, |p| bar.set(p.done, p.total)).await;
    bar.finish();
    let report = restored.with_context(|| format!("restoring {} to {name}", root.volume))?;
    let seconds = app.environment.elapsed().saturating_sub(started).as_secs_f64();
    print(app, root, &name, &report, seconds)
}

/// The path at which what a restore to `target` writes is read.
pub fn path(target: &str) -> Result<PathBuf, Failure> {
    let path = LvmTargets::new(Tools::new()).path(target);
    path.map_err(|why| Failure::refused(format!("cannot read what stands on {target}: {why}")))
}

/// A restorer of this process.
pub fn make(app: &App, work: &Embedded, identity: Option<Arc<Identity>>) -> Restorer {
    Restorer::new(
        work.context.clone(),
        work.repository.clone(),
        work.index.clone(),
        identity,
        settings(app, &work.repository),
    )
    .with_targets(targets())
}

/// The logical volumes of this host.
pub fn targets() -> Arc<dyn Targets> {
    Arc::new(LvmTargets::new(Tools::new()))
}

/// How this process restores: within its memory, never into the repository itself.
pub fn settings(app: &App, repository: &Repository) -> restorer::Settings {
    let forbidden = open::directory(repository.store.location()).into_iter().collect();
    restorer::Settings {
        memory: (app.settings.memory.value / 4).clamp(16 << 20, 1 << 30),
        threads: app.settings.workers.value.max(1),
        forbidden,
        ..restorer::Settings::default()
    }
}

fn print(app: &App, root: &Root, target: &str, report: &Report, seconds: f64) -> anyhow::Result<()> {
    let done = Done {
        snapshot: root.slot.session.to_string(),
        volume: root.volume.clone(),
        target: target.to_owned(),
        size: report.size,
        bytes_written: report.written,
        bytes_kept: report.kept,
        bytes_compared: report.compared,
        bytes_zeroed: report.zeroed,
        bytes_fetched: report.fetched,
        chunks_rescued: report.rescued,
        notes: report.notes.clone(),
        seconds,
    };
    app.print(&done, || {
        let mut text = format!(
            "{} @ {} restored to {}\n  {}: written {}, zero {}, fetched {}  ({:.1} s)",
            done.volume,
            done.snapshot,
            done.target,
            text::size(done.size),
            text::size(done.bytes_written),
            text::size(done.bytes_zeroed),
            text::size(done.bytes_fetched),
            done.seconds,
        );
        if done.bytes_compared > 0 {
            text.push_str(&format!(
                "\n  {} compared, {} stood there already",
                text::size(done.bytes_compared),
                text::size(done.bytes_kept)
            ));
        }
        if done.chunks_rescued > 0 {
            text.push_str(&format!(
                "\n  {} chunks had a damaged or missing copy and were read from another: run `lvkeep check`",
                done.chunks_rescued
            ));
        }
        for note in &done.notes {
            text.push_str(&format!("\n  {note}"));
        }
        text
    })
}

/// What is done to a logical volume first.
fn preparation(args: &RestoreArgs) -> anyhow::Result<Preparation> {
    let create = match (args.create, &args.thin) {
        (false, _) => None,
        (true, Some(pool)) => Some(NewVolume::Thin { pool: pool.clone() }),
        (true, None) if args.like => Some(NewVolume::Alike),
        (true, None) => Some(NewVolume::Plain),
    };
    let size = |text: &String| match text.as_str() {
        "" => Ok(None),
        text => settings::parse_size("--safety-snapshot", text).map(Some),
    };
    let safety = args.safety_snapshot.as_ref().map(size).transpose()?.map(|size| Safety { size });
    Ok(Preparation { create, safety, drop_baseline: args.drop_baseline })
}

async fn by_agent(app: &App, args: &RestoreArgs, host: &str) -> anyhow::Result<()> {
    let repository = app.repository().await?;
    let context = app.context(bus::connect(app, "restore").await?);
    for (root, args) in chosen(&repository, args).await? {
        let started = app.environment.elapsed();
        let job = app.environment.job_id();
        let order = RestoreJob {
            job,
            slot: root.slot,
            target: args.target.clone(),
            force: args.force,
            preparation: preparation(&args)?,
            full: args.full,
        };
        let about = About { session: None, volume: root.volume.clone() };
        let message = Message::new(&about, &order);
        context.bus.publish(&Queue::restores(host), message).await.map_err(Failure::from)?;
        match backup::outcome_of(&context, job, &root.volume).await? {
            JobOutcome::Restored { written, kept, compared, zeroed, fetched, notes } => {
                let size = root.size;
                let report =
                    Report { size, written, kept, compared, zeroed, fetched, notes, ..Report::default() };
                let seconds = app.environment.elapsed().saturating_sub(started).as_secs_f64();
                print(app, &root, &args.target, &report, seconds)?;
            }
            JobOutcome::Failed { kind, why } => return Err(Failure::new(kind, why).into()),
            JobOutcome::Sealed { .. } => bail!("the answer to a restore was that of a backup"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check_apart;

    #[test]
    fn volumes_of_one_name_are_not_restored_over_each_other() {
        let apart = [("h/vg0/data", "vg2/data"), ("h/vg0/root", "vg2/root")];
        check_apart(apart.into_iter()).unwrap();
        let both = [("h/vg0/data", "vg2/data"), ("h/vg1/data", "vg2/data")];
        let refused = check_apart(both.into_iter()).unwrap_err().to_string();
        assert!(refused.contains("h/vg0/data and h/vg1/data"), "{refused}");
    }
}
