//! Which part of a restore's share of the requests to the store whoever helps has: taken from the owner's before it is
//! given, so that the sum is what the job was given.
//!
//! Pure bookkeeping. What is lent comes back when whoever has it tells the end of its span, and no request of it is on
//! its way then. Of one that says nothing any more nobody knows that: it keeps its part for as long as the restore lasts.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent::store::Limit;

/// Beats after which nobody asks any more for what is put aside.
const UNASKED_MAX: u32 = 5;

/// The share of one restore.
#[derive(Debug)]
pub(crate) struct Lending {
    /// The owner's part.
    limit: Arc<Limit>,
    all: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// For the next one who asks.
    aside: Option<Aside>,
    loans: Vec<Loan>,
}

/// What was taken from the owner, and nobody has.
#[derive(Debug)]
struct Aside {
    most: usize,
    beats: u32,
}

#[derive(Debug)]
struct Loan {
    worker: u64,
    most: usize,
    /// None while a span is being restored with it.
    beats: Option<u32>,
}

impl Lending {
    /// All of it is the owner's.
    pub fn of(limit: Arc<Limit>) -> Self {
        Self { all: limit.most(), limit, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody else could have a part.
    pub fn has_some(&self) -> bool {
        self.limit.most() > 1 || self.state().aside.is_some()
    }

    /// A part for one who asks for a span: half of what the owner has. None while the owner's requests are on their way
    /// that were begun before; it is put aside meanwhile.
    pub fn lend(&self, worker: u64) -> Option<usize> {
        let mut state = self.state();
        if let Some(loan) = state.loans.iter_mut().find(|loan| loan.worker == worker) {
            loan.beats = None;
            return Some(loan.most);
        }
        let most = self.limit.most();
        let half = most / 2;
        if state.aside.is_none() && half > 0 {
            self.limit.set(most - half);
            state.aside = Some(Aside { most: half, beats: 0 });
        }
        let Aside { most, .. } = state.aside.take_if(|_| self.limit.is_kept())?;
        state.loans.push(Loan { worker, most, beats: None });
        Some(most)
    }

    /// One who helped makes no requests any more, but may ask for another span.
    pub fn pause(&self, worker: u64) {
        let mut state = self.state();
        state.loans.iter_mut().filter(|loan| loan.worker == worker).for_each(|loan| loan.beats = Some(0));
    }

    /// Time has passed: what nobody asks for is the owner's again.
    pub fn age(&self) {
        let mut state = self.state();
        let mut back = 0;
        if let Some(aside) = &mut state.aside {
            aside.beats += 1;
        }
        if let Some(aside) = state.aside.take_if(|aside| aside.beats > UNASKED_MAX) {
            back += aside.most;
        }
        state.loans.retain_mut(|loan| {
            let Some(beats) = &mut loan.beats else { return true };
            *beats += 1;
            let is_over = *beats > UNASKED_MAX;
            back += if is_over { loan.most } else { 0 };
            !is_over
        });
        self.limit.set(self.limit.most() + back);
    }

    /// Nobody helps any more, nor can.
    pub fn end(&self) {
        *self.state() = State::default();
        self.limit.set(self.all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lending(most: usize) -> (Arc<Limit>, Lending) {
        let limit = Arc::new(Limit::new(most));
        (limit.clone(), Lending::of(limit))
    }

    /// Whatever is lent, put aside and given back, the parts are the whole.
    fn sum(limit: &Limit, lending: &Lending) -> usize {
        let state = lending.state();
        let lent: usize = state.loans.iter().map(|loan| loan.most).sum();
        limit.most() + lent + state.aside.as_ref().map_or(0, |aside| aside.most)
    }

    #[test]
    fn halves_are_lent_until_the_owner_has_one() {
        let (limit, lending) = lending(6);
        assert_eq!([1, 2, 3, 4].map(|worker| lending.lend(worker)), [Some(3), Some(1), Some(1), None]);
        assert_eq!((limit.most(), sum(&limit, &lending), lending.has_some()), (1, 6, false));
        assert_eq!(lending.lend(1), Some(3), "asked again, it is the same");
        let (limit, lending) = self::lending(1);
        assert_eq!((lending.lend(1), lending.has_some(), limit.most()), (None, false, 1));
    }

    #[test]
    fn what_is_lent_comes_back_when_its_span_is_over_and_not_while_nobody_speaks() {
        let (limit, lending) = lending(8);
        assert_eq!((lending.lend(1), lending.lend(2), limit.most()), (Some(4), Some(2), 2));
        lending.pause(2);
        (0..=UNASKED_MAX).for_each(|_| lending.age());
        assert_eq!((limit.most(), sum(&limit, &lending)), (4, 8), "the first may be at it still");
        assert_eq!(lending.lend(2), Some(2));
        lending.pause(1);
        assert_eq!(lending.lend(1), Some(4), "it goes on with the next span");
        lending.end();
        assert_eq!((limit.most(), sum(&limit, &lending)), (8, 8));
    }

    #[tokio::test]
    async fn nothing_is_lent_before_the_owners_requests_are_over() {
        let environment = Arc::new(crate::tests::TestEnvironment::default());
        let (limit, lending) = lending(2);
        let memory = Arc::new(object_store::memory::InMemory::new());
        let is_open = tokio::sync::watch::Sender::new(false);
        let counting = crate::tests::Counting::new(memory, is_open.clone());
        let store = agent::store::Store::new(Arc::new(counting), "", "test:", environment);
        let store = store.limited(limit.clone());
        let reads = (0..2).map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.get("packs/x").await.unwrap() })
        });
        let reads: Vec<_> = reads.collect();
        tokio::task::yield_now().await;
        assert_eq!((lending.lend(1), limit.most(), sum(&limit, &lending)), (None, 1, 2));
        is_open.send_replace(true);
        for read in reads {
            assert_eq!(read.await.unwrap(), None);
        }
        assert_eq!((lending.lend(1), sum(&limit, &lending)), (Some(1), 2));
        lending.age();
        assert_eq!(limit.most(), 1);
        // Of what is put aside and asked for by nobody, nothing is lost.
        let (limit, lending) = self::lending(4);
        lending.state().aside = Some(Aside { most: 2, beats: 0 });
        limit.set(2);
        (0..=UNASKED_MAX).for_each(|_| lending.age());
        assert_eq!((limit.most(), sum(&limit, &lending)), (4, 4));
    }
}
