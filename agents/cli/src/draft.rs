//! `plan`: a plan of the latest snapshots of many volumes, for an operator to edit.

use std::collections::BTreeMap;
use std::path::PathBuf;

use agent::Failure;
use anyhow::bail;
use schema::root::Root;
use serde::Serialize;

use crate::app::App;
use crate::args::{PlanArgs, RestoreOptions};
use crate::{apart, plan, select, snapshots, text, undo};

/// A volume of the plan, as it is printed for machines.
#[derive(Debug, Serialize)]
struct Row<'a> {
    snapshot: String,
    volume: &'a str,
    time: String,
    size: u64,
    target: String,
}

/// `lvkeep plan`.
pub async fn run(app: &App, args: &PlanArgs) -> anyhow::Result<()> {
    let wrong = args.options.clashes();
    if !wrong.is_empty() {
        bail!(Failure::refused(wrong.join("; ")));
    }
    args.options.preparation()?;
    let repository = app.repository().await?;
    let (all, _) = select::labelled(&repository).await?;
    let mut chosen = snapshots::filtered(app, &all.readable, &args.of, None, args.at.as_deref())?;
    // What was kept for an undo is put back by that.
    chosen.retain(|root| !root.volume.starts_with(undo::NAMES));
    let roots = latest(chosen, args.at.is_some());
    if roots.is_empty() {
        bail!(snapshots::nothing(&all.readable, &args.of));
    }
    let row = |root: &'_ Root| target(root, args.to_vg.as_deref());
    let targets: Vec<String> = roots.iter().map(row).collect();
    let rows: Vec<Row<'_>> = roots
        .iter()
        .zip(&targets)
        .map(|(root, target)| Row {
            snapshot: root.slot.session.to_string(),
            volume: &root.volume,
            time: text::rfc3339(root.time_ms),
            size: root.size,
            target: target.clone(),
        })
        .collect();
    app.print(&rows, || {
        let head = head(&roots, app.environment.now_ms());
        let volumes = roots.iter().zip(&targets).map(|(root, target)| volume(root, target, &args.options));
        let twice = twice(&targets);
        std::iter::once(head).chain(twice).chain(volumes).collect::<Vec<_>>().join("\n")
    })?;
    select::conclude(app, &select::may_be_chosen(&all, &args.of, false))
}

/// The latest snapshot of each volume: the highest generation, whatever clocks said; by time where one was asked for.
fn latest(roots: Vec<Root>, by_time: bool) -> Vec<Root> {
    let mut latest: BTreeMap<String, Root> = BTreeMap::new();
    for root in roots {
        let order = |root: &Root| (if by_time { root.time_ms } else { 0 }, root.generation, root.slot);
        if latest.get(&root.volume).is_none_or(|there| order(there) < order(&root)) {
            latest.insert(root.volume.clone(), root);
        }
    }
    latest.into_values().collect()
}

/// The last part of the volume's name in a volume group, or where the volume was.
fn target(root: &Root, vg: Option<&str>) -> String {
    let name = root.volume.rsplit('/').next().unwrap_or(&root.volume);
    match vg {
        Some(vg) => format!("{vg}/{name}"),
        None => root.source.clone(),
    }
}

fn head(roots: &[Root], now_ms: u64) -> String {
    let bytes = text::size(roots.iter().map(|root| root.size).sum());
    format!(
        "# {} volumes, {bytes}; written {}. When it is as it should be:\n\
         #   lvkeep restore --plan FILE\n\
         # A volume of a higher priority comes first; equal ones as they stand here.\n\
         # The keys of a volume are the options of `lvkeep restore`; host is the one whose agents write.\n\n\
         # Volumes of each host at once. [hosts.NAME] has its own.\n\
         volumes_at_once = {}\n\
         # Reads of the store at once, of all hosts and the command together.\n\
         #fetches_at_once = 16\n",
        roots.len(),
        text::time(now_ms),
        plan::AT_ONCE,
    )
}

/// What a plan would be refused for.
fn twice(targets: &[String]) -> Option<String> {
    let mut counts: BTreeMap<PathBuf, usize> = BTreeMap::new();
    targets.iter().for_each(|target| *counts.entry(apart::same_target(target)).or_default() += 1);
    let twice: Vec<String> = counts
        .into_iter()
        .filter(|(_, count)| *count > 1)
        .map(|(target, _)| target.display().to_string())
        .collect();
    (!twice.is_empty()).then(|| format!("# TWICE: change the targets {}\n", twice.join(", ")))
}

fn volume(root: &Root, target: &str, options: &RestoreOptions) -> String {
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let mark = if root.changed_while_read { ", CHANGED WHILE READ" } else { "" };
    let mut lines = vec![
        format!(
            "# {}: {}, {}{mark}",
            printable(&root.volume),
            text::time(root.time_ms),
            text::size(root.size)
        ),
        "[[volume]]".to_owned(),
        format!("snapshot = {}", quoted(&root.slot.session.to_string())),
        format!("target = {}", quoted(target)),
    ];
    lines.extend(options.to_host.iter().map(|host| format!("host = {}", quoted(host))));
    lines.push("priority = 0".to_owned());
    let RestoreOptions {
        force,
        create,
        like,
        drop_baseline,
        full,
        no_tracking,
        verify,
        undo,
        keep_going,
        ..
    } = *options;
    let flags = [
        ("force", force),
        ("create", create),
        ("like", like),
        ("drop_baseline", drop_baseline),
        ("full", full),
        ("no_tracking", no_tracking),
        ("verify", verify),
        ("undo", undo),
        ("keep_going", keep_going),
    ];
    lines.extend(flags.into_iter().filter(|(_, on)| *on).map(|(name, _)| format!("{name} = true")));
    lines.extend(options.thin.iter().map(|pool| format!("thin = {}", quoted(pool))));
    lines.extend(options.safety_snapshot.iter().map(|size| match size.as_str() {
        "" => "safety_snapshot = true".to_owned(),
        size => format!("safety_snapshot = {}", quoted(size)),
    }));
    lines.push(String::new());
    lines.join("\n")
}

/// On one line of a comment.
fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use schema::SessionId;
    use schema::names::Slot;

    use super::*;
    use crate::snapshots::tests::root;

    /// A clock that went back makes nobody restore an old state; a slot decides between equal generations.
    #[test]
    fn the_latest_is_the_highest_generation_unless_a_time_was_asked_for() {
        let of = |session, generation, time_ms| {
            let root = root(None, "vg/a", "");
            let slot = Slot { session: SessionId::from_bytes([session; 16]), ..root.slot };
            Root { slot, generation, time_ms, ..root }
        };
        let all = || vec![of(4, 7, 100), of(1, 8, 50), of(3, 8, 40), of(2, 3, 90)];
        for (by_time, expected) in [(false, 3), (true, 4)] {
            let latest = latest(all(), by_time);
            let sessions: Vec<_> = latest.iter().map(|root| root.slot.session).collect();
            assert_eq!(sessions, [SessionId::from_bytes([expected; 16])], "by time: {by_time}");
        }
    }
}
