//! One copy, from its session's beginning to a definite end.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use agent::maps::MapReader;
use agent::repository::AtSlot;
use agent::sessions::{self, Commit, OpenSession};
use agent::{Failure, Protection, Queue, Stop};
use futures::{StreamExt, stream};
use schema::ChunkId;
use schema::facts::{COPIED_FROM, Origin};
use schema::map::{Geometry, build_nodes};
use schema::messages::FailureKind;
use schema::names::Slot;
use schema::root::{Root, Statistics};
use schema::session::{Session, SessionKind};
use tokio::sync::Semaphore;

use crate::base::Base;
use crate::deposit::Deposit;
use crate::leaves::{Counts, Leaves};
use crate::reads::READ_MAX;
use crate::{Copied, Copier, Copies, Outcome, Progress};

/// Leaves that are looked at at once.
const LEAVES_AT_ONCE: usize = 4;
/// Bytes that one read keeps: what was read, what was opened, and what was sealed of it.
const READ_COSTS: u64 = 3 * READ_MAX;

/// Copies a snapshot, unless it is there already.
pub(crate) async fn copy(
    copier: &Copier,
    protection: &Protection,
    root: &Root,
    progress: &impl Fn(Progress),
) -> Result<Outcome, Failure> {
    let (context, to) = (&copier.context, &copier.to.repository);
    let id = context.environment.session_id();
    let session = Session {
        id,
        kind: SessionKind::Copy,
        slot: Some(Slot { volume: to.key.volume_key(&root.volume), session: id }),
        job: context.environment.job_id(),
        volume: root.volume.clone(),
        host: context.host.to_string(),
        started_ms: context.environment.now_ms(),
        checkpoint: None,
        ended: None,
        undo: Vec::new(),
    };
    let session = OpenSession::begin_alone(to.clone(), session, &context.stop).await?;
    let driven = tokio::select! {
        biased;
        () = context.stop.raised() => Err(Failure::new(FailureKind::Revoked, "interrupted; nothing was committed")),
        driven = drive(copier, protection, &session, root, progress) => driven,
    };
    let end = match driven {
        Ok(Outcome::Copied(copied)) => {
            if let Err(failure) = session.end().await {
                tracing::warn!(%failure, "the snapshot is copied; its session's object stays for the collector");
            }
            Ok(Outcome::Copied(copied))
        }
        Ok(Outcome::Present) => give_up(session, &context.stop, Ok(Outcome::Present)).await,
        Err(failure) => give_up(session, &context.stop, Err(failure)).await,
    };
    let _ = context.bus.retire(&Queue::session(id)).await;
    end
}

/// Decides the slot before the session's object goes. When it turns out to hold the commit, whose answer was lost, the
/// snapshot is copied after all.
async fn give_up(
    session: OpenSession,
    stop: &Stop,
    ended: Result<Outcome, Failure>,
) -> Result<Outcome, Failure> {
    let id = session.session().id;
    match (session.dismiss(stop).await, ended) {
        (Ok(AtSlot::Snapshot(root)), Err(_)) => {
            Ok(Outcome::Copied(Copied { slot: root.slot, statistics: root.statistics, fetched: 0 }))
        }
        (Ok(_), ended) => ended,
        (Err(why), Ok(outcome)) => {
            sessions::warn_left_open(id, &why);
            Ok(outcome)
        }
        (Err(why), Err(failure)) => Err(sessions::left_open(id, failure, &why)),
    }
}

async fn drive(
    copier: &Copier,
    protection: &Protection,
    session: &OpenSession,
    root: &Root,
    progress: &impl Fn(Progress),
) -> Result<Outcome, Failure> {
    let (from, to) = (&copier.from, &copier.to);
    let origin = Origin::of(root, from.repository.key.repo());
    let visible = copier.there(session.slot()?.volume).await?;
    let of_volume = copier.sources.values().filter(|one| one.volume == root.volume);
    let copies = Copies::new(&from.repository, of_volume, &to.repository, visible.iter());
    if let Some(copy) = copies.of(root)
        && session.sees(copy.slot).await?
    {
        return Ok(Outcome::Present);
    }
    let (deposit, listening) =
        Deposit::begin(&copier.context, &to.index, session, &to.repository.key).await?;
    let lost = deposit.lost().await?;
    let (base, parent) = Base::find(copier, session, visible, root, lost).await?.unzip();
    let map = MapReader::new(from.repository.clone(), from.index.clone(), root.clone())?.thorough();
    let reads = (copier.settings.memory / READ_COSTS).clamp(1, 32);
    let leaves = Leaves {
        copier,
        protection,
        map: &map,
        base,
        deposit: &deposit,
        turns: Semaphore::new(reads as usize),
        counts: Counts::default(),
        names: Mutex::new(BTreeMap::new()),
    };
    let filled = async {
        let top = bring(&leaves, progress).await?;
        deposit.settle().await?;
        Ok::<_, Failure>(top)
    };
    let top = tokio::select! {
        biased;
        failure = deposit.listen(listening) => return Err(failure),
        filled = filled => filled?,
    };
    let statistics = statistics(root, &leaves.counts, deposit.stored());
    let copy = Root {
        slot: session.slot()?,
        job: session.session().job,
        parent: parent.map(|parent| parent.slot),
        top,
        sealed_ms: copier.context.environment.now_ms(),
        layout: with_origin(root, origin),
        statistics,
        ..root.clone()
    };
    match session.commit(&copy).await? {
        Commit::Won => {
            let (fetched, slot) = (leaves.counts.fetched.load(Ordering::Relaxed), copy.slot);
            copier.known().insert(slot, copy);
            Ok(Outcome::Copied(Copied { slot, statistics, fetched }))
        }
        Commit::Revoked => Err(sessions::revoked(session.session())),
    }
}

/// Brings every leaf, and makes the nodes above them.
async fn bring(leaves: &Leaves<'_>, progress: &impl Fn(Progress)) -> Result<Option<ChunkId>, Failure> {
    let geometry: Geometry = leaves.map.geometry();
    let total = geometry.size();
    progress(Progress { done: 0, total });
    let mut brought = stream::iter(0..geometry.leaves())
        .map(|number| async move { (number, leaves.bring(number).await) })
        .buffered(LEAVES_AT_ONCE);
    let mut row = Vec::new();
    while let Some((number, leaf)) = brought.next().await {
        row.push(leaf?);
        progress(Progress { done: geometry.leaf_range(number).end, total });
    }
    let mut nodes = Vec::new();
    let top = build_nodes(row, |node| {
        let bytes = node.encode();
        let id = leaves.deposit.structure_id(&bytes);
        nodes.push(bytes);
        Ok(id)
    })?;
    for bytes in nodes {
        leaves.deposit.structure(&bytes).await?;
    }
    Ok(top)
}

fn with_origin(root: &Root, origin: Origin) -> BTreeMap<String, String> {
    let fact = (COPIED_FROM.to_owned(), origin.to_string());
    root.layout.clone().into_iter().chain([fact]).collect()
}

/// What the copy took; what the volume consists of is as it was.
fn statistics(root: &Root, counts: &Counts, stored: u64) -> Statistics {
    let new = counts.new.load(Ordering::Relaxed);
    let content = root.size.saturating_sub(root.statistics.bytes_zero);
    Statistics {
        bytes_read: root.statistics.bytes_read,
        bytes_zero: root.statistics.bytes_zero,
        bytes_known: content.saturating_sub(new),
        bytes_new: new,
        bytes_stored: stored,
        chunks: root.statistics.chunks,
        chunks_new: counts.chunks_new.load(Ordering::Relaxed),
    }
}
