//! Faults as decorators on a seam: what a network, a server or a store does on a bad day, from a seed.
//!
//! A decorator injects only what its seam's contract allows, so that whoever is right under the contract stays
//! right under it; it counts what it injected, and can be told to stop, so that progress can be asserted.

pub mod bus;
pub mod listing;
pub mod record;
pub mod store;
