//! Synchronous access to one opened file or block device: identity, allocated ranges, positioned reads.
//!
//! Everything here blocks; callers run it off the event loop. Reads only; never moves the file offset that reads
//! use. Devices are read past the page cache where that is possible, so that a backup does not push the host's own
//! data out of it. Every error names the source, and the offset where there is one.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use agent::VolumeError;
use rustix::fs::{Advice, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;
use schema::ReadingId;
use schema::limits::BLOCK;
use schema::state::FileState;

/// What a source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file.
    File,
    /// A block device.
    Device,
}

/// What tells one state of a source from another. Times are nanoseconds since
/// 1970; devices have none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    path: PathBuf,
    file_system: u64,
    device: u64,
    inode: u64,
    pub(crate) size: u64,
    pub(crate) modified: i128,
    pub(crate) changed: i128,
}

impl Identity {
    fn new(path: &Path, kind: Kind, stat: &Stat, size: u64) -> Self {
        let ns = |seconds: i64, nanoseconds: i128| i128::from(seconds) * 1_000_000_000 + nanoseconds;
        // The times of a device's node say nothing about its content.
        let (modified, changed) = match kind {
            Kind::File => {
                (ns(stat.st_mtime, stat.st_mtime_nsec.into()), ns(stat.st_ctime, stat.st_ctime_nsec.into()))
            }
            Kind::Device => (0, 0),
        };
        Self {
            path: path.to_owned(),
            file_system: stat.st_dev,
            device: stat.st_rdev,
            inode: stat.st_ino,
            size,
            modified,
            changed,
        }
    }

    /// The id of a reading of this state; `nonce` is empty where a later process may take it up again.
    pub(crate) fn reading(&self, nonce: &[u8]) -> ReadingId {
        use std::os::unix::ffi::OsStrExt;
        let Self { file_system, device, inode, size, modified, changed, .. } = *self;
        let path = self.path.as_os_str().as_bytes();
        FileState { path, file_system, device, inode, size, modified, changed }.reading(nonce)
    }

    /// What differs from an earlier state, in the operator's words; nothing when they are the same.
    pub(crate) fn differs_from(&self, earlier: &Self) -> Option<String> {
        let place = |i: &Self| (i.path.clone(), i.file_system, i.device, i.inode);
        if place(self) != place(earlier) {
            return Some("another file or device stands at its path".into());
        }
        if self.size != earlier.size {
            return Some(format!("its size was {} bytes and is {}", earlier.size, self.size));
        }
        if self.modified != earlier.modified {
            return Some("it was written to (its modification time differs)".into());
        }
        (self.changed != earlier.changed).then(|| "it was touched (its change time differs)".into())
    }
}

/// An opened file or device.
#[derive(Debug)]
pub(crate) struct Source {
    name: String,
    path: PathBuf,
    kind: Kind,
    buffered: OwnedFd,
    direct: Option<OwnedFd>,
}

impl Source {
    /// Opens `name` for reading; devices past the page cache, unless they refuse that.
    pub(crate) fn open(name: &str) -> Result<Self, VolumeError> {
        let kind = Self::kind_of(name)?;
        Self::open_as(name, kind, kind == Kind::Device)
    }

