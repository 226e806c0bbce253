//! What the tests of sessions stand on: paused time, a repository in memory behind faults and a recorder, and objects
//! written by hand.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::faults::record::RecordingStore;
use agent::faults::store::{FaultyStore, StoreFaults};
use agent::repository::NewRepository;
use agent::store::Store;
use agent::{Environment, Repository};
use bytes::Bytes;
use object_store::memory::InMemory;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use schema::chunk::{FrameHeader, Sealer};
use schema::epoch::{Epoch, Verdict};
use schema::keys::FrameKey;
use schema::names::{self, Slot};
use schema::pack::{PackBuilder, PackHeader};
use schema::root::{Forgotten, Root, Statistics, Tracking};
use schema::session::{Session, SessionKind};
use schema::tombstone::Tombstones;
use schema::{ChunkId, Domain, JobId, PackId, ReadingId, SessionId};

pub const VOLUME: &str = "host/vg/lv";

#[derive(Debug)]
pub struct PausedTime {
    start: tokio::time::Instant,
    random: Mutex<StdRng>,
}

#[allow(clippy::disallowed_methods, reason = "this is the seam, over a paused clock")]
#[async_trait::async_trait]
impl Environment for PausedTime {
    fn now_ms(&self) -> u64 {
        1_700_000_000_000 + self.elapsed().as_millis() as u64
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        self.random.lock().unwrap().fill_bytes(bytes);
    }
}

pub fn environment() -> Arc<dyn Environment> {
    environment_of(1)
}

/// An environment with its own random bytes.
pub fn environment_of(seed: u64) -> Arc<dyn Environment> {
    let random = Mutex::new(StdRng::seed_from_u64(seed));
    Arc::new(PausedTime { start: tokio::time::Instant::now(), random })
}

/// A plain repository; its operations pass the recorder, then the faults.
pub struct World {
    pub environment: Arc<dyn Environment>,
    pub record: RecordingStore,
    pub faults: FaultyStore,
    pub repository: Repository,
}

impl World {
    pub async fn new() -> Self {
        Self::with_pack_size(32 << 20).await
    }

    pub async fn with_pack_size(pack_size: u64) -> Self {
        let environment = environment();
        let faults = FaultyStore::new(Arc::new(InMemory::new()), environment.clone(), StoreFaults::default());
        let record = RecordingStore::new(Arc::new(faults.clone()));
        let store = Store::new(Arc::new(record.clone()), "", "test", environment.clone());
        let new = NewRepository { recipients: Vec::new(), pack_size };
        let repository = Repository::init(store, &new).await.unwrap();
        record.take();
        Self { environment, record, faults, repository }
    }

    pub fn slot(&self, session: u8) -> Slot {
        Slot { volume: self.repository.key.volume_key(VOLUME), session: session_id(session) }
    }

    /// The body of a session object that backs up the volume.
    pub fn session(&self, session: u8) -> Session {
        Session {
            id: session_id(session),
            kind: SessionKind::Backup,
            slot: Some(self.slot(session)),
            job: JobId::from_bytes([session; 16]),
            volume: VOLUME.into(),
            host: "host".into(),
            started_ms: 0,
            checkpoint: None,
            ended: None,
            undo: Vec::new(),
        }
    }

    pub fn root(&self, session: u8, generation: u64, time_ms: u64) -> Root {
        Root {
            version: Root::VERSION,
            volume: VOLUME.into(),
            host: "host".into(),
            source: "/dev/vg/lv".into(),
            slot: self.slot(session),
            job: JobId::from_bytes([session; 16]),
            reading: ReadingId::from_bytes([7; 16]),
            generation,
            parent: None,
            size: 0,
            top: None,
            time_ms,
            sealed_ms: time_ms,
            group: None,
            changed_while_read: false,
            layout: BTreeMap::new(),
            tags: Vec::new(),
            statistics: Statistics::default(),
            tracking: Tracking::Everything { why: None },
        }
    }

    pub async fn put(&self, key: &str, bytes: Bytes) {
        self.repository.store.put(key, bytes).await.unwrap();
        self.record.take();
    }

    pub async fn get(&self, key: &str) -> Option<Bytes> {
        let got = self.repository.store.get(key).await.unwrap();
        self.record.take();
        got
    }

    pub async fn empty(&self, key: &str) {
        self.put(key, Bytes::new()).await;
    }

    pub async fn tombstone(&self, slot: Slot) {
        self.put(&slot.snapshot(), self.repository.tombstone(slot).unwrap()).await;
    }

    /// One that was made before tombstones were sealed.
    pub async fn of_empty_tombstones() -> Self {
        let mut world = Self::new().await;
        world.repository.tombstones = Tombstones::Empty;
        world
    }

    pub async fn snapshot(&self, root: &Root) {
        let key = root.slot.snapshot();
        self.put(&key, self.repository.seal(&key, root).unwrap()).await;
    }

    pub fn forgotten(&self, slot: Slot) -> Bytes {
        let marker = Forgotten { slot, time_ms: 0, by: "a test".into() };
        self.repository.seal(&slot.forgotten(), &marker).unwrap()
    }

    pub async fn epoch(&self, at: u64, number: u64, condemned: &[PackId]) {
        let epoch = Epoch { number, forgotten: Vec::new(), condemned: condemned.to_vec() };
        self.put(&names::epoch(at), self.repository.seal(&names::epoch(at), &epoch).unwrap()).await;
    }

    pub async fn verdict(&self, at: u64, number: u64, delete: &[PackId]) {
        let verdict = Verdict { number, delete: delete.to_vec() };
        self.put(&names::verdict(at), self.repository.seal(&names::verdict(at), &verdict).unwrap()).await;
    }

    /// Stores a pack of these chunks under a given number.
    pub async fn pack(&self, number: u8, kind: Domain, chunks: &[Bytes]) -> (PackId, Vec<ChunkId>) {
        let pack = pack_id(number);
        let header = PackHeader { repo: self.repository.key.repo(), pack, kind, class: 0 };
        let mut builder = PackBuilder::new(header);
        let ids = self.repository.key.chunk_ids();
        let ids: Vec<ChunkId> = chunks.iter().map(|chunk| ids.id(kind, chunk)).collect();
        for (id, chunk) in ids.iter().zip(chunks) {
            let mut frame = Vec::new();
            Sealer::new(1).unwrap().seal(*id, chunk, &FrameKey::plain(), &mut frame).unwrap();
            let headers = [FrameHeader::parse(&frame).unwrap()];
            builder.push(&headers, frame.into(), session_id(0)).unwrap();
        }
        let (parts, _) = builder.finish();
        self.put(&names::pack(pack), parts.concat().into()).await;
        (pack, ids)
    }

    /// Stores a pack that holds something.
    pub async fn any_pack(&self, number: u8) -> PackId {
        self.pack(number, Domain::Data, &[Bytes::from(vec![number; 64])]).await.0
    }
}

pub fn session_id(session: u8) -> SessionId {
    SessionId::from_bytes([session; 16])
}

pub fn pack_id(pack: u8) -> PackId {
    PackId::from_bytes([pack; 16])
}
