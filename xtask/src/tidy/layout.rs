//! What may lie at the top, and that every crate takes the workspace's lints.

use super::manifest::Manifest;

const ALLOWED: [&str; 20] = [
    ".cargo",
    ".ci",
    ".config",
    ".git",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "README.md",
    "agents",
    "clippy.toml",
    "deny.toml",
    "deploy",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "schema",
    "tests",
    "xtask",
];

/// Complaints about names at the top that nobody agreed on.
pub fn top_level<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let is_allowed = |name: &str| ALLOWED.contains(&name) || name.starts_with("LICENSE") || name == "target";
    let strangers = names.into_iter().filter(|name| !is_allowed(name));
    strangers.map(|name| format!("`{name}` does not belong at the top")).collect()
}

/// Complaints about crates with lints of their own.
pub fn lints(members: &[Manifest]) -> Vec<String> {
    let others = members.iter().filter(|member| !member.inherits_lints);
    others.map(|member| format!("{}: lacks `[lints] workspace = true`", member.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_at_the_top_is_found() {
        assert_eq!(top_level(["README.md", "LICENSE-MIT", "target"]), Vec::<String>::new());
        assert_eq!(top_level(["docs", "schema"]), ["`docs` does not belong at the top"]);
    }

    #[test]
    fn a_crate_without_the_lints_is_found() {
        let good = Manifest::example("a", &[], &[]);
        let bad = Manifest { inherits_lints: false, ..Manifest::example("b", &[], &[]) };
        assert_eq!(lints(&[good, bad]), ["b: lacks `[lints] workspace = true`"]);
    }
}
