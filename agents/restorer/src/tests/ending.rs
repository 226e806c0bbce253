//! How the end of a job becomes known, and what protects it until then.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent::faults::bus::{BusFaults, FaultyBus};
use agent::sessions::{self, OpenSession};
use agent::{Bus, Queue, Topic};
use schema::messages::{
    About, BackupJob, FailureKind, JobDone, JobOutcome, Message, More, RestoreJob, StopRestore,
};
use schema::root::Root;
use schema::session::{Session, SessionKind};
use schema::{JobId, SessionId};

use super::asked::{done, job, keep, sealed, send};
use super::fixture::{Fixture, noise, serving};
use super::places::{BY_MAPPER, Volume};
use crate::claim::Claim;
use crate::hold;

const LEN: usize = 1 << 20;

/// What an attempt that died has left.
pub async fn left(fixture: &Fixture, job: JobId, undo: Vec<JobId>) -> SessionId {
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

pub async fn sessions(fixture: &Fixture) -> Vec<Session> {
    sessions::list(&fixture.repository).await.unwrap()
}

/// A backup of what stood on a target.
pub async fn kept(fixture: &Fixture) -> (JobId, Root) {
    let root = fixture.volume(&noise(2, LEN)).await;
    let root = Root { job: fixture.context.environment.job_id(), ..root };
    let bytes = fixture.repository.seal(&root.slot.snapshot(), &root).unwrap();
    fixture.repository.store.put(&root.slot.snapshot(), bytes).await.unwrap();
    (root.job, root)
}

/// Has a job delivered so often in vain.
pub async fn delivered(fixture: &Fixture, job: &RestoreJob, times: usize) {
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
    left(&fixture, order.job, Vec::new()).await;
    delivered(&fixture, &order, 200).await;
    let agent = tokio::spawn(fixture.restorer().run(serving(vec![fixture.folder.path().to_path_buf()])));
    let JobOutcome::Failed { why, .. } = done(&fixture, &order).await else { panic!("it was restored") };
    assert!(why.contains("201 times"), "{why}");
    assert!(why.contains(&format!("lvkeep undo {}", kept.slot.session)), "{why}");
    assert!(why.contains(&format!("lvkeep cancel {session}")), "{why}");
    while sessions(&fixture).await.len() > 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(sessions(&fixture).await[0].id, session, "what stood there stays protected, and nothing else");
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}

/// Its confirmation failed each time, so that it came again.
#[tokio::test(start_paused = true)]
async fn a_job_that_is_given_up_after_it_ended_is_told_as_it_ended() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, LEN)).await;
    let order = job(&fixture, &root, &fixture.path("x"));
    let outcome = JobOutcome::Failed { kind: FailureKind::Device, why: "told already".into() };
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

/// Whoever noted that nobody is to begin it died before it saw that somebody had.
#[tokio::test(start_paused = true)]
async fn a_job_that_was_stopped_after_it_was_begun_keeps_its_undo() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, LEN)).await;
    for is_given_up in [false, true] {
        let (undo, kept) = kept(&fixture).await;
        let path = fixture.path("x");
        std::fs::write(&path, b"half").unwrap();
        let order = RestoreJob { force: true, ..job(&fixture, &root, &path) };
        let order = order.asking(More { undo: Some(undo), ..More::default() });
        let outcome = JobOutcome::Failed { kind: FailureKind::Revoked, why: "before it began".into() };
        let note = sessions::note_end(&fixture.repository, order.job, "v", "host", &outcome).await.unwrap();
        let session = left(&fixture, order.job, vec![undo]).await;
        left(&fixture, order.job, Vec::new()).await;
        match is_given_up {
            true => delivered(&fixture, &order, 200).await,
            false => send(&fixture, &order).await,
        }
        let agent = tokio::spawn(fixture.restorer().run(serving(vec![fixture.folder.path().to_path_buf()])));
        let JobOutcome::Failed { kind, why } = done(&fixture, &order).await else { panic!("restored") };
        assert!(kind == FailureKind::Revoked && why.contains("may have overwritten a part"), "{why}");
        assert!(why.contains(&format!("lvkeep undo {}", kept.slot.session)), "{why}");
        assert!(why.contains(&format!("lvkeep cancel {session}")), "{why}");
        let expected = if is_given_up { 2 } else { 1 };
        while sessions(&fixture).await.len() > expected {
            tokio::task::yield_now().await;
        }
        let left = sessions(&fixture).await;
        assert!(left.iter().any(|one| one.id == session), "{left:?}");
        assert!(!is_given_up || left.iter().any(|one| one.id == note), "{left:?}");
        assert_eq!(std::fs::read(&path).unwrap(), b"half");
        agent.abort();
        let _ = agent.await;
        for one in left {
            sessions::revoke(&fixture.repository, &one).await.unwrap();
        }
    }
}

