//! What keeps a target that several agents write to from being written to when its restore is over.
//!
//! The kernel decides, not a clock. Whoever writes holds a lock of the file or device. The owner shares its own lock
//! while others may join, and takes it back before the end: that waits for everybody, a hung process included. Sharing
//! a lock, and taking it back, is two steps for the kernel, and another restore may come in between. A device's owner
//! has it exclusively as well; a file carries a mark, which every other restore removes before its first change. Whoever
//! only looks whether a target is locked comes in between for a moment, too, which costs nobody the target.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use agent::Failure;
use rustix::fs::{FlockOperation, XattrFlags, fgetxattr, flock, fremovexattr, fsetxattr};
use rustix::io::Errno;
use schema::SessionId;
use schema::messages::{FailureKind, FileIdentity};

use crate::sink::Opened;
use crate::target::known_to_kernel;

/// The attribute that names the sharing.
const MARK: &str = "user.lvkeep.shared";
/// More bytes than a mark has.
const MARK_MAX: usize = 64;
/// How often it is tried to share a lock that somebody else has: who only looks has it for less.
const SHARE_TRIES: u32 = 64;
/// Tells one running kernel from another.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// A target whose lock is shared.
#[derive(Debug)]
pub(crate) struct Hold {
    file: File,
    path: PathBuf,
    /// None for a device, which is open exclusively.
    mark: Option<String>,
}

/// Why a target cannot be taken back.
#[derive(Debug)]
pub(crate) enum Taken {
    /// Somebody writes to it still.
    Shared,
    /// Another restore has it, or had it.
    Lost,
}

impl Hold {
    /// Shares the lock of a target; none where that cannot be done safely. Blocks.
    pub fn share(opened: &Opened, id: SessionId) -> Result<Option<Self>, Taken> {
        let Ok(file) = opened.file.try_clone() else { return Ok(None) };
        let is_file = file.metadata().is_ok_and(|found| found.is_file());
        if !is_file && !opened.is_alone {
            return Ok(None);
        }
        let mark = is_file.then(|| id.to_string());
        if let Some(mark) = &mark
            && let Err(why) = fsetxattr(&file, MARK, mark.as_bytes(), XattrFlags::empty())
        {
            tracing::debug!(path = %opened.path.display(), %why, "not shared: it cannot be marked");
            return Ok(None);
        }
        let hold = Self { file, path: opened.path.clone(), mark };
        match hold.shared(std::thread::yield_now) {
            Ok(()) if hold.is_marked() => Ok(Some(hold)),
            Ok(()) | Err(Errno::WOULDBLOCK) => Err(Taken::Lost),
            Err(_) => Ok(None),
        }
    }

    /// Has the shared lock, unless somebody else has the target, who then has it for longer than `wait` gives away.
    fn shared(&self, mut wait: impl FnMut()) -> Result<(), Errno> {
        let mut tries = 1;
        loop {
            match flock(&self.file, FlockOperation::NonBlockingLockShared) {
                Err(Errno::WOULDBLOCK) if tries < SHARE_TRIES && self.is_marked() => tries += 1,
                shared => return shared,
            }
            wait();
        }
    }

    fn is_marked(&self) -> bool {
        let Some(mark) = &self.mark else { return true };
        let mut found = [0; MARK_MAX];
        match fgetxattr(&self.file, MARK, &mut found) {
            Ok(len) => found.get(..len) == Some(mark.as_bytes()),
            Err(_) => false,
        }
    }

    /// Has the target for this restore alone again. Blocks for no longer than the file system does.
    pub fn take_back(&self) -> Result<(), Taken> {
        match flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if self.is_marked() => {
                unmark(&self.file);
                Ok(())
            }
            Ok(()) => Err(Taken::Lost),
            // The attempt may have cost the shared lock, and then somebody else may have it: by force, of a device.
            Err(_) => match self.shared(std::thread::yield_now) {
                Err(Errno::WOULDBLOCK) => Err(Taken::Lost),
                _ => Err(Taken::Shared),
            },
        }
    }

    /// The target.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Removes what an earlier restore has left, from a file that is locked exclusively: it finds out that way.
pub(crate) fn unmark(file: &File) {
    match fremovexattr(file, MARK) {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => {}
        Err(why) => tracing::warn!(%why, "the mark of a shared restore stays on its file"),
    }
}

/// Locks an opened target to write to it beside its restore, for as long as it is open.
pub(crate) fn join(file: &File, path: &Path) -> Result<(), Failure> {
    flock(file, FlockOperation::NonBlockingLockShared).map_err(|why| {
        let why = format!("cannot help to restore to {}: it cannot be locked ({why})", path.display());
        Failure::refused(why)
    })
}

/// Whether somebody has a lock of what stands at a path, and may write to it; also when this process lacks what it takes
/// to see that. Blocks.
pub(crate) fn is_locked(path: &Path) -> bool {
    let Ok(path) = path.canonicalize().map(known_to_kernel) else { return false };
    let kind = std::fs::metadata(&path).map(|found| found.file_type());
    if !kind.is_ok_and(|kind| kind.is_file() || kind.is_block_device()) {
        return false;
    }
    // For writing, since network file systems lock nothing else.
    match File::options().read(true).write(true).open(path) {
        Ok(file) => matches!(flock(&file, FlockOperation::NonBlockingLockExclusive), Err(Errno::WOULDBLOCK)),
        Err(why) => is_lack(&why),
    }
}

