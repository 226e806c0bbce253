//! The conductor: drives a session from its job to its sealed snapshot.
//!
//! It accounts for every byte, asks again for what got lost, writes the map, and commits; then it forgets what the
//! configuration's policies do not keep. It sees structure and never content. One driver drives a session alone for the session's whole life; whoever takes a job over first occupies
//! the old session's slot, and then opens a session of its own.

mod answers;
pub mod coverage;
mod driver;
mod parent;
mod recent;
pub mod retention;
mod structure;
mod takeover;

use std::sync::Arc;
use std::time::Duration;

use agent::bus::Ticket;
use agent::index::IndexClient;
use agent::{Context, Failure, Handler, Outcome, Queue, Repository, Topic};
use async_trait::async_trait;
use schema::messages::{
    About, BackupJob, CloseReading, FailureKind, JobDone, JobOutcome, Message, RestoreWaits,
};

use driver::{Driver, End, may_stay};
use retention::Policies;

/// Sessions that a job may lose to a store or an index that does not answer.
const SESSION_TRIES: u32 = 4;
/// Pause before the next one.
const SESSION_PAUSE: Duration = Duration::from_secs(2);

/// How a conductor works. Clocks only decide when to ask again or to give up.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Sessions at once.
    pub sessions: usize,
    /// What made no progress for this long is asked for again.
    pub ask_again: Duration,
    /// How often in a row something is asked for again before the session fails by name.
    pub patience: u32,
    /// Pause between checkpoints.
    pub checkpoint: Duration,
    /// On a stop, leave the session for another conductor; else give it up.
    pub hand_back: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            sessions: 4,
            ask_again: Duration::from_secs(20),
            patience: 30,
            checkpoint: Duration::from_secs(30),
            hand_back: true,
        }
    }
}

/// A conductor.
#[derive(Clone)]
pub struct Conductor {
    context: Context,
    repository: Repository,
    index: IndexClient,
    settings: Settings,
    retention: Arc<Policies>,
}

impl Conductor {
    /// A conductor of a repository's sessions.
    pub fn new(context: Context, repository: Repository, index: IndexClient, settings: Settings) -> Self {
        Self { context, repository, index, settings, retention: Arc::default() }
    }

    /// Also forgets, after each session, what these policies do not keep of its volume.
    pub fn with_retention(mut self, policies: Policies) -> Self {
        self.retention = Arc::new(policies);
        self
    }

    /// Takes jobs until the context's flag is raised; then hands back what is not finished.
    pub async fn run(self) -> Result<(), Failure> {
        let context = self.context.clone();
        let jobs = Queue::jobs();
        let loops =
            (0..self.settings.sessions.max(1)).map(|_| agent::consume(&context, &jobs, 1, self.clone()));
        futures::future::try_join_all(loops).await.map(drop)
    }

    /// A job from its beginning to an end, and what the policies forget after that.
    async fn work(&self, job: &BackupJob, ticket: &Option<Ticket>) -> Result<End, Failure> {
        let mut end = self.drive_patiently(job, ticket).await;
        if let Ok(End::Done(JobOutcome::Sealed { notes, .. })) = &mut end {
            self.context.counters.sessions_sealed.add(1);
            self.retain(job, notes).await;
        }
        end
    }

    /// A store or an index that is away for a while costs a session, not the job.
    async fn drive_patiently(&self, job: &BackupJob, ticket: &Option<Ticket>) -> Result<End, Failure> {
        let mut track = true;
        for _ in 1..SESSION_TRIES {
            match self.drive(job, ticket, track, true).await {
                Ok(End::Distrusted) => {
                    tracing::warn!("what was left out as unchanged does not hold; reading everything");
                    track = false;
                }
                Err(failure) if failure.retry && !self.stops() => {
                    tracing::warn!(%failure, "a backup failed for now; trying again");
                    self.context.environment.sleep(SESSION_PAUSE).await;
                }
                ended => return ended,
            }
        }
        self.drive(job, ticket, track, false).await
    }

