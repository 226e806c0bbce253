//! A hasher between an index, a conductor and storers that are played by hand: extents in, sealed chunks and mappings
//! out. Time is paused.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::bus::{Bus, Queue, Service};
use agent::index::IndexClient;
use agent::local::LocalBus;
use agent::{Answerer, Context, Environment, Failure, Stop};
use async_trait::async_trait;
use bytes::Bytes;
use hasher::{ContentKey, Hasher, Settings};
use schema::chunk::{Codec, FrameHeader, Opener, split_frames};
use schema::keys::{DataKey, FrameKey, Identity, KEY_PLAIN, WriterKey};
use schema::limits::{CHUNK_MAX, LEAF_SPAN};
use schema::map::{Content, Leaf, Piece};
use schema::messages::*;
use schema::{ChunkId, Domain, PackId, ReadingId, RepoId, SessionId};

const SESSION: SessionId = SessionId::from_bytes([9; 16]);
const READING: ReadingId = ReadingId::from_bytes([7; 16]);
const PACK: PackId = PackId::from_bytes([5; 16]);
const BLOCK: usize = 4096;

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

/// What the index answers; chunks that it does not know are the asker's.
#[derive(Default)]
struct Table {
    answers: BTreeMap<ChunkId, Answer>,
    asked: Vec<Ask>,
    refuses: bool,
}

struct Index(Arc<Mutex<Table>>);

#[async_trait]
impl Answerer for Index {
    async fn answer(&mut self, message: &Message) -> Result<Message, Failure> {
        let ask: Ask = message.read()?;
        let mut table = self.0.lock().unwrap();
        if table.refuses {
            return Err(Failure::refused("the index has other shards"));
        }
        let answers =
            ask.ids.iter().map(|id| table.answers.get(id).copied().unwrap_or(Answer::Yours)).collect();
        table.asked.push(ask);
        Ok(Message::new(&About::nothing(), &Answers { answers }))
    }
}

/// The parent's leaf, as a conductor serves it.
struct Parent {
    leaf: Option<(u64, Bytes)>,
    lost: Vec<u32>,
}

#[async_trait]
impl Answerer for Parent {
    async fn answer(&mut self, message: &Message) -> Result<Message, Failure> {
        let asked: AskParentLeaf = message.read()?;
        let none = Message::new(&About::nothing(), &ParentLeaf { span: None, lost: Vec::new() });
        Ok(match &self.leaf {
            Some((span, leaf)) if asked.leaf == 0 => {
                let answer = ParentLeaf { span: Some(*span), lost: self.lost.clone() };
                Message::with_body(&About::nothing(), &answer, leaf.clone())
            }
            _ => none,
        })
    }
}

struct World {
    context: Context,
    bus: LocalBus,
    table: Arc<Mutex<Table>>,
    writer: WriterKey,
    identities: Vec<Identity>,
}

/// What came of an extent.
struct Hashed {
    event: SessionEvent,
    chunks: Option<(NewChunks, Vec<(FrameHeader, Bytes)>)>,
}

impl Hashed {
    fn pieces(&self) -> &[(u32, Mapped)] {
        match &self.event {
            SessionEvent::Mapped { pieces, .. } => pieces,
            other => panic!("nothing was mapped: {other:?}"),
        }
    }

    fn sealed_ids(&self) -> Vec<ChunkId> {
        let frames = self.chunks.iter().flat_map(|(_, frames)| frames);
        frames.map(|(header, _)| header.id).collect()
    }

    fn refused(&self) -> &str {
        match &self.event {
            SessionEvent::Failed { kind: FailureKind::Refused, why } => why,
            other => panic!("it was not refused: {other:?}"),
        }
    }
}

impl World {
    fn new(recipients: usize) -> Self {
        Self::with_parent(recipients, None)
    }

    fn with_parent(recipients: usize, parent: Option<(u64, Bytes)>) -> Self {
        Self::with_damaged_parent(recipients, parent, Vec::new())
    }

