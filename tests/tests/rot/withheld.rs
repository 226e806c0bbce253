//! Objects that the store does not give though it gives others, records that it does not take for a while, and what a
//! later version wrote: none of these is rot, and none stops more than it must.

use std::sync::Arc;

use agent::faults::store::{FaultyStore, StoreFaults};
use bytes::Bytes;
use checker::{Content, Report};
use futures::FutureExt;
use schema::check::Content as Asked;
use schema::damage::{Damage, DamagedChunk, Holes};
use schema::messages::FailureKind;
use schema::pack::PACK_HEADER_LEN;
use schema::{Domain, PackId, names};
use tests::rot::{Objects, Rot};

use super::agents::{ask, checked, damaged, packs, when};
use super::{ALL, Victim, flipped, is_named, victim};

/// A repository of these objects over a store that does as it is told. From now on time is virtual.
async fn faulty(victim: &Victim, objects: &Objects) -> (Rot, FaultyStore) {
    let rot = victim.rot.with(objects).await.expect("a repository");
    tokio::time::pause();
    over(&rot)
}

fn over(rot: &Rot) -> (Rot, FaultyStore) {
    let environment = rot.repository.store.environment().clone();
    let mut store = None;
    let rot = rot.over(|bucket| {
        let faulty = FaultyStore::new(bucket, environment, StoreFaults::default());
        store = Some(faulty.clone());
        Arc::new(faulty)
    });
    (rot, store.expect("a store"))
}

fn pack_of(key: &str) -> PackId {
    names::parse_pack(key).expect("a pack")
}

/// Which snapshots lack what.
fn lost(report: &Report) -> Vec<(schema::names::Slot, Vec<std::ops::Range<u64>>)> {
    report.damaged.iter().map(|damaged| (damaged.slot, damaged.lost.clone())).collect()
}

async fn records(rot: &Rot) -> Vec<Damage> {
    let records = agent::damage::records(&rot.repository).await.expect("a listing");
    records.into_iter().map(|(_, record)| record.expect("a record")).collect()
}

/// An object that is not given is named with what it concerns, and everything behind it is checked.
#[tokio::test]
async fn what_the_store_does_not_give_is_named_and_stops_nothing() {
    let victim = victim().await;
    for key in victim.brought.iter().cloned().chain([names::key(victim.key())]) {
        let (rot, store) = faulty(&victim, &victim.objects).await;
        store.withhold(&key, None);
        let report = rot.check(ALL).await.unwrap_or_else(|why| panic!("{key}: {why}"));
        tokio::time::resume();
        assert!(is_named(&report, &key) && !report.is_clean(), "{key}: {report:?}");
        let said = report.objects.iter().map(|found| &found.why);
        let said = said.chain(report.damaged.iter().flat_map(|damaged| &damaged.problems));
        assert!(said.clone().any(|why| why.contains("does not give")), "{key}: {report:?}");
        let is_of_bad = |volume: &str| volume == "vm/bad";
        assert!(report.damaged.iter().all(|one| one.volume.as_deref().is_none_or(is_of_bad)), "{report:?}");
        let without =
            Objects::from_iter(victim.objects.clone().into_iter().filter(|(other, _)| *other != key));
        if key.starts_with("packs/") {
            // It concerns whom its loss would.
            let gone =
                victim.rot.with(&without).await.expect("a repository").check(ALL).await.expect("a report");
            assert_eq!(lost(&report), lost(&gone), "{key}");
            assert!(report.packs_read + 1 >= report.packs && report.recorded > 0, "{key}: {report:?}");
        }
        // It may be whole: nobody gives up what is in it but for what snapshots lack.
        assert!(records(&rot).await.iter().all(|record| record.packs.is_empty()), "{key}");
    }
}

/// A part of a pack is not given, and exactly that counts; when it is given again, the records turn out to be wrong.
#[tokio::test]
async fn what_is_given_again_is_taken_back() {
    let victim = victim().await;
    let of_content = |(key, bytes): (&String, &Bytes)| {
        let (header, footer) = schema::pack::parse_pack(bytes).expect("a pack");
        (header.kind == Domain::Data && footer.entries.len() > 1).then(|| (key.clone(), footer.entries))
    };
    let (key, frames) = victim.packs().find_map(of_content).expect("a pack with several frames");
    let at = (frames[1].offset + frames[1].len / 2) as usize;
    let (rot, store) = faulty(&victim, &victim.objects).await;
    store.withhold(&key, Some(at as u64..at as u64 + 1));
    let report = rot.check(ALL).await.expect("a report");
    let (rotten, _) = victim.with_pack(&key, Some(flipped(&victim.objects[&key], at)), "flipped").await;
    assert_eq!(lost(&report), lost(&rotten));
    assert!(is_named(&report, &key) && report.recorded == 1, "{report:?}");
    store.withhold_nothing();
    let report = rot.check(ALL).await.expect("a report");
    assert!(report.objects.is_empty() && report.settled == 1, "{report:?}");
    let report = rot.check(ALL).await.expect("a report");
    assert!(report.is_clean() && records(&rot).await.is_empty(), "{report:?}");
}

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
            let holes = Holes { version: 1, slot, found_ms: 0, ranges };
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

#[tokio::test]
async fn a_store_that_does_not_answer_is_no_damage() {
    let victim = victim().await;
    let (rot, store) = faulty(&victim, &victim.objects).await;
    store.withhold(names::CONFIG, None);
    let (key, _) = victim.pack(Domain::Data);
    store.withhold(&key, None);
    let failure = rot.check(ALL).await.expect_err("nothing is known");
    assert!(failure.kind == FailureKind::Store && failure.retry, "{failure}");
    store.withhold_nothing();
    assert!(records(&rot).await.is_empty());
    assert!(rot.check(ALL).await.expect("a report").is_clean());
}

