//! Uploads one closed pack, announces it, and only then acknowledges what is inside.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use agent::bus::Ticket;
use agent::store::StoreErrorKind;
use agent::{Context, Failure, Queue, Repository, Topic};
use schema::KeyId;
use schema::keys::SealedKey;
use schema::messages::{About, Message, PackStored, SessionEvent};
use schema::names;
use schema::pack::PackBuilder;
use tokio::sync::Mutex;

use crate::Settings;

/// Attempts to upload a pack, each under a fresh name; with doubling pauses they span about a minute.
const ATTEMPTS: u32 = 9;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Entries in one announcement: below a message's limit.
const ANNOUNCED: usize = 4096;

pub(crate) struct Uploader {
    context: Context,
    repository: Repository,
    settings: Settings,
    filed_keys: Mutex<BTreeSet<KeyId>>,
}

impl Uploader {
    pub(crate) fn new(context: Context, repository: Repository, settings: Settings) -> Self {
        Self { context, repository, settings, filed_keys: Mutex::default() }
    }

    /// Stores a pack in every outcome: durable and acknowledged, or its sessions told, or given back to the queue.
    pub(crate) async fn store(&self, builder: PackBuilder, tickets: Arc<Vec<Ticket>>) {
        let sessions = builder.sessions().to_vec();
        let span = tracing::info_span!("pack", bytes = builder.len(), chunks = builder.entries().len());
        let result = tracing::Instrument::instrument(self.upload(builder), span).await;
        let settle = match result {
            Ok(()) => true,
            Err(failure) if failure.retry => {
                tracing::warn!(%failure, "a pack could not be stored; its chunks go back to the queue");
                false
            }
            Err(failure) => {
                tracing::error!(%failure, "a pack cannot be stored; its sessions fail");
                for session in sessions {
                    let event = SessionEvent::Failed { kind: failure.kind, why: failure.why.clone() };
                    let message = Message::new(&About::session(session, ""), &event);
                    if let Err(why) = self.context.bus.publish(&Queue::session(session), message).await {
                        tracing::debug!(%session, %why, "a session could not be told");
                    }
                }
                true
            }
        };
        let tickets = unshare(tickets, &self.context).await;
        if settle {
            for ticket in tickets {
                // An acknowledgement that is lost brings the chunks again: a double copy, nothing worse.
                let _ = ticket.done().await;
            }
        }
    }

    async fn upload(&self, builder: PackBuilder) -> Result<(), Failure> {
        self.file_keys(builder.keys()).await?;
        let mut pause = FIRST_PAUSE;
        let mut builder = builder;
        for attempt in 1.. {
            let pack = builder.header().pack;
            self.settings.limit.pass(builder.len()).await;
            let (parts, footer) = builder.clone().finish();
            let error = match self.repository.store.put_once(&names::pack(pack), parts).await {
                Ok(()) => {
                    self.context.counters.packs_stored.add(1);
                    tracing::debug!(%pack, "stored");
                    return self.announce(pack, &footer.entries).await;
                }
                Err(error) => error,
            };
            // A local store may leave an object behind that a HEAD would find, but nobody is told its name.
            // Nor can a fresh name be taken: a store that says so has not settled its own business yet.
            let again = error.is_transient() || error.kind() == StoreErrorKind::Exists;
            if !again || attempt >= ATTEMPTS {
                return Err(error.into());
            }
            tracing::debug!(%error, attempt, "an upload failed; trying again under a new name");
            self.context.counters.packs_retried.add(1);
            self.context.environment.sleep(pause).await;
            pause *= 2;
            builder = builder.renamed(self.context.environment.pack_id());
        }
        unreachable!("the loop returns")
    }

    /// Makes the data keys durable, before anything that they seal is announced.
    async fn file_keys(&self, keys: &[SealedKey]) -> Result<(), Failure> {
        for key in keys {
            if self.filed_keys.lock().await.contains(&key.id) {
                continue;
            }
            if key.generation < self.repository.config.key_generation {
                tracing::warn!(
                    key = %key.id,
                    "a host seals to an outdated list of recipients: give it the current writer key file"
                );
            }
            self.repository.store.create(&names::key(key.id), key.sealed.clone()).await?;
            self.filed_keys.lock().await.insert(key.id);
        }
        Ok(())
    }

    /// To the index first, which must not lose it; then to whoever waits. Every shard gets whole packs where they fit
    /// a message: a shard that has seen all of a pack need not read its footer.
    async fn announce(
        &self,
        pack: schema::PackId,
        entries: &[schema::pack::PackEntry],
    ) -> Result<(), Failure> {
        let about = About::nothing();
        for entries in entries.chunks(ANNOUNCED) {
            let message = Message::new(&about, &PackStored { pack, entries: entries.to_vec() });
            for shard in 0..self.settings.shards {
                self.context.bus.publish(&Queue::stored(shard), message.clone()).await?;
            }
            self.context.bus.broadcast(&Topic::packs_stored(), message).await?;
        }
        Ok(())
    }
}

/// Takes the tickets back; whoever extends them holds them for a moment only.
async fn unshare(mut tickets: Arc<Vec<Ticket>>, context: &Context) -> Vec<Ticket> {
    loop {
        match Arc::try_unwrap(tickets) {
            Ok(tickets) => return tickets,
            Err(shared) => {
                tickets = shared;
                context.environment.sleep(Duration::from_millis(5)).await;
            }
        }
    }
}
