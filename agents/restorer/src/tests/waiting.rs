//! Jobs that wait for another restore, and what an agent does meanwhile.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use agent::{Failure, Queue, Stop, Topic};
use schema::JobId;
use schema::messages::{About, FailureKind, JobOutcome, Message, RestoreJob, RestoreWaits, StopRestore};
use schema::root::Root;
use tokio::task::JoinHandle;

use super::asked::job;
use super::fixture::{CHUNK, Fixture, noise, serving};
use super::sharing::{done, ended};
use crate::claim::Claim;

const MINUTE: Duration = Duration::from_secs(60);

async fn send(fixture: &Fixture, root: &Root, path: &Path) -> JobId {
    let order = RestoreJob { force: true, ..job(fixture, root, path) };
    let message = Message::new(&About::nothing(), &order);
    fixture.context.bus.publish(&Queue::restores("host"), message).await.unwrap();
    order.job
}

/// A target that another restore has, until this is dropped.
fn held(path: &Path) -> File {
    std::fs::write(path, b"before").unwrap();
    let file = File::open(path).unwrap();
    Claim::default().lock(&file, path).unwrap();
    file
}

/// An agent with one place.
fn agent(fixture: &Fixture) -> JoinHandle<Result<(), Failure>> {
    let allowed = vec![fixture.folder.path().to_path_buf()];
    tokio::spawn(fixture.restorer().run(serving(allowed)))
}

fn is_restored(outcome: &JobOutcome) -> bool {
    matches!(outcome, JobOutcome::Restored { .. })
}

#[tokio::test(start_paused = true)]
async fn a_job_that_waits_keeps_no_other_from_being_done() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, 4 * CHUNK)).await;
    let (busy, free) = (fixture.path("busy"), fixture.path("free"));
    let other = held(&busy);
    let agent = agent(&fixture);
    let (waits, unwanted) = (send(&fixture, &root, &busy).await, send(&fixture, &root, &busy).await);
    let mut told = fixture.context.bus.subscribe(&Topic::progress(waits)).await.unwrap();
    assert!(is_restored(&done(&fixture, send(&fixture, &root, &free).await).await));
    // It is told all the while, and comes to nobody else.
    fixture.context.environment.sleep(60 * MINUTE).await;
    assert!(told.next().await.unwrap().read::<RestoreWaits>().is_ok());
    assert_eq!(fixture.context.counters.messages_retried.get(), 0);
    let stop = Message::new(&About::nothing(), &StopRestore { job: unwanted });
    fixture.context.bus.broadcast(&Topic::stop_restore(), stop).await.unwrap();
    let JobOutcome::Failed { kind, why } = done(&fixture, unwanted).await else { panic!("it was restored") };
    assert!(kind == FailureKind::Revoked && why.contains("before it began"), "{why}");
    assert_eq!(std::fs::read(&busy).unwrap(), b"before");
    drop(other);
    assert!(is_restored(&done(&fixture, waits).await));
    assert!(std::fs::read(&busy).unwrap() == std::fs::read(&free).unwrap());
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_stopped_hands_back_what_waits() {
    let mut fixture = Fixture::plain().await;
    let content = noise(1, 4 * CHUNK);
    let root = fixture.volume(&content).await;
    let path = fixture.path("x");
    let other = held(&path);
    let first = agent(&fixture);
    let waits = send(&fixture, &root, &path).await;
    let mut told = fixture.context.bus.subscribe(&Topic::progress(waits)).await.unwrap();
    while told.next().await.unwrap().read::<RestoreWaits>().is_err() {}
    fixture.context.stop.raise();
    first.await.unwrap().unwrap();
    assert_eq!(fixture.context.counters.messages_retried.get(), 1);
    drop(other);
    fixture.context.stop = Stop::default();
    let agent = agent(&fixture);
    assert!(is_restored(&done(&fixture, waits).await));
    assert!(std::fs::read(&path).unwrap() == content);
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}

/// What waits is held in memory.
#[tokio::test(start_paused = true)]
async fn no_more_jobs_wait_beside_the_places_than_there_is_room_for() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, 4 * CHUNK)).await;
    let (busy, free) = (fixture.path("busy"), fixture.path("free"));
    let other = held(&busy);
    let agent = agent(&fixture);
    let mut waiting = Vec::new();
    for _ in 0..=crate::service::WAITING_MAX {
        waiting.push(send(&fixture, &root, &busy).await);
    }
    let last = send(&fixture, &root, &free).await;
    assert_eq!(ended(&fixture, last, MINUTE).await, None, "the only place is taken");
    drop(other);
    for job in waiting.into_iter().chain([last]) {
        assert!(is_restored(&done(&fixture, job).await));
    }
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}
