//! Writes restored bytes: to a file, to a device, or nowhere when a snapshot is only verified.
//!
//! Offsets never overlap between calls, so that any number of threads may write at once. Zero ranges of a fresh file
//! are never written, so that it stays sparse; anywhere else they are punched out, or written when the target cannot
//! do that: stale data never stays. A logical volume knows better, and is asked. What is aligned goes to a device past
//! the page cache, where a write that fails says so itself. Nothing is durable before [`Sink::finish`], which alone cuts
//! off what a longer file has behind the snapshot's end. A file that somebody removes, replaces or cuts off meanwhile
//! fails the restore.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use agent::buffer::ALIGN;
use agent::{Ending, Failure, Place, Stop};
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::Errno;
use schema::limits::BLOCK;
use schema::messages::{FailureKind, FileIdentity};

use crate::hold;
use crate::reading::{Reading, again};

#[cfg(test)]
mod tests;

/// Bytes that are written at once where zeroes must be written.
const ZEROES_LEN: usize = 256 << 10;
static ZEROES: [u8; ZEROES_LEN] = [0; ZEROES_LEN];

/// What a target held when it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    /// Nothing: the file was made for this restore.
    Absent,
    /// A file without content.
    Empty,
    /// What an earlier attempt of the same job has written.
    Begun,
    /// A file with content, or a device.
    Content,
}

/// Where restored bytes go.
#[derive(Debug)]
pub(crate) enum Sink {
    /// Nowhere.
    Discard,
    /// An opened target.
    Target(Opened),
    /// A part of the volume in memory.
    Memory(Memory),
}

/// A part of the volume, which is zero until something is written.
#[derive(Debug)]
pub(crate) struct Memory {
    start: u64,
    bytes: Mutex<Vec<u8>>,
}

impl Memory {
    /// Room for a range of the volume.
    pub fn new(range: Range<u64>) -> Self {
        let bytes = Mutex::new(vec![0; (range.end - range.start) as usize]);
        Self { start: range.start, bytes }
    }

    /// What was written, in full.
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.bytes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        let mut part = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let from = (offset - self.start) as usize;
        part[from..from + bytes.len()].copy_from_slice(bytes);
    }
}

/// An opened target of the right size.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The open file.
    pub file: File,
    /// Its path without symbolic links.
    pub path: PathBuf,
    /// The volume, for messages.
    pub volume: String,
    /// What it held before.
    pub before: Before,
    /// It shares another target's content by now.
    pub shared: bool,
    /// Bytes of the snapshot were written to it.
    pub is_written: AtomicBool,
    /// Something of it was made to read as zero.
    pub is_zeroed: AtomicBool,
    /// There was no room for something.
    pub is_full: AtomicBool,
    /// What of it lies behind the snapshot's end and is emptied with the rest.
    pub behind: Range<u64>,
    /// The logical volume that it is.
    pub place: Option<Arc<dyn Place>>,
    /// Which way of [`ZEROING`] is tried first: those before it do not work here.
    pub zeroing: AtomicU8,
    /// Whether it is being made durable just now.
    pub syncing: AtomicBool,
    /// A device that nobody else has exclusively.
    pub is_alone: bool,
    /// Bytes that it has from the first write until all is written, where it is a file.
    pub len: Option<u64>,
    /// Bytes that it is cut off to then, where it is longer than the snapshot.
    pub cut_to: Option<u64>,
    /// Bytes that a file with content had before it was given the snapshot's size.
    pub grown_from: Option<u64>,
    /// It was cut off.
    pub is_cut: AtomicBool,
    /// The same device past the page cache, where that is possible; opened when it is first written to.
    pub direct: OnceLock<Option<File>>,
}

/// Ways to zero a range, the best first.
const ZEROING: [Option<FallocateFlags>; 3] = [
    Some(FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE)),
    Some(FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE)),
    None,
];