    fn kind_of(name: &str) -> Result<Kind, VolumeError> {
        let stat = rustix::fs::stat(name).map_err(|why| cannot_open(name, why))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok(Kind::File),
            FileType::BlockDevice => Ok(Kind::Device),
            other => {
                Err(cannot_open(name, format!("it is neither a regular file nor a block device ({other:?})")))
            }
        }
    }

    /// Opens `name`, with O_DIRECT when asked and possible.
    pub(crate) fn open_as(name: &str, kind: Kind, direct: bool) -> Result<Self, VolumeError> {
        let path = std::fs::canonicalize(name).map_err(|why| cannot_open(name, why))?;
        let open = |flags| rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC | flags, Mode::empty());
        let buffered = open(OFlags::empty()).map_err(|why| cannot_open(name, why))?;
        if let Err(why) = rustix::fs::fadvise(&buffered, 0, None, Advice::Sequential) {
            tracing::debug!(source = name, %why, "the kernel takes no advice about reading ahead");
        }
        let direct = match direct.then(|| open(OFlags::DIRECT)) {
            None => None,
            Some(Ok(direct)) => Some(direct),
            Some(Err(Errno::INVAL)) => {
                tracing::debug!(source = name, "cannot be read past the page cache; reading through it");
                None
            }
            Some(Err(why)) => return Err(cannot_open(name, why)),
        };
        Ok(Self { name: name.to_owned(), path, kind, buffered, direct })
    }

    /// What it is.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// The name that it was opened by.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its path without symbolic links.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its state now.
    pub(crate) fn identity(&self) -> Result<Identity, VolumeError> {
        let state = || -> rustix::io::Result<Identity> {
            let stat = rustix::fs::fstat(&self.buffered)?;
            Ok(Identity::new(&self.path, self.kind, &stat, self.size_now(&stat)?))
        };
        state().map_err(|why| cannot_open(&self.name, why))
    }

    /// The state of what stands at its path now.
    pub(crate) fn identity_at_path(&self) -> Result<Identity, String> {
        let stat = rustix::fs::stat(&self.path)
            .map_err(|why| format!("its path cannot be looked up any more: {why}"))?;
        // The size of a device is known to an open file only; that the device is the same one, `stat` says.
        let size = match self.kind {
            Kind::File => u64::try_from(stat.st_size).unwrap_or(0),
            Kind::Device => {
                self.size_now(&stat).map_err(|why| format!("its size cannot be read any more: {why}"))?
            }
        };
        Ok(Identity::new(&self.path, self.kind, &stat, size))
    }

    fn size_now(&self, stat: &Stat) -> rustix::io::Result<u64> {
        match self.kind {
            Kind::File => Ok(u64::try_from(stat.st_size).unwrap_or(0)),
            Kind::Device => rustix::fs::seek(&self.buffered, SeekFrom::End(0)),
        }
    }

    /// The parts of `range` that may hold something other than zeroes, widened to whole blocks. `size` is the size
    /// that it was opened with: a file that is shorter by now is an error, not a hole.
    pub(crate) fn allocated(&self, range: Range<u64>, size: u64) -> Result<Vec<Range<u64>>, VolumeError> {
        if self.kind == Kind::Device {
            return Ok(vec![range]);
        }
        let mut found: Vec<Range<u64>> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let data = match rustix::fs::seek(&self.buffered, SeekFrom::Data(at)) {
                Ok(start) if start < range.end => start,
                Ok(_) => break,
                Err(Errno::NXIO) => {
                    self.check_length(size)?;
                    break;
                }
                Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(vec![range]),
                Err(why) => return Err(self.cannot_read(at, why)),
            };
            let hole = match rustix::fs::seek(&self.buffered, SeekFrom::Hole(data)) {
                Ok(end) => end,
                Err(Errno::NXIO) => return Err(self.cannot_read(data, SHRUNK)),
                Err(why) => return Err(self.cannot_read(data, why)),
            };
            let start = (data / BLOCK * BLOCK).max(range.start);
            at = hole.next_multiple_of(BLOCK).min(range.end);
            match found.last_mut() {
                Some(last) if last.end >= start => last.end = at,
                _ => found.push(start..at),
            }
        }
        Ok(found)
    }

    fn check_length(&self, size: u64) -> Result<(), VolumeError> {
        let now = self.identity()?.size;
        match now >= size {
            true => Ok(()),
            false => Err(self.cannot_read(now, SHRUNK)),
        }
    }

    /// Fills `bytes` from `offset`, a multiple of the block size. After an error it goes on block by block, so that
    /// what cannot be read is named exactly and nothing else is lost.
    pub(crate) fn fill(&self, offset: u64, bytes: &mut [u8]) -> Result<(), VolumeError> {
        fill_by(offset, bytes, |at, rest| self.read_some(at, rest)).map_err(|(at, why)| match why {
            Some(why) => self.cannot_read(at, why),
            None => self.cannot_read(at, SHRUNK),
        })
    }

    /// One read. Direct I/O takes whole blocks only; the end of a source that is no multiple of them, and whatever
    /// the device refuses to read directly, comes through the page cache.
    fn read_some(&self, at: u64, bytes: &mut [u8]) -> rustix::io::Result<usize> {
        let whole = bytes.len() - bytes.len() % BLOCK as usize;
        if let Some(direct) = &self.direct
            && at.is_multiple_of(BLOCK)
            && whole > 0
        {
            match rustix::io::retry_on_intr(|| rustix::io::pread(direct, &mut bytes[..whole], at)) {
                Err(Errno::INVAL) => {}
                result => return result,
            }
        }
        rustix::io::retry_on_intr(|| rustix::io::pread(&self.buffered, &mut *bytes, at))
    }

    fn cannot_read(&self, offset: u64, why: impl ToString) -> VolumeError {
        VolumeError::CannotRead { source_name: self.name.clone(), offset, why: why.to_string() }
    }
}

