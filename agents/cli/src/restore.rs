//! `restore`: brings a snapshot back to a file, device or logical volume, by this process or by another host's agent.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use agent::{Context as AgentContext, Failure, Queue, Repository, Targets, Topic};
use anyhow::{Context, bail};
use clap::CommandFactory;
use clap::error::ErrorKind;
use restorer::{Report, Restorer, Target};
use schema::keys::Identity;
use schema::messages::{About, JobOutcome, Message, Preparation, Progress, RestoreJob};
use schema::root::Root;
use serde::Serialize;
use volume_lvm::Tools;
use volume_lvm::target::LvmTargets;

use crate::app::App;
use crate::args::{Cli, RestoreArgs, RestoreOptions};
use crate::embedded::Embedded;
use crate::progress::Display;
use crate::{backup, bulk, bus, cat, open, plan, select, text, undo, verify};

/// Holes that are printed for people; `--json` has all that were named.
const SHOWN: usize = 10;

/// One volume that is restored, and how.
#[derive(Clone)]
pub struct Order {
    /// The snapshot.
    pub root: Root,
    /// Where to.
    pub target: String,
    /// How.
    pub options: RestoreOptions,
    /// What is done to the target first.
    pub preparation: Preparation,
}

impl Order {
    /// The target as the order says it.
    pub fn to(&self) -> Target {
        let target = Target::new(PathBuf::from(&self.target), self.options.force).full(self.options.full);
        target.prepared(self.preparation.clone())
    }
}

/// What a restore did, as it is printed.
#[derive(Debug, Serialize)]
pub struct Done {
    snapshot: String,
    volume: String,
    target: String,
    size: u64,
    bytes_written: u64,
    bytes_kept: u64,
    bytes_copied: u64,
    bytes_compared: u64,
    bytes_zeroed: u64,
    bytes_fetched: u64,
    chunks_rescued: u64,
    bytes_lost: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    holes: Vec<Hole>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
    /// What puts back what stood there.
    #[serde(skip_serializing_if = "Option::is_none")]
    undo: Option<String>,
    seconds: f64,
}

/// What cannot be read any more, as it is printed.
#[derive(Debug, Serialize)]
struct Hole {
    offset: u64,
    len: u64,
    why: String,
}

/// `lvkeep restore`.
pub async fn run(app: &App, args: &RestoreArgs) -> anyhow::Result<()> {
    if let Some(plan) = &args.plan {
        return bulk::run(app, plan).await;
    }
    let clashes = args.options.clashes();
    if !clashes.is_empty() {
        Cli::command().error(ErrorKind::ArgumentConflict, clashes.join("\n")).exit();
    }
    app.stop_on_signals()?;
    match &args.options.to_host {
        Some(host) => by_agents(app, args, host).await,
        None => here(app, args).await,
    }
}

/// What is restored, each with its own target: one snapshot, or those of a group.
async fn chosen(repository: &Repository, args: &RestoreArgs) -> anyhow::Result<Vec<Order>> {
    // Without a plan, both are there.
    let (snapshot, target) =
        (args.snapshot.as_deref().unwrap_or_default(), args.target.as_deref().unwrap_or_default());
    let (options, preparation) = (&args.options, args.options.preparation()?);
    let order = |root: Root, target: String| {
        let (options, preparation) = (options.clone(), preparation.clone());
        Order { root, target, options, preparation }
    };
    if !args.group {
        return Ok(vec![order(select::snapshot(repository, snapshot).await?, target.to_owned())]);
    }
    let roots = select::group(repository, snapshot).await?;
    check_whole(&roots, snapshot, options.force)?;
    let with_target = |root: Root| {
        let name = root.volume.rsplit('/').next().unwrap_or(&root.volume);
        let target = format!("{}/{name}", target.trim_end_matches('/'));
        order(root, target)
    };
    let chosen: Vec<Order> = roots.into_iter().map(with_target).collect();
    check_apart(&chosen)?;
    Ok(chosen)
}

/// A run of a group in which a volume failed is not restored as if it were all of it.
fn check_whole(roots: &[Root], snapshot: &str, force: bool) -> anyhow::Result<()> {
    let missing = select::missing(roots.iter());
    if missing.is_empty() || force {
        return Ok(());
    }
    bail!(Failure::refused(format!(
        "{snapshot} is not whole: that run has no snapshot of {}; force restores the others, NAME@TIME an earlier run",
        missing.join(", ")
    )))
}

/// Two volumes of one name must not overwrite each other.
fn check_apart(orders: &[Order]) -> anyhow::Result<()> {
    let mut targets = BTreeMap::new();
    for order in orders {
        let (volume, target) = (&order.root.volume, &order.target);
        if let Some(other) = targets.insert(plan::same_target(target), volume) {
            bail!(Failure::refused(format!(
                "{other} and {volume} would both be restored to {target}: restore them one by one"
            )));
        }
    }
    Ok(())
}

