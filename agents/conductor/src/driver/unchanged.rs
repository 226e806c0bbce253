//! What a reader leaves out because it has not changed since the parent: taken from the parent's map.
//!
//! The parent was chosen by the session's rule, so that its chunks count for this session. What cannot be taken from
//! its map is asked for again, to be read whole. When the reader finds that what it left out cannot be relied on, the
//! session ends without a commit, and the next one of the job leaves nothing out.

use std::collections::BTreeSet;
use std::sync::Arc;

use agent::Failure;
use schema::ChunkId;
use schema::SessionId;
use schema::limits::{LEAF_RUNS_MAX, LEAF_SPAN, VOLUME_MAX};
use schema::map::{Content, Geometry};
use schema::messages::Wanted;
use schema::root::Tracking;

use super::{Driver, LEAVES_ASKED};
use crate::answers::Question;
use crate::coverage::{Count, Fate};
use crate::parent::{LeafAt, Parent, readable};

/// Leaves that are looked at in one turn, where something is lost.
const LEAVES_AT_ONCE: u64 = 64;

impl Driver {
    /// How the reader goes about it.
    pub(super) fn on_tracked(&mut self, tracking: Tracking, distrusted: bool) {
        if let Tracking::Everything { why: Some(why) } = &tracking {
            tracing::warn!(%why, "everything is read");
        }
        if distrusted && self.track {
            // What comes late of what was left out is not taken any more; what was taken already cannot be told from
            // the rest.
            self.track = false;
            self.distrusted = self.covered() > 0;
        }
        self.tracking = tracking;
    }

    fn covered(&self) -> u64 {
        self.reading.as_ref().map_or(0, |reading| reading.coverage.count().covered)
    }

    /// Takes ranges from the parent's map. Where something in it is lost, each leaf has to be looked at: then they wait
    /// for their turn, and the session goes on meanwhile.
    pub(super) async fn on_unchanged(
        &mut self,
        parent: SessionId,
        ranges: &[(u64, u64)],
    ) -> Result<(), Failure> {
        match self.parent_to_take_from().filter(|(ours, _)| ours.root().slot.session == parent) {
            Some((ours, _)) if ours.has_lost() => {
                self.unchanged.extend(ranges);
                Ok(())
            }
            Some((ours, geometry)) => self.take(&ours, geometry, ranges).await,
            None => {
                tracing::warn!("what is unchanged since another snapshot than the parent is left out");
                Ok(())
            }
        }
    }

    /// Takes some of what waits.
    pub(super) async fn take_some_unchanged(&mut self) -> Result<(), Failure> {
        let Some((offset, len)) = self.unchanged.pop_front() else { return Ok(()) };
        let Some((ours, geometry)) = self.parent_to_take_from() else { return Ok(()) };
        let end = offset.saturating_add(len).min(geometry.size());
        let turn = (Geometry::leaf_of(offset) + LEAVES_AT_ONCE).saturating_mul(LEAF_SPAN).min(end);
        if turn < end {
            self.unchanged.push_front((turn, end - turn));
        }
        self.take(&ours, geometry, &[(offset, turn.saturating_sub(offset))]).await
    }

    /// Leaves of which something waits to be taken from the parent.
    fn unchanged_leaves(&self) -> BTreeSet<u64> {
        let leaves = |(offset, len): &(u64, u64)| {
            let end = offset.saturating_add(*len).min(VOLUME_MAX);
            Geometry::leaf_of(*offset)..end.div_ceil(LEAF_SPAN)
        };
        self.unchanged.iter().flat_map(leaves).collect()
    }

    /// The parent, when it has the size of what is read, and may spare reading.
    fn parent_to_take_from(&self) -> Option<(Arc<Parent>, Geometry)> {
        let ours = self.parent.clone().filter(|_| self.track)?;
        let geometry = self.reading.as_ref()?.geometry;
        (ours.root().size == geometry.size()).then_some((ours, geometry))
    }

