use proptest::prelude::*;

use super::*;

/// As lvm2 2.03.16 prints it.
pub(crate) const LVS: &[u8] = include_bytes!("lvs.json");
pub(crate) const VGS: &[u8] = include_bytes!("vgs.json");

fn inventory() -> Inventory {
    Inventory { volumes: parse_volumes(LVS).unwrap(), groups: parse_groups(VGS).unwrap() }
}

#[test]
fn a_report_is_read() {
    let inventory = inventory();
    assert_eq!(inventory.volumes.len(), 7, "segments of one volume are one volume");
    let web = inventory.find("vg0", "web").unwrap();
    assert_eq!((web.size, web.kind(), web.stripes), (512 << 20, Some(Kind::Thick), 1));
    assert_eq!(web.tags, ["backup", "web"]);
    assert!(web.attributes.is_open() && web.attributes.is_writable() && web.attributes.is_active());

    let snapshot = inventory.find("vg0", "lvkeep-01ARZ3NDEKTSV4RRFFQ69G5FAV").unwrap();
    assert_eq!(snapshot.origin_uuid.as_ref(), Some(&web.uuid));
    assert_eq!((snapshot.kind(), snapshot.used()), (None, Some(16 << 20)));
    assert!(!snapshot.attributes.is_writable() && !snapshot.attributes.is_invalid());
    assert!(snapshot.is_thick_snapshot());
    assert_eq!(
        snapshot.cow_device(),
        "/dev/mapper/vg0-lvkeep--01ARZ3NDEKTSV4RRFFQ69G5FAV-cow",
        "the device of the exception store"
    );
    assert!(inventory.find("vg0", "old").unwrap().attributes.is_invalid());
    assert_eq!(inventory.thick_snapshots_of(web).count(), 2);

    let thin = inventory.find("vg0", "my-db").unwrap();
    assert_eq!((thin.kind(), thin.thin_id), (Some(Kind::Thin), Some(1)));
    assert_eq!(thin.device(), "/dev/mapper/vg0-my--db");
    let pool = inventory.pool_of(thin).unwrap();
    assert_eq!((pool.name.as_str(), pool.kind(), pool.chunk_size), ("pool", None, 64 << 10));
    assert_eq!(pool.metadata_lv.as_deref(), Some("pool_tmeta"));
    assert!(pool.attributes.zeroes());
    assert!(inventory.find("vg0", "pool_tmeta").is_none(), "hidden");
    assert!(!inventory.find("vg0", "tsnap").unwrap().attributes.is_active());

    let group = inventory.group("vg0").unwrap();
    assert_eq!((group.extent_size, group.free), (4 << 20, 2_541_748_224));
}

#[test]
fn what_is_no_report_is_refused_by_name() {
    for (json, said) in [
        ("", "no JSON report"),
        ("{\"report\":[{\"lv\":[{\"lv_name\":\"a\"}]}]}", "a has no"),
        ("{\"report\":[{\"lv\":{}}]}", "rows of lv"),
    ] {
        let error = parse_volumes(json.as_bytes()).unwrap_err();
        assert!(error.contains(said), "{json}: {error}");
    }
    let text = String::from_utf8(LVS.to_vec()).unwrap();
    let odd = text.replace("\"lv_size\":\"536870912\"", "\"lv_size\":\"512.00m\"");
    let error = parse_volumes(odd.as_bytes()).unwrap_err();
    assert!(error.contains("lv_size of web is \"512.00m\""), "{error}");
    assert_eq!(parse_volumes(b"{\"report\":[]}").unwrap(), []);
}

#[test]
fn states_are_told_by_letter() {
    let state = |letters: &str| Attributes::new(letters);
    assert!(state("Swi-a-s---").is_merging());
    assert!(state("swi-m-s---").is_merging());
    assert!(!state("swi-a-s---").is_merging());
    assert!(!state("").is_active());
    assert_eq!(state("twi-aotzD-").ailment(), Some("its pool is out of data space"));
    assert_eq!(state("twi-aotz--").ailment(), None);
}

#[test]
fn names_of_device_mapper_have_one_meaning() {
    assert_eq!(from_dm_name("vg0-my--db"), Some(("vg0".into(), "my-db".into())));
    assert_eq!(from_dm_name("vg--1-lv--2"), Some(("vg-1".into(), "lv-2".into())));
    for none in ["plain", "", "-", "vg--", "vg0-", "luks-Ü"] {
        assert_eq!(from_dm_name(none), None, "{none}");
    }
}

proptest! {
    #[test]
    fn dm_names_come_back(vg in "[a-z0-9+_.][a-z0-9+_.-]{0,12}", lv in "[a-z0-9+_.][a-z0-9+_.-]{0,12}") {
        // A name that ends in a hyphen beside one that begins with one has no single meaning; LVM allows no
        // name to begin with one.
        prop_assume!(is_name(&vg) && is_name(&lv) );
        prop_assert_eq!(from_dm_name(&dm_name(&vg, &lv)), Some((vg, lv)));
    }

    #[test]
    fn no_bytes_upset_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_volumes(&bytes);
        let _ = parse_groups(&bytes);
    }
}
