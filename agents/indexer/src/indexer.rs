//! The indexer of one process: opened over a cache, asked directly or over the bus.
//!
//! Every answer is a hint. `Known` names a pack that was announced or listed, never one that is being filled; a claim
//! is only ever dropped early, which costs a double copy.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use agent::{Context, Failure, Repository};
use schema::limits::MESSAGE_MAX;
use schema::messages::{Answer, Answers, Ask, Copy, FailureKind, Locate, Located, PackStored, Seek, Sought};
use schema::pack::PACK_HEADER_LEN;

use crate::cache::{Cache, PackState};
use crate::claims::{Claims, Owner};
use crate::directory::Directory;
use crate::shards::Shards;
use crate::sync::{Sync, SyncReport};

/// Claims held at once: 4 GiB of chunks on their way to the store, in some 13 MiB of memory.
const CLAIMS: usize = 1 << 16;
/// Entries of a message up to which its sender did not need to split it.
const WHOLE_MAX: usize = 4096;
/// Copies in one answer, at 45 bytes each as they are sent.
const LOCATED_MAX: usize = MESSAGE_MAX / 50;

/// What an indexer is made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The cache's directory; made if it is absent. One process at a time holds it.
    pub path: PathBuf,
    /// Bytes of memory for blocks of the cache; some 20 MiB more are for what is being written.
    pub cache_bytes: u64,
    /// Shards of the whole index, at least 1; the same number for every agent of a repository.
    pub shards: u16,
    /// The shards that this process serves, counted from 0.
    pub owned: Vec<u16>,
    /// Claims older than this are void.
    pub give_up: Duration,
    /// Time between two comparisons with the bucket, for what messages lost.
    pub sync_interval: Duration,
}

/// Why an indexer could not be opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// Another process holds the cache: take a private one.
    #[error("the index cache {} is in use by another process: stop that, or use another directory", path.display())]
    Locked {
        /// The cache's directory.
        path: PathBuf,
    },
    /// Anything else.
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Locked { .. } => Failure::refused(error.to_string()),
            OpenError::Failed(failure) => failure,
        }
    }
}

/// The shards of the index that this process owns. Clones share them.
#[derive(Clone)]
pub struct Indexer {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) context: Context,
    pub(crate) cache: Cache,
    pub(crate) sync: Sync,
    pub(crate) sync_interval: Duration,
    claims: Mutex<Claims>,
    first: SyncReport,
    /// By which others know that this process has looked at the bucket.
    number: OnceLock<u64>,
}

impl fmt::Debug for Indexer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Indexer({:?})", self.inner.cache.shards())
    }
}

