//! The restorer as an agent: what it takes, what it refuses, what it tells.

use std::path::Path;
use std::time::Duration;

use agent::sessions::OpenSession;
use agent::{Queue, Topic, forgetting, sessions};
use schema::epoch::{Awaited, Epoch};
use schema::messages::{
    About, FailureKind, JobDone, JobOutcome, Message, Preparation, RestoreJob, RestoreWaits, StopRestore,
};
use schema::root::Root;
use schema::session::{Session, SessionKind};
use schema::{JobId, Object, names};

use super::fixture::{CHUNK, Fixture, noise, serving};
use crate::claim::Claim;
use crate::{Serving, Target};

const LEN: usize = 1 << 20;

async fn send(fixture: &Fixture, root: &Root, target: &Path, force: bool) -> JobId {
    let job = fixture.context.environment.job_id();
    send_as(job, fixture, root, target, force).await
}

async fn send_as(job: JobId, fixture: &Fixture, root: &Root, target: &Path, force: bool) -> JobId {
    let target = target.to_str().unwrap().to_owned();
    let preparation = Preparation::default();
    let payload = RestoreJob {
        job,
        slot: root.slot,
        target,
        force,
        preparation,
        full: false,
        untracked: false,
        donor: None,
        fetches: None,
        command: None,
        more: None,
    };
    let message = Message::new(&About::nothing(), &payload);
    fixture.context.bus.publish(&Queue::restores("host"), message).await.unwrap();
    job
}

async fn done(fixture: &Fixture, job: JobId) -> JobOutcome {
    let mut deliveries = fixture.context.bus.consume(&Queue::done(job), 1).await.unwrap();
    let delivery = deliveries.next().await.unwrap();
    let done: JobDone = delivery.message.read().unwrap();
    delivery.ticket.done().await.unwrap();
    assert_eq!(done.job, job);
    done.outcome
}

