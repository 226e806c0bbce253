//! The restorer: opens the target, protects the snapshot while it is read, and ends both in every outcome.

use std::num::NonZero;
use std::ops::{AddAssign, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent::index::IndexClient;
use agent::maps::MapReader;
use agent::repository::AtSlot;
use agent::sessions::OpenSession;
use agent::{Context, Failure, Place, Repository, Stop, Targets, Wish};
use futures::stream::StreamExt;
use schema::keys::Identity;
use schema::limits::LEAF_SPAN;
use schema::messages::FailureKind;
use schema::root::Root;
use schema::session::{Session, SessionKind};
use schema::{JobId, SessionId};
use tokio::sync::mpsc;

use crate::compare::Compare;
use crate::differences::Differences;
use crate::keys::DataKeys;
use crate::pipeline;
use crate::reading::Reading;
use crate::sink::{Memory, Opened, Sink};
use crate::target::{Circumstances, Target};
use crate::unit::{Source, Turns, Work};

/// Holes that are told.
const HOLES_MAX: usize = 1000;
/// Bytes of one part where a range is handed on in order.
const PART: u64 = 16 << 20;
/// Parts that are read at once.
const PARTS_AT_ONCE: usize = 3;

/// How restores are done.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bytes of fetched frames in flight, 2 MiB to 1 GiB, of all restores at once. Plaintext adds half a MiB per thread,
    /// comparing a target one MiB per thread.
    pub memory: u64,
    /// Concurrent range requests to the store.
    pub fetches: usize,
    /// Threads that decode and write.
    pub threads: usize,
    /// Whether a session object keeps collections from removing the snapshot meanwhile. A read-only store has none.
    pub protect: bool,
    /// Folders that are never written to, by force neither: those of the repository itself.
    pub forbidden: Vec<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(2, NonZero::get);
        Self { memory: 96 << 20, fetches: 8, threads, protect: true, forbidden: Vec::new() }
    }
}

/// How far a restore is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the volume.
    pub total: u64,
    /// Bytes of it that are written, stand there already, are zero, or are lost.
    pub done: u64,
    /// Bytes fetched from the store.
    pub fetched: u64,
}

/// What a restore did. When only verifying, `written` counts what would have been written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Bytes that were asked for; `written`, `kept`, `copied`, `zeroed` and `lost` add up to it.
    pub size: u64,
    /// Bytes written.
    pub written: u64,
    /// Bytes left alone, because they stood there already.
    pub kept: u64,
    /// Bytes written that were taken from another target of the same restore.
    pub copied: u64,
    /// Bytes of the target that were read to see what stands there.
    pub compared: u64,
    /// Bytes that read as zero.
    pub zeroed: u64,
    /// Bytes that cannot be read any more, and are zero on the target: only where that was asked for.
    pub lost: u64,
    /// Where they are, in order; the first thousand.
    pub holes: Vec<Hole>,
    /// Bytes of packs fetched, gaps included; maps are not counted.
    pub fetched: u64,
    /// Requests that fetched them.
    pub requests: u64,
    /// Chunks opened and verified; one that stands at several places near each other counts once.
    pub chunks: u64,
    /// Chunks whose best copy was missing or damaged, read from another: the repository needs repair.
    pub rescued: u64,
    /// Where a target that is only compared differs.
    pub differences: Differences,
    /// What the operator should know of the target.
    pub notes: Vec<String>,
}

/// A part of a volume that cannot be read any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hole {
    /// Bytes of the volume.
    pub range: Range<u64>,
    /// Names the chunk, and every copy and what is wrong with it.
    pub why: String,
}

impl AddAssign for Report {
    fn add_assign(&mut self, other: Self) {
        self.size += other.size;
        self.written += other.written;
        self.kept += other.kept;
        self.copied += other.copied;
        self.compared += other.compared;
        self.zeroed += other.zeroed;
        self.lost += other.lost;
        if !other.holes.is_empty() {
            self.holes.extend(other.holes);
            self.holes.sort_by_key(|hole| hole.range.start);
            self.holes.truncate(HOLES_MAX);
        }
        self.fetched += other.fetched;
        self.requests += other.requests;
        self.chunks += other.chunks;
        self.rescued += other.rescued;
        self.differences += other.differences;
        self.notes.extend(other.notes);
    }
}

