//! What is written where in a figure: a volume full of what does not repeat itself, and a share of it changed.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

const BLOCK: u64 = 4096;
/// Bytes of one kind, and of one write, when a volume is filled.
const STRETCH: u64 = 4 << 20;

/// How changes lie in a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// What it is called.
    pub name: &'static str,
    /// Bytes of each change.
    pub length: u64,
}

impl Kind {
    /// Each block anywhere.
    pub const BLOCKS: Self = Self { name: "random, 4 KiB", length: BLOCK };
    /// Pieces of the size of a tracked unit, not aligned to it.
    pub const PIECES: Self = Self { name: "random, 64 KiB", length: 64 << 10 };
    /// A few places.
    pub const CLUSTERED: Self = Self { name: "clustered, 4 MiB", length: 4 << 20 };
}

/// Writes to one device, half noise and half what compresses to a half.
#[derive(Debug)]
pub struct Writes {
    file: File,
    size: u64,
    generator: StdRng,
}

impl Writes {
    /// Writes to a device of `size` bytes, the same for the same seed.
    pub fn new(device: &str, size: u64, seed: u64) -> Self {
        let file = OpenOptions::new().write(true).open(device);
        let file = file.unwrap_or_else(|why| panic!("{device}: {why}"));
        Self { file, size, generator: StdRng::seed_from_u64(seed) }
    }

    /// Writes all of the device.
    pub fn fill(&mut self) {
        for at in (0..self.size).step_by(STRETCH as usize) {
            self.write(at..(at + STRETCH).min(self.size));
        }
        self.sync();
    }

    /// Changes a share of the device, in percent, at places of its own choice; returns them in order.
    pub fn change(&mut self, percent: u64, kind: Kind) -> Vec<Range<u64>> {
        let places = self.places(self.size * percent / 100 / kind.length, kind.length);
        places.iter().for_each(|place| self.write(place.clone()));
        self.sync();
        places
    }

    /// So many places of `length` bytes, in whole blocks, none of which meets another; in order.
    pub fn places(&mut self, count: u64, length: u64) -> Vec<Range<u64>> {
        let blocks = length / BLOCK;
        // Places among what is left when each is a point, spread again by what they take.
        let free = self.size / BLOCK - count * blocks;
        let mut starts: Vec<u64> = (0..count).map(|_| self.generator.random_range(0..=free)).collect();
        starts.sort_unstable();
        let spread = starts.iter().zip(0..).map(|(start, before)| (start + before * blocks) * BLOCK);
        spread.map(|start| start..start + length).collect()
    }

    /// Waits until the disk has it.
    pub fn sync(&self) {
        self.file.sync_all().expect("the device takes what was written");
    }

    /// Writes one place.
    pub fn write(&mut self, place: Range<u64>) {
        let mut bytes = vec![0; (place.end - place.start) as usize];
        self.generator.fill_bytes(&mut bytes);
        if self.generator.random() {
            // Half of the bits are noise.
            bytes.iter_mut().for_each(|byte| *byte = b'a' + (*byte & 15));
        }
        self.write_bytes(&bytes, place.start);
    }

    /// Writes what is given.
    pub fn write_bytes(&self, bytes: &[u8], at: u64) {
        self.file.write_all_at(bytes, at).expect("the device is written");
    }
}

/// Ranges, in order, rounded to whole units; those that meet are one.
pub fn rounded(ranges: &[Range<u64>], unit: u64) -> Vec<Range<u64>> {
    let mut found: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        let (start, end) = (range.start / unit * unit, range.end.next_multiple_of(unit));
        match found.last_mut() {
            Some(last) if last.end >= start => last.end = last.end.max(end),
            _ => found.push(start..end),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::total;

    #[test]
    fn places_do_not_meet_and_fill_what_there_is() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writes = Writes::new(file.path().to_str().unwrap(), 100 * BLOCK, 1);
        for (count, blocks) in [(100, 1), (10, 10), (7, 3), (1, 100)] {
            let places = writes.places(count, blocks * BLOCK);
            assert_eq!(total(&places), count * blocks * BLOCK);
            assert!(places.windows(2).all(|pair| pair[0].end <= pair[1].start), "{places:?}");
            assert!(places.last().is_some_and(|last| last.end <= 100 * BLOCK), "{places:?}");
        }
    }

    #[test]
    fn ranges_are_rounded_and_joined() {
        assert_eq!(rounded(&[1..2, 9..11, 20..30, 45..46], 10), [0..30, 40..50]);
    }
}
