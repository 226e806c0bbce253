//! A hold, somebody who forgets and may die, and a collector, between any two operations of each other: a snapshot that
//! is held is there, or its hold was refused.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use agent::forgetting::{self, Forgot};
use agent::sessions::OpenSession;
use agent::{Failure, Repository, marks};
use schema::JobId;
use schema::names::Slot;
use schema::root::Root;
use schema::session::{Session, SessionKind};

use super::fixture::*;
use crate::Collector;

/// A snapshot of each volume that is not the newest, both of which somebody may want to forget.
async fn two_snapshots() -> (World, Root) {
    let world = World::plain().await;
    let slot = world.backup("a", &(1..10).collect::<Vec<_>>()).await;
    world.backup("a", &(5..30).collect::<Vec<_>>()).await;
    let root = world.repository.roots_at(vec![slot]).await.unwrap().readable.remove(0);
    (world, root)
}

/// What came back in another slot than `from` must hold what that one held.
async fn expect_back(world: &World, from: Slot) {
    let visible = world.visible().await;
    let mut plaintext = world.plaintext.lock().unwrap();
    let content = plaintext[&from].clone();
    for slot in visible {
        plaintext.entry(slot).or_insert_with(|| content.clone());
    }
}

async fn hold(repository: &Repository, root: &Root) -> Result<(), Failure> {
    forgetting::hold(repository, root, None, "a test").await
}

/// What was held is visible, or was never swept and can be brought back, held.
async fn still_there(world: &World, root: &Root, what: &str) {
    if world.repository.store.head(&root.slot.forgotten()).await.unwrap().is_some() {
        let back = forgetting::unforget(&world.repository, root, "a test").await;
        back.unwrap_or_else(|failure| panic!("{what}: {failure}"));
    }
    expect_back(world, root.slot).await;
    world.prune_to_the_end().await;
    assert_eq!(world.check().await, 2, "{what}");
    // What came back elsewhere is not held where it was.
    let held: Vec<Slot> = marks::all(&world.repository, None).await.unwrap().into_keys().collect();
    assert!(held.len() == 1 && world.visible().await.contains(&held[0]), "{what}: {held:?}");
}

/// The hold stands; whoever forgets has looked before, and dies at any operation, or is met by a collector there.
#[tokio::test(start_paused = true)]
async fn what_is_held_survives_whoever_forgets_and_dies() {
    let (base, root) = two_snapshots().await;
    for at in [|| At::Dies, || At::DiesAfter] {
        let (mut number, mut forgotten) = (0, 0);
        loop {
            let world = base.fork();
            // It is held between the first look and the marker, which are operations 0 and 1.
            let (holding, of, held) =
                (world.repository.clone(), root.clone(), Arc::new(AtomicBool::new(false)));
            let told = held.clone();
            let holds = Box::pin(async move {
                hold(&holding, &of).await.unwrap();
                told.store(true, Ordering::Relaxed);
            });
            let inner = Moment::act(world.inner.clone(), 1, holds);
            let moment = Moment::new(Arc::new(inner), number, at());
            let over = world.over(Arc::new(moment.clone()));
            let died = forgetting::forget(&over, &root, "a test").await;
            if held.load(Ordering::Relaxed) {
                forgotten += usize::from(world.visible().await.len() == 1);
                world.prune().await.unwrap();
                still_there(&world, &root, &format!("operation {number}")).await;
            }
            if moment.count() <= number {
                assert!(matches!(died, Ok(Forgot::BroughtBack(..))), "{died:?}");
                break;
            }
            number += 1;
        }
        assert!(forgotten > 2 && number > 8, "{forgotten} of {number}");
    }
}

/// The hold comes at any operation of a collection, and whoever forgets dies with the marker written, before or after.
#[tokio::test(start_paused = true)]
async fn a_hold_at_any_operation_of_a_collection_is_refused_or_keeps_the_snapshot() {
    let (base, root) = two_snapshots().await;
    base.backup("b", &[100, 101]).await;
    let garbage = base.visible().await.into_iter().find(|slot| slot.volume != root.slot.volume).unwrap();
    base.forget(garbage).await;
    let (mut refused, mut kept) = (0, 0);
    for first in [true, false] {
        let base = base.fork();
        if first {
            base.forget(root.slot).await;
        }
        for number in 0.. {
            let world = base.fork();
            let (there, of) = (world.clone(), root.clone());
            let held = Arc::new(Mutex::new(None));
            let told = held.clone();
            let act = Box::pin(async move {
                let result = hold(&there.repository, &of).await;
                there.forget(of.slot).await;
                *told.lock().unwrap() = Some(result.is_ok());
            });
            let moment = Moment::act(world.inner.clone(), number, act);
            let over = world.over(Arc::new(moment.clone()));
            Collector::new(over, World::settings(), Default::default()).prune().await.unwrap();
            let held = *held.lock().unwrap();
            match held {
                Some(true) => {
                    kept += 1;
                    world.prune_to_the_end().await;
                    still_there(&world, &root, &format!("operation {number}")).await;
                }
                Some(false) => {
                    refused += 1;
                    world.prune_to_the_end().await;
                    assert_eq!(world.check().await, 1, "operation {number}");
                }
                None => break,
            }
        }
    }
    assert!(refused > 20 && kept > 20, "{refused} refused, {kept} kept");
}

#[tokio::test(start_paused = true)]
async fn what_was_said_of_a_snapshot_goes_with_it() {
    let (world, root) = two_snapshots().await;
    marks::label(&world.repository, &root, "a test", |labels| labels.tags = vec!["old".into()])
        .await
        .unwrap();
    world.forget(root.slot).await;
    world.prune_to_the_end().await;
    assert!(world.repository.store.list("marks").await.unwrap().is_empty());
    assert_eq!(world.check().await, 1);
}

/// Whoever forgets looks for such sessions before and after the marker, and may die between.
#[tokio::test(start_paused = true)]
async fn what_a_restore_may_have_to_undo_is_swept_when_the_restore_has_ended() {
    let world = World::plain().await;
    let slot = world.backup("undo/host/a", &[1, 2]).await;
    world.forget(slot).await;
    let root = world.repository.roots_at(vec![slot]).await.unwrap().readable.remove(0);
    let session = Session {
        id: world.repository.environment().session_id(),
        kind: SessionKind::Restore,
        slot: None,
        job: JobId::from_bytes([9; 16]),
        volume: "a".into(),
        host: "host".into(),
        started_ms: 0,
        checkpoint: None,
        ended: None,
        undo: vec![root.job],
    };
    let open = OpenSession::begin(world.repository.clone(), session).await.unwrap();
    assert_eq!(world.prune().await.unwrap().epoch, None);
    open.end().await.unwrap();
    assert!(world.prune().await.unwrap().epoch.is_some());
}
