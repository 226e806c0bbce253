//! Step 2: moves what is needed out of mostly dead packs, frames verbatim, into new packs.
//!
//! Content cannot be opened here, and what is moved badly would be lost with its old pack. So every frame is read
//! twice, a structure chunk is opened, and a new pack is read back before it counts. A pack with anything odd in it
//! is left as it is. New packs are durable, with their data keys, and announced before any old one is condemned. Of
//! several copies the oldest counts, so that the names of new packs are older than those of all that they come from.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use agent::store::StoreErrorKind;
use agent::{Failure, Repository, Stop};
use bytes::Bytes;
use schema::chunk::{FrameHeader, Opener};
use schema::keys::{KEY_DATA_FIRST, SealedKey, index_of};
use schema::messages::FailureKind;
use schema::pack::{PackBuilder, PackEntry, PackHeader};
use schema::{Domain, PackId, names};

use crate::announce::Announce;
use crate::census::Holding;
use crate::footers::{Found, Pack};
use crate::go_on;
use crate::mark::Sources;

/// Bytes between two needed frames that are read along rather than asked around.
const GAP: u32 = 64 << 10;
/// Bytes of one read.
const READ_MAX: u32 = 8 << 20;
/// Attempts to upload a pack, each under a fresh name; with doubling pauses they span about a minute.
const ATTEMPTS: u32 = 9;
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// What was moved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rewritten {
    /// Packs whose needed frames all have a copy in a new pack.
    pub(crate) old: Vec<PackId>,
    /// Packs that were written.
    pub(crate) new: u64,
    /// Bytes of those.
    pub(crate) bytes: u64,
}

/// Moves the needed frames of these packs.
pub(crate) async fn rewrite(
    sources: &Sources<'_>,
    announce: &Announce,
    packs: &[&Holding],
) -> Result<Rewritten, Failure> {
    let oldest = packs.iter().map(|holding| holding.pack.time_ms()).min().unwrap_or_default();
    let mut rewriter = Rewriter {
        repository: sources.repository,
        time_ms: oldest.saturating_sub(1),
        announce,
        stop: sources.stop,
        open: BTreeMap::new(),
        opener: Opener::new(sources.repository.key.chunk_ids())?,
        done: Rewritten::default(),
    };
    let mut old = Vec::new();
    for holding in packs {
        go_on(sources.stop)?;
        let Found::Pack(pack) = sources.footers.one(holding.pack).await? else { continue };
        match rewriter.add(&pack, holding).await {
            Ok(()) => old.push(holding.pack),
            Err(failure) if failure.kind == FailureKind::Damaged => {
                tracing::warn!(pack = %holding.pack, %failure, "a pack is not rewritten, because something is wrong with it");
            }
            Err(failure) => return Err(failure),
        }
    }
    go_on(sources.stop)?;
    rewriter.close_all().await?;
    rewriter.done.old = old;
    Ok(rewriter.done)
}

struct Rewriter<'a> {
    repository: &'a Repository,
    /// The time in the names of new packs.
    time_ms: u64,
    announce: &'a Announce,
    stop: &'a Stop,
    /// Packs being filled, by kind and retention class.
    open: BTreeMap<(Domain, u8), PackBuilder>,
    opener: Opener,
    done: Rewritten,
}