impl Indexer {
    /// Opens or makes the cache and brings it up to date with the bucket. A cache of another repository or version,
    /// for other shards, or with damaged files is deleted and built anew.
    ///
    /// [`OpenError::Locked`] when another process holds the cache; a failure when the settings make no sense, the
    /// directory cannot be written, or the bucket cannot be read.
    pub async fn open(
        context: Context,
        repository: Repository,
        settings: Settings,
    ) -> Result<Self, OpenError> {
        let shards = Shards::new(settings.shards, &settings.owned)?;
        let cache = Cache::open(&settings, repository.key.repo(), shards)?;
        let sync = Sync::new(repository);
        let first = sync.run(&cache, &context.stop).await?;
        tracing::info!(path = %settings.path.display(), ?first, "the index is up to date");
        let claims = Mutex::new(Claims::new(settings.give_up, CLAIMS));
        let sync_interval = settings.sync_interval;
        let number = OnceLock::new();
        let inner = Inner { context, cache, sync, sync_interval, claims, first, number };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Whether there is a cache to be opened.
    pub fn has_cache(settings: &Settings) -> bool {
        Directory::has_rows(&settings.path)
    }

    /// What bringing the cache up to date took when it was opened.
    pub fn first_sync(&self) -> SyncReport {
        self.inner.first
    }

    /// Answers about the chunks of one extent. Refused for another number of shards, and for a shard of another
    /// process.
    pub fn ask(&self, ask: &Ask) -> Result<Answers, Failure> {
        let Inner { cache, claims, context, .. } = &*self.inner;
        cache.shards().check(ask.shards, &ask.ids)?;
        let owner = Owner { session: ask.session, extent: ask.extent };
        let now = context.environment.elapsed();
        let answers = ask.ids.iter().map(|id| {
            if !ask.force
                && let Some(pack) = cache.newest(id)?
            {
                return Ok(Answer::Known(pack));
            }
            let mut claims = claims.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(match claims.claim(*id, owner, ask.force, now) {
                true => Answer::Yours,
                false => Answer::Pending,
            })
        });
        Ok(Answers { answers: answers.collect::<Result<_, Failure>>()? })
    }

    /// All known copies, newest pack first; only the newest and the oldest of each chunk when an answer would exceed a
    /// message. Refused like [`Self::ask`].
    pub fn locate(&self, locate: &Locate) -> Result<Located, Failure> {
        let cache = &self.inner.cache;
        cache.shards().check(locate.shards, &locate.ids)?;
        located(locate.ids.iter().map(|id| {
            let mut copies = cache.copies(id)?;
            copies.reverse();
            Ok(copies)
        }))
    }

    /// All copies that there are: looks at the bucket first, unless the asker knows that this has been done. Refused like
    /// [`Self::ask`].
    pub async fn seek(&self, seek: Seek) -> Result<Sought, Failure> {
        let (Inner { cache, context, number, .. }, Seek { shards, ids, looked }) = (&*self.inner, seek);
        let number = number.get_or_init(|| u64::from_le_bytes(context.environment.random()));
        cache.shards().check(shards, &ids)?;
        if !looked.contains(number) {
            let report = self.sync().await?;
            tracing::info!(
                ?report,
                "a chunk was not where it was said to be: the bucket was looked at again"
            );
            if report.packs_withheld > 0 {
                let why =
                    format!("the store does not give {} packs, which may hold it", report.packs_withheld);
                return Err(Failure { retry: true, ..Failure::new(FailureKind::Store, why) });
            }
        }
        let Located { copies } = self.locate(&Locate { shards, ids })?;
        Ok(Sought { copies, by: *number })
    }

    /// A pack is durable: its chunks are known from now on, and nobody's claim any more. An announcement of a pack
    /// that was seen to be gone changes nothing.
    pub fn stored(&self, stored: &PackStored) -> Result<(), Failure> {
        let Inner { cache, claims, .. } = &*self.inner;
        if cache.state(&stored.pack) == Some(PackState::Gone) {
            return Ok(());
        }
        let state = match is_whole(cache.shards().total(), stored) {
            true => PackState::Whole,
            false => PackState::Partial,
        };
        cache.apply(stored.pack, &stored.entries, state)?;
        let mut claims = claims.lock().unwrap_or_else(PoisonError::into_inner);
        stored.entries.iter().for_each(|entry| claims.settle(&entry.id));
        Ok(())
    }

    /// Compares the cache with the bucket: reads footers that are new, forgets packs that are gone.
    pub async fn sync(&self) -> Result<SyncReport, Failure> {
        self.inner.sync.run(&self.inner.cache, &self.inner.context.stop).await
    }

    /// Removes what forgotten packs have left in the cache. Until then it only takes room on disk.
    pub async fn sweep(&self) -> Result<(), Failure> {
        self.inner.sync.sweep(&self.inner.cache, &self.inner.context.stop).await
    }
}

/// An answer that fits a message, of the copies of each chunk, newest first.
pub(crate) fn located(found: impl Iterator<Item = Result<Vec<Copy>, Failure>>) -> Result<Located, Failure> {
    let mut copies = found.collect::<Result<Vec<Vec<Copy>>, Failure>>()?;
    if copies.iter().map(Vec::len).sum::<usize>() > LOCATED_MAX {
        copies.iter_mut().for_each(few);
    }
    Ok(Located { copies })
}

/// Leaves the newest copy, and the oldest, which the collector keeps.
fn few(copies: &mut Vec<Copy>) {
    if copies.len() > 2 {
        copies.drain(1..copies.len() - 1);
    }
}

/// Whether a message certainly names every chunk of its pack. A sender may tell each shard only what concerns it, and
/// splits what does not fit a message; any part may get lost. So a message counts as whole when it begins with the
/// pack's first frame, has no gap, is too short to have been split, and is not of one shard only. The footers of all
/// others are read at the next comparison with the bucket.
fn is_whole(shards: u16, stored: &PackStored) -> bool {
    let mut end = PACK_HEADER_LEN as u64;
    let gapless = stored.entries.iter().all(|entry| {
        let follows = u64::from(entry.offset) == end;
        end += u64::from(entry.len);
        follows
    });
    let mut of_shards = stored.entries.iter().map(|entry| entry.id.shard(shards));
    let first = of_shards.next();
    let mixed = of_shards.any(|shard| Some(shard) != first);
    gapless && first.is_some() && (shards == 1 || mixed) && stored.entries.len() <= WHOLE_MAX
}

/// Deletes the cache and builds it from the bucket alone. Fails like [`Indexer::open`].
pub async fn rebuild(
    context: Context,
    repository: Repository,
    settings: Settings,
) -> Result<SyncReport, OpenError> {
    Directory::lock(&settings.path)?.clear()?;
    Ok(Indexer::open(context, repository, settings).await?.first_sync())
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::pack::PackEntry;
    use schema::{ChunkId, PackId};

    fn message(entries: &[(u16, u32, u32)]) -> PackStored {
        let entry = |&(shard, offset, len): &(u16, u32, u32)| {
            let mut id = [0; 33];
            id[0] = 1;
            id[1..3].copy_from_slice(&shard.to_le_bytes());
            PackEntry { id: ChunkId::parse(&id).expect("a data chunk"), offset, len }
        };
        PackStored { pack: PackId::from_bytes([7; 16]), entries: entries.iter().map(entry).collect() }
    }

    #[test]
    fn only_a_message_that_cannot_be_a_part_is_whole() {
        let start = PACK_HEADER_LEN as u32;
        for (shards, entries, whole) in [
            (1, &[(0, start, 100), (0, start + 100, 50)][..], true),
            (1, &[(0, start, 100), (0, start + 101, 50)], false),
            (1, &[(0, start + 1, 100)], false),
            (1, &[], false),
            (2, &[(0, start, 100), (1, start + 100, 50)], true),
            (2, &[(0, start, 100), (0, start + 100, 50)], false),
        ] {
            assert_eq!(is_whole(shards, &message(entries)), whole, "{shards} {entries:?}");
        }
        let long: Vec<_> = (0..=WHOLE_MAX as u32).map(|n| (0, start + n * 50, 50)).collect();
        assert!(!is_whole(1, &message(&long)));
        assert!(is_whole(1, &message(&long[..WHOLE_MAX])));
    }
}
