//! `restore`: brings a snapshot back to a file or device, by this process or by another host's agent.

use std::path::PathBuf;
use std::sync::Arc;

use agent::{Failure, Queue, Repository};
use anyhow::{Context, bail};
use restorer::{Report, Restorer, Target};
use schema::messages::{About, JobOutcome, Message, RestoreJob};
use schema::root::Root;
use serde::Serialize;

use crate::app::App;
use crate::args::RestoreArgs;
use crate::embedded::Embedded;
use crate::progress::Display;
use crate::{backup, bus, open, select, text};

/// What a restore did, as it is printed.
#[derive(Debug, Serialize)]
struct Done {
    snapshot: String,
    volume: String,
    target: String,
    size: u64,
    bytes_written: u64,
    bytes_zeroed: u64,
    bytes_fetched: u64,
    chunks_rescued: u64,
    seconds: f64,
}

/// `lvkeep restore`.
pub async fn run(app: &App, args: &RestoreArgs) -> anyhow::Result<()> {
    app.stop_on_signals()?;
    match &args.to_host {
        Some(host) => by_agent(app, args, host).await,
        None => here(app, args).await,
    }
}

async fn here(app: &App, args: &RestoreArgs) -> anyhow::Result<()> {
    let started = app.environment.elapsed();
    let work = Embedded::reading(app).await?;
    let root = select::snapshot(&work.repository, &args.snapshot).await?;
    let identity = open::identity(&app.settings, work.repository.key.repo())?;
    let restorer = make(app, &work, identity.map(Arc::new));
    let display = Display::new(app);
    let bar = display.bar(&root.volume);
    let target = Target::new(PathBuf::from(&args.target), args.force);
    let restored = restorer.restore(root.clone(), target, |p| bar.set(p.done, p.total)).await;
    bar.finish();
    let report = restored.with_context(|| format!("restoring {} to {}", root.volume, args.target));
    work.finish().await;
    let report = report?;
    print(app, &root, args, &report, app.environment.elapsed().saturating_sub(started).as_secs_f64())
}

/// A restorer of this process.
pub fn make(app: &App, work: &Embedded, identity: Option<Arc<schema::keys::Identity>>) -> Restorer {
    Restorer::new(
        work.context.clone(),
        work.repository.clone(),
        work.index.clone(),
        identity,
        settings(app, &work.repository),
    )
}

/// How this process restores: within its memory, never into the repository itself.
pub fn settings(app: &App, repository: &Repository) -> restorer::Settings {
    let forbidden = open::directory(repository.store.location()).into_iter().collect();
    restorer::Settings {
        memory: (app.settings.memory.value / 4).clamp(16 << 20, 1 << 30),
        threads: app.settings.workers.value.max(1),
        forbidden,
        ..restorer::Settings::default()
    }
}

fn print(app: &App, root: &Root, args: &RestoreArgs, report: &Report, seconds: f64) -> anyhow::Result<()> {
    let done = Done {
        snapshot: root.slot.session.to_string(),
        volume: root.volume.clone(),
        target: args.target.clone(),
        size: report.size,
        bytes_written: report.written,
        bytes_zeroed: report.zeroed,
        bytes_fetched: report.fetched,
        chunks_rescued: report.rescued,
        seconds,
    };
    app.print(&done, || {
        let mut text = format!(
            "{} @ {} restored to {}\n  {}: written {}, zero {}, fetched {}  ({:.1} s)",
            done.volume,
            done.snapshot,
            done.target,
            text::size(done.size),
            text::size(done.bytes_written),
            text::size(done.bytes_zeroed),
            text::size(done.bytes_fetched),
            done.seconds,
        );
        if done.chunks_rescued > 0 {
            text.push_str(&format!(
                "\n  {} chunks had a damaged or missing copy and were read from another: run `lvkeep check`",
                done.chunks_rescued
            ));
        }
        text
    })
}

async fn by_agent(app: &App, args: &RestoreArgs, host: &str) -> anyhow::Result<()> {
    let started = app.environment.elapsed();
    let repository = app.repository().await?;
    let root = select::snapshot(&repository, &args.snapshot).await?;
    let context = app.context(bus::connect(app, "restore").await?);
    let job = app.environment.job_id();
    let order = RestoreJob { job, slot: root.slot, target: args.target.clone(), force: args.force };
    let about = About { session: None, volume: root.volume.clone() };
    context.bus.publish(&Queue::restores(host), Message::new(&about, &order)).await.map_err(Failure::from)?;
    match backup::outcome_of(&context, job, &root.volume).await? {
        JobOutcome::Restored { written, zeroed, fetched } => {
            let report = Report { size: root.size, written, zeroed, fetched, ..Report::default() };
            print(app, &root, args, &report, app.environment.elapsed().saturating_sub(started).as_secs_f64())
        }
        JobOutcome::Failed { kind, why } => Err(Failure::new(kind, why).into()),
        JobOutcome::Sealed { .. } => bail!("the answer to a restore was that of a backup"),
    }
}
