//! Compares a target with a snapshot by content.
//!
//! What stands on a target already is neither fetched nor written: a restore that was cut off goes on where it was, and
//! one onto another day of the volume costs what differs. The target is read where the map says that chunks stand, and
//! a chunk is there when what is found has its id. Nothing else is trusted: no journal, no time, no size, no cache.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use agent::Failure;
use schema::limits::CHUNK_MAX;
use schema::{ChunkId, Domain};

use crate::plan::{Wanted, Window};
use crate::reading::{Aligned, READ_MAX, Reading};
use crate::restorer::Report;
use crate::unit::Work;

/// Bytes of the target that one step reads.
const STEP: u64 = 8 << 20;

/// What a target is compared for.
#[derive(Debug)]
pub(crate) enum Compare {
    /// It is not: it holds nothing, or all is to be written.
    Nothing,
    /// To leave alone what is the same.
    ToSkip(Reading),
    /// To know what differs.
    ToTell(Reading),
}

/// One place of a chunk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub id: ChunkId,
    pub offset: u64,
    pub len: u32,
}

impl Place {
    fn range(&self) -> Range<u64> {
        self.offset..self.offset + u64::from(self.len)
    }

    fn is_inside(&self, part: &Range<u64>) -> bool {
        part.start <= self.offset && self.range().end <= part.end
    }
}

impl Compare {
    /// The target, when it is compared.
    pub fn reading(&self) -> Option<&Reading> {
        match self {
            Self::Nothing => None,
            Self::ToSkip(reading) | Self::ToTell(reading) => Some(reading),
        }
    }
}

/// Takes out of a window the chunks that need not be fetched, and says what was found.
pub(crate) async fn leave_equal(work: &Arc<Work>, window: &mut Window) -> Result<Report, Failure> {
    if work.compare.reading().is_none() {
        return Ok(Report::default());
    }
    let steps = steps(window, &work.part);
    let compared = steps.iter().flatten().map(|place| u64::from(place.len)).sum();
    let running =
        steps.into_iter().map(|places| work.reading(move |work, buffer| same(work, &places, buffer)));
    let same = all_of(running).await?.into_iter().collect();
    let mut report = Report { compared, kept: without(window, &same), ..Report::default() };
    if matches!(work.compare, Compare::ToTell(_)) {
        for wanted in &mut window.chunks {
            let Wanted { id, len, .. } = *wanted;
            wanted.offsets.retain(|offset| {
                let place = Place { id, offset: *offset, len };
                let is_told = place.is_inside(&work.part);
                if is_told {
                    report.differences.add(place.range());
                }
                // Of what is wanted in part only, the content is asked.
                !is_told
            });
        }
        window.chunks.retain(|wanted| !wanted.offsets.is_empty());
        // Nothing is written.
        report.kept = compared;
    }
    Ok(report)
}

/// Takes what another target of the same restore holds from there, and out of the window.
pub(crate) async fn copy_equal(work: &Arc<Work>, window: &mut Window) -> Result<Report, Failure> {
    if work.donor.is_none() {
        return Ok(Report::default());
    }
    let steps = steps(window, &work.part).into_iter();
    let running = steps.map(|places| work.reading(move |work, buffer| copied(work, &places, buffer)));
    let copied = all_of(running).await?.into_iter().collect();
    Ok(Report { copied: without(window, &copied), ..Report::default() })
}

/// What all steps found. Each is waited for in every outcome, so that nobody touches the target when this is over.
pub(crate) async fn all_of(
    steps: impl Iterator<Item = impl Future<Output = Result<Vec<u64>, Failure>>>,
) -> Result<Vec<u64>, Failure> {
    let found: Result<Vec<_>, Failure> = futures::future::join_all(steps).await.into_iter().collect();
    Ok(found?.concat())
}

/// Takes places out of a window, and says how many bytes they are.
pub(crate) fn without(window: &mut Window, offsets: &HashSet<u64>) -> u64 {
    let mut bytes = 0;
    for wanted in &mut window.chunks {
        let before = wanted.offsets.len();
        wanted.offsets.retain(|offset| !offsets.contains(offset));
        bytes += (before - wanted.offsets.len()) as u64 * u64::from(wanted.len);
    }
    window.chunks.retain(|wanted| !wanted.offsets.is_empty());
    bytes
}

/// The places of a window's chunks that lie in `part` as a whole, in order, some at a time.
fn steps(window: &Window, part: &Range<u64>) -> Vec<Vec<Place>> {
    let places = window.chunks.iter().flat_map(|wanted| {
        let place = |offset: &u64| Place { id: wanted.id, offset: *offset, len: wanted.len };
        wanted.offsets.iter().map(place)
    });
    let mut places: Vec<Place> = places.filter(|place| place.is_inside(part)).collect();
    places.sort_unstable_by_key(|place| place.offset);
    let mut steps: Vec<Vec<Place>> = Vec::new();
    let mut bytes = 0;
    for place in places {
        match steps.last_mut() {
            Some(step) if bytes < STEP => step.push(place),
            _ => {
                steps.push(vec![place]);
                bytes = 0;
            }
        }
        bytes += u64::from(place.len);
    }
    steps
}

