//! Logical volumes: snapshots taken and rotated, what changed since the last one, and restores to them.
//!
//! Everything here runs on the host that owns the volumes, mostly as root, and talks to LVM through its own tools and
//! their JSON reports. It never knows a role, and never touches what does not carry lvkeep's marks for the very
//! volume at hand.

pub mod changes;
pub mod delta;
pub mod dm;
pub mod domain;
pub mod exceptions;
pub mod freeze;
pub mod fuzz;
pub mod governor;
pub mod marks;
pub mod owner;
pub mod ranges;
pub mod report;
pub mod settings;
pub mod snapshots;
pub mod stream;
pub mod target;
#[cfg(test)]
mod testing;
pub mod tools;
pub mod volumes;

pub use report::{Inventory, Kind, LogicalVolume, VolumeGroup};
pub use settings::Settings;
pub use tools::{Output, Streamed, ToolError, Tools};
pub use volumes::{Cleaned, LvmVolumes};
