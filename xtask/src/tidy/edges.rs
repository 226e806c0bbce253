//! Which crate may see which, and that ARCHITECTURE.md says so.
//!
//! The document holds the edges in a fenced block that opens with three backticks and `edges`; each line is
//! `crate -> crate, crate` or `crate -> nothing`, one for every package of the workspace, in any order.
//! Dependencies of tests are not listed there.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};

use super::manifest::{Dependency, Manifest};

/// Package names by package name.
pub type Edges = BTreeMap<String, BTreeSet<String>>;

const ROLES: [&str; 10] = [
    "reader",
    "hasher",
    "indexer",
    "storer",
    "conductor",
    "restorer",
    "collector",
    "copier",
    "checker",
    "exporter",
];
const RIMS: [&str; 2] = ["bus-nats", "volume-lvm"];
const BINARY: &str = "lvkeep";

/// The external crates that only some of ours may see.
const RESTRICTED: [(&str, Rule); 3] = [
    ("async-nats", Rule::Only(&["bus-nats"])),
    ("tokio", Rule::Never(&["schema"])),
    (
        "object_store",
        Rule::Only(&[
            "agent",
            "indexer",
            "storer",
            "conductor",
            "restorer",
            "collector",
            "copier",
            "exporter",
            BINARY,
            "tests",
        ]),
    ),
];

enum Rule {
    Only(&'static [&'static str]),
    Never(&'static [&'static str]),
}

/// Whether the code of `from` may see `to`, both ours.
fn may_see(from: &str, to: &str) -> bool {
    let is_part =
        |name: &str| ["schema", "agent"].contains(&name) || ROLES.contains(&name) || RIMS.contains(&name);
    match from {
        "agent" => to == "schema",
        "tests" => is_part(to) || to == BINARY,
        BINARY => is_part(to),
        _ if ROLES.contains(&from) || RIMS.contains(&from) => ["schema", "agent"].contains(&to),
        _ => false,
    }
}

/// Whether the tests of `from` may see `to`, both ours.
fn tests_may_see(from: &str, to: &str) -> bool {
    may_see(from, to) || (from != "xtask" && ["schema", "agent"].contains(&to))
}

/// Complaints about edges that must not be.
pub fn forbidden(members: &[Manifest]) -> Vec<String> {
    let ours: BTreeSet<&str> = members.iter().map(|member| member.name.as_str()).collect();
    let mut complaints = Vec::new();
    for member in members {
        let from = member.name.as_str();
        let shipped = member.dependencies.iter().map(|one| (one, may_see as fn(&str, &str) -> bool));
        let tested = member.dev_dependencies.iter().map(|one| (one, tests_may_see as fn(&str, &str) -> bool));
        for (Dependency { package, .. }, allows) in shipped.chain(tested) {
            if ours.contains(package.as_str()) && !allows(from, package) {
                complaints.push(format!("{from} must not depend on {package}"));
            }
            if restricted(from, package) {
                complaints
                    .push(format!("{from} must not depend on {package}, an external crate kept elsewhere"));
            }
        }
    }
    complaints
}

fn restricted(from: &str, package: &str) -> bool {
    RESTRICTED.iter().filter(|(name, _)| *name == package).any(|(_, rule)| match rule {
        Rule::Only(names) => !names.contains(&from),
        Rule::Never(names) => names.contains(&from),
    })
}

/// The edges that ship, as the manifests have them.
pub fn actual(members: &[Manifest]) -> Edges {
    let ours: BTreeSet<&str> = members.iter().map(|member| member.name.as_str()).collect();
    let of = |member: &Manifest| {
        let packages = member.dependencies.iter().map(|one| one.package.clone());
        packages.filter(|package| ours.contains(package.as_str())).collect()
    };
    members.iter().map(|member| (member.name.clone(), of(member))).collect()
}

