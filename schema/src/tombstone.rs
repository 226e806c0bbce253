//! What stands in a slot for ever where nothing is committed, or where a snapshot was swept.
//!
//! It is a small object of one length, so that a listing tells it from a root. It is sealed, so that nothing else goes
//! for one: least of all a root that a store has cut off. Repositories that were made before
//! [`FEATURE_SEALED_TOMBSTONES`](crate::config::FEATURE_SEALED_TOMBSTONES) have empty objects instead, and keep to them.

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::object::{Object, ObjectKind};

/// Bytes of a sealed tombstone. No root is as short.
pub const TOMBSTONE_LEN: u64 = 66;

/// The body of a tombstone. Its envelope says by itself where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// Version of this body.
    pub version: u16,
}

impl Tombstone {
    /// The version that this build writes.
    pub const VERSION: u16 = 1;
    /// What this build writes.
    pub const NEW: Self = Self { version: Self::VERSION };
}

impl Object for Tombstone {
    const KIND: ObjectKind = ObjectKind::Tombstone;
    const WHAT: &'static str = "tombstone";

    fn decode(body: &[u8]) -> Result<Self> {
        crate::wire::decode_versioned(Self::WHAT, Self::VERSION, body)
    }
}

/// What the tombstones of a repository are; its `config` says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tombstones {
    /// Empty objects.
    Empty,
    /// [Sealed](Tombstone) ones.
    Sealed,
}

impl Tombstones {
    /// Bytes of each.
    pub fn size(self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Sealed => TOMBSTONE_LEN,
        }
    }
}
