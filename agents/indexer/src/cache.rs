//! The cache on disk: one table of rows, and in memory which packs are alive.
//!
//! ```text
//! key                      value
//! 0, pack id 16            1 = some of its entries were applied, 2 = all, 3 = gone from the bucket, entries remain
//! chunk id 33 (1 or 2...)  its copies, see `copies`
//! 255                      what the rows belong to: format version, repository, shards, owned shards
//! ```
//!
//! All rows are in one table, written in one order: whatever a crash cuts off, a pack that is marked has its entries.
//! Nothing here needs to be flushed to disk: a lost tail is read from footers again. Calls block, but shortly.

use std::collections::HashMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use agent::{Failure, Stop};
use fjall::{Database, Keyspace};
use schema::messages::{Copy, FailureKind};
use schema::pack::PackEntry;
use schema::{ChunkId, PackId, RepoId};

use self::load::{Unusable, load, owner_row};
use crate::copies;
use crate::directory::Directory;
use crate::indexer::{OpenError, Settings};
use crate::shards::Shards;

mod load;
#[cfg(test)]
mod tests;

const PACK_ROW: u8 = 0;
const OWNER_ROW: [u8; 1] = [u8::MAX];
/// Entries in one write batch.
const BATCH: usize = 4096;

/// What is known about a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum PackState {
    /// Some of its entries were applied; its footer tells the rest.
    Partial = 1,
    /// All its entries that concern our shards were applied.
    Whole = 2,
    /// A listing that was made after it was known lacks it; its entries are yet to be removed.
    Gone = 3,
}

impl PackState {
    fn parse(value: &[u8]) -> Option<Self> {
        [Self::Partial, Self::Whole, Self::Gone].into_iter().find(|state| value == [*state as u8])
    }
}

/// The packs that are known. 17 bytes of memory each, and the table's slack.
type Packs = HashMap<PackId, PackState>;

pub(crate) struct Cache {
    rows: Keyspace,
    database: Database,
    shards: Shards,
    packs: RwLock<Packs>,
    /// Held from reading a row until its new value is written.
    writer: Mutex<()>,
    broken: Stop,
    /// Last, so that the lock outlives the database.
    directory: Directory,
}

impl Cache {
    /// Opens the rows; those that are of no use are deleted, and it begins with none.
    pub(crate) fn open(settings: &Settings, repo: RepoId, shards: Shards) -> Result<Self, OpenError> {
        let directory = Directory::lock(&settings.path)?;
        let path = settings.path.display();
        if directory.is_marked_damaged() {
            tracing::warn!(%path, "the index cache was found damaged; building it anew");
            directory.clear()?;
        }
        let owner = owner_row(repo, &shards);
        let opened = match load(&directory, settings.cache_bytes, &owner) {
            Ok(opened) => opened,
            Err(unusable) => {
                match unusable {
                    Unusable::NotOurs => {
                        tracing::info!(%path, "the index cache is for another repository, version or set of shards; building it anew");
                    }
                    Unusable::Unreadable(why) => {
                        tracing::warn!(%path, why, "the index cache cannot be read; building it anew");
                    }
                }
                directory.clear()?;
                load(&directory, settings.cache_bytes, &owner).map_err(|unusable| match unusable {
                    Unusable::NotOurs => unreadable(&directory, "rows appeared in it from nowhere"),
                    Unusable::Unreadable(why) => unreadable(&directory, &why),
                })?
            }
        };
        let (database, rows, packs) = opened;
        Ok(Self {
            rows,
            database,
            shards,
            packs: RwLock::new(packs),
            writer: Mutex::default(),
            broken: Stop::default(),
            directory,
        })
    }

    /// Raised when rows turned out to be unreadable; the next start builds them anew.
    pub(crate) fn broken(&self) -> &Stop {
        &self.broken
    }

    /// The failure of every call after [`Self::broken`] was raised.
    pub(crate) fn broken_failure(&self) -> Failure {
        unreadable(&self.directory, "it is damaged")
    }

    pub(crate) fn shards(&self) -> &Shards {
        &self.shards
    }

    fn fail(&self, why: impl ToString) -> Failure {
        let why = why.to_string();
        if !self.broken.is_raised() {
            tracing::error!(path = %self.directory.path().display(), why, "the index cache failed; the next start builds it anew");
            self.directory.mark_damaged();
            self.broken.raise();
        }
        unreadable(&self.directory, &why)
    }

