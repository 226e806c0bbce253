//! What goes into the second repository: which chunks it lacks, and that all that was handed to its storer is durable.
//!
//! A chunk counts by the session's rule alone. What was handed on and not announced yet is waited for at the end.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent::bus::{Broadcasts, Deliveries};
use agent::index::IndexClient;
use agent::sessions::OpenSession;
use agent::{Context, Failure, Queue, Topic};
use bytes::Bytes;
use schema::chunk::Sealer;
use schema::keys::{ChunkIds, FrameKey, SealedKey, WriterKey};
use schema::limits::{EXTENT_MAX, EXTENT_PIECES_MAX};
use schema::messages::{About, Domain8, FailureKind, Flush, Message, NewChunks, PackStored, SessionEvent};
use schema::{ChunkId, Domain};
use tokio::sync::Notify;

/// Bytes of the session's events that may be unacknowledged.
const WINDOW: usize = 1 << 20;
/// First pause between flush requests; doubles up to [`FLUSH_SLOWEST`].
const FLUSH_FIRST: Duration = Duration::from_millis(10);
const FLUSH_SLOWEST: Duration = Duration::from_secs(2);
/// How long nothing may become durable while something is waited for.
const PATIENCE: Duration = Duration::from_secs(600);
/// zstd level of structure, which is stored raw anyway.
const LEVEL: i32 = 1;

/// What a session hands to the storer.
pub(crate) struct Deposit<'a> {
    context: &'a Context,
    index: &'a IndexClient,
    session: &'a OpenSession,
    about: About,
    ids: ChunkIds,
    structure: FrameKey,
    /// What was taken on and is not durable yet.
    waiting: Mutex<BTreeSet<ChunkId>>,
    settled: Notify,
    /// Bytes of frames that were handed on.
    stored: AtomicU64,
}

/// Where the storer says what became of it.
pub(crate) struct Listening {
    stored: Box<dyn Broadcasts>,
    events: Box<dyn Deliveries>,
}

impl<'a> Deposit<'a> {
    /// Begins to listen before anything is handed on.
    pub async fn begin(
        context: &'a Context,
        index: &'a IndexClient,
        session: &'a OpenSession,
        writer: &WriterKey,
    ) -> Result<(Self, Listening), Failure> {
        let id = session.session().id;
        let stored = context.bus.subscribe(&Topic::packs_stored()).await?;
        let events = context.bus.consume(&Queue::session(id), WINDOW).await?;
        let deposit = Self {
            context,
            index,
            session,
            about: About::session(id, session.session().volume.clone()),
            ids: writer.chunk_ids(),
            structure: writer.structure_key(),
            waiting: Mutex::default(),
            settled: Notify::new(),
            stored: AtomicU64::new(0),
        };
        Ok((deposit, Listening { stored, events }))
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeSet<ChunkId>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of frames that were handed on.
    pub fn stored(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }

    /// Those of some chunks that must be stored: whoever asks takes them on.
    pub async fn lacks(&self, ids: &[ChunkId]) -> Result<Vec<ChunkId>, Failure> {
        let mut unknown: Vec<ChunkId> = Vec::new();
        {
            let waiting = self.waiting();
            unknown.extend(ids.iter().filter(|id| !waiting.contains(*id)));
        }
        unknown.sort();
        unknown.dedup();
        let mut lacking = self.without_copy(&unknown).await?;
        let mut waiting = self.waiting();
        lacking.retain(|id| waiting.insert(*id));
        Ok(lacking)
    }

    /// The chunks of recorded damage that have no copy which counts.
    pub async fn lost(&self) -> Result<BTreeSet<ChunkId>, Failure> {
        let named: Vec<ChunkId> = self.session.damages().chunks().map(|(id, _)| *id).collect();
        Ok(self.without_copy(&named).await?.into_iter().collect())
    }

    async fn without_copy(&self, ids: &[ChunkId]) -> Result<Vec<ChunkId>, Failure> {
        let mut without = Vec::new();
        for (id, copies) in ids.iter().zip(self.index.locate(&self.about, ids).await?) {
            let mut counts = false;
            for copy in &copies {
                counts = counts || self.session.counts_for(id, copy.pack).await?;
            }
            if !counts {
                without.push(*id);
            }
        }
        Ok(without)
    }

    /// Hands frames on, all sealed by one key. Waits while the storer has enough.
    pub async fn put(&self, kind: Domain, key: Option<&SealedKey>, frames: &[Bytes]) -> Result<(), Failure> {
        let mut rest = frames;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(fitting(rest));
            let chunks =
                NewChunks { session: self.session.session().id, kind: Domain8(kind), key: key.cloned() };
            let body = Bytes::from(now.concat());
            self.stored.fetch_add(body.len() as u64, Ordering::Relaxed);
            self.context.counters.bytes_stored.add(body.len() as u64);
            let message = Message::with_body(&self.about, &chunks, body);
            self.context.bus.publish(&Queue::chunks(), message).await?;
            rest = later;
        }
        Ok(())
    }

