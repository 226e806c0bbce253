//! That a run fails, and by which invariant, when something is done that must never happen.

use std::time::Duration;

use schema::names;
use tests::sim::{Plan, Sabotage, run};

/// The run of a plan breaks an invariant, and says so with these words.
fn breaks(plan: Plan, sabotage: Sabotage, invariant: &str, words: &str) {
    let broken = run(Plan { sabotage: Some(sabotage), ..plan }, false).err();
    let wrong = broken.map(|broken| broken.wrong).unwrap_or_default();
    let is_told = |wrong: &&String| wrong.starts_with(&format!("{invariant}: ")) && wrong.contains(words);
    assert!(wrong.iter().any(|wrong| is_told(&wrong)), "{sabotage:?} is not told as {invariant}: {wrong:#?}");
}

fn breaks_calm(sabotage: Sabotage, invariant: &str, words: &str) {
    breaks(Plan::calm(7), sabotage, invariant, words);
}

#[test]
fn never_collect_live_fails_when_what_lives_is_collected() {
    const LIVE: &str = "never-collect-live";
    breaks_calm(Sabotage::DeletesPack, LIVE, "no verdict says so");
    breaks_calm(Sabotage::CollectsPack, LIVE, "held the last copy of");
    breaks_calm(Sabotage::SweepsUnforgotten, LIVE, "which nobody forgot");
    breaks_calm(Sabotage::SweepsUnforgotten, LIVE, "is lost, and nobody forgot it");
    breaks_calm(Sabotage::BeginsTwice, LIVE, "began before 1 was finished");
    breaks_calm(Sabotage::LosesRoot, LIVE, "is lost, and nobody forgot it");
}

#[test]
fn one_winner_fails_when_what_was_decided_changes() {
    const ONE: &str = "one-winner";
    for sabotage in [Sabotage::OverwritesSlot, Sabotage::EmptiesSlot] {
        breaks_calm(sabotage, ONE, "was decided, and written again");
    }
    let encrypted = Plan { encrypted: true, ..Plan::calm(7) };
    for below in [names::SNAPSHOTS, names::CONFIG, names::KEYS, names::EPOCHS] {
        breaks(
            encrypted.clone(),
            Sabotage::Deletes(below),
            ONE,
            "was deleted, and its name is taken for ever",
        );
    }
    for below in [names::CONFIG, names::KEYS, names::EPOCHS] {
        breaks(encrypted.clone(), Sabotage::Overwrites(below), ONE, "was written again");
    }
}

#[test]
fn sealed_is_readable_fails_when_a_chunk_is_in_no_pack() {
    breaks_calm(Sabotage::CommitsBeforeStoring, "sealed-is-readable", "which is in no pack");
    breaks_calm(Sabotage::LosesPack, "sealed-is-readable", "host/vg/lv");
}

#[test]
fn no_silent_skip_fails_when_what_is_sealed_is_older_than_its_job() {
    breaks_calm(Sabotage::ReadsWhatWas, "no-silent-skip", "older than 1");
}

#[test]
fn bounded_fails_when_a_queue_takes_more_than_its_limit() {
    let plan = Plan { chunk_queue: 64 << 10, ..Plan::calm(7) };
    breaks(plan, Sabotage::IgnoresLimits, "bounded", "and may hold 65536");
}

#[test]
fn no_silent_skip_fails_when_what_cannot_be_read_is_sealed() {
    let mut plan = Plan::calm(7);
    plan.volumes[0].bad = 1;
    breaks(plan, Sabotage::SkipsWhatCannotBeRead, "no-silent-skip", "could not be read at offset");
}

#[test]
fn never_collect_live_fails_when_what_a_policy_keeps_is_forgotten() {
    let mut plan = Plan::calm(7);
    plan.life.policy = Some(1);
    breaks(plan, Sabotage::ForgetsNewest, "never-collect-live", "is kept by policy");
}

#[test]
fn restored_equals_read_fails_when_a_restore_in_between_is_something_else() {
    let mut plan = Plan::calm(7);
    (plan.life.restorers, plan.life.restoring) = (4, Duration::from_millis(100));
    breaks(plan, Sabotage::SpoilsRestores, "restored-equals-read", "restored by restorer-");
}

#[test]
fn progress_fails_when_a_role_never_answers_and_when_a_session_is_left() {
    const PROGRESS: &str = "progress";
    for role in ["conductor", "reader", "hasher", "storer", "indexer"] {
        breaks_calm(Sabotage::Silence(role), PROGRESS, "job ");
    }
    breaks_calm(Sabotage::LeavesSession, PROGRESS, "is left though every job has ended");
}

#[test]
fn no_plaintext_out_fails_when_content_or_a_key_leaves() {
    const OUT: &str = "no-plaintext-out";
    let encrypted = Plan { encrypted: true, ..Plan::calm(7) };
    for (sabotage, words) in [
        (Sabotage::SealsNothing, "chunks.new what a source holds"),
        // Storers refuse it, so that it comes no further.
        (Sabotage::SealsNothing, "of a chunk that is not encrypted"),
        (Sabotage::TellsContent, "saboteur tells"),
        (Sabotage::StoresContent, "checks/"),
        (Sabotage::SendsKey, "of a data key that is not sealed"),
        (Sabotage::StoresKey, "keys/"),
    ] {
        breaks(encrypted.clone(), sabotage, OUT, words);
    }
}
