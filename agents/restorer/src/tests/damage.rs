//! Damaged, missing and foreign packs and keys: another copy is used, or the restore fails by name.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use agent::looks::Looks;
use agent::maps::MapReader;
use schema::damage::{Damage, DamagedChunk, Holes};
use schema::keys::{DataKey, Identity};
use schema::messages::{About, Copy, FailureKind};
use schema::{Domain, PackId, names};

use super::fixture::{CHUNK, Fixture, VOLUME, noise};
use crate::{Restorer, Settings, Target};

const MIB: usize = 1 << 20;

/// Breaks one byte in the middle of a frame.
async fn damage(fixture: &Fixture, copy: &Copy) {
    let mut bytes = fixture.bytes_of(copy.pack).await;
    bytes[copy.offset as usize + copy.len as usize / 2] ^= 0x55;
    fixture.overwrite(copy.pack, bytes).await;
}

#[tokio::test(start_paused = true)]
async fn a_damaged_copy_is_replaced_by_another() {
    let fixture = Fixture::encrypted().await;
    let content = noise(1, 5 * CHUNK);
    let root = fixture.volume(&content).await;
    let firsts = fixture.data_copies();
    let chunks: Vec<bytes::Bytes> = content.chunks(CHUNK).map(bytes::Bytes::copy_from_slice).collect();
    let (second, _) = fixture.pack(Domain::Data, &chunks).await;
    // Both packs hold every chunk, so that the lower id is tried first.
    let best = second.min(firsts[0].1.pack);
    let copies: Vec<Copy> = fixture.data_copies().into_iter().map(|(_, copy)| copy).collect();
    for copy in copies.iter().filter(|copy| copy.pack == best).take(2) {
        damage(&fixture, copy).await;
    }
    let report = fixture.restore(&root, &fixture.path("one")).await.unwrap();
    assert!(std::fs::read(fixture.path("one")).unwrap() == content);
    assert_eq!((report.rescued, report.chunks), (2, 5));
    fixture.repository.store.delete(&names::pack(best)).await.unwrap();
    fixture.restore(&root, &fixture.path("two")).await.unwrap();
    assert!(std::fs::read(fixture.path("two")).unwrap() == content, "a missing pack is no different");
}

#[tokio::test(start_paused = true)]
async fn when_every_copy_is_damaged_all_are_named() {
    let fixture = Fixture::plain().await;
    let content = noise(1, 20 * CHUNK);
    let root = fixture.volume(&content).await;
    let at = 7 * CHUNK;
    let (second, ids) =
        fixture.pack(Domain::Data, &[bytes::Bytes::copy_from_slice(&content[at..at + CHUNK])]).await;
    let copies: Vec<Copy> = fixture.table.lock().unwrap()[&ids[0]].clone();
    assert_eq!(copies.len(), 2);
    damage(&fixture, &copies[0]).await;
    let path = fixture.path("x");
    fixture.repository.store.delete(&names::pack(second)).await.unwrap();
    let failure = fixture.restore(&root, &path).await.unwrap_err();
    for part in [
        VOLUME.to_owned(),
        format!("offset {at}"),
        ids[0].to_string(),
        names::pack(copies[0].pack),
        names::pack(second),
    ] {
        assert!(failure.why.contains(&part), "{part} is not in: {failure}");
    }
    assert!(path.exists() && failure.why.contains("do not use it"), "the rest is worth keeping: {failure}");
    assert_eq!(fixture.sessions().await, Vec::<String>::new());
    let failure = fixture.restorer().verify_readable(root, |_| ()).await.unwrap_err();
    assert!(failure.why.contains(&ids[0].to_string()), "verifying finds the same: {failure}");
}

#[tokio::test(start_paused = true)]
async fn a_chunk_that_the_index_lacks_is_named() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, 3 * CHUNK)).await;
    let (id, copy) = fixture.data_copies()[0];
    let known = [Vec::new(), vec![Copy { len: u32::MAX, ..copy }], vec![Copy { len: 3, ..copy }]];
    for (n, copies) in known.into_iter().enumerate() {
        fixture.table.lock().unwrap().insert(id, copies);
        let failure = fixture.restore(&root, &fixture.path(&n.to_string())).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Damaged);
        assert!(failure.why.contains(&format!("chunk {id} is in no pack that the index knows")), "{failure}");
    }
}

