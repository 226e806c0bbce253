//! One request, from the question what is still wanted to the word that the reader is through with it.

use std::ops::Range;
use std::sync::Arc;

use agent::buffer::{Buffer, Pool};
use agent::{BusError, Changes, Failure, Opening, Queue, Volume, VolumeError};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use schema::limits::{CHUNK_MAX, LEAF_SPAN, UNCHANGED_RANGES_MAX};
use schema::map::Geometry;
use schema::messages::{About, Extent, FailureKind, Message, ParentSnapshot, ReadVolume, SessionEvent};
use schema::root::Tracking;
use schema::{ReadingId, SessionId};

use crate::ahead::{Means, ReadAhead, blocked};
use crate::asking::Conductor;
use crate::audit::{Auditor, Found};
use crate::emit::{Emitted, Emitter, HEADROOM};
use crate::leaves::{self, Leaves, Run, Task, Tracked};
use crate::plan::Step;
use crate::reading::Shared;
use crate::readings::{Reading, Verdict};
use crate::tracked::{Changed, Next};

/// Messages of one segment that are published at once.
const PUBLISHED_AT_ONCE: usize = 4;
/// Bytes that are told to be unchanged in one message: whoever hears it looks at each leaf.
const UNCHANGED_MAX: u64 = 1024 * LEAF_SPAN;
/// Buffers for what is read beyond what was planned: one being cut, one with the hashers.
const EXTRA: usize = 2;

/// A request being served.
pub(crate) struct Serving<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) request: &'a ReadVolume,
    pub(crate) about: &'a About,
    pub(crate) reading: &'a Reading,
}

/// The source of a request, once it is open.
struct Source<'a> {
    volume: &'a Arc<dyn Volume>,
    reading: ReadingId,
    geometry: Geometry,
}

/// How far a request was served.
pub(crate) enum Through {
    Done,
    /// Its source cannot be opened yet: why.
    Busy(String),
}

