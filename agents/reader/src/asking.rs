//! Questions to the session's conductor.
//!
//! No answer is no error: what is not known to be wanted no more is read, and what cannot be compared with the parent
//! is read whole.

use std::sync::Arc;
use std::time::Duration;

use agent::{Context, Service};
use schema::map::{Geometry, Leaf};
use schema::messages::{About, AskParentLeaf, AskWanted, Message, ParentLeaf as ParentLeafIs, Wanted};
use schema::{SessionId, limits::LEAF_SPAN};

use crate::tracked::ParentLeaf;

/// How long the conductor may take to say what it wants.
const WANTED_LIMIT: Duration = Duration::from_secs(5);
/// How long it may take to read a leaf of the parent's map from the bucket.
const LEAF_LIMIT: Duration = Duration::from_secs(10);
/// How often it is asked for a leaf, and the pause between: reading the leaf instead costs more.
const LEAF_TRIES: u32 = 3;
const LEAF_PAUSE: Duration = Duration::from_millis(500);

/// The conductor of one session.
pub(crate) struct Conductor<'a> {
    context: &'a Context,
    about: &'a About,
    session: SessionId,
}

impl<'a> Conductor<'a> {
    pub(crate) fn new(context: &'a Context, about: &'a About, session: SessionId) -> Self {
        Self { context, about, session }
    }

    /// What of a request is still wanted.
    pub(crate) async fn wanted(&self, request: u32) -> Option<Wanted> {
        let question = Message::new(self.about, &AskWanted { session: self.session, request });
        self.ask(question, WANTED_LIMIT).await?.read().ok()
    }

    /// A leaf of the parent's map, if the parent has one of the same extent.
    pub(crate) async fn parent_leaf(&self, leaf: u64, geometry: Geometry) -> Option<Arc<ParentLeaf>> {
        let answer = self.ask_for_leaf(leaf).await?;
        let range = geometry.leaf_range(leaf);
        let span = answer.read::<ParentLeafIs>().ok()?.span?;
        if span != range.end - range.start {
            return None;
        }
        let parsed = Leaf::parse(&answer.body, span).ok()?;
        Some(Arc::new(ParentLeaf::new(leaf * LEAF_SPAN, &parsed)))
    }

    async fn ask_for_leaf(&self, leaf: u64) -> Option<Message> {
        let question = Message::new(self.about, &AskParentLeaf { session: self.session, leaf });
        for _ in 1..LEAF_TRIES {
            if let Some(answer) = self.ask(question.clone(), LEAF_LIMIT).await {
                return Some(answer);
            }
            self.context.environment.sleep(LEAF_PAUSE).await;
        }
        self.ask(question, LEAF_LIMIT).await
    }

    async fn ask(&self, question: Message, limit: Duration) -> Option<Message> {
        let asked = self.context.bus.request(&Service::conductor(self.session), question, limit).await;
        asked.inspect_err(|why| tracing::debug!(%why, "the session's conductor does not answer")).ok()
    }
}
