//! `copy`: brings snapshots to a second repository. What is there is left out, and what fails stands in nobody's way.

use std::collections::BTreeMap;
use std::sync::Arc;

use agent::marks::{self, Marks};
use agent::{DamagedRoot, Failure, Protection, ReadBy, Repository};
use copier::{Copied, Copier, Copies, Outcome, Side};
use schema::names::Slot;
use schema::root::Root;
use schema::session::SessionKind;
use serde::Serialize;

use crate::app::App;
use crate::args::CopyArgs;
use crate::embedded::{self, Embedded};
use crate::progress::Display;
use crate::{open, select, snapshots, text, undo};

/// A snapshot that was copied, as it is printed.
#[derive(Debug, Serialize)]
struct Row {
    volume: String,
    time: String,
    /// Its id in the first repository.
    from: String,
    /// Its id in the second; none where nothing is copied.
    snapshot: Option<String>,
    size: u64,
    bytes_fetched: u64,
    bytes_new: u64,
    bytes_stored: u64,
}

/// A snapshot that was not.
#[derive(Debug, Serialize)]
struct Failed {
    volume: Option<String>,
    from: String,
    why: String,
}

/// What was done, as it is printed.
#[derive(Debug, Serialize)]
struct Report {
    dry_run: bool,
    copied: Vec<Row>,
    /// Snapshots that were there already.
    present: usize,
    failed: Vec<Failed>,
    /// Snapshots that a word to stop came before.
    not_begun: usize,
    /// Whether frames were moved as they are.
    verbatim: bool,
    /// Whether every chunk was opened and compared with its id.
    verified: bool,
    /// Whether the second repository is encrypted.
    encrypted: bool,
}

/// What is to be done.
struct Plan {
    sources: Vec<Root>,
    /// What cannot be read in the first repository, and may be of what is asked for.
    damaged: Vec<DamagedRoot>,
    marks: BTreeMap<Slot, Marks>,
    missing: Vec<Root>,
    /// What is there, and its copies.
    present: Vec<(Root, Root)>,
}

/// `lvkeep copy`.
pub async fn run(app: &App, args: &CopyArgs) -> anyhow::Result<()> {
    app.stop_on_signals()?;
    let (from, to) = repositories(app, args).await?;
    let by = ReadBy {
        kind: SessionKind::Copy,
        session: app.environment.session_id(),
        job: app.environment.job_id(),
        volume: &format!("snapshots to {}", to.store.location()),
        host: &app.settings.host.value,
        undo: &[],
    };
    // Before anything is listed: what is seen from then on stays until the end.
    let protection = app.protected.begin_as(app, &from, by).await?;
    protected(app, args, &protection, from, to).await
}

async fn repositories(app: &App, args: &CopyArgs) -> anyhow::Result<(Repository, Repository)> {
    let from = app.repository().await?;
    let key = args.to_key.as_deref();
    let mut to = open::other(app, &args.to, key, Some(from.key.repo())).await?;
    if to.key.repo() == from.key.repo() {
        let (from, to) = (from.store.location(), to.store.location());
        return Err(Failure::refused(format!(
            "{to} is the repository {from} itself: name another one with --to"
        ))
        .into());
    }
    if from.key.encrypted() && !to.key.encrypted() && !args.no_encryption {
        let (from, to) = (from.store.location(), to.store.location());
        return Err(Failure::refused(format!(
            "{from} is encrypted and {to} is NOT: whoever can read that could read all volumes; --no-encryption copies \
             them all the same (`lvkeep init` makes an encrypted repository)"
        ))
        .into());
    }
    if !args.dry_run {
        open::check_writable(&to).await?;
        if open::directory(to.store.location()).is_none() {
            open::probe(&mut to).await?;
        }
    }
    Ok((from, to))
}

