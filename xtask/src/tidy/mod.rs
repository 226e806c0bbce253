//! The rules of the source tree that no compiler checks, as functions from text to complaints.
//!
//! `xtask/tests/tidy.rs` runs them on the real tree; the unit tests beside each rule show that it can fail.
//! A rule never edits anything and never has exceptions by file: whoever needs one changes the rule.

pub mod edges;
pub mod layout;
pub mod lexer;
pub mod manifest;
pub mod source;
pub mod unused;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A text file of the project, by its path below the top.
pub struct TextFile {
    /// Relative to the top, with `/`.
    pub path: String,
    /// All of it.
    pub text: String,
    /// Whether another file has it as a module under `#[cfg(test)]`.
    is_test_module: bool,
}

impl TextFile {
    /// A file by itself.
    pub fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned(), is_test_module: false }
    }

    /// Whether this is Rust that ships, as opposed to tests of it.
    pub fn is_production(&self) -> bool {
        let mut parts = self.path.split('/');
        let of_tests = |part: &str| ["tests", "tests.rs", "benches", "examples"].contains(&part);
        self.path.ends_with(".rs") && !self.is_test_module && !parts.any(of_tests)
    }
}

/// Every text file of the project: what cargo builds into and what git keeps for itself is left out.
pub fn text_files(root: &Path) -> Result<Vec<TextFile>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in entries(&folder)? {
            let is_ours =
                path.parent() != Some(root) || !(path.ends_with(".git") || path.ends_with("target"));
            if path.is_dir() && is_ours {
                folders.push(path);
            } else if path.is_file() && !path.ends_with("Cargo.lock") {
                let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                let Ok(text) = String::from_utf8(content) else { continue };
                files.push(TextFile::new(&relative(root, &path), &text));
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    mark_test_modules(&mut files);
    Ok(files)
}

fn mark_test_modules(files: &mut [TextFile]) {
    let mut modules = Vec::new();
    for file in files.iter().filter(|file| file.path.ends_with(".rs")) {
        let (folder, name) = file.path.rsplit_once('/').unwrap_or(("", &file.path));
        let home = match name {
            "lib.rs" | "main.rs" | "mod.rs" => folder.to_owned(),
            _ => file.path.trim_end_matches(".rs").to_owned(),
        };
        let code = lexer::code_only(&file.text);
        modules.extend(lexer::test_modules(&code).iter().map(|module| format!("{home}/{module}")));
    }
    for file in files {
        let is_in = |module: &String| {
            file.path.strip_prefix(module.as_str()).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        };
        file.is_test_module = modules.iter().any(is_in);
    }
}

/// The entries of a folder, sorted.
pub fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut paths = read.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn relative(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).to_string_lossy().replace('\\', "/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_modules_in_files_of_their_own_are_no_production() {
        let mut files = [
            TextFile::new("agents/a/src/lib.rs", "mod b;\n#[cfg(test)]\nmod testing;"),
            TextFile::new("agents/a/src/b.rs", "#[cfg(test)]\nmod cases;"),
            TextFile::new("agents/a/src/testing.rs", ""),
            TextFile::new("agents/a/src/b/cases/deep.rs", ""),
        ];
        mark_test_modules(&mut files);
        assert_eq!(files.each_ref().map(TextFile::is_production), [true, true, false, false]);
    }
}