impl Rewriter<'_> {
    /// A fresh name for a pack.
    fn name(&self) -> PackId {
        PackId::from_parts(self.time_ms, u128::from_le_bytes(self.repository.environment().random()) >> 48)
    }

    async fn add(&mut self, pack: &Pack, holding: &Holding) -> Result<(), Failure> {
        let entries = pack.footer.entries.iter().enumerate();
        let needed: Vec<PackEntry> =
            entries.filter(|(frame, _)| holding.needs(*frame)).map(|(_, entry)| *entry).collect();
        for (range, entries) in reads(&needed) {
            let key = names::pack(holding.pack);
            let bytes = self.read(&key, range.clone()).await?;
            if self.read(&key, range.clone()).await? != bytes {
                return Err(Failure::damaged(format!("{key} is not the same twice when it is read")));
            }
            for entry in entries {
                let start = (u64::from(entry.offset) - range.start) as usize;
                // A slice would keep all of the read in memory until the pack is full.
                let frame = Bytes::copy_from_slice(&bytes[start..start + entry.len as usize]);
                self.frame(pack, entry, frame).await.map_err(|e| e.context(&key))?;
            }
        }
        Ok(())
    }

    /// A part of an old pack. One that the store does not give, though it gives other objects, stays as it is, like one that
    /// is damaged.
    async fn read(&self, key: &str, range: Range<u64>) -> Result<Bytes, Failure> {
        match self.repository.store.get_range(key, range).await {
            Err(error)
                if error.kind() == StoreErrorKind::Unavailable && self.repository.gives_others().await =>
            {
                Err(Failure::damaged(error.to_string()))
            }
            read => Ok(read?),
        }
    }

    async fn frame(&mut self, pack: &Pack, entry: &PackEntry, frame: Bytes) -> Result<(), Failure> {
        let header = FrameHeader::parse(&frame)?;
        if header.id != entry.id || header.frame_len() != frame.len() {
            return Err(Failure::damaged(format!("it does not hold chunk {} where it says", entry.id)));
        }
        let structure = self.repository.key.structure_key();
        if header.key == structure.index() && pack.header.kind == Domain::Structure {
            self.opener.open(&entry.id, &frame, &structure)?;
        }
        let key = match header.key >= KEY_DATA_FIRST {
            true => Some(self.sealing_key(pack, header.key).await?),
            false => None,
        };
        let kind = (pack.header.kind, pack.header.class);
        if !self.push(kind, pack, header, &frame, key.as_ref())? {
            self.close(kind).await?;
            if !self.push(kind, pack, header, &frame, key.as_ref())? {
                return Err(Failure::damaged(format!("chunk {} does not fit an empty pack", entry.id)));
            }
        }
        let full = |builder: &PackBuilder| builder.len() >= self.repository.config.pack_size;
        match self.open.get(&kind).is_some_and(full) {
            true => self.close(kind).await,
            false => Ok(()),
        }
    }

    /// The key that seals a frame, as the storer of its pack was given it. What stands below `keys/` may have recipients
    /// that came later, and may be damaged, which nobody can tell without an identity: were the new pack to name that, and
    /// the old one deleted, the last copy that opens could go.
    async fn sealing_key(&self, pack: &Pack, index: u32) -> Result<SealedKey, Failure> {
        let key = pack.footer.keys.iter().find(|key| index_of(&key.id) == index);
        let key = key.ok_or_else(|| Failure::damaged(format!("its footer lacks key {index:08x}")))?;
        let name = names::key(key.id);
        if self.repository.store.head(&name).await?.is_none_or(|size| size == 0) {
            self.repository.store.create(&name, key.sealed.clone()).await?;
        }
        Ok(key.clone())
    }

    /// Adds a frame to the open pack of its kind; false when it must go into another one.
    fn push(
        &mut self,
        kind: (Domain, u8),
        pack: &Pack,
        header: FrameHeader,
        frame: &Bytes,
        key: Option<&SealedKey>,
    ) -> Result<bool, Failure> {
        let (repo, name) = (self.repository.key.repo(), self.name());
        let new = || PackBuilder::new(PackHeader { repo, pack: name, kind: kind.0, class: kind.1 });
        let builder = self.open.entry(kind).or_insert_with(new);
        // A footer names sessions so that the packs of open ones stay. None of these is open: one says that it is whole.
        let Some(session) = builder.sessions().first().or(pack.footer.sessions.first()).copied() else {
            return Ok(false);
        };
        if key.is_some_and(|key| builder.clashes_with(key)) {
            return Ok(false);
        }
        if builder.push(&[header], frame.clone(), session).is_err() {
            return Ok(false);
        }
        if let Some(key) = key {
            builder.add_key(key);
        }
        Ok(true)
    }

    async fn close_all(&mut self) -> Result<(), Failure> {
        while let Some(kind) = self.open.keys().next().copied() {
            self.close(kind).await?;
        }
        Ok(())
    }

    /// Uploads an open pack, reads it back, and announces it.
    async fn close(&mut self, kind: (Domain, u8)) -> Result<(), Failure> {
        let Some(mut builder) = self.open.remove(&kind).filter(|builder| !builder.is_empty()) else {
            return Ok(());
        };
        let (store, environment) = (&self.repository.store, self.repository.environment());
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            let pack = builder.header().pack;
            let (parts, footer) = builder.clone().finish();
            let error = match store.put_once(&names::pack(pack), parts.clone()).await {
                Ok(()) => {
                    self.done.bytes += self.read_back(pack, &parts).await?;
                    self.done.new += 1;
                    return self.announce.stored(pack, &footer.entries, self.stop).await;
                }
                Err(error) => error,
            };
            let again = error.is_transient() || error.kind() == StoreErrorKind::Exists;
            if !again || attempt >= ATTEMPTS {
                return Err(error.into());
            }
            tracing::debug!(%error, attempt, "an upload failed; trying again under a new name");
            environment.sleep(pause).await;
            pause *= 2;
            builder = builder.renamed(self.name());
        }
        unreachable!("the loop returns")
    }

    async fn read_back(&self, pack: PackId, parts: &[Bytes]) -> Result<u64, Failure> {
        let key = names::pack(pack);
        let found = self.repository.store.get(&key).await?.unwrap_or_default();
        let mut left = &found[..];
        let same = parts.iter().all(|part| {
            let (same, rest) = (left.starts_with(part), left.get(part.len()..));
            left = rest.unwrap_or_default();
            same
        });
        match same && left.is_empty() {
            true => Ok(found.len() as u64),
            false => Err(Failure::new(
                FailureKind::Store,
                format!("the object store took {key} and does not give it back as it was written"),
            )),
        }
    }
}

