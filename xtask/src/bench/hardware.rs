//! What this machine takes for the work that no deduplicating backup can avoid, with nothing around it.
//!
//! Reading, looking for zeroes and BLAKE3 on one core; zstd -3 of the new data in chunks of 64 KiB on all cores.
//! Holes are skipped as the file system reports them.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use serde::Serialize;

use super::images::Image;
use super::measure::warm;

/// Bytes of a chunk.
pub const CHUNK: usize = 64 << 10;
const BLOCK: usize = 4 << 10;
/// Of zstd.
pub const LEVEL: i32 = 3;

/// The machine's share of one step.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Share {
    pub data_bytes: u64,
    pub new_bytes: u64,
    pub compressed_bytes: u64,
    /// Read, zero test and BLAKE3, on one core: wall and CPU are the same.
    pub hash_seconds: f64,
    /// zstd on all cores.
    pub compress_wall_seconds: f64,
}

/// The shares of a first backup, and of the day after.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Hardware {
    pub cores: usize,
    pub first: Share,
    pub day_2: Share,
}

/// Measures both on the first guest, after its images are in the page cache.
pub fn measure(images: &[Image]) -> Result<Hardware> {
    let guest = images[0].guest;
    let day2 = images.iter().find(|image| image.guest == guest && image.day == 2).context("no second day")?;
    let cores = thread::available_parallelism()?.get();
    let mut seen = HashSet::new();
    let first = best_share(&images[0].path, &mut seen, cores)?;
    let day_2 = best_share(&day2.path, &mut seen, cores)?;
    Ok(Hardware { cores, first, day_2 })
}

/// The best of three, like the tools' own figures.
fn best_share(image: &Path, seen: &mut HashSet<blake3::Hash>, cores: usize) -> Result<Share> {
    let before = seen.clone();
    let mut best = share(image, seen, cores)?;
    for _ in 0..2 {
        let again = share(image, &mut before.clone(), cores)?;
        best.hash_seconds = best.hash_seconds.min(again.hash_seconds);
        best.compress_wall_seconds = best.compress_wall_seconds.min(again.compress_wall_seconds);
    }
    Ok(best)
}

fn share(image: &Path, seen: &mut HashSet<blake3::Hash>, cores: usize) -> Result<Share> {
    warm(image)?;
    let file = File::open(image)?;
    let ranges = data_ranges(&file)?;
    let mut buffer = vec![0; CHUNK];
    let (mut data_bytes, mut new) = (0, Vec::new());

    let started = Instant::now();
    for offset in ranges.iter().flat_map(|range| range.clone().step_by(CHUNK)) {
        let length = read(&file, &mut buffer, offset)?;
        let (hash, filled) = hash_data(&buffer[..length]);
        data_bytes += filled;
        if filled > 0 && seen.insert(hash) {
            new.push(offset);
        }
    }
    let hash_seconds = started.elapsed().as_secs_f64();

    let started = Instant::now();
    let (new_bytes, compressed_bytes) = compress(&file, &new, cores)?;
    let compress_wall_seconds = started.elapsed().as_secs_f64();
    Ok(Share { data_bytes, new_bytes, compressed_bytes, hash_seconds, compress_wall_seconds })
}

/// Hashes a chunk without its blocks of zeroes, and says how much that was. Neighbouring blocks go in together,
/// because BLAKE3 is only fast on long inputs.
fn hash_data(chunk: &[u8]) -> (blake3::Hash, u64) {
    let mut hasher = blake3::Hasher::new();
    let mut start = 0;
    for (index, block) in chunk.chunks(BLOCK).enumerate() {
        if is_zero(block) {
            hasher.update(&chunk[start..index * BLOCK]);
            start = index * BLOCK + block.len();
        }
    }
    hasher.update(&chunk[start..]);
    (hasher.finalize(), hasher.count())
}

fn compress(file: &File, offsets: &[u64], cores: usize) -> Result<(u64, u64)> {
    let next = AtomicUsize::new(0);
    let worker = || -> Result<(u64, u64)> {
        let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
        let mut buffer = vec![0; CHUNK];
        let mut out = vec![0; zstd::zstd_safe::compress_bound(CHUNK)];
        let (mut before, mut after) = (0, 0);
        while let Some(&offset) = offsets.get(next.fetch_add(1, Ordering::Relaxed)) {
            let length = read(file, &mut buffer, offset)?;
            before += length as u64;
            after += compressor.compress_to_buffer(&buffer[..length], &mut out)? as u64;
        }
        Ok((before, after))
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(worker)).collect();
        let mut sum = (0, 0);
        for worker in workers {
            let (before, after) =
                worker.join().map_err(|_| anyhow::anyhow!("a compressing thread panicked"))??;
            sum = (sum.0 + before, sum.1 + after);
        }
        Ok(sum)
    })
}

/// Reads until the buffer is full or the file ends; an error where it has nothing.
pub fn read(file: &File, buffer: &mut [u8], offset: u64) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    ensure!(filled > 0, "the image ends before {offset}");
    Ok(filled)
}

/// Whether there is nothing but zeroes.
pub fn is_zero(bytes: &[u8]) -> bool {
    const ZEROES: [u8; BLOCK] = [0; BLOCK];
    bytes.chunks(BLOCK).all(|block| block == &ZEROES[..block.len()])
}

/// Where the file has data, widened to whole chunks.
pub fn data_ranges(file: &File) -> Result<Vec<std::ops::Range<u64>>> {
    let size = file.metadata()?.len();
    let chunk = CHUNK as u64;
    let mut ranges: Vec<std::ops::Range<u64>> = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            found => found?,
        };
        let end = seek(file, SeekFrom::Hole(start))?;
        let (from, to) = (start / chunk * chunk, end.next_multiple_of(chunk).min(size));
        match ranges.last_mut() {
            Some(last) if from <= last.end => last.end = to.max(last.end),
            _ => ranges.push(from..to),
        }
        at = end;
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_data_is_compressed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.img");
        let file = File::create(&path).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(&[1; 2 * CHUNK], 1 << 20).unwrap();
        file.write_all_at(&[2; BLOCK], 4 << 20).unwrap();
        let mut seen = HashSet::new();
        let share_of = |seen: &mut HashSet<_>| share(&path, seen, 2).unwrap();
        let first = share_of(&mut seen);
        assert_eq!(first.data_bytes, (2 * CHUNK + BLOCK) as u64);
        assert_eq!(first.new_bytes, 2 * CHUNK as u64, "the repeated chunk is new once");
        assert!(first.compressed_bytes < 1000);
        assert_eq!(share_of(&mut seen).new_bytes, 0);
    }
}