    /// Applies the policies after a backup. What cannot be forgotten is no failure of the backup.
    async fn retain(&self, job: &BackupJob, notes: &mut Vec<String>) {
        let by = format!("retention on {}", self.context.host);
        let counters = &self.context.counters;
        let mut applied = retention::Applied::default();
        let ended = retention::apply(&self.repository, &self.retention, &job.volume, &by, &mut applied).await;
        counters.snapshots_forgotten.add(applied.forgotten.len() as u64);
        for root in &applied.forgotten {
            tracing::info!(snapshot = %root.slot.session, volume = root.volume, "forgotten by a policy");
        }
        let others = match applied.forgotten.len() {
            0 => "older snapshots",
            count => {
                let (snapshots, were) = if count == 1 { ("snapshot", "was") } else { ("snapshots", "were") };
                notes.push(format!("{count} older {snapshots} {were} forgotten by policy"));
                "others"
            }
        };
        notes.extend(applied.notes);
        if let Err(failure) = ended {
            counters.retentions_failed.add(1);
            tracing::warn!(%failure, volume = job.volume, "the backup is there; the policy could not be applied");
            notes.push(format!("{others} were not forgotten by policy: {failure}"));
        }
    }

    fn stops(&self) -> bool {
        self.context.stop.is_raised()
    }

    /// Whether a job that is handed back is taken up again, by whomever.
    fn comes_again(&self) -> bool {
        self.settings.hand_back || !self.stops()
    }

    /// Takes a job over, and tells the readers of its earlier sessions that these are over.
    async fn take_over(&self, job: &BackupJob, patience: bool) -> Result<takeover::Taken, Failure> {
        let taken = takeover::take_over(&self.repository, job, patience).await?;
        for (session, committed) in &taken.over {
            // Readers that do not hear it read for nobody, and nothing worse.
            let about = About::session(*session, job.volume.clone());
            let over = CloseReading { session: *session, host: job.host.clone(), committed: *committed };
            let _ = self.context.bus.broadcast(&Topic::closed(), Message::new(&about, &over)).await;
            let _ = self.context.bus.retire(&Queue::session(*session)).await;
        }
        Ok(taken)
    }

    /// What there is of a job that is given up: its snapshot, or nothing. Sessions that attempts left are over then.
    async fn found(&self, job: &BackupJob) -> Result<Option<JobOutcome>, Failure> {
        match self.take_over(job, false).await?.already_done {
            Some(sealed) => Ok(Some(sealed)),
            None => takeover::sealed_already(&self.repository, job).await,
        }
    }

    /// One session of a job. With `track`, what has not changed since the parent may be left out; with `patience`, another
    /// one may follow.
    async fn drive(
        &self,
        job: &BackupJob,
        ticket: &Option<Ticket>,
        track: bool,
        patience: bool,
    ) -> Result<End, Failure> {
        let taken = self.take_over(job, patience).await?;
        if let Some(outcome) = taken.already_done {
            return Ok(End::Done(outcome));
        }
        let driver = Driver::begin(
            self.context.clone(),
            self.repository.clone(),
            self.index.clone(),
            self.settings.clone(),
            job,
        )
        .await?;
        if let Some(outcome) = driver.already_done() {
            driver.dismiss().await;
            return Ok(End::Done(outcome));
        }
        if driver.yields() || is_settled(ticket).await {
            driver.dismiss().await;
            return Ok(End::TakenOver);
        }
        // What an earlier session left out may be in its checkpoint.
        driver.run(taken.checkpoint.filter(|_| track), track, patience).await
    }

    /// Says to whoever waits for a job why it stands still.
    async fn say_that_it_waits(&self, about: &About, job: &BackupJob, failure: &Failure) {
        self.context.counters.sessions_uncertain.add(1);
        tracing::warn!(%failure, volume = job.volume, "a backup stands still; it is taken up again");
        let until = match self.settings.hand_back {
            true => String::new(),
            // In one process it is nobody's any more when the process ends.
            false => format!("; if this command is ended before that, {}", agent::sessions::may_stay(None)),
        };
        let why = format!("{failure}; the backup is taken up again by itself{until}");
        let waits = RestoreWaits { job: job.job, host: self.context.host.to_string(), why };
        // Whoever does not hear it waits all the same.
        let _ = self.context.bus.broadcast(&Topic::progress(job.job), Message::new(about, &waits)).await;
    }

