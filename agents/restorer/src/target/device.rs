//! Opens block devices, exclusively where that is possible.
//!
//! Locks belong to a device's node and not to the device, and a device may have several nodes. So it is opened by the
//! one that the kernel itself names, whatever name was given: what one agent has locked there, every other one finds
//! locked.

use std::fs::{File, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use agent::users::{self, Writer};
use agent::{Failure, mounts};
use rustix::fs::{FlockOperation, OFlags, flock, major, minor};
use rustix::io::Errno;
use schema::root::Root;

use super::{Circumstances, Target, open_exactly};
use crate::sink::{Before, Opened};

/// Where processes are listed.
const PROC: &str = "/proc";

impl Target {
    /// Whether what is to be put back would come where it was: a name may mean something else by now.
    pub(super) fn check_same(&self, path: &Path, metadata: &Metadata) -> Result<(), Failure> {
        if !self.put_back || self.force || self.is_named_by_mapper() {
            return Ok(());
        }
        let why = match (path != self.path, metadata.file_type().is_block_device()) {
            (true, _) => "it is a link by now, and was none; --force overwrites what it leads to",
            (false, true) if !self.is_same_device => {
                "a device may have another name by now: look what this one is; --same-device says that it is the same"
            }
            (false, _) => return Ok(()),
        };
        let path = self.path.display();
        Err(Failure::refused(format!("cannot put back what stood on {path}: {why}")))
    }

    /// Opens the device of a place. One that is larger than the snapshot will be empty behind its end. Blocks.
    pub(crate) fn open_place(&self, device: &Path, at: &Circumstances<'_>) -> Result<Opened, Failure> {
        let path = known_to_kernel(device.canonicalize().map_err(|why| self.cannot_open(&why))?);
        let metadata = std::fs::symlink_metadata(&path).map_err(|why| self.cannot_open(&why))?;
        // Whoever keeps what is there may lose it.
        if self.preparation.safety.is_none() {
            self.check_source(&path, &metadata, at)?;
        }
        self.check_unmounted(&path, &metadata)?;
        let (file, is_alone) = self.open_device(&path, &metadata)?;
        let size = self.size_for(&file, at.root)?;
        let mut opened = Opened::new(file, path, at.root.volume.clone(), Before::Content);
        opened.is_alone = is_alone;
        if self.range.is_none() {
            opened.behind = at.root.size..size;
        }
        Ok(opened)
    }

    pub(super) fn check_unmounted(&self, path: &Path, metadata: &Metadata) -> Result<(), Failure> {
        let device = metadata.rdev();
        match mounts::mounted(major(device), minor(device)) {
            Some(mounted) if !self.in_use => {
                let why = format!(
                    "it is mounted on {}: unmount it ({})",
                    mounted.display(),
                    self.in_use_all_the_same()
                );
                Err(self.refused(why))
            }
            _ => self.check_backs_none("device", path, metadata),
        }
    }

    /// Whether a loop device is made of it, which may be mounted, and claims nothing.
    pub(super) fn check_backs_none(
        &self,
        what: &str,
        path: &Path,
        metadata: &Metadata,
    ) -> Result<(), Failure> {
        match mounts::loop_device(Path::new("/sys/block"), path, metadata) {
            Some(device) if !self.in_use => {
                let (device, way) = (device.display(), self.in_use_all_the_same());
                Err(self.refused(format!("the {what} is in use by {device}: detach it first ({way})")))
            }
            _ => Ok(()),
        }
    }

    /// Exclusive opening fails while the device is mounted or held by device mapper, md or another restore; the second
    /// value says that it did not. The lock tells other restores from the rest, keeps them away where a device that is in
    /// use is overwritten as asked, and is held by whoever helped a restore that died. Udev may have it for a moment.
    /// Neither keeps a process away that merely opens what is held since it was kept for an undo: that is asked again.
    pub(crate) fn open_device(&self, path: &Path, metadata: &Metadata) -> Result<(File, bool), Failure> {
        if let Some(held) = self.claim.held(metadata) {
            self.check_unused("device", path, metadata)?;
            return Ok(held);
        }
        match open_exactly(path, OFlags::EXCL) {
            Ok(file) => {
                self.lock_alone(&file, path)?;
                self.check_unused("device", path, metadata)?;
                self.claim.keep(&file, true);
                Ok((file, true))
            }
            Err(Errno::BUSY) => {
                let file = self.open_path(path, OFlags::empty())?;
                self.claim.lock(&file, path)?;
                if self.in_use {
                    self.claim.keep(&file, false);
                    tracing::warn!(path = %path.display(), "overwriting a device that is in use, as asked");
                    return Ok((file, false));
                }
                let writer = || match users::writer(Path::new(PROC), path, metadata) {
                    Writer::One(user) => Some(user),
                    Writer::Nobody | Writer::Unknown(_) => None,
                };
                let user = mounts::holder(metadata.rdev()).or_else(writer);
                let user = user.unwrap_or_else(|| "mounted, or held by another device".to_owned());
                let why =
                    format!("the device is in use ({user}): free it first ({})", self.in_use_all_the_same());
                Err(self.refused(why))
            }
            Err(why) => Err(self.cannot_open(&why.into())),
        }
    }

    /// Whether another process has a target open to write to it, which neither its lock nor exclusive opening tells. Asked
    /// once it is locked: whoever helped a restore that died has let go by then.
    pub(super) fn check_unused(&self, what: &str, path: &Path, metadata: &Metadata) -> Result<(), Failure> {
        if self.in_use {
            return Ok(());
        }
        match users::writer(Path::new(PROC), path, metadata) {
            Writer::Nobody => {}
            Writer::One(user) => {
                let way = self.in_use_all_the_same();
                return Err(self.refused(format!("the {what} is in use ({user}): stop it first ({way})")));
            }
            Writer::Unknown(count) => {
                if let Some(note) = users::unseen(Path::new(PROC), path, metadata, count) {
                    self.claim.note(note);
                }
            }
        }
        Ok(())
    }

    /// What overwrites it although somebody uses it.
    pub(super) fn in_use_all_the_same(&self) -> String {
        format!("--force-in-use {} overwrites it all the same", self.path.display())
    }

    /// Locks a device that is open exclusively. A job that finds it locked comes again; others wait for it.
    fn lock_alone(&self, file: &File, path: &Path) -> Result<(), Failure> {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(()),
            Err(Errno::WOULDBLOCK) if self.claim.is_of_job() => Err(self.claim.busy(path)),
            Err(Errno::WOULDBLOCK) => Err(self.claim.must_wait(path)),
            Err(why) => {
                tracing::debug!(path = %path.display(), %why, "opened exclusively, without a lock");
                Ok(())
            }
        }
    }

    pub(super) fn check_device_size(&self, file: &File, root: &Root) -> Result<(), Failure> {
        let size = self.size_for(file, root)?;
        if size > root.size && self.range.is_none() && !self.force {
            let why = format!(
                "the device has {size} bytes, the snapshot of {} has only {}: what is stored behind its end would stay \
                 there; --force restores all the same",
                root.volume, root.size
            );
            return Err(self.refused(why));
        }
        Ok(())
    }
}

/// The node that the kernel has made for a device; the path as it is where there is none, or for anything else. Blocks.
pub(crate) fn known_to_kernel(path: PathBuf) -> PathBuf {
    let device = |path: &Path| {
        let found = std::fs::symlink_metadata(path).ok()?;
        found.file_type().is_block_device().then(|| found.rdev())
    };
    let Some(number) = device(&path) else { return path };
    let about = format!("/sys/dev/block/{}:{}/uevent", major(number), minor(number));
    let about = std::fs::read_to_string(about).unwrap_or_default();
    let name = about.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let node = name.map(|name| Path::new("/dev").join(name));
    node.filter(|node| device(node) == Some(number)).unwrap_or(path)
}
