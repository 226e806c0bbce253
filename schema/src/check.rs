//! A check that agents were given: what is to be read, how far it is, and what it came to.
//!
//! Whoever asks for it creates the object, and sends its name; agents overwrite it as they go on, and whoever takes it back
//! overwrites it with an end. Nothing depends on it but the work that another agent is spared.

use serde::{Deserialize, Serialize};

use crate::limits::{CHECK_DAMAGED_MAX, CHECK_FINDINGS_MAX, CHECK_RANGES_MAX, VOLUME_NAME_MAX};
use crate::messages::FailureKind;
use crate::names::Slot;
use crate::object::{Object, ObjectKind};
use crate::{FormatError, JobId, PackId, Result, SessionId};

/// The body of `checks/<job>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Version of this body.
    pub version: u16,
    /// The job.
    pub job: JobId,
    /// Who asked for it; for people.
    pub by: String,
    /// When, in milliseconds since 1970.
    pub asked_ms: u64,
    /// What of the content is read.
    pub content: Content,
    /// Who is at it.
    pub worker: Option<Worker>,
    /// Attempts since it last came any further.
    pub tries: u32,
    /// How far it is.
    pub reached: Reached,
    /// How it ended.
    pub end: Option<End>,
}

/// What of the content is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// Nothing: the structure alone.
    None,
    /// Everything.
    All,
    /// Packs in order, from the one behind `behind` on, and from the first one after the last, until this share of the
    /// bytes was read.
    Percent {
        /// Of a hundred.
        percent: u8,
        /// Where the check before has stopped.
        behind: Option<PackId>,
    },
    /// One of so many fixed shares of the packs, counted from 1.
    Share {
        /// Which.
        number: u64,
        /// Of how many.
        of: u64,
    },
}

/// An agent that is at a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    /// This attempt.
    pub session: SessionId,
    /// Its host.
    pub host: String,
    /// When it began, in milliseconds since 1970; for people.
    pub begun_ms: u64,
    /// Grows as long as the agent is alive.
    pub beat: u64,
    /// Whether it waits because its agent has other work.
    pub is_paused: bool,
}

/// How far a check is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// Bytes of content that are to be read; none before that is known.
    pub total: u64,
    /// Bytes of them that were.
    pub done: u64,
    /// The last pack of them. What was found up to it is recorded.
    pub behind: Option<PackId>,
    /// Packs of content that were read.
    pub packs: u64,
    /// Chunks in them that the identity does not open.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unopened: u64,
    /// The first of what was found and is not found again by whoever goes on: what is wrong with packs that were read.
    pub found: Vec<Finding>,
    /// How many these are in all; as many as are listed where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects: Option<u64>,
    /// How many of them only say that the identity does not open something.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unopened_in: u64,
    /// Bytes of packs of content of which every frame was read; all that are done where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_read: Option<u64>,
    /// Chunks that were recorded as damaged.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub recorded: u64,
}

/// How a check ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// It was checked.
    Checked(Box<Report>),
    /// It could not be found out, or was taken back ([`FailureKind::Revoked`]).
    Failed {
        /// What to do about it.
        kind: FailureKind,
        /// For the operator.
        why: String,
        /// When, in milliseconds since 1970, where that is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ended_ms: Option<u64>,
    },
}

/// What a check found. Lists may be cut off; the numbers are right all the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// When it ended, in milliseconds since 1970.
    pub ended_ms: u64,
    /// Snapshots that are visible.
    pub snapshots: u64,
    /// Bytes of their volumes.
    pub bytes: u64,
    /// Packs in the listing.
    pub packs: u64,
    /// Packs of which every frame was read.
    pub packs_read: u64,
    /// Bytes of those.
    pub bytes_read: u64,
    /// Objects that are not what they should be: how many.
    pub objects: u64,
    /// The first of them.
    pub found: Vec<Finding>,
    /// Snapshots of which something cannot be read: how many.
    pub damaged: u64,
    /// The first of them.
    pub snapshots_damaged: Vec<DamagedSnapshot>,
    /// Chunks that the identity does not open.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unopened: u64,
    /// How many of the objects are among them only because of these.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unopened_in: u64,
    /// Chunks that have a damaged copy, and another one that snapshots can be read from.
    pub rescued: u64,
    /// Chunks that are recorded as damaged since this check.
    pub recorded: u64,
    /// Why something that was found could not be recorded.
    pub unrecorded: Option<String>,
    /// Chunks that were recorded as damaged and have a copy by now.
    pub healed: u64,
    /// Records that were of no use any more and were removed.
    pub settled: u64,
}

/// An object that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Its key in the bucket.
    pub key: String,
    /// What is wrong, and what that means.
    pub why: String,
}

/// A snapshot of which something cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedSnapshot {
    /// The snapshot.
    pub slot: Slot,
    /// Its volume; none when the root itself cannot be read.
    pub volume: Option<String>,
    /// Bytes that cannot be read.
    pub bytes: u64,
    /// Where they begin, and where they end, in order; the first of them.
    pub lost: Vec<(u64, u64)>,
    /// For people: the first of what is wrong.
    pub problems: Vec<String>,
}

impl Check {
    /// The version that this build writes.
    pub const VERSION: u16 = 1;
}

impl Object for Check {
    const KIND: ObjectKind = ObjectKind::Check;
    const WHAT: &'static str = "check of agents";

    fn decode(body: &[u8]) -> Result<Self> {
        let found: Self = crate::wire::decode_versioned(Self::WHAT, Self::VERSION, body)?;
        at_most("findings", found.reached.found.len(), CHECK_FINDINGS_MAX)?;
        if let Some(End::Checked(report)) = &found.end {
            report.check()?;
        }
        match found.content {
            Content::Percent { percent: 0 | 101.., .. } => {
                Err(FormatError::invalid(Self::WHAT, "its share is not 1 to 100 per cent"))
            }
            Content::Share { number, of } if !(1..=of).contains(&number) => {
                Err(FormatError::invalid(Self::WHAT, format!("there is no share {number}/{of}")))
            }
            _ => Ok(found),
        }
    }
}

impl Report {
    fn check(&self) -> Result<()> {
        at_most("findings", self.found.len(), CHECK_FINDINGS_MAX)?;
        at_most("damaged snapshots", self.snapshots_damaged.len(), CHECK_DAMAGED_MAX)?;
        let ranges = self.snapshots_damaged.iter().map(|damaged| damaged.lost.len()).sum();
        at_most("ranges that are lost", ranges, CHECK_RANGES_MAX)?;
        let names = self.snapshots_damaged.iter().filter_map(|damaged| damaged.volume.as_ref());
        at_most("a volume's name", names.map(String::len).max().unwrap_or(0), VOLUME_NAME_MAX)
    }
}

impl Reached {
    /// How many objects were found, those that are not listed any more included.
    pub fn objects(&self) -> u64 {
        self.objects.unwrap_or(0).max(self.found.len() as u64)
    }
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

fn at_most(what: &'static str, found: usize, limit: usize) -> Result<()> {
    match found <= limit {
        true => Ok(()),
        false => Err(FormatError::TooLarge { what, found: found as u64, limit: limit as u64 }),
    }
}
