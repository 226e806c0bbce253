//! Which leaves a request takes, and the tasks that each of them is.

use std::ops::Range;
use std::sync::Arc;

use agent::{Failure, Volume, VolumeError};
use schema::map::Geometry;
use schema::messages::Wanted;

use crate::asking::Conductor;
use crate::plan::{self, Step};
use crate::tracked::{Changed, Gap, ParentLeaf};

#[cfg(test)]
mod tests;

/// A run of leaves that are read alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) leaves: Range<u64>,
    /// They are read whole, and everything in them is stored.
    pub(crate) force: bool,
}

/// The leaves of a request in order: those listed, or all without a list; of them those that are still wanted, where
/// that was answered.
pub(crate) fn wanted(
    listed: Option<&[u64]>,
    force: bool,
    answer: Option<&Wanted>,
    geometry: Geometry,
) -> Result<Vec<Run>, Failure> {
    let leaves = geometry.leaves();
    let listed = match listed {
        None => joined([(0, leaves)], leaves),
        Some(listed) => {
            if let Some(beyond) = listed.iter().find(|leaf| **leaf >= leaves) {
                return Err(Failure::refused(format!(
                    "leaf {beyond} was asked for; its {} bytes have {leaves} leaves",
                    geometry.size()
                )));
            }
            joined(listed.iter().map(|leaf| (*leaf, 1)), leaves)
        }
    };
    let runs = |leaves: Vec<Range<u64>>, force| leaves.into_iter().map(move |leaves| Run { leaves, force });
    let Some(answer) = answer else { return Ok(runs(listed, force).collect()) };
    let still = |runs: &[(u64, u64)]| both(&listed, &joined(runs.iter().copied(), leaves));
    let mut all: Vec<Run> =
        runs(still(&answer.leaves), false).chain(runs(still(&answer.forced), true)).collect();
    all.sort_by_key(|run| run.leaves.start);
    Ok(all)
}

/// Runs in order, each leaf once, none of them `limit` or beyond.
fn joined(runs: impl IntoIterator<Item = (u64, u64)>, limit: u64) -> Vec<Range<u64>> {
    let clip = |(first, count): (u64, u64)| first.min(limit)..first.saturating_add(count).min(limit);
    let mut all: Vec<Range<u64>> = runs.into_iter().map(clip).filter(|run| !run.is_empty()).collect();
    all.sort_unstable_by_key(|run| run.start);
    all.dedup_by(|next, last| {
        let touches = next.start <= last.end;
        if touches {
            last.end = last.end.max(next.end);
        }
        touches
    });
    all
}

/// What is in both.
fn both(a: &[Range<u64>], b: &[Range<u64>]) -> Vec<Range<u64>> {
    let (mut found, mut next) = (Vec::new(), 0);
    for run in a {
        next += b[next..].iter().take_while(|other| other.end <= run.start).count();
        let inside = b[next..].iter().take_while(|other| other.start < run.end);
        found.extend(inside.map(|other| run.start.max(other.start)..run.end.min(other.end)));
    }
    found
}

/// Something to do, in order.
#[derive(Debug)]
pub(crate) enum Task {
    /// A read, and what to do about the bytes after it that nobody asked to read.
    Read {
        /// The read.
        step: Step,
        /// See [`Gap`]; none where the next step follows, or another leaf.
        gap: Option<Gap>,
        /// See [`Run::force`].
        force: bool,
    },
    /// Nothing: these bytes are the parent's.
    Unchanged(Range<u64>),
}

/// A list of changes that is used, and whom to ask for the parent's leaves.
pub(crate) struct Tracked<'a> {
    pub(crate) changed: Changed<'a>,
    pub(crate) conductor: &'a Conductor<'a>,
    /// Leaves that are read whole: what the parent has there is not to be relied on.
    pub(crate) whole: Vec<Range<u64>>,
}

impl Tracked<'_> {
    fn is_whole(&self, leaf: u64) -> bool {
        self.whole.iter().any(|run| run.contains(&leaf))
    }
}

/// The leaves that an answer says are read whole.
pub(crate) fn whole(answer: Option<&Wanted>, geometry: Geometry) -> Vec<Range<u64>> {
    let runs = answer.map(|answer| answer.whole.iter().copied()).into_iter().flatten();
    joined(runs, geometry.leaves())
}

/// The tasks of some leaves, leaf by leaf.
pub(crate) struct Leaves<'a, L> {
    volume: Arc<dyn Volume>,
    geometry: Geometry,
    segment: u64,
    leaves: L,
    tracked: Option<Tracked<'a>>,
}

impl<'a, L: Iterator<Item = (u64, bool)> + Send> Leaves<'a, L> {
    /// Leaves by number, and whether each is forced. One step reads at most `segment` bytes.
    pub(crate) fn new(
        volume: Arc<dyn Volume>,
        geometry: Geometry,
        segment: u64,
        leaves: L,
        tracked: Option<Tracked<'a>>,
    ) -> Self {
        Self { volume, geometry, segment, leaves, tracked }
    }

    /// The tasks of the next leaf; none when there are no more leaves.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<Task>>, VolumeError> {
        let Some((leaf, force)) = self.leaves.next() else { return Ok(None) };
        let range = self.geometry.leaf_range(leaf);
        if let Some(tracked) = self.tracked.as_ref().filter(|tracked| !force && !tracked.is_whole(leaf)) {
            let changed = tracked.changed.within(&range);
            if changed.is_empty() {
                return Ok(Some(vec![Task::Unchanged(range)]));
            }
            if let Some(parent) = tracked.conductor.parent_leaf(leaf, self.geometry).await {
                return self.tracked(&parent, &changed).await.map(Some);
            }
        }
        self.read(range, true, force).await.map(Some)
    }

    async fn tracked(
        &self,
        parent: &Arc<ParentLeaf>,
        changed: &[Range<u64>],
    ) -> Result<Vec<Task>, VolumeError> {
        let (range, spans) = (parent.range(), parent.spans(changed));
        let mut tasks = Vec::new();
        let first = spans.first().map_or(range.end, |span| span.start);
        if range.start < first {
            tasks.push(Task::Unchanged(range.start..first));
        }
        let after = spans.iter().skip(1).map(|span| span.start).chain([range.end]);
        for (span, next) in spans.iter().zip(after) {
            tasks.extend(self.read(span.clone(), parent.ends_chunks_at(span.end), false).await?);
            if let Some(Task::Read { gap, .. }) = tasks.last_mut() {
                *gap = Some(Gap::new(parent.clone(), span.end..next));
            }
        }
        Ok(tasks)
    }

    async fn read(&self, range: Range<u64>, ends_run: bool, force: bool) -> Result<Vec<Task>, VolumeError> {
        let allocated = self.volume.allocated(range.clone()).await?;
        let steps = plan::steps(range, &allocated, self.segment, ends_run);
        Ok(steps.into_iter().map(|step| Task::Read { step, gap: None, force }).collect())
    }
}
