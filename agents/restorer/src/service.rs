//! The restorer as an agent: takes the restore jobs of its host, a few at a time, and says how each ended.
//!
//! It writes only below the folders, and to the logical volumes, that its own configuration allows; without any it
//! refuses every job by name. A job may be delivered again: one that ended is only reported again, and one that another
//! process has begun waits until that one is gone, and goes on with what it left. A job that was stopped with its agent
//! goes back to the queue; one that nobody wants any more ends.
//!
//! A job is over when the bucket says so, and nobody is told before: whoever was told may let a guest write to the
//! target, which no second delivery must overwrite.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent::bus::Ticket;
use agent::repository::AtSlot;
use agent::{BusError, Context, Failure, Handler, Outcome, Queue, Stop, Topic};
use async_trait::async_trait;
use futures::future::{self, FutureExt};
use schema::JobId;
use schema::messages::{
    self, About, FailureKind, JobDone, JobOutcome, LostRange, Message, RestoreJob, RestoreWaits,
};
use schema::names::Slot;
use schema::root::{Root, Statistics};
use tokio::sync::watch;

use crate::claim::{Claim, Doubt};
use crate::helping::{Helping, OneOfOwn, Own};
use crate::report::{Hole, Progress, Report};
use crate::restorer::{Ids, Purpose, Restorer};
use crate::sharing::Sharing;
use crate::stopping::{Begun, Running};
use crate::target::Target;

mod ending;
mod waiting;

#[cfg(test)]
pub(crate) use waiting::WAITING_MAX;
use waiting::{Aside, Busy};

/// Bytes of jobs that were taken from the queue and are not over: some that wait, and one that is done. It is too little
/// for jobs to be taken before somebody can do them, which may as well go to another agent.
const WINDOW: usize = 256 << 10;
/// Holes that are told: a message holds them.
const HOLES_TOLD: usize = 200;
/// Ended jobs that are remembered.
const ENDED_MAX: usize = 256;
/// Deliveries of one job before it is given up: every agent that is stopped costs one.
const ATTEMPTS_MAX: u64 = 60;
/// Beats after which it is looked again whether a target is still locked.
const BUSY_BEATS: u32 = 3;

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
        let worker = u64::from_le_bytes(context.environment.random());
        let helping =
            Helping { restorer: restorer.clone(), serving: serving.clone(), own: own.clone(), worker };
        let (running, (aside, waiting)) = (Running::default(), Aside::new());
        let jobs = Jobs {
            restorer,
            serving,
            ended: Arc::default(),
            running: running.clone(),
            own,
            aside,
            attempt: 0,
        };
        let places = vec![jobs; at_once].into_iter();
        let consumers = places.map(|jobs| agent::consume(&context, &queue, WINDOW, jobs));
        let working = future::try_join(future::try_join_all(consumers), helping.run());
        let (served, (), ()) = tokio::join!(working, running.hear(&context), waiting.run());
        served.map(drop)
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
    running: Running,
    own: Own,
    aside: Aside,
    /// How often the job in hand was delivered.
    attempt: u64,
}

/// What became of a job that was tried.
enum Tried {
    /// It is over; none when somebody else has ended it.
    Over(Option<Box<Over>>),
    /// Another restore has its target.
    Busy(Busy),
}

/// A job that is over, and what is held until everybody knows.
struct Over {
    ended: Ended,
    /// What may be needed for an undo stays protected.
    keeps_undo: bool,
    claim: Claim,
    own: OneOfOwn,
}

/// How far a job is, and where what stood on its target is kept.
#[derive(Debug, Clone)]
struct Now {
    volume: String,
    progress: Progress,
    undo: Option<Slot>,
}