impl Sink {
    /// Writes `bytes` at `offset`. Blocks.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Discard => Ok(()),
            Self::Target(opened) => opened.write(offset, bytes),
            Self::Memory(memory) => {
                memory.write(offset, bytes);
                Ok(())
            }
        }
    }

    /// Whether it is a device that is written to past the page cache.
    pub fn is_device(&self) -> bool {
        matches!(self, Self::Target(opened) if opened.direct().is_some())
    }

    /// Whether a range that reads as zero is rather left alone: zeroing a file or a thin volume takes nothing, and
    /// gives room back; a device has to write it.
    pub fn compares_zeroes(&self) -> bool {
        let Self::Target(opened) = self else { return false };
        match &opened.place {
            Some(place) => place.compares_zeroes(),
            None => opened.file.metadata().is_ok_and(|found| found.file_type().is_block_device()),
        }
    }

    /// Whether zero ranges need no work.
    pub fn is_zero_already(&self) -> bool {
        match self {
            Self::Discard | Self::Memory(_) => true,
            Self::Target(opened) => opened.is_zero(),
        }
    }

    /// Makes a range read as zero. Blocks; gives up between steps when `halt` is raised.
    pub fn zero(&self, range: Range<u64>, halt: &Stop) -> Result<(), Failure> {
        match self {
            Self::Target(opened) if !self.is_zero_already() => opened.zero(range, halt),
            _ => Ok(()),
        }
    }

    /// What was written to memory.
    pub fn taken(&self) -> Vec<u8> {
        match self {
            Self::Memory(memory) => memory.take(),
            Self::Discard | Self::Target(_) => Vec::new(),
        }
    }

    /// Which file or device a target is, where that is known.
    pub fn identity(&self) -> Option<FileIdentity> {
        let Self::Target(opened) = self else { return None };
        hold::identity(&opened.file, &opened.path).ok()
    }

    /// Whether something of what stood on a target may be gone.
    pub fn is_overwritten(&self) -> bool {
        let Self::Target(opened) = self else { return false };
        [&opened.is_written, &opened.is_zeroed, &opened.is_cut]
            .iter()
            .any(|flag| flag.load(Ordering::Relaxed))
    }

    /// The logical volume that it is.
    pub fn place(&self) -> Option<Arc<dyn Place>> {
        match self {
            Self::Target(opened) => opened.place.clone(),
            Self::Discard | Self::Memory(_) => None,
        }
    }

    /// What the operator should know of a target that has become shorter.
    pub fn cut_off(&self) -> Option<String> {
        let Self::Target(Opened { path, len: Some(before), cut_to: Some(now), is_cut, .. }) = self else {
            return None;
        };
        let said =
            || format!("{} was cut off from {before} to {now} bytes, which the snapshot has", path.display());
        is_cut.load(Ordering::Relaxed).then(said)
    }

    /// What lies behind the snapshot's end and is emptied with the rest.
    pub fn behind(&self) -> Range<u64> {
        match self {
            Self::Target(opened) => opened.behind.clone(),
            Self::Discard | Self::Memory(_) => 0..0,
        }
    }

    /// Makes what lies behind the snapshot's end read as zero. Blocks.
    pub fn zero_behind(&self, halt: &Stop) -> Result<(), Failure> {
        let Self::Target(opened) = self else { return Ok(()) };
        if opened.behind.is_empty() {
            return Ok(());
        }
        opened.zero(opened.behind.clone(), halt)?;
        match halt.is_raised() {
            false => Ok(()),
            true => Err(Failure {
                retry: true,
                ..Failure::new(
                    FailureKind::Revoked,
                    format!(
                        "the restore of {} was stopped before {} was empty behind its end",
                        opened.volume,
                        opened.path.display()
                    ),
                )
            }),
        }
    }

    /// Whether there is something that can be made durable, and nobody does it. Whoever gets `true` calls
    /// [`Sink::sync`].
    pub fn may_sync(&self) -> bool {
        match self {
            Self::Discard | Self::Memory(_) => false,
            Self::Target(opened) => !opened.syncing.swap(true, Ordering::Relaxed),
        }
    }

    /// Makes what is written so far durable. An error is told once by the system, and must not be dropped: the end
    /// would look well. Blocks.
    pub fn sync(&self) -> Result<(), Failure> {
        let Self::Target(opened) = self else { return Ok(()) };
        let synced = opened.file.sync_data().map_err(|why| opened.not_durable(&why));
        opened.syncing.store(false, Ordering::Relaxed);
        synced
    }

    /// Everything is written: cuts off a file that is longer, and waits until all of it is durable. Blocks.
    pub fn finish(&self) -> Result<(), Failure> {
        let Self::Target(opened) = self else { return Ok(()) };
        opened.cut()?;
        let folder = || match (opened.before, opened.path.parent()) {
            (Before::Absent | Before::Begun, Some(folder)) => File::open(folder)?.sync_all(),
            _ => Ok(()),
        };
        opened.file.sync_all().and_then(|()| folder()).map_err(|why| opened.not_durable(&why))?;
        opened.check_there()
    }

    /// How a restore with this failure ended. What stands on the target of the snapshot is worth keeping, whatever the
    /// reason, unless that is the target, and not merely its room; `is_helped` says that others may have written to it.
    pub fn ending(&self, failure: &Failure, is_helped: bool) -> Ending {
        let Self::Target(opened) = self else { return Ending::Failed };
        let is_written = is_helped || opened.is_written.load(Ordering::Relaxed) || opened.is_begun();
        let is_sound = failure.kind != FailureKind::Device || opened.is_full.load(Ordering::Relaxed);
        match is_written && is_sound {
            true => Ending::CutOff,
            false => Ending::Failed,
        }
    }

    /// After a failure: what was written stays where the restore was only cut off, and what is to be done with it is
    /// returned. Else a file that was made for the restore is removed, and one that was empty is emptied. Blocks.
    pub fn give_up(&self, ending: Ending, is_helped: bool) -> Option<String> {
        let Self::Target(opened) = self else { return None };
        // What stood there before stays in no case, and whoever reads the failure must know how it is now.
        if ending == Ending::CutOff
            || (opened.before == Before::Content && (is_helped || self.is_overwritten()))
        {
            return opened.left();
        }
        let undone = match opened.before {
            Before::Absent | Before::Begun => opened.remove(),
            Before::Empty => opened.file.set_len(0),
            // Nothing of the snapshot is in what was added.
            Before::Content => opened.grown_from.map_or(Ok(()), |len| opened.file.set_len(len)),
        };
        if let Err(why) = undone {
            let path = opened.path.display();
            tracing::warn!(%path, %why, "a failed restore left a partial file behind: remove it");
        }
        None
    }
}

