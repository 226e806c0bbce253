//! Two small repositories, each with an index that answers from a table; the second has a storer with moods.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::bus::Ticket;
use agent::counters::Counters;
use agent::faults::record::RecordingStore;
use agent::faults::store::{FaultyStore, StoreFaults};
use agent::index::IndexClient;
use agent::keys::DataKeys;
use agent::local::LocalBus;
use agent::maps::MapReader;
use agent::repository::NewRepository;
use agent::store::Store;
use agent::{
    Answerer, Context, Environment, Failure, Handler, Outcome as Handled, Protection, Queue, ReadBy,
    Repository, Service, Stop, Topic, sessions,
};
use async_trait::async_trait;
use bytes::Bytes;
use object_store::memory::InMemory;
use schema::chunk::{FrameHeader, Opener, Sealer, split_frames};
use schema::keys::{DataKey, FrameKey, Identity, SealedKey};
use schema::map::{Content, Geometry, Leaf, Piece, build_nodes};
use schema::messages::{
    About, Copy, Domain8, FailureKind, Locate, Located, Message, NewChunks, PackStored, Seek, SessionEvent,
    Sought,
};
use schema::names::{self, Slot};
use schema::pack::{PackBuilder, PackEntry, PackHeader, parse_pack};
use schema::root::{Root, Statistics, Tracking};
use schema::session::SessionKind;
use schema::{ChunkId, Domain, JobId, PackId, ReadingId, SessionId};

use crate::{Copier, Outcome, Settings, Side, snapshots};

pub const VOLUME: &str = "host/vg/lv";
const CHUNK: usize = 64 << 10;

/// Random bytes are a counter's hash.
#[derive(Debug)]
struct TestEnvironment {
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

/// What the index knows, and where it looks when it is to look at the bucket.
struct TableIndex(Table, Table);

#[async_trait]
impl Answerer for TableIndex {
    async fn answer(&mut self, message: &Message) -> Result<Message, Failure> {
        if let Ok(Seek { ids, .. }) = message.read::<Seek>() {
            let late = std::mem::take(&mut *self.1.lock().unwrap());
            let mut table = self.0.lock().unwrap();
            late.into_iter().for_each(|(id, copies)| table.entry(id).or_default().extend(copies));
            let copies = ids.iter().map(|id| table.get(id).cloned().unwrap_or_default()).collect();
            return Ok(Message::new(&About::nothing(), &Sought { copies, by: 1 }));
        }
        let asked: Locate = message.read()?;
        let table = self.0.lock().unwrap();
        let copies = asked.ids.iter().map(|id| table.get(id).cloned().unwrap_or_default()).collect();
        Ok(Message::new(&About::nothing(), &Located { copies }))
    }
}

/// What a storer does with what it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Stores,
    /// Says that it cannot.
    Fails,
    /// Revokes every session first, as a collector may.
    Revokes,
    /// Says that it cannot, because the store has gone away.
    LosesTheStore,
}

/// One of the repositories.
#[derive(Clone)]
pub struct Place {
    pub repository: Repository,
    pub table: Table,
    /// What the index knows only after it has looked at the bucket.
    late: Table,
    pub context: Context,
    index: IndexClient,
    pub mood: Arc<Mutex<Mood>>,
    /// What is asked of its store, and how that answers.
    pub record: RecordingStore,
    pub faults: FaultyStore,
}

