//! Sessions that fail, are cancelled or are stopped; and sources that change under the reading.

use agent::bus::{Bus, Queue, Topic};
use agent::faults::store::Refusal;
use conductor::Settings;
use schema::SessionId;
use schema::limits::LEAF_SPAN;
use schema::map::Content;
use schema::messages::*;
use schema::names;

use crate::support::*;

/// A session of two leaves, of which the first is finished.
async fn begun(world: &World, job: &BackupJob) -> ReadVolume {
    world.submit(job).await;
    let request = world.asked().await;
    world.opened(request.session, 1, 2 * LEAF_SPAN).await;
    world.mapped_leaf(request.session, 0, Mapped::Pending(world.id(1))).await;
    world.store(&[1]).await;
    world.wait(1).await;
    request
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_any_role_ends_the_session_by_name() {
    let world = World::new().await;
    let conductor = world.start(settings());
    let job = world.job(1);
    let mut closed = world.bus.subscribe(&Topic::closed()).await.unwrap();
    let session = begun(&world, &job).await.session;
    let kind = FailureKind::Device;
    world.tell(session, SessionEvent::Failed { kind, why: "cannot read at offset 4096".into() }).await;
    let (found, why) = world.failed(&job).await;
    assert_eq!(found, kind);
    assert!(why.contains("offset 4096"), "{why}");
    world.assert_given_up(session).await;
    let close: CloseReading = closed.next().await.unwrap().read().unwrap();
    assert_eq!((close.session, &*close.host), (session, HOST), "its reading may be closed");
    assert!(!close.committed, "and what it keeps for the next run may go");
    assert!(world.snapshots().await.is_empty());
    // The next job is taken.
    world.backup(&world.job(2), &[1]).await;
    conductor.stop().await;
}

/// The slot is decided before the session object goes.
#[tokio::test(start_paused = true)]
async fn the_slot_is_occupied_before_the_object_is_deleted() {
    let world = World::new().await;
    world.start(settings());
    let job = world.job(1);
    let session = begun(&world, &job).await.session;
    world.record.take();
    world.tell(session, SessionEvent::Failed { kind: FailureKind::Other, why: "no".into() }).await;
    world.failed(&job).await;
    let create = format!("create {}", world.slot(session).snapshot());
    let delete = format!("delete {}", names::session(session));
    let record = world.record.take();
    let order: Vec<_> = record.iter().filter(|line| **line == create || **line == delete).collect();
    assert_eq!(order, [&create, &delete]);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_cannot_be_given_up_leaves_its_object() {
    let world = World::new().await;
    world.start(settings());
    let job = world.job(1);
    let session = begun(&world, &job).await.session;
    world.faults.refuse(Some(Refusal::Full));
    world.tell(session, SessionEvent::Failed { kind: FailureKind::Store, why: "no space".into() }).await;
    let (kind, why) = world.failed(&job).await;
    assert_eq!(kind, FailureKind::Store);
    assert!(why.contains(&session.to_string()) && why.contains("lvkeep cancel"), "{why}");
    world.faults.refuse(None);
    assert_eq!(world.open().await, [session], "a collector decides its slot later");
}

/// Whoever waits for the job hears why it stands still.
#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_for_minutes_ends_no_job_and_leaves_no_session() {
    for by_its_source in [false, true] {
        let world = World::new().await;
        let hand_back = by_its_source;
        world.start(Settings { hand_back, ..settings() });
        let job = world.job(1);
        let old = begun(&world, &job).await;
        let mut told = world.bus.subscribe(&Topic::progress(job.job)).await.unwrap();
        world.faults.crash();
        match by_its_source {
            true => {
                let (kind, why) = (FailureKind::Device, "cannot read at offset 4096".into());
                world.tell(old.session, SessionEvent::Failed { kind, why }).await;
            }
            // Whether that pack is there is asked of the store.
            false => {
                let pack = world.context.environment.pack_id();
                world.mapped_leaf(old.session, 1, Mapped::Known(world.id(2), pack)).await;
            }
        }
        world.wait(300).await;
        assert!(!world.is_reported(&job), "nobody knows what became of the session");
        let waits = loop {
            if let Ok(waits) = told.next().await.unwrap().read::<RestoreWaits>() {
                break waits;
            }
        };
        assert_eq!((waits.job, &*waits.host), (job.job, "conductor"));
        assert!(waits.why.contains("the store is down"), "{}", waits.why);
        assert_eq!(
            waits.why.contains("lvkeep cancel"),
            !hand_back,
            "who ends it is told what may stay: {}",
            waits.why
        );
        world.faults.recover();
        let new = world.asked().await.session;
        world.assert_given_up(old.session).await;
        world.opened(new, 1, LEAF_SPAN).await;
        world.mapped(new, 0, &[(LEAF_SPAN as u32, Mapped::Zero)]).await;
        world.unchanged().await;
        assert_eq!(world.sealed(&job).await.slot, world.slot(new));
        assert_eq!(world.open().await, []);
    }
}

/// A commit of which nobody could be told is the session's own, and nobody else's: whenever the store gives it again,
/// whoever waits for the job hears of it.
#[tokio::test(start_paused = true)]
async fn a_commit_that_cannot_be_read_back_for_a_while_is_told_in_the_end() {
    for seconds in (0..60).step_by(3) {
        let world = World::new().await;
        world.start(settings());
        let job = world.job(1);
        world.submit(&job).await;
        let request = world.asked().await;
        let slot = world.slot(request.session);
        world.faults.withhold(&slot.snapshot(), None);
        world.opened(request.session, 1, LEAF_SPAN).await;
        world.mapped(request.session, 0, &[(LEAF_SPAN as u32, Mapped::Zero)]).await;
        world.unchanged().await;
        world.wait(seconds).await;
        world.faults.withhold_nothing();
        world.wait(300).await;
        assert!(world.is_reported(&job), "after {seconds} s");
        assert_eq!(world.sealed(&job).await.slot, slot, "after {seconds} s");
        assert_eq!((world.open().await, world.snapshots().await), (vec![], vec![slot]), "after {seconds} s");
    }
}

/// Where nobody would take it up again, it ends; and says that something may be left.
#[tokio::test(start_paused = true)]
async fn a_word_to_stop_ends_a_job_whose_store_is_away() {
    let world = World::new().await;
    let conductor = world.start(Settings { hand_back: false, ..settings() });
    let job = world.job(1);
    let session = begun(&world, &job).await.session;
    world.faults.crash();
    conductor.stop().await;
    let (kind, why) = world.failed(&job).await;
    assert_eq!(kind, FailureKind::Revoked);
    assert!(why.contains(&session.to_string()) && why.contains("lvkeep cancel"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn a_session_is_cancelled_by_its_id() {
    let world = World::new().await;
    world.start(settings());
    let job = world.job(1);
    let session = begun(&world, &job).await.session;
    let cancel = |session| {
        let message = Message::new(&About::session(session, VOLUME), &Cancel { session });
        let bus = world.bus.clone();
        async move { bus.broadcast(&Topic::cancel(), message).await.unwrap() }
    };
    cancel(SessionId::from_bytes([3; 16])).await;
    world.wait(1).await;
    assert!(!world.is_reported(&job), "that was another session");
    cancel(session).await;
    let (kind, why) = world.failed(&job).await;
    assert_eq!(kind, FailureKind::Revoked);
    assert!(why.contains(&session.to_string()), "{why}");
    world.assert_given_up(session).await;
}

/// A collector declared the session dead while it was alive: it finds out at its commit.
#[tokio::test(start_paused = true)]
async fn a_revoked_session_commits_nothing_and_says_so() {
    let world = World::new().await;
    world.start(settings());
    let job = world.job(1);
    let request = begun(&world, &job).await;
    let open = world.open_sessions().await;
    agent::sessions::revoke(&world.repository, &open[0]).await.unwrap();
    world.mapped(request.session, LEAF_SPAN, &[(LEAF_SPAN as u32, Mapped::Zero)]).await;
    world.unchanged().await;
    assert_eq!(world.failed(&job).await.0, FailureKind::Revoked);
    world.assert_given_up(request.session).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_hands_the_job_back_with_what_is_finished() {
    let world = World::new().await;
    let conductor = world.start(settings());
    let job = world.job(1);
    let session = begun(&world, &job).await.session;
    conductor.stop().await;
    assert!(!world.is_reported(&job), "another conductor goes on");
    let open = world.open_sessions().await;
    let checkpoint = open[0].checkpoint.as_ref().unwrap();
    assert_eq!((open[0].id, checkpoint.reading, checkpoint.size), (session, reading(1), 2 * LEAF_SPAN));
    assert_eq!(checkpoint.leaves.iter().map(|(leaf, _)| *leaf).collect::<Vec<_>>(), [0]);
    world.wait(60).await;
    assert!(world.bus.bytes_in(&Queue::jobs()) > 0, "the job is there for whoever takes it");

    // And somebody does.
    world.start(settings());
    let again = world.asked().await;
    assert_ne!(again.session, session);
    world.assert_given_up(session).await;
    world.opened(again.session, 1, 2 * LEAF_SPAN).await;
    let rest = world.asked().await;
    assert_eq!(rest.leaves, Some(vec![1]));
    world.mapped(again.session, LEAF_SPAN, &[(LEAF_SPAN as u32, Mapped::Zero)]).await;
    world.unchanged().await;
    let root = world.sealed(&job).await;
    let statistics = root.statistics;
    let sum = statistics.bytes_zero + statistics.bytes_known + statistics.bytes_new;
    assert_eq!((sum, statistics.chunks), (root.size, 1), "adopted leaves count too: {statistics:?}");
    assert_eq!(statistics.bytes_known, u64::from(LEN));
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_cannot_write_its_checkpoint_hands_back_all_the_same() {
    let world = World::new().await;
    let conductor = world.start(settings());
    let job = world.job(1);
    let session = begun(&world, &job).await.session;
    world.faults.refuse(Some(Refusal::Writes));
    conductor.stop().await;
    world.faults.refuse(None);
    assert!(!world.is_reported(&job));
    assert_eq!(world.open_sessions().await[0].id, session);
}

#[tokio::test(start_paused = true)]
async fn a_stop_without_another_conductor_gives_the_session_up() {
    let world = World::new().await;
    let conductor = world.start(Settings { hand_back: false, ..settings() });
    let job = world.job(1);
    let session = begun(&world, &job).await.session;
    conductor.stop().await;
    let (kind, why) = world.failed(&job).await;
    assert_eq!(kind, FailureKind::Revoked);
    assert!(why.contains("nothing was committed"), "{why}");
    world.assert_given_up(session).await;
    assert_eq!(world.bus.bytes_in(&Queue::jobs()), 0);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_changed_fails_unless_that_is_allowed() {
    for allow_changes in [false, true] {
        let world = World::new().await;
        world.start(settings());
        let job = BackupJob { allow_changes, ..world.job(1) };
        let request = begun(&world, &job).await;
        assert_eq!(request.allow_changes, allow_changes);
        world.mapped(request.session, LEAF_SPAN, &[(LEAF_SPAN as u32, Mapped::Zero)]).await;
        let check = world.asked().await;
        world.read(&check, true).await;
        match allow_changes {
            false => {
                let (kind, why) = world.failed(&job).await;
                assert_eq!(kind, FailureKind::Device);
                assert!(why.contains(SOURCE) && why.contains("changed"), "{why}");
                world.assert_given_up(request.session).await;
            }
            true => assert!(world.sealed(&job).await.changed_while_read),
        }
    }
}

/// A leaf that is read a second time and is not what it was.
#[tokio::test(start_paused = true)]
async fn a_piece_that_comes_again_otherwise_is_a_change_of_the_source() {
    for allow_changes in [false, true] {
        let world = World::new().await;
        world.start(settings());
        let job = BackupJob { allow_changes, ..world.job(1) };
        world.submit(&job).await;
        let session = world.asked().await.session;
        world.opened(session, 1, LEAF_SPAN).await;
        world.mapped(session, 0, &[(LEN, Mapped::Zero), (LEN, Mapped::Pending(world.id(1)))]).await;
        let new = [
            (LEN, Mapped::Pending(world.id(2))),
            (LEN, Mapped::Pending(world.id(3))),
            (REST - LEN, Mapped::Zero),
        ];
        world.mapped(session, 0, &new).await;
        if !allow_changes {
            let (kind, why) = world.failed(&job).await;
            assert_eq!(kind, FailureKind::Device);
            assert!(why.contains("offset 0"), "{why}");
            continue;
        }
        world.store(&[2, 3]).await;
        world.unchanged().await;
        let root = world.sealed(&job).await;
        assert!(root.changed_while_read);
        let leaf = &world.leaves(&root).await[0];
        let ids = [2, 3].map(|chunk| Content::Chunk(world.id(chunk)));
        assert_eq!([leaf.pieces()[0].content, leaf.pieces()[1].content], ids, "the newest holds");
        let statistics = root.statistics;
        let sum = statistics.bytes_zero + statistics.bytes_known + statistics.bytes_new;
        assert_eq!((sum, statistics.chunks), (root.size, 2), "{statistics:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_piece_that_no_reader_sends_fails_the_session() {
    let world = World::new().await;
    world.start(settings());
    for (number, (offset, len)) in (1..).zip([(LEAF_SPAN, 1), (LEAF_SPAN - 4096, 8192)]) {
        let job = world.job(number);
        world.submit(&job).await;
        let session = world.asked().await.session;
        world.opened(session, 1, LEAF_SPAN).await;
        world.mapped(session, offset, &[(len, Mapped::Zero)]).await;
        let (_, why) = world.failed(&job).await;
        assert!(why.contains(&format!("offset {offset}")), "{why}");
        world.assert_given_up(session).await;
    }
}

/// An event that nobody can read costs nothing but itself.
#[tokio::test(start_paused = true)]
async fn an_unreadable_event_is_left_out() {
    let world = World::new().await;
    world.start(settings());
    let job = world.job(1);
    let request = begun(&world, &job).await;
    let garbage = Message { header: bytes::Bytes::from_static(b"\xc1"), body: bytes::Bytes::new() };
    world.bus.publish(&Queue::session(request.session), garbage).await.unwrap();
    world.mapped(request.session, LEAF_SPAN, &[(LEAF_SPAN as u32, Mapped::Zero)]).await;
    world.unchanged().await;
    world.sealed(&job).await;
}
