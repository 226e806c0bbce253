//! Copies of wanted chunks: in memory, and on disk once they are more than their share of it.

use std::path::PathBuf;
use std::time::Duration;

use agent::Failure;
use schema::messages::Copy;
use schema::pack::PackEntry;
use schema::{ChunkId, PackId, RepoId};

use crate::cache::{Cache, PackState};
use crate::directory::Scratch;
use crate::indexer::Settings;
use crate::shards::Shards;

/// A copy of a chunk.
type Row = (ChunkId, Copy);

/// Where rows go that are too many for the memory.
pub(crate) struct Spill {
    /// A directory that is made when it is needed, and deleted in the end.
    pub path: PathBuf,
    /// Whose chunks they are.
    pub repo: RepoId,
    /// Bytes of memory for blocks of what is on disk.
    pub cache_bytes: u64,
}

/// The table.
pub(crate) struct Table {
    rows: Vec<Row>,
    limit: usize,
    spill: Spill,
    // In this order: the directory is deleted when nobody writes to it any more.
    disk: Option<Cache>,
    scratch: Option<Scratch>,
}

impl Table {
    /// An empty one, of which `bytes` may be in memory.
    pub(crate) fn new(bytes: u64, spill: Spill) -> Self {
        let limit = (bytes / size_of::<Row>() as u64) as usize;
        Self { rows: Vec::new(), limit, spill, disk: None, scratch: None }
    }

    /// Whether it is on disk.
    pub(crate) fn is_spilled(&self) -> bool {
        self.disk.is_some()
    }

    /// How many copies may wait elsewhere before they are added: little beside what is held here.
    pub(crate) fn batch(&self) -> usize {
        (self.limit / 8).max(1024)
    }

    /// Adds copies in one pack; repetition changes nothing.
    pub(crate) fn add(&mut self, pack: PackId, entries: &[PackEntry]) -> Result<(), Failure> {
        if let Some(disk) = &self.disk {
            return disk.apply(pack, entries, PackState::Partial).map(drop);
        }
        let copy = |entry: &PackEntry| Copy { pack, offset: entry.offset, len: entry.len };
        self.rows.extend(entries.iter().map(|entry| (entry.id, copy(entry))));
        match self.rows.len() > self.limit {
            true => self.spill(),
            false => Ok(()),
        }
    }

    /// Call it before copies are asked for.
    pub(crate) fn sort(&mut self) {
        self.rows.sort_unstable();
        self.rows.dedup();
    }

    /// Copies of a chunk, the newest pack first.
    pub(crate) fn copies(&self, id: &ChunkId) -> Result<Vec<Copy>, Failure> {
        let mut copies = match &self.disk {
            Some(disk) => disk.copies(id)?,
            None => {
                let from = self.rows.partition_point(|(row, _)| row < id);
                self.rows[from..].iter().take_while(|(row, _)| row == id).map(|(_, copy)| *copy).collect()
            }
        };
        copies.reverse();
        Ok(copies)
    }

    fn spill(&mut self) -> Result<(), Failure> {
        let path = self.spill.path.clone();
        tracing::info!(path = %path.display(), rows = self.rows.len(), "the wanted chunks are too many for the memory");
        let shards = Shards::new(1, &[0])?;
        let settings = Settings {
            path: path.clone(),
            cache_bytes: self.spill.cache_bytes,
            shards: shards.total(),
            owned: shards.owned().to_vec(),
            give_up: Duration::ZERO,
            sync_interval: Duration::ZERO,
        };
        self.scratch = Some(Scratch::new(path));
        let disk = Cache::open(&settings, self.spill.repo, shards).map_err(|why| {
            Failure::from(why).context(
                "the wanted chunks are too many for the memory, and there is no room for them on disk: give --work-dir a \
                 folder, or more --memory",
            )
        })?;
        let mut rows = std::mem::take(&mut self.rows);
        rows.sort_unstable_by_key(|(_, copy)| *copy);
        for of_pack in rows.chunk_by(|(_, a), (_, b)| a.pack == b.pack) {
            let entry = |(id, copy): &Row| PackEntry { id: *id, offset: copy.offset, len: copy.len };
            let entries: Vec<PackEntry> = of_pack.iter().map(entry).collect();
            disk.apply(of_pack[0].1.pack, &entries, PackState::Partial)?;
        }
        self.disk = Some(disk);
        Ok(())
    }
}
