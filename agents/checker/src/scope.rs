//! Which packs' content is read. Pure.

use schema::PackId;

/// What of the content is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Nothing: the structure alone.
    None,
    /// Everything, from the pack behind this one on.
    All {
        /// Where another check has stopped.
        after: Option<PackId>,
    },
    /// Packs in order, from the one behind `after` on, and from the first one after the last, until this share of the
    /// bytes was read.
    Percent {
        /// Of a hundred.
        percent: u8,
        /// Where another check has stopped.
        after: Option<PackId>,
    },
    /// A fixed share of the packs.
    Share(Share),
}

/// One of so many shares; each pack is in one of them for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Which, counted from 1.
    pub number: u64,
    /// Of how many.
    pub of: u64,
}

impl Share {
    fn has(&self, pack: &PackId) -> bool {
        // The end of a pack's id is random.
        let [.., a, b, c, d, e, f, g, h] = *pack.as_bytes();
        u64::from_be_bytes([a, b, c, d, e, f, g, h]) % self.of.max(1) + 1 == self.number
    }
}

/// Where an attempt at a check has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped {
    /// The last pack that it read.
    pub behind: PackId,
    /// Bytes that it read.
    pub done: u64,
}

impl Content {
    /// Of these packs with their sizes, in order, those that are still to be read, in the order in which they are.
    pub(crate) fn of(&self, packs: &[(PackId, u64)], stopped: Option<Stopped>) -> Vec<(PackId, u64)> {
        let after = match *self {
            Self::All { after } | Self::Percent { after, .. } => after,
            Self::None | Self::Share(_) => None,
        };
        // What is not behind `after` comes last.
        let place = |pack: PackId| (Some(pack) <= after, pack);
        let (before, next) = packs.split_at(packs.partition_point(|(pack, _)| place(*pack).0));
        let mut chosen: Vec<(PackId, u64)> = match self {
            Self::None => Vec::new(),
            Self::All { .. } => next.to_vec(),
            Self::Share(share) => packs.iter().filter(|(pack, _)| share.has(pack)).copied().collect(),
            Self::Percent { .. } => next.iter().chain(before).copied().collect(),
        };
        let is_read = |pack: PackId| stopped.is_some_and(|stopped| place(pack) <= place(stopped.behind));
        chosen.drain(..chosen.partition_point(|(pack, _)| is_read(*pack)));
        if let Self::Percent { percent, .. } = *self {
            let total: u128 = packs.iter().map(|(_, size)| u128::from(*size)).sum();
            let wanted = total * u128::from(percent.min(100)) / 100;
            let mut read = stopped.map_or(0, |stopped| u128::from(stopped.done));
            let fits = |(_, size): &&(PackId, u64)| {
                let goes_on = read < wanted;
                read += u128::from(*size);
                goes_on
            };
            let count = chosen.iter().take_while(fits).count();
            chosen.truncate(count);
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(number: u8) -> PackId {
        PackId::from_bytes([number; 16])
    }

    fn read(content: Content) -> Vec<u8> {
        left(content, None)
    }

    fn left(content: Content, stopped: Option<Stopped>) -> Vec<u8> {
        let packs: Vec<_> = (1..=10).map(|number| (pack(number), 100)).collect();
        content.of(&packs, stopped).into_iter().map(|(pack, _)| pack.as_bytes()[0]).collect()
    }

    /// Wherever an attempt stops, the next one reads the rest and nothing twice.
    #[test]
    fn an_attempt_goes_on_behind_another() {
        let shares = (1..=3).map(|number| Content::Share(Share { number, of: 3 }));
        let afters = [None, Some(pack(3)), Some(pack(10))];
        let rolling = afters.into_iter().flat_map(|after| {
            [
                Content::All { after },
                Content::Percent { percent: 60, after },
                Content::Percent { percent: 100, after },
            ]
        });
        for content in shares.chain(rolling).chain([Content::None]) {
            let all = read(content);
            for (number, last) in all.iter().enumerate() {
                let stopped = Stopped { behind: pack(*last), done: (number as u64 + 1) * 100 };
                assert_eq!(left(content, Some(stopped)), all[number + 1..], "{content:?} behind {last}");
            }
        }
    }

    #[test]
    fn everything_goes_on_where_it_stopped() {
        assert_eq!(read(Content::None), [0; 0]);
        assert_eq!(read(Content::All { after: None }), (1..=10).collect::<Vec<_>>());
        assert_eq!(read(Content::All { after: Some(pack(8)) }), [9, 10]);
        assert_eq!(read(Content::All { after: Some(pack(10)) }), [0; 0]);
    }

    #[test]
    fn per_cents_go_round() {
        assert_eq!(read(Content::Percent { percent: 30, after: None }), [1, 2, 3]);
        assert_eq!(read(Content::Percent { percent: 25, after: Some(pack(8)) }), [9, 10, 1]);
        assert_eq!(read(Content::Percent { percent: 100, after: Some(pack(9)) }).len(), 10);
        assert_eq!(read(Content::Percent { percent: 0, after: None }), [0; 0]);
        assert_eq!(read(Content::Percent { percent: 1, after: Some(pack(10)) }), [1]);
    }

    #[test]
    fn each_pack_is_in_one_share() {
        let mut all: Vec<u8> =
            (1..=3).flat_map(|number| read(Content::Share(Share { number, of: 3 }))).collect();
        all.sort_unstable();
        assert_eq!(all, (1..=10).collect::<Vec<_>>());
        assert_eq!(read(Content::Share(Share { number: 1, of: 1 })).len(), 10);
    }
}
