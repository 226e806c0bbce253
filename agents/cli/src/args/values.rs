//! What options may say, looked at when the command line is read: a slip of the hand is wrong usage of that option, and
//! nothing was begun.
//!
//! Each hands its text on as it is. What it means stands where it is used, for configuration files and plans, too.

use crate::{backup, cat, init, retention, settings, times};

/// Hands a text on that can be read.
fn read<T>(text: &str, read: Result<T, impl ToString>) -> Result<String, String> {
    read.map(|_| text.to_owned()).map_err(|why| why.to_string())
}

/// A size in bytes.
pub fn size(text: &str) -> Result<String, String> {
    read(text, settings::size_of(text))
}

/// Memory of the process.
pub fn memory(text: &str) -> Result<String, String> {
    read(text, settings::size_of(text).and_then(settings::check_memory))
}

/// The size of packs.
pub fn pack_size(text: &str) -> Result<String, String> {
    read(text, init::pack_size(text))
}

/// A length of time.
pub fn seconds(text: &str) -> Result<String, String> {
    read(text, settings::length_of(text))
}

/// How long something is kept.
pub fn within(text: &str) -> Result<String, String> {
    read(text, retention::parse_within(text))
}

/// A moment. Which one it is depends on the zone, which is asked for when it is used.
pub fn time(text: &str) -> Result<String, String> {
    read(text, times::read(text))
}

/// A range of a volume.
pub fn range(text: &str) -> Result<String, String> {
    read(text, cat::range_of(text))
}

/// Where a range begins, or a range.
pub fn offset(text: &str) -> Result<String, String> {
    match text.contains('+') {
        true => range(text),
        false => size(text),
    }
}

/// The name of a volume.
pub fn name(text: &str) -> Result<String, String> {
    read(text, backup::check_name(text))
}

/// What is restored to.
pub fn target(text: &str) -> Result<String, String> {
    let why = "`-` is no target: `lvkeep cat` writes to standard output (`./-` names a file)";
    read(text, if text == "-" { Err(why) } else { Ok(()) })
}
