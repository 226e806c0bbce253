//! One unit of a restore: fetch a range, open its frames, write the plaintext; or zero a range.
//!
//! A frame that is missing, damaged or cannot be opened is looked for in every other copy that the index knows, and the
//! restore fails by name only when none is whole. Bytes of the store are held until they are written; plaintext lives
//! in the opener of the thread that writes it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use agent::counters::Counters;
use agent::keys::DataKeys;
use agent::maps::MapReader;
use agent::sessions::OpenSession;
use agent::{Environment, Failure, Repository, Stop};
use bytes::Bytes;
use schema::chunk::{FrameHeader, Opener};
use schema::keys::FrameKey;
use schema::messages::{Copy, FailureKind};
use schema::names;
use tokio::sync::Semaphore;

use crate::batch::Batch;
use crate::compare::{Compare, holds, not_zero};
use crate::pipeline::stopped;
use crate::plan::{Fetch, Frame, Wanted, Window, is_plausible, range_of};
use crate::pool::Pool;
use crate::reading::{Aligned, Reading};
use crate::repeats::{Repeats, Room};
use crate::report::{Hole, Report};
use crate::restorer::Settings;
use crate::sink::Sink;
use crate::snapback::Snapback;
use crate::spans::Spans;
use crate::tracked::Tracked;

/// Windows of all restores that are resolved, or wait for their turn: some MiB each at most.
const WINDOWS_MAX: usize = 8;

/// What all tasks of one restore share.
pub(crate) struct Work {
    /// The volume, for messages.
    pub volume: String,
    /// Whose threads work.
    pub environment: Arc<dyn Environment>,
    /// What is restored.
    pub source: Source,
    /// The bytes of the volume that are wanted.
    pub part: Range<u64>,
    /// Which spans of it are whose.
    pub spans: Arc<Spans>,
    /// Where bytes go.
    pub sink: Sink,
    /// What the target's content is compared for.
    pub compare: Compare,
    /// What of it need not be compared.
    pub tracked: OnceLock<Arc<Tracked>>,
    /// Another target of the same snapshot, from which chunks are taken rather than fetched.
    pub donor: Option<Reading>,
    /// Where what is overwritten is kept.
    pub snapback: Option<Snapback>,
    /// What of it stands on the target already.
    pub repeats: Repeats,
    /// What is damaged is left out.
    pub keep_going: bool,
    /// What is shared with other restores.
    pub turns: Turns,
    /// Raised when the restore fails: everybody gives up.
    pub halt: Stop,
    /// Why, where whoever drives the restore did not raise it.
    pub failed: OnceLock<Failure>,
    /// Counters of the process.
    pub counters: Arc<Counters>,
}

/// A snapshot that is restored.
#[derive(Clone)]
pub(crate) struct Source {
    /// Where packs are, read from as often at once as the restore may.
    pub repository: Repository,
    /// Its map.
    pub map: Arc<MapReader>,
    /// Opens content.
    pub keys: Arc<DataKeys>,
    /// Protects it, if asked for.
    pub session: Option<Arc<OpenSession>>,
}

/// What all restores of a restorer take turns at.
#[derive(Clone)]
pub(crate) struct Turns {
    /// To decode and write.
    pub decoding: Arc<Semaphore>,
    /// To read a target, or to decode and write to a device, which mostly waits for it.
    pub waiting: Arc<Semaphore>,
    /// To look at another window.
    pub windows: Arc<Semaphore>,
    /// One opener per thread that decodes.
    pub openers: Arc<Pool<Opener>>,
    /// One buffer per thread that reads a target.
    pub buffers: Arc<Pool<Aligned>>,
    /// Bytes in flight.
    pub memory: Arc<Semaphore>,
    /// How many they are in all.
    pub bytes: u64,
    /// Room to remember where chunks stand on targets.
    pub room: Arc<Room>,
    /// Reads of the store at once, of all of them.
    pub fetches: usize,
}

