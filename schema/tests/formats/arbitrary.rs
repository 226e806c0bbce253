//! Strategies for values of the formats.

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use schema::limits::{CHUNK_MAX, LEAF_SPAN, NODE_FANOUT};
use schema::map::{Content, Leaf, Node, Piece};
use schema::names::Slot;
use schema::root::{Root, Statistics, Tracking};
use schema::{ChunkId, Domain, JobId, PackId, ReadingId, SessionId, VolumeKey};

/// Few cases, and nothing written beside the sources; a failure prints its values.
pub fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

pub fn chunk_id(domain: Domain) -> impl Strategy<Value = ChunkId> {
    any::<[u8; 32]>().prop_map(move |hash| {
        let mut id = [domain as u8; 33];
        id[1..].copy_from_slice(&hash);
        ChunkId::parse(&id).unwrap()
    })
}

pub fn session_id() -> impl Strategy<Value = SessionId> {
    any::<[u8; 16]>().prop_map(SessionId::from_bytes)
}

pub fn pack_id() -> impl Strategy<Value = PackId> {
    any::<[u8; 16]>().prop_map(PackId::from_bytes)
}

pub fn job_id() -> impl Strategy<Value = JobId> {
    any::<[u8; 16]>().prop_map(JobId::from_bytes)
}

pub fn reading() -> impl Strategy<Value = ReadingId> {
    any::<[u8; 16]>().prop_map(ReadingId::from_bytes)
}

pub fn slot() -> impl Strategy<Value = Slot> {
    (any::<[u8; 16]>(), session_id())
        .prop_map(|(volume, session)| Slot { volume: VolumeKey::from_bytes(volume), session })
}

/// Content as guests have it: runs, repeats, zeroes and noise.
pub fn content(max: usize) -> impl Strategy<Value = Vec<u8>> {
    let run = (any::<u8>(), 1..max / 4).prop_map(|(byte, len)| vec![byte; len]);
    let noise = vec(any::<u8>(), 1..256);
    vec(prop_oneof![run, noise], 1..4).prop_map(move |parts| {
        let mut bytes = parts.concat();
        bytes.truncate(max);
        bytes
    })
}

/// A leaf's pieces and how many bytes they cover.
pub fn pieces() -> impl Strategy<Value = (u64, Vec<Piece>)> {
    let chunk = (1..=CHUNK_MAX as u32, chunk_id(Domain::Data))
        .prop_map(|(len, id)| Piece { len, content: Content::Chunk(id) });
    let zero = (1..1u32 << 20).prop_map(|len| Piece { len, content: Content::Zero });
    vec(prop_oneof![2 => chunk, 1 => zero], 0..40).prop_map(|pieces| {
        let span = pieces.iter().map(|piece| u64::from(piece.len)).sum();
        assert!(span <= LEAF_SPAN);
        (span, pieces)
    })
}

pub fn leaf() -> impl Strategy<Value = (u64, Leaf)> {
    pieces().prop_map(|(span, pieces)| (span, Leaf::new(span, pieces).unwrap()))
}

pub fn node() -> impl Strategy<Value = Node> {
    (1u8..=4, vec(option::of(chunk_id(Domain::Structure)), 1..80))
        .prop_map(|(level, children)| Node::new(level, children).unwrap())
}

/// A row of leaves, longer than one node now and then.
pub fn row() -> impl Strategy<Value = Vec<Option<ChunkId>>> {
    let sparse = vec(option::weighted(0.1, chunk_id(Domain::Structure)), 0..40);
    let wide = vec(option::weighted(0.01, chunk_id(Domain::Structure)), NODE_FANOUT - 2..3 * NODE_FANOUT);
    prop_oneof![3 => sparse, 1 => wide]
}

pub fn root() -> impl Strategy<Value = Root> {
    let texts = (".{0,40}", ".{0,20}", ".{0,20}", option::of(".{0,8}"), vec(".{0,8}", 0..4));
    let numbers = (any::<u64>(), 0..=schema::limits::VOLUME_MAX, any::<u64>(), any::<u64>(), any::<bool>());
    let ids = (job_id(), slot(), option::of(slot()), reading(), option::of(chunk_id(Domain::Structure)));
    let layout = btree_map(".{0,8}", ".{0,8}", 0..4);
    (texts, numbers, ids, layout, any::<[u64; 7]>(), tracking()).prop_map(|drawn| {
        let (texts, numbers, ids, layout, counts, tracking) = drawn;
        let (volume, host, source, group, tags) = texts;
        let (generation, size, time_ms, sealed_ms, changed_while_read) = numbers;
        let (job, slot, parent, reading, top) = ids;
        let [bytes_read, bytes_zero, bytes_known, bytes_new, bytes_stored, chunks, chunks_new] = counts;
        let statistics =
            Statistics { bytes_read, bytes_zero, bytes_known, bytes_new, bytes_stored, chunks, chunks_new };
        Root {
            version: Root::VERSION,
            job,
            volume,
            host,
            source,
            slot,
            reading,
            generation,
            parent,
            size,
            top,
            time_ms,
            sealed_ms,
            group,
            changed_while_read,
            layout,
            tags,
            statistics,
            tracking,
        }
    })
}

fn tracking() -> impl Strategy<Value = Tracking> {
    let everything = option::of(".{0,20}").prop_map(|why| Tracking::Everything { why });
    let since = (session_id(), any::<u64>(), any::<u64>())
        .prop_map(|(parent, changed, audited)| Tracking::Since { parent, changed, audited });
    prop_oneof![everything, since]
}
