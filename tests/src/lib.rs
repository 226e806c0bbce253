//! What tests across crates share.

pub mod e2e;
pub mod lab;
pub mod rot;
pub mod sim;
