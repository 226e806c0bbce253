//! What the demonstration's file system holds: text, bytes that do not compress, and documents of the machine.
//!
//! The made-up part is the same in every run.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

const TEXTS: u64 = 200;
const BLOBS: u64 = 12;
const DOCUMENTS_BYTES: u64 = 16 << 20;
const DOCUMENTS: &str = "/usr/share/doc";

/// Makes the tree that the file system is filled from.
pub fn tree(folder: &Path) -> Result<()> {
    for name in ["text", "blobs", "doc"] {
        fs::create_dir_all(folder.join(name))?;
    }
    for index in 0..TEXTS {
        fs::write(folder.join(format!("text/{index:03}.txt")), text(index, 120_000))?;
    }
    for index in 0..BLOBS {
        fs::write(folder.join(format!("blobs/{index:02}.bin")), bytes(1000 + index, 1 << 20))?;
    }
    let mut left = DOCUMENTS_BYTES;
    copy_documents(Path::new(DOCUMENTS), &folder.join("doc"), &mut left)
}

/// What changes on the second day, as commands for debugfs; files that they need are made in the folder.
pub fn changes(folder: &Path) -> Result<String> {
    fs::write(folder.join("new.txt"), text(9001, 400_000))?;
    fs::write(folder.join("new.bin"), bytes(9002, 2 << 20))?;
    fs::write(folder.join("rewritten.txt"), text(9003, 120_000))?;
    let lines = [
        "rm /blobs/03.bin",
        "rm /text/010.txt",
        "write rewritten.txt /text/010.txt",
        "mkdir /new",
        "write new.txt /new/new.txt",
        "write new.bin /new/new.bin",
    ];
    Ok(lines.join("\n") + "\n")
}

fn copy_documents(from: &Path, to: &Path, left: &mut u64) -> Result<()> {
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    let mut entries: Vec<_> = entries.filter_map(Result::ok).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        // Symbolic links may point anywhere, so they are left out.
        let kind = entry.file_type()?;
        let target = to.join(entry.file_name());
        if kind.is_dir() {
            fs::create_dir(&target)?;
            copy_documents(&entry.path(), &target, left)?;
        } else if kind.is_file() {
            let length = entry.metadata()?.len();
            if length > *left {
                return Ok(());
            }
            *left -= length;
            fs::copy(entry.path(), &target)
                .with_context(|| format!("cannot copy {}", entry.path().display()))?;
        }
    }
    Ok(())
}

fn text(seed: u64, length: usize) -> String {
    const WORDS: [&str; 16] = [
        "volume", "block", "chunk", "extent", "pack", "map", "snapshot", "session", "reader", "hasher",
        "storer", "bucket", "restore", "verify", "seal", "prune",
    ];
    let mut numbers = Numbers(seed);
    let mut text = String::with_capacity(length + 32);
    while text.len() < length {
        let number = numbers.next();
        let end = if number.is_multiple_of(11) { '\n' } else { ' ' };
        text.push_str(WORDS[(number >> 8) as usize % WORDS.len()]);
        text.push_str(&format!("-{}{end}", (number >> 16) % 5000));
    }
    text
}

fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut numbers = Numbers(seed);
    (0..length / 8).flat_map(|_| numbers.next().to_le_bytes()).collect()
}

/// SplitMix64 (Steele, Lea, Flood 2014): enough to look random to a compressor.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_the_same_in_every_run() {
        assert_eq!(text(1, 100), text(1, 100));
        assert_ne!(bytes(1, 64), bytes(2, 64));
        assert_eq!(bytes(1, 64).len(), 64);
    }
}
