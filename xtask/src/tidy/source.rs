//! Rules about single files: documented, short, without leftovers, and without panics in roles.
//!
//! The roles are held to more than the rest because an agent must answer bad input with an error that names
//! the volume, never by ending the process.

use super::TextFile;
use super::lexer::{code_only, without_tests};

/// The longest that the production part of a file may be, in lines.
const LONGEST: usize = 600;

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

/// Every production file begins with what it is for.
pub fn module_docs(file: &TextFile) -> Option<String> {
    let first = file.text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let is_documented = !file.is_production() || first.starts_with("//!");
    (!is_documented).then(|| format!("{}: does not begin with `//!` documentation", file.path))
}

/// A file that grows past the limit holds more than one idea.
pub fn length(file: &TextFile) -> Option<String> {
    if !file.is_production() {
        return None;
    }
    // Positions survive blanking but not the removal of tests, so comments count and tests do not.
    let code = code_only(&file.text);
    let of_tests = code.lines().count() - without_tests(&code).lines().count();
    let lines = file.text.lines().count() - of_tests;
    (lines > LONGEST).then(|| format!("{}: {lines} lines of production code, limit {LONGEST}", file.path))
}

/// Calls that end the process have no place in a role, and a test that is ignored has no place anywhere.
pub fn banned_calls(file: &TextFile) -> Vec<String> {
    if !file.path.ends_with(".rs") {
        return Vec::new();
    }
    let code = code_only(&file.text);
    let mut complaints = found(file, &code, &["#[ignore"]);
    let is_role = file.path.split('/').nth(1).is_some_and(|name| ROLES.contains(&name));
    if is_role && file.path.starts_with("agents/") && file.is_production() {
        let production = without_tests(&code);
        complaints.extend(found(file, &production, &[".unwrap()", "panic!", "todo!", "unimplemented!"]));
    }
    complaints
}

fn found(file: &TextFile, code: &str, banned: &[&str]) -> Vec<String> {
    let hits = banned.iter().filter(|word| code.contains(**word));
    hits.map(|word| format!("{}: `{word}` is not allowed here", file.path)).collect()
}

/// Words that must not reach a published tree: places on somebody's machine, and notes to oneself.
pub fn banned_words(file: &TextFile) -> Vec<String> {
    // Spelled in halves, because this file is checked like any other.
    let banned =
        [["/wo", "rk/"], ["../sha", "red"], ["FIX", "ME"], ["XX", "X"]].map(|halves| halves.concat());
    let lines = file.text.lines().enumerate();
    lines
        .flat_map(|(index, line)| {
            let hits = banned.iter().filter(|word| contains_word(line, word));
            hits.map(|word| format!("{}:{}: `{word}` must not appear", file.path, index + 1))
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Whether the line holds the word and not merely a longer one around it.
fn contains_word(line: &str, word: &str) -> bool {
    let is_letter = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    line.match_indices(word).any(|(at, _)| {
        let starts = !is_letter(line[..at].chars().next_back());
        let ends = word.ends_with('/') || !is_letter(line[at + word.len()..].chars().next());
        starts && ends
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_undocumented_file_is_found() {
        assert!(module_docs(&TextFile::new("schema/src/a.rs", "//! For a.\n")).is_none());
        assert!(module_docs(&TextFile::new("schema/src/tests.rs", "use a;")).is_none());
        assert!(module_docs(&TextFile::new("schema/src/a.rs", "use a;\n//! Late.")).is_some());
        assert!(module_docs(&TextFile::new("schema/src/a.rs", "")).is_some());
    }

    #[test]
    fn a_long_file_is_found_and_its_tests_do_not_count() {
        let lines = "fn f() {}\n".repeat(LONGEST);
        let tests = format!("{lines}#[cfg(test)]\nmod tests {{\n{lines}}}\n");
        assert!(length(&TextFile::new("schema/src/a.rs", &lines)).is_none());
        assert_eq!(length(&TextFile::new("schema/src/a.rs", &tests)), None);
        assert!(length(&TextFile::new("schema/src/a.rs", &format!("{lines}// one more\n"))).is_some());
    }

    #[test]
    fn a_panic_in_a_role_is_found() {
        let call = "//! Docs with .unwrap() in them.\nfn f() { g().unwrap(); }";
        assert_eq!(banned_calls(&TextFile::new("agents/reader/src/a.rs", call)).len(), 1);
        assert_eq!(banned_calls(&TextFile::new("agents/reader/src/tests.rs", call)).len(), 0);
        assert_eq!(banned_calls(&TextFile::new("agents/cli/src/a.rs", call)).len(), 0);
        let in_tests = "#[cfg(test)]\nmod tests { fn f() { panic!(\"no\") } }";
        assert_eq!(banned_calls(&TextFile::new("agents/storer/src/a.rs", in_tests)).len(), 0);
        let ignored = "#[ignore]\nfn f() {}";
        assert_eq!(banned_calls(&TextFile::new("tests/tests/a.rs", ignored)).len(), 1);
    }

    #[test]
    fn leftovers_are_found_by_line() {
        let note =
            ["see FIX", "ME\nmktemp aXX", "XX\n/wo", "rk/x\ntarget/wo", "rk/x\nXX", "X: later"].concat();
        let complaints = banned_words(&TextFile::new("README.md", &note));
        let at = |line: usize| complaints.iter().any(|text| text.starts_with(&format!("README.md:{line}:")));
        assert!(at(1) && !at(2) && at(3) && !at(4) && at(5), "{complaints:?}");
    }
}
