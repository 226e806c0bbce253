//! One leaf of the map: brings the chunks that it names, and says what it is called in the second repository.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use agent::maps::MapReader;
use agent::{Failure, Protection};
use bytes::Bytes;
use futures::stream::{FuturesUnordered, TryStreamExt};
use schema::chunk::Sealer;
use schema::keys::SealedKey;
use schema::map::{Content, Leaf, Piece};
use schema::messages::FailureKind;
use schema::{ChunkId, Domain, KeyId};
use tokio::sync::Semaphore;

use crate::base::Base;
use crate::deposit::Deposit;
use crate::fetch::{Fetcher, Found};
use crate::reads::{Read, Wanted, is_plausible, reads};
use crate::{Copier, Sealing, TRANSLATED_MAX};

/// What one copy counted.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Bytes read from packs of the first repository.
    pub fetched: AtomicU64,
    /// Bytes of the volume that were new to the second.
    pub new: AtomicU64,
    /// Chunks of that kind.
    pub chunks_new: AtomicU64,
}

/// Brings the leaves of one snapshot.
pub(crate) struct Leaves<'a> {
    pub copier: &'a Copier,
    pub protection: &'a Protection,
    pub map: &'a MapReader,
    pub base: Option<Base>,
    pub deposit: &'a Deposit<'a>,
    /// Reads at once.
    pub turns: Semaphore,
    pub counts: Counts,
    /// What chunks of the first repository are called in the second.
    pub names: Mutex<BTreeMap<ChunkId, ChunkId>>,
}

