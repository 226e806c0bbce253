//! The parts that every agent is made of, each against its neighbours made by hand. Time is paused throughout: waiting
//! costs nothing, and a wait in vain ends at once.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod deleting;
mod forgetting;
mod index;
mod maps;
mod near;
mod rate;
mod repository;
mod runner;
mod session_ends;
mod sessions;
mod support;
mod unreadable;