#[async_trait]
impl Handler for Jobs {
    fn role(&self) -> &'static str {
        "restorer"
    }

    fn delivered(&mut self, attempt: u64) {
        self.attempt = attempt;
    }

    async fn handle(&mut self, message: &Message, ticket: &mut Option<Ticket>) -> Result<Outcome, Failure> {
        let job: RestoreJob = message.read()?;
        if self.running.has(job.job) && self.set_aside_again(&job, ticket) {
            return Ok(Outcome::Held);
        }
        let over = match self.tried(&job, ticket).await? {
            Tried::Over(over) => over,
            Tried::Busy(busy) => match self.set_aside_busy(&job, busy, ticket) {
                None => return Ok(Outcome::Held),
                Some(busy) => self.until_left(&job, busy, ticket).await?,
            },
        };
        self.finish(&job, over, ticket).await.map(|()| Outcome::Held)
    }

    fn attempts(&self) -> u64 {
        ATTEMPTS_MAX
    }

    async fn gave_up(&mut self, message: &Message, failure: &Failure) -> Result<(), Failure> {
        let (Ok(about), Ok(job)) = (message.about(), message.read::<RestoreJob>()) else { return Ok(()) };
        if self.is_locked(&job).await? {
            return Err(Claim::default().busy(Path::new(job.target())).context(failure));
        }
        let outcome = match self.noted(job.job).await? {
            Some(noted) => {
                let ((.., outcome), keeps_undo) = self.as_noted(&job, noted).await?;
                if !keeps_undo {
                    self.end_attempts(job.job).await;
                }
                if was_made(&job, &outcome) {
                    self.end_made(&job).await;
                }
                outcome
            }
            None => failed(&job, self.left_behind(&job, failure.clone()).await),
        };
        let done = Message::new(&about, &JobDone { job: job.job, outcome });
        self.context().bus.publish(&Queue::done(job.job), done).await?;
        self.end_given_up(job.job).await;
        Ok(())
    }
}

impl Jobs {
    fn context(&self) -> &Context {
        &self.restorer.context
    }

    /// Tells how the job ended; nothing when somebody else does. Nobody else has the target before, and nobody can be
    /// given the job again.
    async fn finish(
        &self,
        job: &RestoreJob,
        over: Option<Box<Over>>,
        ticket: &mut Option<Ticket>,
    ) -> Result<(), Failure> {
        let Some(Over { ended, keeps_undo, claim, own: _own }) = over.map(|over| *over) else {
            if let Some(ticket) = ticket.take() {
                ticket.leave();
            }
            return Ok(());
        };
        let is_made = was_made(job, &ended.2);
        self.tell(ended).await?;
        let confirmed = match ticket.take() {
            Some(ticket) => ticket.confirmed().await,
            None => Ok(()),
        };
        // Of another attempt, also where that was one of this agent's.
        if !claim.end().await && is_made {
            self.end_made(job).await;
        }
        match confirmed {
            Ok(()) if keeps_undo => self.end_all_but_undo(job.job).await,
            Ok(()) => self.end_sessions(job.job).await,
            // What says that it ended stays for whoever gets it then.
            Err(why) => tracing::warn!(job = %job.job, %why, "a restore that ended may come again"),
        }
        Ok(())
    }

    /// Does the job, or finds it done. When another restore has its target, it has to wait until that one has let go:
    /// handed back before, it would be given up after some attempts, while somebody still writes.
    async fn tried(&self, job: &RestoreJob, ticket: &Option<Ticket>) -> Result<Tried, Failure> {
        let stop = Stop::default();
        let begun = self.begin(job.job, &stop, ticket).await?;
        let (claim, own) = (Claim::of(job.job).delivered(ticket.as_ref()), self.own.one());
        let failure = match self.ending(job, &claim, &stop, ticket).await {
            Ok((ended, keeps_undo)) => {
                return Ok(Tried::Over(Some(Box::new(Over { ended, keeps_undo, claim, own }))));
            }
            Err(failure) => failure,
        };
        match claim.doubt() {
            Some(Doubt::Over) => {
                tracing::warn!(job = %job.job, %failure, "a restore was ended by another agent");
                claim.let_go();
                self.end_unqueued(job.job).await;
                return Ok(Tried::Over(None));
            }
            Some(Doubt::Lost) => {
                return self.end_lost(job, failure, &claim).await.map(|()| Tried::Over(None));
            }
            Some(Doubt::Unsure) | None => {}
        }
        let (is_busy, standing) = (claim.is_busy(), claim.standing());
        // Whoever waits may help.
        drop((claim, own));
        match is_busy {
            true => Ok(Tried::Busy(Busy { failure, standing, stop, begun })),
            false => self.unless_lost(job, failure, standing.as_ref()).await.map(Tried::Over),
        }
    }

