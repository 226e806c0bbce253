//! From segments to extents and runs of zeroes.
//!
//! A segment is read behind a headroom of [`HEADROOM`] bytes; the unfinished chunk of the segment before is copied
//! to just before it, so that every chunk lies in one buffer and an extent is a slice of it. Short runs of zeroes
//! between chunks stay inside an extent, all others are reported as runs that nobody needs to see. Extents never
//! leave their segment, hence never a leaf. Synchronous; holds no buffer between segments.

use agent::buffer::Buffer;
use bytes::Bytes;
use schema::limits::{CHUNK_MAX, EXTENT_MAX, EXTENT_PIECES_MAX, LEAF_SPAN};
use schema::messages::Mapped;

use crate::cut::{Cutter, Piece};
use crate::plan::Step;

#[cfg(test)]
mod tests;

/// Bytes in front of a segment's data in its buffer.
pub(crate) const HEADROOM: usize = CHUNK_MAX;
/// Runs of zeroes up to this many bytes may stay inside an extent.
const ZERO_INSIDE_MAX: u64 = 64 << 10;
/// A run of zeroes is reported once it is this long, so that a huge hole shows progress.
const ZERO_RUN_MAX: u64 = 64 * LEAF_SPAN;

/// What is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Emitted {
    /// An extent.
    Extent {
        /// Where it starts in the volume, in bytes.
        offset: u64,
        /// Length of each piece, and whether it is zero.
        pieces: Vec<(u32, bool)>,
        /// Their bytes.
        body: Bytes,
    },
    /// A run of zeroes.
    Zero {
        /// Where it starts in the volume, in bytes.
        offset: u64,
        /// Its pieces, one per leaf; at most [`EXTENT_PIECES_MAX`].
        pieces: Vec<(u32, Mapped)>,
    },
}

/// Cuts the steps of one request, in order.
#[derive(Debug)]
pub(crate) struct Emitter {
    cutter: Cutter,
    carried: Vec<u8>,
    gathered: Gathered,
}

impl Emitter {
    /// An emitter at the start of some leaf.
    pub(crate) fn new(cut_seed: u64) -> Self {
        Self {
            cutter: Cutter::new(cut_seed),
            carried: Vec::with_capacity(CHUNK_MAX),
            gathered: Gathered::default(),
        }
    }

    /// Takes the next step, with the buffer that its data was read into behind the headroom. Says what can be told;
    /// none when the buffer cannot hold the step's data, which is a defect of the volume.
    pub(crate) fn step(&mut self, step: &Step, buffer: Option<Buffer>) -> Option<Vec<Emitted>> {
        let bytes = self.segment(buffer);
        let end = HEADROOM + step.data as usize;
        let data = match step.data {
            0 => &[],
            _ => bytes.get(HEADROOM..end)?,
        };
        let segment = Segment { bytes: &bytes, offset: step.offset };
        let gathered = &mut self.gathered;
        if self.cutter.is_between_pieces() {
            gathered.go_to(step.offset);
        }
        let mut ended = |piece| gathered.piece(piece, &segment);
        self.cutter.push(data, &mut ended);
        self.cutter.push_zeroes(step.hole, &mut ended);
        if step.ends_run {
            self.cutter.finish(&mut ended);
        }
        gathered.end_extent(&segment);
        self.carried.clear();
        if let Some(tail) = bytes.get(end - self.cutter.unfinished()..end) {
            self.carried.extend_from_slice(tail);
        }
        Some(std::mem::take(&mut self.gathered.emitted))
    }

    /// Whether a chunk has not ended yet.
    pub(crate) fn is_open(&self) -> bool {
        self.cutter.unfinished() > 0
    }

    /// What comes next is not read; no chunk is open. The next step may start anywhere behind it.
    pub(crate) fn pass(&mut self) {
        let nothing = Bytes::new();
        let (gathered, segment) = (&mut self.gathered, Segment { bytes: &nothing, offset: 0 });
        if self.cutter.unfinished() == 0 {
            self.cutter.finish(|zeroes| gathered.piece(zeroes, &segment));
        }
    }

