//! Epochs and verdicts: where a collection stands, for everybody. At most one is unfinished.
//!
//! What was decided by create-if-absent holds, whoever wrote it.

use std::collections::BTreeSet;

use agent::epochs::{Stored, check_number, unknown};
use agent::store::Created;
use agent::{Failure, Repository};
use schema::epoch::{Epoch, Verdict};
use schema::messages::FailureKind;
use schema::names::{self, Slot};
use schema::{Object, PackId};

/// Where the latest collection stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Latest {
    /// There is none, or it is finished; the number of the next one.
    Finished {
        /// The number of the next one.
        next: u64,
    },
    /// It waits for sessions, or for its verdict.
    Open(Epoch),
    /// Its verdict is being carried out.
    Decided(Epoch, Verdict),
}

/// Step 0: where the latest collection stands.
pub async fn latest(repository: &Repository) -> Result<Latest, Failure> {
    let Some(found) = agent::epochs::latest(repository).await? else {
        return Ok(Latest::Finished { next: 1 });
    };
    let agent::epochs::Latest { number, epoch, verdict } = found;
    let finished = Latest::Finished { next: number + 1 };
    match (epoch, verdict) {
        (Ok(epoch), Stored::Nothing) => Ok(Latest::Open(epoch)),
        (Ok(epoch), Stored::Is(verdict)) => {
            match is_gone(&verdict.delete, repository).await? && is_swept(&epoch, repository).await? {
                true => Ok(finished),
                false => Ok(Latest::Decided(epoch, verdict)),
            }
        }
        // It deletes nothing else.
        (Ok(epoch), Stored::Unreadable(why)) => {
            let is_over =
                is_gone(&epoch.condemned, repository).await? && is_swept(&epoch, repository).await?;
            unreadable(names::verdict(number), why, is_over).map(|()| finished)
        }
        // Roots go before packs; and where no pack goes, nothing is lost of what is still to be swept.
        (Err(why), Stored::Is(verdict)) => {
            let is_over = is_gone(&verdict.delete, repository).await?;
            unreadable(names::epoch(number), why, is_over).map(|()| finished)
        }
        (Err(why), verdict) => Err(unknown(number, why, &verdict)),
    }
}

/// A collection that only a repair brings to its end, unless listings show that it is over. Sessions go on meanwhile. What
/// a later version wrote is refused as it is.
fn unreadable(key: String, why: Failure, is_over: bool) -> Result<(), Failure> {
    match why.kind {
        FailureKind::Refused => Err(why),
        _ if is_over => Ok(()),
        _ => Err(Failure::damaged(format!(
            "{key} cannot be read ({why}), so that nobody knows what this collection is still to delete: `lvkeep repair` \
             ends it, and backups and restores go on meanwhile"
        ))),
    }
}

/// Whether none of these packs is listed any more: with [`is_swept`], what an epoch is finished by.
async fn is_gone(delete: &[PackId], repository: &Repository) -> Result<bool, Failure> {
    let listed = packs(repository).await?;
    Ok(!delete.iter().any(|pack| listed.contains(pack)))
}

/// Whether every root that an epoch sweeps is a tombstone.
async fn is_swept(epoch: &Epoch, repository: &Repository) -> Result<bool, Failure> {
    Ok(unswept(repository, &epoch.forgotten).await?.is_empty())
}

/// The packs that a listing shows.
pub(crate) async fn packs(repository: &Repository) -> Result<BTreeSet<PackId>, Failure> {
    Ok(repository.list_packs().await?.into_iter().map(|(pack, _)| pack).collect())
}

/// Those of an epoch's forgotten snapshots whose slots hold more than a tombstone.
pub(crate) async fn unswept(repository: &Repository, forgotten: &[Slot]) -> Result<BTreeSet<Slot>, Failure> {
    let forgotten: BTreeSet<&Slot> = forgotten.iter().collect();
    let listed = repository.store.list(names::SNAPSHOTS).await?;
    let longer = listed.iter().filter(|listed| !repository.is_as_short(listed.size));
    let slots = longer.filter_map(|listed| Slot::parse_key(&listed.key).ok());
    Ok(slots.filter(|slot| forgotten.contains(slot)).collect())
}

/// Step 3: creates an epoch; false when somebody else has created one of this number.
pub(crate) async fn create_epoch(repository: &Repository, epoch: &Epoch) -> Result<bool, Failure> {
    let key = names::epoch(epoch.number);
    match repository.store.create(&key, repository.seal(&key, epoch)?).await? {
        Created::Won => Ok(true),
        Created::Lost(_) => Ok(false),
    }
}

/// The end of step 6: creates the verdict, and returns the one that holds.
pub(crate) async fn create_verdict(repository: &Repository, verdict: Verdict) -> Result<Verdict, Failure> {
    let key = names::verdict(verdict.number);
    match repository.store.create(&key, repository.seal(&key, &verdict)?).await? {
        Created::Won => Ok(verdict),
        Created::Lost(found) => {
            let found =
                Verdict::open(&found, &repository.key, &key).map_err(|e| Failure::from(e).context(&key))?;
            check_number(Verdict::WHAT, found.number, verdict.number)?;
            Ok(found)
        }
    }
}