    async fn tell(&self, about: &About, job: &BackupJob, outcome: JobOutcome) -> Result<(), Failure> {
        if let JobOutcome::Failed { why, .. } = &outcome {
            self.context.counters.sessions_failed.add(1);
            tracing::error!(target: agent::TOLD, %why, "a backup failed");
        }
        let done = JobDone { job: job.job, outcome };
        Ok(self.context.bus.publish(&Queue::done(job.job), Message::new(about, &done)).await?)
    }
}

fn failed(job: &BackupJob, failure: Failure) -> JobOutcome {
    // Who read it may have named it.
    let why = failure.why.strip_prefix(&format!("volume {}: ", job.volume)).unwrap_or(&failure.why);
    JobOutcome::Failed { kind: failure.kind, why: format!("{}: {why}", job.volume) }
}

/// Whether the job was settled by whoever had it before. Asked once the own session exists: whoever settles it after that
/// sees the session first.
async fn is_settled(ticket: &Option<Ticket>) -> bool {
    let Some(standing) = ticket.as_ref().and_then(Ticket::standing) else { return false };
    // Where the bus is away, nobody settles anything; and what it has lost was settled by nobody.
    !standing.is_queued().await.unwrap_or(true) && !standing.is_lost().await.unwrap_or(true)
}

#[async_trait]
impl Handler for Conductor {
    fn role(&self) -> &'static str {
        "conductor"
    }

    async fn handle(&mut self, message: &Message, ticket: &mut Option<Ticket>) -> Result<Outcome, Failure> {
        let about = message.about()?;
        let job: BackupJob = message.read()?;
        let span = tracing::info_span!("session", job = %job.job, volume = job.volume);
        let work = tracing::Instrument::instrument(self.work(&job, ticket), span);
        let outcome = match agent::keeping(&self.context, ticket.as_ref(), work).await {
            Ok(End::Done(outcome)) => outcome,
            Ok(End::Distrusted) => {
                let why = "what was left out as unchanged does not hold";
                failed(&job, Failure::new(FailureKind::Other, why))
            }
            Ok(End::TakenOver) => {
                tracing::info!(volume = job.volume, "another conductor has taken this job over");
                if let Some(ticket) = ticket.take() {
                    ticket.leave();
                }
                return Ok(Outcome::Held);
            }
            Ok(End::HandedBack) => {
                let why = format!("the backup of {} was handed back", job.volume);
                return Err(Failure { kind: FailureKind::Other, retry: true, why });
            }
            // No end that is certain: whoever was told one would leave what is there to nobody.
            Err(failure) if failure.retry && self.comes_again() => {
                if !self.stops() {
                    self.say_that_it_waits(&about, &job, &failure).await;
                }
                return Err(failure);
            }
            Err(failure) if failure.retry => failed(&job, may_stay(failure)),
            Err(failure) => failed(&job, failure),
        };
        self.tell(&about, &job, outcome).await.map(|()| Outcome::Done)
    }

    async fn gave_up(&mut self, message: &Message, failure: &Failure) -> Result<(), Failure> {
        let (Ok(about), Ok(job)) = (message.about(), message.read::<BackupJob>()) else { return Ok(()) };
        let outcome = match self.found(&job).await {
            Ok(Some(sealed)) => sealed,
            Ok(None) => {
                let why = format!("{}; its sessions are over now", failure.why);
                failed(&job, Failure { why, ..failure.clone() })
            }
            Err(why) if why.retry && self.settings.hand_back => {
                self.context.counters.sessions_uncertain.add(1);
                return Err(why);
            }
            // In one process nobody waits for a store that does not come back.
            Err(_) => failed(&job, may_stay(failure.clone())),
        };
        self.tell(&about, &job, outcome).await
    }
}
