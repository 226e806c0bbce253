//! The copier: brings snapshots from one repository to another, each by a session in the second.
//!
//! Frames move verbatim where both repositories share their keys. Elsewhere chunks are opened, named and sealed anew, for
//! which the identity is needed. With it every chunk is opened and compared with its id on the way in both cases; without
//! it, frames are taken for what their headers say. What the second repository holds by the session's rule is not
//! fetched where its ids are known, and is never stored again. Nothing is deleted, and nothing is written to the first
//! repository but the object of the session that protects what is read.
//!
//! Limits: [`Settings::memory`] for chunks on their way, `TRANSLATED_MAX` names, one id per 64 MiB of a volume, and the
//! roots of the first repository and of one volume in the second.

mod base;
mod copying;
mod deposit;
mod fetch;
mod keys;
mod leaves;
mod listing;
mod reads;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent::index::IndexClient;
use agent::keys::DataKeys;
use agent::{Context, Failure, Protection, Repository};
use schema::VolumeKey;
use schema::facts::Origin;
use schema::keys::Identity;
use schema::names::Slot;
use schema::root::{Root, Statistics};

pub(crate) use listing::by_origin;
pub use listing::{Copies, snapshots};

use keys::KeyRing;

/// Ids of chunks of which the other name is remembered.
pub(crate) const TRANSLATED_MAX: usize = 64 << 10;

/// A repository with its index.
#[derive(Debug, Clone)]
pub struct Side {
    /// The repository.
    pub repository: Repository,
    /// Knows where its chunks are.
    pub index: IndexClient,
}

/// How a copier works.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Bytes of chunks that are fetched, opened and sealed at once; 16 MiB at least are used.
    pub memory: u64,
    /// zstd level of what is sealed anew, 1 to 19.
    pub level: i32,
}

/// How far a copy is, in bytes of the volume.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// What is there.
    pub done: u64,
    /// All of it.
    pub total: u64,
}

/// A snapshot that was copied.
#[derive(Debug, Clone, Copy)]
pub struct Copied {
    /// Its place in the second repository.
    pub slot: Slot,
    /// What it took, in the second repository.
    pub statistics: Statistics,
    /// Bytes read from packs of the first.
    pub fetched: u64,
}

/// What became of one snapshot.
#[derive(Debug, Clone, Copy)]
pub enum Outcome {
    /// It was copied.
    Copied(Copied),
    /// Somebody else has brought it meanwhile.
    Present,
}

/// Copies from one repository to another.
pub struct Copier {
    context: Context,
    from: Side,
    to: Side,
    settings: Settings,
    /// Opens what is fetched; none where frames are taken for what their headers say.
    opening: Option<DataKeys>,
    sealing: Sealing,
    /// What the first repository holds.
    sources: BTreeMap<(String, Origin), Root>,
    /// What was read of the second: the snapshots of one volume, whose roots never change.
    known: Mutex<BTreeMap<Slot, Root>>,
}

/// What seals chunks in the second repository.
pub(crate) enum Sealing {
    /// What sealed them in the first.
    Verbatim(Box<KeyRing>),
    /// A data key of this process.
    Anew(keys::Content),
}

impl Copier {
    /// A copier on the bus of the second repository's storer. `sources` are the visible snapshots of the first.
    ///
    /// Refuses when content or its keys would have to be opened and there is no identity.
    pub fn new(
        context: Context,
        from: Side,
        to: Side,
        identity: Option<Arc<Identity>>,
        settings: Settings,
        sources: &[Root],
    ) -> Result<Self, Failure> {
        let (first, second) = (&from.repository, &to.repository);
        let keys = DataKeys::new(first.clone(), identity.clone());
        let sealing = match first.key.shares_keys(&second.key) {
            true => Sealing::Verbatim(KeyRing::new(first.clone(), second, identity.clone())?.into()),
            false => {
                keys.check().map_err(|_| {
                    Failure::refused(format!(
                        "{} and {} do not share their keys, so that all content must be opened and sealed anew: give \
                         --identity (or make the second one by `lvkeep init --like`)",
                        first.store.location(),
                        second.store.location()
                    ))
                })?;
                Sealing::Anew(keys::Content::new(&second.key, &*context.environment)?)
            }
        };
        let opening = keys.check().is_ok().then_some(keys);
        let sources = sources.iter().map(|root| (by_origin(root, first), root.clone())).collect();
        let known = Mutex::default();
        Ok(Self { context, from, to, settings, opening, sealing, sources, known })
    }

    pub(crate) fn known(&self) -> MutexGuard<'_, BTreeMap<Slot, Root>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The snapshots of a volume in the second repository that a listing shows, and that can be read. Each root is read
    /// once, however many snapshots are copied. Whoever relies on one asks whether its session sees it.
    pub(crate) async fn there(&self, volume: VolumeKey) -> Result<Vec<Root>, Failure> {
        let slots = self.to.repository.visible_slots(Some(volume)).await?;
        let fresh: Vec<Slot> = {
            let mut known = self.known();
            known.retain(|slot, _| slot.volume == volume);
            slots.iter().filter(|slot| !known.contains_key(slot)).copied().collect()
        };
        let read = self.to.repository.roots_at(fresh).await?.warned();
        let mut known = self.known();
        known.extend(read.into_iter().map(|root| (root.slot, root)));
        Ok(slots.iter().filter_map(|slot| known.get(slot).cloned()).collect())
    }

    pub(crate) fn is_verbatim(&self) -> bool {
        matches!(self.sealing, Sealing::Verbatim(_))
    }

    /// Copies one snapshot, unless it is there already. `protection` was begun before the first repository was listed.
    pub async fn copy(
        &self,
        protection: &Protection,
        root: &Root,
        progress: impl Fn(Progress),
    ) -> Result<Outcome, Failure> {
        match copying::copy(self, protection, root, &progress).await {
            Err(failure) => Err(protection.explained(root, failure).await),
            outcome => outcome,
        }
    }
}
