use super::*;

#[test]
fn names_are_those_of_lvm() {
    assert_eq!(DmName::of("VG", "snap").as_str(), "VG-snap");
    assert_eq!(DmName::of("my-vg", "a-b_c.d").layer("cow").as_str(), "my--vg-a--b_c.d-cow");
    assert_eq!(DmName::of("vg0", "pool").layer("tpool").path(), Path::new("/dev/mapper/vg0-pool-tpool"));
}

#[test]
fn snapshots_are_read() {
    let table = SnapshotTable::parse("0 1048576 snapshot 253:1 253:2 P 8\n").unwrap();
    assert_eq!(table, SnapshotTable { size: 512 << 20, persistent: true, chunk: 4096 });
    let table = SnapshotTable::parse("0 1048576 snapshot 253:1 253:2 PO 1024 1 discard_zeroes_cow").unwrap();
    assert_eq!(table, SnapshotTable { size: 512 << 20, persistent: true, chunk: 512 << 10 });
    assert!(!SnapshotTable::parse("0 1048576 snapshot 253:1 253:2 N 8").unwrap().persistent);

    let status = SnapshotStatus::parse("0 1048576 snapshot 2064/262144 16\n").unwrap();
    let store = Usage { used: 2064, total: 262_144 };
    assert_eq!(status, SnapshotStatus::Valid { store, metadata: 16 });
    for lost in ["Invalid", "Overflow"] {
        let status = SnapshotStatus::parse(&format!("0 1048576 snapshot {lost}"));
        assert_eq!(status, Ok(SnapshotStatus::Invalid));
    }
    let status = SnapshotStatus::parse("0 1048576 snapshot Merge failed");
    assert_eq!(status, Ok(SnapshotStatus::MergeFailed));
}

#[test]
fn thin_volumes_and_pools_are_read() {
    let thin = ThinTable::parse("0 4194304 thin 253:4 7").unwrap();
    assert_eq!(thin, ThinTable { size: 2 << 30, id: 7, external_origin: None });
    let thin = ThinTable::parse("0 4194304 thin 253:4 16777215 253:9").unwrap();
    assert_eq!(thin, ThinTable { size: 2 << 30, id: 16_777_215, external_origin: Some("253:9".into()) });

    let pool = "0 2097152 thin-pool 3 20/4096 115/16384 - rw no_discard_passdown queue_if_no_space - 1024 ";
    let status = PoolStatus::parse(pool).unwrap();
    assert_eq!((status.transaction, status.held, status.needs_check), (3, None, false));
    assert_eq!(status.metadata, Usage { used: 20, total: 4096 });
    assert_eq!(status.data, Usage { used: 115, total: 16_384 });
    assert_eq!(status.mode, PoolMode::ReadWrite);
    let held = PoolStatus::parse(&pool.replace(" - rw", " 21 out_of_data_space")).unwrap();
    assert_eq!((held.held, held.mode), (Some(21), PoolMode::OutOfDataSpace));
    let broken =
        PoolStatus::parse(&pool.replace("space -", "space needs_check").replace("rw", "ro")).unwrap();
    assert_eq!((broken.needs_check, broken.mode), (true, PoolMode::ReadOnly));
}

#[test]
fn what_is_something_else_says_what_was_told() {
    let refused = [
        SnapshotTable::parse("0 1048576 snapshot-merge 253:1 253:2 P 8").unwrap_err(),
        SnapshotTable::parse("0 1048576 snapshot 253:1 253:2 X 8").unwrap_err(),
        SnapshotTable::parse("0 1048576 snapshot 253:1 253:2 P").unwrap_err(),
        SnapshotStatus::parse("0 1048576 snapshot Unknown").unwrap_err(),
        SnapshotStatus::parse("0 1048576 snapshot-merge 16/262144 16").unwrap_err(),
        SnapshotStatus::parse("").unwrap_err(),
        ThinTable::parse("0 8 thin 253:4 7\n8 8 thin 253:4 8").unwrap_err(),
        ThinTable::parse("0 36028797018963968 thin 253:4 7").unwrap_err(),
        ThinTable::parse("8 8 thin 253:4 7").unwrap_err(),
        ThinTable::parse("0 8 linear 253:4 7").unwrap_err(),
        ThinTable::parse("0 8 thin 253:4 -1").unwrap_err(),
        PoolStatus::parse("0 2097152 thin-pool Fail").unwrap_err(),
        PoolStatus::parse("0 2097152 thin-pool Error").unwrap_err(),
        PoolStatus::parse("0 2097152 thin-pool 3 20/4096 115/16384 held rw - - - 1024").unwrap_err(),
        PoolStatus::parse("thin-pool 3 20/4096 115/16384 - rw - - - 1024").unwrap_err(),
    ];
    assert!(refused[11].to_string().contains("dmsetup says `0 2097152 thin-pool Fail`"), "{}", refused[11]);
}
