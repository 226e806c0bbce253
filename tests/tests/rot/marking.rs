//! Marks of holes, while the store does not give something and while not all damage is known: then none is added, and none
//! goes.

use checker::Content;
use schema::damage::Holes;
use schema::{Domain, names};

use super::withheld::{faulty, over, records};
use super::{ALL, flipped, victim};

/// What the store gives again later is no hole, and no reason to take a mark away.
#[tokio::test]
async fn what_is_not_given_changes_no_marks() {
    let victim = victim().await;
    let (key, _) = victim.pack(Domain::Data);
    let slot = victim.bad.0.slot;
    let (rot, store) = faulty(&victim, &victim.objects).await;
    store.withhold(&key, None);
    for before in [None, Some(vec![(0, 4096)])] {
        if let Some(ranges) = before.clone() {
            let holes = Holes { version: 1, slot, found_ms: 0, ranges, is_unrecorded: false };
            rot.put(&slot.holes(), &holes).await.expect("a mark");
        }
        let (_, report) = rot.repair().await.expect("a repair");
        let one = report.damaged.iter().find(|damaged| damaged.slot == slot).expect("it is named");
        assert!(one.is_withheld() && !one.lost.is_empty(), "{one:?}");
        let marked = rot.repository.read::<Holes>(&slot.holes()).await.expect("a read");
        assert_eq!(marked.map(|holes| holes.ranges), before);
    }
    store.withhold_nothing();
    let (_, report) = rot.repair().await.expect("a repair");
    assert!(report.damaged.is_empty(), "{report:?}");
    assert!(rot.repository.read::<Holes>(&slot.holes()).await.expect("a read").is_none());
}

/// A record that was made while a frame was not given makes no hole: not while it still is not given, and not when it is.
#[tokio::test]
async fn a_record_of_what_was_not_given_makes_no_hole() {
    let victim = victim().await;
    let (key, frames) = victim.pack(Domain::Data);
    let (start, len) = frames[0];
    for content in [ALL, Content::None] {
        for is_given in [false, true] {
            let case = format!("{content:?}, {is_given}");
            let (rot, store) = faulty(&victim, &victim.objects).await;
            store.withhold(&key, Some(start as u64..(start + len) as u64));
            let report = rot.check(ALL).await.expect("a report");
            assert!(report.recorded > 0 && !report.damaged.is_empty(), "{case}: {report:?}");
            if is_given {
                store.withhold_nothing();
            }
            let (_, report) = rot.repair_with(content).await.expect("a repair");
            assert_eq!(report.damaged.is_empty(), is_given, "{case}: {report:?}");
            assert!(report.damaged.iter().all(|damaged| damaged.is_withheld()), "{case}: {report:?}");
            assert!(rot.repository.store.list(names::HOLES).await.expect("a listing").is_empty(), "{case}");
            assert_eq!(records(&rot).await.is_empty(), is_given, "{case}");
            tokio::time::resume();
        }
    }
}

/// Of what is recorded nobody knows while a record cannot be read: a mark by it stays, with all that it says, until all
/// content was read.
#[tokio::test]
async fn a_mark_stays_while_its_record_cannot_be_read() {
    let victim = victim().await;
    let (key, frames) = victim.pack(Domain::Data);
    let slot = victim.bad.0.slot;
    let mut objects = victim.objects.clone();
    objects.insert(key.clone(), flipped(&objects[&key], frames[0].0 + frames[0].1 / 2));
    let rot = victim.rot.with(&objects).await.expect("a repository");
    rot.repair().await.expect("a repair");
    let objects = rot.objects().await;
    let record = objects.keys().find(|key| key.starts_with(names::DAMAGE)).expect("a record");
    for is_rotten in [false, true] {
        let (rot, store) = faulty(&victim, &objects).await;
        let marked = || async { rot.repository.read::<Holes>(&slot.holes()).await.expect("a read") };
        let before = marked().await.expect("a mark");
        match is_rotten {
            false => store.withhold(record, None),
            true => rot.repository.store.put(record, flipped(&objects[record], 60)).await.expect("it rots"),
        }
        let report = rot.check(Content::None).await.expect("a report");
        assert!(report.damaged.is_empty(), "{report:?}");
        assert_eq!(rot.mark(&report).await.expect("marks").kept, 1);
        assert_eq!(marked().await, Some(before.clone()));
        // Who reads all content knows.
        rot.put(&slot.holes(), &Holes { ranges: vec![(0, 4096)], ..before.clone() }).await.expect("a mark");
        rot.repair().await.expect("a repair");
        assert_eq!(marked().await.map(|holes| holes.ranges), Some(before.ranges));
        tokio::time::resume();
    }
}

