//! The account of a volume: tables for what is refused and replaced, and properties over random orders.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;

use conductor::coverage::{Conflict, Count, Coverage, Fate, Impossible, Refused};
use proptest::collection::vec;
use proptest::prelude::*;
use schema::keys::WriterKey;
use schema::limits::LEAF_SPAN;
use schema::map::{Content, Geometry, Leaf, Piece};
use schema::{ChunkId, Domain, RepoId};

const BLOCK: u32 = 4096;

fn id(number: u64) -> ChunkId {
    let key = WriterKey::new(RepoId::from_bytes([1; 16]), Vec::new(), &[2; 64]).unwrap();
    key.chunk_ids().id(Domain::Data, &number.to_le_bytes())
}

fn coverage(size: u64) -> Coverage {
    Coverage::new(Geometry::new(size).unwrap())
}

fn conflict(offset: u64) -> Result<u64, Refused> {
    Err(Refused::Conflict(Conflict { offset }))
}

fn impossible(offset: u64) -> Result<u64, Refused> {
    Err(Refused::Impossible(Impossible { offset }))
}

#[test]
fn runs_outside_the_volume_or_across_a_leaf_are_impossible() {
    let size = 2 * LEAF_SPAN + 10_000;
    for (offset, len) in [
        (0, 0),
        (LEAF_SPAN - 4096, 2 * BLOCK),
        (2 * LEAF_SPAN, 10_001),
        (2 * LEAF_SPAN + 9_999, 2),
        (size, 1),
        (3 * LEAF_SPAN, 1),
        (u64::MAX, u32::MAX),
    ] {
        for fate in [Fate::Zero, Fate::Durable(id(1)), Fate::Waiting(id(1))] {
            let mut coverage = coverage(size);
            assert_eq!(coverage.add(offset, len, fate), impossible(offset), "{offset} {len}");
            assert_eq!(coverage.count(), Count::default());
        }
    }
    assert_eq!(coverage(0).add(0, 1, Fate::Zero), impossible(0));
    let mut coverage = coverage(size);
    assert_eq!(coverage.add(2 * LEAF_SPAN, 10_000, Fate::Zero), Ok(10_000));
}

#[test]
fn a_volume_of_no_bytes_is_covered_and_closed() {
    let mut coverage = coverage(0);
    assert!(coverage.is_covered() && coverage.is_closed());
    assert_eq!(coverage.take_complete().unwrap(), []);
    assert_eq!(coverage.unfinished(10), [0; 0]);
}

/// A run, and what may come at its place again.
#[test]
fn what_comes_again_otherwise_is_a_conflict() {
    let at = 10 * u64::from(BLOCK);
    let chunk = |number| Fate::Durable(id(number));
    let cases = [
        ("the same chunk", at, BLOCK, chunk(1), Ok(0)),
        ("the same chunk, on its way", at, BLOCK, Fate::Waiting(id(1)), Ok(0)),
        ("another chunk", at, BLOCK, chunk(2), conflict(at)),
        ("the same chunk, longer", at, 2 * BLOCK, chunk(1), conflict(at)),
        ("the same chunk, shorter", at, BLOCK / 2, chunk(1), conflict(at)),
        ("a chunk that reaches in from before", at - 4096, 2 * BLOCK, chunk(2), conflict(at - 4096)),
        ("a chunk that starts inside", at + 512, BLOCK, chunk(2), conflict(at + 512)),
        ("zeroes over it", at - 4096, 3 * BLOCK, Fate::Zero, conflict(at)),
        ("zeroes in it", at + 512, 512, Fate::Zero, conflict(at + 512)),
        ("a chunk just before", at - 4096, BLOCK, chunk(2), Ok(4096)),
        ("a chunk just behind", at + 4096, BLOCK, chunk(1), Ok(4096)),
        ("zeroes just before", 0, at as u32, Fate::Zero, Ok(at)),
    ];
    for (name, offset, len, fate, expected) in cases {
        let mut coverage = coverage(LEAF_SPAN);
        coverage.add(at, BLOCK, chunk(1)).unwrap();
        let before = coverage.count();
        assert_eq!(coverage.add(offset, len, fate), expected, "{name}");
        assert_eq!(coverage.count().covered - before.covered, expected.unwrap_or(0), "{name}");
    }
    let mut coverage = coverage(LEAF_SPAN);
    coverage.add(at, BLOCK, Fate::Zero).unwrap();
    assert_eq!(coverage.add(at, BLOCK, chunk(1)), conflict(at), "a chunk over zeroes");
    assert_eq!(coverage.add(at - 4096, 2 * BLOCK, chunk(1)), conflict(at - 4096), "and over their start");
}

