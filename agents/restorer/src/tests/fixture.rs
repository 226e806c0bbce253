//! A small repository made by hand, with an index that answers from a table.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::counters::Counters;
use agent::index::IndexClient;
use agent::local::LocalBus;
use agent::repository::NewRepository;
use agent::store::Store;
use agent::{Answerer, Context, Environment, Failure, Repository, Service, Stop};
use async_trait::async_trait;
use bytes::Bytes;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use schema::chunk::{FrameHeader, Sealer};
use schema::keys::{DataKey, FrameKey, Identity};
use schema::map::{Content, Geometry, Leaf, Piece, build_nodes};
use schema::messages::{About, Copy, Locate, Located, Message, Seek, Sought};
use schema::names::{self, Slot};
use schema::pack::{PackBuilder, PackHeader};
use schema::root::{Root, Statistics, Tracking};
use schema::{ChunkId, Domain, PackId, ReadingId};
use tokio::sync::watch;

use super::counting::{Counting, InFlight};
use crate::{Report, Restorer, Serving, Settings, Target};

pub const CHUNK: usize = 64 << 10;
/// Chunks of one pack: some 32 MiB.
const PACK_CHUNKS: usize = 1000;
pub const VOLUME: &str = "host/vg/lv";

/// Time is tokio's, which tests pause; random bytes are a counter's hash.
#[derive(Debug)]
pub struct TestEnvironment {
    start: tokio::time::Instant,
    count: AtomicU64,
}

impl Default for TestEnvironment {
    fn default() -> Self {
        Self { start: tokio::time::Instant::now(), count: AtomicU64::new(0) }
    }
}

#[async_trait]
impl Environment for TestEnvironment {
    fn now_ms(&self) -> u64 {
        1_700_000_000_000
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    #[allow(clippy::disallowed_methods)] // This is the seam's implementation.
    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(16) {
            let n = self.count.fetch_add(1, Ordering::Relaxed);
            let mut hash = 0x9e37_79b9_7f4a_7c15_u128.wrapping_mul(u128::from(n) + 1).wrapping_pow(3);
            hash ^= hash >> 61;
            part.copy_from_slice(&hash.to_le_bytes()[..part.len()]);
        }
    }
}

type Table = Arc<Mutex<BTreeMap<ChunkId, Vec<Copy>>>>;

struct TableIndex(Table);

/// Moves what a look at the bucket shows to where the index has it from then on.
struct Looking {
    table: Table,
    later: Table,
    looks: Arc<AtomicU64>,
}

#[async_trait]
impl Answerer for Looking {
    async fn answer(&mut self, message: &Message) -> Result<Message, Failure> {
        let asked: Seek = message.read()?;
        if self.looks.load(Ordering::SeqCst) == Fixture::DEAF {
            return Err(Failure::refused("this index does not look"));
        }
        let mut table = self.table.lock().unwrap();
        if !asked.looked.contains(&7) {
            self.looks.fetch_add(1, Ordering::SeqCst);
            table.extend(std::mem::take(&mut *self.later.lock().unwrap()));
        }
        let copies = asked.ids.iter().map(|id| table.get(id).cloned().unwrap_or_default()).collect();
        Ok(Message::new(&About::nothing(), &Sought { copies, by: 7 }))
    }
}

#[async_trait]
impl Answerer for TableIndex {
    async fn answer(&mut self, message: &Message) -> Result<Message, Failure> {
        let asked: Locate = message.read()?;
        let table = self.0.lock().unwrap();
        let copies = asked.ids.iter().map(|id| table.get(id).cloned().unwrap_or_default()).collect();
        Ok(Message::new(&About::nothing(), &Located { copies }))
    }
}

pub struct Fixture {
    pub context: Context,
    pub repository: Repository,
    pub table: Table,
    /// What of the table only a look at the bucket shows, and how many there were.
    pub later: Table,
    pub looks: Arc<AtomicU64>,
    pub identity: Option<Arc<Identity>>,
    pub data_key: Option<DataKey>,
    pub reads: Arc<AtomicU64>,
    /// Of those.
    pub in_flight: Arc<InFlight>,
    /// Milliseconds that each takes.
    pub slow: Arc<AtomicU64>,
    /// While this is false, reads of packs wait.
    pub store_is_open: watch::Sender<bool>,
    pub folder: tempfile::TempDir,
    pub index: IndexClient,
}

impl Fixture {
    /// So many looks say that the index takes no such question.
    pub const DEAF: u64 = u64::MAX;

    pub async fn plain() -> Self {
        Self::new(Arc::new(InMemory::new()), false).await
    }

    pub async fn encrypted() -> Self {
        Self::new(Arc::new(InMemory::new()), true).await
    }