/// Under which ids a restore runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ids {
    pub job: JobId,
    pub session: SessionId,
}

/// What a snapshot is read for.
pub(crate) enum Purpose {
    /// To bring it back.
    Restore(Target),
    /// To know that all of it can be read.
    Verify,
    /// To know that the keys open it.
    Sample,
    /// To know what of a target differs from it.
    Compare(PathBuf),
    /// To hand on a range of the volume, in order.
    Read(Range<u64>, mpsc::Sender<Vec<u8>>),
}

/// What is to be done with a snapshot.
struct Task {
    sink: Sink,
    part: Range<u64>,
    compare: Compare,
    donor: Option<Reading>,
    keep_going: bool,
    /// A restore that is stopped leaves what it has, for its job to go on with.
    goes_on: bool,
}

/// Restores snapshots of one repository.
pub struct Restorer {
    pub(crate) context: Context,
    pub(crate) repository: Repository,
    index: IndexClient,
    identity: Option<Arc<Identity>>,
    settings: Settings,
    turns: Turns,
    targets: Option<Arc<dyn Targets>>,
}

impl Restorer {
    /// A restorer. A plain repository needs no identity.
    pub fn new(
        context: Context,
        repository: Repository,
        index: IndexClient,
        identity: Option<Arc<Identity>>,
        settings: Settings,
    ) -> Self {
        let turns = Turns::new(&settings);
        Self { context, repository, index, identity, settings, turns, targets: None }
    }

    /// Also restores to places that `targets` finds: logical volumes. Everything else is a path.
    pub fn with_targets(mut self, targets: Arc<dyn Targets>) -> Self {
        self.targets = Some(targets);
        self
    }

    /// Restores a snapshot, whose root was read from its slot, to a target, and returns when it is durable there.
    ///
    /// Fails by name: what was refused (nothing was changed then), which bytes of the volume have no readable copy, or
    /// what the target's device answered. A file that was made or filled for a restore that failed is removed or
    /// emptied. Dropping the future leaves the session object and a partial target behind; raise the context's stop
    /// flag instead.
    pub async fn restore(
        &self,
        root: Root,
        target: Target,
        progress: impl Fn(Progress),
    ) -> Result<Report, Failure> {
        let fresh = self.fresh_ids();
        let ids = Ids { job: target.keeper().unwrap_or(fresh.job), ..fresh };
        self.run_as(ids, root, Purpose::Restore(target), &progress).await
    }

    /// Reads and verifies all that a snapshot needs, and writes nothing.
    pub async fn verify_readable(&self, root: Root, progress: impl Fn(Progress)) -> Result<Report, Failure> {
        self.run_as(self.fresh_ids(), root, Purpose::Verify, &progress).await
    }

    /// Hands on a range of a snapshot, in order, verified, in parts of up to 16 MiB, a few of which are in memory at a
    /// time. Ends early and well when nobody listens any more. Fails when the range ends behind the snapshot.
    pub async fn read(
        &self,
        root: Root,
        range: Range<u64>,
        out: mpsc::Sender<Vec<u8>>,
        progress: impl Fn(Progress),
    ) -> Result<Report, Failure> {
        if range.start > range.end || range.end > root.size {
            let (start, end) = (range.start, range.end);
            let why = format!("{} has {} bytes, and none from {start} to {end}", root.volume, root.size);
            return Err(Failure::refused(why));
        }
        self.run_as(self.fresh_ids(), root, Purpose::Read(range, out), &progress).await
    }

    /// Compares a file or device with a snapshot, by content, and says what differs; fetches nothing but the map. What
    /// it holds behind the snapshot's end does not count. Reads past the page cache where that is possible, so that what
    /// was just written is read from the device.
    pub async fn compare(
        &self,
        root: Root,
        path: &Path,
        progress: impl Fn(Progress),
    ) -> Result<Differences, Failure> {
        let purpose = Purpose::Compare(path.to_owned());
        Ok(self.run_as(self.fresh_ids(), root, purpose, &progress).await?.differences)
    }