impl Place {
    fn new(repository: Repository, record: RecordingStore, faults: FaultyStore) -> Self {
        let environment = repository.store.environment().clone();
        let bus = Arc::new(LocalBus::new(environment.clone(), 64 << 20));
        let context = Context {
            bus: bus.clone(),
            environment: environment.clone(),
            counters: Arc::new(Counters::default()),
            stop: Stop::default(),
            host: "host".into(),
        };
        let (table, late) = (Table::default(), Table::default());
        for service in [Service::index(0), Service::seek(0)] {
            let (serving, answers) = (context.clone(), TableIndex(table.clone(), late.clone()));
            tokio::spawn(async move { agent::serve(&serving, &service, answers).await });
        }
        let index = IndexClient::new(bus, environment, 1);
        let mood = Arc::new(Mutex::new(Mood::Stores));
        let place = Self { repository, table, late, context, index, mood, record, faults };
        let storer = place.clone();
        let storing = place.context.clone();
        tokio::spawn(async move { agent::consume(&storing, &Queue::chunks(), 8 << 20, storer).await });
        place
    }

    pub fn side(&self) -> Side {
        Side { repository: self.repository.clone(), index: self.index.clone() }
    }

    /// Stores frames as one pack; also in the index.
    pub async fn pack(
        &self,
        kind: Domain,
        session: SessionId,
        key: Option<&SealedKey>,
        frames: Vec<(FrameHeader, Bytes)>,
    ) -> (PackId, PackStored) {
        let pack = self.context.environment.pack_id();
        let header = PackHeader { repo: self.repository.key.repo(), pack, kind, class: 0 };
        let mut builder = PackBuilder::new(header);
        for (header, frame) in frames {
            builder.push(&[header], frame, session).unwrap();
        }
        if let Some(key) = key {
            builder.add_key(key);
            self.repository.store.create(&names::key(key.id), key.sealed.clone()).await.unwrap();
        }
        let (parts, footer) = builder.finish();
        self.repository.store.put_once(&names::pack(pack), parts).await.unwrap();
        let mut table = self.table.lock().unwrap();
        for entry in &footer.entries {
            let copy = Copy { pack, offset: entry.offset, len: entry.len };
            table.entry(entry.id).or_default().push(copy);
        }
        (pack, PackStored { pack, entries: footer.entries })
    }

    /// Moves everything to other packs, as a collection does; the index hears nothing of it.
    pub async fn move_packs(&self) {
        let store = &self.repository.store;
        for (old, _) in self.repository.list_packs().await.unwrap() {
            let whole = store.get(&names::pack(old)).await.unwrap().unwrap();
            let (header, footer) = parse_pack(&whole).unwrap();
            let before = self.table.lock().unwrap().clone();
            let frame = |entry: &PackEntry| {
                let frame = whole.slice(entry.offset as usize..(entry.offset + entry.len) as usize);
                (FrameHeader::parse(&frame).unwrap(), frame)
            };
            let frames = footer.entries.iter().map(frame).collect();
            self.pack(header.kind, footer.sessions[0], footer.keys.first(), frames).await;
            let after = std::mem::replace(&mut *self.table.lock().unwrap(), before);
            {
                let mut late = self.late.lock().unwrap();
                for entry in &footer.entries {
                    late.entry(entry.id).or_default().extend(after[&entry.id].last());
                }
            }
            store.delete(&names::pack(old)).await.unwrap();
        }
    }

    /// What a snapshot holds, read chunk by chunk.
    pub async fn content(&self, root: &Root, identity: &Arc<Identity>) -> Vec<u8> {
        let map = MapReader::new(self.repository.clone(), self.index.clone(), root.clone()).unwrap();
        let keys = DataKeys::new(self.repository.clone(), Some(identity.clone()));
        let mut opener = Opener::new(self.repository.key.chunk_ids()).unwrap();
        let mut content = Vec::new();
        for leaf in 0..map.geometry().leaves() {
            for piece in map.leaf(leaf).await.unwrap().pieces() {
                let Content::Chunk(id) = piece.content else {
                    content.resize(content.len() + piece.len as usize, 0);
                    continue;
                };
                let copy = *self.table.lock().unwrap()[&id].last().unwrap();
                let frame = self.repository.read_frame(&copy).await.unwrap();
                let header = FrameHeader::parse(&frame).unwrap();
                let key = keys.get(header.key, copy.pack).await.unwrap();
                content.extend_from_slice(opener.open(&id, &frame, &key[0]).unwrap());
            }
        }
        content
    }

