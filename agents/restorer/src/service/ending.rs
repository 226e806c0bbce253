//! How the end of a job becomes known: noted in the bucket, told, and what protected it is ended.

use std::path::Path;

use agent::{Failure, Queue, Stop, sessions};
use schema::JobId;
use schema::messages::{About, FailureKind, JobDone, JobOutcome, Message, RestoreJob};
use schema::names::Slot;
use schema::session::Session;

use super::{Ended, Jobs, Over, failed, undoable};
use crate::claim::Claim;
use crate::hold;
use crate::pipeline;
use crate::restorer::blocking;

impl Jobs {
    /// How the job ended, when it has been done already, or is not wanted any more.
    pub(super) async fn noted(&self, job: JobId) -> Result<Option<Ended>, Failure> {
        let sessions = sessions::of_job(&self.restorer.repository, job).await.map_err(|failure| Failure {
            retry: true,
            ..failure.context("cannot ask the store whether a restore has ended already")
        })?;
        let ended = sessions.into_iter().find_map(|session| Some((session.volume, session.ended?)));
        Ok(ended.map(|(volume, outcome)| (job, volume, outcome)))
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
            Ok(path) => blocking(move || Ok(hold::is_locked(&path))).await,
            Err(_) => Ok(false),
        }
    }

    /// Whether no attempt of a job can have begun before: nobody writes to its target because of it.
    pub(super) async fn is_new(&self, job: JobId) -> bool {
        let found = sessions::of_job(&self.restorer.repository, job).await;
        self.attempt == 1 && found.is_ok_and(|found| found.iter().all(|session| session.ended.is_some()))
    }

    /// Ends a job that nobody wants any more, and that never had its target: another restore has.
    pub(super) async fn end_waiting(&self, job: &RestoreJob, failure: Failure) -> Over {
        let root = self.restorer.root_at(job.slot).await;
        let volume = root.map(|root| root.volume).unwrap_or_default();
        let (target, why) = (job.target(), failure.why);
        let why = format!(
            "stopped, as asked, before it began; {target} belongs to the other restore until that one has ended ({why})"
        );
        let outcome = failed(job, Failure::new(FailureKind::Revoked, why));
        let ended = self.remember((job.job, volume, outcome));
        self.note(&ended).await;
        Over { ended, was_noted: false, claim: Claim::of(job.job), own: self.own.one() }
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