#[tokio::test(start_paused = true)]
async fn copies_that_a_collection_moved_are_asked_for_again() {
    let fixture = Fixture::plain().await;
    let content = noise(1, 4 * CHUNK);
    let root = fixture.volume(&content).await;
    let old = fixture.data_copies()[0].1.pack;
    let chunks: Vec<bytes::Bytes> = content.chunks(CHUNK).map(bytes::Bytes::copy_from_slice).collect();
    let moved = fixture.table.clone();
    let before = moved.lock().unwrap().clone();
    fixture.pack(Domain::Data, &chunks).await;
    let after = std::mem::replace(&mut *moved.lock().unwrap(), before);
    // The restore learns of the old copies, and the collection ends before it fetches them.
    let store = fixture.repository.store.clone();
    let collect = |_| {
        futures::executor::block_on(store.delete(&names::pack(old))).unwrap();
    };
    let restorer = fixture.restorer();
    let restoring = restorer.restore(root, Target::new(fixture.path("x"), false), collect);
    // The first progress comes before the first question to the index is answered or any pack is read.
    let learn = async {
        while moved.lock().unwrap().values().all(|copies| copies.len() < 2) {
            if store.head(&names::pack(old)).await.unwrap().is_none() {
                *moved.lock().unwrap() = after.clone();
            }
            tokio::task::yield_now().await;
        }
    };
    let (restored, ()) = tokio::join!(restoring, learn);
    restored.unwrap();
    assert!(std::fs::read(fixture.path("x")).unwrap() == content);
}

#[tokio::test(start_paused = true)]
async fn a_pack_that_was_cut_off_gives_what_it_has() {
    let fixture = Fixture::plain().await;
    let content = noise(1, 10 * CHUNK);
    let root = fixture.volume(&content).await;
    let copies = fixture.data_copies();
    let last = copies.iter().map(|(_, copy)| *copy).max_by_key(|copy| copy.offset).unwrap();
    let chunk = copies.iter().find(|(_, copy)| *copy == last).unwrap().0;
    let mut bytes = fixture.bytes_of(last.pack).await;
    bytes.truncate(last.offset as usize + 10);
    fixture.overwrite(last.pack, bytes).await;
    let failure = fixture.restore(&root, &fixture.path("x")).await.unwrap_err();
    assert!(failure.why.contains(&chunk.to_string()), "only the last chunk is lost: {failure}");
    let plain =
        content.chunks(CHUNK).find(|c| fixture.repository.key.chunk_ids().id(Domain::Data, c) == chunk);
    fixture.pack(Domain::Data, &[bytes::Bytes::copy_from_slice(plain.unwrap())]).await;
    let report = fixture.restore(&root, &fixture.path("y")).await.unwrap();
    assert!(std::fs::read(fixture.path("y")).unwrap() == content);
    assert_eq!(report.chunks, 10);
}

#[tokio::test(start_paused = true)]
async fn every_damaged_byte_of_a_pack_is_found_or_harmless() {
    let fixture = Fixture::encrypted().await;
    // One chunk that compresses well and one that does not: both codecs, and a small pack.
    let mut content = vec![b'a'; CHUNK];
    content.extend(noise(3, 900));
    let root = fixture.volume(&content).await;
    let pack = fixture.data_copies()[0].1.pack;
    let whole = fixture.bytes_of(pack).await;
    assert!(whole.len() < 4000, "{}", whole.len());
    let restorer = fixture.restorer_with(Settings { protect: false, ..fixture.settings() });
    let (mut restored, mut failed) = (0, 0);
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        fixture.overwrite(pack, bytes).await;
        let path = fixture.path("x");
        match restorer.restore(root.clone(), Target::new(&path, true).full(true), |_| ()).await {
            Ok(_) => {
                restored += 1;
                assert!(std::fs::read(&path).unwrap() == content, "byte {at} was believed");
            }
            Err(failure) => {
                failed += 1;
                assert!(failure.why.contains(&names::pack(pack)), "byte {at}: {failure}");
                assert!(failure.why.contains(VOLUME), "byte {at}: {failure}");
            }
        }
    }
    let frames: u32 = fixture.data_copies().iter().map(|(_, copy)| copy.len).sum();
    assert_eq!(failed, frames, "exactly the frames' bytes matter");
    assert_eq!(restored + failed, whole.len() as u32);
}