    /// Reads and verifies the beginning of a snapshot, at most 256 MiB of the volume: proof that the keys at hand open
    /// it. Writes nothing.
    pub async fn verify_sample(&self, root: Root) -> Result<Report, Failure> {
        self.run_as(self.fresh_ids(), root, Purpose::Sample, &|_| {}).await
    }

    fn fresh_ids(&self) -> Ids {
        Ids { job: self.context.environment.job_id(), session: self.context.environment.session_id() }
    }

    /// Does it under these ids.
    pub(crate) async fn run_as(
        &self,
        ids: Ids,
        root: Root,
        purpose: Purpose,
        progress: &impl Fn(Progress),
    ) -> Result<Report, Failure> {
        let keys = DataKeys::new(self.repository.clone(), self.identity.clone());
        if !matches!(purpose, Purpose::Compare(_)) {
            keys.check().map_err(|e| e.context(format!("cannot restore {}", root.volume)))?;
        }
        if !self.settings.protect {
            return self.to_target(ids.job, root, keys, None, purpose, progress).await;
        }
        let session = match self.begin(ids, &root).await {
            Ok(session) => Arc::new(session),
            // A full or read-only store must not keep anybody from restoring.
            Err(failure) if failure.kind == FailureKind::Store => {
                tracing::warn!(%failure, "reading without protection: a collection at the same time would end this");
                return self.to_target(ids.job, root, keys, None, purpose, progress).await;
            }
            Err(failure) => return Err(failure),
        };
        let result = match self.check_slot(&root).await {
            Ok(()) => self.to_target(ids.job, root, keys, Some(session.clone()), purpose, progress).await,
            Err(failure) => Err(failure),
        };
        let result = match result {
            Err(failure) => Err(explained(&session, failure).await),
            done => done,
        };
        end(session).await;
        result
    }

    async fn begin(&self, ids: Ids, root: &Root) -> Result<OpenSession, Failure> {
        let session = Session {
            id: ids.session,
            kind: SessionKind::Restore,
            slot: None,
            job: ids.job,
            volume: root.volume.clone(),
            host: self.context.host.to_string(),
            started_ms: self.context.environment.now_ms(),
            checkpoint: None,
        };
        OpenSession::begin(self.repository.clone(), session).await.map_err(|e| {
            e.context(format!("cannot protect the snapshot of {} while it is read", root.volume))
        })
    }

    /// The root was read before the session began: it may have been collected since.
    async fn check_slot(&self, root: &Root) -> Result<(), Failure> {
        match self.repository.at_slot(root.slot).await? {
            AtSlot::Tombstone => {
                Err(Failure::refused(format!("the snapshot {} of {} was collected", root.slot, root.volume)))
            }
            AtSlot::Snapshot(_) | AtSlot::Nothing => Ok(()),
        }
    }

    async fn to_target(
        &self,
        job: JobId,
        root: Root,
        keys: DataKeys,
        session: Option<Arc<OpenSession>>,
        purpose: Purpose,
        progress: &impl Fn(Progress),
    ) -> Result<Report, Failure> {
        let map = Arc::new(MapReader::new(self.repository.clone(), self.index.clone(), root.clone())?);
        let source = Source { map, keys: keys.into(), session };
        let all = 0..root.size;
        let task = match purpose {
            Purpose::Restore(target) => self.open(job, root, target).await?,
            Purpose::Verify => Task::new(Sink::Discard, all),
            Purpose::Sample => {
                let sample = root.size.min(pipeline::WINDOW_LEAVES * LEAF_SPAN);
                Task::new(Sink::Discard, 0..sample)
            }
            Purpose::Read(range, out) => return self.to_channel(source, range, out, progress).await,
            Purpose::Compare(path) => {
                let reading = blocking(move || Reading::open(&path, root.volume, root.size)).await?;
                Task { compare: Compare::ToTell(reading), ..Task::new(Sink::Discard, all) }
            }
        };
        let (place, goes_on) = (task.sink.place(), task.goes_on);
        let work = self.work(source, task);
        let result = pipeline::run(&work, &self.context.stop, progress).await;
        let stop = self.context.stop.clone();
        let result = blocking(move || {
            let finish = || work.sink.zero_behind(&stop).and_then(|()| work.sink.finish());
            let result = result.and_then(|report| finish().map(|()| report));
            if result.is_err() && !(goes_on && stop.is_raised()) {
                work.sink.give_up();
            }
            result
        })
        .await;
        let notes = end_place(place.as_deref(), result.is_ok()).await;
        match result {
            Ok(report) => Ok(Report { notes, ..report }),
            Err(failure) => Err(with_notes(failure, &notes)),
        }
    }

