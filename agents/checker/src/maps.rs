//! Walks the maps of all snapshots: every part must be read, and every chunk must have a copy in a pack that is there.

mod judging;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use agent::Failure;
use agent::damage::Damages;
use agent::looks::Looks;
use agent::repository::AtSlot;
use bytes::Bytes;
use futures::future::join_all;
use schema::limits::{DAMAGED_CHUNKS_MAX, NODE_FANOUT};
use schema::map::{self, Geometry, Leaf, Node};
use schema::messages::{About, Copy, FailureKind};
use schema::names::Slot;
use schema::root::Root;
use schema::{ChunkId, FormatError, PackId};

use crate::Checker;
use crate::findings::{DamagedSnapshot, Problem, Report};
use crate::given::{is_lost, is_withheld, later};
use crate::packs::Packs;

/// Leaves that are read at once; a leaf has 1 MiB at most.
const AT_ONCE: usize = 16;
/// Leaves without damage that are remembered, 33 bytes each and half as much again for the table.
const CLEAN_MAX: usize = 1 << 20;

/// Chunks without a copy that snapshots can be read from, and the packs with a copy that is none.
pub(crate) type Lost = BTreeMap<ChunkId, Vec<PackId>>;

/// What is known while maps are walked.
pub(crate) struct Walk<'a> {
    checker: &'a Checker,
    packs: &'a Packs,
    recorded: &'a Damages,
    looks: Looks,
    /// Leaves that were seen, and in which nothing is wrong.
    clean: HashSet<ChunkId>,
    /// Only what was found since the last walk counts.
    again: bool,
    /// Whether chunks cannot be sought.
    is_blind: AtomicBool,
    /// Packs that the store has not given since the walk began, and how often in a row.
    withheld: Mutex<BTreeMap<PackId, usize>>,
    /// Whether something of the snapshot was passed over, because it was told before.
    passed_over: bool,
    lost: Lost,
    rescued: HashSet<ChunkId>,
}

/// A part of a map.
#[derive(Debug, Clone, Copy)]
struct Part {
    id: ChunkId,
    /// Above the leaves.
    level: u8,
    /// In its level.
    number: u64,
}

/// What is wrong in a part of a map.
#[derive(Default)]
struct Wrong {
    problems: Vec<Problem>,
    lost: Lost,
    rescued: Vec<ChunkId>,
    /// Nothing is said of it, because it was told before.
    is_passed_over: bool,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(checker: &'a Checker, packs: &'a Packs, recorded: &'a Damages) -> Self {
        let (clean, rescued) = (HashSet::new(), HashSet::new());
        let looks = Looks::new(checker.source.repository.clone(), checker.index.clone());
        Self {
            checker,
            packs,
            recorded,
            looks,
            clean,
            again: false,
            is_blind: AtomicBool::new(false),
            withheld: Mutex::default(),
            passed_over: false,
            lost: Lost::new(),
            rescued,
        }
    }

    /// Another walk, after damaged content was found.
    pub(crate) fn again(checker: &'a Checker, packs: &'a Packs, recorded: &'a Damages) -> Self {
        Self { again: true, ..Self::new(checker, packs, recorded) }
    }

    /// Walks the maps of snapshots; the chunks that are lost. A snapshot of which something was passed over was not looked
    /// at.
    pub(crate) async fn all(mut self, slots: &[Slot], report: &mut Report) -> Result<Lost, Failure> {
        let mut unfinished = BTreeSet::new();
        for &slot in slots {
            self.checker.source.go_on()?;
            match self.checker.source.at_slot(slot).await? {
                Ok(AtSlot::Snapshot(root)) => {
                    report.snapshots += 1;
                    report.bytes += root.size;
                    self.passed_over = false;
                    if let Some(damaged) = self.snapshot(&root).await? {
                        report.add(damaged);
                    }
                    if self.passed_over {
                        unfinished.insert(slot);
                    }
                }
                // Forgotten and collected since.
                Ok(AtSlot::Tombstone | AtSlot::Nothing) => {}
                Err(failure) if is_lost(&failure) => {
                    report.snapshots += 1;
                    if let Some(damaged) = unreadable(slot, &failure) {
                        report.add(damaged);
                    }
                }
                Err(failure) => return Err(failure),
            }
        }
        report.looked_at.retain(|slot| !unfinished.contains(slot));
        report.rescued = report.rescued.max(self.rescued.len() as u64);
        Ok(self.lost)
    }

