//! What volumes hold: sparse, made from a seed, with templates that volumes share, zero runs and repetitions.
//!
//! A content is a set of runs in a sea of zeroes, so that a volume of hundreds of MiB costs a few.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, RngExt};

/// Unit in which contents are made and compared, in bytes.
pub const BLOCK: u64 = schema::limits::BLOCK;
/// Bytes of one template.
const TEMPLATE: usize = 768 << 10;

/// The bytes of a volume at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    size: u64,
    /// By offset, in whole blocks but for the volume's end; they do not overlap.
    runs: BTreeMap<u64, Bytes>,
}

/// Bytes that several volumes have in common.
#[derive(Debug)]
pub struct Templates(Vec<Bytes>);

impl Templates {
    /// `count` templates.
    pub fn new(random: &mut StdRng, count: usize) -> Self {
        Self((0..count.max(1)).map(|_| noise(random, TEMPLATE)).collect())
    }

    fn piece(&self, random: &mut StdRng) -> Bytes {
        let template = &self.0[random.random_range(0..self.0.len())];
        let blocks = TEMPLATE / BLOCK as usize;
        let from = random.random_range(0..blocks / 2);
        let to = random.random_range(from + 1..=blocks);
        template.slice(from * BLOCK as usize..to * BLOCK as usize)
    }
}

/// Drawn from `random` once: its own bytes, made one small number at a time, would take half of a run.
fn noise(random: &mut StdRng, len: usize) -> Bytes {
    let mut seed = [0; blake3::KEY_LEN];
    random.fill_bytes(&mut seed);
    let mut bytes = vec![0; len];
    blake3::Hasher::new_keyed(&seed).finalize_xof().fill(&mut bytes);
    bytes.into()
}

impl Content {
    /// Nothing but zeroes.
    pub fn zeroes(size: u64) -> Self {
        Self { size, runs: BTreeMap::new() }
    }

    /// Some `runs` of data at random places.
    pub fn new(random: &mut StdRng, templates: &Templates, size: u64, runs: usize) -> Self {
        let mut content = Self::zeroes(size);
        for _ in 0..runs {
            content.scribble(random, templates);
        }
        content
    }

    /// Bytes of the volume.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Writes one run somewhere: noise, a piece of a template, something that compresses, or zeroes.
    pub fn scribble(&mut self, random: &mut StdRng, templates: &Templates) {
        if self.size == 0 {
            return;
        }
        let bytes = match random.random_range(0..10) {
            0..3 => {
                let blocks = random.random_range(1..96);
                noise(random, blocks * BLOCK as usize)
            }
            3..7 => templates.piece(random),
            7..9 => {
                let line = noise(random, 64);
                let blocks = random.random_range(1..160);
                line.iter().copied().cycle().take(blocks * BLOCK as usize).collect::<Vec<u8>>().into()
            }
            _ => Bytes::from(vec![0; random.random_range(1..64) * BLOCK as usize]),
        };
        let blocks = self.size.div_ceil(BLOCK);
        let at = match random.random_range(0..4) {
            // Around where a leaf ends, where forced cuts are.
            0 if self.size > schema::limits::LEAF_SPAN => {
                let leaves = self.size.div_ceil(schema::limits::LEAF_SPAN);
                let border = random.random_range(1..=leaves) * schema::limits::LEAF_SPAN;
                border.saturating_sub(random.random_range(0..64) * BLOCK).min((blocks - 1) * BLOCK)
            }
            1 => blocks.saturating_sub(random.random_range(1..32)) * BLOCK,
            _ => random.random_range(0..blocks) * BLOCK,
        };
        self.write(at, bytes);
    }

    /// Writes bytes at a block; what reaches over the end is cut off.
    pub fn write(&mut self, at: u64, bytes: Bytes) {
        let bytes = bytes.slice(..(bytes.len() as u64).min(self.size.saturating_sub(at)) as usize);
        let end = at + bytes.len() as u64;
        let touched: Vec<u64> = self.touching(at..end).map(|(start, _)| start).collect();
        for start in touched {
            let Some(old) = self.runs.remove(&start) else { continue };
            if start < at {
                self.runs.insert(start, old.slice(..(at - start) as usize));
            }
            if start + old.len() as u64 > end {
                self.runs.insert(end, old.slice((end - start) as usize..));
            }
        }
        if !bytes.is_empty() {
            self.runs.insert(at, bytes);
        }
    }

    fn touching(&self, range: Range<u64>) -> impl Iterator<Item = (u64, &Bytes)> {
        let before = self.runs.range(..range.start).next_back();
        let before = before.filter(move |(at, run)| **at + run.len() as u64 > range.start);
        before.into_iter().chain(self.runs.range(range.start..range.end)).map(|(at, run)| (*at, run))
    }

    /// Where something other than zeroes may be, in order.
    pub fn allocated(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let clip = |(at, run): (u64, &Bytes)| at.max(range.start)..(at + run.len() as u64).min(range.end);
        self.touching(range.clone()).map(clip).filter(|part| !part.is_empty()).collect()
    }

    /// Where two contents of one size differ, in whole blocks and joined.
    pub fn difference(&self, other: &Self) -> Vec<Range<u64>> {
        let all = [self.allocated(0..self.size), other.allocated(0..self.size)].concat();
        let mut blocks: Vec<u64> =
            all.into_iter().flat_map(|part| part.start / BLOCK..part.end.div_ceil(BLOCK)).collect();
        blocks.sort_unstable();
        blocks.dedup();
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for number in blocks.into_iter().filter(|number| self.block(*number) != other.block(*number)) {
            let (start, end) = (number * BLOCK, ((number + 1) * BLOCK).min(self.size));
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => ranges.push(start..end),
            }
        }
        ranges
    }

    /// Fills `out` with the bytes from `offset`.
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        out.fill(0);
        let end = offset + out.len() as u64;
        for (at, run) in self.touching(offset..end) {
            let (from, to) = (at.max(offset), (at + run.len() as u64).min(end));
            out[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&run[(from - at) as usize..(to - at) as usize]);
        }
    }

    /// The bytes of one block; shorter at the end.
    pub fn block(&self, number: u64) -> Vec<u8> {
        let offset = number * BLOCK;
        let mut out = vec![0; BLOCK.min(self.size.saturating_sub(offset)) as usize];
        self.read(offset, &mut out);
        out
    }
}