    async fn take(
        &mut self,
        ours: &Arc<Parent>,
        geometry: Geometry,
        ranges: &[(u64, u64)],
    ) -> Result<(), Failure> {
        let (mut refused, mut unreliable, before) = (BTreeSet::new(), BTreeSet::new(), self.covered());
        for (offset, len) in ranges {
            let end = offset.saturating_add(*len).min(geometry.size());
            let leaves = Geometry::leaf_of(*offset)..end.div_ceil(LEAF_SPAN);
            let lost = ours.lost_leaves(leaves.clone()).await;
            for leaf in leaves {
                let whole = geometry.leaf_range(leaf);
                let part = whole.start.max(*offset)..whole.end.min(end);
                // What was asked for with force is on its way.
                if self.forced.contains_key(&leaf) {
                    continue;
                }
                if lost.contains(&leaf) {
                    match self.whole.insert(leaf) {
                        true => drop(unreliable.insert(leaf)),
                        // It was asked for already, of somebody who does not know better.
                        false => drop(refused.insert(leaf)),
                    }
                    continue;
                }
                let taken = match part == whole {
                    true => self.take_leaf(ours, leaf).await,
                    false => self.take_part(ours, leaf, part).await?,
                };
                if !taken {
                    refused.insert(leaf);
                }
            }
        }
        if self.covered() > before {
            self.made_progress();
        }
        if !unreliable.is_empty() {
            tracing::warn!(
                leaves = unreliable.len(),
                "what is unchanged is damaged in the repository; reading it"
            );
            self.request(Some(unreliable.into_iter().take(LEAVES_ASKED).collect()), false).await?;
        }
        let refused: Vec<u64> = refused.into_iter().take(LEAVES_ASKED).collect();
        if !refused.is_empty() {
            tracing::warn!(
                leaves = refused.len(),
                "the parent's map does not have what is unchanged; reading it"
            );
            self.request(Some(refused.clone()), true).await?;
            self.forced.extend(refused.into_iter().map(|leaf| (leaf, self.requests)));
        }
        Ok(())
    }

    /// Takes a whole leaf as it is, without a look at what is in it.
    async fn take_leaf(&mut self, parent: &Arc<Parent>, leaf: u64) -> bool {
        match parent.leaf_id(leaf).await {
            Some(id) => {
                self.inherit(leaf, id);
                true
            }
            None => false,
        }
    }

    /// Takes over a leaf that an earlier session of the job has finished, if it is the parent's.
    pub(super) async fn inherits(&mut self, leaf: u64, id: Option<ChunkId>) -> bool {
        let same_size = |parent: &Arc<Parent>| {
            self.reading.as_ref().is_some_and(|reading| reading.geometry.size() == parent.root().size)
        };
        let Some(parent) = self.parent.clone().filter(same_size) else { return false };
        let is_whole = parent.lost_leaves(leaf..leaf + 1).await.is_empty();
        let is_parents = is_whole && parent.leaf_id(leaf).await == Some(id);
        if is_parents {
            self.inherit(leaf, id);
        }
        is_parents
    }

    fn inherit(&mut self, leaf: u64, id: Option<ChunkId>) {
        let Some(reading) = &mut self.reading else { return };
        if reading.coverage.is_leaf_closed(leaf) {
            return;
        }
        let range = reading.geometry.leaf_range(leaf);
        let covered = range.end - range.start;
        // How much of it is zero is known at the end, from the parent's totals.
        let zero = if id.is_none() { covered } else { 0 };
        reading.coverage.adopt(leaf, Count { covered, zero, chunks: 0 });
        reading.leaves.insert(leaf, id);
        self.inherited.insert(leaf);
    }

    /// Takes the pieces of a part of a leaf. Whether all of them lie inside it.
    async fn take_part(
        &mut self,
        parent: &Arc<Parent>,
        leaf: u64,
        part: std::ops::Range<u64>,
    ) -> Result<bool, Failure> {
        let Some(found) = readable(parent.leaf(leaf).await).flatten() else { return Ok(false) };
        let Some(pieces) = pieces_of(&found, &part) else { return Ok(false) };
        for (at, len, fate) in pieces {
            self.account(at, len, fate)?;
        }
        Ok(true)
    }

