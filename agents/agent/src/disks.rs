//! What shares its bytes with a file or a device: the same by another name, and the whole disk of a partition.
//!
//! A whole disk and its partitions are devices with numbers of their own, and are open and written to apart from each
//! other; the kernel says which belong together.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{major, makedev, minor};

/// Where the kernel lists block devices by number.
const NUMBERS: &str = "/sys/dev/block";

/// A file, or a block device with the disk that it is a part of and the partitions that it has.
#[derive(Debug, Clone)]
pub struct Overlap {
    file: (u64, u64),
    devices: BTreeSet<u64>,
}

impl Overlap {
    /// Of what `metadata` describes. Blocks.
    pub fn of(metadata: &Metadata) -> Self {
        let file = (metadata.dev(), metadata.ino());
        let devices = match metadata.file_type().is_block_device() {
            true => overlapping(Path::new(NUMBERS), metadata.rdev()),
            false => BTreeSet::new(),
        };
        Self { file, devices }
    }

    /// Whether `found` has at least some of the same bytes.
    pub fn has(&self, found: &Metadata) -> bool {
        let is_device = found.file_type().is_block_device() && self.devices.contains(&found.rdev());
        is_device || self.file == (found.dev(), found.ino())
    }

    /// Whether it is a device.
    pub fn is_device(&self) -> bool {
        !self.devices.is_empty()
    }
}

/// Whether both are of one device, or of one file.
pub fn is_same(a: &Metadata, b: &Metadata) -> bool {
    let devices = a.file_type().is_block_device() && b.file_type().is_block_device();
    (devices && a.rdev() == b.rdev()) || (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// The numbers of a device, of the disk that it is a partition of, and of its partitions, by what is listed in `numbers`.
fn overlapping(numbers: &Path, rdev: u64) -> BTreeSet<u64> {
    let mut devices = BTreeSet::from([rdev]);
    let Ok(device) = numbers.join(format!("{}:{}", major(rdev), minor(rdev))).canonicalize() else {
        return devices;
    };
    let is_partition = |device: &Path| device.join("partition").exists();
    match device.parent() {
        Some(disk) if is_partition(&device) => devices.extend(number(disk)),
        _ => {
            let below = fs::read_dir(&device).into_iter().flatten().flatten().map(|entry| entry.path());
            devices.extend(below.filter(|one| is_partition(one)).filter_map(|one| number(&one)));
        }
    }
    devices
}

/// The number of a device by its folder.
fn number(device: &Path) -> Option<u64> {
    let text = fs::read_to_string(device.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel has it: folders of disks with those of their partitions, and links by number.
    #[test]
    fn a_disk_shares_bytes_with_its_partitions_which_share_none() {
        let folder = tempfile::tempdir().unwrap();
        let numbers = folder.path().join("numbers");
        fs::create_dir(&numbers).unwrap();
        for (device, number, partition) in [
            ("sdb", "8:16", false),
            ("sdb/sdb1", "8:17", true),
            ("sdb/sdb2", "259:3", true),
            ("sdb/queue", "", false),
            ("sdc", "8:32", false),
            ("sdc/sdc1", "8:33", true),
        ] {
            let device = folder.path().join("devices").join(device);
            fs::create_dir_all(&device).unwrap();
            if partition {
                fs::write(device.join("partition"), "1\n").unwrap();
            }
            if !number.is_empty() {
                fs::write(device.join("dev"), format!("{number}\n")).unwrap();
                std::os::unix::fs::symlink(&device, numbers.join(number)).unwrap();
            }
        }
        let (disk, first, second) = (makedev(8, 16), makedev(8, 17), makedev(259, 3));
        for (device, expected) in [
            (disk, vec![disk, first, second]),
            (first, vec![disk, first]),
            (second, vec![disk, second]),
            (makedev(8, 33), vec![makedev(8, 32), makedev(8, 33)]),
            (makedev(9, 0), vec![makedev(9, 0)]),
        ] {
            assert_eq!(overlapping(&numbers, device), expected.into_iter().collect(), "{device:x}");
        }
    }
}
