//! `forget` and `unforget`: which snapshots go and why, and how one comes back. No pack is deleted by either.

mod row;

use std::collections::{BTreeMap, BTreeSet};

use agent::marks::{self, Marks};
use agent::{DamagedRoot, Failure, Repository, Roots, forgetting};
use anyhow::bail;
use conductor::retention::{Backwards, Decided, Rules, Snapshot, decide, stand_ins};
use futures::future::join_all;
use schema::names::Slot;
use schema::root::Root;

use crate::app::App;
use crate::args::{ForgetArgs, UnforgetArgs};
use crate::{open, select, snapshots, text, undo};

use row::{Done, Row};

/// Snapshots forgotten at once.
const AT_ONCE: usize = 16;

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
    let (mut rows, left) = match args.snapshots.is_empty() {
        true => by_rules(app, &repository, args, &rules).await?,
        false => (by_name(app, &repository, args).await?, LeftAlone::default()),
    };
    let failure = match args.dry_run {
        true => None,
        false => forget(app, &repository, &mut rows).await,
    };
    let kept = rows.iter().filter(|row| row.keep).count();
    let failed = rows.iter().filter(|row| row.failed.is_some()).count();
    let forgotten = rows.len() - kept - failed;
    let is_by_name = !args.snapshots.is_empty();
    let done = Done { dry_run: args.dry_run, is_by_name, kept, forgotten, failed, snapshots: rows };
    app.print(&done, || done.text())?;
    match failure {
        Some(failure) => {
            let what = format!("{} could not be forgotten", text::count(failed as u64, "snapshot"));
            bail!(failure.context(if failed == 1 { what } else { format!("{what}; the first") }))
        }
        None => left.conclude(app),
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

/// What rules decided nothing about, while all else went as they say.
#[derive(Default)]
struct LeftAlone {
    /// Volumes whose times run backwards.
    backwards: Vec<Backwards>,
    /// Snapshots that cannot be read. They stay.
    damaged: Vec<DamagedRoot>,
}

impl LeftAlone {
    fn conclude(&self, app: &App) -> anyhow::Result<()> {
        let Some((last, others)) = self.backwards.split_last() else {
            return select::conclude(app, &self.damaged);
        };
        others.iter().for_each(|other| app.say(format!("lvkeep: {other}")));
        self.damaged.iter().for_each(|damaged| app.complain(format!("lvkeep: {damaged}")));
        bail!(Failure::refused(last.to_string()))
    }
}

/// What the rules say of all that was chosen. What was kept for an undo is chosen only by a pattern that names it.
async fn by_rules(
    app: &App,
    repository: &Repository,
    args: &ForgetArgs,
    rules: &Rules,
) -> anyhow::Result<(Vec<Row>, LeftAlone)> {
    let (all, marks) = select::labelled(repository).await?;
    let undo = args.of.volume.as_ref().is_some_and(|pattern| pattern.starts_with(undo::NAMES));
    let mut chosen = snapshots::filtered(app, &all.readable, &args.of, None, None)?;
    chosen.retain(|root| undo || !root.volume.starts_with(undo::NAMES));
    if chosen.is_empty() {
        bail!(Failure::refused("no snapshot is what was asked for (`lvkeep snapshots` lists them)"));
    }
    let left_alone = select::may_be_chosen(&all, &args.of, undo);
    let Roots { readable, damaged } = all;
    let chosen: BTreeSet<Slot> = chosen.iter().map(|root| root.slot).collect();
    let none = Marks::default();
    let snapshot = |root: &Root| Snapshot {
        tags: root.tags.clone(),
        ..Snapshot::new(root, marks.get(&root.slot).unwrap_or(&none))
    };
    let mut snapshots: Vec<Snapshot> = readable.iter().map(snapshot).collect();
    snapshots.extend(stand_ins(&damaged, &readable));
    let rules = |one: &Snapshot| chosen.contains(&one.slot).then_some(rules);
    let Decided { reasons, backwards } =
        decide(&snapshots, rules, app.environment.now_ms(), !args.split_groups);
    let decided = readable.into_iter().zip(reasons).filter(|(root, _)| chosen.contains(&root.slot));
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
    Ok((rows, LeftAlone { backwards, damaged: left_alone }))
}

/// What a restore may still have to undo stays; a dry run says so, too.
async fn protect(repository: &Repository, rows: &mut [Row]) -> Result<(), Failure> {
    for row in rows.iter_mut().filter(|row| !row.keep && row.volume.starts_with(undo::NAMES)) {
        if let Some(why) = row.protected(repository).await? {
            row.stays(why);
        }
    }
    Ok(())
}

/// Those that are named, each once. Nothing is forgotten when one of them must not be.
async fn by_name(app: &App, repository: &Repository, args: &ForgetArgs) -> anyhow::Result<Vec<Row>> {
    let (mut named, mut damaged) = (BTreeMap::<Slot, Root>::new(), BTreeMap::new());
    for text in &args.snapshots {
        match select::damaged(repository, text).await? {
            Some(one) if one.forgotten => bail!(one.failure()),
            Some(one) => drop(damaged.insert(one.slot, one)),
            None => {
                let root = select::snapshot(repository, text).await?;
                named.insert(root.slot, root);
            }
        }
    }
    for slot in damaged.keys() {
        if let Some(why) = forgetting::damaged_protected(repository, *slot).await? {
            bail!(Failure::refused(format!("snapshot {} is not forgotten: {why}", slot.session)));
        }
    }
    for root in named.values() {
        if let Some(why) = forgetting::protected(repository, root).await? {
            let (id, volume) = (root.slot.session, &root.volume);
            bail!(Failure::refused(format!("snapshot {id} of {volume} is not forgotten: {why}")));
        }
        check_last(repository, root, args.allow_last).await?;
    }
    say_split_runs(app, repository, &named).await?;
    let named = named.into_values().map(|root| Row::new(root, Vec::new(), "named"));
    Ok(named.chain(damaged.into_values().map(Row::damaged)).collect())
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
    let all = select::roots(repository, None).await?.warned();
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
    let newest = agent::sessions::newest(repository.roots(Some(root.slot.volume)).await?.warned());
    if newest.is_some_and(|newest| newest.slot == root.slot) {
        let (id, volume) = (root.slot.session, &root.volume);
        bail!(Failure::refused(format!(
            "snapshot {id} is the newest of {volume}: --allow-last forgets it all the same, and the next backup compares \
             with an older one, or reads everything"
        )));
    }
    Ok(())
}

/// `lvkeep unforget`.
pub async fn unforget(app: &App, args: &UnforgetArgs) -> anyhow::Result<()> {
    let repository = app.repository().await?;
    open::check_writable(&repository).await?;
    if let Some(damaged) = select::damaged(&repository, &args.snapshot).await?.filter(|one| one.forgotten) {
        bail!(damaged.failure());
    }
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