    /// How the job ended, by whoever it was done, and whether what may be needed for an undo stays protected.
    async fn ending(
        &self,
        job: &RestoreJob,
        claim: &Claim,
        stop: &Stop,
        ticket: &Option<Ticket>,
    ) -> Result<(Ended, bool), Failure> {
        if let Some(ended) = self.ended(job.job) {
            return Ok((ended, false));
        }
        if let Some(noted) = self.noted(job.job).await? {
            self.check_is_left(job, claim, &noted.2).await?;
            let (mut ended, keeps_undo) = self.as_noted(job, noted).await?;
            if keeps_undo {
                self.end_given_up(job.job).await;
                return Ok((ended, true));
            }
            self.end_attempts(job.job).await;
            if let JobOutcome::Failed { why, .. } = &mut ended.2 {
                self.let_made_stay(job).await.iter().for_each(|note| *why = format!("{why}\n{note}"));
            }
            return Ok((self.remember(ended), false));
        }
        let (volume, outcome) = self.outcome(job, claim, stop, ticket).await?;
        self.check_is_left(job, claim, &outcome).await?;
        let ended = self.remember((job.job, volume, outcome));
        self.note(&ended).await;
        Ok((ended, false))
    }

    /// Begins a job. One that came again while it is being done here waits for its end.
    async fn begin(&self, job: JobId, stop: &Stop, ticket: &Option<Ticket>) -> Result<Begun, Failure> {
        let context = self.context();
        loop {
            if let Some(begun) = self.running.begin(job, stop.clone()) {
                return Ok(begun);
            }
            if context.stop.is_raised() {
                let why =
                    format!("the job {job} came again while it was being done, and this agent is stopped");
                return Err(Failure { retry: true, ..Failure::refused(why) });
            }
            self.wait(job, ticket).await;
        }
    }

    /// Keeps a job for this agent, for one more beat.
    async fn wait(&self, job: JobId, ticket: &Option<Ticket>) {
        let Context { stop, environment, .. } = self.context();
        if let Some(ticket) = ticket
            && let Err(why) = ticket.extend().await
        {
            tracing::debug!(%job, %why, "a restore that waits here may come once more");
        }
        tokio::select! {
            () = stop.raised() => {}
            () = environment.sleep(self.serving.beat) => {}
        }
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

    /// How the job ends, and of which volume; an error only when the agent is stopped, another one has the target, or the
    /// store cannot be asked.
    async fn outcome(
        &self,
        job: &RestoreJob,
        claim: &Claim,
        stop: &Stop,
        ticket: &Option<Ticket>,
    ) -> Result<(String, JobOutcome), Failure> {
        let ids = Ids { job: job.job, session: self.context().environment.session_id() };
        let latest = watch::Sender::new(None);
        let working = self.work(job, ids, claim, stop, &latest);
        let stopping = async {
            self.context().stop.raised().await;
            stop.raise();
            future::pending::<()>().await;
        };
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
            () = future::join(beating, stopping).map(drop) => unreachable!("it has no end"),
        }
    }