    pub async fn new(inner: Arc<dyn ObjectStore>, encrypted: bool) -> Self {
        let environment: Arc<dyn Environment> = Arc::new(TestEnvironment::default());
        let is_open = watch::Sender::new(true);
        let counting = Counting::new(inner, is_open.clone());
        let (reads, in_flight, slow) =
            (counting.reads.clone(), counting.in_flight.clone(), counting.slow.clone());
        let store = Store::new(Arc::new(counting), "repo", "test:repo", environment.clone());
        let identity = encrypted.then(|| Arc::new(Identity::generate()));
        let recipients = identity.as_ref().map(|identity| identity.recipients()).unwrap_or_default();
        let repository =
            Repository::init(store, &NewRepository { recipients, pack_size: 32 << 20 }).await.unwrap();
        let bus = Arc::new(LocalBus::new(environment.clone(), 64 << 20));
        let context = Context {
            bus: bus.clone(),
            environment: environment.clone(),
            counters: Arc::new(Counters::default()),
            stop: Stop::default(),
            host: "host".into(),
        };
        let table = Table::default();
        let (later, looks) = (Table::default(), Arc::new(AtomicU64::new(0)));
        let looking = Looking { table: table.clone(), later: later.clone(), looks: looks.clone() };
        let seeking = Context { stop: Stop::default(), ..context.clone() };
        tokio::spawn(async move { agent::serve(&seeking, &Service::seek(0), looking).await });
        let served = (context.clone(), TableIndex(table.clone()));
        tokio::spawn(async move {
            // The index serves on when a test stops the restorer.
            let context = Context { stop: Stop::default(), ..served.0 };
            agent::serve(&context, &Service::index(0), served.1).await
        });
        let data_key = encrypted.then(|| DataKey::new(&environment.random::<48>()));
        let index = IndexClient::new(bus, environment, 1);
        let folder = tempfile::tempdir().unwrap();
        let fixture = Self {
            context,
            repository,
            table,
            later,
            looks,
            identity,
            data_key,
            reads,
            in_flight,
            slow,
            store_is_open: is_open,
            folder,
            index,
        };
        if let Some(sealed) = fixture.sealed_key() {
            fixture.repository.store.put(&names::key(sealed.id), sealed.sealed).await.unwrap();
        }
        fixture
    }

    fn sealed_key(&self) -> Option<schema::keys::SealedKey> {
        self.data_key.as_ref().map(|key| key.seal(&self.repository.key).unwrap())
    }

    /// Stores chunks in one pack and enters them into the index.
    pub async fn pack(&self, kind: Domain, chunks: &[Bytes]) -> (PackId, Vec<ChunkId>) {
        let pack = self.context.environment.pack_id();
        let mut builder =
            PackBuilder::new(PackHeader { repo: self.repository.key.repo(), pack, kind, class: 0 });
        let key = match (kind, &self.data_key) {
            (Domain::Structure, _) => self.repository.key.structure_key(),
            (Domain::Data, Some(key)) => key.frame_key(),
            (Domain::Data, None) => FrameKey::plain(),
        };
        let mut sealer = Sealer::new(3).unwrap();
        let ids: Vec<ChunkId> = chunks.iter().map(|c| self.repository.key.chunk_ids().id(kind, c)).collect();
        for (id, chunk) in ids.iter().zip(chunks) {
            let mut frame = Vec::new();
            sealer.seal(*id, chunk, &key, &mut frame).unwrap();
            let header = FrameHeader::parse(&frame).unwrap();
            builder.push(&[header], frame.into(), self.context.environment.session_id()).unwrap();
        }
        if let (Domain::Data, Some(sealed)) = (kind, self.sealed_key()) {
            builder.add_key(&sealed);
        }
        let (parts, footer) = builder.finish();
        self.repository.store.put_once(&names::pack(pack), parts).await.unwrap();
        let mut table = self.table.lock().unwrap();
        for entry in footer.entries {
            table.entry(entry.id).or_default().push(Copy { pack, offset: entry.offset, len: entry.len });
        }
        drop(table);
        (pack, ids)
    }

    /// Stores a volume in chunks of 64 KiB and commits its snapshot.
    pub async fn volume(&self, content: &[u8]) -> Root {
        let bytes = |range: Range<u64>| content[range.start as usize..range.end as usize].to_vec();
        self.volume_of(content.len() as u64, bytes).await
    }

    /// The same, of what it holds in the range of each leaf.
    pub async fn volume_of(&self, size: u64, content: impl Fn(Range<u64>) -> Vec<u8>) -> Root {
        let mut fresh: BTreeMap<ChunkId, Bytes> = BTreeMap::new();
        let mut order = Vec::new();
        let geometry = Geometry::new(size).unwrap();
        let mut leaves = Vec::new();
        for leaf in 0..geometry.leaves() {
            let range = geometry.leaf_range(leaf);
            let bytes = content(range.clone());
            let pieces = bytes.chunks(CHUNK).map(|chunk| {
                let len = chunk.len() as u32;
                if chunk == &[0; CHUNK][..chunk.len()] {
                    return Piece { len, content: Content::Zero };
                }
                let id = self.repository.key.chunk_ids().id(Domain::Data, chunk);
                fresh.entry(id).or_insert_with(|| {
                    order.push(id);
                    Bytes::copy_from_slice(chunk)
                });
                Piece { len, content: Content::Chunk(id) }
            });
            leaves.push(Leaf::new(range.end - range.start, pieces).unwrap());
        }
        let chunks: Vec<Bytes> = order.iter().map(|id| fresh[id].clone()).collect();
        for part in chunks.chunks(PACK_CHUNKS) {
            self.pack(Domain::Data, part).await;
        }
        let ids = self.repository.key.chunk_ids();
        let mut structure: Vec<Bytes> = Vec::new();
        let mut store = |bytes: Vec<u8>| {
            let id = ids.id(Domain::Structure, &bytes);
            structure.push(bytes.into());
            id
        };
        let row = leaves.iter().map(|leaf| (!leaf.is_zero()).then(|| store(leaf.encode()))).collect();
        let top = build_nodes(row, |node| Ok(store(node.encode()))).unwrap();
        if !structure.is_empty() {
            self.pack(Domain::Structure, &structure).await;
        }
        self.commit(size, top).await
    }

