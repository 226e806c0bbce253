//! Drives a restore: resolves windows of the map ahead, and runs their units side by side within the memory budget.
//!
//! No step waits for a whole window: while one is written, the next is resolved and fetched. On the first failure every
//! task gives up, and the call returns only when none of them touches the target any more.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use agent::{Failure, Stop};
use schema::limits::LEAF_SPAN;
use schema::map::Piece;
use schema::messages::FailureKind;
use schema::{ChunkId, PackId};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::{JoinHandle, JoinSet};

use crate::compare::{copy_equal, leave_equal};
use crate::plan::{FETCH_MAX, Window};
use crate::repeats::copy_repeated;
use crate::restorer::{Progress, Report};
use crate::sink::Sink;
use crate::snapback::{keep_whole, keep_window, keep_zeroed};
use crate::spans::WINDOW_LEAVES;
use crate::tracked;
use crate::unit::{Unit, Work};

/// Windows of one restore that are resolved at once; as many again wait for their turn.
const WINDOWS_AHEAD: usize = 2;
/// Pause before the bus is asked again.
pub(crate) const RETRY_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);
/// Units in flight at most, however small they are.
const UNITS_MAX: u64 = 256;
/// Bytes written after which the target is told to make them durable, beside everything else: so that its device works
/// from the beginning, and the end waits for little.
const SYNC_EVERY: u64 = 64 << 20;

/// Bytes of one fetch at most, so that several fit the memory.
fn fetch_limit(memory: u64) -> u64 {
    (memory / 4).min(FETCH_MAX)
}

/// A unit's part of the memory.
type Permit = Option<OwnedSemaphorePermit>;

/// The units of a window, and its turn.
type Resolved = (Vec<Unit>, Option<OwnedSemaphorePermit>);

/// Units of the windows that are resolved, in order, each with its share of the memory.
struct Feed {
    windows: mpsc::Receiver<Resolved>,
    waiting: VecDeque<Unit>,
    /// Of the window whose units wait.
    turn: Option<OwnedSemaphorePermit>,
}

/// What a task came to, and the bytes that it had in flight.
struct Ended {
    held: u64,
    result: Result<Report, Failure>,
}

impl Feed {
    /// The next unit, when there is memory for it; none at the end. Dropping the future loses nothing.
    async fn next(&mut self, work: &Work) -> Option<(Unit, Permit)> {
        while self.waiting.is_empty() {
            self.turn = None;
            let (units, turn) = self.windows.recv().await?;
            (self.waiting, self.turn) = (units.into(), turn);
        }
        let bytes = self.waiting.front().map_or(0, Unit::bytes);
        let memory = work.turns.bytes;
        let share = bytes.max(memory / UNITS_MAX).min(memory) as u32;
        // The semaphore is never closed, so that waiting cannot fail.
        let permit = work.turns.memory.clone().acquire_many_owned(share).await.ok();
        self.waiting.pop_front().map(|unit| (unit, permit))
    }
}

/// Raises a flag when it is dropped, so that threads stop writing even when the caller drops the restore.
struct HaltOnDrop(Stop);

impl Drop for HaltOnDrop {
    fn drop(&mut self) {
        self.0.raise();
    }
}

/// Restores everything that `work` says.
pub(crate) async fn run(
    work: &Arc<Work>,
    stop: &Stop,
    progress: &impl Fn(Progress),
) -> Result<Report, Failure> {
    let _halt = HaltOnDrop(work.halt.clone());
    // Whoever hears of progress takes it that something may be written from then on.
    if stop.is_raised() {
        return Err(stopped_at(work));
    }
    let total = work.part.end - work.part.start;
    let mut report = Report { size: total, ..Report::default() };
    let mut failure: Option<Failure> = None;
    let mut tasks: JoinSet<Ended> = JoinSet::new();
    let (sender, windows) = mpsc::channel(1);
    tasks.spawn(without_memory(resolve(work.clone(), fetch_limit(work.turns.bytes), sender)));
    let (mut unsynced, mut held) = (0, 0);
    let mut feed = Some(Feed { windows, waiting: VecDeque::new(), turn: None });
    progress(Progress { total, done: 0, fetched: 0 });
    while feed.is_some() || !tasks.is_empty() {
        let failed = tokio::select! {
            biased;
            () = stop.raised(), if failure.is_none() => Some(stopped_at(work)),
            Some(joined) = tasks.join_next() => match joined {
                Ok(Ended { held: given_back, result: Ok(step) }) => {
                    held -= given_back;
                    unsynced += step.written + step.copied;
                    report += step;
                    if unsynced >= SYNC_EVERY && failure.is_none() && work.sink.may_sync() {
                        unsynced = 0;
                        tasks.spawn(without_memory(synced(work.clone())));
                    }
                    let done = accounted(&report) + work.spans.helped_bytes();
                    progress(Progress { total, done, fetched: report.fetched });
                    None
                }
                // Who had to stop for another's failure may be the first to end.
                Ok(Ended { result: Err(failure), .. }) => Some(work.failed.get().cloned().unwrap_or(failure)),
                Err(why) => {
                    let why = format!("restoring {}: a task ended: {why}", work.volume);
                    Some(Failure::new(FailureKind::Other, why))
                }
            },
            next = next_of(&mut feed, work), if held < work.memory() => {
                match next {
                    Some((unit, permit)) => {
                        held += bytes_of(&permit);
                        tasks.spawn(in_turn(unit, permit, work.clone()));
                    }
                    None => feed = None,
                }
                None
            }
        };
        if let Some(failed) = failed {
            failure.get_or_insert(failed);
            feed = None;
            work.halt.raise();
        }
    }
    report += work.spans.helped();
    match failure {
        Some(failure) => Err(failure),
        None if accounted(&report) != total => {
            let (volume, done) = (&work.volume, accounted(&report));
            let why = format!("restoring {volume} accounted for {done} of {total} bytes");
            Err(Failure::new(FailureKind::Other, why))
        }
        None => Ok(report),
    }
}

