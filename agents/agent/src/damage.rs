//! Damage that checks have recorded in the bucket: copies of chunks that nobody may rely on.
//!
//! A record that is wrong costs a double copy, and one that cannot be read leaves things as they were before it was
//! written. So neither keeps anybody from working who does not delete.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, stream};
use schema::damage::Damage;
use schema::limits::{DAMAGED_CHUNKS_MAX, DAMAGED_PACKS_MAX};
use schema::messages::{Copy, FailureKind};
use schema::{ChunkId, DamageId, PackId, names};

use crate::Failure;
use crate::repository::Repository;

/// Records that are read at once.
const AT_ONCE: usize = 8;

/// All damage that is recorded, some 100 bytes for each chunk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Damages {
    records: BTreeSet<DamageId>,
    packs: BTreeSet<PackId>,
    chunks: BTreeMap<ChunkId, Vec<PackId>>,
    /// Packs in which something is damaged for which there was no room: no copy in them is relied on.
    doubted: BTreeSet<PackId>,
    /// Whether something is recorded that is not minded here.
    is_incomplete: bool,
}

impl Damages {
    /// Reads what is recorded. Fails only when the store cannot be asked.
    pub async fn load(repository: &Repository) -> Result<Self, Failure> {
        let mut found = Self::default();
        for (id, record) in records(repository).await? {
            match record {
                Ok(record) => found.is_incomplete |= !found.add(id, &record),
                Err(failure) => {
                    tracing::warn!(%id, %failure, "a record of damage is passed over");
                    found.is_incomplete = true;
                }
            }
        }
        Ok(found)
    }

    /// The same for whoever deletes by it: fails, too, when anything that is recorded cannot be known. Of what there is no
    /// room for, because several checks recorded as much as they could at once, the packs are minded: 16 bytes for each.
    pub async fn load_all(repository: &Repository) -> Result<Self, Failure> {
        let mut found = Self::default();
        let mut missing = BTreeSet::new();
        for (id, record) in listed_records(repository).await? {
            let key = names::damage(id);
            match record {
                Ok(Some(record)) => found.add_all(id, &record),
                Ok(None) => drop(missing.insert(id)),
                Err(failure) if failure.kind == FailureKind::Store => return Err(failure),
                Err(failure) => return Err(failure.context(unknown(&key))),
            }
        }
        // A check may have removed it since.
        let listed = if missing.is_empty() { Vec::new() } else { ids(repository).await? };
        match listed.into_iter().find(|id| missing.contains(id)) {
            None => Ok(found),
            Some(id) => {
                let key = names::damage(id);
                Err(Failure::damaged("it is listed, and not there").context(unknown(&key)))
            }
        }
    }

    /// Minds a record, too, as far as there is room; whether there was for all of it.
    pub fn add(&mut self, id: DamageId, record: &Damage) -> bool {
        let mut fits = true;
        self.records.insert(id);
        for pack in &record.packs {
            match self.packs.len() < DAMAGED_PACKS_MAX || self.packs.contains(pack) {
                true => drop(self.packs.insert(*pack)),
                false => fits = false,
            }
        }
        for chunk in &record.chunks {
            if self.chunks.len() < DAMAGED_CHUNKS_MAX || self.chunks.contains_key(&chunk.id) {
                let packs = self.chunks.entry(chunk.id).or_default();
                packs.extend(&chunk.packs);
                packs.sort_unstable();
                packs.dedup();
            } else {
                fits = false;
            }
        }
        fits
    }

    fn add_all(&mut self, id: DamageId, record: &Damage) {
        if self.add(id, record) {
            return;
        }
        let chunks = record.chunks.iter().filter(|chunk| !self.names(&chunk.id));
        let packs = record.packs.iter().filter(|pack| !self.packs.contains(pack));
        let doubted: Vec<PackId> = chunks.flat_map(|chunk| &chunk.packs).chain(packs).copied().collect();
        tracing::warn!(%id, packs = doubted.len(), "more damage is recorded than can be minded: no copy in these packs counts");
        self.doubted.extend(doubted);
    }

    /// Whether this has minded a record.
    pub fn has_read(&self, id: &DamageId) -> bool {
        self.records.contains(id)
    }

    /// How many records were minded.
    pub fn records(&self) -> usize {
        self.records.len()
    }

    /// Whether a record was passed over, because it could not be read or for lack of room.
    pub fn is_incomplete(&self) -> bool {
        self.is_incomplete
    }

