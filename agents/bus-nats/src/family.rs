//! The stream of one family of queues, and the consumers on it: how they are defined, and that they are there.
//!
//! Whether they are there is asked once per connection, and again when the server said that something is missing.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agent::Queue;
use agent::bus::{BusError, Durability};
use async_nats::datetime::DateTime;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::context::{CreateStreamError, CreateStreamErrorKind};
use async_nats::jetstream::stream::{
    Config, ConsumerErrorKind, DiscardPolicy, PurgeError, RetentionPolicy, StorageType,
};
use async_nats::jetstream::{self, ErrorCode};
use tokio::time::Instant;

use crate::connection::{Nats, Trouble, chain, lock};
use crate::publish::{Backoff, UNREACHABLE_AFTER};
use crate::settings::{Settings, queue_messages};

/// What is older is of no use to a session any more.
const MEMORY_AGE_MAX: Duration = Duration::from_secs(2 * 3600);
/// The end of a job that nobody asked for; the bucket says the same for ever.
const DONE_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Messages carry no ids: nothing is to be remembered about them.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(1);
/// Unsettled deliveries of one queue, over all processes. Each process bounds its own in bytes.
const ACK_PENDING_MAX: i64 = 65_536;
/// Pull requests that may wait at one queue: two per process.
const PULLS_MAX: i64 = 4096;
/// Nobody took anything for so long: the consumer is forgotten, its messages stay.
const CONSUMER_IDLE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Bytes in the name of a consumer.
const MEMBER_MAX: usize = 240;

/// One stream.
#[derive(Debug)]
pub(crate) struct Family {
    pub stream: String,
    config: Config,
    seen: Mutex<Option<Seen>>,
    making: tokio::sync::Mutex<()>,
    complained: AtomicBool,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    era: u64,
    created: DateTime,
}

impl Family {
    pub fn new(settings: &Settings, queue: &Queue) -> Self {
        let family = queue.family();
        let stream = format!("{}-{family}", settings.namespace);
        let (storage, max_age) = match (queue.durability(), family) {
            (Durability::Memory, _) => (StorageType::Memory, MEMORY_AGE_MAX),
            (Durability::File, "done") => (StorageType::File, DONE_AGE_MAX),
            (Durability::File, _) => (StorageType::File, Duration::ZERO),
        };
        let per_queue = queue_messages(family);
        let config = Config {
            name: stream.clone(),
            subjects: vec![format!("{}.q.{family}.*", settings.namespace)],
            retention: RetentionPolicy::WorkQueue,
            storage,
            max_bytes: i64::try_from(settings.bytes_of(family)).unwrap_or(i64::MAX),
            max_messages: -1,
            max_messages_per_subject: per_queue,
            discard: DiscardPolicy::New,
            discard_new_per_subject: per_queue > 0,
            max_age,
            max_consumers: -1,
            max_message_size: -1,
            num_replicas: settings.replicas,
            duplicate_window: DUPLICATE_WINDOW,
            ..Config::default()
        };
        Self { stream, config, seen: Mutex::default(), making: Default::default(), complained: false.into() }
    }

    /// Makes the stream if it is not there; says when it was made, which tells one incarnation from the next.
    pub async fn ensure(&self, nats: &Nats) -> Result<DateTime, Trouble> {
        if let Some(created) = self.seen_in(nats.era()) {
            return Ok(created);
        }
        let _making = self.making.lock().await;
        let era = nats.era();
        if let Some(created) = self.seen_in(era) {
            return Ok(created);
        }
        let created = self.make(nats).await?;
        *lock(&self.seen) = Some(Seen { era, created });
        Ok(created)
    }

    fn seen_in(&self, era: u64) -> Option<DateTime> {
        lock(&self.seen).filter(|seen| seen.era == era).map(|seen| seen.created)
    }

    /// The server said that it is not there.
    pub fn forget(&self) {
        *lock(&self.seen) = None;
    }

    async fn make(&self, nats: &Nats) -> Result<DateTime, Trouble> {
        let trouble = |why: CreateStreamError| {
            // Waiting mends it only when somebody hears of it.
            if is_without_room(&why) && !self.complained.swap(true, Ordering::Relaxed) {
                tracing::error!(
                    stream = self.stream,
                    bytes = self.config.max_bytes,
                    why = chain(&why),
                    "the NATS server has no room for a queue; raise max_memory_store and max_file_store of its jetstream block"
                );
            }
            Trouble::Away(format!("stream {}: {}", self.stream, chain(&why)))
        };
        match nats.context.create_stream(self.config.clone()).await {
            Ok(stream) => Ok(stream.cached_info().created),
            // It is there with other limits: the latest settings hold.
            Err(why) if is_other_configuration(&why) => nats
                .context
                .update_stream(self.config.clone())
                .await
                .map(|info| info.created)
                .map_err(trouble),
            Err(why) => Err(trouble(why)),
        }
    }
}

