//! `cargo xtask dist`: the one static binary that runs on any x86-64 Linux, rescue systems included.
//!
//! Built for musl, with C code compiled by the pinned zig, and linked by the system's `cc`, which needs no musl of its
//! own: rustc brings that. Nothing is put in place before it was seen to need no other file and to run.

mod compiler;
mod elf;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::run::{find, output, run};
use crate::workspace::{self, cargo, target_dir};

const TARGET: &str = "x86_64-unknown-linux-musl";
/// The workspace's packages have one version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Runs `cargo xtask dist`.
pub fn main() -> Result<()> {
    make().map(drop)
}

/// Makes the binary, and returns where it is.
pub fn make() -> Result<PathBuf> {
    bring_standard_library()?;
    let built = build()?;
    let content = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    elf::check_static(&content)
        .with_context(|| format!("{} would not run on a bare system", built.display()))?;
    check_runs(&built)?;
    let placed = place(&content)?;
    println!("{} ({} bytes, static)", placed.display(), content.len());
    Ok(placed)
}

/// Has rustup bring the standard library for musl. Without rustup it must be there.
fn bring_standard_library() -> Result<()> {
    if let Some(rustup) = find("rustup") {
        let mut add = Command::new(rustup);
        workspace::scrub(&mut add);
        add.current_dir(workspace::root()).args(["target", "add", TARGET]);
        return run(&mut add)
            .with_context(|| format!("rustup cannot bring Rust's standard library for {TARGET}"));
    }
    let mut ask = Command::new("rustc");
    let folder = output(ask.args(["--print", "target-libdir", "--target", TARGET]))?;
    ensure!(
        Path::new(folder.trim()).is_dir(),
        "Rust's standard library for {TARGET} is missing: install rustup, or the package of your \
         distribution that holds {}",
        folder.trim()
    );
    Ok(())
}

fn build() -> Result<PathBuf> {
    let compiler = compiler::bring()?;
    let mut build = cargo();
    build.args(["build", "--release", "--locked", "--package", "lvkeep", "--target", TARGET]);
    build.env(format!("CC_{}", TARGET.replace('-', "_")), compiler);
    // Line tables are most of the file; names of functions stay.
    build.env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo");
    run(&mut build)?;
    Ok(target_dir()?.join(TARGET).join("release/lvkeep"))
}

/// The binary must say its version with nothing in its environment.
fn check_runs(binary: &Path) -> Result<()> {
    let said = output(Command::new(binary).arg("--version").env_clear().current_dir("/"))?;
    ensure!(said.trim() == format!("lvkeep {VERSION}"), "{} --version said {said:?}", binary.display());
    Ok(())
}

/// Puts the binary and its checksum into target/dist.
fn place(content: &[u8]) -> Result<PathBuf> {
    let folder = target_dir()?.join("dist");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let name = format!("lvkeep-{VERSION}-x86_64-linux");
    let placed = folder.join(&name);
    let hash: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    write(&folder, &placed, content, 0o755)?;
    write(&folder, &folder.join(format!("{name}.sha256")), format!("{hash}  {name}\n").as_bytes(), 0o644)?;
    Ok(placed)
}

fn write(folder: &Path, path: &Path, content: &[u8], mode: u32) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    let mut file = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(mode))
        .tempfile_in(folder)
        .with_context(|| format!("cannot write to {}", folder.display()))?;
    file.write_all(content).with_context(|| format!("cannot write {}", path.display()))?;
    file.persist(path).map(drop).with_context(|| format!("cannot write {}", path.display()))
}
