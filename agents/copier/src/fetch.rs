//! Reads chunks of the first repository and proves them, from whichever copy is whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use agent::keys::DataKeys;
use agent::maps::MapReader;
use agent::{Failure, Repository};
use bytes::Bytes;
use schema::chunk::{FrameHeader, Opener};
use schema::keys::{ChunkIds, FrameKey};
use schema::messages::{Copy, FailureKind};
use schema::{PackId, names};

use crate::reads::{Read, Wanted, is_plausible, range_of};

/// A chunk that was read.
pub(crate) struct Found {
    /// Its place among those that were wanted.
    pub place: usize,
    /// Where it was read.
    pub pack: PackId,
    pub header: FrameHeader,
    pub frame: Bytes,
    /// What it holds, where that is wanted.
    pub plain: Option<Vec<u8>>,
}

/// Reads from one repository.
pub(crate) struct Fetcher<'a> {
    pub repository: &'a Repository,
    /// Knows where chunks are, and looks again before one counts as lost.
    pub map: &'a MapReader,
    /// Opens every frame; none takes them for what their headers say.
    pub opening: Option<&'a DataKeys>,
    /// Whether plaintext is wanted.
    pub keeps_plain: bool,
}

/// A copy, and what was read of it.
struct Taken {
    place: usize,
    copy: Copy,
    frame: Bytes,
}

/// What was tried to have one chunk.
struct Tried {
    copies: Vec<Copy>,
    /// Bytes that were read.
    bytes: u64,
    /// Why the last one was of no use.
    last: Failure,
    /// One that could not be reached: until it can, nobody knows whether the chunk is lost.
    unreached: Option<Failure>,
}

impl Tried {
    fn new(failed: Option<(Failure, Option<&Copy>)>) -> Self {
        let missing = || (Failure::damaged("it is in no pack that is known"), None);
        let (last, copy) = failed.unwrap_or_else(missing);
        Self { copies: copy.copied().into_iter().collect(), bytes: 0, last, unreached: None }
    }
}

type Keys = BTreeMap<(u32, PackId), Result<Arc<[FrameKey]>, Failure>>;

impl Fetcher<'_> {
    /// The chunks of one read, each from another copy where the one that was read is of no use. Fails when a chunk has no
    /// whole copy. Also says how many bytes were read.
    pub async fn read(&self, read: &Read, wanted: &[Wanted]) -> Result<(Vec<Found>, u64), Failure> {
        let name = names::pack(read.pack);
        let (taken, mut fetched) = match self.repository.store.get_range(&name, read.range.clone()).await {
            Ok(bytes) => (cut(read, wanted, &bytes), bytes.len() as u64),
            // A pack that was cut off may hold some of the frames all the same.
            Err(error) => {
                tracing::debug!(%error, "a read failed; trying its chunks one by one");
                (Vec::new(), 0)
            }
        };
        let (mut found, mut failed) = self.prove(taken, wanted).await?;
        let mut lacking: Vec<usize> = read.chunks.clone();
        lacking.retain(|place| !found.iter().any(|found| found.place == *place));
        for place in lacking {
            let (rescued, bytes) = self.rescue(place, wanted, failed.remove(&place)).await?;
            found.push(rescued);
            fetched += bytes;
        }
        Ok((found, fetched))
    }

    /// A chunk from any of its copies, one by one: those that are known, those that the index has learnt of meanwhile, since
    /// a collection may have moved it to another pack, and before it is lost, those that a look at the bucket shows.
    /// `failed` is why the best one was of no use, if it was read.
    pub async fn rescue(
        &self,
        place: usize,
        wanted: &[Wanted],
        failed: Option<Failure>,
    ) -> Result<(Found, u64), Failure> {
        let one = &wanted[place];
        let mut tried = Tried::new(failed.map(|why| (why, one.copies.first())));
        let rescued = async {
            if let Some(found) = self.read_any(place, wanted, &one.copies, &mut tried).await? {
                return Ok(found);
            }
            let located = self.map.locate(&[one.id]).await?.concat();
            if let Some(found) = self.read_any(place, wanted, &located, &mut tried).await? {
                return Ok(found);
            }
            while tried.unreached.is_none() {
                let Some(more) = self.map.seek(&one.id, &tried.copies).await? else { break };
                if let Some(found) = self.read_any(place, wanted, &more, &mut tried).await? {
                    return Ok(found);
                }
                tried.copies.extend(more);
            }
            Err(tried.unreached.take().unwrap_or_else(|| tried.last.clone()))
        };
        let rescued: Result<Found, Failure> = rescued.await;
        match rescued {
            Ok(found) => Ok((found, tried.bytes)),
            Err(failure) => Err(failure.context(format!("at offset {}: chunk {}", one.offset, one.id))),
        }
    }

    /// A chunk from the first of these copies that is whole and was not tried yet.
    async fn read_any(
        &self,
        place: usize,
        wanted: &[Wanted],
        copies: &[Copy],
        tried: &mut Tried,
    ) -> Result<Option<Found>, Failure> {
        for copy in copies.iter().filter(|copy| is_plausible(copy)) {
            if tried.copies.contains(copy) {
                continue;
            }
            tried.copies.push(*copy);
            let frame = match self.repository.read_frame(copy).await {
                Ok(frame) => frame,
                Err(failure) if failure.kind == FailureKind::Damaged => {
                    tried.last = failure;
                    continue;
                }
                Err(failure) => {
                    tried.unreached = Some(failure);
                    continue;
                }
            };
            tried.bytes += frame.len() as u64;
            let (mut found, mut failed) =
                self.prove(vec![Taken { place, copy: *copy, frame }], wanted).await?;
            if let Some(found) = found.pop() {
                return Ok(Some(found));
            }
            if let Some(why) = failed.remove(&place) {
                tracing::warn!(chunk = %wanted[place].id, pack = %copy.pack, %why, "trying another copy");
                tried.last = why;
            }
        }
        Ok(None)
    }

    /// Those that are what they should be, and why the others are not.
    async fn prove(
        &self,
        taken: Vec<Taken>,
        wanted: &[Wanted],
    ) -> Result<(Vec<Found>, BTreeMap<usize, Failure>), Failure> {
        let keys = match self.opening {
            Some(opening) => keys(opening, &taken).await,
            None => Keys::new(),
        };
        let prover = Prover {
            ids: self.opening.map(|_| self.repository.key.chunk_ids()),
            keeps_plain: self.keeps_plain,
            keys,
        };
        let expected: Vec<(schema::ChunkId, u32)> =
            taken.iter().map(|taken| (wanted[taken.place].id, wanted[taken.place].len)).collect();
        if self.opening.is_none() {
            // Looking at headers is no work for a thread.
            return prover.prove(taken, &expected);
        }
        self.repository.environment().on_a_thread(move || prover.prove(taken, &expected)).await?
    }
}

