//! Where the programs under test and around it come from, and ports for them.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

/// The `lvkeep` under test.
pub struct Binary;

impl Binary {
    /// `LVKEEP_TEST_BIN`, else what `cargo build -p lvkeep` left beside this test.
    pub fn path() -> PathBuf {
        if let Some(path) = std::env::var_os("LVKEEP_TEST_BIN") {
            return existing(path.into(), "LVKEEP_TEST_BIN names no file");
        }
        existing(
            profile_folder().join("lvkeep"),
            "run `cargo build -p lvkeep`, or set LVKEEP_TEST_BIN to its path",
        )
    }
}

/// `target/debug`, or another profile's folder: two above this test's own binary.
fn profile_folder() -> PathBuf {
    let own = std::env::current_exe().expect("a test knows its own path");
    own.ancestors().nth(2).map(Path::to_owned).expect("a test is in a folder deps below the profile's folder")
}

fn existing(path: PathBuf, otherwise: &str) -> PathBuf {
    assert!(path.is_file(), "there is no {}: {otherwise}", path.display());
    path
}

/// A program that `cargo xtask tools` fetches: from `variable`, else the newest in `target/tools/NAME-*`.
pub(crate) fn fetched(name: &str, variable: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return existing(path.into(), &format!("{variable} names no file"));
    }
    let tools = profile_folder().parent().map(|target| target.join("tools")).unwrap_or_default();
    let folders = std::fs::read_dir(&tools).into_iter().flatten().flatten().map(|entry| entry.path());
    let named = |path: &PathBuf| {
        path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&format!("{name}-")))
    };
    let mut found: Vec<PathBuf> =
        folders.filter(named).map(|folder| folder.join(name)).filter(|path| path.is_file()).collect();
    found.sort();
    match found.pop() {
        Some(path) => path,
        None => {
            panic!("no {name} in {}: run `cargo xtask tools`, or set {variable} to its path", tools.display())
        }
    }
}

/// The project's own tool: `LVKEEP_TEST_XTASK`, else what `cargo xtask` left beside this test.
pub fn xtask() -> PathBuf {
    if let Some(path) = std::env::var_os("LVKEEP_TEST_XTASK") {
        return existing(path.into(), "LVKEEP_TEST_XTASK names no file");
    }
    existing(profile_folder().join("xtask"), "run `cargo xtask lab build`")
}

/// A program of the system, also from the folders that only root's PATH has.
pub fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    let mut folders = std::env::split_paths(&path).chain(usual);
    match folders.find_map(|folder| Some(folder.join(name)).filter(|path| path.is_file())) {
        Some(path) => path,
        None => {
            panic!("no {name} on this machine: run `cargo xtask tools`, or install the package that holds it")
        }
    }
}

/// Loopback ports that are free now.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let listeners: [TcpListener; N] =
        std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").expect("a free loopback port"));
    listeners.map(|listener| listener.local_addr().expect("a bound address").port())
}
