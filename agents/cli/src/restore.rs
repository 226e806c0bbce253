//! `restore`: brings a snapshot back to a file, device or logical volume, by this process or by another host's agent.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use agent::{Failure, Repository, Roots, Targets};
use anyhow::{Context, bail};
use clap::CommandFactory;
use clap::error::ErrorKind;
use indexer::Wish;
use restorer::{Report, Restorer, Target};
use schema::keys::Identity;
use schema::messages::{FileIdentity, Preparation, Verified};
use schema::root::Root;
use serde::Serialize;
use volume_lvm::Tools;
use volume_lvm::target::LvmTargets;

use crate::apart::Apart;
use crate::app::App;
use crate::args::{Cli, RestoreArgs, RestoreOptions};
use crate::embedded::{self, Embedded};
use crate::exit::Differs;
use crate::far::{Asked, Far};
use crate::progress::Display;
use crate::verify::Compared;
use crate::{bulk, bus, cat, open, select, snapback, text, undo};

/// One volume that is restored, and how.
#[derive(Clone)]
pub struct Order {
    /// The snapshot.
    pub root: Root,
    /// Where to.
    pub target: String,
    /// Only these bytes of it.
    pub range: Option<Range<u64>>,
    /// How.
    pub options: RestoreOptions,
    /// What is done to the target first.
    pub preparation: Preparation,
}

impl Order {
    /// The target as the order says it.
    pub fn to(&self) -> Target {
        let RestoreOptions { force, force_in_use, full, no_tracking, keep_going, .. } = self.options;
        let target = Target::new(PathBuf::from(&self.target), force).full(full).untracked(no_tracking);
        let target = target.prepared(self.preparation.clone()).only(self.range.clone());
        target.keep_going(keep_going).in_use(force_in_use)
    }

    /// The bytes that are restored.
    pub fn part(&self) -> Range<u64> {
        self.range.clone().unwrap_or(0..self.root.size)
    }

    /// What of the repository it needs.
    pub fn wish(&self) -> Wish {
        Wish { part: self.part(), ..Wish::all(self.root.clone()) }
    }

    /// The command that compares what it has restored.
    pub fn verifying(&self) -> String {
        let range = self.range.as_ref().map(|range| format!(" --range {}", text::range(range)));
        format!("lvkeep verify {} {}{}", self.root.slot.session, self.target, range.unwrap_or_default())
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
    bytes_tracked: u64,
    bytes_audited: u64,
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
    /// Which file or device the target is.
    #[serde(skip)]
    stands_on: Option<Box<FileIdentity>>,
    /// Why nobody knows that the target holds it, where that was asked for.
    #[serde(skip)]
    unverified: Option<anyhow::Error>,
    /// What reading it again has found, where this process did so.
    #[serde(skip)]
    compared: Option<Compared>,
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
    let clashes = [args.options.clashes(), snapback::clashes(args)].concat();
    if !clashes.is_empty() {
        Cli::command().error(ErrorKind::ArgumentConflict, clashes.join("\n")).exit();
    }
    if let Some(plan) = &args.plan {
        return bulk::run(app, plan).await;
    }
    app.stop_on_signals()?;
    match &args.options.to_host {
        Some(host) => by_agents(app, args, host).await,
        None => here(app, args).await,
    }
}

/// What is restored, each with its own target: one snapshot to one or several, or those of a group.
async fn chosen(app: &App, repository: &Repository, args: &RestoreArgs) -> anyhow::Result<Vec<Order>> {
    // Without a plan, both are there.
    let (snapshot, target) =
        (args.snapshot.as_deref().unwrap_or_default(), args.target.as_deref().unwrap_or_default());
    let (options, preparation) = (&args.options, args.options.preparation()?);
    let range = args.range.as_deref().map(cat::parse).transpose()?;
    let order = |root: Root, target: String| {
        let (range, preparation) = (range.clone(), preparation.clone());
        let force_in_use = args.force_in_use.contains(&target);
        let options = RestoreOptions { force_in_use, ..options.clone() };
        Order { root, target, range, options, preparation }
    };
    if !args.group {
        let root = select::snapshot(repository, snapshot).await?;
        let targets = std::iter::once(target).chain(args.also.iter().map(String::as_str));
        let chosen: Vec<Order> = targets.map(|target| order(root.clone(), target.to_owned())).collect();
        check_named(&args.force_in_use, chosen.iter().map(|order| order.target.as_str()))?;
        check_apart(app, &chosen)?;
        return Ok(chosen);
    }
    let run = select::group(repository, snapshot).await?;
    check_whole(&run, snapshot, args.incomplete)?;
    let with_target = |root: Root| {
        let name = root.volume.rsplit('/').next().unwrap_or(&root.volume);
        let target = format!("{}/{name}", target.trim_end_matches('/'));
        order(root, target)
    };
    let chosen: Vec<Order> = run.warned().into_iter().map(with_target).collect();
    check_named(&args.force_in_use, chosen.iter().map(|order| order.target.as_str()))?;
    check_apart(app, &chosen)?;
    Ok(chosen)
}

/// A run of a group in which a volume failed is not restored as if it were all of it.
fn check_whole(run: &Roots, snapshot: &str, may_lack: bool) -> anyhow::Result<()> {
    let missing = select::missing(run.readable.iter());
    if missing.is_empty() || may_lack {
        return Ok(());
    }
    let damaged: String = run.damaged.iter().map(|damaged| format!("; it may have one: {damaged}")).collect();
    bail!(Failure::refused(format!(
        "{snapshot} is not whole: that run has no snapshot of {}; --incomplete restores the others, NAME@TIME an earlier run{damaged}",
        missing.join(", ")
    )))
}

/// What is taken from whoever uses it is named as the restore names it: a slip of the hand takes nothing.
pub fn check_named<'a>(
    named: &[String],
    targets: impl Iterator<Item = &'a str> + Clone,
) -> Result<(), Failure> {
    match named.iter().find(|named| targets.clone().all(|target| target != *named)) {
        None => Ok(()),
        Some(named) => Err(Failure::refused(format!(
            "--force-in-use {named}: this restores to nothing of that name; nothing was begun. It restores to {}",
            targets.collect::<Vec<_>>().join(", ")
        ))),
    }
}

