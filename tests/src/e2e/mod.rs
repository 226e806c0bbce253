//! What end-to-end tests are made of: real processes of `lvkeep`, of a NATS server and of an object store, each in
//! folders of its own, and disk images with real file systems.
//!
//! A program that is missing fails the test and says how to get it; nothing is left out because of it. Processes end
//! with the value that stands for them, by their own id. Nothing here waits for a length of time: it waits until
//! something is seen, and panics when that takes far too long.

mod archive;
mod clock;
mod guests;
mod image;
mod loops;
mod machine;
mod nats;
mod process;
mod seaweed;
mod site;
mod tap;
mod tools;
mod wait;

pub use archive::{Archive, Copies};
pub use clock::RealTime;
pub use guests::{Guest, Guests};
pub use image::*;
pub use loops::{LoopDevice, Mounted};
pub use machine::Machine;
pub use nats::NatsServer;
pub use process::{Process, Ran};
pub use seaweed::Seaweed;
pub use site::{Agent, Site};
pub use tap::Tap;
pub use tools::{Binary, free_ports, program, xtask};
pub use wait::{PATIENCE, eventually};