/// Whether a file could be opened if this machine had more to do it with.
fn is_lack(why: &std::io::Error) -> bool {
    matches!(Errno::from_io_error(why), Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
}

/// Which file or device node it is.
pub(crate) fn identity(file: &File, path: &Path) -> Result<FileIdentity, Failure> {
    let found = || {
        let (metadata, boot) = (file.metadata()?, std::fs::read_to_string(BOOT)?);
        let special = match metadata.file_type().is_block_device() {
            true => metadata.rdev(),
            false => 0,
        };
        let (device, inode) = (metadata.dev(), metadata.ino());
        Ok(FileIdentity { boot: boot.trim().to_owned(), device, inode, special })
    };
    found().map_err(|why: std::io::Error| {
        let why = format!("cannot tell which file {} is: {why}", path.display());
        Failure::new(FailureKind::Device, why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claim::Claim;
    use crate::sink::Before;

    fn opened(path: &Path) -> Opened {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
        Opened::new(file, path.to_owned(), "v".into(), Before::Content)
    }

    #[test]
    fn the_end_waits_for_everybody_and_nobody_joins_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("target");
        let owner = opened(&path);
        let claim = Claim::default();
        claim.lock(&owner.file, &path).unwrap();
        let helper = opened(&path).file;
        assert!(join(&helper, &path).is_err(), "it is not shared yet");
        let hold = Hold::share(&owner, SessionId::from_bytes([1; 16])).unwrap().unwrap();
        join(&helper, &path).unwrap();
        assert!(Claim::default().lock(&opened(&path).file, &path).is_err(), "no other restore");
        assert!(matches!(hold.take_back(), Err(Taken::Shared)));
        // A thread that hangs in a write keeps the file open.
        let writing = helper.try_clone().unwrap();
        drop(helper);
        assert!(matches!(hold.take_back(), Err(Taken::Shared)));
        drop(writing);
        hold.take_back().unwrap();
        assert!(join(&opened(&path).file, &path).is_err(), "it is over");
        assert_eq!(identity(&owner.file, &path).unwrap(), identity(&opened(&path).file, &path).unwrap());
    }

    #[test]
    fn a_restore_that_came_between_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("target");
        let owner = opened(&path);
        Claim::default().lock(&owner.file, &path).unwrap();
        let hold = Hold::share(&owner, SessionId::from_bytes([1; 16])).unwrap().unwrap();
        flock(&owner.file, FlockOperation::Unlock).unwrap();
        let other = opened(&path);
        Claim::default().lock(&other.file, &path).unwrap();
        assert!(matches!(hold.take_back(), Err(Taken::Lost)), "it has it");
        drop(other);
        assert!(matches!(hold.take_back(), Err(Taken::Lost)), "it had it");
    }

    /// An agent that waits for the target looks now and then whether it is still locked.
    #[test]
    fn who_only_looks_costs_nobody_the_target() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("target");
        let owner = opened(&path);
        let hold = Hold::share(&owner, SessionId::from_bytes([1; 16])).unwrap().unwrap();
        let device = Hold { file: opened(&path).file, path: path.clone(), mark: None };
        flock(&owner.file, FlockOperation::Unlock).unwrap();
        for hold in [&hold, &device] {
            let looking = opened(&path).file;
            flock(&looking, FlockOperation::NonBlockingLockExclusive).unwrap();
            let mut looking = Some(looking);
            hold.shared(|| drop(looking.take())).unwrap();
            assert!(looking.is_none());
            flock(&hold.file, FlockOperation::Unlock).unwrap();
        }
        let other = opened(&path).file;
        flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
        let mut waits = 0;
        assert_eq!(hold.shared(|| waits += 1), Err(Errno::WOULDBLOCK), "it stays");
        assert!(waits > 0);
        // Another restore.
        unmark(&other);
        assert_eq!(hold.shared(|| flock(&other, FlockOperation::Unlock).unwrap()), Err(Errno::WOULDBLOCK));
    }

    /// By force, a device may be restored to that is open exclusively.
    #[test]
    fn a_forced_restore_that_came_between_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("target");
        let owner = opened(&path);
        let hold = Hold { file: owner.file.try_clone().unwrap(), path: path.clone(), mark: None };
        let helper = opened(&path).file;
        join(&helper, &path).unwrap();
        assert!(matches!(hold.take_back(), Err(Taken::Shared)));
        assert!(is_locked(&path));
        drop(helper);
        flock(&owner.file, FlockOperation::Unlock).unwrap();
        assert!(!is_locked(&path) && !is_locked(folder.path()) && !is_locked(&folder.path().join("none")));
        let other = opened(&path);
        Claim::default().lock(&other.file, &path).unwrap();
        assert!(matches!(hold.take_back(), Err(Taken::Lost)));
        assert!(is_locked(&path));
    }

    /// A job must not be told to be over because an agent has no descriptor left to look.
    #[test]
    fn what_cannot_be_looked_at_for_want_of_descriptors_counts_as_locked() {
        for (errno, expected) in [
            (Errno::MFILE, true),
            (Errno::NFILE, true),
            (Errno::NOMEM, true),
            (Errno::NOENT, false),
            (Errno::ACCESS, false),
            (Errno::NXIO, false),
        ] {
            assert_eq!(is_lack(&errno.into()), expected, "{errno}");
        }
    }

    #[test]
    fn a_device_that_others_may_have_is_not_shared() {
        let node = File::open("/dev/null").unwrap();
        let opened = Opened::new(node, "/dev/null".into(), "v".into(), Before::Content);
        assert!(Hold::share(&opened, SessionId::from_bytes([1; 16])).unwrap().is_none());
    }
}
