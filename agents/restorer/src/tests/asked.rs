//! Jobs that are more than a whole restore, come again when they are over, or are not wanted any more.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use agent::forgetting::{self, Forgot};
use agent::{Protection, Queue, ReadBy, Stop, Topic, marks, sessions};
use schema::JobId;
use schema::messages::{
    About, BackupJob, FailureKind, JobDone, JobOutcome, Message, More, NEEDS_NEWER_AGENT, Preparation,
    RestoreJob, StopRestore,
};
use schema::names::{Slot, UNDO_VOLUMES};
use schema::root::{Root, Statistics, Tracking};
use schema::session::SessionKind;

use super::fixture::{CHUNK, Fixture, noise, serving};
use crate::{Target, keeping, unfinished};

const LEN: usize = 1 << 20;

pub fn job(fixture: &Fixture, root: &Root, target: &Path) -> RestoreJob {
    RestoreJob {
        job: fixture.context.environment.job_id(),
        slot: root.slot,
        target: target.to_str().unwrap().to_owned(),
        force: false,
        preparation: Preparation::default(),
        full: false,
        untracked: false,
        donor: None,
        fetches: None,
        command: None,
        more: None,
    }
}

pub async fn send(fixture: &Fixture, job: &RestoreJob) {
    let message = Message::new(&About::nothing(), job);
    fixture.context.bus.publish(&Queue::restores("host"), message).await.unwrap();
}

pub async fn done(fixture: &Fixture, job: &RestoreJob) -> JobOutcome {
    let mut deliveries = fixture.context.bus.consume(&Queue::done(job.job), 1).await.unwrap();
    let delivery = deliveries.next().await.unwrap();
    delivery.ticket.done().await.unwrap();
    delivery.message.read::<JobDone>().unwrap().outcome
}

/// Who conducts and reads: keeps each source as it is, and then does `afterwards` to it.
pub struct Keeper {
    kept: Arc<Mutex<Vec<BackupJob>>>,
}

impl Keeper {
    pub fn start(fixture: &Arc<Fixture>, afterwards: impl Fn(&Path) + Send + Sync + 'static) -> Self {
        let kept: Arc<Mutex<Vec<BackupJob>>> = Arc::default();
        let (fixture, list) = (fixture.clone(), kept.clone());
        tokio::spawn(async move {
            let mut jobs = fixture.context.bus.consume(&Queue::jobs(), 1).await.unwrap();
            loop {
                let delivery = jobs.next().await.unwrap();
                let job: BackupJob = delivery.message.read().unwrap();
                let root = keep(&fixture, &job).await;
                afterwards(Path::new(&job.source));
                list.lock().unwrap().push(job.clone());
                let done = JobDone { job: job.job, outcome: sealed(&root) };
                let message = Message::new(&About::nothing(), &done);
                fixture.context.bus.publish(&Queue::done(job.job), message).await.unwrap();
                delivery.ticket.done().await.unwrap();
            }
        });
        Self { kept }
    }

    pub fn jobs(&self) -> Vec<JobId> {
        self.kept.lock().unwrap().iter().map(|job| job.job).collect()
    }
}

/// A snapshot of what stands there.
pub async fn keep(fixture: &Fixture, job: &BackupJob) -> Root {
    assert!(job.plain && job.host == "host" && job.volume.starts_with(UNDO_VOLUMES), "{job:?}");
    let source = Path::new(&job.source);
    let root = fixture.volume(&std::fs::read(source).unwrap()).await;
    let session = fixture.context.environment.session_id();
    let slot = Slot { volume: fixture.repository.key.volume_key(&job.volume), session };
    let reading = keeping::state(source, &std::fs::metadata(source).unwrap()).unwrap_or(root.reading);
    let (volume, source) = (job.volume.clone(), job.source.clone());
    let root = Root { volume, source, slot, job: job.job, reading, tags: job.tags.clone(), ..root };
    let bytes = fixture.repository.seal(&slot.snapshot(), &root).unwrap();
    fixture.repository.store.put(&slot.snapshot(), bytes).await.unwrap();
    root
}

pub fn sealed(root: &Root) -> JobOutcome {
    JobOutcome::Sealed {
        slot: root.slot,
        generation: 1,
        size: root.size,
        statistics: Statistics::default(),
        changed_while_read: false,
        tracking: Tracking::Everything { why: None },
        notes: Vec::new(),
        post_failed: None,
    }
}