#[tokio::test(start_paused = true)]
async fn a_job_is_done_and_told() {
    let fixture = Fixture::encrypted().await;
    let content = noise(1, LEN);
    let root = fixture.volume(&content).await;
    let allowed = fixture.path("allowed");
    std::fs::create_dir(&allowed).unwrap();
    let agent = tokio::spawn(fixture.restorer().run(serving(vec![allowed.clone()])));
    let job = send(&fixture, &root, &allowed.join("disk"), false).await;
    let outcome = done(&fixture, job).await;
    assert!(
        matches!(outcome, JobOutcome::Restored { written, zeroed: 0, fetched: 1.., .. } if written == LEN as u64)
    );
    assert!(std::fs::read(allowed.join("disk")).unwrap() == content);
    // A job that is delivered again is told again, and not done again.
    let payload = RestoreJob {
        job,
        slot: root.slot,
        target: allowed.join("disk").to_str().unwrap().to_owned(),
        force: false,
        preparation: Preparation::default(),
        full: false,
        untracked: false,
        donor: None,
        fetches: None,
        command: None,
        more: None,
    };
    let message = Message::new(&About::nothing(), &payload);
    fixture.context.bus.publish(&Queue::restores("host"), message).await.unwrap();
    assert_eq!(done(&fixture, job).await, outcome);
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn targets_outside_the_allowed_folders_are_refused() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, LEN)).await;
    let (allowed, outside) = (fixture.path("allowed"), fixture.path("outside"));
    std::fs::create_dir(&allowed).unwrap();
    std::fs::create_dir(&outside).unwrap();
    std::fs::create_dir(fixture.path("allowed-not")).unwrap();
    std::os::unix::fs::symlink(&outside, allowed.join("way-out")).unwrap();
    std::fs::write(outside.join("file"), b"").unwrap();
    std::os::unix::fs::symlink(outside.join("file"), allowed.join("file")).unwrap();
    std::os::unix::fs::symlink(outside.join("absent"), allowed.join("dangling")).unwrap();
    let agent = tokio::spawn(fixture.restorer().run(serving(vec![allowed.clone()])));
    for target in [
        outside.join("x"),
        allowed.join("../outside/x"),
        allowed.join("way-out/x"),
        allowed.join("file"),
        allowed.join("dangling"),
        fixture.path("allowed-not").join("x"),
        allowed.clone(),
        "relative".into(),
        "/dev/null".into(),
    ] {
        for force in [false, true] {
            let job = send(&fixture, &root, &target, force).await;
            let JobOutcome::Failed { kind, why } = done(&fixture, job).await else {
                panic!("{} was restored to", target.display());
            };
            assert_eq!(kind, FailureKind::Refused, "{why}");
            assert!(why.contains(target.to_str().unwrap()), "{why}");
        }
    }
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(std::fs::metadata(outside.join("file")).unwrap().len(), 0);
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_agent_without_allowed_folders_refuses_everything() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, LEN)).await;
    let agent = tokio::spawn(fixture.restorer().run(serving(Vec::new())));
    let job = send(&fixture, &root, &fixture.path("x"), true).await;
    let JobOutcome::Failed { kind, why } = done(&fixture, job).await else { panic!("it was restored") };
    assert_eq!(kind, FailureKind::Refused);
    assert!(why.contains("configuration allows"), "{why}");
    assert!(!fixture.path("x").exists());
    let mut gone = root.clone();
    gone.slot.session = fixture.context.environment.session_id();
    let job = send(&fixture, &gone, &fixture.path("x"), true).await;
    let JobOutcome::Failed { why, .. } = done(&fixture, job).await else { panic!("it was restored") };
    assert!(why.contains("there is no snapshot"), "{why}");
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stopped_agent_gives_its_job_back() {
    let fixture = Fixture::plain().await;
    let content = noise(1, LEN);
    let root = fixture.volume(&content).await;
    let folder = fixture.folder.path().to_path_buf();
    let path = fixture.path("x");
    // Without an answer of the index, the restore waits; it is stopped meanwhile.
    let bus = fixture.context.bus.clone();
    let copies = std::mem::take(&mut *fixture.table.lock().unwrap());
    let agent = tokio::spawn(fixture.restorer().run(serving(vec![folder.clone()])));
    let job = send(&fixture, &root, &path, false).await;
    let stop = fixture.context.stop.clone();
    while fixture.sessions().await.is_empty() {
        tokio::task::yield_now().await;
    }
    stop.raise();
    agent.await.unwrap().unwrap();
    // What protects the snapshot stays until the job is over.
    assert_eq!(fixture.sessions().await.len(), 1);
    *fixture.table.lock().unwrap() = copies;
    let mut again = fixture;
    again.context.stop = agent::Stop::default();
    let agent = tokio::spawn(again.restorer().run(serving(vec![folder])));
    assert!(matches!(done(&again, job).await, JobOutcome::Restored { .. }));
    assert!(std::fs::read(&path).unwrap() == content);
    while !again.sessions().await.is_empty() {
        tokio::task::yield_now().await;
    }
    again.context.stop.raise();
    agent.await.unwrap().unwrap();
    drop(bus);
}

/// A file as an agent leaves it that is killed in the middle of a job: half of it, its mark, and a session.
async fn killed(fixture: &Fixture, job: JobId, content: &[u8], path: &Path) {
    let file = std::fs::File::create(path).unwrap();
    let claim = Claim::of(job);
    claim.lock(&file, path).unwrap();
    claim.begin(&file, path);
    std::os::unix::fs::FileExt::write_all_at(&file, &content[..LEN / 2], 0).unwrap();
    file.set_len(content.len() as u64).unwrap();
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
        undo: Vec::new(),
    };
    OpenSession::begin(fixture.repository.clone(), session).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_job_goes_on_with_what_a_killed_agent_left() {
    let fixture = Fixture::plain().await;
    let content = noise(1, LEN);
    let root = fixture.volume(&content).await;
    let (path, job) = (fixture.path("x"), fixture.context.environment.job_id());
    killed(&fixture, job, &content, &path).await;
    let folder = fixture.folder.path().to_path_buf();
    let agent = tokio::spawn(fixture.restorer().run(serving(vec![folder])));
    let other = send(&fixture, &root, &path, false).await;
    let JobOutcome::Failed { why, .. } = done(&fixture, other).await else { panic!("another job's file") };
    assert!(why.contains("has content"), "{why}");

    send_as(job, &fixture, &root, &path, false).await;
    let JobOutcome::Restored { written, kept, .. } = done(&fixture, job).await else {
        panic!("its own file")
    };
    assert_eq!((written, kept), (LEN as u64 / 2, LEN as u64 / 2));
    assert!(std::fs::read(&path).unwrap() == content);
    while !fixture.sessions().await.is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(!Claim::of(job).has_begun(&path), "the job is over");
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}

