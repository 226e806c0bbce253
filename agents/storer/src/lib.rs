//! The storer: collects sealed chunks into packs, uploads them, and says what is durable.
//!
//! A chunk is announced only after its pack's PUT succeeded and the data key that seals it is in the bucket; only
//! then is the message that brought it acknowledged. Every attempt to upload a pack has a fresh name, so that a PUT
//! that lands late is an orphan that nobody knows. A pack closes by size, by age, or when a conductor asks.

mod open;
mod upload;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use agent::bus::Ticket;
use agent::rate::RateLimit;
use agent::{Context, Failure, Handler, Outcome, Queue, Repository, Topic};
use async_trait::async_trait;
use schema::messages::{Flush, Message, NewChunks};
use schema::{Domain, SessionId};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;

use open::OpenPack;
use upload::Uploader;

/// How a storer works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Packs that are uploaded at once; each holds a pack's bytes.
    pub uploads: usize,
    /// A pack that holds anything is closed after this long.
    pub max_age: Duration,
    /// Shards of the index.
    pub shards: u16,
    /// Limit on uploads.
    pub limit: RateLimit,
}

/// A storer. Clones share its open packs.
#[derive(Clone)]
pub struct Storer {
    context: Context,
    repository: Repository,
    settings: Settings,
    uploader: Arc<Uploader>,
    slots: Arc<Semaphore>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    open: BTreeMap<Domain, OpenPack>,
    uploads: JoinSet<()>,
    /// Tickets of packs in upload, to be extended: they live in the upload's own task.
    uploading: Vec<std::sync::Weak<Vec<Ticket>>>,
}

impl Storer {
    /// A storer for a repository.
    pub fn new(context: Context, repository: Repository, settings: Settings) -> Self {
        let uploader = Arc::new(Uploader::new(context.clone(), repository.clone(), settings.clone()));
        let slots = Arc::new(Semaphore::new(settings.uploads.max(1)));
        Self { context, repository, settings, uploader, slots, state: Arc::default() }
    }

    /// Works until the context's flag is raised; then uploads what is open.
    pub async fn run(self) -> Result<(), Failure> {
        let flushes = self.clone().listen_for_flushes();
        let ages = self.clone().watch_ages();
        let context = self.context.clone();
        let window = 4 * self.repository.config.pack_size as usize;
        let chunks = Queue::chunks();
        let work = agent::consume(&context, &chunks, window, self);
        tokio::pin!(work);
        let background = async { tokio::join!(flushes, ages) };
        tokio::pin!(background);
        tokio::select! {
            biased;
            done = &mut work => done,
            _ = &mut background => work.await,
        }
    }

    async fn listen_for_flushes(self) {
        while !self.context.stop.is_raised() {
            if let Ok(mut topic) = self.context.bus.subscribe(&Topic::flush()).await {
                while let Some(Ok(message)) = self.unless_stopped(topic.next()).await {
                    if let Ok(flush) = message.read::<Flush>() {
                        self.close(|pack| pack.serves(flush.session)).await;
                    }
                }
            }
            self.unless_stopped(self.context.environment.sleep(Duration::from_millis(500))).await;
        }
    }

