//! How the end of a job becomes known: noted in the bucket, told, and what protected it is ended.

use std::path::Path;
use std::time::Duration;

use agent::bus::Standing;
use agent::{Ending, Failure, Queue, Stop, sessions};
use schema::messages::{About, FailureKind, JobDone, JobOutcome, Message, RestoreJob};
use schema::names::Slot;
use schema::session::Session;
use schema::{JobId, SessionId};

use super::{Ended, Jobs, Over, failed, is_restored, is_revoked, undoable, unwanted_again};
use crate::claim::Claim;
use crate::hold;
use crate::pipeline;

/// How long it is asked whether a job was lost: whoever cannot be asked gives it again.
const LOST_PATIENCE: Duration = Duration::from_secs(5);
/// How often it is tried to remove a note that does not hold.
const FORGET_TRIES: u32 = 10;

impl Jobs {
    /// How the job ended, when it has been done already, or is not wanted any more.
    pub(super) async fn noted(&self, job: JobId) -> Result<Option<Ended>, Failure> {
        let sessions = sessions::of_job(&self.restorer.repository, job).await.map_err(|failure| Failure {
            retry: true,
            ..failure.context("cannot ask the store whether a restore has ended already")
        })?;
        // What an agent has done counts for more than that somebody wanted no agent to begin it.
        let ended = sessions.into_iter().filter_map(|session| Some((job, session.volume, session.ended?)));
        Ok(ended.max_by_key(|(.., outcome)| (is_restored(outcome), !is_revoked(outcome))))
    }

    /// How a job that is noted to have ended is told, and whether what may be needed for an undo stays. That it was
    /// stopped says whoever wanted no agent to begin it, and may have died before it saw that one had: what that one has
    /// left says so.
    pub(super) async fn as_noted(
        &self,
        job: &RestoreJob,
        (id, volume, outcome): Ended,
    ) -> Result<(Ended, bool), Failure> {
        let JobOutcome::Failed { kind: kind @ FailureKind::Revoked, why } = outcome else {
            return Ok(((id, volume, outcome), false));
        };
        let found = sessions::of_job(&self.restorer.repository, id).await;
        let found = found.map_err(|failure| Failure { retry: true, ..failure })?;
        if found.iter().all(|session| session.ended.is_some()) {
            return Ok(((id, volume, JobOutcome::Failed { kind, why }), false));
        }
        let failure = unwanted_again(job, Failure::new(kind, why));
        Ok(((id, volume, failed(job, self.left_behind(job, failure).await)), true))
    }

    /// Fails for now when a job would be told to have failed while somebody still writes to its target: an attempt that
    /// died, and was not gone on with here, may have had help. Whoever was told might put something else there.
    pub(super) async fn check_is_left(
        &self,
        job: &RestoreJob,
        claim: &Claim,
        outcome: &JobOutcome,
    ) -> Result<(), Failure> {
        let JobOutcome::Failed { why, .. } = outcome else { return Ok(()) };
        if claim.has_held() || !self.is_locked(job).await? {
            return Ok(());
        }
        let failure = claim.busy(Path::new(job.target())).context(why);
        tracing::warn!(job = %job.job, %failure, "waiting for another restore");
        Err(failure)
    }

    /// Whether somebody has a lock of a job's target.
    pub(super) async fn is_locked(&self, job: &RestoreJob) -> Result<bool, Failure> {
        let target = self.target(job, Claim::default(), Stop::default());
        match self.restorer.path_of(&target, job.target()) {
            Ok(path) => self.restorer.blocking(move || Ok(hold::is_locked(&path))).await,
            // Nothing is there, or this agent does not restore to it by this name: both are told at once.
            Err(_) => Ok(false),
        }
    }

