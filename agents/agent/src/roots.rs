//! Reads the roots of many snapshots. One that is damaged is named, and stands in nobody's way.
//!
//! Of such a snapshot nothing is known but its slot. Whoever decides about others must not take it for absent where
//! more would be removed then.

use std::fmt;

use futures::future::try_join_all;
use schema::VolumeKey;
use schema::messages::FailureKind;
use schema::names::Slot;
use schema::root::Root;

use crate::repository::AtSlot;
use crate::{Failure, Repository};

/// Roots read at once.
const AT_ONCE: usize = 16;

/// Snapshots that were read, each in the order of the slots.
#[derive(Debug, Clone, Default)]
pub struct Roots {
    /// What their roots say.
    pub readable: Vec<Root>,
    /// Those whose roots say nothing.
    pub damaged: Vec<DamagedRoot>,
}

/// A snapshot whose root is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedRoot {
    /// Where it stands.
    pub slot: Slot,
    /// What is wrong with it.
    pub why: String,
    /// Whether it is forgotten.
    pub forgotten: bool,
}

impl DamagedRoot {
    /// The same as a failure.
    pub fn failure(&self) -> Failure {
        Failure::damaged(self.to_string())
    }
}

impl fmt::Display for DamagedRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, why) = (self.slot.session, &self.why);
        if self.forgotten {
            return write!(
                f,
                "snapshot {id} is forgotten, and its root is damaged: it cannot be brought back, and `lvkeep prune` removes it \
                 (`lvkeep release {id}` first, where it is held): {why}"
            );
        }
        write!(
            f,
            "the root of snapshot {id} is damaged, so that nobody knows what it holds: bring {} back from elsewhere, or let \
             the snapshot go with `lvkeep forget {id}` ({why})",
            self.slot.snapshot()
        )
    }
}

impl Roots {
    /// Takes one in that was listed and then looked at.
    pub fn add(&mut self, slot: Slot, looked: Result<AtSlot, Failure>) -> Result<(), Failure> {
        match looked {
            Ok(AtSlot::Snapshot(root)) => self.readable.push(*root),
            Ok(AtSlot::Tombstone) => {}
            Ok(AtSlot::Nothing) => return Err(not_there(slot)),
            Err(failure) if failure.kind == FailureKind::Damaged => {
                self.damaged.push(DamagedRoot { slot, why: failure.why, forgotten: false });
            }
            Err(failure) => return Err(failure),
        }
        Ok(())
    }

    /// The same of snapshots that are forgotten.
    pub fn forgotten(mut self) -> Self {
        self.damaged.iter_mut().for_each(|damaged| damaged.forgotten = true);
        self
    }

    /// Those that can be read; the log says which cannot.
    pub fn warned(self) -> Vec<Root> {
        self.damaged.iter().for_each(|damaged| tracing::warn!("{damaged}"));
        self.readable
    }

    /// Those that can be read, unless one cannot.
    pub fn all(self) -> Result<Vec<Root>, Failure> {
        match self.damaged.first() {
            None => Ok(self.readable),
            Some(damaged) => Err(damaged.failure()),
        }
    }
}

impl Repository {
    /// The roots of all visible snapshots, or of one volume's.
    pub async fn roots(&self, volume: Option<VolumeKey>) -> Result<Roots, Failure> {
        self.roots_at(self.visible_slots(volume).await?).await
    }

    /// The roots that stand at these slots, which were listed; those that were swept since are left out.
    pub async fn roots_at(&self, slots: Vec<Slot>) -> Result<Roots, Failure> {
        let mut roots = Roots::default();
        for some in slots.chunks(AT_ONCE) {
            let look = |slot: Slot| async move {
                let mut found = Roots::default();
                found.add(slot, self.at_slot(slot).await).map(|()| found)
            };
            for found in try_join_all(some.iter().map(|slot| look(*slot))).await? {
                roots.readable.extend(found.readable);
                roots.damaged.extend(found.damaged);
            }
        }
        Ok(roots)
    }
}

/// The alarm of a slot that was seen to be taken and is not given: slots are never deleted, so that it is not absent.
pub fn not_there(slot: Slot) -> Failure {
    let key = slot.snapshot();
    let why = format!(
        "the object store has {key} and does not give it, so that nobody knows what it holds: run this again when the store \
         is well"
    );
    Failure { kind: FailureKind::Store, retry: true, why }
}