/// One step of a restore.
pub(crate) enum Unit {
    /// Fetch frames and write what they hold.
    Fetch(Arc<Window>, Fetch),
    /// No copy of a chunk is known yet: ask again.
    Seek(Arc<Window>, usize),
    /// Make a range read as zero.
    Zero(Range<u64>),
    /// Leave out a range that cannot be read, and why.
    Lose(Range<u64>, String),
    /// Nothing: what was found of a window.
    Found(Report),
}

/// A copy that could not be used, and why.
struct Tried {
    copy: Copy,
    why: Failure,
}

/// What decoding a fetch came to.
#[derive(Default)]
struct Decoded {
    report: Report,
    /// Chunks that were not written, and the copies that are known to be of no use.
    failed: Vec<(usize, Vec<Tried>)>,
}

/// Why a chunk was not written.
enum Trouble {
    /// This copy is of no use.
    Copy(Failure),
    /// The target is.
    Target(Failure),
}

type Keys = BTreeMap<u32, Result<Arc<[FrameKey]>, Failure>>;

impl Unit {
    /// Bytes that the step keeps in memory.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Fetch(_, fetch) => fetch.len(),
            Self::Seek(window, chunk) => window.chunks.get(*chunk).map_or(0, |wanted| u64::from(wanted.len)),
            Self::Zero(_) | Self::Lose(..) | Self::Found(_) => 0,
        }
    }

    /// Does it.
    pub async fn run(self, work: Arc<Work>) -> Result<Report, Failure> {
        match self {
            Self::Fetch(window, fetch) => run_fetch(&work, &window, fetch).await,
            Self::Seek(window, chunk) => rescue_or_hole(&work, &window.chunks[chunk], Vec::new()).await,
            Self::Zero(range) => run_zero(&work, range).await,
            Self::Lose(range, why) => leave_hole(&work, range, &why).await,
            Self::Found(report) => Ok(report),
        }
    }
}

impl Source {
    /// For parts of the volume that are read one by one, several of which are in one leaf of the map.
    pub fn keeping_leaves(self) -> Self {
        match Arc::try_unwrap(self.map) {
            Ok(map) => Self { map: map.keeping_leaves().into(), ..self },
            Err(map) => Self { map, ..self },
        }
    }
}

impl Work {
    /// Whether the rest is restored although this cannot be read.
    pub fn goes_on_after(&self, failure: &Failure) -> bool {
        self.keep_going && is_loss(failure)
    }

    /// Bytes that it may have in flight, as things are.
    pub fn memory(&self) -> u64 {
        self.turns.bytes_of(self.source.repository.store.at_once())
    }

    /// What of a range is wanted.
    pub fn wanted(&self, range: &Range<u64>) -> Range<u64> {
        let start = range.start.clamp(self.part.start, self.part.end);
        start..range.end.clamp(start, self.part.end)
    }

    /// Makes what lies behind the snapshot's end read as zero. Blocks.
    pub fn zero_behind(&self, stop: &Stop) -> Result<(), Failure> {
        let behind = self.sink.behind();
        if let Some(snapback) = self.snapback.as_ref().filter(|one| !one.is_whole() && !behind.is_empty()) {
            let kept = snapback.keep(behind, true, stop);
            kept.map_err(|why| if stop.is_raised() { stopped(&self.volume) } else { why })?;
            snapback.sync()?;
        }
        self.sink.zero_behind(stop)
    }

