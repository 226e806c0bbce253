//! Targets that are places: in which order they are used, and what happens when something fails on the way.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::{fs, io};

use agent::faults::store::FaultyStore;
use agent::{Bus, Ending, Failure, Place, Queue, Repository, Stop, Targets, Wish, sessions};
use async_trait::async_trait;
use schema::JobId;
use schema::messages::{
    About, FailureKind, JobDone, JobOutcome, Message, NewVolume, Preparation, RestoreJob, Safety,
    SharedPlace, Zeroing,
};
use schema::names;

use super::fixture::{CHUNK, Fixture, noise, serving};
use super::snapback::put_back;
use crate::claim::Claim;
use crate::restorer::{Ids, Purpose};
use crate::{Progress, Restorer, Target, hold};

const MIB: usize = 1 << 20;

/// A file that stands for the volume `vg/lv`, and what was done to it.
#[derive(Debug, Clone)]
pub struct Volume {
    pub device: PathBuf,
    is_busy: bool,
    keeps_equal: bool,
    /// It is made by this attempt, or an earlier one had made it.
    pub is_new: bool,
    pub is_begun: bool,
    /// It holds something else than it was given when it is ended.
    pub lies: bool,
    /// Raised when it is ended.
    pub stops: Option<Stop>,
    /// What is retired while it is made.
    pub retired: Option<(Arc<dyn Bus>, Queue)>,
    /// How a job is noted to have ended while it is made.
    pub noted: Option<(Repository, JobId, JobOutcome)>,
    /// The store cannot be reached from then on.
    pub crashes: Option<FaultyStore>,
    log: Arc<Mutex<Vec<String>>>,
    held: Arc<Mutex<Vec<bool>>>,
}

impl Volume {
    /// A volume full of stale bytes.
    pub fn of(fixture: &Fixture, size: usize) -> Self {
        let device = fixture.path("device");
        fs::write(&device, vec![0xee; size]).unwrap();
        Self {
            device,
            is_busy: false,
            keeps_equal: true,
            is_new: false,
            is_begun: false,
            lies: false,
            stops: None,
            retired: None,
            noted: None,
            crashes: None,
            log: Arc::default(),
            held: Arc::default(),
        }
    }

    fn say(&self, what: impl Into<String>) {
        self.log.lock().unwrap().push(what.into());
    }

    /// What happened, without the zeroing.
    pub fn steps(&self) -> Vec<String> {
        let log = self.log.lock().unwrap();
        log.iter().filter(|line| !line.starts_with("zero")).cloned().collect()
    }

    /// Whether somebody had it each time that it was over.
    pub fn held_when_over(&self) -> Vec<bool> {
        self.held.lock().unwrap().clone()
    }

    pub fn restorer(&self, fixture: &Fixture) -> Restorer {
        fixture.restorer().with_targets(Arc::new(self.clone()))
    }
}

/// What device-mapper calls it is a name of it, too.
pub const BY_MAPPER: &str = "/dev/mapper/vg-lv";

fn is_volume(name: &str) -> bool {
    ["vg/lv", BY_MAPPER].contains(&name)
}

#[async_trait]
impl Targets for Volume {
    async fn find(&self, wish: &Wish<'_>) -> Result<Option<Arc<dyn Place>>, Failure> {
        Ok(is_volume(wish.target).then(|| Arc::new(self.clone()) as Arc<dyn Place>))
    }

    fn read_at(&self, name: &str) -> Result<PathBuf, Failure> {
        Ok(if is_volume(name) { self.device.clone() } else { PathBuf::from(name) })
    }

    fn name_of(&self, target: &str) -> Result<Option<String>, Failure> {
        Ok(is_volume(target).then(|| "vg/lv".to_owned()))
    }

    fn shared(&self, place: &SharedPlace, path: &Path) -> Option<Arc<dyn Place>> {
        let known = place.name == "vg/lv" && path == self.device;
        known.then(|| Arc::new(self.clone()) as Arc<dyn Place>)
    }
}

#[async_trait]
impl Place for Volume {
    fn name(&self) -> &str {
        "vg/lv"
    }

