//! What happened, in order: a hash that two runs of one seed must share, and lines for whoever looks at one seed.
//!
//! It holds no lines: they are printed as they come, when a single seed is looked at.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent::Environment;

/// The trace of one run.
#[derive(Debug)]
pub struct Trace {
    environment: Arc<dyn Environment>,
    loud: bool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    hasher: blake3::Hasher,
    lines: u64,
    wrong: Vec<String>,
}

impl Trace {
    /// An empty trace; a loud one prints every line.
    pub fn new(environment: Arc<dyn Environment>, loud: bool) -> Self {
        Self { environment, loud, inner: Mutex::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what happened.
    pub fn note(&self, what: fmt::Arguments<'_>) {
        let line = format!("{:>9} {what}\n", self.environment.elapsed().as_millis());
        if self.loud {
            eprint!("{line}");
        }
        let mut inner = self.inner();
        inner.hasher.update(line.as_bytes());
        inner.lines += 1;
    }

    /// Notes a broken invariant; the run fails by it.
    pub fn wrong(&self, what: String) {
        self.note(format_args!("WRONG {what}"));
        self.inner().wrong.push(what);
    }

    /// The broken invariants so far.
    pub fn wrongs(&self) -> Vec<String> {
        self.inner().wrong.clone()
    }

    /// How many lines there were, and their hash.
    pub fn summary(&self) -> (u64, blake3::Hash) {
        let inner = self.inner();
        (inner.lines, inner.hasher.finalize())
    }
}
