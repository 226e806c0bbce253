//! What is done before a chunk counts as lost: the index looks at the bucket again.
//!
//! Collections move chunks to other packs, and an index may hear of that late, or not at all. So a copy that is
//! missing, or that cannot be read, is no loss by itself. Looking takes the index a listing of all packs, so that it is
//! done once, and again only when a pack has gone since.

use std::collections::BTreeSet;

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
#[derive(Debug, Default)]
struct Look {
    /// Packs that somebody tried to read, and that were gone before it.
    gone: BTreeSet<PackId>,
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
        if let Some(look) = &mut *last {
            let copies = self.ask(about, id, look).await?;
            let is_new = copies.iter().any(|copy| !tried.contains(&copy.pack));
            if is_new || self.gone_since(look, tried).await?.is_empty() {
                return Ok(copies);
            }
        }
        let mut look = Look { looked: Vec::new(), ..last.take().unwrap_or_default() };
        // Before the index looks: what it names after that is where these chunks were moved to.
        let gone = self.gone_since(&look, tried).await?;
        look.gone.extend(gone);
        let look = last.insert(look);
        self.ask(about, id, look).await
    }

    async fn ask(&self, about: &About, id: &ChunkId, look: &mut Look) -> Result<Vec<Copy>, Failure> {
        let (copies, by) = self.index.seek(about, id, &look.looked).await?;
        if !look.looked.contains(&by) {
            look.looked.push(by);
        }
        Ok(copies)
    }

    /// Those of these packs that are gone, and may have been there when the index looked.
    async fn gone_since(&self, look: &Look, tried: &[PackId]) -> Result<Vec<PackId>, Failure> {
        let mut gone = Vec::new();
        for pack in tried.iter().filter(|pack| !look.gone.contains(pack)) {
            if self.repository.store.head(&names::pack(*pack)).await?.is_none() {
                gone.push(*pack);
            }
        }
        Ok(gone)
    }
}
