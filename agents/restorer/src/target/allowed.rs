//! What an agent's own configuration allows it to write to.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use agent::Failure;

use super::Target;

impl Target {
    /// Fails when a place of this name is not allowed.
    pub(crate) fn check_place(&self, name: &str) -> Result<(), Failure> {
        let Some(allowed) = &self.allowed else { return Ok(()) };
        let device = Path::new("/dev").join(name);
        let fits = |one: &PathBuf| match one.is_absolute() {
            true => one.starts_with("/dev") && device.starts_with(one),
            false => one.to_str().is_some_and(|pattern| fits(pattern, name)),
        };
        match allowed.iter().any(fits) {
            true => Ok(()),
            false => Err(self.refused(format!(
                "{name} is no logical volume that this agent's configuration allows (as `VG/PATTERN`)"
            ))),
        }
    }

    /// Paths from elsewhere must say plainly where they lead.
    pub(super) fn check_spelling(&self) -> Result<(), Failure> {
        let plain = |component| !matches!(component, Component::ParentDir);
        match self.allowed.is_none() || (self.path.is_absolute() && self.path.components().all(plain)) {
            true => Ok(()),
            false => Err(self.refused("an agent takes absolute paths without `..` only")),
        }
    }

    /// Fails when a path without symbolic links is not allowed.
    pub(super) fn check_allowed(&self, path: &Path) -> Result<(), Failure> {
        let Some(allowed) = &self.allowed else { return Ok(()) };
        let is_device = || std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device());
        let below = |folder: &PathBuf| {
            let named_device = folder.starts_with("/dev")
                && self.path.starts_with(folder)
                && path.starts_with("/dev")
                && is_device()
                && only_root_names(&self.path);
            named_device || folder.canonicalize().is_ok_and(|folder| path.starts_with(folder))
        };
        match allowed.iter().any(below) {
            true => Ok(()),
            false => Err(self.refused("it is not below a folder that this agent's configuration allows")),
        }
    }

    /// Fails when what is named so is not to be restored to, as a restore to it would: it is this place, or else what is
    /// at this path by now.
    pub(crate) fn check_named(&self, name: &str, place: Option<&str>, path: &Path) -> Result<(), Failure> {
        let named = Self { path: name.into(), ..self.clone() };
        if let Some(place) = place {
            return named.check_place(place);
        }
        named.check_spelling()?;
        named.check_allowed(&path.canonicalize().map_err(|why| named.cannot_open(&why))?)
    }
}

/// Whether a name fits a pattern in which `*` stands for anything but a slash.
fn fits(pattern: &str, name: &str) -> bool {
    let (patterns, names) = (pattern.split('/'), name.split('/'));
    patterns.clone().count() == names.clone().count()
        && patterns.zip(names).all(|(pattern, name)| part_fits(pattern, name))
}

fn part_fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => name.strip_prefix(before).is_some_and(|rest| {
            let mut rests = (0..=rest.len()).filter_map(|at| rest.get(at..));
            rests.any(|rest| part_fits(after, rest))
        }),
    }
}

/// Whether every folder above `path`, up to `/dev`, is one that only root changes (`/dev/shm` is not).
pub(super) fn only_root_names(path: &Path) -> bool {
    let trusted = |folder: &Path| {
        let metadata = std::fs::symlink_metadata(folder);
        metadata.is_ok_and(|m| m.is_dir() && m.uid() == 0 && m.mode() & 0o022 == 0)
    };
    path.ancestors().skip(1).take_while(|folder| folder.starts_with("/dev")).all(trusted)
}
