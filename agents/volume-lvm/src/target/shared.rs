//! A logical volume that another agent of this host has made and readied, for whoever helps to restore to it.
//!
//! What matters about it comes from that agent, which has asked the kernel: nothing is asked of LVM here, and nothing
//! is changed but ranges of the volume.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use agent::{Ending, Failure, Place, Stop};
use async_trait::async_trait;
use schema::messages::{SharedPlace, Zeroing};

use super::device::Device;
use super::zeroing::{self, Kind};
use crate::dm::DmName;

/// A volume that is written to beside its restore.
#[derive(Debug)]
pub(crate) struct SharedVolume {
    place: SharedPlace,
    kind: Kind,
}

impl SharedVolume {
    /// The volume, when `path` is its device.
    pub fn find(place: &SharedPlace, path: &Path) -> Option<Self> {
        let (vg, lv) = place.name.split_once('/')?;
        let device = Path::new("/dev/mapper").join(DmName::of(vg, lv).as_str());
        // A device may have several nodes.
        let number = |path: &Path| {
            let found = std::fs::metadata(path).ok()?;
            found.file_type().is_block_device().then(|| found.rdev())
        };
        (number(path)? == number(&device)?).then(|| Self { place: place.clone(), kind: place.zeroing.into() })
    }

    fn refused(&self) -> Failure {
        let name = &self.place.name;
        Failure::refused(format!(
            "{name} belongs to the restore of another agent, which alone makes it ready"
        ))
    }
}

#[async_trait]
impl Place for SharedVolume {
    fn name(&self) -> &str {
        &self.place.name
    }

    async fn make(&self) -> Result<PathBuf, Failure> {
        Err(self.refused())
    }

    async fn ready(&self, _: &File) -> Result<(), Failure> {
        Err(self.refused())
    }

    fn keeps_equal(&self) -> bool {
        self.kind.keeps_equal()
    }

    fn compares_zeroes(&self) -> bool {
        matches!(self.kind, Kind::Thick { .. })
    }

    fn shared(&self) -> Option<SharedPlace> {
        None
    }

    fn zero(&self, device: &File, range: Range<u64>, halt: &Stop) -> io::Result<()> {
        zeroing::run(&Device(device), &self.kind.steps(range, self.place.size), halt)
    }

    async fn end(&self, _: Ending) -> Vec<String> {
        Vec::new()
    }
}

impl From<Kind> for Zeroing {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Thick { watched } => Self::Thick { watched },
            Kind::Thin { block, zeroes, discards, external_origin } => {
                Self::Thin { block, zeroes, discards, external_origin }
            }
        }
    }
}

impl From<Zeroing> for Kind {
    fn from(zeroing: Zeroing) -> Self {
        match zeroing {
            Zeroing::Thick { watched } => Self::Thick { watched },
            Zeroing::Thin { block, zeroes, discards, external_origin } => {
                Self::Thin { block, zeroes, discards, external_origin }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_helps_makes_zeroes_as_the_owner_does() {
        let thin = |zeroes, discards| Kind::Thin { block: 64 << 10, zeroes, discards, external_origin: true };
        let thick = |watched| Kind::Thick { watched };
        for kind in [thick(false), thick(true), thin(true, false), thin(false, true)] {
            assert_eq!(Kind::from(Zeroing::from(kind)), kind);
        }
    }

    #[test]
    fn only_its_own_device_is_taken_for_a_volume() {
        let zeroing = Zeroing::Thick { watched: false };
        let place = |name: &str| SharedPlace { name: name.into(), size: 1 << 20, zeroing };
        for name in ["no-such-group/lv", "", "vg"] {
            assert!(SharedVolume::find(&place(name), Path::new("/dev/null")).is_none(), "{name}");
        }
    }
}
