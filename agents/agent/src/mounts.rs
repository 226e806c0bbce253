//! Says what uses a device or a file: mounts and loop devices, from the kernel's own tables.
//!
//! Opening a device exclusively already fails while it is mounted or held by device mapper or md; this finds the
//! name of the user, and what exclusive opening does not see: a file or device behind a loop device, which claims
//! nothing, not even for a file system that is mounted from it.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};

use crate::disks::Overlap;

/// File systems that wait for nobody else.
const LOCAL: [&str; 9] = ["bcachefs", "btrfs", "devtmpfs", "ext2", "ext3", "ext4", "overlay", "tmpfs", "xfs"];

/// Where the device `major:minor` is mounted, by the text of `/proc/self/mountinfo`.
pub fn mount_point(mountinfo: &str, major: u32, minor: u32) -> Option<PathBuf> {
    let device = format!("{major}:{minor}");
    mountinfo.lines().find_map(|line| {
        let mut fields = line.split(' ');
        (fields.nth(2)? == device).then(|| fields.nth(1).map(unescape))?
    })
}

/// Mount points carry blanks, tabs, line ends and backslashes as three octal digits.
fn unescape(field: &str) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

/// Where a block device is mounted now.
pub fn mounted(major: u32, minor: u32) -> Option<PathBuf> {
    mount_point(&fs::read_to_string("/proc/self/mountinfo").ok()?, major, minor)
}

/// What holds the block device `rdev` besides a mount: swap, or the devices that were made of it.
pub fn holder(rdev: u64) -> Option<String> {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let is_it = |path: &str| fs::metadata(path).is_ok_and(|found| found.rdev() == rdev);
    if swapped(&swaps, is_it) {
        return Some("the kernel swaps to it".to_owned());
    }
    let folder = format!("/sys/dev/block/{}:{}/holders", major(rdev), minor(rdev));
    holders(Path::new(&folder))
}

/// Whether a device is among those of the text of `/proc/swaps`.
fn swapped(swaps: &str, is_it: impl Fn(&str) -> bool) -> bool {
    swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).any(is_it)
}

/// The devices in a folder of holders, by the names that device mapper has for them.
fn holders(folder: &Path) -> Option<String> {
    let name = |entry: fs::DirEntry| match fs::read_to_string(entry.path().join("dm/name")) {
        Ok(name) => name.trim().to_owned(),
        Err(_) => entry.file_name().to_string_lossy().into_owned(),
    };
    let mut names: Vec<String> = fs::read_dir(folder).ok()?.flatten().map(name).collect();
    names.sort();
    (!names.is_empty()).then(|| format!("{} is made of it", names.join(", ")))
}

/// Whether the mount of this number is of a file system on this machine, a look at which does not hang, by the text of
/// `/proc/PID/mountinfo`.
pub fn is_local(mountinfo: &str, number: &str) -> bool {
    let line = mountinfo.lines().find(|line| line.split(' ').next() == Some(number));
    let kind = line.and_then(|line| line.split_once(" - ")).and_then(|(_, rest)| rest.split(' ').next());
    kind.is_some_and(|kind| LOCAL.contains(&kind))
}

/// The loop device that a file or block device backs, at least in part, with loop devices listed below `block`
/// (`/sys/block`).
pub fn loop_device(block: &Path, path: &Path, metadata: &fs::Metadata) -> Option<PathBuf> {
    let overlap = Overlap::of(metadata);
    for entry in fs::read_dir(block).ok()?.flatten() {
        let name = entry.file_name();
        if !name.to_string_lossy().starts_with("loop") {
            continue;
        }
        let Ok(backing) = fs::read(entry.path().join("loop/backing_file")) else { continue };
        let backing = PathBuf::from(std::ffi::OsString::from_vec(backing.trim_ascii_end().to_vec()));
        // A look at what lies elsewhere hangs on some file systems, and is of no use for a device.
        let may_be = || !overlap.is_device() || backing.starts_with("/dev");
        if backing == path || may_be() && fs::metadata(&backing).is_ok_and(|found| overlap.has(&found)) {
            return Some(Path::new("/dev").join(name));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
22 1 253:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
36 22 7:1 / /mnt/with\\040blank rw,noatime master:1 - ext3 /dev/loop1 rw,errors=continue
37 22 0:24 / /sys rw shared:7 - sysfs sysfs rw
broken
";

    #[test]
    fn a_mounted_device_is_found_by_its_numbers() {
        for (major, minor, expected) in [
            (253, 0, Some("/")),
            (7, 1, Some("/mnt/with blank")),
            (7, 11, None),
            (25, 0, None),
            (0, 24, Some("/sys")),
        ] {
            assert_eq!(
                mount_point(MOUNTINFO, major, minor),
                expected.map(PathBuf::from),
                "{major}:{minor} in a fixed mountinfo"
            );
        }
    }

    #[test]
    fn what_a_look_may_hang_on_is_known_by_the_mount() {
        let nfs = "40 22 0:50 / /far rw shared:9 - nfs4 server:/images rw\n";
        let mounts = format!("{MOUNTINFO}{nfs}");
        for (number, expected) in [("22", true), ("36", true), ("37", false), ("40", false), ("4", false)] {
            assert_eq!(is_local(&mounts, number), expected, "{number}");
        }
    }

    #[test]
    fn who_else_has_a_device_is_said() {
        let swaps = "Filename\tType\tSize\n/dev/dm-1 partition 8388604 0 -2\n/swap\\040file file 1 0 -3\n";
        for (path, expected) in [("/dev/dm-1", true), ("Filename", false), ("/dev/dm-2", false)] {
            assert_eq!(swapped(swaps, |found| found == path), expected, "{path}");
        }
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(holders(folder.path()), None);
        fs::create_dir(folder.path().join("md0")).unwrap();
        fs::create_dir_all(folder.path().join("dm-3/dm")).unwrap();
        fs::write(folder.path().join("dm-3/dm/name"), "vg0-crypt\n").unwrap();
        assert_eq!(holders(folder.path()).unwrap(), "md0, vg0-crypt is made of it");
    }

    #[test]
    fn a_file_behind_a_loop_device_is_found_by_path_and_by_inode() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("disk.img");
        fs::write(&image, b"x").unwrap();
        let link = folder.path().join("other-name.img");
        fs::hard_link(&image, &link).unwrap();
        let free = folder.path().join("free.img");
        fs::write(&free, b"x").unwrap();
        let block = folder.path().join("block");
        for (name, backing) in [("loop3", Some(&image)), ("loop4", None), ("vda", Some(&free))] {
            fs::create_dir_all(block.join(name).join("loop")).unwrap();
            if let Some(backing) = backing {
                let text = format!("{}\n", backing.display());
                fs::write(block.join(name).join("loop/backing_file"), text).unwrap();
            }
        }
        let found = |file: &Path| loop_device(&block, file, &fs::metadata(file).unwrap());
        assert_eq!(found(&image), Some(PathBuf::from("/dev/loop3")));
        assert_eq!(found(&link), Some(PathBuf::from("/dev/loop3")), "a hard link is the same file");
        assert_eq!(found(&free), None, "only loop devices count");
    }
}
