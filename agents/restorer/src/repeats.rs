//! Takes what comes again in a volume from where it stands on the target already, so that it is fetched once.
//!
//! Inside a window each chunk is fetched once anyhow; this is about windows that are far from each other, as where a
//! volume holds copies of an image. What was written is remembered as far as there is room for it, and verified by its
//! id when it is read again, so that what is remembered wrongly costs a read.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use agent::Failure;
use schema::{ChunkId, Domain};

use crate::compare::{all_of, without};
use crate::plan::{Wanted, Window};
use crate::reading::{Aligned, READ_MAX, Reading};
use crate::report::Report;
use crate::sink::Sink;
use crate::unit::Work;

/// Bytes that a chunk's place takes, with what a growing table has to spare.
const PLACE_LEN: u64 = 32;

/// Where chunks of a restore stand on its target.
pub(crate) struct Repeats {
    /// Offsets of the volume, by a part of the chunk's id.
    places: Mutex<HashMap<u64, u64>>,
    most: usize,
    reading: OnceLock<Option<Reading>>,
}

/// A chunk that stands somewhere, and the places that want it.
struct Again {
    id: ChunkId,
    from: Range<u64>,
    offsets: Vec<u64>,
}

/// The places of a chunk that lie in `part` as a whole.
fn whole(wanted: &Wanted, part: &Range<u64>) -> impl Iterator<Item = u64> {
    let (part, len) = (part.clone(), u64::from(wanted.len));
    wanted.offsets.iter().copied().filter(move |at| part.start <= *at && at + len <= part.end)
}

fn key(id: &ChunkId) -> u64 {
    let mut part = [0; 8];
    // The first byte is the domain.
    part.copy_from_slice(&id.as_bytes()[1..9]);
    u64::from_le_bytes(part)
}

impl Repeats {
    /// Remembers as many as fit so many bytes.
    pub fn new(bytes: u64) -> Self {
        let (places, reading) = (Mutex::default(), OnceLock::new());
        Self { places, most: (bytes / PLACE_LEN) as usize, reading }
    }

    /// These chunks were written, as far as they are wanted of `part`.
    pub fn note<'a>(&self, part: &Range<u64>, written: impl Iterator<Item = &'a Wanted>) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        for wanted in written {
            let Some(at) = whole(wanted, part).next() else { continue };
            if places.len() < self.most {
                places.entry(key(&wanted.id)).or_insert(at);
            }
        }
    }

    /// What of a window stands somewhere, in the order of these places.
    fn of(&self, window: &Window, part: &Range<u64>) -> Vec<Again> {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let again = |wanted: &Wanted| {
            let from = *places.get(&key(&wanted.id))?;
            let from = from..from + u64::from(wanted.len);
            Some(Again { id: wanted.id, from, offsets: whole(wanted, part).collect() })
        };
        let mut found: Vec<Again> = window.chunks.iter().filter_map(again).collect();
        found.sort_unstable_by_key(|again| again.from.start);
        found
    }

    /// The target. Blocks.
    fn reading(&self, sink: &Sink) -> Option<&Reading> {
        let Sink::Target(opened) = sink else { return None };
        let open = || {
            let reading = Reading::of_written(opened);
            reading.inspect_err(|why| tracing::debug!(%why, "what comes again is fetched again")).ok()
        };
        self.reading.get_or_init(open).as_ref()
    }
}

/// Writes what stands elsewhere on the target already, and takes it out of the window.
pub(crate) async fn copy_repeated(work: &Arc<Work>, window: &mut Window) -> Result<Report, Failure> {
    let running = runs(work.repeats.of(window, &work.part)).into_iter();
    let running = running.map(|run| work.reading(move |work, buffer| copied(work, &run, buffer)));
    let copied = all_of(running).await?.into_iter().collect();
    Ok(Report { copied: without(window, &copied), ..Report::default() })
}

/// Runs of neighbours, each of which is read at once.
fn runs(found: Vec<Again>) -> Vec<Vec<Again>> {
    let mut runs: Vec<Vec<Again>> = Vec::new();
    for again in found {
        let goes_on = |run: &&mut Vec<Again>| {
            let (first, last) = (&run[0].from, &run[run.len() - 1].from);
            last.end == again.from.start && again.from.end - first.start <= READ_MAX
        };
        match runs.last_mut().filter(goes_on) {
            Some(run) => run.push(again),
            None => runs.push(vec![again]),
        }
    }
    runs
}

/// Writes those of a run's chunks that stand where they should, and returns the offsets that have them now. Blocks.
fn copied(work: &Work, run: &[Again], buffer: &mut Aligned) -> Result<Vec<u64>, Failure> {
    let mut copied = Vec::new();
    let Some(reading) = work.repeats.reading(&work.sink).filter(|_| !work.halt.is_raised()) else {
        return Ok(copied);
    };
    let start = run[0].from.start;
    let found = match reading.read(&(start..run[run.len() - 1].from.end), buffer) {
        Ok(found) => found,
        Err(why) => {
            tracing::warn!(volume = work.volume, %why, "fetched instead");
            return Ok(copied);
        }
    };
    let ids = work.source.repository.key.chunk_ids();
    for Again { id, from, offsets } in run {
        let bytes = &found[(from.start - start) as usize..(from.end - start) as usize];
        if ids.id(Domain::Data, bytes) != *id {
            continue;
        }
        for offset in offsets {
            work.sink.write(*offset, bytes)?;
            work.counters.bytes_restored.add(bytes.len() as u64);
            copied.push(*offset);
        }
    }
    Ok(copied)
}
