//! All roles in one process over one bus, a small repository in memory, and an operator; one of the roles may be old.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent::index::IndexClient;
use agent::local::LocalBus;
use agent::rate::RateLimit;
use agent::repository::{AtSlot, NewRepository};
use agent::store::Store;
use agent::{
    Bus, Context, Environment, Failure, Opening, Queue, Repository, Stop, Volume, VolumeError, Volumes,
};
use async_trait::async_trait;
use checker::jobs;
use collector::{Announce, Collector, Limits, Patience};
use conductor::Conductor;
use hasher::{ContentKey, Hasher};
use indexer::Indexer;
use object_store::memory::InMemory;
use rand::SeedableRng;
use rand::rngs::StdRng;
use reader::{Files, Reader};
use restorer::Restorer;
use schema::check::{Check, Content as Part, End, Report};
use schema::keys::Identity;
use schema::messages::{About, BackupJob, JobDone, JobOutcome, Message, Preparation, RestoreJob};
use schema::names::{self, Slot};
use schema::root::Root;
use schema::{Domain, JobId, SessionId};
use storer::Storer;
use tests::old::{OldBus, PassedOver};
use tests::sim::content::{BLOCK, Content, Templates};
use tests::sim::environment::SimEnvironment;
use tests::sim::sources::{Source, Sources, Tracking};
use tokio::task::JoinSet;

pub const HOST: &str = "host";
const VOLUME: &str = "vm/disk";
const SOURCE: &str = "/dev/vg/disk";
const SIZE: u64 = 4 << 20;
const PACK: u64 = 64 << 10;
/// How often an index looks by itself which packs there are.
pub const LISTED_EVERY: Duration = Duration::from_secs(60);

/// What runs as an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Reader,
    Hasher,
    Indexer,
    Storer,
    Conductor,
    Restorer,
    Checker,
}

impl Role {
    pub const ALL: [Self; 7] = [
        Self::Reader,
        Self::Hasher,
        Self::Indexer,
        Self::Storer,
        Self::Conductor,
        Self::Restorer,
        Self::Checker,
    ];
}

/// A volume that knows its changes, and files.
#[derive(Debug)]
struct Both {
    tracked: Arc<Sources>,
    files: Files,
}

#[async_trait]
impl Volumes for Both {
    async fn open(&self, opening: &Opening<'_>) -> Result<Arc<dyn Volume>, VolumeError> {
        match opening.source == SOURCE {
            true => self.tracked.open(opening).await,
            false => self.files.open(opening).await,
        }
    }

    async fn close(&self, session: SessionId, committed: bool) {
        self.tracked.close(session, committed).await;
        self.files.close(session, committed).await;
    }
}

/// Everything.
pub struct System {
    environment: Arc<dyn Environment>,
    bus: Arc<dyn Bus>,
    pub repository: Repository,
    identity: Arc<Identity>,
    folder: tempfile::TempDir,
    source: Arc<Source>,
    volumes: Arc<dyn Volumes>,
    templates: Templates,
    random: StdRng,
    old: Option<(Role, OldBus)>,
    is_updated: bool,
    stops: Vec<(Role, Stop)>,
    roles: JoinSet<Result<(), Failure>>,
}

impl System {
    /// All roles are new ones, but this.
    pub async fn start(old: Option<Role>) -> Self {
        let environment: Arc<dyn Environment> = Arc::new(SimEnvironment::new(1));
        let identity = Arc::new(Identity::generate());
        let store = Store::new(Arc::new(InMemory::new()), "", "bucket", environment.clone());
        let new = NewRepository { recipients: identity.recipients(), pack_size: PACK };
        let repository = Repository::init(store, &new).await.expect("a repository");
        let bus: Arc<dyn Bus> = Arc::new(LocalBus::new(environment.clone(), 16 << 20));
        let mut random = StdRng::seed_from_u64(1);
        let templates = Templates::new(&mut random, 12);
        let content = Content::new(&mut random, &templates, SIZE, 6);
        let source = Source::new(SOURCE, false, false, Tracking::True(BLOCK), 0, content);
        let tracked = Sources::new(environment.clone(), [source.clone()], false, false, Arc::default());
        let volumes = Arc::new(Both { tracked, files: Files::new(environment.clone()) });
        let mut system = Self {
            old: old.map(|role| (role, OldBus::new(bus.clone()))),
            environment,
            bus,
            repository,
            identity,
            folder: tempfile::tempdir().expect("a folder"),
            source,
            volumes,
            templates,
            random,
            is_updated: false,
            stops: Vec::new(),
            roles: JoinSet::new(),
        };
        for role in Role::ALL {
            let bus = system.bus_of(role);
            system.begin(role, bus).await;
        }
        system
    }

