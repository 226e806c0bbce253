//! What of a leaf is read when it is known which ranges may differ from the parent's. Pure.
//!
//! A changed range is widened to whole pieces of the parent's leaf, and cutting goes on past it until a cut meets an
//! end of one of the parent's pieces: from there on both are cut alike, so that the rest is the parent's. Where the
//! parent's pieces are those that cutting the whole leaf gives, so are the new ones: cuts never wander apart, however
//! many times a volume is backed up in this way.
//!
//! A cut depends on the blocks of its own chunk and on whether zeroes follow. Hence two rules about zeroes: a chunk
//! ends where the parent's unchanged zeroes begin, without a look at them; and where the first of the parent's zeroes
//! have changed, the chunk before them is read too, since they may have been all that ended it.

use std::ops::Range;
use std::sync::Arc;

use agent::Changes;
use schema::ChunkId;
use schema::limits::BLOCK;
use schema::map::{Content, Leaf};

#[cfg(test)]
mod tests;

/// Ranges that may have changed, in order, with something between any two of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Changed<'a> {
    ranges: &'a [Range<u64>],
    size: u64,
}

impl<'a> Changed<'a> {
    /// The ranges of a volume of `size` bytes; none when they are not what [`Changes`] promises.
    pub(crate) fn new(changes: &'a Changes, size: u64) -> Option<Self> {
        let Changes::Since { ranges, .. } = changes else { return None };
        let in_order = ranges.windows(2).all(|pair| pair[0].end < pair[1].start);
        let inside = ranges.iter().all(|range| range.start < range.end && range.end <= size);
        (in_order && inside).then_some(Self { ranges, size })
    }

    /// Bytes that may have changed.
    pub(crate) fn bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }

    /// What of `window` may have changed, in whole blocks and joined. `window` is whole blocks, or ends the volume.
    pub(crate) fn within(&self, window: &Range<u64>) -> Vec<Range<u64>> {
        let mut found: Vec<Range<u64>> = Vec::new();
        let first = self.ranges.partition_point(|range| self.widened(range).end <= window.start);
        for range in &self.ranges[first..] {
            let wide = self.widened(range);
            if wide.start >= window.end {
                break;
            }
            let (start, end) = (wide.start.max(window.start), wide.end.min(window.end));
            match found.last_mut() {
                Some(last) if last.end >= start => last.end = last.end.max(end),
                _ => found.push(start..end),
            }
        }
        found
    }

    /// The ranges between them, in whole blocks.
    pub(crate) fn gaps(&self) -> impl Iterator<Item = Range<u64>> + Clone + use<'a> {
        let this = *self;
        let end = std::iter::once(this.size..this.size);
        let mut at = 0;
        this.ranges
            .iter()
            .map(move |range| this.widened(range))
            .chain(end)
            .map(move |wide| std::mem::replace(&mut at, wide.end)..wide.start)
            .filter(|gap| gap.start < gap.end)
    }

    fn widened(&self, range: &Range<u64>) -> Range<u64> {
        range.start / BLOCK * BLOCK..range.end.next_multiple_of(BLOCK).min(self.size)
    }
}

/// One piece of the parent's leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) range: Range<u64>,
    /// None where it reads as zero.
    pub(crate) id: Option<ChunkId>,
}

/// A leaf of the parent's map, with its pieces at their places in the volume.
#[derive(Debug)]
pub(crate) struct ParentLeaf {
    range: Range<u64>,
    pieces: Vec<Piece>,
}

impl ParentLeaf {
    /// The leaf that starts at `start`.
    pub(crate) fn new(start: u64, leaf: &Leaf) -> Self {
        let piece = |(at, piece): (u64, schema::map::Piece)| {
            let id = match piece.content {
                Content::Zero => None,
                Content::Chunk(id) => Some(id),
            };
            Piece { range: at..at + u64::from(piece.len), id }
        };
        let pieces: Vec<Piece> = leaf.located(start).map(piece).collect();
        let end = pieces.last().map_or(start, |last| last.range.end);
        Self { range: start..end, pieces }
    }

