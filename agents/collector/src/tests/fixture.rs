//! A repository in memory whose sessions follow the protocol, and an oracle that keeps the plaintext.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::repository::{AtSlot, NewRepository};
use agent::sessions::{Commit, OpenSession};
use agent::store::{Created, Store};
use agent::{Environment, Failure, Repository, Stop};
use async_trait::async_trait;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use schema::chunk::{FrameHeader, Opener, Sealer};
use schema::damage::{Damage, DamagedChunk};
use schema::keys::{DataKey, FrameKey, Identity};
use schema::map::{Content, Geometry, Leaf, Piece, build_nodes};
use schema::messages::FailureKind;
use schema::names::{self, Slot};
use schema::pack::{PackBuilder, PackHeader};
use schema::root::{Forgotten, Root, Statistics, Tracking};
use schema::session::{Session, SessionKind};
use schema::{ChunkId, Domain, JobId, PackId, ReadingId, SessionId};

pub use super::moment::{At, Moment};
use crate::{Announce, Collector, Limits, Patience, Report, Settings};

pub const CHUNK: usize = 4096;
/// Chunks of one pack.
const PACK_CHUNKS: usize = 6;

/// Time is tokio's, which tests pause; random bytes are a counter's hash, so that names order by age.
#[derive(Debug)]
pub struct TestEnvironment {
    counter: AtomicU64,
    start: tokio::time::Instant,
}

impl Default for TestEnvironment {
    fn default() -> Self {
        Self { counter: AtomicU64::new(0), start: now() }
    }
}

#[allow(clippy::disallowed_methods, reason = "this is the seam, over a paused clock")]
fn now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

#[async_trait]
impl Environment for TestEnvironment {
    fn now_ms(&self) -> u64 {
        1_700_000_000_000 + self.elapsed().as_millis() as u64 + self.counter.load(Ordering::Relaxed)
    }

    fn elapsed(&self) -> Duration {
        now() - self.start
    }

    #[allow(clippy::disallowed_methods, reason = "this is the seam, over a paused clock")]
    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(16) {
            let n = self.counter.fetch_add(1, Ordering::Relaxed);
            let mut hash = 0x9e37_79b9_7f4a_7c15_u128.wrapping_mul(u128::from(n) + 1).wrapping_pow(3);
            hash ^= hash >> 61;
            part.copy_from_slice(&hash.to_le_bytes()[..part.len()]);
        }
    }
}

/// One bucket, and what its snapshots must hold. Clones share both.
#[derive(Clone)]
pub struct World {
    pub inner: Arc<InMemory>,
    pub repository: Repository,
    pub identity: Option<Arc<Identity>>,
    data_key: Option<DataKey>,
    environment: Arc<dyn Environment>,
    pub plaintext: Arc<Mutex<BTreeMap<Slot, Vec<u8>>>>,
}

impl World {
    pub async fn plain() -> Self {
        Self::new(false).await
    }

    pub async fn new(encrypted: bool) -> Self {
        let environment: Arc<dyn Environment> = Arc::new(TestEnvironment::default());
        let inner = Arc::new(InMemory::new());
        let identity = encrypted.then(|| Arc::new(Identity::generate()));
        let recipients = identity.as_ref().map(|identity| identity.recipients()).unwrap_or_default();
        let store = Store::new(inner.clone(), "", "test", environment.clone());
        let new = NewRepository { recipients, pack_size: (PACK_CHUNKS * CHUNK) as u64 };
        let repository = Repository::init(store, &new).await.unwrap();
        let data_key = encrypted.then(|| DataKey::new(&environment.random::<48>()));
        Self { inner, repository, identity, data_key, environment, plaintext: Arc::default() }
    }

    /// A copy of everything as it is now.
    pub fn fork(&self) -> Self {
        let inner = Arc::new(self.inner.fork());
        let plaintext = self.plaintext.lock().unwrap().clone();
        let store = Store::new(inner.clone(), "", "test", self.environment.clone());
        let repository = Repository { store, ..self.repository.clone() };
        Self { inner, repository, plaintext: Arc::new(Mutex::new(plaintext)), ..self.clone() }
    }

