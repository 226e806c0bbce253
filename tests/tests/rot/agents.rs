//! Checks as jobs of agents: others' work goes first, and whoever dies or is stopped is gone on after.

use std::time::Duration;

use agent::{Bus, Queue, sessions};
use checker::jobs;
use schema::check::{Check, Content, End, Report, Worker};
use schema::messages::FailureKind;
use schema::{Domain, JobId, PackId, names};
use tests::rot::{Agents, Objects, Rot};

use super::{ALL, Victim, flipped, victim};

/// Bytes per second of an agent that reads one pack, and the next one hours later.
pub const SLOW: Option<u64> = Some(1);

/// The packs of content, in order.
pub fn packs(objects: &Objects) -> Vec<PackId> {
    let of_content = |(key, bytes): (&String, &bytes::Bytes)| {
        let pack = names::parse_pack(key).ok()?;
        let (header, _) = schema::pack::parse_pack(bytes).ok()?;
        (header.kind == Domain::Data).then_some(pack)
    };
    let mut packs: Vec<PackId> = objects.iter().filter_map(of_content).collect();
    packs.sort_unstable();
    packs
}

/// A repository whose first and last pack of content are damaged, and those packs. From now on time is virtual.
pub async fn damaged(victim: &Victim) -> (Rot, [PackId; 2]) {
    let mut objects = victim.objects.clone();
    let all = packs(&objects);
    let ends = [all[0], all[all.len() - 1]];
    assert!(all.len() > 2, "{all:?}");
    for pack in ends {
        let bytes = objects.get_mut(&names::pack(pack)).expect("the pack");
        let (_, footer) = schema::pack::parse_pack(bytes).expect("a pack");
        let first = footer.entries[0];
        *bytes = flipped(bytes, (first.offset + first.len / 2) as usize);
    }
    let rot = victim.rot.with(&objects).await.expect("a repository");
    tokio::time::pause();
    (rot, ends)
}

pub async fn ask(rot: &Rot, agents: &Agents<'_>, content: Content) -> JobId {
    jobs::ask(&rot.repository, &agents.bus, content, "a test").await.expect("a job")
}

