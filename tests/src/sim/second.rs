//! A second repository with the keys of the first, in a bucket of its own: where snapshots are copied to, forgotten,
//! brought back and collected as in the first.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use agent::faults::store::{FaultyStore, StoreFaults};
use agent::store::Store;
use agent::{Environment, Failure, Repository};
use schema::keys::WriterKey;
use schema::session::{Session, SessionKind};

use super::bucket::{History, RoleBucket};
use super::counts::Counts;
use super::doom::Doom;
use super::ledger::Ledger;
use super::plan::Plan;
use super::trace::Trace;

/// What is counted there, and what it is called beside what was done in the first.
const COUNTED: [(&str, &str); 12] = [
    ("sessions", "sessions"),
    ("packs written", "packs of copies written"),
    ("packs deleted", "packs of copies deleted"),
    ("packs rewritten", "packs of copies rewritten"),
    ("verdicts", "verdicts on copies"),
    ("snapshots forgotten", "copies forgotten"),
    ("snapshots brought back", "copies brought back"),
    ("snapshots that were back already", "copies that were back already"),
    ("snapshots that were remembered too late", "copies that were remembered too late"),
    ("snapshots swept", "copies swept"),
    ("sessions of the dead ended", "sessions of killed copies ended"),
    ("runs of collectors that waited in vain", "runs of collectors that waited in vain for copies"),
];

/// The second repository.
#[derive(Debug)]
pub struct Second {
    /// Its bucket with its faults.
    pub store: FaultyStore,
    /// What that holds, and must hold.
    pub ledger: Arc<Ledger>,
    /// What was written there.
    pub history: Arc<History>,
    /// The repository, with a store without faults.
    pub repository: Repository,
    /// Copies that were killed, as their sessions name them.
    pub killed: Mutex<BTreeSet<String>>,
    /// What people did there.
    pub done: Mutex<Counts>,
    trace: Arc<Trace>,
}

impl Second {
    /// An empty one.
    pub async fn build(
        plan: &Plan,
        trace: &Arc<Trace>,
        environment: &Arc<dyn Environment>,
        first: &WriterKey,
    ) -> Result<Self, Failure> {
        let history = History::new(trace.clone());
        let plain = Store::new(history.clone(), "", "second bucket", environment.clone());
        let repository = Repository::init_like(plain, first, plan.pack_size).await?;
        let faults = StoreFaults { seed: plan.store.seed ^ 2, ..plan.store.clone() };
        let store = FaultyStore::new(history.clone(), environment.clone(), faults);
        let (ledger, trace) = (history.ledger().clone(), trace.clone());
        let (killed, done) = Default::default();
        Ok(Self { store, ledger, history, repository, killed, done, trace })
    }

    /// Whether nobody drives the session of a copy any more. One that failed has ended its session.
    pub fn is_of_the_killed(&self, session: &Session) -> bool {
        let killed = || self.killed.lock().unwrap_or_else(PoisonError::into_inner);
        session.kind == SessionKind::Copy && killed().contains(&session.host)
    }

    /// What was done there, by names that say so.
    pub fn counts(&self) -> Counts {
        let mut done = self.ledger.counts();
        done.merge(&self.done.lock().unwrap_or_else(PoisonError::into_inner));
        let mut counts = Counts::default();
        for (there, what) in COUNTED {
            counts.add(what, done.of(there));
        }
        counts
    }

    /// The repository as somebody sees it until they die.
    pub fn seen_by(&self, name: &str, doom: &Doom) -> Repository {
        let bucket = RoleBucket::new(name, Arc::new(self.store.clone()), self.trace.clone());
        let environment = self.repository.store.environment().clone();
        let store = Store::new(Arc::new(bucket.doomed(doom.clone())), "", "second bucket", environment);
        Repository { store, ..self.repository.clone() }
    }
}