/// Bytes of the volume that are done with.
fn accounted(report: &Report) -> u64 {
    report.written + report.kept + report.copied + report.zeroed + report.lost
}

/// Waits for ever when there is no feed any more.
async fn next_of(feed: &mut Option<Feed>, work: &Work) -> Option<(Unit, Permit)> {
    match feed {
        Some(feed) => feed.next(work).await,
        None => std::future::pending().await,
    }
}

fn bytes_of(permit: &Permit) -> u64 {
    permit.as_ref().map_or(0, |permit| permit.num_permits() as u64)
}

async fn in_turn(unit: Unit, permit: Permit, work: Arc<Work>) -> Ended {
    let held = bytes_of(&permit);
    let result = unit.run(work).await;
    drop(permit);
    Ended { held, result }
}

async fn without_memory(step: impl Future<Output = Result<Report, Failure>>) -> Ended {
    Ended { held: 0, result: step.await }
}

/// Makes durable what is written so far. It takes no turn: it waits for the device alone.
async fn synced(work: Arc<Work>) -> Result<Report, Failure> {
    let (volume, environment) = (work.volume.clone(), work.environment.clone());
    let done = environment.on_a_thread(move || work.sink.sync()).await;
    done.map_err(|failure| failure.context(format!("restoring {volume}")))?.map(|()| Report::default())
}

/// Somebody asked for an end.
pub(crate) fn stopped(volume: &str) -> Failure {
    not_complete("restore", volume)
}

/// The same of what only reads.
pub(crate) fn reading_stopped(volume: &str) -> Failure {
    not_complete("reading", volume)
}

fn stopped_at(work: &Work) -> Failure {
    match work.sink {
        Sink::Target(_) => stopped(&work.volume),
        Sink::Discard | Sink::Memory(_) => reading_stopped(&work.volume),
    }
}

fn not_complete(what: &str, volume: &str) -> Failure {
    let why = format!("the {what} of {volume} was stopped before it was complete");
    Failure { retry: true, ..Failure::new(FailureKind::Revoked, why) }
}

/// Resolves window after window, some ahead of their turn.
async fn resolve(
    work: Arc<Work>,
    fetch_limit: u64,
    sender: mpsc::Sender<Resolved>,
) -> Result<Report, Failure> {
    keep_whole(&work).await?;
    if work.source.map.root().top.is_none() {
        for range in zeroes(&work) {
            keep_zeroed(&work, range.clone()).await?;
            // Nobody listening any more means that the restore has failed elsewhere.
            if sender.send((vec![Unit::Zero(range)], None)).await.is_err() {
                break;
            }
        }
        return Ok(Report::default());
    }
    // Tasks of their own: they wait for turns that units wait for, too, and must go on with them when nobody takes
    // windows.
    let mut begun = VecDeque::new();
    let mut result = Ok(Report::default());
    loop {
        while begun.len() < WINDOWS_AHEAD && work.spans.has_next() {
            let turns = work.turns.windows.clone();
            // Who has a window waits for no other: whoever has the turns might do the same.
            let turn = match begun.is_empty() {
                true => work.unless_halted(turns.acquire_owned()).await.ok().and_then(Result::ok),
                false => turns.try_acquire_owned().ok(),
            };
            let Some(turn) = turn else { break };
            let Some(leaves) = work.spans.next() else { break };
            let work = work.clone();
            begun.push_back(tokio::spawn(async move {
                Ok((resolve_window(&work, leaves, fetch_limit).await?, Some(turn)))
            }));
        }
        let Some(next) = begun.pop_front() else {
            match work.unless_halted(work.spans.more()).await {
                Ok(true) => continue,
                Ok(false) => break,
                Err(halted) => return Err(halted),
            }
        };
        match resolved(&work, next).await {
            Ok(units) => {
                if sender.send(units).await.is_err() {
                    break;
                }
            }
            Err(failure) => {
                result = Err(failure);
                break;
            }
        }
    }
    if let Err(failure) = &result
        && !work.halt.is_raised()
    {
        // Units stop for it, and may be heard of before this.
        work.failed.get_or_init(|| failure.clone());
        work.halt.raise();
    }
    // Nobody reads the target any more when this is over.
    for window in begun {
        let _ = resolved(&work, window).await;
    }
    result
}

