//! The exception store of a classic ("thick") snapshot: which chunks of its origin were written to since it was taken.
//!
//! The format is that of the kernel's persistent store (`drivers/md/dm-snap-persistent.c`), little-endian:
//!
//! ```text
//! chunk 0                header: magic "SnAp", valid, version (1), chunk size in sectors; u32 each
//! chunk 1 + k (E + 1)    metadata area k: E = chunk bytes / 16 entries (old chunk, new chunk), u64 each
//! all other chunks       what stood in the origin's old chunk
//! ```
//!
//! An entry whose new chunk is 0 ends the list; the kernel clears area k + 1 before it fills the last entry of area k,
//! so that an area that is full always has another behind it. Entries are only ever added, and they are on disk before
//! the write to the origin goes through: whoever reads the list after a newer snapshot exists finds in it every chunk
//! that was written to before, and perhaps some that were written to since.
//!
//! What does not fit together is refused by name: a list that cannot be trusted is worth nothing. Memory is bounded by
//! the sizes of the devices, at most 64 MiB besides the result; nothing is allocated because an entry says so.

use std::io;
use std::ops::Range;

use crate::ranges::Ranges;

#[cfg(test)]
pub(crate) mod tests;

/// "SnAp".
const MAGIC: u32 = 0x7041_6e53;
const VERSION: u32 = 1;
const SECTOR: u64 = 512;
/// The least that is read, and the smallest chunk that `lvcreate` makes.
const SMALLEST: u64 = 4 << 10;
/// The largest chunk that `lvcreate` makes.
const LARGEST: u64 = 512 << 10;
const ENTRY: usize = 16;
/// Marks in one set at most: 32 MiB.
const MARKS_MAX: u64 = 1 << 28;

/// Bytes at any offset.
pub trait ReadAt {
    /// How many there are.
    fn size(&self) -> u64;

    /// Fills `buffer` from `offset`. Both are multiples of 4 KiB.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for &[u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).ok().and_then(|at| self.get(at..)?.get(..buffer.len()));
        buffer.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Why a store tells nothing.
#[derive(Debug, thiserror::Error)]
pub enum ExceptionsError {
    /// The kernel gave the snapshot up.
    #[error("the snapshot overflowed: it is no longer valid")]
    Overflowed,
    /// It cannot be read.
    #[error("cannot read it at offset {offset}: {why}")]
    CannotRead {
        /// In bytes.
        offset: u64,
        /// Why.
        why: io::Error,
    },
    /// It is something else.
    #[error("it is no exception store: it begins with {0:#010x} instead of \"SnAp\"")]
    Magic(u32),
    /// It is of another kernel.
    #[error("its format has version {0}, and only version {VERSION} is known")]
    Version(u32),
    /// A header that no kernel writes.
    #[error("its header says neither that it is valid nor that it is not ({0})")]
    Valid(u32),
    /// A header that LVM does not make.
    #[error("its chunks have {0} sectors, which is not a power of two from 8 to 1024")]
    ChunkSize(u32),
    /// It is too short.
    #[error("it has {0} bytes, too few for a header and a list")]
    TooSmall(u64),
    /// The list does not end.
    #[error("its list does not end: metadata area {area} would lie behind the end of the device")]
    Endless {
        /// Counted from 0.
        area: u64,
    },
    /// The old chunk does not exist.
    #[error("an entry is about chunk {old} of the origin, which has {chunks}")]
    OldBeyondOrigin {
        /// The entry's.
        old: u64,
        /// Of the origin.
        chunks: u64,
    },
    /// The new chunk does not exist.
    #[error("an entry points to chunk {new} of the store, which has {chunks}")]
    NewBeyondStore {
        /// The entry's.
        new: u64,
        /// Of the store.
        chunks: u64,
    },
    /// The new chunk holds entries.
    #[error("an entry points to chunk {new} of the store, which holds metadata")]
    NewInMetadata {
        /// The entry's.
        new: u64,
    },
    /// Two entries about the same chunk.
    #[error("two entries are about chunk {old} of the origin")]
    OldTwice {
        /// Theirs.
        old: u64,
    },
    /// Two entries that point to the same chunk.
    #[error("two entries point to chunk {new} of the store")]
    NewTwice {
        /// Theirs.
        new: u64,
    },
}

/// What a store lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exceptions {
    /// Bytes of a chunk.
    pub chunk: u64,
    /// How many entries there are.
    pub entries: u64,
    /// How many metadata areas were read.
    pub areas: u64,
    /// The chunks of the origin that were written to, in bytes of the origin.
    pub changed: Ranges,
}

