//! What is done before a chunk counts as lost: the index looks at the bucket again.
//!
//! Collections move chunks to other packs, and an index may hear of that late, or not at all. So a copy that is
//! missing, or that cannot be read, is no loss by itself. Looking takes a listing of all packs, so that it is done once,
//! and again only when a pack that was there has gone since.

use schema::messages::{About, Copy};
use schema::{ChunkId, PackId, names};
use tokio::sync::Mutex;

use crate::index::IndexClient;
use crate::{Failure, Repository};

/// The looks of one reader. One chunk is sought at a time.
#[derive(Debug)]
pub struct Looks {
    repository: Repository,
    index: IndexClient,
    last: Mutex<Option<Look>>,
}

/// The last one.
#[derive(Debug)]
struct Look {
    /// All packs that there were before it.
    packs: Vec<PackId>,
    /// Which indexers have looked since.
    looked: Vec<u64>,
}

impl Looks {
    /// None yet.
    pub fn new(repository: Repository, index: IndexClient) -> Self {
        Self { repository, index, last: Mutex::default() }
    }

    /// All copies of a chunk that there are, when none of those in `tried` could be read. Fails when that cannot be
    /// known now, which is no proof that the chunk is lost.
    pub async fn seek(&self, about: &About, id: &ChunkId, tried: &[PackId]) -> Result<Vec<Copy>, Failure> {
        let unknown = |failure: Failure| {
            let why = format!("cannot make sure that chunk {id} is in no other pack");
            Failure { retry: true, ..failure.context(why) }
        };
        self.look(about, id, tried).await.map_err(unknown)
    }

    async fn look(&self, about: &About, id: &ChunkId, tried: &[PackId]) -> Result<Vec<Copy>, Failure> {
        let mut last = self.last.lock().await;
        let look = match last.take() {
            Some(look) if !self.has_lost_one(&look, tried).await? => look,
            _ => {
                // Before the index looks: what is absent here was gone before.
                let listed = self.repository.list_packs().await?;
                let mut packs: Vec<PackId> = listed.into_iter().map(|(pack, _)| pack).collect();
                packs.sort_unstable();
                Look { packs, looked: Vec::new() }
            }
        };
        let look = last.insert(look);
        let (copies, by) = self.index.seek(about, id, &look.looked).await?;
        if !look.looked.contains(&by) {
            look.looked.push(by);
        }
        Ok(copies)
    }

    /// Whether one of these packs was there, and is gone since.
    async fn has_lost_one(&self, look: &Look, tried: &[PackId]) -> Result<bool, Failure> {
        for pack in tried.iter().filter(|pack| look.packs.binary_search(pack).is_ok()) {
            if self.repository.store.head(&names::pack(*pack)).await?.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
