//! Which logical volume a target means, if it means one: decided by how it is spelled and what `/dev` and `/sys` say,
//! so that for files and ordinary devices no tool of LVM's is ever run.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};

use crate::dm::DmName;
use crate::report::{from_dm_name, is_name};

/// Letters and digits of an LVM volume's id for device-mapper: its group's and its own.
const DM_UUID_LEN: usize = 64;

/// What a target means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// A file or an ordinary device.
    Path,
    /// The logical volume of these names, which may not exist.
    Volume {
        /// Its group.
        vg: String,
        /// Its name.
        lv: String,
        /// It may also be meant as a path, should there be no such volume.
        or_path: bool,
    },
}

/// What is said before why there is no such volume: how it comes that `name` is taken for one, where a file may have been
/// meant by it. Nothing of a name that is absolute.
pub(crate) fn taken_for_volume(name: &str) -> String {
    let path = Path::new(name);
    let Some(folder) = name.split_once('/').map(|(folder, _)| folder).filter(|_| path.is_relative()) else {
        return String::new();
    };
    let lacking = match Path::new(folder).is_dir() {
        true => "there is no such file".to_owned(),
        false => format!("there is no folder `{folder}`"),
    };
    format!(
        "`{name}` is taken for a logical volume (VG/LV), since {lacking}; `./{name}` names a file (to an agent, its absolute path does); "
    )
}

/// Where devices are described.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// `/dev`.
    pub dev: PathBuf,
    /// `/sys`.
    pub sys: PathBuf,
}

impl Places {
    /// What `target` means; an error says why it cannot be told.
    pub fn meaning(&self, target: &str, creates: bool) -> Result<Meaning, String> {
        match Path::new(target).is_absolute() {
            true => self.of_absolute(Path::new(target)),
            false => self.of_relative(target, creates),
        }
    }

    /// The path of what `target` means. One that is absolute stays what it is where device-mapper has no such volume.
    pub fn path(&self, target: &str) -> Result<PathBuf, String> {
        let Meaning::Volume { vg, lv, .. } = self.meaning(target, false)? else { return Ok(target.into()) };
        let device = self.dev.join("mapper").join(DmName::of(&vg, &lv).as_str());
        match Path::new(target).is_absolute() && !device.exists() {
            true => Ok(target.into()),
            false => Ok(device),
        }
    }

    fn of_absolute(&self, target: &Path) -> Result<Meaning, String> {
        if let Ok(metadata) = fs::metadata(target) {
            return match metadata.file_type().is_block_device() {
                true => self.of_device(metadata.rdev()),
                false => Ok(Meaning::Path),
            };
        }
        // A volume that is not active, or not made yet.
        let Ok(below) = target.strip_prefix(&self.dev) else { return Ok(Meaning::Path) };
        let parts: Option<Vec<&str>> = below.components().map(|part| part.as_os_str().to_str()).collect();
        let names = match parts.as_deref() {
            Some(["mapper", name]) => from_dm_name(name),
            Some([vg, lv]) if is_name(vg) && is_name(lv) => Some(((*vg).to_owned(), (*lv).to_owned())),
            _ => None,
        };
        Ok(match names {
            Some((vg, lv)) => Meaning::Volume { vg, lv, or_path: true },
            None => Meaning::Path,
        })
    }

    /// Device-mapper's own word on a device.
    fn of_device(&self, rdev: u64) -> Result<Meaning, String> {
        let folder = self.sys.join(format!("dev/block/{}:{}/dm", major(rdev), minor(rdev)));
        let said = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default().trim().to_owned();
        let uuid = said("uuid");
        let Some(id) = uuid.strip_prefix("LVM-") else { return Ok(Meaning::Path) };
        let name = said("name");
        match from_dm_name(&name) {
            Some((vg, lv)) if id.len() == DM_UUID_LEN => Ok(Meaning::Volume { vg, lv, or_path: false }),
            _ => Err(format!("{name} is a part of a logical volume, or of a pool")),
        }
    }

