//! Known values: what the golden files hold.

use std::collections::BTreeMap;

use bytes::Bytes;
use schema::check::{Check, Content as Read, DamagedSnapshot, End, Finding, Reached, Report, Worker};
use schema::chunk::{FrameHeader, Sealer};
use schema::config::{CHUNKER_BLOCK_ALIGNED, Config, StorePromise};
use schema::damage::{Damage, DamagedChunk, Holes};
use schema::epoch::{Awaited, Epoch, Verdict};
use schema::keys::{DataKey, FrameKey, Identity, SealedKey, WriterKey};
use schema::limits::LEAF_SPAN;
use schema::map::{Content, Leaf, Node, Piece};
use schema::mark::{Mark, Says};
use schema::messages::{FailureKind, JobOutcome};
use schema::names::Slot;
use schema::pack::{PackBuilder, PackHeader};
use schema::root::{Forgotten, Root, Statistics, Tracking};
use schema::session::{Checkpoint, Session, SessionKind};
use schema::{ChunkId, DamageId, Domain, JobId, MarkId, PackId, ReadingId, RepoId, SessionId, names};

pub const VOLUME: &str = "host-a/vg0/root";
pub const NONCE: [u8; 12] = *b"golden nonce";

/// `N` bytes that count up from `first`.
pub fn bytes<const N: usize>(first: u8) -> [u8; N] {
    std::array::from_fn(|i| first.wrapping_add(i as u8))
}

/// Bytes that zstd cannot shorten, and bytes that it can.
pub fn incompressible() -> Vec<u8> {
    let mut state = 1u64;
    let step = |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..300).map(step).collect()
}

pub fn compressible() -> Vec<u8> {
    b"one line of a log file that repeats\n".repeat(40)
}

/// A text of the kind that is folded.
pub fn long_text() -> String {
    (0..500).map(|number| format!("volume{number} {{\n\tstart_extent = {}\n}}\n", number * 8)).collect()
}

pub fn repo() -> RepoId {
    RepoId::from_bytes(bytes(0x10))
}

pub fn plain_writer() -> WriterKey {
    WriterKey::new(repo(), Vec::new(), &bytes(0x20)).unwrap()
}

pub fn writer(identity: &Identity) -> WriterKey {
    WriterKey::new(repo(), identity.recipients(), &bytes(0x20)).unwrap()
}

/// The keys of a repository that shares those of [`writer`] or [`plain_writer`].
pub fn like(key: &WriterKey) -> WriterKey {
    key.like(RepoId::from_bytes(bytes(0x11)))
}

pub fn data_key() -> DataKey {
    DataKey::new(&bytes(0x80))
}

pub fn session_id() -> SessionId {
    SessionId::from_parts(1_700_000_000_000, 0x5e55)
}

pub fn job() -> JobId {
    JobId::from_parts(1_700_000_000_001, 0x10b)
}

pub fn pack_id() -> PackId {
    PackId::from_parts(1_700_000_000_002, 0x9acc)
}

pub fn reading() -> ReadingId {
    ReadingId::from_bytes(bytes(0x40))
}

pub fn slot() -> Slot {
    Slot { volume: plain_writer().volume_key(VOLUME), session: session_id() }
}

pub fn parent() -> Slot {
    Slot { session: SessionId::from_parts(1_600_000_000_000, 7), ..slot() }
}

pub fn chunk_id(domain: Domain, seed: u8) -> ChunkId {
    plain_writer().chunk_ids().id(domain, &[seed])
}

pub fn statistics() -> Statistics {
    Statistics {
        bytes_read: 1 << 33,
        bytes_zero: 1 << 32,
        bytes_known: 70_000,
        bytes_new: 600,
        bytes_stored: 500,
        chunks: 40,
        chunks_new: 3,
    }
}

pub fn tracking() -> Tracking {
    Tracking::Since { parent: parent().session, changed: 1 << 20, audited: 65_536 }
}

pub fn frame(domain: Domain, plaintext: &[u8], key: &FrameKey) -> Vec<u8> {
    let mut out = Vec::new();
    let id = plain_writer().chunk_ids().id(domain, plaintext);
    let len = Sealer::new(3).unwrap().seal(id, plaintext, key, &mut out).unwrap();
    assert_eq!(len, out.len());
    out
}