#[tokio::test(start_paused = true)]
async fn a_map_that_is_damaged_is_named() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, MIB)).await;
    let top = root.top.unwrap();
    let copy = fixture.table.lock().unwrap()[&top][0];
    damage(&fixture, &copy).await;
    let failure = fixture.restore(&root, &fixture.path("x")).await.unwrap_err();
    for part in [VOLUME.to_owned(), "at offset 0".to_owned(), top.to_string(), names::pack(copy.pack)] {
        assert!(failure.why.contains(&part), "{part} is not in: {failure}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_later_part_of_the_map_that_is_lost_is_named_with_its_offset() {
    let fixture = Fixture::plain().await;
    let leaf = schema::limits::LEAF_SPAN as usize;
    // Three windows, of which the second is lost.
    let mut content = vec![0; 8 * leaf + CHUNK];
    for number in [0, 4, 8] {
        content[number * leaf..][..CHUNK].copy_from_slice(&noise(number as u64 + 1, CHUNK));
    }
    let root = fixture.volume(&content).await;
    let lost = fixture.leaves()[1];
    fixture.table.lock().unwrap().remove(&lost);
    fixture.slow.store(60_000, Ordering::Relaxed);
    let failure = fixture.restore(&root, &fixture.path("x")).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Damaged, "{failure}");
    for part in [format!("the map of {VOLUME} at offset {}", 4 * leaf), lost.to_string()] {
        assert!(failure.why.contains(&part), "{part} is not in: {failure}");
    }
}

#[tokio::test(start_paused = true)]
async fn holes_side_by_side_are_one() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, 40 * CHUNK)).await;
    let mut copies: Vec<Copy> = fixture.data_copies().into_iter().map(|(_, copy)| copy).collect();
    copies.sort_by_key(|copy| copy.offset);
    for copy in copies[3..20].iter().chain(&copies[30..31]) {
        damage(&fixture, copy).await;
    }
    let target = Target::new(fixture.path("x"), false).keep_going(true);
    let report = fixture.restorer().restore(root, target, |_| ()).await.unwrap();
    let holes: Vec<_> = report.holes.iter().map(|hole| (hole.range.clone(), hole.more)).collect();
    let at = |chunk: usize| (chunk * CHUNK) as u64;
    assert_eq!(holes, [(at(3)..at(20), 16), (at(30)..at(31), 0)]);
    assert_eq!(report.lost, at(18));
    let [many, one] = [0, 1].map(|number| report.holes[number].told());
    assert!(many.ends_with("and 16 more chunks behind it (the log names each)"), "{many}");
    assert_eq!(one, report.holes[1].why);
}

#[tokio::test(start_paused = true)]
async fn a_lost_session_explains_a_missing_pack() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, MIB)).await;
    let pack = fixture.data_copies()[0].1.pack;
    let store = fixture.repository.store.clone();
    let collect = |_| {
        futures::executor::block_on(async {
            for listed in store.list(names::SESSIONS).await.unwrap() {
                store.delete(&listed.key).await.unwrap();
            }
            store.delete(&names::pack(pack)).await.unwrap();
        });
    };
    let target = Target::new(fixture.path("x"), false);
    let failure = fixture.restorer().restore(root, target, collect).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Revoked);
    assert!(failure.why.contains("declared dead"), "{failure}");
    assert!(failure.why.contains(&names::pack(pack)), "{failure}");
}

fn with_identity(fixture: &mut Fixture, identity: Option<Identity>) -> Restorer {
    fixture.identity = identity.map(Arc::new);
    fixture.restorer()
}

