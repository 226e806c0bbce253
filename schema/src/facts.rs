//! Facts of a snapshot's layout that more than one agent knows by name, and how long ones are kept short.
//!
//! A layout is text by name. A text that is longer than a few KiB (`vgcfgbackup` of a volume group with hundreds of
//! volumes) travels folded, as base64 of a zstd frame under its name with [`FOLDED`] after it, because every snapshot
//! of every volume carries it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::limits::{FACT_FOLDED_MAX, FACT_MAX, FACT_PLAIN_MAX};
use crate::root::Root;
use crate::{FormatError, RepoId, Result, SessionId};

/// The sources of the run of a group, with blanks between.
pub const GROUP_MEMBERS: &str = "group_members";
/// For how many milliseconds at most the volume's writers were held: from the first freeze to the last thaw, or while
/// LVM took the snapshots.
pub const FROZEN_MS: &str = "frozen_ms";
/// When the volume's snapshot was taken, in milliseconds since 1970 by its host's clock; only where that was before its
/// session began, because a group's snapshots are taken together.
pub const TAKEN_MS: &str = "taken_ms";
/// Which command of the operator's failed after the snapshot was taken, and how.
pub const POST_FAILED: &str = "post_failed";
/// LVM snapshots that were removed before the commit, with blanks between: baselines of other sessions beside which there
/// was no room for one more.
pub const BASELINES_REMOVED: &str = "baselines_removed";
/// How many snapshots of the run of a group were taken one after the other while nothing held their writers.
pub const NOT_HELD: &str = "not_held";
/// LVM's own description of the volume's group, as `vgcfgrestore` takes it.
pub const GROUP_BACKUP: &str = "vgcfgbackup";
/// Why there is no [`GROUP_BACKUP`].
pub const GROUP_BACKUP_LEFT_OUT: &str = "vgcfgbackup_left_out";

/// Where a snapshot was made that is a copy, or was forgotten and came back under another id: [`Origin`] as text.
pub const COPIED_FROM: &str = "copied_from";

/// What follows the name of a fact that is folded.
pub const FOLDED: &str = ".zst.base64";
const LEVEL: i32 = 9;

/// Where a snapshot was made: the same for it, for what came back of it, and for all copies of those.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The repository.
    pub repo: RepoId,
    /// The session that made it there, which is its id.
    pub snapshot: SessionId,
}

impl Origin {
    /// The origin of a snapshot that stands in this repository.
    pub fn of(root: &Root, repo: RepoId) -> Self {
        let copied = root.layout.get(COPIED_FROM).and_then(|text| text.parse().ok());
        copied.unwrap_or(Self { repo, snapshot: root.slot.session })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.repo, self.snapshot)
    }
}

impl FromStr for Origin {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || FormatError::invalid("origin of a copy", format!("{text:?} is not REPOSITORY/SNAPSHOT"));
        let (repo, snapshot) = text.split_once('/').ok_or_else(bad)?;
        Ok(Self { repo: repo.parse()?, snapshot: snapshot.parse()? })
    }
}

/// A fact with a text of any length, as it is kept in a layout.
///
/// Refuses a text of more than [`FACT_MAX`] bytes, and one that has more than [`FACT_FOLDED_MAX`] when it is folded.
pub fn fact(name: &str, text: String) -> Result<(String, String)> {
    if text.len() <= FACT_PLAIN_MAX {
        return Ok((name.to_owned(), text));
    }
    let too_large = |found: usize, limit: usize| FormatError::TooLarge {
        what: "a fact of a volume",
        found: found as u64,
        limit: limit as u64,
    };
    if text.len() > FACT_MAX {
        return Err(too_large(text.len(), FACT_MAX));
    }
    let packed = zstd::bulk::compress(text.as_bytes(), LEVEL)
        .map_err(|why| FormatError::invalid("a fact of a volume", format!("zstd failed: {why}")))?;
    let folded = STANDARD.encode(packed);
    if folded.len() > FACT_FOLDED_MAX {
        return Err(too_large(folded.len(), FACT_FOLDED_MAX));
    }
    Ok((format!("{name}{FOLDED}"), folded))
}

/// A layout with all of its texts in full. One that does not unfold stays as it is: it is for people to read.
pub fn unfolded(layout: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let unfolded = layout.iter().map(|(name, value)| {
        let text = name.strip_suffix(FOLDED).and_then(|name| Some((name.to_owned(), unfold(value)?)));
        text.unwrap_or_else(|| (name.clone(), value.clone()))
    });
    unfolded.collect()
}

fn unfold(value: &str) -> Option<String> {
    let packed = STANDARD.decode(value).ok()?;
    let claimed = zstd::zstd_safe::get_frame_content_size(&packed).ok().flatten()?;
    let length = usize::try_from(claimed).ok().filter(|length| *length <= FACT_MAX)?;
    String::from_utf8(zstd::bulk::decompress(&packed, length).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(name: &str, value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(name.to_owned(), value.to_owned())])
    }

    #[test]
    fn long_texts_are_folded_and_come_back() {
        for length in [0, FACT_PLAIN_MAX, FACT_PLAIN_MAX + 1, 3 << 20] {
            let text: String = (0..)
                .flat_map(|n: u32| format!("volume{n} {{\n").into_bytes())
                .take(length)
                .map(char::from)
                .collect();
            let (name, value) = fact(GROUP_BACKUP, text.clone()).unwrap();
            assert_eq!(name.ends_with(FOLDED), length > FACT_PLAIN_MAX);
            assert!(value.len() <= FACT_PLAIN_MAX.max(length / 5), "{} of {length}", value.len());
            assert_eq!(unfolded(&layout(&name, &value)), layout(GROUP_BACKUP, &text));
        }
    }

    #[test]
    fn what_is_too_long_is_refused() {
        let long = " ".repeat(FACT_MAX + 1);
        assert!(fact("x", long).unwrap_err().to_string().contains("16777217"));
    }

    #[test]
    fn what_does_not_unfold_stays() {
        let bomb = {
            let packed = zstd::bulk::compress(&vec![b' '; FACT_MAX + 1], 1).unwrap();
            STANDARD.encode(packed)
        };
        for value in ["", "!", "AAAA", &bomb] {
            let name = format!("x{FOLDED}");
            assert_eq!(unfolded(&layout(&name, value)), layout(&name, value));
        }
    }
}
