//! Where chunks end.
//!
//! Cut points lie on [`BLOCK`] boundaries only and depend on the block before them: a chunk of at least
//! [`CHUNK_MIN`] bytes ends where the seeded xxh3 of its last block is below a threshold, and at [`CHUNK_MAX`] in
//! any case. Blocks of zeroes belong to no chunk: a run of them ends the chunk before it, and so does the end of a
//! leaf, so that a chunk may be shorter than the minimum.
//!
//! Cutting starts anew at every map leaf: a leaf's pieces are a pure function of its bytes and the seed, however
//! the bytes arrive. No I/O, no allocation.

use schema::limits::{self, CHUNK_MAX, CHUNK_MIN};
use xxhash_rust::xxh3::xxh3_64_with_seed;

#[cfg(test)]
mod tests;

/// Unit of alignment of cuts, in bytes.
pub const BLOCK: usize = limits::BLOCK as usize;

/// A block whose hash is below this ends its chunk.
///
/// With the probability p = `THRESHOLD` / 2^64 and lengths in blocks: the first 3 blocks of a chunk cannot end it
/// (minimum 4), each of the next 60 does with probability p, and the 64th does in any case. The mean length is
/// therefore 3 + (1 - (1 - p)^61) / p. That is 16 blocks, or 64 KiB, at p = 0.0763163762, which is 1 in 13.10.
const THRESHOLD: u64 = 0x1389_7853_d08a_8f00;

static ZEROES: [u8; BLOCK] = [0; BLOCK];

/// A run of a leaf: one chunk, or zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Its length in bytes, never 0; at most [`CHUNK_MAX`] for a chunk, and a leaf's span for zeroes.
    pub len: u32,
    /// Whether all of it is zeroes.
    pub zero: bool,
}

/// Cuts one leaf after the other.
#[derive(Debug, Clone)]
pub struct Cutter {
    seed: u64,
    open: Piece,
}

impl Cutter {
    /// A cutter at the start of a leaf.
    pub fn new(seed: u64) -> Self {
        Self { seed, open: Piece { len: 0, zero: true } }
    }

    /// Takes the leaf's next bytes and hands on every piece that ends in them. `bytes` are whole blocks, except that
    /// the volume's last block may be short. The caller calls [`Cutter::finish`] where the leaf ends.
    pub fn push(&mut self, bytes: &[u8], mut ended: impl FnMut(Piece)) {
        for block in bytes.chunks(BLOCK) {
            let zero = is_zero(block);
            self.turn(zero, &mut ended);
            self.open.len += block.len() as u32;
            if !zero && self.ends_after(block) {
                self.finish(&mut ended);
            }
        }
    }

    /// Takes `len` bytes of zeroes that nobody needs to look at: the same as pushing them.
    pub fn push_zeroes(&mut self, len: u32, mut ended: impl FnMut(Piece)) {
        if len > 0 {
            self.turn(true, &mut ended);
            self.open.len += len;
        }
    }

    /// Ends the open piece, if there is one: the leaf ends here, and the next one starts.
    pub fn finish(&mut self, mut ended: impl FnMut(Piece)) {
        if self.open.len > 0 {
            ended(self.open);
            self.open.len = 0;
        }
    }

    /// Whether every byte so far is in a piece that was handed on.
    pub fn is_between_pieces(&self) -> bool {
        self.open.len == 0
    }

    /// Bytes of the chunk that has not ended yet; 0 in zeroes.
    pub fn unfinished(&self) -> usize {
        match self.open.zero {
            true => 0,
            false => self.open.len as usize,
        }
    }

    /// Ends the open piece when it is of the other sort.
    fn turn(&mut self, zero: bool, ended: impl FnMut(Piece)) {
        if self.open.zero != zero {
            self.finish(ended);
            self.open.zero = zero;
        }
    }

    fn ends_after(&self, block: &[u8]) -> bool {
        let len = self.open.len as usize;
        len >= CHUNK_MAX || (len >= CHUNK_MIN && xxh3_64_with_seed(block, self.seed) < THRESHOLD)
    }
}

/// Whether a block of at most [`BLOCK`] bytes is all zeroes.
#[inline]
pub fn is_zero(block: &[u8]) -> bool {
    // The comparison stops at the first difference; the page of zeroes stays in the first-level cache.
    ZEROES.get(..block.len()) == Some(block)
}

/// The pieces of one whole leaf.
pub fn cut(leaf: &[u8], seed: u64) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut cutter = Cutter::new(seed);
    cutter.push(leaf, |piece| pieces.push(piece));
    cutter.finish(|piece| pieces.push(piece));
    pieces
}
