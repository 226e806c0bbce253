//! Puts tombstones anew that cannot be read. Collections tell them by their size alone, and sweep no slot a second time.

use std::collections::BTreeSet;

use agent::repository::AtSlot;
use agent::store::StoreErrorKind;
use agent::{Failure, Repository};
use futures::stream::{self, StreamExt};
use schema::messages::FailureKind;
use schema::names::{self, Slot};

use crate::given::is_withheld;
use crate::mend::{Mended, Mender};

/// Tombstones that are read at once.
const AT_ONCE: usize = 16;

impl Mender {
    /// Those of snapshots that are forgotten. Of any other slot nobody knows whether a snapshot stood there.
    pub(crate) async fn tombstones(&self, mended: &mut Mended) -> Result<(), Failure> {
        let repository = &self.source.repository;
        let short = forgotten_and_short(repository).await?;
        let look = |slot: Slot| async move { (slot, self.is_unreadable(slot).await) };
        let mut looking = stream::iter(short).map(look).buffered(AT_ONCE);
        while let Some((slot, is_unreadable)) = looking.next().await {
            self.source.go_on()?;
            if !is_unreadable? {
                continue;
            }
            let key = slot.snapshot();
            match repository.store.put(&key, repository.tombstone(slot)?).await {
                Ok(()) => mended.tombstones.push(key),
                Err(error) if error.kind() == StoreErrorKind::Denied => {
                    tracing::info!(%error, "a tombstone may not be overwritten yet");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn is_unreadable(&self, slot: Slot) -> Result<bool, Failure> {
        // Once more before that is believed.
        for _ in 0..2 {
            match self.source.at_slot(slot).await? {
                Ok(AtSlot::Tombstone | AtSlot::Snapshot(_) | AtSlot::Nothing) => return Ok(false),
                Err(failure) if failure.kind == FailureKind::Damaged => {}
                Err(failure) if failure.kind == FailureKind::Refused || is_withheld(&failure) => {
                    return Ok(false);
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(true)
    }
}

async fn forgotten_and_short(repository: &Repository) -> Result<Vec<Slot>, Failure> {
    let slot = |listed: &agent::store::Listed| Slot::parse_key(&listed.key).ok();
    let forgotten: BTreeSet<Slot> =
        repository.store.list(names::FORGOTTEN).await?.iter().filter_map(slot).collect();
    let listed = repository.store.list(names::SNAPSHOTS).await?;
    let short = listed.iter().filter(|listed| repository.is_as_short(listed.size));
    Ok(short.filter_map(slot).filter(|slot| forgotten.contains(slot)).collect())
}
