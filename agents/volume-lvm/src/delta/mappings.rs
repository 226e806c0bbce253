//! What thin volumes map, as `thin_dump` tells it.
//!
//! Two questions are answered: which parts of a volume may hold anything at all, and how many blocks the pool believes
//! that its volumes map (`--skip-mappings`), against which `thin_delta` is checked.

use super::elements::{Elements, Shape, Tag, number};
use super::{Pool, XmlError};
use crate::ranges::Ranges;

/// A thin volume of a dump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    /// Bytes of one block of the pool.
    pub block: u64,
    /// Blocks that the pool believes it maps.
    pub blocks: u64,
    /// Blocks that are listed.
    pub listed: u64,
    /// What they hold, in bytes of the volume.
    pub ranges: Ranges,
}

/// Takes the output of `thin_dump` piece by piece.
#[derive(Debug)]
pub struct MappingsParser<const N: usize> {
    elements: Elements,
    dump: Dump<N>,
}

impl<const N: usize> MappingsParser<N> {
    /// For these devices; others may be in the dump. What is mapped behind `size` bytes is left out of the ranges.
    pub fn new(devices: [u32; N], size: u64) -> Self {
        let dump = Dump {
            wanted: devices.map(u64::from),
            size,
            pool: None,
            found: [const { None }; N],
            open: None,
            after: 0,
        };
        Self { elements: Elements::new("superblock"), dump }
    }

    /// Takes the next piece, of any length.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), XmlError> {
        self.elements.push(piece, &mut self.dump)
    }

    /// Each of the devices, in the order in which they were asked for, and none where the pool has no such device.
    pub fn finish(self) -> Result<[Option<Mapped>; N], XmlError> {
        self.elements.finish()?;
        Ok(self.dump.found)
    }
}

#[derive(Debug)]
struct Dump<const N: usize> {
    wanted: [u64; N],
    size: u64,
    pool: Option<Pool>,
    found: [Option<Mapped>; N],
    /// The place of the device that is open, where it is wanted.
    open: Option<usize>,
    /// The end of the last run of that device, in blocks.
    after: u64,
}

impl<const N: usize> Shape for Dump<N> {
    fn start(&mut self, path: &[&'static str], tag: &Tag<'_>) -> Result<&'static str, XmlError> {
        match (path, tag.name()) {
            ([], "superblock") => {
                self.pool = Some(Pool::parse(tag)?);
                Ok("superblock")
            }
            (["superblock"], "device") => self.device(tag),
            (["superblock", "device"], "single_mapping") => {
                self.run(number(tag, "origin_block")?, 1)?;
                Ok("single_mapping")
            }
            (["superblock", "device"], "range_mapping") => {
                self.run(number(tag, "origin_begin")?, number(tag, "length")?)?;
                Ok("range_mapping")
            }
            // `def` and `ref`, too: a dump of single devices shares nothing between them.
            _ => Err(tag.unexpected(path)),
        }
    }

    fn end(&mut self, _path: &[&'static str]) -> Result<(), XmlError> {
        Ok(())
    }
}

impl<const N: usize> Dump<N> {
    fn device(&mut self, tag: &Tag<'_>) -> Result<&'static str, XmlError> {
        let (device, blocks) = (number(tag, "dev_id")?, number(tag, "mapped_blocks")?);
        let block = self.pool.ok_or(XmlError::Missing { element: "superblock" })?.block;
        (self.open, self.after) = (None, 0);
        for (place, wanted) in self.wanted.iter().enumerate() {
            if *wanted != device {
                continue;
            }
            if self.found[place].is_some() {
                return Err(XmlError::DeviceTwice { device });
            }
            self.found[place] = Some(Mapped { block, blocks, listed: 0, ranges: Ranges::new() });
            self.open = Some(place);
            break;
        }
        Ok("device")
    }

    fn run(&mut self, begin: u64, length: u64) -> Result<(), XmlError> {
        let pool = self.pool.ok_or(XmlError::Missing { element: "superblock" })?;
        let run = pool.run(begin, length, self.after)?;
        self.after = run.end;
        if let Some(mapped) = self.open.and_then(|place| self.found[place].as_mut()) {
            mapped.listed += run.length;
            mapped.ranges.push(run.bytes.start.min(self.size)..run.bytes.end.min(self.size));
        }
        Ok(())
    }
}
