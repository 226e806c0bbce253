//! Brings snapshots back: walks a snapshot's map, fetches packs by coalesced ranges, verifies, decrypts and
//! decompresses every chunk, and writes sparse files or devices.
//!
//! It needs the bucket, the index and, for an encrypted repository, an identity. It never writes a byte that was not
//! verified against its chunk id, never opens a target that is in use unless that is forced, or that holds something unless that may go, and
//! never leaves stale data where the snapshot has zeroes. What stands on the target already is left alone. Memory is
//! bounded by [`Settings::memory`] whatever the volume's size and whatever maps, frames and the index claim.

mod apart;
mod batch;
mod budget;
mod channel;
mod claim;
mod compare;
mod differences;
mod helping;
mod hold;
mod holes;
mod keeping;
mod leaving;
mod lending;
mod opening;
mod pipeline;
mod plan;
mod pool;
mod reading;
mod repeats;
mod report;
mod restorer;
mod service;
mod sharing;
mod sink;
mod snapback;
mod spans;
mod standing;
mod stopping;
mod target;
mod task;
mod tracked;
mod unfinished;
mod unit;
mod verify;

pub use budget::{Budget, Share};
pub use differences::Differences;
pub use keeping::kept_range;
pub use report::{Hole, Progress, Report};
pub use restorer::{Restorer, SAMPLE, Settings};
pub use service::Serving;
pub use target::Target;

#[cfg(test)]
mod tests;
