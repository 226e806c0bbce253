//! The audit of a list of changes: how much is looked at of what it leaves out, and where.
//!
//! A list that leaves out what has changed is silent, so that some of the rest is read whenever one is used. Where is
//! drawn at random; what is found there is compared by whoever uses the list.

use std::ops::Range;

use schema::limits::{BLOCK, CHUNK_AVERAGE, LEAF_SPAN};

const MILLION: u128 = 1_000_000;
/// Windows that are drawn at least, where there is anything to draw from.
const WINDOWS_MIN: u64 = 16;
/// Bytes of a window: one chunk or so at least, and no more than is worth a question for a leaf of the map.
const WINDOW_MIN: u64 = CHUNK_AVERAGE as u64;
const WINDOW_MAX: u64 = 1 << 20;

/// How much is read again of what is said to be unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Audit {
    /// Millionths of the unchanged bytes; 0 switches the audit off. Some chunks are drawn however little it is.
    pub share: u32,
    /// Bytes that are read again at most.
    pub bytes_max: u64,
}

impl Default for Audit {
    /// A thousandth, and no more than 1 GiB.
    fn default() -> Self {
        Self { share: 1000, bytes_max: 1 << 30 }
    }
}

impl Audit {
    /// No audit: the list of changes is believed.
    pub const OFF: Self = Self { share: 0, bytes_max: 0 };
    /// Everything that is said to be unchanged is read.
    pub const ALL: Self = Self { share: 1_000_000, bytes_max: u64::MAX };

    /// The windows to look at, in order and within leaves. `gaps` are what a list leaves out, in order and in whole
    /// blocks, `draw` gives random numbers.
    pub fn windows(
        &self,
        gaps: impl Iterator<Item = Range<u64>> + Clone,
        mut draw: impl FnMut() -> u64,
    ) -> Vec<Range<u64>> {
        let unchanged: u64 = gaps.clone().map(|gap| gap.end - gap.start).sum();
        if self.share == 0 || unchanged == 0 {
            return Vec::new();
        }
        let share = u128::from(unchanged) * u128::from(self.share) / MILLION;
        let share = u64::try_from(share).unwrap_or(u64::MAX).min(self.bytes_max);
        let wanted = share.max(WINDOWS_MIN * WINDOW_MIN);
        if wanted >= unchanged {
            return gaps.flat_map(by_leaf).collect();
        }
        let window = (wanted / WINDOWS_MIN).clamp(WINDOW_MIN, WINDOW_MAX) / BLOCK * BLOCK;
        let mut drawn: Vec<u64> = (0..wanted.div_ceil(window)).map(|_| draw() % unchanged).collect();
        drawn.sort_unstable();
        let mut windows: Vec<Range<u64>> = Vec::with_capacity(drawn.len());
        // Unchanged bytes before the gap that is looked at.
        let mut before = 0;
        let mut drawn = drawn.into_iter().peekable();
        for gap in gaps {
            let len = gap.end - gap.start;
            while let Some(at) = drawn.next_if(|at| *at < before + len) {
                let at = (gap.start + at - before) / BLOCK * BLOCK;
                let start = windows.last().map_or(at, |last| at.max(last.end));
                let end = (at + window).min(gap.end).min((at / LEAF_SPAN + 1) * LEAF_SPAN);
                if start < end {
                    windows.push(start..end);
                }
            }
            before += len;
        }
        windows
    }
}

fn by_leaf(gap: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let leaves = gap.start / LEAF_SPAN..gap.end.div_ceil(LEAF_SPAN);
    leaves.map(move |leaf| gap.start.max(leaf * LEAF_SPAN)..gap.end.min((leaf + 1) * LEAF_SPAN))
}