    async fn make(&self) -> Result<PathBuf, Failure> {
        self.say("make");
        if let Some((bus, queue)) = &self.retired {
            bus.retire(queue).await.unwrap();
        }
        if let Some((repository, job, outcome)) = &self.noted {
            sessions::note_end(repository, *job, "v", "host", outcome).await.unwrap();
        }
        self.crashes.iter().for_each(FaultyStore::crash);
        Ok(self.device.clone())
    }

    async fn ready(&self, device: &File) -> Result<(), Failure> {
        let mut first = [0];
        device.read_exact_at(&mut first, 0).unwrap();
        self.say(format!("ready {:x}", first[0]));
        match self.is_busy {
            true => Err(Failure::refused("busy")),
            false => Ok(()),
        }
    }

    fn compares_zeroes(&self) -> bool {
        true
    }

    fn is_new(&self) -> bool {
        self.is_new
    }

    fn is_begun(&self) -> bool {
        self.is_begun
    }

    fn keeps_equal(&self) -> bool {
        self.keeps_equal
    }

    fn shared(&self) -> Option<SharedPlace> {
        let zeroing = Zeroing::Thick { watched: false };
        Some(SharedPlace { name: "vg/lv".into(), size: 0, zeroing })
    }

    fn zero(&self, device: &File, range: Range<u64>, _: &Stop) -> io::Result<()> {
        self.say(format!("zero {range:?}"));
        device.write_all_at(&vec![0; (range.end - range.start) as usize], range.start)
    }

    async fn end(&self, ending: Ending) -> Vec<String> {
        self.say(match ending {
            Ending::Restored => "end true",
            Ending::WithHoles => "end with holes",
            Ending::CutOff => "end cut off",
            Ending::Failed => "end false",
        });
        if self.lies {
            let device = File::options().write(true).open(&self.device).unwrap();
            device.write_all_at(&[0x55], 3 * CHUNK as u64).unwrap();
        }
        self.stops.iter().for_each(Stop::raise);
        vec!["a note".to_owned()]
    }

    async fn over(&self) -> Option<String> {
        self.say("over");
        self.held.lock().unwrap().push(hold::is_locked(&self.device));
        None
    }
}

#[tokio::test(start_paused = true)]
async fn a_place_is_made_readied_filled_and_ended() {
    let fixture = Fixture::encrypted().await;
    let volume = Volume::of(&fixture, 5 * MIB);
    let mut content = noise(1, 3 * MIB + 777);
    content[MIB..2 * MIB].fill(0);
    let root = fixture.volume(&content).await;
    let target = Target::new("vg/lv", false);
    let report = volume.restorer(&fixture).restore(root, target, |_| ()).await.unwrap();
    assert_eq!(report.notes, ["a note"]);
    assert_eq!(volume.steps(), ["make", "ready ee", "end true", "over"]);
    content.resize(5 * MIB, 0);
    assert!(fs::read(&volume.device).unwrap() == content, "empty behind the snapshot's end, too");
}

/// A block that a thin volume does not have reads as zero, until a neighbour of these zeroes is written and the pool
/// gives the block as it is.
#[tokio::test(start_paused = true)]
async fn all_is_written_where_what_is_equal_does_not_stay() {
    let fixture = Fixture::plain().await;
    let content = noise(1, MIB);
    let root = fixture.volume(&content).await;
    for keeps_equal in [true, false] {
        let volume = Volume { keeps_equal, ..Volume::of(&fixture, MIB) };
        fs::write(&volume.device, &content).unwrap();
        let target = Target::new("vg/lv", false);
        let report = volume.restorer(&fixture).restore(root.clone(), target, |_| ()).await.unwrap();
        assert_eq!(report.written, if keeps_equal { 0 } else { MIB as u64 });
    }
}