    fn with_damaged_parent(recipients: usize, leaf: Option<(u64, Bytes)>, lost: Vec<u32>) -> Self {
        let start = tokio::time::Instant::now();
        let environment: Arc<dyn Environment> = Arc::new(PausedTime { start, drawn: AtomicU64::new(1) });
        let bus = LocalBus::new(environment.clone(), 64 << 20);
        let context = Context {
            bus: Arc::new(bus.clone()),
            environment,
            counters: Arc::default(),
            stop: Stop::default(),
            host: "host".into(),
        };
        let identities: Vec<Identity> = (0..recipients).map(|_| Identity::generate()).collect();
        let public = identities.iter().flat_map(Identity::recipients).collect();
        let writer = WriterKey::new(RepoId::from_bytes([3; 16]), public, &[4; 64]).unwrap();
        let table = Arc::new(Mutex::new(Table::default()));
        let (index, serving) = (Index(table.clone()), context.clone());
        tokio::spawn(async move { agent::serve(&serving, &Service::index(0), index).await });
        let (serving, parent) = (context.clone(), Parent { leaf, lost });
        tokio::spawn(async move { agent::serve(&serving, &Service::conductor(SESSION), parent).await });
        Self { context, bus, table, writer, identities }
    }

    fn start(&self) -> Arc<ContentKey> {
        let content = Arc::new(ContentKey::new(&self.writer, &*self.context.environment).unwrap());
        let settings = Settings { level: 3, extents: Queue::extents("host") };
        let index = IndexClient::new(self.context.bus.clone(), self.context.environment.clone(), 1);
        let hasher = Hasher::new(self.context.clone(), settings, index, &self.writer, content.clone());
        tokio::spawn(hasher.unwrap().run());
        content
    }

    fn id(&self, plain: &[u8]) -> ChunkId {
        self.writer.chunk_ids().id(Domain::Data, plain)
    }

    fn knows(&self, plain: &[u8], answer: Answer) {
        self.table.lock().unwrap().answers.insert(self.id(plain), answer);
    }

    fn asked(&self) -> Vec<Ask> {
        std::mem::take(&mut self.table.lock().unwrap().asked)
    }

    async fn hash(&self, extent: &Extent, body: Vec<u8>) -> Hashed {
        let message = Message::with_body(&About::session(SESSION, "host/vg/lv"), extent, body.into());
        self.bus.publish(&Queue::extents("host"), message).await.unwrap();
        let mut events = self.bus.consume(&Queue::session(SESSION), 1).await.unwrap();
        let delivery = events.next().await.unwrap();
        let event = delivery.message.read().unwrap();
        delivery.ticket.done().await.unwrap();
        self.context.environment.sleep(Duration::from_secs(1)).await;
        assert_eq!(self.bus.bytes_in(&Queue::extents("host")), 0, "the extent is acknowledged");
        Hashed { event, chunks: self.new_chunks().await }
    }

    async fn new_chunks(&self) -> Option<(NewChunks, Vec<(FrameHeader, Bytes)>)> {
        if self.bus.bytes_in(&Queue::chunks()) == 0 {
            return None;
        }
        let mut queue = self.bus.consume(&Queue::chunks(), 1).await.unwrap();
        let delivery = queue.next().await.unwrap();
        let frames = split_frames(&delivery.message.body, 512).unwrap();
        let chunks = delivery.message.read().unwrap();
        delivery.ticket.done().await.unwrap();
        assert_eq!(self.bus.bytes_in(&Queue::chunks()), 0, "one message per extent");
        Some((chunks, frames))
    }
}

/// An extent of these pieces, and its body; an empty piece stands for one block of zeroes.
fn extent(offset: u64, pieces: &[&[u8]]) -> (Extent, Vec<u8>) {
    let zero = vec![0; BLOCK];
    let body = pieces.iter().flat_map(|piece| if piece.is_empty() { &zero } else { *piece }).copied();
    let body: Vec<u8> = body.collect();
    let len = |piece: &&[u8]| if piece.is_empty() { BLOCK } else { piece.len() };
    let pieces = pieces.iter().map(|piece| (len(piece) as u32, piece.is_empty())).collect();
    (Extent { session: SESSION, reading: READING, offset, pieces, force: false }, body)
}

/// Bytes that compress well.
fn text(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| seed.wrapping_add((at / 512) as u8 % 7)).collect()
}

/// Bytes that do not compress.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