    /// Waits for `future`, but not when the restore has failed elsewhere.
    pub async fn unless_halted<T>(&self, future: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::select! {
            biased;
            () = self.halt.raised() => Err(Failure::new(FailureKind::Other, "the restore has failed elsewhere")),
            output = future => Ok(output),
        }
    }

    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        step: impl FnOnce(&Self) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let turns = if self.sink.is_device() { &self.turns.waiting } else { &self.turns.decoding };
        let _turn = turns.acquire().await;
        self.on_a_thread(step).await
    }

    /// Does a step that reads a target into a buffer.
    pub(crate) async fn reading<T: Send + 'static>(
        self: &Arc<Self>,
        step: impl FnOnce(&Self, &mut Aligned) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let _turn = self.turns.waiting.acquire().await;
        let step =
            |work: &Self| work.turns.buffers.lend(|| Ok(Aligned::new()), |buffer| step(work, buffer))?;
        self.on_a_thread(step).await
    }

    async fn on_a_thread<T: Send + 'static>(
        self: &Arc<Self>,
        step: impl FnOnce(&Self) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let work = self.clone();
        let done = self.environment.on_a_thread(move || step(&work)).await;
        done.map_err(|failure| failure.context(format!("restoring {}", self.volume)))?
    }
}

/// Whether what is missing will not come back.
fn is_loss(failure: &Failure) -> bool {
    failure.kind == FailureKind::Damaged && !failure.retry
}

impl Turns {
    /// As many as the settings allow.
    pub fn new(settings: &Settings) -> Self {
        let bytes = settings.memory.clamp(2 << 20, 1 << 30);
        Self {
            decoding: Arc::new(Semaphore::new(settings.threads.max(1))),
            waiting: Arc::new(Semaphore::new(2 * settings.threads.max(1))),
            windows: Arc::new(Semaphore::new(WINDOWS_MAX)),
            openers: Arc::default(),
            buffers: Arc::default(),
            memory: Arc::new(Semaphore::new(bytes as usize)),
            bytes,
            room: Arc::new(Room::new(bytes / 16)),
            fetches: settings.fetches.max(1),
        }
    }

    /// Bytes in flight of one restore that may read the store so often at once: it holds no more of the memory than of
    /// the reads, because what waits for a read would keep others from theirs.
    pub fn bytes_of(&self, fetches: usize) -> u64 {
        if fetches >= self.fetches {
            return self.bytes;
        }
        (self.bytes / self.fetches as u64 * fetches as u64).max(1)
    }
}

async fn run_zero(work: &Arc<Work>, range: Range<u64>) -> Result<Report, Failure> {
    let bytes = range.end - range.start;
    let mut report = Report { zeroed: bytes, ..Report::default() };
    match &work.compare {
        Compare::ToTell(_) => {
            report.compared = bytes;
            let parts = work.reading(move |work, buffer| not_zero(work, &range, buffer)).await?;
            parts.into_iter().for_each(|part| report.differences.add(part));
        }
        Compare::ToSkip(_) if work.sink.compares_zeroes() => {
            report.compared = bytes;
            let zero = move |work: &Work, buffer: &mut Aligned| {
                let parts = not_zero(work, &range, buffer)?;
                parts.into_iter().try_for_each(|part| work.sink.zero(part, &work.halt))
            };
            work.reading(zero).await?;
        }
        _ if work.sink.is_zero_already() => {}
        _ => work.blocking(move |work| work.sink.zero(range, &work.halt)).await?,
    }
    Ok(report)
}

async fn run_fetch(work: &Arc<Work>, window: &Arc<Window>, fetch: Fetch) -> Result<Report, Failure> {
    let (store, name) = (&work.source.repository.store, names::pack(fetch.pack));
    let got = work.unless_halted(store.get_range(&name, fetch.range.clone())).await?;
    let Decoded { mut report, failed } = match got {
        Ok(bytes) => decode(work, window, fetch.frames, fetch.range.start, bytes).await?,
        Err(error) => unfetched(work, &fetch, error.into()).await?,
    };
    for (chunk, tried) in failed {
        report += rescue_or_hole(work, &window.chunks[chunk], tried).await?;
    }
    Ok(report)
}

