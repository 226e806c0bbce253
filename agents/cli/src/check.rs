//! `check`: that every snapshot can be restored. The structure always; every chunk's bytes with `--read-data`.

use std::collections::BTreeSet;
use std::sync::Arc;

use agent::Failure;
use agent::maps::MapReader;
use schema::ChunkId;
use schema::map::Content;
use schema::messages::FailureKind;
use schema::root::Root;
use serde::Serialize;

use crate::app::App;
use crate::args::CheckArgs;
use crate::embedded::Embedded;
use crate::progress::Display;
use crate::{open, restore, text};

/// Findings printed per snapshot.
const NAMED: usize = 10;

#[derive(Debug, Serialize)]
struct Found {
    snapshot: String,
    volume: String,
    problems: Vec<String>,
}

/// `lvkeep check`.
pub async fn run(app: &App, args: &CheckArgs) -> anyhow::Result<()> {
    app.stop_on_signals()?;
    let work = Embedded::reading_all(app).await?;
    let slots = work.repository.visible_slots(None).await?;
    let identity = open::identity(&app.settings, work.repository.key.repo())?.map(Arc::new);
    let display = Display::new(app);
    let mut found = Vec::new();
    let mut bytes = 0;
    for slot in &slots {
        let (root, problems) = match work.repository.at_slot(*slot).await {
            Ok(agent::repository::AtSlot::Snapshot(root)) => {
                let bar = display.bar(&root.volume);
                let problems = one(app, args, &work, &root, identity.clone(), &bar).await?;
                bar.finish();
                bytes += root.size;
                (Some(root), problems)
            }
            Ok(_) => continue,
            Err(failure) => (None, vec![damage(failure)?]),
        };
        if app.stop.is_raised() {
            return Err(Failure::new(FailureKind::Revoked, "interrupted").into());
        }
        if !problems.is_empty() {
            let volume = root.map_or_else(|| "?".to_owned(), |root| root.volume.clone());
            found.push(Found { snapshot: slot.session.to_string(), volume, problems });
        }
    }
    work.finish().await;
    let value = serde_json::json!({ "snapshots": slots.len(), "bytes": bytes, "damaged": found });
    app.print(&value, || {
        let mut lines: Vec<String> = Vec::new();
        for found in &found {
            lines.push(format!("DAMAGED {} @ {}", found.volume, found.snapshot));
            lines.extend(found.problems.iter().map(|problem| format!("  {problem}")));
        }
        let what = if args.read_data { "structure and data" } else { "structure" };
        lines.push(format!("{} snapshots, {}: {what} checked", slots.len(), text::size(bytes)));
        lines.join("\n")
    })?;
    match found.len() {
        0 => Ok(()),
        damaged => {
            Err(Failure::damaged(format!("{damaged} of {} snapshots are damaged", slots.len())).into())
        }
    }
}

async fn one(
    app: &App,
    args: &CheckArgs,
    work: &Embedded,
    root: &Root,
    identity: Option<Arc<schema::keys::Identity>>,
    bar: &crate::progress::Bar,
) -> Result<Vec<String>, Failure> {
    let mut problems = match structure(app, work, root).await {
        Ok(problems) => problems,
        Err(failure) => vec![damage(failure)?],
    };
    if args.read_data && problems.is_empty() {
        let restorer = restore::make(app, work, identity);
        match restorer.verify_readable(root.clone(), |p| bar.set(p.done, p.total)).await {
            Ok(report) if report.rescued > 0 => {
                problems.push(format!(
                    "{} chunks have a damaged or missing copy; another one is whole",
                    report.rescued
                ));
            }
            Ok(_) => {}
            Err(failure) => problems.push(damage(failure)?),
        }
    }
    Ok(problems)
}

/// What a check finds is damage; a store that is away, or a missing identity, keeps it from finding out.
fn damage(failure: Failure) -> Result<String, Failure> {
    match failure.kind {
        FailureKind::Damaged => Ok(failure.to_string()),
        _ => Err(failure),
    }
}

/// Reads the whole map, and asks for a copy of every chunk in a pack that exists.
async fn structure(app: &App, work: &Embedded, root: &Root) -> Result<Vec<String>, Failure> {
    let packs: BTreeSet<_> = work.repository.list_packs().await?.into_iter().map(|(pack, _)| pack).collect();
    let map = MapReader::new(work.repository.clone(), work.index.clone(), root.clone())?.thorough();
    let mut problems = Vec::new();
    let mut missing = 0;
    for leaf in 0..map.geometry().leaves() {
        if app.stop.is_raised() {
            break;
        }
        let range = map.geometry().leaf_range(leaf);
        let pieces = map.leaf(leaf).await?;
        let chunks: Vec<(u64, ChunkId)> = pieces
            .located(range.start)
            .filter_map(|(offset, piece)| match piece.content {
                Content::Chunk(id) => Some((offset, id)),
                Content::Zero => None,
            })
            .collect();
        let ids: Vec<ChunkId> = chunks.iter().map(|(_, id)| *id).collect();
        for ((offset, id), copies) in chunks.iter().zip(map.locate(&ids).await?) {
            if !copies.iter().any(|copy| packs.contains(&copy.pack)) {
                missing += 1;
                if missing <= NAMED {
                    problems.push(format!("offset {offset}: chunk {id} is in no pack"));
                }
            }
        }
    }
    if missing > NAMED {
        problems.push(format!("and {} chunks more", missing - NAMED));
    }
    Ok(problems)
}
