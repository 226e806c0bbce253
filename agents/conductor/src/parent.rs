//! The parent's map: served to readers and hashers, and asked by the conductor itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use agent::Failure;
use agent::maps::MapReader;
use bytes::Bytes;
use futures::future::join_all;
use schema::ChunkId;
use schema::limits::{LEAF_SPAN, LOST_PIECES_MAX};
use schema::map::{Content, Piece};
use schema::messages::ParentSnapshot;
use tokio::sync::Mutex;

use crate::coverage::Count;

/// Leaves kept: what readers are at, with some distance between several.
const KEPT: usize = 16;
/// Leaves that are read at once to see what of them is lost.
const AT_ONCE: usize = 16;

/// The parent's map with its last leaves at hand.
pub(crate) struct Parent {
    map: MapReader,
    /// Chunks that have no copy to rely on.
    lost: BTreeSet<ChunkId>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    leaves: VecDeque<(u64, Option<Arc<LeafAt>>)>,
    /// What the leaves that were read add up to, each.
    counts: BTreeMap<u64, Count>,
}

/// One leaf of the parent.
pub(crate) struct LeafAt {
    /// Bytes of the volume that it covers.
    pub(crate) span: u64,
    /// Its encoded form.
    pub(crate) bytes: Bytes,
    /// Its pieces, by their places in the volume.
    pub(crate) places: BTreeMap<u64, Piece>,
    /// Numbers of the pieces whose chunks are lost.
    pub(crate) lost: Vec<u32>,
}

impl Parent {
    /// A parent of which these chunks cannot be relied on.
    pub(crate) fn new(map: MapReader, lost: BTreeSet<ChunkId>) -> Self {
        Self { map, lost, kept: Mutex::default() }
    }

    pub(crate) fn root(&self) -> &schema::root::Root {
        self.map.root()
    }

    /// What readers are to compare with. A snapshot of several moments is no use for that: no list of changes is
    /// relative to it.
    pub(crate) fn snapshot(&self) -> Option<ParentSnapshot> {
        let root = self.root();
        let snapshot = ParentSnapshot { session: root.slot.session, size: root.size };
        (!root.changed_while_read).then_some(snapshot)
    }

    /// A leaf; none beyond the parent's end.
    pub(crate) async fn leaf(&self, leaf: u64) -> Result<Option<Arc<LeafAt>>, Failure> {
        let mut kept = self.kept.lock().await;
        if let Some((_, known)) = kept.leaves.iter().find(|(at, _)| *at == leaf) {
            return Ok(known.clone());
        }
        let range = self.map.geometry().leaf_range(leaf);
        let found = match range.is_empty() {
            true => None,
            false => {
                let parsed = self.map.leaf(leaf).await?;
                kept.counts.insert(leaf, Count::of(parsed.pieces()));
                let places = parsed.located(leaf * LEAF_SPAN).collect();
                let lost = self.lost_pieces(parsed.pieces());
                Some(Arc::new(LeafAt {
                    span: range.end - range.start,
                    bytes: parsed.encode().into(),
                    places,
                    lost,
                }))
            }
        };
        if kept.leaves.len() == KEPT {
            kept.leaves.pop_front();
        }
        kept.leaves.push_back((leaf, found.clone()));
        Ok(found)
    }

    fn lost_pieces(&self, pieces: &[Piece]) -> Vec<u32> {
        let is_lost = |piece: &Piece| matches!(piece.content, Content::Chunk(id) if self.lost.contains(&id));
        let lost = (0..).zip(pieces).filter(|(_, piece)| is_lost(piece)).map(|(number, _)| number);
        lost.take(LOST_PIECES_MAX).collect()
    }

    /// Whether anything in it cannot be relied on.
    pub(crate) fn has_lost(&self) -> bool {
        !self.lost.is_empty()
    }

    /// Those of some leaves that are not to be relied on, because something in them is lost. Reads them only when
    /// anything is.
    pub(crate) async fn lost_leaves(&self, leaves: Range<u64>) -> BTreeSet<u64> {
        if self.lost.is_empty() {
            return BTreeSet::new();
        }
        let leaves: Vec<u64> = leaves.collect();
        let mut lost = BTreeSet::new();
        for some in leaves.chunks(AT_ONCE) {
            let judged = join_all(some.iter().copied().map(|leaf| self.is_reliable(leaf))).await;
            let reliable = judged.into_iter().map(|judged| readable(judged) == Some(true));
            lost.extend(some.iter().zip(reliable).filter(|(_, reliable)| !reliable).map(|(leaf, _)| *leaf));
        }
        lost
    }

    async fn is_reliable(&self, leaf: u64) -> Result<bool, Failure> {
        Ok(match self.map.leaf_id(leaf).await? {
            Some(id) if self.lost.contains(&id) => false,
            Some(_) => self.lost_pieces(self.map.leaf(leaf).await?.pieces()).is_empty(),
            None => true,
        })
    }

    /// What a leaf's pieces add up to.
    pub(crate) async fn count(&self, leaf: u64) -> Result<Count, Failure> {
        if let Some(known) = self.kept.lock().await.counts.get(&leaf) {
            return Ok(*known);
        }
        self.leaf(leaf).await?;
        Ok(self.kept.lock().await.counts.get(&leaf).copied().unwrap_or_default())
    }

    /// The chunk of a leaf (none where it reads as zero); nothing where there is no such leaf, or none that can be
    /// found.
    pub(crate) async fn leaf_id(&self, leaf: u64) -> Option<Option<ChunkId>> {
        match leaf < self.map.geometry().leaves() {
            true => readable(self.map.leaf_id(leaf).await),
            false => None,
        }
    }

    /// Whether the parent has this chunk at this place.
    pub(crate) async fn has(&self, offset: u64, id: ChunkId) -> bool {
        if self.lost.contains(&id) {
            return false;
        }
        let leaf = readable(self.leaf(offset / LEAF_SPAN).await).flatten();
        leaf.is_some_and(|leaf| {
            leaf.places.get(&offset).is_some_and(|piece| piece.content == Content::Chunk(id))
        })
    }

    /// Whether the parent's leaf is this very chunk, and can be read.
    pub(crate) async fn has_leaf(&self, leaf: u64, id: ChunkId) -> bool {
        !self.lost.contains(&id) && self.leaf_id(leaf).await.flatten() == Some(id)
    }
}

/// A parent that cannot be read spares no work, and must not stand in the way of a new snapshot.
pub(crate) fn readable<T>(result: Result<T, Failure>) -> Option<T> {
    result.inspect_err(|failure| tracing::warn!(%failure, "the parent's map cannot be read")).ok()
}