    fn bus_of(&self, role: Role) -> Arc<dyn Bus> {
        match &self.old {
            Some((old, bus)) if *old == role => Arc::new(bus.clone()),
            _ => self.bus.clone(),
        }
    }

    pub fn is_old(&self, role: Role) -> bool {
        !self.is_updated && self.old.as_ref().is_some_and(|(old, _)| *old == role)
    }

    /// The old agent of this role goes, and a new one comes.
    pub async fn update(&mut self, role: Role) {
        self.stops.iter().filter(|(other, _)| *other == role).for_each(|(_, stop)| stop.raise());
        self.begin(role, self.bus.clone()).await;
        self.is_updated = true;
    }

    /// What the old role has passed over.
    pub fn passed_over(&self) -> PassedOver {
        self.old.as_ref().map(|(_, bus)| bus.passed_over()).unwrap_or_default()
    }

    async fn begin(&mut self, role: Role, bus: Arc<dyn Bus>) {
        let index = IndexClient::new(bus.clone(), self.environment.clone(), 1);
        let context = Context {
            bus,
            environment: self.environment.clone(),
            counters: Arc::default(),
            stop: Stop::default(),
            host: HOST.into(),
        };
        self.stops.push((role, context.stop.clone()));
        let (repository, key) = (self.repository.clone(), &self.repository.key);
        let identity = Some(self.identity.clone());
        let limit = RateLimit::none();
        match role {
            Role::Reader => {
                let (reading, volumes) = (reader::Settings::new(HOST), self.volumes.clone());
                let reader = Reader::new(context, volumes, reading, key.cut_seed(), key.chunk_ids());
                self.roles.spawn(reader.run());
            }
            Role::Hasher => {
                let content = ContentKey::new(key, &*self.environment).expect("a key");
                let hashing = hasher::Settings { level: 1, extents: Queue::extents(HOST) };
                let hasher = Hasher::new(context, hashing, index, key, Arc::new(content)).expect("a hasher");
                self.roles.spawn(hasher.run());
            }
            Role::Indexer => {
                let indexing = indexer::Settings {
                    path: self.path(&format!("index-{}", self.stops.len())),
                    cache_bytes: 1 << 20,
                    shards: 1,
                    owned: vec![0],
                    give_up: Duration::from_secs(60),
                    sync_interval: LISTED_EVERY,
                };
                let indexer = Indexer::open(context, repository, indexing).await.expect("an index");
                self.roles.spawn(indexer.run());
            }
            Role::Storer => {
                let max_age = Duration::from_secs(5);
                let storing = storer::Settings { uploads: 2, max_age, shards: 1, limit };
                self.roles.spawn(Storer::new(context, repository, storing).run());
            }
            Role::Conductor => {
                let conducting = conductor::Settings::default();
                self.roles.spawn(Conductor::new(context, repository, index, conducting).run());
            }
            Role::Restorer => {
                let restoring = restorer::Settings { threads: 1, ..restorer::Settings::default() };
                let restorer = Restorer::new(context, repository, index, identity, restoring);
                let serving = restorer::Serving {
                    host: HOST.to_owned(),
                    allowed: vec![self.folder.path().to_owned()],
                    at_once: 2,
                    beat: Duration::from_secs(5),
                    span: 64 << 20,
                };
                self.roles.spawn(restorer.run(serving));
            }
            Role::Checker => {
                let (beat, patience) = (Duration::from_secs(10), Duration::from_secs(30));
                let serving = checker::Serving { host: HOST.to_owned(), beat, patience, limit };
                let service = checker::Service::new(context, repository, index, identity, serving);
                self.roles.spawn(service.run());
            }
        }
    }

    /// What the volume holds.
    pub fn content(&self) -> Vec<u8> {
        let mut bytes = vec![0; SIZE as usize];
        self.source.content().read(0, &mut bytes);
        bytes
    }