impl Opened {
    /// An opened target.
    pub fn new(file: File, path: PathBuf, volume: String, before: Before) -> Self {
        Self {
            file,
            path,
            volume,
            before,
            shared: false,
            is_written: AtomicBool::new(false),
            is_zeroed: AtomicBool::new(false),
            is_full: AtomicBool::new(false),
            behind: 0..0,
            place: None,
            zeroing: AtomicU8::new(0),
            syncing: AtomicBool::new(false),
            is_alone: false,
            len: None,
            cut_to: None,
            grown_from: None,
            is_cut: AtomicBool::new(false),
            direct: OnceLock::new(),
        }
    }

    /// The same target once more, under the same lock.
    pub fn again(&self) -> Result<Self, Failure> {
        let file = self.file.try_clone().map_err(|why| self.cannot("open", 0, &why))?;
        let again = Self::new(file, self.path.clone(), self.volume.clone(), self.before);
        Ok(Self { place: self.place.clone(), shared: self.shared, len: self.len, ..again })
    }

    /// Whether all of it reads as zero.
    pub fn is_zero(&self) -> bool {
        matches!(self.before, Before::Absent | Before::Empty) && !self.shared
    }

    /// Whether it was made for this restore, or for what an earlier attempt of it has begun.
    pub fn is_made(&self) -> bool {
        let is_made = |place: &Arc<dyn Place>| place.is_new() || place.is_begun();
        matches!(self.before, Before::Absent | Before::Begun) || self.place.as_ref().is_some_and(is_made)
    }

    /// Whether an earlier attempt of the same job may have written to it.
    fn is_begun(&self) -> bool {
        self.before == Before::Begun || self.place.as_ref().is_some_and(|place| place.is_begun())
    }

