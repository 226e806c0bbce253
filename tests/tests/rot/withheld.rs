//! Objects that the store does not give though it gives others, records that it does not take for a while, and what a
//! later version wrote: none of these is rot, and none stops more than it must.

use std::sync::Arc;
use std::time::Duration;

use agent::faults::store::{FaultyStore, StoreFaults};
use bytes::Bytes;
use checker::{Content, Report};
use futures::FutureExt;
use schema::check::Content as Asked;
use schema::damage::{Damage, DamagedChunk};
use schema::messages::FailureKind;
use schema::pack::PACK_HEADER_LEN;
use schema::{Domain, PackId, names};
use tests::rot::{Objects, Rot};

use super::agents::{ask, checked, damaged, packs, when};
use super::{ALL, Victim, flipped, is_named, victim};

/// A repository of these objects over a store that does as it is told. From now on time is virtual.
pub(super) async fn faulty(victim: &Victim, objects: &Objects) -> (Rot, FaultyStore) {
    let rot = victim.rot.with(objects).await.expect("a repository");
    tokio::time::pause();
    over(&rot)
}

pub(super) fn over(rot: &Rot) -> (Rot, FaultyStore) {
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

pub(super) async fn records(rot: &Rot) -> Vec<Damage> {
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
    assert!(report.is_clean() && report.settled == 1, "{report:?}");
    let report = rot.check(ALL).await.expect("a report");
    assert!(report.is_clean() && records(&rot).await.is_empty(), "{report:?}");
}

/// Nobody relies on a pack that is recorded as one of which nothing can be read: that it is not given, either, hides
/// nothing and stops nobody.
#[tokio::test]
async fn a_pack_that_is_given_up_and_not_given_stops_nothing() {
    let victim = victim().await;
    let (key, _) = victim.pack(Domain::Data);
    let mut objects = victim.objects.clone();
    objects.insert(key.clone(), objects[&key].slice(..60));
    let (rot, store) = faulty(&victim, &objects).await;
    let (_, before) = rot.repair().await.expect("a repair");
    assert!(!before.damaged.is_empty(), "{before:?}");
    store.withhold(&key, None);
    let report = rot.check(ALL).await.expect("a report");
    assert_eq!(lost(&report), lost(&before));
    assert!(report.damaged.iter().all(|damaged| !damaged.is_withheld()), "{report:?}");
}

/// Nobody else would end its session, and collections would wait for it for ever.
#[tokio::test]
async fn a_repair_whose_store_goes_away_leaves_no_session_or_says_so() {
    let victim = victim().await;
    let (key, _) = victim.pack(Domain::Data);
    for comes_back in [true, false] {
        let (rot, store) = faulty(&victim, &victim.objects).await;
        // It is asked for once more a minute later.
        store.withhold(&key, None);
        let environment = rot.repository.environment();
        let away = async {
            environment.sleep(Duration::from_secs(30)).await;
            store.crash();
            environment.sleep(Duration::from_secs(200)).await;
            if comes_back {
                store.recover();
            }
        };
        let (mended, ()) = tokio::join!(rot.mend(), away);
        let failure = mended.expect_err("the store was away");
        assert_eq!(failure.kind, FailureKind::Store, "{failure}");
        store.recover();
        let left = agent::sessions::list(&rot.repository).await.expect("a listing");
        tokio::time::resume();
        assert_eq!(left.len(), usize::from(!comes_back), "{left:?}");
        for session in left {
            assert!(failure.why.contains(&format!("`lvkeep cancel {}`", session.id)), "{failure}");
        }
    }
}

/// One key that is not given is named, and another one that is gone comes back.
#[tokio::test]
async fn a_key_that_is_not_given_stops_no_repair() {
    let victim = victim().await;
    let all: Vec<&String> = victim.brought.iter().filter(|key| key.starts_with("keys/")).collect();
    let [withheld, gone] = all[..] else { panic!("two backups have stored something: {all:?}") };
    let mut objects = victim.objects.clone();
    objects.remove(gone);
    let (rot, store) = faulty(&victim, &objects).await;
    store.withhold(withheld, None);
    let (mended, report) = rot.repair().await.expect("a repair");
    let [(id, why)] = &mended.keys_withheld[..] else { panic!("{mended:?}") };
    assert!(names::key(*id) == *withheld && why.contains("does not give"), "{why}");
    assert_eq!(mended.keys.iter().map(|id| names::key(*id)).collect::<Vec<_>>(), std::slice::from_ref(gone));
    let told = report.objects.iter().find(|one| one.key == *withheld).expect("it is named");
    assert!(told.why.contains("leaves what the store does not give"), "{told:?}");
}

/// A pack of parts of maps that is not given any more after it was read is asked for a few times, and not once for each
/// part and snapshot.
#[tokio::test]
async fn a_pack_of_maps_that_is_gone_silent_holds_no_walk_up() {
    let victim = victim().await;
    let (key, _) = victim.pack(Domain::Structure);
    let rot = victim.rot.with(&victim.objects).await.expect("a repository");
    for _ in 0..6 {
        rot.backup("vm/bad", &victim.path).await.expect("a snapshot of the same");
    }
    // Damage in content makes it look at maps again.
    let mut objects = rot.objects().await;
    let (data, frames) = victim.pack(Domain::Data);
    objects.insert(data.clone(), flipped(&objects[&data], frames[0].0 + frames[0].1 / 2));
    let (rot, store) = faulty(&victim, &objects).await;
    let report = rot.check_with(ALL, |progress| {
        if progress.done > 0 {
            store.withhold(&key, None);
        }
    });
    let before = rot.repository.environment().elapsed();
    let report = report.await.expect("a report");
    let patience = rot.repository.environment().elapsed() - before;
    let withheld = report.damaged.iter().filter(|damaged| damaged.is_withheld()).count();
    assert!(withheld >= 7, "{report:?}");
    // On the clock of the simulation: less than a pause for each.
    assert!(patience.as_secs() < 60 * 5, "{patience:?}");
}

/// A check that is not given keeps nobody from seeing the others, nor from asking for another one.
#[tokio::test]
async fn a_check_that_is_not_given_hides_no_other() {
    let victim = victim().await;
    let (rot, store) = faulty(&victim, &victim.objects).await;
    let environment = rot.repository.environment();
    let jobs = [environment.job_id(), environment.job_id()];
    for job in jobs {
        rot.put(&names::check(job), &super::open_check(job)).await.expect("a check");
    }
    store.withhold(&names::check(jobs[0]), None);
    let all = checker::jobs::list_all(&rot.repository).await.expect("all checks");
    assert_eq!(
        all.iter().filter(|(_, read)| read.is_err()).map(|(job, _)| *job).collect::<Vec<_>>(),
        [jobs[0]]
    );
    let read = checker::jobs::list(&rot.repository).await.expect("those that can be read");
    assert_eq!(read.iter().map(|check| check.job).collect::<Vec<_>>(), [jobs[1]]);
    // Of a store that gives nothing, nothing is known.
    store.withhold(names::CONFIG, None);
    checker::jobs::list_all(&rot.repository).await.expect_err("nothing is known");
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
