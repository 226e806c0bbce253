//! The volume that changes are read from: a block device, past the page cache, or a file.
//!
//! The page cache of a device knows nothing of what a file system on it wrote, so that a device is only ever read
//! directly, in whole aligned blocks. Everything here blocks; nothing here writes.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use agent::Failure;
use agent::buffer::ALIGN;
use rustix::fs::{OFlags, SeekFrom, seek};
use schema::messages::FailureKind;

/// An open source.
#[derive(Debug)]
pub struct Source {
    name: String,
    file: File,
    metadata: Metadata,
    size: u64,
}

impl Source {
    /// Opens a file or block device. `name` is for messages.
    pub fn open(name: &str, path: &Path) -> Result<Self, Failure> {
        let cannot = |why: io::Error| Failure::new(FailureKind::Device, format!("cannot open {name}: {why}"));
        let path: PathBuf = path.canonicalize().map_err(cannot)?;
        let kind = std::fs::metadata(&path).map_err(cannot)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let why = format!("cannot read {name}: it is neither a regular file nor a block device");
            return Err(Failure::refused(why));
        }
        let flags = if kind.is_block_device() { OFlags::DIRECT } else { OFlags::empty() };
        let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(&path);
        let file = file.map_err(cannot)?;
        let metadata = file.metadata().map_err(cannot)?;
        let size = match kind.is_file() {
            true => metadata.len(),
            false => seek(&file, SeekFrom::End(0)).map_err(|why| cannot(why.into()))?,
        };
        Ok(Self { name: name.to_owned(), file, metadata, size })
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether a file or device is this one.
    pub fn is(&self, other: &Metadata) -> bool {
        let both_devices = self.metadata.file_type().is_block_device() && other.file_type().is_block_device();
        let inode = |metadata: &Metadata| (metadata.dev(), metadata.ino());
        (both_devices && self.metadata.rdev() == other.rdev()) || inode(&self.metadata) == inode(other)
    }

    /// Waits until what others wrote through its page cache has reached it, and with that the lists of its snapshots.
    pub fn settle(&self) -> Result<(), Failure> {
        self.file.sync_data().map_err(|why| {
            Failure::new(
                FailureKind::Device,
                format!("cannot write the page cache of {} back: {why}", self.name),
            )
        })
    }

    /// Fills the front of `buffer` with `len` bytes from `offset`, a multiple of [`ALIGN`]. The buffer is aligned to
    /// and as long as whole blocks.
    pub fn read(&self, offset: u64, buffer: &mut [u8], len: usize) -> Result<(), Failure> {
        let whole = len.next_multiple_of(ALIGN).min(buffer.len());
        let mut done = 0;
        while done < len {
            match self.file.read_at(&mut buffer[done..whole], offset + done as u64) {
                Ok(0) => return Err(self.cannot_read(offset + done as u64, &"it ends there".to_owned())),
                // What comes short of a block is only ever the end, so that the next read begins on a block again.
                Ok(n) => done += n,
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) => return Err(self.cannot_read(offset + done as u64, &why)),
            }
        }
        Ok(())
    }

    fn cannot_read(&self, offset: u64, why: &impl std::fmt::Display) -> Failure {
        Failure::new(FailureKind::Device, format!("cannot read {} at offset {offset}: {why}", self.name))
    }
}