    /// Whether nothing is recorded.
    pub fn is_empty(&self) -> bool {
        self.packs.is_empty() && self.chunks.is_empty() && self.doubted.is_empty()
    }

    /// Whether the copy of a chunk in a pack is none.
    pub fn has(&self, id: &ChunkId, pack: &PackId) -> bool {
        let is_named = || self.chunks.get(id).is_some_and(|packs| packs.contains(pack));
        self.packs.contains(pack) || self.doubted.contains(pack) || is_named()
    }

    /// Whether a copy is whole as far as is known without reading it: its pack is one of those that were listed, with their
    /// sizes, and nobody has found that it is none.
    pub fn spares(&self, id: &ChunkId, copy: &Copy, sizes: &BTreeMap<PackId, u64>) -> bool {
        let end = u64::from(copy.offset) + u64::from(copy.len);
        sizes.get(&copy.pack).is_some_and(|size| *size >= end) && !self.has(id, &copy.pack)
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

fn unknown(key: &str) -> String {
    format!(
        "{key} cannot be read, so that nothing may be deleted: it may name a copy that nobody can rely on. Run \
         `lvkeep check --read-data`, which records damage again, and delete {key} by hand"
    )
}

/// Every record, and why it cannot be read where that is so.
pub async fn records(repository: &Repository) -> Result<Vec<(DamageId, Result<Damage, Failure>)>, Failure> {
    let mut records = Vec::new();
    for (id, record) in listed_records(repository).await? {
        match record {
            Ok(Some(record)) => records.push((id, Ok(record))),
            // Removed since the listing.
            Ok(None) => {}
            // One that the store alone does not give is like any other that cannot be read.
            Err(failure) if failure.kind == FailureKind::Store && !repository.gives_others().await => {
                return Err(failure);
            }
            Err(failure) => records.push((id, Err(failure))),
        }
    }
    Ok(records)
}

async fn listed_records(
    repository: &Repository,
) -> Result<Vec<(DamageId, Result<Option<Damage>, Failure>)>, Failure> {
    let read = |id| async move { (id, repository.read::<Damage>(&names::damage(id)).await) };
    Ok(stream::iter(ids(repository).await?).map(read).buffered(AT_ONCE).collect().await)
}

async fn ids(repository: &Repository) -> Result<Vec<DamageId>, Failure> {
    let listed = repository.store.list(names::DAMAGE).await?;
    Ok(listed.iter().filter_map(|listed| names::parse_damage(&listed.key).ok()).collect())
}

#[cfg(test)]
mod tests {
    use schema::damage::DamagedChunk;

    use super::*;

    fn chunk(number: usize, pack: PackId) -> DamagedChunk {
        let mut id = [1; 33];
        id[1..9].copy_from_slice(&(number as u64).to_be_bytes());
        DamagedChunk { id: ChunkId::parse(&id).expect("a chunk of data"), packs: vec![pack] }
    }

    /// Two checks recorded as much as there is room for, at once.
    #[test]
    fn what_there_is_no_room_for_is_doubted_and_stops_nobody() {
        let pack = |number| PackId::from_bytes([number; 16]);
        let record = |packs: Vec<PackId>, chunks: Vec<DamagedChunk>| Damage {
            version: Damage::VERSION,
            found_ms: 0,
            host: "host".into(),
            packs,
            chunks,
        };
        let mut found = Damages::default();
        let first = (0..DAMAGED_CHUNKS_MAX).map(|number| chunk(number, pack(1))).collect();
        found.add_all(DamageId::from_bytes([1; 16]), &record(vec![], first));
        let second = [chunk(7, pack(2)), chunk(DAMAGED_CHUNKS_MAX, pack(3))];
        found.add_all(DamageId::from_bytes([2; 16]), &record(vec![pack(4)], second.to_vec()));
        let [known, more] = second.map(|chunk| chunk.id);
        assert!(found.has(&known, &pack(1)) && found.has(&known, &pack(2)) && found.has(&known, &pack(4)));
        assert!(found.has(&more, &pack(3)) && !found.has(&more, &pack(1)));
        // Nothing in a doubted pack counts, and it is none of those from which everything was moved that is whole.
        assert!(found.has(&known, &pack(3)) && !found.has(&known, &pack(5)));
        assert_eq!(found.packs().iter().collect::<Vec<_>>(), [&pack(4)]);
        assert_eq!(found.chunks().count(), DAMAGED_CHUNKS_MAX);
    }
}