    async fn work(
        &self,
        job: &RestoreJob,
        ids: Ids,
        claim: &Claim,
        stop: &Stop,
        latest: &watch::Sender<Option<Now>>,
    ) -> Result<(String, JobOutcome), Failure> {
        let root = match self.restorer.root_at(job.slot).await {
            Ok(root) => root,
            Err(failure) if failure.retry => return Err(failure),
            Err(failure) => return Ok((String::new(), failed(job, failure))),
        };
        let volume = root.volume.clone();
        let progress = Progress { total: root.size, done: 0, fetched: 0 };
        latest.send_replace(Some(Now { volume: volume.clone(), progress, undo: None }));
        let target = self.target(job, claim.clone(), stop.clone());
        let (mut undo, is_writing) = (None, AtomicBool::new(false));
        let restoring = async {
            let now = |undo, total, done, fetched| {
                let progress = Progress { total, done, fetched };
                latest.send_replace(Some(Now { volume: volume.clone(), progress, undo }));
            };
            let mut target = target;
            if let Some(id) = job.more.as_ref().and_then(|more| more.undo) {
                let held = target.clone().with_content();
                undo = self.restorer.keep(&root, &held, id, |done, total| now(None, total, done, 0)).await?;
                target = if undo.is_some() { held } else { target };
            }
            now(undo, root.size, 0, 0);
            let progress = |p: Progress| {
                is_writing.store(true, Ordering::Relaxed);
                now(undo, p.total, p.done, p.fetched);
            };
            self.restorer.run_as(ids, root.clone(), Purpose::Restore(target), &progress).await
        };
        let failure = match restoring.await {
            Ok(report) => return Ok((volume, restored(report, undo))),
            Err(failure) => failure,
        };
        if claim.doubt().is_some() {
            return Err(failure);
        }
        if self.context().stop.is_raised() {
            return Err(Failure { retry: true, ..failure });
        }
        if claim.is_busy() {
            tracing::warn!(job = %job.job, %failure, "waiting for another restore");
            return Err(failure);
        }
        if claim.comes_again() && !stop.is_raised() {
            return Err(failure);
        }
        // An attempt that died may have overwritten something before this one wrote.
        let first = claim.kept_first();
        undo = undo.or(first);
        let failure = match (stop.is_raised(), is_writing.into_inner()) {
            (false, _) => failure,
            (true, false) if first.is_some() => unwanted_again(job, failure),
            (true, is_writing) => unwanted(job, failure, latest.borrow().as_ref().filter(|_| is_writing)),
        };
        if let Some(kept) = undo
            && matches!(self.restorer.repository.store.head(&kept.forgotten()).await, Ok(Some(_)))
        {
            // An undo of it would be refused.
            undo = None;
        }
        Ok((volume, failed(job, undoable(job, failure, undo))))
    }

    fn target(&self, job: &RestoreJob, claim: Claim, stop: Stop) -> Target {
        let target = Target::new(job.target(), job.is_forced()).full(job.full).untracked(job.untracked);
        let target = target.prepared(job.preparation.clone());
        let mut target = target.below(&self.serving.allowed).claimed(claim).until(stop);
        target = target.of_command(job.command).fetching(job.fetches.map(|fetches| fetches as usize));
        if let Some(more) = &job.more {
            target = target.only(more.range.map(|(start, end)| start..end)).keep_going(more.keep_going);
            target = target.read_again(more.verify).in_use(more.in_use);
            target = if more.put_back { target.put_back().same_device(more.same_device) } else { target };
        }
        let Some(donor) = &job.donor else { return target };
        match self.restorer.path_of(&target, donor) {
            Ok(path) => target.after(path),
            Err(failure) => {
                tracing::warn!(job = %job.job, %failure, "everything is fetched");
                target
            }
        }
    }

    /// Keeps the job for this agent and tells how far it is; both may fail without harm.
    async fn beat(&self, ids: Ids, now: Option<Now>, ticket: &Option<Ticket>) {
        let extended = match ticket {
            Some(ticket) => ticket.extend().await,
            None => Ok(()),
        };
        let told = match now {
            Some(now) => self.tell_progress(ids, now).await,
            None => Ok(()),
        };
        if let Err(why) = extended.and(told) {
            tracing::debug!(job = %ids.job, %why, "cannot tell how far a restore is");
        }
    }

