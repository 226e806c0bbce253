//! lvkeep killed at each step of a snapshot's life: the next run is clean, right, and leaves no orphan.
//!
//! The steps are the calls of the host's tools. A run is watched once to count them; then runs are killed before the
//! first, before the second and so on, by the tool itself.

use crate::e2e::Ran;
use crate::lab::{Content, Keeper, Pool, Traces, Volume, VolumeGroup, Watched, rounds, seed, step};

/// `kill -9` at every other step of a backup of a thick volume with a baseline, from the first on.
pub fn killed_on_thick_at_odd_steps() {
    on_thick("KILL", (1, 2));
}

/// The steps between those.
pub fn killed_on_thick_at_even_steps() {
    on_thick("KILL", (2, 2));
}

/// `kill -9` at every other step of a backup of a thin volume with a baseline, from the first on.
pub fn killed_on_thin_at_odd_steps() {
    on_thin("KILL", (1, 2));
}

/// The steps between those.
pub fn killed_on_thin_at_even_steps() {
    on_thin("KILL", (2, 2));
}

/// A polite end at some steps of a backup of a thin volume: lvkeep cleans up before it goes.
pub fn ended_on_thin() {
    on_thin("TERM", (1, 3));
}

fn on_thick(signal: &str, steps: (usize, usize)) {
    let group = VolumeGroup::new("vg0");
    let volume = group.thick("web", 64);
    killed(&group, &[], &volume, signal, steps);
}

fn on_thin(signal: &str, steps: (usize, usize)) {
    let group = VolumeGroup::new("vg0");
    let pool = group.pool("pool", 256, 64);
    let volume = pool.thin("web", 64);
    killed(&group, &[&pool], &volume, signal, steps);
}

/// Ends runs before the first of the steps that are wanted, and then before each that is so many calls further.
fn killed(
    group: &VolumeGroup,
    pools: &[&Pool],
    volume: &Volume,
    signal: &str,
    (first, every): (usize, usize),
) {
    let keeper = Keeper::new("");
    let traces = Traces::of(group, pools);
    let mut content = Content::new(&volume.device(), seed());
    content.fill(50);
    keeper.backup(volume);
    let tools = Watched::new(&keeper);
    content.overwrite(4, 60_000);
    tools.never();
    backup(&tools, &keeper, volume).ok();
    let steps = tools.calls().len();
    println!("    calls of tools: {:?}", tools.calls());
    assert!(steps > 2, "the tools are called through the folder that is watched");

    let mut clean = 0;
    for number in (first..=steps).step_by(every).take(rounds(100) as usize) {
        step(&format!("{signal} before call {number} of {steps}"));
        content.overwrite(3, 60_000);
        tools.strike_before(number, signal);
        let ran = backup(&tools, &keeper, volume);
        if ran.status.success() {
            // A run may need fewer calls than the first one.
            continue;
        }
        if signal == "TERM" {
            traces.pools_are_free();
        }
        if clean % 3 == 1 {
            keeper.run(&["host", "clean"]).ok();
            traces.pools_are_free();
        }
        content.overwrite(2, 60_000);
        let backup = keeper.backup(volume);
        traces.are_only(1);
        clean += 1;
        if clean % 3 == 0 {
            keeper.restores(backup.snapshot(), &volume.device());
        }
    }
    assert!(clean > 2, "runs were killed");
    step("after all of that");
    content.overwrite(3, 60_000);
    let last = keeper.backup(volume);
    assert!(!last.tracked().is_everything(), "{}", last.said);
    keeper.restores(last.snapshot(), &volume.device());
    keeper.run(&["check", "--read-data"]).ok();
    traces.are_only(1);
}

fn backup(tools: &Watched, keeper: &Keeper, volume: &Volume) -> Ran {
    let path = volume.path();
    let arguments = ["backup", path.as_str()];
    let mut command = keeper.machine.command(&arguments);
    tools.watch(&mut command);
    keeper.machine.start_command(&arguments, command).end()
}
