//! What a store has cut off never goes for a tombstone: a snapshot without a root that can be read is named, and nothing of
//! it is collected. A tombstone that cannot be read any more is put anew.

use agent::repository::AtSlot;
use agent::sessions::{self, OpenSession};
use agent::{Stop, forgetting, marks};
use bytes::Bytes;
use schema::config::FEATURE_BASE;
use schema::damage::Holes;
use schema::messages::FailureKind;
use schema::names::{self, Slot};
use schema::root::Root;
use schema::session::SessionKind;
use schema::tombstone::{TOMBSTONE_LEN, Tombstones};
use tests::rot::{Objects, Rot};

use super::older::{collect, prune};
use super::{ALL, Victim, flipped, is_named, victim};

/// What may come to stand where a root was, none of which is a tombstone of that slot.
async fn cut_off(victim: &Victim, root: &Root) -> Vec<(&'static str, Bytes)> {
    let bytes = &victim.objects[&root.slot.snapshot()];
    let other = Slot { session: victim.rot.repository.environment().session_id(), ..root.slot };
    let tombstone = victim.rot.repository.tombstone(root.slot).expect("a tombstone");
    vec![
        ("empty", Bytes::new()),
        ("as short as a tombstone", bytes.slice(..TOMBSTONE_LEN as usize)),
        ("a tombstone of another slot", victim.rot.repository.tombstone(other).expect("a tombstone")),
        ("a tombstone that is cut off", tombstone.slice(..tombstone.len() - 1)),
        ("zeroes", Bytes::from_static(&[0; TOMBSTONE_LEN as usize])),
    ]
}

/// The root of a snapshot on which no other one is based: nothing else speaks of it.
#[tokio::test]
async fn a_root_that_is_cut_off_is_named_and_nothing_of_it_is_collected() {
    let victim = victim().await;
    let (root, key) = (&victim.bad.0, victim.bad.0.slot.snapshot());
    for (case, bytes) in cut_off(&victim, root).await {
        let mut objects = victim.objects.clone();
        objects.insert(key.clone(), bytes);
        let rot = victim.rot.with(&objects).await.expect("a repository");
        let report = rot.check(ALL).await.expect("a report");
        assert!(is_named(&report, &key), "{case}: {report:?}");
        let is_listed = !rot.repository.is_as_short(objects[&key].len() as u64);
        let roots = rot.repository.roots(None).await.expect("roots");
        let damaged: Vec<Slot> = roots.damaged.iter().map(|damaged| damaged.slot).collect();
        assert_eq!(damaged, if is_listed { vec![root.slot] } else { Vec::new() }, "{case}");

        let refused = prune(&rot).await.expect_err("nobody knows what it needs");
        assert!(refused.kind == FailureKind::Damaged, "{case}: {refused}");
        assert!(refused.why.contains(&format!("lvkeep forget {}", root.slot.session)), "{case}: {refused}");
        // A repair decides nothing of it, and what comes back is whole.
        let slot = root.slot;
        let holes = Holes { version: 1, slot, found_ms: 0, ranges: vec![(0, 4096)], is_unrecorded: false };
        rot.put(&slot.holes(), &holes).await.expect("a mark");
        let (mended, _) = rot.repair().await.expect("a repair");
        assert!(rot.objects().await.contains_key(&slot.holes()), "{case}");
        assert!(mended.forgotten.is_empty(), "{case}: {mended:?}");
        rot.repository.store.put(&key, victim.objects[&key].clone()).await.expect("it is brought back");
        assert!(rot.check(ALL).await.expect("a report").is_clean(), "{case}");
        collect(&rot).await.expect("a collection");
        let (restored, _) = rot.restore(root).await.expect("a restore");
        assert!(restored == victim.bad.1, "{case}");
    }
}

