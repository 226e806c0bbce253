//! A snapshot's root, and the marker that forgets it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::names::Slot;
use crate::object::{Object, ObjectKind};
use crate::{ChunkId, FormatError, JobId, ReadingId, Result, SessionId, limits};

/// What a backup counted; all in bytes of the volume unless said otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Read from the source.
    pub bytes_read: u64,
    /// Known to be zero, or found to be.
    pub bytes_zero: u64,
    /// Already stored.
    pub bytes_known: u64,
    /// New to the repository.
    pub bytes_new: u64,
    /// Written to packs for this snapshot, after compression and sealing.
    pub bytes_stored: u64,
    /// Chunks of the volume.
    pub chunks: u64,
    /// Chunks that were new.
    pub chunks_new: u64,
}

/// What of a volume was read for a snapshot, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tracking {
    /// Everything that may hold something other than zeroes.
    Everything {
        /// For the operator: why nothing could be left out where that was to be expected.
        why: Option<String>,
    },
    /// What may have changed since another snapshot.
    Since {
        /// Its session.
        parent: SessionId,
        /// Bytes that may have changed.
        changed: u64,
        /// Bytes that were said to be unchanged, and were read all the same to see whether they are.
        audited: u64,
    },
}

/// The root of a snapshot: its existence at its slot is the commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Version of this body.
    pub version: u16,
    /// The volume's name.
    pub volume: String,
    /// The host that it was read on.
    pub host: String,
    /// What was read there: a path or `vg/lv`.
    pub source: String,
    /// The slot that this root was made for.
    pub slot: Slot,
    /// The job that asked for it: a job that is delivered again is recognised.
    pub job: JobId,
    /// The one reading that its bytes come from.
    pub reading: ReadingId,
    /// Higher than that of every snapshot of the volume that was there or could come back; 1 for the first.
    pub generation: u64,
    /// The snapshot that this one was compared with.
    pub parent: Option<Slot>,
    /// The volume's size in bytes.
    pub size: u64,
    /// The top of the map; none when the volume reads as zero throughout.
    pub top: Option<ChunkId>,
    /// When reading began, in milliseconds since 1970: the moment that the snapshot shows.
    pub time_ms: u64,
    /// When it was sealed, in milliseconds since 1970.
    pub sealed_ms: u64,
    /// Volumes that were frozen together carry the same group.
    pub group: Option<String>,
    /// The source changed while it was read, and that was allowed.
    pub changed_while_read: bool,
    /// Facts that rebuild the volume's place (layout of LVM), by name.
    pub layout: BTreeMap<String, String>,
    /// The operator's tags.
    pub tags: Vec<String>,
    /// Counters of the run.
    pub statistics: Statistics,
    /// What was read, and why.
    pub tracking: Tracking,
}

impl Root {
    /// The version that this build writes.
    pub const VERSION: u16 = 1;

    /// Checks what the envelope cannot: version, size, and that it stands where it was made for.
    pub fn check(self, at: Slot) -> Result<Self> {
        let what = Self::WHAT;
        if self.version == 0 || self.version > Self::VERSION {
            return Err(FormatError::version(what, self.version, Self::VERSION));
        }
        if self.slot != at {
            return Err(FormatError::invalid(
                what,
                format!("it was made for {}, and stands at {at}", self.slot),
            ));
        }
        if self.size > limits::VOLUME_MAX {
            return Err(FormatError::TooLarge {
                what: "a volume",
                found: self.size,
                limit: limits::VOLUME_MAX,
            });
        }
        Ok(self)
    }
}

impl Object for Root {
    const KIND: ObjectKind = ObjectKind::Root;
    const WHAT: &'static str = "snapshot";

    fn decode(body: &[u8]) -> Result<Self> {
        crate::wire::decode_versioned(Self::WHAT, Self::VERSION, body)
    }
}

/// Says that a snapshot is forgotten; the slot itself stays untouched until it is collected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// The snapshot.
    pub slot: Slot,
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
    /// Who or what forgot it, for people.
    pub by: String,
}

impl Object for Forgotten {
    const KIND: ObjectKind = ObjectKind::Forgotten;
    const WHAT: &'static str = "forgotten marker";
}
