//! How a session ends: committed, given up, taken over, or handed back; always with a definite answer from its slot.

use std::time::Duration;

use agent::repository::AtSlot;
use agent::sessions::{self, Commit};
use agent::{Failure, Queue, Topic};
use schema::facts::{COPIED_FROM, GROUP_MEMBERS, TAKEN_MS};
use schema::messages::*;
use schema::root::Root;

use super::{Driver, End};
use crate::takeover;

/// The moment that a snapshot shows: a group's may be earlier than the session that reads one of its volumes, and never
/// than the group's run. A reader says when, and is believed within these bounds.
fn moment(facts: &[(String, String)], group: Option<&Group>, started_ms: u64) -> u64 {
    let said = facts.iter().find(|(name, _)| name == TAKEN_MS).and_then(|(_, value)| value.parse().ok());
    let Some((taken, group)) = said.zip(group) else { return started_ms };
    // The run's id may be by a clock that is ahead.
    u64::max(taken, group.run.time_ms()).min(started_ms)
}

/// How often a session that lost its slot to somebody looks for who drives the job now, and the pause between.
const SUCCESSOR_LOOKS: u32 = 5;
const SUCCESSOR_PAUSE: Duration = Duration::from_secs(1);

/// What a reader says of its volume. A backup is no copy, whatever it says.
fn told(facts: &[(String, String)]) -> impl Iterator<Item = (String, String)> {
    facts.iter().filter(|(name, _)| name != COPIED_FROM).cloned()
}

/// All of the group, so that whoever restores it knows what is missing.
fn members(job: &BackupJob) -> Option<(String, String)> {
    let group = job.group.as_ref()?;
    Some((GROUP_MEMBERS.to_owned(), group.members.join(" ")))
}

impl Driver {
    pub(super) async fn seal(&mut self) -> Result<End, Failure> {
        let (Some(reading), Some(top)) = (&self.reading, self.top) else {
            return Err(Failure::new(FailureKind::Other, "sealing before everything is read"));
        };
        let parent = self.parent.as_ref().map(|parent| parent.root());
        let root = Root {
            version: Root::VERSION,
            volume: self.job.volume.clone(),
            host: self.job.host.clone(),
            source: self.job.source.clone(),
            slot: self.session.slot()?,
            job: self.job.job,
            reading: reading.id,
            generation: self.generation,
            parent: parent.map(|parent| parent.slot),
            size: reading.geometry.size(),
            top,
            time_ms: moment(&reading.layout, self.job.group.as_ref(), self.started_ms),
            sealed_ms: self.context.environment.now_ms(),
            group: self.job.group.as_ref().map(Group::to_string),
            changed_while_read: self.changed,
            layout: told(&reading.layout).chain(members(&self.job)).collect(),
            tags: self.job.tags.clone(),
            statistics: self.totals(),
            tracking: self.tracking.clone(),
        };
        match self.session.commit(&root).await? {
            Commit::Won => Ok(End::Done(takeover::sealed(&root))),
            Commit::Revoked => Err(sessions::revoked(self.session.session())),
        }
    }

    /// Leaves everything as it is for whoever takes the job over.
    pub(super) async fn hand_back(&mut self) -> Result<End, Failure> {
        self.checkpoint().await?;
        Ok(End::HandedBack)
    }

    /// Ends the session after a definite answer, and cleans up what belongs to it alone.
    pub(super) async fn finish(self, end: Result<End, Failure>) -> Result<End, Failure> {
        let id = self.session.session().id;
        let bus = self.context.bus.clone();
        let (about, host) = (self.about.clone(), self.job.host.clone());
        let end = match end {
            Ok(End::HandedBack) => return Ok(End::HandedBack),
            Ok(End::Distrusted) => {
                if let Err(error) = self.session.abandon().await {
                    tracing::warn!(%error, "the session's object stays for the collector");
                }
                Ok(End::Distrusted)
            }
            Ok(end) => {
                if let Err(failure) = self.session.end().await {
                    tracing::warn!(%failure, "the session is sealed; its object stays for the collector");
                }
                Ok(end)
            }
            Err(failure) => self.give_up(failure).await,
        };
        // Readers close readings by themselves when this is lost; a queue that stays is dropped by its age.
        let over = CloseReading { session: id, host, committed: matches!(end, Ok(End::Done(_))) };
        let _ = bus.broadcast(&Topic::closed(), Message::new(&about, &over)).await;
        let _ = bus.retire(&Queue::session(id)).await;
        end
    }

    /// The session failed. Its slot is decided before its object goes; when it turns out to hold the commit, whose
    /// answer was lost, the session is sealed after all.
    pub(super) async fn give_up(self, failure: Failure) -> Result<End, Failure> {
        let (repository, environment, job) =
            (self.repository.clone(), self.context.environment.clone(), self.job.clone());
        let own = self.session.session().id;
        match self.session.abandon().await {
            Ok(AtSlot::Snapshot(root)) => return Ok(End::Done(takeover::sealed(&root))),
            Ok(AtSlot::Nothing | AtSlot::Tombstone) => {}
            Err(error) => tracing::warn!(%error, "the session's object stays for the collector"),
        }
        // Whoever takes a job over opens its session a moment after it has occupied this one's slot. Nobody does where
        // a word to stop ends the job, and nobody is waited for after a word to cancel, or where the slot was not lost.
        let stopped = self.context.stop.is_raised() && !self.settings.hand_back;
        let waits = failure.kind == FailureKind::Revoked && !self.cancelled && !stopped;
        for look in 1.. {
            // Who fails for another reason may have been taken over as well: the job's end is not its to tell.
            if takeover::is_elsewhere(&repository, &job, own).await.unwrap_or(false) {
                return Ok(End::TakenOver);
            }
            if !waits || look == SUCCESSOR_LOOKS {
                break;
            }
            environment.sleep(SUCCESSOR_PAUSE).await;
        }
        Err(failure)
    }
}