/// The session of the killed agent protects it still.
#[tokio::test(start_paused = true)]
async fn a_job_goes_on_although_its_snapshot_was_forgotten_since() {
    let fixture = Fixture::plain().await;
    let content = noise(1, LEN);
    let root = fixture.volume(&content).await;
    let (path, job) = (fixture.path("x"), fixture.context.environment.job_id());
    killed(&fixture, job, &content, &path).await;
    forgetting::forget(&fixture.repository, &root, "a test").await.unwrap();
    let agent = tokio::spawn(fixture.restorer().run(serving(vec![fixture.folder.path().to_path_buf()])));
    let fresh = send(&fixture, &root, &fixture.path("y"), false).await;
    let JobOutcome::Failed { why, .. } = done(&fixture, fresh).await else { panic!("it was restored") };
    let id = root.slot.session;
    assert!(why.contains("was forgotten") && why.contains(&format!("lvkeep unforget {id}")), "{why}");
    assert!(why.contains("an earlier one"), "{why}");
    assert!(!fixture.path("y").exists());

    send_as(job, &fixture, &root, &path, false).await;
    let outcome = done(&fixture, job).await;
    assert!(matches!(outcome, JobOutcome::Restored { .. }), "{outcome:?}");
    assert!(std::fs::read(&path).unwrap() == content);
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}

/// Also when it was updated, and not killed.
#[tokio::test(start_paused = true)]
async fn a_job_whose_agent_was_stopped_goes_on_although_its_snapshot_was_forgotten_since() {
    let mut fixture = Fixture::plain().await;
    let content = noise(1, LEN);
    let root = fixture.volume(&content).await;
    let path = fixture.path("x");
    std::fs::write(&path, vec![0xee; LEN]).unwrap();
    let allowed = vec![fixture.folder.path().to_path_buf()];
    fixture.store_is_open.send_replace(false);
    let agent = tokio::spawn(fixture.restorer().run(serving(allowed.clone())));
    let job = send(&fixture, &root, &path, true).await;
    while fixture.sessions().await.is_empty() {
        tokio::task::yield_now().await;
    }
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
    fixture.store_is_open.send_replace(true);
    forgetting::forget(&fixture.repository, &root, "a test").await.unwrap();
    fixture.context.stop = agent::Stop::default();
    let agent = tokio::spawn(fixture.restorer().run(serving(allowed)));
    let outcome = done(&fixture, job).await;
    assert!(matches!(outcome, JobOutcome::Restored { .. }), "{outcome:?}");
    assert!(std::fs::read(&path).unwrap() == content);
    while !fixture.sessions().await.is_empty() {
        tokio::task::yield_now().await;
    }
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}

/// The killed agent had begun after the snapshot was forgotten, and a collection sweeps it already.
#[tokio::test(start_paused = true)]
async fn a_job_does_not_go_on_when_a_collection_does_not_wait_for_it() {
    let fixture = Fixture::plain().await;
    let content = noise(1, LEN);
    let root = fixture.volume(&content).await;
    forgetting::forget(&fixture.repository, &root, "a test").await.unwrap();
    let forgotten = vec![root.slot];
    let epoch = Epoch { number: 1, condemned: Vec::new(), forgotten };
    for is_awaited in [false, true] {
        let (path, job) = (fixture.path("x"), fixture.context.environment.job_id());
        killed(&fixture, job, &content, &path).await;
        let sessions = sessions::of_job(&fixture.repository, job).await.unwrap();
        let sessions = sessions.iter().filter(|_| is_awaited).map(|session| session.id).collect();
        let awaited = Awaited { number: 1, sessions };
        put(&fixture, &names::epoch(1), &epoch).await;
        put(&fixture, &names::awaited(1), &awaited).await;
        let agent = tokio::spawn(fixture.restorer().run(serving(vec![fixture.folder.path().to_path_buf()])));
        send_as(job, &fixture, &root, &path, false).await;
        let outcome = done(&fixture, job).await;
        assert_eq!(matches!(outcome, JobOutcome::Restored { .. }), is_awaited, "{outcome:?}");
        agent.abort();
    }
}