/// Two volumes of one name must not overwrite each other.
fn check_apart(app: &App, orders: &[Order]) -> anyhow::Result<()> {
    let here = &app.settings.host.value;
    let mut targets = Apart::new(here);
    for order in orders {
        let (volume, target) = (&order.root.volume, &order.target);
        let host = order.options.to_host.as_deref().unwrap_or(here);
        if let Some((other, at)) = targets.add(host, target, (volume, target)) {
            bail!(Failure::refused(match other == volume && at == target {
                true => format!("{target} is named twice: once is enough"),
                false if other == volume => format!("{at} and {target} are the same: name one of them"),
                false => format!(
                    "{other} would be restored to {at}, and {volume} to {target}, which are the same: restore them one by \
                     one"
                ),
            }));
        }
    }
    Ok(())
}

async fn here(app: &App, args: &RestoreArgs) -> anyhow::Result<()> {
    let repository = app.repository().await?;
    // Before the index is brought up to date, so that it knows all that these need.
    let chosen = chosen(app, &repository, args).await?;
    let wishes: Vec<Wish> = chosen.iter().map(Order::wish).collect();
    let mut work = match args.options.undo {
        true => Embedded::reading_and_writing(app, &wishes).await?,
        false => Embedded::reading(app, repository, &wishes).await?,
    };
    let restored = restore_all(app, args, chosen, &mut work).await;
    work.finish().await;
    restored
}

async fn restore_all(
    app: &App,
    args: &RestoreArgs,
    all: Vec<Order>,
    work: &mut Embedded,
) -> anyhow::Result<()> {
    let restorer = make(app, work, identity(app, work)?);
    // Before anything is overwritten.
    let repository = work.repository.clone();
    let targets = tokio::select! {
        biased;
        kept = keep_all(app, &all, &repository, &restorer) => kept?,
        error = work.role_failed() => return Err(error),
    };
    in_turn(app, &all, !args.also.is_empty(), async |number, order: &Order, donor: Option<&str>| {
        let (mut target, kept) = match targets.get(number) {
            Some((target, kept)) => (target.clone(), kept.clone()),
            None => (order.to(), None),
        };
        if let Some(file) = &args.snapback {
            target = target.snapback(file);
        }
        if let Some(donor) = donor {
            target = target.after(path(donor)?);
        }
        one(app, &restorer, order, target.read_again(order.options.verify), kept).await
    })
    .await
}

