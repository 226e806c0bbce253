//! Collections whose objects rot, at every stage: backups go on unless nobody can know what is being deleted, nothing is
//! collected meanwhile that somebody needs, and after a repair all goes on, whoever has read what stood there before.

use agent::forgetting;
use bytes::Bytes;
use schema::epoch::{Awaited, Epoch, Verdict};
use schema::root::Root;
use schema::{PackId, names};
use tests::rot::{Objects, Rot};

use super::older::collect;
use super::withheld::over;
use super::{ALL, Victim, flipped, is_named, victim};
use agent::faults::store::Refusal;
use checker::Content;

/// How far a collection came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It has an epoch, which condemns everything, and waits for nobody.
    Proposed,
    /// It has a verdict, and its roots are swept.
    Decided,
    /// A pack is gone.
    Begun,
    /// All is gone.
    Over,
}

/// A collection that was left.
struct Left {
    objects: Objects,
    /// What its verdict deletes.
    delete: Vec<PackId>,
    /// A snapshot that was forgotten since, of another volume.
    late: Root,
}

async fn left(victim: &Victim, stage: Stage) -> Left {
    let rot = victim.rot.with(&victim.objects).await.expect("a repository");
    let late = rot.backup("vm/late", &victim.path).await.expect("a snapshot");
    let alone = victim.path.with_file_name("alone.img");
    tests::e2e::random_file(&alone, 300_000, 9);
    let alone = rot.backup("vm/alone", &alone).await.expect("a snapshot");
    for root in [&victim.older, &alone] {
        forgetting::forget(&rot.repository, root, "a test").await.expect("it is forgotten");
    }
    let condemned =
        rot.repository.list_packs().await.expect("packs").into_iter().map(|(pack, _)| pack).collect();
    let epoch = Epoch { number: 1, forgotten: vec![victim.older.slot, alone.slot], condemned };
    rot.put(&names::epoch(1), &epoch).await.expect("an epoch");
    let awaited = Awaited { number: 1, sessions: Vec::new() };
    rot.put(&names::awaited(1), &awaited).await.expect("a list of sessions");
    let mut delete = Vec::new();
    if stage != Stage::Proposed {
        let (locked, store) = over(&rot);
        store.refuse(Some(Refusal::Deletions));
        collect(&locked).await.expect("a collection");
        let verdict = rot.repository.read::<Verdict>(&names::verdict(1)).await.expect("it is read");
        delete = verdict.expect("a verdict").delete;
        assert!(delete.len() > 1 && delete.len() < epoch.condemned.len(), "some are needed: {delete:?}");
    }
    let goes = match stage {
        Stage::Proposed | Stage::Decided => 0,
        Stage::Begun => 1,
        Stage::Over => delete.len(),
    };
    sweep(&rot, &delete[..goes]).await;
    forgetting::forget(&rot.repository, &late, "a test").await.expect("it is forgotten");
    Left { objects: rot.objects().await, delete, late }
}

async fn sweep(rot: &Rot, packs: &[PackId]) {
    for pack in packs {
        rot.repository.store.delete(&names::pack(*pack)).await.expect("it is gone");
    }
}

#[tokio::test]
async fn a_collection_that_rots_stops_backups_only_where_nothing_is_known_and_a_repair_ends_it() {
    let victim = victim().await;
    for stage in [Stage::Proposed, Stage::Decided, Stage::Begun, Stage::Over] {
        let left = left(&victim, stage).await;
        for key in [names::epoch(1), names::verdict(1)] {
            let Some(bytes) = left.objects.get(&key) else { continue };
            // Magic, version, nonce, body, tag.
            let places = [0, 4, 30, bytes.len() / 2, bytes.len() - 1];
            let mut cases: Vec<(String, Option<Bytes>)> =
                places.iter().map(|at| (format!("byte {at}"), Some(flipped(bytes, *at)))).collect();
            cases.push(("cut in half".into(), Some(bytes.slice(..bytes.len() / 2))));
            cases.push(("empty".into(), Some(Bytes::new())));
            // A verdict that is gone leaves no trace.
            if key == names::epoch(1) {
                cases.push(("gone".into(), None));
            }
            for (what, rotten) in cases {
                let case = format!("{stage:?}: {key}, {what}");
                let mut objects = left.objects.clone();
                match rotten {
                    Some(rotten) => objects.insert(key.clone(), rotten),
                    None => objects.remove(&key),
                };
                rots(&victim, &left, (stage, key.as_str()), &objects, &case).await;
            }
        }
    }
}