const SHRUNK: &str = "the file is shorter than when it was opened";

fn cannot_open(name: &str, why: impl ToString) -> VolumeError {
    VolumeError::CannotOpen { source_name: name.to_owned(), why: why.to_string() }
}

/// Calls `read` until `bytes` are full. Fails with the offset and the reason, or no reason at the end of the source.
fn fill_by(
    offset: u64,
    bytes: &mut [u8],
    mut read: impl FnMut(u64, &mut [u8]) -> rustix::io::Result<usize>,
) -> Result<(), (u64, Option<io::Error>)> {
    let mut done = 0;
    let mut by_block = false;
    while done < bytes.len() {
        let at = offset + done as u64;
        let rest = &mut bytes[done..];
        let to_boundary = (BLOCK - at % BLOCK) as usize;
        let one_block = by_block || rest.len() <= to_boundary;
        let take = if one_block { rest.len().min(to_boundary) } else { rest.len() };
        match read(at, &mut rest[..take]) {
            Ok(0) => return Err((at, None)),
            Ok(n) => done += n,
            Err(_) if !one_block => by_block = true,
            Err(why) => return Err((at, Some(why.into()))),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    //! Reads that come short or fail, without a broken disk.

    use super::*;

    /// A source of `size` bytes in which the block at `bad` cannot be read, and reads give at most `most` bytes.
    fn flaky(size: u64, bad: u64, most: usize) -> impl FnMut(u64, &mut [u8]) -> rustix::io::Result<usize> {
        move |at, bytes| {
            let end = size.min(at + bytes.len().min(most) as u64);
            if at < bad + BLOCK && bad < end {
                return Err(Errno::IO);
            }
            bytes.iter_mut().zip(at..end).for_each(|(byte, at)| *byte = at as u8);
            Ok(end.saturating_sub(at) as usize)
        }
    }

    #[test]
    fn short_reads_are_continued() {
        let mut bytes = vec![0; 20_000];
        fill_by(4096, &mut bytes, flaky(1 << 20, 1 << 30, 777)).unwrap();
        assert!(bytes.iter().zip(4096u64..).all(|(byte, at)| *byte == at as u8));
    }

    #[test]
    fn the_end_is_named_where_it_is() {
        let failed = fill_by(4096, &mut vec![0; 20_000], flaky(10_000, 1 << 30, 1 << 20)).unwrap_err();
        assert_eq!((failed.0, failed.1.is_none()), (10_000, true));
    }

    #[test]
    fn the_first_bad_block_is_named_exactly() {
        for bad in [0, 4096, 5 * 4096, 255 * 4096] {
            let failed = fill_by(0, &mut vec![0; 1 << 20], flaky(1 << 20, bad, 1 << 20)).unwrap_err();
            assert_eq!(failed.0, bad);
            assert_eq!(failed.1.unwrap().raw_os_error(), Some(Errno::IO.raw_os_error()));
        }
    }

    #[test]
    fn a_large_read_that_fails_once_is_made_good_by_small_ones() {
        let mut bytes = vec![0; 1 << 20];
        let read = |at: u64, bytes: &mut [u8]| match bytes.len() > 4096 {
            true => Err(Errno::IO),
            false => flaky(1 << 20, 1 << 30, 1 << 20)(at, bytes),
        };
        fill_by(0, &mut bytes, read).unwrap();
        assert!(bytes.iter().zip(0u64..).all(|(byte, at)| *byte == at as u8));
    }
}