    /// Whether no attempt of a job can have begun before: nobody writes to its target because of it.
    pub(super) async fn is_new(&self, job: JobId) -> bool {
        let found = sessions::of_job(&self.restorer.repository, job).await;
        let is_unbegun =
            |session: &Session| session.ended.as_ref().is_some_and(|outcome| !is_restored(outcome));
        self.attempt == 1 && found.is_ok_and(|found| found.iter().all(is_unbegun))
    }

    /// Whether the message server has lost a job.
    pub(super) async fn is_lost(&self, standing: Option<&Standing>) -> bool {
        let Some(standing) = standing else { return false };
        let asked = self.context().environment.timeout(LOST_PATIENCE, standing.is_lost()).await;
        matches!(asked, Some(Ok(true)))
    }

    /// Ends a job that nobody wants any more, and that never had its target: another restore has. Meanwhile it may have
    /// come to another agent, whose word counts then: none when that one has ended it, and it fails for now when that one
    /// has begun it.
    pub(super) async fn end_waiting(
        &self,
        job: &RestoreJob,
        failure: Failure,
        standing: Option<&Standing>,
    ) -> Result<Option<Box<Over>>, Failure> {
        if let Some(standing) = standing {
            match standing.is_queued().await {
                Ok(true) => {}
                Ok(false) if self.is_lost(Some(standing)).await => {}
                Ok(false) => return Ok(None),
                Err(why) => return Err(failure.context(why)),
            }
        }
        let root = self.restorer.root_at(job.slot).await;
        let volume = root.map(|root| root.volume).unwrap_or_default();
        let (target, why) = (job.target(), &failure.why);
        let why = format!(
            "stopped, as asked, before it began; {target} belongs to the other restore until that one has ended ({why})"
        );
        let outcome = JobOutcome::Failed { kind: FailureKind::Revoked, why };
        let (repository, host) = (&self.restorer.repository, &self.context().host);
        // Who begins looks for the note after its session stands, and this looks for sessions after the note stands.
        let note = match sessions::note_end(repository, job.job, &volume, host, &outcome).await {
            Ok(note) => Some(note),
            Err(why) if why.retry => return Err(failure.context(why)),
            // A store that cannot be written to has no notes of anybody.
            Err(why) => {
                tracing::warn!(job = %job.job, %why, "the store does not say that this restore was stopped");
                None
            }
        };
        if !self.is_new(job.job).await {
            tracing::warn!(job = %job.job, "a restore that is to be stopped was begun by another agent");
            let Some(note) = note else { return Err(failure) };
            return match self.forget_end(note).await {
                Ok(()) => Err(failure),
                Err(why) => Err(failure.context(why)),
            };
        }
        tracing::warn!(job = %job.job, target, "a restore was stopped before it began");
        let ended = self.remember((job.job, volume, outcome));
        let claim = Claim::of(job.job);
        Ok(Some(Box::new(Over { ended, keeps_undo: false, claim, own: self.own.one() })))
    }

    /// Removes a note that does not hold. One that stays is told by whoever is given the job next.
    async fn forget_end(&self, note: SessionId) -> Result<(), Failure> {
        let mut tries = 1;
        loop {
            match sessions::forget_end(&self.restorer.repository, note).await {
                Err(why) if why.retry && tries < FORGET_TRIES && !self.context().stop.is_raised() => {
                    tracing::warn!(session = %note, %why, "cannot remove a note that does not hold yet");
                }
                ended => return ended,
            }
            tries += 1;
            self.context().environment.sleep(pipeline::RETRY_PAUSE).await;
        }
    }

