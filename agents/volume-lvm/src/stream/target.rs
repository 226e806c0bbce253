//! The volume that changes are applied to: a block device or a file that exists.
//!
//! It is opened once, by one process only, and never while it is mounted or in use; every check is on what was opened.
//! Nothing is changed by opening it. Everything here blocks.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use agent::users::{self, Writer};
use agent::{Failure, Stop, mounts};
use rustix::fs::{
    Advice, FallocateFlags, FlockOperation, OFlags, SeekFrom, fadvise, fallocate, flock, major, minor, seek,
};
use rustix::io::Errno;
use schema::messages::FailureKind;

use crate::target::device::Device;
use crate::target::zeroing::{self, Step};

/// Blocks of a pool that does not zero them are written whole, so that a few must fit into memory.
const LARGEST_DIRTY: u64 = (32 << 20) + 1;

/// An open target.
#[derive(Debug)]
pub struct Target {
    name: String,
    file: File,
    metadata: Metadata,
    size: u64,
    kind: Option<zeroing::Kind>,
}

impl Target {
    /// Opens a file or device; `kind` says what matters of a logical volume.
    pub fn open(name: &str, path: &Path, kind: Option<zeroing::Kind>) -> Result<Self, Failure> {
        let cannot = |why: io::Error| {
            Failure::new(FailureKind::Device, format!("cannot open {name} to apply to it: {why}"))
        };
        let path = path.canonicalize().map_err(|why| match why.kind() {
            io::ErrorKind::NotFound => refused(name, "there is no such file or device, and none is made"),
            _ => cannot(why),
        })?;
        let before = std::fs::metadata(&path).map_err(cannot)?;
        let is_device = before.file_type().is_block_device();
        if let Some(zeroing::Kind::Thin { block: LARGEST_DIRTY.., zeroes: false, .. }) = kind {
            return Err(refused(
                name,
                "its pool's blocks are too large for one that does not zero new blocks: see --zero of lvchange(8)",
            ));
        }
        match before.file_type() {
            kind if kind.is_file() => check_backs_none(name, &path, &before)?,
            kind if kind.is_block_device() => check_device(name, &path, &before)?,
            _ => return Err(refused(name, "it is neither a regular file nor a block device")),
        }
        match users::writer(Path::new("/proc"), &path, &before) {
            Writer::Nobody => {}
            Writer::One(user) => return Err(in_use(name, &user)),
            Writer::Unknown(count) => {
                users::unseen(Path::new("/proc"), &path, &before, count)
                    .inspect(|why| tracing::warn!(target = name, "{why}"));
            }
        }
        // Exclusive opening fails while a device is mounted, swapped to, held by device mapper, or written to by
        // another of these.
        let exclusive = if is_device { OFlags::EXCL } else { OFlags::empty() };
        let flags = (OFlags::NOFOLLOW | exclusive).bits().cast_signed();
        let opened = File::options().read(true).write(true).custom_flags(flags).open(&path);
        let file = opened.map_err(|why| match why.raw_os_error() {
            Some(code) if code == Errno::BUSY.raw_os_error() => {
                let user = mounts::holder(before.rdev());
                in_use(
                    name,
                    &user.unwrap_or_else(|| "mounted, or held by another process or device".to_owned()),
                )
            }
            _ => cannot(why),
        })?;
        // A device is ours alone by now, and udev takes such locks on devices at any time.
        let locked = match is_device {
            true => Ok(()),
            false => flock(&file, FlockOperation::NonBlockingLockExclusive),
        };
        match locked {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(in_use(name, "another process has locked it")),
            Err(why) => return Err(cannot(why.into())),
        }
        let metadata = file.metadata().map_err(cannot)?;
        let size = match is_device {
            true => seek(&file, SeekFrom::End(0)).map_err(|why| cannot(why.into()))?,
            false => metadata.len(),
        };
        // What the page cache still has of a device may be older than what a file system on it wrote.
        if let Err(why) = fadvise(&file, 0, None, Advice::DontNeed) {
            tracing::debug!(target = name, %why, "the kernel takes no advice about its page cache");
        }
        Ok(Self { name: name.to_owned(), file, metadata, size, kind })
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What was opened.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Fails when it cannot hold a volume of this size.
    pub fn check_holds(&self, size: u64, whose: &str) -> Result<(), Failure> {
        match size <= self.size {
            true => Ok(()),
            false => Err(refused(&self.name, &format!("it has {} bytes, and {whose} has {size}", self.size))),
        }
    }

    /// Fills `buffer` from `offset`.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Failure> {
        self.file.read_exact_at(buffer, offset).map_err(|why| self.cannot("read", offset, &why))
    }