/// The collection stopped before it listed the sessions that it waits for, of which the killed agent's may be one.
#[tokio::test(start_paused = true)]
async fn a_job_is_tried_again_until_a_collection_has_said_for_whom_it_waits() {
    let fixture = Fixture::plain().await;
    let content = noise(1, LEN);
    let root = fixture.volume(&content).await;
    forgetting::forget(&fixture.repository, &root, "a test").await.unwrap();
    let epoch = Epoch { number: 1, condemned: Vec::new(), forgotten: vec![root.slot] };
    put(&fixture, &names::epoch(1), &epoch).await;
    let agent = tokio::spawn(fixture.restorer().run(serving(vec![fixture.folder.path().to_path_buf()])));
    let (path, job) = (fixture.path("y"), fixture.context.environment.job_id());
    killed(&fixture, job, &content, &path).await;
    send_as(job, &fixture, &root, &path, false).await;
    let JobOutcome::Failed { why, .. } = done(&fixture, job).await else { panic!("it was restored") };
    let retried = fixture.context.counters.messages_retried.get();
    assert!(retried > 10, "{why}");
    assert!(why.contains("nobody knows") && why.contains("an earlier one"), "{why}");

    let (path, job) = (fixture.path("x"), fixture.context.environment.job_id());
    killed(&fixture, job, &content, &path).await;
    let earlier = sessions::of_job(&fixture.repository, job).await.unwrap()[0].id;
    send_as(job, &fixture, &root, &path, false).await;
    while fixture.context.counters.messages_retried.get() < retried + 10 {
        fixture.context.environment.sleep(Duration::from_millis(10)).await;
    }
    put(&fixture, &names::awaited(1), &Awaited { number: 1, sessions: vec![earlier] }).await;
    let outcome = done(&fixture, job).await;
    assert!(matches!(outcome, JobOutcome::Restored { .. }), "{outcome:?}");
    assert!(std::fs::read(&path).unwrap() == content);
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}

