//! Chunks that were announced as stored a moment ago: an announcement may come before the mapping that waits for it.

use std::collections::{BTreeMap, VecDeque};

use schema::{ChunkId, PackId};

#[cfg(test)]
mod tests;

/// Chunks remembered: those of some sixty packs. What is forgotten is found again through the index.
const KEPT: usize = 64 << 10;

#[derive(Debug, Default)]
pub(crate) struct Recent {
    packs: BTreeMap<ChunkId, PackId>,
    order: VecDeque<ChunkId>,
}

impl Recent {
    pub(crate) fn note(&mut self, id: ChunkId, pack: PackId) {
        if self.packs.insert(id, pack).is_none() {
            self.order.push_back(id);
        }
        if self.order.len() > KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.packs.remove(&oldest);
        }
    }

    pub(crate) fn pack_of(&self, id: ChunkId) -> Option<PackId> {
        self.packs.get(&id).copied()
    }
}
