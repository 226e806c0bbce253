//! Records of damage: written as soon as something is found, removed when they are of no use any more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use agent::Failure;
use agent::damage::{self, Damages};
use agent::store::Created;
use schema::damage::{Damage, DamagedChunk};
use schema::limits::{DAMAGED_CHUNKS_MAX, DAMAGED_PACKS_MAX};
use schema::messages::{About, Copy};
use schema::{ChunkId, PackId, names};

use crate::findings::Report;
use crate::maps::Lost;
use crate::packs::Packs;
use crate::{Checker, Found};

/// What is said of a pack that was recorded before, and that snapshots may lack.
pub(crate) const RECORDED: &str =
    "it is recorded as one that nobody can rely on, and snapshots lack what it may have held";
/// More was found than there is room for.
const NO_ROOM: &str = "more is damaged than can be recorded: check again after the next backups";

/// Why something that was found is not recorded.
#[derive(Default)]
pub(crate) struct Unrecorded {
    /// Why the last attempt failed: until one succeeds, nobody can go on behind what was found.
    failed: Mutex<Option<String>>,
    /// There is no room for more, which another attempt would not change.
    is_full: AtomicBool,
}

impl Unrecorded {
    fn failed(&self) -> MutexGuard<'_, Option<String>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether another attempt is due.
    pub(crate) fn is_pending(&self) -> bool {
        self.failed().is_some()
    }

    /// Whether there is no room for more.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    /// For people.
    pub(crate) fn why(&self) -> Option<String> {
        self.failed().clone().or_else(|| self.is_full().then(|| NO_ROOM.to_owned()))
    }
}

impl Checker {
    /// Records what is not recorded yet; how many chunks that are.
    pub(crate) async fn record(
        &self,
        recorded: &mut Damages,
        unreadable: &BTreeSet<PackId>,
        found: impl Iterator<Item = (ChunkId, Vec<PackId>)>,
    ) -> Result<u64, Failure> {
        if !self.settings.record {
            return Ok(0);
        }
        // Others may have recorded something since. What they have is none of what this check relies on.
        let now = match Damages::load(&self.source.repository).await {
            Ok(now) => now,
            Err(failure) => return Ok(self.not_recorded(failure)),
        };
        let fresh = unreadable.difference(now.packs()).count();
        let room = DAMAGED_PACKS_MAX.saturating_sub(now.packs().len());
        let packs: Vec<PackId> = unreadable.difference(now.packs()).take(room).copied().collect();
        let mut chunks: BTreeMap<ChunkId, Vec<PackId>> = BTreeMap::new();
        for (id, packs) in found {
            let fresh: Vec<PackId> = packs.into_iter().filter(|pack| !now.has(&id, pack)).collect();
            if !fresh.is_empty() || !now.names(&id) {
                chunks.entry(id).or_default().extend(fresh);
            }
        }
        let room = DAMAGED_CHUNKS_MAX.saturating_sub(now.chunks().count());
        if fresh > packs.len() || chunks.len() > room {
            self.too_much();
        }
        let chunks: Vec<DamagedChunk> =
            chunks.into_iter().take(room).map(|(id, packs)| DamagedChunk { id, packs }).collect();
        if packs.is_empty() && chunks.is_empty() {
            self.unrecorded.failed().take();
            return Ok(0);
        }
        let count = chunks.len() as u64;
        let environment = self.source.repository.environment();
        let (found_ms, host) = (environment.now_ms(), self.settings.host.clone());
        let record = Damage { version: Damage::VERSION, found_ms, host, packs, chunks };
        let id = environment.damage_id();
        let key = names::damage(id);
        match self.source.repository.store.create(&key, self.source.repository.seal(&key, &record)?).await {
            Ok(Created::Won) => {
                recorded.add(id, &record);
                self.unrecorded.failed().take();
                Ok(count)
            }
            Ok(Created::Lost(_)) => {
                Err(Failure::refused(format!("{key} exists already: names must be fresh")))
            }
            Err(error) => Ok(self.not_recorded(error.into())),
        }
    }

