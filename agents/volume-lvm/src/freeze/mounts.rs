//! What is mounted from a device, and whether it may be frozen.

use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where LVM writes while it takes a snapshot: freezing these waits for itself.
const NEEDED: [&str; 5] = ["/etc/lvm", "/run/lvm", "/run/lock", "/run/lvkeep", "/dev"];

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Where.
    pub point: PathBuf,
    /// Why it must not be frozen.
    pub why_not: Option<String>,
}

/// The file system that is mounted from this device, if any.
pub fn mounted(device: &str) -> Option<Mounted> {
    let found = std::fs::metadata(device).ok()?;
    let number = found.rdev();
    let mounts = std::fs::read("/proc/self/mountinfo").ok()?;
    let point = mount_point(&mounts, rustix::fs::major(number), rustix::fs::minor(number))?;
    let why_not = NEEDED.iter().find(|needed| is_on(Path::new(needed), number)).map(|needed| {
        format!("{needed} is on it, which LVM needs while it takes the snapshot (LVM freezes the file system itself)")
    });
    Some(Mounted { point, why_not })
}

fn is_on(path: &Path, device: u64) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.dev() == device)
}

/// The first mount point of a device in the text of `/proc/self/mountinfo` (proc(5)).
pub(super) fn mount_point(mounts: &[u8], major: u32, minor: u32) -> Option<PathBuf> {
    let number = format!("{major}:{minor}");
    mounts.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        (fields.nth(2)? == number.as_bytes()).then_some(())?;
        Some(PathBuf::from(std::ffi::OsString::from_vec(unescape(fields.nth(1)?))))
    })
}

/// Blanks, tabs, newlines and backslashes stand there as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        let octal = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| {
            digits.iter().try_fold(0u8, |value, digit| match digit {
                b'0'..=b'7' => value.checked_mul(8)?.checked_add(digit - b'0'),
                _ => None,
            })
        });
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}
