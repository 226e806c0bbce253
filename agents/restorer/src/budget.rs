//! A number of requests to the store, divided over the restores that run at once, whoever does them.
//!
//! What restores have never sums to more. Each is given its share for its whole life when it begins, because nobody can
//! take a part of it back from an agent that cannot be reached; what one that has ended had is for those that begin
//! later. The most urgent goes first where there is not enough for all.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Requests that restores share.
#[derive(Debug)]
pub struct Budget {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// Restores that have a share.
    running: usize,
    /// Restores that could run beside them.
    idle: usize,
    /// Those that want to begin, by their urgency.
    waiting: BTreeSet<usize>,
}

/// What one restore has of them, until this is dropped.
#[derive(Debug)]
pub struct Share<'a> {
    budget: &'a Budget,
    most: usize,
    is_lost: AtomicBool,
}

impl Budget {
    /// For at most `lanes` restores at once, each of which has one request at least: of more than there are requests,
    /// fewer run.
    pub fn new(requests: usize, lanes: usize) -> Self {
        let state = State { free: requests, running: 0, idle: lanes, waiting: BTreeSet::new() };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a restore may have, which is to be the `number`th. It waits while there is nothing; none when nothing will come
    /// back, because all of it belongs to restores of which nobody knows how they ended.
    pub async fn share(&self, number: usize) -> Option<Share<'_>> {
        self.state().waiting.insert(number);
        // All that begin at one moment have said so then.
        tokio::task::yield_now().await;
        loop {
            let changed = self.changed.notified();
            let taken = self.state().take(number);
            match taken {
                Taken::Share(most) => {
                    self.changed.notify_waiters();
                    return Some(Share { budget: self, most, is_lost: AtomicBool::new(false) });
                }
                Taken::Nothing => return None,
                Taken::Wait => changed.await,
            }
        }
    }

    /// One restore fewer can run: a lane has no more to do.
    pub fn leave(&self) {
        let mut state = self.state();
        state.idle = state.idle.saturating_sub(1);
    }
}

/// What becomes of one that wants a share.
#[derive(Debug, PartialEq, Eq)]
enum Taken {
    Share(usize),
    Wait,
    Nothing,
}

impl State {
    fn take(&mut self, number: usize) -> Taken {
        if self.free == 0 && self.running == 0 {
            self.waiting.remove(&number);
            return Taken::Nothing;
        }
        if self.free == 0 || self.waiting.first() != Some(&number) {
            return Taken::Wait;
        }
        self.waiting.remove(&number);
        // As much for each of those that could begin now.
        let most = (self.free / self.idle.max(1)).max(1);
        self.free -= most;
        self.running += 1;
        self.idle = self.idle.saturating_sub(1);
        Taken::Share(most)
    }

    fn give_back(&mut self, most: usize) {
        self.free += most;
        self.running = self.running.saturating_sub(1);
        self.idle += 1;
    }
}

impl Share<'_> {
    /// Requests at once.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Nobody knows whether the restore goes on: nobody else is given what it has.
    pub fn lose(&self) {
        self.is_lost.store(true, Ordering::Relaxed);
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let most = if self.is_lost.load(Ordering::Relaxed) { 0 } else { self.most };
        self.budget.state().give_back(most);
        self.budget.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn state(free: usize, lanes: usize) -> State {
        State { free, running: 0, idle: lanes, waiting: (0..100).collect() }
    }

    #[test]
    fn what_there_is_is_divided_over_all_that_can_run() {
        for (requests, lanes, expected) in [
            (8, 2, vec![4, 4]),
            (8, 3, vec![2, 3, 3]),
            (7, 4, vec![1, 2, 2, 2]),
            (2, 3, vec![1, 1]),
            (1, 64, vec![1]),
            (256, 1, vec![256]),
        ] {
            let mut state = state(requests, lanes);
            let given = (0..lanes).map_while(|number| match state.take(number) {
                Taken::Share(most) => Some(most),
                Taken::Wait | Taken::Nothing => None,
            });
            assert_eq!(given.collect::<Vec<_>>(), expected, "{requests} requests, {lanes} at once");
            assert_eq!(state.free, 0);
        }
    }

    #[test]
    fn what_comes_back_is_for_the_most_urgent_and_for_those_that_are_left() {
        let mut state = state(4, 3);
        state.waiting = [3, 5, 7, 9].into();
        assert_eq!(state.take(5), Taken::Wait, "it is not its turn");
        assert_eq!([3, 5, 7].map(|number| state.take(number)), [1, 1, 2].map(Taken::Share));
        assert_eq!(state.take(9), Taken::Wait);
        state.give_back(1);
        assert_eq!(state.take(9), Taken::Share(1));
        // Two lanes have no more to do: the last restore has what they had.
        state.waiting = [11].into();
        [1, 2].into_iter().for_each(|most| state.give_back(most));
        state.idle -= 1;
        assert_eq!(state.take(11), Taken::Share(3));
    }

    #[tokio::test]
    async fn what_is_lost_is_given_to_nobody_and_who_waits_for_it_is_told() {
        let budget = Budget::new(2, 3);
        let (first, second) = tokio::join!(budget.share(1), budget.share(0));
        let (first, second) = (first.unwrap(), second.unwrap());
        let mut third = Box::pin(budget.share(2));
        assert!(third.as_mut().now_or_never().is_none());
        first.lose();
        drop(first);
        assert!(third.as_mut().now_or_never().is_none());
        second.lose();
        drop(second);
        assert!(third.await.is_none());
    }

    /// Whoever comes first at one moment is not served first.
    #[tokio::test]
    async fn the_most_urgent_of_those_that_begin_together_is_first() {
        let budget = Budget::new(1, 3);
        let order = Mutex::new(Vec::new());
        let one = |number| {
            let (budget, order) = (&budget, &order);
            async move {
                let _share = budget.share(number).await.unwrap();
                order.lock().unwrap().push(number);
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(one(2), one(0), one(1));
        assert_eq!(*order.lock().unwrap(), [0, 1, 2]);
    }
}