    /// The bytes of the volume that it covers.
    pub(crate) fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// The pieces that lie in `window`, wholly or in part.
    pub(crate) fn touching(&self, window: &Range<u64>) -> &[Piece] {
        let first = self.index_of(window.start);
        let last = self.pieces.partition_point(|piece| piece.range.start < window.end);
        self.pieces.get(first..last).unwrap_or_default()
    }

    fn index_of(&self, at: u64) -> usize {
        self.pieces.partition_point(|piece| piece.range.end <= at)
    }

    fn at(&self, at: u64) -> Option<&Piece> {
        self.pieces.get(self.index_of(at))
    }

    /// What is read in any case: the changed ranges, as [`Changed::within`] gives them for this leaf, widened to
    /// whole pieces. In order, with something between any two of them.
    pub(crate) fn spans(&self, changed: &[Range<u64>]) -> Vec<Range<u64>> {
        let mut spans: Vec<Range<u64>> = Vec::new();
        for range in changed {
            let end = match self.at(range.end - 1) {
                Some(Piece { range: piece, id: Some(_) }) => piece.end,
                _ => range.end,
            };
            let start = self.start_of(range.start);
            match spans.last_mut() {
                Some(last) if last.end >= start => last.end = last.end.max(end),
                _ => spans.push(start..end),
            }
        }
        spans
    }

    /// Where reading begins for a change at `at`.
    fn start_of(&self, at: u64) -> u64 {
        let index = self.index_of(at);
        let before = index.checked_sub(1).and_then(|before| self.pieces.get(before));
        match (self.pieces.get(index), before) {
            (Some(Piece { range, id: Some(_) }), _) => range.start,
            (Some(Piece { range, id: None }), Some(Piece { range: chunk, id: Some(_) }))
                if range.start == at =>
            {
                chunk.start
            }
            _ => at,
        }
    }

    /// Whether a chunk that reaches `at` ends there, whatever it holds: the leaf ends, or zeroes follow that have not
    /// changed.
    pub(crate) fn ends_chunks_at(&self, at: u64) -> bool {
        self.at(at).is_none_or(|piece| piece.id.is_none())
    }
}

/// What is not read in any case: from the end of one span to the start of the next one, or to the leaf's end.
#[derive(Debug, Clone)]
pub(crate) struct Gap {
    leaf: Arc<ParentLeaf>,
    rest: Range<u64>,
}

/// How a gap is gone about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    /// What is left of it is the parent's.
    Unchanged(Range<u64>),
    /// The open chunk goes on into this, one chunk of the parent.
    Read {
        /// What to read.
        range: Range<u64>,
        /// A chunk that reaches its end ends there.
        ends_run: bool,
    },
    /// Nothing is left of it: the next span follows at once.
    Nothing,
}

impl Gap {
    /// The gap between two neighbouring spans.
    pub(crate) fn new(leaf: Arc<ParentLeaf>, rest: Range<u64>) -> Self {
        Self { leaf, rest }
    }

    /// What to do next, after everything up to here was cut; `open` says that a chunk has not ended yet.
    pub(crate) fn next(&mut self, open: bool) -> Next {
        if self.rest.is_empty() {
            return Next::Nothing;
        }
        match self.leaf.at(self.rest.start) {
            Some(Piece { range, id: Some(_) }) if open => {
                // A gap begins and ends between chunks.
                let (start, end) = (self.rest.start, range.end.min(self.rest.end));
                self.rest.start = end;
                let at_leaf_end = end == self.leaf.range.end;
                let zeroes_follow = !self.rest.is_empty() && self.leaf.ends_chunks_at(end);
                Next::Read { range: start..end, ends_run: at_leaf_end || zeroes_follow }
            }
            _ => Next::Unchanged(std::mem::replace(&mut self.rest, 0..0)),
        }
    }
}