    /// Writes to the volume, and over what was only there.
    pub fn change(&mut self) {
        let mut content = (*self.source.content()).clone();
        (0..4).for_each(|_| content.scribble(&mut self.random, &self.templates));
        self.source.change(content);
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn done(&self, job: JobId) -> JobOutcome {
        let mut ends = self.bus.consume(&Queue::done(job), 1).await.expect("a queue");
        let end = ends.next().await.expect("an end");
        end.ticket.done().await.expect("it is taken");
        end.message.read::<JobDone>().expect("an end of a job").outcome
    }

    /// Backs the volume up.
    pub async fn back_up(&self) -> Root {
        let job = BackupJob {
            job: self.environment.job_id(),
            volume: VOLUME.to_owned(),
            host: HOST.to_owned(),
            source: SOURCE.to_owned(),
            tags: vec!["nightly".to_owned()],
            allow_changes: false,
            group: None,
            plain: false,
        };
        let message = Message::new(&About::nothing(), &job);
        self.bus.publish(&Queue::jobs(), message).await.expect("it is sent");
        match self.done(job.job).await {
            JobOutcome::Sealed { slot, .. } => self.root(slot).await,
            outcome => panic!("{outcome:?}"),
        }
    }

    pub async fn root(&self, slot: Slot) -> Root {
        match self.repository.at_slot(slot).await.expect("a slot") {
            AtSlot::Snapshot(root) => *root,
            other => panic!("{other:?}"),
        }
    }

    /// A restore of a whole snapshot.
    pub fn restore(&self, root: &Root, target: &Path) -> RestoreJob {
        RestoreJob {
            job: self.environment.job_id(),
            slot: root.slot,
            target: target.to_str().expect("a path").to_owned(),
            force: target.exists(),
            preparation: Preparation::default(),
            full: false,
            untracked: false,
            donor: None,
            fetches: Some(2),
            command: Some(self.environment.job_id()),
            more: None,
        }
    }

    /// Has agents do restores, and waits for all.
    pub async fn restored<const N: usize>(&self, jobs: [&RestoreJob; N]) -> [JobOutcome; N] {
        for job in jobs {
            let message = Message::new(&About::nothing(), job);
            self.bus.publish(&Queue::restores(HOST), message).await.expect("it is sent");
        }
        futures::future::join_all(jobs.map(|job| self.done(job.job))).await.try_into().expect("all ends")
    }

    /// Has agents read everything; why that failed where it did. Agents that know nothing of checks leave it to others.
    pub async fn check(&mut self) -> Result<Report, String> {
        let job = jobs::ask(&self.repository, &*self.bus, Part::All, "a test").await.expect("a job");
        if self.is_old(Role::Checker) {
            self.wait(Duration::from_secs(3600)).await;
            let check = self.checked(job).await;
            assert!(check.worker.is_none() && check.tries == 0 && check.end.is_none(), "{check:?}");
            self.update(Role::Checker).await;
        }
        loop {
            match self.checked(job).await.end {
                Some(End::Checked(report)) => return Ok(*report),
                Some(End::Failed { why, .. }) => return Err(why),
                None => self.wait(Duration::from_secs(10)).await,
            }
        }
    }

    pub async fn wait(&self, time: Duration) {
        self.environment.sleep(time).await;
    }

    async fn checked(&self, job: JobId) -> Check {
        jobs::read(&self.repository, job).await.expect("a read").expect("a check")
    }

    /// Turns a bit in the first frame of every pack of content.
    pub async fn rot(&self) {
        for (pack, _) in self.repository.list_packs().await.expect("a listing") {
            let (header, footer) = self.repository.read_footer(pack).await.expect("a footer");
            if header.kind != Domain::Data {
                continue;
            }
            let (key, store) = (names::pack(pack), &self.repository.store);
            let mut bytes = store.get(&key).await.expect("a read").expect("the pack").to_vec();
            let first = footer.entries[0];
            bytes[(first.offset + first.len / 2) as usize] ^= 0x10;
            store.put(&key, bytes.into()).await.expect("it is stored");
        }
    }

    /// Collects, and moves all that can be moved.
    pub async fn prune(&self, tells: bool) -> collector::Report {
        let announce = if tells { Announce::to(self.bus.clone(), 1) } else { Announce::default() };
        let limits = Limits { max_repack: u64::MAX, repack_below: 99 };
        let patience = Patience { wait: Duration::ZERO, revoke_after: None };
        let settings = collector::Settings { limits, memory: 1 << 20, patience, exclusive: false, announce };
        let collector = Collector::new(self.repository.clone(), settings, Stop::default());
        collector.prune().await.expect("a collection")
    }

    /// Every role comes to its end.
    pub async fn end(mut self) {
        self.stops.iter().for_each(|(_, stop)| stop.raise());
        while let Some(ended) = self.roles.join_next().await {
            ended.expect("no panic").expect("no failure");
        }
    }
}
