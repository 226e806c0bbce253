//! Opening the rows: with little memory, and only if they are what this process needs.

use std::panic::{AssertUnwindSafe, catch_unwind};

use fjall::config::{BlockSizePolicy, PartitioningPolicy};
use fjall::{Database, Keyspace, KeyspaceCreateOptions};
use schema::{PackId, RepoId};

use super::{OWNER_ROW, PACK_ROW, PackState, Packs};
use crate::directory::Directory;
use crate::shards::Shards;

/// Version of the rows. Another one on disk means that the cache is built anew.
const VERSION: u16 = 1;
/// Bytes of rows in memory before they go to a file; up to five times as many are in flight.
const MEMTABLE: u64 = 4 << 20;
/// Bytes of the write-ahead journals; the smallest that the database takes.
const JOURNALS: u64 = 64 << 20;
/// Files kept open.
const FILES: usize = 128;

/// Why rows cannot be used.
pub(super) enum Unusable {
    /// They are another repository's, another version's, or for other shards.
    NotOurs,
    /// They cannot be read.
    Unreadable(String),
}

impl From<fjall::Error> for Unusable {
    fn from(error: fjall::Error) -> Self {
        Self::Unreadable(error.to_string())
    }
}

/// What the rows belong to, as its row says it.
pub(super) fn owner_row(repo: RepoId, shards: &Shards) -> Vec<u8> {
    let mut row = VERSION.to_le_bytes().to_vec();
    row.extend_from_slice(repo.as_bytes());
    row.extend_from_slice(&shards.total().to_le_bytes());
    row.extend(shards.owned().iter().flat_map(|shard| shard.to_le_bytes()));
    row
}

/// Opens the database and checks whose it is.
pub(super) fn load(
    directory: &Directory,
    cache_bytes: u64,
    owner: &[u8],
) -> Result<(Database, Keyspace, Packs), Unusable> {
    // The database asserts what it finds in its files: damaged ones may make it panic instead of failing.
    catch_unwind(AssertUnwindSafe(|| {
        let database = Database::builder(directory.rows())
            .cache_size(cache_bytes)
            .max_cached_files(Some(FILES))
            .max_journaling_size(JOURNALS)
            .worker_threads(2)
            .open()?;
        let rows = database.keyspace("rows", options)?;
        let packs = match rows.get(OWNER_ROW)? {
            Some(found) if *found == *owner => load_packs(&rows)?,
            None if rows.is_empty()? => {
                rows.insert(OWNER_ROW, owner)?;
                Packs::new()
            }
            _ => return Err(Unusable::NotOurs),
        };
        Ok((database, rows, packs))
    }))
    .unwrap_or_else(|_| Err(Unusable::Unreadable("the database panicked on it".to_owned())))
}

/// Filters and indexes are read in parts: whole ones would push everything else out of a small cache.
fn options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default()
        .max_memtable_size(MEMTABLE)
        .data_block_size_policy(BlockSizePolicy::all(4 << 10))
        .filter_block_partitioning_policy(PartitioningPolicy::all(true))
        .index_block_partitioning_policy(PartitioningPolicy::all(true))
}

fn load_packs(rows: &Keyspace) -> Result<Packs, Unusable> {
    let mut packs = Packs::new();
    for row in rows.prefix([PACK_ROW]) {
        let (key, value) = row.into_inner()?;
        let pack = key.get(1..).and_then(|id| id.try_into().ok()).map(PackId::from_bytes);
        match (pack, PackState::parse(&value)) {
            (Some(pack), Some(state)) => packs.insert(pack, state),
            _ => return Err(Unusable::Unreadable("a row about a pack makes no sense".to_owned())),
        };
    }
    Ok(packs)
}
