//! A conductor whose peers are played by hand: reader, hasher, storer and indexer are this file. Time is paused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::bus::{Bus, Queue, Service, Topic};
use agent::faults::record::RecordingStore;
use agent::faults::store::{FaultyStore, StoreFaults};
use agent::index::IndexClient;
use agent::local::LocalBus;
use agent::maps::MapReader;
use agent::repository::{AtSlot, NewRepository};
use agent::store::Store;
use agent::{Answerer, Context, Environment, Failure, Repository, Stop, sessions};
use async_trait::async_trait;
use bytes::Bytes;
use conductor::retention::Policies;
use conductor::{Conductor, Settings};
use object_store::memory::InMemory;
use schema::chunk::{FrameHeader, Sealer, split_frames};
use schema::damage::{Damage, DamagedChunk};
use schema::keys::FrameKey;
use schema::limits::LEAF_SPAN;
use schema::map::Leaf;
use schema::messages::*;
use schema::names::{self, Slot};
use schema::pack::{PackBuilder, PackHeader};
use schema::root::Root;
use schema::session::Session;
use schema::{ChunkId, Domain, JobId, PackId, ReadingId, SessionId};

pub const VOLUME: &str = "host/vg/lv";
pub const HOST: &str = "host";
pub const SOURCE: &str = "/dev/vg/lv";
pub const LEN: u32 = 64 << 10;
/// A leaf of zeroes behind one chunk of [`LEN`] bytes.
pub const REST: u32 = LEAF_SPAN as u32 - LEN;

#[derive(Debug)]
struct PausedTime {
    start: tokio::time::Instant,
    drawn: AtomicU64,
}

#[allow(clippy::disallowed_methods, reason = "this is the seam, over a paused clock")]
#[async_trait]
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
        for part in bytes.chunks_mut(8) {
            let drawn = self.drawn.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            part.copy_from_slice(&drawn.to_le_bytes()[..part.len()]);
        }
    }
}

type Table = Arc<Mutex<BTreeMap<ChunkId, Vec<Copy>>>>;

/// The index: what it is told, it knows; all else is the asker's.
struct Index(Table);

#[async_trait]
impl Answerer for Index {
    async fn answer(&mut self, message: &Message) -> Result<Message, Failure> {
        let table = self.0.lock().unwrap();
        let copies = |id| table.get(id).cloned().unwrap_or_default();
        if let Ok(locate) = message.read::<Locate>() {
            let copies = locate.ids.iter().map(copies).collect();
            return Ok(Message::new(&About::nothing(), &Located { copies }));
        }
        let ask: Ask = message.read()?;
        let answer = |id| copies(id).last().map_or(Answer::Yours, |copy| Answer::Known(copy.pack));
        let answers = ask.ids.iter().map(answer).collect();
        Ok(Message::new(&About::nothing(), &Answers { answers }))
    }
}

#[derive(Clone)]
pub struct World {
    pub context: Context,
    pub bus: LocalBus,
    pub record: RecordingStore,
    pub faults: FaultyStore,
    pub repository: Repository,
    pub table: Table,
    /// Whether the storer for structure broadcasts what it stored.
    pub broadcasts: Arc<AtomicBool>,
    pub structures: Arc<Mutex<Vec<ChunkId>>>,
}

/// A running conductor.
pub struct Running {
    pub stop: Stop,
    task: tokio::task::JoinHandle<Result<(), Failure>>,
}

impl Running {
    pub async fn stop(self) {
        self.stop.raise();
        self.task.await.unwrap().unwrap();
    }

    /// Dies, and settles nothing.
    pub async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }
}

pub fn settings() -> Settings {
    Settings {
        sessions: 1,
        ask_again: Duration::from_secs(20),
        patience: 5,
        checkpoint: Duration::from_secs(600),
        hand_back: true,
    }
}

