//! The storer: when a pack closes, what is announced and acknowledged when, and what becomes of uploads that fail.
//! Time is paused: waiting costs nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod failing;
mod packing;
mod support;
