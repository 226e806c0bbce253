//! What a reader leaves out because it has not changed since the parent, and what it is told is still wanted.

use std::time::Duration;

use agent::bus::{Bus, Service, Topic};
use agent::repository::AtSlot;
use conductor::Settings;
use schema::limits::LEAF_SPAN;
use schema::map::Content;
use schema::messages::*;
use schema::root::{Root, Tracking};
use schema::{Domain, SessionId, names};

use crate::support::*;

const SIZE: u64 = 3 * LEAF_SPAN;

/// A snapshot of three leaves, and the request of the next session.
async fn second(world: &World) -> (Root, ReadVolume) {
    second_by(world, settings()).await
}

async fn second_by(world: &World, settings: Settings) -> (Root, ReadVolume) {
    world.start(settings);
    let parent = world.backup(&world.job(1), &[1, 2, 3]).await;
    world.submit(&world.job(2)).await;
    let request = world.asked().await;
    assert_eq!(request.parent, Some(ParentSnapshot { session: parent.slot.session, size: SIZE }));
    assert_eq!(request.repository, world.repository.key.repo());
    world.opened(request.session, 1, SIZE).await;
    (parent, request)
}

async fn unchanged(world: &World, session: SessionId, parent: SessionId, ranges: &[(u64, u64)]) {
    let event = SessionEvent::Unchanged { reading: reading(1), parent, ranges: ranges.to_vec() };
    world.tell(session, event).await;
}

async fn tracked(world: &World, session: SessionId, tracking: Tracking, distrusted: bool) {
    world.tell(session, SessionEvent::Tracked { reading: reading(1), tracking, distrusted }).await;
}

pub async fn wanted(world: &World, session: SessionId, request: u32) -> Wanted {
    // What was told before is heard before.
    world.wait(1).await;
    let question = Message::new(&About::nothing(), &AskWanted { session, request });
    let limit = Duration::from_secs(1);
    world.bus.request(&Service::conductor(session), question, limit).await.unwrap().read().unwrap()
}

fn since(parent: &Root) -> Tracking {
    Tracking::Since { parent: parent.slot.session, changed: 4096, audited: 8192 }
}

/// The chunks that leaves begin with.
async fn firsts(world: &World, root: &Root) -> Vec<Content> {
    world.leaves(root).await.iter().map(|leaf| leaf.pieces()[0].content).collect()
}

#[tokio::test(start_paused = true)]
async fn unchanged_leaves_are_the_parents() {
    let world = World::new().await;
    let (parent, request) = second(&world).await;
    let session = request.session;
    world.take_structures();
    tracked(&world, session, since(&parent), false).await;
    unchanged(&world, session, parent.slot.session, &[(0, LEAF_SPAN), (2 * LEAF_SPAN, LEAF_SPAN)]).await;
    world.mapped_leaf(session, 1, Mapped::Pending(world.id(4))).await;
    world.read(&request, false).await;
    world.store(&[4]).await;
    world.unchanged().await;
    let root = world.sealed(&world.job(2)).await;
    let chunk = |n| Content::Chunk(world.id(n));
    assert_eq!(firsts(&world, &root).await, [chunk(1), chunk(4), chunk(3)]);
    assert_eq!(world.take_structures(), 2, "one leaf and the node");
    assert_eq!(root.tracking, since(&parent));
    let statistics = root.statistics;
    assert_eq!((statistics.chunks, statistics.bytes_zero), (3, 3 * u64::from(REST)), "as of a full reading");
    assert_eq!((statistics.bytes_known, statistics.bytes_new), (2 * u64::from(LEN), u64::from(LEN)));
    assert_eq!(statistics.bytes_read, 2000, "what the reader said");
}