async fn snapshot_at(fixture: &Fixture, slot: Slot) -> Root {
    match fixture.repository.at_slot(slot).await.unwrap() {
        agent::repository::AtSlot::Snapshot(root) => *root,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_too_old_says_so() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, LEN)).await;
    let agent = tokio::spawn(fixture.restorer().run(serving(vec![PathBuf::from("/")])));
    // What an agent sees that knows nothing of what is asked beside it.
    for force in [false, true] {
        let job = RestoreJob { force, ..job(&fixture, &root, Path::new(NEEDS_NEWER_AGENT)) };
        send(&fixture, &job).await;
        let JobOutcome::Failed { kind, why } = done(&fixture, &job).await else { panic!("it was restored") };
        assert!(kind == FailureKind::Refused && why.contains(NEEDS_NEWER_AGENT), "{why}");
    }
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_job_restores_a_range_and_past_damage() {
    let fixture = Fixture::plain().await;
    let content = noise(1, LEN);
    let root = fixture.volume(&content).await;
    let folder = fixture.folder.path().to_path_buf();
    let agent = tokio::spawn(fixture.restorer().run(serving(vec![folder])));
    let path = fixture.path("range");
    std::fs::write(&path, vec![0xee; LEN + 5]).unwrap();
    let asked = RestoreJob { force: true, ..job(&fixture, &root, &path) };
    let (start, end) = (CHUNK as u64 / 2, 3 * CHUNK as u64);
    let asked = asked.asking(More { range: Some((start, end)), ..More::default() });
    send(&fixture, &asked).await;
    assert!(matches!(done(&fixture, &asked).await, JobOutcome::Restored { .. }));
    let mut expected = vec![0xee; LEN + 5];
    expected[start as usize..end as usize].copy_from_slice(&content[start as usize..end as usize]);
    assert!(std::fs::read(&path).unwrap() == expected);

    let (_, lost) = fixture.data_copies()[0];
    let mut bytes = fixture.bytes_of(lost.pack).await;
    bytes[lost.offset as usize + 60] ^= 1;
    fixture.overwrite(lost.pack, bytes).await;
    let path = fixture.path("holes");
    let asked = job(&fixture, &root, &path).asking(More { keep_going: true, ..More::default() });
    send(&fixture, &asked).await;
    let JobOutcome::Restored { lost, holes, .. } = done(&fixture, &asked).await else { panic!("it failed") };
    assert_eq!((lost, holes.len()), (CHUNK as u64, 1));
    let hole = holes[0].offset as usize..(holes[0].offset + holes[0].len) as usize;
    let mut expected = content;
    expected[hole].fill(0);
    assert!(std::fs::read(&path).unwrap() == expected);
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_further_target_takes_from_one_that_the_agent_may_read() {
    let fixture = Fixture::plain().await;
    let content = noise(1, LEN);
    let root = fixture.volume(&content).await;
    let (allowed, outside) = (fixture.path("allowed"), fixture.path("outside"));
    std::fs::create_dir(&allowed).unwrap();
    std::fs::write(&outside, &content).unwrap();
    std::fs::write(allowed.join("first"), &content).unwrap();
    let agent = tokio::spawn(fixture.restorer().run(serving(vec![allowed.clone()])));
    for (name, donor, is_taken) in
        [("a", allowed.join("first"), true), ("b", outside, false), ("c", allowed.join("none"), false)]
    {
        let donor = Some(donor.to_str().unwrap().to_owned());
        let job = RestoreJob { donor, ..job(&fixture, &root, &allowed.join(name)) };
        send(&fixture, &job).await;
        let JobOutcome::Restored { fetched, .. } = done(&fixture, &job).await else {
            panic!("{name} failed")
        };
        assert_eq!(fetched == 0, is_taken, "{name}");
        assert!(std::fs::read(allowed.join(name)).unwrap() == content);
    }
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_stands_there_is_kept_first_and_put_back() {
    let fixture = Arc::new(Fixture::plain().await);
    let (old, new) = (noise(1, LEN / 2), noise(2, LEN));
    let root = fixture.volume(&new).await;
    let keeper = Keeper::start(&fixture, |_| ());
    let folder = fixture.folder.path().to_path_buf();
    let agent = tokio::spawn(fixture.restorer().run(serving(vec![folder])));
    let path = fixture.path("x");
    std::fs::write(&path, &old).unwrap();
    let undo = fixture.context.environment.job_id();
    let asked = job(&fixture, &root, &path).asking(More { undo: Some(undo), ..More::default() });
    send(&fixture, &asked).await;
    let JobOutcome::Restored { undo: Some(kept), .. } = done(&fixture, &asked).await else {
        panic!("nothing was kept")
    };
    assert!(std::fs::read(&path).unwrap() == new);
    assert_eq!(keeper.jobs(), [undo]);

    let kept = snapshot_at(&fixture, kept).await;
    let put_back = job(&fixture, &kept, &path).asking(More { put_back: true, ..More::default() });
    send(&fixture, &put_back).await;
    assert!(matches!(done(&fixture, &put_back).await, JobOutcome::Restored { undo: None, .. }));
    assert!(std::fs::read(&path).unwrap() == old);
    // Elsewhere, it would overwrite something else.
    let link = fixture.path("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let put_back = job(&fixture, &kept, &link).asking(More { put_back: true, ..More::default() });
    send(&fixture, &put_back).await;
    let JobOutcome::Failed { why, .. } = done(&fixture, &put_back).await else { panic!("through a link") };
    assert!(why.contains("it is a link by now"), "{why}");

    // There is nothing to keep of what is not there.
    let fresh = fixture.path("fresh");
    let undo = Some(fixture.context.environment.job_id());
    let asked = job(&fixture, &root, &fresh).asking(More { undo, ..More::default() });
    send(&fixture, &asked).await;
    assert!(matches!(done(&fixture, &asked).await, JobOutcome::Restored { undo: None, .. }));
    assert_eq!(keeper.jobs().len(), 1);
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}

/// A guest has written beside the range since, which an undo is not to take away.
#[tokio::test(start_paused = true)]
async fn of_what_was_kept_for_a_range_only_that_is_put_back() {
    let fixture = Arc::new(Fixture::plain().await);
    let old = noise(1, LEN);
    let root = fixture.volume(&noise(2, LEN)).await;
    let _keeper = Keeper::start(&fixture, |_| ());
    let folder = fixture.folder.path().to_path_buf();
    let agent = tokio::spawn(fixture.restorer().run(serving(vec![folder])));
    let path = fixture.path("x");
    std::fs::write(&path, &old).unwrap();
    let range = Some((CHUNK as u64 / 2, 3 * CHUNK as u64));
    let undo = Some(fixture.context.environment.job_id());
    let asked = job(&fixture, &root, &path).asking(More { undo, range, ..More::default() });
    send(&fixture, &asked).await;
    let JobOutcome::Restored { undo: Some(kept), .. } = done(&fixture, &asked).await else {
        panic!("nothing was kept")
    };
    let kept = snapshot_at(&fixture, kept).await;
    let range = keeping::kept_range(&kept).expect("it is known");
    assert_eq!(range, CHUNK as u64 / 2..3 * CHUNK as u64);

    let mut expected = old;
    expected[8 * CHUNK..].fill(7);
    let guest = std::fs::File::options().write(true).open(&path).unwrap();
    guest.write_all_at(&expected[8 * CHUNK..], 8 * CHUNK as u64).unwrap();
    let range = Some((range.start, range.end));
    let put_back = || job(&fixture, &kept, &path).asking(More { put_back: true, range, ..More::default() });
    // As if that restore had not ended well.
    let is_held = async || !marks::of(&fixture.repository, kept.slot).await.unwrap().holds.is_empty();
    assert!(!is_held().await, "it has ended well");
    marks::hold(&fixture.repository, kept.slot, None, unfinished::BY).await.unwrap();
    let again = put_back();
    send(&fixture, &again).await;
    assert!(matches!(done(&fixture, &again).await, JobOutcome::Restored { .. }));
    assert!(std::fs::read(&path).unwrap() == expected);
    assert!(!is_held().await, "it is put back");
    // A file of which there is nothing to be put back beside.
    for is_gone in [false, true] {
        match is_gone {
            true => std::fs::remove_file(&path).unwrap(),
            false => std::fs::write(&path, b"").unwrap(),
        }
        let again = put_back();
        send(&fixture, &again).await;
        let JobOutcome::Failed { why, .. } = done(&fixture, &again).await else { panic!("{is_gone}") };
        assert!(why.contains("--whole"), "{why}");
        assert_eq!(path.exists(), !is_gone);
    }
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_changes_after_it_was_kept_is_not_overwritten() {
    let fixture = Arc::new(Fixture::plain().await);
    let root = fixture.volume(&noise(2, LEN)).await;
    let _keeper = Keeper::start(&fixture, |path| {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.write_all_at(b"since", 0).unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
    });
    let folder = fixture.folder.path().to_path_buf();
    let agent = tokio::spawn(fixture.restorer().run(serving(vec![folder])));
    let path = fixture.path("x");
    std::fs::write(&path, noise(1, LEN)).unwrap();
    let undo = Some(fixture.context.environment.job_id());
    let asked = job(&fixture, &root, &path).asking(More { undo, ..More::default() });
    send(&fixture, &asked).await;
    let JobOutcome::Failed { kind, why } = done(&fixture, &asked).await else { panic!("overwritten") };
    assert!(kind == FailureKind::Refused && why.contains("was changed just after"), "{why}");
    let mut expected = noise(1, LEN);
    expected[..5].copy_from_slice(b"since");
    assert!(std::fs::read(&path).unwrap() == expected);
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}

/// An agent dies when something was kept. What stands there by then may be half overwritten, or written since.
#[tokio::test(start_paused = true)]
async fn what_was_kept_first_is_what_an_undo_puts_back() {
    let fixture = Arc::new(Fixture::plain().await);
    let (old, new) = (noise(1, LEN), noise(2, LEN));
    let root = fixture.volume(&new).await;
    let keeper = Keeper::start(&fixture, |_| ());
    let folder = fixture.folder.path().to_path_buf();
    let agent = tokio::spawn(fixture.restorer().run(serving(vec![folder])));
    for is_changed in [false, true] {
        let path = fixture.path(&format!("x-{is_changed}"));
        std::fs::write(&path, &old).unwrap();
        let undo = fixture.context.environment.job_id();
        let source = path.to_str().unwrap().to_owned();
        let (volume, host) = (format!("{UNDO_VOLUMES}host{source}"), "host".to_owned());
        let (tags, allow_changes, group, plain) = (Vec::new(), false, None, true);
        let earlier = BackupJob { job: undo, volume, host, source, tags, allow_changes, group, plain };
        let first = keep(&fixture, &earlier).await;
        if is_changed {
            std::fs::write(&path, b"half of it").unwrap();
        }
        let before = keeper.jobs().len();
        let asked = job(&fixture, &root, &path).asking(More { undo: Some(undo), ..More::default() });
        send(&fixture, &asked).await;
        let JobOutcome::Restored { undo: Some(kept), .. } = done(&fixture, &asked).await else {
            panic!("nothing was kept")
        };
        assert_eq!(kept, first.slot);
        let again = keeper.jobs().split_off(before);
        assert_eq!(again.len(), usize::from(is_changed));
        assert!(!again.contains(&undo));
        assert!(std::fs::read(&path).unwrap() == new);
    }
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_over_is_not_done_again_by_another_agent() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, LEN)).await;
    let path = fixture.path("x");
    let order = RestoreJob { force: true, ..job(&fixture, &root, &path) };
    let outcome = JobOutcome::Failed { kind: FailureKind::Revoked, why: "told already".into() };
    sessions::note_end(&fixture.repository, order.job, "v", "host", &outcome).await.unwrap();
    // What a guest has written since.
    std::fs::write(&path, b"precious").unwrap();
    let agent = tokio::spawn(fixture.restorer().run(serving(vec![fixture.folder.path().to_path_buf()])));
    send(&fixture, &order).await;
    assert_eq!(done(&fixture, &order).await, outcome);
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    while !fixture.sessions().await.is_empty() {
        tokio::task::yield_now().await;
    }
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_job_that_nobody_wants_any_more_ends() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, LEN)).await;
    // Without an answer of the index, the restore waits.
    std::mem::take(&mut *fixture.table.lock().unwrap());
    let agent = tokio::spawn(fixture.restorer().run(serving(vec![fixture.folder.path().to_path_buf()])));
    let order = job(&fixture, &root, &fixture.path("x"));
    send(&fixture, &order).await;
    while fixture.sessions().await.is_empty() {
        tokio::task::yield_now().await;
    }
    let stop = Message::new(&About::nothing(), &StopRestore { job: order.job });
    fixture.context.bus.broadcast(&Topic::stop_restore(), stop).await.unwrap();
    let outcome = done(&fixture, &order).await;
    let JobOutcome::Failed { kind, why } = outcome else { panic!("it was restored") };
    assert!(kind == FailureKind::Revoked && why.contains("stopped, as asked"), "{why}");
    assert!(!fixture.path("x").exists());
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_stopped_before_it_writes_tells_no_progress() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, LEN)).await;
    let (path, stop) = (fixture.path("x"), Stop::default());
    std::fs::write(&path, b"before").unwrap();
    stop.raise();
    let target = Target::new(&path, true).until(stop);
    let failure = fixture.restorer().restore(root, target, |_| panic!("it writes")).await.unwrap_err();
    assert!(failure.kind == FailureKind::Revoked, "{failure}");
    assert!(std::fs::read(&path).unwrap().starts_with(b"before"));
}

