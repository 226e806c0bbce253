//! Which packs' content is yet to be read, while collections take packs away and write others. Pure.

use std::collections::VecDeque;

use schema::PackId;

/// Packs with their sizes, in the order in which they are read.
pub(super) struct Unread {
    chosen: VecDeque<(PackId, u64)>,
    /// What was stored since the listing, and may hold what stood in packs that are gone. It goes before all others: nobody
    /// who goes on behind those would look at it.
    moved: VecDeque<(PackId, u64)>,
    /// The last one of the chosen that was taken.
    after: Option<PackId>,
    /// Bytes of all.
    bytes: u64,
}

impl Unread {
    pub(super) fn new(chosen: Vec<(PackId, u64)>) -> Self {
        let bytes = sum(&chosen);
        Self { chosen: chosen.into(), moved: VecDeque::new(), after: None, bytes }
    }

    pub(super) fn next(&mut self) -> Option<(PackId, u64)> {
        let next = self.moved.pop_front().or_else(|| {
            let next = self.chosen.pop_front()?;
            self.after = Some(next.0);
            Some(next)
        })?;
        self.bytes = self.bytes.saturating_sub(next.1);
        Some(next)
    }

    /// The pack that was taken last was gone. Of these two listings, in order, the second one shows what is there instead,
    /// and what else is gone. How many packs are gone unread, and how many came.
    pub(super) fn is_gone(&mut self, before: &[(PackId, u64)], now: &[(PackId, u64)]) -> (u64, u64) {
        let count = self.moved.len() + self.chosen.len();
        self.moved.retain(|(pack, _)| lists(now, pack));
        self.chosen.retain(|(pack, _)| lists(now, pack));
        let left = self.moved.len() + self.chosen.len();
        self.moved.extend(now.iter().filter(|(pack, _)| !lists(before, pack)));
        self.bytes = sum(self.moved.iter().chain(&self.chosen));
        let came = self.moved.len() + self.chosen.len() - left;
        ((count - left) as u64 + 1, came as u64)
    }

    /// Whether something is to be read before anybody may go on behind [`Self::after`].
    pub(super) fn has_moved(&self) -> bool {
        !self.moved.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.moved.is_empty() && self.chosen.is_empty()
    }

    /// The last one of the chosen that was taken.
    pub(super) fn after(&self) -> Option<PackId> {
        self.after
    }

    /// Bytes that are left.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

fn lists(listed: &[(PackId, u64)], pack: &PackId) -> bool {
    listed.binary_search_by_key(pack, |(pack, _)| *pack).is_ok()
}

fn sum<'a>(packs: impl IntoIterator<Item = &'a (PackId, u64)>) -> u64 {
    packs.into_iter().map(|(_, size)| size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packs<const N: usize>(numbers: [u8; N]) -> Vec<(PackId, u64)> {
        numbers.map(|number| (PackId::from_bytes([number; 16]), u64::from(number))).into()
    }

    fn next(unread: &mut Unread) -> Option<u8> {
        unread.next().map(|(pack, _)| pack.as_bytes()[0])
    }

    /// Once, and before anybody may go on behind what is gone; what was gone unread is not waited for.
    #[test]
    fn what_came_for_a_pack_that_is_gone_is_read_before_the_others() {
        let mut unread = Unread::new(packs([5, 6, 7, 8]));
        assert_eq!((next(&mut unread), next(&mut unread), unread.bytes()), (Some(5), Some(6), 15));
        let (before, now) = (packs([3, 5, 6, 7, 8]), packs([1, 3, 4, 8, 9]));
        assert_eq!(unread.is_gone(&before, &now), (2, 3));
        assert_eq!((unread.after(), unread.bytes()), (Some(packs([6])[0].0), 1 + 4 + 8 + 9));
        assert!(unread.has_moved());
        assert_eq!(next(&mut unread), Some(1));
        // What came is gone again.
        assert_eq!(unread.is_gone(&now, &packs([2, 3, 8, 9])), (2, 1));
        assert_eq!((next(&mut unread), unread.has_moved(), next(&mut unread)), (Some(9), true, Some(2)));
        assert_eq!((unread.has_moved(), unread.after()), (false, Some(packs([6])[0].0)));
        assert_eq!((next(&mut unread), next(&mut unread), unread.bytes()), (Some(8), None, 0));
        assert!(unread.is_empty());
    }
}
