//! Programs of several versions on one bus: a system in which one role is an older program does all that new ones do, or
//! refuses it by name.
//!
//! The old one is today's role behind [`tests::old::OldBus`], which passes over whatever came after the first version.

mod system;

use std::path::Path;

use agent::forgetting::Forgot;
use schema::check::Report;
use schema::messages::{FailureKind, JobOutcome, Message, More, NEEDS_NEWER_AGENT, RestoreJob, Verified};
use schema::root::Root;
use tests::old::{PassedOver, as_older};

use system::{LISTED_EVERY, Role, System};

/// What the old role had to pass over, so that this has shown something.
fn must_pass_over(role: Role) -> &'static [&'static str] {
    match role {
        Role::Reader => &["ReadVolume.plain", "Wanted.whole"],
        Role::Hasher => &["ParentLeaf.lost"],
        Role::Indexer => &["seek.0"],
        // Nothing was added to what it hears and says.
        Role::Storer => &[],
        Role::Conductor => &["BackupJob.plain", "ParentLeaf.lost", "Wanted.whole"],
        Role::Restorer => &[
            "JobDone.kept",
            "RestoreJob.donor",
            "RestoreJob.fetches",
            "RestoreJob.full",
            "RestoreJob.more",
            "RestoreJob.untracked",
            "event.shared.host",
            "event.stop-restore",
        ],
        Role::Checker => &["jobs.check"],
    }
}

async fn lives_with(old: Option<Role>) {
    let mut system = System::start(old).await;
    let first = system.back_up().await;
    let before = system.content();
    system.change();
    let second = system.back_up().await;
    assert!(second.parent.is_some(), "{second:?}");
    comes_back(&system, &first, &before).await;
    comes_back(&system, &second, &system.content()).await;
    by_a_plan(&system, &second).await;
    let third = is_collected(&mut system, &first, &second).await;
    heals(&mut system, &third).await;
    let left = agent::sessions::list(&system.repository).await.expect("a listing");
    assert!(left.is_empty(), "{left:?}");
    shows(old, &system.passed_over());
    system.end().await;
}

/// What is forgotten goes, and what it shared with others moves; another backup.
async fn is_collected(system: &mut System, first: &Root, second: &Root) -> Root {
    forgotten(system, first).await;
    // Nobody tells the index.
    let report = system.prune(false).await;
    assert!(report.waits.is_empty() && report.swept.is_finished(), "{report:?}");
    assert!(report.rewritten > 0 && report.swept.packs > 0, "{report:?}");
    if system.is_old(Role::Restorer) || system.is_old(Role::Indexer) {
        // Whoever does not seek, or finds nobody who does, waits until the index has listed the bucket by itself.
        let [done] = system.restored([&system.restore(second, &system.path("early"))]).await;
        let JobOutcome::Failed { why, .. } = &done else { panic!("{done:?}") };
        assert!(why.contains("has no readable copy") && why.contains("no answer on seek.0"), "{why}");
        system.wait(2 * LISTED_EVERY).await;
    }
    comes_back(system, second, &system.content()).await;
    system.change();
    let third = system.back_up().await;
    forgotten(system, second).await;
    let report = system.prune(true).await;
    assert!(report.waits.is_empty() && report.swept.is_finished(), "{report:?}");
    comes_back(system, &third, &system.content()).await;
    let report = system.check().await.expect("a check");
    assert!(report.damaged == 0 && report.objects == 0, "{report:?}");
    third
}

async fn forgotten(system: &System, root: &Root) {
    let forgot = agent::forgetting::forget(&system.repository, root, "a test").await;
    assert_eq!(forgot.expect("it is forgotten"), Forgot::Done);
}

/// What a check finds damaged the next backup stores again, also where nothing has changed since.
async fn heals(system: &mut System, third: &Root) {
    system.rot().await;
    if system.is_old(Role::Indexer) {
        // Nothing counts as lost before an index has looked.
        let why = system.check().await.expect_err("nobody seeks");
        assert!(why.contains("came no further"), "{why}");
        system.update(Role::Indexer).await;
    }
    let is_damaged =
        |report: &Report, root: &Root| report.snapshots_damaged.iter().any(|one| one.slot == root.slot);
    let report = system.check().await.expect("a check");
    assert!(is_damaged(&report, third), "{report:?}");
    let fourth = system.back_up().await;
    comes_back(system, &fourth, &system.content()).await;
    let report = system.check().await.expect("a check");
    assert!(!is_damaged(&report, &fourth), "{report:?}");
}

fn shows(old: Option<Role>, passed_over: &PassedOver) {
    println!("{old:?} passed over {passed_over:?}");
    for one in old.map(must_pass_over).unwrap_or_default() {
        assert!(passed_over.contains(*one), "{old:?} was never told {one}: {passed_over:?}");
    }
}

/// A whole snapshot, to a file that is not there.
async fn comes_back(system: &System, root: &Root, content: &[u8]) {
    let target = system.path("whole");
    let [done] = system.restored([&system.restore(root, &target)]).await;
    assert!(matches!(done, JobOutcome::Restored { .. }), "{done:?}");
    assert!(std::fs::read(&target).expect("the target") == content, "{}", root.slot);
    std::fs::remove_file(target).expect("it is removed");
}

