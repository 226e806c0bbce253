//! File systems on volumes, mounted, with files that come, grow, change and go.

use std::fs;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use super::command::{run, succeeds};

/// A kind of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// ext4, with a journal.
    Ext4,
    /// xfs.
    Xfs,
}

/// A mounted file system; it is unmounted with this value.
#[derive(Debug)]
pub struct Mounted {
    device: String,
    folder: PathBuf,
    generator: StdRng,
    files: u64,
}

impl FileSystem {
    /// Makes the file system on a device.
    pub fn make(self, device: &str) {
        match self {
            FileSystem::Ext4 => run("mkfs.ext4", &["-q", "-F", device]),
            FileSystem::Xfs => run("mkfs.xfs", &["-q", "-f", device]),
        };
    }

    /// The file system on `device`, or in an image, must be whole; it must not be mounted. Its journal is replayed first.
    #[track_caller]
    pub fn check(self, device: &str) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().to_str().expect("a path in UTF-8");
        let options = match self {
            FileSystem::Ext4 => "rw",
            // Two file systems of one identity may be mounted: the origin's and the copy's.
            FileSystem::Xfs => "rw,nouuid",
        };
        run("mount", &["-o", options, device, path]);
        run("umount", &[path]);
        match self {
            FileSystem::Ext4 => run("e2fsck", &["-f", "-n", device]),
            FileSystem::Xfs => run("xfs_repair", &["-n", device]),
        };
    }
}

impl Mounted {
    /// Mounts a device.
    pub fn new(device: &str, seed: u64) -> Self {
        let folder = Path::new("/mnt").join(device.trim_start_matches("/dev/").replace('/', "-"));
        fs::create_dir_all(&folder).expect("a folder to mount at");
        run("mount", &[device, folder.to_str().expect("a path in UTF-8")]);
        Self { device: device.to_owned(), folder, generator: StdRng::seed_from_u64(seed), files: 0 }
    }

    /// Where it is mounted.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes `count` files of up to `largest` bytes.
    pub fn create(&mut self, count: u64, largest: usize) {
        for _ in 0..count {
            let mut bytes = vec![0; self.generator.random_range(0..=largest)];
            match self.generator.random() {
                true => self.generator.fill_bytes(&mut bytes),
                false => bytes.fill(b'x'),
            }
            fs::write(self.file(self.files), bytes).expect("a file is written");
            self.files += 1;
        }
    }

    /// A bout of what happens on a file system: files appended to, overwritten, renamed, removed, made; then written
    /// through. Discards what became free when `trims`.
    pub fn activity(&mut self, count: u64, trims: bool) {
        for _ in 0..count {
            let number = self.generator.random_range(0..self.files.max(1));
            let path = self.file(number);
            match self.generator.random_range(0..5) {
                0 => self.create(1, 300_000),
                1 => drop(fs::remove_file(&path)),
                2 => drop(fs::rename(&path, self.folder.join(format!("renamed-{}", self.files)))),
                3 => {
                    let mut bytes = vec![0; 20_000];
                    self.generator.fill_bytes(&mut bytes);
                    fs::write(&path, bytes).expect("a file is written");
                }
                _ => {
                    use std::io::Write;
                    let mut file =
                        fs::OpenOptions::new().append(true).create(true).open(&path).expect("a file");
                    let mut bytes = vec![0; self.generator.random_range(1..50_000)];
                    self.generator.fill_bytes(&mut bytes);
                    file.write_all(&bytes).expect("a file grows");
                }
            }
        }
        self.sync();
        if trims {
            run("fstrim", &[self.path()]);
        }
    }

    /// Everything that was written reaches the device.
    pub fn sync(&self) {
        run("sync", &["-f", self.path()]);
    }

    fn file(&self, number: u64) -> PathBuf {
        self.folder.join(format!("file-{number}"))
    }

    fn path(&self) -> &str {
        self.folder.to_str().expect("a path in UTF-8")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let is_unmounted = succeeds("umount", &[self.path()]);
        assert!(is_unmounted || std::thread::panicking(), "{} stays mounted", self.device);
    }
}