    /// Once every leaf is closed: what the inherited ones add up to is what the parent adds up to, without its leaves
    /// that were read.
    pub(super) async fn count_inherited(&mut self) {
        let (Some(parent), Some(reading)) = (self.parent.clone(), &self.reading) else { return };
        if self.inherited.is_empty() {
            return;
        }
        let totals = &parent.root().statistics;
        let mut count = Count { covered: 0, zero: totals.bytes_zero, chunks: totals.chunks };
        let mut bytes = 0;
        for (leaf, id) in &reading.leaves {
            let range = reading.geometry.leaf_range(*leaf);
            let other = match (self.inherited.contains(leaf), id) {
                (true, Some(_)) => {
                    bytes += range.end - range.start;
                    continue;
                }
                (true, None) => Count { zero: range.end - range.start, ..Count::default() },
                (false, _) => readable(parent.count(*leaf).await).unwrap_or_default(),
            };
            count.zero = count.zero.saturating_sub(other.zero);
            count.chunks = count.chunks.saturating_sub(other.chunks);
        }
        // Where a leaf of the parent cannot be read any more, too much is left over.
        count.zero = count.zero.min(bytes);
        self.inherited_count = Some(count);
    }

    /// Leaves that are still missing go by the request that asked for them last.
    pub(super) fn force_again(&mut self) {
        let Some(reading) = &self.reading else { return };
        let latest = self.requests;
        self.forced.retain(|leaf, request| {
            *request = latest;
            !reading.coverage.is_leaf_closed(*leaf)
        });
    }

    /// What is still wanted of a request. Who asks before there is a reading wants to know whether to begin.
    pub(super) fn on_question(&mut self, question: Question) {
        let wanted = match &self.reading {
            None => {
                // Whoever asks is there, and may have to wait for a place.
                self.progress_at = self.context.environment.elapsed();
                self.asked_again = 0;
                let leaves = vec![(0, VOLUME_MAX / LEAF_SPAN)];
                Wanted { over: false, leaves, forced: Vec::new(), whole: Vec::new() }
            }
            Some(reading) => {
                let unforced = |leaf: &u64| !self.forced.contains_key(leaf);
                let waiting = self.unchanged_leaves();
                let forced = self.forced.iter().filter(|(leaf, request)| {
                    **request == question.request && !reading.coverage.is_leaf_closed(**leaf)
                });
                Wanted {
                    over: false,
                    leaves: runs(
                        reading.coverage.lacking().filter(unforced).filter(|leaf| !waiting.contains(leaf)),
                    ),
                    forced: runs(forced.map(|(leaf, _)| *leaf)),
                    whole: runs(self.whole.iter().copied().filter(unforced)),
                }
            }
        };
        // Whoever asked may have given up waiting.
        let _ = question.reply.send(wanted);
    }
}

/// The pieces of a part of a leaf with their places; none when a chunk lies in it only partly.
fn pieces_of(leaf: &LeafAt, part: &std::ops::Range<u64>) -> Option<Vec<(u64, u32, Fate)>> {
    let first = leaf.places.range(..=part.start).next_back().map_or(part.start, |(at, _)| *at);
    let mut found = Vec::new();
    for (at, piece) in leaf.places.range(first..part.end) {
        let (start, end) = (*at, at + u64::from(piece.len));
        let (from, to) = (start.max(part.start), end.min(part.end));
        match piece.content {
            _ if from >= to => {}
            Content::Zero => found.push((from, (to - from) as u32, Fate::Zero)),
            Content::Chunk(id) if (start, end) == (from, to) => {
                found.push((start, piece.len, Fate::Durable(id)));
            }
            Content::Chunk(_) => return None,
        }
    }
    Some(found)
}

/// Leaves in order as runs, as many as one answer holds.
fn runs(leaves: impl Iterator<Item = u64>) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for leaf in leaves {
        if let Some((first, count)) = runs.last_mut()
            && *first + *count == leaf
        {
            *count += 1;
            continue;
        }
        if runs.len() == LEAF_RUNS_MAX {
            break;
        }
        runs.push((leaf, 1));
    }
    runs
}
