//! Loop devices and file systems mounted from them, where this machine has them.
//!
//! Root with loop devices must get them: there, a failure is one. Elsewhere it is said what could not be shown.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::tools::program;

/// A block device over a file; detached with this value.
#[derive(Debug)]
pub struct LoopDevice(String);

impl LoopDevice {
    /// Attaches; none where this machine has no loop devices for us, which is said.
    pub fn over(file: impl AsRef<Path>) -> Option<Self> {
        if !must_attach() {
            println!("THIS MACHINE HAS NO LOOP DEVICES FOR US: they need root and /dev/loop-control");
            return None;
        }
        let attached = ran(Command::new(program("flock"))
            .arg("/dev/loop-control")
            .arg(program("losetup"))
            .args(["-f", "--show"])
            .arg(file.as_ref()));
        assert!(attached.status.success(), "no loop device: {}", String::from_utf8_lossy(&attached.stderr));
        Some(Self(String::from_utf8_lossy(&attached.stdout).trim().to_owned()))
    }

    /// The device.
    pub fn path(&self) -> &str {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let done = Command::new(program("losetup")).arg("-d").arg(&self.0).status();
        assert!(done.is_ok_and(|status| status.success()), "{} stays attached", self.0);
    }
}

/// A mounted file system; unmounted with this value.
#[derive(Debug)]
pub struct Mounted(PathBuf);

impl Mounted {
    /// Mounts an image or device; none where this machine cannot, which is said. Root on a machine with loop devices and
    /// with this kind of file system can.
    pub fn new(
        source: impl AsRef<Path>,
        kind: &str,
        options: &str,
        folder: impl AsRef<Path>,
    ) -> Option<Self> {
        let (source, folder) = (source.as_ref(), folder.as_ref());
        let mounted =
            ran(Command::new(program("mount")).args(["-t", kind, "-o", options]).arg(source).arg(folder));
        if mounted.status.success() {
            return Some(Self(folder.to_owned()));
        }
        let why = String::from_utf8_lossy(&mounted.stderr);
        assert!(!must_mount(kind), "{} is not mounted as {kind}: {why}", source.display());
        println!("THIS MACHINE CANNOT MOUNT {} ({})", kind.to_uppercase(), why.trim());
        None
    }

    /// Where it is mounted.
    pub fn folder(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let done = Command::new(program("umount")).arg(&self.0).status();
        assert!(done.is_ok_and(|status| status.success()), "{} stays mounted", self.0.display());
    }
}

/// Root where there are loop devices.
fn must_attach() -> bool {
    let control = std::fs::File::options().read(true).write(true).open("/dev/loop-control");
    rustix::process::geteuid().is_root() && control.is_ok()
}

/// The same where the kernel has this kind of file system.
fn must_mount(kind: &str) -> bool {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    must_attach() && known.lines().any(|line| line.split_whitespace().last() == Some(kind))
}

fn ran(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|why| panic!("cannot start {command:?}: {why}"))
}