#[tokio::test(start_paused = true)]
async fn new_chunks_are_sealed_and_mapped() {
    let world = World::new(1);
    world.start();
    let (first, second) = (text(1, 3 * BLOCK), noise(2, 20_000));
    let (extent, body) = extent(8 * BLOCK as u64, &[&first, &[], &second]);
    let hashed = world.hash(&extent, body).await;
    let (chunks, frames) = hashed.chunks.as_ref().unwrap();
    let ids = [world.id(&first), world.id(&second)];
    let stored: usize = frames.iter().map(|(_, frame)| frame.len()).sum();
    let expected = SessionEvent::Mapped {
        reading: READING,
        offset: extent.offset,
        pieces: vec![
            (first.len() as u32, Mapped::Pending(ids[0])),
            (BLOCK as u32, Mapped::Zero),
            (second.len() as u32, Mapped::Pending(ids[1])),
        ],
        stored: stored as u64,
        new: (first.len() + second.len()) as u64,
        chunks_new: 2,
    };
    assert_eq!(hashed.event, expected);
    assert_eq!((chunks.session, chunks.kind), (SESSION, Domain8(Domain::Data)));
    // Whoever holds the identity gets the bytes back, and nobody else does.
    let sealed = chunks.key.as_ref().unwrap();
    let key = DataKey::unseal(world.writer.repo(), sealed, &world.identities[0]).unwrap();
    let mut opener = Opener::new(world.writer.chunk_ids()).unwrap();
    for ((id, plain), (_, frame)) in ids.iter().zip([&first, &second]).zip(frames) {
        assert_eq!(opener.open(id, frame, &key.frame_key()).unwrap(), plain);
        opener.open(id, frame, &FrameKey::plain()).unwrap_err();
        assert!(!frame.windows(64).any(|part| part == &plain[..64]), "no-plaintext-out");
    }
    // What does not compress is stored as it is.
    assert_eq!([frames[0].0.codec, frames[1].0.codec], [Codec::Zstd, Codec::Raw]);
    assert!(frames[0].1.len() < first.len() / 2);
}

#[tokio::test(start_paused = true)]
async fn the_index_says_what_is_sealed() {
    let world = World::new(1);
    world.start();
    let (known, ours, pending) = (text(1, BLOCK), text(2, BLOCK), text(3, BLOCK));
    world.knows(&known, Answer::Known(PACK));
    world.knows(&pending, Answer::Pending);
    let (extent, body) = extent(0, &[&known, &ours, &pending]);
    let hashed = world.hash(&extent, body).await;
    let len = BLOCK as u32;
    let expected = [
        (len, Mapped::Known(world.id(&known), PACK)),
        (len, Mapped::Pending(world.id(&ours))),
        (len, Mapped::Pending(world.id(&pending))),
    ];
    assert_eq!(hashed.pieces(), expected);
    assert_eq!(hashed.sealed_ids(), [world.id(&ours)]);
    assert!(matches!(hashed.event, SessionEvent::Mapped { new: 4096, chunks_new: 1, .. }));
    let asked = world.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!((asked[0].session, asked[0].extent, asked[0].force), (SESSION, 0, false));
}

#[tokio::test(start_paused = true)]
async fn what_is_known_is_not_sealed_at_all() {
    let world = World::new(1);
    world.start();
    let known = text(1, BLOCK);
    world.knows(&known, Answer::Known(PACK));
    let (extent, body) = extent(0, &[&known]);
    let hashed = world.hash(&extent, body).await;
    assert!(hashed.chunks.is_none());
    assert!(matches!(hashed.event, SessionEvent::Mapped { stored: 0, new: 0, chunks_new: 0, .. }));
}

#[tokio::test(start_paused = true)]
async fn a_chunk_twice_in_an_extent_is_asked_about_and_sealed_once() {
    let world = World::new(1);
    world.start();
    let (twice, once) = (text(1, BLOCK), text(2, 2 * BLOCK));
    let (extent, body) = extent(0, &[&twice, &once, &twice]);
    let hashed = world.hash(&extent, body).await;
    assert_eq!(hashed.sealed_ids(), [world.id(&twice), world.id(&once)]);
    assert_eq!(world.asked()[0].ids, [world.id(&twice), world.id(&once)]);
    assert_eq!(hashed.pieces()[0], hashed.pieces()[2]);
    assert!(matches!(hashed.event, SessionEvent::Mapped { new: 12288, chunks_new: 2, .. }));
}

