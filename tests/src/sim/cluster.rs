//! The roles of a run, each a task that can die at any moment and comes back after a while.
//!
//! A role that dies takes all its tasks and everything in memory with it. What it had sent stays sent.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent::faults::store::FaultyStore;
use agent::index::IndexClient;
use agent::rate::RateLimit;
use agent::store::Store;
use agent::{Context, Environment, Failure, Queue, Repository, Stop, Volumes};
use conductor::Conductor;
use conductor::retention::{Policies, Policy, Rules};
use hasher::{ContentKey, Hasher};
use indexer::Indexer;
use reader::Reader;
use schema::JobId;
use schema::keys::Identity;
use schema::session::{Session, SessionKind};
use storer::Storer;
use tempfile::TempDir;
use tokio::task::{AbortHandle, JoinSet};

use super::bucket::RoleBucket;
use super::client::Job;
use super::counts::Counts;
use super::doom::Doom;
use super::environment::SimEnvironment;
use super::leaks::Leaks;
use super::ledger::Ledger;
use super::plan::Plan;
use super::saboteur::{Sabotage, without_recipients};
use super::second::Second;
use super::sources::{Source, Sources};
use super::trace::Trace;
use super::wires::Wires;

/// What every role of a run stands on.
#[derive(Debug)]
pub struct World {
    /// The plan.
    pub plan: Plan,
    /// Clock and randomness.
    pub environment: Arc<dyn Environment>,
    /// The same clock, which can leap.
    pub clock: Arc<SimEnvironment>,
    /// What happened.
    pub trace: Arc<Trace>,
    /// The bus.
    pub wires: Arc<Wires>,
    /// What must not leave a host.
    pub leaks: Arc<Leaks>,
    /// The bucket with its faults.
    pub store: FaultyStore,
    /// What the bucket holds, and must hold.
    pub ledger: Arc<Ledger>,
    /// The repository, with a store of its own.
    pub repository: Repository,
    /// Opens content, where that is encrypted.
    pub identity: Option<Arc<Identity>>,
    /// Where snapshots are copied to, over months.
    pub second: Option<Second>,
    /// The sources of each host, the targets of restores among them.
    pub sources: Vec<Arc<Sources>>,
    /// A folder for caches.
    pub folder: PathBuf,
    /// A folder for the files that restorers write.
    pub targets: TempDir,
    /// Lives of roles that ended by a crash, as their context's host names them.
    pub crashed: Mutex<BTreeSet<String>>,
    /// Nobody begins anything any more.
    pub over: Stop,
    /// Backups of what restores overwrite.
    pub kept: Mutex<Vec<Job>>,
    /// Snapshots that somebody who died, or had to give up, was bringing back, by the jobs of these sessions.
    pub unfinished: Mutex<BTreeSet<JobId>>,
    /// When the bucket was away, in milliseconds since 1970.
    pub outages: Mutex<Vec<Range<u64>>>,
    /// Jobs of sessions that somebody ended.
    pub cancelled: Mutex<BTreeSet<JobId>>,
    /// What people did.
    pub done: Mutex<Counts>,
    /// What went wrong on purpose, beside what bus and bucket count themselves.
    pub faults: Mutex<Counts>,
}

impl World {
    /// Shards of the index.
    pub fn shards(&self) -> u16 {
        self.plan.indexers as u16 * self.plan.shards_each
    }

    /// What a role is given, under its name. The host names the life, so that sessions say who drove them.
    pub fn context(&self, name: &str, life: u32, stop: Stop) -> Context {
        Context {
            bus: self.wires.bus(name),
            environment: self.environment.clone(),
            counters: Arc::default(),
            stop,
            host: life_name(name, life).into(),
        }
    }

    /// The repository as a role sees it.
    pub fn repository(&self, name: &str) -> Repository {
        self.repository_until(name, &Doom::none())
    }

    /// The repository as somebody sees it until they die.
    pub fn repository_until(&self, name: &str, doom: &Doom) -> Repository {
        let bucket = RoleBucket::new(name, Arc::new(self.store.clone()), self.trace.clone());
        let bucket = bucket.doomed(doom.clone());
        let store = Store::new(Arc::new(bucket), "", "bucket", self.environment.clone());
        Repository { store, ..self.repository.clone() }
    }

    /// The index as somebody asks it.
    pub fn index(&self, name: &str) -> IndexClient {
        IndexClient::new(self.wires.bus(name), self.environment.clone(), self.shards())
    }

    /// Whether who is named so has died.
    pub fn has_crashed(&self, host: &str) -> bool {
        self.crashed.lock().unwrap_or_else(PoisonError::into_inner).contains(host)
    }

