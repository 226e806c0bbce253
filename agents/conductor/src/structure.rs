//! Stores map leaves and nodes: structure chunks, which only the conductor writes.
//!
//! The bytes of a chunk stay here until it is durable, so that one whose message was lost can be sent again.

use std::collections::{BTreeMap, BTreeSet};

use agent::index::IndexClient;
use agent::sessions::OpenSession;
use agent::{Context, Failure, Queue};
use bytes::Bytes;
use schema::chunk::Sealer;
use schema::keys::{ChunkIds, FrameKey, WriterKey};
use schema::messages::{About, Answer, Domain8, Message, NewChunks};
use schema::{ChunkId, Domain};

/// zstd level of structure: ids do not compress, lengths do a little.
const LEVEL: i32 = 1;
/// Claims on structure chunks are kept apart from those of extents: no volume is this long.
const CLAIM_BASE: u64 = 1 << 63;

pub(crate) struct Structure {
    context: Context,
    index: IndexClient,
    ids: ChunkIds,
    key: FrameKey,
    sealer: Sealer,
    waiting: BTreeMap<ChunkId, Bytes>,
    durable: BTreeSet<ChunkId>,
    /// Bytes that stored structure takes in packs.
    pub(crate) stored: u64,
}

impl Structure {
    pub(crate) fn new(context: Context, index: IndexClient, writer: &WriterKey) -> Result<Self, Failure> {
        Ok(Self {
            context,
            index,
            ids: writer.chunk_ids(),
            key: writer.structure_key(),
            sealer: Sealer::new(LEVEL)?,
            waiting: BTreeMap::new(),
            durable: BTreeSet::new(),
            stored: 0,
        })
    }

    pub(crate) fn id(&self, plain: &[u8]) -> ChunkId {
        self.ids.id(Domain::Structure, plain)
    }

    /// Stores a chunk unless the repository has it.
    pub(crate) async fn store(
        &mut self,
        session: &OpenSession,
        about: &About,
        claim: u64,
        plain: Bytes,
    ) -> Result<ChunkId, Failure> {
        let id = self.id(&plain);
        if self.durable.contains(&id) || self.waiting.contains_key(&id) {
            return Ok(id);
        }
        let asked = self.index.ask(about, session.session().id, CLAIM_BASE | claim, false, &[id]).await?;
        match asked.first() {
            Some(Answer::Known(pack)) if session.counts_for(&id, *pack).await? => {
                self.durable.insert(id);
            }
            Some(Answer::Pending) => {
                self.waiting.insert(id, plain);
            }
            _ => self.send(session, about, id, plain).await?,
        }
        Ok(id)
    }

    async fn send(
        &mut self,
        session: &OpenSession,
        about: &About,
        id: ChunkId,
        plain: Bytes,
    ) -> Result<(), Failure> {
        let mut frame = Vec::with_capacity(plain.len() + 128);
        self.sealer.seal(id, &plain, &self.key, &mut frame)?;
        self.stored += frame.len() as u64;
        let chunks = NewChunks { session: session.session().id, kind: Domain8(Domain::Structure), key: None };
        self.waiting.insert(id, plain);
        Ok(self
            .context
            .bus
            .publish(&Queue::chunks(), Message::with_body(about, &chunks, frame.into()))
            .await?)
    }

    /// Sends again what has been on its way for too long.
    pub(crate) async fn send_again(&mut self, session: &OpenSession, about: &About) -> Result<(), Failure> {
        for (id, plain) in self.waiting.clone() {
            self.send(session, about, id, plain).await?;
        }
        Ok(())
    }

    pub(crate) fn durable(&mut self, id: ChunkId) -> bool {
        let waited = self.waiting.remove(&id).is_some();
        if waited {
            self.durable.insert(id);
        }
        waited
    }

    pub(crate) fn waits_for(&self, id: ChunkId) -> bool {
        self.waiting.contains_key(&id)
    }

    pub(crate) fn waiting(&self) -> impl Iterator<Item = ChunkId> + '_ {
        self.waiting.keys().copied()
    }

    pub(crate) fn all_durable(&self) -> bool {
        self.waiting.is_empty()
    }
}
