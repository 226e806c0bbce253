//! What the indexer's tests stand on: an environment on tokio's time, a plain repository in memory, and packs in it.

#![allow(clippy::disallowed_methods, reason = "this is where a test's time comes from")]

mod gate;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agent::faults::store::{FaultyStore, StoreFaults};
use agent::local::LocalBus;
use agent::repository::NewRepository;
use agent::store::Store;
use agent::{Context, Environment, Repository, Stop};
use async_trait::async_trait;
use bytes::Bytes;
use gate::{Gate, GatedListing};
use indexer::{Indexer, OpenError, Settings};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use schema::chunk::{FrameHeader, Sealer};
use schema::keys::FrameKey;
use schema::messages::{Answer, Ask, Copy, Locate, PackStored};
use schema::pack::{PackBuilder, PackHeader};
use schema::{ChunkId, Domain, PackId, SessionId, names};

/// Time as tokio has it, so that a test may pause and advance it; random bytes that never repeat.
#[derive(Debug)]
pub struct TestEnvironment {
    start: tokio::time::Instant,
    drawn: AtomicU64,
}

impl TestEnvironment {
    pub fn new() -> Self {
        Self { start: tokio::time::Instant::now(), drawn: AtomicU64::new(1) }
    }
}

#[async_trait]
impl Environment for TestEnvironment {
    fn now_ms(&self) -> u64 {
        // Ids carry this time: the later one must be the greater, whatever the clock's grain.
        1_700_000_000_000 + self.drawn.fetch_add(1, Ordering::Relaxed)
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            let drawn = self.drawn.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            part.copy_from_slice(&drawn.to_le_bytes()[..part.len()]);
        }
    }
}

/// A repository, a bus, and directories for caches.
pub struct World {
    pub context: Context,
    pub repository: Repository,
    pub directory: tempfile::TempDir,
}

impl World {
    pub async fn new() -> Self {
        Self::with_gate().await.0
    }

    /// A world whose listings can be held up.
    pub async fn with_gate() -> (Self, Arc<Gate>) {
        let environment: Arc<dyn Environment> = Arc::new(TestEnvironment::new());
        let gate = Arc::new(Gate::default());
        let objects = GatedListing { objects: InMemory::new(), gate: gate.clone() };
        (Self::over(Arc::new(objects), environment).await, gate)
    }

    /// A world whose store fails as it is told to.
    pub async fn faulty() -> (Self, FaultyStore) {
        let environment: Arc<dyn Environment> = Arc::new(TestEnvironment::new());
        let store = FaultyStore::new(Arc::new(InMemory::new()), environment.clone(), StoreFaults::default());
        (Self::over(Arc::new(store.clone()), environment).await, store)
    }

