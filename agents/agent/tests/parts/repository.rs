//! Repositories: made once, opened with the right key, and packs whose footers are large, torn or misplaced.

use std::sync::Arc;

use agent::repository::{AtSlot, NewRepository, Repository};
use agent::store::Store;
use bytes::Bytes;
use object_store::memory::InMemory;
use schema::Domain;
use schema::keys::{DataKey, Identity};
use schema::messages::{Copy, FailureKind};
use schema::names;
use schema::tombstone::TOMBSTONE_LEN;

use crate::support::{World, environment, environment_of, pack_id};

fn new() -> NewRepository {
    NewRepository { recipients: Vec::new(), pack_size: 1 << 20 }
}

#[tokio::test(start_paused = true)]
async fn a_repository_is_made_once() {
    let world = World::new().await;
    let store = world.repository.store.clone();
    let failure = Repository::init(store.clone(), &new()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    let opened = Repository::open(store, None, None).await.unwrap();
    assert_eq!(opened.key, world.repository.key);
}

#[tokio::test(start_paused = true)]
async fn one_of_two_who_make_it_at_once_wins() {
    let world = World::new().await;
    let bytes = world.get(names::CONFIG).await.unwrap();
    let store = &world.repository.store;
    store.delete(names::CONFIG).await.unwrap();
    world.record.write_after(&format!("get {}", names::CONFIG), names::CONFIG, bytes);
    let failure = Repository::init(store.clone(), &new()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    assert_eq!(Repository::open(store.clone(), None, None).await.unwrap().key, world.repository.key);
}

#[tokio::test(start_paused = true)]
async fn where_no_repository_is_the_operator_hears_what_to_do() {
    let store = Store::new(Arc::new(InMemory::new()), "", "s3://bucket/here", environment());
    let failure = Repository::open(store, None, None).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    for words in ["s3://bucket/here", "mounted", "lvkeep init"] {
        assert!(failure.why.contains(words), "{failure}");
    }
}

/// What is left of an archive opens by its own `config` alone, which one that is made anew would hide for ever.
#[tokio::test(start_paused = true)]
async fn a_config_that_is_lost_is_brought_back_and_not_made_anew() {
    let world = World::new().await;
    let store = world.repository.store.clone();
    let config = world.get(names::CONFIG).await.unwrap();
    world.snapshot(&world.root(1, 1, 0)).await;
    world.any_pack(1).await;
    store.delete(names::CONFIG).await.unwrap();
    let failure = Repository::open(store.clone(), None, None).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Damaged);
    for words in ["`config` is missing", "packs/, snapshots/", "bring `config` back", "do not `init`"] {
        assert!(failure.why.contains(words), "{failure}");
    }
    let failure = Repository::init(store.clone(), &new()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    assert!(
        failure.why.contains("packs/, snapshots/") && failure.why.contains("nothing was made"),
        "{failure}"
    );
    assert_eq!(world.get(names::CONFIG).await, None);
    world.put(names::CONFIG, config.slice(..40)).await;
    let failure = Repository::open(store.clone(), None, None).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Damaged);
    assert!(failure.why.contains("/config") && failure.why.contains("bring `config` back"), "{failure}");
    world.put(names::CONFIG, config).await;
    Repository::open(store.clone(), None, None).await.unwrap();

    // Whichever of its folders it is.
    for folder in names::FOLDERS {
        let store = Store::new(Arc::new(InMemory::new()), "prefix", "test", environment());
        store.put(&format!("{folder}/something"), Bytes::new()).await.unwrap();
        let failure = Repository::init(store, &new()).await.unwrap_err();
        assert!(failure.why.contains(&format!("({folder}/)")), "{failure}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_encrypted_repository_opens_with_its_writer_key_or_an_identity_of_it() {
    let store = Store::new(Arc::new(InMemory::new()), "", "test", environment());
    let (identity, stranger) = (Identity::generate(), Identity::generate());
    let made = NewRepository { recipients: identity.recipients(), ..new() };
    let repository = Repository::init(store.clone(), &made).await.unwrap();
    let key = repository.key.clone();
    assert_eq!(Repository::open(store.clone(), Some(key.clone()), None).await.unwrap().key, key);
    assert_eq!(Repository::open(store.clone(), None, Some(&identity)).await.unwrap().key, key);
    for (key, identity) in [(None, None), (None, Some(&stranger))] {
        let failure = Repository::open(store.clone(), key, identity).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
        assert!(failure.why.contains("test/config"), "{failure}");
    }
    let other = Store::new(Arc::new(InMemory::new()), "", "other", environment_of(2));
    let other = Repository::init(other, &NewRepository { recipients: stranger.recipients(), ..new() }).await;
    let wrong = Repository::open(store.clone(), Some(other.unwrap().key), None).await;
    assert!(wrong.is_err(), "the writer key of another repository opens nothing");

    // Data keys: each is known by its name.
    let data = DataKey::new(&[7; 48]);
    let sealed = data.seal(&key).unwrap();
    store.put(&names::key(sealed.id), sealed.sealed.clone()).await.unwrap();
    let found = repository.sealed_key(&names::key(sealed.id)).await.unwrap();
    assert_eq!(DataKey::unseal(key.family(), &found, &identity).unwrap().id(), data.id());
    let misplaced = names::key(schema::KeyId::from_bytes([9; 16]));
    store.put(&misplaced, sealed.sealed).await.unwrap();
    let found = repository.sealed_key(&misplaced).await.unwrap();
    assert!(DataKey::unseal(key.family(), &found, &identity).is_err(), "another key stands there");
    let missing = names::key(schema::KeyId::from_bytes([8; 16]));
    let failure = repository.sealed_key(&missing).await.unwrap_err();
    assert!(failure.why.contains(&missing), "{failure}");
}

#[tokio::test(start_paused = true)]
async fn what_stands_at_a_slot() {
    let world = World::new().await;
    world.snapshot(&world.root(1, 1, 0)).await;
    world.tombstone(world.slot(2)).await;
    let at = |session| {
        let (slot, repository) = (world.slot(session), world.repository.clone());
        async move { repository.at_slot(slot).await.unwrap() }
    };
    assert!(matches!(at(1).await, AtSlot::Snapshot(_)));
    assert!(matches!(at(2).await, AtSlot::Tombstone));
    assert!(matches!(at(3).await, AtSlot::Nothing));
    let other = world.repository.key.volume_key("another");
    assert_eq!(world.repository.visible_slots(None).await.unwrap(), [world.slot(1)]);
    assert_eq!(world.repository.visible_slots(Some(other)).await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn an_empty_slot_is_a_tombstone_only_where_they_are_not_sealed() {
    for (world, is_sealed) in [(World::new().await, true), (World::of_empty_tombstones().await, false)] {
        world.snapshot(&world.root(1, 1, 0)).await;
        world.tombstone(world.slot(2)).await;
        world.empty(&world.slot(3).snapshot()).await;
        let (repository, slot) = (&world.repository, world.slot(3));
        assert!(matches!(repository.at_slot(world.slot(2)).await, Ok(AtSlot::Tombstone)));
        let roots = repository.roots(None).await.unwrap();
        assert_eq!(roots.readable, [world.root(1, 1, 0)]);
        let damaged: Vec<_> = roots.damaged.iter().map(|damaged| (damaged.slot, &*damaged.why)).collect();
        match is_sealed {
            true => {
                let why = repository.at_slot(slot).await.unwrap_err();
                assert!(why.kind == FailureKind::Damaged && why.why.contains("is empty"), "{why}");
                assert_eq!(damaged, [(slot, &*why.why)]);
            }
            false => {
                assert!(matches!(repository.at_slot(slot).await, Ok(AtSlot::Tombstone)));
                assert_eq!(damaged, []);
            }
        }
    }
}

/// Whoever lists snapshots reads no tombstone: there are ever more of them.
#[tokio::test(start_paused = true)]
async fn listings_go_by_the_length_of_tombstones_and_what_stands_there_by_its_seal() {
    let world = World::new().await;
    world.snapshot(&world.root(1, 1, 0)).await;
    world.snapshot(&world.root(2, 1, 0)).await;
    world.put(&world.slot(2).forgotten(), world.forgotten(world.slot(2))).await;
    world.tombstone(world.slot(3)).await;
    world.put(&world.slot(4).snapshot(), world.repository.tombstone(world.slot(5)).unwrap()).await;
    let root = world.get(&world.slot(1).snapshot()).await.unwrap();
    world.put(&world.slot(6).snapshot(), root.slice(..TOMBSTONE_LEN as usize)).await;
    assert_eq!(world.repository.visible_slots(None).await.unwrap(), [world.slot(1)]);
    assert_eq!(world.repository.forgotten_slots(None).await.unwrap(), [world.slot(2)]);
    assert!(!world.record.take().iter().any(|request| request.starts_with("get")));
    for number in [4, 6] {
        let why = world.repository.at_slot(world.slot(number)).await.unwrap_err();
        assert!(why.kind == FailureKind::Damaged && why.why.contains("nor a tombstone"), "{why}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_root_is_named_and_a_store_that_fails_is_an_error() {
    let world = World::new().await;
    let (first, last) = (world.root(1, 1, 0), world.root(3, 2, 0));
    world.snapshot(&first).await;
    world.put(&world.slot(2).snapshot(), "damaged".into()).await;
    world.snapshot(&last).await;
    let roots = world.repository.roots(None).await.unwrap();
    assert_eq!(roots.readable, [first, last]);
    assert_eq!(roots.damaged.iter().map(|damaged| damaged.slot).collect::<Vec<_>>(), [world.slot(2)]);
    assert_eq!(roots.all().unwrap_err().kind, FailureKind::Damaged);
    world.faults.hide(Some(&world.slot(2).snapshot()));
    let failure = world.repository.roots(None).await.unwrap_err();
    assert_eq!((failure.kind, failure.retry), (FailureKind::Store, true), "it is listed, and not there");
    assert!(failure.why.contains(&world.slot(2).snapshot()), "{failure}");
    world.faults.hide(None);
    world.faults.crash();
    assert_eq!(world.repository.roots(None).await.unwrap_err().kind, FailureKind::Store);
}

/// A footer that is longer than what is read at first, and frames read by their places in it.
#[tokio::test(start_paused = true)]
async fn footers_of_any_length_lead_to_frames() {
    for count in [1u32, 2000] {
        let world = World::new().await;
        let chunks: Vec<Bytes> = (0..count).map(|n| Bytes::copy_from_slice(&n.to_le_bytes())).collect();
        let (pack, ids) = world.pack(1, Domain::Data, &chunks).await;
        let (header, footer) = world.repository.read_footer(pack).await.unwrap();
        assert_eq!((header.pack, footer.entries.len()), (pack, ids.len()));
        let last = footer.entries.last().unwrap();
        assert_eq!(last.id, *ids.last().unwrap());
        let copy = Copy { pack, offset: last.offset, len: last.len };
        let frame = world.repository.read_frame(&copy).await.unwrap();
        assert_eq!(schema::chunk::FrameHeader::parse(&frame).unwrap().id, last.id);
    }
}

#[tokio::test(start_paused = true)]
async fn a_torn_footer_is_rebuilt_from_the_frames() {
    let world = World::new().await;
    let chunks = [Bytes::from_static(b"one"), Bytes::from_static(b"two"), Bytes::from_static(b"three")];
    let (pack, ids) = world.pack(1, Domain::Data, &chunks).await;
    let whole = world.get(&names::pack(pack)).await.unwrap();
    let (_, footer) = world.repository.read_footer(pack).await.unwrap();
    let frames_end = footer.entries.last().map(|entry| (entry.offset + entry.len) as usize).unwrap();
    let mut flipped = whole.to_vec();
    flipped[frames_end + 10] ^= 1;
    let cases = [
        ("its end is cut off", whole.slice(..whole.len() - 5), 3),
        ("its check sum is wrong", Bytes::from(flipped), 3),
        ("its last frame is cut", whole.slice(..frames_end - 1), 2),
    ];
    for (name, bytes, left) in cases {
        world.put(&names::pack(pack), bytes).await;
        let (_, found) = world.repository.read_footer(pack).await.unwrap();
        let found: Vec<_> = found.entries.iter().map(|entry| entry.id).collect();
        assert_eq!(found, ids[..left], "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pack_under_another_name_or_none_at_all_is_refused_by_name() {
    let world = World::new().await;
    let pack = world.any_pack(1).await;
    let bytes = world.get(&names::pack(pack)).await.unwrap();
    for (number, bytes) in [(2, bytes), (3, Bytes::new()), (4, Bytes::from(vec![1; 500]))] {
        world.put(&names::pack(pack_id(number)), bytes).await;
        let failure = world.repository.read_footer(pack_id(number)).await.unwrap_err();
        assert!(failure.why.contains(&names::pack(pack_id(number))), "{failure}");
    }
}
