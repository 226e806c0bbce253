//! The restorer as an agent: takes the restore jobs of its host, one at a time, and says how each ended.
//!
//! It writes only below the folders, and to the logical volumes, that its own configuration allows; without any it
//! refuses every job by name. A job may be delivered again: one that ended in this process is only reported again. A
//! job that was stopped goes back to the queue.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use agent::bus::Ticket;
use agent::repository::AtSlot;
use agent::{BusError, Context, Failure, Handler, Outcome, Queue, Topic};
use async_trait::async_trait;
use schema::JobId;
use schema::messages::{self, About, JobDone, JobOutcome, Message, RestoreJob};
use schema::root::{Root, Statistics};
use tokio::sync::watch;

use crate::restorer::{Ids, Progress, Purpose, Report, Restorer};
use crate::target::Target;

/// Bytes of jobs taken from the queue at once; the next job may as well go to another agent.
const WINDOW: usize = 4 << 10;
/// How often progress is told, and the job's delivery extended.
const BEAT: Duration = Duration::from_secs(5);
/// Pause before an end that could not be told is told again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Ended jobs that are remembered.
const ENDED_MAX: usize = 256;

impl Restorer {
    /// Serves the restore jobs of `host` until the context's stop flag is raised. Targets must be below `allowed`.
    pub async fn run(self, host: &str, allowed: Vec<PathBuf>) -> Result<(), Failure> {
        let context = self.context.clone();
        let jobs = Jobs { restorer: self, allowed, ended: VecDeque::new() };
        agent::consume(&context, &Queue::restores(host), WINDOW, jobs).await
    }
}

struct Jobs {
    restorer: Restorer,
    allowed: Vec<PathBuf>,
    ended: VecDeque<(JobId, String, JobOutcome)>,
}

#[async_trait]
impl Handler for Jobs {
    fn role(&self) -> &'static str {
        "restorer"
    }

    async fn handle(&mut self, message: &Message, ticket: &mut Option<Ticket>) -> Result<Outcome, Failure> {
        let job: RestoreJob = message.read()?;
        if !self.ended.iter().any(|(ended, ..)| *ended == job.job) {
            let (volume, outcome) = self.outcome(&job, ticket).await?;
            if self.ended.len() == ENDED_MAX {
                self.ended.pop_front();
            }
            self.ended.push_back((job.job, volume, outcome));
        }
        self.tell(job.job).await?;
        Ok(Outcome::Done)
    }

    async fn gave_up(&mut self, message: &Message, failure: &Failure) -> Result<(), BusError> {
        let (Ok(about), Ok(job)) = (message.about(), message.read::<RestoreJob>()) else { return Ok(()) };
        let outcome = failed(&job, failure.clone());
        let done = Message::new(&about, &JobDone { job: job.job, outcome });
        self.context().bus.publish(&Queue::done(job.job), done).await
    }
}

impl Jobs {
    fn context(&self) -> &Context {
        &self.restorer.context
    }

    /// How the job ends, and of which volume; an error only when the agent is stopped.
    async fn outcome(
        &self,
        job: &RestoreJob,
        ticket: &Option<Ticket>,
    ) -> Result<(String, JobOutcome), Failure> {
        let root = match self.root(job).await {
            Ok(root) => root,
            Err(failure) => return Ok((String::new(), failed(job, failure))),
        };
        let volume = root.volume.clone();
        match self.restore(job, root, ticket).await {
            Ok(outcome) => Ok((volume, outcome)),
            Err(failure) if self.context().stop.is_raised() => Err(Failure { retry: true, ..failure }),
            Err(failure) => Ok((volume, failed(job, failure))),
        }
    }

    async fn root(&self, job: &RestoreJob) -> Result<Root, Failure> {
        match self.restorer.repository.at_slot(job.slot).await? {
            AtSlot::Snapshot(root) => Ok(*root),
            AtSlot::Tombstone => Err(Failure::refused(format!("the snapshot {} was collected", job.slot))),
            AtSlot::Nothing => Err(Failure::refused(format!("there is no snapshot {}", job.slot))),
        }
    }

    async fn restore(
        &self,
        job: &RestoreJob,
        root: Root,
        ticket: &Option<Ticket>,
    ) -> Result<JobOutcome, Failure> {
        let ids = Ids { job: job.job, session: self.context().environment.session_id() };
        let target = Target::new(&job.target, job.force).full(job.full).prepared(job.preparation.clone());
        let target = target.below(&self.allowed);
        let about = About::session(ids.session, root.volume.clone());
        let latest = watch::Sender::new(Progress { total: root.size, done: 0, fetched: 0 });
        let progress = |now| {
            latest.send_replace(now);
        };
        let restoring = self.restorer.run_as(ids, root, Purpose::Restore(target), &progress);
        tokio::pin!(restoring);
        let report = loop {
            tokio::select! {
                biased;
                result = &mut restoring => break result?,
                () = self.context().environment.sleep(BEAT) => {}
            }
            let now = *latest.borrow();
            self.beat(ids, &about, now, ticket).await;
        };
        let Report { written, kept, compared, zeroed, fetched, notes, .. } = report;
        Ok(JobOutcome::Restored { written, kept, compared, zeroed, fetched, notes })
    }

    /// Keeps the job for this agent and tells how far it is; both may fail without harm.
    async fn beat(&self, ids: Ids, about: &About, now: Progress, ticket: &Option<Ticket>) {
        let Progress { total, done, .. } = now;
        let (statistics, volume) = (Statistics::default(), about.volume.clone());
        let payload =
            messages::Progress { job: ids.job, session: ids.session, volume, total, done, statistics };
        let extended = match ticket {
            Some(ticket) => ticket.extend().await,
            None => Ok(()),
        };
        let told =
            self.context().bus.broadcast(&Topic::progress(ids.job), Message::new(about, &payload)).await;
        if let Err(why) = extended.and(told) {
            tracing::debug!(job = %ids.job, %why, "cannot tell how far a restore is");
        }
    }

    /// Tells how a job ended, until the queue has it: doing the job again would be wrong.
    async fn tell(&self, job: JobId) -> Result<(), Failure> {
        let Some((_, volume, outcome)) = self.ended.iter().find(|(ended, ..)| *ended == job) else {
            return Ok(());
        };
        let about = About { session: None, volume: volume.clone() };
        let message = Message::new(&about, &JobDone { job, outcome: outcome.clone() });
        loop {
            match self.context().bus.publish(&Queue::done(job), message.clone()).await {
                Ok(()) => return Ok(()),
                Err(why) if !why.is_transient() || self.context().stop.is_raised() => return Err(why.into()),
                Err(why) => tracing::warn!(%job, %why, "cannot tell how a restore ended yet"),
            }
            self.context().environment.sleep(RETRY_PAUSE).await;
        }
    }
}

fn failed(job: &RestoreJob, failure: Failure) -> JobOutcome {
    tracing::error!(job = %job.job, slot = %job.slot, target = job.target, %failure, "a restore failed");
    JobOutcome::Failed { kind: failure.kind, why: failure.why }
}
