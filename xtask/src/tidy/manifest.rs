//! A crate's Cargo.toml, as far as the rules about dependencies need it.
//!
//! Dependencies under `[target.*]` count like any other, and a renamed one counts by both its names.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use toml::{Table, Value};

use super::entries;

/// One crate of the workspace.
pub struct Manifest {
    /// The package's name.
    pub name: String,
    /// The folder that holds its Cargo.toml.
    pub folder: PathBuf,
    /// Normal and build dependencies: those that ship.
    pub dependencies: Vec<Dependency>,
    /// Dependencies of its tests only.
    pub dev_dependencies: Vec<Dependency>,
    /// Whether it takes the workspace's lints.
    pub inherits_lints: bool,
}

/// One dependency.
#[derive(Clone, Debug)]
pub struct Dependency {
    /// What the code calls it, still with dashes.
    pub name: String,
    /// The package that it is.
    pub package: String,
}

impl Manifest {
    /// Reads the text of a Cargo.toml.
    pub fn parse(text: &str, folder: &Path) -> Result<Self> {
        let table: Table = text.parse()?;
        let name = table.get("package").and_then(|package| package.get("name")).and_then(Value::as_str);
        let inherits = table.get("lints").and_then(|lints| lints.get("workspace")).and_then(Value::as_bool);
        Ok(Self {
            name: name.context("no package name")?.to_owned(),
            folder: folder.to_owned(),
            dependencies: [dependencies(&table, "dependencies"), dependencies(&table, "build-dependencies")]
                .concat(),
            dev_dependencies: dependencies(&table, "dev-dependencies"),
            inherits_lints: inherits == Some(true),
        })
    }

    /// A crate that a unit test makes up.
    pub fn example(name: &str, dependencies: &[&str], dev_dependencies: &[&str]) -> Self {
        let named = |names: &[&str]| {
            let one = |name: &&str| Dependency { name: (*name).to_owned(), package: (*name).to_owned() };
            names.iter().map(one).collect()
        };
        Self {
            name: name.to_owned(),
            folder: PathBuf::new(),
            dependencies: named(dependencies),
            dev_dependencies: named(dev_dependencies),
            inherits_lints: true,
        }
    }
}

fn dependencies(table: &Table, kind: &str) -> Vec<Dependency> {
    let targets = table.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values);
    let tables = targets.filter_map(Value::as_table).chain([table]);
    tables
        .filter_map(|table| table.get(kind)?.as_table())
        .flatten()
        .map(|(name, value)| {
            let package = value.get("package").and_then(Value::as_str).unwrap_or(name);
            Dependency { name: name.clone(), package: package.to_owned() }
        })
        .collect()
}

/// The crates of the workspace, by the same patterns as its Cargo.toml.
pub fn members(root: &Path) -> Result<Vec<Manifest>> {
    let text =
        fs::read_to_string(root.join("Cargo.toml")).context("cannot read the workspace's Cargo.toml")?;
    let table: Table = text.parse().context("cannot parse the workspace's Cargo.toml")?;
    let patterns = table["workspace"]["members"].as_array().context("`workspace.members` is no list")?;
    let mut members = Vec::new();
    for pattern in patterns.iter().filter_map(Value::as_str) {
        let folders = match pattern.strip_suffix("/*") {
            Some(parent) => entries(&root.join(parent))?,
            None => vec![root.join(pattern)],
        };
        for folder in folders.iter().filter(|folder| folder.join("Cargo.toml").is_file()) {
            let path = folder.join("Cargo.toml");
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let manifest = Manifest::parse(&text, folder);
            members.push(manifest.with_context(|| format!("cannot parse {}", path.display()))?);
        }
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_dependency_is_seen() {
        let text = r#"
            package.name = "x"
            lints.workspace = true
            dependencies = { a = "1", b = { package = "bee", version = "1" } }
            build-dependencies.c = "1"
            dev-dependencies.d = "1"
            target.'cfg(unix)'.dependencies.e = "1"
        "#;
        let manifest = Manifest::parse(text, Path::new("")).unwrap();
        let mut packages: Vec<_> = manifest.dependencies.iter().map(|one| one.package.as_str()).collect();
        packages.sort_unstable();
        assert_eq!(packages, ["a", "bee", "c", "e"]);
        assert_eq!(manifest.dev_dependencies[0].package, "d");
        assert!(manifest.inherits_lints);
    }
}
