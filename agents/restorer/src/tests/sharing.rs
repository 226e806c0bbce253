//! One volume, several agents: all take part, and nobody writes when it is over.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use agent::counters::Counters;
use agent::{Audit, Changes, Context, Queue, Service, Topic, forgetting, marks, sessions};
use schema::messages::{
    About, AskSpan, AskTarget, FailureKind, JobDone, JobOutcome, Message, More, Payload, Preparation,
    RestoreJob, SharedTarget, Span, SpanNow, StopRestore, TargetShared,
};
use schema::root::Root;
use schema::{Domain, JobId, SessionId};
use tokio::task::JoinHandle;

use super::asked::Keeper;
use super::fixture::{CHUNK, Fixture, noise, serving};
use super::places::Volume;
use super::tracking;
use crate::{Restorer, Settings, hold};

pub(super) const MIB: usize = 1 << 20;
const LEAF: usize = 64 * MIB;
/// Spans of a leaf each: the owner begins two, and others find two more.
pub(super) const LEAVES: usize = 4;

/// A volume with a MiB of content in every leaf.
pub(super) fn content() -> Vec<u8> {
    let mut content = vec![0; LEAVES * LEAF];
    for leaf in 0..LEAVES {
        content[leaf * LEAF..leaf * LEAF + MIB].copy_from_slice(&noise(leaf as u64 + 1, MIB));
    }
    content
}

/// Agents of one host, each with counters of its own.
pub(super) struct Agents {
    counters: Vec<Arc<Counters>>,
    running: Vec<JoinHandle<()>>,
}

impl Agents {
    pub fn start(fixture: &Fixture, count: usize) -> Self {
        let allowed = vec![fixture.folder.path().to_path_buf()];
        Self::of((0..count).map(|_| fixture.restorer()), allowed)
    }

    fn of(restorers: impl Iterator<Item = Restorer>, allowed: Vec<PathBuf>) -> Self {
        let (mut counters, mut running) = (Vec::new(), Vec::new());
        for mut restorer in restorers {
            let own: Arc<Counters> = Arc::default();
            counters.push(own.clone());
            restorer.context = Context { counters: own, ..restorer.context };
            let serving = serving(allowed.clone());
            running.push(tokio::spawn(async move { restorer.run(serving).await.unwrap() }));
        }
        Self { counters, running }
    }

    /// Bytes that each has written.
    pub fn written(&self) -> Vec<u64> {
        self.counters.iter().map(|counters| counters.bytes_restored.get()).collect()
    }

    pub async fn stop(self, fixture: &Fixture) {
        fixture.context.stop.raise();
        for agent in self.running {
            agent.await.unwrap();
        }
    }
}

async fn send(fixture: &Fixture, root: &Root, target: &Path, force: bool) -> JobId {
    send_more(fixture, root, target, force, More::default()).await
}

async fn send_more(fixture: &Fixture, root: &Root, target: &Path, force: bool, more: More) -> JobId {
    let job = fixture.context.environment.job_id();
    send_as(job, fixture, root, target, force, more).await;
    job
}

async fn send_as(job: JobId, fixture: &Fixture, root: &Root, target: &Path, force: bool, more: More) {
    let (slot, target) = (root.slot, target.to_str().unwrap().to_owned());
    let order = RestoreJob {
        job,
        slot,
        target,
        force,
        preparation: Preparation::default(),
        full: false,
        untracked: false,
        donor: None,
        fetches: None,
        command: None,
        more: None,
    };
    let message = Message::new(&About::nothing(), &order.asking(more));
    fixture.context.bus.publish(&Queue::restores("host"), message).await.unwrap();
}

/// How the job ends, should it end within this time.
pub(super) async fn ended(fixture: &Fixture, job: JobId, limit: Duration) -> Option<JobOutcome> {
    let mut deliveries = fixture.context.bus.consume(&Queue::done(job), 1).await.unwrap();
    let delivery = fixture.context.environment.timeout(limit, deliveries.next()).await?.unwrap();
    let done: JobDone = delivery.message.read().unwrap();
    delivery.ticket.done().await.unwrap();
    Some(done.outcome)
}