    /// Hands on a range of the volume, part by part; while one is handed on, the next are read.
    async fn to_channel(
        &self,
        source: Source,
        range: Range<u64>,
        out: mpsc::Sender<Vec<u8>>,
        progress: &impl Fn(Progress),
    ) -> Result<Report, Failure> {
        let read = |start: u64| {
            let part = start..range.end.min(start + PART);
            let sink = Sink::Memory(Memory::new(part.clone()));
            let work = self.work(source.clone(), Task::new(sink, part));
            async move {
                let report = pipeline::run(&work, &self.context.stop, &|_| {}).await?;
                Ok::<_, Failure>((report, work.sink.taken()))
            }
        };
        let enough = Stop::default();
        let starts = range.clone().step_by(PART as usize).take_while(|_| !enough.is_raised());
        let mut parts = futures::stream::iter(starts).map(read).buffered(PARTS_AT_ONCE);
        let (total, mut done) = (range.end - range.start, 0);
        let mut sum = Report { size: total, ..Report::default() };
        let mut failed = None;
        // What was begun is waited for in every outcome, so that nobody reads the snapshot when this is over.
        while let Some(read) = parts.next().await {
            if enough.is_raised() {
                continue;
            }
            let sent = match read {
                Ok((report, bytes)) => {
                    done += bytes.len() as u64;
                    sum += Report { size: 0, ..report };
                    tokio::select! {
                        biased;
                        sent = out.send(bytes) => Ok(sent.is_ok()),
                        () = self.context.stop.raised() => Err(pipeline::stopped(&source.map.root().volume)),
                    }
                }
                Err(failure) => Err(failure),
            };
            match sent {
                Ok(true) => progress(Progress { total, done, fetched: sum.fetched }),
                // Whoever reads has seen enough.
                Ok(false) => enough.raise(),
                Err(failure) => {
                    enough.raise();
                    failed = Some(failure);
                }
            }
        }
        match failed {
            Some(failure) => Err(failure),
            None => Ok(sum),
        }
    }

    fn work(&self, source: Source, task: Task) -> Arc<Work> {
        Arc::new(Work {
            volume: source.map.root().volume.clone(),
            repository: self.repository.clone(),
            source,
            part: task.part,
            sink: task.sink,
            compare: task.compare,
            donor: task.donor,
            keep_going: task.keep_going,
            turns: self.turns.clone(),
            halt: Stop::default(),
            counters: self.context.counters.clone(),
        })
    }

    /// Opens a target, and says what is to be done to it.
    async fn open(&self, job: JobId, root: Root, target: Target) -> Result<Task, Failure> {
        let part = target.part(&root)?;
        let place = self.find(job, &root, part.clone(), &target).await?;
        let (host, forbidden) = (self.context.host.clone(), self.settings.forbidden.clone());
        let Some(place) = place else {
            return blocking(move || {
                let circumstances = Circumstances { root: &root, host: &host, forbidden: &forbidden };
                begun(target.open(&circumstances)?, part, &target, &root)
            })
            .await;
        };
        let claim = target.claim().clone();
        let opening = async {
            let device = place.make().await?;
            let (target, root) = (target.clone(), root.clone());
            let opened = blocking(move || {
                let circumstances = Circumstances { root: &root, host: &host, forbidden: &forbidden };
                target.open_place(&device, &circumstances)
            })
            .await?;
            place.ready(&opened.file).await?;
            Ok(opened)
        };
        let opened = match opening.await {
            Ok(opened) => {
                let opened = Opened { place: Some(place.clone()), ..opened };
                blocking(move || begun(opened, part, &target, &root)).await
            }
            Err(failure) => Err(failure),
        };
        match opened {
            Ok(opened) => Ok(opened),
            // Another restore has it, which ends it.
            Err(failure) if claim.is_busy() => Err(failure),
            Err(failure) => {
                let notes = end_place(Some(&*place), false).await;
                Err(with_notes(failure, &notes))
            }
        }
    }

