//! Restores of small repositories that are built by hand, from memory and from a directory.

mod comparing;
mod counting;
mod damage;
mod fixture;
mod jobs;
mod places;
mod restoring;
mod sharing;
mod targets;