    /// What is left of a restore that was cut off, and what is to be done with it. A place that was made says so itself.
    fn left(&self) -> Option<String> {
        let (volume, path) = (&self.volume, self.path.display());
        let left = match (&self.place, self.before) {
            (Some(_), _) if self.is_made() => None,
            (Some(place), _) => {
                let name = place.name();
                Some(format!("{name} is overwritten in part: the same restore goes on from there"))
            }
            (None, Before::Content) => {
                Some(format!("{path} is overwritten in part: the same restore goes on from there"))
            }
            (None, Before::Absent | Before::Empty | Before::Begun) => Some(format!(
                "what was written to {path} stays, and is not all of {volume}: do not use it; the same restore with --force \
                 goes on from there"
            )),
        };
        let room = self.is_full.load(Ordering::Relaxed).then(|| self.wanted_room());
        let lines: Vec<String> = left.into_iter().chain(room).collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    }

    /// What is to be done where there is no room.
    fn wanted_room(&self) -> String {
        match &self.place {
            Some(place) => format!(
                "there is no room left for {}: extend the thin pool that it is in before the restore is begun again, or \
                 remove what is not needed; while a pool is full, its other volumes fail, too",
                place.name()
            ),
            None => {
                let path = self.path.display();
                format!(
                    "there is no room left for {path}: make some, or raise its owner's quota, before the restore is begun \
                     again; a part that is not to be gone on with takes room until it is removed"
                )
            }
        }
    }

    /// Lets a file that holds nothing share all of a donor's content on disk, where the file system can do that. What
    /// comes of it is compared like anything else that was there. Blocks.
    pub fn share(&mut self, donor: &Reading, part: &Range<u64>, size: u64) {
        if !self.is_zero() || *part != (0..size) || donor.is_longer_than(size) {
            return;
        }
        match donor.clone_to(&self.file) {
            Ok(()) => self.shared = true,
            Err(why) => tracing::debug!(path = %self.path.display(), %why, "copied, and not shared"),
        }
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        self.check_whole()?;
        let is_aligned = [bytes.as_ptr().addr(), bytes.len(), offset as usize].iter().all(|n| n % ALIGN == 0);
        let file = self.direct().filter(|_| is_aligned).unwrap_or(&self.file);
        self.is_written.store(true, Ordering::Relaxed);
        file.write_all_at(bytes, offset).map_err(|why| self.cannot("write", offset, &why))
    }

    /// A device past the page cache. Every block device takes what is aligned to a page.
    fn direct(&self) -> Option<&File> {
        let open = || {
            let is_device = self.file.metadata().is_ok_and(|found| found.file_type().is_block_device());
            match is_device.then(|| again(&self.file, OFlags::WRONLY | OFlags::DIRECT))? {
                Ok(file) => Some(file),
                Err(why) => {
                    tracing::debug!(path = %self.path.display(), %why, "written to through the page cache");
                    None
                }
            }
        };
        self.direct.get_or_init(open).as_ref()
    }

    /// Why something cannot be done at an offset.
    pub fn cannot(&self, verb: &str, offset: u64, why: &io::Error) -> Failure {
        self.note_room(why);
        let (volume, path) = (&self.volume, self.path.display());
        Failure::new(
            FailureKind::Device,
            format!("cannot {verb} {volume} at offset {offset} of {path}: {why}"),
        )
    }

    /// A disk, a quota or a thin pool is full.
    fn note_room(&self, why: &io::Error) {
        if matches!(why.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            self.is_full.store(true, Ordering::Relaxed);
        }
    }

    fn not_durable(&self, why: &io::Error) -> Failure {
        self.note_room(why);
        let (volume, path) = (&self.volume, self.path.display());
        let why =
            format!("cannot make {volume} durable on {path}: {why}; what is there is not to be trusted");
        Failure::new(FailureKind::Device, why)
    }

