//! What lvkeep needs of an object store, over [`Store`].
//!
//! Create-if-absent with exactly one winner, and GET, HEAD and LIST that show every completed write. The suites
//! want a store whose prefix is fresh, and leave nothing behind. They assert, and name what was broken. They need
//! nothing but `Store`, so that they run on a directory, in memory, under faults that retries must hide, and on
//! real object storage.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::future::join_all;

use crate::store::{Created, Store, StoreError, StoreErrorKind};

/// Creators that race for one name.
const RACERS: u8 = 16;

/// Everything: the store can hold a repository with all its promises.
pub async fn all(store: &Store) {
    common(store).await;
    created_once(store).await;
    racing_creators(store).await;
    tombstones_stay(store).await;
    assert!(probed(store).await, "the probe doubts a store that lets one creator win");
    empty(store, "at the end").await;
}

/// All but create-if-absent, and that the probe finds that missing: the store can hold a repository with the
/// weaker promise.
pub async fn without_create(store: &Store) {
    common(store).await;
    assert!(!probed(store).await, "the probe believes a store that lets several creators win");
    empty(store, "at the end").await;
}

async fn common(store: &Store) {
    empty(store, "at the start").await;
    absent_objects(store).await;
    whole_objects(store).await;
    parts_of_objects(store).await;
    empty_objects(store).await;
    objects_in_parts(store).await;
    listings(store).await;
    visible_at_once(store).await;
    empty(store, "before the conditional writes").await;
}

/// Fails by naming what was being done: a store that cannot do it at all is no store.
fn done<T>(what: &str, result: Result<T, StoreError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{what}: {error}"),
    }
}

async fn put(store: &Store, key: &str, bytes: &[u8]) {
    done("put", store.put(key, Bytes::copy_from_slice(bytes)).await);
}

async fn get(store: &Store, key: &str) -> Option<Bytes> {
    done("get", store.get(key).await)
}

async fn head(store: &Store, key: &str) -> Option<u64> {
    done("head", store.head(key).await)
}

async fn create(store: &Store, key: &str, bytes: &[u8]) -> Created {
    done("create", store.create(key, Bytes::copy_from_slice(bytes)).await)
}

async fn delete(store: &Store, keys: &[&str]) {
    for key in keys {
        done("delete", store.delete(key).await);
    }
}

async fn probed(store: &Store) -> bool {
    done("probe", store.probe().await).conditional_create
}

/// Keys and sizes below a folder.
async fn list(store: &Store, folder: &str) -> BTreeMap<String, u64> {
    let listed = done("list", store.list(folder).await);
    let count = listed.len();
    let listed: BTreeMap<_, _> = listed.into_iter().map(|object| (object.key, object.size)).collect();
    assert_eq!(listed.len(), count, "a listing of {folder:?} shows an object twice");
    listed
}

async fn empty(store: &Store, when: &str) {
    let listed = list(store, "").await;
    assert!(listed.is_empty(), "the prefix is not empty {when}: {listed:?}");
}

async fn absent_objects(store: &Store) {
    assert_eq!(get(store, "absent").await, None);
    assert_eq!(get(store, "no/such/folder/absent").await, None);
    assert_eq!(head(store, "absent").await, None);
    assert!(list(store, "no/such/folder").await.is_empty());
    delete(store, &["absent", "no/such/folder/absent"]).await;
    let range = store.get_range("absent", 0..4).await;
    assert_eq!(range.map_err(|error| error.kind()), Err(StoreErrorKind::NotFound));
    let suffix = store.get_suffix("absent", 4).await;
    assert_eq!(suffix.map_err(|error| error.kind()), Err(StoreErrorKind::NotFound));
}

async fn whole_objects(store: &Store) {
    put(store, "object", b"one").await;
    assert_eq!(get(store, "object").await.as_deref(), Some(&b"one"[..]));
    put(store, "object", b"another").await;
    assert_eq!(get(store, "object").await.as_deref(), Some(&b"another"[..]), "a put writes over");
    assert_eq!(head(store, "object").await, Some(7));
    let big: Vec<u8> = (0..3u32 << 18).flat_map(u32::to_le_bytes).collect();
    put(store, "object", &big).await;
    assert!(get(store, "object").await.is_some_and(|bytes| bytes == big), "3 MiB come back as they were");
    delete(store, &["object"]).await;
    assert_eq!((get(store, "object").await, head(store, "object").await), (None, None));
    delete(store, &["object"]).await;
}

