//! One session, driven from its beginning to a definite end.
//!
//! Every wait is bounded: what makes no progress is asked for again, with *force* where somebody promised and did not
//! deliver, and after some patience the session fails by name. What the loop waits for is listed in [`Driver::run`].

mod closing;
mod ending;
mod events;
mod pacing;
mod unchanged;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use agent::index::IndexClient;
use agent::maps::MapReader;
use agent::sessions::{self, OpenSession};
use agent::{Context, Failure, Queue, Repository, Service, Stop, Topic};
use schema::map::Geometry;
use schema::messages::*;
use schema::names::Slot;
use schema::root::{Statistics, Tracking};
use schema::session::{Checkpoint, Session, SessionKind};
use schema::{ChunkId, ReadingId};
use tokio::sync::mpsc;

use crate::Settings;
use crate::answers::{Answers, Question};
use crate::coverage::{Count, Coverage};
use crate::parent::Parent;
use crate::recent::Recent;
use crate::structure::Structure;
use crate::takeover;

pub(crate) use ending::may_stay;

/// Leaves named in one request to read again.
const LEAVES_ASKED: usize = 64 << 10;
/// Unchanged ranges that wait to be looked at, before no more events are taken.
const UNCHANGED_MAX: usize = 64 << 10;
/// Bytes of session events that may be unacknowledged.
const WINDOW: usize = 4 << 20;
/// Pause between progress reports.
const REPORT: Duration = Duration::from_millis(500);
/// First pause between flush requests; doubles up to [`FLUSH_SLOWEST`].
const FLUSH_FIRST: Duration = Duration::from_millis(10);
const FLUSH_SLOWEST: Duration = Duration::from_secs(2);

/// How driving a session ended.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub(crate) enum End {
    /// Definitely.
    Done(JobOutcome),
    /// Somebody else drives the job.
    TakenOver,
    /// This process stops; somebody else shall drive the job.
    HandedBack,
    /// Something was left out because it was said to be unchanged, and that cannot be relied on: nothing was committed.
    Distrusted,
}

/// Why the loop was left.
enum Left {
    Complete,
    Stopped,
    Distrusted,
}

pub(crate) struct Driver {
    context: Context,
    repository: Repository,
    index: IndexClient,
    settings: Settings,
    job: BackupJob,
    about: About,
    session: OpenSession,
    parent: Option<Arc<Parent>>,
    /// Of the snapshot to come.
    generation: u64,
    done: Option<JobOutcome>,
    yields: bool,
    structure: Structure,
    recent: Recent,
    reading: Option<Reading>,
    statistics: Statistics,
    started_ms: u64,
    requests: u32,
    /// Requests that the reader is through with.
    answered: BTreeSet<u32>,
    /// The request that checks, after everything is mapped, that the source is unchanged; and whether it came back.
    check: Option<(u32, bool)>,
    changed: bool,
    /// Whether another session may follow when this one fails for now.
    patience: bool,
    /// Whether the reader may leave out what has not changed since the parent.
    track: bool,
    /// Whether it was found out too late that it must not.
    distrusted: bool,
    /// What the reader says of that.
    tracking: Tracking,
    /// Offset and length of what is unchanged, where it has to be looked at before it is taken from the parent.
    unchanged: VecDeque<(u64, u64)>,
    /// Leaves that are read whole, because something is lost of what the parent has there.
    whole: BTreeSet<u64>,
    /// Leaves that were asked for with force, and in which request last.
    forced: BTreeMap<u64, u32>,
    /// Leaves that were taken from the parent as they are, and once all are closed, what they add up to.
    inherited: BTreeSet<u64>,
    inherited_count: Option<Count>,
    /// Somebody said that this session shall end.
    cancelled: bool,
    top: Option<Option<ChunkId>>,
    progress_at: Duration,
    asked_again: u32,
    flush_at: Duration,
    flush_pause: Duration,
    reported_at: Duration,
    checkpoint_at: Duration,
}

/// The reading that the session is bound to, and the account of it.
struct Reading {
    id: ReadingId,
    geometry: Geometry,
    layout: Vec<(String, String)>,
    coverage: Coverage,
    /// Finished leaves: the chunk of each (none where it reads as zero).
    leaves: BTreeMap<u64, Option<ChunkId>>,
}