    /// Whether nobody drives a session any more.
    pub fn is_abandoned(&self, session: &Session) -> bool {
        let unfinished =
            || self.unfinished.lock().unwrap_or_else(PoisonError::into_inner).contains(&session.job);
        self.has_crashed(&session.host) || session.kind == SessionKind::Unforget && unfinished()
    }

    /// A source of any host.
    pub fn source(&self, name: &str) -> Option<&Arc<Source>> {
        self.sources.iter().find_map(|sources| sources.source(name))
    }

    /// Whether the bucket was away at some moment of a time.
    pub fn was_away(&self, time: &Range<u64>) -> bool {
        self.was_away_for(Duration::ZERO, time)
    }

    /// Whether the bucket was away for so long at once, at some moment of a time.
    pub fn was_away_for(&self, long: Duration, time: &Range<u64>) -> bool {
        let outages = self.outages.lock().unwrap_or_else(PoisonError::into_inner);
        let is_long = |outage: &Range<u64>| u128::from(outage.end - outage.start) >= long.as_millis();
        outages.iter().any(|outage| is_long(outage) && outage.start <= time.end && time.start <= outage.end)
    }

    /// Whether somebody ended a session of this job.
    pub fn was_cancelled(&self, job: JobId) -> bool {
        self.cancelled.lock().unwrap_or_else(PoisonError::into_inner).contains(&job)
    }

    /// Counts what somebody did.
    pub fn count(&self, what: &'static str) {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).add(what, 1);
    }

    /// Counts what went wrong on purpose.
    pub fn count_fault(&self, what: &'static str) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).add(what, 1);
    }

    fn random_below(&self, limit: Duration) -> Duration {
        let drawn = u64::from_le_bytes(self.environment.random());
        Duration::from_micros(drawn % (limit.as_micros() as u64).max(1))
    }
}

/// A role and its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The reader of a host.
    Reader(usize),
    /// A hasher of a host, and which.
    Hasher(usize, usize),
    /// An indexer.
    Indexer(usize),
    /// A storer.
    Storer(usize),
    /// A conductor.
    Conductor(usize),
}

impl Role {
    fn name(self) -> String {
        match self {
            Self::Reader(host) => format!("reader-{host}"),
            Self::Hasher(host, n) => format!("hasher-{host}.{n}"),
            Self::Indexer(n) => format!("indexer-{n}"),
            Self::Storer(n) => format!("storer-{n}"),
            Self::Conductor(n) => format!("conductor-{n}"),
        }
    }
}

fn life_name(name: &str, life: u32) -> String {
    format!("{name}/{life}")
}

/// The name of a host.
pub fn host(number: usize) -> String {
    format!("host{number}")
}

#[derive(Debug)]
struct Place {
    role: Role,
    state: Mutex<PlaceState>,
}

#[derive(Debug, Default)]
struct PlaceState {
    life: u32,
    caches: u32,
    task: Option<AbortHandle>,
    stop: Stop,
    ending: bool,
}

impl Place {
    fn state(&self) -> MutexGuard<'_, PlaceState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All roles of a run.
#[derive(Debug)]
pub struct Cluster {
    world: Arc<World>,
    places: Vec<Arc<Place>>,
    keepers: JoinSet<()>,
}

impl Cluster {
    /// Starts every role of the plan.
    pub fn start(world: &Arc<World>) -> Self {
        let plan = &world.plan;
        let mut roles: Vec<Role> = (0..plan.indexers).map(Role::Indexer).collect();
        roles.extend((0..plan.storers).map(Role::Storer));
        for host in 0..plan.hosts {
            roles.push(Role::Reader(host));
            roles.extend((0..plan.hashers).map(|n| Role::Hasher(host, n)));
        }
        roles.extend((0..plan.conductors).map(Role::Conductor));
        let place = |role| Arc::new(Place { role, state: Mutex::default() });
        let places: Vec<_> = roles.into_iter().map(place).collect();
        let mut keepers = JoinSet::new();
        for place in &places {
            keepers.spawn(keep(world.clone(), place.clone()));
        }
        Self { world: world.clone(), places, keepers }
    }

    /// How many roles there are.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Ends a role at once; whether there was one. A forgetful one finds an empty cache when it comes back.
    pub fn crash(&self, which: usize, forgetful: bool) -> bool {
        let place = &self.places[which % self.places.len()];
        let mut state = place.state();
        self.world.trace.note(format_args!("crash of {}", place.role.name()));
        if forgetful {
            state.caches += 1;
        }
        let living = state.task.take().filter(|task| !task.is_finished());
        living.inspect(AbortHandle::abort).is_some()
    }