/// Damage for which there was no room is not taken for healed by who does not read it again.
#[tokio::test]
async fn a_mark_of_what_is_not_recorded_stays_until_all_is_read() {
    let victim = victim().await;
    let (key, frames) = victim.pack(Domain::Data);
    let slot = victim.bad.0.slot;
    let mut objects = victim.objects.clone();
    objects.insert(key.clone(), flipped(&objects[&key], frames[0].0 + frames[0].1 / 2));
    let (rot, store) = faulty(&victim, &objects).await;
    store.lock(Some(names::DAMAGE));
    let (_, report) = rot.repair().await.expect("a repair");
    assert!(report.unrecorded.is_some(), "{report:?}");
    store.lock(None);
    let (_, report) = rot.repair_with(Content::None).await.expect("a repair");
    assert!(report.damaged.is_empty(), "{report:?}");
    let holes = rot.repository.read::<Holes>(&slot.holes()).await.expect("a read").expect("a mark");
    assert!(holes.is_unrecorded);
    rot.repository.store.put(&key, victim.objects[&key].clone()).await.expect("it is whole again");
    rot.repair_with(Content::None).await.expect("a repair");
    assert!(rot.repository.read::<Holes>(&slot.holes()).await.expect("a read").is_some());
    rot.repair().await.expect("a repair");
    assert!(rot.repository.read::<Holes>(&slot.holes()).await.expect("a read").is_none());
}

/// A mark that is not given stays as it is; the others are written.
#[tokio::test]
async fn a_mark_that_is_not_given_stops_no_other() {
    let victim = victim().await;
    let mut objects = victim.objects.clone();
    for (key, bytes) in victim.packs() {
        let (header, footer) = schema::pack::parse_pack(bytes).expect("a pack");
        if header.kind == Domain::Data {
            let at = footer.entries[0].offset + footer.entries[0].len / 2;
            objects.insert(key.clone(), flipped(bytes, at as usize));
        }
    }
    let rot = victim.rot.with(&objects).await.expect("a repository");
    let mut report = rot.check(ALL).await.expect("a report");
    // As if not all of it were known: what old marks say counts.
    report.unrecorded = Some("no room".into());
    let damaged = report.damaged.len() as u64;
    assert!(damaged > 1, "{report:?}");
    tokio::time::pause();
    let (rot, store) = over(&rot);
    let (slot, other) = (report.damaged[0].slot, victim.good.0.slot);
    for slot in [slot, other] {
        let holes = Holes { version: 1, slot, found_ms: 0, ranges: vec![(0, 4096)], is_unrecorded: true };
        rot.put(&slot.holes(), &holes).await.expect("a mark");
    }
    let marked = rot.mark(&report).await.expect("marks");
    assert_eq!((marked.snapshots, marked.kept, marked.failures.len()), (damaged, 1, 0));
    let holes = rot.repository.read::<Holes>(&slot.holes()).await.expect("a read").expect("a mark");
    assert_eq!(holes.ranges[0].0, 0, "what it was marked with stays");
    store.withhold(&slot.holes(), None);
    let marked = rot.mark(&report).await.expect("marks");
    assert_eq!((marked.snapshots, marked.kept), (damaged - 1, 1));
    let [why] = &marked.failures[..] else { panic!("{marked:?}") };
    assert!(why.contains(&slot.session.to_string()), "{why}");
}