/// The targets of all, and where what stands on each is kept.
async fn keep_all(
    app: &App,
    all: &[Order],
    repository: &Repository,
    restorer: &Restorer,
) -> anyhow::Result<Vec<(Target, Option<String>)>> {
    let display = Display::new(app);
    let mut targets = Vec::new();
    for order in all {
        let bar = display.bar(&format!("{}{}", undo::NAMES, order.target));
        let kept =
            undo::keep(app, repository, restorer, order, order.to(), |done, total| bar.set(done, total))
                .await;
        bar.finish();
        targets.push(kept?);
    }
    Ok(targets)
}

/// Restores one after the other. Those that share a snapshot take from the first of them that is there. One that fails
/// is said and keeps no other from being restored; the first failure decides the exit code.
async fn in_turn(
    app: &App,
    all: &[Order],
    is_shared: bool,
    mut one: impl AsyncFnMut(usize, &Order, Option<&str>) -> anyhow::Result<Done>,
) -> anyhow::Result<()> {
    let (mut donor, mut failed, mut restored) = (None, Vec::new(), Vec::<(&Order, Done)>::new());
    for (number, order) in all.iter().enumerate() {
        let ended = match app.stop.is_raised() && number > 0 {
            false => one(number, order, donor).await,
            true => Err(embedded::interrupted().context("it was not begun").into()),
        };
        let ended = match ended {
            Ok(done) => {
                donor = donor.or(is_shared.then_some(order.target.as_str()));
                let lost: anyhow::Result<()> = done.lost().map_or(Ok(()), |lost| Err(lost.into()));
                let twice = restored.iter().find_map(|other| done.overwrites(order, (other.0, &other.1)));
                restored.push((order, done));
                twice.map_or(lost, |twice| Err(twice.into()))
            }
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            if all.len() > 1 {
                app.complain(format!("lvkeep: {}: {}", order.target, text::error(&error)));
            }
            failed.push(error);
        }
    }
    let failures = failed.len();
    let Some(first) = failed.into_iter().next() else { return Ok(()) };
    match all.len() {
        1 => Err(first),
        // Each was said.
        total => Err(text::failed(format!("{failures} of {total} restores failed"), first, true)),
    }
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
    let done = restored?.undone_by(undo);
    app.print(&done, || done.text())?;
    if let Some(compared) = &done.compared {
        app.print(compared, || compared.text())?;
    }
    done.verified()
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
    let seconds = app.environment.elapsed().saturating_sub(started).as_secs_f64();
    let Some(verified) = report.verified.clone() else { return Ok(Done::new(order, report, seconds)) };
    let compared = match verified {
        Verified::Equal | Verified::Differs { .. } => {
            Some(Compared::new(&order.root, &order.part(), &order.target, &report.differences))
        }
        Verified::Unread { .. } => None,
    };
    let why = why_unverified(order, &order.target, verified);
    Ok(Done { compared, ..Done::new(order, report, seconds).unverified(why) })
}

/// Why nobody knows that a target, named so, holds what was restored to it and read again.
pub fn why_unverified(order: &Order, target: &str, verified: Verified) -> Option<anyhow::Error> {
    match verified {
        Verified::Equal => None,
        Verified::Differs { start, end, .. } => {
            let (target, volume) = (target.to_owned(), order.root.volume.clone());
            Some(Differs { target, volume, first: start..end }.into())
        }
        Verified::Unread { kind, why } => Some(Failure::new(kind, why).into()),
    }
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
    let restorer = Restorer::new(context, repository, index, identity, settings).with_targets(targets());
    match &work.protection {
        Some(protection) => restorer.protected(protection.clone()),
        None => restorer,
    }
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
        // It was checked with the rest of the configuration.
        audit: app.settings.lvm.value.audit().unwrap_or_default(),
        ..restorer::Settings::default()
    }
}

async fn by_agents(app: &App, args: &RestoreArgs, host: &str) -> anyhow::Result<()> {
    let repository = app.repository().await?;
    let all = chosen(app, &repository, args).await?;
    let context = app.context(bus::connect(app, "restore").await?);
    let command = app.environment.job_id();
    let far = Far { app, context: &context, repository: &repository, host, command };
    let restoring =
        in_turn(app, &all, !args.also.is_empty(), async |_, order: &Order, donor: Option<&str>| {
            far_one(&far, order, Asked { donor, ..Asked::default() }).await
        });
    let warned = async {
        if args.options.undo {
            far.warn_of_no_reader().await;
        }
    };
    tokio::join!(restoring, warned).0
}