async fn rots(victim: &Victim, left: &Left, (stage, key): (Stage, &str), objects: &Objects, case: &str) {
    let rot = victim.rot.with(objects).await.unwrap_or_else(|why| panic!("{case}: {why}"));
    let report = rot.check(Content::None).await.unwrap_or_else(|why| panic!("{case}: {why}"));
    assert!(is_named(&report, key), "{case}: {report:?}");
    let backed_up = rot.backup("vm/bad", &victim.path).await;
    // What is empty says nothing any more once a later collection has begun.
    let mut is_settled = false;
    if stage == Stage::Proposed {
        let why = backed_up.expect_err(case).to_string();
        assert!(why.contains("lvkeep repair"), "{case}: {why}");
    } else {
        backed_up.unwrap_or_else(|why| panic!("{case}: {why}"));
        let knows = objects.get(&names::epoch(1)) == left.objects.get(&names::epoch(1));
        // What a verdict deletes that cannot be read may be anything that was condemned.
        let is_over = stage == Stage::Over && !knows;
        is_settled = is_over && objects.get(key).is_some_and(Bytes::is_empty);
        let back = forgetting::unforget(&rot.repository, &left.late, "a test").await;
        assert_eq!(back.is_ok(), knows, "{case}: {back:?}");
        match collect(&rot).await {
            Ok(()) => assert!(is_over, "{case}"),
            Err(why) => {
                let why = why.to_string();
                assert!(!is_over && why.contains("lvkeep repair"), "{case}: {why}");
            }
        }
    }
    victim.good_is_unharmed(&rot, case).await;

    let (mended, _) = rot.repair().await.unwrap_or_else(|why| panic!("{case}: {why}"));
    assert!(mended.unended.is_empty(), "{case}: {mended:?}");
    assert_eq!(mended.collections.is_empty(), is_settled, "{case}: {mended:?}");
    // Whoever had read the verdict, and is slow, still does what it says.
    sweep(&rot, &left.delete).await;
    if stage != Stage::Over {
        let back = forgetting::unforget(&rot.repository, &left.late, "a test").await;
        let back = back.unwrap_or_else(|why| panic!("{case}: {why}"));
        let (restored, _) = rot.restore(&back.root).await.unwrap_or_else(|why| panic!("{case}: {why}"));
        assert!(restored == victim.bad.1, "{case}");
    }
    goes_on(victim, &rot, case).await;
}

/// Everything is as it should be, and stays so with the next backups and collections.
async fn goes_on(victim: &Victim, rot: &Rot, case: &str) {
    for round in 1..=2 {
        let report = rot.check(ALL).await.unwrap_or_else(|why| panic!("{case}: {why}"));
        assert!(report.is_clean(), "{case}, round {round}: {report:?}");
        let next = rot.backup("vm/bad", &victim.path).await.unwrap_or_else(|why| panic!("{case}: {why}"));
        collect(rot).await.unwrap_or_else(|why| panic!("{case}, round {round}: {why}"));
        for root in [&victim.bad.0, &next] {
            let (restored, _) = rot.restore(root).await.unwrap_or_else(|why| panic!("{case}: {why}"));
            assert!(restored == victim.bad.1, "{case}, round {round}");
        }
        victim.good_is_unharmed(rot, case).await;
    }
}

/// A verdict that is gone is made again, and deletes nothing that anybody relies on; whoever has read it carries it out.
#[tokio::test]
async fn a_verdict_that_is_gone_is_made_again() {
    let victim = victim().await;
    for stage in [Stage::Decided, Stage::Begun, Stage::Over] {
        let case = format!("{stage:?}: the verdict is gone");
        let left = left(&victim, stage).await;
        let mut objects = left.objects.clone();
        objects.remove(&names::verdict(1)).expect("a verdict");
        let rot = victim.rot.with(&objects).await.expect("a repository");
        rot.backup("vm/bad", &victim.path).await.unwrap_or_else(|why| panic!("{case}: {why}"));
        collect(&rot).await.unwrap_or_else(|why| panic!("{case}: {why}"));
        sweep(&rot, &left.delete).await;
        goes_on(&victim, &rot, &case).await;
    }
}