/// The keys that the frames' headers name. A header that cannot be read is found out when its frame is opened.
async fn keys(opening: &DataKeys, taken: &[Taken]) -> Keys {
    let mut keys = Keys::new();
    for Taken { copy, frame, .. } in taken {
        let Ok(header) = FrameHeader::parse(frame) else { continue };
        if let std::collections::btree_map::Entry::Vacant(entry) = keys.entry((header.key, copy.pack)) {
            entry.insert(opening.get(header.key, copy.pack).await);
        }
    }
    keys
}

/// The frames inside a range that was read.
fn cut(read: &Read, wanted: &[Wanted], bytes: &Bytes) -> Vec<Taken> {
    let taken = |place: &usize| {
        let copy = *wanted[*place].copies.first()?;
        let range = range_of(&copy);
        let (from, to) = ((range.start - read.range.start) as usize, (range.end - read.range.start) as usize);
        (to <= bytes.len()).then(|| Taken { place: *place, copy, frame: bytes.slice(from..to) })
    };
    read.chunks.iter().filter_map(taken).collect()
}

/// Opens frames on a thread of its own.
struct Prover {
    ids: Option<ChunkIds>,
    keeps_plain: bool,
    keys: Keys,
}

impl Prover {
    fn prove(
        self,
        taken: Vec<Taken>,
        expected: &[(schema::ChunkId, u32)],
    ) -> Result<(Vec<Found>, BTreeMap<usize, Failure>), Failure> {
        let mut opener = self.ids.clone().map(Opener::new).transpose()?;
        let (mut found, mut failed) = (Vec::new(), BTreeMap::new());
        for (Taken { place, copy, frame }, (id, len)) in taken.into_iter().zip(expected) {
            match self.one(opener.as_mut(), &copy, &frame, id, *len) {
                Ok((header, plain)) => found.push(Found { place, pack: copy.pack, header, frame, plain }),
                Err(why) => drop(failed.insert(place, why.context(names::pack(copy.pack)))),
            }
        }
        Ok((found, failed))
    }

    fn one(
        &self,
        opener: Option<&mut Opener>,
        copy: &Copy,
        frame: &[u8],
        id: &schema::ChunkId,
        len: u32,
    ) -> Result<(FrameHeader, Option<Vec<u8>>), Failure> {
        let header = FrameHeader::parse(frame)?;
        if !is_plausible(copy) || header.id != *id || header.frame_len() != frame.len() {
            return Err(Failure::damaged("it does not hold the chunk where it should"));
        }
        let Some(opener) = opener else { return Ok((header, None)) };
        let keys = match self.keys.get(&(header.key, copy.pack)) {
            Some(Ok(keys)) => keys,
            Some(Err(failure)) => return Err(failure.clone()),
            None => return Err(Failure::damaged("its key was not looked for")),
        };
        let mut last = Failure::damaged("no key is at hand");
        for key in keys.iter() {
            match opener.open(id, frame, key) {
                Ok(plain) if plain.len() != len as usize => {
                    let why = format!("the chunk has {} bytes, the map says {len}", plain.len());
                    return Err(Failure::damaged(why));
                }
                Ok(plain) => return Ok((header, self.keeps_plain.then(|| plain.to_vec()))),
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }
}
