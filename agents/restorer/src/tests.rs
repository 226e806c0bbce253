//! Restores of small repositories that are built by hand, from memory and from a directory.

mod apart;
mod asked;
mod bounded;
mod comparing;
mod counting;
mod damage;
mod ending;
mod fixture;
mod in_use;
mod jobs;
mod places;
mod restoring;
mod sharing;
mod snapback;
mod standing;
mod targets;
mod tracking;
mod unfinished;
mod verifying;
mod waiting;

pub(crate) use counting::Counting;
pub(crate) use fixture::TestEnvironment;
