//! Where the machine itself gets Debian's packages from, so that the guests get theirs there, too.
//!
//! Reads both forms of apt's sources: one line each, and stanzas.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A suite and its mirrors.
pub struct Sources {
    pub suite: String,
    pub mirror: String,
    /// Empty when the machine has none: then later days upgrade nothing.
    pub security: String,
}

impl Sources {
    /// Those that the machine is set up with.
    pub fn of_machine() -> Result<Self> {
        let release = fs::read_to_string("/etc/os-release").context("cannot tell which system this is")?;
        let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
        let suite = suite.context("/etc/os-release names no Debian suite")?.trim_matches('"');
        let mut texts = vec![PathBuf::from("/etc/apt/sources.list")];
        let folder = Path::new("/etc/apt/sources.list.d");
        texts.extend(crate::tidy::entries(folder).unwrap_or_default());
        let pairs: Vec<_> = texts
            .iter()
            .filter_map(|path| fs::read_to_string(path).ok())
            .flat_map(|text| pairs(&text))
            .collect();
        let uri = |wanted: &str| pairs.iter().find(|(_, suite)| suite == wanted).map(|(uri, _)| uri.clone());
        Ok(Self {
            suite: suite.to_owned(),
            mirror: uri(suite).with_context(|| format!("apt's sources have no suite {suite}"))?,
            security: uri(&format!("{suite}-security")).unwrap_or_default(),
        })
    }
}

/// Every (URI, suite) in a file of either form.
fn pairs(text: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    for line in text.lines().filter_map(|line| line.trim().strip_prefix("deb ")) {
        let mut words =
            line.split_whitespace().skip_while(|word| word.starts_with('[') || word.ends_with(']'));
        if let (Some(uri), Some(suite)) = (words.next(), words.next()) {
            pairs.push((uri.to_owned(), suite.to_owned()));
        }
    }
    for stanza in text.split("\n\n") {
        let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        for uri in field("URIs:").split_whitespace() {
            pairs.extend(field("Suites:").split_whitespace().map(|suite| (uri.to_owned(), suite.to_owned())));
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let lines = "# x\ndeb [signed-by=/k] http://a/debian one main\ndeb http://b two main\n";
        let stanzas = "Types: deb\n# x\nURIs: http://a\nSuites: one two\n\nURIs: http://b\nSuites: three\n";
        let owned = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(uri, suite)| ((*uri).to_owned(), (*suite).to_owned())).collect()
        };
        assert_eq!(pairs(lines), owned(&[("http://a/debian", "one"), ("http://b", "two")]));
        assert_eq!(pairs(stanzas), owned(&[("http://a", "one"), ("http://a", "two"), ("http://b", "three")]));
    }
}