    /// The copies of all chunks of content.
    pub fn data(&self) -> Vec<Copy> {
        let table = self.table.lock().unwrap();
        let data = table.iter().filter(|(id, _)| id.domain().unwrap() == Domain::Data);
        data.flat_map(|(_, copies)| copies.clone()).collect()
    }

    pub async fn sessions(&self) -> usize {
        self.repository.store.list(names::SESSIONS).await.unwrap().len()
    }

    pub async fn roots(&self) -> Vec<Root> {
        snapshots(&self.repository).await.unwrap().readable
    }
}

#[async_trait]
impl Handler for Place {
    fn role(&self) -> &'static str {
        "storer"
    }

    async fn handle(&mut self, message: &Message, _: &mut Option<Ticket>) -> Result<Handled, Failure> {
        let chunks: NewChunks = message.read()?;
        let mood = *self.mood.lock().unwrap();
        if mood == Mood::LosesTheStore {
            self.faults.crash();
        }
        if matches!(mood, Mood::Fails | Mood::LosesTheStore) {
            let event = SessionEvent::Failed { kind: FailureKind::Store, why: "the disk is full".into() };
            let message = Message::new(&About::nothing(), &event);
            self.context.bus.publish(&Queue::session(chunks.session), message).await?;
            return Ok(Handled::Done);
        }
        if mood == Mood::Revokes {
            for session in sessions::list(&self.repository).await? {
                sessions::revoke(&self.repository, &session).await?;
            }
        }
        let frames = split_frames(&message.body, usize::MAX)?;
        let Domain8(kind) = chunks.kind;
        let (_, stored) = self.pack(kind, chunks.session, chunks.key.as_ref(), frames).await;
        let message = Message::new(&About::nothing(), &stored);
        self.context.bus.broadcast(&Topic::packs_stored(), message).await?;
        Ok(Handled::Done)
    }
}

/// Both.
pub struct World {
    pub first: Place,
    pub second: Place,
    pub identity: Arc<Identity>,
    pub data_key: DataKey,
}

impl World {
    pub async fn new(like: bool) -> Self {
        let environment: Arc<dyn Environment> = Arc::new(TestEnvironment::default());
        let identity = Arc::new(Identity::generate());
        let store = |name: &str| {
            let inner = Arc::new(InMemory::new());
            let faults = FaultyStore::new(inner, environment.clone(), StoreFaults::default());
            let record = RecordingStore::new(Arc::new(faults.clone()));
            let location = format!("test:{name}");
            let store = Store::new(Arc::new(record.clone()), name, &location, environment.clone());
            (store, record, faults)
        };
        let ((one, record, faults), other) = (store("first"), store("second"));
        let new = NewRepository { recipients: identity.recipients(), pack_size: 1 << 20 };
        let first = Repository::init(one, &new).await.unwrap();
        let second = match like {
            true => Repository::init_like(other.0, &first.key, 1 << 20).await.unwrap(),
            false => Repository::init(other.0, &new).await.unwrap(),
        };
        let data_key = DataKey::new(&environment.random::<48>());
        let (first, second) = (Place::new(first, record, faults), Place::new(second, other.1, other.2));
        Self { first, second, identity, data_key }
    }