/// Restores one volume by another host's agents, shows how far it is, and says what was done.
pub async fn far_one(far: &Far<'_>, order: &Order, asked: Asked<'_>) -> anyhow::Result<Done> {
    let display = Display::new(far.app);
    let bar = display.bar(&order.root.volume);
    let restored = far.restore(order, asked, |done, total| bar.set(done, total)).await;
    bar.finish();
    let done = restored?;
    far.app.print(&done, || done.text())?;
    done.verified()
}

impl Done {
    /// What a restore did, by what it reports.
    pub fn new(order: &Order, report: Report, seconds: f64) -> Self {
        Self {
            snapshot: order.root.slot.session.to_string(),
            volume: order.root.volume.clone(),
            target: order.target.clone(),
            size: report.size,
            bytes_written: report.written,
            bytes_kept: report.kept,
            bytes_copied: report.copied,
            bytes_compared: report.compared,
            bytes_tracked: report.tracked,
            bytes_audited: report.audited,
            bytes_zeroed: report.zeroed,
            bytes_fetched: report.fetched,
            chunks_rescued: report.rescued,
            bytes_lost: report.lost,
            holes: report.holes.into_iter().map(Hole::from).collect(),
            notes: report.notes,
            undo: None,
            seconds,
            stands_on: report.stands_on,
            unverified: None,
            compared: None,
        }
    }

    /// It can be undone by this.
    pub fn undone_by(mut self, undo: Option<String>) -> Self {
        self.undo = undo;
        self
    }

    /// Reading it again came to this.
    pub fn unverified(mut self, why: Option<anyhow::Error>) -> Self {
        self.unverified = why;
        self
    }

    /// Fails where it was read again in vain, once what was done has been said.
    pub fn verified(mut self) -> anyhow::Result<Self> {
        self.unverified.take().map_or(Ok(self), Err)
    }

    /// Why this is no restore of its own: another volume was restored to the same file or device by another name, which
    /// agents that do not know of each other cannot see.
    pub fn overwrites(&self, order: &Order, (other, there): (&Order, &Self)) -> Option<Failure> {
        let is_one = self.stands_on.as_ref()?.is_same_target(there.stands_on.as_ref()?);
        (is_one && order.root.slot != other.root.slot).then(|| {
            Failure::refused(format!(
                "{} and {} are one file or device, which holds only what was restored to it last: give {} and {} a target \
                 each, and restore both again",
                order.target, other.target, order.root.volume, other.root.volume
            ))
        })
    }

    /// What the operator should know of the target.
    pub fn notes(&self) -> &[String] {
        &self.notes
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
        if self.bytes_tracked > 0 {
            text.push_str(&format!(
                "\n  {} not read: known not to have changed (audited: {}); --no-tracking reads them where a disk may have lost \
                 some",
                text::size(self.bytes_tracked),
                text::size(self.bytes_audited)
            ));
        }
        if self.bytes_compared > 0 {
            text.push_str(&format!(
                "\n  {} compared, {} stood there already",
                text::size(self.bytes_compared),
                text::size(self.bytes_kept)
            ));
        }
        if self.chunks_rescued > 0 {
            text.push_str(&format!(
                "\n  {} had a damaged or missing copy and {} read from another: run `lvkeep check`",
                text::count(self.chunks_rescued, "chunk"),
                text::of(self.chunks_rescued, "was", "were")
            ));
        }
        if self.bytes_copied > 0 {
            text.push_str(&format!(
                "\n  {} taken from where they stood on a target",
                text::size(self.bytes_copied)
            ));
        }
        for note in &self.notes {
            text.push_str(&format!("\n  {note}"));
        }
        if let Some(undo) = &self.undo {
            text.push_str(&format!("\n  what stood there is kept as {undo}"));
        }
        for hole in &self.holes {
            text.push_str(&format!("\n  LOST {}+{}: {}", hole.offset, hole.len, hole.why));
        }
        let named: u64 = self.holes.iter().map(|hole| hole.len).sum();
        if self.bytes_lost > named {
            let more = text::size(self.bytes_lost - named);
            text.push_str(&format!(
                "\n  LOST elsewhere: {more} more, which the log of who restored it names"
            ));
        }
        text
    }

    /// A failure when something could not be read any more.
    pub fn lost(&self) -> Option<Failure> {
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
        Self { offset: hole.range.start, len: hole.range.end - hole.range.start, why: hole.told() }
    }
}
