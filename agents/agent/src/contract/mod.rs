//! What every implementation of a seam promises, as suites that run on each of them: the in-process one, the real
//! one, and the fault wrapper with its faults off. What is proved against one then holds for the others.
//!
//! The suites assert, and panic where a promise is broken: they are for tests. They never wait for a time to pass
//! where something must happen; every wait ends as soon as it happened, and is bounded.

pub mod bus;
pub mod store;
