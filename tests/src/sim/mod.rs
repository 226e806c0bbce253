//! Whole sessions from one seed: every role as it is, over the in-process bus and a bucket in memory, in virtual time.
//!
//! * [`plan`]: what a seed stands for.
//! * [`mod@run`]: one run of a plan.
//! * [`ledger`]: what must hold at every moment.
//! * [`leaks`]: what must not leave a host.
//! * [`oracle`]: what must hold at its end.
//! * [`saboteur`]: what shows that a run fails when it does not hold.
//!
//! Nothing here knows how roles work: faults come through the seams, and what is checked is what an operator relies on.

pub mod bucket;
pub mod build;
pub mod client;
pub mod cluster;
pub mod content;
pub mod counts;
pub mod doom;
pub mod environment;
pub mod leaks;
pub mod ledger;
pub mod oracle;
pub mod people;
pub mod plan;
pub mod run;
pub mod saboteur;
pub mod second;
pub mod server;
pub mod sources;
pub mod trace;
pub mod wires;

pub use plan::Plan;
pub use run::{Broken, Report, run};
pub use saboteur::Sabotage;
pub use wires::Accident;
