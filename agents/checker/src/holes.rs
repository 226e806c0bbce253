//! Marks snapshots with what of them cannot be read any more.

use std::collections::BTreeSet;

use agent::Failure;
use schema::damage::Holes;
use schema::limits::HOLES_MAX;
use schema::names::{self, Slot};

use crate::{Checker, DamagedSnapshot, Report};

impl Checker {
    /// Marks every snapshot that a report says is damaged, and takes the marks away from all others but those that are
    /// forgotten and may come back. How many are marked.
    pub async fn mark(&self, report: &Report) -> Result<u64, Failure> {
        let mut marked: BTreeSet<Slot> = BTreeSet::new();
        for damaged in report.damaged.iter().filter(|damaged| !damaged.lost.is_empty()) {
            self.mark_one(damaged).await?;
            marked.insert(damaged.slot);
        }
        let repository = &self.source.repository;
        let listed = repository.store.list(names::HOLES).await?;
        // Of a snapshot whose root cannot be read, and of one that is forgotten, nothing new is known.
        let mut unread: BTreeSet<Slot> = report.damaged.iter().map(|damaged| damaged.slot).collect();
        unread.extend(repository.forgotten_slots(None).await?);
        for listed in listed {
            let Ok(slot) = Slot::parse_key(&listed.key) else { continue };
            if !unread.contains(&slot) {
                repository.store.delete(&listed.key).await?;
            }
        }
        Ok(marked.len() as u64)
    }

    async fn mark_one(&self, damaged: &DamagedSnapshot) -> Result<(), Failure> {
        if damaged.lost.len() > HOLES_MAX {
            let volume = damaged.volume.as_deref().unwrap_or("?");
            return Err(Failure::refused(format!(
                "{volume} @ {} has too many holes to be marked",
                damaged.slot
            )));
        }
        let ranges = damaged.lost.iter().map(|range| (range.start, range.end - range.start)).collect();
        let found_ms = self.source.repository.environment().now_ms();
        let holes = Holes { version: Holes::VERSION, slot: damaged.slot, found_ms, ranges };
        let key = damaged.slot.holes();
        Ok(self.source.repository.store.put(&key, self.source.repository.seal(&key, &holes)?).await?)
    }
}