/// Joins neighbouring frames to reads.
fn reads(needed: &[PackEntry]) -> Vec<(Range<u64>, &[PackEntry])> {
    let joined = |a: &PackEntry, b: &PackEntry| b.offset.saturating_sub(a.offset + a.len) <= GAP;
    let mut reads = Vec::new();
    for run in needed.chunk_by(joined) {
        let mut rest = run;
        while let Some(first) = rest.first() {
            let fits = |entry: &PackEntry| entry.offset + entry.len - first.offset <= READ_MAX;
            let (now, later) = rest.split_at(rest.partition_point(fits).max(1));
            let end = now.last().map_or(0, |last| u64::from(last.offset) + u64::from(last.len));
            reads.push((u64::from(first.offset)..end, now));
            rest = later;
        }
    }
    reads
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::ChunkId;

    #[test]
    fn neighbours_are_read_together_and_no_read_is_long() {
        let entry =
            |offset, len| PackEntry { id: ChunkId::parse(&[1; 33]).expect("a data chunk"), offset, len };
        let needed = [
            entry(48, 100),
            entry(148 + GAP, 10),
            entry(148 + GAP + 10 + GAP + 1, READ_MAX - 1),
            entry(148 + GAP + 10 + GAP + READ_MAX, 2),
        ];
        let found: Vec<_> =
            reads(&needed).into_iter().map(|(range, entries)| (range, entries.len())).collect();
        let third = u64::from(needed[2].offset);
        let last = u64::from(needed[3].offset);
        let expected =
            [(48..u64::from(158 + GAP), 2), (third..third + u64::from(READ_MAX) - 1, 1), (last..last + 2, 1)];
        assert_eq!(found, expected);
        assert!(reads(&[]).is_empty());
    }
}
