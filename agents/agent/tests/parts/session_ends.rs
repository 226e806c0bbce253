//! How sessions end: by a commit whose answer may be lost, by being revoked, by giving up; and checkpoints on the way.

use std::time::Duration;

use crate::support::{World, session_id};
use agent::faults::store::{Refusal, WriteFault};
use agent::repository::AtSlot;
use agent::sessions::{self, Commit, OpenSession};
use agent::{Failure, Protection, ReadBy, Stop};
use bytes::Bytes;
use schema::messages::FailureKind;
use schema::names;
use schema::session::{Checkpoint, Session, SessionKind};
use schema::{JobId, ReadingId};

async fn begin(world: &World, session: u8) -> OpenSession {
    let session = OpenSession::begin(world.repository.clone(), world.session(session)).await.unwrap();
    world.record.take();
    session
}

fn checkpoint() -> Checkpoint {
    Checkpoint { reading: ReadingId::from_bytes([7; 16]), size: 1 << 20, leaves: vec![(0, None)] }
}

#[tokio::test(start_paused = true)]
async fn a_commit_is_read_back_and_the_session_object_goes_last() {
    let world = World::new().await;
    let session = begin(&world, 9).await;
    assert_eq!(session.commit(&world.root(9, 1, 0)).await.unwrap(), Commit::Won);
    session.end().await.unwrap();
    let slot = world.slot(9).snapshot();
    let expected = [
        format!("create {slot}"),
        format!("get {slot}"),
        format!("delete {}", names::session(session_id(9))),
    ];
    assert_eq!(world.record.take(), expected);
    let found = world.repository.at_slot(world.slot(9)).await.unwrap();
    assert!(matches!(found, AtSlot::Snapshot(root) if *root == world.root(9, 1, 0)));
}

/// The commit's first attempt fails in every way that a store knows; what it left is found out by reading.
#[tokio::test(start_paused = true)]
async fn a_commit_whose_answer_is_wrong_or_lost_is_settled_by_reading() {
    for fault in [WriteFault::Before, WriteFault::After, WriteFault::Exists, WriteFault::Late] {
        let world = World::new().await;
        let session = begin(&world, 9).await;
        world.faults.fail_write(1, fault);
        assert_eq!(session.commit(&world.root(9, 1, 0)).await.unwrap(), Commit::Won, "{fault:?}");
        let creates = world.record.take().iter().filter(|line| line.starts_with("create")).count();
        let expected = if fault == WriteFault::After { 1 } else { 2 };
        assert_eq!(creates, expected, "{fault:?}");
    }
}

/// What stands in the slot, its own commit perhaps, is not known before it can be read. That costs a session, not the job.
#[tokio::test(start_paused = true)]
async fn a_slot_that_is_taken_and_cannot_be_read_for_now_is_worth_another_try() {
    let world = World::new().await;
    let session = begin(&world, 9).await;
    world.snapshot(&world.root(9, 1, 0)).await;
    world.faults.withhold(&world.slot(9).snapshot(), None);
    let failure = session.commit(&world.root(9, 1, 0)).await.unwrap_err();
    assert!(failure.retry && failure.kind == FailureKind::Store, "{failure:?}");
    world.faults.withhold_nothing();
    assert!(matches!(session.abandon().await.unwrap(), AtSlot::Snapshot(_)));
}

/// Nobody may hear of a commit that is not there: what the next run needs without it would be removed.
#[tokio::test(start_paused = true)]
async fn a_commit_that_the_store_swallowed_is_an_error() {
    let world = World::new().await;
    let session = begin(&world, 9).await;
    world.faults.fail_write(1, WriteFault::Swallowed);
    let failure = session.commit(&world.root(9, 1, 0)).await.unwrap_err();
    assert!(failure.why.contains(&world.slot(9).snapshot()), "{failure}");
    assert!(matches!(session.abandon().await.unwrap(), AtSlot::Tombstone), "and nothing is committed later");
}

#[tokio::test(start_paused = true)]
async fn a_tombstone_in_the_slot_revokes_the_commit() {
    let world = World::new().await;
    let session = begin(&world, 9).await;
    world.tombstone(world.slot(9)).await;
    let tombstone = world.get(&world.slot(9).snapshot()).await;
    assert_eq!(session.commit(&world.root(9, 1, 0)).await.unwrap(), Commit::Revoked);
    assert_eq!(world.get(&world.slot(9).snapshot()).await, tombstone);
}

#[tokio::test(start_paused = true)]
async fn somebody_elses_snapshot_in_the_slot_is_an_error() {
    let world = World::new().await;
    let session = begin(&world, 9).await;
    world.snapshot(&world.root(9, 5, 0)).await;
    let failure = session.commit(&world.root(9, 1, 0)).await.unwrap_err();
    assert!(failure.why.contains(&world.slot(9).snapshot()), "{failure}");
}