impl World {
    pub async fn new() -> Self {
        let start = tokio::time::Instant::now();
        let environment: Arc<dyn Environment> = Arc::new(PausedTime { start, drawn: AtomicU64::new(1) });
        let faults = FaultyStore::new(Arc::new(InMemory::new()), environment.clone(), StoreFaults::default());
        let record = RecordingStore::new(Arc::new(faults.clone()));
        let store = Store::new(Arc::new(record.clone()), "", "test", environment.clone());
        let new = NewRepository { recipients: Vec::new(), pack_size: 1 << 20 };
        let repository = Repository::init(store, &new).await.unwrap();
        let bus = LocalBus::new(environment.clone(), 16 << 20);
        let context = Context {
            bus: Arc::new(bus.clone()),
            environment,
            counters: Arc::default(),
            stop: Stop::default(),
            host: "conductor".into(),
        };
        let (table, structures) = (Table::default(), Arc::default());
        let broadcasts = Arc::new(AtomicBool::new(true));
        let world = Self { context, bus, record, faults, repository, table, broadcasts, structures };
        let (serving, index) = (world.context.clone(), Index(world.table.clone()));
        tokio::spawn(async move { agent::serve(&serving, &Service::index(0), index).await });
        let storer = world.clone();
        tokio::spawn(async move { storer.store_structure().await });
        world
    }

    pub fn start(&self, settings: Settings) -> Running {
        self.start_keeping(settings, Policies::default())
    }

    /// A conductor with policies of retention.
    pub fn start_keeping(&self, settings: Settings, policies: Policies) -> Running {
        let stop = Stop::default();
        let conductor = self.conductor(settings, policies, stop.clone());
        Running { stop, task: tokio::spawn(conductor.run()) }
    }

    /// A conductor that takes no jobs yet.
    pub fn conductor(&self, settings: Settings, policies: Policies, stop: Stop) -> Conductor {
        let context = Context { stop, ..self.context.clone() };
        let index = IndexClient::new(context.bus.clone(), context.environment.clone(), 1);
        Conductor::new(context, self.repository.clone(), index, settings).with_retention(policies)
    }

    pub async fn wait(&self, seconds: u64) {
        self.context.environment.sleep(Duration::from_secs(seconds)).await;
    }

    pub fn seconds(&self) -> u64 {
        self.context.environment.elapsed().as_secs()
    }

    pub fn id(&self, number: u32) -> ChunkId {
        self.repository.key.chunk_ids().id(Domain::Data, &number.to_le_bytes())
    }

    // What an operator does.

    pub fn job(&self, number: u8) -> BackupJob {
        BackupJob {
            job: JobId::from_bytes([number; 16]),
            volume: VOLUME.into(),
            host: HOST.into(),
            source: SOURCE.into(),
            tags: vec!["daily".into()],
            allow_changes: false,
            group: None,
            plain: false,
        }
    }

    pub async fn submit(&self, job: &BackupJob) {
        self.bus.publish(&Queue::jobs(), message(job)).await.unwrap();
    }

    pub async fn done(&self, job: &BackupJob) -> JobOutcome {
        let mut queue = self.bus.consume(&Queue::done(job.job), 1).await.unwrap();
        let delivery = queue.next().await.unwrap();
        let done: JobDone = delivery.message.read().unwrap();
        delivery.ticket.done().await.unwrap();
        assert_eq!(done.job, job.job);
        done.outcome
    }

    pub fn is_reported(&self, job: &BackupJob) -> bool {
        self.bus.bytes_in(&Queue::done(job.job)) > 0
    }

    /// The root that a job's outcome says was sealed.
    pub async fn sealed(&self, job: &BackupJob) -> Root {
        let JobOutcome::Sealed { slot, generation, size, statistics, .. } = self.done(job).await else {
            panic!("the job was not sealed")
        };
        let AtSlot::Snapshot(root) = self.repository.at_slot(slot).await.unwrap() else {
            panic!("nothing stands at {slot}")
        };
        assert_eq!((root.generation, root.size, root.statistics), (generation, size, statistics));
        *root
    }

    pub async fn failed(&self, job: &BackupJob) -> (FailureKind, String) {
        match self.done(job).await {
            JobOutcome::Failed { kind, why } => {
                assert!(why.contains(VOLUME), "the volume is named: {why}");
                (kind, why)
            }
            other => panic!("the job did not fail: {other:?}"),
        }
    }

    pub async fn snapshots(&self) -> Vec<Slot> {
        self.repository.visible_slots(None).await.unwrap()
    }

    pub async fn open_sessions(&self) -> Vec<Session> {
        sessions::list(&self.repository).await.unwrap()
    }

    pub async fn open(&self) -> Vec<SessionId> {
        self.open_sessions().await.iter().map(|open| open.id).collect()
    }

    pub fn slot(&self, session: SessionId) -> Slot {
        Slot { volume: self.repository.key.volume_key(VOLUME), session }
    }

