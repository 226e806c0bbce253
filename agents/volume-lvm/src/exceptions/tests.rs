use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// A store as the kernel writes it: chunks are given out one after the other, around the metadata.
pub(crate) fn store(chunk: usize, old: &[u64], spare: usize) -> Vec<u8> {
    let per_area = chunk / 16;
    let areas = old.len() / per_area + 1;
    let mut bytes = vec![0; (1 + areas + old.len() + spare) * chunk];
    bytes[..16].copy_from_slice(&header(1, 1, (chunk / 512) as u32));
    let mut new = 1;
    for (index, old) in old.iter().enumerate() {
        new += 1;
        if new % (per_area + 1) == 1 {
            new += 1;
        }
        let at = entry_at(chunk, index);
        bytes[at..at + 8].copy_from_slice(&old.to_le_bytes());
        bytes[at + 8..at + 16].copy_from_slice(&(new as u64).to_le_bytes());
    }
    bytes
}

/// Where an entry stands.
pub(crate) fn entry_at(chunk: usize, index: usize) -> usize {
    let per_area = chunk / 16;
    (1 + index / per_area * (per_area + 1)) * chunk + index % per_area * 16
}

fn header(valid: u32, version: u32, sectors: u32) -> [u8; 16] {
    let fields = [MAGIC, valid, version, sectors].map(u32::to_le_bytes).concat();
    fields.try_into().unwrap()
}

fn read_from(bytes: &[u8], origin: u64) -> Result<Exceptions, ExceptionsError> {
    read(&mut &*bytes, origin)
}

/// The first chunks of a store that a kernel wrote, byte for byte: chunks of 4 KiB, three exceptions.
#[test]
fn a_golden_store_is_read() {
    let mut bytes = vec![0xa5; 5 * 4096];
    bytes[..4096].fill(0);
    bytes[..16].copy_from_slice(b"SnAp\x01\0\0\0\x01\0\0\0\x08\0\0\0");
    bytes[4096..8192].fill(0);
    let entries = b"\x07\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\
                    \x00\x01\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\
                    \x08\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0";
    bytes[4096..4096 + 48].copy_from_slice(entries);
    let found = read_from(&bytes, 1 << 20 | 512).unwrap();
    assert_eq!((found.chunk, found.entries, found.areas), (4096, 3, 1));
    assert_eq!(
        found.changed.into_vec(),
        [7 * 4096..9 * 4096, 1 << 20..1 << 20 | 512],
        "cut at the volume's end"
    );
}

#[test]
fn a_store_without_exceptions_lists_none() {
    let found = read_from(&store(4096, &[], 0), 1 << 30).unwrap();
    assert!(found.changed.is_empty());
    assert_eq!((found.entries, found.areas), (0, 1));
}

/// A full area has another behind it, in which the list ends or goes on.
#[test]
fn no_exception_is_lost_where_areas_meet() {
    for count in [255, 256, 257, 511, 512, 513, 1000] {
        let old: Vec<u64> = (0..count).map(|n| n * 2).collect();
        let found = read_from(&store(4096, &old, 0), 4096 * 2000).unwrap();
        assert_eq!((found.entries, found.areas), (count, count / 256 + 1));
        assert!(old.iter().all(|old| found.changed.contains(old * 4096)), "{count}");
        assert_eq!(found.changed.bytes(), count * 4096);
    }
}

#[test]
fn an_overflowed_store_is_told_apart() {
    let mut bytes = store(4096, &[1, 2, 3], 0);
    bytes[4] = 0;
    assert!(matches!(read_from(&bytes, 1 << 20), Err(ExceptionsError::Overflowed)));
}

#[test]
fn what_stands_behind_the_end_of_the_list_means_nothing() {
    let mut bytes = store(4096, &[5], 0);
    bytes[4096 + 32..4096 + 48].fill(0xff);
    let found = read_from(&bytes, 1 << 20).unwrap();
    assert_eq!(found.changed, std::iter::once(5 * 4096..6 * 4096).collect());
}

#[test]
fn hostile_stores_are_refused_by_name() {
    let good = store(4096, &[10, 20, 30], 0);
    let origin = 4096 * 100;
    let with = |at: usize, new: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        read_from(&bytes, origin).map(|found| found.entries).unwrap_err().to_string()
    };
    let number = |at: usize, number: u64| with(at, &number.to_le_bytes());
    let (old, new) = (entry_at(4096, 1), entry_at(4096, 1) + 8);
    let all_full: Vec<u64> = (0..256).collect();
    let endless = store(4096, &all_full, 0);
    let refused = [
        (with(0, b"SnAP"), "begins with 0x50416e53"),
        (with(0, &[0; 4]), "begins with 0x00000000"),
        (with(4, &[2]), "neither"),
        (with(8, &[2]), "version 2"),
        (with(8, &[0]), "version 0"),
        (with(12, &[4]), "4 sectors"),
        (with(12, &[12]), "12 sectors"),
        (with(12, &[0, 8]), "2048 sectors"),
        (with(12, &[0; 4]), "0 sectors"),
        (with(12, &[0xff; 4]), "4294967295 sectors"),
        (number(old, 100), "chunk 100 of the origin, which has 100"),
        (number(old, u64::MAX), "of the origin, which has 100"),
        (number(old, 10), "two entries are about chunk 10"),
        (number(new, 5), "chunk 5 of the store, which has 5"),
        (number(new, u64::MAX), "of the store, which has 5"),
        (number(new, 1), "chunk 1 of the store, which holds metadata"),
        (number(new, 2), "two entries point to chunk 2"),
        (read_from(&good[..4095], origin).unwrap_err().to_string(), "4095 bytes"),
        (read_from(&good[..4096], origin).unwrap_err().to_string(), "area 0 would lie behind"),
        (read_from(&endless[..258 * 4096], origin * 9).unwrap_err().to_string(), "area 1 would lie behind"),
    ];
    for (said, expected) in refused {
        assert!(said.contains(expected), "{said} instead of {expected}");
    }
}

