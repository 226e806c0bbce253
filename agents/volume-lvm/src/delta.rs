//! What differs between two thin volumes of a pool, as `thin_delta` tells it.
//!
//! Its XML is taken as it streams in, by the names of elements and attributes and in whatever order, so that 0.9 and
//! 1.x, with and without `--verbose`, are all the same here. No document is ever held: memory is that of one element
//! and of the result. A list that is cut short, out of order, of other devices or with an unknown element is refused;
//! how many blocks it accounts for on either side is told, so that it can be compared with what the pool knows.

use crate::ranges::Ranges;

pub use elements::XmlError;
use elements::{Elements, Shape, number, numbers};

pub mod mappings;

mod elements;
#[cfg(test)]
pub(crate) mod tests;

/// What differs, in bytes of the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta {
    /// Bytes of one block of the pool.
    pub block: u64,
    /// Everything that may read differently: mapped to different blocks, or mapped on one side only.
    pub changed: Ranges,
    /// The part of it that only the older volume maps: reads as zero now, unless an external origin shines through.
    pub emptied: Ranges,
    /// Blocks that the list says the older volume maps.
    pub older_blocks: u64,
    /// Blocks that the list says the newer volume maps.
    pub newer_blocks: u64,
}

/// Takes the output of `thin_delta --thin1 OLDER --thin2 NEWER` piece by piece.
#[derive(Debug)]
pub struct DeltaParser {
    elements: Elements,
    list: List,
}

impl DeltaParser {
    /// For the difference from `older` to `newer`, whose size is `size` bytes. What the pool still maps behind the end
    /// of a volume that was made smaller is left out of the ranges.
    pub fn new(older: u32, newer: u32, size: u64) -> Self {
        let list = List { older: older.into(), newer: newer.into(), size, ..List::default() };
        Self { elements: Elements::new("superblock"), list }
    }

    /// Takes the next piece, of any length.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), XmlError> {
        self.elements.push(piece, &mut self.list)
    }

    /// The whole list, when it is whole.
    pub fn finish(self) -> Result<Delta, XmlError> {
        self.elements.finish()?;
        let List { pool, seen, changed, emptied, older_blocks, newer_blocks, .. } = self.list;
        if !seen {
            return Err(XmlError::Missing { element: "diff" });
        }
        let block = pool.ok_or(XmlError::Missing { element: "superblock" })?.block;
        Ok(Delta { block, changed, emptied, older_blocks, newer_blocks })
    }
}

/// What is known of a pool from the first element.
#[derive(Debug, Clone, Copy)]
struct Pool {
    /// Bytes of a block.
    block: u64,
}

impl Pool {
    const SECTOR: u64 = 512;
    /// The smallest and largest block that a pool may have, in sectors: 64 KiB and 1 GiB.
    const BLOCKS: std::ops::RangeInclusive<u64> = 128..=1 << 21;

    fn parse(tag: &elements::Tag<'_>) -> Result<Self, XmlError> {
        let sectors = number(tag, "data_block_size")?;
        // The kernel: a multiple of 64 KiB.
        match Self::BLOCKS.contains(&sectors) && sectors.is_multiple_of(*Self::BLOCKS.start()) {
            true => Ok(Self { block: sectors * Self::SECTOR }),
            false => Err(XmlError::BlockSize { sectors }),
        }
    }

    /// A run of blocks in bytes, which lies behind `after`, the end in blocks of what came before.
    fn run(&self, begin: u64, length: u64, after: u64) -> Result<Run, XmlError> {
        if begin < after || length == 0 {
            return Err(XmlError::OutOfOrder { begin, length, after });
        }
        let end = begin.checked_add(length);
        let bytes = end.and_then(|end| end.checked_mul(self.block));
        let (end, bytes) = end.zip(bytes).ok_or(XmlError::TooLarge { begin, length })?;
        Ok(Run { end, length, bytes: begin * self.block..bytes })
    }
}

/// A run of blocks.
struct Run {
    /// In blocks.
    end: u64,
    /// In blocks.
    length: u64,
    /// In bytes.
    bytes: std::ops::Range<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Same,
    Different,
    Older,
    Newer,
}

impl Side {
    /// What an element is about, and its name.
    fn of(name: &str) -> Option<(&'static str, Self)> {
        match name {
            "same" => Some(("same", Self::Same)),
            "different" => Some(("different", Self::Different)),
            "left_only" => Some(("left_only", Self::Older)),
            "right_only" => Some(("right_only", Self::Newer)),
            _ => None,
        }
    }
}

/// What was listed so far.
#[derive(Debug, Default)]
struct List {
    older: u64,
    newer: u64,
    size: u64,
    pool: Option<Pool>,
    seen: bool,
    /// The end of the last run, in blocks.
    after: u64,
    /// Whether the group that is open (`--verbose`) has a range yet.
    filled: bool,
    changed: Ranges,
    emptied: Ranges,
    older_blocks: u64,
    newer_blocks: u64,
}

impl Shape for List {
    fn start(&mut self, path: &[&'static str], tag: &elements::Tag<'_>) -> Result<&'static str, XmlError> {
        match (path, tag.name()) {
            ([], "superblock") => {
                self.pool = Some(Pool::parse(tag)?);
                Ok("superblock")
            }
            (["superblock"], "diff") if !self.seen => self.devices(tag),
            (["superblock", "diff"], name) => {
                let (name, side) = Side::of(name).ok_or_else(|| tag.unexpected(path))?;
                match numbers(tag, ["begin", "length"])? {
                    [None, None] => self.filled = false,
                    _ => self.run(side, tag)?,
                }
                Ok(name)
            }
            (["superblock", "diff", name], "range") => {
                let (_, side) = Side::of(name).ok_or_else(|| tag.unexpected(path))?;
                self.run(side, tag)?;
                Ok("range")
            }
            _ => Err(tag.unexpected(path)),
        }
    }

    fn end(&mut self, path: &[&'static str]) -> Result<(), XmlError> {
        match path {
            ["superblock", "diff", name] if !self.filled => {
                Err(XmlError::MissingAttribute { element: (*name).to_owned(), attribute: "begin" })
            }
            _ => Ok(()),
        }
    }
}

impl List {
    fn devices(&mut self, tag: &elements::Tag<'_>) -> Result<&'static str, XmlError> {
        let told = [number(tag, "left")?, number(tag, "right")?];
        let asked = [self.older, self.newer];
        if told != asked {
            return Err(XmlError::OtherDevices { asked, told });
        }
        self.seen = true;
        Ok("diff")
    }

    fn run(&mut self, side: Side, tag: &elements::Tag<'_>) -> Result<(), XmlError> {
        let (begin, length) = (number(tag, "begin")?, number(tag, "length")?);
        let pool = self.pool.ok_or(XmlError::Missing { element: "superblock" })?;
        let run = pool.run(begin, length, self.after)?;
        self.after = run.end;
        self.filled = true;
        // Runs do not overlap, so that the sums are below 2^64.
        if side != Side::Newer {
            self.older_blocks += run.length;
        }
        if side != Side::Older {
            self.newer_blocks += run.length;
        }
        let bytes = run.bytes.start.min(self.size)..run.bytes.end.min(self.size);
        if side == Side::Older {
            self.emptied.push(bytes.clone());
        }
        if side != Side::Same {
            self.changed.push(bytes);
        }
        Ok(())
    }
}
