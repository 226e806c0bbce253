//! What a session does as time goes by: reports, checkpoints, flushes, and asks again for what got lost.
//!
//! Clocks decide only when to ask again or to give up; asking too early costs work and nothing else.

use std::time::Duration;

use agent::{Failure, Topic};
use schema::ChunkId;
use schema::messages::*;
use schema::root::Statistics;
use schema::session::Checkpoint;

use super::{Driver, FLUSH_SLOWEST, LEAVES_ASKED, REPORT};

/// How long agents have to answer a roll call.
const ROLL_CALL: Duration = Duration::from_millis(1500);
/// What readers call themselves.
const READER: &str = "reader";

impl Driver {
    pub(super) async fn flush(&mut self) -> Result<(), Failure> {
        let message = Message::new(&self.about, &Flush { session: self.session.session().id });
        self.context.bus.broadcast(&Topic::flush(), message).await?;
        self.flush_at = self.context.environment.elapsed() + self.flush_pause;
        self.flush_pause = (self.flush_pause * 2).min(FLUSH_SLOWEST);
        Ok(())
    }

    /// Everything is mapped, and something is not durable yet: packs must not wait for more.
    pub(super) fn wants_flush(&self) -> bool {
        let covered = self.reading.as_ref().is_some_and(|reading| reading.coverage.is_covered());
        let waiting = self.reading.as_ref().is_some_and(|r| r.coverage.waiting().next().is_some());
        covered && (waiting || !self.structure.all_durable())
    }

    pub(super) fn until_tick(&self) -> Duration {
        let now = self.context.environment.elapsed();
        let mut next = self.reported_at + REPORT;
        if self.wants_flush() {
            next = next.min(self.flush_at);
        }
        next.saturating_sub(now)
    }

    pub(super) async fn on_tick(&mut self) -> Result<(), Failure> {
        let now = self.context.environment.elapsed();
        if self.wants_flush() && now >= self.flush_at {
            self.flush().await?;
        }
        if now.saturating_sub(self.reported_at) >= REPORT {
            self.reported_at = now;
            self.report().await;
        }
        if now.saturating_sub(self.checkpoint_at) >= self.settings.checkpoint {
            self.checkpoint_at = now;
            self.checkpoint().await?;
        }
        let silence = now.saturating_sub(self.progress_at);
        let due = self.settings.ask_again * (self.asked_again + 1).min(6);
        if silence >= due {
            self.progress_at = now;
            self.ask_again().await?;
        }
        Ok(())
    }

    pub(super) async fn report(&self) {
        let Some(reading) = &self.reading else { return };
        let progress = Progress {
            job: self.job.job,
            session: self.session.session().id,
            volume: self.job.volume.clone(),
            total: reading.geometry.size(),
            done: reading.coverage.count().covered,
            statistics: self.totals(),
            undo: None,
        };
        let message = Message::new(&self.about, &progress);
        // Progress that is lost is not missed.
        let _ = self.context.bus.broadcast(&Topic::progress(self.job.job), message).await;
    }

    pub(super) fn totals(&self) -> Statistics {
        let mut count = self.reading.as_ref().map(|reading| reading.coverage.count()).unwrap_or_default();
        if let Some(inherited) = self.inherited_count {
            count.zero += inherited.zero;
            count.chunks += inherited.chunks;
        }
        let stored = count.covered - count.zero;
        let mut totals = self.statistics;
        totals.bytes_zero = count.zero;
        // What was mapped as new and then mapped anew counts once.
        totals.bytes_new = totals.bytes_new.min(stored);
        totals.bytes_known = stored - totals.bytes_new;
        totals.chunks = count.chunks;
        totals.bytes_stored += self.structure.stored;
        totals
    }

    pub(super) async fn checkpoint(&mut self) -> Result<(), Failure> {
        let Some(reading) = &self.reading else { return Ok(()) };
        let durable = |id: &Option<ChunkId>| id.is_none_or(|id| !self.structure.waits_for(id));
        let durable = reading.leaves.iter().filter(|(_, id)| durable(id));
        let leaves = durable.map(|(number, id)| (*number, *id)).collect();
        let checkpoint = Checkpoint { reading: reading.id, size: reading.geometry.size(), leaves };
        match self.session.checkpoint(checkpoint).await {
            Err(failure) if failure.kind != FailureKind::Revoked => {
                tracing::warn!(%failure, "a checkpoint could not be written; the session goes on without");
                Ok(())
            }
            noted => noted,
        }
    }

    /// Nothing moved for a while. First asks the index what it knows by now; then asks for what is still missing.
    pub(super) async fn ask_again(&mut self) -> Result<(), Failure> {
        self.asked_again += 1;
        if self.asked_again > self.settings.patience {
            // One that is there is busy with other volumes, and may be for hours.
            if self.reading.is_some() || !self.reader_is_there().await {
                return Err(self.gave_up());
            }
            self.asked_again = self.settings.patience;
        }
        let Some(reading) = &self.reading else {
            tracing::warn!("no reader has answered yet; asking again");
            return self.request(None, false).await;
        };
        let waiting: Vec<ChunkId> = reading.coverage.waiting().chain(self.structure.waiting()).collect();
        let found = self.counting_copies(&waiting).await?;
        let durable: Vec<ChunkId> =
            waiting.iter().zip(&found).filter(|(_, copies)| !copies.is_empty()).map(|(id, _)| *id).collect();
        self.mark_durable(&durable);
        if durable.len() == waiting.len() && !waiting.is_empty() {
            return Ok(());
        }
        self.structure.send_again(&self.session, &self.about).await?;
        let Some(reading) = &self.reading else { return Ok(()) };
        let unfinished = reading.coverage.unfinished(LEAVES_ASKED);
        let force = reading.coverage.waiting().next().is_some();
        tracing::warn!(leaves = unfinished.len(), force, "no progress; asking for what is missing again");
        self.context.counters.leaves_redriven.add(unfinished.len() as u64);
        let stalled: Vec<u64> = reading.coverage.stalled().collect();
        self.request(Some(unfinished), force).await?;
        // What is said to be on its way for so long; the rest is read as before.
        self.forced.extend(stalled.into_iter().map(|leaf| (leaf, self.requests)));
        self.force_again();
        if let Some((_, false)) = self.check {
            self.check = Some((self.requests, false));
        }
        Ok(())
    }

    /// Whether a reader of the volume's host answers a roll call.
    async fn reader_is_there(&self) -> bool {
        let nonce = self.context.environment.session_id().to_string();
        let call = Message::new(&About::nothing(), &WhoIsThere { reply: nonce.clone() });
        let answered = async {
            let mut answers = self.context.bus.subscribe(&Topic::roll_call_reply(&nonce)).await.ok()?;
            self.context.bus.broadcast(&Topic::roll_call(), call).await.ok()?;
            loop {
                let Ok(agent) = answers.next().await.ok()?.read::<AgentIsThere>() else { continue };
                if agent.host == self.job.host && agent.roles.iter().any(|role| role == READER) {
                    return Some(());
                }
            }
        };
        self.context.environment.timeout(ROLL_CALL, answered).await.flatten().is_some()
    }

    pub(super) fn gave_up(&self) -> Failure {
        let what = match &self.reading {
            None => format!(
                "no reader on host {} answered (is an agent with the role reader running there?)",
                self.job.host
            ),
            Some(reading) => format!(
                "{} of {} bytes were read, and nothing more came (are reader, hasher, storer and indexer running?)",
                reading.coverage.count().covered,
                reading.geometry.size()
            ),
        };
        Failure::new(FailureKind::Other, what)
    }
}
