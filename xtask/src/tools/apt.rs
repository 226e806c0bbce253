//! Programs of the system, from Debian's packages.
//!
//! Installs only as root and only where apt is; anybody else is told what to install.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run::{find, run};

/// The program's path, after installing its package if it is missing and we may.
pub fn ensure(program: &str, package: &str) -> Result<PathBuf> {
    if let Some(found) = find(program) {
        return Ok(found);
    }
    let may_install = rustix::process::geteuid().is_root() && find("apt-get").is_some();
    if !may_install {
        bail!("`{program}` is missing: install it (Debian package `{package}`) or run this as root");
    }
    eprintln!("tools: installing Debian package {package}");
    let apt = || {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive").arg("-qq");
        apt
    };
    // The lists may be absent or old enough to name files that are gone. A broken third-party source is no
    // reason to stop: what matters is whether the install below succeeds.
    if let Err(why) = run(apt().arg("update")) {
        eprintln!("tools: {why:#}; going on with the lists that are there");
    }
    run(apt().args(["install", "--yes", "--no-install-recommends", package]))
        .with_context(|| format!("cannot install `{package}`, which carries `{program}`"))?;
    find(program).with_context(|| format!("package `{package}` installed no `{program}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_used() {
        assert!(ensure("sh", "dash").unwrap().is_absolute());
    }
}
