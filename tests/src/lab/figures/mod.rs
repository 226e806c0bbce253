//! What tracked backups cost on real LVM, in figures. `cargo xtask lab figures` runs these in guests and prints them.
//!
//! A figure is a function like a scenario. It measures, says what it found with [`Case`], and panics only when something
//! is wrong: a restore that differs, more read than is promised. No duration ever fails it. The volume group is on the
//! first scratch disk alone, and temporary folders, the repository in them, are on another one: what is read from the
//! first disk is read from volumes.

mod cases;
mod changed;
mod map;
mod rounds;
mod runs;
mod writer;
mod writes;
mod writing;

use super::{Scenario, VolumeGroup, disks};

pub use cases::Case;
pub use map::Map;
pub use runs::{Counter, Run, Runs};
pub use writer::Writer;
pub use writes::{Kind, Writes, rounded};

/// Every figure.
pub const FIGURES: &[Scenario] = &[
    Scenario {
        name: "changed_thick",
        about: "1 % of a thick volume of 4 GiB changed: what is read, how long it takes, how long writers are held",
        run: changed::changed_thick,
    },
    Scenario { name: "changed_thin", about: "the same of a thin volume", run: changed::changed_thin },
    Scenario {
        name: "write_rate",
        about: "how fast a thick volume of 4 GiB takes writes, without and with a baseline",
        run: writing::write_rate,
    },
    Scenario {
        name: "thirty_rounds_thick",
        about: "chunks and stored bytes of a thick volume of 1 GiB after 30 tracked backups, and of a full scan",
        run: rounds::thirty_rounds_thick,
    },
    Scenario {
        name: "thirty_rounds_thin",
        about: "the same of a thin volume",
        run: rounds::thirty_rounds_thin,
    },
];

/// The pool's block, and the chunk of an exception store unless it is set: what changes are told apart by.
const UNIT: u64 = 64 << 10;

/// Changes in blocks of 4 KiB fill stores faster than lvkeep reckons with before it has seen any.
const CONFIGURATION: &str = "[lvm]\nsnapshot_size = \"60%\"\n";

fn group() -> VolumeGroup {
    VolumeGroup::on("vg0", &[&disks()[0]])
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
