//! Every call of the product's binary, for the demonstration and the benchmark.
//!
//! The one place to change when the command line changes. The binary sees a home of its own, so that neither
//! finds nor leaves anything in the home of whoever runs this.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::run::run;
use crate::workspace::{cargo, target_dir};

/// The binary with a home of its own.
pub struct Lvkeep {
    program: PathBuf,
    home: PathBuf,
    repository: Option<PathBuf>,
}

/// What `backup --json` prints for one source.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are the product's, which documents them")]
pub struct Backup {
    pub snapshot: String,
    pub size: u64,
    pub bytes_read: u64,
    pub bytes_zero: u64,
    pub bytes_known: u64,
    pub bytes_new: u64,
    pub bytes_stored: u64,
    pub seconds: f64,
}

/// What `restore --json` prints for one target.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[expect(missing_docs, reason = "the names are the product's, which documents them")]
pub struct Restored {
    pub bytes_written: u64,
    pub bytes_kept: u64,
    pub bytes_copied: u64,
    pub bytes_compared: u64,
    pub bytes_fetched: u64,
}

impl Restored {
    /// What two restores did together.
    pub fn and(self, other: Self) -> Self {
        Self {
            bytes_written: self.bytes_written + other.bytes_written,
            bytes_kept: self.bytes_kept + other.bytes_kept,
            bytes_copied: self.bytes_copied + other.bytes_copied,
            bytes_compared: self.bytes_compared + other.bytes_compared,
            bytes_fetched: self.bytes_fetched + other.bytes_fetched,
        }
    }
}

/// One element of what `snapshots --json` prints.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are the product's, which documents them")]
pub struct Snapshot {
    pub id: String,
    pub volume: String,
    pub generation: u64,
}

impl Lvkeep {
    /// The release build, after building it; without a repository, it uses the default one of its home.
    pub fn release(home: &Path, repository: Option<&Path>) -> Result<Self> {
        run(cargo().args(["build", "--release", "--package", "lvkeep"]))?;
        let program = target_dir()?.join("release/lvkeep");
        ensure!(program.is_file(), "cargo built no {}", program.display());
        Ok(Self { program, home: home.to_owned(), repository: repository.map(Path::to_owned) })
    }

    /// The program itself.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Makes the repository; the identity, which a restore needs, goes to a file.
    pub fn init(&self) -> Command {
        let mut command = self.command();
        command.arg("init").arg("--identity-out").arg(self.identity());
        command
    }

    /// Backs up one file or device under a name.
    pub fn backup(&self, source: &Path, name: &str) -> Command {
        let mut command = self.command();
        command.arg("backup").arg(source).args(["--name", name, "--json"]);
        command
    }

    /// Lists the snapshots.
    pub fn snapshots(&self) -> Command {
        let mut command = self.command();
        command.args(["snapshots", "--json"]);
        command
    }

    /// Restores a snapshot, by its id or as `name@latest`, to a file.
    pub fn restore(&self, snapshot: &str, target: &Path) -> Command {
        let mut command = self.command();
        command.args(["restore", snapshot]).arg(target).arg("--identity").arg(self.identity());
        command
    }

    /// Reads all that is stored.
    pub fn check(&self) -> Command {
        let mut command = self.command();
        command.args(["check", "--read-data", "--identity"]).arg(self.identity());
        command
    }

    fn identity(&self) -> PathBuf {
        self.home.join("identity.txt")
    }

    /// The program in its own home, for any other call.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(repository) = &self.repository {
            command.arg("--repo").arg(repository);
        }
        command
            .env("HOME", &self.home)
            .env("XDG_DATA_HOME", self.home.join("data"))
            .env("XDG_CONFIG_HOME", self.home.join("config"))
            .env("XDG_CACHE_HOME", self.home.join("cache"))
            .env("XDG_STATE_HOME", self.home.join("state"));
        command
    }
}

/// Reads what `backup --json` printed for its one source.
pub fn parse_backup(printed: &str) -> Result<Backup> {
    serde_json::from_str(printed.trim()).with_context(|| format!("`backup --json` printed {printed:?}"))
}

/// Reads what `restore --json` printed, a line for each target.
pub fn parse_restored(printed: &str) -> Result<Vec<Restored>> {
    let parse = |line: &str| {
        serde_json::from_str(line).with_context(|| format!("`restore --json` printed {printed:?}"))
    };
    printed.lines().map(parse).collect()
}

/// Reads what `snapshots --json` printed, the oldest generation first.
pub fn parse_snapshots(printed: &str) -> Result<Vec<Snapshot>> {
    let mut snapshots: Vec<Snapshot> =
        serde_json::from_str(printed).with_context(|| format!("`snapshots --json` printed {printed:?}"))?;
    snapshots.sort_by_key(|snapshot| snapshot.generation);
    Ok(snapshots)
}
