//! Opens targets: a file, which may be made, or a block device, which never is.
//!
//! A path is resolved once; every check is on the resolved path, and opening it follows no symbolic link, so that what
//! was checked is what is opened. Nothing is changed before every check has passed. What protects other data is only
//! overridden by force, and what protects whoever uses a target by a word of its own; what protects the repository itself
//! is never overridden. Logical volumes come as a [`agent::Place`], which checks what only LVM knows.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent::store::Limit;
use agent::{Ending, Failure, Stop};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, SeekFrom, openat2, seek};
use rustix::io::Errno;
use schema::JobId;
use schema::messages::{FailureKind, Preparation};
use schema::root::Root;

use crate::claim::Claim;
use crate::keeping;
use crate::sink::{Before, Opened};

mod allowed;
mod device;

pub(crate) use device::known_to_kernel;

/// Only root reads a restored disk until somebody decides otherwise.
const MODE: u32 = 0o600;
/// Where logical volumes have names that stay.
const MAPPER: &str = "/dev/mapper";
/// Why a range is not put back on a file.
const NOT_WHOLE: &str = "the file is gone or empty by now, and only a range of what was kept was overwritten; --whole puts \
                         back all of it";

/// Where to restore to.
#[derive(Debug, Clone)]
pub struct Target {
    path: PathBuf,
    force: bool,
    in_use: bool,
    with_content: bool,
    put_back: bool,
    is_same_device: bool,
    keep_going: bool,
    donor: Option<PathBuf>,
    kept_in: Option<PathBuf>,
    full: bool,
    untracked: bool,
    range: Option<Range<u64>>,
    preparation: Preparation,
    allowed: Option<Vec<PathBuf>>,
    claim: Claim,
    stop: Option<Stop>,
    is_read_again: bool,
    limit: Option<Arc<Limit>>,
}

/// What a target is checked against.
pub(crate) struct Circumstances<'a> {
    /// The snapshot.
    pub root: &'a Root,
    /// This host's name.
    pub host: &'a str,
    /// Folders that are never written to: the repository's own.
    pub forbidden: &'a [PathBuf],
}

impl Target {
    /// A file or block device. A file is made when there is none; its folder must exist. `force` overwrites a file
    /// that has content, the source itself, and a device that is larger than the snapshot.
    pub fn new(path: impl Into<PathBuf>, force: bool) -> Self {
        let (preparation, claim) = (Preparation::default(), Claim::default());
        Self {
            path: path.into(),
            force,
            in_use: false,
            with_content: false,
            put_back: false,
            is_same_device: false,
            keep_going: false,
            donor: None,
            kept_in: None,
            full: false,
            untracked: false,
            range: None,
            preparation,
            allowed: None,
            claim,
            stop: None,
            is_read_again: false,
            limit: None,
        }
    }

    /// It is overwritten although somebody uses it: it is mounted, part of another device, or open in a process that writes
    /// to it. Whether what it holds may go is another question.
    pub fn in_use(mut self, may_be: bool) -> Self {
        self.in_use = may_be;
        self
    }

    /// It may hold something, and be the snapshot's own source: what stands there is to be overwritten.
    pub fn with_content(mut self) -> Self {
        self.with_content = true;
        self
    }

    /// It gets back what was kept of it for an undo, and must be what it was then.
    pub fn put_back(mut self) -> Self {
        self.put_back = true;
        self.with_content()
    }

    /// Somebody has looked whether a device that something is put back on is the one that it was, which its name does not
    /// say. What protects it from being overwritten while it is in use stays.
    pub fn same_device(mut self, is_same: bool) -> Self {
        self.is_same_device = is_same;
        self
    }

    /// Restores the rest when something cannot be read any more; that is zero then, and the report names it.
    pub fn keep_going(mut self, keep_going: bool) -> Self {
        self.keep_going = keep_going;
        self
    }

    /// Takes what it can from a file or device to which the same snapshot was just restored, and fetches the rest. What is
    /// taken is verified like what is fetched. A file that is made shares it on disk where the file system can do that.
    pub fn after(mut self, donor: impl Into<PathBuf>) -> Self {
        self.donor = Some(donor.into());
        self
    }