impl Serving<'_> {
    /// Reads what is wanted and tells what became of it.
    pub(crate) async fn serve(&self) -> Result<Through, Failure> {
        let Self { shared, request, about, .. } = self;
        let conductor = Conductor::new(&shared.context, about, request.session);
        let asks_for_leaves = request.leaves.as_ref().is_none_or(|leaves| !leaves.is_empty());
        let answer = match asks_for_leaves {
            true => conductor.wanted(request.request).await,
            false => None,
        };
        if answer.as_ref().is_some_and(|answer| answer.over) {
            tracing::debug!("the session wants nothing any more; not reading for it");
            return Ok(Through::Done);
        }
        let opening = Opening {
            source: &request.source,
            volume: &about.volume,
            session: request.session,
            repository: request.repository,
            reading: request.reading,
            parent: request.parent.map(|parent| parent.session),
            group: request.group.as_ref(),
            plain: request.plain,
        };
        let volume = match shared.readings.open(self.reading, &opening).await {
            Err(busy @ VolumeError::Busy { .. }) => return Ok(Through::Busy(busy.to_string())),
            opened => opened?,
        };
        let info = volume.info();
        let (reading, size) = (info.reading, info.size);
        let geometry = Geometry::new(size)?;
        let wanted = leaves::wanted(request.leaves.as_deref(), request.force, answer.as_ref(), geometry)?;
        self.tell(&SessionEvent::Opened { reading, size, layout: info.layout.clone() }).await?;
        let source = Source { volume: &volume, reading, geometry };
        let bytes_read = match wanted.is_empty() {
            true => 0,
            false => self.read(&source, &conductor, wanted, leaves::whole(answer.as_ref(), geometry)).await?,
        };
        let changed = match volume.check_unchanged().await {
            Ok(()) => false,
            Err(why) => {
                tracing::warn!(%why, "the source changed while it was read");
                true
            }
        };
        tracing::info!(bytes_read, changed, "through");
        let request = request.request;
        self.tell(&SessionEvent::Read { reading, request, bytes_read, changed }).await?;
        Ok(Through::Done)
    }

    /// Reads, cuts and tells; returns the bytes read.
    async fn read(
        &self,
        source: &Source<'_>,
        conductor: &Conductor<'_>,
        wanted: Vec<Run>,
        whole: Vec<Range<u64>>,
    ) -> Result<u64, Failure> {
        let (verdict, audited) = self.verdict(source, conductor).await?;
        tracing::info!(size = source.geometry.size(), tracking = ?verdict.tracking, "reading");
        let (reading, tracking, distrusted) = (source.reading, verdict.tracking.clone(), verdict.distrusted);
        self.tell(&SessionEvent::Tracked { reading, tracking, distrusted }).await?;
        let parent = match verdict.tracking {
            Tracking::Since { parent, .. } => Some(parent),
            Tracking::Everything { .. } => None,
        };
        let changed = parent.and_then(|_| Changed::new(source.volume.changes(), source.geometry.size()));
        let tracked = changed.map(|changed| Tracked { changed, conductor, whole });
        let leaves = wanted.into_iter().flat_map(|run| run.leaves.map(move |leaf| (leaf, run.force)));
        let settings = &self.shared.settings;
        let leaves =
            Leaves::new(source.volume.clone(), source.geometry, settings.segment as u64, leaves, tracked);
        let mut reader = LeafReader {
            serving: self,
            source,
            emitter: Emitter::new(self.shared.cut_seed),
            extra: Pool::new(EXTRA, HEADROOM + CHUNK_MAX),
            unchanged: Unchanged::default(),
            parent,
            bytes_read: 0,
        };
        reader.read(leaves).await?;
        Ok(reader.bytes_read + audited)
    }

    /// Whether the source's list of changes is used, and the bytes read just now to find that out. The audit is made
    /// once per reading.
    async fn verdict(
        &self,
        source: &Source<'_>,
        conductor: &Conductor<'_>,
    ) -> Result<(Verdict, u64), Failure> {
        let Some(parent) = self.request.parent else { return Ok((Verdict::everything(None), 0)) };
        let mut audited = 0;
        let judged = self.reading.verdict.get_or_try_init(|| async {
            let (verdict, read) = self.judge(parent, source, conductor).await?;
            audited = read;
            Ok::<_, Failure>(verdict)
        });
        let verdict = judged.await?.clone();
        Ok((verdict, audited))
    }

    async fn judge(
        &self,
        parent: ParentSnapshot,
        source: &Source<'_>,
        conductor: &Conductor<'_>,
    ) -> Result<(Verdict, u64), Failure> {
        let size = source.geometry.size();
        let everything = |why: String| Ok((Verdict::everything(Some(why)), 0));
        match source.volume.changes() {
            Changes::Unknown { why } => return Ok((Verdict::everything(why.clone()), 0)),
            Changes::Since { parent: since, .. } if *since != parent.session => {
                return everything(format!("its changes are known since {since}, not since the parent"));
            }
            Changes::Since { .. } => {}
        }
        if size != parent.size {
            return everything(format!("its size was {} bytes and is {size}", parent.size));
        }
        let Some(changed) = Changed::new(source.volume.changes(), size) else {
            return everything("its list of changes is not in order".to_owned());
        };
        let shared = self.shared;
        let auditor = Auditor {
            context: &shared.context,
            conductor,
            volume: source.volume,
            geometry: source.geometry,
            pool: &shared.pool,
            limit: &shared.settings.limit,
            ids: &shared.ids,
            session: self.request.session,
        };
        Ok(match auditor.look(shared.settings.audit, &changed).await? {
            Found::Same { read } => {
                let (parent, changed) = (parent.session, changed.bytes());
                let tracking = Tracking::Since { parent, changed, audited: read };
                (Verdict { tracking, distrusted: false }, read)
            }
            Found::Differs { offset, read } => {
                let why = format!(
                    "the audit found that offset {offset} differs from the parent, though it is not in the list \
                     of changes"
                );
                tracing::error!(volume = self.about.volume, %why, "the list of changes is wrong; reading everything");
                (Verdict { tracking: Tracking::Everything { why: Some(why) }, distrusted: true }, read)
            }
            Found::Unasked { read } => {
                let why = "the parent's map could not be had for the audit".to_owned();
                (Verdict::everything(Some(why)), read)
            }
        })
    }

    async fn publish(&self, reading: ReadingId, emitted: Vec<Emitted>, force: bool) -> Result<(), BusError> {
        let mut rest = emitted.into_iter();
        let mut sending = FuturesUnordered::new();
        let all = async {
            loop {
                while sending.len() < PUBLISHED_AT_ONCE
                    && let Some(next) = rest.next()
                {
                    sending.push(self.send(reading, next, force));
                }
                match sending.next().await {
                    Some(sent) => sent?,
                    None => return Ok(()),
                }
            }
        };
        blocked(&self.shared.context, all).await
    }

    async fn send(&self, reading: ReadingId, emitted: Emitted, force: bool) -> Result<(), BusError> {
        match emitted {
            Emitted::Extent { offset, pieces, body } => {
                let extent = Extent { session: self.request.session, reading, offset, pieces, force };
                let message = Message::with_body(self.about, &extent, body);
                self.shared.context.bus.publish(&self.shared.settings.extents, message).await
            }
            Emitted::Zero { offset, pieces } => {
                let event =
                    SessionEvent::Mapped { reading, offset, pieces, stored: 0, new: 0, chunks_new: 0 };
                self.tell(&event).await
            }
        }
    }

    async fn tell(&self, event: &SessionEvent) -> Result<(), BusError> {
        let queue = Queue::session(self.request.session);
        self.shared.context.bus.publish(&queue, Message::new(self.about, event)).await
    }
}

