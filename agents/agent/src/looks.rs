//! What is done before a chunk counts as lost: the index looks at the bucket again.
//!
//! Collections move chunks to other packs, and an index may hear of that late, or not at all. So a copy that is
//! missing, or that cannot be read, is no loss by itself. Looking takes a listing of all packs here and one in the
//! index, so that it is done once, and again only when a pack has gone since. 16 bytes are kept for each pack.

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
    /// All packs that there were before it, in order.
    listed: Vec<PackId>,
    /// Packs that an index named after it, although they were not there before.
    named: BTreeSet<PackId>,
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
            if is_new || !self.has_lost_one(look, tried).await? {
                return Ok(copies);
            }
        }
        // Before the index looks: what it names after that is where these chunks were moved to.
        let mut listed: Vec<PackId> =
            self.repository.list_packs().await?.into_iter().map(|(pack, _)| pack).collect();
        listed.sort_unstable();
        let mut gone = last.take().map(|look| look.gone).unwrap_or_default();
        gone.extend(tried.iter().filter(|pack| listed.binary_search(pack).is_err()));
        self.ask(about, id, last.insert(Look { listed, gone, ..Look::default() })).await
    }

    async fn ask(&self, about: &About, id: &ChunkId, look: &mut Look) -> Result<Vec<Copy>, Failure> {
        let (copies, by) = self.index.seek(about, id, &look.looked).await?;
        if !look.looked.contains(&by) {
            look.looked.push(by);
        }
        let packs = copies.iter().map(|copy| copy.pack);
        look.named.extend(packs.filter(|pack| look.listed.binary_search(pack).is_err()));
        Ok(copies)
    }

    /// Whether one of these packs is gone that may have been there when the index looked.
    async fn has_lost_one(&self, look: &Look, tried: &[PackId]) -> Result<bool, Failure> {
        for pack in tried.iter().filter(|pack| look.may_have_been_there(pack)) {
            if self.repository.store.head(&names::pack(*pack)).await?.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Look {
    /// Whether a pack was there when the index looked, or came later. An indexer may have named it that was not asked since:
    /// ids tell, as far as clocks do.
    fn may_have_been_there(&self, pack: &PackId) -> bool {
        let is_younger = self.listed.last().is_none_or(|last| pack > last);
        let is_known = is_younger || self.named.contains(pack) || self.listed.binary_search(pack).is_ok();
        is_known && !self.gone.contains(pack)
    }
}
