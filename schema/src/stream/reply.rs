//! What an `apply` answers while a stream comes: one line of text each, so that a person can read it, too.
//!
//! ```text
//! lvkeep-apply 1 ready
//! lvkeep-apply 1 durable RECORDS
//! lvkeep-apply 1 done RECORDS WRITTEN ZEROED SAVED
//! lvkeep-apply 1 failed KIND again|final TEXT
//! ```
//!
//! Lines that begin otherwise are no answers: login shells print greetings of their own.

use std::fmt;

use crate::messages::FailureKind;
use crate::{FormatError, Result};

const WHAT: &str = "answer to a change stream";
const PREFIX: &str = "lvkeep-apply ";
const VERSION: u16 = 1;

/// What was done with a stream, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// Records applied.
    pub records: u64,
    /// Content written.
    pub written: u64,
    /// Made to read as zero.
    pub zeroed: u64,
    /// Kept in the snapback.
    pub saved: u64,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The target is open and fits: records may come.
    Ready,
    /// Every record below this number is on stable storage.
    Durable(u64),
    /// All of it is.
    Done(Applied),
    /// It was given up.
    Failed {
        /// What is at fault.
        kind: FailureKind,
        /// The same may succeed later.
        again: bool,
        /// For the operator.
        why: String,
    },
}

const KINDS: [(&str, FailureKind); 6] = [
    ("device", FailureKind::Device),
    ("store", FailureKind::Store),
    ("refused", FailureKind::Refused),
    ("damaged", FailureKind::Damaged),
    ("revoked", FailureKind::Revoked),
    ("other", FailureKind::Other),
];

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{VERSION} ")?;
        match self {
            Self::Ready => write!(f, "ready"),
            Self::Durable(records) => write!(f, "durable {records}"),
            Self::Done(Applied { records, written, zeroed, saved }) => {
                write!(f, "done {records} {written} {zeroed} {saved}")
            }
            Self::Failed { kind, again, why } => {
                let kind = KINDS.iter().find(|(_, known)| known == kind).map_or("other", |(name, _)| name);
                let again = if *again { "again" } else { "final" };
                let why = why.replace(['\n', '\r'], " ");
                let fits = (0..=why.len().min(2048)).rev().find(|at| why.is_char_boundary(*at)).unwrap_or(0);
                write!(f, "failed {kind} {again} {}", &why[..fits])
            }
        }
    }
}

impl Reply {
    /// Reads one line without its end; none when it is no answer.
    pub fn parse(line: &str) -> Result<Option<Self>> {
        let Some(rest) = line.strip_prefix(PREFIX) else { return Ok(None) };
        let wrong = || FormatError::invalid(WHAT, format!("{:?}", rest.chars().take(80).collect::<String>()));
        let (version, rest) = rest.split_once(' ').ok_or_else(wrong)?;
        match version.parse::<u16>() {
            Ok(VERSION) => {}
            Ok(found) => return Err(FormatError::UnknownVersion { what: WHAT, found, known: VERSION }),
            Err(_) => return Err(wrong()),
        }
        let (word, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let reply = match word {
            "ready" if rest.is_empty() => Some(Self::Ready),
            "durable" => numbers(rest).map(|[records]| Self::Durable(records)),
            "done" => numbers(rest).map(|[records, written, zeroed, saved]| {
                Self::Done(Applied { records, written, zeroed, saved })
            }),
            "failed" => failed(rest),
            _ => None,
        };
        reply.map(Some).ok_or_else(wrong)
    }
}

fn numbers<const N: usize>(text: &str) -> Option<[u64; N]> {
    let mut words = text.split(' ');
    let mut out = [0; N];
    for place in &mut out {
        *place = words.next()?.parse().ok()?;
    }
    words.next().is_none().then_some(out)
}

fn failed(text: &str) -> Option<Reply> {
    let mut words = text.splitn(3, ' ');
    let (kind, again, why) = (words.next()?, words.next()?, words.next()?);
    let (_, kind) = KINDS.iter().find(|(name, _)| *name == kind)?;
    let again = match again {
        "again" => true,
        "final" => false,
        _ => return None,
    };
    Some(Reply::Failed { kind: *kind, again, why: why.to_owned() })
}