#[tokio::test(start_paused = true)]
async fn giving_up_occupies_the_slot_before_the_object_goes() {
    let world = World::new().await;
    let session = begin(&world, 9).await;
    assert!(matches!(session.abandon().await.unwrap(), AtSlot::Tombstone));
    let slot = world.slot(9).snapshot();
    let object = names::session(session_id(9));
    let expected = [format!("head {slot}"), format!("create {slot}"), format!("delete {object}")];
    assert_eq!(world.record.take(), expected);
    // For ever: a commit that comes late finds the tombstone.
    let late = world.repository.seal(&world.slot(9).snapshot(), &world.root(9, 1, 0)).unwrap();
    let created = world.repository.store.create(&world.slot(9).snapshot(), late).await.unwrap();
    let agent::store::Created::Lost(found) = created else { panic!("{created:?}") };
    assert!(matches!(world.repository.decided(world.slot(9), &found).unwrap(), AtSlot::Tombstone));
}

#[tokio::test(start_paused = true)]
async fn giving_up_reports_a_commit_that_was_there_already() {
    let world = World::new().await;
    let session = begin(&world, 9).await;
    session.commit(&world.root(9, 4, 0)).await.unwrap();
    let found = session.abandon().await.unwrap();
    assert!(matches!(found, AtSlot::Snapshot(root) if root.generation == 4));
    assert_eq!(world.get(&names::session(session_id(9))).await, None);

    // Revoked by two, one after the other: both hear of the tombstone.
    begin(&world, 8).await;
    for _ in 0..2 {
        let found = sessions::revoke(&world.repository, &world.session(8)).await.unwrap();
        assert!(matches!(found, AtSlot::Tombstone));
    }
}

/// Some stores let everybody win who creates: the tombstone would overwrite the commit.
#[tokio::test(start_paused = true)]
async fn giving_up_on_a_store_without_conditions_leaves_a_commit_alone() {
    let world = World::new().await;
    world.faults.ignore_create(true);
    let session = begin(&world, 9).await;
    session.commit(&world.root(9, 4, 0)).await.unwrap();
    let found = session.abandon().await.unwrap();
    assert!(matches!(found, AtSlot::Snapshot(root) if root.generation == 4));
    assert!(matches!(world.repository.at_slot(world.slot(9)).await.unwrap(), AtSlot::Snapshot(_)));
}

/// Otherwise neither `cancel` nor a collection nor whoever takes the job over would ever get past it.
#[tokio::test(start_paused = true)]
async fn giving_up_ends_a_session_whose_root_cannot_be_read() {
    let world = World::new().await;
    let session = begin(&world, 9).await;
    world.put(&world.slot(9).snapshot(), Bytes::from_static(b"damaged")).await;
    let failure = session.abandon().await.unwrap_err();
    assert!(failure.why.contains(&world.slot(9).snapshot()), "{failure}");
    assert_eq!(world.get(&names::session(session_id(9))).await, None);
    assert_eq!(sessions::decided_slot(&world.repository, session_id(9)).await.unwrap(), Some(world.slot(9)));
    assert_eq!(sessions::decided_slot(&world.repository, session_id(8)).await.unwrap(), None);
}

