//! How a collector divides its memory.
//!
//! As many bytes as the ids of needed chunks may take go to everything else that grows with an archive's chunks. What
//! grows with its packs and snapshots is small, some 200 bytes for each, and has no limit of its own.

/// Bytes of a hash table for each byte of an entry, at worst: while it grows, the smaller one is still there.
const TABLE: u64 = 4;

/// What is kept at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    /// Bytes for the ids of needed chunks.
    pub(crate) live: u64,
    /// Bytes for the places of parts of maps.
    pub(crate) structure: usize,
    /// Entries of footers.
    pub(crate) footers: usize,
    /// Parts of maps that are remembered as read.
    pub(crate) visited: usize,
    /// Needed chunks with several copies; in a census only.
    pub(crate) doubles: usize,
    /// Needed chunks of condemned packs; for a verdict only.
    pub(crate) at_risk: usize,
}

impl Budget {
    /// Of twice `memory` bytes.
    pub(crate) fn new(memory: u64) -> Self {
        let entries =
            |eighths: u64, bytes: u64| usize::try_from(memory / 8 * eighths / bytes).unwrap_or(usize::MAX);
        Self {
            live: memory,
            structure: entries(2, 1),
            footers: entries(2, 48),
            visited: entries(1, 17 * TABLE),
            doubles: entries(3, 17 * TABLE),
            at_risk: entries(3, 33 * TABLE),
        }
    }
}