#[tokio::test(start_paused = true)]
async fn unchanged_parts_of_leaves_are_the_parents() {
    let world = World::new().await;
    let (parent, request) = second(&world).await;
    let (session, leaf) = (request.session, LEAF_SPAN);
    let (len, of) = (u64::from(LEN), parent.slot.session);
    tracked(&world, session, since(&parent), false).await;
    // Zeroes are taken from their middle, chunks whole; a range may reach over leaves.
    world.mapped(session, 0, &[(LEN, Mapped::Pending(world.id(4)))]).await;
    unchanged(&world, session, of, &[(len, leaf), (leaf + 2 * len, leaf - 2 * len)]).await;
    world.mapped(session, leaf + len, &[(LEN, Mapped::Pending(world.id(5)))]).await;
    unchanged(&world, session, of, &[(2 * leaf, leaf)]).await;
    world.read(&request, false).await;
    world.store(&[4, 5]).await;
    world.unchanged().await;
    let root = world.sealed(&world.job(2)).await;
    let leaves = world.leaves(&root).await;
    let pieces = |n: usize| leaves[n].pieces().iter().map(|p| (p.len, p.content)).collect::<Vec<_>>();
    let chunk = |n| (LEN, Content::Chunk(world.id(n)));
    assert_eq!(pieces(0), [chunk(4), (REST, Content::Zero)]);
    assert_eq!(pieces(1), [chunk(2), chunk(5), (REST - LEN, Content::Zero)]);
    assert_eq!(pieces(2), [chunk(3), (REST, Content::Zero)]);
    let (chunks, zero) = (root.statistics.chunks, root.statistics.bytes_zero);
    assert_eq!((chunks, zero), (4, SIZE - 4 * len));
}

/// A part of a chunk, and leaves whose place in the parent's map cannot be found.
#[tokio::test(start_paused = true)]
async fn what_the_parents_map_does_not_have_is_read_whole() {
    let world = World::new().await;
    let (parent, request) = second(&world).await;
    let (session, of) = (request.session, parent.slot.session);
    unchanged(&world, session, of, &[(0, 4096), (LEAF_SPAN, 2 * LEAF_SPAN)]).await;
    let again = world.asked().await;
    assert_eq!((again.leaves.clone(), again.force), (Some(vec![0]), true));
    assert!(world.seconds() < 10, "at once");
    let asked = wanted(&world, session, again.request).await;
    assert_eq!((asked.leaves, asked.forced), (vec![], vec![(0, 1)]));
    // What says so again changes nothing.
    unchanged(&world, session, of, &[(0, 4096)]).await;
    world.mapped_leaf(session, 0, Mapped::Pending(world.id(7))).await;
    world.read(&request, false).await;
    world.read(&again, false).await;
    world.store(&[7]).await;
    world.unchanged().await;
    let root = world.sealed(&world.job(2)).await;
    assert_eq!(firsts(&world, &root).await[0], Content::Chunk(world.id(7)));
    assert!(!world.is_asked());
}

#[tokio::test(start_paused = true)]
async fn a_parent_whose_map_is_lost_is_read_whole() {
    let world = World::new().await;
    world.start(settings());
    let parent = world.backup(&world.job(1), &[1, 2, 3]).await;
    world.lose(world.packs_of(Domain::Structure)).await;
    world.submit(&world.job(2)).await;
    let request = world.asked().await;
    world.opened(request.session, 1, SIZE).await;
    unchanged(&world, request.session, parent.slot.session, &[(0, SIZE)]).await;
    let again = world.asked().await;
    assert_eq!((again.leaves, again.force), (Some(vec![0, 1, 2]), true));
}

