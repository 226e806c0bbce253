//! Jobs that are delivered twice: one session of each goes on, and nothing is sealed twice.

use std::collections::BTreeSet;
use std::time::Duration;

use agent::bus::{Bus, Queue};
use agent::repository::AtSlot;
use conductor::Settings;
use schema::limits::LEAF_SPAN;
use schema::messages::{Mapped, ReadVolume};
use schema::session::{Session, SessionKind};
use schema::{Domain, SessionId, names};

use crate::support::*;

fn checkpointing() -> Settings {
    Settings { checkpoint: Duration::from_secs(5), ask_again: Duration::from_secs(3000), ..settings() }
}

/// A session of three leaves, of which the first two are finished and checkpointed.
async fn half_done(world: &World) -> ReadVolume {
    world.submit(&world.job(1)).await;
    let request = world.asked().await;
    world.opened(request.session, 1, 3 * LEAF_SPAN).await;
    world.mapped_leaf(request.session, 0, Mapped::Pending(world.id(1))).await;
    world.mapped(request.session, LEAF_SPAN, &[(LEAF_SPAN as u32, Mapped::Zero)]).await;
    world.store(&[1]).await;
    world.wait(6).await;
    let open = world.open_sessions().await;
    assert_eq!(open[0].checkpoint.as_ref().unwrap().leaves.len(), 2);
    request
}

async fn finish(world: &World, session: SessionId) {
    world.mapped_leaf(session, 2, Mapped::Pending(world.id(2))).await;
    world.store(&[2]).await;
    world.unchanged().await;
}

/// The old driver lives on and does not know: its commit is revoked, and it says nothing. Whether the new session
/// was sealed before or after.
#[tokio::test(start_paused = true)]
async fn the_driver_that_lost_its_job_commits_and_reports_nothing() {
    for new_first in [true, false] {
        let world = World::new().await;
        let slow = Settings { checkpoint: Duration::from_secs(1000), ..checkpointing() };
        world.start(slow.clone());
        let job = world.job(1);
        world.submit(&job).await;
        let old = world.asked().await.session;
        world.opened(old, 1, LEAF_SPAN).await;
        world.submit(&job).await;
        world.start(slow);
        let new = world.asked().await.session;
        assert_ne!(old, new);
        let slot = world.repository.at_slot(world.slot(old)).await.unwrap();
        assert!(matches!(slot, AtSlot::Tombstone), "occupied before the new session begins");
        assert_eq!(world.open_sessions().await.iter().map(|open| open.id).collect::<Vec<_>>(), [new]);
        world.opened(new, 1, LEAF_SPAN).await;
        world.wait(1).await;
        for session in if new_first { [new, old] } else { [old, new] } {
            if session == old {
                // Its queue was retired with it; what is sent now reaches it if it listens again.
                world.wait(2).await;
                world.opened(old, 1, LEAF_SPAN).await;
            }
            world.mapped(session, 0, &[(LEAF_SPAN as u32, Mapped::Zero)]).await;
            world.unchanged().await;
            world.wait(20).await;
        }
        let root = world.sealed(&job).await;
        assert_eq!(root.slot, world.slot(new), "new first: {new_first}");
        assert!(!world.is_reported(&job), "the old driver does not report");
        assert_eq!(world.snapshots().await, [world.slot(new)]);
    }
}

