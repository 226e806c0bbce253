//! Which shards of the index this process owns. What it does not own it neither keeps nor answers for:
//! two processes that disagree about the number of shards must find out at their first question.

use agent::Failure;
use schema::ChunkId;

/// The shards of an index, and which of them are ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shards {
    total: u16,
    owned: Vec<u16>,
}

impl Shards {
    /// Checks the settings: at least one shard is owned, and only shards that there are.
    pub(crate) fn new(total: u16, owned: &[u16]) -> Result<Self, Failure> {
        let mut owned = owned.to_vec();
        owned.sort_unstable();
        owned.dedup();
        match owned.last() {
            None => Err(Failure::refused("an indexer must own at least one shard of the index")),
            Some(last) if *last >= total => Err(Failure::refused(format!(
                "an indexer is to own shard {last} of an index of {total} shards, which are counted from 0"
            ))),
            Some(_) => Ok(Self { total, owned }),
        }
    }

    pub(crate) fn total(&self) -> u16 {
        self.total
    }

    pub(crate) fn owned(&self) -> &[u16] {
        &self.owned
    }

    pub(crate) fn owns(&self, id: &ChunkId) -> bool {
        self.owned.len() == usize::from(self.total) || self.owned.binary_search(&id.shard(self.total)).is_ok()
    }

    /// Refuses a question that was meant for another index layout, or for another process.
    pub(crate) fn check(&self, total: u16, ids: &[ChunkId]) -> Result<(), Failure> {
        if total != self.total {
            return Err(Failure::refused(format!(
                "the question is for an index of {total} shards, this one has {}: set the same number for every agent",
                self.total
            )));
        }
        match ids.iter().find(|id| !self.owns(id)) {
            None => Ok(()),
            Some(id) => Err(Failure::refused(format!(
                "chunk {id} is in shard {} of {}, and this indexer owns only {:?}: ask the one that owns it",
                id.shard(self.total),
                self.total,
                self.owned
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(shard: u16) -> ChunkId {
        let mut bytes = [0; 33];
        bytes[0] = 1;
        bytes[1..3].copy_from_slice(&shard.to_le_bytes());
        ChunkId::parse(&bytes).expect("a data chunk")
    }

    #[test]
    fn settings_are_checked() {
        for (total, owned, good) in
            [(1, &[0][..], true), (4, &[3, 1, 1], true), (4, &[], false), (4, &[4], false), (0, &[0], false)]
        {
            assert_eq!(Shards::new(total, owned).is_ok(), good, "{owned:?} of {total}");
        }
    }

    #[test]
    fn questions_for_others_are_refused_with_both_numbers() {
        let shards = Shards::new(4, &[1, 3]).expect("two of four");
        assert!(shards.check(4, &[id(1), id(3), id(7)]).is_ok());
        let why = shards.check(2, &[]).expect_err("another number of shards").why;
        assert!(why.contains("of 2 shards") && why.contains("has 4"), "{why}");
        let why = shards.check(4, &[id(1), id(2)]).expect_err("a shard of another").why;
        assert!(why.contains("shard 2 of 4") && why.contains("[1, 3]"), "{why}");
    }
}