    /// The repository over another store in front of the bucket.
    pub fn over(&self, store: Arc<dyn ObjectStore>) -> Repository {
        let store = Store::new(store, "", "test", self.environment.clone());
        Repository { store, ..self.repository.clone() }
    }

    pub fn settings() -> Settings {
        Settings {
            limits: Limits { max_repack: 1 << 20, repack_below: 60 },
            memory: 1 << 20,
            patience: Patience::default(),
            exclusive: false,
            announce: Announce::default(),
        }
    }

    pub fn collector(&self) -> Collector {
        Collector::new(self.repository.clone(), Self::settings(), Stop::default())
    }

    pub async fn prune(&self) -> Result<Report, Failure> {
        self.collector().prune().await
    }

    /// Collects until there is nothing left to collect. Nobody else may be at work.
    pub async fn prune_to_the_end(&self) {
        for _ in 0..6 {
            let report = self.prune().await.unwrap();
            assert_eq!(report.waits, [], "nobody is at work");
            if report.epoch.is_none() {
                return;
            }
        }
        panic!("progress: collections go on and on");
    }

    /// Backs up a volume of one chunk for each seed; 0 reads as zero.
    pub async fn backup(&self, volume: &str, seeds: &[u64]) -> Slot {
        let mut backup = self.begin(volume).await.unwrap();
        backup.store(seeds).await.unwrap();
        backup.commit().await.unwrap().expect("nobody revoked it")
    }

    pub async fn begin(&self, volume: &str) -> Result<Backup, Failure> {
        let id = self.environment.session_id();
        let slot = Slot { volume: self.repository.key.volume_key(volume), session: id };
        let session = Session {
            id,
            kind: SessionKind::Backup,
            slot: Some(slot),
            job: JobId::from_bytes([1; 16]),
            volume: volume.into(),
            host: "host".into(),
            started_ms: self.environment.now_ms(),
            checkpoint: None,
            ended: None,
            undo: Vec::new(),
        };
        let open = OpenSession::begin(self.repository.clone(), session).await?;
        let parent = open.choose_parent().await?;
        Ok(Backup { world: self.clone(), open, parent, stored: None })
    }

    pub async fn forget(&self, slot: Slot) {
        let marker = Forgotten { slot, time_ms: 0, by: "a test".into() };
        let bytes = self.repository.seal(&slot.forgotten(), &marker).unwrap();
        let _: Created = self.repository.store.create(&slot.forgotten(), bytes).await.unwrap();
    }

    /// Commits a forgotten snapshot's root anew, as the protocol has it; none when it is too late.
    pub async fn unforget(&self, slot: Slot) -> Result<Option<Slot>, Failure> {
        let id = self.environment.session_id();
        let new = Slot { session: id, ..slot };
        let session = Session {
            id,
            kind: SessionKind::Copy,
            slot: Some(new),
            job: JobId::from_bytes([2; 16]),
            volume: "unforgotten".into(),
            host: "host".into(),
            started_ms: 0,
            checkpoint: None,
            ended: None,
            undo: Vec::new(),
        };
        let open = OpenSession::begin(self.repository.clone(), session).await?;
        let swept = match crate::latest(&self.repository).await? {
            crate::Latest::Open(epoch) | crate::Latest::Decided(epoch, _) => epoch.forgotten.contains(&slot),
            crate::Latest::Finished { .. } => false,
        };
        let AtSlot::Snapshot(root) = self.repository.at_slot(slot).await? else {
            open.abandon().await?;
            return Ok(None);
        };
        if swept {
            open.abandon().await?;
            return Ok(None);
        }
        let root = Root { slot: new, ..*root };
        // What is committed must be readable from then on, also before anybody heard of it.
        let plaintext = self.plaintext.lock().unwrap()[&slot].clone();
        self.plaintext.lock().unwrap().insert(new, plaintext);
        let committed = open.commit(&root).await?;
        open.end().await?;
        Ok((committed == Commit::Won).then_some(new))
    }

