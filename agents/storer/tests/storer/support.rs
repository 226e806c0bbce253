//! A storer over a repository in memory behind faults and a recorder, hashers and conductors being played by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agent::bus::*;
use agent::faults::record::RecordingStore;
use agent::faults::store::{FaultyStore, StoreFaults};
use agent::local::LocalBus;
use agent::rate::RateLimit;
use agent::repository::NewRepository;
use agent::store::Store;
use agent::{Context, Environment, Failure, Repository, Stop};
use async_trait::async_trait;
use bytes::Bytes;
use object_store::memory::InMemory;
use schema::chunk::Sealer;
use schema::keys::{DataKey, FrameKey, Identity, SealedKey};
use schema::messages::*;
use schema::pack::{PackFooter, parse_pack};
use schema::{ChunkId, Domain, PackId, SessionId, names};
use storer::{Settings, Storer};

pub const SHARDS: u16 = 2;
pub const MAX_AGE: Duration = Duration::from_secs(40);

#[derive(Debug)]
struct PausedTime {
    start: tokio::time::Instant,
    drawn: AtomicU64,
}

#[allow(clippy::disallowed_methods, reason = "this is the seam, over a paused clock")]
#[async_trait]
impl Environment for PausedTime {
    fn now_ms(&self) -> u64 {
        1_700_000_000_000
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

/// The in-process bus with a count of how often tickets were extended.
#[derive(Debug, Clone)]
pub struct CountingBus {
    inner: LocalBus,
    extended: Arc<AtomicU64>,
}

struct CountingDeliveries(Box<dyn Deliveries>, Arc<AtomicU64>);

#[derive(Debug)]
struct CountingSettle(tokio::sync::Mutex<Option<Ticket>>, Arc<AtomicU64>);

#[async_trait]
impl Deliveries for CountingDeliveries {
    async fn next(&mut self) -> Result<Delivery, BusError> {
        let Delivery { message, attempt, ticket } = self.0.next().await?;
        let settle = CountingSettle(tokio::sync::Mutex::new(Some(ticket)), self.1.clone());
        Ok(Delivery { message, attempt, ticket: Ticket::new(Arc::new(settle)) })
    }
}

#[async_trait]
impl Settle for CountingSettle {
    async fn done(&self) -> Result<(), BusError> {
        match self.0.lock().await.take() {
            Some(ticket) => ticket.done().await,
            None => Ok(()),
        }
    }

    async fn again(&self, delay: Duration) -> Result<(), BusError> {
        match self.0.lock().await.take() {
            Some(ticket) => ticket.again(delay).await,
            None => Ok(()),
        }
    }

    async fn extend(&self) -> Result<(), BusError> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn is_queued(&self) -> Result<bool, BusError> {
        Ok(true)
    }

    fn abandoned(&self) {
        drop(self.0.try_lock().ok().and_then(|mut ticket| ticket.take()));
    }
}

#[async_trait]
impl Bus for CountingBus {
    async fn publish(&self, queue: &Queue, message: Message) -> Result<(), BusError> {
        self.inner.publish(queue, message).await
    }

    async fn consume(&self, queue: &Queue, window: usize) -> Result<Box<dyn Deliveries>, BusError> {
        let inner = self.inner.consume(queue, window).await?;
        Ok(Box::new(CountingDeliveries(inner, self.extended.clone())))
    }

    async fn retire(&self, queue: &Queue) -> Result<(), BusError> {
        self.inner.retire(queue).await
    }

    async fn request(&self, to: &Service, message: Message, limit: Duration) -> Result<Message, BusError> {
        self.inner.request(to, message, limit).await
    }

    async fn serve(&self, service: &Service) -> Result<Box<dyn Requests>, BusError> {
        self.inner.serve(service).await
    }

    async fn broadcast(&self, topic: &Topic, message: Message) -> Result<(), BusError> {
        self.inner.broadcast(topic, message).await
    }

    async fn subscribe(&self, topic: &Topic) -> Result<Box<dyn Broadcasts>, BusError> {
        self.inner.subscribe(topic).await
    }
}

pub struct World {
    pub context: Context,
    pub bus: LocalBus,
    pub record: RecordingStore,
    pub faults: FaultyStore,
    pub repository: Repository,
    extended: Arc<AtomicU64>,
    running: tokio::task::JoinHandle<Result<(), Failure>>,
}

impl World {
    pub async fn plain(pack_size: u64) -> Self {
        Self::new(pack_size, Vec::new()).await
    }

    pub async fn encrypted(pack_size: u64) -> Self {
        Self::new(pack_size, Identity::generate().recipients()).await
    }

    async fn new(pack_size: u64, recipients: Vec<String>) -> Self {
        let start = tokio::time::Instant::now();
        let environment: Arc<dyn Environment> = Arc::new(PausedTime { start, drawn: AtomicU64::new(1) });
        let faults = FaultyStore::new(Arc::new(InMemory::new()), environment.clone(), StoreFaults::default());
        let record = RecordingStore::new(Arc::new(faults.clone()));
        let store = Store::new(Arc::new(record.clone()), "", "test", environment.clone());
        let new = NewRepository { recipients, pack_size };
        let repository = Repository::init(store, &new).await.unwrap();
        record.take();
        let bus = LocalBus::new(environment.clone(), 256 << 20);
        let extended = Arc::new(AtomicU64::new(0));
        let counting = CountingBus { inner: bus.clone(), extended: extended.clone() };
        let context = Context {
            bus: Arc::new(counting),
            environment,
            counters: Arc::default(),
            stop: Stop::default(),
            host: "host".into(),
        };
        let settings = Settings { uploads: 2, max_age: MAX_AGE, shards: SHARDS, limit: RateLimit::none() };
        let storer = Storer::new(context.clone(), repository.clone(), settings);
        let running = tokio::spawn(storer.run());
        // Its subscription stands before a test says anything.
        context.environment.sleep(Duration::from_millis(1)).await;
        Self { context, bus, record, faults, repository, extended, running }
    }

    pub fn now(&self) -> Duration {
        self.context.environment.elapsed()
    }

    pub fn extended(&self) -> u64 {
        self.extended.load(Ordering::Relaxed)
    }

    pub async fn wait(&self, seconds: u64) {
        self.context.environment.sleep(Duration::from_secs(seconds)).await;
    }

    /// Ends the storer as a stop does.
    pub async fn stop(self) -> (LocalBus, Repository) {
        self.context.stop.raise();
        self.running.await.unwrap().unwrap();
        (self.bus, self.repository)
    }

    pub fn id(&self, kind: Domain, number: u32) -> ChunkId {
        self.repository.key.chunk_ids().id(kind, &plain(number))
    }

    /// A message with these chunks. Without a key they are plain; structure is sealed with its own key.
    pub fn message(&self, session: u8, kind: Domain, numbers: &[u32], key: Option<&Key>) -> Message {
        let frame_key = match (kind, key) {
            (Domain::Structure, _) => self.repository.key.structure_key(),
            (Domain::Data, Some(key)) => key.key.frame_key(),
            (Domain::Data, None) => FrameKey::plain(),
        };
        let mut sealer = Sealer::new(1).unwrap();
        let mut body = Vec::new();
        for number in numbers {
            sealer.seal(self.id(kind, *number), &plain(*number), &frame_key, &mut body).unwrap();
        }
        let session = session_id(session);
        let chunks = NewChunks { session, kind: Domain8(kind), key: key.map(|key| key.sealed.clone()) };
        Message::with_body(&About::session(session, "host/vg/lv"), &chunks, body.into())
    }

    pub async fn publish(&self, message: &Message) {
        self.bus.publish(&Queue::chunks(), message.clone()).await.unwrap();
    }

    /// Publishes data chunks of a plain repository.
    pub async fn data(&self, session: u8, numbers: &[u32]) {
        self.publish(&self.message(session, Domain::Data, numbers, None)).await;
    }

    pub async fn flush(&self, session: u8) {
        let message = Message::new(&About::nothing(), &Flush { session: session_id(session) });
        self.bus.broadcast(&Topic::flush(), message).await.unwrap();
        // The storer gets to run.
        self.context.environment.sleep(Duration::from_millis(1)).await;
    }

    pub fn unsettled(&self) -> usize {
        self.bus.bytes_in(&Queue::chunks())
    }

    /// Names of packs that were sent to the store since this was last asked, in order.
    pub fn puts(&self) -> Vec<String> {
        let record = self.record.take();
        let puts = record.iter().filter_map(|line| line.strip_prefix("put "));
        puts.filter(|key| key.starts_with(names::PACKS)).map(str::to_owned).collect()
    }

    /// What the index was told since this was last asked: every shard alike.
    pub async fn announced(&self) -> BTreeMap<PackId, BTreeSet<ChunkId>> {
        let mut told = Vec::new();
        for shard in 0..SHARDS {
            let mut packs: BTreeMap<PackId, BTreeSet<ChunkId>> = BTreeMap::new();
            for message in take(&self.bus, &Queue::stored(shard)).await {
                message.to_bytes().unwrap();
                let stored: PackStored = message.read().unwrap();
                packs.entry(stored.pack).or_default().extend(stored.entries.iter().map(|entry| entry.id));
            }
            told.push(packs);
        }
        assert!(told.windows(2).all(|pair| pair[0] == pair[1]), "every shard hears the same");
        told.pop().unwrap()
    }

    /// What the session's conductor was told.
    pub async fn told(&self, session: u8) -> Vec<SessionEvent> {
        let messages = take(&self.bus, &Queue::session(session_id(session))).await;
        messages.iter().map(|message| message.read().unwrap()).collect()
    }

    pub async fn footer(&self, pack: PackId) -> PackFooter {
        let bytes: Bytes = self.repository.store.get(&names::pack(pack)).await.unwrap().unwrap();
        parse_pack(&bytes).unwrap().1
    }
}

/// Takes what is in a queue now.
pub async fn take(bus: &LocalBus, queue: &Queue) -> Vec<Message> {
    let mut out = Vec::new();
    let mut deliveries = bus.consume(queue, 1).await.unwrap();
    while bus.bytes_in(queue) > 0 {
        let delivery = deliveries.next().await.unwrap();
        delivery.ticket.done().await.unwrap();
        out.push(delivery.message);
    }
    out
}

/// A data key and how it travels.
pub struct Key {
    pub key: DataKey,
    pub sealed: SealedKey,
}

impl Key {
    /// A key with an id of `index` (16 and up), then `rest`. The storer cannot open it, so that any bytes will do.
    pub fn new(index: u32, rest: u8) -> Self {
        let mut random = [rest; 48];
        random[..4].copy_from_slice(&index.to_le_bytes());
        let key = DataKey::new(&random);
        let sealed = SealedKey { id: key.id(), sealed: vec![rest; 40].into(), generation: 1 };
        Self { key, sealed }
    }
}

pub fn session_id(session: u8) -> SessionId {
    SessionId::from_bytes([session; 16])
}

/// Some ten thousand bytes that do not compress; few bytes for numbers above a million.
pub fn plain(number: u32) -> Vec<u8> {
    let mut state = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    let len = if number > 1_000_000 { 16 } else { 10_000 };
    number.to_le_bytes().into_iter().chain((0..len).map(|_| next())).collect()
}