/// A check of agents goes on behind a pack that is not given any more when its turn comes.
#[tokio::test]
async fn agents_go_on_behind_what_is_not_given() {
    let victim = victim().await;
    let (rot, _) = damaged(&victim).await;
    let (rot, store) = over(&rot);
    let all = packs(&rot.objects().await);
    let middle = all[1];
    let agents = rot.agents().await.expect("a bus");
    let _agent = agents.start(Some(1000));
    let job = ask(&rot, &agents, Asked::All).await;
    when(&rot, job, |check| check.reached.done > 0).await;
    store.withhold(&names::pack(middle), None);
    let report = checked(&rot, job).await;
    for pack in [middle, all[all.len() - 1]] {
        assert!(report.found.iter().any(|found| found.key == names::pack(pack)), "{pack}: {report:?}");
    }
    assert_eq!((report.packs_read + 1, report.unrecorded), (report.packs, None));
}

#[tokio::test]
async fn what_a_later_version_wrote_is_no_damage() {
    let victim = victim().await;
    for kind in [Domain::Data, Domain::Structure] {
        let (key, frames) = victim.pack(kind);
        let bytes = &victim.objects[&key];
        let mut frame = bytes.to_vec();
        let (start, _) = frames[0];
        frame[start + 2] = 2;
        let check = blake3::hash(&frame[start..start + 45]);
        frame[start + 45..start + 48].copy_from_slice(&check.as_bytes()[..3]);
        let mut pack = bytes.to_vec();
        pack[8] = 2;
        let footer = frames.last().map_or(0, |(start, len)| start + len);
        let trailer = pack.len() - 28;
        let check = blake3::hash(&[&pack[..PACK_HEADER_LEN], &pack[footer..trailer]].concat());
        pack[trailer + 4..trailer + 20].copy_from_slice(&check.as_bytes()[..16]);
        for (what, bytes) in [("frame", frame), ("pack", pack)] {
            let case = format!("a {what} of {key}");
            let mut objects = victim.objects.clone();
            objects.insert(key.clone(), Bytes::from(bytes));
            let rot = victim.rot.with(&objects).await.expect("a repository");
            let refused = [rot.check(ALL).await.map(drop), rot.repair().await.map(drop)];
            for refused in refused {
                let why = refused.expect_err(&case);
                let is_named = why.why.contains("later version") && why.why.contains(&key);
                assert!(why.kind == FailureKind::Refused && is_named, "{case}: {why}");
            }
            let left = rot.objects().await;
            let marks = left.keys().filter(|key| key.starts_with("damage/") || key.starts_with("holes/"));
            assert_eq!(marks.count(), 0, "{case}");
        }
    }
}

/// What could not be recorded for a while is recorded later, and then another check may go on behind it.
#[tokio::test]
async fn a_record_that_fails_once_is_made_up_for() {
    let victim = victim().await;
    let (rot, ends) = damaged(&victim).await;
    let (rot, store) = over(&rot);
    store.lock(Some("damage"));
    let reached = std::sync::Mutex::new(Vec::new());
    let report = rot.check_with(ALL, |progress| {
        if progress.done > 0 {
            reached.lock().expect("a lock").push(progress.after);
            store.lock(None);
        }
    });
    let report = report.await.expect("a report");
    let reached = reached.into_inner().expect("a lock");
    assert_eq!((reached.first(), reached.last()), (Some(&None), Some(&Some(ends[1]))));
    assert!(report.unrecorded.is_none() && !report.is_behind && report.recorded > 0, "{report:?}");
}

/// A check that comes no further because nothing can be recorded, and is given back for other work, has been tried.
#[tokio::test]
async fn an_attempt_that_can_record_nothing_counts() {
    let victim = victim().await;
    let (rot, _) = damaged(&victim).await;
    let (rot, store) = over(&rot);
    store.lock(Some("damage"));
    let agents = rot.agents().await.expect("a bus");
    let busy = agents.start(Some(1000));
    let job = ask(&rot, &agents, Asked::All).await;
    when(&rot, job, |check| check.reached.total > 0).await;
    tokio::time::sleep(std::time::Duration::from_secs(30)).await;
    busy.context.counters.messages_taken.add(1);
    let free = when(&rot, job, |check| check.worker.is_none()).await;
    assert_eq!((free.tries, free.reached.behind), (1, None));
}

/// Two checks find the same: it is recorded once.
#[tokio::test]
async fn what_another_check_has_recorded_meanwhile_is_not_recorded_again() {
    let victim = victim().await;
    let (key, frames) = victim.pack(Domain::Data);
    let mut objects = victim.objects.clone();
    objects.insert(key.clone(), flipped(&objects[&key], frames[0].0 + frames[0].1 / 2));
    let (_, footer) = schema::pack::parse_pack(&victim.objects[&key]).expect("a pack");
    let chunks = vec![DamagedChunk { id: footer.entries[0].id, packs: vec![pack_of(&key)] }];
    let record = Damage { version: 1, found_ms: 0, host: "other".into(), packs: vec![], chunks };
    let rot = victim.rot.with(&objects).await.expect("a repository");
    let name = names::damage(rot.repository.environment().damage_id());
    let beside = |progress: checker::Progress<'_>| {
        if progress.done == 0 {
            rot.put(&name, &record).now_or_never().expect("at once").expect("a record");
        }
    };
    let report = rot.check_with(Content::All { after: None }, beside).await.expect("a report");
    assert_eq!((report.recorded, records(&rot).await), (0, vec![record.clone()]));
}