    /// Stores a volume in the first repository, and commits its snapshot.
    pub async fn volume(&self, generation: u64, content: &[u8]) -> Root {
        let (place, writer) = (&self.first, &self.first.repository.key);
        let session = place.context.environment.session_id();
        let geometry = Geometry::new(content.len() as u64).unwrap();
        let mut data = BTreeMap::new();
        let mut structure = Vec::new();
        let mut row = Vec::new();
        let mut keep = |bytes: Vec<u8>| {
            structure.push(frame(Domain::Structure, writer, &bytes, &writer.structure_key()));
            writer.chunk_ids().id(Domain::Structure, &bytes)
        };
        for number in 0..geometry.leaves() {
            let range = geometry.leaf_range(number);
            let pieces = content[range.start as usize..range.end as usize].chunks(CHUNK).map(|chunk| {
                let id = writer.chunk_ids().id(Domain::Data, chunk);
                let content = match chunk.iter().all(|byte| *byte == 0) {
                    true => Content::Zero,
                    false => {
                        let seal = || frame(Domain::Data, writer, chunk, &self.data_key.frame_key());
                        data.entry(id).or_insert_with(seal);
                        Content::Chunk(id)
                    }
                };
                Piece { len: chunk.len() as u32, content }
            });
            let leaf = Leaf::new(range.end - range.start, pieces).unwrap();
            row.push((!leaf.is_zero()).then(|| keep(leaf.encode())));
        }
        let top = build_nodes(row, |node| Ok(keep(node.encode()))).unwrap();
        let key = self.data_key.seal(writer).unwrap();
        place.pack(Domain::Data, session, Some(&key), data.into_values().collect()).await;
        place.pack(Domain::Structure, session, None, structure).await;
        let slot = Slot { volume: writer.volume_key(VOLUME), session };
        let root = root(slot, generation, content.len() as u64, top);
        let sealed = place.repository.seal(&slot.snapshot(), &root).unwrap();
        place.repository.store.create(&slot.snapshot(), sealed).await.unwrap();
        root
    }

    /// Copies a snapshot as the command does.
    pub async fn copy(&self, root: &Root) -> Result<Outcome, Failure> {
        self.copy_all(&[root]).await.pop().unwrap()
    }

    /// Copies some, one after the other.
    pub async fn copy_all(&self, which: &[&Root]) -> Vec<Result<Outcome, Failure>> {
        let environment = &self.first.context.environment;
        let (session, job) = (environment.session_id(), environment.job_id());
        let by =
            ReadBy { kind: SessionKind::Copy, session, job, volume: "snapshots", host: "host", undo: &[] };
        let protection = Protection::begin(&self.first.repository, by, &Stop::default()).await.unwrap();
        let roots = self.first.roots().await;
        let (first, second) = (self.first.side(), self.second.side());
        let context = self.second.context.clone();
        let settings = Settings { memory: 64 << 20, level: 1 };
        let copier =
            Copier::new(context, first, second, Some(self.identity.clone()), settings, &roots).unwrap();
        let mut outcomes = Vec::new();
        for root in which {
            outcomes.push(copier.copy(&protection, root, |_| ()).await);
        }
        protection.end(Ok(())).await.unwrap();
        assert_eq!(self.first.sessions().await, 0);
        outcomes
    }
}

fn frame(
    kind: Domain,
    writer: &schema::keys::WriterKey,
    bytes: &[u8],
    key: &FrameKey,
) -> (FrameHeader, Bytes) {
    let mut frame = Vec::new();
    let id = writer.chunk_ids().id(kind, bytes);
    Sealer::new(1).unwrap().seal(id, bytes, key, &mut frame).unwrap();
    (FrameHeader::parse(&frame).unwrap(), frame.into())
}

fn root(slot: Slot, generation: u64, size: u64, top: Option<ChunkId>) -> Root {
    Root {
        version: Root::VERSION,
        volume: VOLUME.into(),
        host: "host".into(),
        source: "/nowhere/source".into(),
        slot,
        reading: ReadingId::from_bytes([7; 16]),
        job: JobId::from_bytes([8; 16]),
        generation,
        parent: None,
        size,
        top,
        time_ms: generation,
        sealed_ms: 0,
        group: None,
        changed_while_read: false,
        layout: BTreeMap::new(),
        tags: Vec::new(),
        statistics: Statistics::default(),
        tracking: Tracking::Everything { why: None },
    }
}