#[test]
fn zeroes_that_are_divided_differently_merge() {
    let block = u64::from(BLOCK);
    let mut coverage = coverage(8 * block);
    assert_eq!(coverage.add(2 * block, 2 * BLOCK, Fate::Zero), Ok(2 * block));
    assert_eq!(coverage.add(5 * block, BLOCK, Fate::Zero), Ok(block));
    assert_eq!(coverage.add(3 * block, 3 * BLOCK, Fate::Zero), Ok(block), "between and over both");
    assert_eq!(coverage.add(2 * block, BLOCK, Fate::Zero), Ok(0), "inside");
    assert_eq!(coverage.add(0, 8 * BLOCK, Fate::Zero), Ok(4 * block), "around all");
    assert_eq!(coverage.count(), Count { covered: 8 * block, zero: 8 * block, chunks: 0 });
    let expected = Leaf::new(8 * block, [Piece { len: 8 * BLOCK, content: Content::Zero }]).unwrap();
    assert_eq!(coverage.take_complete().unwrap(), [(0, expected)]);
}

#[test]
fn a_leaf_is_complete_when_every_chunk_in_it_is_durable() {
    let block = u64::from(BLOCK);
    let mut coverage = coverage(4 * block);
    coverage.add(0, BLOCK, Fate::Waiting(id(1))).unwrap();
    coverage.add(block, BLOCK, Fate::Waiting(id(2))).unwrap();
    coverage.add(2 * block, BLOCK, Fate::Waiting(id(1))).unwrap();
    coverage.add(3 * block, BLOCK, Fate::Zero).unwrap();
    assert!(coverage.is_covered() && !coverage.is_closed());
    assert_eq!(coverage.take_complete().unwrap(), []);
    assert_eq!(coverage.waiting().collect::<BTreeSet<_>>(), [id(1), id(2)].into());
    assert!(coverage.durable(id(1)) && !coverage.durable(id(1)) && !coverage.durable(id(3)));
    assert_eq!(coverage.take_complete().unwrap(), []);
    // The piece comes again, and this time it counts.
    assert_eq!(coverage.add(block, BLOCK, Fate::Durable(id(2))), Ok(0));
    assert!(!coverage.waits_for(id(2)));
    let piece = |number| Piece { len: BLOCK, content: Content::Chunk(id(number)) };
    let zero = Piece { len: BLOCK, content: Content::Zero };
    let expected = Leaf::new(4 * block, [piece(1), piece(2), piece(1), zero]).unwrap();
    assert_eq!(coverage.take_complete().unwrap(), [(0, expected)]);
    assert!(coverage.is_closed());
}

#[test]
fn a_finished_leaf_takes_nothing_more() {
    let mut coverage = coverage(LEAF_SPAN + 4096);
    coverage.add(LEAF_SPAN, BLOCK, Fate::Durable(id(1))).unwrap();
    assert_eq!(coverage.take_complete().unwrap().len(), 1);
    assert_eq!(coverage.unfinished(9), [0]);
    let before = coverage.count();
    for fate in [Fate::Zero, Fate::Durable(id(1)), Fate::Waiting(id(2))] {
        assert_eq!(coverage.add(LEAF_SPAN, BLOCK, fate), Ok(0));
    }
    coverage.reset(1);
    assert_eq!(coverage.count(), before);
    assert_eq!(coverage.waiting().count(), 0, "nothing is kept for it");
    assert_eq!(coverage.take_complete().unwrap(), []);
}

