//! The audit: before a list of changes is used, some of what it leaves out is read and compared with the parent's map.
//!
//! A list that leaves out what has changed would make a snapshot that is not what the volume was. A share of the bytes
//! that are said to be the same is drawn at random, in windows; each of the parent's chunks there must have its keyed
//! id, and what the parent's map says is zero must read as zero. One difference, and everything is read.

use std::ops::Range;
use std::sync::Arc;

use agent::buffer::Pool;
use agent::rate::RateLimit;
use agent::{Audit, Context, Volume, VolumeError};
use schema::keys::ChunkIds;
use schema::limits::BLOCK;
use schema::map::Geometry;
use schema::{ChunkId, Domain, SessionId};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::asking::Conductor;
use crate::cut::is_zero;
use crate::tracked::{Changed, ParentLeaf};

#[cfg(test)]
mod tests;

/// What of a window can be compared: the parent's chunks of which nothing has changed, whole, and its zeroes.
fn comparable(
    leaf: &ParentLeaf,
    changed: &Changed<'_>,
    window: &Range<u64>,
) -> Vec<(Range<u64>, Option<ChunkId>)> {
    let compare = |piece: &crate::tracked::Piece| match piece.id {
        Some(id) => changed.within(&piece.range).is_empty().then(|| (piece.range.clone(), Some(id))),
        None => Some((piece.range.start.max(window.start)..piece.range.end.min(window.end), None)),
    };
    leaf.touching(window).iter().filter_map(compare).collect()
}

/// What an audit found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// Everything that was looked at is what the parent's map says.
    Same {
        /// Bytes read for it.
        read: u64,
    },
    /// Something is not.
    Differs {
        /// Where, in bytes.
        offset: u64,
        /// Bytes read until then.
        read: u64,
    },
    /// The parent's map could not be had.
    Unasked {
        /// Bytes read until then.
        read: u64,
    },
}

/// What an audit needs.
pub(crate) struct Auditor<'a> {
    pub(crate) context: &'a Context,
    pub(crate) conductor: &'a Conductor<'a>,
    pub(crate) volume: &'a Arc<dyn Volume>,
    pub(crate) geometry: Geometry,
    pub(crate) pool: &'a Pool,
    pub(crate) limit: &'a RateLimit,
    pub(crate) ids: &'a ChunkIds,
    /// What it is drawn for: a session that asks again has the same share read again. What could not be read once must
    /// not be passed over when word of that got lost.
    pub(crate) session: SessionId,
}

/// The numbers that a session draws.
fn drawn(session: SessionId) -> impl FnMut() -> u64 {
    let mut numbers = 0..;
    move || xxh3_64_with_seed(session.as_bytes(), numbers.next().unwrap_or_default())
}

impl Auditor<'_> {
    /// Looks at what `audit` draws.
    pub(crate) async fn look(&self, audit: Audit, changed: &Changed<'_>) -> Result<Found, VolumeError> {
        let windows = audit.windows(changed.gaps(), drawn(self.session));
        let (mut read, mut done, mut kept): (u64, u64, Option<(u64, Arc<ParentLeaf>)>) = (0, 0, None);
        for window in windows {
            let number = Geometry::leaf_of(window.start);
            let leaf = match kept.take() {
                Some((known, leaf)) if known == number => leaf,
                _ => match self.conductor.parent_leaf(number, self.geometry).await {
                    Some(leaf) => leaf,
                    None => return Ok(Found::Unasked { read }),
                },
            };
            for (range, id) in comparable(&leaf, changed, &window) {
                // A chunk that reaches into the next window is compared once.
                if range.start < done {
                    continue;
                }
                done = range.end;
                if let Some(offset) = self.compare(&range, id, &mut read).await? {
                    return Ok(Found::Differs { offset, read });
                }
            }
            kept = Some((number, leaf));
        }
        Ok(Found::Same { read })
    }

    /// Where a piece differs from what the parent's map says.
    async fn compare(
        &self,
        range: &Range<u64>,
        id: Option<ChunkId>,
        read: &mut u64,
    ) -> Result<Option<u64>, VolumeError> {
        let mut at = range.start;
        while at < range.end {
            let mut buffer = self.pool.acquire().await;
            let room = buffer.bytes_mut().len() as u64 / BLOCK * BLOCK;
            let len = room.min(range.end - at);
            self.limit.pass(len).await;
            let buffer = self.volume.read(at, buffer, 0, len as usize).await?;
            *read += len;
            self.context.counters.bytes_read.add(len);
            let bytes = buffer.as_ref().get(..len as usize).unwrap_or_default();
            let differs = match id {
                Some(id) => self.ids.id(Domain::Data, bytes) != id,
                None => !bytes.chunks(BLOCK as usize).all(is_zero),
            };
            if differs {
                return Ok(Some(at));
            }
            at += len;
        }
        Ok(None)
    }
}
