//! The driver of a session between peers that are played by hand. Time is paused: waiting costs nothing, and what is
//! asked again is asked at its time.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod endings;
mod givings_up;
mod hints;
mod losses;
mod retention;
mod sealing;
mod support;
mod takeovers;
mod tracked;
