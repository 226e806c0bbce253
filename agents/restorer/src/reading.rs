//! Reads what a target holds, to compare it: past the page cache, which may show what never reached the device.
//!
//! A write that failed leaves its bytes in the cache as if all were well, so that a restore which is tried again would
//! find them there and leave the device as it is.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use agent::Failure;
use agent::buffer::ALIGN;
use rustix::fs::{Advice, Mode, OFlags, SeekFrom, fadvise, ioctl_ficlone, seek};
use rustix::io::Errno;
use schema::messages::FailureKind;

use crate::sink::Opened;

/// Bytes that are read at once at most.
pub(crate) const READ_MAX: u64 = 1 << 20;

/// Something that is compared.
#[derive(Debug)]
pub(crate) struct Reading {
    file: File,
    path: PathBuf,
    volume: String,
}

/// Room for [`READ_MAX`] bytes off any border, as direct I/O wants it.
#[derive(Debug)]
pub(crate) struct Aligned {
    bytes: Vec<u8>,
    skip: usize,
}

impl Aligned {
    /// Zeroes.
    pub fn new() -> Self {
        let bytes = vec![0; READ_MAX as usize + 3 * ALIGN];
        let skip = bytes.as_ptr().align_offset(ALIGN);
        Self { bytes, skip }
    }

    /// The first `len` bytes of it, which begin on a border.
    pub fn first(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[self.skip..self.skip + len]
    }
}

impl Reading {
    /// Opens a file or device of at least `size` bytes. Blocks.
    pub fn open(path: &Path, volume: String, size: u64) -> Result<Self, Failure> {
        let cannot = |why: io::Error| {
            let path = path.display();
            Failure::new(FailureKind::Device, format!("cannot open {path} to compare it: {why}"))
        };
        let refused = |why: String| Failure::refused(format!("cannot compare {}: {why}", path.display()));
        let check = |metadata: io::Result<Metadata>| {
            let kind = metadata.map_err(cannot)?.file_type();
            match kind.is_file() || kind.is_block_device() {
                true => Ok(()),
                false => Err(refused("it is neither a regular file nor a block device".to_owned())),
            }
        };
        // Opening some devices does something already.
        check(std::fs::metadata(path))?;
        let file = match open_direct(path) {
            // Not every file system knows direct I/O.
            Err(Errno::INVAL) => forgotten(open(path, OFlags::empty()).map_err(|why| cannot(why.into()))?),
            opened => opened.map_err(|why| cannot(why.into()))?,
        };
        check(file.metadata())?;
        let found = seek(&file, SeekFrom::End(0)).map_err(|why| cannot(why.into()))?;
        match found < size {
            true => Err(refused(format!("it has {found} bytes, and {volume} is compared up to {size}"))),
            false => Ok(Self { file, path: path.to_owned(), volume }),
        }
    }

    /// Reads a target that is open for writing. Blocks.
    pub fn of(opened: &Opened) -> Result<Self, Failure> {
        let file = match again(&opened.file, OFlags::RDONLY | OFlags::DIRECT) {
            Ok(file) => file,
            Err(why) => {
                tracing::debug!(path = %opened.path.display(), %why, "no direct I/O: compared after a sync");
                let same = opened.file.sync_data().and_then(|()| opened.file.try_clone());
                forgotten(same.map_err(|why| opened.cannot("compare", 0, &why))?)
            }
        };
        Ok(Self { file, path: opened.path.clone(), volume: opened.volume.clone() })
    }

    /// Reads what this process has written to a target: a file from the page cache. Blocks.
    pub fn of_written(opened: &Opened) -> Result<Self, Failure> {
        if !opened.file.metadata().is_ok_and(|found| found.is_file()) {
            return Self::of(opened);
        }
        let file = again(&opened.file, OFlags::RDONLY);
        let file = file.map_err(|why| opened.cannot("read", 0, &why.into()))?;
        Ok(Self { file, path: opened.path.clone(), volume: opened.volume.clone() })
    }

    /// Whether more stands behind the first `size` bytes. Blocks.
    pub fn is_longer_than(&self, size: u64) -> bool {
        seek(&self.file, SeekFrom::End(0)).is_ok_and(|found| found > size)
    }

    /// Lets another file share all of its content on disk. Blocks.
    pub fn clone_to(&self, other: &File) -> io::Result<()> {
        Ok(ioctl_ficlone(other, &self.file)?)
    }

    /// The bytes of a range of at most [`READ_MAX`]. Blocks.
    pub fn read<'a>(&self, range: &Range<u64>, buffer: &'a mut Aligned) -> Result<&'a [u8], Failure> {
        let start = range.start / ALIGN as u64 * ALIGN as u64;
        let (from, to) = ((range.start - start) as usize, (range.end - start) as usize);
        let whole = buffer.first(to.next_multiple_of(ALIGN));
        let mut got = 0;
        while got < to {
            let why = match self.file.read_at(&mut whole[got..], start + got as u64) {
                Ok(0) => io::ErrorKind::UnexpectedEof.into(),
                Ok(more) => {
                    got += more;
                    continue;
                }
                Err(why) if why.kind() == io::ErrorKind::Interrupted => continue,
                Err(why) => why,
            };
            let (volume, path, offset) = (&self.volume, self.path.display(), range.start);
            let why = format!("cannot read {volume} at offset {offset} of {path}: {why}");
            return Err(Failure::new(FailureKind::Device, why));
        }
        Ok(&whole[from..to])
    }
}

fn open_direct(path: &Path) -> Result<File, Errno> {
    open(path, OFlags::DIRECT)
}

/// What is open, opened once more in another way.
pub(crate) fn again(file: &File, flags: OFlags) -> Result<File, Errno> {
    open(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())), flags)
}

/// Without waiting for anybody, should it have become a pipe; to be read, where the flags say nothing else.
fn open(path: &Path, flags: OFlags) -> Result<File, Errno> {
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map(File::from)
}

/// A file whose pages are not in the cache any more.
fn forgotten(file: File) -> File {
    if let Err(why) = fadvise(&file, 0, None, Advice::DontNeed) {
        tracing::debug!(%why, "what is in the page cache is read from there");
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_range_is_read_and_none_behind_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let content: Vec<u8> = (0..3_000_001_u32).map(|n| (n % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let reading = Reading::open(&path, "v".into(), 3_000_001).unwrap();
        let mut buffer = Aligned::new();
        for range in [0..1, 0..READ_MAX, 4095..4095 + READ_MAX, 5000..5001, 2_999_990..3_000_001] {
            let expected = &content[range.start as usize..range.end as usize];
            assert!(reading.read(&range, &mut buffer).unwrap() == expected, "{range:?}");
        }
        let failure = reading.read(&(3_000_000..3_000_002), &mut buffer).unwrap_err();
        assert!(failure.why.contains("at offset 3000000"), "{failure}");
    }

    #[test]
    fn only_files_and_block_devices_are_compared_and_no_pipe_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("folder")).unwrap();
        std::fs::write(at("file"), [1; 5000]).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for path in [at("folder"), at("pipe"), at("socket"), PathBuf::from("/dev/null")] {
            let failure = Reading::open(&path, "v".into(), 0).unwrap_err();
            assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
            assert!(failure.why.contains("neither a regular file nor a block device"), "{failure}");
            assert!(failure.why.contains(path.to_str().unwrap()), "{failure}");
        }
        // One that came to the name after it was looked at.
        open(&at("pipe"), OFlags::empty()).unwrap();
        Reading::open(&at("file"), "v".into(), 5000).unwrap();
    }
}
