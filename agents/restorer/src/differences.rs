//! Where a target differs from a snapshot.

use std::ops::{AddAssign, Range};

/// Ranges that differ, and are told.
const TOLD_MAX: usize = 100;

/// Where a target differs from a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Differences {
    /// Bytes in chunks, and in runs of up to 256 KiB that should be zero, that differ somewhere.
    pub bytes: u64,
    /// The first ranges of them in which something differs, in order, neighbours joined; 100 at most.
    pub first: Vec<Range<u64>>,
    /// From here on, ranges are left out of the first.
    cut: Option<u64>,
}

impl Differences {
    /// One more range that differs, which was not told of yet.
    pub(crate) fn add(&mut self, range: Range<u64>) {
        self.bytes += range.end - range.start;
        self.enter(range);
    }

    fn enter(&mut self, range: Range<u64>) {
        if self.cut.is_some_and(|cut| range.start >= cut) {
            return;
        }
        let at = self.first.partition_point(|known| known.start < range.start);
        self.first.insert(at, range);
        self.first.dedup_by(|next, known| {
            let joined = known.end == next.start;
            if joined {
                known.end = next.end;
            }
            joined
        });
        if self.first.len() > TOLD_MAX {
            self.cut_at(self.first[TOLD_MAX].start);
        }
    }

    fn cut_at(&mut self, cut: u64) {
        self.first.retain(|range| range.start < cut);
        self.cut = Some(cut);
    }
}

impl AddAssign for Differences {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        other.first.into_iter().for_each(|range| self.enter(range));
        if let Some(cut) = other.cut
            && self.cut.is_none_or(|own| cut < own)
        {
            self.cut_at(cut);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_joined_in_any_order() {
        let mut found = Differences::default();
        for range in [10..20, 40..50, 20..30, 0..10] {
            found.add(range);
        }
        assert_eq!(found, Differences { bytes: 40, first: vec![0..30, 40..50], cut: None });
    }

    /// Whatever comes last may join those that came before: what is told then is short, and never has a gap.
    #[test]
    fn what_is_told_is_the_beginning_of_what_differs_in_any_order() {
        let all: Vec<Range<u64>> =
            (0..400).map(|n| 10 * n..10 * n + 10).filter(|r| r.start % 30 != 0).collect();
        let joined: Vec<Range<u64>> = (0..133).map(|n| 30 * n + 10..30 * n + 30).collect();
        let backwards = all.iter().rev().cloned().collect();
        let odd_first = all.iter().step_by(2).chain(all.iter().skip(1).step_by(2)).cloned().collect();
        for order in [all.clone(), backwards, odd_first] {
            let mut at_once = Differences::default();
            let mut halves = [Differences::default(), Differences::default()];
            for (n, range) in order.into_iter().enumerate() {
                at_once.add(range.clone());
                halves[n % 2].add(range);
            }
            let [mut merged, other] = halves;
            merged += other;
            for found in [at_once, merged] {
                assert_eq!(found.bytes, 10 * all.len() as u64);
                assert!((40..=TOLD_MAX).contains(&found.first.len()), "{}", found.first.len());
                let (last, before) = found.first.split_last().unwrap();
                assert_eq!(*before, joined[..before.len()]);
                assert_eq!(last.start, joined[before.len()].start);
            }
        }
    }
}
