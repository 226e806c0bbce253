//! Who else uses a repository, over months: collectors, those who forget, bring back, hold and copy snapshots, those who
//! read them; and the time that goes by.
//!
//! Each draws what it does from the plan's seed, goes on until it is over, and may die in the middle.

mod collecting;
mod copying;
mod forgetting;
mod reading;
mod restoring;
mod undoing;

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use agent::sessions::OpenSession;
use agent::{Failure, Protection, ReadBy, Repository, Stop};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use schema::JobId;
use schema::messages::FailureKind;
use schema::session::{Session, SessionKind};
use tokio::task::JoinSet;

use super::cluster::World;
use super::doom::Doom;
use super::ledger::Ledger;
use super::second::Second;

/// One of how many sessions ends by the death of who drives it.
const DEATHS: u64 = 10;
/// Within how long.
const LIFE: Duration = Duration::from_secs(2);

/// Everybody of a plan.
#[derive(Debug)]
pub struct People(JoinSet<()>);

impl People {
    /// They begin.
    pub fn begin(world: &Arc<World>) -> Self {
        let mut people = JoinSet::new();
        let life = &world.plan.life;
        if !life.leaps.is_empty() {
            people.spawn(leap(world.clone()));
            if life.policy.is_none() {
                people.spawn(forgetting::forget(Person::new(world, "forgetter", 0)));
            }
            people.spawn(forgetting::remember(Person::new(world, "rememberer", 0)));
            people.spawn(forgetting::hold(Person::new(world, "holder", 0)));
            people.spawn_local(copying::copy(Person::new(world, "copier", 0)));
            people.spawn(forgetting::forget(Person::of_copies(world, "forgetter of copies")));
            people.spawn(forgetting::remember(Person::of_copies(world, "rememberer of copies")));
            people.spawn(collecting::collect(Person::of_copies(world, "collector of copies")));
        }
        for number in 0..life.collectors {
            people.spawn(collecting::collect(Person::new(world, "collector", number)));
        }
        for number in 0..life.restorers {
            people.spawn_local(reading::restore(Person::new(world, "restorer", number), number));
        }
        Self(people)
    }

    /// Waits until each has finished what it was doing.
    pub async fn finish(mut self, world: &World) {
        world.over.raise();
        while let Some(ended) = self.0.join_next().await {
            if let Err(why) = ended {
                world.trace.wrong(format!("somebody panicked: {why}"));
            }
        }
        // Who brought something back may have carried a hold that was being released.
        if let Err(failure) = forgetting::release_all(&world.repository).await {
            world.trace.wrong(format!("progress: holds cannot be released: {failure}"));
        }
    }
}

async fn leap(world: Arc<World>) {
    for (pause, time) in &world.plan.life.leaps {
        world.environment.sleep(*pause).await;
        world.clock.leap(*time);
        world.trace.note(format_args!("{} hours go by", time.as_secs() / 3600));
    }
}

/// One of them.
struct Person {
    world: Arc<World>,
    random: StdRng,
    name: String,
    lives: u32,
    /// Whether they look after the second repository.
    of_copies: bool,
}

impl Person {
    fn new(world: &Arc<World>, role: &str, number: usize) -> Self {
        let name = format!("{role}-{number}");
        let tag = name.bytes().fold(0_u64, |tag, byte| tag.wrapping_mul(131).wrapping_add(u64::from(byte)));
        let random = StdRng::seed_from_u64(world.plan.seed ^ tag);
        Self { world: world.clone(), random, name, lives: 0, of_copies: false }
    }

    /// The same for the second repository.
    fn of_copies(world: &Arc<World>, role: &str) -> Self {
        Self { of_copies: true, ..Self::new(world, role, 0) }
    }

    fn second(&self) -> Option<&Second> {
        self.world.second.as_ref().filter(|_| self.of_copies)
    }

    /// What landed in the repository.
    fn ledger(&self) -> &Ledger {
        self.second().map_or(&self.world.ledger, |second| &second.ledger)
    }

    fn repository(&self) -> Repository {
        self.repository_until(&Doom::none())
    }

    fn repository_until(&self, doom: &Doom) -> Repository {
        match self.second() {
            Some(second) => second.seen_by(&self.name, doom),
            None => self.world.repository_until(&self.name, doom),
        }
    }

    /// Waits a while; says no when it is over.
    async fn pause(&mut self, most: Duration) -> bool {
        let drawn = self.random_below(most);
        self.world.environment.timeout(drawn, self.world.over.raised()).await.is_none()
    }

    fn random_below(&mut self, most: Duration) -> Duration {
        Duration::from_micros(self.random.random_range(0..=most.as_micros() as u64))
    }

    fn one_of<T: Clone>(&mut self, things: &[T]) -> Option<T> {
        (!things.is_empty()).then(|| things[self.random.random_range(0..things.len())].clone())
    }

    fn count(&self, what: &'static str) {
        match self.second() {
            Some(second) => second.done.lock().unwrap_or_else(PoisonError::into_inner).add(what, 1),
            None => self.world.count(what),
        }
    }

    /// Whether nobody drives a session any more.
    fn is_abandoned(&self, session: &Session) -> bool {
        match self.second() {
            Some(second) if session.kind == SessionKind::Copy => second.is_of_the_killed(session),
            _ => self.world.is_abandoned(session),
        }
    }

    /// Who drives a session of this life.
    fn host(&self) -> String {
        format!("{}/{}", self.name, self.lives)
    }

    /// What is left of this life's sessions has nobody who drives it.
    fn die(&self) {
        self.world.trace.note(format_args!("{} dies", self.name));
        self.world.crashed.lock().unwrap_or_else(PoisonError::into_inner).insert(self.host());
    }

    /// Another life begins: how long it takes, when it is to end in the middle of something.
    fn next_life(&mut self) -> Option<Duration> {
        self.lives += 1;
        let dies = self.random.random_range(0..DEATHS) == 0;
        dies.then(|| self.random_below(LIFE))
    }

    /// What is done in a life, unless that ends before.
    async fn live<T>(&self, limit: Option<Duration>, life: impl Future<Output = T>) -> Option<T> {
        let Some(limit) = limit else { return Some(life.await) };
        let ended = self.world.environment.timeout(limit, life).await;
        if ended.is_none() {
            self.die();
            self.world.count_fault("deaths of those who copy and restore");
        }
        ended
    }

    /// Protects what is read from now on, and backups of what will be overwritten.
    async fn protect(
        &self,
        kind: SessionKind,
        volume: &str,
        undo: &[JobId],
    ) -> Result<(Protection, Arc<OpenSession>), Failure> {
        let environment = &self.world.environment;
        let (session, job, host) = (environment.session_id(), environment.job_id(), self.host());
        let by = ReadBy { kind, session, job, volume, host: &host, undo };
        let protection = Protection::begin(&self.repository(), by, &Stop::default()).await?;
        match protection.session().cloned() {
            Some(open) => Ok((protection, open)),
            None => Err(Failure::new(FailureKind::Store, "nothing protects what would be read")),
        }
    }
}