#[tokio::test(start_paused = true)]
async fn what_was_kept_first_is_named_when_it_cannot_be_kept_again() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, LEN)).await;
    let (path, undo) = (fixture.path("x"), fixture.context.environment.job_id());
    std::fs::write(&path, b"before").unwrap();
    let source = path.canonicalize().unwrap().to_str().unwrap().to_owned();
    let volume = format!("{UNDO_VOLUMES}host{source}");
    let (tags, allow_changes, group, host) = (Vec::new(), false, None, "host".to_owned());
    let kept = BackupJob { job: undo, volume, host, source, tags, allow_changes, group, plain: true };
    let first = keep(&fixture, &kept).await;
    // As an attempt that died has left it.
    std::fs::write(&path, b"half of it").unwrap();
    let agent = tokio::spawn(fixture.restorer().run(serving(vec![fixture.folder.path().to_path_buf()])));
    let asked = job(&fixture, &root, &path).asking(More { undo: Some(undo), ..More::default() });
    send(&fixture, &asked).await;
    // Nobody makes a backup, and the job is stopped.
    let mut jobs = fixture.context.bus.consume(&Queue::jobs(), 1).await.unwrap();
    let _second = jobs.next().await.unwrap();
    let stop = Message::new(&About::nothing(), &StopRestore { job: asked.job });
    fixture.context.bus.broadcast(&Topic::stop_restore(), stop).await.unwrap();
    let JobOutcome::Failed { why, .. } = done(&fixture, &asked).await else { panic!("it was restored") };
    assert!(why.contains("may have overwritten a part"), "{why}");
    assert!(why.contains(&format!("lvkeep undo {}", first.slot.session)), "{why}");
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn nobody_forgets_what_was_kept_before_the_restore_has_ended() {
    let fixture = Arc::new(Fixture::plain().await);
    let (old, new) = (noise(1, LEN), noise(2, LEN));
    let root = fixture.volume(&new).await;
    let _keeper = Keeper::start(&fixture, |_| ());
    let path = fixture.path("x");
    let forget = async |slot: Slot| {
        let kept = snapshot_at(&fixture, slot).await;
        forgetting::forget(&fixture.repository, &kept, "a test").await.unwrap()
    };
    for is_forgotten_first in [true, false] {
        std::fs::write(&path, &old).unwrap();
        let (restorer, undo) = (fixture.restorer(), fixture.context.environment.job_id());
        let target = Target::new(&path, false).with_content();
        let kept = restorer.keep(&root, &target, undo, |_, _| ()).await.unwrap().unwrap();
        if is_forgotten_first {
            assert_eq!(forget(kept).await, Forgot::Done);
            let failure = restorer.restore(root.clone(), target, |_| ()).await.unwrap_err();
            assert!(failure.why.contains(&kept.session.to_string()), "{failure}");
            assert!(std::fs::read(&path).unwrap() == old);
            continue;
        }
        fixture.store_is_open.send_replace(false);
        let of = root.clone();
        let restoring = tokio::spawn(async move { restorer.restore(of, target, |_| ()).await });
        while fixture.sessions().await.is_empty() {
            tokio::task::yield_now().await;
        }
        let refused = forget(kept).await;
        assert!(matches!(&refused, Forgot::Protected(why) if why.contains("has not ended")), "{refused:?}");
        fixture.store_is_open.send_replace(true);
        restoring.await.unwrap().unwrap();
        assert_eq!(forget(kept).await, Forgot::Done);
    }
}

