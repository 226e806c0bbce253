//! Byte ranges of a volume: sorted, disjoint, never touching, and bounded in number.
//!
//! They say what may differ or what may hold data, so that all that is ever done to make them fewer is to widen them.
//! A range costs 16 bytes. Above [`Ranges::MOST`] (64 MiB of memory) the smallest gaps between neighbours are closed:
//! 1 TiB of which 1 % changed in random 4 KiB blocks stays exact, and 16 TiB of the same is read in pieces that are a
//! few times longer than they had to be.

use std::fmt;
use std::ops::Range;

#[cfg(test)]
mod tests;

/// Sorted, disjoint ranges of bytes that do not touch each other.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Ranges {
    ranges: Vec<Range<u64>>,
}

impl Ranges {
    /// The most ranges that are kept apart.
    pub const MOST: usize = 4 << 20;

    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a range, in any order; an empty one adds nothing. Cheap where it comes behind all others.
    pub fn push(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        match self.ranges.last_mut() {
            Some(last) if range.start < last.start => self.insert(range),
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => self.ranges.push(range),
        }
        if self.ranges.len() > Self::MOST {
            self.close_gaps(Self::MOST / 2);
        }
    }

    fn insert(&mut self, range: Range<u64>) {
        let first = self.ranges.partition_point(|other| other.end < range.start);
        let behind = self.ranges.partition_point(|other| other.start <= range.end);
        let touched = &self.ranges[first..behind];
        let start = touched.first().map_or(range.start, |other| other.start.min(range.start));
        let end = touched.last().map_or(range.end, |other| other.end.max(range.end));
        self.ranges.splice(first..behind, std::iter::once(start..end));
    }

    /// Leaves at most `most` of them (and at least one) by closing gaps, those of the smallest magnitude first.
    pub fn close_gaps(&mut self, most: usize) {
        let too_many = self.ranges.len().saturating_sub(most.max(1));
        if too_many == 0 {
            return;
        }
        let magnitude = |before: &Range<u64>, behind: &Range<u64>| (behind.start - before.end).ilog2();
        let mut gaps = [0usize; u64::BITS as usize];
        for pair in self.ranges.windows(2) {
            gaps[magnitude(&pair[0], &pair[1]) as usize] += 1;
        }
        let mut closed = 0;
        let enough = gaps.iter().position(|gaps| {
            closed += gaps;
            closed >= too_many
        });
        let largest = enough.unwrap_or(gaps.len()) as u32;
        self.ranges.dedup_by(|behind, before| {
            let closes = magnitude(before, behind) <= largest;
            if closes {
                before.end = behind.end;
            }
            closes
        });
        self.ranges.shrink_to_fit();
    }

    /// What is in either.
    pub fn union(&self, other: &Self) -> Self {
        let (mut left, mut right) = (self.iter().peekable(), other.iter().peekable());
        let mut all = Self::new();
        loop {
            let next = match (left.peek(), right.peek()) {
                (Some(a), Some(b)) if b.start < a.start => right.next(),
                (Some(_), _) => left.next(),
                (None, _) => right.next(),
            };
            match next {
                Some(range) => all.push(range),
                None => return all,
            }
        }
    }

    /// What lies below `size`.
    pub fn clamp(mut self, size: u64) -> Self {
        self.ranges.truncate(self.ranges.partition_point(|range| range.start < size));
        if let Some(last) = self.ranges.last_mut() {
            last.end = last.end.min(size);
        }
        self
    }

    /// The same, widened to whole multiples of `unit` within a volume of `size` bytes.
    pub fn widen(&self, unit: u64, size: u64) -> Self {
        let unit = unit.max(1);
        let up = |end: u64| end.checked_next_multiple_of(unit).unwrap_or(u64::MAX).min(size);
        self.iter().map(|range| range.start / unit * unit..up(range.end)).collect()
    }

    /// The parts that lie in `range`, in order.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let first = self.ranges.partition_point(|other| other.end <= range.start);
        let overlapping = self.ranges[first..].iter().take_while(move |other| other.start < range.end);
        overlapping.map(move |other| other.start.max(range.start)..other.end.min(range.end))
    }

    /// Whether the byte at `offset` is in one.
    pub fn contains(&self, offset: u64) -> bool {
        self.within(offset..offset.saturating_add(1)).next().is_some()
    }

    /// How many bytes they hold.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Each, in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().cloned()
    }

    /// As a list.
    pub fn into_vec(self) -> Vec<Range<u64>> {
        self.ranges
    }
}

impl FromIterator<Range<u64>> for Ranges {
    fn from_iter<T: IntoIterator<Item = Range<u64>>>(ranges: T) -> Self {
        let mut all = Self::new();
        ranges.into_iter().for_each(|range| all.push(range));
        all
    }
}

impl fmt::Debug for Ranges {
    /// Not each of what may be millions.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.ranges[..self.ranges.len().min(16)];
        write!(f, "{} ranges of {} bytes, beginning with {shown:?}", self.len(), self.bytes())
    }
}
