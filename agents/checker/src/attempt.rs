//! One attempt at a check, as it is to be noted in the bucket.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use schema::SessionId;
use schema::check::{Check, Reached};
use tokio::sync::Notify;

use crate::findings::Progress;
use crate::pace::Pace;
use crate::told;

/// One attempt at a check.
pub(crate) struct Attempt {
    pub(crate) session: SessionId,
    check: Mutex<Check>,
    /// What attempts before it had reached.
    pub(crate) earlier: Reached,
    pub(crate) pace: Arc<Pace>,
    /// Whether something could not be recorded, so that it comes no further.
    is_stuck: AtomicBool,
    /// There is something to note that another attempt would not find again, and that cannot wait for the next beat.
    pub(crate) news: Notify,
}

impl Attempt {
    /// One that begins where the check is.
    pub(crate) fn new(session: SessionId, check: Check, pace: Arc<Pace>) -> Self {
        let earlier = check.reached.clone();
        Self {
            session,
            check: Mutex::new(check),
            earlier,
            pace,
            is_stuck: AtomicBool::new(false),
            news: Notify::new(),
        }
    }

    /// The check.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Check> {
        self.check.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is alive; whether it waits for other work.
    pub(crate) fn count(&self) -> bool {
        let is_paused = self.pace.is_paused();
        if let Some(worker) = &mut self.lock().worker {
            worker.beat += 1;
            worker.is_paused = is_paused;
        }
        is_paused
    }

    /// Leaves the check to others. It was not the check's fault, so that it does not count as a try: unless it comes no
    /// further because nothing can be recorded.
    pub(crate) fn leave(&self) {
        let mut check = self.lock();
        check.worker = None;
        if !self.is_stuck.load(Ordering::Relaxed) {
            check.tries = check.tries.saturating_sub(1);
        }
    }

    /// Minds how far the reading of content is. What another attempt goes on behind is recorded.
    pub(crate) fn reach(&self, progress: Progress<'_>) {
        let mut check = self.lock();
        self.is_stuck.store(progress.is_stuck, Ordering::Relaxed);
        let before = (check.reached.objects(), check.reached.recorded);
        told::reached(&self.earlier, &mut check.reached, progress);
        if progress.after.is_some() {
            check.tries = 0;
        }
        if before != (check.reached.objects(), check.reached.recorded) {
            self.news.notify_one();
        }
    }
}
