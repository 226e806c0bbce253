//! The native change stream: which bytes of a volume became what, as `lvkeep send` writes it and `lvkeep apply`
//! reads it. A snapback, which holds what an `apply` overwrote, is one too.
//!
//! ```text
//! header: "LVKSTRM\0", version u16, kind u8, 0u8, id [16], of [16], size u64, first u64, name u16 + bytes, check [16]
//! record: kind u8, number u64, offset u64, length u64, check [16], then the content
//!         1 data: `length` bytes of content, at most 1 MiB     2 zero: the range reads as zero, no content
//!         3 end:  offset = content bytes, length = zero bytes since `first`; content = digest [32]
//! ```
//!
//! Records are numbered through, from `first` on: a connection that takes up another's work carries the same id and
//! goes on where the other was durable. A record's check is keyed by the id and covers all of the record, so that a
//! damaged one and one of another stream are told from one at the wrong place; the end's digest covers all checks.
//! The checks are BLAKE3, cut to 16 bytes where they guard one record: it is the hash that lvkeep has anyway, and as
//! fast as a CRC here. They find accidents; who can write the stream can also make it whole.

mod decode;
mod encode;
mod reply;

pub use decode::{Decoder, Event, fuzz_decode};
pub use encode::Encoder;
pub use reply::{Applied, Reply};

use crate::{FormatError, Result, StreamId};

const WHAT: &str = "change stream";
const MAGIC: &[u8; 8] = b"LVKSTRM\0";
const VERSION: u16 = 1;
/// The header up to its name.
const HEADER_FIXED: usize = 62;
/// A record without its content.
const RECORD_LEN: usize = 41;
const CHECK_LEN: usize = 16;
const DIGEST_LEN: usize = 32;

const DATA: u8 = 1;
const ZERO: u8 = 2;
const END: u8 = 3;

/// What a stream says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What a volume became.
    Changes,
    /// What a volume was before changes were applied to it.
    Snapback,
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Self::Changes => 1,
            Self::Snapback => 2,
        }
    }
}

/// The start of every stream, and of every connection that goes on with one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The stream.
    pub id: StreamId,
    /// What it says.
    pub kind: Kind,
    /// Snapback: the stream that was applied.
    pub of: Option<StreamId>,
    /// Size of the volume that it is about, in bytes: no record goes beyond, and no smaller target will do.
    pub size: u64,
    /// Number of the first record that follows.
    pub first: u64,
    /// The volume that it is about, for messages; at most [`crate::limits::VOLUME_NAME_MAX`] bytes.
    pub name: String,
}

/// What a stream held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Records, the end not counted.
    pub records: u64,
    /// Bytes of content.
    pub data: u64,
    /// Bytes that read as zero.
    pub zero: u64,
}

/// The two formats that changes come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// This one.
    Native,
    /// That of the program lvmsync; see [`crate::lvmsync`].
    Lvmsync,
}

impl Format {
    /// Bytes that decide about the format.
    pub const LOOKED_AT: usize = 8;

    /// The format of a stream by its first [`Self::LOOKED_AT`] bytes, or fewer when there are no more.
    pub fn detect(first: &[u8]) -> Result<Self> {
        if first.starts_with(MAGIC) {
            return Ok(Self::Native);
        }
        if first.starts_with(&crate::lvmsync::GREETING[..Self::LOOKED_AT]) {
            return Ok(Self::Lvmsync);
        }
        if MAGIC.starts_with(first) || crate::lvmsync::GREETING.starts_with(first) {
            return Err(FormatError::Truncated { what: WHAT, needed: Self::LOOKED_AT, left: first.len() });
        }
        Err(FormatError::invalid(WHAT, "its first bytes are neither those of lvkeep nor those of lvmsync"))
    }
}

/// The running state that both directions share: numbers, totals, and the digest of the checks.
#[derive(Debug, Clone)]
struct Chain {
    key: [u8; 32],
    size: u64,
    first: u64,
    totals: Totals,
    digest: blake3::Hasher,
}

impl Chain {
    fn new(header: &Header) -> Self {
        Self {
            key: blake3::derive_key("lvkeep change stream 1: check of a record", header.id.as_bytes()),
            size: header.size,
            first: header.first,
            totals: Totals::default(),
            digest: blake3::Hasher::new(),
        }
    }

    /// The number of the next record.
    fn next(&self) -> u64 {
        self.first.saturating_add(self.totals.records)
    }

    fn check(&self, head: &[u8], content: &[u8]) -> [u8; CHECK_LEN] {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        short(hasher.update(head).update(content))
    }

    /// A range must not be empty and must lie inside the volume.
    fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if len > 0 && end <= self.size => Ok(()),
            _ => Err(FormatError::invalid(
                WHAT,
                format!(
                    "record {} is about {len} bytes at offset {offset} of a volume of {} bytes",
                    self.next(),
                    self.size
                ),
            )),
        }
    }

    /// Counts a record of this kind.
    fn passed(&mut self, kind: u8, len: u64, check: &[u8; CHECK_LEN]) {
        self.digest.update(check);
        self.totals.records += 1;
        match kind {
            DATA => self.totals.data = self.totals.data.saturating_add(len),
            _ => self.totals.zero = self.totals.zero.saturating_add(len),
        }
    }
}

fn short(hasher: &blake3::Hasher) -> [u8; CHECK_LEN] {
    let mut check = [0; CHECK_LEN];
    check.copy_from_slice(&hasher.finalize().as_bytes()[..CHECK_LEN]);
    check
}

fn header_check(bytes: &[u8]) -> [u8; CHECK_LEN] {
    short(blake3::Hasher::new_derive_key("lvkeep change stream 1: check of the header").update(bytes))
}