    async fn snapshot(&mut self, root: &Root) -> Result<Option<DamagedSnapshot>, Failure> {
        let geometry = Geometry::new(root.size)?;
        let mut damaged = DamagedSnapshot::new(root.slot, Some(root.volume.clone()));
        let top = root.top.map(|id| Part { id, level: geometry.depth(), number: 0 });
        let mut below: Vec<Part> = top.into_iter().collect();
        while let Some(part) = below.pop() {
            self.checker.source.go_on()?;
            if part.level == 0 {
                self.leaves(root, geometry, &[part], &mut damaged).await?;
                continue;
            }
            let mut wrong = Wrong::default();
            let bytes = self.read(root, geometry, &part, &mut wrong).await?;
            let node = bytes.map(|bytes| Node::parse(&bytes, part.level));
            match node {
                Some(Ok(node)) => {
                    let first = part.number * NODE_FANOUT as u64;
                    let child = |(id, number): (&Option<ChunkId>, u64)| {
                        Some(Part { id: (*id)?, level: part.level - 1, number })
                    };
                    let children: Vec<Part> = node.children().iter().zip(first..).filter_map(child).collect();
                    match part.level {
                        1 => self.leaves(root, geometry, &children, &mut damaged).await?,
                        _ => below.extend(children.into_iter().rev()),
                    }
                }
                Some(Err(why)) => wrong.map(&part, geometry, not_later(&part, why)?, false),
                None => {}
            }
            self.note(wrong, &mut damaged);
        }
        Ok(damaged.finish().map(|damaged| damaged.of(root)))
    }

    async fn leaves(
        &mut self,
        root: &Root,
        geometry: Geometry,
        leaves: &[Part],
        damaged: &mut DamagedSnapshot,
    ) -> Result<(), Failure> {
        for some in leaves.chunks(AT_ONCE) {
            let fresh: Vec<Part> =
                some.iter().filter(|part| !self.clean.contains(&part.id)).copied().collect();
            let looked = join_all(fresh.iter().copied().map(|part| self.leaf(root, geometry, part))).await;
            for (part, wrong) in fresh.iter().zip(looked) {
                self.checker.source.go_on()?;
                let wrong = wrong?;
                if wrong.problems.is_empty() && !wrong.is_passed_over && self.clean.len() < CLEAN_MAX {
                    self.clean.insert(part.id);
                }
                self.note(wrong, damaged);
            }
        }
        Ok(())
    }

    fn note(&mut self, wrong: Wrong, damaged: &mut DamagedSnapshot) {
        self.passed_over |= wrong.is_passed_over;
        wrong.problems.into_iter().for_each(|problem| damaged.add(problem));
        for (id, packs) in wrong.lost {
            if !has_taken(&mut self.lost, id, packs) {
                self.checker.too_much();
            }
        }
        self.rescued.extend(wrong.rescued.into_iter().take(DAMAGED_CHUNKS_MAX - self.rescued.len()));
    }

    async fn leaf(&self, root: &Root, geometry: Geometry, part: Part) -> Result<Wrong, Failure> {
        let mut wrong = Wrong::default();
        let Some(bytes) = self.read(root, geometry, &part, &mut wrong).await? else { return Ok(wrong) };
        let range = part.range(geometry);
        let leaf = match Leaf::parse(&bytes, range.end - range.start) {
            Ok(leaf) => leaf,
            Err(why) => {
                wrong.map(&part, geometry, not_later(&part, why)?, false);
                return Ok(wrong);
            }
        };
        let mut chunks: Vec<(Range<u64>, ChunkId)> = leaf
            .located(range.start)
            .filter_map(|(at, piece)| match piece.content {
                map::Content::Chunk(id) => Some((at..at + u64::from(piece.len), id)),
                map::Content::Zero => None,
            })
            .collect();
        if self.again {
            let concerned = self.concerned(root, &chunks).await?;
            chunks.retain(|(_, id)| concerned.contains(id));
        }
        let ids: Vec<ChunkId> = chunks.iter().map(|(_, id)| *id).collect();
        for ((range, id), judged) in chunks.into_iter().zip(self.judge(root, &ids).await?) {
            if judged.whole.is_empty() {
                let why = format!("offset {}: chunk {id} {}", range.start, judged.why());
                wrong.problems.push(Problem { range, why, is_withheld: judged.is_withheld });
                wrong.lost.insert(id, judged.bad);
            } else if !judged.bad.is_empty() {
                wrong.rescued.push(id);
            }
        }
        Ok(wrong)
    }

    /// Which of these chunks have a copy that was found to be none since the last walk.
    async fn concerned(
        &self,
        root: &Root,
        chunks: &[(Range<u64>, ChunkId)],
    ) -> Result<HashSet<ChunkId>, Failure> {
        let ids: Vec<ChunkId> = chunks.iter().map(|(_, id)| *id).collect();
        let (named, others): (HashSet<_>, HashSet<_>) =
            ids.into_iter().partition(|id| self.packs.is_named(id));
        let fresh = self.packs.fresh();
        if fresh.is_empty() || others.is_empty() {
            return Ok(named);
        }
        let others: Vec<ChunkId> = others.into_iter().collect();
        let about = About { session: None, volume: root.volume.clone() };
        let located = self.checker.index.locate(&about, &others).await?;
        let is_fresh = |copies: &Vec<Copy>| copies.iter().any(|copy| fresh.contains(&copy.pack));
        let more = others.into_iter().zip(located).filter(|(_, copies)| is_fresh(copies));
        Ok(more.map(|(id, _)| id).chain(named).collect())
    }

