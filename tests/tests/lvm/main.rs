//! Scenarios with real LVM, each in a guest of its own: see `tests::lab`, and `cargo xtask lab` for the guest.
//!
//! What the guest prints is this test's output; when a scenario fails, the end of the guest's console follows it.

mod guest;

use tests::lab::SCENARIOS;

/// One test per scenario.
macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            guest::runs(stringify!($name));
        })*

        const LISTED: &[&str] = &[$(stringify!($name)),*];
    };
}

scenarios! {
    lvm_is_real,
    thick_changes,
    thin_changes,
    thin_refusals,
    thick_rounds,
    thin_rounds,
    ext4_on_thick,
    xfs_on_thick,
    ext4_on_thin,
    xfs_on_thin,
    accounting,
    lying_baseline,
    overflowed_baseline,
    resized_volume,
    merged_volume,
    merged_thin_volume,
    recreated_volume,
    renamed_volume,
    lost_parent,
    two_volumes_of_one_pool,
    two_repositories,
    two_runs_at_once,
    a_group_and_another_run,
    the_rest_of_the_host,
    no_baseline,
    facts_travel,
    orphans_are_listed_and_removed,
    groups,
    a_domain,
    frozen_together,
    hooks_let_go,
    space,
    pools_that_fill_up,
    killed_on_thick,
    killed_on_thin,
    ended_on_thin,
    killed_in_a_group,
    reader_agent_killed_on_thick,
    reader_agent_killed_on_thin,
    restored_to_thick,
    restored_to_thin,
    restored_to_new,
    restored_to_nothing_in_use,
    restored_with_a_way_back,
    restored_over_a_thick_baseline,
    restored_over_a_thin_baseline,
    restored_in_bulk,
    restored_and_shared_or_put_back,
    a_volume_moves,
    hourly_snapbacks,
    changes_are_dumped_and_pulled,
    a_broken_ssh_is_taken_up_again,
}

#[test]
fn no_scenario_is_forgotten() {
    let known: Vec<&str> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
    let missing: Vec<_> = known.iter().filter(|name| !LISTED.contains(name)).collect();
    assert!(missing.is_empty(), "add to the list of this file: {missing:?}");
    let gone: Vec<_> = LISTED.iter().filter(|name| !known.contains(name)).collect();
    assert!(gone.is_empty(), "no such scenarios: {gone:?}");
    let mut sorted = known.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), known.len(), "two scenarios have one name: {known:?}");
}
