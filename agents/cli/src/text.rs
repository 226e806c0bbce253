//! Text for people: sizes, times, tables, errors.

pub use agent::pattern::matches;
use jiff::Timestamp;
use schema::root::Tracking;
use serde::Serialize;

use crate::times;

/// A size with a binary unit.
pub fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

/// A number with its noun: 1 snapshot, 2 snapshots.
pub fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", of(number, "", "s"))
}

/// What fits a number: `one`, or `many`.
pub fn of<T>(number: u64, one: T, many: T) -> T {
    match number {
        1 => one,
        _ => many,
    }
}

/// A range as options take it.
pub fn range(range: &std::ops::Range<u64>) -> String {
    format!("{}+{}", range.start, range.end - range.start)
}

/// A time in the local time zone; where that cannot be told, as RFC 3339.
pub fn time(ms: u64) -> String {
    let stamp = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    stamp.map_or("?".to_owned(), |t| match times::zone() {
        Ok(zone) => t.to_zoned(zone).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => t.to_string(),
    })
}

/// A time as RFC 3339, for machines.
pub fn rfc3339(ms: u64) -> String {
    let stamp = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    stamp.map_or(String::new(), |t| t.strftime("%FT%T%.3fZ").to_string())
}

/// What several failures came to, each of which was said when it happened; the first decides the exit code.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Summary {
    what: String,
    #[source]
    first: anyhow::Error,
}

/// So many of all failed: in few words where each was said, and otherwise with the first of them.
pub fn failed(what: String, first: anyhow::Error, were_said: bool) -> anyhow::Error {
    match were_said {
        true => Summary { what, first }.into(),
        false => first.context(format!("{what}; the first")),
    }
}

/// An error with its causes on one line, without saying anything twice.
pub fn error(error: &anyhow::Error) -> String {
    let mut out = String::new();
    for cause in error.chain() {
        let is_said = cause.is::<Summary>();
        let words = cause.to_string();
        if !out.contains(&words) {
            if !out.is_empty() {
                out.push_str(": ");
            }
            out.push_str(&words);
        }
        if is_said {
            break;
        }
    }
    out
}

/// What was read for a snapshot, as it is printed.
#[derive(Debug, Serialize)]
pub struct Tracked {
    /// The snapshot since which the changes were known.
    since: Option<String>,
    /// Bytes that may have changed since.
    bytes_changed: Option<u64>,
    /// Bytes that were read again to check that they had not.
    bytes_audited: Option<u64>,
    /// Why everything was read where that was not to be expected.
    why_everything: Option<String>,
}

impl From<&Tracking> for Tracked {
    fn from(tracking: &Tracking) -> Self {
        match tracking {
            Tracking::Everything { why } => {
                Self { since: None, bytes_changed: None, bytes_audited: None, why_everything: why.clone() }
            }
            Tracking::Since { parent, changed, audited } => Self {
                since: Some(parent.to_string()),
                bytes_changed: Some(*changed),
                bytes_audited: Some(*audited),
                why_everything: None,
            },
        }
    }
}

/// The same for people; nothing to say of a volume that is read whole anyway.
pub fn tracking(tracking: &Tracking) -> Option<String> {
    match tracking {
        Tracking::Everything { why } => Some(format!("everything was read: {}", why.as_ref()?)),
        Tracking::Since { parent, changed, audited } => Some(format!(
            "{} may have changed since {parent}; {} of the rest were read again and are the same",
            size(*changed),
            size(*audited)
        )),
    }
}

/// Columns, the last one ragged; numbers are not aligned specially.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with a heading.
    pub fn new(heading: &[&str]) -> Self {
        Self { rows: vec![heading.iter().map(|h| h.to_uppercase()).collect()] }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// The table's text.
    pub fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let line = |row: &Vec<String>| {
            let mut out = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                out.push_str(&format!("{cell:<width$}  "));
            }
            out.trim_end().to_owned()
        };
        self.rows.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_is_not_said_again_and_decides_all_the_same() {
        let first = || anyhow::Error::from(agent::Failure::damaged("a hole"));
        let error = |were_said| failed("2 of 3 restores failed".to_owned(), first(), were_said);
        assert_eq!(super::error(&error(true)), "2 of 3 restores failed");
        assert_eq!(super::error(&error(false)), "2 of 3 restores failed; the first: a hole");
        for were_said in [true, false] {
            let kind =
                error(were_said).chain().find_map(|cause| Some(cause.downcast_ref::<agent::Failure>()?.kind));
            assert_eq!(kind, Some(schema::messages::FailureKind::Damaged));
        }
    }

    #[test]
    fn one_is_no_many() {
        let counted = [0, 1, 2].map(|number| {
            format!("{} {} forgotten", count(number, "forgotten snapshot"), of(number, "is", "are"))
        });
        let [none, one, many] = counted;
        assert_eq!(none, "0 forgotten snapshots are forgotten");
        assert_eq!(one, "1 forgotten snapshot is forgotten");
        assert_eq!(many, "2 forgotten snapshots are forgotten");
    }
}
