//! Records of damage: written as soon as something is found, removed when they are of no use any more.

use std::collections::{BTreeMap, BTreeSet};

use agent::Failure;
use agent::damage::{self, Damages};
use agent::store::Created;
use schema::damage::{Damage, DamagedChunk};
use schema::limits::{DAMAGED_CHUNKS_MAX, DAMAGED_PACKS_MAX};
use schema::messages::About;
use schema::{ChunkId, PackId, names};

use crate::{Checker, Found};

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
        let fresh = unreadable.difference(recorded.packs()).count();
        let room = DAMAGED_PACKS_MAX.saturating_sub(recorded.packs().len());
        let packs: Vec<PackId> = unreadable.difference(recorded.packs()).take(room).copied().collect();
        let mut chunks: BTreeMap<ChunkId, Vec<PackId>> = BTreeMap::new();
        for (id, packs) in found {
            let fresh: Vec<PackId> = packs.into_iter().filter(|pack| !recorded.has(&id, pack)).collect();
            if !fresh.is_empty() || !recorded.names(&id) {
                chunks.entry(id).or_default().extend(fresh);
            }
        }
        let room = DAMAGED_CHUNKS_MAX.saturating_sub(recorded.chunks().count());
        if fresh > packs.len() || chunks.len() > room {
            self.too_much();
        }
        let chunks: Vec<DamagedChunk> =
            chunks.into_iter().take(room).map(|(id, packs)| DamagedChunk { id, packs }).collect();
        if packs.is_empty() && chunks.is_empty() {
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
                Ok(count)
            }
            Ok(Created::Lost(_)) => {
                Err(Failure::refused(format!("{key} exists already: names must be fresh")))
            }
            Err(error) => {
                tracing::warn!(%error, "what was found is not recorded");
                self.unrecorded.get_or_init(|| error.to_string());
                Ok(0)
            }
        }
    }

    /// More is damaged than can be recorded.
    pub(crate) fn too_much(&self) {
        let why = "more is damaged than can be recorded: check again after the next backups";
        if self.settings.record && self.unrecorded.set(why.to_owned()).is_ok() {
            tracing::warn!(why, "what was found is not recorded");
        }
    }

    /// Counts what has healed, and removes records that say nothing any more.
    pub(crate) async fn settle(&self, found: &mut Found) -> Result<(), Failure> {
        let Found { report, recorded, packs, lost, .. } = found;
        let ids: Vec<ChunkId> = recorded.chunks().map(|(id, _)| *id).collect();
        let about = About { session: None, volume: String::new() };
        let copies = self.index.locate(&about, &ids).await?;
        let is_healed = |(id, copies): &(&ChunkId, Vec<schema::messages::Copy>)| {
            copies.iter().any(|copy| packs.trouble(id, copy, recorded).is_none())
        };
        let healed: BTreeSet<ChunkId> = ids.iter().zip(copies).filter(is_healed).map(|(id, _)| *id).collect();
        report.healed = healed.len() as u64;
        // A copy that is none must not count when its record is gone: its pack must be gone before.
        let is_over = |chunk: &DamagedChunk| {
            let is_needed = lost.contains_key(&chunk.id) && !healed.contains(&chunk.id);
            !is_needed && !chunk.packs.iter().any(|pack| packs.lists(pack))
        };
        for (id, record) in damage::records(&self.source.repository).await? {
            // What others recorded since may be of packs that are newer than the listing.
            if !recorded.has_read(&id) {
                continue;
            }
            let Ok(record) = record else { continue };
            let is_over =
                record.chunks.iter().all(is_over) && !record.packs.iter().any(|pack| packs.lists(pack));
            if is_over && self.settings.record {
                self.source.repository.store.delete(&names::damage(id)).await?;
                report.settled += 1;
            }
        }
        Ok(())
    }
}
