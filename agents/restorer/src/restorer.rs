//! The restorer: opens the target, protects the snapshot while it is read, and ends both in every outcome.

use std::num::NonZero;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use agent::index::IndexClient;
use agent::keys::DataKeys;
use agent::maps::MapReader;
use agent::sessions::OpenSession;
use agent::store::Limit;
use agent::{Audit, Context, Ending, Failure, Protection, ReadBy, Repository, Stop, Targets};
use schema::keys::Identity;
use schema::limits::LEAF_SPAN;
use schema::names::Slot;
use schema::root::Root;
use schema::session::SessionKind;
use schema::{JobId, SessionId};
use tokio::sync::mpsc;

use crate::apart::Apart;
use crate::claim::Claim;
use crate::compare::Compare;
use crate::differences::Differences;
use crate::leaving::{Left, end_place, leave, let_stay, with_notes};
use crate::pipeline;
use crate::reading::Reading;
use crate::repeats::Repeats;
pub(crate) use crate::report::{Progress, Report};
use crate::sharing::Sharing;
use crate::sink::Sink;
use crate::snapback::Snapback;
use crate::spans::WINDOW_LEAVES;
use crate::target::Target;
use crate::task::Task;
use crate::unit::{Source, Turns, Work};

/// Bytes of a volume that are read as a sample at most.
pub const SAMPLE: u64 = WINDOW_LEAVES * LEAF_SPAN;

/// How restores are done.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bytes of fetched frames in flight, 2 MiB to 1 GiB, of all restores at once. Plaintext adds half a MiB per thread,
    /// comparing a target two MiB per thread, and where chunks stand on targets a sixteenth for all restores.
    pub memory: u64,
    /// Reads of content and maps in the store at once, of all restores.
    pub fetches: usize,
    /// Threads that decode and write.
    pub threads: usize,
    /// Whether a session object keeps collections from removing the snapshot meanwhile. A read-only store has none.
    pub protect: bool,
    /// Folders that are never written to, by force neither: those of the repository itself.
    pub forbidden: Vec<PathBuf>,
    /// How much is read all the same of what targets say has not changed.
    pub audit: Audit,
}

impl Default for Settings {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(2, NonZero::get);
        let (forbidden, audit) = (Vec::new(), Audit::default());
        Self { memory: 96 << 20, fetches: 8, threads, protect: true, forbidden, audit }
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
    /// To know what of a target differs from it, in a range.
    Compare(PathBuf, Range<u64>),
    /// To hand on a range of the volume, in order.
    Read(Range<u64>, mpsc::Sender<Vec<u8>>),
}

