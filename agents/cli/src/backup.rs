//! `backup`: submits a job per source, follows it, and exits with its result. The same in one process and over NATS.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use agent::{Context, Failure, Queue, Topic};
use anyhow::{Context as _, bail};
use schema::JobId;
use schema::messages::{About, BackupJob, FailureKind, JobDone, JobOutcome, Message, Progress, RestoreWaits};
use serde::Serialize;
use tokio::sync::Semaphore;
use volume_lvm::Tools;

use crate::app::App;
use crate::args::{BackupArgs, IoPriority};
use crate::embedded::Embedded;
use crate::exit::PostFailed;
use crate::lvm::Hold;
use crate::progress::{Bar, Display};
use crate::sources::{self, Source};
use crate::{bus, host, init, text};

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
    tracking: text::Tracked,
    #[serde(skip)]
    how_read: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    post_failed: Option<String>,
    seconds: f64,
}

/// `lvkeep backup`.
pub async fn run(app: &App, args: &BackupArgs) -> anyhow::Result<()> {
    let sources = sources::resolve(app, args).await?;
    let jobs = jobs(app, args, &sources)?;
    let hold = hold(app, args, &sources)?;
    set_io_priority(app)?;
    app.stop_on_signals()?;
    if app.settings.nats.value.is_some() {
        let context = app.context(bus::connect(app, "backup").await?);
        let outcomes = follow_all(app, &context, &jobs, &sources).await;
        return conclude(outcomes, app.says());
    }
    make_default_repository(app).await?;
    let mut work = Embedded::writing(app, Some(&hold)).await?;
    if sources.iter().any(|source| source.group.is_some()) && Tools::new().has("lvs") {
        // What is left is no reason not to back up.
        if let Err(why) = host::sweep(app, Some(&work.repository)).await {
            app.say(format!("cannot look for what crashed runs left: {}", text::error(&why)));
        }
    }
    let context = work.context.clone();
    let outcomes = tokio::select! {
        biased;
        outcomes = follow_all(app, &context, &jobs, &sources) => outcomes,
        error = work.role_failed() => return Err(error),
    };
    work.finish().await;
    conclude(outcomes, app.says())
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

/// What the command says about holding writers still. Agents do what their own host's configuration says, and no
/// command that comes from elsewhere.
fn hold(app: &App, args: &BackupArgs, sources: &[Source]) -> anyhow::Result<Hold> {
    let freeze = args.domain.as_ref().map(|domain| format!("domain:{domain}")).or(args.freeze.clone());
    let hold = Hold { freeze, pre: args.pre.clone(), post: args.post.clone() };
    if app.settings.nats.value.is_some() && !hold.is_empty() {
        return Err(Failure::refused(
            "with --nats, what is frozen and which commands run is configured on the volumes' host, in its table [lvm]",
        )
        .into());
    }
    if let Some(other) = sources.iter().find(|source| source.group.is_none() && !hold.is_empty()) {
        return Err(Failure::refused(format!(
            "{} is no logical volume: --freeze, --pre and --post surround the taking of LVM snapshots, and there is \
             none of it",
            other.source
        ))
        .into());
    }
    app.settings.lvm.value.settings(&hold)?;
    Ok(hold)
}

fn jobs(app: &App, args: &BackupArgs, sources: &[Source]) -> anyhow::Result<Vec<BackupJob>> {
    if args.name.is_some() && sources.len() > 1 {
        bail!("--name names one volume; {} sources are given", sources.len());
    }
    let group = sources::group(app, args, sources)?;
    let tags: Vec<String> = args.tags.iter().filter(|tag| !tag.starts_with('@')).cloned().collect();
    let job = |Source { source, name, .. }: &Source| {
        let volume = match &args.name {
            Some(name) => name.clone(),
            None => format!("{}/{name}", app.settings.host.value),
        };
        check_name(&volume)?;
        Ok(BackupJob {
            job: app.environment.job_id(),
            volume,
            host: app.settings.host.value.clone(),
            source: source.clone(),
            tags: tags.clone(),
            allow_changes: args.allow_changes,
            group: group.clone(),
            plain: false,
        })
    };
    sources.iter().map(job).collect()
}

/// A volume's name must be printable and must not look like a snapshot's.
pub fn check_name(name: &str) -> anyhow::Result<()> {
    let bad = name.is_empty()
        || name.len() > schema::limits::VOLUME_NAME_MAX
        || name.contains(|c: char| c.is_control() || c == '@');
    if bad {
        bail!("{name:?} cannot be a volume's name: 1 to 1024 printable bytes without @");
    }
    Ok(())
}

/// Follows all jobs; of one volume group only so many at once as may have snapshots there. A group's are one.
async fn follow_all(
    app: &App,
    context: &Context,
    jobs: &[BackupJob],
    sources: &[Source],
) -> Vec<anyhow::Result<()>> {
    let display = Display::new(app);
    let display = &display;
    let at_once = app.settings.lvm.value.max_snapshots();
    let turns: BTreeMap<&str, Semaphore> = sources
        .iter()
        .filter_map(|source| Some((source.group.as_deref()?, Semaphore::new(at_once))))
        .collect();
    let turns = &turns;
    let one = |(job, source): (&'_ BackupJob, &'_ Source)| {
        let (job, group) = (job.clone(), source.group.clone());
        async move {
            let turn = group.as_deref().filter(|_| job.group.is_none()).and_then(|group| turns.get(group));
            let _turn = match turn {
                // It is never closed.
                Some(turn) => turn.acquire().await.ok(),
                None => None,
            };
            let outcome = follow(app, context, &job, &display.bar(&job.volume)).await;
            if let Err(error) = &outcome
                && jobs.len() > 1
            {
                app.say(format!("lvkeep: {}", text::error(error)));
            }
            outcome
        }
    };
    futures::future::join_all(jobs.iter().zip(sources).map(one)).await
}

/// The first failure decides the exit code; the others were said. A command that failed after a backup counts when no
/// backup failed.
fn conclude(outcomes: Vec<anyhow::Result<()>>, were_said: bool) -> anyhow::Result<()> {
    let total = outcomes.len();
    let errors = outcomes.into_iter().filter_map(Result::err);
    let (afterwards, failed): (Vec<_>, Vec<_>) = errors.partition(|error| error.is::<PostFailed>());
    let mut failed = failed.into_iter();
    let Some(first) = failed.next() else { return afterwards.into_iter().next().map_or(Ok(()), Err) };
    match failed.count() {
        0 if total == 1 => Err(first),
        others => Err(text::failed(format!("{} of {total} backups failed", others + 1), first, were_said)),
    }
}

/// Hands a job to a conductor and waits for its end.
async fn follow_job(app: &App, context: &Context, job: &BackupJob, bar: &Bar) -> anyhow::Result<JobOutcome> {
    let about = About { session: None, volume: job.volume.clone() };
    context.bus.publish(&Queue::jobs(), Message::new(&about, job)).await.map_err(Failure::from)?;
    tokio::select! {
        outcome = outcome_of(context, job.job, &job.volume) => outcome,
        () = hear(app, context, job, bar) => unreachable!("it has no end"),
    }
}

/// Hears how far a job is, and says once why it stands still. Has no end.
async fn hear(app: &App, context: &Context, job: &BackupJob, bar: &Bar) {
    let mut said = false;
    if let Ok(mut heard) = context.bus.subscribe(&Topic::progress(job.job)).await {
        while let Ok(message) = heard.next().await {
            if let Ok(now) = message.read::<Progress>() {
                bar.set(now.done, now.total);
            } else if let Ok(waits) = message.read::<RestoreWaits>()
                && !std::mem::replace(&mut said, true)
            {
                app.complain(format!("{} waits on {}: {}", job.volume, waits.host, waits.why));
            }
        }
    }
    std::future::pending().await
}

async fn follow(app: &App, context: &Context, job: &BackupJob, bar: &Bar) -> anyhow::Result<()> {
    let started = context.environment.elapsed();
    let outcome = follow_job(app, context, job, bar).await;
    bar.finish();
    let seconds = context.environment.elapsed().saturating_sub(started).as_secs_f64();
    match outcome? {
        JobOutcome::Failed { kind, why } => Err(Failure::new(kind, why).into()),
        outcome => match Done::new(job, outcome, seconds) {
            Some(done) => {
                app.print(&done, || done.text())?;
                match done.post_failed {
                    Some(why) => Err(PostFailed { volume: done.volume, why }.into()),
                    None => Ok(()),
                }
            }
            None => bail!("the answer to a backup was that of a restore"),
        },
    }
}

/// Waits for the end of a job. In one process a stop ends the conductor, which says so; over NATS it only ends waiting.
async fn outcome_of(context: &Context, job: JobId, volume: &str) -> anyhow::Result<JobOutcome> {
    tokio::select! {
        outcome = end_of(context, job) => outcome,
        () = stopped_for_a_while(context) => {
            let why = format!("stopped waiting for job {job} of {volume}; agents go on with it");
            Err(Failure::new(FailureKind::Revoked, why).into())
        }
    }
}

/// Waits for the end of a job, however long that takes.
pub async fn end_of(context: &Context, job: JobId) -> anyhow::Result<JobOutcome> {
    let queue = Queue::done(job);
    loop {
        let waited = async {
            let mut done = context.bus.consume(&queue, 1).await?;
            done.next().await
        };
        match waited.await {
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
    /// What a backup did; none when the outcome is that of something else.
    fn new(job: &BackupJob, outcome: JobOutcome, seconds: f64) -> Option<Self> {
        let JobOutcome::Sealed {
            slot,
            generation,
            size,
            statistics,
            changed_while_read,
            tracking,
            notes,
            post_failed,
        } = outcome
        else {
            return None;
        };
        Some(Self {
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
            tracking: text::Tracked::from(&tracking),
            how_read: text::tracking(&tracking),
            notes,
            post_failed,
            seconds,
        })
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
        if let Some(how_read) = &self.how_read {
            out.push_str(&format!("\n  {how_read}"));
        }
        for note in &self.notes {
            out.push_str(&format!("\n  {note}"));
        }
        if self.changed_while_read {
            out.push_str("\n  the source CHANGED WHILE IT WAS READ: this snapshot is not of one moment");
        }
        out
    }
}
