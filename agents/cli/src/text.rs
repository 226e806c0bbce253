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
    stamp.map_or(String::new(), |t| t.to_string())
}

/// An error with its causes on one line, without saying anything twice.
pub fn error(error: &anyhow::Error) -> String {
    let mut out = String::new();
    for cause in error.chain() {
        let words = cause.to_string();
        if !out.contains(&words) {
            if !out.is_empty() {
                out.push_str(": ");
            }
            out.push_str(&words);
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
