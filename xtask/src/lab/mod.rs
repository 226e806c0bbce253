//! `cargo xtask lab`: throw-away guests with a Debian kernel and real LVM, for what no other machine can show.
//!
//! Most machines that run the tests have no device-mapper. A guest is made of Debian's packages, unpacked below
//! `target/lab`, nothing of it installed. Scenarios are functions of the `tests` package that run in the guest as
//! root; a guest runs one and is gone.

mod figures;
mod guest;
mod image;
mod packages;
mod tcg;
mod uml;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Subcommand, ValueEnum};

use crate::run::{output, run};
use crate::tools;
use crate::workspace::{cargo, target_dir};
use guest::{Boot, Guest};
use image::Root;
use packages::Archive;

/// Arguments of `cargo xtask lab`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Fetch the packages and make the guest, unless it is made
    Build {
        /// The kernel that guests run
        #[arg(long, default_value = "uml")]
        kernel: Kernel,
    },
    /// Name the scenarios
    List,
    /// Run scenarios, each in a guest of its own
    Run {
        #[command(flatten)]
        how: How,
        /// The scenarios' program, already built; without it, it is built
        #[arg(long, requires = "lvkeep")]
        scenarios: Option<PathBuf>,
        /// lvkeep, already built; without it, it is built
        #[arg(long, requires = "scenarios")]
        lvkeep: Option<PathBuf>,
        /// Names of scenarios
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Measure what tracked backups cost, each figure in a guest of its own
    Figures {
        /// Names of figures; all of them without any
        names: Vec<String>,
    },
    /// Run a script of your own as root: $DISK0 and $DISK1 are scratch disks, lvkeep is on PATH if it is built
    Shell {
        #[command(flatten)]
        how: How,
        /// A program for bash
        script: PathBuf,
    },
}

#[derive(clap::Args)]
struct How {
    /// The kernel that guests run
    #[arg(long, default_value = "uml")]
    kernel: Kernel,
    /// Seconds after which a guest is ended
    #[arg(long, default_value_t = 280)]
    limit: u64,
    /// The guest's memory in MiB
    #[arg(long, default_value_t = 1024)]
    memory: u64,
    /// Size of each scratch disk in MiB
    #[arg(long, default_value_t = 4096)]
    disk: u64,
}

/// What a guest runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kernel {
    /// User-mode Linux 6.1: a process, boots in seconds
    Uml,
    /// Linux 6.12 in qemu without KVM: slow, but has VDO
    Tcg,
}

/// Everything that a built guest depends on: it is made again when one of them changed.
const RECIPE: [&str; 7] = [
    include_str!("image.rs"),
    include_str!("init.sh"),
    include_str!("packages.rs"),
    include_str!("preload.c"),
    include_str!("tcg-init.sh"),
    include_str!("tcg.rs"),
    include_str!("uml.rs"),
];

/// Runs `cargo xtask lab`.
pub fn main(arguments: &Arguments) -> Result<()> {
    match &arguments.command {
        Task::Build { kernel } => {
            let folder = kernel.build()?;
            println!("{}", folder.display());
            print!("{}", fs::read_to_string(folder.join("packages"))?);
            Ok(())
        }
        Task::List => {
            let scenarios = build_scenarios()?;
            run(Command::new(scenarios).arg("list"))
        }
        Task::Run { how, scenarios, lvkeep, names } => {
            let (lab, programs) = match (scenarios, lvkeep) {
                (Some(scenarios), Some(lvkeep)) => (how.kernel.built()?, (scenarios.clone(), lvkeep.clone())),
                _ => (how.kernel.build()?, (build_scenarios()?, build_lvkeep(Profile::Dev)?)),
            };
            let known = output(Command::new(&programs.0).args(["list", "--names"]))?;
            for name in names {
                if !known.lines().any(|line| line == name) {
                    bail!("no scenario `{name}`; `cargo xtask lab list` names them");
                }
            }
            names.iter().try_for_each(|name| scenario(how, &lab, &programs, name))
        }
        Task::Figures { names } => figures::main(names),
        Task::Shell { how, script } => {
            let lab = how.kernel.build()?;
            let script =
                fs::read_to_string(script).with_context(|| format!("cannot read {}", script.display()))?;
            let lvkeep = target_dir()?.join("debug/lvkeep");
            let programs = if lvkeep.is_file() { vec![("lvkeep", lvkeep)] } else { Vec::new() };
            succeeds(how.guest(script, programs).run(how.kernel, &lab, &runs()?)?.code, "the script")
        }
    }
}

/// Makes the guest that the tests need, unless it is made.
pub fn bring() -> Result<PathBuf> {
    Kernel::Uml.build()
}

