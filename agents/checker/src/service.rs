//! The checker as an agent: takes the checks that somebody asked for, one at a time, and only while its process has
//! nothing else to do. Backups and restores go first.
//!
//! How far a check is stands in the bucket, so that another agent goes on with it when this one dies or is stopped. A
//! check may be delivered again: one that ended is left alone, and one that another agent is at is waited for until it
//! has ended or does not move any more. Two agents at one check do some work twice, and nothing worse.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use agent::bus::Ticket;
use agent::index::IndexClient;
use agent::rate::RateLimit;
use agent::{Context, Failure, Handler, Outcome, Protection, ReadBy, Repository};
use async_trait::async_trait;
use schema::check::{Check, End, Reached, Worker};
use schema::keys::Identity;
use schema::messages::{CheckJob, FailureKind, Message};
use schema::session::SessionKind;
use schema::{JobId, SessionId, names};

use crate::attempt::Attempt;
use crate::findings::Report;
use crate::given::is_damage;
use crate::pace::Pace;
use crate::scope::Stopped;
use crate::{Checker, Settings, jobs, told};

/// Bytes of jobs taken from the queue at once; the next one may as well go to another agent.
const WINDOW: usize = 1 << 10;
/// How long a check waits for other work of its agent, until it is for whoever has time: longer than it takes to read the
/// structure once more.
const PAUSED_MAX: Duration = Duration::from_secs(600);
/// Attempts at a check that does not come any further.
const TRIES_MAX: u32 = 20;

/// How an agent checks.
#[derive(Debug, Clone)]
pub struct Serving {
    /// Its host.
    pub host: String,
    /// How often it says how far it is, and a check's delivery is extended: less than the time after which it comes again.
    pub beat: Duration,
    /// How long another agent's check must not move before this one takes it over: several beats.
    pub patience: Duration,
    /// How fast content is read.
    pub limit: RateLimit,
}

/// An agent that checks a repository.
#[derive(Clone)]
pub struct Service {
    context: Context,
    repository: Repository,
    index: IndexClient,
    identity: Option<Arc<Identity>>,
    serving: Arc<Serving>,
}

/// What became of a check that was taken.
enum Ended {
    /// Nothing is left to do.
    Over,
    /// Another agent is at it.
    TakenOver,
    /// It is for whoever has time.
    GivenBack,
}

impl Service {
    /// An agent. Without an identity it can check no content of an encrypted repository.
    pub fn new(
        context: Context,
        repository: Repository,
        index: IndexClient,
        identity: Option<Arc<Identity>>,
        serving: Serving,
    ) -> Self {
        Self { context, repository, index, identity, serving: Arc::new(serving) }
    }

    /// Takes checks until the context's stop flag is raised.
    pub async fn run(self) -> Result<(), Failure> {
        let context = self.context.clone();
        agent::consume(&context, &agent::Queue::checks(), WINDOW, self).await
    }

    async fn work(&self, job: JobId, pace: &Arc<Pace>) -> Ended {
        if pace.is_busy() {
            return Ended::GivenBack;
        }
        let mut at_it = None;
        let failure = match self.attempt(job, pace, &mut at_it).await {
            Ok(ended) => return ended,
            Err(failure) => failure,
        };
        if self.context.stop.is_raised() {
            return Ended::GivenBack;
        }
        if failure.retry {
            tracing::warn!(%job, %failure, "a check cannot go on now, and is tried again");
            self.pause(self.serving.patience).await;
            return Ended::GivenBack;
        }
        match self.fail(job, at_it, &failure).await {
            Ok(ended) => ended,
            Err(why) => {
                self.context.counters.checks_failed.add(1);
                tracing::error!(%job, %failure, %why, "a check failed, and cannot be marked so");
                self.pause(self.serving.patience).await;
                if why.retry { Ended::GivenBack } else { Ended::Over }
            }
        }
    }

    async fn pause(&self, pause: Duration) {
        tokio::select! {
            () = self.context.environment.sleep(pause) => {}
            () = self.context.stop.raised() => {}
        }
    }

