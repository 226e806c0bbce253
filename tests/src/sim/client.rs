//! Whoever asks for backups: submits the jobs of a plan at their times and waits for the end of each.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use agent::{Bus, Queue};
use rand::SeedableRng;
use rand::rngs::StdRng;
use schema::JobId;
use schema::messages::{About, BackupJob, JobDone, JobOutcome, Message};
use tokio::task::JoinSet;

use super::build::{source_name, target_name, templates, volume_name};
use super::cluster::{self, World};
use super::plan::VolumePlan;

/// Virtual time in which a job must have ended after the last fault.
const PATIENCE: Duration = Duration::from_secs(2 * 3600);

/// What a job backs up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A volume of the plan, by its number.
    Volume(usize),
    /// What a restore overwrites, by the number of its target.
    Target(usize),
}

impl What {
    /// What its reader calls it.
    pub fn source(self) -> String {
        match self {
            Self::Volume(number) => source_name(number),
            Self::Target(number) => target_name(number),
        }
    }
}

/// A job that was accepted, and how it ended.
#[derive(Debug, Clone)]
pub struct Job {
    /// The job.
    pub job: JobId,
    /// What it backs up.
    pub what: What,
    /// The number of what its source held when it was submitted.
    pub version: usize,
    /// From its submission until its end was heard, in milliseconds since 1970.
    pub time: Range<u64>,
    /// Its end; none when there was none.
    pub outcome: Option<JobOutcome>,
}

impl Job {
    /// A job that is submitted now.
    pub fn new(world: &World, job: JobId, what: What) -> Self {
        let version = world.source(&what.source()).map_or(0, |source| source.version());
        Self { job, what, version, time: world.environment.now_ms()..u64::MAX, outcome: None }
    }

    /// The job, which has ended now.
    pub fn ended(mut self, world: &World, outcome: Option<JobOutcome>) -> Self {
        self.time.end = world.environment.now_ms();
        Self { outcome, ..self }
    }
}

/// Submits every job at its time; jobs are noted when they are accepted.
pub fn submit(world: &Arc<World>) -> JoinSet<Vec<Job>> {
    let mut clients = JoinSet::new();
    for (number, volume) in world.plan.volumes.iter().cloned().enumerate() {
        clients.spawn(back_up(world.clone(), number, volume));
    }
    clients
}

/// The rounds of one volume, one after the other.
async fn back_up(world: Arc<World>, number: usize, volume: VolumePlan) -> Vec<Job> {
    let random = &mut StdRng::seed_from_u64(world.plan.seed ^ 0xabcd ^ number as u64);
    let templates = templates(&world.plan);
    let host = number % world.plan.hosts;
    let mut jobs = Vec::new();
    for round in &volume.rounds {
        world.environment.sleep(round.after).await;
        if round.writes > 0
            && let Some(source) = world.sources[host].source(&source_name(number))
        {
            let mut content = (*source.content()).clone();
            (0..round.writes).for_each(|_| content.scribble(random, &templates));
            source.change(content);
        }
        let side_by_side = (0..round.jobs).map(|_| one_job(&world, number, host, volume.allow_changes));
        jobs.extend(futures::future::join_all(side_by_side).await);
    }
    jobs
}

async fn one_job(world: &World, volume: usize, host: usize, allow_changes: bool) -> Job {
    let job = world.environment.job_id();
    let request = BackupJob {
        job,
        volume: volume_name(volume),
        host: cluster::host(host),
        source: source_name(volume),
        tags: Vec::new(),
        allow_changes,
        group: None,
        plain: false,
    };
    let asked = Job::new(world, job, What::Volume(volume));
    let outcome = ask(world, &request).await;
    asked.ended(world, outcome)
}

/// Has a backup made, and waits for its end.
pub async fn ask(world: &World, request: &BackupJob) -> Option<JobOutcome> {
    let (job, volume) = (request.job, &request.volume);
    let about = About { session: None, volume: request.volume.clone() };
    let bus = world.wires.bus("client");
    let published = bus.publish(&Queue::jobs(), Message::new(&about, request)).await;
    if let Err(why) = published {
        world.trace.wrong(format!("progress: job {job} was not accepted: {why}"));
    }
    let ended = world.environment.timeout(PATIENCE + world.plan.storm, outcome_of(world, &*bus, job)).await;
    match &ended {
        None => world.trace.wrong(format!("progress: job {job} of {volume} has not ended")),
        Some(outcome) => world.trace.note(format_args!("client: job {job} ends {outcome:?}")),
    }
    ended
}

async fn outcome_of(world: &World, bus: &dyn Bus, job: JobId) -> JobOutcome {
    let queue = Queue::done(job);
    loop {
        let waited = async {
            let mut done = bus.consume(&queue, 1).await?;
            done.next().await
        };
        match waited.await {
            Ok(delivery) => match delivery.message.read::<JobDone>() {
                Ok(done) => {
                    let _ = delivery.ticket.done().await;
                    return done.outcome;
                }
                Err(why) => world.trace.wrong(format!("the end of job {job} cannot be read: {why}")),
            },
            Err(_) => world.environment.sleep(Duration::from_millis(500)).await,
        }
    }
}

/// Waits for the end of every job.
pub async fn settle(world: &World, mut clients: JoinSet<Vec<Job>>) -> Vec<Job> {
    let mut jobs = Vec::new();
    while let Some(ended) = clients.join_next().await {
        match ended {
            Ok(ended) => jobs.extend(ended),
            Err(why) => world.trace.wrong(format!("a client failed: {why}")),
        }
    }
    jobs.sort_by_key(|job| job.job);
    jobs
}
