//! The restorer as an agent: takes the restore jobs of its host, a few at a time, and says how each ended.
//!
//! It writes only below the folders, and to the logical volumes, that its own configuration allows; without any it
//! refuses every job by name. A job may be delivered again: one that ended in this process is only reported again, and
//! one that another process has begun waits until that one is gone, and goes on with what it left. A job that was
//! stopped goes back to the queue.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent::bus::Ticket;
use agent::repository::AtSlot;
use agent::{BusError, Context, Failure, Handler, Outcome, Queue, Topic, sessions};
use async_trait::async_trait;
use futures::future;
use schema::JobId;
use schema::messages::{self, About, JobDone, JobOutcome, Message, RestoreJob};
use schema::names::Slot;
use schema::root::{Root, Statistics};
use schema::session::SessionKind;
use tokio::sync::watch;

use crate::claim::Claim;
use crate::helping::{Helping, Own};
use crate::restorer::{Ids, Progress, Purpose, Report, Restorer};
use crate::sharing::Sharing;
use crate::target::Target;

/// Bytes of jobs taken from the queue at once; the next job may as well go to another agent.
const WINDOW: usize = 4 << 10;
/// Pause before an end that could not be told is told again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Ended jobs that are remembered.
const ENDED_MAX: usize = 256;

/// How an agent serves a host.
#[derive(Debug, Clone)]
pub struct Serving {
    /// The host whose jobs it takes.
    pub host: String,
    /// Targets must be below one of these.
    pub allowed: Vec<PathBuf>,
    /// Jobs at once, which share what the restorer has.
    pub at_once: usize,
    /// How often progress is told, and a job's delivery extended: less than the time after which it comes again.
    pub beat: Duration,
    /// Bytes of a volume that another agent of the host restores at once, in steps of 64 MiB.
    pub span: u64,
}

impl Restorer {
    /// Serves the restore jobs of a host until the context's stop flag is raised.
    pub async fn run(mut self, serving: Serving) -> Result<(), Failure> {
        let context = self.context.clone();
        let (queue, at_once) = (Queue::restores(&serving.host), serving.at_once.max(1));
        self.sharing = Some(Sharing::of(&serving));
        let (restorer, serving, own) = (Arc::new(self), Arc::new(serving), Own::default());
        let helping = Helping { restorer: restorer.clone(), serving: serving.clone(), own: own.clone() };
        let jobs = Jobs { restorer, serving, ended: Arc::default(), own };
        let consumers = (0..at_once).map(|_| agent::consume(&context, &queue, WINDOW, jobs.clone()));
        future::try_join(future::try_join_all(consumers), helping.run()).await.map(drop)
    }

    /// The snapshot at a slot.
    pub(crate) async fn root_at(&self, slot: Slot) -> Result<Root, Failure> {
        match self.repository.at_slot(slot).await? {
            AtSlot::Snapshot(root) => Ok(*root),
            AtSlot::Tombstone => Err(Failure::refused(format!("the snapshot {slot} was collected"))),
            AtSlot::Nothing => Err(Failure::refused(format!("there is no snapshot {slot}"))),
        }
    }
}

/// A job that ended: of which volume, and how.
type Ended = (JobId, String, JobOutcome);

#[derive(Clone)]
struct Jobs {
    restorer: Arc<Restorer>,
    serving: Arc<Serving>,
    ended: Arc<Mutex<VecDeque<Ended>>>,
    own: Own,
}

