//! A bucket whose rules let nothing go for a while, whoever asks and whatever it is.

use agent::faults::store::Refusal;
use agent::{Protection, ReadBy, Stop, forgetting, sessions};
use schema::session::{Session, SessionKind};

use super::older::prune;
use super::withheld::over;
use super::{ALL, victim};

#[tokio::test]
async fn a_bucket_that_lets_nothing_go_is_backed_up_to_and_restored_from_and_keeps_nobody_waiting() {
    let victim = victim().await;
    let (rot, store) = over(&victim.rot);
    store.refuse(Some(Refusal::Deletions));
    let (repository, environment) = (&rot.repository, rot.repository.environment());
    assert!(repository.store.probe().await.expect("a promise").conditional_create);
    let root = rot.backup("vm/bad", &victim.path).await.expect("a backup");
    let by = ReadBy {
        kind: SessionKind::Restore,
        session: environment.session_id(),
        job: environment.job_id(),
        volume: "vm/bad",
        host: "host",
        undo: &[environment.job_id()],
    };
    let job = by.job;
    let protection = Protection::begin(repository, by, &Stop::default()).await.expect("a session");
    assert_eq!(sessions::of_job(repository, job).await.expect("sessions").len(), 1);
    let (restored, _) = rot.restore(&root).await.expect("a restore");
    assert!(restored == victim.bad.1);
    protection.end(Ok(())).await.expect("it is over");
    // Their objects stay. One with a slot is over by what stands there; the others say so, and mean no job and no undo any
    // more.
    let left = sessions::list(repository).await.expect("sessions");
    let is_over =
        |session: &Session| session.slot.is_some() || (session.ended.is_some() && session.undo.is_empty());
    assert!(left.len() == 3 && left.iter().all(is_over), "{left:?}");
    assert!(sessions::of_job(repository, job).await.expect("sessions").is_empty());

    forgetting::forget(repository, &victim.older, "a test").await.expect("it is forgotten");
    for _ in 0..2 {
        let report = prune(&rot).await.expect("a collection");
        assert!(report.waits.is_empty() && report.swept.packs == 0, "{report:?}");
        assert!(!report.swept.locked.is_empty(), "{report:?}");
    }
    let standing = collector::standing(repository).await.expect("where it stands");
    let unfinished = standing.unfinished.expect("it is not finished");
    assert!(unfinished.decided && unfinished.left.packs > 0 && unfinished.waits.is_empty(), "{unfinished:?}");
    let during = rot.backup("vm/bad", &victim.path).await.expect("a backup");
    assert!(rot.check(ALL).await.expect("a report").is_clean());
    rot.repair().await.expect("a repair");

    store.refuse(None);
    assert!(prune(&rot).await.expect("a collection").swept.packs > 0);
    assert_eq!(collector::standing(repository).await.expect("where it stands").unfinished, None);
    victim.good_is_unharmed(&rot, "the rule has ended").await;
    // What was left of sessions of that time goes with the next collection that has something to do.
    rot.backup("vm/bad", &victim.path).await.expect("a backup");
    forgetting::forget(repository, &during, "a test").await.expect("it is forgotten");
    prune(&rot).await.expect("a collection");
    let left = sessions::list(repository).await.expect("sessions");
    assert!(left.iter().all(|session| session.slot.is_none()), "{left:?}");
}
