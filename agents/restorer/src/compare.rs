//! Compares a target with a snapshot by content.
//!
//! What stands on a target already is neither fetched nor written: a restore that was cut off goes on where it was, and
//! one onto another day of the volume costs what differs. The target is read where the map says that chunks stand, and
//! a chunk is there when what is found has its id. Nothing else is trusted: no journal, no time, no size.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use agent::Failure;
use agent::buffer::ALIGN;
use schema::limits::CHUNK_MAX;
use schema::{ChunkId, Domain};

use crate::plan::Window;
use crate::restorer::Report;
use crate::unit::Work;

/// Bytes of the target that one step reads.
const STEP: u64 = 8 << 20;
/// Ranges that differ, and are told.
const TOLD_MAX: usize = 100;

/// What a target is compared for.
#[derive(Debug)]
pub(crate) enum Compare {
    /// It is not: it holds nothing, or all is to be written.
    Nothing,
    /// To leave alone what is the same.
    ToSkip,
    /// To know what differs.
    ToTell(Mutex<Differences>),
}

/// Where a target differs from a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Differences {
    /// Bytes in chunks, and in runs of up to 256 KiB that should be zero, that differ somewhere.
    pub bytes: u64,
    /// The first ranges of them in which something differs, in order, neighbours joined; 100 at most.
    pub first: Vec<Range<u64>>,
}

/// One place of a chunk.
#[derive(Debug, Clone, Copy)]
struct Place {
    chunk: usize,
    id: ChunkId,
    offset: u64,
    len: u32,
}

impl Place {
    fn range(&self) -> Range<u64> {
        self.offset..self.offset + u64::from(self.len)
    }
}

impl Differences {
    fn add(&mut self, range: Range<u64>) {
        self.bytes += range.end - range.start;
        let at = self.first.partition_point(|known| known.start < range.start);
        self.first.insert(at, range);
        self.first.dedup_by(|next, known| {
            let joined = known.end == next.start;
            if joined {
                known.end = next.end;
            }
            joined
        });
        self.first.truncate(TOLD_MAX);
    }
}

impl Compare {
    /// What was found to differ.
    pub fn differences(&self) -> Differences {
        match self {
            Self::ToTell(found) => found.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            Self::Nothing | Self::ToSkip => Differences::default(),
        }
    }

    fn tell(&self, range: Range<u64>) {
        if let Self::ToTell(found) = self {
            found.lock().unwrap_or_else(PoisonError::into_inner).add(range);
        }
    }
}

/// Takes out of a window the chunks that need not be fetched, and says what was found.
pub(crate) async fn leave_equal(work: &Arc<Work>, window: &mut Window) -> Result<Report, Failure> {
    if matches!(work.compare, Compare::Nothing) {
        return Ok(Report::default());
    }
    let steps = steps(window);
    let compared = steps.iter().flatten().map(|place| u64::from(place.len)).sum();
    let running = steps.into_iter().map(|places| work.blocking(move |work| same(work, places)));
    let mut report = Report { compared, ..Report::default() };
    for place in futures::future::try_join_all(running).await?.into_iter().flatten() {
        report.kept += u64::from(place.len);
        window.chunks[place.chunk].offsets.retain(|offset| *offset != place.offset);
    }
    window.chunks.retain(|wanted| !wanted.offsets.is_empty());
    if matches!(work.compare, Compare::ToTell(_)) {
        for wanted in window.chunks.drain(..) {
            for offset in &wanted.offsets {
                work.compare.tell(*offset..offset + u64::from(wanted.len));
            }
        }
        // Nothing is written.
        report.kept = compared;
    }
    Ok(report)
}

/// The places of a window's chunks, in order, some at a time.
fn steps(window: &Window) -> Vec<Vec<Place>> {
    let places = window.chunks.iter().enumerate().flat_map(|(chunk, wanted)| {
        let place = move |offset: &u64| Place { chunk, id: wanted.id, offset: *offset, len: wanted.len };
        wanted.offsets.iter().map(place)
    });
    let mut places: Vec<Place> = places.collect();
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

/// Those of the places where the target holds the chunk. Blocks.
fn same(work: &Work, places: Vec<Place>) -> Result<Vec<Place>, Failure> {
    let ids = work.repository.key.chunk_ids();
    let mut buffer = Aligned::new();
    let mut same = Vec::new();
    for place in places {
        if work.halt.is_raised() {
            break;
        }
        match work.sink.read(place.offset, place.len as usize, buffer.bytes()) {
            Ok(found) if ids.id(Domain::Data, found) == place.id => same.push(place),
            Ok(_) => {}
            Err(why) => unread(work, &place.range(), why)?,
        }
    }
    Ok(same)
}

/// What cannot be read is written anew, which may mend it; whoever asked what is there is told.
fn unread(work: &Work, range: &Range<u64>, why: Failure) -> Result<(), Failure> {
    match work.compare {
        Compare::ToTell(_) => Err(why),
        Compare::Nothing | Compare::ToSkip => {
            tracing::warn!(volume = work.volume, offset = range.start, %why, "written anew");
            Ok(())
        }
    }
}

/// The parts of a range that do not read as zero. Blocks.
pub(crate) fn not_zero(work: &Work, range: Range<u64>) -> Result<Vec<Range<u64>>, Failure> {
    let mut buffer = Aligned::new();
    let mut found: Vec<Range<u64>> = Vec::new();
    let mut at = range.start;
    while at < range.end && !work.halt.is_raised() {
        let part = at..range.end.min(at + CHUNK_MAX as u64);
        let is_zero = match work.sink.read(part.start, (part.end - part.start) as usize, buffer.bytes()) {
            Ok(bytes) => bytes.iter().all(|byte| *byte == 0),
            Err(why) => unread(work, &part, why).map(|()| false)?,
        };
        at = part.end;
        if is_zero {
            continue;
        }
        work.compare.tell(part.clone());
        match found.last_mut() {
            Some(last) if last.end == part.start => last.end = part.end,
            _ => found.push(part),
        }
    }
    Ok(found)
}

/// Room for one chunk, as direct I/O wants it.
struct Aligned {
    bytes: Vec<u8>,
    skip: usize,
}

impl Aligned {
    fn new() -> Self {
        let bytes = vec![0; CHUNK_MAX + ALIGN];
        let skip = bytes.as_ptr().align_offset(ALIGN);
        Self { bytes, skip }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.skip..self.skip + CHUNK_MAX]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_joined_in_any_order_and_bounded() {
        let mut found = Differences::default();
        for range in [10..20, 40..50, 20..30, 0..10] {
            found.add(range);
        }
        assert_eq!(found, Differences { bytes: 40, first: vec![0..30, 40..50] });
        for n in (0..1000).rev() {
            found.add(100 + 2 * n..101 + 2 * n);
        }
        assert_eq!((found.bytes, found.first.len()), (1040, TOLD_MAX));
        assert_eq!(found.first[..3], [0..30, 40..50, 100..101], "the first ones are told");
    }
}
