//! Epochs of the collector, as sessions read them.
//!
//! A session reads the latest epoch once, after its session object exists: packs that it condemns do not count
//! for that session. With a verdict, exactly the verdict's packs are condemned; before, all that were proposed.

use serde::{Deserialize, Serialize};

use crate::names::Slot;
use crate::object::{Object, ObjectKind};
use crate::{PackId, SessionId};

/// The body of `gc/<n>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// Its number.
    pub number: u64,
    /// The forgotten snapshots that it sweeps.
    pub forgotten: Vec<Slot>,
    /// The packs that it proposes to delete.
    pub condemned: Vec<PackId>,
}

impl Object for Epoch {
    const KIND: ObjectKind = ObjectKind::Epoch;
    const WHAT: &'static str = "epoch";
}

/// The body of `gc/<n>.verdict`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The epoch that it belongs to.
    pub number: u64,
    /// The packs to delete.
    pub delete: Vec<PackId>,
}

impl Object for Verdict {
    const KIND: ObjectKind = ObjectKind::Verdict;
    const WHAT: &'static str = "verdict";
}

/// The body of `gc/<n>.sessions`: the sessions that were open when the epoch stood there already.
///
/// Any listing that was made after the epoch is right, so that the first one is kept for everybody: a collector that
/// comes later need not wait for sessions that have read the epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Awaited {
    /// The epoch.
    pub number: u64,
    /// The sessions whose end it waits for.
    pub sessions: Vec<SessionId>,
}

impl Object for Awaited {
    const KIND: ObjectKind = ObjectKind::Awaited;
    const WHAT: &'static str = "list of awaited sessions";
}
