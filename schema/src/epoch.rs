//! Epochs of the collector, as sessions read them.
//!
//! A session reads the latest epoch once, after its session object exists: packs that it condemns do not count
//! for that session. With a verdict, exactly the verdict's packs are condemned; before, all that were proposed.

use serde::{Deserialize, Serialize};

use crate::PackId;
use crate::names::Slot;
use crate::object::{Object, ObjectKind};

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
