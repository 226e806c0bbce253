//! Where an unfinished collection stands, for whoever asks: a few listings and reads.

use std::collections::BTreeSet;

use agent::{Failure, Repository};
use schema::epoch::Awaited;
use schema::messages::FailureKind;
use schema::names;

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
    /// Packs of the verdict that are still there; a lock of the store may hold them.
    pub left: u64,
    /// Roots that are still to be overwritten, once there is a verdict.
    pub roots_left: u64,
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
            let mut open = Vec::new();
            for (waiting, session) in sessions::open_of(repository, &awaited).await? {
                // The next collector removes what is left of it.
                if let Some(session) = session
                    && sessions::is_decided(repository, &session).await?
                {
                    continue;
                }
                open.push(waiting);
            }
            Some(Unfinished {
                number: epoch.number,
                forgotten: epoch.forgotten.len() as u64,
                condemned: epoch.condemned.len() as u64,
                decided: false,
                waits: open,
                left: 0,
                roots_left: 0,
            })
        }
        Latest::Decided(epoch, verdict) => {
            let (packs, roots) = (epochs::packs(repository).await?, epochs::roots(repository).await?);
            Some(Unfinished {
                number: epoch.number,
                forgotten: epoch.forgotten.len() as u64,
                condemned: verdict.delete.len() as u64,
                decided: true,
                waits: Vec::new(),
                left: verdict.delete.iter().filter(|pack| packs.contains(pack)).count() as u64,
                roots_left: epoch.forgotten.iter().filter(|slot| roots.contains(slot)).count() as u64,
            })
        }
    })
}
