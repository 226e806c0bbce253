//! Dependencies that nothing uses.
//!
//! Looks for the crate's name where code names crates: before `::`, in a `use`, or at the start of a literal
//! (serde's `with = "serde_bytes"`). That may miss an unused one, but never accuses a used one.

use std::path::Path;

use anyhow::Result;

use super::lexer::without_comments;
use super::manifest::Manifest;
use super::text_files;

/// Complaints about one crate's dependencies.
pub fn of_crate(member: &Manifest) -> Result<Vec<String>> {
    let shipped = code(&member.folder, &["src", "build.rs"])?;
    let tested = code(&member.folder, &["src", "tests", "benches", "examples"])?;
    Ok(unused(member, &shipped, &tested))
}

/// The same, from the code that ships and the code that tests see, both without comments.
pub fn unused(member: &Manifest, shipped: &str, tested: &str) -> Vec<String> {
    let shipped = member.dependencies.iter().filter(|one| !is_named(shipped, &one.name));
    let tested = member.dev_dependencies.iter().filter(|one| !is_named(tested, &one.name));
    shipped
        .chain(tested)
        .map(|one| format!("{}: dependency `{}` is not used", member.name, one.name))
        .collect()
}

fn code(folder: &Path, parts: &[&str]) -> Result<String> {
    let mut code = String::new();
    for file in text_files(folder)? {
        let first = file.path.split('/').next().unwrap_or_default();
        if parts.contains(&first) && file.path.ends_with(".rs") {
            code.push_str(&without_comments(&file.text));
        }
    }
    Ok(code)
}

fn is_named(code: &str, dependency: &str) -> bool {
    let name = dependency.replace('-', "_");
    let is_letter = |c: char| c.is_alphanumeric() || c == '_';
    code.lines().any(|line| {
        let trimmed = line.trim_start();
        let is_use = ["use ", "pub use ", "pub(crate) use ", "extern crate "]
            .iter()
            .any(|word| trimmed.starts_with(word));
        line.match_indices(&name).any(|(at, _)| {
            let (before, after) = (&line[..at], &line[at + name.len()..]);
            let is_whole = !before.ends_with(is_letter) && !after.starts_with(is_letter);
            is_whole && (is_use || before.ends_with('"') || after.trim_start().starts_with("::"))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unused_dependency_is_found() {
        let member = Manifest::example("x", &["age", "serde-bytes", "rand"], &["proptest"]);
        let shipped = "use rand::Rng;\nfn f(age: u8) { self.age }\n#[serde(with = \"serde_bytes\")]";
        let complaints = unused(&member, shipped, "proptest::proptest! {}");
        assert_eq!(complaints, ["x: dependency `age` is not used"]);
        assert_eq!(unused(&member, "age::x(); serde_bytes::y(); rand::z()", "").len(), 1);
    }
}
