//! What this machine takes for the work that no restore can avoid, with nothing around it.
//!
//! The data of an image, in chunks of 64 KiB that zstd -3 has compressed into one file, go back to a fresh file on all
//! cores: read from the page cache, decompressed, verified by BLAKE3, written where they belong, in pieces of 1 MiB past
//! the page cache; then the file is synced. Left out are decryption, maps, finding chunks, and whatever a store costs.
//! Twice as many threads as cores take part, because each waits for the disk half of the time.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FallocateFlags, OFlags, fallocate};
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

/// What is written in one go.
const PIECE: usize = 1 << 20;
/// What memory is aligned to for it.
const ALIGN: usize = 4096;

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

fn restore(chunks: &[Chunk], pack: &Path, path: &Path, size: u64) -> Result<Limit> {
    let cores = thread::available_parallelism()?.get();
    let (pack, target) = (File::open(pack)?, File::create(path)?);
    target.set_len(size)?;
    let direct = OpenOptions::new().write(true).custom_flags(OFlags::DIRECT.bits() as i32).open(path)?;
    rustix::fs::sync();
    let (next, pieces) = (AtomicUsize::new(0), pieces(chunks));
    let started = Instant::now();
    let parts = thread::scope(|scope| {
        let worker = || scope.spawn(|| write(&pieces, &next, &pack, &target, &direct));
        let workers: Vec<_> = (0..2 * cores).map(|_| worker()).collect();
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

/// Adjacent chunks, as many as are written in one go.
fn pieces(chunks: &[Chunk]) -> Vec<&[Chunk]> {
    let adjacent = chunks.chunk_by(|one, next| one.at + one.len as u64 == next.at);
    adjacent.flat_map(|run| run.chunks(PIECE / CHUNK)).collect()
}

/// One thread's part.
fn write(
    pieces: &[&[Chunk]],
    next: &AtomicUsize,
    pack: &File,
    target: &File,
    direct: &File,
) -> Result<Limit> {
    let mut decompressor = zstd::bulk::Decompressor::new()?;
    let (mut packed, mut room) = (vec![0; zstd::zstd_safe::compress_bound(CHUNK)], vec![0; PIECE + ALIGN]);
    let skip = room.as_ptr().align_offset(ALIGN);
    let plain = &mut room[skip..skip + PIECE];
    let mut limit = Limit::default();
    let mut last = Instant::now();
    let mut lap = || -> Duration {
        let (now, before) = (Instant::now(), last);
        last = now;
        now - before
    };
    while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
        let mut filled = 0;
        for chunk in *piece {
            lap();
            let packed = &mut packed[..chunk.packed_len];
            pack.read_exact_at(packed, chunk.packed_at)?;
            limit.read_seconds += lap().as_secs_f64();
            let len = decompressor.decompress_to_buffer(packed, &mut plain[filled..filled + chunk.len])?;
            limit.decompress_seconds += lap().as_secs_f64();
            let hash = blake3::hash(&plain[filled..filled + len]);
            ensure!(hash == chunk.hash, "a chunk at {} came back as another", chunk.at);
            limit.verify_seconds += lap().as_secs_f64();
            filled += len;
        }
        let Some(first) = piece.first() else { continue };
        let file = if filled % ALIGN == 0 { direct } else { target };
        fallocate(target, FallocateFlags::KEEP_SIZE, first.at, filled as u64)?;
        file.write_all_at(&plain[..filled], first.at)?;
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