async fn protected(
    app: &App,
    args: &CopyArgs,
    protection: &Protection,
    from: Repository,
    to: Repository,
) -> anyhow::Result<()> {
    let plan = plan(app, args, &from, &to).await?;
    let identity = open::identity(&app.settings, from.key.repo())?.map(Arc::new);
    let verbatim = from.key.shares_keys(&to.key);
    let verified = identity.is_some() || !from.key.encrypted();
    if verbatim && !verified && !args.unverified {
        return Err(Failure::refused(
            "without an identity what is copied cannot be verified on the way: give --identity, or --unverified and run \
             `lvkeep check --read-data` where it was copied to",
        )
        .into());
    }
    let mut report = Report {
        dry_run: args.dry_run,
        copied: Vec::new(),
        present: plan.present.len(),
        failed: plan.damaged.iter().map(unreadable).collect(),
        not_begun: 0,
        verbatim,
        verified,
        encrypted: to.key.encrypted(),
    };
    let mut errors: Vec<anyhow::Error> =
        plan.damaged.iter().map(|damaged| damaged.failure().into()).collect();
    let mut broken = None;
    if args.dry_run {
        report.copied = plan.missing.iter().map(|root| Row::new(root, None)).collect();
    } else {
        if let Err(failure) = bring_left_notes(app, &plan, &to).await {
            errors.push(failure.context("bringing the notes of copies that are there").into());
        }
    }
    if !args.dry_run && !plan.missing.is_empty() {
        let work_from = Embedded::indexed(app, from.clone()).await?;
        let mut work_to = Embedded::storing(app, to.clone()).await?;
        let settings =
            copier::Settings { memory: app.settings.memory.value / 4, level: app.settings.level.value };
        let (first, second) = (side(&work_from), side(&work_to));
        let context = work_to.context.clone();
        let copier = Copier::new(context, first, second, identity, settings, &plan.sources)?;
        let mut copying = std::pin::pin!(each(app, &copier, protection, &plan, &to));
        let ended = tokio::select! {
            biased;
            ended = &mut copying => ended,
            error = failed(app, &mut work_to) => {
                // Whoever copies decides the slot first.
                broken = Some(error);
                app.stop.raise();
                copying.await
            }
        };
        work_to.finish().await;
        work_from.finish().await;
        report.not_begun = plan.missing.len() - ended.len();
        for (root, outcome) in plan.missing.iter().zip(ended) {
            match outcome {
                Ok(Outcome::Copied(copied)) => report.copied.push(Row::new(root, Some(&copied))),
                Ok(Outcome::Present) => report.present += 1,
                Err(failure) => {
                    report.failed.push(Failed::new(root, &failure));
                    errors.push(
                        failure.context(format!("copying {} ({})", root.volume, root.slot.session)).into(),
                    );
                }
            }
        }
    }
    if report.not_begun > 0 && errors.is_empty() {
        errors.push(embedded::interrupted().into());
    }
    app.print(&report, || describe(&report))?;
    match broken {
        Some(error) => Err(error),
        None => conclude(errors),
    }
}

/// Which snapshots are asked for and missing. What restores have overwritten is only copied when it is asked for.
async fn plan(app: &App, args: &CopyArgs, from: &Repository, to: &Repository) -> anyhow::Result<Plan> {
    let mut listing = copier::snapshots(from).await?;
    let marks = select::relabel(from, &mut listing.readable).await?;
    let there = copier::snapshots(to).await?;
    for damaged in &there.damaged {
        tracing::warn!("{damaged}; if it is a copy, it is copied anew");
    }
    let copies = Copies::new(from, listing.readable.iter(), to, there.readable.iter());
    let mut chosen =
        snapshots::filtered(app, &listing.readable, &args.of, args.since.as_deref(), args.until.as_deref())?;
    let wants_undo = args.of.volume.as_ref().is_some_and(|pattern| pattern.starts_with(undo::NAMES));
    chosen.retain(|root| wants_undo || !root.volume.starts_with(undo::NAMES));
    let damaged = select::may_be_chosen(&listing, &args.of, wants_undo);
    // A time in which nothing was backed up is no mistake.
    if chosen.is_empty() && damaged.is_empty() && snapshots::is_narrowed(app, &args.of) {
        let at_any_time = snapshots::filtered(app, &listing.readable, &args.of, None, None)?;
        if at_any_time.is_empty() {
            return Err(snapshots::nothing(&listing.readable, &args.of).into());
        }
    }
    let (mut missing, mut present) = (Vec::new(), Vec::new());
    for root in chosen {
        match copies.of(&root) {
            Some(copy) => present.push((root, copy.clone())),
            None => missing.push(root),
        }
    }
    Ok(Plan { sources: listing.readable, damaged, marks, present, missing })
}