    /// Whoever asked for the job is told what it waits for, again and again: who asks may be there later.
    async fn tell_waits(&self, job: JobId, failure: &Failure) {
        let payload = RestoreWaits { job, host: self.context().host.to_string(), why: failure.why.clone() };
        let message = Message::new(&About::nothing(), &payload);
        if let Err(why) = self.context().bus.broadcast(&Topic::progress(job), message).await {
            tracing::debug!(%job, %why, "cannot tell that a restore waits");
        }
    }

    async fn tell_progress(&self, ids: Ids, now: Now) -> Result<(), BusError> {
        let Ids { job, session } = ids;
        let Now { volume, progress: Progress { total, done, .. }, undo } = now;
        let about = About::session(session, volume.clone());
        let statistics = Statistics::default();
        let payload = messages::Progress { job, session, volume, total, done, statistics, undo };
        self.context().bus.broadcast(&Topic::progress(job), Message::new(&about, &payload)).await
    }
}

fn is_restored(outcome: &JobOutcome) -> bool {
    matches!(outcome, JobOutcome::Restored { .. })
}

/// Whether a volume was made for the job, and is whole.
fn was_made(job: &RestoreJob, outcome: &JobOutcome) -> bool {
    job.preparation.create.is_some() && is_restored(outcome)
}

fn is_revoked(outcome: &JobOutcome) -> bool {
    matches!(outcome, JobOutcome::Failed { kind: FailureKind::Revoked, .. })
}

fn restored(report: Report, undo: Option<Slot>) -> JobOutcome {
    let Report {
        written, kept, compared, tracked, audited, zeroed, fetched, notes, verified, stands_on, ..
    } = report;
    let (copied, rescued, lost) = (report.copied, report.rescued, report.lost);
    let told = |hole: &Hole| {
        let Range { start, end } = hole.range;
        LostRange { offset: start, len: end - start, why: hole.told() }
    };
    let holes = report.holes.iter().take(HOLES_TOLD).map(told).collect();
    JobOutcome::Restored {
        written,
        kept,
        compared,
        tracked,
        audited,
        zeroed,
        fetched,
        notes,
        copied,
        rescued,
        lost,
        holes,
        undo,
        verified,
        stands_on,
    }
}

/// The failure of a job that was stopped, and how that leaves the target.
fn unwanted(job: &RestoreJob, failure: Failure, now: Option<&Now>) -> Failure {
    let (target, why) = (job.target(), failure.why);
    let why = match now {
        None => format!(
            "stopped, as asked, before this attempt overwrote anything of {target}, whose size it may have changed if it \
             is a file ({why})"
        ),
        Some(Now { progress: Progress { done, total, .. }, .. }) => {
            format!(
                "stopped, as asked, after {done} of {total} bytes: what stands on {target} is incomplete ({why})"
            )
        }
    };
    Failure { kind: FailureKind::Revoked, why, ..failure }
}

/// The same of one that began again where an attempt that died may have written.
fn unwanted_again(job: &RestoreJob, failure: Failure) -> Failure {
    let (target, why) = (job.target(), failure.why);
    let why =
        format!("stopped, as asked; an attempt that died may have overwritten a part of {target} ({why})");
    Failure { kind: FailureKind::Revoked, why, ..failure }
}

/// Says what puts back what stood on the target.
fn undoable(job: &RestoreJob, failure: Failure, undo: Option<Slot>) -> Failure {
    let Some(undo) = undo else { return failure };
    let (target, id, why) = (job.target(), undo.session, failure.why);
    let why = format!("{why}\nwhat stood on {target} is kept as {id}: `lvkeep undo {id}` puts it back");
    Failure { why, ..failure }
}

fn failed(job: &RestoreJob, failure: Failure) -> JobOutcome {
    tracing::error!(job = %job.job, slot = %job.slot, target = job.target(), %failure, "a restore failed");
    JobOutcome::Failed { kind: failure.kind, why: failure.why }
}
