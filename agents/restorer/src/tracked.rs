//! What of a target need not be read, because it knows what has changed on it since a snapshot of the repository.
//!
//! Where that snapshot and the one that is restored are the same, and nothing has changed since, the target holds what
//! it should. Never on the list's word alone: the snapshot must have been made of the very state that the list begins
//! with, and some of what the list leaves out is drawn at random, read, and compared with that snapshot by the ids of
//! its chunks. One difference, and everything is compared. What cannot be found out is a reason to read, and never an
//! error.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use agent::maps::MapReader;
use agent::repository::AtSlot;
use agent::{Base, Changes, Failure, Place, Repository, Stop};
use rustix::fs::{SeekFrom, seek};
use schema::limits::BLOCK;
use schema::map::{Content, Geometry, Leaf};
use schema::root::Root;
use schema::{ChunkId, Domain};

use crate::plan::Window;
use crate::reading::{Aligned, READ_MAX, Reading};
use crate::restorer::{Report, Restorer};
use crate::unit::Work;

#[cfg(test)]
mod tests;

/// What is known of a target's changes.
pub(crate) struct Tracked {
    /// The snapshot that the target was like.
    base: MapReader,
    /// What may have changed since: in whole blocks, in order, with something between any two.
    changed: Vec<Range<u64>>,
}

/// What was found out about a target's changes.
#[derive(Clone, Default)]
pub(crate) struct Found {
    /// What is known.
    tracked: Option<Arc<Tracked>>,
    /// Why nothing is known where something was to be expected.
    notes: Vec<String>,
}

/// What an audit reads: a chunk, or zeroes.
type Piece = (Range<u64>, Option<ChunkId>);

/// What an audit came to.
#[derive(Debug, Default)]
struct Audited {
    /// Bytes that were read.
    read: u64,
    /// Why the list is not used.
    doubt: Option<String>,
}

impl Restorer {
    /// What changed on a target since one of the repository's snapshots: the one that is restored, or the newest.
    pub(crate) async fn find_changes(
        &self,
        reads: &Repository,
        root: &Root,
        place: &dyn Place,
        device: &File,
    ) -> Found {
        let mut bases = place.bases();
        bases.sort_by_key(|base| (base.session != root.slot.session, Reverse(base.session)));
        let mut whys = Vec::new();
        for base in bases {
            match self.changes_since(reads, root, place, device, &base).await {
                Ok(tracked) => return Found { tracked: Some(Arc::new(tracked)), notes: Vec::new() },
                Err(why) => whys.push(format!("since {}: {why}", base.session)),
            }
        }
        let mut notes = Vec::new();
        if !whys.is_empty() {
            let (name, why) = (place.name(), whys.join("; "));
            tracing::warn!(target = name, why, "it is not known what changed: reading everything");
            notes.push(format!(
                "it is not known what changed on {name}, so that all of it is compared ({why})"
            ));
        }
        Found { tracked: None, notes }
    }

    async fn changes_since(
        &self,
        reads: &Repository,
        root: &Root,
        place: &dyn Place,
        device: &File,
        base: &Base,
    ) -> Result<Tracked, String> {
        let found = match base.session == root.slot.session {
            true => Some(root.clone()),
            false => self.committed(root, base).await.map_err(|failure| failure.why)?,
        };
        let found = found.ok_or("the repository has no such snapshot")?;
        if found.reading != base.reading || found.changed_while_read {
            return Err("the snapshot was made of another state".to_owned());
        }
        let size = seek(device, SeekFrom::End(0)).map_err(|why| why.to_string())?;
        if found.size != size {
            return Err(format!("the snapshot has {} bytes, and the target has {size}", found.size));
        }
        let ranges = match place.changes(device, base).await {
            Changes::Since { parent, ranges } if parent == base.session => ranges,
            Changes::Since { .. } => return Err("its changes are about another snapshot".to_owned()),
            Changes::Unknown { why } => return Err(why.unwrap_or_else(|| "nothing is kept of it".to_owned())),
        };
        let map = MapReader::new(reads.clone(), self.index.clone(), found);
        let map = map.map_err(|failure| failure.why)?;
        Tracked::new(map, &ranges).ok_or_else(|| "the list of changes is out of order".to_owned())
    }

    /// The snapshot of a session; most often one of the same volume.
    async fn committed(&self, root: &Root, base: &Base) -> Result<Option<Root>, Failure> {
        let own = schema::names::Slot { session: base.session, ..root.slot };
        if let AtSlot::Snapshot(found) = self.repository.at_slot(own).await? {
            return Ok(Some(*found));
        }
        let slots = self.repository.visible_slots(None).await?;
        let Some(slot) = slots.into_iter().find(|slot| slot.session == base.session) else { return Ok(None) };
        match self.repository.at_slot(slot).await? {
            AtSlot::Snapshot(found) => Ok(Some(*found)),
            AtSlot::Tombstone | AtSlot::Nothing => Ok(None),
        }
    }