impl Plan {
    fn note(&self, root: &Root) -> Option<String> {
        self.marks.get(&root.slot).and_then(|marks| marks.labels(root).note)
    }
}

fn side(work: &Embedded) -> Side {
    Side { repository: work.repository.clone(), index: work.index.clone() }
}

/// Copies one snapshot after the other, oldest first, so that each stands on the one before.
async fn each(
    app: &App,
    copier: &Copier,
    protection: &Protection,
    plan: &Plan,
    to: &Repository,
) -> Vec<Result<Outcome, Failure>> {
    let display = Display::new(app);
    let mut ended = Vec::new();
    for root in &plan.missing {
        if app.stop.is_raised() {
            break;
        }
        let bar = display.bar(&root.volume);
        let outcome = copier.copy(protection, root, |p| bar.set(p.done, p.total)).await;
        bar.finish();
        display.aside(|| tell(app, root, &outcome, plan.missing.len()));
        if let Err(failure) = bring_note(app, plan, to, root, &outcome).await {
            let (volume, id) = (&root.volume, root.slot.session);
            display.aside(|| {
                app.complain(format!("lvkeep: {volume} ({id}) is there without its note: {failure}"))
            });
        }
        ended.push(outcome);
    }
    ended
}

/// A note is no part of a root, as tags are.
async fn bring_note(
    app: &App,
    plan: &Plan,
    to: &Repository,
    root: &Root,
    outcome: &Result<Outcome, Failure>,
) -> Result<(), Failure> {
    match outcome {
        Ok(Outcome::Copied(copied)) => {
            label(app, plan, to, root, &Root { slot: copied.slot, ..root.clone() }).await
        }
        Ok(Outcome::Present) | Err(_) => Ok(()),
    }
}

async fn label(app: &App, plan: &Plan, to: &Repository, root: &Root, copy: &Root) -> Result<(), Failure> {
    if let Some(note) = plan.note(root) {
        let by = format!("lvkeep copy on {}", app.settings.host.value);
        marks::label(to, copy, &by, |labels| labels.note = Some(note.clone())).await?;
    }
    Ok(())
}

/// Brings the notes that a copy was killed before: to copies of which nothing was ever said since. Says what failed.
async fn bring_left_notes(app: &App, plan: &Plan, to: &Repository) -> Result<(), Failure> {
    let noted: Vec<&(Root, Root)> =
        plan.present.iter().filter(|(root, _)| plan.note(root).is_some()).collect();
    if noted.is_empty() {
        return Ok(());
    }
    let said = marks::among(to, &noted.iter().map(|(_, copy)| copy.slot).collect()).await?;
    for (root, copy) in noted.into_iter().filter(|(_, copy)| !said.contains_key(&copy.slot)) {
        label(app, plan, to, root, copy).await?;
        app.say(format!("{} ({}) has its note now, which was missing", copy.volume, copy.slot.session));
    }
    Ok(())
}

/// Says how one ended, while others are still to come.
fn tell(app: &App, root: &Root, outcome: &Result<Outcome, Failure>, of: usize) {
    match outcome {
        Ok(Outcome::Copied(copied)) => app.say(Row::new(root, Some(copied)).text()),
        Ok(Outcome::Present) => {}
        Err(failure) if of > 1 => {
            app.complain(format!("lvkeep: {} ({}): {failure}", root.volume, root.slot.session))
        }
        Err(_) => {}
    }
}