pub(super) async fn done(fixture: &Fixture, job: JobId) -> JobOutcome {
    ended(fixture, job, Duration::from_secs(3600)).await.expect("an end")
}

/// Waits until so many reads of the store wait.
async fn waiting(fixture: &Fixture, reads: u64) {
    while fixture.reads.load(Ordering::Relaxed) < reads {
        fixture.context.environment.sleep(Duration::from_millis(10)).await;
    }
}

/// The owner has begun two windows, and each waits for the top of the map; one who helps waits for it, too.
async fn until_helped(fixture: &Fixture, before: u64) {
    waiting(fixture, before + 3).await;
    fixture.store_is_open.send_replace(true);
}

/// One who helps by hand.
struct Hand<'a> {
    fixture: &'a Fixture,
    session: SessionId,
}

impl<'a> Hand<'a> {
    /// Waits until somebody wants help.
    async fn called(fixture: &'a Fixture) -> Self {
        let mut told = fixture.context.bus.subscribe(&Topic::shared("host")).await.unwrap();
        let TargetShared { session } = told.next().await.unwrap().read().unwrap();
        Self { fixture, session }
    }

    async fn request<T: Payload, A: Payload>(&self, payload: &T) -> Option<A> {
        let message = Message::new(&About::nothing(), payload);
        let (bus, limit) = (&self.fixture.context.bus, Duration::from_secs(1));
        let answer = bus.request(&Service::restore(self.session), message, limit).await.ok()?;
        Some(answer.read().unwrap())
    }

    async fn target(&self) -> SharedTarget {
        self.request(&AskTarget { session: self.session }).await.expect("an answer")
    }

    async fn ask(&self, now: SpanNow) -> Option<(u64, u64)> {
        let span: Span = self.request(&AskSpan { worker: 1, now }).await?;
        span.range
    }
}