    /// Keeps what is overwritten in a local file, which must not exist: a stream that puts it back. The target must exist,
    /// may hold something, may be the snapshot's own source, and keeps its size.
    pub fn snapback(mut self, file: impl Into<PathBuf>) -> Self {
        self.kept_in = Some(file.into());
        self.with_content = true;
        self
    }

    /// Writes all of it, also what stands there already: for a target of which it is known that nothing is the same.
    pub fn full(mut self, full: bool) -> Self {
        self.full = full;
        self
    }

    /// Reads what stands there also where the target knows that it has not changed since a snapshot.
    pub fn untracked(mut self, untracked: bool) -> Self {
        self.untracked = untracked;
        self
    }

    /// Restores only these bytes of the volume, to where they were. The rest of a target that has content stays as it is,
    /// as does its size, which may be another than the snapshot's; a file that is made has holes there.
    pub fn only(mut self, range: Option<Range<u64>>) -> Self {
        self.range = range;
        self
    }

    /// What is done first, to a logical volume; other targets are refused then.
    pub fn prepared(mut self, preparation: Preparation) -> Self {
        self.preparation = preparation;
        self
    }

    /// Only when it is below one of these folders, after every symbolic link was followed. Names below `/dev` may be
    /// links to block devices there when a folder below `/dev` is allowed: only root makes those. `VG/PATTERN`, in which
    /// `*` stands for anything, allows logical volumes.
    pub fn below(mut self, allowed: &[PathBuf]) -> Self {
        self.allowed = Some(allowed.to_vec());
        self
    }

    /// Held by this claim, which may go on with what the same job has begun.
    pub(crate) fn claimed(mut self, claim: Claim) -> Self {
        self.claim = claim;
        self
    }

    /// Given up when this flag is raised.
    pub fn until(mut self, stop: Stop) -> Self {
        self.stop = Some(stop);
        self
    }

    /// What was written is read again, from the device, and compared.
    pub fn read_again(mut self, is_asked: bool) -> Self {
        self.is_read_again = is_asked;
        self
    }

    /// With no more reads of content and maps in the store at once than this, and one at least.
    pub fn fetching(mut self, most: Option<usize>) -> Self {
        self.limit = most.map(|most| Limit::new(most).into());
        self
    }

    /// One of several targets of a command, none of which is another.
    pub(crate) fn of_command(self, command: Option<JobId>) -> Self {
        self.claim.is_of_command(command);
        self
    }

    /// The command whose other targets it is none of.
    pub(crate) fn command(&self) -> Option<JobId> {
        self.claim.command()
    }

    /// What its reads of the store are limited by, beside those of all others.
    pub(crate) fn limit(&self) -> Option<&Arc<Limit>> {
        self.limit.as_ref()
    }

    pub(crate) fn is_read_again(&self) -> bool {
        self.is_read_again
    }

    /// What ends it early.
    pub(crate) fn stop(&self) -> Option<&Stop> {
        self.stop.as_ref()
    }

    /// What is held of it.
    pub(crate) fn claim(&self) -> &Claim {
        &self.claim
    }

    /// The path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether device-mapper's name for it is used, which stays.
    pub(crate) fn is_named_by_mapper(&self) -> bool {
        self.path.starts_with(MAPPER)
    }

    /// Whether what protects other data is overridden.
    pub(crate) fn is_forced(&self) -> bool {
        self.force
    }

    /// Whether it is overwritten although somebody uses it.
    pub(crate) fn may_be_in_use(&self) -> bool {
        self.in_use
    }

    /// Whether nothing that stands there is looked at.
    pub(crate) fn is_full(&self) -> bool {
        self.full
    }

    /// Whether what the target knows of its changes is used.
    pub(crate) fn is_tracked(&self) -> bool {
        !self.untracked && !self.is_full()
    }

    /// The bytes of the volume that are restored.
    pub(crate) fn part(&self, root: &Root) -> Result<Range<u64>, Failure> {
        if self.kept_in.is_some() && self.preparation.create.is_some() {
            return Err(
                self.refused("a volume that is made holds nothing to be kept: leave the snapback out")
            );
        }
        let Some(range) = &self.range else { return Ok(0..root.size) };
        if range.is_empty() || range.end > root.size {
            return Err(self.refused(format!(
                "the snapshot of {} has {} bytes, and none from {} to {}",
                root.volume, root.size, range.start, range.end
            )));
        }
        match self.preparation.create {
            Some(_) => Err(self.refused("a volume that is made is restored as a whole")),
            None => Ok(range.clone()),
        }
    }

