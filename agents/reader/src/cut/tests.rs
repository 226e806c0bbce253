//! The cutter's promises: coverage, bounds, purity, and that moved content is found again.

use std::collections::BTreeSet;

use proptest::prelude::*;
use schema::limits::CHUNK_AVERAGE;

use super::*;
use crate::testing::noise;

/// A leaf out of runs: (length in blocks, zero or the seed of its noise), and a last block that may be short.
fn leaf() -> impl Strategy<Value = Vec<u8>> {
    let run = (1usize..90, prop_oneof![Just(None), (1u64..8).prop_map(Some)]);
    (prop::collection::vec(run, 0..8), 0..BLOCK).prop_map(|(runs, cut_off)| {
        let mut bytes = Vec::new();
        for (blocks, content) in runs {
            match content {
                Some(seed) => bytes.extend(noise(seed, blocks * BLOCK)),
                None => bytes.resize(bytes.len() + blocks * BLOCK, 0),
            }
        }
        bytes.truncate(bytes.len().saturating_sub(cut_off));
        bytes
    })
}

fn slices<'a>(bytes: &'a [u8], pieces: &[Piece]) -> Vec<(&'a [u8], bool)> {
    let mut rest = bytes;
    let cut = pieces.iter().map(|piece| {
        let (head, tail) = rest.split_at(piece.len as usize);
        rest = tail;
        (head, piece.zero)
    });
    let cut = cut.collect();
    assert!(rest.is_empty(), "the pieces cover the leaf");
    cut
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn pieces_cover_a_leaf_within_bounds(leaf in leaf(), seed: u64) {
        let pieces = cut(&leaf, seed);
        let slices = slices(&leaf, &pieces);
        for (n, (bytes, zero)) in slices.iter().enumerate() {
            let next = slices.get(n + 1);
            prop_assert!(!bytes.is_empty());
            prop_assert!(next.is_none() || bytes.len() % BLOCK == 0);
            match zero {
                true => {
                    prop_assert!(bytes.iter().all(|byte| *byte == 0));
                    prop_assert!(next.is_none_or(|(_, zero)| !zero), "a run of zeroes is whole");
                }
                false => {
                    prop_assert!(bytes.len() <= CHUNK_MAX);
                    prop_assert!(bytes.chunks(BLOCK).all(|block| block.iter().any(|byte| *byte != 0)));
                    let ended_by_content = next.is_some_and(|(_, zero)| !zero);
                    prop_assert!(!ended_by_content || bytes.len() >= CHUNK_MIN);
                }
            }
        }
    }

    #[test]
    fn how_bytes_arrive_makes_no_difference(leaf in leaf(), seed: u64, parts in prop::collection::vec(1usize..50, 1..30)) {
        let mut pieces = Vec::new();
        let mut cutter = Cutter::new(seed);
        let mut rest = leaf.as_slice();
        for blocks in parts.iter().cycle() {
            let (head, tail) = rest.split_at((blocks * BLOCK).min(rest.len()));
            match is_all_zero(head) {
                true => cutter.push_zeroes(head.len() as u32, |piece| pieces.push(piece)),
                false => cutter.push(head, |piece| pieces.push(piece)),
            }
            rest = tail;
            if rest.is_empty() {
                break;
            }
        }
        cutter.finish(|piece| pieces.push(piece));
        prop_assert!(cutter.is_between_pieces());
        prop_assert_eq!(pieces, cut(&leaf, seed));
    }

    #[test]
    fn leaves_are_cut_independently(first in leaf(), second in leaf(), seed: u64) {
        let mut pieces = Vec::new();
        let mut cutter = Cutter::new(seed);
        for leaf in [&first, &second] {
            cutter.push(leaf, |piece| pieces.push(piece));
            cutter.finish(|piece| pieces.push(piece));
        }
        prop_assert_eq!(pieces, [cut(&first, seed), cut(&second, seed)].concat());
    }

    #[test]
    fn moved_content_keeps_most_chunks(blocks in 1usize..200, at in 0usize..2048, seed: u64) {
        let leaf = noise(1, 8 << 20);
        let mut moved = leaf.clone();
        moved.splice(at * BLOCK..at * BLOCK, noise(2, blocks * BLOCK));
        let chunks = |bytes: &[u8]| -> BTreeSet<Vec<u8>> {
            slices(bytes, &cut(bytes, seed)).into_iter().map(|(chunk, _)| chunk.to_vec()).collect()
        };
        let (before, after) = (chunks(&leaf), chunks(&moved));
        let kept: usize = before.intersection(&after).map(Vec::len).sum();
        prop_assert!(kept > leaf.len() / 10 * 8, "only {kept} of {} bytes are in chunks that were kept", leaf.len());
    }

    #[test]
    fn zero_is_what_has_no_other_byte(len in 1usize..=BLOCK, other in any::<prop::sample::Index>(), byte in 1u8..) {
        let mut block = vec![0; len];
        prop_assert!(is_zero(&block));
        block[other.index(len)] = byte;
        prop_assert!(!is_zero(&block));
    }
}

fn is_all_zero(bytes: &[u8]) -> bool {
    bytes.chunks(BLOCK).all(is_zero)
}

#[test]
fn more_than_a_block_is_never_called_zero() {
    assert!(!is_zero(&[0; BLOCK + 1]));
}

#[test]
fn nothing_has_no_pieces() {
    assert_eq!(cut(&[], 7), []);
}

#[test]
fn the_threshold_gives_the_average_that_it_claims() {
    let p = THRESHOLD as f64 / 2f64.powi(64);
    let (least, most) = ((CHUNK_MIN / BLOCK) as i32, (CHUNK_MAX / BLOCK) as i32);
    let mean = f64::from(least - 1) + (1.0 - (1.0 - p).powi(most - least + 1)) / p;
    assert!((mean * BLOCK as f64 - CHUNK_AVERAGE as f64).abs() < 1.0, "{mean} blocks");
}

#[test]
fn noise_is_cut_to_the_average() {
    let leaf = noise(3, 64 << 20);
    let mean = leaf.len() / cut(&leaf, 11).len();
    assert!(mean.abs_diff(CHUNK_AVERAGE) < CHUNK_AVERAGE / 20, "the mean is {mean} bytes");
}

#[test]
fn what_never_matches_is_cut_at_the_maximum() {
    // One block over and over: it ends every chunk at the minimum or none before the maximum.
    let leaf = noise(4, BLOCK).repeat(1024);
    let lens = |seed| cut(&leaf, seed).iter().map(|piece| piece.len as usize).collect::<BTreeSet<_>>();
    let seen: BTreeSet<_> = (0..100).flat_map(lens).collect();
    assert_eq!(seen, BTreeSet::from([CHUNK_MIN, CHUNK_MAX]));
}

#[test]
fn the_seed_moves_the_cuts() {
    let leaf = noise(5, 4 << 20);
    assert_ne!(cut(&leaf, 1), cut(&leaf, 2));
}