/// Reads the list of a store whose origin has `origin` bytes.
///
/// Of an origin or store with more than 2^28 chunks (1 TiB in chunks of 4 KiB), several neighbouring chunks share one
/// mark: the result is widened accordingly, and entries that come twice are not noticed any more.
pub fn read(store: &mut impl ReadAt, origin: u64) -> Result<Exceptions, ExceptionsError> {
    let chunk = read_header(store)?;
    let chunks = store.size() / chunk;
    let per_area = chunk / ENTRY as u64;
    let mut list = List {
        stride: per_area + 1,
        chunks,
        origin_chunks: origin.div_ceil(chunk),
        old: Marks::new(origin.div_ceil(chunk)),
        new: Marks::new(chunks),
        entries: 0,
    };
    let mut buffer = vec![0; chunk as usize];
    let mut area = 0;
    loop {
        // Cannot overflow: the area before this one was in the device.
        let at = 1 + area * list.stride;
        if at >= chunks {
            return Err(ExceptionsError::Endless { area });
        }
        read_at(store, at * chunk, &mut buffer)?;
        area += 1;
        if list.take(&buffer)? {
            break;
        }
    }
    let bytes = |run: Range<u64>| run.start * chunk..run.end.saturating_mul(chunk).min(origin);
    let changed = list.old.runs().map(bytes).collect();
    Ok(Exceptions { chunk, entries: list.entries, areas: area, changed })
}

/// The size of a chunk, from a header that is as it should be.
fn read_header(store: &mut impl ReadAt) -> Result<u64, ExceptionsError> {
    let size = store.size();
    if size < SMALLEST {
        return Err(ExceptionsError::TooSmall(size));
    }
    let mut head = vec![0; SMALLEST as usize];
    read_at(store, 0, &mut head)?;
    let mut fields = head.chunks_exact(4).map(|field| match field {
        [a, b, c, d] => u32::from_le_bytes([*a, *b, *c, *d]),
        _ => 0,
    });
    let mut field = || fields.next().unwrap_or(0);
    let (magic, valid, version, sectors) = (field(), field(), field(), field());
    if magic != MAGIC {
        return Err(ExceptionsError::Magic(magic));
    }
    if version != VERSION {
        return Err(ExceptionsError::Version(version));
    }
    let chunk = u64::from(sectors) * SECTOR;
    if !chunk.is_power_of_two() || !(SMALLEST..=LARGEST).contains(&chunk) {
        return Err(ExceptionsError::ChunkSize(sectors));
    }
    match valid {
        0 => Err(ExceptionsError::Overflowed),
        1 => Ok(chunk),
        other => Err(ExceptionsError::Valid(other)),
    }
}

fn read_at(store: &mut impl ReadAt, offset: u64, buffer: &mut [u8]) -> Result<(), ExceptionsError> {
    store.read_at(offset, buffer).map_err(|why| ExceptionsError::CannotRead { offset, why })
}

/// What was read so far.
struct List {
    stride: u64,
    chunks: u64,
    origin_chunks: u64,
    old: Marks,
    new: Marks,
    entries: u64,
}

impl List {
    /// Takes the entries of one area; true at the end of the list. What stands behind the end is of no meaning: an
    /// area that is written while it is read may show entries of later on.
    fn take(&mut self, area: &[u8]) -> Result<bool, ExceptionsError> {
        let (entries, _) = area.as_chunks::<ENTRY>();
        for entry in entries {
            let entry = u128::from_le_bytes(*entry);
            let (old, new) = (entry as u64, (entry >> 64) as u64);
            if new == 0 {
                return Ok(true);
            }
            self.check(old, new)?;
            self.entries += 1;
        }
        Ok(false)
    }

    fn check(&mut self, old: u64, new: u64) -> Result<(), ExceptionsError> {
        if old >= self.origin_chunks {
            return Err(ExceptionsError::OldBeyondOrigin { old, chunks: self.origin_chunks });
        }
        if new >= self.chunks {
            return Err(ExceptionsError::NewBeyondStore { new, chunks: self.chunks });
        }
        if new % self.stride == 1 {
            return Err(ExceptionsError::NewInMetadata { new });
        }
        if self.old.mark(old) {
            return Err(ExceptionsError::OldTwice { old });
        }
        match self.new.mark(new) {
            true => Err(ExceptionsError::NewTwice { new }),
            false => Ok(()),
        }
    }
}

/// A set of chunk numbers. The system gives zeroed memory page by page when it is first written to, so that few
/// marks cost little.
struct Marks {
    words: Vec<u64>,
    /// A mark stands for 2^shift chunks.
    shift: u32,
}

impl Marks {
    fn new(chunks: u64) -> Self {
        let mut shift = 0;
        while chunks >> shift > MARKS_MAX {
            shift += 1;
        }
        let marks = chunks.div_ceil(1 << shift);
        Self { words: vec![0; marks.div_ceil(64) as usize], shift }
    }

    /// Marks a chunk below the number that it was made for. True when that one, exactly, was marked before.
    fn mark(&mut self, chunk: u64) -> bool {
        let mark = chunk >> self.shift;
        let Some(word) = self.words.get_mut((mark / 64) as usize) else { return true };
        let bit = 1 << (mark % 64);
        let before = *word & bit != 0;
        *word |= bit;
        before && self.shift == 0
    }

    /// Runs of marked chunks; neighbouring words are not joined.
    fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let marked = self.words.iter().zip(0u64..).filter(|(word, _)| **word != 0);
        let shift = self.shift;
        marked.flat_map(move |(word, at)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                if rest == 0 {
                    return None;
                }
                let start = rest.trailing_zeros();
                let end = start + (rest >> start).trailing_ones();
                rest &= u64::MAX.checked_shl(end).unwrap_or(0);
                let chunk = move |bit: u32| (at * 64 + u64::from(bit)) << shift;
                Some(chunk(start)..chunk(end))
            })
        })
    }
}
