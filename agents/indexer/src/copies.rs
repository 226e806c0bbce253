//! Copies of one chunk as the cache keeps them: 24 bytes each, in order of pack and offset, the newest pack last.
//!
//! ```text
//! 0  pack id 16   16  offset u32   20  length u32      (little-endian)
//! ```
//!
//! At most [`COPIES_MAX`] are kept, the oldest and the newest: forced double copies must not let a value grow without end,
//! and of several copies the collector keeps the oldest.

use schema::PackId;
use schema::messages::Copy;

/// Bytes of one copy.
const COPY_LEN: usize = 24;
/// Copies kept of one chunk.
pub(crate) const COPIES_MAX: usize = 64;

/// Reads a value; none when its length is impossible.
pub(crate) fn decode(value: &[u8]) -> Option<impl DoubleEndedIterator<Item = Copy>> {
    let (copies, rest) = value.as_chunks::<COPY_LEN>();
    rest.is_empty().then(|| copies.iter().map(one))
}

fn one(bytes: &[u8; COPY_LEN]) -> Copy {
    let [.., o0, o1, o2, o3, l0, l1, l2, l3] = *bytes;
    let mut pack = [0; 16];
    pack.copy_from_slice(&bytes[..16]);
    Copy {
        pack: PackId::from_bytes(pack),
        offset: u32::from_le_bytes([o0, o1, o2, o3]),
        len: u32::from_le_bytes([l0, l1, l2, l3]),
    }
}

/// The value that holds these copies, in any order and with repetitions.
pub(crate) fn encode(mut copies: Vec<Copy>) -> Vec<u8> {
    copies.sort_unstable();
    copies.dedup();
    let kept = oldest_and_newest(copies, COPIES_MAX);
    let mut out = Vec::with_capacity(kept.len() * COPY_LEN);
    for copy in kept {
        out.extend_from_slice(copy.pack.as_bytes());
        out.extend_from_slice(&copy.offset.to_le_bytes());
        out.extend_from_slice(&copy.len.to_le_bytes());
    }
    out
}

/// Of copies in order, oldest first, so many: the oldest, which the collector keeps, and the newest.
pub(crate) fn oldest_and_newest(mut copies: Vec<Copy>, max: usize) -> Vec<Copy> {
    if copies.len() > max {
        copies.drain(1..copies.len() + 1 - max);
    }
    copies
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(pack: u8, offset: u32) -> Copy {
        Copy { pack: PackId::from_bytes([pack; 16]), offset, len: offset + 7 }
    }

    fn round_trip(copies: &[Copy]) -> Vec<Copy> {
        decode(&encode(copies.to_vec())).expect("a whole value").collect()
    }

    #[test]
    fn copies_come_back_in_order_and_once() {
        let copies = [copy(3, 48), copy(1, 900), copy(3, 48), copy(1, u32::MAX - 7)];
        assert_eq!(round_trip(&copies), [copy(1, 900), copy(1, u32::MAX - 7), copy(3, 48)]);
        assert_eq!(round_trip(&[]), []);
    }

    #[test]
    fn the_oldest_and_the_newest_copies_are_kept() {
        let many: Vec<Copy> = (0..COPIES_MAX as u8 + 3).rev().map(|pack| copy(pack, 48)).collect();
        let kept = round_trip(&many);
        assert_eq!(kept.len(), COPIES_MAX);
        assert_eq!(kept[..2], [copy(0, 48), copy(4, 48)]);
        let again = round_trip(&[&kept[..], &[copy(200, 48)]].concat());
        assert_eq!((again[0], again[1], again.len()), (copy(0, 48), copy(5, 48), COPIES_MAX));
    }

    #[test]
    fn a_cut_off_value_is_noticed() {
        let value = encode(vec![copy(1, 1), copy(2, 2)]);
        assert!(decode(&value[..47]).is_none());
    }
}
