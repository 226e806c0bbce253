//! Marks snapshots with what of them cannot be read any more. What the store only does not give now is no hole: it adds
//! none, and takes none away.

use std::collections::BTreeSet;
use std::ops::Range;

use agent::{Failure, forgetting};
use schema::damage::Holes;
use schema::limits::HOLES_MAX;
use schema::names::{self, Slot};

use crate::findings::join;
use crate::given::is_damage;
use crate::{Checker, DamagedSnapshot, Report};

impl Checker {
    /// Marks every snapshot that a report says is damaged, wherever it was brought back since, and takes the marks away
    /// from the others that were looked at and are not forgotten, and from tombstones. How many are marked.
    pub async fn mark(&self, report: &Report) -> Result<u64, Failure> {
        let mut marked: BTreeSet<Slot> = BTreeSet::new();
        for damaged in report.damaged.iter().filter(|damaged| !damaged.gone.is_empty()) {
            self.mark_one(damaged, damaged.slot).await?;
            marked.insert(damaged.slot);
            marked.extend(self.mark_again(damaged).await?);
        }
        let repository = &self.source.repository;
        let holes = repository.store.list(names::HOLES).await?;
        let listed = repository.store.list(names::SNAPSHOTS).await?;
        let empty = listed.iter().filter(|listed| listed.size == 0);
        let mut over: BTreeSet<Slot> = empty.filter_map(|listed| Slot::parse_key(&listed.key).ok()).collect();
        over.extend(&report.looked_at);
        // Of a snapshot whose root cannot be read, and of one that is forgotten, nothing new is known.
        report.damaged.iter().map(|damaged| damaged.slot).chain(marked.iter().copied()).for_each(|slot| {
            over.remove(&slot);
        });
        for slot in repository.forgotten_slots(None).await? {
            over.remove(&slot);
        }
        for listed in holes {
            if Slot::parse_key(&listed.key).is_ok_and(|slot| over.contains(&slot)) {
                repository.store.delete(&listed.key).await?;
            }
        }
        Ok(marked.len() as u64)
    }

    /// Marks a snapshot that was forgotten since it was looked at wherever it stands again, or is about to. The marks
    /// stand before anybody is looked for whose look may have come before them.
    async fn mark_again(&self, damaged: &DamagedSnapshot) -> Result<BTreeSet<Slot>, Failure> {
        let mut marked = BTreeSet::new();
        let Some(root) = &damaged.root else { return Ok(marked) };
        loop {
            let also = forgetting::also_at(&self.source.repository, root).await?;
            let fresh: Vec<Slot> = also.difference(&marked).copied().collect();
            if fresh.is_empty() {
                return Ok(marked);
            }
            for slot in fresh {
                self.mark_one(damaged, slot).await?;
                marked.insert(slot);
            }
        }
    }

    async fn mark_one(&self, damaged: &DamagedSnapshot, slot: Slot) -> Result<(), Failure> {
        let mut gone = damaged.gone.clone();
        if damaged.is_withheld() {
            gone.extend(self.holes_of(slot).await?);
            join(&mut gone);
        }
        if gone.len() > HOLES_MAX {
            let volume = damaged.volume.as_deref().unwrap_or("?");
            return Err(Failure::refused(format!(
                "{volume} @ {} has too many holes to be marked",
                damaged.slot
            )));
        }
        let ranges = gone.iter().map(|range| (range.start, range.end - range.start)).collect();
        let found_ms = self.source.repository.environment().now_ms();
        let holes = Holes { version: Holes::VERSION, slot, found_ms, ranges };
        let key = slot.holes();
        Ok(self.source.repository.store.put(&key, self.source.repository.seal(&key, &holes)?).await?)
    }

    /// What a slot is marked with.
    async fn holes_of(&self, slot: Slot) -> Result<Vec<Range<u64>>, Failure> {
        let marked = match self.source.repository.read::<Holes>(&slot.holes()).await {
            Err(failure) if is_damage(&failure) => None,
            read => read?,
        };
        let ranges = marked.map(|holes| holes.ranges).unwrap_or_default();
        Ok(ranges.into_iter().map(|(start, len)| start..start.saturating_add(len)).collect())
    }
}
