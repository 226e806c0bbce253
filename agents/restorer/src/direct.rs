//! A target past the page cache: what is written there is on its way to the disk at once, and takes no processor time to
//! be copied into pages first.
//!
//! Only what is aligned goes this way. Of a file only long pieces do: short ones are better gathered by the cache. Not
//! every file system can do it; there everything goes through the cache.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use agent::buffer::ALIGN;
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::Errno;

use crate::reading::again;

/// Shorter pieces of a file wait in the page cache for their neighbours.
const FILE_MIN: usize = 256 << 10;

/// An open target, opened once more.
#[derive(Debug)]
pub(crate) struct Direct {
    file: File,
    is_device: bool,
    /// It took none, or does not take any more.
    refuses: AtomicBool,
}

impl Direct {
    /// Where the system can do that. Blocks.
    pub fn of(file: &File, path: &Path) -> Option<Self> {
        match again(file, OFlags::WRONLY | OFlags::DIRECT) {
            Ok(direct) => {
                let is_device = file.metadata().is_ok_and(|found| found.file_type().is_block_device());
                Some(Self { file: direct, is_device, refuses: AtomicBool::new(false) })
            }
            Err(why) => {
                tracing::debug!(path = %path.display(), %why, "written to through the page cache");
                None
            }
        }
    }

    /// Writes `bytes` at `offset`, or returns `false` when they have to go through the page cache. Blocks.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<bool> {
        let is_aligned = [bytes.as_ptr().addr(), bytes.len(), offset as usize].iter().all(|n| n % ALIGN == 0);
        let is_long = self.is_device || bytes.len() >= FILE_MIN;
        if !is_aligned || !is_long || self.refuses.load(Ordering::Relaxed) {
            return Ok(false);
        }
        if !self.is_device {
            // Into blocks that a file has already, several threads write at once. Where it cannot be given them so, or
            // has no room, the write finds out itself.
            let _ = fallocate(&self.file, FallocateFlags::KEEP_SIZE, offset, bytes.len() as u64);
        }
        match self.file.write_all_at(bytes, offset) {
            Ok(()) => Ok(true),
            Err(why) if why.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                self.refuses.store(true, Ordering::Relaxed);
                Ok(false)
            }
            Err(why) => Err(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::Aligned;

    #[test]
    fn what_is_short_or_off_a_border_goes_through_the_cache() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let file = File::create_new(&path).unwrap();
        file.set_len(4 << 20).unwrap();
        let Some(direct) = Direct::of(&file, &path) else {
            println!("NOT SHOWN: {} is on a file system without direct I/O", path.display());
            return;
        };
        let mut room = Aligned::new();
        let bytes = room.first(1 << 20);
        bytes.fill(7);
        assert!(!direct.write(0, &bytes[..FILE_MIN - ALIGN]).unwrap(), "short");
        assert!(!direct.write(0, &bytes[..FILE_MIN + 1]).unwrap(), "no whole block");
        assert!(!direct.write(0, &bytes[1..FILE_MIN + 1]).unwrap(), "off a border in memory");
        assert!(!direct.write(512, bytes).unwrap(), "off a border of the file");
        assert!(std::fs::read(&path).unwrap().iter().all(|byte| *byte == 0), "nothing is written then");

        assert!(direct.write(1 << 20, bytes).unwrap());
        let now = std::fs::read(&path).unwrap();
        assert_eq!(now.len(), 4 << 20);
        let expected = |at: usize| if (1 << 20..2 << 20).contains(&at) { 7 } else { 0 };
        assert!(now.iter().enumerate().all(|(at, byte)| *byte == expected(at)));

        direct.refuses.store(true, Ordering::Relaxed);
        assert!(!direct.write(0, bytes).unwrap(), "asked once is enough");
    }
}
