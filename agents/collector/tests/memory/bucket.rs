//! A bucket that is made up while it is read.
//!
//! Leaf n of one volume names some chunks, which stand in data pack 2n, with others that nobody needs, if that is
//! wanted; data pack 2n + 1 holds as many that nobody needs. Of forgotten snapshots there are roots and markers. Frames
//! of data are empty where nobody moves them: nobody here opens content. Packs that were made last are kept for a while.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::repository::NewRepository;
use agent::store::Store;
use agent::{Environment, Repository};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::*;
use schema::chunk::{Codec, FrameHeader, Sealer};
use schema::keys::{FrameKey, WriterKey};
use schema::limits::LEAF_SPAN;
use schema::map::{Content, Leaf, Piece, build_nodes};
use schema::names::{self, Slot};
use schema::pack::{PackBuilder, PackHeader};
use schema::root::{Forgotten, Root, Statistics, Tracking};
use schema::{ChunkId, Domain, JobId, PackId, ReadingId, SessionId};

/// How large it is.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub leaves: u64,
    /// Chunks in each pack of data, 1,024 at most.
    pub chunks: u64,
    /// Those of them that a leaf names.
    pub needed: u64,
    /// Snapshots that are forgotten.
    pub forgotten: u64,
}

/// Bytes of packs that are kept.
const KEPT: usize = 8 << 20;
/// Leaves in one structure pack.
const LEAVES_PER_PACK: u64 = 100;
const STRUCTURE: u8 = 2;
const DATA: u8 = 1;

/// Names count up; nothing waits.
#[derive(Debug, Default)]
struct Plain(std::sync::atomic::AtomicU64);

#[async_trait]
impl Environment for Plain {
    fn now_ms(&self) -> u64 {
        1_700_000_000_000
    }

    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }

    async fn sleep(&self, _: Duration) {}

    fn fill_random(&self, bytes: &mut [u8]) {
        let number = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_le_bytes();
        bytes.iter_mut().zip(number.iter().cycle()).for_each(|(byte, n)| *byte = *n);
    }
}

fn mix(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn data_chunk(number: u64) -> ChunkId {
    let mut id = [1; 33];
    for (place, part) in id[1..].chunks_mut(8).enumerate() {
        part.copy_from_slice(&mix(number * 4 + place as u64).to_be_bytes());
    }
    ChunkId::parse(&id).expect("a data chunk")
}

/// Chunks of 64 KiB; the rest is zero.
fn leaf(number: u64, Shape { chunks, needed, .. }: Shape) -> Vec<u8> {
    let first = 2 * number * chunks;
    let piece = |at| Piece { len: 64 << 10, content: Content::Chunk(data_chunk(first + at)) };
    let left = (LEAF_SPAN - needed * (64 << 10)) as u32;
    let rest = (left > 0).then_some(Piece { len: left, content: Content::Zero });
    Leaf::new(LEAF_SPAN, (0..needed).map(piece).chain(rest)).expect("a leaf").encode()
}

fn pack_id(kind: u8, number: u64) -> PackId {
    let mut id = [0; 16];
    id[0] = kind;
    id[8..].copy_from_slice(&number.to_be_bytes());
    PackId::from_bytes(id)
}

/// Packs that are made when they are asked for, in front of a store in memory.
#[derive(Debug)]
struct MadeUp {
    inner: InMemory,
    key: Option<WriterKey>,
    shape: Shape,
    made: Mutex<VecDeque<(PackId, Bytes)>>,
}

impl fmt::Display for MadeUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} leaves", self.shape.leaves)
    }
}

impl MadeUp {
    fn packs(&self) -> impl Iterator<Item = PackId> + use<> {
        let leaves = self.shape.leaves;
        let data = (0..2 * leaves).map(|number| pack_id(DATA, number));
        data.chain((0..leaves.div_ceil(LEAVES_PER_PACK)).map(|number| pack_id(STRUCTURE, number)))
    }

    fn pack(&self, path: &Path) -> Option<Bytes> {
        let pack = names::parse_pack(path.as_ref()).ok()?;
        let mut made = self.made.lock().expect("nobody panicked");
        if let Some((_, bytes)) = made.iter().find(|(id, _)| *id == pack) {
            return Some(bytes.clone());
        }
        let bytes = self.make(pack)?;
        made.push_back((pack, bytes.clone()));
        while made.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() > KEPT {
            made.pop_front();
        }
        Some(bytes)
    }

    fn make(&self, pack: PackId) -> Option<Bytes> {
        let (key, Shape { leaves, chunks, .. }) = (self.key.as_ref()?, self.shape);
        let id = pack.as_bytes();
        let mut number = [0; 8];
        number.copy_from_slice(&id[8..]);
        let number = u64::from_be_bytes(number);
        let kind = match id[0] {
            DATA => Domain::Data,
            STRUCTURE => Domain::Structure,
            // The top of the map.
            _ => return None,
        };
        let mut builder = PackBuilder::new(PackHeader { repo: key.repo(), pack, kind, class: 0 });
        let session = SessionId::from_bytes([1; 16]);
        if kind == Domain::Data && number.is_multiple_of(2) && self.shape.needed < chunks {
            let mut sealer = Sealer::new(1).expect("a sealer");
            for at in 0..chunks {
                let (id, mut frame) = (data_chunk(number * chunks + at), Vec::new());
                sealer.seal(id, b"anything", &FrameKey::plain(), &mut frame).expect("a frame");
                let header = FrameHeader::parse(&frame).expect("a header");
                builder.push(&[header], frame.into(), session).expect("it fits");
            }
        } else if kind == Domain::Data {
            let chunk = |at| FrameHeader {
                id: data_chunk(number * chunks + at),
                key: 0,
                payload: 8,
                codec: Codec::Raw,
            };
            let frames: Vec<FrameHeader> = (0..chunks).map(chunk).collect();
            let len = frames.iter().map(FrameHeader::frame_len).sum();
            builder.push(&frames, vec![0; len].into(), session).expect("frames fit");
        } else {
            let first = number * LEAVES_PER_PACK;
            for leaf_number in first..(first + LEAVES_PER_PACK).min(leaves) {
                push(&mut builder, key, &leaf(leaf_number, self.shape));
            }
        }
        Some(builder.finish().0.concat().into())
    }
}

