//! Where the golden files are.

use std::path::PathBuf;

/// The folder of the golden files of version 1.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1")
}

/// Names and bytes of all golden files, by name.
pub fn all() -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(folder())
        .unwrap_or_else(|why| panic!("{}: {why}", folder().display()))
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    assert!(files.len() > 40, "golden files are missing from {}", folder().display());
    files
}