/// The same while a collection waits, which has condemned packs: nobody knows any more whether it needs them.
#[tokio::test]
async fn a_root_that_is_cut_off_during_a_collection_stops_it() {
    let victim = victim().await;
    for (case, bytes) in cut_off(&victim, &victim.bad.0).await {
        let rot = victim.rot.with(&victim.objects).await.expect("a repository");
        forgetting::forget(&rot.repository, &victim.older, "a test").await.expect("it is forgotten");
        let waited_for = super::open_session(&rot, &victim.bad.0, false);
        let open = OpenSession::begin(rot.repository.clone(), waited_for).await.expect("a session");
        assert_eq!(prune(&rot).await.expect("it waits").waits.len(), 1, "{case}");
        let unfinished =
            collector::unfinished(&rot.repository).await.expect("a collection").expect("one that waits");
        assert!(unfinished.condemned > 0, "{case}: {unfinished:?}");
        open.end().await.expect("it ends");
        let packs = rot.repository.list_packs().await.expect("a listing");
        let key = victim.bad.0.slot.snapshot();
        rot.repository.store.put(&key, bytes).await.expect("it is cut off");
        // All packs are reprieved, and the next collection does not begin.
        let refused = prune(&rot).await.expect_err("nobody knows what it needs");
        assert!(
            refused.why.contains(&format!("lvkeep forget {}", victim.bad.0.slot.session)),
            "{case}: {refused}"
        );
        let verdict = agent::epochs::verdict(&rot.repository, 1).await.expect("a verdict").expect("one");
        assert_eq!(verdict.delete, [], "{case}");
        assert_eq!(rot.repository.list_packs().await.expect("a listing"), packs, "{case}");
    }
}

/// It is let go by its whole id, and what stands in its slot is a tombstone then.
#[tokio::test]
async fn a_root_that_is_cut_off_can_be_let_go() {
    let victim = victim().await;
    let slot = victim.bad.0.slot;
    for (case, bytes) in cut_off(&victim, &victim.bad.0).await {
        let mut objects = victim.objects.clone();
        objects.insert(slot.snapshot(), bytes);
        let rot = victim.rot.with(&objects).await.expect("a repository");
        forgetting::forget_damaged(&rot.repository, slot, "a test").await.expect("it is forgotten");
        collect(&rot).await.expect("a collection");
        rot.repair().await.expect("a repair");
        let found = rot.repository.at_slot(slot).await.expect("a slot");
        assert!(matches!(found, AtSlot::Tombstone), "{case}: {found:?}");
        assert!(rot.check(ALL).await.expect("a report").is_clean(), "{case}");
        victim.good_is_unharmed(&rot, case).await;
    }
}

/// Of a snapshot that was swept: a check names it, nothing else suffers, and a repair puts one there again.
#[tokio::test]
async fn a_tombstone_that_cannot_be_read_is_put_anew() {
    let victim = victim().await;
    let rot = victim.rot.with(&victim.objects).await.expect("a repository");
    let (slot, key) = (victim.older.slot, victim.older.slot.snapshot());
    forgetting::forget(&rot.repository, &victim.older, "a test").await.expect("it is forgotten");
    collect(&rot).await.expect("a collection");
    let swept = rot.objects().await;
    assert!(rot.check(ALL).await.expect("a report").is_clean());
    for (case, bytes) in [
        ("a flipped bit", flipped(&swept[&key], 30)),
        ("cut off", swept[&key].slice(..9)),
        ("empty", Bytes::new()),
    ] {
        let mut objects = swept.clone();
        objects.insert(key.clone(), bytes);
        let rot = victim.rot.with(&objects).await.expect("a repository");
        let report = rot.check(ALL).await.expect("a report");
        assert!(is_named(&report, &key) && report.damaged.is_empty(), "{case}: {report:?}");
        collect(&rot).await.unwrap_or_else(|why| panic!("{case}: {why}"));
        let (mended, report) = rot.repair().await.expect("a repair");
        // What is of another length was swept again.
        let by_repair = if case == "a flipped bit" { vec![key.clone()] } else { Vec::new() };
        assert!(mended.forgotten == by_repair && report.is_clean(), "{case}: {mended:?} {report:?}");
        assert!(matches!(rot.repository.at_slot(slot).await, Ok(AtSlot::Tombstone)), "{case}");
        victim.good_is_unharmed(&rot, case).await;
    }
}