/// What a check has found since the parent was made is read, and stored again.
#[tokio::test(start_paused = true)]
async fn what_is_damaged_is_read_whole_and_nothing_else_is() {
    let world = World::new().await;
    world.start(settings());
    let parent = world.backup(&world.job(1), &[1, 2, 3]).await;
    world.damage(&[world.id(2)]).await;
    world.submit(&world.job(2)).await;
    let request = world.asked().await;
    let (session, of) = (request.session, parent.slot.session);
    world.opened(session, 1, SIZE).await;
    unchanged(&world, session, of, &[(0, SIZE)]).await;
    let again = world.asked().await;
    assert_eq!((again.leaves.clone(), again.force), (Some(vec![1]), false));
    assert!(world.seconds() < 10, "at once");
    let asked = wanted(&world, session, again.request).await;
    assert_eq!((asked.leaves, asked.forced, asked.whole), (vec![(1, 1)], vec![], vec![(1, 1)]));
    let question = Message::new(&About::nothing(), &AskParentLeaf { session, leaf: 1 });
    let limit = Duration::from_secs(1);
    let leaf = world.bus.request(&Service::conductor(session), question, limit).await.unwrap();
    assert_eq!(leaf.read::<ParentLeaf>().unwrap().lost, [0]);
    // The parent's word and the damaged copy count for nothing.
    world.mapped_leaf(session, 1, Mapped::Parent(world.id(2))).await;
    let healed = world.store(&[2]).await;
    world.read(&request, false).await;
    world.read(&again, false).await;
    world.unchanged().await;
    let root = world.sealed(&world.job(2)).await;
    assert_eq!(root.top, parent.top);
    // What has another copy is not damaged any more.
    world.submit(&world.job(3)).await;
    let request = world.asked().await;
    world.opened(request.session, 1, SIZE).await;
    unchanged(&world, request.session, session, &[(0, SIZE)]).await;
    world.read(&request, false).await;
    world.unchanged().await;
    world.sealed(&world.job(3)).await;
    assert!(world.packs_of(Domain::Data).contains(&healed) && !world.is_asked());
}

/// Where something is lost, a large volume is looked at in turns; what waits for its turn is not read.
#[tokio::test(start_paused = true)]
async fn what_is_unchanged_is_taken_in_turns_where_something_is_damaged() {
    let world = World::new().await;
    world.start(settings());
    let chunks: Vec<u32> = (1..=150).collect();
    let parent = world.backup(&world.job(1), &chunks).await;
    world.damage(&[world.id(2), world.id(100), world.id(150)]).await;
    world.submit(&world.job(2)).await;
    let request = world.asked().await;
    let (session, of, size) = (request.session, parent.slot.session, 150 * LEAF_SPAN);
    world.opened(session, 1, size).await;
    unchanged(&world, session, of, &[(0, size)]).await;
    let damaged = [1, 99, 149];
    for leaf in damaged {
        let again = world.asked().await;
        assert_eq!((again.leaves, again.force), (Some(vec![leaf]), false));
        let asked = wanted(&world, session, again.request).await;
        let mut leaves = asked.leaves.into_iter().flat_map(|(first, count)| first..first + count);
        assert!(leaves.all(|leaf| damaged.contains(&leaf)));
    }
    let asked = wanted(&world, session, 4).await;
    assert_eq!(
        (asked.leaves, asked.whole),
        (damaged.map(|leaf| (leaf, 1)).into(), damaged.map(|leaf| (leaf, 1)).into())
    );
}