fn opened(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

#[tokio::test(start_paused = true)]
async fn agents_of_one_host_share_a_large_volume() {
    let fixture = Fixture::encrypted().await;
    let content = content();
    let root = fixture.volume(&content).await;
    let agents = Agents::start(&fixture, 2);
    let path = fixture.path("x");
    for is_there in [false, true] {
        if is_there {
            let stale = opened(&path);
            for leaf in 0..LEAVES {
                let at = (leaf * LEAF + MIB / 2) as u64;
                std::os::unix::fs::FileExt::write_all_at(&stale, &[0xee; MIB], at).unwrap();
            }
        }
        let before = agents.written();
        fixture.store_is_open.send_replace(false);
        let reads = fixture.reads.load(Ordering::Relaxed);
        let job = send(&fixture, &root, &path, is_there).await;
        until_helped(&fixture, reads).await;
        let JobOutcome::Restored { written, kept, zeroed, .. } = done(&fixture, job).await else {
            panic!("it failed")
        };
        assert!(std::fs::read(&path).unwrap() == content, "is there: {is_there}");
        assert_eq!(written + kept + zeroed, content.len() as u64);
        assert_eq!(kept, if is_there { (LEAVES * MIB / 2) as u64 } else { 0 });
        let by: Vec<u64> = agents.written().iter().zip(before).map(|(now, before)| now - before).collect();
        assert!(by.iter().all(|bytes| *bytes > 0), "{by:?}");
        assert_eq!(by.iter().sum::<u64>(), written);
    }
    while !fixture.sessions().await.is_empty() {
        tokio::task::yield_now().await;
    }
    agents.stop(&fixture).await;
}

#[tokio::test(start_paused = true)]
async fn what_one_who_helped_leaves_is_restored_all_the_same() {
    let fixture = Fixture::plain().await;
    let content = content();
    let root = fixture.volume(&content).await;
    let agents = Agents::start(&fixture, 1);
    let path = fixture.path("x");
    fixture.store_is_open.send_replace(false);
    let job = send(&fixture, &root, &path, false).await;
    let hand = Hand::called(&fixture).await;
    let target = hand.target().await;
    assert_eq!((target.slot, Path::new(&target.path), target.is_zero), (root.slot, path.as_path(), true));
    let last = ((LEAVES - 1) * LEAF) as u64;
    assert_eq!(hand.ask(SpanNow::Idle).await, Some((last, LEAF as u64)));
    // Half of it is written, and no word comes any more.
    std::os::unix::fs::FileExt::write_all_at(&opened(&path), &content[last as usize..][..MIB / 2], last)
        .unwrap();
    fixture.store_is_open.send_replace(true);
    let JobOutcome::Restored { written, .. } = done(&fixture, job).await else { panic!("it failed") };
    assert_eq!(written, (LEAVES * MIB) as u64);
    assert!(std::fs::read(&path).unwrap() == content);
    agents.stop(&fixture).await;
}

#[tokio::test(start_paused = true)]
async fn the_end_waits_for_whoever_may_still_write() {
    let fixture = Fixture::plain().await;
    let content = content();
    let root = fixture.volume(&content).await;
    let agents = Agents::start(&fixture, 1);
    let path = fixture.path("x");
    fixture.store_is_open.send_replace(false);
    let job = send(&fixture, &root, &path, false).await;
    let hand = Hand::called(&fixture).await;
    let hung = opened(&path);
    hold::join(&hung, &path).unwrap();
    let (offset, _) = hand.ask(SpanNow::Idle).await.expect("a span");
    fixture.store_is_open.send_replace(true);
    let minute = Duration::from_secs(60);
    assert_eq!(ended(&fixture, job, minute).await, None);
    assert!(std::fs::read(&path).unwrap() == content, "somebody else has done it meanwhile");
    let working = SpanNow::Working { offset, done: 0 };
    assert_eq!((hand.ask(working).await, hand.ask(SpanNow::Idle).await), (None, None));
    drop(hung);
    assert!(matches!(done(&fixture, job).await, JobOutcome::Restored { .. }));

    // Whoever hears of it late finds nobody to ask, and writes nothing.
    let guest = vec![0xab; content.len()];
    std::fs::write(&path, &guest).unwrap();
    fixture.context.environment.sleep(minute).await;
    let late = Message::new(&About::nothing(), &TargetShared { session: hand.session });
    fixture.context.bus.broadcast(&Topic::shared("host"), late).await.unwrap();
    fixture.context.environment.sleep(minute).await;
    assert_eq!(hand.ask(SpanNow::Idle).await, None);
    assert!(std::fs::read(&path).unwrap() == guest);
    agents.stop(&fixture).await;
}

#[tokio::test(start_paused = true)]
async fn damage_in_a_shared_span_fails_the_job_by_name() {
    let fixture = Fixture::plain().await;
    let content = content();
    let root = fixture.volume(&content).await;
    let offset = (LEAVES - 1) * LEAF + 3 * CHUNK;
    let lost = fixture.repository.key.chunk_ids().id(Domain::Data, &content[offset..offset + CHUNK]);
    fixture.table.lock().unwrap().remove(&lost).expect("a chunk");
    let agents = Agents::start(&fixture, 2);
    let path = fixture.path("x");
    fixture.store_is_open.send_replace(false);
    let reads = fixture.reads.load(Ordering::Relaxed);
    let job = send(&fixture, &root, &path, false).await;
    until_helped(&fixture, reads).await;
    let JobOutcome::Failed { kind, why } = done(&fixture, job).await else { panic!("it was restored") };
    assert_eq!(kind, FailureKind::Damaged, "{why}");
    assert!(why.contains(&format!("offset {offset}")) && why.contains(&lost.to_string()), "{why}");
    assert!(
        path.exists() && why.contains("do not use it"),
        "half a volume is not taken for a whole one: {why}"
    );
    agents.stop(&fixture).await;
}

/// Their spans are the owner's again, who has written nothing itself.
#[tokio::test(start_paused = true)]
async fn what_others_have_written_before_they_gave_up_is_left_and_said() {
    let fixture = Fixture::plain().await;
    let content = content();
    let root = fixture.volume(&content).await;
    fixture.table.lock().unwrap().retain(|id, _| id.domain().unwrap() == Domain::Structure);
    let agents = Agents::start(&fixture, 1);
    let path = fixture.path("x");
    for has_failed in [true, false] {
        fixture.store_is_open.send_replace(false);
        let job = send(&fixture, &root, &path, false).await;
        let hand = Hand::called(&fixture).await;
        let (offset, _) = hand.ask(SpanNow::Idle).await.expect("a span");
        let bytes = &content[offset as usize..][..CHUNK];
        std::os::unix::fs::FileExt::write_all_at(&opened(&path), bytes, offset).unwrap();
        match has_failed {
            true => assert_eq!(hand.ask(SpanNow::Failed { offset, why: "no".into() }).await, None),
            // Nobody speaks of it any more.
            false => fixture.context.environment.sleep(Duration::from_secs(60)).await,
        }
        fixture.store_is_open.send_replace(true);
        let JobOutcome::Failed { kind, why } = done(&fixture, job).await else { panic!("it was restored") };
        assert!(kind == FailureKind::Damaged && why.contains("do not use it"), "{has_failed}: {why}");
        std::fs::remove_file(&path).expect("what was written stays");
    }
    agents.stop(&fixture).await;
}

/// The owner has written nothing itself, and knows only that somebody could.
#[tokio::test(start_paused = true)]
async fn what_was_kept_stays_held_when_one_who_helped_may_have_written() {
    let fixture = Arc::new(Fixture::plain().await);
    let _keeper = Keeper::start(&fixture, |_| ());
    // Without a zero, since those need nothing of the store.
    let content: Vec<u8> =
        (0..LEAVES as u64).flat_map(|n| noise(n + 1, CHUNK).repeat(LEAF / CHUNK)).collect();
    let root = fixture.volume(&content).await;
    fixture.table.lock().unwrap().retain(|id, _| id.domain().unwrap() == Domain::Structure);
    let agents = Agents::start(&fixture, 1);
    let path = fixture.path("x");
    let before = File::create(&path).unwrap();
    before.set_len(content.len() as u64).unwrap();
    drop(before);
    for has_lent in [false, true] {
        let undo = fixture.context.environment.job_id();
        let more = More { undo: Some(undo), ..More::default() };
        fixture.store_is_open.send_replace(!has_lent);
        let job = send_more(&fixture, &root, &path, true, more).await;
        if has_lent {
            let hand = Hand::called(&fixture).await;
            let (offset, _) = hand.ask(SpanNow::Idle).await.expect("a span");
            let bytes = &content[offset as usize..][..CHUNK];
            std::os::unix::fs::FileExt::write_all_at(&opened(&path), bytes, offset).unwrap();
            assert_eq!(hand.ask(SpanNow::Failed { offset, why: "no".into() }).await, None);
            fixture.store_is_open.send_replace(true);
        }
        let JobOutcome::Failed { kind, why } = done(&fixture, job).await else { panic!("it was restored") };
        assert_eq!(kind, FailureKind::Damaged, "{why}");
        assert_eq!(why.contains("is forgotten by no rule"), has_lent, "{why}");
        let held = marks::all(&fixture.repository, None).await.unwrap();
        assert_eq!(held.values().filter(|marks| marks.is_held()).count(), usize::from(has_lent));
    }
    assert_eq!(agents.written(), [0]);
    agents.stop(&fixture).await;
}

#[tokio::test(start_paused = true)]
async fn a_logical_volume_is_readied_and_ended_by_its_owner_alone() {
    let fixture = Fixture::plain().await;
    let content = content();
    let root = fixture.volume(&content).await;
    let volume = Volume::of(&fixture, content.len());
    let restorers = (0..2).map(|_| volume.restorer(&fixture));
    let agents = Agents::of(restorers, vec!["vg/*".into()]);
    fixture.store_is_open.send_replace(false);
    let reads = fixture.reads.load(Ordering::Relaxed);
    let job = send(&fixture, &root, Path::new("vg/lv"), false).await;
    until_helped(&fixture, reads).await;
    assert!(matches!(done(&fixture, job).await, JobOutcome::Restored { .. }));
    assert!(std::fs::read(&volume.device).unwrap() == content);
    assert!(agents.written().iter().all(|bytes| *bytes > 0), "{:?}", agents.written());
    agents.stop(&fixture).await;
    assert_eq!(volume.steps(), ["make", "ready ee", "end true", "over"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_of_a_job_holds_for_what_others_restore() {
    let fixture = Arc::new(Fixture::plain().await);
    let keeper = Keeper::start(&fixture, |_| ());
    let content = content();
    let root = fixture.volume(&content).await;
    let hole = (LEAVES - 1) * LEAF + 3 * CHUNK;
    let lost = fixture.repository.key.chunk_ids().id(Domain::Data, &content[hole..hole + CHUNK]);
    fixture.table.lock().unwrap().remove(&lost).expect("a chunk");
    let agents = Agents::start(&fixture, 2);
    let path = fixture.path("x");
    std::fs::write(&path, vec![0xee; content.len()]).unwrap();
    let range = CHUNK / 2..content.len() - 5;
    let undo = fixture.context.environment.job_id();
    let more = More {
        range: Some((range.start as u64, range.end as u64)),
        keep_going: true,
        undo: Some(undo),
        ..More::default()
    };
    fixture.store_is_open.send_replace(false);
    let reads = fixture.reads.load(Ordering::Relaxed);
    let job = send_more(&fixture, &root, &path, true, more).await;
    until_helped(&fixture, reads).await;
    assert_eq!(keeper.jobs(), [undo], "before anything was handed out");
    let JobOutcome::Restored { lost, holes, undo: kept, .. } = done(&fixture, job).await else {
        panic!("it failed")
    };
    assert!(kept.is_some());
    assert_eq!((lost, holes.len(), holes[0].offset), (CHUNK as u64, 1, hole as u64));
    let mut expected = vec![0xee; content.len()];
    expected[range.clone()].copy_from_slice(&content[range]);
    expected[hole..hole + CHUNK].fill(0);
    assert!(std::fs::read(&path).unwrap() == expected);
    agents.stop(&fixture).await;
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_stopped_ends_when_nobody_writes_any_more() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&content()).await;
    let agents = Agents::start(&fixture, 1);
    let path = fixture.path("x");
    fixture.store_is_open.send_replace(false);
    let job = send(&fixture, &root, &path, false).await;
    let hand = Hand::called(&fixture).await;
    let writing = opened(&path);
    hold::join(&writing, &path).unwrap();
    let (offset, _) = hand.ask(SpanNow::Idle).await.expect("a span");
    let stop = Message::new(&About::nothing(), &StopRestore { job });
    fixture.context.bus.broadcast(&Topic::stop_restore(), stop).await.unwrap();
    assert_eq!(ended(&fixture, job, Duration::from_secs(60)).await, None);
    assert_eq!(hand.ask(SpanNow::Working { offset, done: 0 }).await, None, "it is told to stop");
    assert!(path.exists());
    drop(writing);
    let JobOutcome::Failed { kind, why } = done(&fixture, job).await else { panic!("it was restored") };
    assert!(kind == FailureKind::Revoked && why.contains("stopped, as asked"), "{why}");
    assert!(path.exists() && why.contains("do not use it"), "who had a span may have written: {why}");
    agents.stop(&fixture).await;
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_agent_died_is_not_over_while_somebody_who_helped_writes() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&content()).await;
    let agents = Agents::start(&fixture, 1);
    let path = fixture.path("x");
    std::fs::write(&path, b"half of it").unwrap();
    let stopped = JobOutcome::Failed { kind: FailureKind::Revoked, why: "stopped, as asked".into() };
    for is_stopped in [true, false] {
        let helping = opened(&path);
        hold::join(&helping, &path).unwrap();
        let job = fixture.context.environment.job_id();
        let mut root = root.clone();
        match is_stopped {
            true => drop(sessions::note_end(&fixture.repository, job, "v", "host", &stopped).await.unwrap()),
            // It cannot even be begun.
            false => root.slot.session = fixture.context.environment.session_id(),
        }
        send_as(job, &fixture, &root, &path, true, More::default()).await;
        assert_eq!(ended(&fixture, job, Duration::from_secs(60)).await, None, "is stopped: {is_stopped}");
        drop(helping);
        let JobOutcome::Failed { why, .. } = done(&fixture, job).await else { panic!("it was restored") };
        assert!(why.contains(if is_stopped { "stopped, as asked" } else { "there is no snapshot" }), "{why}");
        assert_eq!(std::fs::read(&path).unwrap(), b"half of it");
    }
    agents.stop(&fixture).await;
}

/// It had most of it by then; its snapshot was forgotten meanwhile.
#[tokio::test(start_paused = true)]
async fn a_job_whose_target_was_taken_away_goes_on_although_its_snapshot_was_forgotten() {
    let fixture = Fixture::plain().await;
    let content = content();
    let root = fixture.volume(&content).await;
    let agents = Agents::start(&fixture, 1);
    let path = fixture.path("x");
    fixture.store_is_open.send_replace(false);
    let job = send(&fixture, &root, &path, false).await;
    Hand::called(&fixture).await;
    forgetting::forget(&fixture.repository, &root, "a test").await.unwrap();
    // As another restore does that came between.
    hold::unmark(&opened(&path));
    fixture.store_is_open.send_replace(true);
    let outcome = done(&fixture, job).await;
    assert!(matches!(outcome, JobOutcome::Restored { .. }), "{outcome:?}");
    assert_eq!(
        fixture.context.counters.messages_retried.get() + agents.counters[0].messages_retried.get(),
        1
    );
    assert!(std::fs::read(&path).unwrap() == content);
    while !fixture.sessions().await.is_empty() {
        tokio::task::yield_now().await;
    }
    agents.stop(&fixture).await;
}

#[tokio::test(start_paused = true)]
async fn where_only_what_changed_is_read_its_owner_does_so_alone() {
    let fixture = Fixture::plain().await;
    let mut old = tracking::content();
    old.resize(3 * LEAF, 0);
    let base = fixture.volume(&old).await;
    let mut now = old.clone();
    now[..CHUNK].fill(0xcc);
    let changed = 0..CHUNK as u64;
    let mut told = fixture.context.bus.subscribe(&Topic::shared("host")).await.unwrap();
    let mut volume = tracking::Volume::of(&fixture, &now, &base, std::slice::from_ref(&changed));
    for is_known in [true, false] {
        if !is_known {
            volume.changes = Changes::unknown("it was full");
            std::fs::write(fixture.path("device"), &now).unwrap();
        }
        let settings = Settings { audit: Audit::OFF, ..fixture.settings() };
        let restorer = fixture.restorer_with(settings).with_targets(Arc::new(volume.clone()));
        let agents = Agents::of(std::iter::once(restorer), vec!["vg/*".into()]);
        fixture.store_is_open.send_replace(false);
        let job = send(&fixture, &base, Path::new("vg/lv"), false).await;
        let rang = fixture.context.environment.timeout(Duration::from_secs(60), told.next()).await;
        assert_eq!(rang.is_none(), is_known);
        fixture.store_is_open.send_replace(true);
        let JobOutcome::Restored { written, tracked, .. } = done(&fixture, job).await else {
            panic!("it failed")
        };
        assert_eq!((written, tracked > 0), (CHUNK as u64, is_known));
        assert!(std::fs::read(fixture.path("device")).unwrap() == old);
        for agent in agents.running {
            agent.abort();
        }
    }
}
