//! Damage that checks have recorded in the bucket: copies of chunks that nobody may rely on.
//!
//! A record that is wrong costs a double copy, and one that cannot be read leaves things as they were before it was
//! written. So neither keeps anybody from working.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, stream};
use schema::damage::Damage;
use schema::limits::{DAMAGED_CHUNKS_MAX, DAMAGED_PACKS_MAX};
use schema::messages::FailureKind;
use schema::{ChunkId, DamageId, PackId, names};

use crate::Failure;
use crate::repository::Repository;

/// Records that are read at once.
const AT_ONCE: usize = 8;

/// All damage that is recorded, some 100 bytes for each chunk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Damages {
    packs: BTreeSet<PackId>,
    chunks: BTreeMap<ChunkId, Vec<PackId>>,
}

impl Damages {
    /// Reads what is recorded. Fails only when the store cannot be asked.
    pub async fn load(repository: &Repository) -> Result<Self, Failure> {
        let mut found = Self::default();
        for (id, record) in records(repository).await? {
            match record {
                Ok(record) => found.add(&record),
                Err(failure) => tracing::warn!(%id, %failure, "a record of damage is passed over"),
            }
        }
        Ok(found)
    }

    /// Minds a record, too, as far as there is room.
    pub fn add(&mut self, record: &Damage) {
        for pack in &record.packs {
            if self.packs.len() < DAMAGED_PACKS_MAX {
                self.packs.insert(*pack);
            }
        }
        for chunk in &record.chunks {
            if self.chunks.len() < DAMAGED_CHUNKS_MAX || self.chunks.contains_key(&chunk.id) {
                let packs = self.chunks.entry(chunk.id).or_default();
                packs.extend(&chunk.packs);
                packs.sort_unstable();
                packs.dedup();
            }
        }
    }

    /// Whether nothing is recorded.
    pub fn is_empty(&self) -> bool {
        self.packs.is_empty() && self.chunks.is_empty()
    }

    /// Whether the copy of a chunk in a pack is none.
    pub fn has(&self, id: &ChunkId, pack: &PackId) -> bool {
        self.packs.contains(pack) || self.chunks.get(id).is_some_and(|packs| packs.contains(pack))
    }

    /// The chunks that are named.
    pub fn chunks(&self) -> impl Iterator<Item = (&ChunkId, &[PackId])> {
        self.chunks.iter().map(|(id, packs)| (id, &packs[..]))
    }

    /// Whether a chunk is named.
    pub fn names(&self, id: &ChunkId) -> bool {
        self.chunks.contains_key(id)
    }

    /// The packs of which no copy is one.
    pub fn packs(&self) -> &BTreeSet<PackId> {
        &self.packs
    }
}

/// Every record, and why it cannot be read where that is so.
pub async fn records(repository: &Repository) -> Result<Vec<(DamageId, Result<Damage, Failure>)>, Failure> {
    let listed = repository.store.list(names::DAMAGE).await?;
    let ids: Vec<DamageId> =
        listed.iter().filter_map(|listed| names::parse_damage(&listed.key).ok()).collect();
    let read = |id| async move { (id, repository.read::<Damage>(&names::damage(id)).await) };
    let mut reading = stream::iter(ids).map(read).buffered(AT_ONCE);
    let mut records = Vec::new();
    while let Some((id, record)) = reading.next().await {
        match record {
            Ok(Some(record)) => records.push((id, Ok(record))),
            // Removed since the listing.
            Ok(None) => {}
            Err(failure) if failure.kind == FailureKind::Store => return Err(failure),
            Err(failure) => records.push((id, Err(failure))),
        }
    }
    Ok(records)
}