    /// Writes `content` at `offset`.
    pub fn write(&self, offset: u64, content: &[u8]) -> Result<(), Failure> {
        match self.dirty_blocks() {
            Some(block) => self.write_blocks(block, offset, content),
            None => self.write_plainly(offset, content),
        }
    }

    /// The block size of a pool that does not zero new blocks. A part of a new one would make the rest of it show
    /// somebody's old data: they are written whole, with what they read as around the content.
    fn dirty_blocks(&self) -> Option<u64> {
        match self.kind {
            Some(zeroing::Kind::Thin { block, zeroes: false, .. }) if block > 0 => Some(block),
            _ => None,
        }
    }

    fn write_plainly(&self, offset: u64, content: &[u8]) -> Result<(), Failure> {
        self.file.write_all_at(content, offset).map_err(|why| self.cannot("write", offset, &why))
    }

    fn write_blocks(&self, block: u64, offset: u64, content: &[u8]) -> Result<(), Failure> {
        let end = offset + content.len() as u64;
        let start = offset / block * block;
        let whole_end = end.next_multiple_of(block).min(self.size);
        let mut whole = vec![0; (whole_end - start) as usize];
        let (before, rest) = whole.split_at_mut((offset - start) as usize);
        let (middle, behind) = rest.split_at_mut(content.len());
        self.read(start, before)?;
        self.read(end, behind)?;
        middle.copy_from_slice(content);
        self.write_plainly(start, &whole)
    }

    /// Makes a range read as zero.
    pub fn zero(&self, range: Range<u64>, stop: &Stop) -> Result<(), Failure> {
        if self.metadata.is_file() && self.kind.is_none() {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            if fallocate(&self.file, flags, range.start, range.end - range.start).is_ok() {
                return Ok(());
            }
        }
        let Some(block) = self.dirty_blocks() else { return self.zero_by_kind(range, stop) };
        let first = range.start.next_multiple_of(block).min(range.end);
        let last = match range.end == self.size {
            true => range.end,
            false => (range.end / block * block).max(first),
        };
        for part in [range.start..first, last..range.end] {
            if !part.is_empty() {
                self.write_blocks(block, part.start, &vec![0; (part.end - part.start) as usize])?;
            }
        }
        self.zero_by_kind(first..last, stop)
    }

    fn zero_by_kind(&self, range: Range<u64>, stop: &Stop) -> Result<(), Failure> {
        let steps = match self.kind {
            _ if range.is_empty() => Vec::new(),
            Some(kind) => kind.steps(range.clone(), self.size),
            None => vec![Step::Zero(range.clone())],
        };
        zeroing::run(&Device(&self.file), &steps, stop).map_err(|why| self.cannot("zero", range.start, &why))
    }

    /// Waits until everything is on stable storage.
    pub fn sync(&self) -> Result<(), Failure> {
        self.file.sync_data().map_err(|why| {
            let why = format!(
                "cannot make {} durable: {why}; what was applied is not to be trusted: apply it again",
                self.name
            );
            Failure::new(FailureKind::Device, why)
        })
    }

    fn cannot(&self, verb: &str, offset: u64, why: &io::Error) -> Failure {
        Failure::new(FailureKind::Device, format!("cannot {verb} {} at offset {offset}: {why}", self.name))
    }
}

fn refused(name: &str, why: &str) -> Failure {
    Failure::refused(format!("cannot apply to {name}: {why}"))
}

/// Somebody else has it, perhaps not for long.
fn in_use(name: &str, user: &str) -> Failure {
    Failure { retry: true, ..refused(name, &format!("it is in use ({user})")) }
}

fn check_device(name: &str, path: &Path, metadata: &Metadata) -> Result<(), Failure> {
    let device = metadata.rdev();
    match mounts::mounted(major(device), minor(device)) {
        Some(place) => Err(refused(name, &format!("it is mounted on {}: unmount it first", place.display()))),
        None => check_backs_none(name, path, metadata),
    }
}

