//! What happened how often, by name.

use std::collections::BTreeMap;
use std::fmt;

use agent::faults::{bus, store};

/// What is no fault by itself.
const SLOW: &str = "operations slow";

/// Counts by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<&'static str, u64>);

impl Counts {
    /// It happened so many times more.
    pub fn add(&mut self, what: &'static str, times: u64) {
        *self.0.entry(what).or_insert(0) += times;
    }

    /// How often it happened.
    pub fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    /// All of them together, slowness left out.
    pub fn total(&self) -> u64 {
        self.0.values().sum::<u64>() - self.of(SLOW)
    }

    /// Adds what is counted elsewhere.
    pub fn merge(&mut self, other: &Self) {
        other.0.iter().for_each(|(what, times)| self.add(what, *times));
    }

    /// Faults of the bus.
    pub fn add_bus(&mut self, injected: &bus::Injected) {
        self.add("messages lost", injected.publish_lost);
        self.add("messages doubled", injected.publish_doubled);
        self.add("messages late", injected.publish_late);
        self.add("acknowledgements lost", injected.done_lost);
        self.add("requests lost", injected.request_lost);
        self.add("answers lost", injected.reply_lost);
        self.add("broadcasts lost", injected.broadcast_lost);
        self.add("broadcasts doubled", injected.broadcast_doubled);
    }

    /// Faults of the bucket.
    pub fn add_store(&mut self, injected: &store::Injected) {
        self.add("operations failed without effect", injected.failed_before);
        self.add("operations done and unanswered", injected.failed_after);
        self.add("false answers that it exists", injected.false_exists);
        self.add("writes landed late", injected.late_writes);
        self.add("bodies cut off", injected.cut_bodies);
        self.add("operations in an outage", injected.crashed);
        self.add(SLOW, injected.slow);
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = self.0.iter().filter(|(_, times)| **times > 0);
        let lines: Vec<_> = counted.map(|(what, times)| format!("{times:>9} {what}")).collect();
        f.write_str(&lines.join("\n"))
    }
}
