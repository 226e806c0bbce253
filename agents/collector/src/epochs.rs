//! Epochs and verdicts: where a collection stands, for everybody. At most one is unfinished.
//!
//! What was decided by create-if-absent holds, whoever wrote it.

use std::collections::BTreeSet;

use agent::epochs::check_number;
use agent::store::Created;
use agent::{Failure, Repository};
use schema::epoch::{Epoch, Verdict};
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
    let finished = Latest::Finished { next: found.number + 1 };
    let Some(epoch) = found.epoch else { return Ok(finished) };
    let Some(verdict) = found.verdict else { return Ok(Latest::Open(epoch)) };
    match is_finished(&verdict, &epoch, &packs(repository).await?, &roots(repository).await?) {
        true => Ok(finished),
        false => Ok(Latest::Decided(epoch, verdict)),
    }
}

/// Finished is an epoch when none of its verdict's packs is listed and every root that it sweeps is a tombstone.
fn is_finished(verdict: &Verdict, epoch: &Epoch, packs: &BTreeSet<PackId>, roots: &BTreeSet<Slot>) -> bool {
    !verdict.delete.iter().any(|pack| packs.contains(pack))
        && !epoch.forgotten.iter().any(|slot| roots.contains(slot))
}

/// The packs that a listing shows.
pub(crate) async fn packs(repository: &Repository) -> Result<BTreeSet<PackId>, Failure> {
    Ok(repository.list_packs().await?.into_iter().map(|(pack, _)| pack).collect())
}

/// The slots that hold more than a tombstone.
pub(crate) async fn roots(repository: &Repository) -> Result<BTreeSet<Slot>, Failure> {
    let listed = repository.store.list(names::SNAPSHOTS).await?;
    let existing = listed.iter().filter(|listed| listed.size > 0);
    Ok(existing.filter_map(|listed| Slot::parse_key(&listed.key).ok()).collect())
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
