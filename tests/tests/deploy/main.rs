//! What `deploy/` holds is what an operator copies: a configuration of nats-server, one of lvkeep, and units of systemd.
//! Each is read by the program that it is for; where systemd is not there, its units are still read strictly.

mod nats;
mod settings;
mod units;

use std::path::PathBuf;

/// The folder `deploy`.
pub fn deploy() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("the top of the tree").join("deploy")
}

/// A file of it.
pub fn text(name: &str) -> String {
    let path = deploy().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|why| panic!("cannot read {}: {why}", path.display()))
}