    /// Tells that a job was lost, which nobody else does: it never comes again. What may be needed for an undo stays.
    /// Another agent may have done it meanwhile, and noted that.
    pub(super) async fn end_lost(
        &self,
        job: &RestoreJob,
        failure: Failure,
        claim: &Claim,
    ) -> Result<(), Failure> {
        let noted = loop {
            match self.noted(job.job).await {
                Ok(noted) => break noted,
                // Nobody is told what is not known.
                Err(why) if self.context().stop.is_raised() => return Err(why),
                Err(why) => tracing::warn!(job = %job.job, %why, "cannot tell yet how a lost restore ended"),
            }
            self.context().environment.sleep(pipeline::RETRY_PAUSE).await;
        };
        if let Some(ended) = noted.filter(|(.., outcome)| is_restored(outcome)) {
            // While it is held, as by `Claim::end`.
            self.end_made(job).await;
            claim.let_go();
            self.tell(ended).await?;
            self.end_attempts(job.job).await;
            return Ok(());
        }
        claim.let_go();
        let outcome = failed(job, self.left_behind(job, failure).await);
        self.tell((job.job, String::new(), outcome)).await?;
        self.end_given_up(job.job).await;
        Ok(())
    }

    /// Notes how a job ended, for whoever is given it again.
    pub(super) async fn note(&self, (job, volume, outcome): &Ended) {
        let (repository, host) = (&self.restorer.repository, &self.context().host);
        match sessions::note_end(repository, *job, volume, host, outcome).await {
            Ok(_) => self.end_attempts(*job).await,
            Err(failure) => {
                tracing::warn!(%job, %failure, "the store does not say that this restore ended: should its agent die now, it may be done again");
            }
        }
    }

    /// Ends the volume that an agent, which died since, had made for a job that is over.
    pub(super) async fn end_made(&self, job: &RestoreJob) {
        let ending = async {
            let root = self.restorer.root_at(job.slot).await?;
            let target = self.target(job, Claim::of(job.job), Stop::default());
            let part = target.part(&root)?;
            match self.restorer.find(job.job, &root, part, &target).await? {
                Some(place) => Ok(place.over().await),
                None => Ok::<_, Failure>(None),
            }
        };
        match ending.await {
            Ok(None) => {}
            Ok(Some(note)) => tracing::warn!(target = job.target(), note),
            Err(failure) => {
                tracing::warn!(target = job.target(), %failure, "cannot look at a volume that was made")
            }
        }
    }

    /// Lets the volume stay that an agent, which died since or was not sure, had made for a job that failed, and that no
    /// agent has noted to be restored: nobody knows how much is on it. Returns what the operator should know.
    pub(super) async fn let_made_stay(&self, job: &RestoreJob) -> Vec<String> {
        if job.preparation.create.is_none() {
            return Vec::new();
        }
        let ending = async {
            if self.noted(job.job).await?.is_some_and(|(.., outcome)| is_restored(&outcome)) {
                return Ok(Vec::new());
            }
            let root = self.restorer.root_at(job.slot).await?;
            // By force, since nothing is written to it.
            let forced = RestoreJob { force: true, ..job.clone() };
            let target = self.target(&forced, Claim::of(job.job), Stop::default());
            let part = target.part(&root)?;
            match self.restorer.find(job.job, &root, part, &target).await? {
                Some(place) if place.is_begun() => {
                    place.make().await?;
                    let mut notes = place.end(Ending::CutOff).await;
                    notes.extend(place.over().await);
                    Ok(notes)
                }
                _ => Ok::<_, Failure>(Vec::new()),
            }
        };
        ending.await.unwrap_or_else(|failure| {
            tracing::debug!(target = job.target(), %failure, "no volume was made for a restore that failed");
            Vec::new()
        })
    }

    /// Ends the sessions of a job that is over: what says so, and those that killed agents left. One that stays only
    /// keeps a collection waiting.
    pub(super) async fn end_sessions(&self, job: JobId) {
        self.end_those(job, |_| true).await;
    }

    /// Ends what protects a job that is noted to have ended, all but the note: nobody goes on with it, and it may never
    /// come again.
    pub(super) async fn end_attempts(&self, job: JobId) {
        self.end_those(job, |session| session.ended.is_none()).await;
    }