    fn packs(&self) -> RwLockReadGuard<'_, Packs> {
        // Every change to the map is one insertion or removal, so that a poisoned lock holds a usable map.
        self.packs.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change_packs(&self, change: impl FnOnce(&mut Packs)) {
        change(&mut self.packs.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known about a pack.
    pub(crate) fn state(&self, pack: &PackId) -> Option<PackState> {
        self.packs().get(pack).copied()
    }

    /// The packs that are in one of these states, in order.
    pub(crate) fn packs_in(&self, states: &[PackState]) -> Vec<PackId> {
        let packs = self.packs();
        let mut found: Vec<PackId> =
            packs.iter().filter(|(_, state)| states.contains(state)).map(|(pack, _)| *pack).collect();
        found.sort_unstable();
        found
    }

    /// The newest living pack that has the chunk.
    pub(crate) fn newest(&self, id: &ChunkId) -> Result<Option<PackId>, Failure> {
        let Some(value) = self.rows.get(id.as_bytes()).map_err(|e| self.fail(e))? else { return Ok(None) };
        let copies = copies::decode(&value).ok_or_else(|| self.fail("a row has an impossible length"))?;
        let packs = self.packs();
        Ok(copies.rev().map(|copy| copy.pack).find(|pack| lives(&packs, pack)))
    }

    /// All copies of the chunk in living packs, oldest pack first.
    pub(crate) fn copies(&self, id: &ChunkId) -> Result<Vec<Copy>, Failure> {
        let Some(value) = self.rows.get(id.as_bytes()).map_err(|e| self.fail(e))? else {
            return Ok(Vec::new());
        };
        let copies = copies::decode(&value).ok_or_else(|| self.fail("a row has an impossible length"))?;
        let packs = self.packs();
        Ok(copies.filter(|copy| lives(&packs, &copy.pack)).collect())
    }

    /// Adds a pack's entries and marks it; how many concerned our shards. Repetition changes nothing.
    pub(crate) fn apply(
        &self,
        pack: PackId,
        entries: &[PackEntry],
        state: PackState,
    ) -> Result<usize, Failure> {
        let _writing = self.writing();
        if self.state(&pack) == Some(PackState::Whole) {
            return Ok(0);
        }
        let mut owned: Vec<&PackEntry> = entries.iter().filter(|entry| self.shards.owns(&entry.id)).collect();
        // In order of key, and an id that a pack has twice is in one batch.
        owned.sort_unstable_by_key(|entry| (entry.id, entry.offset));
        let mut batch = self.database.batch();
        for same in owned.chunk_by(|a, b| a.id == b.id) {
            let mut copies = self.copies(&same[0].id)?;
            copies.extend(same.iter().map(|entry| Copy { pack, offset: entry.offset, len: entry.len }));
            batch.insert(&self.rows, *same[0].id.as_bytes(), copies::encode(copies));
            if batch.len() == BATCH {
                std::mem::replace(&mut batch, self.database.batch()).commit().map_err(|e| self.fail(e))?;
            }
        }
        // The mark goes into the last batch: it never stands without its entries.
        batch.insert(&self.rows, pack_row(&pack), [state as u8]);
        batch.commit().map_err(|e| self.fail(e))?;
        self.change_packs(|packs| {
            packs.insert(pack, state);
        });
        Ok(owned.len())
    }

    /// Packs that are gone from the bucket: their copies do not count from now on.
    pub(crate) fn forget(&self, gone: &[PackId]) -> Result<(), Failure> {
        let _writing = self.writing();
        for part in gone.chunks(BATCH) {
            let mut batch = self.database.batch();
            for pack in part {
                batch.insert(&self.rows, pack_row(pack), [PackState::Gone as u8]);
            }
            batch.commit().map_err(|e| self.fail(e))?;
            self.change_packs(|packs| packs.extend(part.iter().map(|pack| (*pack, PackState::Gone))));
        }
        Ok(())
    }

    /// Removes copies in dead packs from some thousand rows that follow `after`; says where to go on, or that the
    /// end was reached.
    pub(crate) fn sweep(&self, after: Option<ChunkId>) -> Result<Option<ChunkId>, Failure> {
        let _writing = self.writing();
        let start = match &after {
            Some(id) => Bound::Excluded(id.as_bytes().as_slice()),
            None => Bound::Included([PACK_ROW + 1].as_slice()),
        };
        let mut batch = self.database.batch();
        let mut last = None;
        for row in self.rows.range::<&[u8], _>((start, Bound::Excluded(OWNER_ROW.as_slice()))).take(BATCH) {
            let (key, value) = row.into_inner().map_err(|e| self.fail(e))?;
            let id = key.as_ref().try_into().ok().and_then(|key| ChunkId::parse(key).ok());
            let id = id.ok_or_else(|| self.fail("a row has an impossible key"))?;
            last = Some(id);
            let copies = copies::decode(&value).ok_or_else(|| self.fail("a row has an impossible length"))?;
            let all: Vec<Copy> = copies.collect();
            let packs = self.packs();
            let living: Vec<Copy> = all.iter().filter(|copy| lives(&packs, &copy.pack)).copied().collect();
            if living.is_empty() {
                batch.remove(&self.rows, *id.as_bytes());
            } else if living.len() < all.len() {
                batch.insert(&self.rows, *id.as_bytes(), copies::encode(living));
            }
        }
        batch.commit().map_err(|e| self.fail(e))?;
        Ok(last)
    }

    /// No row has copies in these packs any more: they need not be remembered, unless they came back.
    pub(crate) fn swept(&self, gone: &[PackId]) -> Result<(), Failure> {
        let _writing = self.writing();
        for part in gone.chunks(BATCH) {
            let still: Vec<&PackId> =
                part.iter().filter(|p| self.state(p) == Some(PackState::Gone)).collect();
            let mut batch = self.database.batch();
            for pack in &still {
                batch.remove(&self.rows, pack_row(pack));
            }
            batch.commit().map_err(|e| self.fail(e))?;
            self.change_packs(|packs| {
                for pack in &still {
                    packs.remove(*pack);
                }
            });
        }
        Ok(())
    }
}

fn lives(packs: &Packs, pack: &PackId) -> bool {
    packs.get(pack).is_some_and(|state| *state != PackState::Gone)
}

fn pack_row(pack: &PackId) -> [u8; 17] {
    let mut key = [PACK_ROW; 17];
    key[1..].copy_from_slice(pack.as_bytes());
    key
}

fn unreadable(directory: &Directory, why: &str) -> Failure {
    let path = directory.path().display();
    let text = format!(
        "the index cache {path} cannot be used: {why}; start again to have it built anew, or set another place"
    );
    Failure::new(FailureKind::Other, text)
}