#[async_trait]
impl Handler for Jobs {
    fn role(&self) -> &'static str {
        "restorer"
    }

    async fn handle(&mut self, message: &Message, ticket: &mut Option<Ticket>) -> Result<Outcome, Failure> {
        let job: RestoreJob = message.read()?;
        let _own = self.own.one();
        // Nobody else has the target before it is told how the job ended.
        let claim = Claim::of(job.job);
        let ended = match self.ended(job.job) {
            Some(ended) => ended,
            None => {
                let (volume, outcome) = self.outcome(&job, &claim, ticket).await?;
                self.remember((job.job, volume, outcome))
            }
        };
        self.tell(ended).await?;
        // Before anybody else could be given it again.
        if let Some(ticket) = ticket.take()
            && let Err(why) = ticket.done().await
        {
            tracing::warn!(job = %job.job, %why, "a restore that ended may come again");
        }
        claim.let_go();
        self.end_earlier(job.job).await;
        Ok(Outcome::Held)
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

    fn ended(&self, job: JobId) -> Option<Ended> {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.iter().find(|(ended, ..)| *ended == job).cloned()
    }

    fn remember(&self, one: Ended) -> Ended {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.len() == ENDED_MAX {
            ended.pop_front();
        }
        ended.push_back(one.clone());
        one
    }

    /// How the job ends, and of which volume; an error only when the agent is stopped, or another one has the target.
    async fn outcome(
        &self,
        job: &RestoreJob,
        claim: &Claim,
        ticket: &Option<Ticket>,
    ) -> Result<(String, JobOutcome), Failure> {
        let ids = Ids { job: job.job, session: self.context().environment.session_id() };
        let latest = watch::Sender::new(None);
        let working = self.work(job, ids, claim, &latest);
        // Beside the work, which goes on when nobody can be told.
        let beating = async {
            loop {
                self.context().environment.sleep(self.serving.beat).await;
                let now = latest.borrow().clone();
                self.beat(ids, now, ticket).await;
            }
        };
        tokio::select! {
            biased;
            outcome = working => outcome,
            () = beating => unreachable!("it has no end"),
        }
    }

    async fn work(
        &self,
        job: &RestoreJob,
        ids: Ids,
        claim: &Claim,
        latest: &watch::Sender<Option<(String, Progress)>>,
    ) -> Result<(String, JobOutcome), Failure> {
        let root = match self.restorer.root_at(job.slot).await {
            Ok(root) => root,
            Err(failure) => return Ok((String::new(), failed(job, failure))),
        };
        let volume = root.volume.clone();
        let progress = |now| {
            latest.send_replace(Some((volume.clone(), now)));
        };
        progress(Progress { total: root.size, done: 0, fetched: 0 });
        let target = Target::new(&job.target, job.force).full(job.full).prepared(job.preparation.clone());
        let target = target.below(&self.serving.allowed).claimed(claim.clone());
        match self.restorer.run_as(ids, root, Purpose::Restore(target), &progress).await {
            Ok(report) => Ok((volume, restored(report))),
            Err(failure) if self.context().stop.is_raised() => Err(Failure { retry: true, ..failure }),
            Err(failure) if claim.is_busy() => {
                tracing::warn!(job = %job.job, %failure, "waiting for another restore");
                Err(failure)
            }
            Err(failure) => Ok((volume, failed(job, failure))),
        }
    }

    /// Keeps the job for this agent and tells how far it is; both may fail without harm.
    async fn beat(&self, ids: Ids, now: Option<(String, Progress)>, ticket: &Option<Ticket>) {
        let extended = match ticket {
            Some(ticket) => ticket.extend().await,
            None => Ok(()),
        };
        let told = match now {
            Some((volume, now)) => self.tell_progress(ids, volume, now).await,
            None => Ok(()),
        };
        if let Err(why) = extended.and(told) {
            tracing::debug!(job = %ids.job, %why, "cannot tell how far a restore is");
        }
    }

    async fn tell_progress(&self, ids: Ids, volume: String, now: Progress) -> Result<(), BusError> {
        let Ids { job, session } = ids;
        let Progress { total, done, .. } = now;
        let about = About::session(session, volume.clone());
        let statistics = Statistics::default();
        let payload = messages::Progress { job, session, volume, total, done, statistics };
        self.context().bus.broadcast(&Topic::progress(job), Message::new(&about, &payload)).await
    }

    /// Ends the sessions that killed agents left of this job: nobody reads for them any more. One that stays only keeps
    /// a collection waiting.
    async fn end_earlier(&self, job: JobId) {
        let repository = &self.restorer.repository;
        let ended = async {
            let sessions = sessions::list(repository).await?;
            for session in sessions.iter().filter(|one| one.job == job && one.kind == SessionKind::Restore) {
                sessions::revoke(repository, session).await?;
            }
            Ok::<_, Failure>(())
        };
        if let Err(failure) = ended.await {
            tracing::debug!(%job, %failure, "cannot look for sessions that earlier attempts left");
        }
    }

    /// Tells how a job ended, until the queue has it: doing the job again would be wrong.
    async fn tell(&self, (job, volume, outcome): Ended) -> Result<(), Failure> {
        let message = Message::new(&About { session: None, volume }, &JobDone { job, outcome });
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

fn restored(report: Report) -> JobOutcome {
    let Report { written, kept, compared, zeroed, fetched, notes, .. } = report;
    JobOutcome::Restored { written, kept, compared, zeroed, fetched, notes }
}

fn failed(job: &RestoreJob, failure: Failure) -> JobOutcome {
    tracing::error!(job = %job.job, slot = %job.slot, target = job.target, %failure, "a restore failed");
    JobOutcome::Failed { kind: failure.kind, why: failure.why }
}