    /// Cuts off what a file has behind the snapshot's end, once everything else is durable: whoever loses that has got
    /// the rest.
    fn cut(&self) -> Result<(), Failure> {
        let Some(size) = self.cut_to else { return Ok(()) };
        self.file.sync_data().map_err(|why| self.not_durable(&why))?;
        self.check_there()?;
        self.file.set_len(size).map_err(|why| {
            let (volume, path) = (&self.volume, self.path.display());
            let why =
                format!("cannot cut off {path} at the {size} bytes that the snapshot of {volume} has: {why}");
            Failure::new(FailureKind::Device, why)
        })?;
        self.is_cut.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Fails when the file that is written is none any more, or has another length. A write behind the end of one that
    /// was cut off would give it its length back, and zeroes before that: so each write asks.
    fn check_whole(&self) -> Result<(), Failure> {
        let len = if self.is_cut.load(Ordering::Relaxed) { self.cut_to } else { self.len };
        let Some(len) = len else { return Ok(()) };
        let found = self.file.metadata().map_err(|why| self.cannot("look at", 0, &why))?;
        match (found.nlink(), found.len()) {
            (0, _) => Err(self.is_lost("was removed or replaced")),
            (_, now) if now != len => Err(self.is_lost(format!("has {now} bytes by now, and had {len}"))),
            _ => Ok(()),
        }
    }

    /// The same, and that its path leads to it.
    fn check_there(&self) -> Result<(), Failure> {
        self.check_whole()?;
        match self.len.is_none() || self.is_at_path().map_err(|why| self.cannot("look at", 0, &why))? {
            true => Ok(()),
            false => Err(self.is_lost("was moved away or replaced")),
        }
    }

    fn is_at_path(&self) -> io::Result<bool> {
        let ours = self.file.metadata()?;
        match std::fs::symlink_metadata(&self.path) {
            Ok(there) => Ok((ours.dev(), ours.ino()) == (there.dev(), there.ino())),
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(why) => Err(why),
        }
    }

    fn is_lost(&self, what: impl std::fmt::Display) -> Failure {
        let (volume, path) = (&self.volume, self.path.display());
        let why = format!(
            "{path} {what} while {volume} was restored to it: see who uses it; nothing is restored there"
        );
        Failure::new(FailureKind::Device, why)
    }

    /// Removes a file that was made, and is not to be filled after all. Blocks.
    pub fn unmake(&self) {
        if self.before == Before::Absent
            && let Err(why) = self.remove()
        {
            let path = self.path.display();
            tracing::warn!(%path, %why, "an empty file that was made for a restore stays");
        }
    }

    fn remove(&self) -> io::Result<()> {
        match self.is_at_path()? {
            true => std::fs::remove_file(&self.path),
            false => Ok(()),
        }
    }

    /// Devices zero whole blocks only; the ends of a range that are off a block are written.
    fn zero(&self, range: Range<u64>, halt: &Stop) -> Result<(), Failure> {
        self.is_zeroed.store(true, Ordering::Relaxed);
        if let Some(place) = &self.place {
            let start = range.start;
            return place.zero(&self.file, range, halt).map_err(|why| self.cannot("zero", start, &why));
        }
        self.check_whole()?;
        let inner = range.start.next_multiple_of(BLOCK)..range.end / BLOCK * BLOCK;
        if inner.is_empty() {
            return self.write_zeroes(range, halt);
        }
        self.write_zeroes(range.start..inner.start, halt)?;
        self.write_zeroes(inner.end..range.end, halt)?;
        loop {
            let way = self.zeroing.load(Ordering::Relaxed);
            let Some(Some(flags)) = ZEROING.get(usize::from(way)) else {
                return self.write_zeroes(inner, halt);
            };
            match fallocate(&self.file, *flags, inner.start, inner.end - inner.start) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) if !halt.is_raised() => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV | Errno::BUSY) => {
                    // Another thread may have found out at the same time: never skip a way.
                    let next =
                        self.zeroing.compare_exchange(way, way + 1, Ordering::Relaxed, Ordering::Relaxed);
                    tracing::debug!(path = %self.path.display(), way, first = next.is_ok(), "cannot zero this way");
                }
                Err(why) => return Err(self.cannot("zero", inner.start, &why.into())),
            }
        }
    }

    fn write_zeroes(&self, range: Range<u64>, halt: &Stop) -> Result<(), Failure> {
        let mut at = range.start;
        while at < range.end && !halt.is_raised() {
            let len = (range.end - at).min(ZEROES_LEN as u64) as usize;
            self.file.write_all_at(&ZEROES[..len], at).map_err(|why| self.cannot("zero", at, &why))?;
            at += len as u64;
        }
        Ok(())
    }
}