    /// Records that a pack's copies of these chunks cannot be read.
    pub async fn damage(&self, pack: PackId, seeds: &[u64]) {
        let ids = self.repository.key.chunk_ids();
        self.damage_ids(pack, seeds.iter().map(|seed| ids.id(Domain::Data, &chunk(*seed))).collect()).await;
    }

    /// The same of chunks of any kind.
    pub async fn damage_ids(&self, pack: PackId, ids: Vec<ChunkId>) {
        let chunks = ids.into_iter().map(|id| DamagedChunk { id, packs: vec![pack] });
        self.record(Vec::new(), chunks.collect()).await;
    }

    /// Flips a bit of a pack.
    pub async fn rot(&self, pack: PackId, at: u32) {
        let key = names::pack(pack);
        let mut bytes = self.repository.store.get(&key).await.unwrap().unwrap().to_vec();
        bytes[at as usize] ^= 1;
        self.repository.store.put(&key, bytes.into()).await.unwrap();
    }

    /// Records that nobody relies on a pack.
    pub async fn damage_pack(&self, pack: PackId) {
        self.record(vec![pack], Vec::new()).await;
    }

    async fn record(&self, packs: Vec<PackId>, chunks: Vec<DamagedChunk>) {
        let record = Damage { version: 1, found_ms: 0, host: "host".into(), packs, chunks };
        let key = names::damage(self.repository.environment().damage_id());
        let bytes = self.repository.seal(&key, &record).unwrap();
        self.repository.store.put(&key, bytes).await.unwrap();
    }

    pub async fn visible(&self) -> Vec<Slot> {
        self.repository.visible_slots(None).await.unwrap()
    }

    pub async fn packs(&self) -> BTreeSet<PackId> {
        crate::epochs::packs(&self.repository).await.unwrap()
    }

    pub async fn bytes(&self) -> u64 {
        self.repository.list_packs().await.unwrap().iter().map(|(_, size)| size).sum()
    }

    /// Every copy of every chunk, by the footers in the bucket.
    pub async fn copies(&self) -> Result<BTreeMap<ChunkId, Vec<(PackId, u32, u32)>>, Failure> {
        let mut copies: BTreeMap<ChunkId, Vec<(PackId, u32, u32)>> = BTreeMap::new();
        for (pack, _) in self.repository.list_packs().await? {
            let footer = match self.repository.read_footer(pack).await {
                Ok((_, footer)) => footer,
                // Holds nothing that anybody could read.
                Err(failure) if failure.kind == FailureKind::Damaged => continue,
                // Deleted since the listing.
                Err(_) if self.repository.store.head(&names::pack(pack)).await?.is_none() => continue,
                Err(failure) => return Err(failure),
            };
            for entry in footer.entries {
                copies.entry(entry.id).or_default().push((pack, entry.offset, entry.len));
            }
        }
        Ok(copies)
    }

    /// The oracle: every visible snapshot reads back as what was backed up. Returns how many there are.
    pub async fn check(&self) -> usize {
        let copies = self.copies().await.unwrap();
        let visible = self.visible().await;
        for slot in &visible {
            let AtSlot::Snapshot(root) = self.repository.at_slot(*slot).await.unwrap() else {
                panic!("one-winner: {slot} is no snapshot any more")
            };
            let found = self.read(&root, &copies).await;
            let expected = self.plaintext.lock().unwrap()[slot].clone();
            assert!(found == expected, "never-collect-live: {} ({slot}) reads otherwise", root.volume);
        }
        visible.len()
    }

    /// From any copy that can be opened.
    async fn chunk(&self, id: ChunkId, copies: &BTreeMap<ChunkId, Vec<(PackId, u32, u32)>>) -> Vec<u8> {
        let mut opener = Opener::new(self.repository.key.chunk_ids()).unwrap();
        let copies = copies.get(&id).unwrap_or_else(|| panic!("never-collect-live: {id} is gone"));
        for (pack, offset, len) in copies.iter().copied() {
            let range = u64::from(offset)..u64::from(offset + len);
            let frame = self.repository.store.get_range(&names::pack(pack), range).await.unwrap();
            let key = self.key(pack, id).await;
            if let Ok(plain) = opener.open(&id, &frame, &key) {
                return plain.to_vec();
            }
        }
        panic!("never-collect-live: no copy of {id} can be opened, of {}", copies.len());
    }

