//! Scenarios with real LVM, and what they are made of. They run as root in a guest of `cargo xtask lab`, one per guest.
//!
//! A scenario is a function that panics when something is not as it must be. It has two scratch disks and the guest to
//! itself and cleans up nothing: the guest is thrown away. The binary `scenarios` runs one by its name inside; outside,
//! `tests/tests/lvm` runs each in a guest of its own.
//!
//! Randomness comes from the number in `LVKEEP_LAB_SEED` (printed with every run), the length of what can go on for
//! long from `LVKEEP_LAB_ROUNDS`.

mod command;
mod content;
pub mod figures;
mod keeper;
mod mounts;
mod scenarios;
mod traces;
mod volumes;
mod watched;

pub use command::{fails, run, run_with_input, succeeds, words};
pub use content::{Content, differing, is_zero, total};
pub use figures::FIGURES;
pub use keeper::{Backup, Keeper, Tracked};
pub use mounts::{FileSystem, Mounted};
pub use scenarios::SCENARIOS;
pub use traces::{Traces, held_metadata_root, nothing_is_frozen};
pub use volumes::{Pool, Volume, VolumeGroup};
pub use watched::Watched;

/// One scenario.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// What it is called everywhere.
    pub name: &'static str,
    /// What it shows, in a line.
    pub about: &'static str,
    /// It itself; panics when it fails.
    pub run: fn(),
}

/// The scratch disks of the guest.
pub fn disks() -> [String; 2] {
    ["DISK0", "DISK1"].map(|name| match std::env::var(name) {
        Ok(path) => path,
        Err(_) => {
            panic!("no {name}: scenarios run in a guest (`cargo xtask lab run NAME`), never on a machine")
        }
    })
}

/// The seed of this run.
pub fn seed() -> u64 {
    number("LVKEEP_LAB_SEED").unwrap_or(1)
}

/// How many rounds something goes on: what the environment says, else `usual`.
pub fn rounds(usual: u64) -> u64 {
    number("LVKEEP_LAB_ROUNDS").unwrap_or(usual)
}

/// How far the steps at which something is ended lie apart: `long` in a long run, which has time for all that matter. An
/// ordinary one ends at each fifth of those; which they are depends on the seed.
pub fn every(long: usize) -> usize {
    if crate::is_long() { long } else { 5 * long }
}

/// The first of steps that lie so far apart.
pub fn first(every: usize) -> usize {
    1 + seed() as usize % every
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

/// Says what is being done, for whoever reads the output of a scenario that failed.
pub fn step(what: &str) {
    // Since the guest was booted.
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    println!("--- {:>7} s: {what}", uptime.split(' ').next().unwrap_or_default());
}
