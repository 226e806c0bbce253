//! What was kept for an undo, and restores that do not end well.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;

use agent::faults::store::{FaultyStore, StoreFaults};
use agent::forgetting::{self, Forgot};
use agent::repository::AtSlot;
use agent::{Environment, marks};
use object_store::memory::InMemory;
use schema::messages::{BackupJob, FailureKind};
use schema::names::Slot;

use super::asked::{Keeper, keep};
use super::fixture::{Fixture, TestEnvironment, noise};
use super::places::Volume;
use crate::claim::Claim;
use crate::report::Progress;
use crate::unfinished::BY;
use crate::{Report, Target};

const LEN: usize = 20 << 20;

async fn forget(fixture: &Fixture, slot: Slot) -> Forgot {
    let AtSlot::Snapshot(kept) = fixture.repository.at_slot(slot).await.unwrap() else {
        panic!("{slot} is gone")
    };
    forgetting::forget(&fixture.repository, &kept, "a policy").await.unwrap()
}

async fn is_held(fixture: &Fixture, slot: Slot) -> bool {
    marks::of(&fixture.repository, slot).await.unwrap().is_held()
}

/// The store goes away when a part is overwritten. Begun again, the restore keeps the mixture; of both, the first is the
/// only good state.
#[tokio::test(start_paused = true)]
async fn what_was_kept_for_a_restore_that_failed_stays_until_one_ends_well() {
    let environment: Arc<dyn Environment> = Arc::new(TestEnvironment::default());
    let store = FaultyStore::new(Arc::new(InMemory::new()), environment, StoreFaults::default());
    let fixture = Arc::new(Fixture::new(Arc::new(store.clone()), false).await);
    let (old, new) = (noise(1, LEN), noise(2, LEN));
    let root = fixture.volume(&new).await;
    let _keeper = Keeper::start(&fixture, |_| ());
    let path = fixture.path("x");
    std::fs::write(&path, &old).unwrap();
    let begin = async || {
        let (restorer, undo) = (fixture.restorer(), fixture.context.environment.job_id());
        let target = Target::new(&path, false).with_content();
        let kept = restorer.keep(&root, &target, undo, |_, _| ()).await.unwrap().unwrap();
        (restorer, target, kept)
    };
    let cut_off = async || {
        let (restorer, target, kept) = begin().await;
        let crash = |now: Progress| {
            if now.done > 0 {
                store.crash();
            }
        };
        let failure = restorer.restore(root.clone(), target, crash).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Store);
        for part in [&kept.session.to_string(), "forgotten by no rule", "lvkeep release"] {
            assert!(failure.why.contains(part), "{part} is not in: {failure}");
        }
        store.recover();
        // Its session stays where the store was away; an operator ends it.
        for session in agent::sessions::list(&fixture.repository).await.unwrap() {
            agent::sessions::revoke(&fixture.repository, &session).await.unwrap();
        }
        kept
    };
    let first = cut_off().await;
    let second = cut_off().await;
    assert!(first != second);
    for kept in [first, second] {
        let forgot = forget(&fixture, kept).await;
        let Forgot::Protected(why) = &forgot else { panic!("{forgot:?}") };
        for part in ["unfinished restore", "has not ended well", &format!("lvkeep release {}", kept.session)]
        {
            assert!(why.contains(part), "{part} is not in: {why}");
        }
    }
    // Somebody else's hold is not of a restore.
    marks::hold(&fixture.repository, second, None, "host").await.unwrap();
    let part = Target::new(&path, false).with_content().only(Some(0..4096));
    fixture.restorer().restore(root.clone(), part, |_| ()).await.unwrap();
    assert!(is_held(&fixture, first).await, "a range is not all of it");
    // With an undo of its own, or without.
    fixture.restorer().restore(root.clone(), Target::new(&path, true), |_| ()).await.unwrap();
    assert!(std::fs::read(&path).unwrap() == new);
    assert_eq!(forget(&fixture, first).await, Forgot::Done);
    assert!(matches!(forget(&fixture, second).await, Forgot::Protected(why) if why == "held by host"));
}