/// A pack of these frames.
pub fn pack(kind: Domain, frames: &[&[u8]], key: Option<&SealedKey>) -> Vec<u8> {
    let mut builder = PackBuilder::new(PackHeader { repo: repo(), pack: pack_id(), kind, class: 0 });
    for frame in frames {
        let header = FrameHeader::parse(frame).unwrap();
        builder.push(&[header], Bytes::copy_from_slice(frame), session_id()).unwrap();
    }
    if let Some(key) = key {
        builder.add_key(key);
    }
    builder.finish().0.concat()
}

pub fn leaf() -> Leaf {
    let chunk = |len, seed| Piece { len, content: Content::Chunk(chunk_id(Domain::Data, seed)) };
    let zero = |len| Piece { len, content: Content::Zero };
    let rest = LEAF_SPAN as u32 - 65_536 - 8192 - 4096;
    Leaf::new(LEAF_SPAN, [chunk(65_536, 1), zero(4096), zero(4096), chunk(4096, 2), zero(rest)]).unwrap()
}

pub fn node() -> Node {
    let child = |seed| Some(chunk_id(Domain::Structure, seed));
    Node::new(2, vec![child(1), None, child(2)]).unwrap()
}

pub fn config() -> Config {
    Config {
        created_ms: 1_700_000_000_000,
        pack_size: 32 << 20,
        chunker: CHUNKER_BLOCK_ALIGNED.to_owned(),
        store: StorePromise { conditional_create: true },
        key_generation: 1,
    }
}

pub fn root() -> Root {
    Root {
        version: Root::VERSION,
        job: job(),
        volume: VOLUME.to_owned(),
        host: "host-a".to_owned(),
        source: "vg0/root".to_owned(),
        slot: slot(),
        reading: reading(),
        generation: 2,
        parent: Some(parent()),
        size: 10 << 30,
        top: Some(chunk_id(Domain::Structure, 9)),
        time_ms: 1_700_000_000_000,
        sealed_ms: 1_700_000_060_000,
        group: Some("nightly".to_owned()),
        changed_while_read: false,
        layout: BTreeMap::from([
            ("lv_size".to_owned(), "10737418240".to_owned()),
            ("vg".to_owned(), "vg0".to_owned()),
        ]),
        tags: vec!["nightly".to_owned()],
        statistics: statistics(),
        tracking: tracking(),
    }
}

pub fn forgotten() -> Forgotten {
    Forgotten { slot: slot(), time_ms: 1_700_000_070_000, by: "prune on host-b".to_owned() }
}

pub fn mark_id() -> MarkId {
    MarkId::from_parts(1_700_000_000_003, 0x3a5c)
}

pub fn hold() -> Mark {
    mark(Says::Hold { note: Some("before the migration".to_owned()) })
}

pub fn labels() -> Mark {
    let tags = vec!["nightly".to_owned(), "audited".to_owned()];
    mark(Says::Labels { number: 3, tags, note: Some("seen by the auditors".to_owned()) })
}

fn mark(says: Says) -> Mark {
    let by = "lvkeep on host-b".to_owned();
    Mark { version: Mark::VERSION, slot: slot(), time_ms: 1_700_000_080_000, by, says }
}

/// Of a snapshot that is brought back: other kinds of session have the same form.
pub fn unforgetting() -> Session {
    Session { kind: SessionKind::Unforget, checkpoint: None, ..session() }
}

pub fn session() -> Session {
    let leaves = vec![(0, Some(chunk_id(Domain::Structure, 3))), (5, None)];
    Session {
        id: session_id(),
        kind: SessionKind::Backup,
        slot: Some(slot()),
        job: job(),
        volume: VOLUME.to_owned(),
        host: "host-a".to_owned(),
        started_ms: 1_700_000_000_000,
        checkpoint: Some(Checkpoint { reading: reading(), size: 10 << 30, leaves }),
        ended: None,
        undo: Vec::new(),
    }
}

/// Of a restore whose target is kept for an undo.
pub fn undoable_session() -> Session {
    let undo = vec![JobId::from_bytes([0x71; 16]), JobId::from_bytes([0x72; 16])];
    Session { kind: SessionKind::Restore, slot: None, checkpoint: None, undo, ..session() }
}

/// What says that a restore's job is over.
pub fn ended_session() -> Session {
    let failed = JobOutcome::Failed { kind: FailureKind::Revoked, why: "stopped".to_owned() };
    Session { kind: SessionKind::Restore, slot: None, checkpoint: None, ended: Some(failed), ..session() }
}