    async fn unless_stopped<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.context.stop.raised() => None,
            value = future => Some(value),
        }
    }

    /// Closes packs by age, and keeps the queue from giving away what is being filled or uploaded.
    async fn watch_ages(self) {
        let tick = (self.settings.max_age / 4).clamp(Duration::from_millis(50), Duration::from_secs(5));
        while self.unless_stopped(self.context.environment.sleep(tick)).await.is_some() {
            let now = self.context.environment.elapsed();
            self.close(|pack| now.saturating_sub(pack.opened) >= self.settings.max_age).await;
            self.extend_tickets().await;
        }
    }

    async fn extend_tickets(&self) {
        let mut state = self.state.lock().await;
        state.uploading.retain(|tickets| tickets.strong_count() > 0);
        let uploading: Vec<_> = state.uploading.iter().filter_map(std::sync::Weak::upgrade).collect();
        let open = state.open.values().flat_map(|pack| pack.tickets.iter());
        for ticket in open.chain(uploading.iter().flat_map(|tickets| tickets.iter())) {
            // A ticket that cannot be extended comes again; storing its chunks twice is harmless.
            let _ = ticket.extend().await;
        }
    }

    /// Closes the open packs that `which` says.
    async fn close(&self, which: impl Fn(&OpenPack) -> bool) {
        let mut state = self.state.lock().await;
        let kinds: Vec<Domain> =
            state.open.iter().filter(|(_, pack)| which(pack)).map(|(kind, _)| *kind).collect();
        for kind in kinds {
            if let Some(pack) = state.open.remove(&kind) {
                self.upload(&mut state, pack);
            }
        }
    }

    /// Starts an upload. What limits closed packs is the queue: their messages stay unacknowledged.
    fn upload(&self, state: &mut State, pack: OpenPack) {
        while state.uploads.try_join_next().is_some() {}
        let tickets = Arc::new(pack.tickets);
        state.uploading.push(Arc::downgrade(&tickets));
        let (uploader, builder, slots) = (self.uploader.clone(), pack.builder, self.slots.clone());
        let context = self.context.clone();
        state.uploads.spawn(async move {
            let started = context.environment.elapsed();
            // The semaphore is never closed, so that waiting cannot fail.
            let _slot = slots.acquire_owned().await;
            let blocked = context.environment.elapsed().saturating_sub(started);
            context.counters.blocked_storer_us.add(blocked.as_micros() as u64);
            uploader.store(builder, tickets).await;
        });
    }

    async fn add(
        &self,
        chunks: NewChunks,
        body: bytes::Bytes,
        ticket: &mut Option<Ticket>,
    ) -> Result<(), Failure> {
        let session: SessionId = chunks.session;
        let frames = schema::chunk::split_frames(&body, schema::limits::EXTENT_PIECES_MAX)?;
        let headers: Vec<_> = frames.iter().map(|(header, _)| *header).collect();
        let expected = chunks.key.as_ref().map(|key| schema::keys::index_of(&key.id));
        let own_key = |key: u32| key < schema::keys::KEY_DATA_FIRST || Some(key) == expected;
        let encrypted = self.repository.key.encrypted();
        if let Some(open) = headers.iter().find(|header| encrypted && schema::chunk::is_plain(header.key)) {
            return Err(Failure::refused(format!("chunk {} is not encrypted, the repository is", open.id)));
        }
        if let Some(stranger) = headers.iter().find(|header| !own_key(header.key)) {
            return Err(Failure::refused(format!(
                "chunk {} is sealed with a key that did not come along",
                stranger.id
            )));
        }
        let mut state = self.state.lock().await;
        let kind = chunks.kind.0;
        let mut pushed = None;
        if let Some(mut pack) = state.open.remove(&kind) {
            match pack.push(&headers, &body, session, chunks.key.as_ref()) {
                Ok(()) => pushed = Some(pack),
                // What does not go in here, by its key or by the pack's limits, may go into another.
                Err(_) => self.upload(&mut state, pack),
            }
        }
        let mut pack = match pushed {
            Some(pack) => pack,
            None => {
                let repo = self.repository.key.repo();
                let mut pack = OpenPack::new(repo, kind, &*self.context.environment);
                pack.push(&headers, &body, session, chunks.key.as_ref())?;
                pack
            }
        };
        pack.tickets.extend(ticket.take());
        match pack.builder.len() >= self.repository.config.pack_size {
            true => self.upload(&mut state, pack),
            false => drop(state.open.insert(kind, pack)),
        }
        Ok(())
    }
}

#[async_trait]
impl Handler for Storer {
    fn role(&self) -> &'static str {
        "storer"
    }

    async fn handle(&mut self, message: &Message, ticket: &mut Option<Ticket>) -> Result<Outcome, Failure> {
        let chunks: NewChunks = message.read()?;
        self.add(chunks, message.body.clone(), ticket).await?;
        Ok(Outcome::Held)
    }

    async fn drain(&mut self) -> Result<(), Failure> {
        self.close(|_| true).await;
        let mut state = self.state.lock().await;
        while state.uploads.join_next().await.is_some() {}
        Ok(())
    }
}