/// Restores snapshots of one repository.
pub struct Restorer {
    pub(crate) context: Context,
    pub(crate) repository: Repository,
    /// The same, for what takes many requests.
    reads: Repository,
    pub(crate) index: IndexClient,
    pub(crate) identity: Option<Arc<Identity>>,
    pub(crate) settings: Settings,
    pub(crate) turns: Turns,
    protection: Option<Protection>,
    pub(crate) targets: Option<Arc<dyn Targets>>,
    pub(crate) sharing: Option<Sharing>,
    pub(crate) apart: Arc<Apart>,
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
        let reads = repository.limited(Limit::new(settings.fetches).into());
        let (protection, targets, sharing, apart) = (None, None, None, Arc::default());
        Self {
            context,
            repository,
            reads,
            index,
            identity,
            settings,
            turns,
            protection,
            targets,
            sharing,
            apart,
        }
    }

    /// All that it reads is protected by this, which began before anybody looked where chunks are, and by no session of
    /// its own. Which snapshots are there to be read was asked after that ([`Protection::check`]).
    pub fn protected(mut self, protection: Protection) -> Self {
        self.protection = Some(protection);
        self
    }

    /// Also restores to places that `targets` finds: logical volumes. Everything else is a path.
    pub fn with_targets(mut self, targets: Arc<dyn Targets>) -> Self {
        self.targets = Some(targets);
        self
    }

    /// Restores a snapshot, whose root was read from its slot, to a target, and returns when it is durable there.
    ///
    /// Fails by name: what was refused (nothing was changed then), which bytes of the volume have no readable copy, or
    /// what the target's device answered. What was written stays, for a restore that is begun again, unless the target
    /// itself failed; a file of which nothing was written is removed or emptied. Dropping the future leaves its session
    /// object and a partial target behind; raise the context's stop flag instead.
    pub async fn restore(
        &self,
        root: Root,
        target: Target,
        progress: impl Fn(Progress),
    ) -> Result<Report, Failure> {
        self.run_as(self.fresh_ids(), root, Purpose::Restore(target), &progress).await
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
        check_range(&root, &range)?;
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
        let all = 0..root.size;
        self.compare_range(root, path, all, progress).await
    }

    /// The same of a range. Of chunks that are in it in part, the content is fetched.
    pub async fn compare_range(
        &self,
        root: Root,
        path: &Path,
        range: Range<u64>,
        progress: impl Fn(Progress),
    ) -> Result<Differences, Failure> {
        check_range(&root, &range)?;
        let purpose = Purpose::Compare(path.to_owned(), range);
        Ok(self.run_as(self.fresh_ids(), root, purpose, &progress).await?.differences)
    }

    /// Reads and verifies the beginning of a snapshot, at most [`SAMPLE`] bytes of the volume: proof that the keys at hand open
    /// it. Writes nothing.
    pub async fn verify_sample(&self, root: Root) -> Result<Report, Failure> {
        self.run_as(self.fresh_ids(), root, Purpose::Sample, &|_| {}).await
    }

    /// Where content and maps are read, by all restores together no more often at once than the settings allow, and by
    /// this one no more often than its own limit does.
    pub(crate) fn reads(&self, limit: Option<&Arc<Limit>>) -> Repository {
        limit.map_or_else(|| self.reads.clone(), |limit| self.reads.limited(limit.clone()))
    }

    pub(crate) fn keys(&self, reads: &Repository) -> DataKeys {
        DataKeys::new(reads.clone(), self.identity.clone())
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
        let limit = match &purpose {
            Purpose::Restore(target) => target.limit().cloned(),
            _ => None,
        };
        let reads = self.reads(limit.as_ref());
        if !matches!(purpose, Purpose::Compare(..)) {
            self.keys(&reads).check().map_err(|e| e.context(format!("cannot restore {}", root.volume)))?;
        }
        let (claim, again) = match &purpose {
            Purpose::Restore(target) => {
                (Some(target.claim().clone()), target.is_read_again().then(|| target.clone()))
            }
            _ => (None, None),
        };
        let undo = claim.as_ref().map(Claim::undo).unwrap_or_default();
        let is_of_job = claim.as_ref().is_some_and(Claim::is_of_job);
        let shared = self.protection.as_ref();
        let own = match shared {
            Some(_) if undo.is_empty() => None,
            // Whoever forgets what was kept for an undo looks for a session that names it.
            Some(shared) if shared.session().is_some() => {
                shared.keep(&jobs(&undo), &root.volume).await?;
                None
            }
            None if !self.settings.protect => None,
            _ => Some(self.protect(ids, &root, &undo).await?),
        };
        let protection = own.as_ref().or(shared).cloned();
        let protection = protection.unwrap_or_else(|| Protection::none(&self.repository));
        // Of what a shared one protects, that was asked when it began.
        let checked = match own.is_some() {
            true => protection.check(&root).await.map_err(|failure| match &purpose {
                Purpose::Restore(target) if is_of_job => target.claim().undecided(half_done(failure)),
                _ => failure,
            }),
            false => Ok(()),
        };
        let held = match checked {
            Ok(()) => self.hold_kept(&undo).await,
            Err(failure) => Err(failure),
        };
        // Whoever forgets looks for the hold after the marker stands.
        let (checked, held) = match held {
            Ok(held) => (self.check_undo(&undo).await, held),
            Err(failure) => (Err(failure), Vec::new()),
        };
        let session = protection.session().cloned();
        let result = match checked {
            Ok(()) => self.to_target(ids.job, root.clone(), reads, session, purpose, progress).await,
            Err(failure) => Err(failure),
        };
        let result = match (result, again) {
            (Err(failure), _) => Err(protection.explained(&root, failure).await),
            (Ok(report), Some(target)) => {
                let (verified, differences) =
                    self.read_again(ids.job, &root, &target, &protection, progress).await;
                Ok(Report { verified: Some(verified), differences, ..report })
            }
            (done, None) => done,
        };
        let result = match &claim {
            Some(claim) => self.settle_kept(claim, held, result).await,
            None => result,
        };
        // Until the job is over, somebody may go on with it, and what it reads, and what was kept for its undo, must be
        // there then. It may have overwritten a part when its agent is stopped, or when another restore came between.
        let was_taken = claim.as_ref().is_some_and(|claim| claim.is_busy() && claim.has_held());
        let is_cut_off = result.is_err() && (was_taken || self.context.stop.is_raised());
        let is_to_go_on = !undo.is_empty() || is_cut_off;
        // Who is not to do it has overwritten nothing, and earlier attempts have sessions of their own.
        let is_to_go_on = is_to_go_on && claim.is_none_or(|claim| claim.doubt().is_none());
        match own.filter(|_| !(is_of_job && is_to_go_on)) {
            Some(own) => own.end(result).await,
            None => result,
        }
    }

    async fn protect(&self, ids: Ids, root: &Root, undo: &[(JobId, Slot)]) -> Result<Protection, Failure> {
        let Ids { job, session } = ids;
        let (kind, undo) = (SessionKind::Restore, jobs(undo));
        let by = ReadBy { kind, session, job, volume: &root.volume, host: &self.context.host, undo: &undo };
        Protection::begin(&self.repository, by, &self.context.stop).await
    }

    /// What was kept for an undo may have been forgotten before the session protected it. Whoever forgets looks for the
    /// session after the marker stands.
    async fn check_undo(&self, undo: &[(JobId, Slot)]) -> Result<(), Failure> {
        for (_, slot) in undo {
            if self.repository.store.head(&slot.forgotten()).await?.is_some() {
                let id = slot.session;
                return Err(Failure::refused(format!(
                    "what stood on the target was kept as {id}, which was forgotten before this attempt began: it overwrote \
                     nothing; `lvkeep unforget {id}` brings back what stood there"
                )));
            }
        }
        Ok(())
    }

    pub(crate) async fn to_target(
        &self,
        job: JobId,
        root: Root,
        reads: Repository,
        session: Option<Arc<OpenSession>>,
        purpose: Purpose,
        progress: &impl Fn(Progress),
    ) -> Result<Report, Failure> {
        let source = self.source(reads.clone(), root.clone(), session)?;
        let all = 0..root.size;
        let (mut stop, mut claim, mut limit) = (self.context.stop.clone(), None, None);
        let task = match purpose {
            Purpose::Restore(target) => {
                stop = target.stop().cloned().unwrap_or(stop);
                claim = Some(target.claim().clone());
                limit = target.limit().cloned();
                let (opened, part, restored) = (target.clone(), target.part(&root)?, root.clone());
                let task = self.open(&reads, job, root, target).await?;
                self.name_kept(&opened, &task.sink, &restored, &part);
                task
            }
            Purpose::Verify => Task::new(Sink::Discard, all),
            Purpose::Sample => Task::new(Sink::Discard, 0..root.size.min(SAMPLE)),
            Purpose::Read(range, out) => {
                return self.to_channel(source.keeping_leaves(), range, out, progress).await;
            }
            Purpose::Compare(path, part) => {
                let end = part.end;
                let reading = self.blocking(move || Reading::open(&path, root.volume, end)).await?;
                Task { compare: Compare::ToTell(reading), ..Task::new(Sink::Discard, part) }
            }
        };
        let (place, goes_on, tracked) = (task.sink.place(), task.goes_on, task.tracked.clone());
        let work = self.work(source, task);
        let audited = self.audit(&work, tracked, &stop).await;
        let shared = match &claim {
            Some(claim) => self.share(&work, claim, limit).await?,
            None => None,
        };
        let running = pipeline::run(&work, &stop, progress);
        let (result, is_ours) = match shared {
            Some(shared) => shared.beside(running).await,
            None => (running.await, true),
        };
        if !is_ours {
            claim.inspect(Claim::overwrote);
            return result;
        }
        let (is_stopped, of) = (self.context.stop.clone(), claim.clone());
        let ended = self.blocking(move || {
            let finish = || work.zero_behind(&stop).and_then(|()| work.sink.finish());
            let result = result.and_then(|report| finish().map(|()| report));
            let result =
                result.map(|report| Report { stands_on: work.sink.identity().map(Box::new), ..report });
            if work.sink.is_overwritten() || work.spans.was_lent() {
                of.as_ref().inspect(|claim| claim.overwrote());
            }
            // Its job comes again, and finds it as it is.
            let comes_again = goes_on && is_stopped.is_raised();
            let result = result.map_err(|failure| match comes_again {
                true => (failure, Left::ForItsJob),
                false => {
                    let ending = work.sink.ending(&failure, work.spans.was_lent());
                    let left = work.sink.give_up(ending, work.spans.was_lent());
                    (with_notes(failure, left.as_slice()), Left::As(ending))
                }
            });
            Ok((result, work.sink.cut_off(), work.snapback.as_ref().map(Snapback::end)))
        });
        let (result, cut_off, kept) = match ended.await {
            Ok(ended) => ended,
            Err(failure) => {
                claim.as_ref().inspect(|claim| claim.overwrote());
                (Err((failure, Left::As(Ending::CutOff))), None, None)
            }
        };
        match result {
            Ok(mut report) => {
                report += audited;
                report.notes.extend(cut_off);
                let ending = if report.lost == 0 { Ending::Restored } else { Ending::WithHoles };
                report.notes.extend(end_place(place.as_deref(), ending).await);
                report.notes.extend(kept);
                report.notes.extend(claim.iter().flat_map(Claim::notes));
                report.notes.extend(let_stay(place, claim.as_ref()).await);
                Ok(report)
            }
            Err((failure, left)) => {
                let mut notes: Vec<String> = cut_off.into_iter().collect();
                notes.extend(leave(place, claim.as_ref(), left).await);
                notes.extend(kept);
                Err(with_notes(failure, &notes))
            }
        }
    }

    /// Does a step that waits for a file or device.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        step: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let done = self.context.environment.on_a_thread(step).await;
        done.map_err(|failure| failure.context("a restore"))?
    }

    /// What reads a snapshot. A session protects it, unless somebody else's does.
    pub(crate) fn source(
        &self,
        reads: Repository,
        root: Root,
        session: Option<Arc<OpenSession>>,
    ) -> Result<Source, Failure> {
        let map = MapReader::new(reads.clone(), self.index.clone(), root)?.thorough();
        Ok(Source { map: map.into(), keys: self.keys(&reads).into(), session, repository: reads })
    }

    pub(crate) fn work(&self, source: Source, task: Task) -> Arc<Work> {
        let room = matches!(task.sink, Sink::Target(_)).then(|| self.turns.room.clone());
        Arc::new(Work {
            volume: source.map.root().volume.clone(),
            environment: self.context.environment.clone(),
            source,
            part: task.part,
            spans: task.spans,
            sink: task.sink,
            compare: task.compare,
            tracked: OnceLock::new(),
            donor: task.donor,
            snapback: task.snapback,
            repeats: Repeats::new(room),
            keep_going: task.keep_going,
            turns: self.turns.clone(),
            halt: Stop::default(),
            failed: OnceLock::new(),
            counters: self.context.counters.clone(),
        })
    }
}

fn check_range(root: &Root, range: &Range<u64>) -> Result<(), Failure> {
    let Range { start, end } = *range;
    match start > end || end > root.size {
        true => {
            let why = format!("{} has {} bytes, and none from {start} to {end}", root.volume, root.size);
            Err(Failure::refused(why))
        }
        false => Ok(()),
    }
}

fn jobs(undo: &[(JobId, Slot)]) -> Vec<JobId> {
    undo.iter().map(|(job, _)| *job).collect()
}

/// Nobody knows whether it is the first attempt of a job that finds its snapshot forgotten, or the job lost.
pub(crate) fn half_done(failure: Failure) -> Failure {
    let why = format!(
        "{}; this attempt overwrote nothing: should an earlier one have begun, the target is half overwritten, and must \
         not be used before it is restored to again",
        failure.why
    );
    Failure { why, ..failure }
}
