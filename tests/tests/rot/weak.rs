//! A store that ignores conditions, and lets everybody win who creates: `init` finds it out, backups and restores work, and
//! nothing is deleted unless somebody gives their word that nothing else writes.

use std::sync::Arc;

use agent::faults::store::{FaultyStore, StoreFaults};
use agent::{forgetting, sessions};
use schema::messages::FailureKind;
use tests::e2e::random_file;
use tests::rot::Rot;

use super::ALL;
use super::older::collect_as;

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
    let path = folder.path().join("disk.img");
    let mut kept = Vec::new();
    for seed in [1, 2] {
        random_file(&path, 300_000, seed);
        let root = rot.backup("vm/disk", &path).await.expect("a snapshot");
        kept.push((root, std::fs::read(&path).expect("the file")));
    }
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