pub fn epoch() -> Epoch {
    Epoch { number: 3, forgotten: vec![slot(), parent()], condemned: vec![pack_id()] }
}

pub fn verdict() -> Verdict {
    Verdict { number: 3, delete: vec![pack_id()] }
}

pub fn awaited() -> Awaited {
    Awaited { number: 3, sessions: vec![session_id(), parent().session] }
}

pub fn damage_id() -> DamageId {
    DamageId::from_parts(1_700_000_080_000, 5)
}

pub fn damage() -> Damage {
    let chunk = |seed, packs| DamagedChunk { id: chunk_id(Domain::Data, seed), packs };
    Damage {
        version: Damage::VERSION,
        found_ms: 1_700_000_080_000,
        host: "host-c".to_owned(),
        packs: vec![pack_id()],
        chunks: vec![chunk(1, vec![pack_id()]), chunk(2, vec![])],
    }
}

pub fn holes() -> Holes {
    let ranges = vec![(4096, 65_536), (64 << 20, 4096)];
    Holes { version: Holes::VERSION, slot: slot(), found_ms: 1_700_000_090_000, ranges, is_unrecorded: false }
}

/// Holes of which not all is recorded.
pub fn unrecorded_holes() -> Holes {
    Holes { is_unrecorded: true, ..holes() }
}

/// A check that an agent is at.
pub fn check() -> Check {
    let worker = Worker {
        session: session_id(),
        host: "host-d".to_owned(),
        begun_ms: 1_700_000_100_000,
        beat: 7,
        is_paused: true,
    };
    let found = vec![finding()];
    Check {
        version: Check::VERSION,
        job: job(),
        by: "conductor on host-c".to_owned(),
        asked_ms: 1_700_000_099_000,
        content: Read::Percent { percent: 10, behind: Some(pack_id()) },
        worker: Some(worker),
        tries: 1,
        reached: Reached {
            total: 1 << 30,
            done: 32 << 20,
            behind: Some(pack_id()),
            packs: 1,
            unopened: 0,
            found,
            ..Reached::default()
        },
        end: None,
    }
}

/// The same when another agent has gone on with it, and it was taken back.
pub fn cancelled_check() -> Check {
    let reached = Reached {
        objects: Some(5000),
        unopened: 9,
        unopened_in: 2,
        bytes_read: Some(31 << 20),
        recorded: 3,
        ..check().reached
    };
    let (kind, why) = (FailureKind::Revoked, "cancelled by lvkeep on host-e".to_owned());
    let end = Some(End::Failed { kind, why, ended_ms: Some(1_700_000_150_000) });
    Check { worker: None, reached, end, ..check() }
}

/// One that has ended, of chunks that an identity does not open.
pub fn unopened_check() -> Check {
    let mut check = ended_check();
    if let Some(End::Checked(report)) = &mut check.end {
        (report.unopened, report.unopened_in) = (7, 1);
    }
    check
}

/// One that failed before it was noted when.
pub fn failed_check() -> Check {
    let (kind, why) = (FailureKind::Other, "no further".to_owned());
    Check { worker: None, end: Some(End::Failed { kind, why, ended_ms: None }), ..check() }
}

/// The same when it has ended.
pub fn ended_check() -> Check {
    let damaged = DamagedSnapshot {
        slot: slot(),
        volume: Some(VOLUME.to_owned()),
        bytes: 8192,
        lost: vec![(4096, 8192), (65_536, 69_632)],
        problems: vec!["offset 4096: its frame is damaged".to_owned()],
    };
    let report = Report {
        ended_ms: 1_700_000_200_000,
        snapshots: 3,
        bytes: 30 << 30,
        packs: 40,
        packs_read: 5,
        bytes_read: 5 << 25,
        objects: 1,
        found: vec![finding()],
        damaged: 1,
        snapshots_damaged: vec![damaged],
        unopened: 0,
        unopened_in: 0,
        rescued: 2,
        recorded: 3,
        unrecorded: Some("no room".to_owned()),
        healed: 4,
        settled: 5,
    };
    let end = Some(End::Checked(Box::new(report)));
    Check { content: Read::Share { number: 2, of: 7 }, worker: None, end, ..check() }
}

fn finding() -> Finding {
    Finding { key: names::pack(pack_id()), why: "it is cut off".to_owned() }
}
