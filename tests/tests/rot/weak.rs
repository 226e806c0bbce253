//! Stores that keep less than they must. One ignores conditions, and lets everybody win who creates: `init` finds it out,
//! backups and restores work, and nothing is deleted unless somebody gives their word that nothing else writes. Another
//! one lists late: nobody writes to it, and what is in it is restored all the same.

use std::path::Path;
use std::sync::Arc;

use agent::faults::listing::LateListing;
use agent::faults::store::{FaultyStore, StoreFaults};
use agent::store::StoreErrorKind;
use agent::{forgetting, sessions};
use schema::messages::FailureKind;
use schema::root::Root;
use tests::e2e::random_file;
use tests::rot::Rot;

use super::ALL;
use super::older::collect_as;

/// Two snapshots of a volume, and what each holds.
async fn two_snapshots(rot: &Rot, path: &Path) -> Vec<(Root, Vec<u8>)> {
    let mut kept = Vec::new();
    for seed in [1, 2] {
        random_file(path, 300_000, seed);
        let root = rot.backup("vm/disk", path).await.expect("a snapshot");
        kept.push((root, std::fs::read(path).expect("the file")));
    }
    kept
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_backed_up_to_and_restored_from() {
    let folder = tempfile::tempdir().expect("a folder");
    let rot = Rot::new_over(folder.path(), |bucket, environment| {
        let store = FaultyStore::new(bucket, environment, StoreFaults::default());
        store.ignore_create(true);
        Arc::new(store)
    });
    let rot = rot.await.expect("a repository");
    assert!(!rot.repository.config.store.conditional_create, "init has found it out");
    let kept = two_snapshots(&rot, &folder.path().join("disk.img")).await;
    for (root, content) in &kept {
        let (restored, _) = rot.restore_as(root, false).await.expect("a restore");
        assert!(restored == *content, "{}", root.slot);
    }
    assert_eq!(sessions::list(&rot.repository).await.expect("a listing"), []);

    let [(old, _), (new, content)] = &kept[..] else { panic!("two snapshots") };
    forgetting::forget(&rot.repository, old, "a test").await.expect("it is forgotten");
    let before = rot.objects().await;
    let refused = collect_as(&rot, false).await.expect_err("nobody has given their word");
    assert!(refused.kind == FailureKind::Refused && refused.why.contains("--exclusive"), "{refused}");
    assert_eq!(rot.objects().await, before, "nothing was written, and nothing deleted");
    collect_as(&rot, true).await.expect("a collection");
    let packs =
        |objects: &tests::rot::Objects| objects.keys().filter(|key| key.starts_with("packs/")).count();
    assert!(packs(&rot.objects().await) < packs(&before));
    let (restored, _) = rot.restore_as(new, false).await.expect("a restore");
    assert!(restored == *content);
    assert!(rot.check(ALL).await.expect("a report").is_clean());
}

/// A bucket that was moved to such a store.
#[tokio::test]
async fn a_store_that_lists_late_is_refused_and_restored_from() {
    let folder = tempfile::tempdir().expect("a folder");
    let rot = Rot::new(folder.path()).await.expect("a repository");
    let kept = two_snapshots(&rot, &folder.path().join("disk.img")).await;
    let objects = rot.objects().await;
    for lag in [1, 4, 16] {
        let moved = rot.with(&objects).await.expect("a repository");
        let late = moved.over(|bucket| Arc::new(LateListing::new(bucket, lag)));
        let refused = late.repository.store.probe().await.expect_err("it lists late");
        assert_eq!(refused.kind(), StoreErrorKind::Unfit, "{lag}: {refused}");
        for (root, content) in &kept {
            let (restored, _) = late.restore_as(root, false).await.expect("a restore");
            assert!(restored == *content, "{lag}: {}", root.slot);
        }
        // Packs that came a moment ago are looked for several times, then missed by name, and found by another restore.
        for (key, bytes) in objects.iter().filter(|(key, _)| key.starts_with("packs/")) {
            late.repository.store.put(key, bytes.clone()).await.expect("it is written");
        }
        let (root, content) = &kept[1];
        let mut missed = 0;
        let restored = loop {
            match late.restore_as(root, false).await {
                Ok((restored, _)) => break restored,
                Err(why) => assert!(why.why.contains("in no pack that is known"), "{lag}: {why}"),
            }
            missed += 1;
            assert!(missed < lag, "each looks more than once");
        };
        assert!(restored == *content && (missed > 0) == (lag == 16), "{lag}: missed {missed} times");
        assert_eq!(late.objects().await, objects, "{lag}: nothing is left of any of that");
    }
}