    /// Nothing of the session is left: a tombstone for ever, and neither object nor queue.
    pub async fn assert_given_up(&self, session: SessionId) {
        let found = self.repository.at_slot(self.slot(session)).await.unwrap();
        assert!(matches!(found, AtSlot::Tombstone), "{found:?}");
        assert_eq!(self.repository.store.get(&names::session(session)).await.unwrap(), None);
        assert_eq!(self.bus.bytes_in(&Queue::session(session)), 0);
    }

    /// The leaves of a snapshot, read through its map.
    pub async fn leaves(&self, root: &Root) -> Vec<Leaf> {
        let index = IndexClient::new(self.context.bus.clone(), self.context.environment.clone(), 1);
        let reader = MapReader::new(self.repository.clone(), index, root.clone()).unwrap();
        let mut leaves = Vec::new();
        for leaf in 0..reader.geometry().leaves() {
            leaves.push(reader.leaf(leaf).await.unwrap());
        }
        leaves
    }

    pub async fn leaf_id(&self, root: &Root, leaf: u64) -> ChunkId {
        let index = IndexClient::new(self.context.bus.clone(), self.context.environment.clone(), 1);
        let reader = MapReader::new(self.repository.clone(), index, root.clone()).unwrap();
        reader.leaf_id(leaf).await.unwrap().unwrap()
    }

    // What readers and hashers do.

    pub async fn asked(&self) -> ReadVolume {
        let mut queue = self.bus.consume(&Queue::reads(HOST), 1).await.unwrap();
        let delivery = queue.next().await.unwrap();
        let request = delivery.message.read().unwrap();
        delivery.ticket.done().await.unwrap();
        request
    }

    pub fn is_asked(&self) -> bool {
        self.bus.bytes_in(&Queue::reads(HOST)) > 0
    }

    pub async fn tell(&self, session: SessionId, event: SessionEvent) {
        let message = Message::new(&About::session(session, VOLUME), &event);
        self.bus.publish(&Queue::session(session), message).await.unwrap();
    }

    pub async fn opened(&self, session: SessionId, number: u8, size: u64) {
        let layout = vec![("lv".to_owned(), "vg/lv".to_owned())];
        self.tell(session, SessionEvent::Opened { reading: reading(number), size, layout }).await;
    }

    /// A run of the first reading; its new chunks are those that are pending.
    pub async fn mapped(&self, session: SessionId, offset: u64, pieces: &[(u32, Mapped)]) {
        let new = pieces.iter().filter(|(_, mapped)| matches!(mapped, Mapped::Pending(_)));
        let (new, chunks_new) = (new.clone().map(|(len, _)| u64::from(*len)).sum(), new.count() as u64);
        let (reading, pieces) = (reading(1), pieces.to_vec());
        let event = SessionEvent::Mapped { reading, offset, pieces, stored: new / 2, new, chunks_new };
        self.tell(session, event).await;
    }

    /// A leaf that starts with one chunk.
    pub async fn mapped_leaf(&self, session: SessionId, leaf: u64, first: Mapped) {
        self.mapped(session, leaf * LEAF_SPAN, &[(LEN, first), (REST, Mapped::Zero)]).await;
    }

    pub async fn read(&self, request: &ReadVolume, changed: bool) {
        let (reading, request_number) = (reading(1), request.request);
        let bytes_read = 1000;
        let event = SessionEvent::Read { reading, request: request_number, bytes_read, changed };
        self.tell(request.session, event).await;
    }

    /// Answers the last question: whether the source is unchanged.
    pub async fn unchanged(&self) {
        let request = self.asked().await;
        assert_eq!(request.leaves, Some(Vec::new()), "only the state of the source is asked for");
        self.read(&request, false).await;
    }

    // What storers and indexers do.

    /// Stores chunks in a pack and tells nobody.
    pub async fn pack(&self, kind: Domain, frames: &[(FrameHeader, Bytes)]) -> PackStored {
        let pack = self.context.environment.pack_id();
        let header = PackHeader { repo: self.repository.key.repo(), pack, kind, class: 0 };
        let mut builder = PackBuilder::new(header);
        for (header, frame) in frames {
            builder.push(&[*header], frame.clone(), SessionId::from_bytes([1; 16])).unwrap();
        }
        let (parts, footer) = builder.finish();
        self.repository.store.put(&names::pack(pack), parts.concat().into()).await.unwrap();
        PackStored { pack, entries: footer.entries }
    }