    async fn over(objects: Arc<dyn ObjectStore>, environment: Arc<dyn Environment>) -> Self {
        let repository = init(objects, environment.clone()).await;
        let context = Context {
            bus: Arc::new(LocalBus::new(environment.clone(), 64 << 20)),
            environment,
            counters: Arc::default(),
            stop: Stop::default(),
            host: "test".into(),
        };
        Self { context, repository, directory: tempfile::tempdir().expect("a directory") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn settings(&self, name: &str) -> Settings {
        self.settings_of(name, 1, &[0])
    }

    pub fn settings_of(&self, name: &str, shards: u16, owned: &[u16]) -> Settings {
        Settings {
            path: self.path(name),
            cache_bytes: 4 << 20,
            shards,
            owned: owned.to_vec(),
            give_up: Duration::from_secs(60),
            sync_interval: Duration::from_secs(600),
        }
    }

    pub async fn open(&self, settings: &Settings) -> Result<Indexer, OpenError> {
        Indexer::open(self.context.clone(), self.repository.clone(), settings.clone()).await
    }

    /// The id of the chunk that holds this number.
    pub fn id(&self, chunk: u32) -> ChunkId {
        self.repository.key.chunk_ids().id(Domain::Data, &plaintext(chunk))
    }

    pub fn ids(&self, chunks: impl IntoIterator<Item = u32>) -> Vec<ChunkId> {
        chunks.into_iter().map(|chunk| self.id(chunk)).collect()
    }

    /// A pack of these chunks, not in the bucket yet.
    pub fn build(&self, chunks: impl IntoIterator<Item = u32>) -> (PackStored, Vec<Bytes>) {
        let pack = self.context.environment.pack_id();
        let header = PackHeader { repo: self.repository.key.repo(), pack, kind: Domain::Data, class: 0 };
        let mut builder = PackBuilder::new(header);
        let mut sealer = Sealer::new(3).expect("a level");
        for chunk in chunks {
            let mut frame = Vec::new();
            sealer.seal(self.id(chunk), &plaintext(chunk), &FrameKey::plain(), &mut frame).expect("sealed");
            let headers = [FrameHeader::parse(&frame).expect("a frame")];
            builder.push(&headers, frame.into(), SessionId::from_bytes([1; 16])).expect("room");
        }
        let (parts, footer) = builder.finish();
        (PackStored { pack, entries: footer.entries }, parts)
    }

    /// A pack of these chunks in the bucket.
    pub async fn put(&self, chunks: impl IntoIterator<Item = u32>) -> PackStored {
        let (stored, parts) = self.build(chunks);
        self.repository.store.put_once(&names::pack(stored.pack), parts).await.expect("stored");
        stored
    }

    pub async fn delete(&self, pack: PackId) {
        self.repository.store.delete(&names::pack(pack)).await.expect("deleted");
    }
}

pub async fn new_repository(environment: Arc<dyn Environment>) -> Repository {
    init(Arc::new(InMemory::new()), environment).await
}

async fn init(objects: Arc<dyn ObjectStore>, environment: Arc<dyn Environment>) -> Repository {
    let store = Store::new(objects, "", "memory", environment);
    let new = NewRepository { recipients: Vec::new(), pack_size: 32 << 20 };
    Repository::init(store, &new).await.expect("a repository")
}

fn plaintext(chunk: u32) -> Vec<u8> {
    // Every sixteenth chunk is long, so that frames differ in length.
    let len = if chunk.is_multiple_of(16) { 20_000 } else { 64 };
    chunk.to_le_bytes().iter().copied().cycle().take(len).collect()
}

/// A question about these chunks on behalf of a session's extent.
pub fn question(session: u8, extent: u64, force: bool, ids: Vec<ChunkId>) -> Ask {
    Ask { session: SessionId::from_bytes([session; 16]), extent, force, shards: 1, ids }
}

/// The answer for one chunk, in an index of one shard.
pub fn ask(indexer: &Indexer, session: u8, force: bool, id: ChunkId) -> Answer {
    indexer.ask(&question(session, 0, force, vec![id])).expect("an answer").answers[0]
}

/// All copies of these chunks, in an index of one shard.
pub fn locate(indexer: &Indexer, ids: &[ChunkId]) -> Vec<Vec<Copy>> {
    indexer.locate(&Locate { shards: 1, ids: ids.to_vec() }).expect("an answer").copies
}

/// Where a pack has a chunk.
pub fn copy_in(stored: &PackStored, id: ChunkId) -> Copy {
    let entry = stored.entries.iter().find(|entry| entry.id == id).expect("the chunk is in the pack");
    Copy { pack: stored.pack, offset: entry.offset, len: entry.len }
}

/// All files below a directory.
pub fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory").flatten() {
        match entry.path().is_dir() {
            true => found.extend(files(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found.sort();
    found
}

/// Copies a directory that is in use, as a crash would leave it.
pub fn crash_image(from: &Path, to: &Path) {
    for file in files(from) {
        let target = to.join(file.strip_prefix(from).expect("below"));
        std::fs::create_dir_all(target.parent().expect("a parent")).expect("made");
        std::fs::copy(&file, &target).expect("copied");
    }
}
