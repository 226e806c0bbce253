//! Decides what to fetch for a window of a map and where it goes: pure functions over pieces and known copies.
//!
//! A chunk that stands at several places of the window is fetched once and written everywhere. Frames of one pack that
//! lie near each other are fetched together. What the index says of a copy is bounded before it is believed: a frame
//! can be no longer than the longest chunk with its header and tag.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use schema::chunk::FRAME_HEADER_LEN;
use schema::limits::CHUNK_MAX;
use schema::map::{Content, Piece};
use schema::messages::Copy;
use schema::{ChunkId, PackId};

/// Bytes between two frames that are rather fetched in vain than by another request.
pub(crate) const GAP_MAX: u64 = 64 << 10;
/// Bytes of one fetch at most; a single frame always fits.
pub(crate) const FETCH_MAX: u64 = 4 << 20;
/// Bytes of a frame at most: header, the longest chunk, and room for a tag.
const FRAME_MAX: usize = FRAME_HEADER_LEN + CHUNK_MAX + 64;

/// A chunk that a window needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The chunk.
    pub id: ChunkId,
    /// Bytes of its plaintext, as the map says.
    pub len: u32,
    /// Every offset of the volume in this window that it stands at, in order.
    pub offsets: Vec<u64>,
    /// Known copies, the best first.
    pub copies: Vec<Copy>,
}

impl Wanted {
    /// The first place that it is needed at; what messages name.
    pub fn offset(&self) -> u64 {
        self.offsets.first().copied().unwrap_or(0)
    }
}

/// What a run of the map holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Window {
    /// Ranges that read as zero, in order, neighbours joined.
    pub zeroes: Vec<Range<u64>>,
    /// Each chunk once, in the order of first use.
    pub chunks: Vec<Wanted>,
}

/// A frame inside a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Which of the window's chunks.
    pub chunk: usize,
    /// Where it stands.
    pub copy: Copy,
}

/// One range of one pack, to be fetched by one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fetch {
    /// The pack.
    pub pack: PackId,
    /// Bytes of the pack.
    pub range: Range<u64>,
    /// The frames in it, by offset.
    pub frames: Vec<Frame>,
}

impl Window {
    /// Sorts pieces, which come with their offsets in order, into zero ranges and chunks.
    pub fn new(pieces: impl IntoIterator<Item = (u64, Piece)>) -> Self {
        let mut window = Self::default();
        // Keyed by length too: should a map give one chunk two lengths, each is verified, and one of them fails.
        let mut places: HashMap<(ChunkId, u32), usize> = HashMap::new();
        for (offset, piece) in pieces {
            match piece.content {
                Content::Zero => window.zero(offset..offset.saturating_add(u64::from(piece.len))),
                Content::Chunk(id) => {
                    let place = *places.entry((id, piece.len)).or_insert_with(|| {
                        let (offsets, copies) = (Vec::new(), Vec::new());
                        window.chunks.push(Wanted { id, len: piece.len, offsets, copies });
                        window.chunks.len() - 1
                    });
                    window.chunks[place].offsets.push(offset);
                }
            }
        }
        window
    }

    fn zero(&mut self, range: Range<u64>) {
        match self.zeroes.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.zeroes.push(range),
        }
    }

    /// The packs that hold copies.
    pub fn packs(&self) -> BTreeSet<PackId> {
        self.chunks.iter().flat_map(|wanted| &wanted.copies).map(|copy| copy.pack).collect()
    }

    /// Drops copies that cannot be frames and puts the best first: copies that count, then those in packs that serve
    /// the most chunks of this window.
    pub fn rank(&mut self, counts: impl Fn(&ChunkId, PackId) -> bool) {
        let mut serves: BTreeMap<PackId, usize> = BTreeMap::new();
        for wanted in &mut self.chunks {
            wanted.copies.retain(is_plausible);
            wanted.copies.iter().for_each(|copy| *serves.entry(copy.pack).or_default() += 1);
        }
        for wanted in &mut self.chunks {
            let id = wanted.id;
            wanted
                .copies
                .sort_by_key(|copy| (!counts(&id, copy.pack), Reverse(serves.get(&copy.pack)), *copy));
            wanted.copies.dedup();
        }
    }

    /// The chunks of which no copy is known.
    pub fn without_copies(&self) -> impl Iterator<Item = usize> + '_ {
        self.chunks.iter().enumerate().filter(|(_, wanted)| wanted.copies.is_empty()).map(|(chunk, _)| chunk)
    }

    /// Fetches of every chunk's best copy, of at most `limit` bytes each unless one frame is longer; in the order of
    /// the first place that each serves, so that targets are written roughly from front to back.
    pub fn fetches(&self, limit: u64) -> Vec<Fetch> {
        let mut frames: Vec<Frame> = self
            .chunks
            .iter()
            .enumerate()
            .filter_map(|(chunk, wanted)| Some(Frame { chunk, copy: *wanted.copies.first()? }))
            .collect();
        frames.sort_by_key(|frame| frame.copy);
        let mut fetches: Vec<Fetch> = Vec::new();
        for frame in frames {
            let range = range_of(&frame.copy);
            match fetches.last_mut() {
                Some(last) if last.takes(&frame, limit) => {
                    last.range.end = last.range.end.max(range.end);
                    last.frames.push(frame);
                }
                _ => fetches.push(Fetch { pack: frame.copy.pack, range, frames: vec![frame] }),
            }
        }
        fetches.sort_by_key(|fetch| fetch.frames.iter().map(|f| self.chunks[f.chunk].offset()).min());
        fetches
    }
}

impl Fetch {
    fn takes(&self, frame: &Frame, limit: u64) -> bool {
        let range = range_of(&frame.copy);
        self.pack == frame.copy.pack
            && range.start <= self.range.end.saturating_add(GAP_MAX)
            && self.range.end.max(range.end) - self.range.start <= limit
    }

    /// Bytes to fetch.
    pub fn len(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// The bytes of its pack that a copy takes.
pub(crate) fn range_of(copy: &Copy) -> Range<u64> {
    let start = u64::from(copy.offset);
    start..start + u64::from(copy.len)
}

/// Whether a copy can be a frame of data: nothing is allocated for one that cannot.
pub(crate) fn is_plausible(copy: &Copy) -> bool {
    (FRAME_HEADER_LEN + 1..=FRAME_MAX).contains(&(copy.len as usize))
}

#[cfg(test)]
mod tests;