/// It is stopped in the middle, and hands its job back: the target is half overwritten then.
#[tokio::test(start_paused = true)]
async fn nobody_forgets_what_was_kept_for_a_job_that_was_handed_back() {
    let fixture = Arc::new(Fixture::plain().await);
    let (old, new) = (noise(1, LEN), noise(2, LEN));
    let root = fixture.volume(&new).await;
    let _keeper = Keeper::start(&fixture, |_| ());
    let (path, folder) = (fixture.path("x"), fixture.folder.path().to_path_buf());
    std::fs::write(&path, &old).unwrap();
    let agent = |stop: &Stop| {
        let mut restorer = fixture.restorer();
        restorer.context.stop = stop.clone();
        tokio::spawn(restorer.run(serving(vec![folder.clone()])))
    };
    let (first, second) = (Stop::default(), Stop::default());
    let stopped = agent(&first);
    let undo = fixture.context.environment.job_id();
    let asked = job(&fixture, &root, &path).asking(More { undo: Some(undo), ..More::default() });
    fixture.store_is_open.send_replace(false);
    send(&fixture, &asked).await;
    while fixture.sessions().await.is_empty() {
        tokio::task::yield_now().await;
    }
    first.raise();
    stopped.await.unwrap().unwrap();
    fixture.store_is_open.send_replace(true);
    let roots = fixture.repository.roots(None).await.unwrap();
    let kept = roots.readable.into_iter().find(|root| root.job == undo).unwrap();
    let forget = async || forgetting::forget(&fixture.repository, &kept, "a test").await.unwrap();
    assert!(matches!(forget().await, Forgot::Protected(_)));

    let agent = agent(&second);
    let outcome = done(&fixture, &asked).await;
    assert!(matches!(outcome, JobOutcome::Restored { undo: Some(slot), .. } if slot == kept.slot));
    while !fixture.sessions().await.is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(forget().await, Forgot::Done);
    second.raise();
    agent.await.unwrap().unwrap();
}