/// Whether a loop device is made of it, which may be mounted, and claims nothing.
fn check_backs_none(name: &str, path: &Path, metadata: &Metadata) -> Result<(), Failure> {
    match mounts::loop_device(Path::new("/sys/block"), path, metadata) {
        Some(device) => Err(refused(name, &format!("it is in use by {}: detach it first", device.display()))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    #[test]
    fn a_target_is_opened_by_one_at_a_time() {
        let file = file(&[1; 8192]);
        let first = Target::open("t", file.path(), None).unwrap();
        let second = Target::open("t", file.path(), None).unwrap_err();
        assert!(second.retry && second.to_string().contains("in use"), "{second}");
        drop(first);
        Target::open("t", file.path(), None).unwrap();
    }

    #[test]
    fn what_is_no_volume_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for (path, words) in [(folder.path(), "neither"), (&folder.path().join("none"), "no such file")] {
            let why = Target::open("t", path, None).unwrap_err();
            assert!(why.to_string().contains(words) && !why.retry, "{why}");
            assert_eq!(why.kind, FailureKind::Refused);
        }
        assert!(!folder.path().join("none").exists());
    }

    /// A loop device over a file or device, detached when dropped; none where this machine has none for us.
    struct Loop(String);

    impl Loop {
        fn over(path: &Path) -> Option<Self> {
            let control = File::options().read(true).write(true).open("/dev/loop-control");
            if !rustix::process::geteuid().is_root() || control.is_err() {
                println!(
                    "NOT SHOWN: what needs a device, for which this test needs root and /dev/loop-control"
                );
                return None;
            }
            // Of two that find the same one, the other has it open while it waits: one looks at a time, in all tests.
            let alone = ["/dev/loop-control", "losetup", "--find", "--show"];
            let made = Command::new("flock").args(alone).arg(path).output().unwrap();
            assert!(made.status.success(), "no loop device: {}", String::from_utf8_lossy(&made.stderr));
            Some(Self(String::from_utf8(made.stdout).unwrap().trim().to_owned()))
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
        }
    }

    /// A loop device claims nothing of what it is made of, also while it is mounted.
    #[test]
    fn what_is_behind_a_loop_device_is_refused() {
        let file = file(&[0xee; 1 << 20]);
        let Some(disk) = Loop::over(file.path()) else { return };
        let why = Target::open("t", file.path(), None).unwrap_err();
        assert!(why.to_string().contains(&format!("in use by {}", disk.0)), "{why}");
        let Some(above) = Loop::over(Path::new(&disk.0)) else { return };
        let why = Target::open("t", Path::new(&disk.0), None).unwrap_err();
        assert!(why.to_string().contains(&format!("in use by {}", above.0)), "{why}");
        assert_eq!(why.kind, FailureKind::Refused);
        Target::open("t", Path::new(&above.0), None).unwrap();
        drop(above);
        Target::open("t", Path::new(&disk.0), None).unwrap();
    }

    #[test]
    fn blocks_of_a_pool_that_does_not_zero_are_written_whole_and_keep_what_is_around() {
        let file = file(&[7; 10_000]);
        let kind =
            zeroing::Kind::Thin { block: 4096, zeroes: false, discards: false, external_origin: false };
        let target = Target::open("t", file.path(), Some(kind)).unwrap();
        let mut expected = vec![7; 10_000];
        for (at, len) in [(0, 4096), (4000, 200), (5000, 1), (9000, 1000), (100, 9000)] {
            target.write(at as u64, &vec![at as u8 | 1; len]).unwrap();
            expected[at..at + len].fill(at as u8 | 1);
            assert!(std::fs::read(file.path()).unwrap() == expected, "{len} bytes at {at}");
        }
        for range in [1..2, 4095..4097, 3000..9000, 8192..10_000, 0..10_000] {
            target.zero(range.clone(), &Stop::default()).unwrap();
            expected[range.start as usize..range.end as usize].fill(0);
            assert!(std::fs::read(file.path()).unwrap() == expected, "{range:?} of zeroes");
        }
    }
}
