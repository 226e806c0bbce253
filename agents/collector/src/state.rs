//! Where an unfinished collection stands, for whoever asks: a few listings and reads.

use std::collections::BTreeSet;

use agent::{Failure, Repository};
use schema::PackId;
use schema::epoch::Awaited;
use schema::messages::FailureKind;
use schema::names::{self, Slot};

use crate::epochs::{self, Latest, latest};
use crate::sessions::{self, Waiting};

/// An unfinished collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// The epoch.
    pub number: u64,
    /// Forgotten snapshots that it sweeps.
    pub forgotten: u64,
    /// Packs that it condemned, or with a verdict: that are to be deleted.
    pub condemned: u64,
    /// Whether there is a verdict.
    pub decided: bool,
    /// Sessions that it waits for.
    pub waits: Vec<Waiting>,
    /// What of that is still there; with a verdict, a lock of the store may hold it.
    pub left: Left,
}

/// What a collection is still to take away. Before there is a verdict, some of the packs may turn out to be needed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Left {
    /// Forgotten snapshots whose roots are still to be overwritten.
    pub snapshots: u64,
    /// Packs that are still there.
    pub packs: u64,
    /// Bytes of those.
    pub bytes: u64,
}

impl Left {
    /// Of these packs and forgotten snapshots, what listings show.
    pub(crate) async fn of(
        repository: &Repository,
        packs: &[PackId],
        forgotten: &[Slot],
    ) -> Result<Self, Failure> {
        let packs: BTreeSet<_> = packs.iter().collect();
        let snapshots = epochs::unswept(repository, forgotten).await?.len() as u64;
        let mut left = Self { snapshots, ..Self::default() };
        for (_, size) in repository.list_packs().await?.iter().filter(|(pack, _)| packs.contains(pack)) {
            left.packs += 1;
            left.bytes += size;
        }
        Ok(left)
    }
}

/// The unfinished collection, if there is one. Changes nothing.
pub async fn unfinished(repository: &Repository) -> Result<Option<Unfinished>, Failure> {
    let standing = standing(repository).await?;
    standing.unreadable.map_or(Ok(standing.unfinished), Err)
}

/// Where collections stand.
#[derive(Debug, Clone)]
pub struct Standing {
    /// The last one that is finished.
    pub finished: Option<u64>,
    /// The one that is not.
    pub unfinished: Option<Unfinished>,
    /// Why the latest one cannot be read.
    pub unreadable: Option<Failure>,
}

/// Where collections stand, as far as that can be read. Changes nothing.
pub async fn standing(repository: &Repository) -> Result<Standing, Failure> {
    let latest = match latest(repository).await {
        Err(why) if why.kind == FailureKind::Damaged => {
            return Ok(Standing { finished: None, unfinished: None, unreadable: Some(why) });
        }
        latest => latest?,
    };
    let finished = match &latest {
        Latest::Finished { next } => next - 1,
        Latest::Open(epoch) | Latest::Decided(epoch, _) => epoch.number.saturating_sub(1),
    };
    let finished = (finished > 0).then_some(finished);
    Ok(Standing { finished, unfinished: of(repository, latest).await?, unreadable: None })
}

async fn of(repository: &Repository, latest: Latest) -> Result<Option<Unfinished>, Failure> {
    Ok(match latest {
        Latest::Finished { .. } => None,
        Latest::Open(epoch) => {
            let awaited = match repository.read::<Awaited>(&names::awaited(epoch.number)).await {
                // A collector lists them anew.
                Err(why) if why.kind == FailureKind::Damaged => None,
                awaited => awaited?,
            };
            let awaited: BTreeSet<_> = match awaited {
                Some(awaited) => awaited.sessions.into_iter().collect(),
                None => sessions::listed(repository).await?,
            };
            Some(Unfinished {
                number: epoch.number,
                forgotten: epoch.forgotten.len() as u64,
                condemned: epoch.condemned.len() as u64,
                decided: false,
                waits: sessions::undecided(repository, &awaited).await?,
                left: Left::of(repository, &epoch.condemned, &epoch.forgotten).await?,
            })
        }
        Latest::Decided(epoch, verdict) => Some(Unfinished {
            number: epoch.number,
            forgotten: epoch.forgotten.len() as u64,
            condemned: verdict.delete.len() as u64,
            decided: true,
            waits: Vec::new(),
            left: Left::of(repository, &verdict.delete, &epoch.forgotten).await?,
        }),
    })
}