    async fn find(
        &self,
        job: JobId,
        root: &Root,
        part: Range<u64>,
        target: &Target,
    ) -> Result<Option<Arc<dyn Place>>, Failure> {
        let (Some(targets), Some(name)) = (&self.targets, target.path().to_str()) else { return Ok(None) };
        let wish = Wish {
            target: name,
            root,
            part,
            repository: self.repository.key.repo(),
            job,
            preparation: target.preparation(),
            force: target.is_forced(),
        };
        let Some(place) = targets.find(&wish).await? else { return Ok(None) };
        target.check_place(place.name())?;
        Ok(Some(place))
    }
}

impl Task {
    /// A part of a volume, all of which is to be written.
    fn new(sink: Sink, part: Range<u64>) -> Self {
        Self { sink, part, compare: Compare::Nothing, donor: None, keep_going: false, goes_on: false }
    }
}

/// What is to be done to an opened target. It is compared unless it holds nothing, or nothing of it may stay. Blocks.
fn begun(mut opened: Opened, part: Range<u64>, target: &Target, root: &Root) -> Result<Task, Failure> {
    let donor = match target.donor() {
        Some(path) => {
            // The donor may be gone by now, and it is only a shorter way.
            let donor = Reading::open(path, root.volume.clone(), root.size);
            donor.inspect_err(|why| tracing::warn!(%why, "everything is fetched")).ok()
        }
        None => None,
    };
    if let Some(donor) = &donor {
        opened.share(donor, &part, root.size);
    }
    let may_stay = opened.place.as_ref().is_none_or(|place| place.keeps_equal());
    if part != (0..root.size) && !may_stay {
        return Err(Failure::refused(format!(
            "cannot restore only a range to {}: its thin pool does not zero new blocks, so that somebody else's data \
             may come up beside the range; restore all of it",
            target.path().display()
        )));
    }
    let compare = match !target.is_full() && !opened.is_zero() && may_stay {
        true => Reading::of(&opened).map(Compare::ToSkip),
        false => Ok(Compare::Nothing),
    };
    let sink = Sink::Target(opened);
    match compare {
        Ok(compare) => {
            let (keep_going, goes_on) = (target.keeps_going(), target.claim().is_of_job());
            Ok(Task { sink, part, compare, donor, keep_going, goes_on })
        }
        Err(failure) => {
            sink.give_up();
            Err(failure)
        }
    }
}

/// Ends the place, in every outcome.
async fn end_place(place: Option<&dyn Place>, restored: bool) -> Vec<String> {
    match place {
        Some(place) => place.end(restored).await,
        None => Vec::new(),
    }
}

fn with_notes(failure: Failure, notes: &[String]) -> Failure {
    let why = std::iter::once(failure.why.as_str()).chain(notes.iter().map(String::as_str));
    Failure { why: why.collect::<Vec<_>>().join("\n"), ..failure }
}

async fn blocking<T: Send + 'static>(
    step: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(step).await {
        Ok(result) => result,
        Err(why) => Err(Failure::new(FailureKind::Other, format!("a restore's thread ended: {why}"))),
    }
}

/// Says so when something was missing because nothing protected the snapshot any more.
async fn explained(session: &OpenSession, failure: Failure) -> Failure {
    let missing = matches!(failure.kind, FailureKind::Damaged | FailureKind::Store);
    match missing && matches!(session.exists().await, Ok(false)) {
        true => Failure::new(
            FailureKind::Revoked,
            format!(
                "the snapshot of {} was collected while it was read, because this restore's session {} was declared \
                 dead ({})",
                session.session().volume,
                session.session().id,
                failure.why
            ),
        ),
        false => failure,
    }
}

/// Deletes the session object. Should that fail, a collection waits until the session is declared dead.
async fn end(session: Arc<OpenSession>) {
    let id = session.session().id;
    let ended = match Arc::into_inner(session) {
        Some(session) => session.end().await,
        None => Err(Failure::new(FailureKind::Other, "a task still holds it")),
    };
    if let Err(failure) = ended {
        tracing::warn!(session = %id, %failure, "cannot delete the session object of a restore");
    }
}
