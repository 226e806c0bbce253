//! Which reads a leaf takes, or a part of it.
//!
//! It is covered by steps, in order and exactly once: each reads some bytes and then passes over a hole. Whoever
//! follows them always knows, with a step's bytes at hand, whether a hole or the end comes next, so that no
//! unfinished chunk ever waits for bytes that are not adjacent to it. Pure.

use std::ops::Range;

use schema::limits::BLOCK;

/// Holes up to this many bytes are read rather than passed over: a read of its own costs more.
const HOLE_MIN: u64 = 128 << 10;

/// Bytes to read, and the hole after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    /// Where it starts in the volume, in bytes.
    pub(crate) offset: u64,
    /// Bytes to read; may be 0.
    pub(crate) data: u32,
    /// Bytes after them that are known to be zero.
    pub(crate) hole: u32,
    /// Whether whatever is open after it ends there: the leaf does, or what follows is known to be zero.
    pub(crate) ends_run: bool,
}

/// The steps of `range`, which lies in one leaf and may hold something other than zeroes in `allocated` only. A step
/// reads at most `segment` bytes, a multiple of the block size. `ends_run` is true of the last one alone.
pub(crate) fn steps(range: Range<u64>, allocated: &[Range<u64>], segment: u64, ends_run: bool) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let (all, mut at) = (range.clone(), range.start);
    let pass = |steps: &mut Vec<Step>, at: u64, hole: u64| match steps.last_mut() {
        Some(last) => last.hole += hole as u32,
        None if hole > 0 => steps.push(Step { offset: at, data: 0, hole: hole as u32, ends_run: false }),
        None => {}
    };
    for range in joined(&all, allocated) {
        pass(&mut steps, at, range.start - at);
        at = range.start;
        while at < range.end {
            let data = segment.max(BLOCK).min(range.end - at);
            steps.push(Step { offset: at, data: data as u32, hole: 0, ends_run: false });
            at += data;
        }
    }
    pass(&mut steps, at, all.end - at);
    if let Some(last) = steps.last_mut() {
        last.ends_run = ends_run;
    }
    steps
}

/// The ranges in whole blocks, within `all`, with small holes between them closed.
fn joined(all: &Range<u64>, allocated: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in allocated {
        let start = (range.start / BLOCK * BLOCK).max(all.start);
        let end = range.end.div_ceil(BLOCK).saturating_mul(BLOCK).min(all.end);
        match joined.last_mut() {
            Some(last) if start <= last.end + HOLE_MIN => last.end = last.end.max(end),
            _ if start < end => joined.push(start..end),
            _ => {}
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: u64 = 1 << 10;
    const M: u64 = 1 << 20;

    fn plan(leaf: Range<u64>, allocated: &[Range<u64>]) -> Vec<(u64, u64, u64)> {
        let steps = steps(leaf, allocated, 4 * M, true);
        let (last, others) = steps.split_last().unwrap();
        assert!(last.ends_run && others.iter().all(|step| !step.ends_run));
        steps.iter().map(|s| (s.offset, s.data.into(), s.hole.into())).collect()
    }

    #[test]
    fn steps_of_some_leaves() {
        assert_eq!(plan(0..10 * M, &[]), [(0, 0, 10 * M)]);
        assert_eq!(
            plan(0..10 * M, std::slice::from_ref(&(0..10 * M))),
            [(0, 4 * M, 0), (4 * M, 4 * M, 0), (8 * M, 2 * M, 0)]
        );
        assert_eq!(
            plan(64 * M..70 * M, std::slice::from_ref(&(66 * M..67 * M))),
            [(64 * M, 0, 2 * M), (66 * M, M, 3 * M)]
        );
        assert_eq!(plan(0..M, &[0..4 * K, 128 * K..132 * K]), [(0, 132 * K, M - 132 * K)]);
        assert_eq!(
            plan(0..M, &[0..4 * K, 512 * K..516 * K]),
            [(0, 4 * K, 508 * K), (512 * K, 4 * K, M - 516 * K)]
        );
    }

    #[test]
    fn ranges_that_are_not_whole_blocks_or_reach_out_of_the_leaf() {
        assert_eq!(
            plan(64 * M..65 * M + 5, &[M..64 * M + 1, 65 * M + 4..99 * M]),
            [(64 * M, 4 * K, M - 4 * K), (65 * M, 5, 0)]
        );
        assert_eq!(plan(64 * M..65 * M, &[M..2 * M, 70 * M..71 * M]), [(64 * M, 0, M)]);
    }

    proptest::proptest! {
        #[test]
        fn a_leaf_is_covered_exactly_once(
            cuts in proptest::collection::vec(0u64..M, 0..40), size in 1..M, segment in 1u64..64,
        ) {
            let mut cuts = cuts;
            cuts.sort_unstable();
            let allocated: Vec<_> = cuts.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect();
            let leaf = 64 * M..64 * M + size;
            let allocated: Vec<_> = allocated.iter().map(|r| r.start + leaf.start..r.end + leaf.start).collect();
            let mut at = leaf.start;
            for step in steps(leaf.clone(), &allocated, segment * BLOCK, true) {
                assert_eq!(step.offset, at);
                assert!(u64::from(step.data) <= segment * BLOCK && step.data + step.hole > 0);
                let hole = at + u64::from(step.data)..at + u64::from(step.data + step.hole);
                assert!(allocated.iter().all(|r| r.is_empty() || r.end.min(leaf.end) <= hole.start || hole.end <= r.start || hole.is_empty()));
                at = hole.end;
                assert_eq!(step.ends_run, at == leaf.end);
            }
            assert_eq!(at, leaf.end);
        }
    }
}
