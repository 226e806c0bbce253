//! The readings that are open, one per session.
//!
//! A session keeps its reading until it is over, so that what got lost on the way can be read again from the same
//! state. The table is bounded: when it is full, the reading that was used longest ago and is not in use is closed;
//! its session fails by name if it asks again and the source cannot be taken up.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent::{Stop, Volume, VolumeError, Volumes};
use schema::{ReadingId, SessionId};
use tokio::sync::OnceCell;

/// Sessions known to be over, so that a late request does not open a source for nobody.
const CLOSED_KEPT: usize = 1024;

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
    over: Stop,
}

impl Reading {
    /// Raised when the session is over.
    pub(crate) fn over(&self) -> &Stop {
        &self.over
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

    /// The opened source: opens it once, and refuses another reading than the one that the session is bound to.
    pub(crate) async fn open(
        &self,
        reading: &Reading,
        source: &str,
        wanted: Option<ReadingId>,
    ) -> Result<Arc<dyn Volume>, VolumeError> {
        let volume = reading.volume.get_or_try_init(|| self.volumes.open(source, wanted)).await?;
        let is = volume.info().reading;
        match wanted {
            Some(wanted) if wanted != is => {
                let why = format!("the session is bound to reading {wanted}, and this host reads {is}");
                Err(VolumeError::ReadingLost { source_name: source.to_owned(), why })
            }
            _ => Ok(volume.clone()),
        }
    }

    /// The session is over: whoever reads for it stops, and its source is closed.
    pub(crate) fn close(&self, session: SessionId) {
        let mut table = self.table();
        if let Some((_, reading)) = table.open.remove(&session) {
            reading.over.raise();
        }
        if !table.closed.contains(&session) {
            table.closed.push_back(session);
        }
        if table.closed.len() > CLOSED_KEPT {
            table.closed.pop_front();
        }
    }

    /// How many sessions have a reading here.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.table().open.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Memory, Shelf};

    fn session(n: u128) -> SessionId {
        SessionId::from_parts(1, n)
    }

    #[tokio::test]
    async fn a_source_is_opened_once_per_session() {
        let shelf = Shelf::new([("a", Memory::new(vec![1; 10]))]);
        let readings = Readings::new(shelf.clone(), 4);
        let (one, two) = (readings.of(session(1)).unwrap(), readings.of(session(1)).unwrap());
        let (first, second) = tokio::join!(readings.open(&one, "a", None), readings.open(&two, "a", None));
        assert_eq!(first.unwrap().info().reading, second.unwrap().info().reading);
        assert_eq!(shelf.opened(), 1);
        let other = ReadingId::from_bytes([9; 16]);
        let refused = readings.open(&one, "a", Some(other)).await.unwrap_err();
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