/// A range that could not be fetched. When the pack was cut off, frames before its end can still be read one by one.
async fn unfetched(work: &Arc<Work>, fetch: &Fetch, error: Failure) -> Result<Decoded, Failure> {
    let size = work.unless_halted(work.source.repository.store.head(&names::pack(fetch.pack))).await?;
    let failed = fetch.frames.iter().map(|frame| {
        let end = range_of(&frame.copy).end;
        let why = match size {
            Ok(None) => Failure::damaged("the pack is missing"),
            Ok(Some(size)) if size < end => {
                Failure::damaged(format!("the pack is cut off after {size} bytes"))
            }
            Ok(Some(size)) if size < fetch.range.end => return (frame.chunk, Vec::new()),
            Ok(Some(_)) | Err(_) => error.clone(),
        };
        (frame.chunk, vec![Tried { copy: frame.copy, why }])
    });
    Ok(Decoded { report: Report::default(), failed: failed.collect() })
}

/// Opens the frames of a fetched range, which starts at `start` of its pack, and writes what they hold.
async fn decode(
    work: &Arc<Work>,
    window: &Arc<Window>,
    frames: Vec<Frame>,
    start: u64,
    bytes: Bytes,
) -> Result<Decoded, Failure> {
    work.counters.bytes_fetched.add(bytes.len() as u64);
    let keys = keys_for(work, &frames, start, &bytes).await?;
    let window = window.clone();
    let step = move |opener: &mut Opener, buffer: &mut Aligned, work: &Work| {
        let (mut decoded, mut batch) = (Decoded::default(), Batch::new(&work.sink, buffer));
        decoded.report.fetched = bytes.len() as u64;
        decoded.report.requests = 1;
        let mut written = Vec::with_capacity(frames.len());
        for frame in frames {
            if work.halt.is_raised() {
                break;
            }
            let wanted = &window.chunks[frame.chunk];
            let bytes = frame_bytes(&frame.copy, start, &bytes);
            match write_frame(work, opener, &mut batch, wanted, bytes, &keys) {
                Ok(report) => {
                    decoded.report += report;
                    written.push(frame.chunk);
                }
                Err(Trouble::Copy(why)) => {
                    decoded.failed.push((frame.chunk, vec![Tried { copy: frame.copy, why }]))
                }
                Err(Trouble::Target(failure)) => return Err(failure),
            }
        }
        batch.flush()?;
        work.repeats.note(&work.part, written.into_iter().map(|chunk| &window.chunks[chunk]));
        Ok(decoded)
    };
    work.blocking(move |work| {
        let Turns { openers, buffers, .. } = &work.turns;
        let make = || Ok(Opener::new(work.source.repository.key.chunk_ids())?);
        openers
            .lend(make, |opener| buffers.lend(|| Ok(Aligned::new()), |buffer| step(opener, buffer, work)))??
    })
    .await
}

/// The bytes of a frame inside a fetched range; what the range lacks is found out by the frame's own checks.
fn frame_bytes<'a>(copy: &Copy, start: u64, bytes: &'a [u8]) -> &'a [u8] {
    let from = (u64::from(copy.offset) - start) as usize;
    bytes.get(from..from + copy.len as usize).unwrap_or_default()
}

/// The keys that the frames' headers name. A header that cannot be read is found out when its frame is opened.
async fn keys_for(work: &Arc<Work>, frames: &[Frame], start: u64, bytes: &[u8]) -> Result<Keys, Failure> {
    let mut keys = Keys::new();
    for frame in frames {
        let Ok(header) = FrameHeader::parse(frame_bytes(&frame.copy, start, bytes)) else { continue };
        if let std::collections::btree_map::Entry::Vacant(entry) = keys.entry(header.key) {
            entry.insert(work.unless_halted(work.source.keys.get(header.key, frame.copy.pack)).await?);
        }
    }
    Ok(keys)
}