    /// Reads a part of a map, unless it is lost.
    async fn read(
        &self,
        root: &Root,
        geometry: Geometry,
        part: &Part,
        wrong: &mut Wrong,
    ) -> Result<Option<Bytes>, Failure> {
        let Some(judged) = self.judge(root, &[part.id]).await?.pop() else { return Ok(None) };
        // What of a map is damaged was told by the first walk. What is withheld may be so only now.
        let is_told = |is_withheld: bool| self.again && !is_withheld;
        if judged.whole.is_empty() && is_told(judged.is_withheld) {
            wrong.is_passed_over = true;
            return Ok(None);
        }
        if judged.whole.is_empty() {
            let why = format!("chunk {} {}", part.id, judged.why());
            wrong.map(part, geometry, why, judged.is_withheld);
            wrong.lost.insert(part.id, judged.bad);
            return Ok(None);
        }
        match self.read_copies(part.id, &judged.whole).await? {
            Ok(bytes) => Ok(Some(bytes)),
            Err(failure) if is_lost(&failure) && is_told(is_withheld(&failure)) => {
                wrong.is_passed_over = true;
                Ok(None)
            }
            Err(failure) if is_lost(&failure) => {
                let is_withheld = is_withheld(&failure) || judged.is_withheld;
                wrong.map(part, geometry, failure, is_withheld);
                let packs = judged.whole.iter().map(|copy| copy.pack).chain(judged.bad);
                wrong.lost.insert(part.id, packs.collect());
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }
}

/// Takes a chunk that is lost, whether anew or again, unless there is no room for it.
fn has_taken(lost: &mut Lost, id: ChunkId, packs: Vec<PackId>) -> bool {
    let has_room = lost.len() < DAMAGED_CHUNKS_MAX || lost.contains_key(&id);
    if has_room {
        lost.insert(id, packs);
    }
    has_room
}

impl Part {
    /// The bytes of the volume that it is about.
    fn range(&self, geometry: Geometry) -> Range<u64> {
        let width = (NODE_FANOUT as u64).pow(self.level.into());
        let last = (self.number + 1).saturating_mul(width).min(geometry.leaves());
        let first = (self.number * width).min(last.saturating_sub(1));
        geometry.leaf_range(first).start..geometry.leaf_range(last.saturating_sub(1)).end
    }
}

impl Wrong {
    /// A part of the map itself cannot be read.
    fn map(&mut self, part: &Part, geometry: Geometry, why: impl std::fmt::Display, is_withheld: bool) {
        let range = part.range(geometry);
        let why = format!("the map of offsets {} to {}: {why}", range.start, range.end);
        self.problems.push(Problem { range, why, is_withheld });
    }
}

/// What is wrong with a part of a map that is whole: it is no damage when a later version wrote it.
fn not_later(part: &Part, why: FormatError) -> Result<FormatError, Failure> {
    match why {
        FormatError::UnknownVersion { .. } => Err(later(&format!("chunk {}", part.id), why)),
        why => Ok(why),
    }
}

/// A snapshot whose root cannot be read.
fn unreadable(slot: Slot, failure: &Failure) -> Option<DamagedSnapshot> {
    let mut damaged = DamagedSnapshot::new(slot, None);
    let then = match failure.kind {
        FailureKind::Damaged => format!(
            " (bring it back from elsewhere, or let the snapshot go with `lvkeep forget {}`, and then `lvkeep repair`)",
            slot.session
        ),
        _ => String::new(),
    };
    let (why, is_withheld) = (format!("{failure}{then}"), is_withheld(failure));
    damaged.add(Problem { range: 0..0, why, is_withheld });
    damaged.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A chunk stands in many snapshots, and each walk over it finds it lost.
    #[test]
    fn what_is_lost_once_more_needs_no_more_room() {
        let mut lost = Lost::new();
        let chunk = |number: u32| {
            let mut id = [1; 33];
            id[1..5].copy_from_slice(&number.to_le_bytes());
            ChunkId::parse(&id).expect("a chunk of data")
        };
        let last = DAMAGED_CHUNKS_MAX as u32;
        assert!((0..last).all(|number| has_taken(&mut lost, chunk(number), Vec::new())));
        assert!(has_taken(&mut lost, chunk(0), Vec::new()));
        assert!(!has_taken(&mut lost, chunk(last), Vec::new()));
    }
}