#[tokio::test(start_paused = true)]
async fn zeroes_are_neither_asked_about_nor_sealed() {
    let world = World::new(1);
    world.start();
    let (extent, body) = extent(0, &[&[], &[]]);
    let hashed = world.hash(&extent, body).await;
    assert_eq!(hashed.pieces(), [(BLOCK as u32, Mapped::Zero); 2]);
    assert!(hashed.chunks.is_none() && world.asked().is_empty());
}

/// A parent whose first leaf starts with this chunk.
fn parent_with(writer: &WriterKey, plain: &[u8]) -> (u64, Bytes) {
    let id = writer.chunk_ids().id(Domain::Data, plain);
    let rest = Piece { len: LEAF_SPAN as u32 - plain.len() as u32, content: Content::Zero };
    let leaf = Leaf::new(LEAF_SPAN, [Piece { len: plain.len() as u32, content: Content::Chunk(id) }, rest]);
    (LEAF_SPAN, leaf.unwrap().encode().into())
}

#[tokio::test(start_paused = true)]
async fn what_the_parent_has_at_the_same_place_needs_no_question() {
    let plain = text(1, BLOCK);
    let writer = WriterKey::new(RepoId::from_bytes([3; 16]), Vec::new(), &[4; 64]).unwrap();
    let world = World::with_parent(0, Some(parent_with(&writer, &plain)));
    world.start();
    let id = world.id(&plain);
    // At its place, and elsewhere.
    let (extent, body) = extent(0, &[&plain, &plain]);
    let hashed = world.hash(&extent, body.clone()).await;
    let len = BLOCK as u32;
    assert_eq!(hashed.pieces(), [(len, Mapped::Parent(id)), (len, Mapped::Pending(id))]);
    assert_eq!(world.asked()[0].ids, [id]);
    // In another leaf.
    let there = Extent { offset: LEAF_SPAN, ..extent.clone() };
    let hashed = world.hash(&there, body.clone()).await;
    assert_eq!(hashed.pieces(), [(len, Mapped::Pending(id)); 2]);
    // Forced: somebody promised and did not deliver.
    world.asked();
    let forced = Extent { force: true, ..extent };
    let hashed = world.hash(&forced, body).await;
    assert_eq!(hashed.pieces(), [(len, Mapped::Pending(id)); 2]);
    assert_eq!(hashed.sealed_ids(), [id]);
    let asked = world.asked();
    assert!(asked[0].force && asked[0].ids == [id]);
}

#[tokio::test(start_paused = true)]
async fn what_is_lost_is_stored_again_whatever_the_index_says() {
    let (plain, other) = (text(1, BLOCK), text(2, BLOCK));
    let writer = WriterKey::new(RepoId::from_bytes([3; 16]), Vec::new(), &[4; 64]).unwrap();
    let world = World::with_damaged_parent(0, Some(parent_with(&writer, &plain)), vec![0, 7]);
    world.start();
    let (extent, body) = extent(0, &[&other, &plain]);
    let (lost, known) = (world.id(&plain), world.id(&other));
    world.knows(&other, Answer::Known(PackId::from_bytes([9; 16])));
    let hashed = world.hash(&extent, body).await;
    let len = BLOCK as u32;
    let expected = [(len, Mapped::Known(known, PackId::from_bytes([9; 16]))), (len, Mapped::Pending(lost))];
    assert_eq!(hashed.pieces(), expected);
    assert_eq!(hashed.sealed_ids(), [lost]);
    let asked: Vec<_> = world.asked().into_iter().map(|ask| (ask.force, ask.ids)).collect();
    assert_eq!(asked, [(true, vec![lost]), (false, vec![known])]);
}

