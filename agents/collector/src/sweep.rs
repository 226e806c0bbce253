//! Step 7: carries a verdict out. By anybody, any number of times: it only says what is gone for ever.

use std::collections::{BTreeMap, BTreeSet};

use agent::store::StoreErrorKind;
use agent::{Failure, Repository, Stop, marks};
use schema::PackId;
use schema::epoch::{Epoch, Verdict};
use schema::names::{self, Slot};

use crate::{epochs, go_on};

/// Packs that are deleted between two looks at the flag that stops, and between two lines of the log.
const BATCH: usize = 1000;

/// What a sweep did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Forgotten snapshots whose roots became tombstones.
    pub snapshots: u64,
    /// Packs that were deleted.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packs that the store does not let go yet.
    pub locked: Vec<PackId>,
    /// Roots that the store does not let be overwritten yet.
    pub locked_roots: Vec<Slot>,
}

impl Swept {
    /// Whether nothing is left to do.
    pub fn is_finished(&self) -> bool {
        self.locked.is_empty() && self.locked_roots.is_empty()
    }
}

/// Overwrites the roots that the epoch sweeps, and then deletes exactly the verdict's packs: a pack that is gone says that
/// no root is left which nobody may bring back.
pub(crate) async fn sweep(
    repository: &Repository,
    epoch: &Epoch,
    verdict: &Verdict,
    stop: &Stop,
) -> Result<Swept, Failure> {
    let mut swept = Swept::default();
    tombstone_roots(repository, epoch, &mut swept, stop).await?;
    if swept.locked_roots.is_empty() {
        delete_packs(repository, verdict, &mut swept, stop).await?;
    }
    Ok(swept)
}

async fn tombstone_roots(
    repository: &Repository,
    epoch: &Epoch,
    swept: &mut Swept,
    stop: &Stop,
) -> Result<(), Failure> {
    let left = epochs::unswept(repository, &epoch.forgotten).await?;
    // Also of what seems to be swept: while something is said of it, every collection would look at it.
    delete_marks(repository, &epoch.forgotten.iter().copied().collect()).await?;
    for slot in &left {
        go_on(stop)?;
        match repository.store.put(&slot.snapshot(), repository.tombstone(*slot)?).await {
            Ok(()) => swept.snapshots += 1,
            Err(error) if error.kind() == StoreErrorKind::Denied => {
                tracing::info!(%error, "a root may not be overwritten yet");
                swept.locked_roots.push(*slot);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// What was said of a snapshot goes before it: afterwards nobody would look for it.
async fn delete_marks(repository: &Repository, slots: &BTreeSet<Slot>) -> Result<(), Failure> {
    if slots.is_empty() {
        return Ok(());
    }
    for batch in marks::keys(repository, slots).await?.chunks(BATCH) {
        repository.store.delete_all(batch).await?;
    }
    Ok(())
}

async fn delete_packs(
    repository: &Repository,
    verdict: &Verdict,
    swept: &mut Swept,
    stop: &Stop,
) -> Result<(), Failure> {
    let sizes: BTreeMap<PackId, u64> = repository.list_packs().await?.into_iter().collect();
    let keys: Vec<String> = verdict
        .delete
        .iter()
        .filter(|pack| sizes.contains_key(pack))
        .map(|pack| names::pack(*pack))
        .collect();
    for batch in keys.chunks(BATCH) {
        go_on(stop)?;
        let locked = repository.store.delete_all(batch).await?;
        for key in batch.iter().filter(|key| !locked.contains(key)) {
            swept.packs += 1;
            swept.bytes += names::parse_pack(key).ok().and_then(|pack| sizes.get(&pack)).unwrap_or(&0);
        }
        swept.locked.extend(locked.iter().filter_map(|key| names::parse_pack(key).ok()));
        tracing::info!(deleted = swept.packs, of = keys.len(), locked = swept.locked.len(), "deleting packs");
    }
    Ok(())
}
