//! Requests that wait for a place: their source cannot be opened yet, because too much is being read at once.
//!
//! Waiting is no failure, however long it takes, and it takes nobody's turn: sessions that have a place may have to read
//! once more before they end and make room. It ends when the session wants nothing any more, or with the agent.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent::Outcome;
use schema::SessionId;

use crate::asking::Conductor;
use crate::reading::{Served, Shared};
use crate::readings::Waiting;

/// Pause before a source is tried again.
pub(crate) const PAUSE: Duration = Duration::from_secs(3);
/// Sessions that wait at most; a request of yet another one is handed back.
const WAITING_MAX: usize = 1024;

/// The sessions that wait.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<BTreeSet<SessionId>>);

/// One session that waits, until this is dropped.
pub(crate) struct Place(Arc<Shared>, SessionId);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.places.waiting().remove(&self.1);
    }
}

impl Places {
    fn waiting(&self) -> MutexGuard<'_, BTreeSet<SessionId>> {
        // Every critical section leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a request of this session waits already; it asks what is wanted when it gets its place.
    pub(crate) fn is_waiting(&self, session: SessionId) -> bool {
        self.waiting().contains(&session)
    }

    /// Lets a session wait; none when it does already, or too many do.
    pub(crate) fn enter(shared: &Arc<Shared>, session: SessionId) -> Option<Place> {
        let mut waiting = shared.places.waiting();
        let enters = waiting.len() < WAITING_MAX && waiting.insert(session);
        enters.then(|| Place(shared.clone(), session))
    }
}

impl Place {
    /// Waits for a place, and serves the request.
    pub(crate) async fn wait(self, mut waiting: Waiting) {
        let shared = self.0.clone();
        let serving = async {
            loop {
                if let Some(ticket) = &waiting.ticket
                    && let Err(why) = ticket.extend().await
                {
                    tracing::debug!(%why, "could not say that a request waits for a place; it may come twice");
                }
                shared.context.environment.sleep(PAUSE).await;
                let mut ticket = waiting.ticket.take();
                let Waiting { request, about, .. } = &waiting;
                let wanted =
                    Conductor::new(&shared.context, about, request.session).wanted(request.request).await;
                if wanted.is_some_and(|wanted| wanted.over) {
                    return settle(ticket, None).await;
                }
                match shared.serve(request, about, &mut ticket).await {
                    Ok(Served::NoPlace(again)) => waiting = *again,
                    Ok(Served::Through(Outcome::Held)) => return,
                    Ok(Served::Through(Outcome::Done)) => return settle(ticket, None).await,
                    // Whoever gets it next fails in the usual way.
                    Err(failure) => return settle(ticket, Some(failure)).await,
                }
            }
        };
        tokio::select! {
            biased;
            // Dropped without a word, the request goes to whoever runs next.
            () = shared.context.stop.raised() => {}
            () = serving => {}
        }
    }
}

async fn settle(ticket: Option<agent::bus::Ticket>, failure: Option<agent::Failure>) {
    let settled = match (ticket, failure) {
        (None, _) => Ok(()),
        (Some(ticket), None) => ticket.done().await,
        (Some(ticket), Some(failure)) => {
            tracing::debug!(%failure, "a request that waited for a place fails");
            ticket.again(Duration::ZERO).await
        }
    };
    if let Err(why) = settled {
        tracing::debug!(%why, "could not settle a request; it will come again");
    }
}
