//! `backup`: submits a job per source, follows it, and exits with its result. The same in one process and over NATS.

use std::path::Path;
use std::time::Duration;

use agent::{Context, Failure, Queue, Topic};
use anyhow::{Context as _, bail};
use schema::JobId;
use schema::messages::{About, BackupJob, FailureKind, JobDone, JobOutcome, Message, Progress};
use schema::names::Slot;
use schema::root::Statistics;
use serde::Serialize;

use crate::app::App;
use crate::args::{BackupArgs, IoPriority};
use crate::embedded::Embedded;
use crate::progress::{Bar, Display};
use crate::{bus, init, text};

/// What a backup did, as it is printed.
#[derive(Debug, Serialize)]
struct Done {
    volume: String,
    snapshot: String,
    generation: u64,
    size: u64,
    bytes_read: u64,
    bytes_zero: u64,
    bytes_known: u64,
    bytes_new: u64,
    bytes_stored: u64,
    chunks: u64,
    chunks_new: u64,
    changed_while_read: bool,
    seconds: f64,
}

/// `lvkeep backup`.
pub async fn run(app: &App, args: &BackupArgs) -> anyhow::Result<()> {
    let jobs = jobs(app, args)?;
    set_io_priority(app)?;
    app.stop_on_signals()?;
    if app.settings.nats.value.is_some() {
        let context = app.context(bus::connect(app, "backup").await?);
        let outcomes = follow_all(app, &context, &jobs).await;
        return conclude(outcomes);
    }
    make_default_repository(app).await?;
    let mut work = Embedded::writing(app).await?;
    let context = work.context.clone();
    let outcomes = tokio::select! {
        biased;
        outcomes = follow_all(app, &context, &jobs) => outcomes,
        error = work.role_failed() => return Err(error),
    };
    work.finish().await;
    conclude(outcomes)
}

/// A first backup with nothing configured makes a repository in the user's folders, and says so.
async fn make_default_repository(app: &App) -> anyhow::Result<()> {
    let repo = &app.settings.repo;
    if repo.origin != crate::settings::Origin::Default
        || Path::new(&repo.value).join(schema::names::CONFIG).exists()
    {
        return Ok(());
    }
    init::make_default(app).await.map(drop)
}

fn jobs(app: &App, args: &BackupArgs) -> anyhow::Result<Vec<BackupJob>> {
    if args.name.is_some() && args.sources.len() > 1 {
        bail!("--name names one volume; {} sources are given", args.sources.len());
    }
    let job = |source: &String| {
        let source = absolute(app, source)?;
        let volume = match &args.name {
            Some(name) => name.clone(),
            None => format!("{}/{}", app.settings.host.value, source.trim_start_matches('/')),
        };
        check_name(&volume)?;
        Ok(BackupJob {
            job: app.environment.job_id(),
            volume,
            host: app.settings.host.value.clone(),
            source,
            tags: args.tags.clone(),
            allow_changes: args.allow_changes,
        })
    };
    args.sources.iter().map(job).collect()
}

/// A volume's name must be printable and must not look like a snapshot's.
fn check_name(name: &str) -> anyhow::Result<()> {
    let bad = name.is_empty()
        || name.len() > schema::limits::VOLUME_NAME_MAX
        || name.contains(|c: char| c.is_control() || c == '@');
    if bad {
        bail!("{name:?} cannot be a volume's name: 1 to 1024 printable bytes without @");
    }
    Ok(())
}

/// The path as the reader sees it. On another host it must be absolute already.
fn absolute(app: &App, source: &str) -> anyhow::Result<String> {
    if app.settings.nats.value.is_some() && source.starts_with('/') {
        return Ok(source.to_owned());
    }
    let path = std::path::absolute(source).with_context(|| source.to_owned())?;
    path.to_str().map(str::to_owned).with_context(|| format!("{source:?} is not valid UTF-8"))
}

async fn follow_all(app: &App, context: &Context, jobs: &[BackupJob]) -> Vec<anyhow::Result<()>> {
    let display = Display::new(app);
    let display = &display;
    let one = |job: &'_ BackupJob| {
        let job = job.clone();
        async move {
            let outcome = follow(app, context, &job, &display.bar(&job.volume)).await;
            if let Err(error) = &outcome
                && jobs.len() > 1
            {
                app.say(format!("lvkeep: {}", text::error(error)));
            }
            outcome
        }
    };
    futures::future::join_all(jobs.iter().map(one)).await
}

/// The first failure decides the exit code; the others were said.
fn conclude(outcomes: Vec<anyhow::Result<()>>) -> anyhow::Result<()> {
    let total = outcomes.len();
    let mut failed = outcomes.into_iter().filter_map(Result::err);
    let Some(first) = failed.next() else { return Ok(()) };
    match failed.count() {
        0 if total == 1 => Err(first),
        others => Err(first.context(format!("{} of {total} backups failed; the first", others + 1))),
    }
}