async fn here(app: &App, args: &RestoreArgs) -> anyhow::Result<()> {
    // Before the index is brought up to date, so that it knows all that these need.
    let chosen = chosen(&app.repository().await?, args).await?;
    let mut work = match args.undo {
        true => Embedded::writing(app, None).await?,
        false => Embedded::reading(app).await?,
    };
    let restored = restore_all(app, args, chosen, &mut work).await;
    work.finish().await;
    restored
}

async fn restore_all(
    app: &App,
    args: &RestoreArgs,
    chosen: Vec<Order>,
    work: &mut Embedded,
) -> anyhow::Result<()> {
    let range = args.range.as_deref().map(cat::parse).transpose()?;
    let restorer = make(app, work, identity(app, work)?);
    let mut all = chosen;
    // Of one snapshot: a group has no further targets.
    if let Some(first) = all.first().cloned() {
        all.extend(args.also.iter().map(|target| Order { target: target.clone(), ..first.clone() }));
    }
    check_apart(&all)?;
    // Before anything is overwritten.
    let mut kept = Vec::new();
    for order in &all {
        kept.push(match args.undo {
            true => undo::keep(app, work, &order.target).await?,
            false => None,
        });
    }
    let (mut donor, mut lost) = (None, None);
    for (order, kept) in all.iter().zip(kept) {
        let mut target = order.to().only(range.clone()).keep_going(args.keep_going);
        if let Some(kept) = &kept {
            target = target.kept_by(kept.job);
        }
        if let Some(donor) = &donor {
            target = target.after(donor);
        }
        let done = one(app, &restorer, order, target, kept.map(|kept| kept.id)).await?;
        lost = lost.or(done.lost());
        if order.options.verify {
            verify::compare(app, work, &order.root, &order.target).await?;
        }
        if !args.also.is_empty() {
            donor.get_or_insert(path(&order.target)?);
        }
    }
    lost.map_or(Ok(()), |lost| Err(lost.into()))
}

/// Restores one volume, shows how far it is, and says what was done.
pub async fn one(
    app: &App,
    restorer: &Restorer,
    order: &Order,
    target: Target,
    undo: Option<String>,
) -> anyhow::Result<Done> {
    let display = Display::new(app);
    let bar = display.bar(&order.root.volume);
    let restored = by_restorer(app, restorer, order, target, |done, total| bar.set(done, total)).await;
    bar.finish();
    let done = Done { undo, ..restored? };
    app.print(&done, || done.text())?;
    Ok(done)
}

/// The path at which what a restore to `target` writes is read.
pub fn path(target: &str) -> Result<PathBuf, Failure> {
    let path = LvmTargets::new(Tools::new()).path(target);
    path.map_err(|why| Failure::refused(format!("cannot read what stands on {target}: {why}")))
}

/// Restores by a restorer of this process. Progress is bytes done and all of them.
pub async fn by_restorer(
    app: &App,
    restorer: &Restorer,
    order: &Order,
    to: Target,
    progress: impl Fn(u64, u64),
) -> anyhow::Result<Done> {
    let started = app.environment.elapsed();
    let restored = restorer.restore(order.root.clone(), to, |p| progress(p.done, p.total)).await;
    let report = restored.with_context(|| format!("restoring {} to {}", order.root.volume, order.target))?;
    Ok(Done::new(order, report, app.environment.elapsed().saturating_sub(started).as_secs_f64()))
}

/// The identity that this process has.
pub fn identity(app: &App, work: &Embedded) -> anyhow::Result<Option<Arc<Identity>>> {
    Ok(open::identity(&app.settings, work.repository.key.repo())?.map(Arc::new))
}

/// A restorer of this process, with all that it has.
pub fn make(app: &App, work: &Embedded, identity: Option<Arc<Identity>>) -> Restorer {
    make_with(work, identity, settings(app, &work.repository))
}

/// A restorer of this process.
pub fn make_with(work: &Embedded, identity: Option<Arc<Identity>>, settings: restorer::Settings) -> Restorer {
    let (context, repository, index) = (work.context.clone(), work.repository.clone(), work.index.clone());
    Restorer::new(context, repository, index, identity, settings).with_targets(targets())
}

