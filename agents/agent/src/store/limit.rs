//! How many reads of a store are in flight at once: of a process, or of one of the things that it does.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Store;

/// A number of reads that may change while they are in flight.
#[derive(Debug)]
pub struct Limit {
    turns: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    most: usize,
    /// Turns that are in use and none any more when they are given back.
    owed: usize,
}

/// One read; over when this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    limit: Arc<Limit>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Limit {
    /// So many, and one at least.
    pub fn new(most: usize) -> Self {
        let most = possible(most);
        Self { turns: Arc::new(Semaphore::new(most)), state: Mutex::new(State { most, owed: 0 }) }
    }

    /// As many as there are.
    pub fn none() -> Self {
        Self::new(usize::MAX)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there may be.
    pub fn most(&self) -> usize {
        self.state().most
    }

    /// Another number from now on. Of what is in flight nothing is cut off: [`Self::is_kept`] says when that is no more.
    pub fn set(&self, most: usize) {
        let (mut state, most) = (self.state(), possible(most));
        let (more, fewer) = (most.saturating_sub(state.most), state.most.saturating_sub(most));
        state.most = most;
        state.owed += fewer - self.turns.forget_permits(fewer);
        let paid = state.owed.min(more);
        state.owed -= paid;
        self.turns.add_permits(more - paid);
    }

    /// Whether no more are in flight than there may be.
    pub fn is_kept(&self) -> bool {
        let mut state = self.state();
        // A reader that gave up before its turn has given it back without paying.
        state.owed -= self.turns.forget_permits(state.owed);
        state.owed == 0
    }

    async fn turn(self: &Arc<Self>) -> Turn {
        // The semaphore is never closed, so that waiting cannot fail.
        Turn { limit: self.clone(), permit: self.turns.clone().acquire_owned().await.ok() }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.limit.state();
        let Some(permit) = self.permit.take() else { return };
        if state.owed > 0 {
            state.owed -= 1;
            permit.forget();
        }
    }
}

fn possible(most: usize) -> usize {
    most.clamp(1, Semaphore::MAX_PERMITS)
}

impl Store {
    /// The same, of which no more is read at once than this allows, and what limited it before. What writes, deletes and
    /// lists does not count.
    pub fn limited(&self, limit: Arc<Limit>) -> Self {
        // Who has a turn of what many share must not wait for one of its own.
        let limits = std::iter::once(limit).chain(self.limits.iter().cloned()).collect();
        Self { limits, ..self.clone() }
    }

    /// How many reads of it there may be at once, as it is now.
    pub fn at_once(&self) -> usize {
        self.limits.iter().map(|limit| limit.most()).min().unwrap_or(usize::MAX)
    }

    /// The turn of one read, for as long as something of it is to come.
    pub(super) async fn turn(&self) -> Vec<Turn> {
        let mut turns = Vec::with_capacity(self.limits.len());
        for limit in &*self.limits {
            turns.push(limit.turn().await);
        }
        turns
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn take(limit: &Arc<Limit>) -> Option<Turn> {
        limit.turn().now_or_never()
    }

    #[test]
    fn a_limit_that_falls_is_kept_when_enough_has_ended_and_rises_at_once() {
        let limit = Arc::new(Limit::new(3));
        let mut turns: Vec<Turn> = (0..3).filter_map(|_| take(&limit)).collect();
        assert!(turns.len() == 3 && take(&limit).is_none());
        limit.set(1);
        assert!(limit.most() == 1 && !limit.is_kept());
        turns.truncate(2);
        assert!(!limit.is_kept() && take(&limit).is_none());
        turns.truncate(1);
        assert!(limit.is_kept() && take(&limit).is_none());
        turns.clear();
        assert!(limit.is_kept());
        let one = take(&limit);
        assert!(one.is_some() && take(&limit).is_none());
        limit.set(2);
        let two = take(&limit);
        assert!(two.is_some() && take(&limit).is_none());
        // Down and up again while they are in flight.
        limit.set(1);
        limit.set(3);
        assert!(limit.is_kept() && take(&limit).is_some());
        drop((one, two));
        assert_eq!((0..4).filter_map(|_| take(&limit)).collect::<Vec<_>>().len(), 3);
    }

    #[test]
    fn who_gives_up_before_its_turn_owes_nothing() {
        let limit = Arc::new(Limit::new(1));
        let one = take(&limit);
        let mut waiting = Box::pin(limit.turn());
        assert!(waiting.as_mut().now_or_never().is_none());
        // Its turn has come, and it does not know yet.
        limit.set(2);
        drop(one);
        let other = take(&limit);
        limit.set(1);
        assert!(!limit.is_kept());
        drop(waiting);
        assert!(limit.is_kept() && take(&limit).is_none());
        drop(other);
        assert!(take(&limit).is_some());
    }
}
