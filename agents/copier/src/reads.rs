//! Which ranges of which packs are read for some chunks. Pure.

use std::ops::Range;

use schema::chunk::FRAME_HEADER_LEN;
use schema::limits::CHUNK_MAX;
use schema::messages::Copy;
use schema::{ChunkId, PackId};

/// Bytes between two frames that are read along rather than asked around.
const GAP_MAX: u64 = 64 << 10;
/// Bytes of one read at most, and of what is opened of it.
pub(crate) const READ_MAX: u64 = 4 << 20;
/// Bytes of a frame at most, with what seals it.
const FRAME_MAX: usize = FRAME_HEADER_LEN + CHUNK_MAX + 16;

/// A chunk that is wanted.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub id: ChunkId,
    /// Bytes of its plaintext.
    pub len: u32,
    /// Where the volume has it first.
    pub offset: u64,
    /// Known copies, the best first.
    pub copies: Vec<Copy>,
}

/// One read of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Read {
    pub pack: PackId,
    pub range: Range<u64>,
    /// Places of the chunks among those that are wanted.
    pub chunks: Vec<usize>,
    /// Bytes of their plaintext.
    plain: u64,
}

/// Whether a copy can be a frame: nothing is allocated for one that cannot.
pub(crate) fn is_plausible(copy: &Copy) -> bool {
    (FRAME_HEADER_LEN + 1..=FRAME_MAX).contains(&(copy.len as usize))
}

/// The bytes of its pack that a copy takes.
pub(crate) fn range_of(copy: &Copy) -> Range<u64> {
    let start = u64::from(copy.offset);
    start..start + u64::from(copy.len)
}

/// Reads of every chunk's best copy, and the chunks that have none.
pub(crate) fn reads(wanted: &[Wanted]) -> (Vec<Read>, Vec<usize>) {
    let mut best: Vec<(Copy, usize)> = Vec::new();
    let mut without = Vec::new();
    for (place, one) in wanted.iter().enumerate() {
        match one.copies.first() {
            Some(copy) => best.push((*copy, place)),
            None => without.push(place),
        }
    }
    best.sort();
    let mut reads: Vec<Read> = Vec::new();
    for (copy, place) in best {
        let (range, plain) = (range_of(&copy), u64::from(wanted[place].len));
        match reads.last_mut() {
            Some(last) if last.takes(copy.pack, &range, plain) => {
                last.range.end = last.range.end.max(range.end);
                last.plain += plain;
                last.chunks.push(place);
            }
            _ => reads.push(Read { pack: copy.pack, range, chunks: vec![place], plain }),
        }
    }
    (reads, without)
}

impl Read {
    fn takes(&self, pack: PackId, range: &Range<u64>, plain: u64) -> bool {
        self.pack == pack
            && range.start <= self.range.end.saturating_add(GAP_MAX)
            && self.range.end.max(range.end) - self.range.start <= READ_MAX
            && self.plain + plain <= READ_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(pack: u8, offset: u32, len: u32, plain: u32) -> Wanted {
        let id = ChunkId::parse(&[1; 33]).expect("a data chunk");
        let copy = Copy { pack: PackId::from_bytes([pack; 16]), offset, len };
        Wanted { id, len: plain, offset: 0, copies: vec![copy] }
    }

    #[test]
    fn neighbours_are_read_together_and_no_read_is_long() {
        let gap = GAP_MAX as u32;
        let chunks = [
            wanted(1, 200 + gap, 100, 10),
            wanted(1, 100, 100, 10),
            wanted(2, 300, 100, 10),
            wanted(1, 301 + 2 * gap, 100, 10),
            Wanted { copies: Vec::new(), ..wanted(3, 0, 0, 7) },
            wanted(4, 48, 100, READ_MAX as u32),
            wanted(4, 148, 100, 1),
        ];
        let (reads, without) = reads(&chunks);
        let found: Vec<(Vec<usize>, u64)> =
            reads.into_iter().map(|read| (read.chunks, read.range.end - read.range.start)).collect();
        let expected = [
            (vec![1, 0], u64::from(200 + gap)),
            (vec![3], 100),
            (vec![2], 100),
            (vec![5], 100),
            (vec![6], 100),
        ];
        assert_eq!((found, without), (expected.to_vec(), vec![4]));
    }

    #[test]
    fn only_what_can_be_a_frame_is_read() {
        for (len, plausible) in [(0, false), (48, false), (49, true), (u32::MAX, false)] {
            let copy = Copy { pack: PackId::from_bytes([1; 16]), offset: 48, len };
            assert_eq!(is_plausible(&copy), plausible, "{len}");
        }
    }
}