    /// The only bytes of it that are restored.
    pub(crate) fn range(&self) -> Option<&Range<u64>> {
        self.range.as_ref()
    }

    /// How long the target must be.
    fn needs(&self, root: &Root) -> u64 {
        self.range.as_ref().map_or(root.size, |range| range.end)
    }

    /// Where the same snapshot stands already.
    pub(crate) fn donor(&self) -> Option<&Path> {
        self.donor.as_deref()
    }

    /// Where what is overwritten is kept.
    pub(crate) fn kept_in(&self) -> Option<&Path> {
        self.kept_in.as_deref()
    }

    /// Whether what is damaged is left out.
    pub(crate) fn keeps_going(&self) -> bool {
        self.keep_going
    }

    /// What is done first.
    pub(crate) fn preparation(&self) -> &Preparation {
        &self.preparation
    }

    /// Checks everything, opens the target and locks it. A file is made when there is none, without a byte; nothing else
    /// is changed. Blocks.
    pub(crate) fn open(&self, at: &Circumstances<'_>) -> Result<Opened, Failure> {
        let path = self.check_path(at)?;
        let Some(opened) = self.open_there(&path, at)? else {
            let file = self.open_path(&path, OFlags::CREATE | OFlags::EXCL)?;
            self.hold_file(&file, &path, Before::Absent)?;
            return Ok(Opened::new(file, path, at.root.volume.clone(), Before::Absent));
        };
        Ok(opened)
    }

    /// The first change of an opened target: a file gets the snapshot's size, unless it is longer, and the mark of its job.
    /// Blocks.
    pub(crate) fn begin(&self, opened: Opened, root: &Root) -> Result<Opened, Failure> {
        let found = opened.file.metadata().map_err(|why| self.cannot_open(&why))?;
        if self.claim.kept().is_some_and(|kept| keeping::state(&opened.path, &found) != Some(kept)) {
            return Err(self.refused("it was changed since what it held was kept; nothing was overwritten"));
        }
        if !found.is_file() {
            return Ok(opened);
        }
        if matches!(opened.before, Before::Absent | Before::Empty) {
            if found.len() > 0 {
                return Err(self.refused("somebody wrote to it just now; nothing was overwritten"));
            }
            self.claim.begin(&opened.file, &opened.path);
        }
        match self.range.is_none() || opened.before != Before::Content {
            true => self.sized(opened, found.len(), root.size),
            false => Ok(Opened { len: Some(found.len()), ..opened }),
        }
    }

    /// Checks everything and opens what is there, without changing it; none where there is nothing. Blocks.
    pub(crate) fn hold(&self, at: &Circumstances<'_>) -> Result<Option<Opened>, Failure> {
        let path = self.check_path(at)?;
        match std::fs::symlink_metadata(&path) {
            Ok(found) if found.is_file() && found.len() == 0 => Ok(None),
            _ => self.open_there(&path, at),
        }
    }

    /// The path without symbolic links, which may be restored to.
    fn check_path(&self, at: &Circumstances<'_>) -> Result<PathBuf, Failure> {
        self.check_spelling()?;
        if !self.preparation.is_empty() {
            return Err(self.refused(
                "only logical volumes are made or snapshotted first, or have a baseline: name one as VG/LV",
            ));
        }
        let path = self.resolve()?;
        self.check_allowed(&path)?;
        self.check_forbidden(&path, at.forbidden)?;
        Ok(known_to_kernel(path))
    }