impl Leaves<'_> {
    /// The leaf's id in the second repository; none where it reads as zero.
    pub async fn bring(&self, number: u64) -> Result<Option<ChunkId>, Failure> {
        let Some(id) = self.map.leaf_id(number).await? else { return Ok(None) };
        if let Some(base) = &self.base
            && let Some(there) = base.leaf(number, id).await
        {
            return Ok(Some(there));
        }
        let range = self.map.geometry().leaf_range(number);
        let leaf = self.map.read_leaf(id, range.end - range.start).await?;
        let named = match &self.copier.sealing {
            Sealing::Verbatim(_) => {
                self.verbatim(&leaf, range.start).await?;
                leaf
            }
            Sealing::Anew(_) => {
                let names = self.anew(number, &leaf, range.start).await?;
                renamed(&leaf, range.end - range.start, &names)?
            }
        };
        self.deposit.structure(&named.encode()).await.map(Some)
    }

    /// Brings the chunks that are missing, as they are.
    async fn verbatim(&self, leaf: &Leaf, start: u64) -> Result<(), Failure> {
        let mut wanted = wanted(leaf, start, |_| true);
        let ids: Vec<ChunkId> = wanted.iter().map(|wanted| wanted.id).collect();
        let lacking: BTreeSet<ChunkId> = self.deposit.lacks(&ids).await?.into_iter().collect();
        wanted.retain(|wanted| lacking.contains(&wanted.id));
        self.each(wanted, async |found, wanted| self.hand_on(found, wanted).await).await
    }

    async fn hand_on(&self, found: Vec<Found>, wanted: &[Wanted]) -> Result<(), Failure> {
        let Sealing::Verbatim(ring) = &self.copier.sealing else { return Ok(()) };
        let mut by_key: BTreeMap<Option<KeyId>, (Option<SealedKey>, Vec<Bytes>)> = BTreeMap::new();
        for found in found {
            let key = ring.get(found.header.key, found.pack).await?;
            let same = by_key.entry(key.as_ref().map(|key| key.id)).or_insert((key, Vec::new()));
            same.1.push(found.frame);
            self.count_new(wanted[found.place].len);
        }
        for (key, frames) in by_key.values() {
            self.deposit.put(Domain::Data, key.as_ref(), frames).await?;
        }
        Ok(())
    }

    /// Brings the chunks that are missing, sealed anew; says what all of them are called.
    async fn anew(
        &self,
        number: u64,
        leaf: &Leaf,
        start: u64,
    ) -> Result<BTreeMap<ChunkId, ChunkId>, Failure> {
        let mut names = match &self.base {
            Some(base) => base.names(number).await,
            None => BTreeMap::new(),
        };
        let mut wanted = wanted(leaf, start, |id| !names.contains_key(id));
        {
            let known = self.names();
            names.extend(wanted.iter().filter_map(|one| Some((one.id, *known.get(&one.id)?))));
        }
        wanted.retain(|one| !names.contains_key(&one.id));
        let ids: Vec<ChunkId> = wanted.iter().map(|one| one.id).collect();
        let brought = Mutex::new(BTreeMap::new());
        self.each(wanted, async |found, wanted| self.seal(found, wanted, &brought).await).await?;
        names.extend(brought.into_inner().unwrap_or_else(PoisonError::into_inner));
        let mut known = self.names();
        if known.len() + ids.len() > TRANSLATED_MAX {
            known.clear();
        }
        known.extend(ids.iter().filter_map(|id| Some((*id, *names.get(id)?))));
        drop(known);
        Ok(names)
    }

    fn names(&self) -> MutexGuard<'_, BTreeMap<ChunkId, ChunkId>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn seal(
        &self,
        found: Vec<Found>,
        wanted: &[Wanted],
        brought: &Mutex<BTreeMap<ChunkId, ChunkId>>,
    ) -> Result<(), Failure> {
        let Sealing::Anew(content) = &self.copier.sealing else { return Ok(()) };
        let plain = |found: Found| Some((wanted[found.place].id, found.plain?));
        let chunks: Vec<(ChunkId, Vec<u8>)> = found.into_iter().filter_map(plain).collect();
        let ids = self.copier.to.repository.key.chunk_ids();
        let environment = self.copier.to.repository.environment();
        let named = environment.on_a_thread(move || {
            let name = |(here, plain): (ChunkId, Vec<u8>)| (here, ids.id(Domain::Data, &plain), plain);
            chunks.into_iter().map(name).collect::<Vec<_>>()
        });
        let mut named = named.await?;
        let there: Vec<ChunkId> = named.iter().map(|(_, there, _)| *there).collect();
        let mut lacking: BTreeSet<ChunkId> = self.deposit.lacks(&there).await?.into_iter().collect();
        if let Ok(mut brought) = brought.lock() {
            brought.extend(named.iter().map(|(here, there, _)| (*here, *there)));
        }
        named.retain(|(_, there, _)| lacking.remove(there));
        let (level, key) = (self.copier.settings.level, content.frame.clone());
        named.iter().for_each(|(_, _, plain)| self.count_new(plain.len() as u32));
        let frames = environment.on_a_thread(move || {
            let mut sealer = Sealer::new(level)?;
            let frame = |(_, there, plain): (ChunkId, ChunkId, Vec<u8>)| {
                let mut frame = Vec::new();
                sealer.seal(there, &plain, &key, &mut frame)?;
                Ok(Bytes::from(frame))
            };
            named.into_iter().map(frame).collect::<Result<Vec<_>, Failure>>()
        });
        self.deposit.put(Domain::Data, content.sealed.as_ref(), &frames.await??).await
    }

    fn count_fetched(&self, bytes: u64) {
        self.counts.fetched.fetch_add(bytes, Ordering::Relaxed);
        self.copier.context.counters.bytes_fetched.add(bytes);
    }

    fn count_new(&self, len: u32) {
        self.counts.new.fetch_add(len.into(), Ordering::Relaxed);
        self.counts.chunks_new.fetch_add(1, Ordering::Relaxed);
    }

    /// Reads what is wanted, some of it at once, and hands each read on.
    async fn each(
        &self,
        mut wanted: Vec<Wanted>,
        then: impl AsyncFn(Vec<Found>, &[Wanted]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if wanted.is_empty() {
            return Ok(());
        }
        self.locate(&mut wanted).await?;
        let wanted = &wanted[..];
        let fetcher = Fetcher {
            repository: &self.copier.from.repository,
            map: self.map,
            opening: self.copier.opening.as_ref(),
            keeps_plain: !self.copier.is_verbatim(),
        };
        let (reads, without) = reads(wanted);
        for place in without {
            let (found, fetched) = fetcher.rescue(place, wanted, None).await?;
            self.count_fetched(fetched);
            then(vec![found], wanted).await?;
        }
        let step = async |read: Read| {
            let _turn = self.turns.acquire().await;
            let (found, fetched) = fetcher.read(&read, wanted).await?;
            self.count_fetched(fetched);
            then(found, wanted).await
        };
        let all: FuturesUnordered<_> = reads.into_iter().map(step).collect();
        all.try_collect().await
    }

    /// Finds copies of what is wanted, the best first.
    async fn locate(&self, wanted: &mut [Wanted]) -> Result<(), Failure> {
        let ids: Vec<ChunkId> = wanted.iter().map(|wanted| wanted.id).collect();
        for (wanted, mut copies) in wanted.iter_mut().zip(self.map.locate(&ids).await?) {
            copies.retain(is_plausible);
            let (mut counting, mut others) = (Vec::new(), Vec::new());
            for copy in copies {
                let counts = match self.protection.session() {
                    // A pack that cannot be asked for just now is tried last.
                    Some(session) => session.counts_for(&wanted.id, copy.pack).await.unwrap_or(false),
                    None => true,
                };
                match counts {
                    true => counting.push(copy),
                    false => others.push(copy),
                }
            }
            counting.append(&mut others);
            wanted.copies = counting;
        }
        Ok(())
    }
}

/// The chunks of a leaf that are asked for, each once.
fn wanted(leaf: &Leaf, start: u64, which: impl Fn(&ChunkId) -> bool) -> Vec<Wanted> {
    let mut seen = BTreeSet::new();
    let wanted = |(offset, piece): (u64, Piece)| match piece.content {
        Content::Chunk(id) if which(&id) && seen.insert(id) => {
            Some(Wanted { id, len: piece.len, offset, copies: Vec::new() })
        }
        Content::Chunk(_) | Content::Zero => None,
    };
    leaf.located(start).filter_map(wanted).collect()
}

/// The same leaf with other names.
fn renamed(leaf: &Leaf, span: u64, names: &BTreeMap<ChunkId, ChunkId>) -> Result<Leaf, Failure> {
    let renamed = |piece: &Piece| {
        let content = match piece.content {
            Content::Zero => Content::Zero,
            Content::Chunk(id) => {
                let lost = || Failure::new(FailureKind::Other, format!("chunk {id} was not brought"));
                Content::Chunk(*names.get(&id).ok_or_else(lost)?)
            }
        };
        Ok(Piece { len: piece.len, content })
    };
    let pieces = leaf.pieces().iter().map(renamed).collect::<Result<Vec<_>, Failure>>()?;
    Ok(Leaf::new(span, pieces)?)
}
