//! Opens targets: a file, which may be made, or a block device, which never is.
//!
//! A path is resolved once; every check is on the resolved path, and opening it follows no symbolic link, so that what
//! was checked is what is opened. Nothing is changed before every check has passed. What protects other data is only
//! overridden by force; what protects the repository itself is never overridden. Logical volumes come as a
//! [`agent::Place`], which checks what only LVM knows.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use agent::{Failure, mounts};
use rustix::fs::{
    CWD, FlockOperation, Mode, OFlags, ResolveFlags, SeekFrom, flock, major, minor, openat2, seek,
};
use rustix::io::Errno;
use schema::JobId;
use schema::messages::{FailureKind, Preparation};
use schema::root::Root;

use crate::claim::Claim;
use crate::sink::{Before, Opened};

/// Only root reads a restored disk until somebody decides otherwise.
const MODE: u32 = 0o600;

/// Where to restore to.
#[derive(Debug, Clone)]
pub struct Target {
    path: PathBuf,
    force: bool,
    with_content: bool,
    keep_going: bool,
    donor: Option<PathBuf>,
    kept_by: Option<JobId>,
    full: bool,
    range: Option<Range<u64>>,
    preparation: Preparation,
    allowed: Option<Vec<PathBuf>>,
    claim: Claim,
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
    /// that has content, the source itself, a device that is in use, and a device that is larger than the snapshot.
    pub fn new(path: impl Into<PathBuf>, force: bool) -> Self {
        let (preparation, claim) = (Preparation::default(), Claim::default());
        Self {
            path: path.into(),
            force,
            with_content: false,
            keep_going: false,
            donor: None,
            kept_by: None,
            full: false,
            range: None,
            preparation,
            allowed: None,
            claim,
        }
    }

    /// It may hold something, and be the snapshot's own source: what stands there is to be overwritten.
    pub fn with_content(mut self) -> Self {
        self.with_content = true;
        self
    }

