//! What operators say of a snapshot after it was committed: holds, tags and a note.
//!
//! A root never changes, so that each of these is an object of its own beside it. A hold stands under a fresh name, for
//! as long as its object exists. Labels stand under their number, which is decided by create-if-absent; the highest
//! counts, and replaces the root's tags.

use serde::{Deserialize, Serialize};

use crate::limits::{NOTE_MAX, TAG_MAX, TAGS_MAX};
use crate::names::Slot;
use crate::object::{Object, ObjectKind};
use crate::{FormatError, MarkId, Result};

/// The body of `marks/<slot>/<ulid>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Version of this body.
    pub version: u16,
    /// The snapshot.
    pub slot: Slot,
    /// When, in milliseconds since 1970; for people.
    pub time_ms: u64,
    /// Who or what made it, for people.
    pub by: String,
    /// What it says.
    pub says: Says,
}

/// What a mark says of its snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Says {
    /// Nothing forgets the snapshot while this stands.
    Hold {
        /// Why, for people.
        note: Option<String>,
    },
    /// Its tags and its note from now on.
    Labels {
        /// Which labels of the snapshot these are; higher than all that they replace.
        number: u64,
        /// All of its tags.
        tags: Vec<String>,
        /// Its note.
        note: Option<String>,
    },
}

impl Mark {
    /// The version that this build writes.
    pub const VERSION: u16 = 1;

    /// Checks what the envelope cannot: its bounds, and that it is about the snapshot below which it stands, and has the
    /// number under which it stands.
    pub fn check(self, of: Slot, id: MarkId) -> Result<Self> {
        if self.slot != of {
            let why = format!("it is about {}, and stands below {of}", self.slot);
            return Err(FormatError::invalid(Self::WHAT, why));
        }
        match &self.says {
            Says::Hold { note } => check_note(note.as_deref())?,
            Says::Labels { number, tags, note } => {
                if id.time_ms() != *number || id != MarkId::from_parts(*number, 0) {
                    let why = format!("it has the number {number}, and stands under {id}");
                    return Err(FormatError::invalid(Self::WHAT, why));
                }
                check_tags(tags)?;
                check_note(note.as_deref())?;
            }
        }
        Ok(self)
    }
}

impl Object for Mark {
    const KIND: ObjectKind = ObjectKind::Mark;
    const WHAT: &'static str = "mark";

    fn decode(body: &[u8]) -> Result<Self> {
        crate::wire::decode_versioned(Self::WHAT, Self::VERSION, body)
    }
}

/// Whether a snapshot may have these tags.
pub fn check_tags(tags: &[String]) -> Result<()> {
    at_most("tags of a snapshot", tags.len(), TAGS_MAX)?;
    at_most("a tag", tags.iter().map(String::len).max().unwrap_or(0), TAG_MAX)
}

/// Whether a note is short enough.
pub fn check_note(note: Option<&str>) -> Result<()> {
    at_most("a note", note.map_or(0, str::len), NOTE_MAX)
}

fn at_most(what: &'static str, found: usize, limit: usize) -> Result<()> {
    match found <= limit {
        true => Ok(()),
        false => Err(FormatError::TooLarge { what, found: found as u64, limit: limit as u64 }),
    }
}