    fn not_recorded(&self, failure: Failure) -> u64 {
        tracing::warn!(%failure, "what was found is not recorded");
        *self.unrecorded.failed() = Some(failure.to_string());
        0
    }

    /// More is damaged than can be recorded.
    pub(crate) fn too_much(&self) {
        if self.settings.record && !self.unrecorded.is_full.swap(true, Ordering::Relaxed) {
            tracing::warn!(why = NO_ROOM, "what was found is not recorded");
        }
    }

    /// Which of these chunks have a copy to rely on, as far as is known now.
    pub(crate) async fn healed(
        &self,
        ids: &[ChunkId],
        packs: &Packs,
        recorded: &Damages,
    ) -> Result<BTreeSet<ChunkId>, Failure> {
        if ids.is_empty() {
            return Ok(BTreeSet::new());
        }
        let about = About { session: None, volume: String::new() };
        let copies = self.index.locate(&about, ids).await?;
        let is_whole = |(id, copies): &(&ChunkId, Vec<Copy>)| {
            copies.iter().any(|copy| packs.trouble(id, copy, recorded).is_none())
        };
        Ok(ids.iter().zip(copies).filter(is_whole).map(|(id, _)| *id).collect())
    }

    /// Packs that were recorded before as ones of which nothing can be read: one is told of as long as it is there and
    /// snapshots lack something that may be in it. What is told of others stands elsewhere again, or nobody needs it.
    pub(crate) fn tell_recorded(&self, recorded: &Damages, packs: &Packs, lost: &Lost, report: &mut Report) {
        let is_unknown = lost.values().any(Vec::is_empty);
        let lacking: BTreeSet<&PackId> = lost.values().flatten().collect();
        for pack in recorded.packs().iter().filter(|pack| packs.lists(pack)) {
            match is_unknown || lacking.contains(pack) {
                true => report.object(names::pack(*pack), RECORDED),
                false => {
                    tracing::info!(%pack, "nobody lacks what a pack held of which nothing can be read: collections delete it")
                }
            }
        }
    }

    /// Counts what has healed, and removes records that say nothing any more.
    pub(crate) async fn settle(&self, found: &mut Found) -> Result<(), Failure> {
        let Found { report, recorded, packs, lost, .. } = found;
        let ids: Vec<ChunkId> = recorded.chunks().map(|(id, _)| *id).collect();
        let healed = self.healed(&ids, packs, recorded).await?;
        report.healed = healed.len() as u64;
        // A copy that is none must not count when its record is gone: its pack must be gone before.
        let is_over = |chunk: &DamagedChunk| {
            let is_needed = lost.contains_key(&chunk.id) && !healed.contains(&chunk.id);
            // Where a copy turned out to be one, the record was wrong.
            let is_there = |pack: &PackId| packs.lists(pack) && !packs.is_proven(&chunk.id, pack);
            !is_needed && !chunk.packs.iter().any(is_there)
        };
        for (id, record) in damage::records(&self.source.repository).await? {
            // What others recorded since may be of packs that are newer than the listing.
            if !recorded.has_read(&id) {
                continue;
            }
            let Ok(record) = record else { continue };
            let is_over =
                record.chunks.iter().all(is_over) && !record.packs.iter().any(|pack| packs.lists(pack));
            if is_over
                && self.settings.record
                && self.source.repository.store.delete_or_leave(&names::damage(id)).await?
            {
                report.settled += 1;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another attempt may help where one failed; where there is no room it does not, and the check goes on.
    #[test]
    fn only_what_failed_is_tried_again() {
        let unrecorded = Unrecorded::default();
        assert_eq!((unrecorded.is_pending(), unrecorded.why()), (false, None));
        unrecorded.is_full.store(true, Ordering::Relaxed);
        assert_eq!((unrecorded.is_pending(), unrecorded.why().as_deref()), (false, Some(NO_ROOM)));
        *unrecorded.failed() = Some("no answer".into());
        assert_eq!((unrecorded.is_pending(), unrecorded.why().as_deref()), (true, Some("no answer")));
        unrecorded.failed().take();
        assert_eq!((unrecorded.is_pending(), unrecorded.why().as_deref()), (false, Some(NO_ROOM)));
    }
}