    /// Looks whether what is said not to have changed is what it was, and lets it be used if it is. Returns what was read,
    /// and what the operator should know.
    pub(crate) async fn audit(&self, work: &Arc<Work>, found: Found, stop: &Stop) -> Report {
        if work.compare.reading().is_none() {
            return Report::default();
        }
        let mut report = Report { notes: found.notes, ..Report::default() };
        let Some(tracked) = found.tracked else { return report };
        let environment = &self.context.environment;
        let gaps = gaps(&tracked.changed, work.part.start / BLOCK * BLOCK..work.part.end);
        let windows = self.settings.audit.windows(gaps, || u64::from_le_bytes(environment.random()));
        let audited = tracked.look(work, windows, stop).await;
        (report.audited, report.compared) = (audited.read, audited.read);
        match audited.doubt {
            None => drop(work.tracked.set(tracked)),
            Some(why) => {
                tracing::warn!(
                    volume = work.volume,
                    why,
                    "what has changed is not believed: reading everything"
                );
                report.notes.push(why);
            }
        }
        report
    }
}

impl Tracked {
    /// With the ranges that may have changed, if they are in order and lie in the volume.
    fn new(base: MapReader, ranges: &[Range<u64>]) -> Option<Self> {
        let size = base.geometry().size();
        let in_order = ranges.windows(2).all(|pair| pair[0].end <= pair[1].start);
        let inside = ranges.iter().all(|range| range.start < range.end && range.end <= size);
        if !in_order || !inside {
            return None;
        }
        let mut changed: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            let (start, end) = (range.start / BLOCK * BLOCK, range.end.next_multiple_of(BLOCK).min(size));
            match changed.last_mut() {
                Some(last) if last.end >= start => last.end = end,
                _ => changed.push(start..end),
            }
        }
        Some(Self { base, changed })
    }

    fn is_unchanged(&self, range: &Range<u64>) -> bool {
        let first = self.changed.partition_point(|changed| changed.end <= range.start);
        self.changed.get(first).is_none_or(|changed| changed.start >= range.end)
    }

    /// Whether all of a leaf is what it was, and what it should be.
    async fn has(&self, map: &MapReader, leaf: u64) -> bool {
        let geometry = self.base.geometry();
        leaf < geometry.leaves()
            && self.is_unchanged(&geometry.leaf_range(leaf))
            && match (self.base.leaf_id(leaf).await, map.leaf_id(leaf).await) {
                (Ok(was), Ok(wanted)) => was == wanted,
                _ => false,
            }
    }

    /// The base's leaf; none when it cannot be read, or was never there.
    async fn leaf(&self, leaf: u64) -> Option<(u64, Leaf)> {
        let geometry = self.base.geometry();
        let range = (leaf < geometry.leaves()).then(|| geometry.leaf_range(leaf))?;
        match self.base.leaf(leaf).await {
            Ok(read) => Some((range.start, read)),
            Err(failure) => {
                tracing::warn!(%failure, offset = range.start, "compared, because the map of what was there cannot be read");
                None
            }
        }
    }

    /// Reads what was drawn for the audit.
    async fn look(&self, work: &Arc<Work>, windows: Vec<Range<u64>>, stop: &Stop) -> Audited {
        let mut audited = Audited::default();
        for windows in windows.chunk_by(|a, b| Geometry::leaf_of(a.start) == Geometry::leaf_of(b.start)) {
            if stop.is_raised() {
                audited.doubt = Some("the audit was stopped".to_owned());
                return audited;
            }
            let Some((start, leaf)) = self.leaf(Geometry::leaf_of(windows[0].start)).await else {
                audited.doubt =
                    Some("the map of what was there cannot be read: all of the target is compared".into());
                return audited;
            };
            let pieces = self.comparable(start, &leaf, windows);
            audited.read += pieces.iter().map(|(range, _)| range.end - range.start).sum::<u64>();
            audited.doubt = match work.blocking(move |work| differs(work, &pieces)).await {
                Ok(None) => continue,
                Ok(Some(offset)) => Some(format!(
                    "AUDIT: what is known of the changes of the target is wrong at offset {offset}: all of it is \
                     compared. Its baseline must not be trusted: --drop-baseline removes it"
                )),
                Err(failure) => Some(format!("{failure}: all of the target is compared")),
            };
            return audited;
        }
        audited
    }

    /// What of some windows of a leaf can be compared: chunks of which nothing has changed, whole, and zeroes.
    fn comparable(&self, start: u64, leaf: &Leaf, windows: &[Range<u64>]) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = Vec::new();
        for (at, piece) in leaf.located(start) {
            let range = at..at + u64::from(piece.len);
            let touching =
                windows.iter().map(|window| range.start.max(window.start)..range.end.min(window.end));
            let mut touching = touching.filter(|part| !part.is_empty());
            match piece.content {
                Content::Zero => pieces.extend(touching.map(|part| (part, None))),
                Content::Chunk(id) => {
                    if touching.next().is_some() && self.is_unchanged(&range) {
                        pieces.push((range, Some(id)));
                    }
                }
            }
        }
        pieces
    }
}

