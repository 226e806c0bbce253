//! The rules of `xtask::tidy`, held against the tree as it is.

use std::fs;

use xtask::tidy::{edges, entries, layout, manifest, source, text_files, unused};
use xtask::workspace::root;

fn none(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn production_files_are_documented() {
    let files = text_files(root()).unwrap();
    assert!(files.iter().filter(|file| file.is_production()).count() > 20, "the walk found too little");
    none(files.iter().filter_map(source::module_docs).collect());
}

#[test]
fn production_files_are_short() {
    none(text_files(root()).unwrap().iter().filter_map(source::length).collect());
}

#[test]
fn roles_do_not_panic_and_no_test_is_ignored() {
    none(text_files(root()).unwrap().iter().flat_map(source::banned_calls).collect());
}

#[test]
fn no_banned_words() {
    none(text_files(root()).unwrap().iter().flat_map(source::banned_words).collect());
}

#[test]
fn crates_see_only_what_they_may() {
    none(edges::forbidden(&manifest::members(root()).unwrap()));
}

#[test]
fn architecture_lists_the_actual_edges() {
    let document = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md can be read");
    let documented = edges::documented(&document).unwrap();
    none(edges::undocumented(&documented, &edges::actual(&manifest::members(root()).unwrap())));
}

#[test]
fn every_dependency_is_used() {
    let members = manifest::members(root()).unwrap();
    none(members.iter().flat_map(|member| unused::of_crate(member).unwrap()).collect());
}

#[test]
fn nothing_strange_lies_at_the_top() {
    let names = entries(root()).unwrap();
    none(layout::top_level(names.iter().filter_map(|path| path.file_name()?.to_str())));
}

#[test]
fn every_crate_takes_the_lints() {
    none(layout::lints(&manifest::members(root()).unwrap()));
}
