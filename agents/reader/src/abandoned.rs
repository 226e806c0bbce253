//! Sessions that nobody drives any more, although nobody said that they are over.
//!
//! That word is a broadcast, which may be lost, and a conductor that dies says nothing. So whoever holds something here
//! is asked for now and then. What nobody has wanted for a while is released, not removed: how the session ended is in
//! the archive alone, and one whose conductor was only away for long opens the same state again. What is being read is
//! never released.

use std::collections::BTreeMap;
use std::time::Duration;

use schema::SessionId;
use schema::messages::About;

use crate::asking::Conductor;
use crate::reading::Shared;

/// Pause between two rounds of questions.
pub(crate) const PAUSE: Duration = Duration::from_secs(60);
/// Rounds without an answer after which a session is released: longer than a job takes to find another conductor.
pub(crate) const ROUNDS: u32 = 15;

impl Shared {
    /// Releases what nobody drives, until the context's flag is raised.
    pub(crate) async fn release_what_is_abandoned(&self) {
        let mut silent = BTreeMap::new();
        loop {
            tokio::select! {
                biased;
                () = self.context.stop.raised() => return,
                () = self.context.environment.sleep(PAUSE) => {}
            }
            tokio::select! {
                biased;
                () = self.context.stop.raised() => return,
                () = self.ask_round(&mut silent) => {}
            }
        }
    }

    async fn ask_round(&self, silent: &mut BTreeMap<SessionId, u32>) {
        let open = self.readings.volumes().open_sessions();
        silent.retain(|session, _| open.contains(session));
        for session in open {
            if self.readings.is_in_use(session) || self.is_driven(session).await {
                silent.remove(&session);
                continue;
            }
            let rounds = silent.entry(session).or_insert(0);
            *rounds += 1;
            if *rounds >= ROUNDS && self.readings.forget(session) {
                tracing::warn!(%session, "nobody has driven the session for long; releasing what is held for it");
                self.readings.volumes().release(session).await;
            }
        }
    }

    /// A conductor that ends says that it wants nothing any more; the next one of a session that goes on answers later.
    async fn is_driven(&self, session: SessionId) -> bool {
        let about = About::session(session, "");
        // No request has this number: it is asked for an answer, whatever it is.
        let answer = Conductor::new(&self.context, &about, session).wanted(0).await;
        answer.is_some_and(|answer| !answer.over)
    }
}