#[tokio::test(start_paused = true)]
async fn what_was_kept_for_a_range_goes_with_a_restore_around_it() {
    let fixture = Arc::new(Fixture::plain().await);
    let root = fixture.volume(&noise(2, 1 << 20)).await;
    let _keeper = Keeper::start(&fixture, |_| ());
    let path = fixture.path("x");
    std::fs::write(&path, noise(1, 1 << 20)).unwrap();
    let target = |range| Target::new(&path, false).with_content().only(Some(range));
    let undo = fixture.context.environment.job_id();
    let kept = fixture.restorer().keep(&root, &target(8192..16384), undo, |_, _| ()).await.unwrap().unwrap();
    marks::hold(&fixture.repository, kept, None, BY).await.unwrap();
    for (range, is_let_go) in [(0..12288, false), (4096..20480, true)] {
        fixture.restorer().restore(root.clone(), target(range.clone()), |_| ()).await.unwrap();
        assert_eq!(is_held(&fixture, kept).await, !is_let_go, "{range:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_undo_lets_go_of_what_it_puts_back() {
    let fixture = Arc::new(Fixture::plain().await);
    let (old, new) = (noise(1, LEN), noise(2, LEN));
    let root = fixture.volume(&new).await;
    let _keeper = Keeper::start(&fixture, |_| ());
    let path = fixture.path("x");
    std::fs::write(&path, &old).unwrap();
    let target = || Target::new(&path, false).with_content();
    let undo = fixture.context.environment.job_id();
    let (restorer, held) = (fixture.restorer(), target());
    let kept = restorer.keep(&root, &held, undo, |_, _| ()).await.unwrap().unwrap();
    assert!(!is_held(&fixture, kept).await, "nothing is overwritten yet");
    let killed = {
        // What a killed process leaves.
        let stop = fixture.context.stop.clone();
        let seen = std::sync::Mutex::new(None);
        let progress = |now: Progress| {
            if now.done > 0 {
                *seen.lock().unwrap() = Some(now.done);
                stop.raise();
            }
        };
        restorer.restore(root.clone(), held, progress).await.map(|_: Report| ()).unwrap_err()
    };
    assert_eq!(killed.kind, FailureKind::Revoked);
    assert!(is_held(&fixture, kept).await);
    let AtSlot::Snapshot(back) = fixture.repository.at_slot(kept).await.unwrap() else {
        panic!("it is gone")
    };
    let mut again = fixture.restorer();
    again.context.stop = agent::Stop::default();
    again.restore(*back, Target::new(&path, false).put_back(), |_| ()).await.unwrap();
    assert!(std::fs::read(&path).unwrap() == old);
    assert_eq!(forget(&fixture, kept).await, Forgot::Done);
}

/// Nothing was overwritten: rules may forget what was kept of it.
#[tokio::test(start_paused = true)]
async fn a_restore_that_overwrites_nothing_holds_nothing() {
    let fixture = Arc::new(Fixture::plain().await);
    // Nor cut off.
    let (old, new) = (noise(1, (1 << 20) + 5), noise(2, 1 << 20));
    let root = fixture.volume(&new).await;
    let _keeper = Keeper::start(&fixture, |_| ());
    let path = fixture.path("x");
    std::fs::write(&path, &old).unwrap();
    let (restorer, target) = (fixture.restorer(), Target::new(&path, false).with_content());
    let undo = fixture.context.environment.job_id();
    let kept = restorer.keep(&root, &target, undo, |_, _| ()).await.unwrap().unwrap();
    let packs: BTreeSet<_> = fixture.data_copies().into_iter().map(|(_, copy)| copy.pack).collect();
    for pack in packs {
        fixture.repository.store.delete(&schema::names::pack(pack)).await.unwrap();
    }
    let failure = restorer.restore(root, target, |_| ()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Damaged, "{failure}");
    assert!(std::fs::read(&path).unwrap() == old && !failure.why.contains("lvkeep release"), "{failure}");
    assert_eq!(forget(&fixture, kept).await, Forgot::Done);
}

/// What is half overwritten may have been moved away.
#[tokio::test(start_paused = true)]
async fn what_was_kept_of_a_target_outlives_a_new_one_of_its_name() {
    let fixture = Arc::new(Fixture::plain().await);
    let root = fixture.volume(&noise(2, 1 << 20)).await;
    let _keeper = Keeper::start(&fixture, |_| ());
    let path = fixture.path("x");
    std::fs::write(&path, noise(1, 1 << 20)).unwrap();
    let undo = fixture.context.environment.job_id();
    let target = || Target::new(&path, false).with_content();
    let kept = fixture.restorer().keep(&root, &target(), undo, |_, _| ()).await.unwrap().unwrap();
    marks::hold(&fixture.repository, kept, None, BY).await.unwrap();
    let half = fixture.path("x.half");
    std::fs::rename(&path, &half).unwrap();
    // Made by a restore, by its job, or gone on with by its job.
    for attempt in ["alone", "first", "again"] {
        let claim = if attempt == "alone" { Claim::default() } else { Claim::of(undo) };
        match attempt {
            "again" => claim.begin(&File::options().write(true).open(&path).unwrap(), &path),
            _ => drop(std::fs::remove_file(&path)),
        }
        let made = Target::new(&path, false).claimed(claim.clone());
        fixture.restorer().restore(root.clone(), made, |_| ()).await.unwrap();
        claim.let_go();
        assert!(is_held(&fixture, kept).await, "{attempt}");
    }
    std::fs::rename(&half, &path).unwrap();
    fixture.restorer().restore(root, target(), |_| ()).await.unwrap();
    assert!(!is_held(&fixture, kept).await);
}

#[tokio::test(start_paused = true)]
async fn what_was_kept_of_a_volume_outlives_a_new_one_of_its_name() {
    let fixture = Arc::new(Fixture::plain().await);
    let root = fixture.volume(&noise(2, 1 << 20)).await;
    let mut volume = Volume::of(&fixture, 1 << 20);
    let job = BackupJob {
        job: fixture.context.environment.job_id(),
        volume: fixture.restorer().undo_volume(volume.device.to_str().unwrap()),
        host: "host".into(),
        source: volume.device.to_str().unwrap().to_owned(),
        tags: Vec::new(),
        allow_changes: false,
        group: None,
        plain: true,
    };
    let kept = keep(&fixture, &job).await.slot;
    marks::hold(&fixture.repository, kept, None, BY).await.unwrap();
    for (is_new, is_begun) in [(true, false), (false, true), (false, false)] {
        (volume.is_new, volume.is_begun) = (is_new, is_begun);
        let target = Target::new("vg/lv", true);
        volume.restorer(&fixture).restore(root.clone(), target, |_| ()).await.unwrap();
        assert_eq!(is_held(&fixture, kept).await, is_new || is_begun, "new: {is_new}, begun: {is_begun}");
    }
}