fn is_other_configuration(why: &CreateStreamError) -> bool {
    match why.kind() {
        CreateStreamErrorKind::JetStream(error) => error.error_code() == ErrorCode::STREAM_NAME_EXIST,
        _ => false,
    }
}

fn is_without_room(why: &CreateStreamError) -> bool {
    let CreateStreamErrorKind::JetStream(error) = why.kind() else { return false };
    [
        ErrorCode::INSUFFICIENT_RESOURCES,
        ErrorCode::MEMORY_RESOURCES_EXCEEDED,
        ErrorCode::STORAGE_RESOURCES_EXCEEDED,
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED,
    ]
    .contains(&error.error_code())
}

impl Nats {
    /// Makes the queue's stream and consumer if they are not there.
    pub async fn make_consumer(&self, queue: &Queue) -> Result<(), Trouble> {
        if queue.member().len() > MEMBER_MAX {
            return Err(Trouble::Never(format!("the name is longer than {MEMBER_MAX} bytes")));
        }
        let family = self.family(queue);
        family.ensure(self).await?;
        let config = pull::Config {
            durable_name: Some(queue.member().to_owned()),
            filter_subject: self.subject(queue),
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.settings.ack_wait,
            max_deliver: -1,
            max_ack_pending: ACK_PENDING_MAX,
            max_waiting: PULLS_MAX,
            inactive_threshold: CONSUMER_IDLE_MAX,
            memory_storage: queue.durability() == Durability::Memory,
            ..pull::Config::default()
        };
        let made = self.context.create_consumer_on_stream(config, &family.stream).await;
        made.map(|_| ()).map_err(|why| {
            if let ConsumerErrorKind::JetStream(error) = why.kind()
                && error.error_code() == ErrorCode::STREAM_NOT_FOUND
            {
                family.forget();
                return Trouble::Missing;
            }
            Trouble::Away(format!("queue {queue}: {}", chain(&why)))
        })
    }

    /// [`Self::make_consumer`], tried for a minute.
    pub async fn make_consumer_patiently(&self, queue: &Queue) -> Result<(), BusError> {
        let deadline = Instant::now() + UNREACHABLE_AFTER;
        let mut backoff = Backoff::default();
        loop {
            self.need_connection(UNREACHABLE_AFTER).await?;
            let why = match self.make_consumer(queue).await {
                Ok(()) => return Ok(()),
                Err(Trouble::Never(why)) => {
                    return Err(BusError::Unsendable { subject: queue.to_string(), why });
                }
                Err(Trouble::Away(why)) => why,
                Err(Trouble::Missing | Trouble::Full) => format!("queue {queue} disappears again and again"),
            };
            if Instant::now() >= deadline {
                return Err(BusError::Unreachable(why));
            }
            backoff.pause().await;
        }
    }

    /// Removes the queue's consumer and messages. That there are none is fine.
    pub async fn remove(&self, queue: &Queue) -> Result<(), BusError> {
        self.need_connection(UNREACHABLE_AFTER).await?;
        let family = self.family(queue);
        let unreachable = |why: String| BusError::Unreachable(format!("retiring {queue}: {why}"));
        let deleted = self.context.delete_consumer_from_stream(queue.member(), &family.stream).await;
        if let Err(why) = deleted {
            match why.kind() {
                ConsumerErrorKind::JetStream(error) if is_gone(&error) => {}
                _ => return Err(unreachable(chain(&why))),
            }
        }
        let stream = match self.context.get_stream_no_info(&family.stream).await {
            Ok(stream) => stream,
            Err(why) => return Err(unreachable(chain(&why))),
        };
        match stream.purge().filter(self.subject(queue)).await {
            Ok(_) => Ok(()),
            Err(why) if is_stream_gone(&why) => Ok(()),
            Err(why) => Err(unreachable(chain(&why))),
        }
    }
}

fn is_gone(error: &jetstream::Error) -> bool {
    [ErrorCode::CONSUMER_NOT_FOUND, ErrorCode::STREAM_NOT_FOUND].contains(&error.error_code())
}

fn is_stream_gone(why: &PurgeError) -> bool {
    // The client library hands on the server's words only.
    chain(why).contains(&ErrorCode::STREAM_NOT_FOUND.0.to_string()) || chain(why).contains("stream not found")
}
