//! The parent's map: served to readers and hashers, and asked by the conductor itself.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use agent::Failure;
use agent::maps::MapReader;
use bytes::Bytes;
use schema::ChunkId;
use schema::limits::LEAF_SPAN;
use schema::map::{Content, Piece};
use schema::messages::ParentSnapshot;
use tokio::sync::Mutex;

use crate::coverage::Count;

/// Leaves kept: what readers are at, with some distance between several.
const KEPT: usize = 16;

/// The parent's map with its last leaves at hand.
pub(crate) struct Parent {
    map: MapReader,
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
}

impl Parent {
    pub(crate) fn new(map: MapReader) -> Self {
        Self { map, kept: Mutex::default() }
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
                Some(Arc::new(LeafAt {
                    span: range.end - range.start,
                    bytes: parsed.encode().into(),
                    places,
                }))
            }
        };
        if kept.leaves.len() == KEPT {
            kept.leaves.pop_front();
        }
        kept.leaves.push_back((leaf, found.clone()));
        Ok(found)
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
        let leaf = readable(self.leaf(offset / LEAF_SPAN).await).flatten();
        leaf.is_some_and(|leaf| {
            leaf.places.get(&offset).is_some_and(|piece| piece.content == Content::Chunk(id))
        })
    }

    /// Whether the parent's leaf is this very chunk.
    pub(crate) async fn has_leaf(&self, leaf: u64, id: ChunkId) -> bool {
        self.leaf_id(leaf).await.flatten() == Some(id)
    }
}

/// A parent that cannot be read spares no work, and must not stand in the way of a new snapshot.
pub(crate) fn readable<T>(result: Result<T, Failure>) -> Option<T> {
    result.inspect_err(|failure| tracing::warn!(%failure, "the parent's map cannot be read")).ok()
}