/// The logical volumes of this host.
pub fn targets() -> Arc<dyn Targets> {
    Arc::new(LvmTargets::new(Tools::new()))
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

async fn by_agents(app: &App, args: &RestoreArgs, host: &str) -> anyhow::Result<()> {
    let repository = app.repository().await?;
    let context = app.context(bus::connect(app, "restore").await?);
    for order in chosen(&repository, args).await? {
        let display = Display::new(app);
        let bar = display.bar(&order.root.volume);
        let restored = by_agent(app, &context, &order, host, |done, total| bar.set(done, total)).await;
        bar.finish();
        let done = restored?;
        app.print(&done, || done.text())?;
    }
    Ok(())
}

/// Restores by the restorer agents of a host.
pub async fn by_agent(
    app: &App,
    context: &AgentContext,
    order: &Order,
    host: &str,
    progress: impl Fn(u64, u64),
) -> anyhow::Result<Done> {
    let started = app.environment.elapsed();
    let Order { root, target, options, preparation } = order;
    let job = app.environment.job_id();
    let message = RestoreJob {
        job,
        slot: root.slot,
        target: target.clone(),
        force: options.force,
        preparation: preparation.clone(),
        full: options.full,
    };
    let about = About { session: None, volume: root.volume.clone() };
    let mut heard = context.bus.subscribe(&Topic::progress(job)).await.map_err(Failure::from)?;
    context
        .bus
        .publish(&Queue::restores(host), Message::new(&about, &message))
        .await
        .map_err(Failure::from)?;
    let hear = async {
        while let Ok(message) = heard.next().await {
            if let Ok(now) = message.read::<Progress>() {
                progress(now.done, now.total);
            }
        }
        std::future::pending::<()>().await
    };
    let outcome = tokio::select! {
        outcome = backup::outcome_of(context, job, &root.volume) => outcome?,
        () = hear => unreachable!("progress has no end"),
    };
    let seconds = app.environment.elapsed().saturating_sub(started).as_secs_f64();
    match outcome {
        JobOutcome::Restored { written, kept, compared, zeroed, fetched, notes } => {
            let size = root.size;
            let report =
                Report { size, written, kept, compared, zeroed, fetched, notes, ..Report::default() };
            Ok(Done::new(order, report, seconds))
        }
        JobOutcome::Failed { kind, why } => Err(Failure::new(kind, why).into()),
        JobOutcome::Sealed { .. } => bail!("the answer to a restore was that of a backup"),
    }
}

impl Done {
    fn new(order: &Order, report: Report, seconds: f64) -> Self {
        Self {
            snapshot: order.root.slot.session.to_string(),
            volume: order.root.volume.clone(),
            target: order.target.clone(),
            size: report.size,
            bytes_written: report.written,
            bytes_kept: report.kept,
            bytes_copied: report.copied,
            bytes_compared: report.compared,
            bytes_zeroed: report.zeroed,
            bytes_fetched: report.fetched,
            chunks_rescued: report.rescued,
            bytes_lost: report.lost,
            holes: report.holes.into_iter().map(Hole::from).collect(),
            notes: report.notes,
            undo: None,
            seconds,
        }
    }

    /// The same for people.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{} @ {} restored to {}\n  {}: written {}, zero {}, fetched {}  ({:.1} s)",
            self.volume,
            self.snapshot,
            self.target,
            text::size(self.size),
            text::size(self.bytes_written),
            text::size(self.bytes_zeroed),
            text::size(self.bytes_fetched),
            self.seconds,
        );
        if self.bytes_compared > 0 {
            text.push_str(&format!(
                "\n  {} compared, {} stood there already",
                text::size(self.bytes_compared),
                text::size(self.bytes_kept)
            ));
        }
        if self.chunks_rescued > 0 {
            text.push_str(&format!(
                "\n  {} chunks had a damaged or missing copy and were read from another: run `lvkeep check`",
                self.chunks_rescued
            ));
        }
        if self.bytes_copied > 0 {
            text.push_str(&format!("\n  {} taken from another target", text::size(self.bytes_copied)));
        }
        for note in &self.notes {
            text.push_str(&format!("\n  {note}"));
        }
        for hole in self.holes.iter().take(SHOWN) {
            text.push_str(&format!("\n  LOST {}+{}: {}", hole.offset, hole.len, hole.why));
        }
        if self.holes.len() > SHOWN {
            text.push_str("\n  ...");
        }
        text
    }

    /// A failure when something could not be read any more.
    fn lost(&self) -> Option<Failure> {
        if self.bytes_lost == 0 {
            return None;
        }
        let (lost, volume, target) = (text::size(self.bytes_lost), &self.volume, &self.target);
        let why = format!(
            "{lost} of {volume} cannot be read any more and are zero on {target}; everything else was restored"
        );
        Some(Failure::damaged(why))
    }
}

impl From<restorer::Hole> for Hole {
    fn from(hole: restorer::Hole) -> Self {
        Self { offset: hole.range.start, len: hole.range.end - hole.range.start, why: hole.why }
    }
}
