//! Messages that get lost: everything is asked for again, within some patience.

use std::sync::atomic::Ordering;
use std::time::Duration;

use agent::bus::{Bus, Topic};
use conductor::Settings;
use schema::limits::LEAF_SPAN;
use schema::messages::*;

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn a_leaf_whose_mapping_was_lost_is_asked_for_again() {
    let world = World::new().await;
    world.start(settings());
    let job = world.job(1);
    world.submit(&job).await;
    let request = world.asked().await;
    let session = request.session;
    world.opened(session, 1, 3 * LEAF_SPAN).await;
    world.mapped_leaf(session, 0, Mapped::Pending(world.id(1))).await;
    world.mapped(session, LEAF_SPAN, &[(LEN, Mapped::Zero)]).await;
    world.mapped(session, 2 * LEAF_SPAN, &[(LEAF_SPAN as u32, Mapped::Zero)]).await;
    world.store(&[1]).await;
    world.read(&request, false).await;
    let before = world.seconds();
    let again = world.asked().await;
    assert!(world.seconds() >= before + 20, "not before it is time");
    assert_eq!((again.leaves.clone(), again.force), (Some(vec![1]), false), "nobody promised anything");
    assert_eq!((again.session, again.reading), (session, Some(reading(1))));
    assert!(again.request > request.request);
    world.mapped(session, LEAF_SPAN, &[(LEAF_SPAN as u32, Mapped::Zero)]).await;
    world.unchanged().await;
    let root = world.sealed(&job).await;
    assert_eq!(root.statistics.bytes_zero + root.statistics.bytes_new, root.size);
}

#[tokio::test(start_paused = true)]
async fn a_lost_announcement_is_found_through_the_index() {
    let world = World::new().await;
    world.broadcasts.store(false, Ordering::Relaxed);
    world.start(settings());
    let job = world.job(1);
    world.submit(&job).await;
    let request = world.asked().await;
    world.opened(request.session, 1, LEAF_SPAN).await;
    world.mapped_leaf(request.session, 0, Mapped::Pending(world.id(1))).await;
    world.read(&request, false).await;
    let stored = world.data(&[1]).await;
    world.unchanged().await;
    world.index(&stored);
    world.sealed(&job).await;
    assert!(!world.is_asked(), "nothing had to be read again");
    assert_eq!(world.take_structures(), 1, "nor stored again");
}

/// An announcement that comes before the mapping that waits for it.
#[tokio::test(start_paused = true)]
async fn an_early_announcement_is_remembered() {
    let world = World::new().await;
    world.start(settings());
    let job = world.job(1);
    world.submit(&job).await;
    let request = world.asked().await;
    world.opened(request.session, 1, LEAF_SPAN).await;
    world.store(&[1]).await;
    world.wait(1).await;
    world.mapped_leaf(request.session, 0, Mapped::Pending(world.id(1))).await;
    world.read(&request, false).await;
    world.unchanged().await;
    world.sealed(&job).await;
    assert!(world.seconds() < 10);
}

