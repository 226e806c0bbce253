//! The tools that are compared, each as the few commands that its documentation gives for images of disks.
//!
//! The peers are fed through standard input, as their manuals say for block devices: a path would let them skip
//! an unchanged file by its times, which says nothing about a running guest's disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::lvkeep::Lvkeep;
use crate::run::{find, output, run, version};
use crate::tools::system_program;

/// A tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    #[value(skip)]
    Lvkeep,
    Restic,
    Borg,
    Rustic,
}

/// A tool at hand, with a repository and a home of its own.
pub struct Peer {
    pub kind: Kind,
    pub version: String,
    program: PathBuf,
    home: PathBuf,
    lvkeep: Option<Lvkeep>,
}

const FILE: &str = "disk.img";
const PASSWORD: &str = "bench";

impl Peer {
    /// Finds or installs the tool.
    pub fn prepare(kind: Kind, work: &Path) -> Result<Self> {
        let home = work.join(format!("{kind:?}").to_lowercase());
        fs::create_dir_all(&home)?;
        let mut lvkeep = None;
        let (program, argument) = match kind {
            Kind::Lvkeep => {
                let ours = lvkeep.insert(Lvkeep::release(&home, Some(&home.join("repository")))?);
                (ours.program().to_owned(), "--version")
            }
            Kind::Restic => (system_program("restic", "restic")?, "version"),
            Kind::Borg => (system_program("borg", "borgbackup")?, "--version"),
            Kind::Rustic => (
                find("rustic").context("`rustic` is not on PATH; `cargo install rustic-rs` brings it")?,
                "--version",
            ),
        };
        let version = version(&program, &[argument]);
        Ok(Self { kind, version, program, home, lvkeep })
    }

    /// Throws everything away that the tool has kept, and makes an empty repository.
    pub fn start_afresh(&self) -> Result<()> {
        fs::remove_dir_all(&self.home)?;
        fs::create_dir_all(&self.home)?;
        let mut init = match self.kind {
            Kind::Lvkeep => self.ours()?.init(),
            Kind::Restic => self.command(&["init", "--repository-version", "2"]),
            Kind::Borg => self.command(&["init", "--encryption", "repokey-blake2"]),
            Kind::Rustic => self.command(&["init"]),
        };
        run(init.stdout(Stdio::null()))
    }

    /// The repository's folder.
    pub fn repository(&self) -> PathBuf {
        self.home.join("repository")
    }

    /// The command that backs up, and whether the source is its standard input.
    pub fn backup(&self, source: &Path, guest: &str, number: usize) -> Result<(Command, bool)> {
        Ok(match self.kind {
            Kind::Lvkeep => (self.ours()?.backup(source, &format!("bench/{guest}")), false),
            Kind::Restic => {
                let arguments = ["backup", "--stdin", "--stdin-filename", FILE, "--host", guest];
                (self.command(&[&["--quiet", "--compression", "auto"], &arguments[..]].concat()), true)
            }
            Kind::Borg => {
                let archive = format!("::{guest}-{number}");
                (
                    self.command(&["create", "--compression", "zstd,3", "--stdin-name", FILE, &archive, "-"]),
                    true,
                )
            }
            Kind::Rustic => (self.command(&["backup", "--stdin-filename", FILE, "--host", guest, "-"]), true),
        })
    }

    /// The command that restores the backup made last of a guest, and the file in which it then lies.
    pub fn restore(&self, guest: &str, number: usize) -> Result<(Command, PathBuf)> {
        let out = self.home.join("restored");
        fs::create_dir_all(&out)?;
        let target = out.to_str().context("the path is not UTF-8")?;
        let command = match self.kind {
            Kind::Lvkeep => {
                let mut command = self.ours()?.restore(&format!("bench/{guest}@latest"), &out.join(FILE));
                command.arg("--force");
                command
            }
            Kind::Restic => {
                self.command(&["--quiet", "restore", "latest", "--host", guest, "--target", target])
            }
            Kind::Borg => {
                let mut command = self.command(&["extract", "--sparse", &format!("::{guest}-{number}")]);
                command.current_dir(&out);
                command
            }
            Kind::Rustic => self.command(&["restore", "latest", target]),
        };
        Ok((command, out.join(FILE)))
    }

    /// The ids of all snapshots, the oldest first.
    pub fn snapshots(&self) -> Result<Vec<String>> {
        #[derive(serde::Deserialize)]
        struct Listed {
            id: String,
            time: String,
        }
        let mut command = match self.kind {
            Kind::Lvkeep => self.ours()?.snapshots(),
            Kind::Restic => self.command(&["snapshots", "--json"]),
            Kind::Borg | Kind::Rustic => {
                bail!("how {:?} lists snapshots is not written down here", self.kind)
            }
        };
        let printed = output(&mut command)?;
        let mut listed: Vec<Listed> =
            serde_json::from_str(&printed).with_context(|| format!("a list of snapshots: {printed:?}"))?;
        listed.sort_by(|a, b| (&a.time, &a.id).cmp(&(&b.time, &b.id)));
        Ok(listed.into_iter().map(|listed| listed.id).collect())
    }

    /// The commands that forget these snapshots and give back the room that they alone took.
    pub fn collect(&self, snapshots: &[&str]) -> Result<Vec<Command>> {
        Ok(match self.kind {
            Kind::Lvkeep => {
                let mut forget = self.ours()?.command();
                forget.args(["forget", "--allow-last"]).args(snapshots);
                let mut prune = self.ours()?.command();
                prune.arg("prune");
                vec![forget, prune]
            }
            _ => vec![self.command(&[&["--quiet", "forget", "--prune"], snapshots].concat())],
        })
    }

    /// The command that reads all that is stored.
    pub fn check(&self) -> Result<Command> {
        let mut command = match self.kind {
            Kind::Lvkeep => self.ours()?.check(),
            _ => self.command(&["--quiet", "check", "--read-data"]),
        };
        command.stdout(Stdio::null());
        Ok(command)
    }

    fn ours(&self) -> Result<&Lvkeep> {
        self.lvkeep.as_ref().context("lvkeep was not prepared")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments);
        for prefix in ["RESTIC", "RUSTIC"] {
            command.env(format!("{prefix}_REPOSITORY"), self.repository());
            command.env(format!("{prefix}_PASSWORD"), PASSWORD);
            command.env(format!("{prefix}_CACHE_DIR"), self.home.join("cache"));
        }
        command
            .env("BORG_REPO", self.repository())
            .env("BORG_PASSPHRASE", PASSWORD)
            .env("BORG_BASE_DIR", self.home.join("base"))
            .env("HOME", &self.home);
        command
    }
}