    fn of_relative(&self, target: &str, creates: bool) -> Result<Meaning, String> {
        let Some((vg, lv)) = target.split_once('/') else { return Ok(Meaning::Path) };
        if !is_name(vg) || !is_name(lv) {
            return Ok(Meaning::Path);
        }
        let (is_folder, is_group) = (Path::new(vg).is_dir(), self.dev.join(vg).is_dir());
        if is_folder && (is_group || creates) {
            return Err(format!(
                "there is a folder {vg} here: write ./{target} for a file in it, /dev/{target} for a logical volume"
            ));
        }
        Ok(match is_folder {
            true => Meaning::Path,
            false => Meaning::Volume { vg: vg.to_owned(), lv: lv.to_owned(), or_path: false },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(vg: &str, lv: &str, or_path: bool) -> Meaning {
        Meaning::Volume { vg: vg.into(), lv: lv.into(), or_path }
    }

    #[test]
    fn a_target_means_a_volume_or_a_path() {
        let folder = tempfile::tempdir().unwrap();
        let dev = folder.path().join("dev");
        fs::create_dir_all(dev.join("src")).unwrap();
        let file = dev.join("image");
        fs::write(&file, "").unwrap();
        let places = Places { dev: dev.clone(), sys: folder.path().join("sys") };
        let in_dev = |name: &str| dev.join(name).to_str().unwrap().to_owned();
        for (target, expected) in [
            ("vg1/web", volume("vg1", "web", false)),
            ("web", Meaning::Path),
            ("./vg1/web", Meaning::Path),
            ("vg1/a/b", Meaning::Path),
            ("vg1/", Meaning::Path),
            ("vg 1/web", Meaning::Path),
            ("../web", Meaning::Path),
            (file.to_str().unwrap(), Meaning::Path),
            (&in_dev("vg1/web"), volume("vg1", "web", true)),
            (&in_dev("mapper/vg--1-web"), volume("vg-1", "web", true)),
            (&in_dev("disk/by-id/x"), Meaning::Path),
            ("/srv/vg1/web", Meaning::Path),
        ] {
            assert_eq!(places.meaning(target, false), Ok(expected), "{target}");
        }
        // Tests run in the crate's folder, which has a `src`.
        let both = places.meaning("src/web", false).unwrap_err();
        assert!(both.contains("./src/web") && both.contains("/dev/src/web"), "{both}");
        let elsewhere = Places { dev: folder.path().join("none"), ..places };
        assert_eq!(elsewhere.meaning("src/web", false), Ok(Meaning::Path));
        assert!(elsewhere.meaning("src/web", true).is_err());
    }

    #[test]
    fn what_may_have_been_meant_as_a_file_is_said() {
        let none = taken_for_volume("nodir/x.img");
        assert!(none.contains("there is no folder `nodir`") && none.contains("`./nodir/x.img`"), "{none}");
        // Tests run in the crate's folder, which has a `src`.
        assert!(taken_for_volume("src/x.img").contains("there is no such file"));
        assert_eq!(taken_for_volume("/dev/vg/lv"), "");
    }

    #[test]
    fn a_volume_is_read_at_its_device() {
        let folder = tempfile::tempdir().unwrap();
        let dev = folder.path().join("dev");
        fs::create_dir_all(dev.join("mapper")).unwrap();
        fs::create_dir_all(dev.join("src")).unwrap();
        fs::write(dev.join("mapper/vg--1-web"), "").unwrap();
        let places = Places { dev: dev.clone(), sys: folder.path().join("sys") };
        let in_dev = |name: &str| dev.join(name).to_str().unwrap().to_owned();
        for (target, expected) in [
            ("vg-1/web", in_dev("mapper/vg--1-web")),
            ("vg-1/none", in_dev("mapper/vg--1-none")),
            ("web", "web".to_owned()),
            ("./vg-1/web", "./vg-1/web".to_owned()),
            (&in_dev("vg-1/web"), in_dev("mapper/vg--1-web")),
            (&in_dev("vg-1/none"), in_dev("vg-1/none")),
            ("/srv/web", "/srv/web".to_owned()),
        ] {
            assert_eq!(places.path(target), Ok(expected.into()), "{target}");
        }
        assert_eq!(places.path("src/web").unwrap_err(), places.meaning("src/web", false).unwrap_err());
    }

    #[test]
    fn device_mapper_says_what_a_device_is() {
        let folder = tempfile::tempdir().unwrap();
        let places = Places { dev: "/dev".into(), sys: folder.path().into() };
        let long = "a".repeat(64);
        for (number, uuid, name) in [
            (1, format!("LVM-{long}"), "vg0-web--1"),
            (2, format!("LVM-{long}-real"), "vg0-web-real"),
            (3, "CRYPT-LUKS2-x".to_owned(), "vg0-secret"),
        ] {
            let dm = folder.path().join(format!("dev/block/253:{number}/dm"));
            fs::create_dir_all(&dm).unwrap();
            fs::write(dm.join("uuid"), format!("{uuid}\n")).unwrap();
            fs::write(dm.join("name"), format!("{name}\n")).unwrap();
        }
        let of = |number: u32| places.of_device(rustix::fs::makedev(253, number));
        assert_eq!(of(1), Ok(volume("vg0", "web-1", false)));
        assert!(of(2).unwrap_err().contains("vg0-web-real is a part"));
        assert_eq!(of(3), Ok(Meaning::Path));
        assert_eq!(of(4), Ok(Meaning::Path), "a disk");
    }
}
