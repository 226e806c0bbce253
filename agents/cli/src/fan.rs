//! Which volume is restored next, and from which target it takes what it can.
//!
//! Volumes of one host that are restored from the same snapshot wait for the first of them, and then take from it, so
//! that each chunk is fetched once. When the first one fails, the next is the first.

use std::collections::{BTreeMap, VecDeque};

use schema::names::Slot;

/// The volumes of one host, in their order.
#[derive(Debug)]
pub struct Line {
    waiting: VecDeque<(usize, Slot)>,
    /// Of each snapshot of several volumes.
    shared: BTreeMap<Slot, First>,
}

/// The first target of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    /// None was begun.
    Missing,
    /// One is being restored.
    Begun,
    /// One is there.
    There(usize),
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Restore this one.
    Begin {
        /// Which one.
        number: usize,
        /// Which one it takes from.
        donor: Option<usize>,
    },
    /// Wait until another one has ended.
    Wait,
    /// Nothing is left.
    Nothing,
}

impl Line {
    /// Volumes by their numbers, with their snapshots.
    pub fn new(volumes: impl IntoIterator<Item = (usize, Slot)>) -> Self {
        let waiting: VecDeque<_> = volumes.into_iter().collect();
        let mut counts: BTreeMap<Slot, usize> = BTreeMap::new();
        waiting.iter().for_each(|(_, slot)| *counts.entry(*slot).or_default() += 1);
        let shared = counts.into_iter().filter(|(_, count)| *count > 1);
        Self { waiting, shared: shared.map(|(slot, _)| (slot, First::Missing)).collect() }
    }

    /// Volumes that were not begun.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// What to do next.
    pub fn next(&mut self) -> Next {
        let may_begin = |(_, slot): &(usize, Slot)| self.shared.get(slot) != Some(&First::Begun);
        let Some(at) = self.waiting.iter().position(may_begin) else {
            return if self.waiting.is_empty() { Next::Nothing } else { Next::Wait };
        };
        let Some((number, slot)) = self.waiting.remove(at) else { return Next::Nothing };
        let donor = match self.shared.get_mut(&slot) {
            Some(First::There(donor)) => Some(*donor),
            Some(first) => {
                *first = First::Begun;
                None
            }
            None => None,
        };
        Next::Begin { number, donor }
    }

    /// A volume that was begun has ended.
    pub fn ended(&mut self, number: usize, slot: Slot, restored: bool) {
        if let Some(first) = self.shared.get_mut(&slot).filter(|first| **first == First::Begun) {
            *first = if restored { First::There(number) } else { First::Missing };
        }
    }
}

#[cfg(test)]
mod tests {
    use schema::{SessionId, VolumeKey};

    use super::*;

    fn slot(number: u8) -> Slot {
        Slot { volume: VolumeKey::from_bytes([1; 16]), session: SessionId::from_bytes([number; 16]) }
    }

    fn begin(number: usize, donor: Option<usize>) -> Next {
        Next::Begin { number, donor }
    }

    #[test]
    fn those_of_one_snapshot_wait_for_the_first_and_take_from_it() {
        let mut line = Line::new([(0, slot(1)), (1, slot(1)), (2, slot(2)), (3, slot(1))]);
        assert_eq!(line.next(), begin(0, None));
        assert_eq!(line.next(), begin(2, None), "another snapshot's goes first");
        assert_eq!(line.next(), Next::Wait);
        line.ended(2, slot(2), true);
        assert_eq!(line.next(), Next::Wait);
        line.ended(0, slot(1), true);
        assert_eq!(line.next(), begin(1, Some(0)));
        assert_eq!(line.next(), begin(3, Some(0)));
        assert_eq!((line.next(), line.len()), (Next::Nothing, 0));
    }

    #[test]
    fn when_the_first_fails_the_next_is_the_first() {
        let mut line = Line::new([(4, slot(1)), (5, slot(1)), (6, slot(1))]);
        assert_eq!(line.next(), begin(4, None));
        line.ended(4, slot(1), false);
        assert_eq!(line.next(), begin(5, None));
        assert_eq!(line.next(), Next::Wait);
        line.ended(5, slot(1), true);
        assert_eq!(line.next(), begin(6, Some(5)));
        line.ended(6, slot(1), false);
        assert_eq!(line.next(), Next::Nothing);
    }
}
