//! Which snapshots there are, and which of them are missing elsewhere.

use std::collections::BTreeSet;

use agent::repository::AtSlot;
use agent::{Failure, Repository};
use futures::{StreamExt, stream};
use schema::facts::Origin;
use schema::messages::FailureKind;
use schema::names::Slot;
use schema::root::Root;

/// Roots read at once.
const AT_ONCE: usize = 16;

/// The visible snapshots of a repository.
#[derive(Debug, Default)]
pub struct Listing {
    /// By volume, oldest first.
    pub roots: Vec<Root>,
    /// Those whose roots cannot be read.
    pub damaged: Vec<(Slot, Failure)>,
}

/// Lists the visible snapshots. One whose root is damaged does not stand in the way of the others.
pub async fn snapshots(repository: &Repository) -> Result<Listing, Failure> {
    let slots = repository.visible_slots(None).await?;
    let read = |slot: Slot| async move { (slot, repository.at_slot(slot).await) };
    let mut found = stream::iter(slots).map(read).buffered(AT_ONCE);
    let mut listing = Listing::default();
    while let Some((slot, at_slot)) = found.next().await {
        match at_slot {
            Ok(AtSlot::Snapshot(root)) => listing.roots.push(*root),
            Ok(AtSlot::Nothing | AtSlot::Tombstone) => {}
            Err(failure) if failure.kind == FailureKind::Damaged => listing.damaged.push((slot, failure)),
            Err(failure) => return Err(failure),
        }
    }
    listing.roots.sort_by(|a, b| (&a.volume, a.generation, a.slot).cmp(&(&b.volume, b.generation, b.slot)));
    Ok(listing)
}

/// What a snapshot and its copies have in common. What is said of one volume says nothing about another.
pub fn by_origin(root: &Root, repository: &Repository) -> (String, Origin) {
    (root.volume.clone(), Origin::of(root, repository.key.repo()))
}

impl Listing {
    /// The volumes of the snapshots, which stand in this repository, and where they were made.
    pub fn origins(&self, repository: &Repository) -> BTreeSet<(String, Origin)> {
        self.roots.iter().map(|root| by_origin(root, repository)).collect()
    }
}