    /// Stores a part of the map unless it is there.
    pub async fn structure(&self, plain: &[u8]) -> Result<ChunkId, Failure> {
        let id = self.ids.id(Domain::Structure, plain);
        if !self.lacks(&[id]).await?.is_empty() {
            let mut frame = Vec::with_capacity(plain.len() + 128);
            Sealer::new(LEVEL)?.seal(id, plain, &self.structure, &mut frame)?;
            self.put(Domain::Structure, None, &[frame.into()]).await?;
        }
        Ok(id)
    }

    /// The id of a part of the map.
    pub fn structure_id(&self, plain: &[u8]) -> ChunkId {
        self.ids.id(Domain::Structure, plain)
    }

    /// Waits until everything that was handed on is durable.
    pub async fn settle(&self) -> Result<(), Failure> {
        let environment = &self.context.environment;
        let (mut pause, mut left, mut since) = (FLUSH_FIRST, usize::MAX, environment.elapsed());
        loop {
            let settled = self.settled.notified();
            let waiting = self.waiting().len();
            if waiting == 0 {
                return Ok(());
            }
            if waiting < left {
                (left, since) = (waiting, environment.elapsed());
            } else if environment.elapsed().saturating_sub(since) > PATIENCE {
                let minutes = PATIENCE.as_secs() / 60;
                let why = format!("{waiting} chunks did not become durable within {minutes} minutes");
                return Err(Failure::new(FailureKind::Store, why));
            }
            let flush = Message::new(&self.about, &Flush { session: self.session.session().id });
            self.context.bus.broadcast(&Topic::flush(), flush).await?;
            tokio::select! {
                biased;
                () = settled => {}
                () = environment.sleep(pause) => pause = (pause * 2).min(FLUSH_SLOWEST),
            }
        }
    }

    /// Hears what became durable until something failed, and returns that.
    pub async fn listen(&self, mut listening: Listening) -> Failure {
        loop {
            let heard = tokio::select! {
                biased;
                event = listening.events.next() => match event {
                    Ok(delivery) => match delivery.message.read::<SessionEvent>() {
                        Ok(SessionEvent::Failed { kind, why }) => Err(Failure::new(kind, why)),
                        _ => delivery.ticket.done().await.map_err(Failure::from),
                    },
                    Err(why) => Err(why.into()),
                },
                stored = listening.stored.next() => match stored {
                    Ok(message) => self.on_stored(&message).await,
                    Err(why) => Err(why.into()),
                },
            };
            if let Err(failure) = heard {
                return failure;
            }
        }
    }

    async fn on_stored(&self, message: &Message) -> Result<(), Failure> {
        let Ok(stored) = message.read::<PackStored>() else { return Ok(()) };
        let ours = {
            let waiting = self.waiting();
            stored.entries.iter().any(|entry| waiting.contains(&entry.id))
        };
        if !ours {
            return Ok(());
        }
        self.session.forget_missing(stored.pack).await;
        if self.session.counts(stored.pack).await? {
            let mut waiting = self.waiting();
            for entry in &stored.entries {
                waiting.remove(&entry.id);
            }
            drop(waiting);
            self.settled.notify_one();
        }
        Ok(())
    }
}

/// How many of some frames go into one message, at least one.
fn fitting(frames: &[Bytes]) -> usize {
    let mut bytes = 0;
    let fits = |frame: &&Bytes| {
        bytes += frame.len();
        bytes <= EXTENT_MAX
    };
    frames.iter().take(EXTENT_PIECES_MAX).take_while(fits).count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_neither_too_long_nor_of_too_many_frames() {
        let frame = |len| Bytes::from(vec![0; len]);
        for (frames, fit) in [
            (vec![frame(EXTENT_MAX + 1), frame(1)], 1),
            (vec![frame(EXTENT_MAX), frame(1)], 1),
            (vec![frame(EXTENT_MAX - 1), frame(1), frame(1)], 2),
            (vec![frame(1); EXTENT_PIECES_MAX + 1], EXTENT_PIECES_MAX),
        ] {
            assert_eq!(fitting(&frames), fit);
        }
    }
}
