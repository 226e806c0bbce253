//! A second repository with the keys of the first, in a bucket of its own: where snapshots are copied to.

use std::sync::Arc;

use agent::faults::store::{FaultyStore, StoreFaults};
use agent::store::Store;
use agent::{Environment, Failure, Repository};
use schema::keys::WriterKey;

use super::bucket::{History, RoleBucket};
use super::doom::Doom;
use super::ledger::Ledger;
use super::plan::Plan;
use super::trace::Trace;

/// The second repository.
#[derive(Debug)]
pub struct Second {
    /// Its bucket with its faults.
    pub store: FaultyStore,
    /// What that holds, and must hold.
    pub ledger: Arc<Ledger>,
    /// The repository, with a store without faults.
    pub repository: Repository,
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
        Ok(Self { store, ledger: history.ledger().clone(), repository, trace: trace.clone() })
    }

    /// The repository as somebody sees it until they die.
    pub fn seen_by(&self, name: &str, doom: &Doom) -> Repository {
        let bucket = RoleBucket::new(name, Arc::new(self.store.clone()), self.trace.clone());
        let environment = self.repository.store.environment().clone();
        let store = Store::new(Arc::new(bucket.doomed(doom.clone())), "", "second bucket", environment);
        Repository { store, ..self.repository.clone() }
    }
}
