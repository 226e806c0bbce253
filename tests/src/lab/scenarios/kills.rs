//! lvkeep killed at each step of a snapshot's life: the next run is clean, right, and leaves no orphan.
//!
//! The steps are the calls of the host's tools. A run is watched once to count them; then runs are killed before the
//! first, before the second and so on, by the tool itself, two in a row before each that must be clean.

use crate::e2e::Ran;
use crate::lab::{
    Backup, Content, Keeper, Pool, Traces, Volume, VolumeGroup, Watched, every, first, rounds, seed, step,
};

/// `kill -9` at the steps of a backup of a thick volume with a baseline.
pub fn killed_on_thick() {
    on_thick("KILL", every(1));
}

/// `kill -9` at the steps of a backup of a thin volume with a baseline.
pub fn killed_on_thin() {
    on_thin("KILL", every(1));
}

/// A polite end at some steps of a backup of a thin volume: lvkeep cleans up before it goes.
pub fn ended_on_thin() {
    on_thin("TERM", every(3));
}

/// `kill -9` at some steps of a backup of a group of both kinds: also when some of its snapshots are taken, and when none
/// of its volumes has come for its own.
pub fn killed_in_a_group() {
    let group = VolumeGroup::new("vg0");
    let pool = group.pool("pool", 256, 64);
    let volumes = [group.thick("root", 32), pool.thin("data", 32)];
    killed(&group, &[&pool], &volumes, "KILL", every(8));
}

fn on_thick(signal: &str, every: usize) {
    let group = VolumeGroup::new("vg0");
    let volume = group.thick("web", 64);
    killed(&group, &[], &[volume], signal, every);
}

fn on_thin(signal: &str, every: usize) {
    let group = VolumeGroup::new("vg0");
    let pool = group.pool("pool", 256, 64);
    let volume = pool.thin("web", 64);
    killed(&group, &[&pool], &[volume], signal, every);
}

/// Ends runs before one of the first steps, and then before each that is so many calls further.
fn killed(group: &VolumeGroup, pools: &[&Pool], volumes: &[Volume], signal: &str, every: usize) {
    let keeper = Keeper::new("");
    let traces = Traces::of(group, pools);
    let mut contents: Vec<Content> =
        volumes.iter().zip(seed()..).map(|(volume, seed)| Content::new(&volume.device(), seed)).collect();
    contents.iter_mut().for_each(|content| content.fill(50));
    let mut overwrite =
        |count| contents.iter_mut().for_each(|content| drop(content.overwrite(count, 60_000)));
    let paths: Vec<String> = volumes.iter().map(Volume::path).collect();
    let mut sources: Vec<&str> = paths.iter().map(String::as_str).collect();
    if volumes.len() > 1 {
        sources.extend(["--group", "all"]);
    }
    keeper.backup_all(&sources);
    let tools = Watched::new(&keeper);
    overwrite(4);
    tools.never();
    watched(&tools, &keeper, &sources).ok();
    let steps = tools.calls().len();
    println!("    calls of tools: {:?}", tools.calls());
    assert!(steps > 2, "the tools are called through the folder that is watched");

    let mut clean = 0;
    let numbers: Vec<usize> = (first(every)..=steps).step_by(every).take(rounds(100) as usize).collect();
    // The second of two ends where the first left something. Which of them are two depends on the seed: with two seeds,
    // each kill comes right before a clean run once.
    let (alone, others) = numbers.split_at(numbers.len().min(seed() as usize % 2));
    for two in std::iter::once(alone).filter(|alone| !alone.is_empty()).chain(others.chunks(2)) {
        let mut was_ended = false;
        for number in two {
            step(&format!("{signal} before call {number} of {steps}"));
            overwrite(3);
            tools.strike_before(*number, signal);
            // A run may need fewer calls than the first one.
            was_ended |= !watched(&tools, &keeper, &sources).status.success();
            if signal == "TERM" {
                traces.pools_are_free();
            }
        }
        if !was_ended {
            continue;
        }
        if clean % 3 == 1 {
            keeper.run(&["host", "clean"]).ok();
            traces.pools_are_free();
        }
        overwrite(2);
        let backups = keeper.backup_all(&sources);
        traces.are_only(volumes.len());
        clean += 1;
        if clean % 3 == 0 {
            restore(&keeper, &backups, volumes);
        }
    }
    assert!(clean > 1, "runs were killed");
    step("after all of that");
    overwrite(3);
    let last = keeper.backup_all(&sources);
    for backup in &last {
        assert!(!backup.tracked().is_everything(), "{}", backup.said);
    }
    restore(&keeper, &last, volumes);
    keeper.run(&["check", "--read-data"]).ok();
    traces.are_only(volumes.len());
}

/// Each of the snapshots holds what its volume holds now.
fn restore(keeper: &Keeper, backups: &[Backup], volumes: &[Volume]) {
    for volume in volumes {
        let of_it = |backup: &&Backup| backup.volume().ends_with(&volume.path());
        let backup = backups.iter().find(of_it).unwrap_or_else(|| panic!("no backup of {}", volume.path()));
        keeper.restores(backup.snapshot(), &volume.device());
    }
}

fn watched(tools: &Watched, keeper: &Keeper, sources: &[&str]) -> Ran {
    let arguments = [&["backup"], sources].concat();
    let mut command = keeper.machine.command(&arguments);
    tools.watch(&mut command);
    keeper.machine.start_command(&arguments, command).end()
}
