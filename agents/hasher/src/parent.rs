//! The parent's map as the session's conductor serves it: a chunk that stands there at the same place needs no
//! question to the index.
//!
//! No answer means no short cut, never an error: the index is asked instead.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use agent::{Bus, Service};
use schema::limits::LEAF_SPAN;
use schema::map::{Content, Geometry, Leaf};
use schema::messages::{About, AskParentLeaf, Message, ParentLeaf};
use schema::{ChunkId, SessionId};

/// Leaves kept: neighbouring extents share one, and a worker serves few sessions at a time.
const KEPT: usize = 8;
/// How long the conductor may take.
const LIMIT: Duration = Duration::from_secs(5);

pub(crate) struct ParentLeaves {
    bus: Arc<dyn Bus>,
    kept: VecDeque<Kept>,
}

/// A session's leaf by number, if its parent has one.
type Kept = ((SessionId, u64), Option<Arc<Places>>);

/// Which chunk stands where, and which of them have no whole copy.
pub(crate) struct Places {
    chunks: BTreeMap<u64, ChunkId>,
    lost: BTreeSet<ChunkId>,
}

impl Places {
    /// Whether the parent has this chunk at this place. Equal ids have equal lengths.
    pub(crate) fn has(&self, offset: u64, id: ChunkId) -> bool {
        self.chunks.get(&offset) == Some(&id) && !self.is_lost(id)
    }

    /// Whether this chunk is stored again, whatever the index says.
    pub(crate) fn is_lost(&self, id: ChunkId) -> bool {
        self.lost.contains(&id)
    }
}

impl ParentLeaves {
    pub(crate) fn new(bus: Arc<dyn Bus>) -> Self {
        Self { bus, kept: VecDeque::new() }
    }

    /// The parent's leaf around an offset, if there is a parent that has one.
    pub(crate) async fn leaf(
        &mut self,
        about: &About,
        session: SessionId,
        offset: u64,
    ) -> Option<Arc<Places>> {
        let leaf = Geometry::leaf_of(offset);
        if let Some((_, places)) = self.kept.iter().find(|(key, _)| *key == (session, leaf)) {
            return places.clone();
        }
        let places = self.ask(about, session, leaf).await.map(Arc::new);
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(((session, leaf), places.clone()));
        places
    }

    async fn ask(&self, about: &About, session: SessionId, leaf: u64) -> Option<Places> {
        let question = Message::new(about, &AskParentLeaf { session, leaf });
        let answer = self.bus.request(&Service::conductor(session), question, LIMIT).await.ok()?;
        let ParentLeaf { span, lost } = answer.read().ok()?;
        let parsed = Leaf::parse(&answer.body, span?).ok()?;
        let chunk = |content| match content {
            Content::Chunk(id) => Some(id),
            Content::Zero => None,
        };
        let piece = |number: &u32| parsed.pieces().get(*number as usize);
        let lost = lost.iter().filter_map(piece).filter_map(|piece| chunk(piece.content)).collect();
        let located = parsed.located(leaf * LEAF_SPAN);
        let chunks = located.filter_map(|(offset, piece)| Some((offset, chunk(piece.content)?))).collect();
        Some(Places { chunks, lost })
    }
}