/// The old driver fails by itself, and not because it lost its slot: the job is another one's by then, and its end is
/// not the old one's to tell. Who told it would end the job on the bus, and nobody would go on when the new one dies.
#[tokio::test(start_paused = true)]
async fn a_driver_that_fails_after_its_job_was_taken_over_does_not_end_it() {
    let world = World::new().await;
    let slow = Settings { checkpoint: Duration::from_secs(1000), ..checkpointing() };
    world.start(slow.clone());
    let job = world.job(1);
    world.submit(&job).await;
    let old = world.asked().await;
    world.opened(old.session, 1, LEAF_SPAN).await;
    world.submit(&job).await;
    world.start(slow);
    let new = world.asked().await.session;
    // The old one's queue was retired; what is sent now reaches it when it listens again.
    world.wait(2).await;
    world.opened(old.session, 1, LEAF_SPAN).await;
    world.read(&old, true).await;
    world.wait(20).await;
    assert!(!world.is_reported(&job), "the old driver does not report");
    assert_eq!(world.open_sessions().await.iter().map(|open| open.id).collect::<Vec<_>>(), [new]);
    world.opened(new, 1, LEAF_SPAN).await;
    world.mapped(new, 0, &[(LEAF_SPAN as u32, Mapped::Zero)]).await;
    world.unchanged().await;
    assert_eq!(world.sealed(&job).await.slot, world.slot(new));
}

/// The same while the store does not say whether somebody goes on.
#[tokio::test(start_paused = true)]
async fn who_cannot_see_whether_a_job_was_taken_over_does_not_end_it() {
    let world = World::new().await;
    let slow = Settings { checkpoint: Duration::from_secs(1000), ..checkpointing() };
    world.start(slow.clone());
    let job = world.job(1);
    world.submit(&job).await;
    let old = world.asked().await;
    world.opened(old.session, 1, LEAF_SPAN).await;
    world.submit(&job).await;
    world.start(slow);
    let new = world.asked().await.session;
    world.wait(2).await;
    // A store that has just come back may list what it does not give yet.
    world.faults.withhold(&names::session(new), None);
    world.opened(old.session, 1, LEAF_SPAN).await;
    world.read(&old, true).await;
    world.wait(60).await;
    assert!(!world.is_reported(&job), "the job's end is not the old driver's to tell");
    world.faults.withhold_nothing();
    // It was given the job as well, and takes it back.
    let last = world.asked().await.session;
    world.assert_given_up(new).await;
    assert_eq!(world.open().await, [last]);
    world.opened(last, 1, LEAF_SPAN).await;
    world.mapped(last, 0, &[(LEAF_SPAN as u32, Mapped::Zero)]).await;
    world.unchanged().await;
    assert_eq!(world.sealed(&job).await.slot, world.slot(last));
}

#[tokio::test(start_paused = true)]
async fn finished_leaves_are_adopted() {
    let world = World::new().await;
    world.start(checkpointing());
    let old = half_done(&world).await.session;
    world.take_structures();
    world.submit(&world.job(1)).await;
    world.start(checkpointing());
    let ask = world.asked().await;
    assert_eq!((ask.leaves.clone(), ask.reading), (Some(Vec::new()), None), "first, which reading it is");
    world.assert_given_up(old).await;
    world.opened(ask.session, 1, 3 * LEAF_SPAN).await;
    let rest = world.asked().await;
    assert_eq!(rest.leaves, Some(vec![2]));
    finish(&world, ask.session).await;
    let root = world.sealed(&world.job(1)).await;
    assert_eq!(world.leaves(&root).await.len(), 3);
    assert_eq!(world.take_structures(), 2, "the last leaf and the node");
    let statistics = root.statistics;
    let sum = statistics.bytes_zero + statistics.bytes_known + statistics.bytes_new;
    assert_eq!((sum, statistics.chunks), (root.size, 2), "{statistics:?}");
}

/// A store that has just come back may list what it does not give yet.
#[tokio::test(start_paused = true)]
async fn an_earlier_session_that_is_not_given_for_a_moment_is_ended_all_the_same() {
    let world = World::new().await;
    let running = world.start(Settings { hand_back: true, ..checkpointing() });
    let old = half_done(&world).await.session;
    running.stop().await;
    assert_eq!(world.open_sessions().await.len(), 1);
    world.faults.withhold(&names::session(old), None);
    world.start(checkpointing());
    // Longer than reads are tried again.
    world.wait(60).await;
    world.faults.withhold_nothing();
    let new = world.asked().await.session;
    world.assert_given_up(old).await;
    assert_eq!(world.open_sessions().await.iter().map(|open| open.id).collect::<Vec<_>>(), [new]);
}