    fn open_there(&self, path: &Path, at: &Circumstances<'_>) -> Result<Option<Opened>, Failure> {
        let metadata =
            match std::fs::symlink_metadata(path) {
                Ok(metadata) => metadata,
                Err(why) if why.kind() == io::ErrorKind::NotFound => {
                    return match self.kept_in {
                        Some(_) => Err(self
                            .refused("there is no such file, and nothing to keep: leave the snapback out")),
                        None if self.put_back && self.range.is_some() => Err(self.refused(NOT_WHOLE)),
                        None => Ok(None),
                    };
                }
                Err(why) => return Err(self.cannot_open(&why)),
            };
        self.check_same(path, &metadata)?;
        self.check_source(path, &metadata, at)?;
        let (kind, volume) = (metadata.file_type(), at.root.volume.clone());
        if kind.is_file() {
            self.check_file(path, &metadata)?;
            let file = match self.claim.held(&metadata) {
                Some((file, _)) => file,
                None => self.open_path(path, OFlags::empty())?,
            };
            let before = self.claim_file(&file, path)?;
            self.check_keeps_size(&file, at.root)?;
            match (self.range.is_some(), before) {
                (true, Before::Content) => {
                    self.size_for(&file, at.root)?;
                }
                (true, Before::Empty) if self.put_back => return Err(self.refused(NOT_WHOLE)),
                _ => {}
            }
            return Ok(Some(Opened::new(file, path.to_owned(), volume, before)));
        }
        if !kind.is_block_device() {
            return Err(self.refused("it is neither a regular file nor a block device"));
        }
        self.check_unmounted(path, &metadata)?;
        let (file, is_alone) = self.open_device(path, &metadata)?;
        self.check_device_size(&file, at.root)?;
        Ok(Some(Opened { is_alone, ..Opened::new(file, path.to_owned(), volume, Before::Content) }))
    }

    /// Opens a target that another restore has checked and holds, to write to it beside that one. Blocks.
    pub(crate) fn open_beside(&self, is_place: bool, forbidden: &[PathBuf]) -> Result<File, Failure> {
        self.check_spelling()?;
        if !is_place {
            self.check_allowed(&self.path)?;
        }
        self.check_forbidden(&self.path, forbidden)?;
        self.open_path(&self.path, OFlags::empty())
    }

    fn refused(&self, why: impl std::fmt::Display) -> Failure {
        Failure::refused(format!("cannot restore to {}: {why}", self.path.display()))
    }

    fn cannot_open(&self, why: &io::Error) -> Failure {
        Failure::new(
            FailureKind::Device,
            format!("cannot open {} to restore to it: {why}", self.path.display()),
        )
    }

    fn resolve(&self) -> Result<PathBuf, Failure> {
        match self.path.canonicalize() {
            Ok(path) => return Ok(path),
            Err(why) if why.kind() == io::ErrorKind::NotFound => {}
            Err(why) => return Err(self.cannot_open(&why)),
        }
        if self.path.symlink_metadata().is_ok() {
            return Err(self.refused("it is a symbolic link to nothing"));
        }
        let Some(name) = self.path.file_name() else { return Err(self.refused("it names no file")) };
        let folder = match self.path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let folder = folder.canonicalize().map_err(|why| {
            self.refused(format!("its folder {} cannot be used ({why}): create it first", folder.display()))
        })?;
        if folder.starts_with("/dev") {
            return Err(self.refused("there is no such device, and devices are never made"));
        }
        Ok(folder.join(name))
    }

    fn check_forbidden(&self, path: &Path, forbidden: &[PathBuf]) -> Result<(), Failure> {
        let inside = |folder: &&PathBuf| folder.canonicalize().is_ok_and(|folder| path.starts_with(folder));
        match forbidden.iter().find(inside) {
            Some(folder) => Err(self.refused(format!("it is inside the repository {}", folder.display()))),
            None => Ok(()),
        }
    }

    fn check_source(&self, path: &Path, metadata: &Metadata, at: &Circumstances<'_>) -> Result<(), Failure> {
        if self.force || self.with_content || at.root.host != at.host {
            return Ok(());
        }
        let source = &at.root.source;
        for candidate in [PathBuf::from(source), Path::new("/dev").join(source)] {
            let Ok(found) = candidate.canonicalize() else { continue };
            let Ok(there) = std::fs::metadata(&found) else { continue };
            let same_device = metadata.file_type().is_block_device()
                && there.file_type().is_block_device()
                && there.rdev() == metadata.rdev();
            if found == path || same_device || (there.dev(), there.ino()) == (metadata.dev(), metadata.ino())
            {
                let why = format!(
                    "it is the source {source} that the snapshot was taken of; --force overwrites it, and so does a \
                     safety snapshot where it is a logical volume"
                );
                return Err(self.refused(why));
            }
        }
        Ok(())
    }

