//! What happens when files go bad under an open cache.

use std::time::Duration;

use super::*;

fn settings(path: &std::path::Path) -> Settings {
    Settings {
        path: path.to_owned(),
        cache_bytes: 1 << 20,
        shards: 1,
        owned: vec![0],
        give_up: Duration::from_secs(60),
        sync_interval: Duration::from_secs(600),
    }
}

fn open(path: &std::path::Path) -> Cache {
    let shards = Shards::new(1, &[0]).expect("one shard");
    Cache::open(&settings(path), RepoId::from_bytes([9; 16]), shards).expect("opened")
}

fn entry(n: u32) -> PackEntry {
    let mut id = [1; 33];
    id[1..5].copy_from_slice(&n.to_be_bytes());
    PackEntry { id: ChunkId::parse(&id).expect("a data chunk"), offset: n * 100, len: 100 }
}

fn files(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory).expect("a directory").flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn rows_that_turn_out_damaged_fail_by_name_and_are_replaced_by_the_next_start() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("cache");
    let pack = PackId::from_bytes([3; 16]);
    let entries: Vec<PackEntry> = (0..50_000).map(entry).collect();
    let cache = open(&path);
    assert_eq!(cache.apply(pack, &entries, PackState::Whole).expect("applied"), entries.len());
    cache.rows.rotate_memtable_and_wait().expect("in a file");
    drop(cache);

    let cache = open(&path);
    assert_eq!(cache.newest(&entries[0].id).expect("read"), Some(pack));
    // The first and last blocks stay: they hold the filter's and index' places.
    for file in files(&path.join("rows").join("keyspaces")) {
        let mut bytes = std::fs::read(&file).expect("read");
        let len = bytes.len();
        if len > 1 << 20 {
            bytes[16 << 10..len / 2].iter_mut().for_each(|byte| *byte ^= 0x5a);
            std::fs::write(&file, bytes).expect("damaged");
        }
    }
    let results: Vec<_> = entries.iter().map(|entry| cache.newest(&entry.id)).collect();
    assert!(results.iter().all(|result| matches!(result, Err(_) | Ok(Some(_)))), "never a wrong answer");
    let failure = results.into_iter().find_map(Result::err).expect("a damaged row");
    assert!(failure.why.contains(&path.display().to_string()), "{failure}");
    assert!(cache.broken().is_raised());
    drop(cache);

    let cache = open(&path);
    assert_eq!(cache.state(&pack), None, "built anew");
    assert!(!cache.broken().is_raised());
    assert_eq!(cache.apply(pack, &entries, PackState::Whole).expect("applied"), entries.len());
}

#[test]
fn many_entries_of_one_pack_are_applied_in_parts_and_marked_last() {
    let directory = tempfile::tempdir().expect("a directory");
    let cache = open(directory.path());
    let entries: Vec<PackEntry> = (0..3 * BATCH as u32 + 5).map(entry).collect();
    let pack = PackId::from_bytes([3; 16]);
    assert_eq!(cache.apply(pack, &entries[5..], PackState::Partial).expect("applied"), 3 * BATCH);
    assert_eq!(cache.newest(&entries[0].id).expect("read"), None);
    assert_eq!(cache.apply(pack, &entries, PackState::Whole).expect("applied"), entries.len());
    assert_eq!(cache.apply(pack, &entries, PackState::Partial).expect("nothing to do"), 0);
    for entry in &entries {
        let copies = cache.copies(&entry.id).expect("read");
        assert_eq!(copies, [Copy { pack, offset: entry.offset, len: entry.len }]);
    }
    assert_eq!(cache.state(&pack), Some(PackState::Whole));
}
