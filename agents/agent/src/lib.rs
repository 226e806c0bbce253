//! What every agent is made of: the one loop, and the seams that roles are written against.
//!
//! * [`Bus`]: work queues, requests and broadcasts; [`local::LocalBus`] serves one process.
//! * [`Volume`] and [`Volumes`]: sources of bytes.
//! * [`Targets`] and [`Place`]: volumes that restores write to.
//! * [`Environment`]: clock and randomness.
//! * [`store::Store`]: the bucket, over object_store's own trait.
//!
//! Faults, limits and retries are decorators on a seam ([`faults`]). Each seam has a contract suite ([`contract`])
//! that every implementation passes. No role knows NATS, a wall clock, or another role.

pub mod audit;
pub mod buffer;
pub mod bus;
pub mod contract;
pub mod counters;
pub mod damage;
pub mod disks;
pub mod environment;
pub mod epochs;
pub mod failure;
pub mod faults;
pub mod forgetting;
pub mod index;
pub mod keys;
pub mod local;
pub mod looks;
pub mod maps;
pub mod marks;
pub mod mounts;
pub mod near;
pub mod pattern;
pub mod protection;
pub mod rate;
pub mod repository;
pub mod roots;
mod runner;
pub mod sessions;
pub mod store;
pub mod target;
pub mod users;
pub mod volume;

pub use audit::Audit;
pub use bus::{Bus, BusError, Delivery, Queue, Service, Topic};
pub use environment::Environment;
pub use failure::Failure;
pub use protection::{Protection, ReadBy};
pub use repository::Repository;
pub use roots::{DamagedRoot, Roots};
pub use runner::{Answerer, Context, Handler, Outcome, Stop, TOLD, consume, keeping, serve};
pub use target::{Base, Ending, Place, Targets, Wish};
pub use volume::{Changes, Opening, Volume, VolumeError, VolumeInfo, Volumes};
