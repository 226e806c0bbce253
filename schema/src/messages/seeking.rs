//! The last question about a chunk before it counts as lost: where it is, as far as the bucket itself tells.

use serde::{Deserialize, Serialize};

use super::{Copy, Payload, at_most};
use crate::limits::ASK_MAX;
use crate::{ChunkId, Result};

/// Where are all copies of these chunks? Look at the bucket first, unless you have done so already.
///
/// A kind of its own: an indexer that answered from what it knows would make whoever asks give up what can be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seek {
    /// How many shards the asker believes that there are.
    pub shards: u16,
    /// The chunks.
    pub ids: Vec<ChunkId>,
    /// Who has looked since the asker missed something: of several who serve a shard any may answer.
    pub looked: Vec<u64>,
}
payload!(Seek, s => {
    at_most("ids in a question", s.ids.len(), ASK_MAX)?;
    at_most("answerers in a question", s.looked.len(), ASK_MAX)
});

/// All copies that there are, in the order of the question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sought {
    /// One list per id.
    pub copies: Vec<Vec<Copy>>,
    /// Who has looked: a number that each process draws when it begins.
    pub by: u64,
}
payload!(Sought, s => at_most("answers", s.copies.len(), ASK_MAX));