/// A leaf whose chunk, or which itself, has no copy that counts for the new session is read again.
#[tokio::test(start_paused = true)]
async fn a_leaf_is_adopted_only_if_every_chunk_counts() {
    for lost in [Domain::Data, Domain::Structure] {
        let world = World::new().await;
        world.start(checkpointing());
        half_done(&world).await;
        world.lose(world.packs_of(lost)).await;
        world.submit(&world.job(1)).await;
        world.start(checkpointing());
        let ask = world.asked().await;
        world.opened(ask.session, 1, 3 * LEAF_SPAN).await;
        let rest = world.asked().await;
        assert_eq!(rest.leaves, Some(vec![0, 2]), "{lost:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn leaves_of_another_reading_are_worthless() {
    for (reading, size) in [(2, 3 * LEAF_SPAN), (1, 3 * LEAF_SPAN + 4096)] {
        let world = World::new().await;
        world.start(checkpointing());
        half_done(&world).await;
        world.submit(&world.job(1)).await;
        world.start(checkpointing());
        let ask = world.asked().await;
        world.opened(ask.session, reading, size).await;
        let rest = world.asked().await;
        assert_eq!(rest.leaves.unwrap()[..3], [0, 1, 2]);
    }
}

/// The commit was made and its acknowledgement lost: the job comes again.
#[tokio::test(start_paused = true)]
async fn a_job_that_comes_again_after_its_commit_leads_to_the_same_snapshot() {
    let world = World::new().await;
    world.start(settings());
    let job = world.job(1);
    let first = world.backup(&job, &[1]).await;
    world.submit(&job).await;
    assert_eq!(world.sealed(&job).await, first);
    // Even when another job has sealed a newer one meanwhile.
    let second = world.backup(&world.job(2), &[2]).await;
    world.submit(&job).await;
    assert_eq!(world.sealed(&job).await, first);
    let snapshots: BTreeSet<_> = world.snapshots().await.into_iter().collect();
    assert_eq!(snapshots, [first.slot, second.slot].into());
    assert!(!world.is_asked() && world.open_sessions().await.is_empty());
}

/// The driver died between its commit and the deletion of its session object.
#[tokio::test(start_paused = true)]
async fn a_session_that_had_committed_is_found_by_whoever_takes_over() {
    let world = World::new().await;
    world.start(settings());
    let job = world.job(1);
    let root = world.backup(&job, &[1]).await;
    let left = Session {
        id: root.slot.session,
        kind: SessionKind::Backup,
        slot: Some(root.slot),
        job: job.job,
        volume: VOLUME.into(),
        host: "conductor".into(),
        started_ms: 0,
        checkpoint: None,
        ended: None,
        undo: Vec::new(),
    };
    let key = names::session(left.id);
    world.repository.store.put(&key, world.repository.seal(&key, &left).unwrap()).await.unwrap();
    world.submit(&job).await;
    assert_eq!(world.sealed(&job).await, root);
    assert!(world.open_sessions().await.is_empty());
    assert_eq!(world.snapshots().await, [root.slot]);
}

/// Sessions of other jobs are none of ours.
#[tokio::test(start_paused = true)]
async fn only_sessions_of_the_same_job_are_taken_over() {
    let world = World::new().await;
    world.start(settings());
    let (mine, other) = (world.job(1), world.job(2));
    world.submit(&mine).await;
    let first = world.asked().await.session;
    world.submit(&other).await;
    world.start(settings());
    let second = world.asked().await.session;
    let open: Vec<_> = world.open_sessions().await.iter().map(|open| open.id).collect();
    assert_eq!(open.len(), 2);
    assert!(open.contains(&first) && open.contains(&second));
    assert_eq!(world.bus.bytes_in(&Queue::session(first)), 0);
    assert!(world.bus.retire(&Queue::session(first)).await.is_ok());
}
