//! Snapshots that are marked with what of them is lost.

use std::collections::BTreeMap;

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

/// Bytes that are lost of each snapshot that is marked.
pub async fn all(repository: &Repository) -> Result<BTreeMap<Slot, u64>, Failure> {
    let mut all = BTreeMap::new();
    for listed in repository.store.list(names::HOLES).await? {
        let Ok(slot) = Slot::parse_key(&listed.key) else { continue };
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
