//! The ids of the chunks that snapshots need, in four bytes each.
//!
//! Of an id, 46 bits are kept: 14 choose a list, 32 stand in it. Two ids that share them make a chunk look needed that
//! is not, one in a million at a hundred million chunks: it is kept, which is harmless. Whatever decides that a chunk
//! need *not* be kept compares whole ids.
//!
//! The set holds a range of lists. When it would outgrow its budget, it gives up the upper half of its range, and
//! whoever fills it comes again for the rest: memory is bounded, and more chunks cost more passes.

use std::ops::Range;

use schema::ChunkId;

/// Lists of a full set.
pub(crate) const LISTS: usize = 1 << 14;
/// Ids that a list makes room for at first.
const ROOM_FIRST: usize = 16;

/// A set of ids; sorted once it is [`LiveIds::seal`]ed.
pub(crate) struct LiveIds {
    range: Range<usize>,
    lists: Vec<Vec<u32>>,
    /// Two bits for each id: how often it was counted, 2 at most.
    counts: Vec<Vec<u8>>,
    room: usize,
    budget: usize,
}

impl LiveIds {
    /// An empty set of the ids from list `from` on, which takes some `budget` bytes.
    pub(crate) fn new(from: usize, budget: u64) -> Self {
        let lists = vec![Vec::new(); LISTS - from];
        let budget = usize::try_from(budget).unwrap_or(usize::MAX);
        Self { range: from..LISTS, lists, counts: Vec::new(), room: 0, budget }
    }

    /// The lists that it holds; the next pass begins at the end.
    pub(crate) fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    fn place(&self, id: &ChunkId) -> Option<(usize, u32)> {
        let mut first = [0; 8];
        first.copy_from_slice(&id.hash()[..8]);
        let first = u64::from_be_bytes(first);
        let list = (first >> 50) as usize;
        self.range.contains(&list).then(|| (list - self.range.start, (first >> 18) as u32))
    }

    /// Adds an id, unless it is outside of the range.
    pub(crate) fn insert(&mut self, id: &ChunkId) {
        let Some((list, value)) = self.place(id) else { return };
        if self.lists[list].len() == self.lists[list].capacity() {
            self.make_room(list);
        }
        // Its half may just have been given up.
        if let Some(list) = self.lists.get_mut(list) {
            list.push(value);
        }
    }

    /// Most insertions are of ids that are there already: room is made by removing those, and only then by growing.
    fn make_room(&mut self, number: usize) {
        let list = &mut self.lists[number];
        list.sort_unstable();
        list.dedup();
        let before = list.capacity();
        if list.len() >= before - before / 8 {
            list.reserve_exact((before / 8).max(ROOM_FIRST));
            self.room += list.capacity() - before;
        }
        // Four bytes for an id, and two bits for its count.
        while self.room * 17 / 4 > self.budget && self.lists.len() > 1 {
            self.lists.truncate(self.lists.len().div_ceil(2));
            self.range.end = self.range.start + self.lists.len();
            self.room = self.lists.iter().map(Vec::capacity).sum();
        }
    }

    /// Ends the insertions.
    pub(crate) fn seal(&mut self) {
        for list in &mut self.lists {
            list.sort_unstable();
            list.dedup();
        }
        self.counts = self.lists.iter().map(|list| vec![0; list.len().div_ceil(4)]).collect();
    }

    /// Whether a chunk may be needed; none when its id is outside of the range.
    pub(crate) fn contains(&self, id: &ChunkId) -> Option<bool> {
        let (list, value) = self.place(id)?;
        Some(self.lists[list].binary_search(&value).is_ok())
    }

    /// Counts a copy of a needed chunk.
    pub(crate) fn count(&mut self, id: &ChunkId) {
        let Some((list, value)) = self.place(id) else { return };
        let Ok(at) = self.lists[list].binary_search(&value) else { return };
        let Some(four) = self.counts.get_mut(list).and_then(|counts| counts.get_mut(at / 4)) else { return };
        let shift = at % 4 * 2;
        if (*four >> shift) & 3 < 2 {
            *four += 1 << shift;
        }
    }

    /// How many copies were counted, 2 at most; what shares the kept bits counts as one.
    pub(crate) fn counted(&self, id: &ChunkId) -> u8 {
        let Some((list, value)) = self.place(id) else { return 0 };
        let Ok(at) = self.lists[list].binary_search(&value) else { return 0 };
        let four = self.counts.get(list).and_then(|counts| counts.get(at / 4));
        four.map_or(0, |four| (four >> (at % 4 * 2)) & 3)
    }
}

/// The first half of an id's hash: tells chunks apart as well as their content was ever told apart.
pub(crate) fn half(id: &ChunkId) -> u128 {
    let mut half = [0; 16];
    half.copy_from_slice(&id.hash()[..16]);
    u128::from_be_bytes(half)
}

#[cfg(test)]
mod tests;
