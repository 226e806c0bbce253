//! What tests across crates share.

pub mod e2e;
pub mod lab;
pub mod old;
pub mod pausing;
pub mod rot;
pub mod sim;

/// Whether there is time for all that is worth trying: `cargo xtask test --long`. An ordinary run tries a part of it.
pub fn is_long() -> bool {
    std::env::var("LVKEEP_TEST_LONG").is_ok_and(|long| long == "1")
}
