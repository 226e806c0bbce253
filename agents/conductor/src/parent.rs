//! The parent's map: served to hashers, and asked by the conductor itself.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use agent::maps::MapReader;
use agent::{Answerer, Failure};
use async_trait::async_trait;
use bytes::Bytes;
use schema::ChunkId;
use schema::limits::LEAF_SPAN;
use schema::map::Content;
use schema::messages::{AskParentLeaf, Message, ParentLeaf};
use tokio::sync::Mutex;

/// Leaves kept: what readers are at, with some distance between several.
const KEPT: usize = 16;

/// The parent's map with its last leaves at hand.
pub(crate) struct Parent {
    map: MapReader,
    kept: Mutex<VecDeque<(u64, Option<Arc<LeafAt>>)>>,
}

/// One leaf of the parent.
pub(crate) struct LeafAt {
    span: u64,
    bytes: Bytes,
    places: BTreeMap<u64, ChunkId>,
}

impl Parent {
    pub(crate) fn new(map: MapReader) -> Self {
        Self { map, kept: Mutex::default() }
    }

    pub(crate) fn root(&self) -> &schema::root::Root {
        self.map.root()
    }

    /// A leaf; none beyond the parent's end.
    async fn leaf(&self, leaf: u64) -> Result<Option<Arc<LeafAt>>, Failure> {
        let mut kept = self.kept.lock().await;
        if let Some((_, known)) = kept.iter().find(|(at, _)| *at == leaf) {
            return Ok(known.clone());
        }
        let range = self.map.geometry().leaf_range(leaf);
        let found = match range.is_empty() {
            true => None,
            false => {
                let parsed = self.map.leaf(leaf).await?;
                let chunk = |(offset, piece): (u64, schema::map::Piece)| match piece.content {
                    Content::Chunk(id) => Some((offset, id)),
                    Content::Zero => None,
                };
                let places = parsed.located(leaf * LEAF_SPAN).filter_map(chunk).collect();
                Some(Arc::new(LeafAt {
                    span: range.end - range.start,
                    bytes: parsed.encode().into(),
                    places,
                }))
            }
        };
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back((leaf, found.clone()));
        Ok(found)
    }

    /// Whether the parent has this chunk at this place.
    pub(crate) async fn has(&self, offset: u64, id: ChunkId) -> bool {
        let leaf = readable(self.leaf(offset / LEAF_SPAN).await).flatten();
        leaf.is_some_and(|leaf| leaf.places.get(&offset) == Some(&id))
    }

    /// Whether the parent's leaf is this very chunk.
    pub(crate) async fn has_leaf(&self, leaf: u64, id: ChunkId) -> bool {
        let inside = leaf < self.map.geometry().leaves();
        inside && readable(self.map.leaf_id(leaf).await).flatten() == Some(id)
    }
}

/// A parent that cannot be read spares no work, and must not stand in the way of a new snapshot.
fn readable<T>(result: Result<T, Failure>) -> Option<T> {
    result.inspect_err(|failure| tracing::warn!(%failure, "the parent's map cannot be read")).ok()
}

/// Serves a session's parent; a session without one answers that there is none.
pub(crate) struct ParentService(pub(crate) Option<Arc<Parent>>);

#[async_trait]
impl Answerer for ParentService {
    async fn answer(&mut self, message: &Message) -> Result<Message, Failure> {
        let about = message.about()?;
        let asked: AskParentLeaf = message.read()?;
        let leaf = match &self.0 {
            Some(parent) => parent.leaf(asked.leaf).await?,
            None => None,
        };
        Ok(match leaf {
            Some(leaf) => {
                Message::with_body(&about, &ParentLeaf { span: Some(leaf.span) }, leaf.bytes.clone())
            }
            None => Message::new(&about, &ParentLeaf { span: None }),
        })
    }
}