impl Driver {
    /// Opens the session: object, epoch, packs, parent, in this order.
    pub(crate) async fn begin(
        context: Context,
        repository: Repository,
        index: IndexClient,
        settings: Settings,
        job: &BackupJob,
    ) -> Result<Self, Failure> {
        let environment = context.environment.clone();
        let id = environment.session_id();
        let slot = Slot { volume: repository.key.volume_key(&job.volume), session: id };
        let started_ms = environment.now_ms();
        let session = Session {
            id,
            kind: SessionKind::Backup,
            slot: Some(slot),
            job: job.job,
            volume: job.volume.clone(),
            host: context.host.to_string(),
            started_ms,
            checkpoint: None,
            ended: None,
            undo: Vec::new(),
        };
        let structure = Structure::new(context.clone(), index.clone(), &repository.key)?;
        let session = OpenSession::begin(repository.clone(), session).await?;
        let now = environment.elapsed();
        let mut driver = Self {
            about: About::session(id, job.volume.clone()),
            context,
            repository,
            index,
            settings,
            job: job.clone(),
            session,
            parent: None,
            generation: 1,
            done: None,
            yields: false,
            structure,
            recent: Recent::default(),
            reading: None,
            statistics: Statistics::default(),
            started_ms,
            requests: 0,
            answered: BTreeSet::new(),
            check: None,
            changed: false,
            patience: false,
            track: true,
            distrusted: false,
            tracking: Tracking::Everything { why: None },
            unchanged: VecDeque::new(),
            whole: BTreeSet::new(),
            forced: BTreeMap::new(),
            inherited: BTreeSet::new(),
            inherited_count: None,
            cancelled: false,
            top: None,
            progress_at: now,
            asked_again: 0,
            flush_at: now,
            flush_pause: FLUSH_FIRST,
            reported_at: now,
            checkpoint_at: now,
        };
        match driver.load_parent().await {
            Ok(()) => Ok(driver),
            Err(failure) => match sessions::revoke(&driver.repository, driver.session.session()).await {
                Ok(_) => Err(failure),
                Err(why) => Err(driver.unsure(failure, &why)),
            },
        }
    }

    async fn load_parent(&mut self) -> Result<(), Failure> {
        self.yields = !takeover::goes_on(&self.repository, &self.job, self.session.session().id).await?;
        let visible = self.session.visible().await?;
        self.generation = self.session.next_generation(&visible).await?;
        let roots = visible.warned();
        // Looked for after the rivals: one that has ended meanwhile has left its snapshot.
        self.done = roots.iter().find(|root| root.job == self.job.job).map(takeover::sealed);
        if let Some(root) = sessions::newest(roots) {
            tracing::debug!(parent = %root.slot, generation = root.generation, "comparing with the parent");
            let map = MapReader::new(self.repository.clone(), self.index.clone(), root)?;
            self.parent = Some(Arc::new(Parent::new(map, self.lost_chunks().await?)));
        }
        Ok(())
    }

    /// The chunks of recorded damage that have no copy which counts.
    async fn lost_chunks(&self) -> Result<BTreeSet<ChunkId>, Failure> {
        let named: Vec<ChunkId> = self.session.damages().chunks().map(|(id, _)| *id).collect();
        let copies = self.counting_copies(&named).await?;
        let lost: BTreeSet<ChunkId> =
            named.into_iter().zip(copies).filter(|(_, copies)| copies.is_empty()).map(|(id, _)| id).collect();
        if !lost.is_empty() {
            tracing::warn!(
                chunks = lost.len(),
                "what is recorded as damaged is stored again where it is met"
            );
        }
        Ok(lost)
    }

    /// When a snapshot was made by this very job, the job is done: its last acknowledgement was lost.
    pub(crate) fn already_done(&self) -> Option<JobOutcome> {
        self.done.clone()
    }

    /// Whether another session goes on with this job.
    pub(crate) fn yields(&self) -> bool {
        self.yields
    }