    async fn commit(&self, size: u64, top: Option<ChunkId>) -> Root {
        let volume = self.repository.key.volume_key(VOLUME);
        let slot = Slot { volume, session: self.context.environment.session_id() };
        let root = Root {
            version: Root::VERSION,
            volume: VOLUME.into(),
            host: "host".into(),
            source: "/nowhere/source".into(),
            slot,
            reading: ReadingId::from_bytes([7; 16]),
            job: schema::JobId::from_bytes([8; 16]),
            generation: 1,
            parent: None,
            size,
            top,
            time_ms: 0,
            sealed_ms: 0,
            group: None,
            changed_while_read: false,
            layout: BTreeMap::new(),
            tags: Vec::new(),
            statistics: Statistics::default(),
            tracking: Tracking::Everything { why: None },
        };
        let bytes = self.repository.seal(&slot.snapshot(), &root).unwrap();
        self.repository.store.put(&slot.snapshot(), bytes).await.unwrap();
        root
    }

    /// Two threads and little memory, so that limits are met.
    pub fn settings(&self) -> Settings {
        Settings { memory: 2 << 20, fetches: 3, threads: 2, ..Settings::default() }
    }

    pub fn restorer(&self) -> Restorer {
        self.restorer_with(self.settings())
    }

    pub fn restorer_with(&self, settings: Settings) -> Restorer {
        let (context, repository) = (self.context.clone(), self.repository.clone());
        Restorer::new(context, repository, self.index.clone(), self.identity.clone(), settings)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub async fn restore(&self, root: &Root, path: &Path) -> Result<Report, Failure> {
        self.restorer().restore(root.clone(), Target::new(path, false), |_| ()).await
    }

    /// The names of all session objects.
    pub async fn sessions(&self) -> Vec<String> {
        let listed = self.repository.store.list(names::SESSIONS).await.unwrap();
        listed.into_iter().map(|listed| listed.key).collect()
    }

    pub async fn overwrite(&self, pack: PackId, bytes: Vec<u8>) {
        self.repository.store.put(&names::pack(pack), bytes.into()).await.unwrap();
    }

    pub async fn bytes_of(&self, pack: PackId) -> Vec<u8> {
        self.repository.store.get(&names::pack(pack)).await.unwrap().unwrap().to_vec()
    }

    /// Moves everything to other packs, of which only a look at the bucket tells.
    pub async fn move_packs(&self) {
        let old = self.table.lock().unwrap().clone();
        let packs: BTreeSet<PackId> = old.values().flatten().map(|copy| copy.pack).collect();
        let mut moved = BTreeMap::new();
        for pack in packs {
            let new = self.context.environment.pack_id();
            self.overwrite(new, self.bytes_of(pack).await).await;
            self.repository.store.delete(&names::pack(pack)).await.unwrap();
            moved.insert(pack, new);
        }
        let copies = |copies: Vec<Copy>| copies.iter().map(|c| Copy { pack: moved[&c.pack], ..*c }).collect();
        *self.later.lock().unwrap() = old.into_iter().map(|(id, all)| (id, copies(all))).collect();
    }

    /// All copies of all data chunks.
    pub fn data_copies(&self) -> Vec<(ChunkId, Copy)> {
        let table = self.table.lock().unwrap();
        let data = table.iter().filter(|(id, _)| id.domain().unwrap() == Domain::Data);
        data.flat_map(|(id, copies)| copies.iter().map(|copy| (*id, *copy))).collect()
    }

    /// The leaves of the one volume that there is, in order, and the nodes above them.
    pub fn leaves(&self) -> Vec<ChunkId> {
        let table = self.table.lock().unwrap();
        let of_maps = table.iter().filter(|(id, _)| id.domain().unwrap() == Domain::Structure);
        let mut stored: Vec<(u32, ChunkId)> = of_maps.map(|(id, copies)| (copies[0].offset, *id)).collect();
        stored.sort_unstable();
        stored.into_iter().map(|(_, id)| id).collect()
    }
}

/// An agent of `host` that takes one job at a time.
pub fn serving(allowed: Vec<PathBuf>) -> Serving {
    Serving { host: "host".into(), allowed, at_once: 1, beat: Duration::from_secs(1), span: 64 << 20 }
}

/// `len` bytes that compress somewhat and differ by seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes()[..4]);
        out.extend_from_slice(b"lvm2");
    }
    out.truncate(len);
    out
}
