use proptest::prelude::*;

use super::*;
use crate::testing::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn with(store: StoreSize) -> Limits {
    Limits { store, ..Limits::default() }
}

#[test]
fn a_store_is_sized_by_what_changed() {
    let origin = linear("vg0", "web");
    let size = |free, last, store| store_size(&origin, &group("vg0", free), 65536, last, &with(store));
    let auto = StoreSize::Auto;
    // A tenth where nothing is known; twice the last one; never tiny; never more than everything.
    assert_eq!(size(50 * GIB, None, auto), Ok(104 * MIB));
    assert_eq!(size(50 * GIB, Some(100 * MIB), auto), Ok(200 * MIB));
    assert_eq!(size(50 * GIB, Some(0), auto), Ok(32 * MIB));
    assert_eq!(size(50 * GIB, Some(GIB), auto), Ok(1028 * MIB));
    assert_eq!(size(50 * GIB, None, StoreSize::Bytes(200 * GIB)), Ok(1028 * MIB));
    assert_eq!(size(50 * GIB, Some(GIB), StoreSize::Percent(20.0)), Ok(208 * MIB));
    // Less than wanted, but enough by what is known: no more than that, or than half of what is free.
    assert_eq!(size(130 * MIB, Some(100 * MIB), auto), Ok(120 * MIB));
    assert_eq!(size(300 * MIB, Some(100 * MIB), auto), Ok(148 * MIB));
}

#[test]
fn too_little_room_is_refused_with_figures() {
    let origin = linear("vg0", "web");
    let error = store_size(&origin, &group("vg0", 100 * MIB), 65536, Some(100 * MIB), &Limits::default())
        .unwrap_err();
    let text = error.to_string();
    for part in ["vg0 has 100.0 MiB free", "vg0/web needs 120.0 MiB", "since the last run"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(store_size(&origin, &group("vg0", 0), 65536, None, &Limits::default()).is_err());
    let fixed =
        store_size(&origin, &group("vg0", 100 * MIB), 65536, None, &with(StoreSize::Bytes(104 * MIB)));
    assert!(fixed.is_err(), "what was set is not less");
}

#[test]
fn a_full_pool_is_refused_with_figures() {
    let room = |data, metadata, letters: &str| {
        let pool = LogicalVolume {
            data_percent: Some(data),
            metadata_percent: Some(metadata),
            attributes: crate::report::Attributes::new(letters),
            ..pool("vg0", "pool")
        };
        pool_has_room(&pool, &Limits::default()).map_err(|why| why.to_string())
    };
    assert_eq!(room(79.9, 79.9, "twi-aotz--"), Ok(()));
    assert!(room(80.0, 0.0, "twi-aotz--").unwrap_err().contains("data of thin pool vg0/pool is 80.0 % full"));
    assert!(room(1.0, 91.26, "twi-aotz--").unwrap_err().contains("metadata_watermark"));
    assert!(room(1.0, 1.0, "twi-aotzD-").unwrap_err().contains("out of data space"));
}

#[test]
fn a_store_that_fills_is_extended_or_given_up() {
    let act = |full, free, extend| {
        let snapshot = LogicalVolume { data_percent: Some(full), ..thick_snapshot("vg0", "s", "web") };
        watch_store(&snapshot, 10 * GIB, &group("vg0", free), &Limits { extend, ..Limits::default() })
    };
    assert_eq!(act(79.0, GIB, true), None);
    assert_eq!(act(80.0, GIB, true), Some(Act::Extend(20 * MIB)));
    assert_eq!(act(80.0, 9 * MIB, true), Some(Act::Extend(8 * MIB)), "what there is");
    assert_eq!(act(94.9, GIB, false), None);
    assert!(matches!(act(95.0, GIB, false), Some(Act::GiveUp(why)) if why.contains("95.0 % full")));
    assert!(matches!(act(96.0, MIB, true), Some(Act::GiveUp(_))), "less than an extent is nothing");

    let invalid = LogicalVolume {
        attributes: crate::report::Attributes::new("sri-I-s---"),
        ..thick_snapshot("vg0", "s", "web")
    };
    let act = watch_store(&invalid, GIB, &group("vg0", GIB), &Limits::default());
    assert!(matches!(act, Some(Act::GiveUp(why)) if why.contains("overflowed")));
}

#[test]
fn a_store_that_holds_everything_is_left_in_peace() {
    let whole = round_up(store_for_everything(GIB, 65536), 4 * MIB);
    let snapshot =
        LogicalVolume { data_percent: Some(99.0), size: whole, ..thick_snapshot("vg0", "s", "web") };
    assert_eq!(watch_store(&snapshot, GIB, &group("vg0", 50 * GIB), &Limits::default()), None);
}

#[test]
fn a_pool_that_fills_is_extended_or_given_up() {
    let acts = |data, metadata, free| {
        let pool = LogicalVolume {
            data_percent: Some(data),
            metadata_percent: Some(metadata),
            ..pool("vg0", "pool")
        };
        watch_pool(&pool, 16 * MIB, &group("vg0", free), &Limits::default())
    };
    assert_eq!(acts(79.0, 79.0, GIB), []);
    assert_eq!(acts(85.0, 85.0, 50 * GIB), [Act::Extend(2 * GIB), Act::ExtendMetadata(4 * MIB)]);
    assert_eq!(acts(85.0, 10.0, 0), []);
    let given_up = acts(96.0, 10.0, 0);
    assert!(matches!(&given_up[..], [Act::GiveUp(why)] if why.contains("data of thin pool vg0/pool")));
}

proptest! {
    #[test]
    fn a_store_is_whole_extents_that_are_there(
        origin in 1u64..(8 << 40), free in 0u64..(8 << 40), last in proptest::option::of(0u64..(8 << 40)),
        chunk in prop_oneof![Just(4096u64), Just(65536), Just(524288)],
    ) {
        let volume = LogicalVolume { size: origin, ..linear("vg0", "web") };
        let group = group("vg0", free);
        if let Ok(size) = store_size(&volume, &group, chunk, last, &Limits::default()) {
            prop_assert!(size > 0 && size <= free && size % group.extent_size == 0);
            prop_assert!(size <= store_for_everything(origin, chunk) + group.extent_size);
        }
    }

    #[test]
    fn a_store_for_everything_holds_everything(chunks in 0u64..100_000, chunk in prop_oneof![Just(4096u64), Just(65536)]) {
        let origin = chunks * chunk;
        let per_area = chunk / 16;
        // The header, and an area before every so many chunks; the last area must have an empty entry at its end.
        let needed = (1 + chunks + (chunks / per_area + 1)) * chunk;
        prop_assert!(store_for_everything(origin, chunk) >= needed);
    }
}