/// Of a collection of which nothing can be read nobody knows what it deletes, and no repair guesses.
#[tokio::test]
async fn a_collection_of_which_nothing_can_be_read_is_named_and_ends_once_one_object_is_back() {
    let victim = victim().await;
    let left = left(&victim, Stage::Decided).await;
    let mut objects = left.objects.clone();
    for key in [names::epoch(1), names::verdict(1)] {
        objects.insert(key.clone(), flipped(&objects[&key], 50));
    }
    let rot = victim.rot.with(&objects).await.expect("a repository");
    for why in [
        rot.backup("vm/bad", &victim.path).await.expect_err("a backup").to_string(),
        collect(&rot).await.expect_err("a collection").to_string(),
        rot.repair().await.expect_err("a repair").to_string(),
    ] {
        assert!(why.contains("bring one of the two objects back"), "{why}");
    }
    victim.good_is_unharmed(&rot, "nothing can be read").await;
    let verdict = left.objects[&names::verdict(1)].clone();
    rot.repository.store.put(&names::verdict(1), verdict).await.expect("it is back");
    rot.repair().await.expect("a repair");
    goes_on(&victim, &rot, "the verdict is back").await;
}

/// What is over says nothing any more: a repair empties what of it cannot be read, and a check is content.
#[tokio::test]
async fn what_rots_of_a_collection_before_the_last_is_emptied_by_a_repair() {
    let victim = victim().await;
    let mut objects = left(&victim, Stage::Over).await.objects;
    let rot = victim.rot.with(&objects).await.expect("a repository");
    collect(&rot).await.expect("another collection");
    objects = rot.objects().await;
    assert!(objects.contains_key(&names::epoch(2)));
    let keys = [names::epoch(1), names::verdict(1), names::awaited(1)];
    for key in &keys {
        objects.insert(key.clone(), flipped(&objects[key], 50));
    }
    let rot = victim.rot.with(&objects).await.expect("a repository");
    assert_eq!(rot.check(ALL).await.expect("a report").objects.len(), 3);
    rot.backup("vm/bad", &victim.path).await.expect("a backup");
    let (mended, report) = rot.repair().await.expect("a repair");
    assert!(report.is_clean() && mended.collections.len() == 3, "{mended:?}, {report:?}");
    let objects = rot.objects().await;
    assert!(keys.iter().all(|key| objects[key].is_empty()));
    goes_on(&victim, &rot, "emptied").await;
}

/// The list of the latest collection that is empty or rotten says for whom nobody waits: whoever collects makes it anew.
#[tokio::test]
async fn a_list_of_sessions_that_rots_is_named_and_made_anew_by_the_next_collection() {
    let victim = victim().await;
    for stage in [Stage::Proposed, Stage::Decided, Stage::Over] {
        let left = left(&victim, stage).await;
        let key = names::awaited(1);
        let whole = &left.objects[&key];
        for rotten in [Bytes::new(), whole.slice(..whole.len() / 2), flipped(whole, whole.len() - 1)] {
            let case = format!("{stage:?}: {} bytes", rotten.len());
            let mut objects = left.objects.clone();
            objects.insert(key.clone(), rotten);
            let rot = victim.rot.with(&objects).await.unwrap_or_else(|why| panic!("{case}: {why}"));
            let report = rot.check(Content::None).await.unwrap_or_else(|why| panic!("{case}: {why}"));
            let [found] = &report.objects[..] else { panic!("{case}: {report:?}") };
            assert!(found.key == key && found.why.contains("`lvkeep prune` lists"), "{case}: {found:?}");
            collect(&rot).await.unwrap_or_else(|why| panic!("{case}: {why}"));
            let report = rot.check(Content::None).await.unwrap_or_else(|why| panic!("{case}: {why}"));
            assert!(report.is_clean(), "{case}: {report:?}");
            goes_on(&victim, &rot, &case).await;
        }
    }
}
