//! Copies to the second repository, by the copier as it is: with a storer and an index of its own, in a process that may
//! die at any moment.

use std::sync::{Arc, PoisonError};

use agent::index::IndexClient;
use agent::local::LocalBus;
use agent::rate::RateLimit;
use agent::{Context, Failure, Repository, Stop, sessions};
use copier::{Copier, Copies, Outcome, Settings, Side};
use indexer::Indexer;
use schema::messages::FailureKind;
use schema::root::Root;
use schema::session::SessionKind;
use storer::Storer;
use tokio::task::JoinSet;

use super::Person;
use crate::sim::doom::Doom;
use crate::sim::second::Second;

/// Snapshots copied by one process at most.
const AT_ONCE: usize = 4;
/// Bytes of chunks on their way to the storer.
const QUEUE: usize = 16 << 20;

/// Copies what is missing until it is over.
pub(super) async fn copy(mut person: Person) {
    let world = person.world.clone();
    let Some(second) = &world.second else { return };
    while person.pause(world.plan.life.copying).await {
        let limit = person.next_life();
        match person.live(limit, process(&person, second)).await {
            Some(Ok(())) => {}
            None => {
                world.count_fault("copies killed");
                second.killed.lock().unwrap_or_else(PoisonError::into_inner).insert(person.host());
            }
            Some(Err(failure)) => {
                world.trace.note(format_args!("{} cannot copy: {failure}", person.name));
                person.die();
                person.count("copies that failed");
            }
        }
    }
}

/// Before a copy begins; the last ones are left to the oracle.
async fn end_the_killed(second: &Second, repository: &Repository) -> Result<(), Failure> {
    for session in sessions::list(repository).await? {
        if second.is_of_the_killed(&session) {
            sessions::revoke(repository, &session).await?;
        }
    }
    Ok(())
}

/// Raises a flag when it is dropped.
struct StopOnDrop(Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.raise();
    }
}

/// One process: its roles, and the snapshots that it copies. Whoever drops it kills it.
async fn process(person: &Person, second: &Second) -> Result<(), Failure> {
    let world = &person.world;
    let repository = second.seen_by(&person.name, &Doom::none());
    end_the_killed(second, &repository).await?;
    let stop = Stop::default();
    let _stop = StopOnDrop(stop.clone());
    let context = Context {
        bus: Arc::new(LocalBus::new(world.environment.clone(), QUEUE)),
        environment: world.environment.clone(),
        counters: Arc::default(),
        stop,
        host: person.host().into(),
    };
    let indexing = indexer::Settings {
        path: world.folder.join(&person.name),
        cache_bytes: 1 << 20,
        shards: 1,
        owned: vec![0],
        give_up: world.plan.give_up,
        sync_interval: world.plan.sync_interval,
    };
    let indexer = Indexer::open(context.clone(), repository.clone(), indexing).await?;
    let storing =
        storer::Settings { uploads: 2, max_age: world.plan.pack_age, shards: 1, limit: RateLimit::none() };
    let mut roles = JoinSet::new();
    roles.spawn(indexer.run());
    roles.spawn(Storer::new(context.clone(), repository.clone(), storing).run());
    let index = IndexClient::new(context.bus.clone(), world.environment.clone(), 1);
    let ended = missing(person, context.clone(), Side { repository, index }).await;
    context.stop.raise();
    while roles.join_next().await.is_some() {}
    ended
}

/// Copies some of what is missing, oldest first.
async fn missing(person: &Person, context: Context, to: Side) -> Result<(), Failure> {
    let from = Side { repository: person.repository(), index: person.world.index(&person.name) };
    let (protection, open) = person.protect(SessionKind::Copy, "snapshots", &[]).await?;
    let copied = async {
        let here = copier::snapshots(&from.repository).await?.all()?;
        let there = copier::snapshots(&to.repository).await?.all()?;
        let copies = Copies::new(&from.repository, here.iter(), &to.repository, there.iter());
        let is_missing = |root: &&Root| copies.of(root).is_none();
        let missing: Vec<Root> = here.iter().filter(is_missing).take(AT_ONCE).cloned().collect();
        // Without an identity nothing is opened, for which there are threads, and the ledger opens all that lands.
        let settings = Settings { memory: 16 << 20, level: 1 };
        let copier = Copier::new(context, from.clone(), to.clone(), None, settings, &here)?;
        for root in &missing {
            match copier.copy(&protection, root, |_| ()).await {
                Ok(Outcome::Copied(_)) => person.count("snapshots copied"),
                Ok(Outcome::Present) => person.count("snapshots that were copied already"),
                Err(failure) => {
                    let is_protected = !person.world.ledger.has_ended(open.session().id);
                    if is_protected && failure.kind == FailureKind::Damaged && !failure.retry {
                        let wrong = format!("never-collect-live: {} cannot be copied: {failure}", root.slot);
                        person.world.trace.wrong(wrong);
                    }
                    return Err(failure);
                }
            }
        }
        Ok(())
    };
    let ended = copied.await;
    protection.end(ended).await
}
