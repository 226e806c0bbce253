//! What happened, in order: a hash that two runs of one seed must share, and lines for whoever looks at one seed.
//!
//! It holds no lines: they are printed as they come, when a single seed is looked at. The folders of a run have other
//! names each time, and are left out. The age library draws the headers of sealed keys itself, so that only runs without
//! encryption repeat exactly: those of an encrypted plan may take another course.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent::Environment;

/// The trace of one run.
#[derive(Debug)]
pub struct Trace {
    environment: Arc<dyn Environment>,
    loud: bool,
    folders: Vec<String>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    hasher: blake3::Hasher,
    lines: u64,
    wrong: Vec<String>,
}

impl Trace {
    /// An empty trace of a run in these folders; a loud one prints every line.
    pub fn new(environment: Arc<dyn Environment>, loud: bool, folders: &[&Path]) -> Self {
        let folders = folders.iter().map(|folder| folder.display().to_string()).collect();
        Self { environment, loud, folders, inner: Mutex::default() }
    }

    /// The clock of the run, in milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        self.environment.now_ms()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what happened.
    pub fn note(&self, what: fmt::Arguments<'_>) {
        let mut line = format!("{:>9} {what}\n", self.environment.elapsed().as_millis());
        for folder in self.folders.iter().filter(|folder| line.contains(*folder)).collect::<Vec<_>>() {
            line = line.replace(folder, "<folder>");
        }
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
