//! Where structure chunks are: copies of map nodes and leaves, found by the footers of the packs that hold them.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use agent::{Failure, Repository, maps};
use bytes::Bytes;
use futures::TryStreamExt;
use schema::messages::{Copy, FailureKind};
use schema::{ChunkId, Domain, PackId, names};

use crate::footers::{Footers, Found};
use crate::live::half;

/// Copies that could not be opened and are remembered; more than these are an alarm.
const FAILED_MAX: usize = 1 << 16;

/// Copies of structure chunks that could not be opened though another one could. Nothing relies on them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Failed(BTreeSet<(u128, PackId)>);

impl Failed {
    /// Whether the copy of a chunk in this pack is one of them.
    pub(crate) fn has(&self, id: &ChunkId, pack: PackId) -> bool {
        !self.0.is_empty() && self.0.contains(&(half(id), pack))
    }
}

/// Copies of structure chunks, sorted; 40 bytes each.
pub(crate) struct Structure {
    /// Packs whose footers were read as they were written; of others, the next reading may be better.
    packs: BTreeSet<PackId>,
    copies: Vec<([u8; 16], Copy)>,
    failed: Mutex<Failed>,
}

impl Structure {
    /// Of these packs.
    pub(crate) async fn of(
        footers: &Footers,
        packs: impl IntoIterator<Item = PackId>,
    ) -> Result<Self, Failure> {
        let mut structure = Self { packs: BTreeSet::new(), copies: Vec::new(), failed: Mutex::default() };
        structure.add(footers, packs).await?;
        Ok(structure)
    }

    /// Looks for packs that came after: a snapshot that was committed meanwhile may stand on them.
    async fn look_again(&mut self, repository: &Repository, footers: &Footers) -> Result<(), Failure> {
        let listed = repository.list_packs().await?;
        self.add(footers, listed.into_iter().map(|(pack, _)| pack)).await
    }

    async fn add(
        &mut self,
        footers: &Footers,
        packs: impl IntoIterator<Item = PackId>,
    ) -> Result<(), Failure> {
        let fresh: Vec<PackId> = packs.into_iter().filter(|pack| !self.packs.contains(pack)).collect();
        let mut read = std::pin::pin!(footers.read(fresh));
        while let Some((id, found)) = read.try_next().await? {
            let Found::Pack(pack) = found else { continue };
            if pack.is_whole() {
                self.packs.insert(id);
            }
            if pack.header.kind == Domain::Structure {
                let copies = pack.footer.entries.iter().map(|entry| {
                    let copy = Copy { pack: id, offset: entry.offset, len: entry.len };
                    (half(&entry.id).to_be_bytes(), copy)
                });
                self.copies.extend(copies);
            }
        }
        self.copies.sort_unstable();
        self.copies.dedup();
        Ok(())
    }

    /// Reads a chunk from the oldest copy that can be opened, and notes those before it. Copies in whole packs come first.
    pub(crate) async fn read(&self, repository: &Repository, id: ChunkId) -> Result<Bytes, Failure> {
        let mut failure = None;
        let mut tried = Vec::new();
        for copy in self.copies_of(&id) {
            match maps::read_structure(repository, id, &[copy]).await {
                Ok(bytes) => return self.note(id, &tried).map(|()| bytes),
                // Whether the chunk is lost is not known while one of its copies cannot be reached.
                Err(one) if failure.is_none() || one.kind != FailureKind::Damaged => failure = Some(one),
                Err(_) => {}
            }
            tried.push(copy.pack);
        }
        match failure {
            Some(failure) => Err(failure),
            None => maps::read_structure(repository, id, &[]).await,
        }
    }

    fn copies_of(&self, id: &ChunkId) -> Vec<Copy> {
        let half = half(id).to_be_bytes();
        let start = self.copies.partition_point(|(of, _)| *of < half);
        let mut copies: Vec<Copy> =
            self.copies[start..].iter().take_while(|(of, _)| *of == half).map(|(_, copy)| *copy).collect();
        copies.sort_by_key(|copy| (!self.packs.contains(&copy.pack), copy.pack));
        copies
    }

    fn note(&self, id: ChunkId, packs: &[PackId]) -> Result<(), Failure> {
        if packs.is_empty() {
            return Ok(());
        }
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.0.extend(packs.iter().map(|pack| (half(&id), *pack)));
        match failed.0.len() <= FAILED_MAX {
            true => Ok(()),
            false => Err(Failure::damaged(format!(
                "more than {FAILED_MAX} copies of parts of maps cannot be opened, the last one in {}: nothing is deleted \
                 (`lvkeep check` says more)",
                names::pack(packs[0])
            ))),
        }
    }

    /// The copies that could not be opened so far.
    pub(crate) fn failed(&self) -> Failed {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads a chunk of which no whole copy was found, once more after looking for new packs.
    pub(crate) async fn read_again(
        &mut self,
        repository: &Repository,
        footers: &Footers,
        id: ChunkId,
    ) -> Result<Bytes, Failure> {
        self.look_again(repository, footers).await?;
        self.read(repository, id).await
    }
}
