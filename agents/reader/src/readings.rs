//! The readings that are open, one per session.
//!
//! A session keeps its reading until it is over, so that what got lost on the way can be read again from the same
//! state. The table is bounded: when it is full, the reading that was used longest ago and is not in use is closed;
//! its session fails by name if it asks again and the source cannot be taken up.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent::bus::Ticket;
use agent::{Opening, Stop, Volume, VolumeError, Volumes};
use schema::SessionId;
use schema::messages::{About, ReadVolume};
use schema::root::Tracking;
use tokio::sync::{Notify, OnceCell};

/// Sessions known to be over, so that a late request does not open a source for nobody.
const CLOSED_KEPT: usize = 1024;

/// Requests of one session that wait for their turn. A conductor asks again now and then, for everything that is
/// missing: what is not kept here is asked for again.
const WAITING_MAX: usize = 16;

/// The open readings of one reader.
#[derive(Debug)]
pub(crate) struct Readings {
    volumes: Arc<dyn Volumes>,
    limit: usize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    open: BTreeMap<SessionId, (u64, Arc<Reading>)>,
    closed: VecDeque<SessionId>,
    uses: u64,
}

/// One session's reading; it is in use as long as somebody but the table holds it.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    volume: OnceCell<Arc<dyn Volume>>,
    /// Whether its list of changes is used, once that was asked.
    pub(crate) verdict: OnceCell<Verdict>,
    over: Stop,
    turns: Mutex<Turns>,
    /// Raised when a turn ends and nobody waits for one.
    ended: Notify,
}

/// How a volume is read.
#[derive(Debug, Clone)]
pub(crate) struct Verdict {
    /// What of it, and why.
    pub(crate) tracking: Tracking,
    /// Its list of changes was found to be wrong.
    pub(crate) distrusted: bool,
}

impl Verdict {
    /// Everything is read.
    pub(crate) fn everything(why: Option<String>) -> Self {
        Self { tracking: Tracking::Everything { why }, distrusted: false }
    }
}

/// Requests of one session take turns: what one is about to read, another need not read at the same time.
#[derive(Debug, Default)]
struct Turns {
    taken: bool,
    waiting: VecDeque<Waiting>,
}

/// A request that waits for its turn.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) request: ReadVolume,
    pub(crate) about: About,
    pub(crate) ticket: Option<Ticket>,
}

/// What became of a request that came in.
pub(crate) enum Entered<'a> {
    /// It is its turn.
    Now(Turn<'a>, Waiting),
    /// Whoever has the turn serves it later.
    Waits,
    /// Too many wait.
    Full(Waiting),
}

/// The turn of somebody who serves a session. Dropped, it leaves those who wait to be delivered again.
pub(crate) struct Turn<'a>(&'a Reading);

impl Turn<'_> {
    /// The next request that waits; without one the turn ends.
    pub(crate) fn next(&mut self) -> Option<Waiting> {
        let mut turns = self.0.turns();
        let next = turns.waiting.pop_front();
        turns.taken = next.is_some();
        next
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let left = {
            let mut turns = self.0.turns();
            turns.taken = false;
            std::mem::take(&mut turns.waiting)
        };
        self.0.ended.notify_waiters();
        drop(left);
    }
}

impl Reading {
    /// Raised when the session is over.
    pub(crate) fn over(&self) -> &Stop {
        &self.over
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        // Every critical section leaves it whole.
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the turn, or waits behind whoever has it.
    pub(crate) fn take_turn(&self, waiting: Waiting) -> Entered<'_> {
        let mut turns = self.turns();
        match turns.taken {
            false => {
                turns.taken = true;
                Entered::Now(Turn(self), waiting)
            }
            true if turns.waiting.len() < WAITING_MAX => {
                turns.waiting.push_back(waiting);
                Entered::Waits
            }
            true => Entered::Full(waiting),
        }
    }

    /// Those that wait for their turn, to be put back.
    pub(crate) fn take_waiting(&self) -> VecDeque<Waiting> {
        std::mem::take(&mut self.turns().waiting)
    }

    /// Puts those back that were taken; others may have come since.
    pub(crate) fn put_back(&self, mut taken: VecDeque<Waiting>) {
        let mut turns = self.turns();
        taken.append(&mut turns.waiting);
        turns.waiting = taken;
    }

    /// Waits until nobody has the turn.
    pub(crate) async fn idle(&self) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if !self.turns().taken {
                return;
            }
            ended.await;
        }
    }
}

