//! How a session ends: committed, given up, taken over, or handed back; always with a definite answer from its slot.
//! Where the store is away there is none, and the job's end is not told: whoever is given the job again ends the session.

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

/// What is told where nobody makes sure any more that a session is over.
pub(crate) fn may_stay(failure: Failure) -> Failure {
    let why = format!("{}; {}", failure.why, sessions::may_stay(None));
    Failure { retry: false, why, ..failure }
}

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
            // Nobody must adopt what it checkpointed.
            Ok(End::Distrusted) => {
                self.dismiss().await;
                Ok(End::Distrusted)
            }
            Ok(end) => {
                if let Err(failure) = self.session.end().await {
                    tracing::warn!(%failure, "the session is sealed; its object stays for the collector");
                }
                Ok(end)
            }
            Err(failure) => match self.give_up(&failure).await {
                Ok(Some(end)) => Ok(end),
                Ok(None) => Err(failure),
                Err(why) => {
                    let unsure = self.unsure(failure, &why);
                    // Whoever ends it says so to its readers, and whether it was committed.
                    if unsure.retry && !self.ends_here() {
                        return Err(unsure);
                    }
                    Err(unsure)
                }
            },
        };
        // Readers close readings by themselves when this is lost; a queue that stays is dropped by its age.
        let over = CloseReading { session: id, host, committed: matches!(end, Ok(End::Done(_))) };
        let _ = bus.broadcast(&Topic::closed(), Message::new(&about, &over)).await;
        let _ = bus.retire(&Queue::session(id)).await;
        end
    }

    /// The session failed. Its slot is decided before its object goes; when it turns out to hold the commit, whose
    /// answer was lost, the session is sealed after all. Says what else it ended by than its failure; an error when that
    /// is not certain.
    async fn give_up(&self, failure: &Failure) -> Result<Option<End>, Failure> {
        let left = match sessions::revoke(&self.repository, self.session.session()).await {
            Ok(AtSlot::Snapshot(root)) => return Ok(Some(End::Done(takeover::sealed(&root)))),
            Ok(AtSlot::Nothing | AtSlot::Tombstone) => None,
            Err(why) => Some(why),
        };
        match (self.is_elsewhere(failure).await, left) {
            (Ok(true), left) => {
                if left.is_some() {
                    self.dismiss().await;
                }
                Ok(Some(End::TakenOver))
            }
            (Ok(false), None) => Ok(None),
            (Err(why), _) | (Ok(false), Some(why)) => Err(why),
        }
    }

    /// Whether nobody takes the job up when this process stops.
    fn ends_here(&self) -> bool {
        self.context.stop.is_raised() && !self.settings.hand_back
    }

    /// Whether the job of a session that failed is somebody else's by now. Who fails for another reason than that its slot
    /// is lost may have been taken over as well: the job's end is not its to tell.
    async fn is_elsewhere(&self, failure: &Failure) -> Result<bool, Failure> {
        // Whoever takes a job over opens its session a moment after it has occupied this one's slot. Nobody does where
        // a word to stop ends the job, and nobody is waited for after a word to cancel, or where the slot was not lost.
        let waits = failure.kind == FailureKind::Revoked && !self.cancelled && !self.ends_here();
        let own = self.session.session().id;
        let looks = if waits { SUCCESSOR_LOOKS } else { 1 };
        for _ in 1..looks {
            if let Ok(true) = takeover::is_elsewhere(&self.repository, &self.job, own, self.patience).await {
                return Ok(true);
            }
            self.context.environment.sleep(SUCCESSOR_PAUSE).await;
        }
        takeover::is_elsewhere(&self.repository, &self.job, own, self.patience).await
    }

    /// The failure of a session of which it is not certain that it is over. Whoever is given the job again makes sure;
    /// after a word to cancel nobody is.
    pub(super) fn unsure(&self, failure: Failure, why: &Failure) -> Failure {
        let id = self.session.session().id;
        tracing::warn!(session = %id, %why, "it is not certain that a session is over");
        let told = format!(
            "{}; it is not certain that session {id} is over and nobody else goes on with the job ({why})",
            failure.why
        );
        let unsure = Failure { why: told, ..failure };
        match unsure.retry || why.retry && !self.cancelled {
            true => Failure { retry: true, ..unsure },
            false => may_stay(unsure),
        }
    }

    /// Ends a session whose job goes on without it, or is done. Nobody else comes by to do so: the store is waited for as
    /// long as it gives nothing at all, unless this process is to stop.
    pub(crate) async fn dismiss(&self) {
        let (session, stop) = (self.session.session(), &self.context.stop);
        if let Err(why) = sessions::dismiss(&self.repository, session, stop, Duration::MAX).await {
            sessions::warn_left_open(session.id, &why);
        }
    }
}
