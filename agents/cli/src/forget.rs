//! `forget` and `unforget`: which snapshots go and why, and how one comes back. No pack is deleted by either.

use std::collections::{BTreeMap, BTreeSet};

use agent::forgetting::{self, Forgot};
use agent::marks::{self, Marks};
use agent::{Failure, Repository};
use anyhow::bail;
use conductor::retention::{Backwards, Decided, Rules, Snapshot, decide};
use futures::future::join_all;
use schema::names::Slot;
use schema::root::Root;
use serde::Serialize;

use crate::app::App;
use crate::args::{ForgetArgs, UnforgetArgs};
use crate::{open, select, snapshots, text, undo};

/// Snapshots forgotten at once.
const AT_ONCE: usize = 16;

/// A snapshot and what becomes of it, as it is printed.
#[derive(Debug, Serialize)]
struct Row {
    id: String,
    volume: String,
    generation: u64,
    time: String,
    group: Option<String>,
    /// Whether it stays.
    keep: bool,
    /// Why it stays.
    reasons: Vec<String>,
    /// Where it stands now, when it came to be protected while it was forgotten.
    #[serde(skip_serializing_if = "Option::is_none")]
    brought_back: Option<String>,
    /// Why it may still be there, though it should go.
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
    /// Why it goes, if it does.
    #[serde(skip)]
    goes: &'static str,
    #[serde(skip)]
    time_ms: u64,
    #[serde(skip)]
    root: Root,
}

#[derive(Debug, Serialize)]
struct Done {
    dry_run: bool,
    kept: usize,
    forgotten: usize,
    failed: usize,
    snapshots: Vec<Row>,
}

/// `lvkeep forget`.
pub async fn run(app: &App, args: &ForgetArgs) -> anyhow::Result<()> {
    let rules = args.keep.rules()?;
    if rules.is_empty() && args.snapshots.is_empty() {
        bail!(Failure::refused(
            "nothing says what is to be forgotten: give --keep-... rules, or name snapshots (--dry-run shows what would go)"
        ));
    }
    let repository = app.repository().await?;
    open::check_writable(&repository).await?;
    let (mut rows, backwards) = match args.snapshots.is_empty() {
        true => by_rules(app, &repository, args, &rules).await?,
        false => (by_name(app, &repository, args).await?, Vec::new()),
    };
    let failure = match args.dry_run {
        true => None,
        false => forget(app, &repository, &mut rows).await,
    };
    let kept = rows.iter().filter(|row| row.keep).count();
    let failed = rows.iter().filter(|row| row.failed.is_some()).count();
    let forgotten = rows.len() - kept - failed;
    let done = Done { dry_run: args.dry_run, kept, forgotten, failed, snapshots: rows };
    app.print(&done, || done.text())?;
    match failure {
        Some(failure) => {
            bail!(failure.context(format!("{failed} snapshots may not be forgotten; the first")))
        }
        None => conclude(app, &backwards),
    }
}

/// Forgets what goes, and says what failed first; nothing more is begun then.
async fn forget(app: &App, repository: &Repository, rows: &mut [Row]) -> Option<Failure> {
    let by = format!("lvkeep forget on {}", app.settings.host.value);
    let mut going: Vec<&mut Row> = rows.iter_mut().filter(|row| !row.keep).collect();
    let mut first = None;
    for some in going.chunks_mut(AT_ONCE) {
        if first.is_some() {
            some.iter_mut().for_each(|row| row.failed = Some("it was not begun".to_owned()));
            continue;
        }
        let ended = join_all(some.iter_mut().map(|row| row.forget(app, repository, &by))).await;
        for (row, failure) in some.iter_mut().zip(ended).filter_map(|(row, ended)| Some((row, ended.err()?)))
        {
            row.failed = Some(failure.to_string());
            first.get_or_insert(failure);
        }
    }
    first
}

/// Volumes whose times run backwards were left alone; the others were not.
fn conclude(app: &App, backwards: &[Backwards]) -> anyhow::Result<()> {
    let Some((last, others)) = backwards.split_last() else { return Ok(()) };
    for other in others {
        app.say(format!("lvkeep: {other}"));
    }
    bail!(Failure::refused(last.to_string()))
}