    /// Locks a file that was there, and looks again what it holds: another restore may have ended just now.
    fn claim_file(&self, file: &File, path: &Path) -> Result<Before, Failure> {
        self.claim.lock(file, path)?;
        let metadata = file.metadata().map_err(|why| self.cannot_open(&why))?;
        if metadata.nlink() == 0 {
            return Err(self.claim.busy(path));
        }
        let before = self.check_file(path, &metadata)?;
        self.check_unused("file", path, &metadata)?;
        self.hold_file(file, path, before)?;
        Ok(before)
    }

    fn hold_file(&self, file: &File, path: &Path, before: Before) -> Result<(), Failure> {
        self.claim.lock(file, path)?;
        match before {
            Before::Begun => self.claim.begin(file, path),
            Before::Absent | Before::Empty | Before::Content => self.claim.unmark(file),
        }
        self.claim.keep(file, false);
        Ok(())
    }

    fn check_file(&self, path: &Path, metadata: &Metadata) -> Result<Before, Failure> {
        let begun = metadata.len() > 0 && self.claim.has_begun(path);
        if metadata.len() > 0 && !self.force && !self.with_content && !begun {
            let why = format!("the file has content ({} bytes); --force overwrites it", metadata.len());
            return Err(self.refused(why));
        }
        self.check_backs_none("file", path, metadata)?;
        match metadata.len() {
            0 => Ok(Before::Empty),
            _ if begun => Ok(Before::Begun),
            _ => Ok(Before::Content),
        }
    }

    fn open_path(&self, path: &Path, flags: OFlags) -> Result<File, Failure> {
        open_exactly(path, flags).map_err(|why| self.cannot_open(&why.into()))
    }

    /// The size of a target, which must hold what is restored.
    fn size_for(&self, file: &File, root: &Root) -> Result<u64, Failure> {
        let size = seek(file, SeekFrom::End(0)).map_err(|why| self.cannot_open(&why.into()))?;
        match (size < self.needs(root), &self.range) {
            (false, _) => Ok(size),
            (true, None) => Err(self.refused(format!(
                "it has {size} bytes, the snapshot of {} has {}; a range of it (0+{size}) restores what fits, and \
                 cuts off the rest",
                root.volume, root.size
            ))),
            (true, Some(range)) => Err(self.refused(format!("it has {size} bytes, and ends before {}", range.end))),
        }
    }

    /// What a snapback puts back is bytes, and no length.
    fn check_keeps_size(&self, file: &File, root: &Root) -> Result<(), Failure> {
        let size = file.metadata().map_err(|why| self.cannot_open(&why))?.len();
        match self.kept_in.is_none() || size == root.size || (self.range.is_some() && size > 0) {
            true => Ok(()),
            false => Err(self.refused(format!(
                "the file has {size} bytes and would get {}, which a snapback does not put back; an undo does",
                root.size
            ))),
        }
    }

    /// What a longer file has behind the snapshot's end stays until everything else is restored.
    fn sized(&self, opened: Opened, before: u64, size: u64) -> Result<Opened, Failure> {
        if before > size {
            return Ok(Opened { len: Some(before), cut_to: Some(size), ..opened });
        }
        match opened.file.set_len(size) {
            Ok(()) => {
                let grown_from = (opened.before == Before::Content && before < size).then_some(before);
                Ok(Opened { len: Some(size), grown_from, ..opened })
            }
            Err(why) => {
                let why =
                    format!("cannot give {} the snapshot's size of {size} bytes: {why}", self.path.display());
                crate::sink::Sink::Target(opened).give_up(Ending::Failed, false);
                Err(Failure::new(FailureKind::Device, why))
            }
        }
    }
}

/// Opens a resolved path for writing and follows no symbolic link on the way.
fn open_exactly(path: &Path, flags: OFlags) -> Result<File, Errno> {
    let flags = flags | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mode = match flags.contains(OFlags::CREATE) {
        true => Mode::from_raw_mode(MODE),
        false => Mode::empty(),
    };
    match openat2(CWD, path, flags, mode, ResolveFlags::NO_SYMLINKS) {
        // Kernels before 5.6, and sandboxes, lack the call.
        Err(Errno::NOSYS | Errno::PERM) => rustix::fs::open(path, flags, mode).map(File::from),
        opened => opened.map(File::from),
    }
}

#[cfg(test)]
mod tests;
