//! Snapshots that are marked with what of them is lost.

use std::collections::{BTreeMap, BTreeSet};

use agent::{Failure, Repository};
use schema::damage::Holes;
use schema::messages::FailureKind;
use schema::names::{self, Slot};

use crate::show::Range;

/// The holes of a snapshot.
pub async fn of(repository: &Repository, slot: Slot) -> Result<Vec<Range>, Failure> {
    let holes = read(repository, slot).await?.map(|holes| holes.ranges).unwrap_or_default();
    Ok(holes.into_iter().map(|(offset, len)| Range { offset, len }).collect())
}

/// Where there are marks, also of snapshots that are forgotten or gone.
pub async fn slots(repository: &Repository) -> Result<BTreeSet<Slot>, Failure> {
    let listed = repository.store.list(names::HOLES).await?;
    Ok(listed.iter().filter_map(|listed| Slot::parse_key(&listed.key).ok()).collect())
}

/// Bytes that are lost of each snapshot that is marked.
pub async fn all(repository: &Repository) -> Result<BTreeMap<Slot, u64>, Failure> {
    let mut all = BTreeMap::new();
    for slot in slots(repository).await? {
        if let Some(holes) = read(repository, slot).await? {
            all.insert(slot, holes.bytes());
        }
    }
    Ok(all)
}

/// A mark that cannot be read must not keep anybody from seeing the rest: `check` names it.
async fn read(repository: &Repository, slot: Slot) -> Result<Option<Holes>, Failure> {
    match repository.read(&slot.holes()).await {
        Err(failure) if failure.kind != FailureKind::Store => {
            tracing::warn!(%failure, "marked holes cannot be read");
            Ok(None)
        }
        read => read,
    }
}