/// What the rules say of all that was chosen. What was kept for an undo is chosen only by a pattern that names it.
async fn by_rules(
    app: &App,
    repository: &Repository,
    args: &ForgetArgs,
    rules: &Rules,
) -> anyhow::Result<(Vec<Row>, Vec<Backwards>)> {
    let (all, marks) = select::labelled(repository).await?;
    let undo = args.of.volume.as_ref().is_some_and(|pattern| pattern.starts_with(undo::NAMES));
    let mut chosen = snapshots::filtered(app, &all, &args.of, None, None)?;
    chosen.retain(|root| undo || !root.volume.starts_with(undo::NAMES));
    if chosen.is_empty() {
        bail!(Failure::refused("no snapshot is what was asked for (`lvkeep snapshots` lists them)"));
    }
    let chosen: BTreeSet<Slot> = chosen.iter().map(|root| root.slot).collect();
    let none = Marks::default();
    let snapshot = |root: &Root| Snapshot {
        tags: root.tags.clone(),
        ..Snapshot::new(root, marks.get(&root.slot).unwrap_or(&none))
    };
    let snapshots: Vec<Snapshot> = all.iter().map(snapshot).collect();
    let rules = |one: &Snapshot| chosen.contains(&one.slot).then_some(rules);
    let Decided { reasons, backwards } =
        decide(&snapshots, rules, app.environment.now_ms(), !args.split_groups);
    let decided = all.into_iter().zip(reasons).filter(|(root, _)| chosen.contains(&root.slot));
    let rows = decided.map(|(root, reasons)| {
        let held = marks.get(&root.slot).and_then(Marks::why_held);
        let mut reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
        if let (Some(why), Some(said)) = (held, reasons.iter_mut().find(|said| *said == "held")) {
            *said = why;
        }
        Row::new(root, reasons, "no rule keeps it")
    });
    let mut rows: Vec<Row> = rows.collect();
    protect(repository, &mut rows).await?;
    Ok((rows, backwards))
}

/// What a restore may still have to undo stays; a dry run says so, too.
async fn protect(repository: &Repository, rows: &mut [Row]) -> Result<(), Failure> {
    for row in rows.iter_mut().filter(|row| !row.keep && row.volume.starts_with(undo::NAMES)) {
        if let Some(why) = forgetting::protected(repository, &row.root).await? {
            row.stays(why);
        }
    }
    Ok(())
}

/// Those that are named, each once. Nothing is forgotten when one of them must not be.
async fn by_name(app: &App, repository: &Repository, args: &ForgetArgs) -> anyhow::Result<Vec<Row>> {
    let mut named: BTreeMap<Slot, Root> = BTreeMap::new();
    for text in &args.snapshots {
        let root = select::snapshot(repository, text).await?;
        named.insert(root.slot, root);
    }
    for root in named.values() {
        if let Some(why) = forgetting::protected(repository, root).await? {
            let (id, volume) = (root.slot.session, &root.volume);
            bail!(Failure::refused(format!("snapshot {id} of {volume} is not forgotten: {why}")));
        }
        check_last(repository, root, args.allow_last).await?;
    }
    say_split_runs(app, repository, &named).await?;
    Ok(named.into_values().map(|root| Row::new(root, Vec::new(), "named")).collect())
}

/// Half a run of a group is no moment of it: rules keep all of it, and names say what they leave.
async fn say_split_runs(
    app: &App,
    repository: &Repository,
    named: &BTreeMap<Slot, Root>,
) -> Result<(), Failure> {
    let runs: BTreeSet<&String> = named.values().filter_map(|root| root.group.as_ref()).collect();
    if runs.is_empty() {
        return Ok(());
    }
    let all = select::roots(repository, None).await?;
    for run in runs {
        let stays =
            all.iter().filter(|root| root.group.as_ref() == Some(run) && !named.contains_key(&root.slot));
        let stays: Vec<&str> = stays.map(|root| root.volume.as_str()).collect();
        if !stays.is_empty() {
            app.say(format!(
                "lvkeep: of the run {run} the snapshots of {} stay, which are not named: it is not whole then",
                stays.join(", ")
            ));
        }
    }
    Ok(())
}