    /// Tells a role to stop; it comes back. Whether there was one that had not been told.
    pub fn restart(&self, which: usize) -> bool {
        let place = &self.places[which % self.places.len()];
        self.world.trace.note(format_args!("{} is told to stop", place.role.name()));
        let state = place.state();
        let is_hit = state.task.as_ref().is_some_and(|task| !task.is_finished()) && !state.stop.is_raised();
        state.stop.raise();
        is_hit
    }

    /// Lets every role finish. Whether all did within `limit`.
    pub async fn finish(mut self, limit: Duration) -> bool {
        for place in &self.places {
            let mut state = place.state();
            state.ending = true;
            state.stop.raise();
        }
        let all = async { while self.keepers.join_next().await.is_some() {} };
        self.world.environment.timeout(limit, all).await.is_some()
    }
}

/// Starts a role again and again.
async fn keep(world: Arc<World>, place: Arc<Place>) {
    loop {
        let stop = Stop::default();
        let name = place.role.name();
        let (life, caches) = {
            let mut state = place.state();
            if state.ending {
                return;
            }
            state.life += 1;
            state.stop = stop.clone();
            (state.life, state.caches)
        };
        world.trace.note(format_args!("{name} starts, life {life}"));
        let context = world.context(&name, life, stop);
        let task = tokio::spawn(live(world.clone(), context, place.role, name.clone(), caches));
        world.wires.lives(&name, task.abort_handle());
        place.state().task = Some(task.abort_handle());
        match task.await {
            Ok(Ok(())) => world.trace.note(format_args!("{name} ends")),
            Ok(Err(failure)) => {
                world.trace.note(format_args!("{name} fails: {failure}"));
                if failure.why.contains("panicked") {
                    world.trace.wrong(format!("{name} panicked: {failure}"));
                }
            }
            Err(why) if why.is_cancelled() => {
                world.trace.note(format_args!("{name} is dead"));
                let mut crashed = world.crashed.lock().unwrap_or_else(PoisonError::into_inner);
                crashed.insert(life_name(&name, life));
            }
            Err(why) => world.trace.wrong(format!("{name} panicked: {why}")),
        }
        let absence = world.random_below(world.plan.absence) + Duration::from_millis(1);
        world.environment.sleep(absence).await;
    }
}

/// What conductors forget after each session.
fn policies(plan: &Plan) -> Policies {
    let keep = |last| Policy { volumes: "*".into(), rules: Rules { last, ..Rules::default() } };
    Policies::new(plan.life.policy.map(keep).into_iter().collect())
}

/// One life of a role.
async fn live(
    world: Arc<World>,
    context: Context,
    role: Role,
    name: String,
    caches: u32,
) -> Result<(), Failure> {
    let plan = &world.plan;
    let index = IndexClient::new(context.bus.clone(), context.environment.clone(), world.shards());
    if plan.sabotage.is_some_and(|sabotage| sabotage.silences(&name)) {
        context.stop.raised().await;
        return Ok(());
    }
    match role {
        Role::Reader(host_number) => {
            let host = host(host_number);
            let extents = Queue::extents(&host);
            let settings = reader::Settings {
                segment: plan.segment,
                segments: 4,
                extents,
                audit: plan.audit,
                ..reader::Settings::new(host)
            };
            let volumes: Arc<dyn Volumes> = world.sources[host_number].clone();
            let key = &world.repository.key;
            Reader::new(context, volumes, settings, key.cut_seed(), key.chunk_ids()).run().await
        }
        Role::Hasher(host_number, _) => {
            let key = &world.repository.key;
            let content = match plan.sabotage {
                Some(Sabotage::SealsNothing) => {
                    ContentKey::new(&without_recipients(key)?, &*context.environment)?
                }
                _ => ContentKey::new(key, &*context.environment)?,
            };
            let settings = hasher::Settings { level: 1, extents: Queue::extents(&host(host_number)) };
            Hasher::new(context, settings, index, key, Arc::new(content))?.run().await
        }
        Role::Indexer(number) => {
            let first = number as u16 * plan.shards_each;
            let settings = indexer::Settings {
                path: world.folder.join(format!("{name}.{caches}")),
                cache_bytes: 1 << 20,
                shards: world.shards(),
                owned: (first..first + plan.shards_each).collect(),
                give_up: plan.give_up,
                sync_interval: plan.sync_interval,
            };
            Indexer::open(context, world.repository(&name), settings).await?.run().await
        }
        Role::Storer(_) => {
            let settings = storer::Settings {
                uploads: 2,
                max_age: plan.pack_age,
                shards: world.shards(),
                limit: RateLimit::none(),
            };
            Storer::new(context, world.repository(&name), settings).run().await
        }
        Role::Conductor(_) => {
            let repository = world.repository(&name);
            let conductor = Conductor::new(context, repository, index, plan.conducting.clone());
            conductor.with_retention(policies(plan)).run().await
        }
    }
}
