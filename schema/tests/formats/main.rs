//! What the formats promise: golden files of every version ever written stay readable (`golden`), whatever is
//! written reads back (`round_trips`), and what was damaged, cut off or moved is refused (`damage`).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod arbitrary;
mod damage;
mod files;
mod golden;
mod messages;
mod round_trips;
mod samples;
mod stream;
