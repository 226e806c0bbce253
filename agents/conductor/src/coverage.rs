//! Which bytes of a volume are accounted for: exactly once, by one reading. Pure.
//!
//! Cutting restarts at every leaf and depends only on the leaf's bytes, so that a run that is mapped twice is mapped
//! alike. A run that comes again in another way means that the source changed under the reading.

use std::collections::{BTreeMap, BTreeSet};

use schema::ChunkId;
use schema::map::{Content, Geometry, Leaf, Piece};

/// What is known of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It reads as zero.
    Zero,
    /// Its chunk counts as stored.
    Durable(ChunkId),
    /// Its chunk is on its way.
    Waiting(ChunkId),
}

/// A run that was mapped before, and differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflict {
    /// Where, in bytes.
    pub offset: u64,
}

/// A run outside the volume, or across a leaf's end: no reader of ours sends that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Impossible {
    /// Where, in bytes.
    pub offset: u64,
}

/// Why a run was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// See [`Conflict`].
    Conflict(Conflict),
    /// See [`Impossible`].
    Impossible(Impossible),
}

#[derive(Debug, Default)]
struct OpenLeaf {
    pieces: BTreeMap<u64, (u32, Fate)>,
    waiting: usize,
    count: Count,
}

/// What pieces add up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Bytes that are mapped, zeroes included.
    pub covered: u64,
    /// Bytes of them that read as zero.
    pub zero: u64,
    /// Pieces of them that are chunks.
    pub chunks: u64,
}

impl Count {
    /// What these pieces add up to.
    pub fn of<'a>(pieces: impl IntoIterator<Item = &'a Piece>) -> Self {
        let mut count = Self::default();
        for piece in pieces {
            count.add(piece.len.into(), piece.content == Content::Zero);
        }
        count
    }

    /// Adds a piece of `len` bytes.
    pub fn add(&mut self, len: u64, zero: bool) {
        self.covered += len;
        match zero {
            true => self.zero += len,
            false => self.chunks += 1,
        }
    }

    fn subtract(&mut self, other: Self) {
        self.covered -= other.covered;
        self.zero -= other.zero;
        self.chunks -= other.chunks;
    }
}

/// The account of one volume.
#[derive(Debug)]
pub struct Coverage {
    geometry: Geometry,
    open: BTreeMap<u64, OpenLeaf>,
    /// Leaves that were taken out by [`Coverage::take_complete`] or adopted.
    closed: BTreeSet<u64>,
    waiting: BTreeMap<ChunkId, BTreeSet<u64>>,
    count: Count,
}