    /// What is left to tell after the last step.
    pub(crate) fn finish(&mut self) -> Vec<Emitted> {
        self.gathered.end_zeroes();
        std::mem::take(&mut self.gathered.emitted)
    }

    /// Bytes found to be zero since it was last asked, in runs that have ended.
    pub(crate) fn take_zeroes(&mut self) -> u64 {
        std::mem::take(&mut self.gathered.zeroes)
    }

    fn segment(&self, buffer: Option<Buffer>) -> Bytes {
        let Some(mut buffer) = buffer else { return Bytes::new() };
        let start = HEADROOM - self.carried.len();
        if let Some(room) = buffer.bytes_mut().get_mut(start..HEADROOM) {
            room.copy_from_slice(&self.carried);
        }
        buffer.freeze()
    }
}

/// A segment's bytes, headroom included, and where its data starts in the volume.
struct Segment<'a> {
    bytes: &'a Bytes,
    offset: u64,
}

impl Segment<'_> {
    /// `len` bytes of the volume from `offset`, without copying.
    fn slice(&self, offset: u64, len: usize) -> Bytes {
        let start = (offset + HEADROOM as u64 - self.offset) as usize;
        self.bytes.slice(start..start + len)
    }
}

/// Pieces that were cut and not yet told.
#[derive(Debug, Default)]
struct Gathered {
    /// Where the next piece starts in the volume.
    at: u64,
    /// Zeroes just before `at` that are in no extent.
    zero_run: u64,
    /// The extent being filled: where it starts, how long it is, its pieces; none without pieces.
    offset: u64,
    len: u64,
    pieces: Vec<(u32, bool)>,
    zeroes: u64,
    emitted: Vec<Emitted>,
}

impl Gathered {
    /// Goes on at another place, where a leaf starts, or behind what was not read.
    fn go_to(&mut self, offset: u64) {
        if self.at != offset {
            self.end_zeroes();
            self.at = offset;
        }
    }

    fn piece(&mut self, piece: Piece, segment: &Segment<'_>) {
        match piece.zero {
            true => {
                self.zero_run += u64::from(piece.len);
                self.zeroes += u64::from(piece.len);
            }
            false => self.chunk(piece.len, segment),
        }
        self.at += u64::from(piece.len);
        if self.zero_run >= ZERO_RUN_MAX {
            self.end_zeroes();
        }
    }

    fn chunk(&mut self, len: u32, segment: &Segment<'_>) {
        let gap = self.zero_run;
        let fits = self.offset + self.len + gap == self.at
            && gap <= ZERO_INSIDE_MAX
            && self.len + gap + u64::from(len) <= EXTENT_MAX as u64
            && self.pieces.len() + 2 <= EXTENT_PIECES_MAX;
        if self.pieces.is_empty() || !fits {
            self.end_extent(segment);
            self.end_zeroes();
            self.offset = self.at;
        } else if gap > 0 {
            self.pieces.push((gap as u32, true));
            self.len += gap;
            self.zero_run = 0;
        }
        self.pieces.push((len, false));
        self.len += u64::from(len);
    }

    fn end_extent(&mut self, segment: &Segment<'_>) {
        if !self.pieces.is_empty() {
            let body = segment.slice(self.offset, self.len as usize);
            let pieces = std::mem::take(&mut self.pieces);
            self.emitted.push(Emitted::Extent { offset: self.offset, pieces, body });
        }
        self.len = 0;
    }

    fn end_zeroes(&mut self) {
        let start = self.at - self.zero_run;
        let mut pieces = Vec::new();
        while self.zero_run > 0 {
            let at = self.at - self.zero_run;
            let len = self.zero_run.min(LEAF_SPAN - at % LEAF_SPAN);
            pieces.push((len as u32, Mapped::Zero));
            self.zero_run -= len;
        }
        if !pieces.is_empty() {
            self.emitted.push(Emitted::Zero { offset: start, pieces });
        }
    }
}
