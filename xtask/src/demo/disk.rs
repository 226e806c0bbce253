//! The demonstration's disk: an ext4 file system in an image, made and changed without being root.
//!
//! Every command is shown before it runs, as a person would type it inside the demonstration's folder.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::content;
use crate::run;
use crate::tools::system_program;

/// The image's name inside the folder.
pub const IMAGE: &str = "disk.img";
const IMAGE_BYTES: u64 = 256 << 20;

/// The tools for ext4, and the folder with the image.
pub struct Disk {
    folder: PathBuf,
    mke2fs: PathBuf,
    e2fsck: PathBuf,
    debugfs: PathBuf,
}

impl Disk {
    /// Finds the tools; nothing is made yet.
    pub fn new(folder: &Path) -> Result<Self> {
        Ok(Self {
            folder: folder.to_owned(),
            mke2fs: system_program("mke2fs", "e2fsprogs")?,
            e2fsck: system_program("e2fsck", "e2fsprogs")?,
            debugfs: system_program("debugfs", "e2fsprogs")?,
        })
    }

    /// Makes the file system with files in it.
    pub fn make(&self) -> Result<()> {
        content::tree(&self.folder.join("tree"))?;
        File::create(self.folder.join(IMAGE))?.set_len(IMAGE_BYTES)?;
        self.say(Command::new(&self.mke2fs).args(["-q", "-t", "ext4", "-b", "4096", "-d", "tree", IMAGE]))
    }

    /// Removes, rewrites and adds files.
    pub fn change(&self) -> Result<()> {
        fs::write(self.folder.join("changes"), content::changes(&self.folder)?)?;
        self.say(Command::new(&self.debugfs).args(["-w", "-f", "changes", IMAGE]))
    }

    /// Fails unless an image holds a sound file system.
    pub fn check(&self, image: &str) -> Result<()> {
        self.say(Command::new(&self.e2fsck).args(["-fn", image]))
    }

    /// Shows a command, then runs it in the folder.
    pub fn say(&self, command: &mut Command) -> Result<()> {
        run::show(command);
        run::run(command.current_dir(&self.folder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_stays_sound_and_changes() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::new(folder.path()).unwrap();
        disk.make().unwrap();
        disk.check(IMAGE).unwrap();
        let before = fs::read(folder.path().join(IMAGE)).unwrap();
        disk.change().unwrap();
        disk.check(IMAGE).unwrap();
        let after = fs::read(folder.path().join(IMAGE)).unwrap();
        let blocks = before.chunks(4096).zip(after.chunks(4096));
        assert!(blocks.filter(|(a, b)| a != b).count() > 100, "the changes did not reach the image");
        let printed =
            Command::new(&disk.debugfs).args(["-R", "ls -p /new"]).arg(folder.path().join(IMAGE)).output();
        assert!(String::from_utf8_lossy(&printed.unwrap().stdout).contains("new.bin"));
    }
}
