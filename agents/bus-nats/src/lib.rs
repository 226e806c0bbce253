//! The bus over a NATS server: work queues on JetStream, requests and broadcasts on core NATS.
//!
//! One stream per family of queues with work-queue retention, one subject and one durable pull consumer per queue.
//! A server that restarts may have lost its memory streams with their definition: publishing, taking and settling
//! notice, make them again and go on. Everything that waits is bounded in bytes, in messages or in time.
//!
//! Subjects: `<namespace>.q.<family>.<member>` for queues, `<namespace>.s.<service>` for requests,
//! `<namespace>.t.<topic>` for broadcasts; streams are called `<namespace>-<family>`. Besides those, a user of the
//! server needs `$JS.API.>`, `$JS.ACK.>` and `_INBOX.>`.
//! This must never look into a message, and never say that something is on a queue before the server said so.

mod connection;
mod deliveries;
mod family;
mod publish;
mod pull;
mod services;
mod settings;
mod settle;

use std::sync::{Arc, Weak};
use std::time::Duration;

use agent::bus::{Broadcasts, Bus, BusError, Deliveries, Queue, Requests, Service, Topic};
use async_trait::async_trait;
use schema::messages::Message;

use connection::Nats;
use deliveries::{Intake, NatsDeliveries};
pub use settings::{Settings, StartError};

/// How long the last words are waited for in [`NatsBus::close`].
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// A connection to a NATS server as a bus. Clones share it.
#[derive(Debug, Clone)]
pub struct NatsBus {
    nats: Arc<Nats>,
}

impl NatsBus {
    /// Connects, and checks that the server can do what is needed: JetStream, and messages of
    /// [`schema::limits::MESSAGE_MAX`] bytes. From then on the connection mends itself.
    pub async fn connect(settings: Settings) -> Result<Self, StartError> {
        Ok(Self { nats: Nats::connect(settings).await? })
    }

    /// Whether packs of `pack_size` bytes can be filled: the queue of new chunks and the window of its consumers
    /// must each hold two, one that fills and one that is on its way to the store.
    pub fn check_windows(&self, pack_size: u64) -> Result<(), StartError> {
        self.nats.settings.check_windows(pack_size)
    }

    /// Waits, a few seconds at most, until what was said so far has left: the last acknowledgements of a process
    /// that ends. Without it they may be lost, and the messages come again.
    pub async fn close(&self) {
        let flushed = tokio::time::timeout(CLOSE_PATIENCE, self.nats.client.flush()).await;
        if !matches!(flushed, Ok(Ok(()))) {
            tracing::warn!(
                "the last acknowledgements may not have reached the message bus; messages may come again"
            );
        }
    }
}

#[async_trait]
impl Bus for NatsBus {
    async fn publish(&self, queue: &Queue, message: Message) -> Result<(), BusError> {
        publish::publish(&self.nats, queue, message).await
    }

    async fn consume(&self, queue: &Queue, window: usize) -> Result<Box<dyn Deliveries>, BusError> {
        self.nats.make_consumer_patiently(queue).await?;
        let intake = Intake::new(self.nats.clone(), queue.clone(), window);
        let mut intakes = connection::lock(&self.nats.intakes);
        intakes.retain(|known| known.strong_count() > 0);
        intakes.push(Arc::downgrade(&intake));
        Ok(Box::new(NatsDeliveries::start(intake)))
    }

    async fn retire(&self, queue: &Queue) -> Result<(), BusError> {
        let own: Vec<Arc<Intake>> =
            connection::lock(&self.nats.intakes).iter().filter_map(Weak::upgrade).collect();
        own.iter().filter(|intake| intake.queue == *queue).for_each(|intake| intake.retire());
        self.nats.remove(queue).await
    }

    async fn request(
        &self,
        service: &Service,
        message: Message,
        limit: Duration,
    ) -> Result<Message, BusError> {
        services::request(&self.nats, service, message, limit).await
    }

    async fn serve(&self, service: &Service) -> Result<Box<dyn Requests>, BusError> {
        services::serve(&self.nats, service).await
    }

    async fn broadcast(&self, topic: &Topic, message: Message) -> Result<(), BusError> {
        services::broadcast(&self.nats, topic, message).await
    }

    async fn subscribe(&self, topic: &Topic) -> Result<Box<dyn Broadcasts>, BusError> {
        services::subscribe(&self.nats, topic).await
    }
}