#[tokio::test(start_paused = true)]
async fn a_lost_first_request_or_opening_is_made_good() {
    let world = World::new().await;
    world.start(settings());
    let job = world.job(1);
    world.submit(&job).await;
    let first = world.asked().await;
    // The mapping came, the opening did not: nobody knows of which reading it is.
    world.mapped_leaf(first.session, 0, Mapped::Zero).await;
    let again = world.asked().await;
    assert_eq!((again.session, again.reading, again.leaves.clone()), (first.session, None, None));
    world.opened(again.session, 1, LEAF_SPAN).await;
    world.mapped(again.session, 0, &[(LEAF_SPAN as u32, Mapped::Zero)]).await;
    world.unchanged().await;
    world.sealed(&job).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_last_look_is_asked_for_again() {
    let world = World::new().await;
    world.start(settings());
    let job = world.job(1);
    world.submit(&job).await;
    let request = world.asked().await;
    world.opened(request.session, 1, LEAF_SPAN).await;
    world.mapped(request.session, 0, &[(LEAF_SPAN as u32, Mapped::Zero)]).await;
    let lost = world.asked().await;
    assert_eq!(lost.leaves, Some(Vec::new()));
    world.unchanged().await;
    world.sealed(&job).await;
}

#[tokio::test(start_paused = true)]
async fn without_a_reader_the_session_fails_and_names_the_host() {
    let world = World::new().await;
    world.start(settings());
    let job = world.job(1);
    world.submit(&job).await;
    let session = world.asked().await.session;
    let (kind, why) = world.failed(&job).await;
    assert_eq!(kind, FailureKind::Other);
    assert!(why.contains("host host") && why.contains("reader"), "{why}");
    world.assert_given_up(session).await;
    // 20 s, then 40, 60, 80, 100 and 120: patience is a number of times, each a little longer.
    assert!((420..=425).contains(&world.seconds()), "{}", world.seconds());
}

#[tokio::test(start_paused = true)]
async fn patience_ends_while_something_is_missing_and_says_how_much() {
    let world = World::new().await;
    world.start(Settings { patience: 2, ask_again: Duration::from_secs(5), ..settings() });
    let job = world.job(1);
    world.submit(&job).await;
    let request = world.asked().await;
    world.opened(request.session, 1, 2 * LEAF_SPAN).await;
    world.mapped(request.session, 0, &[(LEAF_SPAN as u32, Mapped::Zero)]).await;
    let (_, why) = world.failed(&job).await;
    assert!(why.contains(&format!("{LEAF_SPAN} of {} bytes", 2 * LEAF_SPAN)), "{why}");
    world.assert_given_up(request.session).await;
}

/// Whoever moves is not given up, however slowly.
#[tokio::test(start_paused = true)]
async fn progress_renews_patience() {
    let world = World::new().await;
    world.start(Settings { patience: 2, ask_again: Duration::from_secs(5), ..settings() });
    let job = world.job(1);
    world.submit(&job).await;
    let request = world.asked().await;
    world.opened(request.session, 1, 20 * LEAF_SPAN).await;
    for leaf in 0..20 {
        world.wait(12).await;
        world.mapped(request.session, leaf * LEAF_SPAN, &[(LEAF_SPAN as u32, Mapped::Zero)]).await;
    }
    while !world.is_reported(&job) {
        world.read(&world.asked().await, false).await;
        world.wait(1).await;
    }
    world.sealed(&job).await;
}

/// It may have to wait for a place, for longer than anybody has patience.
#[tokio::test(start_paused = true)]
async fn a_reader_that_asks_is_there() {
    let world = World::new().await;
    world.start(Settings { patience: 2, ask_again: Duration::from_secs(5), ..settings() });
    let job = world.job(1);
    world.submit(&job).await;
    let request = world.asked().await;
    for _ in 0..40 {
        world.wait(3).await;
        crate::tracked::wanted(&world, request.session, 1).await;
    }
    assert!(!world.is_reported(&job) && !world.is_asked(), "nothing is asked for twice meanwhile");
}

/// It reads other volumes, and answers whoever asks whether it is there.
#[tokio::test(start_paused = true)]
async fn a_reader_that_is_busy_with_other_volumes_is_waited_for() {
    let world = World::new().await;
    let mut calls = world.bus.subscribe(&Topic::roll_call()).await.unwrap();
    world.start(Settings { patience: 2, ask_again: Duration::from_secs(5), ..settings() });
    let job = world.job(1);
    world.submit(&job).await;
    let session = world.asked().await.session;
    for _ in 0..50 {
        let call: WhoIsThere = calls.next().await.unwrap().read().unwrap();
        let roles = vec!["hasher".into(), "reader".into()];
        let (host, version) = (HOST.into(), String::new());
        let there = AgentIsThere { host, pid: 1, roles, version, sessions: Vec::new(), counters: Vec::new() };
        let answer = Message::new(&About::nothing(), &there);
        world.bus.broadcast(&Topic::roll_call_reply(&call.reply), answer).await.unwrap();
    }
    assert!(!world.is_reported(&job));
    // Nobody answers any more.
    world.failed(&job).await;
    world.assert_given_up(session).await;
}

#[tokio::test(start_paused = true)]
async fn another_reading_is_refused_and_its_mappings_left_out() {
    let world = World::new().await;
    world.start(settings());
    let job = world.job(1);
    world.submit(&job).await;
    let session = world.asked().await.session;
    world.opened(session, 1, LEAF_SPAN).await;
    let stranger = SessionEvent::Mapped {
        reading: reading(2),
        offset: 0,
        pieces: vec![(LEAF_SPAN as u32, Mapped::Zero)],
        stored: 0,
        new: 0,
        chunks_new: 0,
    };
    world.tell(session, stranger).await;
    let again = world.asked().await;
    assert_eq!(again.leaves, Some(vec![0]), "what another reading said does not count");
    world.opened(session, 2, LEAF_SPAN).await;
    let (kind, why) = world.failed(&job).await;
    assert_eq!(kind, FailureKind::Device);
    assert!(why.contains(SOURCE) && why.contains("another reading"), "{why}");
    world.assert_given_up(session).await;
}

/// The same reading with another size is another reading.
#[tokio::test(start_paused = true)]
async fn a_reading_does_not_change_its_size() {
    let world = World::new().await;
    world.start(settings());
    let job = world.job(1);
    world.submit(&job).await;
    let session = world.asked().await.session;
    world.opened(session, 1, LEAF_SPAN).await;
    world.opened(session, 1, LEAF_SPAN + 4096).await;
    assert_eq!(world.failed(&job).await.0, FailureKind::Device);
}

#[tokio::test(start_paused = true)]
async fn a_size_that_a_header_claims_allocates_nothing() {
    let world = World::new().await;
    world.start(settings());
    let job = world.job(1);
    world.submit(&job).await;
    let request = world.asked().await;
    world.opened(request.session, 1, schema::limits::VOLUME_MAX).await;
    world.mapped(request.session, 0, &[(LEAF_SPAN as u32, Mapped::Zero)]).await;
    let again = world.asked().await;
    let asked = again.leaves.as_ref().unwrap();
    assert_eq!((asked[0], asked.len() <= 64 << 10), (1, true));
    world.opened(request.session, 1, schema::limits::VOLUME_MAX + 1).await;
    world.failed(&job).await;
}