/// The edges that a document claims.
pub fn documented(document: &str) -> Result<Edges> {
    let mut lines = document.lines();
    lines.by_ref().find(|line| line.trim_end() == "```edges").context("no block that opens with ```edges")?;
    let mut edges = Edges::new();
    for line in lines.take_while(|line| !line.starts_with("```")) {
        if line.trim().is_empty() {
            continue;
        }
        let Some((from, to)) = line.split_once("->") else {
            bail!("`{line}` is not `crate -> crate, crate`")
        };
        let names = to.split(',').map(|name| name.trim().to_owned());
        let to = names.filter(|name| name != "nothing").collect();
        if edges.insert(from.trim().to_owned(), to).is_some() {
            bail!("`{}` has two lines", from.trim());
        }
    }
    Ok(edges)
}

/// What differs between the document and the manifests.
pub fn undocumented(document: &Edges, actual: &Edges) -> Vec<String> {
    let names: BTreeSet<&String> = document.keys().chain(actual.keys()).collect();
    let shown = |edges: &Edges, name: &String| match edges.get(name) {
        None => "no line".to_owned(),
        Some(to) if to.is_empty() => format!("`{name} -> nothing`"),
        Some(to) => format!("`{name} -> {}`", to.iter().map(String::as_str).collect::<Vec<_>>().join(", ")),
    };
    let differing = names.into_iter().filter(|name| document.get(*name) != actual.get(*name));
    differing
        .map(|name| format!("{name}: documented {}, actual {}", shown(document, name), shown(actual, name)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forbidden_edges_are_found() {
        let good = [
            Manifest::example("schema", &["blake3"], &["proptest"]),
            Manifest::example("agent", &["schema", "tokio", "object_store"], &[]),
            Manifest::example("reader", &["schema", "agent"], &["agent"]),
            Manifest::example("hasher", &["agent"], &[]),
            Manifest::example("bus-nats", &["agent", "async-nats"], &[]),
            Manifest::example("lvkeep", &["schema", "agent", "reader", "bus-nats"], &[]),
            Manifest::example("tests", &["lvkeep", "reader"], &[]),
            Manifest::example("xtask", &["anyhow"], &[]),
        ];
        assert_eq!(forbidden(&good), Vec::<String>::new());

        for (from, to) in [
            ("schema", "agent"),
            ("schema", "tokio"),
            ("reader", "hasher"),
            ("reader", "object_store"),
            ("reader", "async-nats"),
            ("bus-nats", "reader"),
            ("lvkeep", "tests"),
            ("lvkeep", "async-nats"),
            ("xtask", "schema"),
        ] {
            for tests_only in [false, true] {
                let (shipped, tested): (&[&str], &[&str]) =
                    if tests_only { (&[], &[to]) } else { (&[to], &[]) };
                let is_allowed = tests_only && (from, to) == ("schema", "agent");
                let mut members = vec![Manifest::example(from, shipped, tested)];
                members.extend(
                    good.iter()
                        .filter(|one| one.name == to)
                        .map(|one| Manifest::example(&one.name, &[], &[])),
                );
                assert_eq!(
                    forbidden(&members).is_empty(),
                    is_allowed,
                    "{from} -> {to}, tests only: {tests_only}"
                );
            }
        }
    }

    #[test]
    fn the_document_must_agree() {
        let members = [
            Manifest::example("schema", &["blake3"], &[]),
            Manifest::example("agent", &["schema"], &[]),
            Manifest::example("reader", &["schema", "agent"], &[]),
        ];
        let right =
            "# A\n```edges\nschema -> nothing\nagent -> schema\n\nreader -> agent, schema\n```\nrest -> x\n";
        let compare = |text: &str| undocumented(&documented(text).unwrap(), &actual(&members));
        assert_eq!(compare(right), Vec::<String>::new());
        assert_eq!(compare(&right.replace("agent, ", "")).len(), 1);
        assert_eq!(compare(&right.replace("schema -> nothing\n", "")).len(), 1);
        assert_eq!(compare(&right.replace("\n\n", "\ngone -> schema\n")).len(), 1);
        assert!(documented("no block").is_err());
        assert!(documented("```edges\nschema\n```").is_err());
    }
}
