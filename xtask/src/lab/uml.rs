//! User-mode Linux, Debian's 6.1: a kernel that is a process. Boots in seconds and needs neither KVM nor root.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::guest::{Boot, arguments};
use super::image::{Root, unpack};
use super::packages::Archive;
use crate::run::{find, run};

const PRELOAD: &str = include_str!("preload.c");

/// Adds the kernel to `folder` and its modules to the guest's root; returns what packages that took.
pub fn build(archive: &Archive, root: &Root, folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let package = archive.alone("user-mode-linux")?;
    let unpacked = folder.join("unpacked");
    fs::create_dir_all(&unpacked)?;
    unpack(&package, &unpacked)?;
    let modules = crate::tidy::entries(&unpacked.join("usr/lib/uml/modules"))?;
    let [modules] = modules.as_slice() else {
        anyhow::bail!("user-mode-linux has modules of {} kernels", modules.len())
    };
    let version = modules.file_name().and_then(|name| name.to_str()).context("a kernel without a version")?;
    root.modules(version, modules)?;
    fs::rename(unpacked.join("usr/bin/linux.uml"), folder.join("linux"))?;
    fs::remove_dir_all(&unpacked)?;

    let source = folder.join("preload.c");
    fs::write(&source, PRELOAD)?;
    ensure!(find("cc").is_some(), "the lab compiles a small library: install a C compiler (package `gcc`)");
    run(Command::new("cc")
        .args(["-O2", "-Wall", "-shared", "-fPIC", "-o"])
        .arg(folder.join("preload.so"))
        .arg(source))?;
    Ok(vec![package])
}

/// The guest's kernel, ready to start: its console on standard output, the script's output on standard error.
pub fn command(boot: &Boot<'_>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(boot.lab.join("linux"));
    command.env("LD_PRELOAD", boot.lab.join("preload.so")).env("TMPDIR", boot.memory_folder());
    command
        .arg(format!("mem={}M", boot.memory_mib))
        .args(["root=/dev/ubda", "rw", "rootfstype=ext4", "init=/labinit"])
        .args(["con=null", "con0=null,fd:1", "ssl=null", "ssl0=null,fd:2"])
        .arg(format!(
            "ubda={},{}",
            boot.folder.join("root.layer").display(),
            boot.lab.join("root.ext4").display()
        ))
        .arg(format!("ubdb={}", boot.disks[0].display()))
        .arg(format!("ubdc={}", boot.disks[1].display()))
        .arg(format!("uml_dir={}", boot.folder.display()))
        .args(arguments("uml"))
        .arg(format!("lab.folder={}", boot.shared.display()));
    command
}
