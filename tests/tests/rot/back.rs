//! What is lost of a snapshot that is brought back while a repair marks it, between any two operations of each other.

use std::sync::Arc;

use agent::Failure;
use agent::faults::store::{FaultyStore, StoreFaults};
use agent::forgetting::{self, Back};
use checker::Report;
use schema::damage::Holes;
use schema::root::Root;
use schema::{Domain, names};
use tests::pausing::{Pause, PausingStore};
use tests::rot::Rot;

use super::{ALL, Victim, victim};

/// A snapshot that lost something, what a check found of it, and its repository.
struct Lost {
    victim: Victim,
    rot: Rot,
    report: Report,
}

impl Lost {
    async fn new() -> Self {
        let victim = victim().await;
        let mut objects = victim.objects.clone();
        objects.remove(&victim.pack(Domain::Data).0);
        let rot = victim.rot.with(&objects).await.expect("a repository");
        let report = rot.check(ALL).await.expect("a report");
        Self { victim, rot, report }
    }

    fn root(&self) -> &Root {
        &self.victim.bad.0
    }

    /// What of it is lost.
    fn ranges(&self) -> Vec<(u64, u64)> {
        let damaged = self.report.damaged.iter().find(|damaged| damaged.slot == self.root().slot);
        let lost = damaged.expect("it is damaged").lost.iter();
        lost.map(|range| (range.start, range.end - range.start)).collect()
    }

    /// A copy in which it is forgotten, marked by an earlier repair or not.
    async fn forgotten(&self, is_marked: bool) -> Rot {
        let (rot, slot) = (self.fork().await, self.root().slot);
        if is_marked {
            let holes =
                Holes { version: 1, slot, found_ms: 0, ranges: vec![(0, 4096)], is_unrecorded: false };
            rot.put(&slot.holes(), &holes).await.expect("a mark");
        }
        forgetting::forget(&rot.repository, self.root(), "a test").await.expect("it is forgotten");
        rot
    }

    async fn fork(&self) -> Rot {
        self.rot.with(&self.rot.objects().await).await.expect("a repository")
    }
}

async fn unforget(rot: &Rot, root: &Root) -> Result<Back, Failure> {
    forgetting::unforget(&rot.repository, root, "a test").await
}

fn paused(rot: &Rot, pause: &Pause) -> Rot {
    rot.over(|bucket| Arc::new(PausingStore::new(bucket, pause.clone())))
}

/// Whoever brings it back is stopped before one of their operations, and then whoever marks before one of theirs; the
/// first goes on, or dies there; then the other. What is visible in the end is marked.
async fn one_after_the_other(is_marked: bool, dies: bool) -> u32 {
    let lost = Lost::new().await;
    let base = lost.forgotten(is_marked).await;
    let mut cases = 0;
    for first in 0.. {
        let mut has_stopped = false;
        for second in 0.. {
            let rot = base.with(&base.objects().await).await.expect("a repository");
            let (back, mark) = (Pause::before(first), Pause::before(second));
            let (brings, marks) = (paused(&rot, &back), paused(&rot, &mark));
            let bringing = async {
                let ended = unforget(&brings, lost.root()).await;
                back.reached.raise();
                ended
            };
            let marking = async {
                back.reached.raised().await;
                let ended = marks.mark(&lost.report).await;
                mark.reached.raise();
                back.go.raise();
                ended
            };
            let between = async {
                mark.reached.raised().await;
                if dies {
                    back.die();
                }
                back.go.raise();
            };
            let first_ends = async {
                let ended = bringing.await;
                mark.go.raise();
                ended
            };
            let (ended, marked, ()) = tokio::join!(first_ends, marking, between);
            marked.expect("it is marked");
            let case = format!("operations {first} and {second}");
            let back_again = match ended {
                Ok(back) => back,
                Err(_) if dies => unforget(&rot, lost.root()).await.expect("another attempt"),
                Err(failure) => panic!("{case}: {failure}"),
            };
            let holes = rot.repository.read::<Holes>(&back_again.root.slot.holes()).await.expect("a read");
            let ranges = holes.map(|holes| holes.ranges);
            assert_eq!(ranges, Some(lost.ranges()), "{case}");
            cases += 1;
            has_stopped |= back.count() > first;
            if mark.count() <= second {
                break;
            }
        }
        if !has_stopped {
            return cases;
        }
    }
    unreachable!("whoever brings it back ends")
}

#[tokio::test(start_paused = true)]
async fn what_is_marked_while_it_comes_back_is_marked_where_it_comes_back() {
    for is_marked in [false, true] {
        assert!(one_after_the_other(is_marked, false).await > 100);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_marked_while_somebody_dies_who_brings_it_back_is_marked_all_the_same() {
    for is_marked in [false, true] {
        assert!(one_after_the_other(is_marked, true).await > 100);
    }
}

/// A mark that is carried to a slot before the snapshot stands there is none of a snapshot that a repair has looked at.
#[tokio::test]
async fn a_repair_leaves_marks_of_what_it_did_not_look_at() {
    let lost = Lost::new().await;
    let rot = lost.fork().await;
    let mut clean = rot.check(ALL).await.expect("a report");
    clean.damaged.clear();
    let new = schema::names::Slot { session: rot.repository.environment().session_id(), ..lost.root().slot };
    for slot in [new, lost.root().slot] {
        let holes = Holes { version: 1, slot, found_ms: 0, ranges: vec![(0, 4096)], is_unrecorded: false };
        rot.put(&slot.holes(), &holes).await.expect("a mark");
    }
    rot.mark(&clean).await.expect("marks");
    let left = rot.repository.store.list(names::HOLES).await.expect("a listing");
    assert_eq!(left.iter().map(|listed| listed.key.clone()).collect::<Vec<_>>(), [new.holes()]);
    // Nothing ever comes to stand at a tombstone.
    let tombstone = rot.repository.tombstone(new).expect("a tombstone");
    rot.repository.store.put(&new.snapshot(), tombstone).await.expect("it is there");
    rot.mark(&clean).await.expect("marks");
    assert!(rot.repository.store.list(names::HOLES).await.expect("a listing").is_empty());
}

/// A check names it and looks at the others; what it was marked with stays.
#[tokio::test]
async fn a_snapshot_that_is_listed_and_not_there_is_named() {
    let victim = victim().await;
    let rot = victim.rot.with(&victim.objects).await.expect("a repository");
    tokio::time::pause();
    let slot = victim.bad.0.slot;
    let key = slot.snapshot();
    let hiding = rot.over(|bucket| {
        let store =
            FaultyStore::new(bucket, rot.repository.store.environment().clone(), StoreFaults::default());
        store.hide(Some(&key));
        Arc::new(store)
    });
    let holes = Holes { version: 1, slot, found_ms: 0, ranges: vec![(0, 4096)], is_unrecorded: false };
    rot.put(&slot.holes(), &holes).await.expect("a mark");
    let report = hiding.check(ALL).await.expect("a report");
    let damaged: Vec<_> = report.damaged.iter().map(|damaged| damaged.slot).collect();
    assert!(damaged == [slot] && report.damaged[0].problems[0].contains(&key), "{report:?}");
    hiding.mark(&report).await.expect("marks");
    assert!(rot.repository.read::<Holes>(&slot.holes()).await.expect("a read").is_some());
    assert!(rot.check(ALL).await.expect("a report").is_clean());
}