fn scenario(how: &How, lab: &Path, programs: &(PathBuf, PathBuf), name: &str) -> Result<()> {
    let (scenarios, lvkeep) = programs.clone();
    let programs = vec![("scenarios", scenarios), ("lvkeep", lvkeep), ("nats-server", tools::nats_server()?)];
    let started = Instant::now();
    let script = format!(
        "export LVKEEP_TEST_BIN=/lab/path/lvkeep LVKEEP_TEST_NATS_SERVER=/lab/path/nats-server\n\
         exec scenarios run {name}\n"
    );
    let code = how.guest(script, programs).run(how.kernel, lab, &runs()?)?.code;
    succeeds(code, &format!("scenario {name}"))?;
    println!("scenario {name}: passed in {:.1} s, boot included", started.elapsed().as_secs_f64());
    Ok(())
}

fn succeeds(code: i32, what: &str) -> Result<()> {
    if code != 0 {
        bail!("{what} ended with {code} in the guest");
    }
    Ok(())
}

/// How lvkeep is built.
#[derive(Clone, Copy)]
enum Profile {
    /// As for all tests.
    Dev,
    /// As for use.
    Release,
}

/// The scenarios' program, built.
fn build_scenarios() -> Result<PathBuf> {
    run(cargo().args(["build", "--package", "tests", "--bin", "scenarios"]))?;
    Ok(target_dir()?.join("debug/scenarios"))
}

/// lvkeep, built.
fn build_lvkeep(profile: Profile) -> Result<PathBuf> {
    let (name, folder) = match profile {
        Profile::Dev => ("dev", "debug"),
        Profile::Release => ("release", "release"),
    };
    run(cargo().args(["build", "--package", "lvkeep", "--bin", "lvkeep", "--profile", name]))?;
    Ok(target_dir()?.join(folder).join("lvkeep"))
}

fn runs() -> Result<PathBuf> {
    Ok(target_dir()?.join("lab/runs"))
}

impl How {
    fn guest(&self, script: String, programs: Vec<(&'static str, PathBuf)>) -> Guest {
        let limit = Duration::from_secs(self.limit);
        Guest { script, programs, limit, memory_mib: self.memory, disk_mib: self.disk }
    }
}

impl Kernel {
    fn name(self) -> &'static str {
        match self {
            Kernel::Uml => "uml",
            Kernel::Tcg => "tcg",
        }
    }

    /// What is installed beside what every guest has.
    fn packages(self) -> &'static [&'static str] {
        match self {
            Kernel::Uml => &[],
            Kernel::Tcg => &tcg::PACKAGES,
        }
    }

    fn command(self, boot: &Boot<'_>) -> Command {
        match self {
            Kernel::Uml => uml::command(boot),
            Kernel::Tcg => tcg::command(boot),
        }
    }

    /// Where the guest lies that the recipe of now makes.
    fn folder(self) -> Result<PathBuf> {
        let recipe = blake3::hash(RECIPE.concat().as_bytes()).to_hex();
        Ok(target_dir()?.join("lab").join(format!("{}-{}", self.name(), &recipe[..12])))
    }

    /// The guest, which must be made already.
    fn built(self) -> Result<PathBuf> {
        let folder = self.folder()?;
        if !folder.is_dir() {
            bail!("there is no guest with real LVM: run `cargo xtask lab build --kernel {}`", self.name());
        }
        Ok(folder)
    }

    /// The guest, after making it if need be.
    fn build(self) -> Result<PathBuf> {
        let folder = self.folder()?;
        let home = target_dir()?.join("lab");
        fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
        let lock = fs::File::create(home.join("lock"))?;
        lock.lock().context("cannot lock target/lab")?;
        if folder.is_dir() {
            return Ok(folder);
        }
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            bail!("the lab's guests are of x86-64 Linux only");
        }
        eprintln!("lab: making a guest of Debian's packages, once");
        let started = Instant::now();
        let work = tempfile::Builder::new().prefix("unfinished-").tempdir_in(&home)?;
        let archive = Archive::open(&home.join("apt"))?;
        let wanted = [&image::PACKAGES[..], self.packages()].concat();
        let mut packages = archive.with_dependencies("guest", &wanted)?;
        let root = Root::unpack(work.path().join("root"), &packages)?;
        packages.extend(match self {
            Kernel::Uml => uml::build(&archive, &root, work.path())?,
            Kernel::Tcg => tcg::build(&archive, &root, work.path())?,
        });
        root.into_image(&work.path().join("root.ext4"))?;
        fs::write(work.path().join("packages"), packages::listed(&packages))?;
        for old in crate::tidy::entries(&home)? {
            let name = old.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with(&format!("{}-", self.name())) {
                fs::remove_dir_all(&old).with_context(|| format!("cannot remove {}", old.display()))?;
            }
        }
        fs::rename(work.keep(), &folder).with_context(|| format!("cannot create {}", folder.display()))?;
        eprintln!("lab: made in {:.0} s", started.elapsed().as_secs_f64());
        Ok(folder)
    }
}