    /// The top of a map.
    pub async fn structure(&self, root: &Root) -> Vec<u8> {
        self.chunk(root.top.unwrap(), &self.copies().await.unwrap()).await
    }

    /// The key of a chunk, opened from its pack's own footer.
    async fn key(&self, pack: PackId, id: ChunkId) -> FrameKey {
        if id.domain().unwrap() == Domain::Structure {
            return self.repository.key.structure_key();
        }
        let Some(identity) = &self.identity else { return FrameKey::plain() };
        let (_, footer) = self.repository.read_footer(pack).await.unwrap();
        let sealed = footer.keys.first().expect("a footer names its keys");
        DataKey::unseal(self.repository.key.repo(), sealed, identity).unwrap().frame_key()
    }

    async fn read(&self, root: &Root, copies: &BTreeMap<ChunkId, Vec<(PackId, u32, u32)>>) -> Vec<u8> {
        let mut content = Vec::new();
        let Some(top) = root.top else { return vec![0; root.size as usize] };
        assert_eq!(Geometry::new(root.size).unwrap().depth(), 0, "volumes of tests have one leaf");
        let leaf = Leaf::parse(&self.chunk(top, copies).await, root.size).unwrap();
        for piece in leaf.pieces() {
            match piece.content {
                Content::Zero => content.resize(content.len() + piece.len as usize, 0),
                Content::Chunk(id) => content.extend(self.chunk(id, copies).await),
            }
        }
        content
    }

    /// Stores frames in one pack, on behalf of a session.
    pub async fn pack(&self, kind: Domain, chunks: &[Vec<u8>], session: SessionId) -> PackId {
        self.pack_with(kind, chunks, 0, session).await
    }

    /// The first `bad` frames have the names of chunks and do not hold them.
    pub async fn pack_with(
        &self,
        kind: Domain,
        chunks: &[Vec<u8>],
        bad: usize,
        session: SessionId,
    ) -> PackId {
        let pack = self.environment.pack_id();
        let header = PackHeader { repo: self.repository.key.repo(), pack, kind, class: 0 };
        let mut builder = PackBuilder::new(header);
        let key = match (kind, &self.data_key) {
            (Domain::Structure, _) => self.repository.key.structure_key(),
            (Domain::Data, Some(key)) => key.frame_key(),
            (Domain::Data, None) => FrameKey::plain(),
        };
        for (number, chunk) in chunks.iter().enumerate() {
            let mut frame = Vec::new();
            let id = self.repository.key.chunk_ids().id(kind, chunk);
            Sealer::new(1).unwrap().seal(id, chunk, &key, &mut frame).unwrap();
            let header = FrameHeader::parse(&frame).unwrap();
            if number < bad {
                frame.last_mut().into_iter().for_each(|byte| *byte ^= 1);
            }
            builder.push(&[header], frame.into(), session).unwrap();
        }
        if let (Domain::Data, Some(key)) = (kind, &self.data_key) {
            let sealed = key.seal(&self.repository.key).unwrap();
            let _: Created =
                self.repository.store.create(&names::key(sealed.id), sealed.sealed.clone()).await.unwrap();
            builder.add_key(&sealed);
        }
        self.repository.store.put_once(&names::pack(pack), builder.finish().0).await.unwrap();
        pack
    }
}

/// The bytes of a chunk.
pub fn chunk(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    match seed {
        0 => vec![0; CHUNK],
        _ => (0..CHUNK / 8).flat_map(|_| next()).collect(),
    }
}

/// A backup in progress.
pub struct Backup {
    world: World,
    pub open: OpenSession,
    parent: Option<Root>,
    stored: Option<(Root, Vec<u8>)>,
}

