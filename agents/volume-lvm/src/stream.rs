//! Changes on their way from one volume to another: what `lvkeep send` and `lvkeep apply` do.
//!
//! ```text
//! changed ranges -> pieces -> source read -> stream -> (pipe, file, ssh) -> stream -> snapback -> target
//!                                ^                                            |
//!                                +------------- what is durable --------------+
//! ```
//!
//! A piece has its number from the list of ranges alone, so that a broken connection is taken up again where the other
//! side was durable. Nothing is overwritten before what stood there is on stable storage in the snapback, if there is
//! one; nothing is believed before its check was seen. Applying the same stream again changes nothing.
//!
//! Memory is bounded by a few MiB of pieces in flight, and by the list of ranges.

pub mod apply;
pub mod differences;
mod incoming;
mod link;
pub mod lvm;
mod pieces;
pub mod place;
pub mod send;
mod snapback;
pub mod source;
pub mod target;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use apply::{Apply, Keep};
pub use link::{Connector, Here, Link};
pub use lvm::{Changed, Host};
pub use place::{Place, Remote};
pub use send::{Sending, Sent};
pub use source::Source;
pub use target::Target;

use agent::Failure;
use schema::messages::FailureKind;

/// The operator ended it.
fn interrupted() -> Failure {
    Failure::new(FailureKind::Revoked, "interrupted")
}

/// A task of this process that ended without an answer.
fn lost(why: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Other, format!("a part of this process failed: {why}"))
}

/// Runs what blocks off the event loop.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(lost)?
}
