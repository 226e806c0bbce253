//! Whole ways of changes: sent, broken off, gone on with, applied, and taken back.

mod applying;
mod reconnecting;
mod rewinding;
mod sending;
