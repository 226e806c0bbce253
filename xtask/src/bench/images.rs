//! Builds the guests' images in `target/bench/images`, and builds them again only when their recipe changed.
//!
//! Needs root, Debian and loop mounts, and says which of them is missing. Packages come from the sources that
//! the machine itself uses.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::guests::{BASE, Day, GUESTS, Guest, IMAGE_BYTES};
use super::sources::Sources;
use crate::run::{find, run};
use crate::tools::system_program;

const DAY1: &str = include_str!("day1.sh");
const CHURN: &str = include_str!("churn.sh");

/// One image.
pub struct Image {
    /// The guest's name.
    pub guest: &'static str,
    /// Counted from 1.
    pub day: usize,
    pub path: PathBuf,
}

impl Image {
    /// What the file occupies, which is about what the guest has in it.
    pub fn occupied_bytes(&self) -> Result<u64> {
        Ok(self.path.metadata().with_context(|| format!("no {}", self.path.display()))?.blocks() * 512)
    }
}

/// Builds what is missing; in day order, all guests of a day together.
pub fn build(folder: &Path, is_quick: bool) -> Result<Vec<Image>> {
    let (guests, days) = if is_quick { (&GUESTS[..1], 2) } else { (&GUESTS[..], usize::MAX) };
    let mut builder = Builder { folder: folder.to_owned(), sources: None };
    fs::create_dir_all(folder)?;
    let mut images = Vec::new();
    for (number, guest) in guests.iter().enumerate() {
        let mut recipe =
            format!("{DAY1}{CHURN}{BASE}{IMAGE_BYTES}{}{}{}", guest.name, guest.filesystem, guest.packages);
        images.push(builder.day1(guest, number, &recipe)?);
        for (index, day) in guest.days.iter().enumerate().take(days - 1) {
            recipe.push_str(&format!("{day:?}"));
            images.push(builder.later(guest, index + 2, day, &recipe)?);
        }
    }
    images.sort_by_key(|image| image.day);
    Ok(images)
}

struct Builder {
    folder: PathBuf,
    /// Looked up only when something has to be built.
    sources: Option<Sources>,
}

impl Builder {
    fn day1(&mut self, guest: &'static Guest, number: usize, recipe: &str) -> Result<Image> {
        let packages = format!("{BASE},{}", guest.packages);
        let size = IMAGE_BYTES.to_string();
        let seed = number.to_string();
        let values = [
            ("SIZE", size.as_str()),
            ("FS", guest.filesystem),
            ("HOSTNAME", guest.name),
            ("PACKAGES", &packages),
            ("SEED", &seed),
        ];
        self.image(guest, 1, recipe, DAY1, &values)
    }

    fn later(&mut self, guest: &'static Guest, day: usize, churn: &Day, recipe: &str) -> Result<Image> {
        let parent = self.path(guest, day - 1);
        let seed = (day * 1000).to_string();
        let values = [
            ("PARENT", parent.to_str().context("the path is not UTF-8")?),
            ("HOSTNAME", guest.name),
            ("UPGRADE", churn.upgrade),
            ("INSTALL", churn.install),
            ("REMOVE", churn.remove),
            ("SEED", &seed),
        ];
        self.image(guest, day, recipe, CHURN, &values)
    }

    fn path(&self, guest: &Guest, day: usize) -> PathBuf {
        self.folder.join(format!("{}-day{day}.img", guest.name))
    }

    /// Runs a recipe's script, unless the image that stands there was made by the same recipe.
    fn image(
        &mut self,
        guest: &'static Guest,
        day: usize,
        recipe: &str,
        script: &str,
        values: &[(&str, &str)],
    ) -> Result<Image> {
        let image = Image { guest: guest.name, day, path: self.path(guest, day) };
        let stamp = image.path.with_extension("stamp");
        let wanted = blake3::hash(recipe.as_bytes()).to_hex().to_string();
        if image.path.is_file() && fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
            return Ok(image);
        }
        println!("building {} ({})", image.path.display(), guest.filesystem);
        let started = Instant::now();
        let unfinished = image.path.with_extension("unfinished");
        let _ = fs::remove_file(&unfinished);
        let mountpoint = tempfile::tempdir_in(&self.folder)?;
        let sources = self.sources()?;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "bash", "-euo", "pipefail", "-c", script])
            .env("IMAGE", &unfinished)
            .env("MNT", mountpoint.path())
            .env("SUITE", &sources.suite)
            .env("MIRROR", &sources.mirror)
            .env("SECURITY", &sources.security)
            .envs(values.iter().copied());
        run(&mut command).map_err(|_| anyhow::anyhow!("cannot build {}; see above", image.path.display()))?;
        fs::rename(&unfinished, &image.path)?;
        fs::write(&stamp, wanted)?;
        println!(
            "    {:.2} GB in {:.0} s",
            image.occupied_bytes()? as f64 / 1e9,
            started.elapsed().as_secs_f64()
        );
        Ok(image)
    }

    fn sources(&mut self) -> Result<&Sources> {
        if self.sources.is_none() {
            ensure!(
                rustix::process::geteuid().is_root(),
                "building guest images needs root (mounts and chroot)"
            );
            if find("losetup").is_none() || !Path::new("/dev/loop-control").exists() {
                bail!("building guest images needs loop devices, and there are none");
            }
            system_program("mmdebstrap", "mmdebstrap")?;
            system_program("mkfs.xfs", "xfsprogs")?;
            system_program("mke2fs", "e2fsprogs")?;
            self.sources = Some(Sources::of_machine()?);
        }
        self.sources.as_ref().context("just set")
    }
}