    /// Ends the sessions of a job that is over, all but what may be needed for an undo.
    pub(super) async fn end_all_but_undo(&self, job: JobId) {
        self.end_those(job, |session| session.ended.is_some() || session.undo.is_empty()).await;
    }

    /// Ends what protects a job that its queue does not have any more. What may be needed for an undo stays where no note
    /// says that it is over: a message server whose memory was put back to before may have lost it.
    pub(super) async fn end_unqueued(&self, job: JobId) {
        match self.noted(job).await {
            Ok(Some(noted)) if !is_revoked(&noted.2) => self.end_attempts(job).await,
            // Whoever noted that it was stopped may not have known that it was begun.
            Ok(_) | Err(_) => self.end_given_up(job).await,
        }
    }

    /// Ends what protects a job that is given up, all but what may be needed for an undo.
    pub(super) async fn end_given_up(&self, job: JobId) {
        self.end_those(job, |session| session.ended.is_none() && session.undo.is_empty()).await;
    }

    async fn end_those(&self, job: JobId, is_over: impl Fn(&Session) -> bool) {
        let repository = &self.restorer.repository;
        let found = match sessions::of_job(repository, job).await {
            Ok(found) => found,
            Err(failure) => {
                tracing::warn!(%job, %failure, "cannot look for the sessions of a restore that is over: one that `lvkeep status` shows holds up collections until `lvkeep cancel` ends it");
                return;
            }
        };
        for session in found.iter().filter(|session| is_over(session)) {
            if let Err(failure) = sessions::revoke(repository, session).await {
                tracing::warn!(%job, session = %session.id, %failure, "cannot end a session of a restore that is over: `lvkeep cancel` does, and until then it may hold up collections");
            }
        }
    }

    /// What a job that is given up leaves: its target may be half overwritten, so that what stood there stays protected.
    pub(super) async fn left_behind(&self, job: &RestoreJob, failure: Failure) -> Failure {
        let undo = match job.more.as_ref().and_then(|more| more.undo) {
            Some(undo) => self.kept_by(undo).await,
            None => Ok(None),
        };
        let undo = undo.unwrap_or_else(|why| {
            tracing::warn!(job = %job.job, %why, "cannot look what was kept for an undo");
            None
        });
        let mut failure = undoable(job, failure, undo);
        self.let_made_stay(job).await.iter().for_each(|note| failure.why += &format!("\n{note}"));
        let found = sessions::of_job(&self.restorer.repository, job.job).await;
        let found = found.unwrap_or_else(|why| {
            tracing::warn!(job = %job.job, %why, "cannot look for the sessions of a restore that is given up");
            Vec::new()
        });
        for session in found.iter().filter(|session| session.ended.is_none() && !session.undo.is_empty()) {
            let id = session.id;
            failure.why += &format!(
                "\nthe session {id} keeps that from being forgotten, and collections waiting, until `lvkeep cancel {id}`"
            );
        }
        failure
    }

    /// Where a backup of this id has kept what stood on a target.
    async fn kept_by(&self, undo: JobId) -> Result<Option<Slot>, Failure> {
        let roots = self.restorer.repository.roots(None).await?;
        Ok(roots.readable.into_iter().find(|root| root.job == undo).map(|root| root.slot))
    }

    /// Tells how a job ended, until the queue has it: doing the job again would be wrong.
    pub(super) async fn tell(&self, (job, volume, outcome): Ended) -> Result<(), Failure> {
        let message = Message::new(&About { session: None, volume }, &JobDone { job, outcome });
        loop {
            match self.context().bus.publish(&Queue::done(job), message.clone()).await {
                Ok(()) => return Ok(()),
                Err(why) if !why.is_transient() || self.context().stop.is_raised() => return Err(why.into()),
                Err(why) => tracing::warn!(%job, %why, "cannot tell how a restore ended yet"),
            }
            self.context().environment.sleep(pipeline::RETRY_PAUSE).await;
        }
    }
}
