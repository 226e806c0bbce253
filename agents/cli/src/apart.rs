//! Which targets are one, however they are called: two volumes of one command must not overwrite each other.
//!
//! On other hosts, names are all that this process knows. Here it looks what stands there, too: links, mounts and hard
//! links give one file or device many names.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use crate::restore;

/// Something by which a target may be known again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Known {
    /// What it is called, or will be.
    Name(PathBuf),
    /// The device with this number.
    Device(u64),
    /// The file with this inode of this file system.
    File(u64, u64),
}

/// The targets of a command, each with whoever is restored to it.
#[derive(Debug)]
pub struct Apart<'a, Who> {
    here: &'a str,
    known: BTreeMap<(String, Known), Who>,
}

impl<'a, Who: Clone> Apart<'a, Who> {
    /// None yet; `here` is this host.
    pub fn new(here: &'a str) -> Self {
        Self { here, known: BTreeMap::new() }
    }

    /// Adds a target on a host, and returns who has it already.
    pub fn add(&mut self, host: &str, target: &str, who: Who) -> Option<Who> {
        let mut all = vec![Known::Name(same_target(target))];
        if host == self.here {
            all.extend(stands(target));
        }
        let keys = || all.iter().map(|known| (host.to_owned(), known.clone()));
        let other = keys().find_map(|key| self.known.get(&key).cloned());
        keys().for_each(|key| drop(self.known.insert(key, who.clone())));
        other
    }
}

/// One name for what is one target, as far as names say that.
pub fn same_target(target: &str) -> PathBuf {
    let plain: PathBuf = Path::new(target).components().filter(|part| *part != Component::CurDir).collect();
    let mapped = plain.strip_prefix("/dev/mapper").ok().and_then(Path::to_str);
    if let Some((vg, lv)) = mapped.and_then(volume_lvm::report::from_dm_name) {
        return Path::new(&vg).join(lv);
    }
    match plain.strip_prefix("/dev") {
        Ok(volume) if !target.starts_with("./") && volume.components().count() == 2 => volume.to_owned(),
        _ if target.starts_with("./") => Path::new("./").join(plain),
        _ => plain,
    }
}

/// What stands at a target of this host; where nothing does, what it will be called without a link on the way.
fn stands(target: &str) -> Option<Known> {
    let volume = restore::path(target).unwrap_or_else(|_| target.into());
    if let Some(found) = [&volume, Path::new(target)].iter().find_map(|path| std::fs::metadata(path).ok()) {
        return Some(match found.file_type().is_block_device() {
            true => Known::Device(found.rdev()),
            false => Known::File(found.dev(), found.ino()),
        });
    }
    let path = std::path::absolute(target).ok()?;
    let folder = path.parent()?.canonicalize().ok()?;
    Some(Known::Name(folder.join(path.file_name()?)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn one_target_has_one_name() {
        for (one, other, same) in [
            ("vg1/a", "/dev/vg1/a", true),
            ("/srv/a.img", "/srv//./a.img", true),
            ("./vg1/a", "vg1/a", false),
            ("/dev/mapper/vg1-a", "vg1/a", true),
            ("/dev/sda", "/dev/sdb", false),
        ] {
            assert_eq!(same_target(one) == same_target(other), same, "{one} {other}");
        }
    }

    #[test]
    fn one_target_is_known_under_many_names_where_it_can_be_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::create_dir(at("real")).unwrap();
        symlink(at("real"), at("linked")).unwrap();
        std::fs::write(at("real/there"), b"x").unwrap();
        std::fs::hard_link(at("real/there"), at("hard")).unwrap();
        symlink(at("hard"), at("soft")).unwrap();
        for (one, other, same) in [
            ("real/there", "linked/there", true),
            ("real/there", "hard", true),
            ("real/there", "soft", true),
            ("real/new", "linked/new", true),
            ("real/new", "real/../linked/new", true),
            ("real/new", "real/newer", false),
            ("real/there", "real/new", false),
            ("none/new", "none/newer", false),
        ] {
            for host in ["here", "elsewhere"] {
                let mut apart = Apart::new("here");
                assert_eq!(apart.add(host, &at(one), 1), None);
                let expected = (same && host == "here").then_some(1);
                assert_eq!(apart.add(host, &at(other), 2), expected, "{one} {other} on {host}");
            }
            let mut apart = Apart::new("here");
            apart.add("here", &at(one), 1);
            assert_eq!(apart.add("elsewhere", &at(one), 2), None, "another host's is another target");
        }
    }
}
