//! A look into a repository from outside, with the code that agents use.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use agent::Repository;
use agent::store::Store;
use object_store::local::LocalFileSystem;
use schema::keys::Identity;
use schema::names::Slot;
use schema::root::Forgotten;
use schema::{Domain, PackId, SessionId, names};
use tokio::runtime::Runtime;

use super::clock::RealTime;

/// An opened repository.
#[derive(Debug)]
pub struct Archive {
    runtime: Runtime,
    repository: Repository,
}

/// How often chunks of content are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copies {
    /// Stored copies of chunks, over all packs.
    pub stored: usize,
    /// Different chunks.
    pub distinct: usize,
}

impl Copies {
    /// Copies beyond the first, in percent.
    pub fn excess_percent(self) -> f64 {
        (self.stored - self.distinct) as f64 * 100.0 / self.distinct.max(1) as f64
    }
}

fn directory(path: &Path) -> Store {
    let inner = LocalFileSystem::new_with_prefix(path).expect("the repository's directory");
    Store::new(Arc::new(inner), "", &path.display().to_string(), Arc::new(RealTime::new()))
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

impl Archive {
    /// Opens with an identity file.
    pub fn open(store: Store, identity: impl AsRef<Path>) -> Self {
        let text = std::fs::read_to_string(identity).expect("an identity file");
        Self::open_with(store, Some(&Identity::from_file(&text).expect("an identity")))
    }

    fn open_with(store: Store, identity: Option<&Identity>) -> Self {
        let runtime = runtime();
        let repository =
            runtime.block_on(Repository::open(store, None, identity)).expect("the repository opens");
        Self { runtime, repository }
    }

    /// Opens a repository in a directory.
    pub fn in_directory(path: impl AsRef<Path>, identity: impl AsRef<Path>) -> Self {
        Self::open(directory(path.as_ref()), identity)
    }

    /// Opens one that is not encrypted.
    pub fn plain_in_directory(path: impl AsRef<Path>) -> Self {
        Self::open_with(directory(path.as_ref()), None)
    }

    /// The repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Runs something that waits.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// All packs; none while the store is away.
    pub fn packs(&self) -> Option<Vec<PackId>> {
        let packs = self.block_on(self.repository.list_packs()).ok()?;
        Some(packs.into_iter().map(|(pack, _)| pack).collect())
    }

    /// Counts chunks of content by the packs' footers.
    pub fn copies(&self) -> Copies {
        let mut found: BTreeMap<_, usize> = BTreeMap::new();
        for pack in self.packs().expect("a listing of packs") {
            let (header, footer) = self.block_on(self.repository.read_footer(pack)).expect("a footer");
            if header.kind == Domain::Data {
                footer.entries.iter().for_each(|entry| *found.entry(entry.id).or_default() += 1);
            }
        }
        Copies { stored: found.values().sum(), distinct: found.len() }
    }

    /// Bytes in packs.
    pub fn size(&self) -> u64 {
        let packs = self.block_on(self.repository.list_packs()).expect("a listing of packs");
        packs.iter().map(|(_, size)| size).sum()
    }

    /// Forgets a snapshot.
    pub fn forget(&self, snapshot: &str) {
        let slot = self.slot(snapshot);
        let (key, marker) = (slot.forgotten(), Forgotten { slot, time_ms: 0, by: "a test".into() });
        let sealed = self.repository.seal(&key, &marker).expect("a marker");
        self.block_on(self.repository.store.create(&key, sealed)).expect("it is forgotten");
    }

    fn slot(&self, snapshot: &str) -> Slot {
        let session: SessionId = snapshot.parse().expect("a snapshot's id");
        let slots = self.block_on(self.repository.visible_slots(None)).expect("a listing of snapshots");
        slots.into_iter().find(|slot| slot.session == session).expect("the snapshot")
    }

    /// Makes of a snapshot what a collection makes of one that was forgotten: a tombstone.
    pub fn sweep(&self, snapshot: &str) {
        let slot = self.slot(snapshot);
        let tombstone = self.repository.tombstone(slot).expect("a tombstone");
        self.block_on(self.repository.store.put(&slot.snapshot(), tombstone))
            .expect("the slot is overwritten");
    }

    /// Sessions whose objects exist.
    pub fn open_sessions(&self) -> usize {
        self.block_on(self.repository.store.list(names::SESSIONS)).expect("a listing of sessions").len()
    }
}
