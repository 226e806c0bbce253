//! The hasher: names chunks, asks the index, compresses and seals what is new.
//!
//! It holds the writer key, and a data key that it makes when it starts and that never leaves it unsealed: it can
//! write content and never read it back. It needs no credentials for the object store. Everything about an extent
//! happens in one handler call, and the extent is acknowledged after its chunks and its mapping were handed on.

mod parent;
mod seal;

use std::sync::Arc;

use agent::bus::Ticket;
use agent::index::IndexClient;
use agent::{Context, Failure, Handler, Outcome, Queue};
use async_trait::async_trait;
use bytes::Bytes;
use schema::messages::{About, Answer, Extent, Mapped, Message, NewChunks, SessionEvent};
use schema::{ChunkId, Domain};

use parent::ParentLeaves;
pub use seal::ContentKey;
use seal::{Piece, Sealing};

/// Bytes of extents that a worker may hold unacknowledged: one in work, one at hand.
const WINDOW: usize = 2 << 20;

/// How a hasher works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// zstd level, 1 to 19.
    pub level: i32,
    /// Where extents come from.
    pub extents: Queue,
}

/// Workers of one process share a data key; each has its own buffers.
pub struct Hasher {
    context: Context,
    settings: Settings,
    index: IndexClient,
    content: Arc<ContentKey>,
    sealing: Sealing,
    parents: ParentLeaves,
}

impl Hasher {
    /// One worker. Run as many as there are cores to use.
    pub fn new(
        context: Context,
        settings: Settings,
        index: IndexClient,
        writer: &schema::keys::WriterKey,
        content: Arc<ContentKey>,
    ) -> Result<Self, Failure> {
        let sealing = Sealing::new(writer, settings.level)?;
        let parents = ParentLeaves::new(context.bus.clone());
        Ok(Self { context, settings, index, content, sealing, parents })
    }

    /// Works until the context's flag is raised.
    pub async fn run(self) -> Result<(), Failure> {
        let (context, queue) = (self.context.clone(), self.settings.extents.clone());
        agent::consume(&context, &queue, WINDOW, self).await
    }

    async fn hash(&mut self, about: &About, extent: &Extent, body: &Bytes) -> Result<(), Failure> {
        let pieces = self.sealing.name(extent, body)?;
        let parent = self.parents.leaf(about, extent.session, extent.offset).await;
        let mut fates: Vec<Option<Mapped>> = Vec::with_capacity(pieces.len());
        let mut unknown: Vec<ChunkId> = Vec::new();
        for piece in &pieces {
            let fate = match piece.id {
                None => Some(Mapped::Zero),
                Some(id) if !extent.force && parent.as_ref().is_some_and(|p| p.has(piece.offset, id)) => {
                    Some(Mapped::Parent(id))
                }
                Some(id) => {
                    if !unknown.contains(&id) {
                        unknown.push(id);
                    }
                    None
                }
            };
            fates.push(fate);
        }
        let is_lost = |id: &ChunkId| parent.as_ref().is_some_and(|parent| parent.is_lost(*id));
        // Lost ones in front.
        unknown.sort_by_key(|id| !is_lost(id));
        let (lost, others) = unknown.split_at(unknown.partition_point(is_lost));
        let mut answers = self.ask(about, extent, true, lost).await?;
        answers.extend(self.ask(about, extent, extent.force, others).await?);
        let stored = self.store(about, extent, body, &pieces, &unknown, &answers).await?;
        for (piece, fate) in pieces.iter().zip(&mut fates) {
            if let (None, Some(id)) = (&fate, piece.id) {
                let answer = unknown.iter().position(|u| *u == id).and_then(|at| answers.get(at));
                *fate = Some(match answer {
                    Some(Answer::Known(pack)) => Mapped::Known(id, *pack),
                    _ => Mapped::Pending(id),
                });
            }
        }
        self.report(about, extent, &pieces, fates, stored).await
    }

    async fn ask(
        &self,
        about: &About,
        extent: &Extent,
        force: bool,
        ids: &[ChunkId],
    ) -> Result<Vec<Answer>, Failure> {
        match ids.is_empty() {
            true => Ok(Vec::new()),
            false => self.index.ask(about, extent.session, extent.offset, force, ids).await,
        }
    }

    /// Seals what the index said is ours, and hands it to the storers.
    async fn store(
        &mut self,
        about: &About,
        extent: &Extent,
        body: &Bytes,
        pieces: &[Piece],
        unknown: &[ChunkId],
        answers: &[Answer],
    ) -> Result<Stored, Failure> {
        let ours: Vec<ChunkId> = unknown
            .iter()
            .zip(answers)
            .filter(|(_, answer)| **answer == Answer::Yours)
            .map(|(id, _)| *id)
            .collect();
        if ours.is_empty() {
            return Ok(Stored::default());
        }
        let (frames, new) = self.sealing.seal(extent, body, pieces, &ours, &self.content)?;
        let stored = Stored { bytes: frames.len() as u64, new, chunks: ours.len() as u64 };
        let chunks = NewChunks {
            session: extent.session,
            kind: schema::messages::Domain8(Domain::Data),
            key: self.content.sealed().cloned(),
        };
        let started = self.context.environment.elapsed();
        self.context.bus.publish(&Queue::chunks(), Message::with_body(about, &chunks, frames)).await?;
        let blocked = self.context.environment.elapsed().saturating_sub(started);
        self.context.counters.blocked_hasher_us.add(blocked.as_micros() as u64);
        Ok(stored)
    }

    async fn report(
        &self,
        about: &About,
        extent: &Extent,
        pieces: &[Piece],
        fates: Vec<Option<Mapped>>,
        stored: Stored,
    ) -> Result<(), Failure> {
        let counters = &self.context.counters;
        let known = |fate: &Option<Mapped>| matches!(fate, Some(Mapped::Parent(_) | Mapped::Known(..)));
        let known_bytes =
            pieces.iter().zip(&fates).filter(|(_, f)| known(f)).map(|(p, _)| u64::from(p.len)).sum();
        counters.bytes_known.add(known_bytes);
        counters.bytes_new.add(stored.new);
        counters.bytes_stored.add(stored.bytes);
        let pieces =
            pieces.iter().zip(fates).map(|(piece, fate)| (piece.len, fate.unwrap_or(Mapped::Zero))).collect();
        let event = SessionEvent::Mapped {
            reading: extent.reading,
            offset: extent.offset,
            pieces,
            stored: stored.bytes,
            new: stored.new,
            chunks_new: stored.chunks,
        };
        Ok(self.context.bus.publish(&Queue::session(extent.session), Message::new(about, &event)).await?)
    }
}

/// What an extent added to the repository.
#[derive(Debug, Clone, Copy, Default)]
struct Stored {
    bytes: u64,
    new: u64,
    chunks: u64,
}

#[async_trait]
impl Handler for Hasher {
    fn role(&self) -> &'static str {
        "hasher"
    }

    async fn handle(&mut self, message: &Message, _ticket: &mut Option<Ticket>) -> Result<Outcome, Failure> {
        let about = message.about()?;
        let extent: Extent = message.read()?;
        let span = tracing::debug_span!("extent", session = %extent.session, offset = extent.offset, bytes = message.body.len());
        tracing::Instrument::instrument(self.hash(&about, &extent, &message.body), span).await?;
        Ok(Outcome::Done)
    }
}