/// The parts of a volume that reads as zero throughout: all of it where nothing is to be done, and elsewhere no more
/// than a step should take.
fn zeroes(work: &Work) -> impl Iterator<Item = Range<u64>> + use<> {
    let Range { start, end } = work.part;
    let step = match work.compare.reading().is_none() && work.sink.is_zero_already() {
        true => u64::MAX,
        false => WINDOW_LEAVES * LEAF_SPAN,
    };
    let next = move |at: &u64| Some(at.saturating_add(step)).filter(|next| *next < end);
    let starts = std::iter::successors(Some(start).filter(|start| *start < end), next);
    starts.map(move |at| at..at.saturating_add(step).min(end))
}

async fn resolved(work: &Work, window: JoinHandle<Result<Resolved, Failure>>) -> Result<Resolved, Failure> {
    let ended = |why| Failure::new(FailureKind::Other, format!("restoring {}: {why}", work.volume));
    window.await.unwrap_or_else(|why| Err(ended(why)))
}

async fn resolve_window(
    work: &Arc<Work>,
    leaves: Range<u64>,
    fetch_limit: u64,
) -> Result<Vec<Unit>, Failure> {
    let start = work.source.map.geometry().leaf_range(leaves.start).start;
    let (mut window, lost, mut found) = work.unless_halted(read_window(work, leaves)).await??;
    found += leave_equal(work, &mut window).await?;
    keep_window(work, &window, &lost).await?;
    found += copy_equal(work, &mut window).await?;
    found += copy_repeated(work, &mut window).await?;
    work.unless_halted(locate(work, &mut window)).await?.map_err(|failure| {
        failure.context(format!("cannot find the chunks of {} from offset {start} on", work.volume))
    })?;
    let window = Arc::new(window);
    let zeroes = window.zeroes.iter().cloned().map(Unit::Zero);
    let sought = window.without_copies().map(|chunk| Unit::Seek(window.clone(), chunk));
    let fetches = window.fetches(fetch_limit).into_iter().map(|fetch| Unit::Fetch(window.clone(), fetch));
    Ok(std::iter::once(Unit::Found(found)).chain(lost).chain(zeroes).chain(sought).chain(fetches).collect())
}

/// What is wanted of a run of the map, what of it is lost with a part of the map, and what is known to stand there.
async fn read_window(work: &Work, leaves: Range<u64>) -> Result<(Window, Vec<Unit>, Report), Failure> {
    let map = &work.source.map;
    let (numbers, mut found) = tracked::differing(work, leaves).await;
    let read = futures::future::join_all(numbers.iter().map(|leaf| map.leaf(*leaf))).await;
    let (mut leaves, mut lost) = (Vec::new(), Vec::new());
    for (&number, leaf) in numbers.iter().zip(read) {
        let range = map.geometry().leaf_range(number);
        match leaf {
            Ok(leaf) => leaves.push((range.start, leaf)),
            Err(failure) if work.goes_on_after(&failure) => {
                lost.push(Unit::Lose(work.wanted(&range), format!("the map there: {failure}")));
            }
            Err(failure) => {
                let (volume, offset) = (&work.volume, range.start);
                return Err(failure.context(format!("cannot read the map of {volume} at offset {offset}")));
            }
        }
    }
    let located = leaves.iter().flat_map(|(start, leaf)| leaf.located(*start));
    let wanted = |offset: u64, piece: &Piece| work.wanted(&(offset..offset + u64::from(piece.len)));
    let mut window = Window::new(located.filter(|(offset, piece)| !wanted(*offset, piece).is_empty()));
    window.zeroes.iter_mut().for_each(|range| *range = work.wanted(range));
    found += tracked::leave_unchanged(work, &mut window, &numbers).await;
    Ok((window, lost, found))
}

/// Finds copies of what is wanted, the best first.
async fn locate(work: &Work, window: &mut Window) -> Result<(), Failure> {
    let ids: Vec<_> = window.chunks.iter().map(|wanted| wanted.id).collect();
    for (wanted, copies) in window.chunks.iter_mut().zip(work.source.map.locate(&ids).await?) {
        wanted.copies = copies;
    }
    let mut counting = BTreeSet::new();
    for pack in window.packs() {
        let counts = match &work.source.session {
            // A pack that cannot be asked for just now is tried last.
            Some(session) => session.counts(pack).await.unwrap_or(false),
            None => true,
        };
        if counts {
            counting.insert(pack);
        }
    }
    let damages = work.source.session.as_ref().map(|session| session.damages());
    let is_damaged = |id: &ChunkId, pack: PackId| damages.is_some_and(|damages| damages.has(id, &pack));
    window.rank(|id, pack| counting.contains(&pack) && !is_damaged(id, pack));
    Ok(())
}