/// Verifies one frame and writes its plaintext to every place that wants it, or says whether it stands there. Blocks.
fn write_frame(
    work: &Work,
    opener: &mut Opener,
    batch: &mut Batch<'_>,
    wanted: &Wanted,
    frame: &[u8],
    keys: &Keys,
) -> Result<Report, Trouble> {
    let damaged = |e: schema::FormatError| Trouble::Copy(e.into());
    let header = FrameHeader::parse(frame).map_err(damaged)?;
    let candidates = match keys.get(&header.key) {
        Some(Ok(candidates)) => candidates,
        Some(Err(failure)) => return Err(Trouble::Copy(failure.clone())),
        None => return Err(Trouble::Copy(Failure::damaged("its key was not looked for"))),
    };
    let mut last = Trouble::Copy(Failure::damaged("no key is at hand"));
    for key in candidates.iter() {
        match opener.open(&wanted.id, frame, key) {
            Ok(plain) if plain.len() != wanted.len as usize => {
                let why = format!("the chunk has {} bytes, the map says {}", plain.len(), wanted.len);
                return Err(Trouble::Copy(Failure::damaged(why)));
            }
            Ok(plain) => {
                let mut report = Report { chunks: 1, ..Report::default() };
                for offset in &wanted.offsets {
                    let range = work.wanted(&(*offset..*offset + plain.len() as u64));
                    let bytes = &plain[(range.start - offset) as usize..(range.end - offset) as usize];
                    if let Compare::ToTell(reading) = &work.compare {
                        report.kept += bytes.len() as u64;
                        report.compared += bytes.len() as u64;
                        if !holds(reading, &range, bytes).map_err(Trouble::Target)? {
                            report.differences.add(range);
                        }
                        continue;
                    }
                    batch.write(range.start, bytes).map_err(Trouble::Target)?;
                    report.written += bytes.len() as u64;
                }
                work.counters.bytes_restored.add(report.written);
                return Ok(report);
            }
            Err(error) => last = damaged(error),
        }
    }
    Err(last)
}

async fn rescue_or_hole(work: &Arc<Work>, wanted: &Wanted, tried: Vec<Tried>) -> Result<Report, Failure> {
    let rescued = rescue(work, wanted, tried).await;
    let Err(failure) = &rescued else { return rescued };
    if !work.goes_on_after(failure) {
        return rescued;
    }
    let mut report = Report::default();
    for offset in &wanted.offsets {
        let range = work.wanted(&(*offset..*offset + u64::from(wanted.len)));
        report += leave_hole(work, range, &failure.why).await?;
    }
    Ok(report)
}

/// Instead of bytes that nobody can read any more, there are zeroes, and never what stood there before.
async fn leave_hole(work: &Arc<Work>, range: Range<u64>, why: &str) -> Result<Report, Failure> {
    let (volume, offset) = (&work.volume, range.start);
    tracing::error!(volume, offset, len = range.end - range.start, why, "left out");
    let hole = Hole { range: range.clone(), why: why.to_owned(), more: 0 };
    let lost = range.end - range.start;
    if !work.sink.is_zero_already() {
        work.blocking(move |work| work.sink.zero(range, &work.halt)).await?;
    }
    Ok(Report { lost, holes: vec![hole], ..Report::default() })
}

/// Writes a chunk from any copy that was not tried yet; then from any that the index has learnt of meanwhile, since a
/// collection may have moved it to another pack; and before it is lost, from any that a look at the bucket shows.
async fn rescue(work: &Arc<Work>, wanted: &Wanted, mut tried: Vec<Tried>) -> Result<Report, Failure> {
    let map = &work.source.map;
    if let Some(report) = from_any(work, wanted, &wanted.copies, &mut tried).await? {
        return Ok(report);
    }
    let mut unasked = None;
    match work.unless_halted(map.locate(&[wanted.id])).await? {
        Ok(located) => {
            let copies: Vec<Copy> = located.into_iter().flatten().collect();
            if let Some(report) = from_any(work, wanted, &copies, &mut tried).await? {
                return Ok(report);
            }
        }
        // There may be more.
        Err(failure) => unasked = Some(failure.context("cannot ask the index for more copies")),
    }
    let mut known: Vec<Copy> = tried.iter().map(|tried| tried.copy).collect();
    while unasked.is_none() && is_loss(&unreadable(work, wanted, &tried)) {
        match work.unless_halted(map.seek(&wanted.id, &known)).await? {
            Ok(Some(more)) => {
                if let Some(report) = from_any(work, wanted, &more, &mut tried).await? {
                    return Ok(report);
                }
                known.extend(more);
            }
            Ok(None) => break,
            Err(failure) => unasked = Some(failure),
        }
    }
    let failure = unreadable(work, wanted, &tried);
    Err(match unasked {
        Some(unasked) => Failure { why: format!("{failure}; {unasked}"), ..unasked },
        None => failure,
    })
}