/// The offsets of those of the places where the target holds the chunk. Blocks.
fn same(work: &Work, places: &[Place], buffer: &mut Aligned) -> Result<Vec<u64>, Failure> {
    let Some(reading) = work.compare.reading() else { return Ok(Vec::new()) };
    let mut offsets = |run: &[Place]| -> Result<Vec<u64>, Failure> {
        let found: Vec<Place> = same_of_run(work, reading, run, buffer)?.map(|(place, _)| *place).collect();
        work.repeats.note_at(found.iter().map(|place| (place.id, place.offset)));
        Ok(found.into_iter().map(|place| place.offset).collect())
    };
    let mut same = Vec::new();
    for run in runs(places) {
        if work.halt.is_raised() {
            break;
        }
        match offsets(run) {
            Ok(found) => same.extend(found),
            // One of them cannot be read, which says nothing of the others.
            Err(_) if run.len() > 1 => {
                for place in run.chunks(1) {
                    match offsets(place) {
                        Ok(found) => same.extend(found),
                        Err(why) => unread(work, place[0].offset, why)?,
                    }
                }
            }
            Err(why) => unread(work, run[0].offset, why)?,
        }
    }
    Ok(same)
}

/// Writes those of the chunks that the donor holds, and returns their offsets. Blocks.
fn copied(work: &Work, places: &[Place], buffer: &mut Aligned) -> Result<Vec<u64>, Failure> {
    let Some(donor) = &work.donor else { return Ok(Vec::new()) };
    let mut copied = Vec::new();
    for run in runs(places) {
        if work.halt.is_raised() {
            break;
        }
        match same_of_run(work, donor, run, buffer) {
            Ok(found) => {
                for (place, bytes) in found {
                    work.sink.write(place.offset, bytes)?;
                    work.counters.bytes_restored.add(bytes.len() as u64);
                    work.repeats.note_at(std::iter::once((place.id, place.offset)));
                    copied.push(place.offset);
                }
            }
            Err(why) => tracing::warn!(volume = work.volume, %why, "fetched instead"),
        }
    }
    Ok(copied)
}

/// Runs of neighbours, each of which is read at once.
pub(crate) fn runs(places: &[Place]) -> Vec<&[Place]> {
    let mut runs = Vec::new();
    let mut first = 0;
    for n in 1..=places.len() {
        let goes_on = n < places.len()
            && places[n].offset == places[n - 1].range().end
            && places[n].range().end - places[first].offset <= READ_MAX;
        if !goes_on {
            runs.push(&places[first..n]);
            first = n;
        }
    }
    runs
}

/// Those of a run's chunks that are there, each with its bytes.
pub(crate) fn same_of_run<'a>(
    work: &'a Work,
    reading: &Reading,
    run: &'a [Place],
    buffer: &'a mut Aligned,
) -> Result<impl Iterator<Item = (&'a Place, &'a [u8])>, Failure> {
    let start = run.first().map_or(0, |place| place.offset);
    let end = run.last().map_or(0, |place| place.range().end);
    let found = reading.read(&(start..end), buffer)?;
    let ids = work.source.repository.key.chunk_ids();
    let there = move |place: &'a Place| {
        let from = (place.offset - start) as usize;
        (place, &found[from..from + place.len as usize])
    };
    Ok(run.iter().map(there).filter(move |(place, bytes)| ids.id(Domain::Data, bytes) == place.id))
}

/// Whether these bytes, of a chunk that is wanted in part, stand there. Blocks.
pub(crate) fn holds(reading: &Reading, range: &Range<u64>, bytes: &[u8]) -> Result<bool, Failure> {
    Ok(reading.read(range, &mut Aligned::new())? == bytes)
}

/// What cannot be read is written anew, which may mend it; whoever asked what is there is told.
fn unread(work: &Work, offset: u64, why: Failure) -> Result<(), Failure> {
    match work.compare {
        Compare::ToTell(_) => Err(why),
        Compare::Nothing | Compare::ToSkip(_) => {
            tracing::warn!(volume = work.volume, offset, %why, "written anew");
            Ok(())
        }
    }
}

/// The parts of a range that do not read as zero. Blocks.
pub(crate) fn not_zero(
    work: &Work,
    range: &Range<u64>,
    buffer: &mut Aligned,
) -> Result<Vec<Range<u64>>, Failure> {
    let Some(reading) = work.compare.reading() else { return Ok(vec![range.clone()]) };
    let mut found: Vec<Range<u64>> = Vec::new();
    let mut at = range.start;
    while at < range.end && !work.halt.is_raised() {
        let end = range.end.min(at + READ_MAX);
        let read = reading.read(&(at..end), buffer);
        for from in (at..end).step_by(CHUNK_MAX) {
            let part = from..end.min(from + CHUNK_MAX as u64);
            let is_zero = match &read {
                Ok(bytes) => {
                    let bytes = &bytes[(part.start - at) as usize..(part.end - at) as usize];
                    bytes.iter().all(|byte| *byte == 0)
                }
                Err(_) => false,
            };
            match found.last_mut() {
                _ if is_zero => {}
                Some(last) if last.end == part.start => last.end = part.end,
                _ => found.push(part),
            }
        }
        if let Err(why) = read {
            unread(work, at, why)?;
        }
        at = end;
    }
    Ok(found)
}