/// Waits until this is true of a check.
pub async fn when(rot: &Rot, job: JobId, is_true: impl Fn(&Check) -> bool) -> Check {
    for _ in 0..100_000 {
        if let Some(check) = jobs::read(&rot.repository, job).await.expect("a read").filter(&is_true) {
            return check;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    panic!("it does not happen");
}

pub async fn checked(rot: &Rot, job: JobId) -> Report {
    match when(rot, job, |check| check.end.is_some()).await.end {
        Some(End::Checked(report)) => *report,
        other => panic!("{other:?}"),
    }
}

/// Everything was read once, and what is damaged is named with all that it concerns.
fn is_whole(report: &Report, ends: &[PackId]) {
    assert_eq!(report.packs_read, report.packs, "{report:?}");
    for pack in ends {
        assert!(report.found.iter().any(|found| found.key == names::pack(*pack)), "{pack}: {report:?}");
    }
    let mut volumes: Vec<_> =
        report.snapshots_damaged.iter().filter_map(|one| one.volume.as_deref()).collect();
    volumes.dedup();
    assert_eq!(volumes.len(), 2, "{report:?}");
    assert!(report.snapshots_damaged.iter().all(|one| !one.lost.is_empty() && one.bytes > 0), "{report:?}");
    assert!(report.unrecorded.is_none(), "{report:?}");
}

#[tokio::test]
async fn an_agent_that_dies_in_a_check_is_gone_on_after() {
    let victim = victim().await;
    let (rot, ends) = damaged(&victim).await;
    let agents = rot.agents().await.expect("a bus");
    let dies = agents.start(SLOW);
    let job = ask(&rot, &agents, Content::All).await;
    let reached = when(&rot, job, |check| check.reached.done > 0).await.reached;
    assert_eq!((reached.packs, reached.found.len()), (1, 1), "{reached:?}");
    dies.task.abort();
    assert!(dies.task.await.is_err());
    let other = agents.start(None);
    let report = checked(&rot, job).await;
    is_whole(&report, &ends);
    assert!(report.bytes_read > reached.done);
    assert_eq!(other.context.counters.checks_damaged.get(), 1);
    // What it protected while it read is over, too, and so is the job.
    assert!(sessions::list(&rot.repository).await.expect("a listing").is_empty());
    let there = jobs::read(&rot.repository, job).await.expect("a read");
    jobs::send(&agents.bus, job).await.expect("it is sent");
    while agents.bus.bytes_in(&Queue::checks()) > 0 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(jobs::read(&rot.repository, job).await.expect("a read"), there);
    assert_eq!(other.context.counters.checks.get(), 1);
}

#[tokio::test]
async fn an_agent_that_is_stopped_gives_its_check_back() {
    let victim = victim().await;
    let (rot, ends) = damaged(&victim).await;
    let agents = rot.agents().await.expect("a bus");
    let stopped = agents.start(SLOW);
    let job = ask(&rot, &agents, Content::Percent { percent: 100, behind: Some(ends[0]) }).await;
    let reached = when(&rot, job, |check| check.reached.done > 0).await.reached;
    stopped.context.stop.raise();
    stopped.task.await.expect("it ends").expect("well");
    let check = jobs::read(&rot.repository, job).await.expect("a read").expect("a check");
    assert_eq!((check.worker, check.reached), (None, reached));
    let _other = agents.start(None);
    is_whole(&checked(&rot, job).await, &ends);
    let next = jobs::next_behind(&jobs::list(&rot.repository).await.expect("checks"));
    assert_eq!(next, Some(ends[0]), "it went round");
}

#[tokio::test]
async fn other_work_of_the_process_goes_first() {
    let victim = victim().await;
    let (rot, ends) = damaged(&victim).await;
    let agents = rot.agents().await.expect("a bus");
    let agent = agents.start(Some(1000));
    let counters = &agent.context.counters;
    counters.messages_taken.add(1);
    let job = ask(&rot, &agents, Content::All).await;
    tokio::time::sleep(Duration::from_secs(9999)).await;
    let check = jobs::read(&rot.repository, job).await.expect("a read").expect("a check");
    assert_eq!((check.worker, check.tries), (None, 0), "nobody has begun it");
    counters.messages_handled.add(1);
    when(&rot, job, |check| check.reached.done > 0).await;
    counters.messages_taken.add(1);
    let is_paused = |check: &Check| check.worker.as_ref().is_some_and(|worker| worker.is_paused);
    let paused = when(&rot, job, is_paused).await;
    tokio::time::sleep(Duration::from_secs(99)).await;
    let later = jobs::read(&rot.repository, job).await.expect("a read").expect("a check");
    assert!(is_paused(&later) && later.worker != paused.worker, "it is alive: {later:?}");
    assert_eq!(later.reached, paused.reached);
    counters.messages_handled.add(1);
    is_whole(&checked(&rot, job).await, &ends);
}

#[tokio::test]
async fn a_check_that_waits_for_long_is_for_whoever_has_time() {
    let victim = victim().await;
    let (rot, ends) = damaged(&victim).await;
    let agents = rot.agents().await.expect("a bus");
    let busy = agents.start(Some(1000));
    let job = ask(&rot, &agents, Content::All).await;
    let reached = when(&rot, job, |check| check.reached.done > 0).await.reached;
    busy.context.counters.messages_taken.add(1);
    let free = when(&rot, job, |check| check.worker.is_none()).await;
    assert!(free.end.is_none() && free.tries == 0 && free.reached.done >= reached.done, "{free:?}");
    let idle = agents.start(None);
    is_whole(&checked(&rot, job).await, &ends);
    assert_eq!((busy.context.counters.checks.get(), idle.context.counters.checks.get()), (0, 1));
}

#[tokio::test]
async fn a_check_that_comes_twice_is_done_once() {
    let victim = victim().await;
    let (rot, ends) = damaged(&victim).await;
    let agents = rot.agents().await.expect("a bus");
    let (first, second) = (agents.start(Some(1000)), agents.start(Some(1000)));
    let job = ask(&rot, &agents, Content::All).await;
    jobs::send(&agents.bus, job).await.expect("it is sent");
    is_whole(&checked(&rot, job).await, &ends);
    while agents.bus.bytes_in(&Queue::checks()) > 0 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let done = [first, second].map(|agent| agent.context.counters.checks.get());
    assert_eq!(done.iter().sum::<u64>(), 1, "{done:?}");
}

#[tokio::test]
async fn a_check_that_comes_no_further_fails_by_name() {
    let victim = victim().await;
    let (rot, _) = damaged(&victim).await;
    let agents = rot.agents().await.expect("a bus");
    let job = ask(&rot, &agents, Content::None).await;
    let check = jobs::read(&rot.repository, job).await.expect("a read").expect("a check");
    rot.put(&names::check(job), &Check { tries: 20, ..check }).await.expect("it is stored");
    let _agent = agents.start(None);
    let check = when(&rot, job, |check| check.end.is_some()).await;
    let Some(End::Failed { kind: FailureKind::Other, why, ended_ms: Some(_) }) = check.end else {
        panic!("{check:?}")
    };
    assert!(why.contains("no further"), "{why}");
}

#[tokio::test]
async fn a_message_that_came_too_often_ends_no_check_that_somebody_is_at() {
    let victim = victim().await;
    let (rot, ends) = damaged(&victim).await;
    let agents = rot.agents().await.expect("a bus");
    let job = ask(&rot, &agents, Content::All).await;
    let check = jobs::read(&rot.repository, job).await.expect("a read").expect("a check");
    let session = rot.repository.environment().session_id();
    let worker = Worker { session, host: "other".into(), begun_ms: 0, beat: 1, is_paused: false };
    rot.put(&names::check(job), &Check { worker: Some(worker), ..check }).await.expect("it is stored");
    let mut deliveries = agents.bus.consume(&Queue::checks(), 1 << 10).await.expect("a queue");
    for _ in 0..12 {
        deliveries.next().await.expect("a message").ticket.again(Duration::ZERO).await.expect("again");
    }
    drop(deliveries);
    let agent = agents.start(None);
    is_whole(&checked(&rot, job).await, &ends);
    assert_eq!(agent.context.counters.checks_failed.get(), 0);
}

#[tokio::test]
async fn a_pack_that_cannot_be_read_any_more_at_its_turn_is_damaged() {
    let victim = victim().await;
    let (rot, [_, last]) = damaged(&victim).await;
    let agents = rot.agents().await.expect("a bus");
    let _agent = agents.start(Some(1000));
    let job = ask(&rot, &agents, Content::All).await;
    when(&rot, job, |check| check.reached.done > 0).await;
    let key = names::pack(last);
    let zeroes = bytes::Bytes::from(vec![0; 5000]);
    rot.repository.store.put(&key, zeroes.clone()).await.expect("it is stored");
    let report = checked(&rot, job).await;
    let found = report.found.iter().find(|found| found.key == key).expect("it is found");
    assert!(found.why.contains("nothing in it can be read"), "{found:?}");
    assert!(report.recorded > 0, "{report:?}");
    // Whom it concerns is the same as when it had been so from the start.
    tokio::time::resume();
    let mut objects = victim.objects.clone();
    objects.insert(key.clone(), zeroes);
    let alone = victim.rot.with(&objects).await.expect("a repository").check(ALL).await.expect("a report");
    assert!(!alone.damaged.is_empty());
    for expected in &alone.damaged {
        let mut of_it = report.snapshots_damaged.iter().filter(|damaged| damaged.slot == expected.slot);
        let damaged = of_it.next().unwrap_or_else(|| panic!("{expected:?}: {report:?}"));
        assert_eq!(damaged.volume, expected.volume);
        let is_lost = |range: &std::ops::Range<u64>| {
            damaged.lost.iter().any(|lost| lost.0 <= range.start && range.end <= lost.1)
        };
        assert!(expected.lost.iter().all(is_lost), "{expected:?}: {damaged:?}");
    }
    // It is told of until nobody lacks it any more.
    let again = rot.check(ALL).await.expect("a report");
    assert!(again.objects.iter().any(|one| one.key == key), "{again:?}");
    rot.backup("vm/bad", &victim.path).await.expect("a backup");
    let healed = rot.check(ALL).await.expect("a report");
    let is_told = healed.objects.iter().any(|one| one.key == key);
    let mut problems = healed.damaged.iter().flat_map(|damaged| &damaged.problems);
    let lacks = problems.any(|why| why.contains(&key) || why.contains("is in no pack"));
    assert_eq!(is_told, lacks, "{healed:?}");
}