    /// Stores data chunks in a pack and tells nobody.
    pub async fn data(&self, numbers: &[u32]) -> PackStored {
        let mut sealer = Sealer::new(1).unwrap();
        let frames: Vec<_> = numbers
            .iter()
            .map(|number| {
                let mut frame = Vec::new();
                let plain = number.to_le_bytes();
                sealer.seal(self.id(*number), &plain, &FrameKey::plain(), &mut frame).unwrap();
                (FrameHeader::parse(&frame).unwrap(), Bytes::from(frame))
            })
            .collect();
        self.pack(Domain::Data, &frames).await
    }

    pub fn index(&self, stored: &PackStored) {
        let mut table = self.table.lock().unwrap();
        for entry in &stored.entries {
            let copy = Copy { pack: stored.pack, offset: entry.offset, len: entry.len };
            table.entry(entry.id).or_default().push(copy);
        }
    }

    pub async fn announce(&self, stored: &PackStored) {
        self.index(stored);
        let message = Message::new(&About::nothing(), stored);
        self.bus.broadcast(&Topic::packs_stored(), message).await.unwrap();
    }

    /// Stores data chunks and says so.
    pub async fn store(&self, numbers: &[u32]) -> PackId {
        let stored = self.data(numbers).await;
        self.announce(&stored).await;
        stored.pack
    }

    async fn store_structure(self) {
        let mut queue = self.bus.consume(&Queue::chunks(), 1 << 20).await.unwrap();
        while let Ok(delivery) = queue.next().await {
            let chunks: NewChunks = delivery.message.read().unwrap();
            assert_eq!(chunks.kind, Domain8(Domain::Structure), "a conductor sees structure only");
            let frames = split_frames(&delivery.message.body, 512).unwrap();
            self.structures.lock().unwrap().extend(frames.iter().map(|(header, _)| header.id));
            let stored = self.pack(Domain::Structure, &frames).await;
            match self.broadcasts.load(Ordering::Relaxed) {
                true => self.announce(&stored).await,
                false => self.index(&stored),
            }
            delivery.ticket.done().await.unwrap();
        }
    }

    /// How many structure chunks were sent to storers since this was last asked.
    pub fn take_structures(&self) -> usize {
        std::mem::take(&mut *self.structures.lock().unwrap()).len()
    }

    /// Loses packs: from the bucket, though the index goes on naming them.
    pub async fn lose(&self, packs: impl IntoIterator<Item = PackId>) {
        for pack in packs {
            self.repository.store.delete(&names::pack(pack)).await.unwrap();
        }
    }

    /// Records that no copy of these chunks which the index names can be read.
    pub async fn damage(&self, ids: &[ChunkId]) {
        let chunk = |id: &ChunkId| {
            let table = self.table.lock().unwrap();
            DamagedChunk { id: *id, packs: table[id].iter().map(|copy| copy.pack).collect() }
        };
        let chunks = ids.iter().map(chunk).collect();
        let record = Damage { version: 1, found_ms: 0, host: HOST.into(), packs: Vec::new(), chunks };
        let key = names::damage(self.context.environment.damage_id());
        let bytes = self.repository.seal(&key, &record).unwrap();
        self.repository.store.put(&key, bytes).await.unwrap();
    }

    /// Packs that the index names for these chunks.
    pub fn packs_of(&self, kind: Domain) -> BTreeSet<PackId> {
        let table = self.table.lock().unwrap();
        let of_kind = table.iter().filter(|(id, _)| id.domain() == Ok(kind));
        of_kind.flat_map(|(_, copies)| copies.iter().map(|copy| copy.pack)).collect()
    }

    /// Backs up leaves that each start with one of these chunks, as new ones, from start to end.
    pub async fn backup(&self, job: &BackupJob, chunks: &[u32]) -> Root {
        self.submit(job).await;
        self.read_all(chunks).await;
        self.sealed(job).await
    }

    /// What everybody but the conductor does for such a backup.
    pub async fn read_all(&self, chunks: &[u32]) {
        let request = self.asked().await;
        let session = request.session;
        self.opened(session, 1, chunks.len() as u64 * LEAF_SPAN).await;
        for (leaf, chunk) in (0..).zip(chunks) {
            self.mapped_leaf(session, leaf, Mapped::Pending(self.id(*chunk))).await;
        }
        self.read(&request, false).await;
        self.store(chunks).await;
        self.unchanged().await;
    }
}

/// A job as its queue has it.
pub fn message(job: &BackupJob) -> Message {
    Message::new(&About { session: None, volume: job.volume.clone() }, job)
}

pub fn reading(number: u8) -> ReadingId {
    ReadingId::from_bytes([number; 16])
}
