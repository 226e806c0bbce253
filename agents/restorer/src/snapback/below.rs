//! Whether a snapback would lie on the very target that it is to save: on a file system on that device, or on a device
//! that is made of it, however many lie in between. What cannot be told is allowed: a target that is mounted or part of
//! another device is refused anyway, unless by force.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};

/// Devices below each other at most.
const DEPTH_MAX: usize = 16;

/// Why `path` is no place to keep what stands on `target`.
pub(super) fn check(path: &Path, target: &File, forbidden: &[PathBuf]) -> Result<(), String> {
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    let folder = folder
        .canonicalize()
        .map_err(|why| format!("its folder {} cannot be used ({why}): create it first", folder.display()))?;
    let inside = |one: &&PathBuf| one.canonicalize().is_ok_and(|one| folder.starts_with(one));
    if let Some(repository) = forbidden.iter().find(inside) {
        return Err(format!("it is inside the repository {}", repository.display()));
    }
    let found = fs::metadata(&folder).and_then(|folder| Ok((folder.dev(), target.metadata()?)));
    let (device, target) = found.map_err(|why| why.to_string())?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let kernel = Kernel { devices: Path::new("/sys/dev/block"), mounts: &mounts };
    match kernel.rests_on(device, &target, DEPTH_MAX) {
        true => Err("it would lie on the target, which is overwritten".to_owned()),
        false => Ok(()),
    }
}

/// What the kernel says of devices.
struct Kernel<'a> {
    /// `/sys/dev/block`.
    devices: &'a Path,
    /// The text of `/proc/self/mountinfo`.
    mounts: &'a str,
}

impl Kernel<'_> {
    /// Whether what has this device number is made of the target.
    fn rests_on(&self, device: u64, target: &Metadata, depth: usize) -> bool {
        if target.file_type().is_block_device() && target.rdev() == device {
            return true;
        }
        let Some(depth) = depth.checked_sub(1) else { return false };
        if major(device) == 0 {
            return self.source(device).is_some_and(|below| self.rests_on(below, target, depth));
        }
        let folder = self.devices.join(numbers(device));
        if let Some(file) = backing(&folder) {
            let is_it = target.is_file() && (file.dev(), file.ino()) == (target.dev(), target.ino());
            return is_it || self.rests_on(file.dev(), target, depth);
        }
        let below = below(&folder);
        below.into_iter().any(|device| self.rests_on(device, target, depth))
    }

    /// The device of a file system that has a number of its own, as btrfs does.
    fn source(&self, device: u64) -> Option<u64> {
        let number = numbers(device);
        let line = self.mounts.lines().find(|line| line.split(' ').nth(2) == Some(&number))?;
        let (_, behind) = line.split_once(" - ")?;
        let source = fs::metadata(behind.split(' ').nth(1)?).ok()?;
        source.file_type().is_block_device().then(|| source.rdev())
    }
}

fn numbers(device: u64) -> String {
    format!("{}:{}", major(device), minor(device))
}

/// The file behind a loop device.
fn backing(folder: &Path) -> Option<Metadata> {
    let path = fs::read_to_string(folder.join("loop/backing_file")).ok()?;
    fs::metadata(path.trim_end_matches('\n')).ok()
}

/// What a device is made of: its slaves, and the disk that a partition is on.
fn below(folder: &Path) -> Vec<u64> {
    let slaves = fs::read_dir(folder.join("slaves")).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = slaves.map(|slave| slave.path().join("dev")).collect();
    if folder.join("partition").exists() {
        // The folder is a link: its parent is the disk's.
        files.extend(folder.canonicalize().ok().and_then(|real| Some(real.parent()?.join("dev"))));
    }
    files.iter().filter_map(|file| parse(&fs::read_to_string(file).ok()?)).collect()
}

fn parse(text: &str) -> Option<u64> {
    let (major, minor) = text.trim().split_once(':')?;
    Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use rustix::fs::makedev;

    use super::*;

    #[test]
    fn a_file_system_on_a_target_is_found_through_what_lies_between() {
        let folder = tempfile::tempdir().unwrap();
        let (image, other) = (folder.path().join("image"), folder.path().join("other"));
        fs::write(&image, "x").unwrap();
        fs::write(&other, "x").unwrap();
        let devices = folder.path().join("devices");
        let write = |path: &str, text: &str| {
            let path = devices.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        // A mapping over a partition of a loop device.
        write("253:7/slaves/loop3p1/dev", "259:4\n");
        write("disk/loop3/dev", "7:3\n");
        write("disk/loop3/loop3p1/partition", "1\n");
        std::os::unix::fs::symlink(devices.join("disk/loop3/loop3p1"), devices.join("259:4")).unwrap();
        write("7:3/loop/backing_file", &format!("{}\n", image.display()));
        // One that is made of itself, which no kernel has.
        write("253:8/slaves/x/dev", "253:8\n");
        let kernel = Kernel { devices: &devices, mounts: "" };
        let rests = |device, on: &Path| kernel.rests_on(device, &fs::metadata(on).unwrap(), DEPTH_MAX);
        assert!(rests(makedev(253, 7), &image));
        assert!(!rests(makedev(253, 7), &other));
        assert!(!rests(makedev(253, 8), &image));
        assert!(!rests(makedev(0, 33), &image));
    }

    #[test]
    fn a_snapback_is_not_kept_in_the_repository_nor_where_there_is_no_folder() {
        let folder = tempfile::tempdir().unwrap();
        let target = File::create(folder.path().join("target")).unwrap();
        let at = |name: &str| folder.path().join(name);
        check(&at("file"), &target, &[]).unwrap();
        assert!(check(&at("file"), &target, &[folder.path().into()]).unwrap_err().contains("the repository"));
        assert!(check(&at("none/file"), &target, &[]).unwrap_err().contains("create it first"));
    }
}
