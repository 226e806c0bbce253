//! Reads of a device past the page cache.
//!
//! Without that, they would be worth nothing here: the kernel writes a snapshot's exceptions below the cache, which goes
//! on showing what it read before. A device that refuses direct reads is therefore refused, not read through the cache.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, SeekFrom};

use crate::exceptions::ReadAt;

/// Where a buffer for direct reads has to begin, and of what its length is a multiple.
const ALIGN: usize = 4096;

/// A device, opened for direct reads.
#[derive(Debug)]
pub(super) struct Direct {
    device: OwnedFd,
    size: u64,
    buffer: Vec<u8>,
}

impl Direct {
    /// Opens a device.
    pub(super) fn open(device: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECT;
        let device = rustix::fs::open(device, flags, Mode::empty())?;
        // The size of a device is known to whoever opened it, by its end.
        let size = rustix::fs::seek(&device, SeekFrom::End(0))?;
        Ok(Self { device, size, buffer: Vec::new() })
    }
}

impl ReadAt for Direct {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let len = buffer.len().next_multiple_of(ALIGN);
        self.buffer.resize(self.buffer.len().max(len + ALIGN), 0);
        let skip = self.buffer.as_ptr().align_offset(ALIGN);
        let aligned = skip.checked_add(len).and_then(|end| self.buffer.get_mut(skip..end));
        let aligned = aligned.ok_or_else(|| io::Error::other("no aligned memory"))?;
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            match rustix::io::retry_on_intr(|| rustix::io::pread(&self.device, &mut aligned[done..], at))? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                // What comes short is asked for again from where a direct read may begin.
                read => done = if done + read >= buffer.len() { buffer.len() } else { short(done, read)? },
            }
        }
        buffer.copy_from_slice(&aligned[..buffer.len()]);
        Ok(())
    }
}

fn short(done: usize, read: usize) -> io::Result<usize> {
    let whole = (done + read) / ALIGN * ALIGN;
    match whole > done {
        true => Ok(whole),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_the_end_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("device");
        let bytes: Vec<u8> = (0..16 * 4096u32).map(|n| (n / 7) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let mut device = Direct::open(&path).unwrap();
        assert_eq!(device.size(), 16 * 4096);
        for (offset, len) in [(0, 4096), (4096, 8192), (8 * 4096, 8 * 4096), (0, 16 * 4096)] {
            let mut buffer = vec![0; len];
            device.read_at(offset as u64, &mut buffer).unwrap();
            assert_eq!(buffer, bytes[offset..offset + len]);
        }
        assert!(device.read_at(15 * 4096, &mut vec![0; 8192]).is_err());
        assert!(Direct::open(&directory.path().join("none")).is_err());
    }
}