#[tokio::test(start_paused = true)]
async fn without_the_identity_nothing_is_written() {
    let mut fixture = Fixture::encrypted().await;
    let root = fixture.volume(&noise(1, MIB)).await;
    let path = fixture.path("x");
    let target = Target::new(&path, false);
    let restorer = with_identity(&mut fixture, None);
    let failure = restorer.restore(root.clone(), target.clone(), |_| ()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    assert!(failure.why.contains("this repository is encrypted: give --identity"), "{failure}");
    let restorer = with_identity(&mut fixture, Some(Identity::generate()));
    let failure = restorer.restore(root, target, |_| ()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    assert!(failure.why.contains("is this the identity of this repository?"), "{failure}");
    assert!(!path.exists());
    assert_eq!(fixture.sessions().await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_lost_key_is_taken_from_the_packs_footer() {
    let fixture = Fixture::encrypted().await;
    let content = noise(1, MIB);
    let root = fixture.volume(&content).await;
    let key = names::key(fixture.data_key.as_ref().unwrap().id());
    for broken in [Vec::new(), b"age-encryption.org/v1\nnonsense".to_vec()] {
        fixture.repository.store.put(&key, broken.into()).await.unwrap();
        let target = Target::new(fixture.path("x"), true).full(true);
        fixture.restorer().restore(root.clone(), target, |_| ()).await.unwrap();
        assert!(std::fs::read(fixture.path("x")).unwrap() == content);
    }
    fixture.repository.store.delete(&key).await.unwrap();
    let target = Target::new(fixture.path("x"), true).full(true);
    fixture.restorer().restore(root.clone(), target, |_| ()).await.unwrap();
    // Without its footer the pack opens no more.
    let pack = fixture.data_copies()[0].1.pack;
    let mut bytes = fixture.bytes_of(pack).await;
    bytes.truncate(bytes.len() - 5);
    fixture.overwrite(pack, bytes).await;
    let target = Target::new(fixture.path("y"), false);
    let failure = fixture.restorer().restore(root, target, |_| ()).await.unwrap_err();
    assert!(failure.why.contains("neither below keys/ nor in the footer"), "{failure}");
}

/// Two data keys may begin alike; the one that is lost is not the one that opens.
#[tokio::test(start_paused = true)]
async fn a_lost_key_that_shares_its_name_is_taken_from_the_packs_footer() {
    let fixture = Fixture::encrypted().await;
    let content = noise(1, MIB);
    let root = fixture.volume(&content).await;
    let key = fixture.data_key.as_ref().unwrap();
    let mut random = [9; 48];
    random[..4].copy_from_slice(&key.id().as_bytes()[..4]);
    let other = DataKey::new(&random);
    let sealed = other.seal(&fixture.repository.key).unwrap().sealed;
    fixture.repository.store.put(&names::key(other.id()), sealed).await.unwrap();
    let broken = b"age-encryption.org/v1\nnonsense".to_vec();
    fixture.repository.store.put(&names::key(key.id()), broken.into()).await.unwrap();
    fixture.restore(&root, &fixture.path("x")).await.unwrap();
    assert!(std::fs::read(fixture.path("x")).unwrap() == content);
}

#[tokio::test(start_paused = true)]
async fn plain_frames_do_not_count_in_an_encrypted_repository() {
    let mut fixture = Fixture::encrypted().await;
    fixture.data_key = None;
    let root = fixture.volume(&noise(1, MIB)).await;
    let failure = fixture.restore(&root, &fixture.path("x")).await.unwrap_err();
    assert!(failure.why.contains("it is not encrypted, and the repository is"), "{failure}");
}

/// What is lost is named and zero, also on a target that held something; everything else is there.
#[tokio::test(start_paused = true)]
async fn the_rest_of_a_damaged_snapshot_is_restored_when_asked_for() {
    let fixture = Fixture::encrypted().await;
    let leaf = schema::limits::LEAF_SPAN as usize;
    let mut content = noise(1, 20 * CHUNK);
    content.resize(leaf, 0);
    content.extend(noise(2, 3 * CHUNK));
    let root = fixture.volume(&content).await;
    // A chunk whose only copy is damaged, one that no pack has, and the map of the second leaf.
    let ids = fixture.repository.key.chunk_ids();
    let chunk = |n: usize| ids.id(Domain::Data, &content[n * CHUNK..(n + 1) * CHUNK]);
    let copy = fixture.table.lock().unwrap()[&chunk(3)][0];
    let mut bytes = fixture.bytes_of(copy.pack).await;
    bytes[copy.offset as usize + 40] ^= 1;
    fixture.overwrite(copy.pack, bytes).await;
    fixture.table.lock().unwrap().insert(chunk(7), Vec::new());
    let mut expected = content.clone();
    for n in [3, 7] {
        expected[n * CHUNK..(n + 1) * CHUNK].fill(0);
    }
    let mut holes = vec![3 * CHUNK..4 * CHUNK, 7 * CHUNK..8 * CHUNK];
    for map_is_lost in [false, true] {
        if map_is_lost {
            let map =
                MapReader::new(fixture.repository.clone(), fixture.index.clone(), root.clone()).unwrap();
            let lost = map.leaf_id(1).await.unwrap().unwrap();
            fixture.table.lock().unwrap().insert(lost, Vec::new());
            expected[leaf..].fill(0);
            holes.push(leaf..content.len());
        }
        for stale in [false, true] {
            let path = fixture.path(&format!("{map_is_lost}-{stale}"));
            if stale {
                std::fs::write(&path, vec![0xee; content.len()]).unwrap();
            }
            fixture.restorer().restore(root.clone(), Target::new(&path, true), |_| ()).await.unwrap_err();
            let target = Target::new(&path, true).keep_going(true);
            let report = fixture.restorer().restore(root.clone(), target, |_| ()).await.unwrap();
            assert!(std::fs::read(&path).unwrap() == expected);
            let found: Vec<_> = report.holes.iter().map(|hole| hole.range.clone()).collect();
            let holes: Vec<_> = holes.iter().map(|hole| hole.start as u64..hole.end as u64).collect();
            assert_eq!(found, holes);
            assert_eq!(report.lost, holes.iter().map(|hole| hole.end - hole.start).sum::<u64>());
            assert!(report.holes[0].why.contains(&names::pack(copy.pack)), "{:?}", report.holes);
        }
    }
}

/// A mark stays until a repair has looked; what it marks may be there long before.
#[tokio::test(start_paused = true)]
async fn what_was_marked_and_is_healed_is_restored_at_once() {
    let fixture = Fixture::encrypted().await;
    let content = noise(1, 20 * CHUNK);
    let root = fixture.volume(&content).await;
    let seal =
        async |key: String, bytes: bytes::Bytes| fixture.repository.store.put(&key, bytes).await.unwrap();
    let mark = async |is_unrecorded: bool| {
        let ranges = vec![(7 * CHUNK as u64, CHUNK as u64)];
        let holes = Holes { version: Holes::VERSION, slot: root.slot, found_ms: 0, ranges, is_unrecorded };
        let key = root.slot.holes();
        seal(key.clone(), fixture.repository.seal(&key, &holes).unwrap()).await;
    };
    mark(false).await;
    let plain = bytes::Bytes::copy_from_slice(&content[7 * CHUNK..8 * CHUNK]);
    let id = fixture.repository.key.chunk_ids().id(Domain::Data, &plain);
    let copy = fixture.table.lock().unwrap()[&id][0];
    damage(&fixture, &copy).await;
    let chunks = vec![DamagedChunk { id, packs: vec![copy.pack] }];
    let record = Damage { version: Damage::VERSION, found_ms: 0, host: "h".into(), packs: vec![], chunks };
    let key = names::damage(fixture.context.environment.damage_id());
    seal(key.clone(), fixture.repository.seal(&key, &record).unwrap()).await;
    let restore = async |name: &str| fixture.restore(&root, &fixture.path(name)).await;
    let refused = async |repair: &str| {
        let failure = restore("refused").await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Damaged, "{failure}");
        let at = format!("{}+{CHUNK}", 7 * CHUNK);
        for part in ["marked by a repair", repair, "--keep-going", "Nothing was changed", &at] {
            assert!(failure.why.contains(part), "{part} is not in: {failure}");
        }
        assert!(!fixture.path("refused").exists());
    };
    refused("`lvkeep repair`").await;
    // Other parts are nobody's loss.
    let target = Target::new(fixture.path("part"), false).only(Some(0..7 * CHUNK as u64));
    fixture.restorer().restore(root.clone(), target, |_| ()).await.unwrap();

    let (healing, _) = fixture.pack(Domain::Data, &[plain]).await;
    let whole = fixture.bytes_of(healing).await;
    for broken in [None, Some(whole[..100].to_vec())] {
        match broken {
            None => fixture.repository.store.delete(&names::pack(healing)).await.unwrap(),
            Some(bytes) => seal(names::pack(healing), bytes.into()).await,
        }
        refused("`lvkeep repair`").await;
    }
    seal(names::pack(healing), whole.into()).await;
    restore("healed").await.unwrap();
    assert!(std::fs::read(fixture.path("healed")).unwrap() == content);
    // What no record names looks whole to whoever does not read it, and so does all while a record cannot be read.
    mark(true).await;
    refused("`lvkeep repair --read-data`").await;
    mark(false).await;
    seal(names::damage(fixture.context.environment.damage_id()), b"rotten".as_slice().into()).await;
    refused("`lvkeep repair --read-data`").await;
}

/// A collection has moved everything, and the index has not heard of it.
#[tokio::test(start_paused = true)]
async fn what_the_index_does_not_know_is_sought_in_the_bucket_before_it_is_lost() {
    let fixture = Fixture::encrypted().await;
    let content = noise(1, 20 * CHUNK);
    let root = fixture.volume(&content).await;
    fixture.move_packs().await;
    let restorer = fixture.restorer();
    let target = |name: &str| Target::new(fixture.path(name), false).keep_going(true);
    fixture.looks.store(Fixture::DEAF, Ordering::SeqCst);
    let failure = restorer.restore(root.clone(), target("unasked"), |_| ()).await.unwrap_err();
    assert!(failure.why.contains("cannot make sure") && failure.kind != FailureKind::Damaged, "{failure}");

    fixture.looks.store(0, Ordering::SeqCst);
    let report = restorer.restore(root.clone(), target("found"), |_| ()).await.unwrap();
    assert!(std::fs::read(fixture.path("found")).unwrap() == content);
    assert_eq!((report.lost, fixture.looks.load(Ordering::SeqCst)), (0, 1));

    // What is in no pack at all is lost, and one look tells that of all chunks.
    let pack = fixture.data_copies()[0].1.pack;
    fixture.repository.store.delete(&names::pack(pack)).await.unwrap();
    let report = restorer.restore(root, target("lost"), |_| ()).await.unwrap();
    assert_eq!((report.lost, fixture.looks.load(Ordering::SeqCst)), (content.len() as u64, 2));
}

/// What was located before the look names packs that were gone before it, too.
#[tokio::test(start_paused = true)]
async fn packs_that_were_gone_before_the_look_cost_no_other_one() {
    let fixture = Fixture::plain().await;
    let mut packs = Vec::new();
    for seed in 0..4 {
        packs.push(fixture.pack(Domain::Data, &[noise(seed, CHUNK).into()]).await);
    }
    packs.sort_unstable();
    let (_, left) = packs.pop().unwrap();
    for (pack, _) in &packs {
        fixture.repository.store.delete(&names::pack(*pack)).await.unwrap();
    }
    fixture.table.lock().unwrap().retain(|id, _| left.contains(id));
    let looks = Looks::new(fixture.repository.clone(), fixture.index.clone());
    for (pack, ids) in packs {
        assert_eq!(looks.seek(&About::nothing(), &ids[0], &[pack]).await.unwrap(), []);
        assert_eq!(fixture.looks.load(Ordering::SeqCst), 1);
    }
}

/// Moved by a collection of which the index has heard, and then by one of which it has not.
#[tokio::test(start_paused = true)]
async fn what_was_moved_again_since_the_last_look_is_sought_again() {
    let fixture = Fixture::plain().await;
    fixture.volume(&noise(1, 2 * CHUNK)).await;
    let (id, first) = fixture.data_copies()[0];
    let looks = Looks::new(fixture.repository.clone(), fixture.index.clone());
    let seek = async |tried: &[PackId]| looks.seek(&About::nothing(), &id, tried).await.unwrap();
    assert_eq!(seek(&[]).await, [first]);
    fixture.move_packs().await;
    let heard = std::mem::take(&mut *fixture.later.lock().unwrap());
    fixture.table.lock().unwrap().extend(heard);
    let second = fixture.table.lock().unwrap()[&id][0].pack;
    assert_eq!(seek(&[first.pack]).await[0].pack, second);
    assert_eq!(fixture.looks.load(Ordering::SeqCst), 1, "the index names another one without a look");
    fixture.move_packs().await;
    let third = seek(&[second]).await[0].pack;
    assert!(fixture.repository.store.head(&names::pack(third)).await.unwrap().is_some());
    assert_eq!((seek(&[second, third]).await.len(), fixture.looks.load(Ordering::SeqCst)), (1, 2));
}