/// A message server whose memory was put back may say of a job that it has lost that it was settled. Whoever noted that
/// it was stopped may have known as little of who had begun it.
#[tokio::test(start_paused = true)]
async fn what_an_undo_needs_stays_where_no_note_says_that_the_job_is_over() {
    let revoked = JobOutcome::Failed { kind: FailureKind::Revoked, why: "before it began".into() };
    let failed = JobOutcome::Failed { kind: FailureKind::Device, why: "it is full".into() };
    for (noted, stays) in [(None, true), (Some(revoked), true), (Some(failed), false)] {
        let fixture = Fixture::plain().await;
        let root = fixture.volume(&noise(1, LEN)).await;
        let mut volume = Volume::of(&fixture, LEN);
        volume.retired = Some((fixture.context.bus.clone(), Queue::restores("host")));
        let order = job(&fixture, &root, Path::new("vg/lv"));
        volume.noted = noted.clone().map(|outcome| (fixture.repository.clone(), order.job, outcome));
        let session = left(&fixture, order.job, vec![JobId::from_bytes([5; 16])]).await;
        left(&fixture, order.job, Vec::new()).await;
        let agent = tokio::spawn(volume.restorer(&fixture).run(serving(vec!["vg/*".into()])));
        send(&fixture, &order).await;
        let expected = usize::from(stays) + usize::from(noted.is_some());
        while volume.steps().is_empty() || sessions(&fixture).await.len() > expected {
            tokio::task::yield_now().await;
        }
        fixture.context.stop.raise();
        agent.await.unwrap().unwrap();
        let left = sessions(&fixture).await;
        assert!(left.len() == expected, "{noted:?}: {left:?}");
        assert_eq!(left.iter().any(|one| one.id == session), stays, "{noted:?}: {left:?}");
    }
}

/// By whichever of its names it was to be restored to.
#[tokio::test(start_paused = true)]
async fn a_volume_that_somebody_writes_to_is_not_told_to_be_stopped() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, LEN)).await;
    let stopped = JobOutcome::Failed { kind: FailureKind::Revoked, why: "before it began".into() };
    let minute = Duration::from_secs(60);
    for (name, is_given_up) in [("vg/lv", false), (BY_MAPPER, false), (BY_MAPPER, true)] {
        let volume = Volume::of(&fixture, LEN);
        let order = job(&fixture, &root, Path::new(name));
        sessions::note_end(&fixture.repository, order.job, "v", "host", &stopped).await.unwrap();
        let session = left(&fixture, order.job, Vec::new()).await;
        let writing = std::fs::File::options().write(true).open(&volume.device).unwrap();
        Claim::default().lock(&writing, &volume.device).unwrap();
        match is_given_up {
            true => delivered(&fixture, &order, 200).await,
            false => send(&fixture, &order).await,
        }
        let agent = tokio::spawn(volume.restorer(&fixture).run(serving(vec!["vg/*".into()])));
        let told = fixture.context.environment.timeout(minute, done(&fixture, &order)).await;
        assert_eq!(told, None, "{name}, is given up: {is_given_up}");
        assert!(sessions(&fixture).await.iter().any(|one| one.id == session), "it protects who writes");
        drop(writing);
        let JobOutcome::Failed { kind, .. } = done(&fixture, &order).await else { panic!("restored") };
        assert_eq!(kind, FailureKind::Revoked);
        agent.abort();
        let _ = agent.await;
        for one in sessions(&fixture).await {
            sessions::revoke(&fixture.repository, &one).await.unwrap();
        }
    }
}

