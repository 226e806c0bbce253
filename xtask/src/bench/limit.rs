//! What this machine takes for the work that no restore can avoid, with nothing around it.
//!
//! The data of an image, in chunks of 64 KiB that zstd -3 has compressed into one file, go back to a fresh file on all
//! cores: read from the page cache, decompressed, verified by BLAKE3, written where they belong; then the file is
//! synced. Left out are decryption, maps, finding chunks, and whatever a store costs.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::hardware::{CHUNK, LEVEL, data_ranges, is_zero, read};
use super::images::Image;

/// The machine's share of a restore.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Limit {
    pub cores: usize,
    /// What is written.
    pub data_bytes: u64,
    pub compressed_bytes: u64,
    /// All cores, without the sync.
    pub wall_seconds: f64,
    /// Until what was written is durable.
    pub sync_seconds: f64,
    /// Sums over the threads.
    pub read_seconds: f64,
    pub decompress_seconds: f64,
    pub verify_seconds: f64,
    pub write_seconds: f64,
}

/// One compressed chunk, where it lies, and where it belongs.
struct Chunk {
    at: u64,
    len: usize,
    packed_at: u64,
    packed_len: usize,
    hash: blake3::Hash,
}

/// The best of three.
pub fn measure(image: &Image, work: &Path) -> Result<Limit> {
    fs::create_dir_all(work)?;
    let (pack, target) = (work.join("pack"), work.join("limit.img"));
    let chunks = compress(&image.path, &pack)?;
    let size = image.path.metadata()?.len();
    let mut best: Option<Limit> = None;
    for _ in 0..3 {
        let one = restore(&chunks, &pack, &target, size)?;
        fs::remove_file(&target)?;
        if best.is_none_or(|best| one.total_seconds() < best.total_seconds()) {
            best = Some(one);
        }
    }
    fs::remove_file(&pack)?;
    best.context("measured three times")
}

impl Limit {
    /// From the first byte to a durable file.
    pub fn total_seconds(&self) -> f64 {
        self.wall_seconds + self.sync_seconds
    }

    fn add(&mut self, other: &Self) {
        self.read_seconds += other.read_seconds;
        self.decompress_seconds += other.decompress_seconds;
        self.verify_seconds += other.verify_seconds;
        self.write_seconds += other.write_seconds;
    }
}

fn compress(image: &Path, pack: &Path) -> Result<Vec<Chunk>> {
    let (file, out) = (File::open(image)?, File::create(pack)?);
    let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
    let (mut plain, mut packed) = (vec![0; CHUNK], vec![0; zstd::zstd_safe::compress_bound(CHUNK)]);
    let (mut chunks, mut packed_at) = (Vec::new(), 0);
    for at in data_ranges(&file)?.into_iter().flat_map(|range| range.step_by(CHUNK)) {
        let len = read(&file, &mut plain, at)?;
        let plain = &plain[..len];
        if is_zero(plain) {
            continue;
        }
        let packed_len = compressor.compress_to_buffer(plain, &mut packed)?;
        out.write_all_at(&packed[..packed_len], packed_at)?;
        chunks.push(Chunk { at, len, packed_at, packed_len, hash: blake3::hash(plain) });
        packed_at += packed_len as u64;
    }
    Ok(chunks)
}

fn restore(chunks: &[Chunk], pack: &Path, target: &Path, size: u64) -> Result<Limit> {
    let cores = thread::available_parallelism()?.get();
    let (pack, target) = (File::open(pack)?, File::create(target)?);
    target.set_len(size)?;
    rustix::fs::sync();
    let next = AtomicUsize::new(0);
    let started = Instant::now();
    let parts = thread::scope(|scope| {
        let worker = || scope.spawn(|| write(chunks, &next, &pack, &target));
        let workers: Vec<_> = (0..cores).map(|_| worker()).collect();
        let joined =
            workers.into_iter().map(|worker| worker.join().ok().context("a writing thread panicked")?);
        joined.collect::<Result<Vec<Limit>>>()
    })?;
    let wall_seconds = started.elapsed().as_secs_f64();
    let started = Instant::now();
    target.sync_data()?;
    let sync_seconds = started.elapsed().as_secs_f64();
    let mut limit = Limit {
        cores,
        data_bytes: chunks.iter().map(|chunk| chunk.len as u64).sum(),
        compressed_bytes: chunks.iter().map(|chunk| chunk.packed_len as u64).sum(),
        wall_seconds,
        sync_seconds,
        ..Limit::default()
    };
    parts.iter().for_each(|part| limit.add(part));
    Ok(limit)
}

/// One thread's part.
fn write(chunks: &[Chunk], next: &AtomicUsize, pack: &File, target: &File) -> Result<Limit> {
    let mut decompressor = zstd::bulk::Decompressor::new()?;
    let (mut packed, mut plain) = (vec![0; zstd::zstd_safe::compress_bound(CHUNK)], vec![0; CHUNK]);
    let mut limit = Limit::default();
    let mut last = Instant::now();
    let mut lap = || -> Duration {
        let (now, before) = (Instant::now(), last);
        last = now;
        now - before
    };
    while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
        lap();
        let packed = &mut packed[..chunk.packed_len];
        pack.read_exact_at(packed, chunk.packed_at)?;
        limit.read_seconds += lap().as_secs_f64();
        let len = decompressor.decompress_to_buffer(packed, &mut plain)?;
        limit.decompress_seconds += lap().as_secs_f64();
        let plain = &plain[..len];
        ensure!(blake3::hash(plain) == chunk.hash, "a chunk at {} came back as another", chunk.at);
        limit.verify_seconds += lap().as_secs_f64();
        target.write_all_at(plain, chunk.at)?;
        limit.write_seconds += lap().as_secs_f64();
    }
    Ok(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_the_image() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.img");
        let file = File::create(&path).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(&[1; 2 * CHUNK], 1 << 20).unwrap();
        file.write_all_at(&[2; 4096], 4 << 20).unwrap();
        let (pack, target) = (folder.path().join("pack"), folder.path().join("y.img"));
        let chunks = compress(&path, &pack).unwrap();
        let limit = restore(&chunks, &pack, &target, 8 << 20).unwrap();
        assert!(fs::read(&target).unwrap() == fs::read(&path).unwrap());
        assert_eq!(limit.data_bytes, 3 * CHUNK as u64);
        assert!(limit.compressed_bytes > 0 && limit.decompress_seconds > 0.0);
    }
}
