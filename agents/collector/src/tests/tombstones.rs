//! Slots that are as short as tombstones: what is none is needed, and what is one accuses nobody.

use std::sync::Arc;

use agent::faults::store::{FaultyStore, StoreFaults};
use agent::marks;
use schema::messages::FailureKind;
use schema::names::{self, Slot};
use schema::tombstone::TOMBSTONE_LEN;

use super::fixture::*;
use crate::Collector;

/// What a session left in its slot that was given up.
async fn given_up(world: &World) -> Slot {
    let backup = world.begin("given-up").await.unwrap();
    let slot = backup.open.slot().unwrap();
    backup.open.abandon().await.unwrap();
    slot
}

async fn cut_off(world: &World, slot: Slot) {
    let (store, key) = (&world.repository.store, slot.snapshot());
    let root = store.get(&key).await.unwrap().unwrap();
    store.put(&key, root.slice(..TOMBSTONE_LEN as usize)).await.unwrap();
}

/// At the first mark, and at the second one of a collection that waits.
#[tokio::test(start_paused = true)]
async fn what_a_session_left_and_the_store_does_not_give_accuses_nobody() {
    for waits in [false, true] {
        let (world, _) = littered(false).await;
        let slot = given_up(&world).await;
        if waits {
            let early = world.begin("early").await.unwrap();
            assert_eq!(world.prune().await.unwrap().waits.len(), 1);
            early.open.abandon().await.unwrap();
        }
        let environment = world.repository.store.environment().clone();
        let store = FaultyStore::new(world.inner.clone(), environment, StoreFaults::default());
        let repository = world.over(Arc::new(store.clone()));
        let collector = Collector::new(repository, World::settings(), Default::default());
        store.hide(Some(&slot.snapshot()));
        let packs = world.packs().await;
        let failure = collector.prune().await.unwrap_err();
        assert!(failure.kind == FailureKind::Store && failure.why.contains(&slot.snapshot()), "{failure}");
        assert!(
            failure.why.contains("does not give it") && !failure.why.contains("nobody who may"),
            "{failure}"
        );
        assert_eq!(world.packs().await, packs);
        store.hide(None);
        assert!(collector.prune().await.unwrap().swept.packs > 0);
        assert_eq!(world.check().await, 2);
    }
}

/// A snapshot that somebody forgot and somebody else holds stays, and it stays needed when nobody knows what it needs.
#[tokio::test(start_paused = true)]
async fn what_is_held_and_cut_off_stops_a_collection() {
    let world = World::plain().await;
    let slot = world.backup("a", &(1..10).collect::<Vec<_>>()).await;
    world.backup("a", &(5..30).collect::<Vec<_>>()).await;
    let hold = marks::hold(&world.repository, slot, None, "a test").await.unwrap();
    world.forget(slot).await;
    cut_off(&world, slot).await;
    let packs = world.packs().await;
    let failure = world.prune().await.unwrap_err();
    assert!(failure.kind == FailureKind::Damaged && failure.why.contains(&slot.snapshot()), "{failure}");
    assert_eq!(world.packs().await, packs);
    marks::release(&world.repository, slot, &[hold]).await.unwrap();
    world.prune_to_the_end().await;
    assert_ne!(world.packs().await, packs, "it is let go");
    assert_eq!(world.check().await, 1);
}

/// Nothing is deleted for a label, and no collection begins for it a second time.
#[tokio::test(start_paused = true)]
async fn what_is_labelled_forgotten_and_cut_off_is_collected_once() {
    let world = World::plain().await;
    let slot = world.backup("a", &(1..10).collect::<Vec<_>>()).await;
    world.backup("a", &(5..30).collect::<Vec<_>>()).await;
    let root = world.repository.roots_at(vec![slot]).await.unwrap().readable.remove(0);
    let labelled =
        marks::label(&world.repository, &root, "a test", |labels| labels.tags = vec!["tag".into()]);
    labelled.await.unwrap();
    world.forget(slot).await;
    cut_off(&world, slot).await;
    world.prune_to_the_end().await;
    assert_eq!(world.check().await, 1);
    let begun = world.repository.store.list(names::EPOCHS).await.unwrap();
    world.prune_to_the_end().await;
    assert_eq!(world.repository.store.list(names::EPOCHS).await.unwrap(), begun);
}

/// However many were swept, none of them is read again.
#[tokio::test(start_paused = true)]
async fn what_was_swept_is_not_read_again() {
    let (world, forgotten) = littered(false).await;
    let given_up = given_up(&world).await;
    world.prune_to_the_end().await;
    let record = agent::faults::record::RecordingStore::new(world.inner.clone());
    let repository = world.over(Arc::new(record.clone()));
    Collector::new(repository, World::settings(), Default::default()).prune().await.unwrap();
    let requests = record.take();
    let reads =
        |slot: &Slot| requests.iter().filter(|one| **one == format!("get {}", slot.snapshot())).count();
    assert!(!forgotten.is_empty() && forgotten.iter().all(|slot| reads(slot) == 0), "{requests:#?}");
    assert!(reads(&given_up) > 0);
}