impl Backup {
    /// Stores what does not count as stored.
    pub async fn store(&mut self, seeds: &[u64]) -> Result<(), Failure> {
        let (world, session) = (self.world.clone(), self.open.session().clone());
        let mut known = self.parents_chunks().await?;
        for (id, copies) in world.copies().await? {
            for (pack, ..) in copies {
                if self.open.counts(pack).await? {
                    known.insert(id);
                }
            }
        }
        let ids = world.repository.key.chunk_ids();
        let content: Vec<u8> = seeds.iter().flat_map(|seed| chunk(*seed)).collect();
        let mut fresh = Vec::new();
        let pieces = seeds.iter().map(|seed| {
            let (len, bytes) = (CHUNK as u32, chunk(*seed));
            if *seed == 0 {
                return Piece { len, content: Content::Zero };
            }
            let id = ids.id(Domain::Data, &bytes);
            if known.insert(id) {
                fresh.push(bytes);
            }
            Piece { len, content: Content::Chunk(id) }
        });
        let leaf = Leaf::new(content.len() as u64, pieces).unwrap();
        for part in fresh.chunks(PACK_CHUNKS) {
            world.pack(Domain::Data, part, session.id).await;
        }
        let bytes = leaf.encode();
        let top = build_nodes(vec![(!leaf.is_zero()).then(|| ids.id(Domain::Structure, &bytes))], |_| {
            unreachable!("one leaf has no node")
        })?;
        if top.is_some_and(|top| !known.contains(&top)) {
            world.pack(Domain::Structure, &[bytes], session.id).await;
        }
        let root = Root {
            version: Root::VERSION,
            volume: session.volume.clone(),
            host: session.host.clone(),
            source: "/nowhere".into(),
            slot: self.open.slot()?,
            job: session.job,
            reading: ReadingId::from_bytes([7; 16]),
            generation: self.parent.as_ref().map_or(1, |parent| parent.generation + 1),
            parent: self.parent.as_ref().map(|parent| parent.slot),
            size: content.len() as u64,
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
        self.stored = Some((root, content));
        Ok(())
    }

    /// What the parent's map names needs no further question.
    async fn parents_chunks(&self) -> Result<BTreeSet<ChunkId>, Failure> {
        let mut known = BTreeSet::new();
        if let Some(root) = &self.parent
            && let Some(top) = root.top
        {
            let copies = self.world.copies().await?;
            known.insert(top);
            let leaf = Leaf::parse(&self.world.chunk(top, &copies).await, root.size)?;
            known.extend(leaf.pieces().iter().filter_map(|piece| match piece.content {
                Content::Chunk(id) => Some(id),
                Content::Zero => None,
            }));
        }
        Ok(known)
    }

    /// Commits, and ends the session; none when it was revoked.
    pub async fn commit(self) -> Result<Option<Slot>, Failure> {
        let (root, content) = self.stored.expect("something was stored");
        self.world.plaintext.lock().unwrap().insert(root.slot, content);
        let committed = self.open.commit(&root).await?;
        self.open.end().await?;
        Ok((committed == Commit::Won).then_some(root.slot))
    }
}

/// Three volumes with garbage of every kind: dead packs, mostly dead ones, a double, an orphan. Returns the forgotten
/// snapshots too.
pub async fn littered(encrypted: bool) -> (World, Vec<Slot>) {
    let world = World::new(encrypted).await;
    let numbers = |range: std::ops::Range<u64>| range.collect::<Vec<u64>>();
    let first = world.backup("a", &numbers(1..25)).await;
    let mut second = numbers(1..25);
    second[4..22].iter_mut().for_each(|seed| *seed += 100);
    second[10] = 0;
    world.backup("a", &second).await;
    let other = world.backup("b", &numbers(40..60)).await;
    let mut half = numbers(40..60);
    half.truncate(3);
    world.backup("c", &half).await;
    world.forget(first).await;
    world.forget(other).await;
    // Two hosts stored the same chunks at once, and an upload landed that was given up.
    let nobody = SessionId::from_bytes([9; 16]);
    world.pack(Domain::Data, &[chunk(1), chunk(2), chunk(40)], nobody).await;
    world.pack(Domain::Data, &[chunk(900), chunk(901)], nobody).await;
    (world, vec![first, other])
}