impl Readings {
    /// A table of at most `limit` readings; more than are in use at once.
    pub(crate) fn new(volumes: Arc<dyn Volumes>, limit: usize) -> Self {
        Self { volumes, limit, table: Mutex::default() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every critical section leaves the table whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session's reading, opened or not; none when the session is over.
    pub(crate) fn of(&self, session: SessionId) -> Option<Arc<Reading>> {
        let mut table = self.table();
        if table.closed.contains(&session) {
            return None;
        }
        table.uses += 1;
        let now = table.uses;
        if !table.open.contains_key(&session) && table.open.len() >= self.limit {
            let idle = table.open.iter().filter(|(_, (_, reading))| Arc::strong_count(reading) == 1);
            if let Some(oldest) = idle.min_by_key(|(_, (used, _))| *used).map(|(session, _)| *session) {
                tracing::warn!(session = %oldest, "too many sessions are open; closing the reading of the idlest");
                table.open.remove(&oldest);
            }
        }
        let entry = table.open.entry(session).or_default();
        entry.0 = now;
        Some(entry.1.clone())
    }

    /// Where sources are opened.
    pub(crate) fn volumes(&self) -> &dyn Volumes {
        &*self.volumes
    }

    /// The opened source: opens it once, and refuses another reading than the one that the session is bound to.
    pub(crate) async fn open(
        &self,
        reading: &Reading,
        opening: &Opening<'_>,
    ) -> Result<Arc<dyn Volume>, VolumeError> {
        let volume = reading.volume.get_or_try_init(|| self.volumes.open(opening)).await?;
        let is = volume.info().reading;
        match opening.reading {
            Some(wanted) if wanted != is => {
                let why = format!("the session is bound to reading {wanted}, and this host reads {is}");
                Err(VolumeError::ReadingLost { source_name: opening.source.to_owned(), why })
            }
            _ => Ok(volume.clone()),
        }
    }

    /// The session is over: whoever reads for it stops, and its source is closed when the last of them has. Hands
    /// out its reading, if it has one.
    pub(crate) fn close(&self, session: SessionId) -> Option<Arc<Reading>> {
        let mut table = self.table();
        let closed = table.open.remove(&session).map(|(_, reading)| reading);
        if let Some(reading) = &closed {
            reading.over.raise();
        }
        if !table.closed.contains(&session) {
            table.closed.push_back(session);
        }
        if table.closed.len() > CLOSED_KEPT {
            table.closed.pop_front();
        }
        closed
    }

    /// Closes the session's reading unless somebody uses it; the session may come back. Says whether it is closed.
    pub(crate) fn forget(&self, session: SessionId) -> bool {
        let mut table = self.table();
        let in_use = |(_, reading): &(u64, Arc<Reading>)| Arc::strong_count(reading) > 1;
        if table.open.get(&session).is_some_and(in_use) {
            return false;
        }
        table.open.remove(&session);
        true
    }

    /// Whether somebody uses the session's reading.
    pub(crate) fn is_in_use(&self, session: SessionId) -> bool {
        self.table().open.get(&session).is_some_and(|(_, reading)| Arc::strong_count(reading) > 1)
    }

    /// How many sessions have a reading here.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.table().open.len()
    }
}

#[cfg(test)]
mod tests {
    use schema::ReadingId;

    use super::*;
    use crate::testing::{Memory, Shelf, opening};

    fn session(n: u128) -> SessionId {
        SessionId::from_parts(1, n)
    }

    #[tokio::test]
    async fn a_source_is_opened_once_per_session() {
        let shelf = Shelf::new([("a", Memory::new(vec![1; 10]))]);
        let readings = Readings::new(shelf.clone(), 4);
        let (one, two) = (readings.of(session(1)).unwrap(), readings.of(session(1)).unwrap());
        let opening = opening("a", None);
        let (first, second) = tokio::join!(readings.open(&one, &opening), readings.open(&two, &opening));
        assert_eq!(first.unwrap().info().reading, second.unwrap().info().reading);
        assert_eq!(shelf.opened(), 1);
        let other = ReadingId::from_bytes([9; 16]);
        let other = Opening { reading: Some(other), ..opening };
        let refused = readings.open(&one, &other).await.unwrap_err();
        assert!(matches!(refused, VolumeError::ReadingLost { .. }), "{refused}");
    }

    #[test]
    fn what_is_over_stays_over() {
        let readings = Readings::new(Shelf::new([]), 4);
        let reading = readings.of(session(1)).unwrap();
        assert!(!reading.over().is_raised());
        readings.close(session(1));
        assert!(reading.over().is_raised());
        assert!(readings.of(session(1)).is_none());
        assert_eq!(readings.len(), 0);
    }

    #[test]
    fn the_table_is_bounded_and_spares_what_is_in_use() {
        let readings = Readings::new(Shelf::new([]), 3);
        let _used = readings.of(session(0)).unwrap();
        for n in 1..50 {
            drop(readings.of(session(n)).unwrap());
            assert!(readings.len() <= 3);
        }
        let again = readings.of(session(0)).unwrap();
        assert_eq!(Arc::strong_count(&again), 3, "the one in use was kept");
    }
}