impl Coverage {
    /// Nothing is covered yet.
    pub fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            open: BTreeMap::new(),
            closed: BTreeSet::new(),
            waiting: BTreeMap::new(),
            count: Count::default(),
        }
    }

    /// What is mapped so far.
    pub fn count(&self) -> Count {
        self.count
    }

    /// Whether every byte is mapped, durable or not.
    pub fn is_covered(&self) -> bool {
        self.count.covered == self.geometry.size()
    }

    /// Whether every leaf was taken out.
    pub fn is_closed(&self) -> bool {
        self.closed.len() as u64 == self.geometry.leaves()
    }

    /// Chunks that are on their way.
    pub fn waiting(&self) -> impl Iterator<Item = ChunkId> + '_ {
        self.waiting.keys().copied()
    }

    /// Whether a chunk is waited for.
    pub fn waits_for(&self, id: ChunkId) -> bool {
        self.waiting.contains_key(&id)
    }

    /// Accounts for a run. Returns how many bytes of it were not mapped before.
    pub fn add(&mut self, offset: u64, len: u32, fate: Fate) -> Result<u64, Refused> {
        let leaf = Geometry::leaf_of(offset);
        let range = self.geometry.leaf_range(leaf);
        let end = offset.saturating_add(u64::from(len));
        if len == 0 || offset < range.start || end > range.end {
            return Err(Refused::Impossible(Impossible { offset }));
        }
        if self.closed.contains(&leaf) {
            return Ok(0);
        }
        let added = match fate {
            Fate::Zero => self.add_zero(leaf, offset, end),
            Fate::Durable(id) | Fate::Waiting(id) => self.add_chunk(leaf, offset, len, id, fate),
        };
        added.map_err(Refused::Conflict)
    }

    fn add_zero(&mut self, leaf: u64, offset: u64, end: u64) -> Result<u64, Conflict> {
        let open = self.open.entry(leaf).or_default();
        let before = open.pieces.range(..offset).next_back().map(|(at, piece)| (*at, *piece));
        let inside = open.pieces.range(offset..end).map(|(at, piece)| (*at, *piece));
        let overlapping: Vec<_> =
            before.into_iter().filter(|(at, piece)| at + u64::from(piece.0) > offset).chain(inside).collect();
        if let Some((at, _)) = overlapping.iter().find(|(_, piece)| piece.1 != Fate::Zero) {
            return Err(Conflict { offset: (*at).max(offset) });
        }
        let mut added = 0;
        let mut at = offset;
        let mut fill = |open: &mut OpenLeaf, from: u64, to: u64| {
            if from < to {
                open.pieces.insert(from, ((to - from) as u32, Fate::Zero));
                open.count.add(to - from, true);
                self.count.add(to - from, true);
                added += to - from;
            }
        };
        for (start, (len, _)) in overlapping {
            fill(open, at, start);
            at = at.max(start + u64::from(len));
        }
        fill(open, at, end);
        Ok(added)
    }

    fn add_chunk(
        &mut self,
        leaf: u64,
        offset: u64,
        len: u32,
        id: ChunkId,
        fate: Fate,
    ) -> Result<u64, Conflict> {
        let open = self.open.entry(leaf).or_default();
        let end = offset + u64::from(len);
        if let Some((known_len, known)) = open.pieces.get(&offset).copied() {
            let same = known_len == len && matches!(known, Fate::Durable(k) | Fate::Waiting(k) if k == id);
            if !same {
                return Err(Conflict { offset });
            }
            if let Fate::Durable(_) = fate {
                self.durable(id);
            }
            return Ok(0);
        }
        let before = open.pieces.range(..offset).next_back().map(|(at, piece)| at + u64::from(piece.0));
        let overlaps_before = before.is_some_and(|end_before| end_before > offset);
        if overlaps_before || open.pieces.range(offset..end).next().is_some() {
            return Err(Conflict { offset });
        }
        open.pieces.insert(offset, (len, fate));
        open.count.add(len.into(), false);
        self.count.add(len.into(), false);
        if let Fate::Waiting(id) = fate {
            open.waiting += 1;
            self.waiting.entry(id).or_default().insert(offset);
        }
        Ok(u64::from(len))
    }

    /// A chunk became durable: every piece that waited for it is. Returns whether any did.
    pub fn durable(&mut self, id: ChunkId) -> bool {
        let Some(offsets) = self.waiting.remove(&id) else { return false };
        for offset in offsets {
            let Some(open) = self.open.get_mut(&Geometry::leaf_of(offset)) else { continue };
            if let Some((_, fate @ Fate::Waiting(_))) = open.pieces.get_mut(&offset) {
                *fate = Fate::Durable(id);
                open.waiting -= 1;
            }
        }
        true
    }

    /// Accounts for a run in place of whatever it overlaps: the source changed, and that is allowed. What is left of
    /// a replaced piece is not mapped any more. Returns how many bytes were mapped by this.
    pub fn replace(&mut self, offset: u64, len: u32, fate: Fate) -> Result<u64, Refused> {
        let end = offset.saturating_add(u64::from(len));
        if let Some(open) = self.open.get(&Geometry::leaf_of(offset)) {
            let overlaps = |(at, piece): &(&u64, &(u32, Fate))| **at + u64::from(piece.0) > offset;
            let overlapping = open.pieces.range(..end).rev().take_while(overlaps).map(|(at, _)| *at);
            for at in overlapping.collect::<Vec<_>>() {
                self.forget(at);
            }
        }
        self.add(offset, len, fate)
    }

    /// Forgets what is known of a leaf, to have it mapped anew.
    pub fn reset(&mut self, leaf: u64) {
        let pieces = self.open.get(&leaf).map(|open| open.pieces.keys().copied().collect::<Vec<_>>());
        for at in pieces.unwrap_or_default() {
            self.forget(at);
        }
        self.open.remove(&leaf);
    }

    /// Forgets the piece that starts at `at`.
    fn forget(&mut self, at: u64) {
        let Some(open) = self.open.get_mut(&Geometry::leaf_of(at)) else { return };
        let Some((len, fate)) = open.pieces.remove(&at) else { return };
        let mut count = Count::default();
        count.add(len.into(), fate == Fate::Zero);
        open.count.subtract(count);
        self.count.subtract(count);
        if let Fate::Waiting(id) = fate {
            open.waiting -= 1;
            if let Some(offsets) = self.waiting.get_mut(&id) {
                offsets.remove(&at);
                if offsets.is_empty() {
                    self.waiting.remove(&id);
                }
            }
        }
    }

    /// Takes over a leaf that somebody else finished; `count` is what its pieces add up to.
    pub fn adopt(&mut self, leaf: u64, count: Count) {
        self.reset(leaf);
        if self.closed.insert(leaf) {
            self.count.covered += count.covered;
            self.count.zero += count.zero;
            self.count.chunks += count.chunks;
        }
    }

    /// Takes out the leaves that are covered and durable throughout.
    pub fn take_complete(&mut self) -> schema::Result<Vec<(u64, Leaf)>> {
        let span = |leaf: u64| {
            let range = self.geometry.leaf_range(leaf);
            range.end - range.start
        };
        let complete = |(leaf, open): (&u64, &OpenLeaf)| {
            (open.count.covered == span(*leaf) && open.waiting == 0).then_some(*leaf)
        };
        let ready: Vec<u64> = self.open.iter().filter_map(complete).collect();
        let mut out = Vec::with_capacity(ready.len());
        for leaf in ready {
            let Some(open) = self.open.remove(&leaf) else { continue };
            let pieces = open.pieces.into_values().map(|(len, fate)| Piece {
                len,
                content: match fate {
                    Fate::Zero => Content::Zero,
                    Fate::Durable(id) | Fate::Waiting(id) => Content::Chunk(id),
                },
            });
            let range = self.geometry.leaf_range(leaf);
            out.push((leaf, Leaf::new(range.end - range.start, pieces)?));
            self.closed.insert(leaf);
        }
        Ok(out)
    }

    /// Whether a leaf was taken out.
    pub fn is_leaf_closed(&self, leaf: u64) -> bool {
        self.closed.contains(&leaf)
    }

    /// Whether some of a leaf is not mapped yet.
    pub fn lacks(&self, leaf: u64) -> bool {
        let range = self.geometry.leaf_range(leaf);
        let covered = self.open.get(&leaf).map_or(0, |open| open.count.covered);
        !self.closed.contains(&leaf) && covered < range.end - range.start
    }

    /// Leaves of which some is not mapped yet.
    pub fn lacking(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.geometry.leaves()).filter(|leaf| self.lacks(*leaf))
    }

    /// Leaves with chunks that are on their way.
    pub fn stalled(&self) -> impl Iterator<Item = u64> + '_ {
        self.open.iter().filter(|(_, open)| open.waiting > 0).map(|(leaf, _)| *leaf)
    }

    /// Leaves that are not taken out yet, at most `limit` of them.
    pub fn unfinished(&self, limit: usize) -> Vec<u64> {
        (0..self.geometry.leaves()).filter(|leaf| !self.closed.contains(leaf)).take(limit).collect()
    }
}
