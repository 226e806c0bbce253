//! What lvkeep stores and sends: ids, maps, packs, small objects, messages, and how each is sealed and opened.
//!
//! Everything here is a synchronous function over values: no file system, no network, no clock, no randomness
//! (callers hand in random bytes). Every parser checks a length before it allocates, refuses an unknown
//! version by name, and never panics on any input; `fuzz` lists one entry point per parser.
//!
//! Integers are little-endian. Every version that was ever written stays readable; `tests/golden` proves it.

pub mod check;
pub mod chunk;
pub mod config;
mod crypt;
mod cursor;
pub mod damage;
pub mod epoch;
mod error;
pub mod facts;
pub mod fuzz;
mod ids;
pub mod keys;
pub mod limits;
pub mod lvmsync;
pub mod map;
pub mod mark;
pub mod messages;
pub mod names;
mod object;
pub mod pack;
pub mod root;
pub mod session;
pub mod state;
pub mod stream;
pub mod tombstone;
pub mod wire;

pub use error::FormatError;
pub use ids::{
    BlobDigest, ChunkId, DamageId, Domain, JobId, KeyId, MarkId, PackId, ReadingId, RepoId, SessionId,
    StreamId, VolumeKey,
};
pub use object::{Object, ObjectKind};

/// Shorthand for results of this crate.
pub type Result<T, E = FormatError> = std::result::Result<T, E>;