/// It came again while another agent did it, which ends it while this one keeps what stands there. A guest has written
/// since: to a file whose job could be settled, and to one whose job could not.
#[tokio::test(start_paused = true)]
async fn a_job_that_another_agent_has_ended_meanwhile_overwrites_nothing() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, LEN)).await;
    let agent = tokio::spawn(fixture.restorer().run(serving(vec![fixture.folder.path().to_path_buf()])));
    let mut jobs = fixture.context.bus.consume(&Queue::jobs(), 1).await.unwrap();
    for is_settled in [false, true] {
        let path = fixture.path(&format!("x-{is_settled}"));
        std::fs::write(&path, b"of the guest").unwrap();
        let undo = Some(fixture.context.environment.job_id());
        let order = RestoreJob { force: true, ..job(&fixture, &root, &path) };
        let order = order.asking(More { undo, ..More::default() });
        send(&fixture, &order).await;
        let delivery = jobs.next().await.unwrap();
        let outcome = JobOutcome::Failed { kind: FailureKind::Revoked, why: "told already".into() };
        match is_settled {
            true => fixture.context.bus.retire(&Queue::restores("host")).await.unwrap(),
            false => {
                let (job, repository) = (order.job, &fixture.repository);
                sessions::note_end(repository, job, "v", "host", &outcome).await.unwrap();
            }
        }
        let asked: BackupJob = delivery.message.read().unwrap();
        let told = JobDone { job: asked.job, outcome: sealed(&keep(&fixture, &asked).await) };
        let told = Message::new(&About::nothing(), &told);
        fixture.context.bus.publish(&Queue::done(asked.job), told).await.unwrap();
        delivery.ticket.done().await.unwrap();
        let minute = Duration::from_secs(60);
        let told = fixture.context.environment.timeout(minute, done(&fixture, &order)).await;
        assert_eq!(told, (!is_settled).then_some(outcome), "whoever ended it tells it");
        assert_eq!(std::fs::read(&path).unwrap(), b"of the guest");
        while hold::is_locked(&path) || !sessions(&fixture).await.is_empty() {
            tokio::task::yield_now().await;
        }
    }
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_left_alone_when_its_job_was_ended_while_it_was_looked_for() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, LEN)).await;
    let retired = Some((fixture.context.bus.clone(), Queue::restores("host")));
    let mut volume = Volume::of(&fixture, LEN);
    volume.retired = retired;
    let agent = tokio::spawn(volume.restorer(&fixture).run(serving(vec!["vg/*".into()])));
    send(&fixture, &job(&fixture, &root, Path::new("vg/lv"))).await;
    while volume.steps().is_empty() || !fixture.sessions().await.is_empty() {
        tokio::task::yield_now().await;
    }
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
    assert_eq!(volume.steps(), ["make"], "neither readied nor removed");
    assert!(std::fs::read(&volume.device).unwrap() == vec![0xee; LEN]);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_waits_for_another_restore_can_be_stopped() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, LEN)).await;
    let path = fixture.path("x");
    std::fs::write(&path, b"of the other").unwrap();
    let other = std::fs::File::open(&path).unwrap();
    Claim::default().lock(&other, &path).unwrap();
    let agent = tokio::spawn(fixture.restorer().run(serving(vec![fixture.folder.path().to_path_buf()])));
    let minute = Duration::from_secs(60);
    for has_begun in [false, true] {
        let order = RestoreJob { force: true, ..job(&fixture, &root, &path) };
        if has_begun {
            // Who helped an attempt that died may be the one that is waited for.
            left(&fixture, order.job, Vec::new()).await;
        }
        send(&fixture, &order).await;
        fixture.context.environment.sleep(minute).await;
        let stop = Message::new(&About::nothing(), &StopRestore { job: order.job });
        fixture.context.bus.broadcast(&Topic::stop_restore(), stop).await.unwrap();
        let told = fixture.context.environment.timeout(minute, done(&fixture, &order)).await;
        assert_eq!(told.is_none(), has_begun, "{told:?}");
        if let Some(JobOutcome::Failed { kind, why }) = &told {
            assert!(*kind == FailureKind::Revoked && why.contains("stopped, as asked, before"), "{why}");
        }
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"of the other");
    agent.abort();
}