    /// The same, and what stands there was kept by this job for an undo: the restore's session carries it, so that nobody
    /// forgets what was kept before the restore has ended.
    pub fn kept_by(mut self, job: JobId) -> Self {
        self.kept_by = Some(job);
        self.with_content()
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

    /// Writes all of it, also what stands there already: for a target of which it is known that nothing is the same.
    pub fn full(mut self, full: bool) -> Self {
        self.full = full;
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

    /// What is held of it.
    pub(crate) fn claim(&self) -> &Claim {
        &self.claim
    }

    /// The job that kept what stands there.
    pub(crate) fn keeper(&self) -> Option<JobId> {
        self.kept_by
    }

    /// The path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether protection is overridden.
    pub(crate) fn is_forced(&self) -> bool {
        self.force
    }

    /// Whether nothing that stands there is looked at. A volume that is only made has nothing to be kept.
    pub(crate) fn is_full(&self) -> bool {
        self.full || self.preparation.create.is_some()
    }

    /// The bytes of the volume that are restored.
    pub(crate) fn part(&self, root: &Root) -> Result<Range<u64>, Failure> {
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

    /// How long the target must be.
    fn needs(&self, root: &Root) -> u64 {
        self.range.as_ref().map_or(root.size, |range| range.end)
    }

    /// Where the same snapshot stands already.
    pub(crate) fn donor(&self) -> Option<&Path> {
        self.donor.as_deref()
    }

    /// Whether what is damaged is left out.
    pub(crate) fn keeps_going(&self) -> bool {
        self.keep_going
    }

    /// What is done first.
    pub(crate) fn preparation(&self) -> &Preparation {
        &self.preparation
    }

    /// Fails when a place of this name is not allowed.
    pub(crate) fn check_place(&self, name: &str) -> Result<(), Failure> {
        let Some(allowed) = &self.allowed else { return Ok(()) };
        let device = Path::new("/dev").join(name);
        let fits = |one: &PathBuf| match one.is_absolute() {
            true => one.starts_with("/dev") && device.starts_with(one),
            false => one.to_str().is_some_and(|pattern| fits(pattern, name)),
        };
        match allowed.iter().any(fits) {
            true => Ok(()),
            false => Err(self.refused(format!(
                "{name} is no logical volume that this agent's configuration allows (as `VG/PATTERN`)"
            ))),
        }
    }

    /// Opens the device of a place. One that is larger than the snapshot will be empty behind its end. Blocks.
    pub(crate) fn open_place(&self, device: &Path, at: &Circumstances<'_>) -> Result<Opened, Failure> {
        let path = device.canonicalize().map_err(|why| self.cannot_open(&why))?;
        let metadata = std::fs::symlink_metadata(&path).map_err(|why| self.cannot_open(&why))?;
        // Whoever keeps what is there may lose it.
        if self.preparation.safety.is_none() {
            self.check_source(&path, &metadata, at)?;
        }
        self.check_unmounted(&metadata)?;
        let file = self.open_device(&path, &metadata)?;
        let size = self.size_for(&file, at.root)?;
        let mut opened = Opened::new(file, path, at.root.volume.clone(), Before::Content);
        if self.range.is_none() {
            opened.behind = at.root.size..size;
        }
        Ok(opened)
    }

    /// Checks everything, then opens the target and gives it the snapshot's size. Blocks.
    pub(crate) fn open(&self, at: &Circumstances<'_>) -> Result<Opened, Failure> {
        self.check_spelling()?;
        if !self.preparation.is_empty() {
            return Err(self.refused(
                "only logical volumes are made or snapshotted first, or have a baseline: name one as VG/LV",
            ));
        }
        let path = self.resolve()?;
        self.check_allowed(&path)?;
        self.check_forbidden(&path, at.forbidden)?;
        let volume = at.root.volume.clone();
        let metadata = match std::fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(why) if why.kind() == io::ErrorKind::NotFound => {
                let file = self.open_path(&path, OFlags::CREATE | OFlags::EXCL)?;
                self.hold_file(&file, &path, Before::Absent)?;
                return self.sized(Opened::new(file, path, volume, Before::Absent), at.root.size);
            }
            Err(why) => return Err(self.cannot_open(&why)),
        };
        self.check_source(&path, &metadata, at)?;
        let kind = metadata.file_type();
        if kind.is_file() {
            self.check_file(&path, &metadata)?;
            let file = self.open_path(&path, OFlags::empty())?;
            let before = self.claim_file(&file, &path)?;
            let opened = Opened::new(file, path, volume, before);
            return match (&self.range, before) {
                (Some(_), Before::Content) => {
                    self.size_for(&opened.file, at.root)?;
                    Ok(opened)
                }
                _ => self.sized(opened, at.root.size),
            };
        }
        if !kind.is_block_device() {
            return Err(self.refused("it is neither a regular file nor a block device"));
        }
        self.check_unmounted(&metadata)?;
        let file = self.open_device(&path, &metadata)?;
        self.check_device_size(&file, at.root)?;
        Ok(Opened::new(file, path, volume, Before::Content))
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

    /// Paths from elsewhere must say plainly where they lead.
    fn check_spelling(&self) -> Result<(), Failure> {
        let plain = |component| !matches!(component, Component::ParentDir);
        match self.allowed.is_none() || (self.path.is_absolute() && self.path.components().all(plain)) {
            true => Ok(()),
            false => Err(self.refused("an agent takes absolute paths without `..` only")),
        }
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

    fn check_allowed(&self, path: &Path) -> Result<(), Failure> {
        let Some(allowed) = &self.allowed else { return Ok(()) };
        let is_device = || std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device());
        let below = |folder: &PathBuf| {
            let named_device = folder.starts_with("/dev")
                && self.path.starts_with(folder)
                && path.starts_with("/dev")
                && is_device()
                && only_root_names(&self.path);
            named_device || folder.canonicalize().is_ok_and(|folder| path.starts_with(folder))
        };
        match allowed.iter().any(below) {
            true => Ok(()),
            false => Err(self.refused("it is not below a folder that this agent's configuration allows")),
        }
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
                    "it is the source {source} that the snapshot was taken of; force overwrites it, and so does a \
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
        self.hold_file(file, path, before)?;
        Ok(before)
    }

    fn hold_file(&self, file: &File, path: &Path, before: Before) -> Result<(), Failure> {
        self.claim.lock(file, path)?;
        if before != Before::Content {
            self.claim.begin(file, path);
        }
        self.claim.keep(file);
        Ok(())
    }

    fn check_file(&self, path: &Path, metadata: &Metadata) -> Result<Before, Failure> {
        let begun = metadata.len() > 0 && self.claim.has_begun(path);
        if metadata.len() > 0 && !self.force && !self.with_content && !begun {
            let why = format!("the file has content ({} bytes); force overwrites it", metadata.len());
            return Err(self.refused(why));
        }
        match mounts::loop_device(Path::new("/sys/block"), path, metadata) {
            Some(device) if !self.force => {
                let why = format!("the file is in use by {}; force overwrites it", device.display());
                Err(self.refused(why))
            }
            _ if metadata.len() == 0 => Ok(Before::Empty),
            _ if begun => Ok(Before::Begun),
            _ => Ok(Before::Content),
        }
    }

    fn check_unmounted(&self, metadata: &Metadata) -> Result<(), Failure> {
        let device = metadata.rdev();
        match mounts::mounted(major(device), minor(device)) {
            Some(mounted) if !self.force => {
                let why = format!("it is mounted on {}: unmount it (force overwrites it)", mounted.display());
                Err(self.refused(why))
            }
            _ => Ok(()),
        }
    }

    fn open_path(&self, path: &Path, flags: OFlags) -> Result<File, Failure> {
        open_exactly(path, flags).map_err(|why| self.cannot_open(&why.into()))
    }

    /// Exclusive opening fails while the device is mounted or held by device mapper, md or another restore. The lock
    /// tells other restores from the rest, and keeps them away where the device is in use by force; whoever has the
    /// device exclusively does not need it, and udev may have it for a moment.
    fn open_device(&self, path: &Path, metadata: &Metadata) -> Result<File, Failure> {
        match open_exactly(path, OFlags::EXCL) {
            Ok(file) => {
                if let Err(why) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
                    tracing::debug!(path = %path.display(), %why, "opened exclusively, without a lock");
                }
                Ok(file)
            }
            Err(Errno::BUSY) => {
                let file = self.open_path(path, OFlags::empty())?;
                self.claim.lock(&file, path)?;
                if self.force {
                    tracing::warn!(path = %path.display(), "overwriting a device that is in use, by force");
                    return Ok(file);
                }
                let user = mounts::holder(metadata.rdev());
                let user = user.unwrap_or_else(|| "mounted, or held by another device".to_owned());
                Err(self.refused(format!("the device is in use ({user})")))
            }
            Err(why) => Err(self.cannot_open(&why.into())),
        }
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

    fn check_device_size(&self, file: &File, root: &Root) -> Result<(), Failure> {
        let size = self.size_for(file, root)?;
        if size > root.size && self.range.is_none() && !self.force {
            let why = format!(
                "the device has {size} bytes, the snapshot of {} has only {}: what is stored behind its end would stay \
                 there; force restores all the same",
                root.volume, root.size
            );
            return Err(self.refused(why));
        }
        Ok(())
    }

    fn sized(&self, opened: Opened, size: u64) -> Result<Opened, Failure> {
        match opened.file.set_len(size) {
            Ok(()) => Ok(opened),
            Err(why) => {
                let why =
                    format!("cannot give {} the snapshot's size of {size} bytes: {why}", self.path.display());
                crate::sink::Sink::Target(opened).give_up();
                Err(Failure::new(FailureKind::Device, why))
            }
        }
    }
}

/// Whether a name fits a pattern in which `*` stands for anything but a slash.
fn fits(pattern: &str, name: &str) -> bool {
    let (patterns, names) = (pattern.split('/'), name.split('/'));
    patterns.clone().count() == names.clone().count()
        && patterns.zip(names).all(|(pattern, name)| part_fits(pattern, name))
}

fn part_fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => name.strip_prefix(before).is_some_and(|rest| {
            let mut rests = (0..=rest.len()).filter_map(|at| rest.get(at..));
            rests.any(|rest| part_fits(after, rest))
        }),
    }
}

/// Whether every folder above `path`, up to `/dev`, is one that only root changes (`/dev/shm` is not).
fn only_root_names(path: &Path) -> bool {
    let trusted = |folder: &Path| {
        let metadata = std::fs::symlink_metadata(folder);
        metadata.is_ok_and(|m| m.is_dir() && m.uid() == 0 && m.mode() & 0o022 == 0)
    };
    path.ancestors().skip(1).take_while(|folder| folder.starts_with("/dev")).all(trusted)
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