#[test]
fn a_reset_forgets_a_leaf_and_only_that() {
    let mut coverage = coverage(2 * LEAF_SPAN);
    coverage.add(0, BLOCK, Fate::Waiting(id(1))).unwrap();
    coverage.add(4096, BLOCK, Fate::Zero).unwrap();
    coverage.add(LEAF_SPAN, BLOCK, Fate::Waiting(id(1))).unwrap();
    coverage.add(8192, BLOCK, Fate::Waiting(id(2))).unwrap();
    coverage.reset(0);
    coverage.reset(0);
    assert_eq!(coverage.count(), Count { covered: 4096, zero: 0, chunks: 1 });
    assert_eq!(coverage.waiting().collect::<Vec<_>>(), [id(1)]);
    assert_eq!(coverage.add(0, 2 * BLOCK, Fate::Durable(id(3))), Ok(8192));
}

#[test]
fn a_replaced_piece_makes_room_and_what_is_left_of_it_is_not_mapped() {
    let block = u64::from(BLOCK);
    let mut coverage = coverage(8 * block);
    coverage.add(0, 2 * BLOCK, Fate::Waiting(id(1))).unwrap();
    coverage.add(2 * block, 2 * BLOCK, Fate::Durable(id(2))).unwrap();
    coverage.add(4 * block, 4 * BLOCK, Fate::Zero).unwrap();
    assert_eq!(coverage.replace(block, 2 * BLOCK, Fate::Durable(id(3))), Ok(2 * block));
    assert_eq!(coverage.count(), Count { covered: 6 * block, zero: 4 * block, chunks: 1 });
    assert_eq!(coverage.waiting().count(), 0);
    // The rest of the leaf comes as it is now.
    assert_eq!(coverage.add(0, BLOCK, Fate::Zero), Ok(block));
    assert_eq!(coverage.add(3 * block, BLOCK, Fate::Durable(id(4))), Ok(block));
    assert_eq!(coverage.add(4 * block, 4 * BLOCK, Fate::Zero), Ok(0));
    assert!(coverage.is_covered());
    let chunk = |number, blocks| Piece { len: blocks * BLOCK, content: Content::Chunk(id(number)) };
    let zero = |blocks| Piece { len: blocks * BLOCK, content: Content::Zero };
    let expected = Leaf::new(8 * block, [zero(1), chunk(3, 2), chunk(4, 1), zero(4)]).unwrap();
    assert_eq!(coverage.take_complete().unwrap(), [(0, expected)]);
}

#[test]
fn an_adopted_leaf_counts_once_whatever_was_mapped_of_it() {
    let mut coverage = coverage(2 * LEAF_SPAN);
    coverage.add(0, BLOCK, Fate::Waiting(id(1))).unwrap();
    let count = Count { covered: LEAF_SPAN, zero: LEAF_SPAN - 4096, chunks: 1 };
    for _ in 0..2 {
        coverage.adopt(0, count);
        assert_eq!(coverage.count(), count);
    }
    assert_eq!((coverage.waiting().count(), coverage.unfinished(9)), (0, vec![1]));
    assert_eq!(coverage.add(0, BLOCK, Fate::Durable(id(2))), Ok(0));
    coverage.adopt(1, Count { covered: LEAF_SPAN, zero: LEAF_SPAN, chunks: 0 });
    assert!(coverage.is_covered() && coverage.is_closed());
    assert_eq!(coverage.take_complete().unwrap(), []);
}