#[tokio::test(start_paused = true)]
async fn a_parent_that_makes_no_sense_is_no_short_cut_and_no_error() {
    let plain = text(1, BLOCK);
    let writer = WriterKey::new(RepoId::from_bytes([3; 16]), Vec::new(), &[4; 64]).unwrap();
    let (span, leaf) = parent_with(&writer, &plain);
    for parent in [(span, Bytes::from_static(b"lL\x01")), (span - 4096, leaf), (u64::MAX, Bytes::new())] {
        let world = World::with_parent(0, Some(parent));
        world.start();
        let (extent, body) = extent(0, &[&plain]);
        let hashed = world.hash(&extent, body).await;
        assert_eq!(hashed.pieces(), [(BLOCK as u32, Mapped::Pending(world.id(&plain)))]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_extent_that_does_not_fit_its_pieces_is_refused_by_its_place() {
    let world = World::new(1);
    world.start();
    let plain = text(1, 2 * BLOCK);
    for len in [BLOCK, 3 * BLOCK] {
        let (mut extent, body) = extent(77 * 4096, &[&plain]);
        extent.pieces[0].0 = len as u32;
        let hashed = world.hash(&extent, body).await;
        assert!(hashed.refused().contains("offset 315392"), "{}", hashed.refused());
        assert!(hashed.chunks.is_none());
    }
    let long = noise(1, CHUNK_MAX + 1);
    let (extent, body) = extent(BLOCK as u64, &[&plain[..BLOCK], &long]);
    let hashed = world.hash(&extent, body).await;
    assert!(hashed.refused().contains("offset 8192"), "{}", hashed.refused());
    // The longest chunk that there can be.
    let longest = noise(2, CHUNK_MAX);
    let (extent, body) = self::extent(0, &[&longest]);
    assert_eq!(world.hash(&extent, body).await.sealed_ids(), [world.id(&longest)]);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_the_index_reaches_the_session() {
    let world = World::new(1);
    world.start();
    world.table.lock().unwrap().refuses = true;
    let (extent, body) = extent(0, &[&text(1, BLOCK)]);
    let hashed = world.hash(&extent, body).await;
    let SessionEvent::Failed { why, .. } = &hashed.event else { panic!("{:?}", hashed.event) };
    assert!(why.contains("the index has other shards"), "{why}");
    assert!(hashed.chunks.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_plain_repository_has_no_key() {
    let world = World::new(0);
    assert!(world.start().sealed().is_none());
    let plain = text(1, 2 * BLOCK);
    let (extent, body) = extent(0, &[&plain]);
    let hashed = world.hash(&extent, body).await;
    let (chunks, frames) = hashed.chunks.as_ref().unwrap();
    assert_eq!(chunks.key, None);
    assert_eq!(frames[0].0.key, KEY_PLAIN);
    let mut opener = Opener::new(world.writer.chunk_ids()).unwrap();
    assert_eq!(opener.open(&world.id(&plain), &frames[0].1, &FrameKey::plain()).unwrap(), plain);
}

#[tokio::test(start_paused = true)]
async fn the_key_is_sealed_to_every_recipient_and_each_process_has_its_own() {
    let world = World::new(3);
    let (first, second) = (world.start(), world.start());
    let (first, second) = (first.sealed().unwrap(), second.sealed().unwrap());
    assert_ne!(first.id, second.id);
    let stranger = Identity::generate();
    for sealed in [first, second] {
        for identity in &world.identities {
            assert_eq!(DataKey::unseal(world.writer.repo(), sealed, identity).unwrap().id(), sealed.id);
        }
        DataKey::unseal(world.writer.repo(), sealed, &stranger).unwrap_err();
        assert_eq!(sealed.generation, world.writer.generation());
    }
}

#[tokio::test(start_paused = true)]
async fn counters_add_up_to_what_was_hashed() {
    let world = World::new(1);
    world.start();
    let (known, ours) = (text(1, BLOCK), text(2, 2 * BLOCK));
    world.knows(&known, Answer::Known(PACK));
    let (extent, body) = extent(0, &[&known, &[], &ours]);
    let hashed = world.hash(&extent, body).await;
    let SessionEvent::Mapped { stored, .. } = hashed.event else { panic!("{:?}", hashed.event) };
    let counters = &world.context.counters;
    let found = [counters.bytes_known.get(), counters.bytes_new.get(), counters.bytes_stored.get()];
    assert_eq!(found, [4096, 8192, stored]);
}