/// An area that lies inside of the data of another one's is met by the stride.
#[test]
fn the_second_areas_chunk_is_no_place_for_data() {
    let old: Vec<u64> = (0..300).collect();
    let mut bytes = store(4096, &old, 0);
    let at = entry_at(4096, 3) + 8;
    bytes[at..at + 8].copy_from_slice(&258u64.to_le_bytes());
    let said = read_from(&bytes, 1 << 30).unwrap_err();
    assert!(matches!(said, ExceptionsError::NewInMetadata { new: 258 }), "{said}");
}

#[test]
fn a_store_that_cannot_be_read_says_where() {
    struct Broken;
    impl ReadAt for Broken {
        fn size(&self) -> u64 {
            1 << 20
        }
        fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
            buffer[..16].copy_from_slice(&header(1, 1, 8));
            if offset == 0 { Ok(()) } else { Err(io::Error::other("bad sector")) }
        }
    }
    let said = read(&mut Broken, 1 << 20).unwrap_err().to_string();
    assert_eq!(said, "cannot read it at offset 4096: bad sector");
}

/// A device of 32 TiB in chunks of 4 KiB, and an origin as large: marks are shared, and nothing is missing.
#[test]
fn huge_volumes_take_bounded_memory() {
    struct Huge;
    impl ReadAt for Huge {
        fn size(&self) -> u64 {
            32 << 40
        }
        fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
            buffer.fill(0);
            if offset == 0 {
                buffer[..16].copy_from_slice(&header(1, 1, 8));
            } else {
                for (n, entry) in buffer.chunks_exact_mut(16).take(100).enumerate() {
                    entry[..8].copy_from_slice(&(n as u64 * 80_000_000).to_le_bytes());
                    entry[8..].copy_from_slice(&(n as u64 + 2).to_le_bytes());
                }
            }
            Ok(())
        }
    }
    let found = read(&mut Huge, 32 << 40).unwrap();
    assert_eq!(found.entries, 100);
    assert!((0..100).all(|n| found.changed.contains(n * 80_000_000 * 4096)));
    assert!(found.changed.bytes() <= 100 * 32 * 4096, "{:?}", found.changed);
    assert!(Marks::new(u64::MAX).words.len() as u64 * 64 <= MARKS_MAX + 64);
}

proptest! {
    /// Any set of chunks in any order, any chunk size, comes back.
    #[test]
    fn what_a_kernel_wrote_comes_back(
        sectors in select(vec![8usize, 16, 64, 128, 1024]),
        old in vec(0u64..5000, 0..700),
        cut in 0u64..4096,
        spare in 0usize..3,
    ) {
        let chunk = sectors * 512;
        let mut seen = BTreeSet::new();
        let old: Vec<u64> = old.into_iter().filter(|old| seen.insert(*old)).collect();
        let origin = 5000 * chunk as u64 - cut;
        let found = read_from(&store(chunk, &old, spare), origin).unwrap();
        let expected: Ranges =
            seen.iter().map(|old| old * chunk as u64..((old + 1) * chunk as u64).min(origin)).collect();
        prop_assert_eq!(found.changed, expected);
        prop_assert_eq!(found.entries, seen.len() as u64);
    }

    /// Whatever single entry is changed: the list is refused, or it still holds every other chunk.
    #[test]
    fn a_damaged_entry_hides_no_other(count in 1u64..400, index: prop::sample::Index, old: u64, new in 1u64..500) {
        let mut bytes = store(4096, &(0..count).map(|n| n * 3).collect::<Vec<_>>(), 3);
        let damaged = index.index(count as usize);
        let at = entry_at(4096, damaged);
        bytes[at..at + 8].copy_from_slice(&old.to_le_bytes());
        bytes[at + 8..at + 16].copy_from_slice(&new.to_le_bytes());
        if let Ok(found) = read_from(&bytes, 4096 * 2000) {
            let others = (0..count).filter(|n| *n != damaged as u64);
            prop_assert!(others.into_iter().all(|n| found.changed.contains(n * 3 * 4096)));
        }
    }

    #[test]
    fn marks_are_those_of_a_set(chunks in vec(0u64..2000, 0..300)) {
        let mut marks = Marks::new(2000);
        let mut seen = BTreeMap::new();
        for chunk in chunks {
            prop_assert_eq!(marks.mark(chunk), seen.insert(chunk, ()).is_some());
        }
        prop_assert!(marks.runs().flatten().eq(seen.into_keys()));
    }
}