async fn parts_of_objects(store: &Store) {
    put(store, "parts", b"0123456789").await;
    let range = async |range| store.get_range("parts", range).await.map_err(|error| error.kind());
    assert_eq!(range(0..10).await.as_deref(), Ok(&b"0123456789"[..]));
    assert_eq!(range(3..5).await.as_deref(), Ok(&b"34"[..]));
    assert_eq!(range(9..10).await.as_deref(), Ok(&b"9"[..]));
    assert_eq!(range(4..4).await.as_deref(), Ok(&b""[..]), "no bytes need no store");
    for beyond in [5..11, 10..11, 100..200] {
        assert_eq!(range(beyond.clone()).await, Err(StoreErrorKind::NotFound), "{beyond:?} of 10 bytes");
    }
    for (len, want) in [(4, &b"6789"[..]), (10, b"0123456789"), (100, b"0123456789"), (0, b"")] {
        let (bytes, size) = done("get_suffix", store.get_suffix("parts", len).await);
        assert_eq!((&bytes[..], size), (want, 10), "the last {len} bytes");
    }
    delete(store, &["parts"]).await;
}

async fn empty_objects(store: &Store) {
    put(store, "tomb/stone", b"").await;
    assert_eq!(
        get(store, "tomb/stone").await.as_deref(),
        Some(&b""[..]),
        "an empty object is not an absent one"
    );
    assert_eq!(head(store, "tomb/stone").await, Some(0));
    assert_eq!(list(store, "tomb").await, BTreeMap::from([("tomb/stone".to_owned(), 0)]));
    let (bytes, size) = done("get_suffix", store.get_suffix("tomb/stone", 64).await);
    assert_eq!((bytes.len(), size), (0, 0));
    let range = store.get_range("tomb/stone", 0..4).await;
    assert_eq!(range.map_err(|error| error.kind()), Err(StoreErrorKind::NotFound));
    put(store, "tomb/living", b"alive").await;
    put(store, "tomb/living", b"").await;
    assert_eq!(head(store, "tomb/living").await, Some(0), "a tombstone written over an object");
    delete(store, &["tomb/stone", "tomb/living"]).await;
}

async fn objects_in_parts(store: &Store) {
    for attempt in 0..64 {
        // One attempt may fail; the next one takes a fresh name.
        let key = format!("packs/{attempt:02}");
        let parts = vec![Bytes::from_static(b"head"), Bytes::new(), Bytes::from(vec![7; 1 << 20])];
        let written = store.put_once(&key, parts).await;
        if written.is_ok() {
            let found = get(store, &key).await.unwrap_or_default();
            assert_eq!((&found[..4], found.len()), (&b"head"[..], 4 + (1 << 20)));
        }
        delete(store, &[&key]).await;
        match written {
            Ok(()) => return,
            Err(error) => assert!(error.is_transient(), "put_once: {error}"),
        }
    }
    panic!("put_once failed 64 times");
}

async fn listings(store: &Store) {
    let keys = ["a", "folder/b", "folder/deep/er/c", "folder/deep/d", "folder2/e", "odd/x y+z~1%20=@,é"];
    for (size, key) in keys.iter().enumerate() {
        put(store, key, &vec![1; size]).await;
    }
    let want = |folder: &str| -> BTreeMap<String, u64> {
        let sized = keys.iter().enumerate().map(|(size, key)| (stored(key), size as u64));
        sized.filter(|(key, _)| folder.is_empty() || key.starts_with(&format!("{folder}/"))).collect()
    };
    for folder in ["", "folder", "folder/deep", "folder2", "fold", "a", "folder/b"] {
        assert_eq!(list(store, folder).await, want(folder), "below {folder:?}");
    }
    for (size, key) in keys.iter().enumerate() {
        assert_eq!(head(store, key).await, Some(size as u64), "{key:?}");
    }
    delete(store, &keys).await;
    // Deeper and wider than one page of a listing.
    let many: Vec<String> = (0..1100).map(|n| format!("many/{:02x}/{n}", n % 7)).collect();
    for keys in many.chunks(32) {
        join_all(keys.iter().map(|key| put(store, key, b"x"))).await;
    }
    assert_eq!(list(store, "many").await, many.iter().map(|key| (key.clone(), 1)).collect());
    for keys in many.chunks(32) {
        join_all(keys.iter().map(|key| async move { delete(store, &[key]).await })).await;
    }
}