/// Nobody else ever writes a marker again: while it cannot be read, a check names it.
#[tokio::test]
async fn a_marker_that_cannot_be_read_is_put_anew() {
    let victim = victim().await;
    let rot = victim.rot.with(&victim.objects).await.expect("a repository");
    let (slot, key) = (victim.older.slot, victim.older.slot.forgotten());
    forgetting::forget(&rot.repository, &victim.older, "a test").await.expect("it is forgotten");
    let forgotten = rot.objects().await;
    for (case, bytes) in [("a flipped bit", flipped(&forgotten[&key], 30)), ("empty", Bytes::new())] {
        let mut objects = forgotten.clone();
        objects.insert(key.clone(), bytes);
        let rot = victim.rot.with(&objects).await.expect("a repository");
        assert!(is_named(&rot.check(ALL).await.expect("a report"), &key), "{case}");
        let (mended, report) = rot.repair().await.expect("a repair");
        assert!(mended.forgotten == [key.clone()] && report.is_clean(), "{case}: {mended:?} {report:?}");
        collect(&rot).await.expect("a collection");
        assert!(matches!(rot.repository.at_slot(slot).await, Ok(AtSlot::Tombstone)), "{case}");
        victim.good_is_unharmed(&rot, case).await;
    }
}

/// A marker of another snapshot is none; what a later version wrote is left to it, and so is what may not be overwritten.
#[tokio::test]
async fn only_what_is_damaged_is_put_anew() {
    let victim = victim().await;
    let rot = victim.rot.with(&victim.objects).await.expect("a repository");
    for root in [&victim.older, &victim.bad.0] {
        forgetting::forget(&rot.repository, root, "a test").await.expect("it is forgotten");
    }
    let (older, bad) = (victim.older.slot.forgotten(), victim.bad.0.slot.forgotten());
    let objects = rot.objects().await;
    let mut swapped = objects.clone();
    let another = schema::root::Forgotten { slot: victim.bad.0.slot, time_ms: 0, by: "a test".into() };
    let sealed = rot.repository.seal(&older, &another).expect("a marker");
    swapped.insert(older.clone(), sealed);
    let rot = victim.rot.with(&swapped).await.expect("a repository");
    let (locked, store) = super::withheld::over(&rot);
    store.lock(Some(names::FORGOTTEN));
    let (mended, _) = locked.repair().await.expect("a repair");
    assert!(mended.forgotten.is_empty() && mended.stays.len() == 1, "{mended:?}");
    assert_eq!(mended.stays[0].0, older);
    let (mended, report) = rot.repair().await.expect("a repair");
    assert!(mended.forgotten == [older] && report.is_clean(), "{mended:?} {report:?}");

    // Its tag fits no version that is known here.
    let mut later = objects[&bad].to_vec();
    later[4] = 7;
    *later.last_mut().expect("a tag") ^= 1;
    let mut objects = objects.clone();
    objects.insert(bad.clone(), later.into());
    let rot = victim.rot.with(&objects).await.expect("a repository");
    assert!(is_named(&rot.check(ALL).await.expect("a report"), &bad));
    let (mended, _) = rot.repair().await.expect("a repair");
    assert!(mended.forgotten.is_empty() && mended.stays.is_empty(), "{mended:?}");
    assert_eq!(rot.objects().await[&bad], objects[&bad]);
}