fn push(builder: &mut PackBuilder, key: &WriterKey, plain: &[u8]) {
    let id = key.chunk_ids().id(Domain::Structure, plain);
    let mut frame = Vec::new();
    Sealer::new(1).expect("a sealer").seal(id, plain, &key.structure_key(), &mut frame).expect("a frame");
    let header = FrameHeader::parse(&frame).expect("a header");
    builder.push(&[header], frame.into(), SessionId::from_bytes([1; 16])).expect("it fits");
}

#[async_trait]
impl ObjectStore for MadeUp {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let Some(bytes) = self.pack(path) else { return self.inner.get_opts(path, options).await };
        let size = bytes.len() as u64;
        let range = match &options.range {
            Some(range) => {
                range.as_range(size).map_err(|why| Error::Generic { store: "MadeUp", source: why.into() })?
            }
            None => 0..size,
        };
        let body = bytes.slice(range.start as usize..range.end as usize);
        let payload = GetResultPayload::Stream(stream::iter([Ok(body)]).boxed());
        let (attributes, extensions) = (Attributes::default(), Default::default());
        Ok(GetResult { payload, meta: meta(path.clone(), size), range, attributes, extensions })
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let real = self.inner.list(prefix);
        match prefix {
            Some(prefix) if prefix.as_ref() == names::PACKS && self.key.is_some() => {
                // All are about as large; only their order of size would matter.
                let made_up = self.packs().map(|pack| Ok(meta(names::pack(pack).into(), 100_000)));
                real.chain(stream::iter(made_up)).boxed()
            }
            _ => real,
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

fn meta(location: Path, size: u64) -> ObjectMeta {
    ObjectMeta { location, last_modified: Default::default(), size, e_tag: None, version: None }
}

/// A repository of this shape, with one snapshot that is visible.
pub async fn bucket(shape: Shape) -> Repository {
    let Shape { leaves, forgotten, .. } = shape;
    let environment: Arc<dyn Environment> = Arc::new(Plain::default());
    let inner = Arc::new(InMemory::new());
    let store = Store::new(inner.clone(), "", "made up", environment.clone());
    let new = NewRepository { recipients: Vec::new(), pack_size: 32 << 20 };
    let repository = Repository::init(store, &new).await.expect("a repository");
    let key = repository.key.clone();

    let header = PackHeader { repo: key.repo(), pack: pack_id(3, 0), kind: Domain::Structure, class: 0 };
    let mut nodes = PackBuilder::new(header);
    let row =
        (0..leaves).map(|number| Some(key.chunk_ids().id(Domain::Structure, &leaf(number, shape)))).collect();
    let top = build_nodes(row, |node| {
        let plain = node.encode();
        push(&mut nodes, &key, &plain);
        Ok(key.chunk_ids().id(Domain::Structure, &plain))
    })
    .expect("a map");
    if !nodes.is_empty() {
        let parts = nodes.finish().0;
        repository.store.put_once(&names::pack(pack_id(3, 0)), parts).await.expect("a pack");
    }
    let slot = Slot { volume: key.volume_key("large"), session: SessionId::from_bytes([1; 16]) };
    let root = root(slot, leaves * LEAF_SPAN, top);
    let sealed = repository.seal(&slot.snapshot(), &root).expect("a root");
    repository.store.put(&slot.snapshot(), sealed).await.expect("a snapshot");
    for number in 0..forgotten {
        forget(&repository, number).await;
    }

    let made_up = MadeUp { inner: inner.fork(), key: Some(key), shape, made: Mutex::default() };
    let store = Store::new(Arc::new(made_up), "", "made up", environment);
    Repository { store, ..repository }
}

async fn forget(repository: &Repository, number: u64) {
    let session = SessionId::from_parts(1, u128::from(number));
    let slot = Slot { volume: repository.key.volume_key("large"), session };
    // Nobody reads the map of a snapshot that is forgotten.
    let sealed = repository.seal(&slot.snapshot(), &root(slot, 0, None)).expect("a root");
    repository.store.put(&slot.snapshot(), sealed).await.expect("a snapshot");
    let marker = Forgotten { slot, time_ms: 0, by: "a test".into() };
    let sealed = repository.seal(&slot.forgotten(), &marker).expect("a marker");
    repository.store.put(&slot.forgotten(), sealed).await.expect("a marker");
}

fn root(slot: Slot, size: u64, top: Option<ChunkId>) -> Root {
    Root {
        version: Root::VERSION,
        volume: "large".into(),
        host: "host".into(),
        source: "/nowhere".into(),
        slot,
        job: JobId::from_bytes([1; 16]),
        reading: ReadingId::from_bytes([1; 16]),
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
    }
}
