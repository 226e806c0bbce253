//! Somebody else acts between any two operations of a collector.

use std::sync::{Arc, Mutex};

use futures::FutureExt;
use futures::future::BoxFuture;
use schema::names::Slot;

use super::fixture::*;
use crate::Collector;

/// What was forgotten and is being collected: whoever finds its chunks would like to rely on them.
fn garbage() -> Vec<u64> {
    (40..60).collect()
}

/// Lets `act` happen at every operation of a collection, then `after`, and checks everything each time.
async fn at_every_operation<T: Send + Sync + 'static>(
    expected: usize,
    act: impl Fn(World, Vec<Slot>, Arc<Mutex<Option<T>>>) -> BoxFuture<'static, ()>,
    after: impl AsyncFn(World, Option<T>),
) {
    let (base, forgotten) = littered(false).await;
    let mut number = 0;
    loop {
        let world = base.fork();
        let left = Arc::new(Mutex::new(None));
        let moment =
            Moment::act(world.inner.clone(), number, act(world.clone(), forgotten.clone(), left.clone()));
        let repository = world.over(Arc::new(moment.clone()));
        let report = Collector::new(repository, World::settings(), Default::default()).prune().await;
        report.unwrap_or_else(|failure| panic!("operation {number}: {failure}"));
        let left = left.lock().unwrap().take();
        after(world.clone(), left).await;
        let seen = world.check().await;
        assert!(seen >= expected, "operation {number}: {seen} snapshots");
        world.prune_to_the_end().await;
        assert_eq!(world.check().await, seen, "operation {number}");
        number += 1;
        if moment.count() <= number {
            break;
        }
    }
    println!("at {number} operations");
    assert!(number > 60);
}

#[tokio::test(start_paused = true)]
async fn a_backup_may_come_and_go_at_any_time() {
    let act = |world: World, _, _| {
        async move {
            world.backup("new", &garbage()).await;
        }
        .boxed()
    };
    at_every_operation::<()>(3, act, async |_, _| ()).await;
}

#[tokio::test(start_paused = true)]
async fn a_session_may_begin_at_any_time_and_commit_when_the_collector_has_gone() {
    let act = |world: World, _, left: Arc<Mutex<Option<Backup>>>| {
        let begin = async move {
            let mut backup = world.begin("new").await.unwrap();
            backup.store(&garbage()).await.unwrap();
            *left.lock().unwrap() = Some(backup);
        };
        begin.boxed()
    };
    let commit = async |_, backup: Option<Backup>| {
        let committed = backup.expect("it has begun").commit().await.unwrap();
        assert!(committed.is_some());
    };
    at_every_operation(3, act, commit).await;
}

#[tokio::test(start_paused = true)]
async fn a_session_may_begin_and_look_only_when_the_collector_has_gone() {
    let act = |world: World, _, left: Arc<Mutex<Option<Backup>>>| {
        async move { *left.lock().unwrap() = Some(world.begin("b").await.unwrap()) }.boxed()
    };
    let commit = async |_, backup: Option<Backup>| {
        let mut backup = backup.expect("it has begun");
        backup.store(&garbage()).await.unwrap();
        assert!(backup.commit().await.unwrap().is_some());
    };
    at_every_operation(3, act, commit).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_forgotten_may_be_brought_back_at_any_time_or_is_refused() {
    let act = |world: World, forgotten: Vec<Slot>, _| {
        async move {
            world.unforget(forgotten[1]).await.unwrap();
        }
        .boxed()
    };
    at_every_operation::<()>(2, act, async |_, _| ()).await;
}

#[tokio::test(start_paused = true)]
async fn snapshots_may_be_forgotten_at_any_time() {
    let act = |world: World, _, _| {
        let forget = async move {
            for slot in world.visible().await {
                world.forget(slot).await;
            }
            world.backup("c", &[40, 41, 42]).await;
        };
        forget.boxed()
    };
    at_every_operation::<()>(1, act, async |_, _| ()).await;
}

#[tokio::test(start_paused = true)]
async fn another_collector_may_do_all_of_it_at_any_time() {
    let act = |world: World, _, _| async move { drop(world.prune().await.unwrap()) }.boxed();
    at_every_operation::<()>(2, act, async |_, _| ()).await;
}

#[tokio::test(start_paused = true)]
async fn another_collector_may_come_with_a_backup_in_front_of_it() {
    let act = |world: World, _, _| {
        let both = async move {
            world.backup("new", &garbage()).await;
            world.prune_to_the_end().await;
            world.backup("new", &(30..70).collect::<Vec<_>>()).await;
        };
        both.boxed()
    };
    at_every_operation::<()>(4, act, async |_, _| ()).await;
}