/// Where the first of some pieces differs. Blocks.
fn differs(work: &Work, pieces: &[Piece]) -> Result<Option<u64>, Failure> {
    let Some(reading) = work.compare.reading() else { return Ok(None) };
    let mut buffer = Aligned::new();
    for (range, id) in pieces {
        if !is_there(work, reading, range, *id, &mut buffer)? {
            return Ok(Some(range.start));
        }
    }
    Ok(None)
}

fn is_there(
    work: &Work,
    reading: &Reading,
    range: &Range<u64>,
    id: Option<ChunkId>,
    buffer: &mut Aligned,
) -> Result<bool, Failure> {
    let mut at = range.start;
    while at < range.end {
        let part = at..range.end.min(at + READ_MAX);
        at = part.end;
        let bytes = reading.read(&part, buffer)?;
        // A chunk is never longer than one read.
        let same = match id {
            Some(id) => work.source.repository.key.chunk_ids().id(Domain::Data, bytes) == id,
            None => bytes.iter().all(|byte| *byte == 0),
        };
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Those of some leaves of the map that have to be read; what the others say stands there.
pub(crate) async fn differing(work: &Work, leaves: Range<u64>) -> (Vec<u64>, Report) {
    let Some(tracked) = work.tracked.get() else { return (leaves.collect(), Report::default()) };
    let map = &work.source.map;
    let (mut differing, mut bytes) = (Vec::new(), 0);
    for leaf in leaves {
        let range = work.wanted(&map.geometry().leaf_range(leaf));
        match tracked.has(map, leaf).await {
            true => bytes += range.end - range.start,
            false => differing.push(leaf),
        }
    }
    (differing, left_alone(bytes))
}

/// Takes out of a window, which is made of these leaves, what is known to stand there.
pub(crate) async fn leave_unchanged(work: &Work, window: &mut Window, leaves: &[u64]) -> Report {
    let Some(tracked) = work.tracked.get() else { return Report::default() };
    let read = futures::future::join_all(leaves.iter().map(|leaf| tracked.leaf(*leaf))).await;
    let (mut chunks, mut zeroes) = (HashMap::new(), Vec::new());
    for (at, piece) in read.iter().flatten().flat_map(|(start, leaf)| leaf.located(*start)) {
        let range = at..at + u64::from(piece.len);
        match piece.content {
            Content::Zero => zeroes.extend(gaps(&tracked.changed, range)),
            Content::Chunk(id) => drop(chunks.insert(at, (id, piece.len))),
        }
    }
    let bytes = without_chunks(work, window, |offset, chunk| {
        chunks.get(&offset) == Some(&chunk) && tracked.is_unchanged(&(offset..offset + u64::from(chunk.1)))
    });
    left_alone(bytes + without_zeroes(window, &zeroes, work.sink.compares_zeroes()))
}

fn left_alone(bytes: u64) -> Report {
    Report { kept: bytes, tracked: bytes, ..Report::default() }
}

/// Takes chunks out, and says how many bytes of them were wanted.
fn without_chunks(work: &Work, window: &mut Window, stands: impl Fn(u64, (ChunkId, u32)) -> bool) -> u64 {
    let mut bytes = 0;
    for wanted in &mut window.chunks {
        let (id, len) = (wanted.id, wanted.len);
        wanted.offsets.retain(|offset| {
            let stands = stands(*offset, (id, len));
            if stands {
                let part = work.wanted(&(*offset..*offset + u64::from(len)));
                bytes += part.end - part.start;
            }
            !stands
        });
    }
    window.chunks.retain(|wanted| !wanted.offsets.is_empty());
    bytes
}

/// Takes zeroes out that are known to be there. Where zeroing gives room back, and is better done to much at once, only
/// ranges of which everything is known.
fn without_zeroes(window: &mut Window, known: &[Range<u64>], in_parts: bool) -> u64 {
    let before = bytes_of(&window.zeroes);
    let left = |range: Range<u64>| -> Vec<Range<u64>> {
        let left: Vec<Range<u64>> = gaps(known, range.clone()).collect();
        match in_parts || left.is_empty() {
            true => left,
            false => vec![range],
        }
    };
    window.zeroes = std::mem::take(&mut window.zeroes).into_iter().flat_map(left).collect();
    before - bytes_of(&window.zeroes)
}

fn bytes_of(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// What of `within` lies in none of some ranges, which are in order.
fn gaps(ranges: &[Range<u64>], within: Range<u64>) -> impl Iterator<Item = Range<u64>> + Clone + '_ {
    let first = ranges.partition_point(|range| range.end <= within.start);
    let end = within.end;
    let inside = ranges[first..].iter().cloned().take_while(move |range| range.start < end);
    let mut at = within.start;
    let between = inside.chain(std::iter::once(end..end)).map(move |range| {
        let gap = at..range.start;
        at = range.end;
        gap
    });
    between.filter(|gap| !gap.is_empty())
}
