//! Where structure chunks are: copies of map nodes and leaves, found by the footers of the packs that hold them.

use std::collections::BTreeSet;

use agent::{Failure, Repository, maps};
use bytes::Bytes;
use futures::TryStreamExt;
use schema::messages::Copy;
use schema::{ChunkId, Domain, PackId};

use crate::footers::{Footers, Found};
use crate::live::half;

/// Copies of structure chunks, sorted; 40 bytes each.
pub(crate) struct Structure {
    /// Packs whose footers were read as they were written; of others, the next reading may be better.
    packs: BTreeSet<PackId>,
    copies: Vec<([u8; 16], Copy)>,
}

impl Structure {
    /// Of these packs.
    pub(crate) async fn of(
        footers: &Footers,
        packs: impl IntoIterator<Item = PackId>,
    ) -> Result<Self, Failure> {
        let mut structure = Self { packs: BTreeSet::new(), copies: Vec::new() };
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

    /// Reads a chunk from any copy that is whole, the newest first.
    pub(crate) async fn read(&self, repository: &Repository, id: ChunkId) -> Result<Bytes, Failure> {
        let half = half(&id).to_be_bytes();
        let start = self.copies.partition_point(|(of, _)| *of < half);
        let mut copies: Vec<Copy> =
            self.copies[start..].iter().take_while(|(of, _)| *of == half).map(|(_, copy)| *copy).collect();
        copies.reverse();
        maps::read_structure(repository, id, &copies).await
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
