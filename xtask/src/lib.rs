//! The project's own tooling, run as `cargo xtask COMMAND`.
//!
//! It brings the external tools that the tests need, runs every gate in one command, keeps the rules of the
//! source tree as ordinary tests (`tidy`), builds the static binary (`dist`), and runs the demonstration and the
//! benchmark against real images.
//! It depends on none of the product's crates: it only ever runs the built binary.

pub mod bench;
pub mod demo;
pub mod dist;
pub mod lab;
pub mod lvkeep;
pub mod run;
pub mod test;
pub mod tidy;
pub mod tools;
pub mod workspace;