/// A commit that was sent and not answered may land at any time: until the slot is decided, a collector must wait.
#[tokio::test(start_paused = true)]
async fn the_object_stays_while_the_slot_cannot_be_decided() {
    let world = World::new().await;
    let session = begin(&world, 9).await;
    world.faults.refuse(Some(Refusal::Full));
    session.abandon().await.unwrap_err();
    world.faults.refuse(None);
    assert!(world.get(&names::session(session_id(9))).await.is_some());
    let listed = sessions::list(&world.repository).await.unwrap();
    assert_eq!(listed, [world.session(9)]);

    // The same when the store is down altogether.
    let session = begin(&world, 8).await;
    world.faults.crash();
    session.abandon().await.unwrap_err();
    world.faults.recover();
    assert!(world.get(&names::session(session_id(8))).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_is_found_by_whoever_takes_over() {
    let world = World::new().await;
    let mut session = begin(&world, 9).await;
    session.checkpoint(checkpoint()).await.unwrap();
    let expected = Session { checkpoint: Some(checkpoint()), ..world.session(9) };
    assert_eq!(sessions::list(&world.repository).await.unwrap(), [expected]);
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_does_not_bring_a_revoked_session_back() {
    let world = World::new().await;
    let mut session = begin(&world, 9).await;
    sessions::revoke(&world.repository, &world.session(9)).await.unwrap();
    let failure = session.checkpoint(checkpoint()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Revoked);
    assert!(failure.why.contains(crate::support::VOLUME), "{failure}");
    assert_eq!(world.get(&names::session(session_id(9))).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_session_object_that_cannot_be_read_does_not_hide_the_others() {
    let world = World::new().await;
    begin(&world, 9).await;
    world.put(&names::session(session_id(3)), Bytes::from_static(b"damaged")).await;
    world.empty(&names::session(session_id(4))).await;
    assert_eq!(sessions::list(&world.repository).await.unwrap(), [world.session(9)]);
    let expected = [(session_id(3), None), (session_id(4), None), (session_id(9), Some(world.session(9)))];
    assert_eq!(sessions::list_all(&world.repository).await.unwrap(), expected);
}

/// A commit whose answer was lost may stand in a slot that is taken.
#[tokio::test(start_paused = true)]
async fn a_slot_that_is_taken_and_not_given_is_no_empty_one() {
    let world = World::new().await;
    let session = begin(&world, 9).await;
    world.snapshot(&world.root(9, 1, 0)).await;
    let key = world.slot(9).snapshot();
    world.faults.keep_back(Some(&key));
    let failure = session.abandon().await.unwrap_err();
    assert!(failure.kind == FailureKind::Store && failure.retry && failure.why.contains(&key), "{failure}");
    assert!(sessions::list(&world.repository).await.unwrap().is_empty(), "the session is over");
}

/// The store is away for so long, or for ever.
async fn away(world: &World, seconds: Option<u64>) {
    world.faults.crash();
    if let Some(seconds) = seconds {
        world.environment.sleep(Duration::from_secs(seconds)).await;
        world.faults.recover();
    }
}

/// What there is to do is said with its id.
fn says_what_stays(failure: &Failure, session: u8) -> bool {
    let id = session_id(session);
    failure.why.contains(&format!("session {id} may stay open"))
        && failure.why.contains(&format!("`lvkeep cancel {id}`"))
}

/// Nobody else comes by to end it.
#[tokio::test(start_paused = true)]
async fn a_session_that_nobody_else_ends_is_over_when_the_store_is_back() {
    let world = World::new().await;
    let (session, stop) = (begin(&world, 9).await, Stop::default());
    let ((), found) = tokio::join!(away(&world, Some(100)), session.dismiss(&stop));
    assert!(matches!(found.unwrap(), AtSlot::Tombstone));
    assert!(sessions::list(&world.repository).await.unwrap().is_empty());
}

/// It waits neither for a store that never comes back, nor for one that gives everything else, nor after a word to stop.
#[tokio::test(start_paused = true)]
async fn whoever_ends_a_session_does_not_wait_for_ever() {
    for (is_stopped, gives_others) in [(false, false), (true, false), (false, true)] {
        let world = World::new().await;
        let (session, stop) = (begin(&world, 9).await, Stop::default());
        match gives_others {
            true => world.faults.withhold(&world.slot(9).snapshot(), None),
            false => world.faults.crash(),
        }
        if is_stopped {
            stop.raise();
        }
        let start = world.environment.elapsed();
        session.dismiss(&stop).await.unwrap_err();
        let seconds = (world.environment.elapsed() - start).as_secs();
        assert!(seconds < if is_stopped { 11 } else { 400 }, "{seconds} s after a word to stop");
        world.faults.recover();
        assert_eq!(sessions::list(&world.repository).await.unwrap(), [world.session(9)]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_could_not_begin_is_over_when_the_store_is_back_or_is_named() {
    for seconds in [Some(100), None] {
        let world = World::new().await;
        world.epoch(4, 4, &[]).await;
        world.faults.withhold(&names::epoch(4), None);
        let stop = Stop::default();
        let begun = OpenSession::begin_alone(world.repository.clone(), world.session(9), &stop);
        let gone = async {
            world.environment.sleep(Duration::from_secs(5)).await;
            away(&world, seconds).await;
        };
        let (begun, ()) = tokio::join!(begun, gone);
        let failure = begun.unwrap_err();
        world.faults.recover();
        let left = sessions::list(&world.repository).await.unwrap();
        assert_eq!((left.len(), says_what_stays(&failure, 9)), (seconds.is_none().into(), seconds.is_none()));
        assert_eq!(failure.kind, FailureKind::Store, "{failure}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_protected_a_reading_is_over_when_the_store_is_back_or_is_named() {
    for seconds in [Some(100), None] {
        let world = World::new().await;
        let job = JobId::from_bytes([9; 16]);
        let (kind, session) = (SessionKind::Restore, session_id(9));
        let by = ReadBy { kind, session, job, volume: "v", host: "host", undo: &[] };
        let protection = Protection::begin(&world.repository, by, &Stop::default()).await.unwrap();
        let (other, last) = (protection.clone(), protection.clone());
        let failed = Err::<(), _>(Failure::new(FailureKind::Store, "the store went away"));
        let ((), ended) = tokio::join!(away(&world, seconds), protection.end(failed));
        let failure = ended.unwrap_err();
        assert_eq!(says_what_stays(&failure, 9), seconds.is_none(), "{failure}");
        // What is said once need not be waited for again.
        let again = other.end(Err::<(), _>(failure.clone())).await.unwrap_err();
        assert_eq!(again.why, failure.why);
        world.faults.recover();
        let left = sessions::list(&world.repository).await.unwrap();
        assert_eq!(left.len(), usize::from(seconds.is_none()));
        // A command that went on meanwhile ends it all the same.
        last.end(Ok(())).await.unwrap();
        assert!(sessions::list(&world.repository).await.unwrap().is_empty());
    }
}