#[test]
fn the_unfinished_are_named_up_to_a_limit() {
    let mut coverage = coverage(5 * LEAF_SPAN);
    coverage.add(LEAF_SPAN, LEAF_SPAN as u32, Fate::Zero).unwrap();
    coverage.take_complete().unwrap();
    assert_eq!(coverage.unfinished(3), [0, 2, 3]);
    assert_eq!(coverage.unfinished(100), [0, 2, 3, 4]);
}

/// A volume cut at random: pieces with their offsets, never across a leaf.
#[derive(Debug, Clone)]
struct Cut {
    size: u64,
    pieces: Vec<(u64, u32, Option<ChunkId>)>,
}

fn cut() -> impl Strategy<Value = Cut> {
    let tail = prop_oneof![Just(0u64), 1..100_000u64];
    (0..3u64, tail, vec((1..64u32, prop::option::of(0..20u64)), 60)).prop_map(|(leaves, tail, cuts)| {
        let size = leaves * LEAF_SPAN + tail;
        let geometry = Geometry::new(size).unwrap();
        let mut pieces = Vec::new();
        for leaf in 0..geometry.leaves() {
            let range = geometry.leaf_range(leaf);
            let mut at = range.start;
            for (blocks, content) in &cuts {
                let len = (u64::from(blocks * BLOCK)).min(range.end - at);
                if len > 0 {
                    pieces.push((at, len as u32, content.map(id)));
                    at += len;
                }
            }
            if at < range.end {
                pieces.push((at, (range.end - at) as u32, None));
            }
        }
        Cut { size, pieces }
    })
}

impl Cut {
    fn leaf(&self, leaf: u64) -> Leaf {
        let range = Geometry::new(self.size).unwrap().leaf_range(leaf);
        let inside = self.pieces.iter().filter(|(at, ..)| range.contains(at));
        let pieces = inside
            .map(|(_, len, chunk)| Piece { len: *len, content: chunk.map_or(Content::Zero, Content::Chunk) });
        Leaf::new(range.end - range.start, pieces).unwrap()
    }

