//! What a check found: copies of chunks that cannot be relied on, and the holes that this leaves in snapshots.
//!
//! Whoever begins a session reads all damage that is recorded. What is named there is no copy for that session: the
//! chunk is stored again where it is met, and what the parent holds at its places is read as if it had changed.

use serde::{Deserialize, Serialize};

use crate::limits::{DAMAGED_CHUNKS_MAX, DAMAGED_PACKS_MAX, HOLES_MAX};
use crate::names::Slot;
use crate::object::{Object, ObjectKind};
use crate::{ChunkId, FormatError, PackId, Result};

/// The body of `damage/<ulid>`. Never changed; removed when nothing in it is of use any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// Version of this body.
    pub version: u16,
    /// When it was found, in milliseconds since 1970; for people.
    pub found_ms: u64,
    /// The host that found it; for people.
    pub host: String,
    /// Packs of which no copy is one.
    pub packs: Vec<PackId>,
    /// Chunks with copies that are none.
    pub chunks: Vec<DamagedChunk>,
}

/// A chunk, and where it cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedChunk {
    /// The chunk.
    pub id: ChunkId,
    /// Packs that hold a copy that is none; empty when a snapshot needs the chunk and no pack had it.
    pub packs: Vec<PackId>,
}

impl Damage {
    /// The version that this build writes.
    pub const VERSION: u16 = 1;
}

impl Object for Damage {
    const KIND: ObjectKind = ObjectKind::Damage;
    const WHAT: &'static str = "record of damage";

    fn decode(body: &[u8]) -> Result<Self> {
        let found: Self = crate::wire::decode_versioned(Self::WHAT, Self::VERSION, body)?;
        at_most("damaged packs", found.packs.len(), DAMAGED_PACKS_MAX)?;
        at_most("damaged chunks", found.chunks.len(), DAMAGED_CHUNKS_MAX)?;
        Ok(found)
    }
}

/// The body of `holes/<slot>`: what of a snapshot cannot be read any more.
///
/// Written by a repair after everything else was tried. The snapshot itself is never changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holes {
    /// Version of this body.
    pub version: u16,
    /// The snapshot.
    pub slot: Slot,
    /// When they were found, in milliseconds since 1970; for people.
    pub found_ms: u64,
    /// Offset and length in bytes of each, in order, with something between any two of them.
    pub ranges: Vec<(u64, u64)>,
    /// Some of what makes them is recorded nowhere, for lack of room or because records could not be written: only who
    /// reads all content knows when they are gone.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_unrecorded: bool,
}

impl Holes {
    /// The version that this build writes.
    pub const VERSION: u16 = 1;

    /// Bytes in all of them.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().fold(0, |sum, (_, len)| sum.saturating_add(*len))
    }
}

impl Object for Holes {
    const KIND: ObjectKind = ObjectKind::Holes;
    const WHAT: &'static str = "list of holes";

    fn decode(body: &[u8]) -> Result<Self> {
        let found: Self = crate::wire::decode_versioned(Self::WHAT, Self::VERSION, body)?;
        at_most("holes", found.ranges.len(), HOLES_MAX)?;
        Ok(found)
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

fn at_most(what: &'static str, found: usize, limit: usize) -> Result<()> {
    match found <= limit {
        true => Ok(()),
        false => Err(FormatError::TooLarge { what, found: found as u64, limit: limit as u64 }),
    }
}