/// It may be brought back from elsewhere: nothing of it goes while it is held.
#[tokio::test]
async fn what_is_held_and_cut_off_is_left_by_a_repair() {
    let victim = victim().await;
    let (slot, key) = (victim.bad.0.slot, victim.bad.0.slot.snapshot());
    for (case, bytes) in cut_off(&victim, &victim.bad.0).await {
        let rot = victim.rot.with(&victim.objects).await.expect("a repository");
        let hold = marks::hold(&rot.repository, slot, None, "a test").await.expect("a hold");
        let marker = schema::root::Forgotten { slot, time_ms: 0, by: "a test".into() };
        rot.put(&slot.forgotten(), &marker).await.expect("a marker");
        let holes = Holes { version: 1, slot, found_ms: 0, ranges: vec![(0, 4096)], is_unrecorded: false };
        rot.put(&slot.holes(), &holes).await.expect("a mark");
        rot.repository.store.put(&key, bytes.clone()).await.expect("it is cut off");
        let packs = rot.repository.list_packs().await.expect("a listing");
        for _ in 0..2 {
            assert!(is_named(&rot.check(ALL).await.expect("a report"), &key), "{case}");
            let refused = prune(&rot).await.expect_err("nobody knows what it needs");
            assert!(refused.why.contains(&format!("lvkeep release {}", slot.session)), "{case}: {refused}");
            let (mended, _) = rot.repair().await.expect("a repair");
            let is_short = rot.repository.is_as_short(bytes.len() as u64);
            let stays: Vec<&str> = mended.stays.iter().map(|(key, _)| &**key).collect();
            assert_eq!(stays, if is_short { vec![&*key] } else { Vec::new() }, "{case}");
            assert!(mended.forgotten.is_empty(), "{case}: {mended:?}");
        }
        assert_eq!(rot.repository.list_packs().await.expect("a listing"), packs, "{case}");
        assert!(rot.objects().await.contains_key(&slot.holes()), "{case}");
        marks::release(&rot.repository, slot, &[hold]).await.expect("it is released");
        rot.repair().await.expect("a repair");
        collect(&rot).await.expect("a collection");
        assert!(rot.check(ALL).await.expect("a report").is_clean(), "{case}");
        assert!(matches!(rot.repository.at_slot(slot).await, Ok(AtSlot::Tombstone)), "{case}");
    }
}

/// One that was made before tombstones were sealed keeps to empty ones, whoever writes.
#[tokio::test]
async fn an_older_repository_keeps_to_its_empty_tombstones() {
    let victim = victim().await;
    let repository = &victim.rot.repository;
    let base = [FEATURE_BASE.to_owned()];
    let config = repository.config.encode_requiring(&base, &base, &repository.key, [7; 12]);
    let mut objects: Objects = victim.objects.clone();
    objects.insert(names::CONFIG.to_owned(), config.expect("a configuration").into());
    let rot: Rot = victim.rot.with(&objects).await.expect("a repository");
    assert_eq!(rot.repository.tombstones, Tombstones::Empty);

    let given_up = super::open_session(&rot, &victim.bad.0, true);
    let slot = given_up.slot.expect("a slot");
    assert_eq!(given_up.kind, SessionKind::Backup);
    let open = OpenSession::begin(rot.repository.clone(), given_up).await.expect("a session");
    assert!(matches!(open.dismiss(&Stop::default()).await, Ok(AtSlot::Tombstone)));
    forgetting::forget(&rot.repository, &victim.older, "a test").await.expect("it is forgotten");
    collect(&rot).await.expect("a collection");
    let objects = rot.objects().await;
    for slot in [slot, victim.older.slot] {
        assert!(objects[&slot.snapshot()].is_empty());
        assert!(matches!(rot.repository.at_slot(slot).await, Ok(AtSlot::Tombstone)));
    }
    assert!(sessions::list(&rot.repository).await.expect("a listing").is_empty());
    let rot = victim.rot.with(&objects).await.expect("a repository");
    let (mended, report) = rot.repair().await.expect("a repair");
    assert!(mended.forgotten.is_empty() && report.is_clean(), "{mended:?} {report:?}");
    let next = rot.backup("vm/bad", &victim.path).await.expect("a snapshot");
    assert_eq!(next.parent, Some(victim.bad.0.slot));
    let (restored, _) = rot.restore(&next).await.expect("a restore");
    assert!(restored == victim.bad.1);
}