/// A volume's newest snapshot goes only where that was said, too. What was kept for an undo is one of a kind.
async fn check_last(repository: &Repository, root: &Root, allowed: bool) -> anyhow::Result<()> {
    if allowed || root.volume.starts_with(undo::NAMES) {
        return Ok(());
    }
    let newest = agent::sessions::newest(repository.roots(Some(root.slot.volume)).await?);
    if newest.is_some_and(|newest| newest.slot == root.slot) {
        let (id, volume) = (root.slot.session, &root.volume);
        bail!(Failure::refused(format!(
            "snapshot {id} is the newest of {volume}: --allow-last forgets it all the same, and the next backup compares \
             with an older one, or reads everything"
        )));
    }
    Ok(())
}

impl Row {
    fn new(root: Root, reasons: Vec<String>, goes: &'static str) -> Self {
        Self {
            id: root.slot.session.to_string(),
            volume: root.volume.clone(),
            generation: root.generation,
            time: text::rfc3339(root.time_ms),
            group: root.group.clone(),
            keep: !reasons.is_empty(),
            reasons,
            brought_back: None,
            failed: None,
            goes,
            time_ms: root.time_ms,
            root,
        }
    }

    fn stays(&mut self, why: String) {
        self.keep = true;
        self.reasons.push(why);
    }

    async fn forget(&mut self, app: &App, repository: &Repository, by: &str) -> Result<(), Failure> {
        match forgetting::forget(repository, &self.root, by).await? {
            Forgot::Done => {}
            Forgot::Protected(why) => self.stays(why),
            Forgot::BroughtBack(slot, why) => {
                let (id, volume) = (&self.id, &self.volume);
                app.say(format!(
                    "lvkeep: snapshot {id} of {volume} came to be protected while it was forgotten ({why}): it is back as {}",
                    slot.session
                ));
                self.brought_back = Some(slot.session.to_string());
                self.stays(why);
            }
        }
        Ok(())
    }
}

impl Done {
    fn text(&self) -> String {
        let mut table = text::Table::new(&["", "id", "volume", "gen", "time", "why"]);
        for row in &self.snapshots {
            let (what, why) = match &row.failed {
                Some(why) => ("FAILED", why.clone()),
                None if row.keep => ("keep", row.reasons.join(", ")),
                None => ("forget", row.goes.to_owned()),
            };
            table.row([
                what.to_owned(),
                row.id.clone(),
                row.volume.clone(),
                row.generation.to_string(),
                text::time(row.time_ms),
                why,
            ]);
        }
        let (kept, forgotten) = (self.kept, self.forgotten);
        let last = match self.dry_run {
            true => format!("{kept} snapshots would stay, {forgotten} would be forgotten"),
            false => format!(
                "{kept} snapshots stay, {forgotten} are forgotten (`lvkeep unforget` brings one back until it is collected)"
            ),
        };
        let failed = match self.failed {
            0 => String::new(),
            count => format!(", {count} FAILED"),
        };
        format!("{}\n{last}{failed}", table.text())
    }
}

/// `lvkeep unforget`.
pub async fn unforget(app: &App, args: &UnforgetArgs) -> anyhow::Result<()> {
    let repository = app.repository().await?;
    open::check_writable(&repository).await?;
    let forgotten = select::forgotten(&repository, &args.snapshot).await?;
    let by = format!("lvkeep unforget on {}", app.settings.host.value);
    let back = forgetting::unforget(&repository, &forgotten, &by).await?;
    let (id, was) = (back.root.slot.session.to_string(), forgotten.slot.session.to_string());
    let volume = &back.root.volume;
    let held = marks::of(&repository, back.root.slot).await?.is_held();
    let value = serde_json::json!({ "snapshot": id, "was": was, "volume": volume, "already": back.already, "held": held });
    app.print(&value, || match back.already {
        true => format!("snapshot {was} of {volume} had been brought back already: it is {id}"),
        false => format!("snapshot {was} of {volume} is back: it is {id} now"),
    })
}
