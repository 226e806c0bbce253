//! Jobs that were delivered too often: what their attempts left is looked for before anybody is told an end.

use agent::{Failure, Handler, Stop};
use conductor::Conductor;
use schema::messages::{FailureKind, JobOutcome};

use crate::support::*;

fn conductor(world: &World) -> Conductor {
    world.conductor(settings(), Default::default(), Stop::default())
}

fn too_often() -> Failure {
    Failure::new(FailureKind::Other, "it was delivered 25 times without success")
}

#[tokio::test(start_paused = true)]
async fn what_killed_attempts_left_is_over_before_the_end_is_told() {
    let world = World::new().await;
    let running = world.start(settings());
    let job = world.job(1);
    world.submit(&job).await;
    let left = world.asked().await.session;
    running.kill().await;
    assert_eq!(world.open().await, [left]);
    conductor(&world).gave_up(&message(&job), &too_often()).await.unwrap();
    let (kind, why) = world.failed(&job).await;
    assert_eq!(kind, FailureKind::Other);
    assert!(why.contains("25 times"), "{why}");
    world.assert_given_up(left).await;
}

/// Its acknowledgement was lost, every time.
#[tokio::test(start_paused = true)]
async fn a_job_that_is_sealed_is_told_to_be_sealed() {
    let world = World::new().await;
    let running = world.start(settings());
    let job = world.job(1);
    let root = world.backup(&job, &[1]).await;
    running.stop().await;
    conductor(&world).gave_up(&message(&job), &too_often()).await.unwrap();
    assert_eq!(world.sealed(&job).await, root);
    assert_eq!(world.context.counters.sessions_failed.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_told_of_what_cannot_be_looked_at() {
    let world = World::new().await;
    let running = world.start(settings());
    let job = world.job(1);
    world.submit(&job).await;
    let left = world.asked().await.session;
    running.kill().await;
    world.faults.crash();
    conductor(&world).gave_up(&message(&job), &too_often()).await.unwrap_err();
    assert!(!world.is_reported(&job));
    // In one process the store is not waited for.
    let alone = conductor::Settings { hand_back: false, ..settings() };
    let mut alone = world.conductor(alone, Default::default(), Stop::default());
    alone.gave_up(&message(&job), &too_often()).await.unwrap();
    let (_, why) = world.failed(&job).await;
    assert!(why.contains("lvkeep cancel"), "{why}");
    world.faults.recover();
    conductor(&world).gave_up(&message(&job), &too_often()).await.unwrap();
    world.failed(&job).await;
    world.assert_given_up(left).await;
}

/// It ends all the same, and leaves nothing.
#[tokio::test(start_paused = true)]
async fn a_job_whose_store_is_away_for_hours_ends_when_it_is_back() {
    let world = World::new().await;
    let running = world.start(settings());
    let job = world.job(1);
    world.submit(&job).await;
    let left = world.asked().await.session;
    world.faults.crash();
    running.kill().await;
    world.start(settings());
    world.wait(3 * 3600).await;
    assert!(!world.is_reported(&job), "what is there is not known");
    world.faults.recover();
    assert!(matches!(world.done(&job).await, JobOutcome::Failed { .. }));
    world.assert_given_up(left).await;
    assert!(world.open().await.is_empty());
}