async fn follow(app: &App, context: &Context, job: &BackupJob, bar: &Bar) -> anyhow::Result<()> {
    let started = context.environment.elapsed();
    let about = About { session: None, volume: job.volume.clone() };
    let mut progress = context.bus.subscribe(&Topic::progress(job.job)).await.map_err(Failure::from)?;
    context.bus.publish(&Queue::jobs(), Message::new(&about, job)).await.map_err(Failure::from)?;
    let show = async {
        while let Ok(message) = progress.next().await {
            if let Ok(progress) = message.read::<Progress>() {
                bar.set(progress.done, progress.total);
            }
        }
        std::future::pending::<()>().await
    };
    let outcome = tokio::select! {
        outcome = outcome_of(context, job.job, &job.volume) => outcome,
        () = show => unreachable!("progress has no end"),
    };
    bar.finish();
    let seconds = context.environment.elapsed().saturating_sub(started).as_secs_f64();
    match outcome? {
        JobOutcome::Sealed { slot, generation, size, statistics, changed_while_read } => {
            let done = Done::new(job, slot, generation, size, &statistics, changed_while_read, seconds);
            app.print(&done, || done.text())
        }
        JobOutcome::Failed { kind, why } => Err(Failure::new(kind, why).into()),
        JobOutcome::Restored { .. } => bail!("the answer to a backup was that of a restore"),
    }
}

/// Waits for the end of a job. In one process a stop ends the conductor, which says so; over NATS it only ends waiting.
pub async fn outcome_of(context: &Context, job: JobId, volume: &str) -> anyhow::Result<JobOutcome> {
    let queue = Queue::done(job);
    loop {
        let waited = async {
            let mut done = context.bus.consume(&queue, 1).await?;
            done.next().await
        };
        let delivery = tokio::select! {
            delivery = waited => delivery,
            () = stopped_for_a_while(context) => {
                let why = format!("stopped waiting for job {job} of {volume}; agents go on with it");
                return Err(Failure::new(FailureKind::Revoked, why).into());
            }
        };
        match delivery {
            Ok(delivery) => {
                let done: JobDone = delivery.message.read().map_err(Failure::from)?;
                // When this is lost, the queue ends by its age.
                let _ = delivery.ticket.done().await;
                let _ = context.bus.retire(&queue).await;
                return Ok(done.outcome);
            }
            Err(why) => {
                tracing::warn!(%why, "still waiting for the job's end");
                context.environment.sleep(Duration::from_millis(500)).await;
            }
        }
    }
}

async fn stopped_for_a_while(context: &Context) {
    context.stop.raised().await;
    context.environment.sleep(Duration::from_secs(10)).await;
}

fn set_io_priority(app: &App) -> anyhow::Result<()> {
    let Some(priority) = app.settings.io_priority.value else { return Ok(()) };
    let class = match priority {
        IoPriority::Normal => return Ok(()),
        IoPriority::Low => ["-c", "2", "-n", "7"].as_slice(),
        IoPriority::Idle => ["-c", "3"].as_slice(),
    };
    let status = std::process::Command::new("ionice")
        .args(class)
        .args(["-p", &std::process::id().to_string()])
        .status()
        .context("io_priority needs the command ionice (package util-linux)")?;
    if !status.success() {
        bail!("io_priority: ionice failed ({status})");
    }
    Ok(())
}

impl Done {
    fn new(
        job: &BackupJob,
        slot: Slot,
        generation: u64,
        size: u64,
        statistics: &Statistics,
        changed_while_read: bool,
        seconds: f64,
    ) -> Self {
        Self {
            volume: job.volume.clone(),
            snapshot: slot.session.to_string(),
            generation,
            size,
            bytes_read: statistics.bytes_read,
            bytes_zero: statistics.bytes_zero,
            bytes_known: statistics.bytes_known,
            bytes_new: statistics.bytes_new,
            bytes_stored: statistics.bytes_stored,
            chunks: statistics.chunks,
            chunks_new: statistics.chunks_new,
            changed_while_read,
            seconds,
        }
    }

    fn text(&self) -> String {
        let size = |bytes| text::size(bytes);
        let mut out = format!(
            "{} @ {}  generation {}\n  {}: read {}, zero {}, known {}, new {}, stored {}  ({:.1} s)",
            self.volume,
            self.snapshot,
            self.generation,
            size(self.size),
            size(self.bytes_read),
            size(self.bytes_zero),
            size(self.bytes_known),
            size(self.bytes_new),
            size(self.bytes_stored),
            self.seconds,
        );
        if self.changed_while_read {
            out.push_str("\n  the source CHANGED WHILE IT WAS READ: this snapshot is not of one moment");
        }
        out
    }
}
