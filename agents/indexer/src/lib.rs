//! The indexer: shards of the shared index, from chunk id to every known copy.
//!
//! A process owns some of the shards. It answers whether a chunk is known, whose it is to store, and where copies
//! are; it learns from announced packs, and from the footers of packs that a listing shows. What it keeps on disk is
//! a cache: losing it costs the reading of footers, never an answer's correctness, since every answer is a hint.
//! It must never say that a chunk is known because somebody promised to store it.

mod cache;
mod claims;
mod copies;
mod directory;
mod indexer;
mod locator;
mod serve;
mod shards;
mod sync;
mod table;
mod wanted;

pub use claims::{Claims, Owner};
pub use indexer::{Indexer, OpenError, Settings, rebuild};
pub use locator::{Locator, LocatorReport, LocatorSettings, Wish};
pub use sync::SyncReport;