/// How a listing spells a key: object_store escapes what URLs and file systems dislike.
fn stored(key: &str) -> String {
    object_store::path::Path::from(key).to_string()
}

async fn visible_at_once(store: &Store) {
    for n in 0..20 {
        let key = format!("visible/{n}");
        put(store, &key, key.as_bytes()).await;
        assert_eq!(list(store, "visible").await.get(&key), Some(&(key.len() as u64)), "LIST after a put");
        assert_eq!(head(store, &key).await, Some(key.len() as u64), "HEAD after a put");
        assert_eq!(get(store, &key).await.as_deref(), Some(key.as_bytes()), "GET after a put");
        put(store, &key, b"").await;
        assert_eq!(list(store, "visible").await.get(&key), Some(&0), "LIST after writing over");
        assert_eq!(head(store, &key).await, Some(0), "HEAD after writing over");
        assert_eq!(get(store, &key).await, Some(Bytes::new()), "GET after writing over");
        delete(store, &[&key]).await;
        assert!(list(store, "visible").await.is_empty(), "LIST after a deletion");
        assert_eq!((head(store, &key).await, get(store, &key).await), (None, None), "after a deletion");
    }
}

async fn created_once(store: &Store) {
    assert_eq!(create(store, "slot/1", b"mine").await, Created::Won);
    assert_eq!(list(store, "slot").await, BTreeMap::from([("slot/1".to_owned(), 4)]), "LIST after a create");
    assert_eq!(head(store, "slot/1").await, Some(4), "HEAD after a create");
    assert_eq!(get(store, "slot/1").await.as_deref(), Some(&b"mine"[..]), "GET after a create");
    let lost = Created::Lost(Bytes::from_static(b"mine"));
    assert_eq!(create(store, "slot/1", b"yours").await, lost, "created twice");
    assert_eq!(create(store, "slot/1", b"").await, lost, "a tombstone on a taken slot");
    assert_eq!(create(store, "slot/1", b"mine").await, Created::Won, "the same bytes again: it is ours");
    assert_eq!(get(store, "slot/1").await.as_deref(), Some(&b"mine"[..]));
    delete(store, &["slot/1"]).await;
    assert_eq!(create(store, "slot/1", b"again").await, Created::Won, "after a deletion");
    delete(store, &["slot/1"]).await;
}

async fn racing_creators(store: &Store) {
    for round in 0..8 {
        let key = format!("race/{round}");
        let bytes = |racer: u8| Bytes::from(vec![racer; 5000]);
        let race = (0..RACERS).map(|racer| {
            let (store, key) = (store.clone(), key.clone());
            tokio::spawn(async move { done("create", store.create(&key, bytes(racer)).await) })
        });
        let ends: Vec<Created> = join_all(race)
            .await
            .into_iter()
            .map(|joined| joined.unwrap_or_else(|error| panic!("a racer: {error}")))
            .collect();
        let winners: Vec<u8> =
            (0..RACERS).filter(|racer| ends[usize::from(*racer)] == Created::Won).collect();
        assert_eq!(winners.len(), 1, "winners of round {round}: {winners:?}");
        let won = bytes(winners[0]);
        let seen = ends.iter().filter(|end| **end == Created::Lost(won.clone())).count();
        assert_eq!(seen, usize::from(RACERS) - 1, "losers of round {round} that saw the winner's bytes");
        assert_eq!(get(store, &key).await, Some(won));
        delete(store, &[&key]).await;
    }
}

async fn tombstones_stay(store: &Store) {
    for tombstone in [&b"sealed"[..], b""] {
        let lost = Created::Lost(Bytes::copy_from_slice(tombstone));
        assert_eq!(create(store, "grave", tombstone).await, Created::Won);
        assert_eq!(create(store, "grave", b"late commit").await, lost, "a commit on a revoked slot");
        assert_eq!(create(store, "grave", tombstone).await, Created::Won, "the same tombstone twice");
        put(store, "grave", b"the root of a snapshot").await;
        put(store, "grave", tombstone).await;
        assert_eq!(create(store, "grave", b"late commit").await, lost, "a commit on a collected slot");
        assert_eq!(head(store, "grave").await, Some(tombstone.len() as u64));
        delete(store, &["grave"]).await;
    }
}
