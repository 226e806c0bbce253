//! Every bound of the formats, in one place. Parsers check against these before they allocate.
//!
//! A bound here is part of the format: raising one is a format change.

/// Unit of alignment of cuts, in bytes.
pub const BLOCK: u64 = 4096;
/// Shortest data chunk that a content cut may end, in bytes.
pub const CHUNK_MIN: usize = 16 << 10;
/// Average length of a data chunk, in bytes.
pub const CHUNK_AVERAGE: usize = 64 << 10;
/// Longest data chunk, in bytes.
pub const CHUNK_MAX: usize = 256 << 10;
/// Longest structure chunk (map leaf or node), in bytes.
pub const STRUCTURE_MAX: usize = 1 << 20;
/// What one map leaf covers, in bytes.
pub const LEAF_SPAN: u64 = 64 << 20;
/// Lost pieces that one answer about a leaf names.
pub const LOST_PIECES_MAX: usize = 16 << 10;
/// Children of one map node.
pub const NODE_FANOUT: usize = 1024;
/// Levels of a map above the leaves: enough for 2^63 bytes.
pub const MAP_DEPTH_MAX: u8 = 4;
/// Largest volume, in bytes.
pub const VOLUME_MAX: u64 = 1 << 62;
/// Payload of one bus message with its header, in bytes: below the stock 1 MiB limit of NATS.
pub const MESSAGE_MAX: usize = 1_000_000;
/// Chunk bytes that one extent carries at most; the rest of a message is its header.
pub const EXTENT_MAX: usize = 960 << 10;
/// Pieces in one extent.
pub const EXTENT_PIECES_MAX: usize = 512;
/// Ranges in one message about what has not changed.
pub const UNCHANGED_RANGES_MAX: usize = 4096;
/// Runs of leaves in one answer about what is wanted.
pub const LEAF_RUNS_MAX: usize = 16 << 10;
/// Ids in one question to the index.
pub const ASK_MAX: usize = 8192;
/// Bytes of one pack at most (the configured size is a target; a pack may exceed it by one message).
pub const PACK_MAX: u64 = 1 << 30;
/// Chunks in one pack.
pub const PACK_ENTRIES_MAX: usize = 1 << 20;
/// Data keys in one pack.
pub const PACK_KEYS_MAX: usize = 1 << 12;
/// Sessions in one pack.
pub const PACK_SESSIONS_MAX: usize = 1 << 16;
/// Bytes of one small object (root, session, epoch, config) at most.
pub const OBJECT_MAX: usize = 64 << 20;
/// Damaged chunks that are recorded in one object, and that a session minds at most.
pub const DAMAGED_CHUNKS_MAX: usize = 1 << 18;
/// Damaged packs that are recorded in one object, and that a session minds at most.
pub const DAMAGED_PACKS_MAX: usize = 1 << 18;
/// Holes of one snapshot.
pub const HOLES_MAX: usize = 1 << 20;
/// Objects that a check of agents says something about.
pub const CHECK_FINDINGS_MAX: usize = 1 << 12;
/// Damaged snapshots that a check of agents names.
pub const CHECK_DAMAGED_MAX: usize = 1 << 12;
/// Ranges of them that it names in all.
pub const CHECK_RANGES_MAX: usize = 1 << 18;
/// Bytes of one sealed key.
pub const SEALED_KEY_MAX: usize = 64 << 10;
/// Age recipients of one repository: what is sealed to so many stays below [`SEALED_KEY_MAX`].
pub const RECIPIENTS_MAX: usize = 64;
/// Bytes of a pack's footer.
pub const PACK_FOOTER_MAX: usize = 96 << 20;
/// Volumes that are frozen together.
pub const GROUP_MEMBERS_MAX: usize = 256;
/// Tags of one snapshot.
pub const TAGS_MAX: usize = 256;
/// Bytes of a tag.
pub const TAG_MAX: usize = 256;
/// Bytes of a note.
pub const NOTE_MAX: usize = 4 << 10;
/// Bytes of a volume's name.
pub const VOLUME_NAME_MAX: usize = 1024;
/// Bytes of a path in a message.
pub const PATH_MAX: usize = 4096;
/// Bytes of a fact of a volume that is kept as it is; a longer one is folded.
pub const FACT_PLAIN_MAX: usize = 4 << 10;
/// Bytes of a folded fact: a message has room for little more.
pub const FACT_FOLDED_MAX: usize = 512 << 10;
/// Bytes of the text in a folded fact.
pub const FACT_MAX: usize = 16 << 20;
/// Content bytes of one record of a change stream.
pub const STREAM_DATA_MAX: usize = 1 << 20;
/// Bytes of one line of a change stream's answer.
pub const STREAM_REPLY_MAX: usize = 4096;