    /// Drives the session. It waits for events and questions of readers and hashers, for packs to become durable, for a
    /// word to cancel or to stop, and for time to ask again.
    pub(crate) async fn run(
        mut self,
        adopt: Option<Checkpoint>,
        track: bool,
        patience: bool,
    ) -> Result<End, Failure> {
        (self.track, self.patience) = (track, patience);
        let serving = Stop::default();
        let context = Context { stop: serving.clone(), ..self.context.clone() };
        let service = Service::conductor(self.session.session().id);
        let (answers, questions) = Answers::new(self.parent.clone());
        let answers = agent::serve(&context, &service, answers);
        let driven = async {
            let left = self.collect(adopt, questions).await;
            // Nobody is left to answer: from here on, nothing is wanted any more.
            let end = match left {
                Ok(Left::Complete) => self.seal().await,
                Ok(Left::Distrusted) => Ok(End::Distrusted),
                Ok(Left::Stopped) if self.settings.hand_back => self.hand_back().await,
                Ok(Left::Stopped) => {
                    Err(Failure::new(FailureKind::Revoked, "interrupted; nothing was committed"))
                }
                Err(failure) => Err(failure),
            };
            serving.raise();
            end
        };
        let (end, _) = tokio::join!(driven, answers);
        self.finish(end).await
    }

    async fn collect(
        &mut self,
        adopt: Option<Checkpoint>,
        mut questions: mpsc::Receiver<Question>,
    ) -> Result<Left, Failure> {
        let id = self.session.session().id;
        let bus = self.context.bus.clone();
        let mut stored = bus.subscribe(&Topic::packs_stored()).await?;
        let mut cancels = bus.subscribe(&Topic::cancel()).await?;
        let mut events = bus.consume(&Queue::session(id), WINDOW).await?;
        // To adopt leaves, ask for the reading first; else ask for everything at once.
        let all = adopt.is_none();
        self.request((!all).then(Vec::new), false).await?;
        let mut adopt = adopt;
        loop {
            let until_tick = self.until_tick();
            if until_tick.is_zero() {
                // Before the events: a steady stream of them must not keep this from being done.
                self.on_tick().await?;
            }
            tokio::select! {
                biased;
                () = self.context.stop.raised() => return Ok(Left::Stopped),
                cancel = cancels.next() => self.on_cancel(cancel, &mut cancels).await?,
                Some(question) = questions.recv() => self.on_question(question),
                event = events.next(), if self.unchanged.len() < UNCHANGED_MAX => self.on_delivery(event, &mut events, &mut adopt).await?,
                pack = stored.next() => self.on_broadcast(pack, &mut stored).await?,
                () = std::future::ready(()), if !self.unchanged.is_empty() => self.take_some_unchanged().await?,
                () = self.context.environment.sleep(until_tick) => {}
            }
            if self.distrusted {
                return Ok(Left::Distrusted);
            }
            self.close_leaves().await?;
            if self.is_complete() {
                return Ok(Left::Complete);
            }
        }
    }

    fn is_complete(&self) -> bool {
        let checked = self.check.is_some_and(|(_, done)| done);
        let covered = self.reading.as_ref().is_some_and(|reading| reading.coverage.is_covered());
        // An answer that was lost is missed by the statistics only: after some silence nobody waits for it.
        let answered = self.answered.len() as u32 == self.requests || self.asked_again > 0;
        checked && answered && covered && self.top.is_some() && self.structure.all_durable()
    }

    /// Asks the reader for leaves (none: all that are unfinished), and notes that it was asked.
    async fn request(&mut self, leaves: Option<Vec<u64>>, force: bool) -> Result<(), Failure> {
        let unfinished = self.reading.as_ref().map(|reading| reading.coverage.unfinished(LEAVES_ASKED));
        self.requests += 1;
        let message = ReadVolume {
            session: self.session.session().id,
            repository: self.repository.key.repo(),
            source: self.job.source.clone(),
            reading: self.reading.as_ref().map(|reading| reading.id),
            parent: self.parent.as_ref().filter(|_| self.track).and_then(|parent| parent.snapshot()),
            leaves: leaves.or(unfinished),
            force,
            allow_changes: self.job.allow_changes,
            group: self.job.group.clone(),
            request: self.requests,
            plain: self.job.plain,
        };
        let queue = Queue::reads(&self.job.host);
        Ok(self.context.bus.publish(&queue, Message::new(&self.about, &message)).await?)
    }
}
