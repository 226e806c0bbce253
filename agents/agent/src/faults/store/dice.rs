//! What can go wrong with a store, how often, and what did: the settings, the dice and the counts.
//!
//! Deciding is synchronous and draws from one seeded source; the effects are the decorator's.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::time::Duration;

use object_store::path::Path;
use object_store::{PutOptions, PutPayload};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Writes that are late at one time; more fail without an effect.
pub const LATE_MAX: usize = 64;

/// What goes wrong, and how often: chances per thousand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreFaults {
    /// Decides when.
    pub seed: u64,
    /// An operation fails and has no effect; a listing breaks off.
    pub fails_before: u16,
    /// A write or deletion happens and its answer is lost.
    pub fails_after: u16,
    /// A conditional write is answered with `AlreadyExists`, though nothing is there and nothing landed.
    pub false_exists: u16,
    /// A write fails and happens later, some operations on.
    pub late_write: u16,
    /// The body of a GET ends early, in silence or with an error.
    pub cut_body: u16,
    /// The body of a GET has one bit turned.
    pub flipped_bit: u16,
    /// An operation takes its time, up to `slow_max`.
    pub slow: u16,
    /// How long a slow operation takes at most.
    pub slow_max: Duration,
}

/// How one write fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteFault {
    /// An error, and nothing happened.
    Before,
    /// It happened, and an error is answered.
    After,
    /// `AlreadyExists`, and nothing happened.
    Exists,
    /// An error, and it happens some operations later.
    Late,
    /// It is said to have happened, and did not: no store may do that, and a commit is looked at because of it.
    Swallowed,
}

/// What a store refuses until told otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Everything: the credentials are worth nothing (403).
    Everything,
    /// Writes and deletions: the credentials only read (403).
    Writes,
    /// Deletions: nothing may go, as a bucket's rules may say (403).
    Deletions,
    /// Writes: no space is left.
    Full,
}

/// Faults injected so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Injected {
    /// Operations that failed without an effect.
    pub failed_before: u64,
    /// Operations that had their effect and failed.
    pub failed_after: u64,
    /// False answers that an object exists.
    pub false_exists: u64,
    /// Writes that failed and happen later.
    pub late_writes: u64,
    /// Bodies that ended early.
    pub cut_bodies: u64,
    /// Bodies with a turned bit.
    pub flipped_bits: u64,
    /// Operations that took their time.
    pub slow: u64,
    /// Operations refused for good: no permission, no space.
    pub refused: u64,
    /// Operations that met a crashed store.
    pub crashed: u64,
}

impl Injected {
    /// All of them together.
    pub fn total(&self) -> u64 {
        self.failed_before
            + self.failed_after
            + self.false_exists
            + self.late_writes
            + self.cut_bodies
            + self.flipped_bits
            + self.slow
            + self.refused
            + self.crashed
    }
}

pub(super) struct LateWrite {
    pub(super) operations: u32,
    pub(super) location: Path,
    pub(super) payload: PutPayload,
    pub(super) options: PutOptions,
}

pub(super) struct State {
    pub(super) faults: StoreFaults,
    pub(super) random: StdRng,
    pub(super) planned: Vec<(u64, WriteFault)>,
    pub(super) first_writes: Option<WriteFault>,
    pub(super) written: HashSet<Path>,
    pub(super) refusal: Option<Refusal>,
    pub(super) ignores_create: bool,
    pub(super) hidden: Option<Path>,
    pub(super) locked: Option<Path>,
    pub(super) turning: Option<(Path, u64)>,
    pub(super) withheld: BTreeMap<Path, Option<Range<u64>>>,
    pub(super) kept_back: Option<Path>,
    pub(super) crashed: bool,
    pub(super) late: Vec<LateWrite>,
    pub(super) injected: Injected,
}

impl State {
    pub(super) fn new(faults: StoreFaults) -> Self {
        Self {
            random: StdRng::seed_from_u64(faults.seed),
            faults,
            planned: Vec::new(),
            first_writes: None,
            written: HashSet::new(),
            refusal: None,
            ignores_create: false,
            hidden: None,
            locked: None,
            turning: None,
            withheld: BTreeMap::new(),
            kept_back: None,
            crashed: false,
            late: Vec::new(),
            injected: Injected::default(),
        }
    }

    pub(super) fn falls(&mut self, per_mille: u16) -> bool {
        per_mille > 0 && self.random.random_range(0..1000) < per_mille
    }

    /// What happens to this write, planned faults first.
    pub(super) fn write_fault(&mut self, location: &Path, create: bool) -> Option<WriteFault> {
        for (left, _) in &mut self.planned {
            *left = left.saturating_sub(1);
        }
        let planned = self.planned.iter().position(|(left, _)| *left == 0);
        let planned = planned.map(|at| self.planned.swap_remove(at).1);
        let first = self.first_writes.filter(|_| self.written.insert(location.clone()));
        let faults = self.faults.clone();
        let fault = planned.or(first).or_else(|| {
            let chances = [
                (WriteFault::Before, faults.fails_before),
                (WriteFault::After, faults.fails_after),
                (WriteFault::Exists, if create { faults.false_exists } else { 0 }),
                (WriteFault::Late, faults.late_write),
            ];
            chances.into_iter().find(|(_, chance)| self.falls(*chance)).map(|(fault, _)| fault)
        });
        let fault = match fault {
            Some(WriteFault::Late) if self.late.len() >= LATE_MAX => Some(WriteFault::Before),
            fault => fault,
        };
        match fault {
            Some(WriteFault::Before | WriteFault::Swallowed) => self.injected.failed_before += 1,
            Some(WriteFault::After) => self.injected.failed_after += 1,
            Some(WriteFault::Exists) => self.injected.false_exists += 1,
            Some(WriteFault::Late) => self.injected.late_writes += 1,
            None => {}
        }
        fault
    }

    /// Whether a bit is to turn in this body of an object.
    pub(super) fn turns(&mut self, location: &Path) -> bool {
        let Some((_, left)) = self.turning.as_mut().filter(|(turning, _)| turning == location) else {
            return false;
        };
        *left = left.saturating_sub(1);
        let is_due = *left == 0;
        if is_due {
            self.turning = None;
        }
        is_due
    }

    /// One operation has gone by: which late writes land now.
    pub(super) fn due(&mut self) -> Vec<LateWrite> {
        let late = std::mem::take(&mut self.late);
        let (due, later) = late.into_iter().partition(|write| write.operations == 0);
        self.late = later;
        self.late.iter_mut().for_each(|write| write.operations -= 1);
        due
    }
}