    fn count(&self) -> Count {
        let mut count = Count::default();
        self.pieces.iter().for_each(|(_, len, chunk)| count.add((*len).into(), chunk.is_none()));
        count
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Pieces in any order, some several times, durable before or after: every byte counts once, and the leaves are
    /// those of the volume.
    #[test]
    fn covered_exactly_once(
        cut in cut(),
        order in vec((any::<prop::sample::Index>(), any::<bool>()), 0..300),
        durable_early in any::<bool>(),
        splits in vec(1..16u32, 4),
    ) {
        let mut coverage = coverage(cut.size);
        let mut leaves = Vec::new();
        let mut sum = 0;
        let all = cut.pieces.iter().map(|piece| (*piece, false));
        let random = order.iter().filter(|_| !cut.pieces.is_empty());
        let random = random.map(|(index, durable)| (*index.get(&cut.pieces), *durable));
        for ((at, len, chunk), durable) in random.chain(all) {
            match chunk {
                None => {
                    // Whoever reads it again may divide a run of zeroes otherwise.
                    let (mut from, mut left) = (at, len);
                    for split in &splits {
                        let part = (split * BLOCK).min(left);
                        if part > 0 && part < left {
                            sum += coverage.add(from, part, Fate::Zero).unwrap();
                            (from, left) = (from + u64::from(part), left - part);
                        }
                    }
                    sum += coverage.add(from, left, Fate::Zero).unwrap();
                }
                Some(id) if durable => sum += coverage.add(at, len, Fate::Durable(id)).unwrap(),
                Some(id) => sum += coverage.add(at, len, Fate::Waiting(id)).unwrap(),
            }
            if durable_early {
                if let Some(id) = chunk {
                    coverage.durable(id);
                }
                leaves.extend(coverage.take_complete().unwrap());
            }
            prop_assert_eq!(coverage.count().covered, sum);
        }
        prop_assert!(coverage.is_covered());
        prop_assert_eq!(sum, cut.size);
        for id in coverage.waiting().collect::<Vec<_>>() {
            coverage.durable(id);
        }
        leaves.extend(coverage.take_complete().unwrap());
        leaves.sort_by_key(|(number, _)| *number);
        let expected: Vec<_> =
            (0..Geometry::new(cut.size).unwrap().leaves()).map(|leaf| (leaf, cut.leaf(leaf))).collect();
        prop_assert_eq!(leaves, expected);
        prop_assert!(coverage.is_closed());
        prop_assert_eq!(coverage.count().chunks, cut.count().chunks);
        prop_assert_eq!(coverage.count().zero, cut.count().zero);
    }

    /// One piece that differs is found, wherever it comes in the order, and the account stays what it was.
    #[test]
    fn a_piece_that_differs_is_found(cut in cut(), which in any::<prop::sample::Index>(), shift in 0..3u8) {
        prop_assume!(!cut.pieces.is_empty());
        let mut coverage = coverage(cut.size);
        for (at, len, chunk) in &cut.pieces {
            let fate = chunk.map_or(Fate::Zero, Fate::Waiting);
            coverage.add(*at, *len, fate).unwrap();
        }
        let before = coverage.count();
        let (at, len, chunk) = *which.get(&cut.pieces);
        let other = id(999);
        let differs = match shift {
            0 => coverage.add(at, len, Fate::Durable(other)),
            1 if chunk.is_some() => coverage.add(at, len, Fate::Zero),
            _ if len > 1 => coverage.add(at + 1, len - 1, Fate::Durable(chunk.unwrap_or(other))),
            _ => coverage.add(at, len, Fate::Durable(other)),
        };
        prop_assert!(matches!(differs, Err(Refused::Conflict(_))), "{differs:?}");
        prop_assert_eq!(coverage.count(), before);
        // Where changes are allowed, the newer piece takes its place, and only its place.
        coverage.replace(at, len, Fate::Durable(other)).unwrap();
        prop_assert_eq!(coverage.count().covered, match chunk {
            Some(_) => before.covered,
            None => coverage.count().covered,
        });
        for (at, len, chunk) in &cut.pieces {
            let fate = chunk.map_or(Fate::Zero, Fate::Waiting);
            coverage.replace(*at, *len, fate).unwrap();
        }
        prop_assert_eq!(coverage.count(), before);
    }
}

/// What a reader is told is wanted: what lacks bytes; and by force, what waits for chunks.
#[test]
fn what_lacks_bytes_and_what_waits_for_chunks() {
    let mut coverage = coverage(4 * LEAF_SPAN + 100);
    let rest = LEAF_SPAN as u32 - BLOCK;
    let state = |coverage: &Coverage| {
        (coverage.lacking().collect::<Vec<_>>(), coverage.stalled().collect::<Vec<_>>())
    };
    assert_eq!(state(&coverage), (vec![0, 1, 2, 3, 4], vec![]));
    for (leaf, fate) in [(0, Fate::Waiting(id(1))), (1, Fate::Durable(id(2))), (2, Fate::Waiting(id(3)))] {
        coverage.add(leaf * LEAF_SPAN, BLOCK, fate).unwrap();
    }
    coverage.add(u64::from(BLOCK), rest, Fate::Zero).unwrap();
    coverage.adopt(4, Count { covered: 100, zero: 100, chunks: 0 });
    assert_eq!(state(&coverage), (vec![1, 2, 3], vec![0, 2]));
    assert!(coverage.is_leaf_closed(4) && !coverage.is_leaf_closed(0) && coverage.lacks(2));
    coverage.durable(id(1));
    coverage.add(LEAF_SPAN + u64::from(BLOCK), rest, Fate::Zero).unwrap();
    assert_eq!(coverage.take_complete().unwrap().len(), 2);
    assert_eq!(state(&coverage), (vec![2, 3], vec![2]));
}