/// Works through the leaves of one request.
struct LeafReader<'a> {
    serving: &'a Serving<'a>,
    source: &'a Source<'a>,
    emitter: Emitter,
    /// Not of the common pool: whoever waits here holds buffers of that one.
    extra: Pool,
    unchanged: Unchanged,
    parent: Option<SessionId>,
    bytes_read: u64,
}

impl LeafReader<'_> {
    async fn read<L: Iterator<Item = (u64, bool)> + Send>(
        &mut self,
        leaves: Leaves<'_, L>,
    ) -> Result<(), Failure> {
        let shared = self.serving.shared;
        // Half of the buffers are for hashers.
        let depth = shared.settings.segments / 2;
        let means =
            Means { context: &shared.context, pool: &shared.pool, limit: &shared.settings.limit, depth };
        let mut ahead = ReadAhead::new(means, self.source.volume.clone(), leaves);
        while let Some((task, buffer)) = ahead.next().await? {
            match task {
                Task::Unchanged(range) => self.unchanged(range).await?,
                Task::Read { step, gap, force } => {
                    self.cut(step, buffer, force).await?;
                    if let Some(mut gap) = gap {
                        while let Some(next) = self.follow(gap.next(self.emitter.is_open())).await? {
                            self.cut(next, Some(self.fetch(next).await?), force).await?;
                        }
                    }
                }
            }
        }
        let told = self.emitter.finish();
        self.serving.publish(self.source.reading, told, false).await?;
        self.tell_unchanged().await
    }

    /// What is to be read next, of what was not planned to be.
    async fn follow(&mut self, next: Next) -> Result<Option<Step>, Failure> {
        match next {
            Next::Nothing => Ok(None),
            Next::Unchanged(range) => {
                self.emitter.pass();
                self.unchanged(range).await?;
                Ok(None)
            }
            Next::Read { range, ends_run } => {
                let data = (range.end - range.start) as u32;
                Ok(Some(Step { offset: range.start, data, hole: 0, ends_run }))
            }
        }
    }

    /// Reads one chunk of the parent that was not planned to be read.
    async fn fetch(&self, step: Step) -> Result<Buffer, Failure> {
        let shared = self.serving.shared;
        let buffer = blocked(&shared.context, self.extra.acquire()).await;
        shared.settings.limit.pass(step.data.into()).await;
        Ok(self.source.volume.read(step.offset, buffer, HEADROOM, step.data as usize).await?)
    }

    async fn cut(&mut self, step: Step, buffer: Option<Buffer>, force: bool) -> Result<(), Failure> {
        let counters = &self.serving.shared.context.counters;
        self.bytes_read += u64::from(step.data);
        counters.bytes_read.add(step.data.into());
        let emitted = self.emitter.step(&step, buffer).ok_or_else(|| {
            let name = &self.serving.request.source;
            let why = format!("what was read of {name} at {} is incomplete", step.offset);
            Failure::new(FailureKind::Other, why)
        })?;
        counters.bytes_zero.add(self.emitter.take_zeroes());
        Ok(self.serving.publish(self.source.reading, emitted, force).await?)
    }

    async fn unchanged(&mut self, range: Range<u64>) -> Result<(), Failure> {
        match self.unchanged.add(range) {
            true => self.tell_unchanged().await,
            false => Ok(()),
        }
    }

    async fn tell_unchanged(&mut self) -> Result<(), Failure> {
        let ranges = self.unchanged.take();
        match self.parent {
            Some(parent) if !ranges.is_empty() => {
                let event = SessionEvent::Unchanged { reading: self.source.reading, parent, ranges };
                Ok(self.serving.tell(&event).await?)
            }
            _ => Ok(()),
        }
    }
}

/// What was left out and not told yet.
#[derive(Debug, Default)]
struct Unchanged {
    ranges: Vec<(u64, u64)>,
    bytes: u64,
}

impl Unchanged {
    /// Whether it is time to tell.
    fn add(&mut self, range: Range<u64>) -> bool {
        let len = range.end - range.start;
        match self.ranges.last_mut() {
            Some((offset, before)) if *offset + *before == range.start => *before += len,
            _ => self.ranges.push((range.start, len)),
        }
        self.bytes += len;
        self.ranges.len() == UNCHANGED_RANGES_MAX || self.bytes >= UNCHANGED_MAX
    }

    fn take(&mut self) -> Vec<(u64, u64)> {
        self.bytes = 0;
        std::mem::take(&mut self.ranges)
    }
}