/// Writes a chunk from the first of these copies that is whole and was not tried yet.
async fn from_any(
    work: &Arc<Work>,
    wanted: &Wanted,
    copies: &[Copy],
    tried: &mut Vec<Tried>,
) -> Result<Option<Report>, Failure> {
    for copy in copies.iter().filter(|copy| is_plausible(copy)) {
        if tried.iter().any(|tried| tried.copy == *copy) {
            continue;
        }
        match one_copy(work, wanted, *copy).await? {
            Ok(mut report) => {
                let (volume, offset, chunk) = (&work.volume, wanted.offset(), wanted.id);
                for Tried { copy, why } in tried.iter() {
                    let pack = names::pack(copy.pack);
                    tracing::warn!(volume, offset, %chunk, pack, %why, "read a chunk from another copy");
                }
                report.rescued += u64::from(!tried.is_empty());
                return Ok(Some(report));
            }
            Err(why) => tried.push(Tried { copy: *copy, why }),
        }
    }
    Ok(None)
}

/// Reads one copy by itself. The outer result is the restore's, the inner one the copy's.
async fn one_copy(work: &Arc<Work>, wanted: &Wanted, copy: Copy) -> Result<Result<Report, Failure>, Failure> {
    let bytes = match work.unless_halted(work.source.repository.read_frame(&copy)).await? {
        Ok(bytes) => bytes,
        Err(failure) => return Ok(Err(failure)),
    };
    let alone = Arc::new(Window { zeroes: Vec::new(), chunks: vec![wanted.clone()] });
    let mut decoded =
        decode(work, &alone, vec![Frame { chunk: 0, copy }], u64::from(copy.offset), bytes).await?;
    match decoded.failed.pop().and_then(|(_, mut tried)| tried.pop()) {
        Some(Tried { why, .. }) => Ok(Err(why)),
        None => Ok(Ok(decoded.report)),
    }
}

/// Names the volume, the offset, the chunk, and the pack of every copy.
fn unreadable(work: &Work, wanted: &Wanted, tried: &[Tried]) -> Failure {
    let (volume, offset, chunk) = (&work.volume, wanted.offset(), wanted.id);
    let what = format!("cannot read {volume} at offset {offset}: chunk {chunk}");
    if tried.is_empty() {
        return Failure::damaged(format!("{what} is in no pack that the index knows"));
    }
    let kind = [FailureKind::Refused, FailureKind::Store]
        .into_iter()
        .find(|kind| tried.iter().any(|tried| tried.why.kind == *kind))
        .unwrap_or(FailureKind::Damaged);
    let named = |tried: &Tried| {
        let (pack, why) = (names::pack(tried.copy.pack), &tried.why);
        // The store's own errors name the pack already.
        if why.why.contains(&pack) { why.why.clone() } else { format!("{pack}: {why}") }
    };
    let copies: Vec<String> = tried.iter().map(named).collect();
    Failure {
        retry: tried.iter().any(|tried| tried.why.retry),
        ..Failure::new(kind, format!("{what} has no readable copy: {}", copies.join("; ")))
    }
}