async fn put(fixture: &Fixture, key: &str, object: &impl Object) {
    let bytes = fixture.repository.seal(key, object).unwrap();
    fixture.repository.store.put(key, bytes).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_a_killed_agent_left_stays_and_is_named_when_the_job_fails() {
    let fixture = Fixture::plain().await;
    let content = noise(1, LEN);
    let root = fixture.volume(&content).await;
    let (path, job) = (fixture.path("x"), fixture.context.environment.job_id());
    killed(&fixture, job, &content, &path).await;
    for (_, copy) in fixture.data_copies() {
        fixture.overwrite(copy.pack, Vec::new()).await;
    }
    let agent = tokio::spawn(fixture.restorer().run(serving(vec![fixture.folder.path().to_path_buf()])));
    send_as(job, &fixture, &root, &path, false).await;
    let JobOutcome::Failed { kind, why } = done(&fixture, job).await else { panic!("it was restored") };
    assert!(kind == FailureKind::Damaged && why.contains("do not use it"), "{why}");
    assert!(std::fs::read(&path).unwrap()[..LEN / 2] == content[..LEN / 2]);
    while Claim::of(job).has_begun(&path) {
        tokio::task::yield_now().await;
    }
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_job_waits_for_another_restore_of_its_target() {
    let fixture = Fixture::plain().await;
    let content = noise(1, LEN);
    let root = fixture.volume(&content).await;
    let path = fixture.path("x");
    std::fs::write(&path, b"before").unwrap();
    let slow = std::fs::File::open(&path).unwrap();
    Claim::default().lock(&slow, &path).unwrap();
    let agent = tokio::spawn(fixture.restorer().run(serving(vec![fixture.folder.path().to_path_buf()])));
    let job = fixture.context.environment.job_id();
    let mut told = fixture.context.bus.subscribe(&Topic::progress(job)).await.unwrap();
    send_as(job, &fixture, &root, &path, true).await;
    let waits = loop {
        if let Ok(waits) = told.next().await.unwrap().read::<RestoreWaits>() {
            break waits;
        }
    };
    assert!(waits.job == job && waits.why.contains("another restore"), "{waits:?}");
    // However long: nobody is told that it ended, and it comes to no other agent.
    fixture.context.environment.sleep(Duration::from_secs(3600)).await;
    assert_eq!(fixture.context.counters.messages_retried.get(), 0);
    assert_eq!(std::fs::read(&path).unwrap(), b"before");
    drop(slow);
    assert!(matches!(done(&fixture, job).await, JobOutcome::Restored { .. }));
    assert!(std::fs::read(&path).unwrap() == content);
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_agent_takes_as_many_jobs_at_once_as_it_may() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, 4 * CHUNK)).await;
    // While the store does not answer, restores wait.
    fixture.store_is_open.send_replace(false);
    let allowed = vec![fixture.folder.path().to_path_buf()];
    let agent = tokio::spawn(fixture.restorer().run(Serving { at_once: 2, ..serving(allowed) }));
    let mut jobs = Vec::new();
    for name in ["a", "b", "c"] {
        jobs.push(send(&fixture, &root, &fixture.path(name), false).await);
    }
    while fixture.sessions().await.len() < 2 {
        tokio::task::yield_now().await;
    }
    assert!(!fixture.path("c").exists());
    fixture.store_is_open.send_replace(true);
    for job in jobs {
        assert!(matches!(done(&fixture, job).await, JobOutcome::Restored { .. }));
    }
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}

/// Delivered again to the same agent, it neither begins a second time nor loses what stops it.
#[tokio::test(start_paused = true)]
async fn a_job_that_comes_again_while_it_is_being_done_is_done_once() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, 4 * CHUNK)).await;
    let allowed = vec![fixture.folder.path().to_path_buf()];
    let agent = tokio::spawn(fixture.restorer().run(Serving { at_once: 2, ..serving(allowed) }));
    fixture.store_is_open.send_replace(false);
    let job = send(&fixture, &root, &fixture.path("x"), false).await;
    while fixture.sessions().await.is_empty() {
        tokio::task::yield_now().await;
    }
    send_as(job, &fixture, &root, &fixture.path("x"), false).await;
    fixture.context.environment.sleep(Duration::from_secs(10)).await;
    assert_eq!(fixture.sessions().await.len(), 1);
    let stop = Message::new(&About::nothing(), &StopRestore { job });
    fixture.context.bus.broadcast(&Topic::stop_restore(), stop).await.unwrap();
    let JobOutcome::Failed { kind, .. } = done(&fixture, job).await else { panic!("it was restored") };
    assert_eq!(kind, FailureKind::Revoked);
    fixture.store_is_open.send_replace(true);
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
    assert!(!fixture.path("x").exists());
}

/// Its agent died, and somebody restored to the same file by force; a guest runs from that by now.
#[tokio::test(start_paused = true)]
async fn a_file_that_somebody_else_restored_to_is_no_longer_a_dead_jobs() {
    let fixture = Fixture::plain().await;
    let content = noise(1, LEN);
    let root = fixture.volume(&content).await;
    let (path, job) = (fixture.path("x"), fixture.context.environment.job_id());
    killed(&fixture, job, &content, &path).await;
    let target = Target::new(&path, true);
    fixture.restorer().restore(root.clone(), target, |_| ()).await.unwrap();
    std::fs::write(&path, b"of the guest").unwrap();

    let agent = tokio::spawn(fixture.restorer().run(serving(vec![fixture.folder.path().to_path_buf()])));
    send_as(job, &fixture, &root, &path, false).await;
    let JobOutcome::Failed { why, .. } = done(&fixture, job).await else { panic!("it was overwritten") };
    assert!(why.contains("has content"), "{why}");
    assert_eq!(std::fs::read(&path).unwrap(), b"of the guest");
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}