    /// A check that has not ended. None when nothing is to be done about it: it is over, or its object cannot be read, for
    /// which an agent has no remedy.
    async fn open(&self, job: JobId) -> Result<Option<Check>, Failure> {
        match jobs::read(&self.repository, job).await {
            Ok(check) => Ok(check.filter(|check| check.end.is_none())),
            Err(failure) if is_damage(&failure) => {
                self.context.counters.checks_failed.add(1);
                tracing::error!(key = names::check(job), %failure, "a check is lost");
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }

    /// A check that is to be done, when nobody else is at it; none when nothing is to be done any more.
    async fn free(&self, job: JobId) -> Result<Option<Check>, Failure> {
        let mut seen = None;
        loop {
            let Some(check) = self.open(job).await? else { return Ok(None) };
            if check.worker.is_none() || check.worker == seen {
                return Ok(Some(check));
            }
            seen = check.worker;
            self.pause(self.serving.patience).await;
            if self.context.stop.is_raised() {
                return Err(Failure::new(FailureKind::Revoked, "this agent is stopped"));
            }
        }
    }

    /// One attempt; `at_it` is the session that the check belongs to as far as this attempt knows.
    async fn attempt(
        &self,
        job: JobId,
        pace: &Arc<Pace>,
        at_it: &mut Option<SessionId>,
    ) -> Result<Ended, Failure> {
        let Some(check) = self.free(job).await? else { return Ok(Ended::Over) };
        *at_it = check.worker.as_ref().map(|worker| worker.session);
        if check.tries >= TRIES_MAX {
            let why = format!("{TRIES_MAX} attempts in a row came no further; the agents' logs say why");
            return Err(Failure::new(FailureKind::Other, why));
        }
        jobs::end_sessions(&self.repository, job).await?;
        // That took a while.
        let worker = check.worker;
        let Some(check) = self.open(job).await? else { return Ok(Ended::Over) };
        if check.worker != worker {
            return Ok(Ended::TakenOver);
        }
        let environment = &self.context.environment;
        let (session, host) = (environment.session_id(), self.serving.host.clone());
        let worker = Worker { session, host, begun_ms: environment.now_ms(), beat: 0, is_paused: false };
        let Reached { done, total, behind, .. } = check.reached;
        if behind.is_some() {
            tracing::info!(%job, done, total, "going on with a check");
        }
        let check = Check { tries: check.tries + 1, worker: Some(worker), ..check };
        jobs::write(&self.repository, &check).await?;
        *at_it = Some(session);
        let by = ReadBy {
            kind: SessionKind::Restore,
            session,
            job,
            volume: "all volumes",
            host: &self.serving.host,
            undo: &[],
        };
        let protection = Protection::begin(&self.repository, by, &self.context.stop).await?;
        let attempt = Attempt::new(session, check, pace.clone());
        let ended = tokio::select! {
            biased;
            report = self.check(&attempt, protection.clone()) => report.map(Ok),
            ended = self.beat(&attempt) => Ok(Err(ended)),
        };
        match protection.end(ended).await {
            Ok(Ok(report)) => self.checked(&attempt, report).await,
            Ok(Err(ended)) => Ok(ended),
            Err(failure) => {
                // Another one need not wait to see whether this one is alive.
                attempt.lock().worker = None;
                if let Err(why) = self.put(&attempt).await {
                    tracing::debug!(%job, %why, "cannot say that a check is free");
                }
                Err(failure)
            }
        }
    }

    async fn check(&self, attempt: &Attempt, protection: Protection) -> Result<Report, Failure> {
        let content = told::content(&attempt.lock().content);
        let settings = Settings { host: self.serving.host.clone(), content, record: true };
        let (repository, index) = (self.repository.clone(), self.index.clone());
        let stop = self.context.stop.clone();
        let Reached { done, behind, .. } = attempt.earlier;
        let checker = Checker::new(repository, index, self.identity.clone(), settings, stop)
            .behind(behind.map(|behind| Stopped { behind, done }))
            .yielding(attempt.pace.clone(), self.serving.limit.clone());
        checker.check(Some(protection), &|progress| attempt.reach(progress)).await
    }

    /// Says now and then how far it is, and at once what nobody else would find again; ends when the check is no longer this
    /// agent's.
    async fn beat(&self, attempt: &Attempt) -> Ended {
        let mut paused = Duration::ZERO;
        loop {
            let waited = tokio::select! {
                biased;
                () = attempt.news.notified() => Duration::ZERO,
                () = self.context.environment.sleep(self.serving.beat) => self.serving.beat,
            };
            paused = if attempt.count() { paused + waited } else { Duration::ZERO };
            let gives_back = paused >= PAUSED_MAX;
            if gives_back {
                attempt.leave();
            }
            match self.put(attempt).await {
                Ok(None) if gives_back => return Ended::GivenBack,
                Ok(None) => {}
                Ok(Some(ended)) => return ended,
                Err(why) => tracing::debug!(%why, "cannot note how far a check is"),
            }
        }
    }

    /// Notes the check as it is, unless it is no longer that of this attempt.
    async fn put(&self, attempt: &Attempt) -> Result<Option<Ended>, Failure> {
        let check = attempt.lock().clone();
        let job = check.job;
        match self.open(job).await? {
            None => {
                tracing::info!(%job, "a check is over, or was cancelled: leaving it");
                Ok(Some(Ended::Over))
            }
            Some(there) if there.worker.as_ref().is_none_or(|worker| worker.session != attempt.session) => {
                tracing::warn!(%job, "another agent has taken a check over");
                Ok(Some(Ended::TakenOver))
            }
            Some(_) => jobs::write(&self.repository, &check).await.map(|()| None),
        }
    }

    async fn checked(&self, attempt: &Attempt, report: Report) -> Result<Ended, Failure> {
        let report = told::report(report, &attempt.earlier, self.context.environment.now_ms());
        let (snapshots, objects) = (report.damaged, report.objects);
        let job = {
            let mut check = attempt.lock();
            check.worker = None;
            check.end = Some(End::Checked(Box::new(report)));
            check.job
        };
        if let Some(ended) = self.put(attempt).await? {
            return Ok(ended);
        }
        self.context.counters.checks.add(1);
        match (snapshots, objects) {
            (0, 0) => tracing::info!(%job, "checked: nothing is wrong"),
            _ => {
                self.context.counters.checks_damaged.add(1);
                tracing::error!(
                    %job,
                    snapshots,
                    objects,
                    "a check found damage: `lvkeep check --job {job}` says what, and which snapshots it concerns"
                );
            }
        }
        if let Err(why) = jobs::tidy(&self.repository).await {
            tracing::debug!(%why, "what stands of earlier checks stays");
        }
        Ok(Ended::Over)
    }

    /// Says that a check has failed, unless somebody else than `at_it` is at it.
    async fn fail(&self, job: JobId, at_it: Option<SessionId>, failure: &Failure) -> Result<Ended, Failure> {
        let Some(check) = self.open(job).await? else { return Ok(Ended::Over) };
        if check.worker.as_ref().is_some_and(|worker| Some(worker.session) != at_it) {
            tracing::warn!(%job, %failure, "an attempt at a check failed, and another agent is at it");
            return Ok(Ended::TakenOver);
        }
        let (kind, why, ended_ms) = (failure.kind, failure.why.clone(), self.context.environment.now_ms());
        let end = Some(End::Failed { kind, why, ended_ms: Some(ended_ms) });
        jobs::write(&self.repository, &Check { worker: None, end, ..check }).await?;
        self.context.counters.checks_failed.add(1);
        tracing::error!(
            %job,
            %failure,
            "a check failed, and what it recorded stays: once the reason is mended, ask for another one"
        );
        Ok(Ended::Over)
    }

    /// Extends a delivery for ever.
    async fn keep(&self, ticket: &Option<Ticket>) -> Infallible {
        loop {
            if let Some(ticket) = ticket
                && let Err(why) = ticket.extend().await
            {
                tracing::debug!(%why, "a check may come once more");
            }
            self.context.environment.sleep(self.serving.beat).await;
        }
    }
}

#[async_trait]
impl Handler for Service {
    fn role(&self) -> &'static str {
        "checker"
    }

    async fn handle(&mut self, message: &Message, ticket: &mut Option<Ticket>) -> Result<Outcome, Failure> {
        let CheckJob { job } = message.read()?;
        let pace = Arc::new(Pace::new(self.context.clone()));
        let ended = tokio::select! {
            biased;
            ended = self.work(job, &pace) => ended,
            never = self.keep(ticket) => match never {},
        };
        match ended {
            Ended::Over => Ok(Outcome::Done),
            Ended::TakenOver => {
                if let Some(ticket) = ticket.take() {
                    ticket.leave();
                }
                Ok(Outcome::Held)
            }
            Ended::GivenBack => {
                // Sent anew, because it was not the check's fault: attempts are counted.
                jobs::send(&*self.context.bus, job).await?;
                if let Some(ticket) = ticket.take()
                    && let Err(why) = ticket.done().await
                {
                    tracing::debug!(%job, %why, "a check that was given back may come twice");
                }
                tokio::select! {
                    () = pace.wait() => {}
                    () = self.context.stop.raised() => {}
                }
                Ok(Outcome::Held)
            }
        }
    }

    /// That a message came too often says nothing of its check: an agent may be at it for weeks.
    async fn gave_up(&mut self, message: &Message, failure: &Failure) -> Result<(), Failure> {
        let Ok(CheckJob { job }) = message.read() else { return Ok(()) };
        match self.open(job).await? {
            Some(check) if check.worker.is_some() || check.tries < TRIES_MAX => {
                Ok(jobs::send(&*self.context.bus, job).await?)
            }
            Some(_) => self.fail(job, None, failure).await.map(drop),
            None => Ok(()),
        }
    }
}
