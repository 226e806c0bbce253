//! Cargo's own extensions: taken from PATH when they are there, else built once from crates.io.
//!
//! The build trades the speed of the tool for the speed of the build: both are run for seconds only.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::run::{self, run};
use crate::workspace;

/// One extension and the version that is built where it is missing.
pub struct Extension {
    program: &'static str,
    version: &'static str,
}

pub const NEXTEST: Extension = Extension { program: "cargo-nextest", version: "0.9.143" };
pub const DENY: Extension = Extension { program: "cargo-deny", version: "0.20.2" };

impl Extension {
    /// The program's path, after building it if need be.
    pub fn bring(&self) -> Result<PathBuf> {
        if let Some(found) = run::find(self.program) {
            return Ok(found);
        }
        let tools = super::folder()?;
        let program = tools.join("bin").join(self.program);
        if program.is_file() && run::version(&program, &["--version"]).contains(self.version) {
            return Ok(program);
        }
        eprintln!("tools: building {} {}, once; this takes some minutes", self.program, self.version);
        let scratch = tempfile::tempdir_in(&tools).context("cannot create a folder for the build")?;
        let mut install = workspace::cargo();
        install
            .args([
                "install",
                "--quiet",
                "--locked",
                "--force",
                self.program,
                "--version",
                self.version,
                "--root",
            ])
            .arg(&tools)
            .env("CARGO_TARGET_DIR", scratch.path())
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "false");
        run(&mut install)
            .with_context(|| format!("cannot build {0}; `cargo install {0}` by hand", self.program))?;
        Ok(program)
    }
}
