//! Marks snapshots with what of them cannot be read any more. What the store only does not give now is no hole: it adds
//! none, and takes none away. Nor does anything take one away while not all damage is known.

use std::collections::BTreeSet;
use std::ops::Range;

use agent::repository::AtSlot;
use agent::{Failure, forgetting};
use schema::damage::Holes;
use schema::limits::HOLES_MAX;
use schema::names::{self, Slot};

use crate::findings::join;
use crate::given::{is_damage, is_lost, is_withheld};
use crate::{Checker, DamagedSnapshot, Report};

/// What marking came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marked {
    /// Snapshots that are marked with what was found.
    pub snapshots: u64,
    /// Marks that stay because nobody knows whether they are right.
    pub kept: u64,
    /// Why others could not be marked.
    pub failures: Vec<String>,
}

/// Marking by a report.
struct Marking<'a> {
    checker: &'a Checker,
    report: &'a Report,
    marked: BTreeSet<Slot>,
    failures: Vec<String>,
}

impl Checker {
    /// Marks every snapshot that a report says is damaged, wherever it was brought back since, and takes the marks away
    /// from the others that were looked at and are not forgotten, and from tombstones.
    pub async fn mark(&self, report: &Report) -> Result<Marked, Failure> {
        let mut marking = Marking { checker: self, report, marked: BTreeSet::new(), failures: Vec::new() };
        for damaged in &report.damaged {
            self.source.go_on()?;
            if damaged.is_cut() {
                let volume = damaged.volume.as_deref().unwrap_or("?");
                let why = format!(
                    "{volume} @ {} is not marked: the report does not list all of its holes",
                    damaged.slot
                );
                marking.failures.push(why);
                continue;
            }
            if damaged.gone.is_empty() {
                continue;
            }
            marking.one(damaged, damaged.slot).await?;
            marking.again(damaged).await?;
        }
        let kept = marking.unmark().await?;
        Ok(Marked { snapshots: marking.marked.len() as u64, kept, failures: marking.failures })
    }
}

impl Marking<'_> {
    /// Marks a snapshot that was forgotten since it was looked at wherever it stands again, or is about to. The marks
    /// stand before anybody is looked for whose look may have come before them.
    async fn again(&mut self, damaged: &DamagedSnapshot) -> Result<(), Failure> {
        let Some(root) = &damaged.root else { return Ok(()) };
        let mut looked_at = BTreeSet::new();
        loop {
            let also = forgetting::also_at(&self.checker.source.repository, root).await?;
            let fresh: Vec<Slot> = also.difference(&looked_at).copied().collect();
            if fresh.is_empty() {
                return Ok(());
            }
            for slot in fresh {
                self.one(damaged, slot).await?;
                looked_at.insert(slot);
            }
        }
    }

    /// Marks one slot; what keeps this mark alone from being written is told at the end.
    async fn one(&mut self, damaged: &DamagedSnapshot, slot: Slot) -> Result<(), Failure> {
        let volume = damaged.volume.as_deref().unwrap_or("?");
        let old = match self.old(damaged, slot).await? {
            Ok(old) => old,
            Err(failure) => {
                let why = format!(
                    "{volume} @ {slot} is not marked anew, because its mark cannot be read: {failure}"
                );
                self.failures.push(why);
                return Ok(());
            }
        };
        let mut gone = damaged.gone.clone();
        let is_unrecorded =
            self.report.unrecorded.is_some() || old.as_ref().is_some_and(|old| old.is_unrecorded);
        if let Some(old) = old {
            gone.extend(ranges_of(&old));
            join(&mut gone);
        }
        if gone.len() > HOLES_MAX {
            self.failures.push(format!("{volume} @ {slot} has too many holes to be marked"));
            return Ok(());
        }
        let ranges = gone.iter().map(|range| (range.start, range.end - range.start)).collect();
        let repository = &self.checker.source.repository;
        let found_ms = repository.environment().now_ms();
        let holes = Holes { version: Holes::VERSION, slot, found_ms, ranges, is_unrecorded };
        let key = slot.holes();
        repository.store.put(&key, repository.seal(&key, &holes)?).await?;
        self.marked.insert(slot);
        Ok(())
    }

    /// What a slot is marked with that stays. Inside is why nobody knows.
    async fn old(
        &self,
        damaged: &DamagedSnapshot,
        slot: Slot,
    ) -> Result<Result<Option<Holes>, Failure>, Failure> {
        if !damaged.is_withheld() && self.report.knows_damage(false) {
            return Ok(Ok(None));
        }
        let stays = |old: &Holes| damaged.is_withheld() || !self.report.knows_damage(!old.is_unrecorded);
        match self.read(slot).await? {
            Err(failure) if is_damage(&failure) => Ok(Ok(None)),
            Err(failure) if is_withheld(&failure) => Ok(Err(failure)),
            read => Ok(Ok(read?.filter(stays))),
        }
    }

    async fn read(&self, slot: Slot) -> Result<Result<Option<Holes>, Failure>, Failure> {
        let (source, key) = (&self.checker.source, slot.holes());
        source.given(&key, || source.repository.read::<Holes>(&key)).await
    }

    /// Takes away the marks that are of no use any more; how many others stay because nobody knows.
    async fn unmark(&self) -> Result<u64, Failure> {
        let repository = &self.checker.source.repository;
        let holes = repository.store.list(names::HOLES).await?;
        let short = self.checker.source.short_slots().await?;
        let mut over = short.clone();
        over.extend(&self.report.looked_at);
        // Of a snapshot whose root cannot be read, and of one that is forgotten, nothing new is known.
        self.report.damaged.iter().map(|damaged| damaged.slot).chain(self.marked.iter().copied()).for_each(
            |slot| {
                over.remove(&slot);
            },
        );
        for slot in repository.forgotten_slots(None).await? {
            over.remove(&slot);
        }
        let mut kept = 0;
        for slot in holes.iter().filter_map(|listed| Slot::parse_key(&listed.key).ok()) {
            if !over.contains(&slot) {
                continue;
            }
            let is_short = short.contains(&slot);
            // What is as short as a tombstone may be none, and be brought back.
            if is_short && !matches!(self.checker.source.at_slot(slot).await?, Ok(AtSlot::Tombstone)) {
                continue;
            }
            match is_short || self.is_healed(slot).await? {
                // Where the store does not let it go, the next repair tries again.
                true => {
                    repository.store.delete_or_leave(&slot.holes()).await?;
                }
                false => kept += 1,
            }
        }
        Ok(kept)
    }

    /// Whether it is known that nothing of a snapshot is lost any more, in which nothing was found.
    async fn is_healed(&self, slot: Slot) -> Result<bool, Failure> {
        if self.report.knows_damage(false) {
            return Ok(true);
        }
        if !self.report.knows_damage(true) {
            return Ok(false);
        }
        match self.read(slot).await? {
            Ok(holes) => Ok(holes.is_none_or(|holes| !holes.is_unrecorded)),
            Err(failure) if is_lost(&failure) => Ok(is_damage(&failure)),
            Err(failure) => Err(failure),
        }
    }
}

fn ranges_of(holes: &Holes) -> impl Iterator<Item = Range<u64>> {
    holes.ranges.iter().map(|(start, len)| *start..start.saturating_add(*len))
}
