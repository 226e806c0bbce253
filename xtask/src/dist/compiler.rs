//! A C compiler for musl that needs neither root nor anything installed: zig, behind a script that names the target
//! as zig does.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::tools;

/// Build scripts name the target by Rust's name, which zig refuses. Without optimisation zig checks for undefined
/// behaviour at run time, which needs a library of its own.
const SCRIPT: &str = r#"#!/bin/sh
for word do
    shift
    case $word in
        --target=*) ;;
        *) set -- "$@" "$word" ;;
    esac
done
export ZIG_GLOBAL_CACHE_DIR='{cache}'
exec '{zig}' cc -target x86_64-linux-musl -fno-sanitize=undefined "$@"
"#;

/// The compiler's path.
pub fn bring() -> Result<PathBuf> {
    let zig = tools::zig()?;
    let folder = tools::folder()?;
    let cache = folder.join("zig-cache");
    let script =
        SCRIPT.replace("{zig}", &zig.display().to_string()).replace("{cache}", &cache.display().to_string());
    let path = folder.join("musl-cc");
    fs::write(&path, script).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}
