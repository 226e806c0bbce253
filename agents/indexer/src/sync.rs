//! What messages lost: the cache against a listing of the bucket's packs.
//!
//! Footers that were not read yet are read, and packs that are gone are forgotten. A pack may be forgotten only when
//! it was known *before* the listing began: one that was announced while it ran is rightly absent from it.

use std::collections::BTreeSet;

use agent::repository::can_be_pack;
use agent::{Failure, Repository, Stop};
use futures::StreamExt;
use schema::messages::FailureKind;
use schema::pack::PackFooter;
use schema::{Domain, PackId, names};
use tokio::sync::Mutex;

use crate::cache::{Cache, PackState};

/// Footers read at once. Each is 64 KiB as a rule.
const FOOTERS: usize = 16;

/// What a comparison with the bucket did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SyncReport {
    /// Packs in the listing.
    pub packs_listed: u64,
    /// Packs whose footers were read.
    pub footers_read: u64,
    /// Packs that cannot be read, not even frame by frame: their chunks count as unknown.
    pub packs_unreadable: u64,
    /// Packs that the store does not give, though it gives others: the same, until it does.
    pub packs_withheld: u64,
    /// Packs that are gone from the bucket.
    pub packs_forgotten: u64,
    /// Entries for our shards in the footers that were read.
    pub entries: u64,
}

/// Compares a cache with a bucket; one comparison at a time.
#[derive(Debug)]
pub(crate) struct Sync {
    repository: Repository,
    /// Packs that proved unreadable in this process's life; they are immutable, so that one try is enough.
    unreadable: Mutex<BTreeSet<PackId>>,
}

impl Sync {
    pub(crate) fn new(repository: Repository) -> Self {
        Self { repository, unreadable: Mutex::default() }
    }

    /// Lists, forgets, reads footers. Ends early with a failure when `stop` is raised.
    pub(crate) async fn run(&self, cache: &Cache, stop: &Stop) -> Result<SyncReport, Failure> {
        let mut unreadable = self.unreadable.lock().await;
        let known = cache.packs_in(&[PackState::Partial, PackState::Whole]);
        let listed = self.repository.list_packs().await?;
        let listed: BTreeSet<PackId> =
            listed.into_iter().filter(|(_, size)| can_be_pack(*size)).map(|(pack, _)| pack).collect();
        let gone: Vec<PackId> = known.into_iter().filter(|pack| !listed.contains(pack)).collect();
        cache.forget(&gone)?;
        unreadable.retain(|pack| listed.contains(pack));

        let mut report = SyncReport {
            packs_listed: listed.len() as u64,
            packs_forgotten: gone.len() as u64,
            ..SyncReport::default()
        };
        let unread =
            |pack: &PackId| !unreadable.contains(pack) && cache.state(pack) != Some(PackState::Whole);
        let unread: Vec<PackId> = listed.into_iter().filter(unread).collect();
        let mut footers = futures::stream::iter(unread)
            .map(|pack| async move { (pack, footer(&self.repository, pack).await) })
            .buffer_unordered(FOOTERS);
        while let Some((pack, footer)) = footers.next().await {
            if stop.is_raised() {
                return Err(Failure::new(FailureKind::Other, "stopped before the index was up to date"));
            }
            let Some(footer) = footer? else {
                report.packs_withheld += 1;
                continue;
            };
            match footer {
                Footer::Read(footer) => {
                    report.entries += cache.apply(pack, &footer.entries, PackState::Whole)? as u64;
                    report.footers_read += 1;
                }
                Footer::Vanished => {}
                Footer::Unreadable => {
                    unreadable.insert(pack);
                }
            }
        }
        report.packs_unreadable = unreadable.len() as u64;
        Ok(report)
    }

    /// Removes what packs that are gone have left in the cache; stops early when `stop` is raised, and is done again
    /// from the start then.
    pub(crate) async fn sweep(&self, cache: &Cache, stop: &Stop) -> Result<(), Failure> {
        let gone = cache.packs_in(&[PackState::Gone]);
        if gone.is_empty() {
            return Ok(());
        }
        let mut after = None;
        loop {
            after = cache.sweep(after)?;
            if after.is_none() {
                return cache.swept(&gone);
            }
            if stop.is_raised() {
                return Ok(());
            }
            tokio::task::yield_now().await;
        }
    }
}

/// What became of reading a footer.
pub(crate) enum Footer {
    Read(PackFooter),
    Vanished,
    Unreadable,
}

/// A pack's footer; none where the store does not give it, though it gives other objects: one must not stop the index.
async fn footer(repository: &Repository, pack: PackId) -> Result<Option<Footer>, Failure> {
    let footer = repository.read_footer(pack).await.map(|(_, footer)| footer);
    let failure = match judged(repository, pack, footer).await {
        Err(failure) if failure.kind == FailureKind::Store => failure,
        judged => return judged.map(Some),
    };
    match repository.gives_others().await {
        true => {
            tracing::warn!(%pack, %failure, "the store does not give a pack, and gives others; its chunks count as unknown");
            Ok(None)
        }
        false => Err(failure),
    }
}

/// The footer of a pack of which the kind is known.
pub(crate) async fn footer_of(
    repository: &Repository,
    pack: PackId,
    kind: Domain,
) -> Result<Footer, Failure> {
    judged(repository, pack, repository.read_footer_of(pack, kind).await).await
}

/// One damaged pack must not stop the index: what it held is stored again when it is met.
async fn judged(
    repository: &Repository,
    pack: PackId,
    read: Result<PackFooter, Failure>,
) -> Result<Footer, Failure> {
    let failure = match read {
        Ok(footer) => return Ok(Footer::Read(footer)),
        Err(failure) => failure,
    };
    let exists = repository.store.head(&names::pack(pack)).await?.is_some();
    match (exists, failure.kind) {
        // Collected since the listing.
        (false, _) => Ok(Footer::Vanished),
        (true, FailureKind::Damaged | FailureKind::Refused) => {
            tracing::warn!(%pack, %failure, "a pack cannot be read; its chunks count as unknown");
            Ok(Footer::Unreadable)
        }
        (true, _) => Err(failure),
    }
}