/// Also what lies behind the snapshot's end; and all of it where writing changes what stands beside.
#[tokio::test(start_paused = true)]
async fn what_a_place_held_is_kept() {
    let fixture = Fixture::plain().await;
    let mut content = noise(1, 3 * MIB + 777);
    content[MIB..2 * MIB].fill(0);
    let root = fixture.volume(&content).await;
    for keeps_equal in [true, false] {
        let volume = Volume { keeps_equal, ..Volume::of(&fixture, 5 * MIB) };
        let mut stale = vec![0; 5 * MIB];
        stale[MIB + 5..4 * MIB].fill(0xee);
        fs::write(&volume.device, &stale).unwrap();
        let kept = fixture.path("kept");
        let target = Target::new("vg/lv", false).snapback(&kept);
        let report = volume.restorer(&fixture).restore(root.clone(), target, |_| ()).await.unwrap();
        assert!(report.notes[1].contains(&format!("{} vg/lv`", kept.display())), "{:?}", report.notes);
        assert!(put_back(&fs::read(&volume.device).unwrap(), &kept) == (stale.clone(), true));
        let all = put_back(&vec![7; 5 * MIB], &kept).0 == stale;
        assert_eq!(all, !keeps_equal, "all of it is in the file, or what was overwritten");
        fs::remove_file(&kept).unwrap();
    }
    let new = Preparation { create: Some(NewVolume::Plain), ..Preparation::default() };
    let volume = Volume::of(&fixture, 5 * MIB);
    let target = Target::new("vg/lv", false).prepared(new).snapback(fixture.path("kept"));
    let failure = volume.restorer(&fixture).restore(root, target, |_| ()).await.unwrap_err();
    assert!(failure.why.contains("nothing to be kept") && volume.steps().is_empty(), "{failure}");
}

#[tokio::test(start_paused = true)]
async fn a_place_is_ended_when_anything_fails() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, 4 * CHUNK)).await;
    let larger = fixture.volume(&noise(2, 2 * MIB)).await;
    let volume = Volume::of(&fixture, MIB);
    let restore = |volume: &Volume, root| {
        let restorer = volume.restorer(&fixture);
        async move { restorer.restore(root, Target::new("vg/lv", true), |_| ()).await.unwrap_err() }
    };
    let failure = restore(&volume, larger).await;
    assert!(failure.why.contains("1048576") && failure.why.contains("a note"), "{failure}");
    assert_eq!(volume.steps(), ["make", "end false"], "it is too small");

    let busy = Volume { is_busy: true, log: Arc::default(), ..volume.clone() };
    assert!(restore(&busy, root.clone()).await.why.contains("busy"));
    assert_eq!(busy.steps(), ["make", "ready ee", "end false"]);
    assert!(fs::read(&volume.device).unwrap() == vec![0xee; MIB], "nothing was written");

    let damaged = Volume { log: Arc::default(), ..volume.clone() };
    for (_, copy) in fixture.data_copies() {
        fixture.repository.store.delete(&names::pack(copy.pack)).await.unwrap();
    }
    let failure = restore(&damaged, root).await;
    assert_eq!(failure.kind, FailureKind::Damaged, "{failure}");
    assert!(failure.why.contains("a note"), "{failure}");
    assert_eq!(damaged.steps(), ["make", "ready ee", "end false"]);
}