/// A reader that does not know what it is told says the same again.
#[tokio::test(start_paused = true)]
async fn what_is_damaged_and_said_to_be_unchanged_again_is_asked_for_with_force() {
    let world = World::new().await;
    world.start(settings());
    let parent = world.backup(&world.job(1), &[1, 2, 3]).await;
    world.damage(&[world.id(3)]).await;
    world.submit(&world.job(2)).await;
    let request = world.asked().await;
    let (session, of) = (request.session, parent.slot.session);
    world.opened(session, 1, SIZE).await;
    unchanged(&world, session, of, &[(0, SIZE)]).await;
    world.asked().await;
    unchanged(&world, session, of, &[(2 * LEAF_SPAN, LEAF_SPAN)]).await;
    let forced = world.asked().await;
    assert_eq!((forced.leaves, forced.force), (Some(vec![2]), true));
    assert_eq!(wanted(&world, session, forced.request).await.forced, [(2, 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_leaf_of_the_parents_map_is_stored_again() {
    let world = World::new().await;
    world.start(settings());
    let parent = world.backup(&world.job(1), &[1, 2]).await;
    let leaf = world.leaf_id(&parent, 1).await;
    world.damage(&[leaf]).await;
    world.take_structures();
    world.submit(&world.job(2)).await;
    let request = world.asked().await;
    let (session, of) = (request.session, parent.slot.session);
    world.opened(session, 1, 2 * LEAF_SPAN).await;
    unchanged(&world, session, of, &[(0, 2 * LEAF_SPAN)]).await;
    let again = world.asked().await;
    assert_eq!((again.leaves.clone(), again.force), (Some(vec![1]), false));
    world.mapped_leaf(session, 1, Mapped::Parent(world.id(2))).await;
    world.read(&request, false).await;
    world.read(&again, false).await;
    world.unchanged().await;
    assert_eq!(world.sealed(&world.job(2)).await.top, parent.top);
    assert_eq!(world.take_structures(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_unchanged_since_something_else_counts_for_nothing() {
    let world = World::new().await;
    let (parent, request) = second(&world).await;
    let session = request.session;
    unchanged(&world, session, session, &[(0, SIZE)]).await;
    let event =
        SessionEvent::Unchanged { reading: reading(2), parent: parent.slot.session, ranges: vec![(0, SIZE)] };
    world.tell(session, event).await;
    assert_eq!(wanted(&world, session, 1).await.leaves, [(0, 3)]);
}

#[tokio::test(start_paused = true)]
async fn another_size_or_moment_is_no_parent() {
    let world = World::new().await;
    world.start(settings());
    let parent = world.backup(&world.job(1), &[1, 2]).await;
    world.submit(&world.job(2)).await;
    let request = world.asked().await;
    // The volume has grown, and the reader does not mind.
    world.opened(request.session, 1, SIZE).await;
    unchanged(&world, request.session, parent.slot.session, &[(0, SIZE)]).await;
    assert_eq!(wanted(&world, request.session, 1).await.leaves, [(0, 3)]);
    for leaf in 0..3 {
        world.mapped(request.session, leaf * LEAF_SPAN, &[(LEAF_SPAN as u32, Mapped::Zero)]).await;
    }
    world.read(&request, false).await;
    world.unchanged().await;
    world.sealed(&world.job(2)).await;
    // A snapshot of a source that changed while it was read is not of one moment.
    let changing = BackupJob { allow_changes: true, ..world.job(3) };
    world.submit(&changing).await;
    let request = world.asked().await;
    assert!(request.parent.is_some());
    world.opened(request.session, 1, LEAF_SPAN).await;
    world.mapped(request.session, 0, &[(LEAF_SPAN as u32, Mapped::Zero)]).await;
    world.read(&request, true).await;
    world.unchanged().await;
    assert!(world.sealed(&changing).await.changed_while_read);
    world.submit(&world.job(4)).await;
    assert_eq!(world.asked().await.parent, None);
}

/// The audit found a list of changes to be wrong before anything was left out.
#[tokio::test(start_paused = true)]
async fn a_list_that_is_found_wrong_in_time_costs_a_full_reading() {
    let world = World::new().await;
    let (parent, request) = second(&world).await;
    let session = request.session;
    let everything = Tracking::Everything { why: Some("the audit".into()) };
    tracked(&world, session, everything.clone(), true).await;
    // Somebody else had believed it, and what that one said comes late.
    unchanged(&world, session, parent.slot.session, &[(0, SIZE)]).await;
    assert_eq!(wanted(&world, session, 1).await.leaves, [(0, 3)]);
    for leaf in 0..2 {
        world.mapped(session, leaf * LEAF_SPAN, &[(LEAF_SPAN as u32, Mapped::Zero)]).await;
    }
    let again = world.asked().await;
    assert_eq!((again.session, again.parent), (session, None));
    tracked(&world, session, everything.clone(), true).await;
    world.mapped(session, 2 * LEAF_SPAN, &[(LEAF_SPAN as u32, Mapped::Zero)]).await;
    world.read(&again, false).await;
    world.unchanged().await;
    assert_eq!(world.sealed(&world.job(2)).await.tracking, everything);
}

/// The same after some leaves were taken from the parent: nothing of that session is believed.
#[tokio::test(start_paused = true)]
async fn a_list_that_is_found_wrong_too_late_costs_the_session() {
    let world = World::new().await;
    let mut closed = world.bus.subscribe(&Topic::closed()).await.unwrap();
    let (parent, request) = second(&world).await;
    let first: CloseReading = closed.next().await.unwrap().read().unwrap();
    assert_eq!((first.session, first.committed), (parent.slot.session, true));
    let session = request.session;
    tracked(&world, session, since(&parent), false).await;
    unchanged(&world, session, parent.slot.session, &[(0, LEAF_SPAN)]).await;
    tracked(&world, session, Tracking::Everything { why: Some("the audit".into()) }, true).await;
    let over: CloseReading = closed.next().await.unwrap().read().unwrap();
    assert_eq!((over.session, over.committed), (session, false));
    let again = world.asked().await;
    assert_ne!(again.session, session);
    assert_eq!((again.parent, again.reading), (None, None), "nothing may be left out");
    let slot = world.repository.at_slot(world.slot(session)).await.unwrap();
    assert!(matches!(slot, AtSlot::Tombstone), "{slot:?}");
    assert_eq!(world.repository.store.get(&names::session(session)).await.unwrap(), None);
    world.opened(again.session, 2, 0).await;
    let check = world.asked().await;
    let event =
        SessionEvent::Read { reading: reading(2), request: check.request, bytes_read: 0, changed: false };
    world.tell(again.session, event).await;
    world.sealed(&world.job(2)).await;
    let last: CloseReading = closed.next().await.unwrap().read().unwrap();
    assert_eq!((last.session, last.committed), (again.session, true));
}

/// The store is away just then: what was left out is in a checkpoint, which nobody adopts.
#[tokio::test(start_paused = true)]
async fn a_list_that_is_found_wrong_while_the_store_is_away_is_not_believed_afterwards() {
    let world = World::new().await;
    let often = Settings { checkpoint: Duration::from_secs(5), ..settings() };
    let (parent, request) = second_by(&world, often).await;
    let session = request.session;
    tracked(&world, session, since(&parent), false).await;
    unchanged(&world, session, parent.slot.session, &[(0, LEAF_SPAN)]).await;
    world.wait(6).await;
    assert_eq!(world.open_sessions().await[0].checkpoint.as_ref().unwrap().leaves.len(), 1);
    world.faults.crash();
    tracked(&world, session, Tracking::Everything { why: Some("the audit".into()) }, true).await;
    world.wait(300).await;
    assert!(!world.is_reported(&world.job(2)) && !world.is_asked());
    world.faults.recover();
    let again = world.asked().await;
    assert_eq!((again.parent, again.leaves), (None, None), "nothing is left out or adopted");
    assert_eq!(world.open().await, [again.session]);
}

/// A request that waited for long, or came twice, is told what is missing by now.
#[tokio::test(start_paused = true)]
async fn who_asks_is_told_what_is_still_wanted() {
    let world = World::new().await;
    world.start(settings());
    world.submit(&world.job(1)).await;
    let request = world.asked().await;
    let session = request.session;
    let asked = wanted(&world, session, 1).await;
    assert!(asked.leaves[0].0 == 0 && asked.leaves[0].1 > 1 << 30, "before there is a reading: all");
    world.opened(session, 1, 4 * LEAF_SPAN).await;
    // One finished, one that waits for its chunk, one in part, one not at all.
    world.mapped(session, 0, &[(LEAF_SPAN as u32, Mapped::Zero)]).await;
    world.mapped_leaf(session, 1, Mapped::Pending(world.id(1))).await;
    world.mapped(session, 2 * LEAF_SPAN, &[(LEN, Mapped::Zero)]).await;
    let asked = wanted(&world, session, 1).await;
    assert_eq!((asked.over, asked.leaves, asked.forced), (false, vec![(2, 2)], vec![]));
    // After some silence what is promised is asked for by force, in that request and in no other.
    let again = world.asked().await;
    assert_eq!((again.leaves.clone(), again.force), (Some(vec![1, 2, 3]), true));
    let asked = wanted(&world, session, again.request).await;
    assert_eq!((asked.leaves, asked.forced), (vec![(2, 2)], vec![(1, 1)]));
    let asked = wanted(&world, session, request.request).await;
    assert_eq!((asked.leaves, asked.forced), (vec![(2, 2)], vec![]));
    for leaf in [2, 3] {
        world.mapped(session, leaf * LEAF_SPAN, &[(LEAF_SPAN as u32, Mapped::Zero)]).await;
    }
    world.store(&[1]).await;
    let asked = wanted(&world, session, again.request).await;
    assert_eq!((asked.leaves, asked.forced), (vec![], vec![]));
}