/// What a plan asks of the agents of a host: many jobs at once, some of which are more than an old one can do.
async fn by_a_plan(system: &System, root: &Root) {
    let content = system.content();
    let half = [&content[..content.len() / 2], &vec![0xee; content.len() / 2]].concat();
    let job = |name: &str, held: Option<&[u8]>| {
        let target = system.path(name);
        held.into_iter().for_each(|held| std::fs::write(&target, held).expect("a target"));
        system.restore(root, &target)
    };
    let plain = job("plain", None);
    let compared = job("compared", Some(&half));
    let full = RestoreJob { full: true, ..job("full", Some(&half)) };
    let untracked = RestoreJob { untracked: true, ..job("untracked", Some(&half)) };
    let also = RestoreJob { donor: Some(plain.target.clone()), ..job("also", None) };
    let ends = system.restored([&plain, &compared, &full, &untracked]).await;
    let [done] = system.restored([&also]).await;
    for (done, job) in ends.iter().chain([&done]).zip([&plain, &compared, &full, &untracked, &also]) {
        assert!(matches!(done, JobOutcome::Restored { .. }), "{job:?}: {done:?}");
        assert!(std::fs::read(&job.target).expect("a target") == content, "{job:?}");
    }

    let range = (4096, content.len() as u64 / 2 + 4096);
    let ranged = job("range", Some(&half)).asking(More { range: Some(range), ..More::default() });
    let verified = job("verified", None).asking(More { verify: true, ..More::default() });
    let keeping = job("kept", None).job;
    let undone = job("undo", Some(&half)).asking(More { undo: Some(keeping), ..More::default() });
    let ends = system.restored([&ranged, &verified, &undone]).await;
    if system.is_old(Role::Restorer) {
        for (done, job) in ends.iter().zip([&ranged, &verified, &undone]) {
            let JobOutcome::Failed { kind: FailureKind::Refused, why } = done else { panic!("{done:?}") };
            assert!(why.contains(NEEDS_NEWER_AGENT), "{why}");
            let there = std::fs::read(job.target());
            assert!(there.map_or(job == &verified, |there| there == half), "{job:?} was touched");
        }
        return;
    }
    for done in &ends {
        assert!(matches!(done, JobOutcome::Restored { .. }), "{done:?}");
    }
    let end = range.1 as usize;
    let expected = [&half[..4096], &content[4096..end], &half[end..]].concat();
    for (job, expected) in [(&ranged, &expected), (&verified, &content), (&undone, &content)] {
        assert!(std::fs::read(job.target()).expect("a target") == *expected, "{job:?}");
    }
    let JobOutcome::Restored { verified, .. } = &ends[1] else { return };
    assert_eq!(*verified, Some(Verified::Equal));
    puts_back(system, &ends[2], Path::new(undone.target()), &half).await;
}

/// What a restore has overwritten.
async fn puts_back(system: &System, done: &JobOutcome, target: &Path, held: &[u8]) {
    let JobOutcome::Restored { undo: Some(kept), .. } = done else { panic!("nothing was kept: {done:?}") };
    let kept = system.root(*kept).await;
    let job = system.restore(&kept, target).asking(More { put_back: true, ..More::default() });
    let [done] = system.restored([&job]).await;
    assert!(matches!(done, JobOutcome::Restored { .. }), "{done:?}");
    assert!(std::fs::read(target).expect("a target") == held);
}

macro_rules! lives_with {
    ($($name:ident: $old:expr;)*) => {$(
        #[tokio::test(start_paused = true)]
        async fn $name() {
            lives_with($old).await;
        }
    )*};
}

lives_with! {
    all_are_new: None;
    an_old_reader: Some(Role::Reader);
    an_old_hasher: Some(Role::Hasher);
    an_old_indexer: Some(Role::Indexer);
    an_old_storer: Some(Role::Storer);
    an_old_conductor: Some(Role::Conductor);
    an_old_restorer: Some(Role::Restorer);
    an_old_checker: Some(Role::Checker);
}

/// Golden messages that an older program sends and takes as they are.
const FIRST: [&str; 31] = [
    "AgentIsThere",
    "Answers",
    "Ask",
    "AskParentLeaf",
    "AskWanted",
    "BackupJob",
    "Cancel",
    "CloseReading",
    "Extent",
    "Flush",
    "JobDone-Failed",
    "JobDone-Restored",
    "JobDone-Sealed",
    "Locate",
    "Located",
    "NewChunks",
    "PackStored",
    "ParentLeaf",
    "Progress",
    "ReadVolume",
    "Refusal",
    "RestoreJob",
    "RestoreJob-Prepared",
    "SessionEvent-Failed",
    "SessionEvent-Mapped",
    "SessionEvent-Opened",
    "SessionEvent-Read",
    "SessionEvent-Tracked",
    "SessionEvent-Unchanged",
    "Wanted",
    "WhoIsThere",
];

/// Whoever adds a field or a kind adds a golden message, which fails here until the old bus passes it over.
#[test]
fn the_old_bus_knows_all_that_came_later() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../schema/tests/golden/v1");
    let mut found = 0;
    for entry in std::fs::read_dir(folder).expect("golden files").map(|entry| entry.expect("an entry")) {
        let name = entry.file_name().into_string().expect("a name");
        let Some(name) = name.strip_prefix("message-") else { continue };
        let bytes = std::fs::read(entry.path()).expect("a golden file");
        let message = Message::from_bytes(bytes.into()).expect("a message");
        let mut gone = PassedOver::new();
        let older = as_older(message.clone(), &mut gone);
        assert_eq!(
            (older == message, gone.is_empty()),
            (FIRST.contains(&name), FIRST.contains(&name)),
            "{name}"
        );
        assert_eq!(as_older(older.clone(), &mut PassedOver::new()), older, "{name}");
        found += 1;
    }
    assert!(found > FIRST.len(), "{found} golden messages");
}