/// A role that ends before it was told to. After a stop, whoever copies decides the slot first.
async fn failed(app: &App, work: &mut Embedded) -> anyhow::Error {
    let error = work.role_failed().await;
    match app.stop.is_raised() {
        true => std::future::pending().await,
        false => error,
    }
}

fn unreadable(damaged: &DamagedRoot) -> Failed {
    Failed { volume: None, from: damaged.slot.session.to_string(), why: damaged.to_string() }
}

impl Failed {
    fn new(root: &Root, failure: &Failure) -> Self {
        let from = root.slot.session.to_string();
        Self { volume: Some(root.volume.clone()), from, why: failure.to_string() }
    }
}

impl Row {
    fn new(root: &Root, copied: Option<&Copied>) -> Self {
        let statistics = copied.map(|copied| copied.statistics).unwrap_or_default();
        Self {
            volume: root.volume.clone(),
            time: text::rfc3339(root.time_ms),
            from: root.slot.session.to_string(),
            snapshot: copied.map(|copied| copied.slot.session.to_string()),
            size: root.size,
            bytes_fetched: copied.map_or(0, |copied| copied.fetched),
            bytes_new: statistics.bytes_new,
            bytes_stored: statistics.bytes_stored,
        }
    }

    fn text(&self) -> String {
        let Self { volume, from, size, .. } = self;
        let Some(snapshot) = &self.snapshot else {
            return format!("{volume} {from}: {}", text::size(*size));
        };
        format!(
            "{volume} {from} is there as {snapshot}: {}, of which {} were new; {} read, {} stored",
            text::size(*size),
            text::size(self.bytes_new),
            text::size(self.bytes_fetched),
            text::size(self.bytes_stored)
        )
    }
}

fn describe(report: &Report) -> String {
    let Report { copied, present, failed, .. } = report;
    let warning = if report.encrypted { "" } else { "\nWhere it was copied to is NOT ENCRYPTED." };
    if report.dry_run {
        let rows = copied.iter().map(Row::text);
        let head = format!("would copy {} snapshots; {present} are there already{warning}", copied.len());
        return rows.chain([head]).collect::<Vec<_>>().join("\n");
    }
    let stored = text::size(copied.iter().map(|row| row.bytes_stored).sum());
    let how = match (report.verbatim, report.verified) {
        _ if copied.is_empty() => String::new(),
        (true, true) => format!(" ({stored}, verified and copied as they are)"),
        (true, false) => format!(" ({stored}, copied as they are, NOT VERIFIED)"),
        (false, _) => format!(" ({stored}, verified and sealed anew)"),
    };
    let failures = match failed.len() {
        0 => String::new(),
        count => format!(", {count} FAILED"),
    };
    let left = match report.not_begun {
        0 => String::new(),
        count => format!(", {count} not begun"),
    };
    format!("{} snapshots copied{how}, {present} were there already{failures}{left}{warning}", copied.len())
}

/// The first failure decides the exit code.
fn conclude(errors: Vec<anyhow::Error>) -> anyhow::Result<()> {
    let failed = errors.len();
    match errors.into_iter().next() {
        None => Ok(()),
        Some(only) if failed == 1 => Err(only),
        Some(first) => Err(first.context(format!("{failed} snapshots were not copied; the first"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What somebody stopped did not fail.
    #[test]
    fn what_was_not_begun_has_not_failed() {
        let report = Report {
            dry_run: false,
            copied: Vec::new(),
            present: 2,
            failed: Vec::new(),
            not_begun: 3,
            verbatim: true,
            verified: true,
            encrypted: true,
        };
        assert_eq!(describe(&report), "0 snapshots copied, 2 were there already, 3 not begun");
    }
}
