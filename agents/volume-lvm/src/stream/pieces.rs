//! Cuts changed ranges into numbered pieces of at most one record's content.
//!
//! Pure. The numbers depend on the ranges alone: whoever has the list knows what record `n` is about.

use std::ops::Range;

use schema::limits::STREAM_DATA_MAX;

use crate::ranges::Ranges;

/// Longest piece, in bytes; a multiple of every block size that matters.
pub const PIECE: u64 = STREAM_DATA_MAX as u64;

/// Ranges, cut.
#[derive(Debug)]
pub struct Pieces {
    ranges: Vec<Range<u64>>,
    /// The number of each range's first piece.
    firsts: Vec<u64>,
    count: u64,
    bytes: u64,
}

impl Pieces {
    /// Cuts ranges at multiples of [`PIECE`], so that pieces are aligned whatever the range.
    pub fn new(ranges: Ranges) -> Self {
        let bytes = ranges.bytes();
        let ranges = ranges.into_vec();
        let mut count = 0;
        let firsts = ranges.iter().map(|range| {
            let first = count;
            count += range.end.div_ceil(PIECE) - range.start / PIECE;
            first
        });
        let firsts = firsts.collect();
        Self { ranges, firsts, count, bytes }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What a piece is about.
    pub fn get(&self, number: u64) -> Option<Range<u64>> {
        let at = self.firsts.partition_point(|first| *first <= number).checked_sub(1)?;
        let (range, first) = (self.ranges.get(at)?, self.firsts.get(at)?);
        let cut = range.start / PIECE + (number - first);
        let piece = range.start.max(cut * PIECE)..range.end.min((cut + 1) * PIECE);
        (!piece.is_empty()).then_some(piece)
    }

    /// Bytes of all pieces below a number.
    pub fn bytes_before(&self, number: u64) -> u64 {
        let at = self.firsts.partition_point(|first| *first < number);
        let whole: u64 = self.ranges[..at].iter().map(|range| range.end - range.start).sum();
        // The range that the piece lies in was counted whole.
        match (self.get(number), at.checked_sub(1).and_then(|at| self.ranges.get(at))) {
            (Some(piece), Some(range)) if range.contains(&piece.start) => whole - (range.end - piece.start),
            _ => whole,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pieces_are_cut_at_multiples() {
        let ranges = [0..4096, PIECE - 4096..PIECE + 4096, 3 * PIECE..5 * PIECE + 512].into_iter().collect();
        let pieces = Pieces::new(ranges);
        let all: Vec<_> = (0..pieces.count()).map_while(|number| pieces.get(number)).collect();
        let want = [
            0..4096,
            PIECE - 4096..PIECE,
            PIECE..PIECE + 4096,
            3 * PIECE..4 * PIECE,
            4 * PIECE..5 * PIECE,
            5 * PIECE..5 * PIECE + 512,
        ];
        assert_eq!(all, want);
        assert_eq!((pieces.get(6), Pieces::new(Ranges::new()).get(0)), (None, None));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

        #[test]
        fn pieces_are_the_ranges_in_order(parts in vec((1u64..3 * PIECE, 1u64..3 * PIECE), 0..20)) {
            let mut at = 0;
            let mut ranges = Ranges::new();
            for (gap, len) in parts {
                ranges.push(at + gap..at + gap + len);
                at += gap + len;
            }
            let pieces = Pieces::new(ranges.clone());
            let (mut joined, mut bytes) = (Ranges::new(), 0);
            for number in 0..pieces.count() {
                prop_assert_eq!(pieces.bytes_before(number), bytes);
                let piece = pieces.get(number).unwrap();
                prop_assert!(piece.end - piece.start <= PIECE);
                bytes += piece.end - piece.start;
                joined.push(piece);
            }
            prop_assert_eq!(joined, ranges);
            prop_assert_eq!((pieces.bytes(), pieces.bytes_before(pieces.count())), (bytes, bytes));
            prop_assert_eq!(pieces.get(pieces.count()), None);
        }
    }
}
