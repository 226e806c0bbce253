//! The reader: opens sources on its host, drops zeroes, cuts chunks by content, and emits extents.
//!
//! * [`cut`]: where chunks end; a pure function of a leaf's bytes and the repository's seed.
//! * [`Files`]: regular files and block devices by path.
//! * [`Reader`]: serves the read requests of one host.
//!
//! Chunk bytes are copied once, from the source into a pooled buffer; extents are slices of it. The reader never
//! compresses, hashes for identity, or talks to the bucket, and holds no more memory than its pool of buffers.

mod abandoned;
mod ahead;
mod asking;
mod audit;
pub mod cut;
mod emit;
mod file;
mod leaves;
mod places;
mod plan;
mod reading;
mod readings;
mod request;
mod source;
#[cfg(test)]
mod testing;
mod tracked;

pub use agent::Audit;
pub use file::Files;
pub use reading::{Reader, Settings};
