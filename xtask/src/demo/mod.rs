//! `cargo xtask demo`: a file system backed up, changed, backed up again and restored, before one's eyes.
//!
//! Everything is real: an ext4 image with files in it, the release binary, a comparison of every byte and a
//! check of the restored file systems. Nothing outside `target/demo` is touched.

mod content;
mod disk;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::lvkeep::{self, Backup, Lvkeep};
use crate::run::{self, output};
use crate::workspace::target_dir;
use disk::{Disk, IMAGE};

/// Arguments of `cargo xtask demo`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Leave the images and the repository in target/demo, to look around
    #[arg(long)]
    keep: bool,
}

const NAME: &str = "demo/root";

/// Runs `cargo xtask demo`.
pub fn main(arguments: &Arguments) -> Result<()> {
    let parent = target_dir()?.join("demo");
    fs::create_dir_all(&parent)?;
    let mut folder = tempfile::Builder::new().prefix("run-").tempdir_in(&parent)?;
    folder.disable_cleanup(arguments.keep);
    let home = folder.path().join("home");
    fs::create_dir(&home)?;
    let demo = Demo {
        lvkeep: Lvkeep::release(&home, None)?,
        disk: Disk::new(folder.path())?,
        folder: folder.path().to_owned(),
    };
    demo.play()?;
    if arguments.keep {
        println!("\neverything is left in {}", folder.path().display());
    }
    Ok(())
}

struct Demo {
    lvkeep: Lvkeep,
    disk: Disk,
    folder: PathBuf,
}

impl Demo {
    fn play(&self) -> Result<()> {
        heading("A file system of 256 MiB with some 60 MB of files");
        self.disk.make()?;

        heading("The first backup");
        self.disk.say(&mut self.lvkeep.init())?;
        let first = self.backup()?;
        self.disk.say(Command::new("cp").args(["--sparse=always", IMAGE, "day1.img"]))?;

        heading("Files in it change, and it is backed up again");
        self.disk.change()?;
        let second = self.backup()?;

        heading("Both days are restored");
        let days = lvkeep::parse_snapshots(&self.told(&mut self.lvkeep.snapshots())?)?;
        let ids: Vec<_> = days.iter().filter(|day| day.volume == NAME).map(|day| day.id.as_str()).collect();
        ensure!(ids == [&first.snapshot, &second.snapshot], "the list of snapshots is {ids:?}");
        self.restore(ids[0], "day1.img", "restored1.img")?;
        self.restore(&format!("{NAME}@latest"), IMAGE, "restored2.img")?;

        heading("What it took");
        table(&[("first", &first), ("second", &second)]);
        println!("\nboth restored images equal what was backed up, byte by byte, and are sound file systems");
        Ok(())
    }

    fn backup(&self) -> Result<Backup> {
        lvkeep::parse_backup(&self.told(&mut self.lvkeep.backup(Path::new(IMAGE), NAME))?)
    }

    fn restore(&self, snapshot: &str, original: &str, restored: &str) -> Result<()> {
        self.disk.say(&mut self.lvkeep.restore(snapshot, Path::new(restored)))?;
        self.disk
            .say(Command::new("cmp").args([original, restored]))
            .with_context(|| format!("{restored} differs from {original}"))?;
        self.disk.check(restored)
    }

    /// Shows the command, then what it printed, and returns that.
    fn told(&self, command: &mut Command) -> Result<String> {
        run::show(command);
        let printed = output(command.current_dir(&self.folder))?;
        println!("{}", printed.trim_end());
        Ok(printed)
    }
}

fn heading(text: &str) {
    println!("\n== {text}");
}

fn table(backups: &[(&str, &Backup)]) {
    println!(
        "{:<8}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}",
        "MB", "read", "zero", "known", "new", "stored", "seconds"
    );
    for (name, backup) in backups {
        let bytes =
            [backup.bytes_read, backup.bytes_zero, backup.bytes_known, backup.bytes_new, backup.bytes_stored];
        let cells: String = bytes.iter().map(|bytes| format!("{:>10.1}", *bytes as f64 / 1e6)).collect();
        println!("{name:<8}{cells}{:>10.2}", backup.seconds);
    }
}
