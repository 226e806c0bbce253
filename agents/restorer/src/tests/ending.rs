//! How the end of a job becomes known, and what protects it until then.

use std::sync::Arc;
use std::time::Duration;

use agent::faults::bus::{BusFaults, FaultyBus};
use agent::sessions::{self, OpenSession};
use agent::{Bus, Queue};
use schema::messages::{FailureKind, JobOutcome, More, RestoreJob};
use schema::root::Root;
use schema::session::{Session, SessionKind};
use schema::{JobId, SessionId};

use super::asked::{done, job, send};
use super::fixture::{Fixture, noise, serving};

const LEN: usize = 1 << 20;

/// What an attempt that died has left.
async fn left(fixture: &Fixture, job: JobId, undo: Vec<JobId>) -> SessionId {
    let session = Session {
        id: fixture.context.environment.session_id(),
        kind: SessionKind::Restore,
        slot: None,
        job,
        volume: "v".into(),
        host: "host".into(),
        started_ms: 0,
        checkpoint: None,
        ended: None,
        undo,
    };
    let session = OpenSession::begin(fixture.repository.clone(), session).await.unwrap();
    session.session().id
}

async fn sessions(fixture: &Fixture) -> Vec<Session> {
    sessions::list(&fixture.repository).await.unwrap()
}

/// A backup of what stood on a target.
async fn kept(fixture: &Fixture) -> (JobId, Root) {
    let root = fixture.volume(&noise(2, LEN)).await;
    let root = Root { job: fixture.context.environment.job_id(), ..root };
    let bytes = fixture.repository.seal(&root.slot.snapshot(), &root).unwrap();
    fixture.repository.store.put(&root.slot.snapshot(), bytes).await.unwrap();
    (root.job, root)
}

/// Has a job delivered so often in vain.
async fn delivered(fixture: &Fixture, job: &RestoreJob, times: usize) {
    send(fixture, job).await;
    let mut deliveries = fixture.context.bus.consume(&Queue::restores("host"), 1).await.unwrap();
    for _ in 0..times {
        deliveries.next().await.unwrap().ticket.again(Duration::ZERO).await.unwrap();
    }
}

/// The message server may have it all the same, and then the job never comes again.
#[tokio::test(start_paused = true)]
async fn what_protects_a_job_ends_although_its_confirmation_is_lost() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, LEN)).await;
    let order = job(&fixture, &root, &fixture.path("x"));
    left(&fixture, order.job, vec![JobId::from_bytes([5; 16])]).await;
    let mut restorer = fixture.restorer();
    let faults = BusFaults { done_lost: 1000, ..BusFaults::default() };
    let environment = fixture.context.environment.clone();
    restorer.context.bus =
        Arc::new(FaultyBus::<dyn Bus>::new(fixture.context.bus.clone(), environment, faults));
    let agent = tokio::spawn(restorer.run(serving(vec![fixture.folder.path().to_path_buf()])));
    send(&fixture, &order).await;
    assert!(matches!(done(&fixture, &order).await, JobOutcome::Restored { .. }));
    let left = sessions(&fixture).await;
    assert!(left.len() == 1 && left[0].ended.is_some(), "{left:?}");
    agent.abort();
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_given_up_names_what_it_leaves() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, LEN)).await;
    let (undo, kept) = kept(&fixture).await;
    let order = job(&fixture, &root, &fixture.path("x"));
    let order = order.asking(More { undo: Some(undo), ..More::default() });
    let session = left(&fixture, order.job, vec![undo]).await;
    delivered(&fixture, &order, 200).await;
    let agent = tokio::spawn(fixture.restorer().run(serving(vec![fixture.folder.path().to_path_buf()])));
    let JobOutcome::Failed { why, .. } = done(&fixture, &order).await else { panic!("it was restored") };
    assert!(why.contains("201 times"), "{why}");
    assert!(why.contains(&format!("lvkeep undo {}", kept.slot.session)), "{why}");
    assert!(why.contains(&format!("lvkeep cancel {session}")), "{why}");
    assert_eq!(sessions(&fixture).await.len(), 1, "what stood there stays protected");
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}

/// Its confirmation failed each time, so that it came again.
#[tokio::test(start_paused = true)]
async fn a_job_that_is_given_up_after_it_ended_is_told_as_it_ended() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, LEN)).await;
    let order = job(&fixture, &root, &fixture.path("x"));
    let outcome = JobOutcome::Failed { kind: FailureKind::Revoked, why: "told already".into() };
    sessions::note_end(&fixture.repository, order.job, "v", "host", &outcome).await.unwrap();
    left(&fixture, order.job, vec![JobId::from_bytes([5; 16])]).await;
    delivered(&fixture, &order, 200).await;
    let agent = tokio::spawn(fixture.restorer().run(serving(vec![fixture.folder.path().to_path_buf()])));
    assert_eq!(done(&fixture, &order).await, outcome);
    let left = sessions(&fixture).await;
    assert!(left.len() == 1 && left[0].ended.is_some(), "{left:?}");
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}
