//! What else the process of an agent does: its check waits for it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use agent::Context;

/// Pause between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Whether an agent has other work than the one check that it has taken.
#[derive(Debug)]
pub(crate) struct Pace {
    context: Context,
    /// Messages that were taken when this was looked at last.
    taken: AtomicU64,
    is_paused: AtomicBool,
}

impl Pace {
    /// Of an agent that has just taken a check.
    pub(crate) fn new(context: Context) -> Self {
        let taken = AtomicU64::new(context.counters.messages_taken.get());
        Self { context, taken, is_paused: AtomicBool::default() }
    }

    /// Whether anything else is in hand, or was since this was asked last.
    pub(crate) fn is_busy(&self) -> bool {
        let counters = &self.context.counters;
        // In this order: what ends in between counts as in hand.
        let handled = counters.messages_handled.get();
        let taken = counters.messages_taken.get();
        let before = self.taken.swap(taken, Ordering::Relaxed);
        taken != before || taken.saturating_sub(handled) > 1
    }

    /// Waits until nothing is.
    pub(crate) async fn wait(&self) {
        while self.is_busy() {
            self.is_paused.store(true, Ordering::Relaxed);
            self.context.environment.sleep(LOOK).await;
        }
        self.is_paused.store(false, Ordering::Relaxed);
    }

    /// Whether somebody waits.
    pub(crate) fn is_paused(&self) -> bool {
        self.is_paused.load(Ordering::Relaxed)
    }
}