/// A volume that was made is made once: what is on it is found there, by the job that comes again, or by a command.
#[tokio::test(start_paused = true)]
async fn what_was_made_stays_when_its_restore_is_cut_off() {
    let fixture = Fixture::plain().await;
    let content = noise(1, 20 * MIB);
    let root = fixture.volume(&content).await;
    let create = Preparation { create: Some(NewVolume::Plain), ..Preparation::default() };
    for is_of_job in [false, true] {
        let volume = Volume { is_new: true, ..Volume::of(&fixture, content.len()) };
        let environment = &fixture.context.environment;
        let ids = Ids { job: environment.job_id(), session: environment.session_id() };
        let target = || {
            let target = Target::new("vg/lv", false).prepared(create.clone());
            if is_of_job { target.claimed(Claim::of(ids.job)) } else { target }
        };
        let mut restorer = volume.restorer(&fixture);
        restorer.context.stop = Stop::default();
        let stop = restorer.context.stop.clone();
        let raise = |now: Progress| {
            if now.done > 0 {
                stop.raise();
            }
        };
        let failed = restorer.run_as(ids, root.clone(), Purpose::Restore(target()), &raise).await;
        assert!(failed.unwrap_err().why.contains("a note"));
        let steps: &[&str] = match is_of_job {
            false => &["make", "ready ee", "end cut off", "over"],
            // Its job comes again, and finds it as its own.
            true => &["make", "ready ee", "end cut off"],
        };
        assert_eq!(volume.steps(), steps);
        // As the place is then: made by an earlier attempt, or there.
        let again = Volume { is_new: false, is_begun: is_of_job, log: Arc::default(), ..volume.clone() };
        let to = if is_of_job { target() } else { Target::new("vg/lv", false) };
        let (restorer, ids) = (again.restorer(&fixture), Ids { session: environment.session_id(), ..ids });
        let report = restorer.run_as(ids, root.clone(), Purpose::Restore(to), &|_| ()).await.unwrap();
        assert!(report.kept > 0 && report.written < root.size, "{report:?}");
        assert!(fs::read(&volume.device).unwrap() == content);
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_attempt_had_made_stays_when_it_cannot_be_gone_on_with() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, 4 * CHUNK)).await;
    let volume = Volume { is_busy: true, is_begun: true, ..Volume::of(&fixture, 4 * CHUNK) };
    let failure = volume.restorer(&fixture).restore(root, Target::new("vg/lv", false), |_| ()).await;
    assert!(failure.unwrap_err().why.contains("busy"));
    assert_eq!(volume.steps(), ["make", "ready ee", "end cut off", "over"]);
}

#[tokio::test(start_paused = true)]
async fn the_source_is_overwritten_when_a_snapshot_keeps_it() {
    let fixture = Fixture::plain().await;
    let content = noise(1, MIB);
    let mut root = fixture.volume(&content).await;
    let volume = Volume::of(&fixture, MIB);
    root.source = volume.device.to_str().unwrap().to_owned();
    let failure = volume
        .restorer(&fixture)
        .restore(root.clone(), Target::new("vg/lv", false), |_| ())
        .await
        .unwrap_err();
    assert!(failure.why.contains("is the source") && failure.why.contains("safety"), "{failure}");
    let safe = Preparation { safety: Some(Safety::default()), ..Preparation::default() };
    let target = Target::new("vg/lv", false).prepared(safe.clone());
    volume.restorer(&fixture).restore(root.clone(), target, |_| ()).await.unwrap();
    assert!(fs::read(&volume.device).unwrap() == content);
    // Nothing else can be kept: what was asked for in vain is not passed over.
    let file = Target::new(fixture.path("file"), true).prepared(safe);
    let failure = volume.restorer(&fixture).restore(root, file, |_| ()).await.unwrap_err();
    assert!(failure.why.contains("VG/LV"), "{failure}");
    assert!(!fixture.path("file").exists());
}

