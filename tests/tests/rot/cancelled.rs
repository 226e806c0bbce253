//! Checks of agents that somebody takes back, and such as cannot be read any more.

use std::time::Duration;

use agent::{Bus, Queue, sessions};
use checker::jobs::{self, TakenBack};
use schema::check::{Check, Content, End, Worker};
use schema::messages::FailureKind;
use schema::{JobId, names};
use tests::rot::{Agents, Rot};

use super::agents::{SLOW, ask, checked, damaged, when};
use super::{flipped, victim};

/// Waits until agents have nothing to take.
async fn taken(agents: &Agents<'_>) {
    while agents.bus.bytes_in(&Queue::checks()) > 0 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn read(rot: &Rot, job: JobId) -> Check {
    jobs::read(&rot.repository, job).await.expect("a read").expect("a check")
}

async fn take_back(rot: &Rot, job: JobId) -> Option<TakenBack> {
    jobs::take_back(&rot.repository, job, "a test").await.expect("an answer")
}

fn is_cancelled(check: &Check) -> bool {
    let Some(End::Failed { kind: FailureKind::Revoked, why, ended_ms: Some(_) }) = &check.end else {
        return false;
    };
    why == "cancelled by a test" && check.worker.is_none()
}

#[tokio::test]
async fn a_check_that_is_taken_back_ends_and_the_next_one_goes_on_behind_it() {
    let victim = victim().await;
    let (rot, ends) = damaged(&victim).await;
    let agents = rot.agents().await.expect("a bus");
    let agent = agents.start(SLOW);
    let job = ask(&rot, &agents, Content::Percent { percent: 100, behind: None }).await;
    let reached = when(&rot, job, |check| check.reached.done > 0).await.reached;
    assert_eq!(take_back(&rot, job).await, Some(TakenBack::Ends));
    taken(&agents).await;
    tokio::time::sleep(Duration::from_secs(999)).await;
    let check = read(&rot, job).await;
    assert!(is_cancelled(&check), "{check:?}");
    assert_eq!((check.reached.behind, check.reached.found.len()), (Some(ends[0]), 1));
    assert!(check.reached.done >= reached.done);
    assert!(sessions::list(&rot.repository).await.expect("a listing").is_empty());
    assert_eq!((agent.context.counters.checks.get(), agent.context.counters.checks_failed.get()), (0, 0));
    let listed = jobs::list(&rot.repository).await.expect("checks");
    assert_eq!(jobs::next_behind(&listed), Some(ends[0]), "nothing of it is read again");
    // Neither another message nor another word changes what it is.
    jobs::send(&agents.bus, job).await.expect("it is sent");
    taken(&agents).await;
    let end = check.end.clone().expect("an end");
    assert_eq!(take_back(&rot, job).await, Some(TakenBack::HadEnded(end)));
    assert_eq!(read(&rot, job).await, check);
}

#[tokio::test]
async fn a_check_that_has_ended_stays_as_it_is() {
    let victim = victim().await;
    let (rot, _) = damaged(&victim).await;
    let agents = rot.agents().await.expect("a bus");
    let _agent = agents.start(None);
    let job = ask(&rot, &agents, Content::All).await;
    checked(&rot, job).await;
    let check = read(&rot, job).await;
    let end = check.end.clone().expect("an end");
    assert_eq!(take_back(&rot, job).await, Some(TakenBack::HadEnded(end)));
    assert_eq!(read(&rot, job).await, check);
    assert_eq!(take_back(&rot, JobId::from_bytes([7; 16])).await, None);
}

/// The last one to write wins: an agent may write how far it is when it is cancelled.
#[tokio::test]
async fn who_writes_how_far_it_is_at_that_moment_undoes_nothing() {
    let victim = victim().await;
    let (rot, _) = damaged(&victim).await;
    let agents = rot.agents().await.expect("a bus");
    let job = ask(&rot, &agents, Content::All).await;
    let mut check = read(&rot, job).await;
    let session = rot.repository.environment().session_id();
    let (host, begun_ms) = ("other".to_owned(), 0);
    check.worker = Some(Worker { session, host, begun_ms, beat: 1, is_paused: false });
    check.reached.done = 5;
    let writes = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(is_cancelled(&read(&rot, job).await));
        rot.put(&names::check(job), &check).await.expect("it is stored");
    };
    let (taken, ()) = tokio::join!(take_back(&rot, job), writes);
    assert_eq!(taken, Some(TakenBack::Ends));
    let ended = read(&rot, job).await;
    assert!(is_cancelled(&ended), "{ended:?}");
    assert_eq!(ended.reached, check.reached, "how far it came is not lost");
}

/// A check whose object is damaged while an agent is at it.
#[tokio::test]
async fn a_check_that_cannot_be_read_is_told_of_and_can_be_removed() {
    let victim = victim().await;
    let (rot, _) = damaged(&victim).await;
    let agents = rot.agents().await.expect("a bus");
    let agent = agents.start(SLOW);
    let job = ask(&rot, &agents, Content::All).await;
    when(&rot, job, |check| check.reached.done > 0).await;
    let (key, store) = (names::check(job), &rot.repository.store);
    let bytes = store.get(&key).await.expect("a read").expect("an object");
    store.put(&key, flipped(&bytes, bytes.len() / 2)).await.expect("it is stored");
    taken(&agents).await;
    assert_eq!(agent.context.counters.checks_failed.get(), 1, "it is counted");
    assert!(sessions::list(&rot.repository).await.expect("a listing").is_empty());
    let why = jobs::read(&rot.repository, job).await.expect_err("it is damaged");
    let remedy = format!("`lvkeep cancel {job}`");
    assert!(why.kind == FailureKind::Damaged && why.why.contains(&key) && why.why.contains(&remedy), "{why}");
    let [(listed, Err(_))] = &jobs::list_all(&rot.repository).await.expect("checks")[..] else {
        panic!("it is not listed")
    };
    assert_eq!(*listed, job);
    // Whoever is told of it has nothing to do, and it comes to nobody again, however often it came before.
    jobs::send(&agents.bus, job).await.expect("it is sent");
    taken(&agents).await;
    agent.context.stop.raise();
    agent.task.await.expect("it ends").expect("well");
    jobs::send(&agents.bus, job).await.expect("it is sent");
    let mut deliveries = agents.bus.consume(&Queue::checks(), 1 << 10).await.expect("a queue");
    for _ in 0..24 {
        deliveries.next().await.expect("a message").ticket.again(Duration::ZERO).await.expect("again");
    }
    drop(deliveries);
    let _other = agents.start(None);
    taken(&agents).await;
    for gone in [bytes.slice(..9), bytes::Bytes::new()] {
        store.put(&key, gone).await.expect("it is stored");
        let Some(TakenBack::Removed(_)) = take_back(&rot, job).await else { panic!("it is not removed") };
        assert!(store.head(&key).await.expect("an answer").is_none());
        assert_eq!(take_back(&rot, job).await, None);
    }
}
