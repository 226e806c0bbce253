//! What is written to volumes, from a seed, and what differs between them: the truth that results are held against.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use super::command::run;

const BLOCK: u64 = 4096;

/// Writes to one device.
#[derive(Debug)]
pub struct Content {
    device: String,
    size: u64,
    generator: StdRng,
    noise_only: bool,
}

impl Content {
    /// Writes to `device`, the same for the same seed.
    pub fn new(device: &str, seed: u64) -> Self {
        let size = size(device);
        Self { device: device.to_owned(), size, generator: StdRng::seed_from_u64(seed), noise_only: false }
    }

    /// Writes of noise, nothing that repeats: chunks are cut everywhere then, and soon again as they were.
    pub fn noise(device: &str, seed: u64) -> Self {
        Self { noise_only: true, ..Self::new(device, seed) }
    }

    /// Fills about `percent` of the device, in runs of up to 4 MiB; the rest stays as it is.
    pub fn fill(&mut self, percent: u64) {
        let file = self.open();
        let mut at = 0;
        while at < self.size {
            let length = (self.generator.random_range(1..=1024) * BLOCK).min(self.size - at);
            if self.generator.random_range(0..100) < percent {
                self.write(&file, at..at + length);
            }
            at += length;
        }
        file.sync_all().expect("the device takes what was written");
    }

    /// Overwrites `count` places of up to `longest` bytes each, at any offset; returns them as they were written.
    pub fn overwrite(&mut self, count: usize, longest: u64) -> Vec<Range<u64>> {
        let file = self.open();
        let mut written = Vec::new();
        for _ in 0..count {
            let place = self.place(longest, 512);
            self.write(&file, place.clone());
            written.push(place);
        }
        file.sync_all().expect("the device takes what was written");
        written
    }

    /// Overwrites one place.
    pub fn overwrite_at(&mut self, place: Range<u64>) {
        let file = self.open();
        self.write(&file, place);
        file.sync_all().expect("the device takes what was written");
    }

    /// Writes zeroes at `count` places, as blocks of data.
    pub fn zero(&mut self, count: usize, longest: u64) -> Vec<Range<u64>> {
        let file = self.open();
        let places: Vec<_> = (0..count).map(|_| self.place(longest, BLOCK)).collect();
        for place in &places {
            file.write_all_at(&vec![0; (place.end - place.start) as usize], place.start)
                .expect("zeroes are written");
        }
        file.sync_all().expect("the device takes what was written");
        places
    }

    /// Discards `count` places, aligned to `alignment`.
    pub fn discard(&mut self, count: usize, longest: u64, alignment: u64) -> Vec<Range<u64>> {
        let places: Vec<_> = (0..count).map(|_| self.place(longest.max(alignment), alignment)).collect();
        for Range { start, end } in &places {
            run(
                "blkdiscard",
                &["-f", "-o", &start.to_string(), "-l", &(end - start).to_string(), &self.device],
            );
        }
        places
    }

    fn place(&mut self, longest: u64, alignment: u64) -> Range<u64> {
        let length = self.generator.random_range(1..=(longest / alignment).max(1)) * alignment;
        let length = length.min(self.size);
        let last = (self.size - length) / alignment;
        let start = self.generator.random_range(0..=last) * alignment;
        start..start + length
    }

    /// Noise; or a third each of noise, of text that compresses, and of one that is the same everywhere.
    fn write(&mut self, file: &File, place: Range<u64>) {
        let mut bytes = vec![0; (place.end - place.start) as usize];
        let kind = if self.noise_only { 0 } else { self.generator.random_range(0..3) };
        match kind {
            0 => self.generator.fill_bytes(&mut bytes),
            1 => {
                let number: u64 = self.generator.random();
                let line = format!("{number:020} session opened for user root\n");
                bytes.iter_mut().zip(line.bytes().cycle()).for_each(|(byte, new)| *byte = new);
            }
            _ => bytes.fill(b'-'),
        }
        file.write_all_at(&bytes, place.start).expect("the device is written");
    }

    fn open(&self) -> File {
        match OpenOptions::new().write(true).open(&self.device) {
            Ok(file) => file,
            Err(why) => panic!("{}: {why}", self.device),
        }
    }
}

/// The size of a device or file.
pub fn size(path: &str) -> u64 {
    use std::io::{Seek, SeekFrom};
    let mut file = File::open(path).unwrap_or_else(|why| panic!("{path}: {why}"));
    file.seek(SeekFrom::End(0)).expect("the end can be found")
}

/// Where two devices of one size differ, in `unit` bytes, neighbours as one range.
pub fn differing(one: impl AsRef<Path>, other: impl AsRef<Path>, unit: u64) -> Vec<Range<u64>> {
    let paths = [one.as_ref(), other.as_ref()];
    let [a, b] = paths.map(|path| File::open(path).unwrap_or_else(|why| panic!("{}: {why}", path.display())));
    let sizes = paths.map(|path| size(path.to_str().expect("a path in UTF-8")));
    assert_eq!(sizes[0], sizes[1], "{} and {} have one size", paths[0].display(), paths[1].display());
    let step = unit * (1 << 20) / unit.min(1 << 20);
    let (mut left, mut right) = (vec![0; step as usize], vec![0; step as usize]);
    let mut found: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    while at < sizes[0] {
        let length = step.min(sizes[0] - at) as usize;
        a.read_exact_at(&mut left[..length], at).expect("the device is read");
        b.read_exact_at(&mut right[..length], at).expect("the device is read");
        let units = left[..length].chunks(unit as usize).zip(right[..length].chunks(unit as usize)).zip(0..);
        for ((left, right), number) in units {
            if left == right {
                continue;
            }
            let start = at + number * unit;
            let end = start + left.len() as u64;
            match found.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => found.push(start..end),
            }
        }
        at += length as u64;
    }
    found
}

/// The bytes in ranges.
pub fn total(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// Whether a range of a device reads as zeroes.
pub fn is_zero(path: &str, range: Range<u64>) -> bool {
    let file = File::open(path).unwrap_or_else(|why| panic!("{path}: {why}"));
    let mut bytes = vec![0; (range.end - range.start) as usize];
    file.read_exact_at(&mut bytes, range.start).expect("the device is read");
    bytes.iter().all(|byte| *byte == 0)
}