#[tokio::test(start_paused = true)]
async fn an_agent_restores_to_places_that_it_allows() {
    let fixture = Fixture::plain().await;
    let content = noise(1, MIB);
    let root = fixture.volume(&content).await;
    for (allowed, expected) in [
        (vec!["vg/*"], true),
        (vec!["other/lv", "vg/l*"], true),
        (vec!["/dev/vg"], true),
        (vec!["/dev/vg/lv"], true),
        (vec!["/dev/v"], false),
        (vec!["*"], false),
        (vec!["vg/l"], false),
        (vec!["/"], false),
        (vec![], false),
    ] {
        let volume = Volume::of(&fixture, MIB);
        let restorer = volume.restorer(&fixture);
        let folders = allowed.iter().map(PathBuf::from).collect();
        let agent = tokio::spawn(async move { restorer.run(serving(folders)).await });
        let job = fixture.context.environment.job_id();
        let (slot, preparation) = (root.slot, Preparation::default());
        let order = RestoreJob {
            job,
            slot,
            target: "vg/lv".into(),
            force: false,
            preparation,
            full: false,
            untracked: false,
            donor: None,
            fetches: None,
            command: None,
            more: None,
        };
        let bus = &fixture.context.bus;
        bus.publish(&Queue::restores("host"), Message::new(&About::nothing(), &order)).await.unwrap();
        let mut deliveries = bus.consume(&Queue::done(job), 1).await.unwrap();
        let delivery = deliveries.next().await.unwrap();
        delivery.ticket.done().await.unwrap();
        match delivery.message.read::<JobDone>().unwrap().outcome {
            JobOutcome::Restored { notes, .. } => {
                assert!(expected, "{allowed:?}");
                assert_eq!(notes, ["a note"]);
            }
            JobOutcome::Failed { why, .. } => {
                assert!(!expected && why.contains("allows"), "{allowed:?}: {why}");
                assert_eq!(volume.steps(), [""; 0], "nothing was made");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(fs::read(&volume.device).unwrap() == content, expected);
        agent.abort();
        let _ = agent.await;
    }
}

/// Until nobody can be given the job again, which would overwrite what was written since.
#[tokio::test(start_paused = true)]
async fn a_volume_is_held_until_its_job_is_over() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, MIB)).await;
    let volume = Volume::of(&fixture, MIB);
    let environment = &fixture.context.environment;
    let ids = Ids { job: environment.job_id(), session: environment.session_id() };
    let claim = Claim::of(ids.job);
    let target = Target::new("vg/lv", false).claimed(claim.clone());
    let restorer = volume.restorer(&fixture);
    restorer.run_as(ids, root, Purpose::Restore(target), &|_| ()).await.unwrap();
    let device = File::open(&volume.device).unwrap();
    let failure = Claim::default().lock(&device, &volume.device).unwrap_err();
    assert!(failure.why.contains("another restore"), "{failure}");
    // Should the agent die here, its successor finds what was made for this job.
    assert_eq!(volume.steps(), ["make", "ready ee", "end true"]);
    claim.end().await;
    assert_eq!(volume.steps().last().unwrap(), "over");
    Claim::default().lock(&device, &volume.device).unwrap();
}

/// An agent dies after it noted that its job is over: the volume that it made is there, and that is no failure.
#[tokio::test(start_paused = true)]
async fn a_volume_that_was_made_is_not_made_again() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, MIB)).await;
    let volume = Volume::of(&fixture, MIB);
    let job = fixture.context.environment.job_id();
    let outcome = JobOutcome::Restored {
        written: 1,
        kept: 0,
        compared: 0,
        tracked: 0,
        audited: 0,
        zeroed: 0,
        fetched: 0,
        notes: Vec::new(),
        copied: 0,
        rescued: 0,
        lost: 0,
        holes: Vec::new(),
        undo: None,
        verified: None,
        stands_on: None,
    };
    sessions::note_end(&fixture.repository, job, "v", "host", &outcome).await.unwrap();
    let restorer = volume.restorer(&fixture);
    let agent = tokio::spawn(async move { restorer.run(serving(vec!["vg/*".into()])).await });
    let preparation = Preparation { create: Some(NewVolume::Plain), ..Preparation::default() };
    let (slot, target) = (root.slot, "vg/lv".to_owned());
    let order = RestoreJob {
        job,
        slot,
        target,
        force: false,
        preparation,
        full: false,
        untracked: false,
        donor: None,
        fetches: None,
        command: None,
        more: None,
    };
    let bus = &fixture.context.bus;
    bus.publish(&Queue::restores("host"), Message::new(&About::nothing(), &order)).await.unwrap();
    let mut deliveries = bus.consume(&Queue::done(job), 1).await.unwrap();
    let delivery = deliveries.next().await.unwrap();
    assert_eq!(delivery.message.read::<JobDone>().unwrap().outcome, outcome);
    while !fixture.sessions().await.is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(volume.steps(), ["over"]);
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_no_place_is_a_path() {
    let fixture = Fixture::plain().await;
    let content = noise(1, MIB);
    let root = fixture.volume(&content).await;
    let volume = Volume::of(&fixture, MIB);
    let path = fixture.path("file");
    let target = Target::new(&path, false);
    volume.restorer(&fixture).restore(root, target, |_| ()).await.unwrap();
    assert!(fs::read(path).unwrap() == content);
    assert_eq!(volume.steps(), [""; 0]);
}