/// A command that restores several has one session for all, and is one to cancel.
#[tokio::test(start_paused = true)]
async fn the_session_of_a_command_names_what_was_kept() {
    let fixture = Arc::new(Fixture::plain().await);
    let root = fixture.volume(&noise(2, LEN)).await;
    let _keeper = Keeper::start(&fixture, |_| ());
    let (session, job) = (fixture.context.environment.session_id(), fixture.context.environment.job_id());
    let kind = SessionKind::Restore;
    let by = ReadBy { kind, session, job, volume: "all volumes", host: "host", undo: &[] };
    let protection = Protection::begin(&fixture.repository, by, &Stop::default()).await.unwrap();
    let mut kept = Vec::new();
    for name in ["x", "y"] {
        let path = fixture.path(name);
        std::fs::write(&path, noise(1, LEN)).unwrap();
        let restorer = fixture.restorer().protected(protection.clone());
        let target = Target::new(&path, false).with_content();
        let undo = fixture.context.environment.job_id();
        kept.push(restorer.keep(&root, &target, undo, |_, _| ()).await.unwrap().unwrap());
        restorer.restore(root.clone(), target, |_| ()).await.unwrap();
    }
    assert_eq!(fixture.sessions().await.len(), 1);
    let forget = async |slot: &Slot| {
        let kept = snapshot_at(&fixture, *slot).await;
        forgetting::forget(&fixture.repository, &kept, "a test").await.unwrap()
    };
    for slot in &kept {
        assert!(matches!(forget(slot).await, Forgot::Protected(_)));
    }
    protection.end(Ok(())).await.unwrap();
    for slot in &kept {
        assert_eq!(forget(slot).await, Forgot::Done);
    }
}
