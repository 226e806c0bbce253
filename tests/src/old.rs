//! The bus of an older program: what was added to messages since the first version is neither sent nor heard.
//!
//! Fields that came later are taken out of every message, in both directions, as a program does that knows nothing of
//! them. Kinds of messages that came later are of a kind that nobody knows. Nobody takes from queues, serves services or
//! listens to topics that came later. The role behind it is today's in all else, so that this shows what passing over
//! what is new leads to, and not what old code did.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent::bus::{
    Broadcasts, Bus, BusError, Deliveries, Delivery, Queue, Reply, Request, Requests, Service, Topic,
};
use async_trait::async_trait;
use schema::messages::{
    AskSpan, AskTarget, BackupJob, CheckJob, JobDone, JobOutcome, Message, ParentLeaf, Payload, Progress,
    ReadVolume, RestoreJob, RestoreWaits, Seek, SharedTarget, Sought, Span, StopRestore, TargetShared,
    Wanted,
};
use serde::{Deserialize, Serialize};

/// Kinds that came later.
const LATER: [&str; 10] = [
    Seek::NAME,
    Sought::NAME,
    TargetShared::NAME,
    AskTarget::NAME,
    SharedTarget::NAME,
    AskSpan::NAME,
    Span::NAME,
    StopRestore::NAME,
    RestoreWaits::NAME,
    CheckJob::NAME,
];

/// What stands for a message of a kind that a program does not know.
#[derive(Debug, Serialize, Deserialize)]
struct OfTheFuture;

impl Payload for OfTheFuture {
    const NAME: &'static str = "OfTheFuture";
}

/// What was passed over: fields as `Kind.field`, and kinds, queues, services and topics by their names.
pub type PassedOver = BTreeSet<String>;

/// Takes fields of one message out.
struct Strip<'a> {
    kind: &'static str,
    gone: &'a mut PassedOver,
}

impl Strip<'_> {
    fn field<T: Default + PartialEq>(&mut self, name: &str, field: &mut T) {
        if *field != T::default() {
            *field = T::default();
            self.gone.insert(format!("{}.{name}", self.kind));
        }
    }
}

/// Fields that came later, each where an older program would pass it over.
trait Older: Payload {
    fn strip(&mut self, strip: &mut Strip<'_>);
}

impl Older for BackupJob {
    fn strip(&mut self, strip: &mut Strip<'_>) {
        strip.field("plain", &mut self.plain);
    }
}

impl Older for ReadVolume {
    fn strip(&mut self, strip: &mut Strip<'_>) {
        strip.field("plain", &mut self.plain);
    }
}

impl Older for ParentLeaf {
    fn strip(&mut self, strip: &mut Strip<'_>) {
        strip.field("lost", &mut self.lost);
    }
}

impl Older for Wanted {
    fn strip(&mut self, strip: &mut Strip<'_>) {
        strip.field("whole", &mut self.whole);
    }
}

impl Older for Progress {
    fn strip(&mut self, strip: &mut Strip<'_>) {
        strip.field("undo", &mut self.undo);
    }
}

impl Older for RestoreJob {
    fn strip(&mut self, strip: &mut Strip<'_>) {
        let Self { full, untracked, donor, fetches, command, more, .. } = self;
        strip.field("full", full);
        strip.field("untracked", untracked);
        strip.field("donor", donor);
        strip.field("fetches", fetches);
        strip.field("command", command);
        // With all that it asks for (`verify` came later still).
        strip.field("more", more);
    }
}

impl Older for JobDone {
    fn strip(&mut self, strip: &mut Strip<'_>) {
        match &mut self.outcome {
            JobOutcome::Sealed { notes, post_failed, .. } => {
                strip.field("notes", notes);
                strip.field("post_failed", post_failed);
            }
            JobOutcome::Restored {
                kept,
                compared,
                tracked,
                audited,
                copied,
                rescued,
                lost,
                holes,
                undo,
                verified,
                stands_on,
                ..
            } => {
                let counts = [
                    ("kept", kept),
                    ("compared", compared),
                    ("tracked", tracked),
                    ("audited", audited),
                    ("copied", copied),
                    ("rescued", rescued),
                    ("lost", lost),
                ];
                counts.into_iter().for_each(|(name, count)| strip.field(name, count));
                strip.field("holes", holes);
                strip.field("undo", undo);
                strip.field("verified", verified);
                strip.field("stands_on", stands_on);
            }
            JobOutcome::Failed { .. } => {}
        }
    }
}

fn stripped<T: Older>(message: &Message, gone: &mut PassedOver) -> Option<Message> {
    let (about, mut payload) = (message.about().ok()?, message.read::<T>().ok()?);
    payload.strip(&mut Strip { kind: T::NAME, gone });
    Some(Message::with_body(&about, &payload, message.body.clone()))
}

/// A message as an older program sends it, or takes it; what it passes over is added to `gone`.
pub fn as_older(message: Message, gone: &mut PassedOver) -> Message {
    let (Ok(kind), Ok(about)) = (message.kind(), message.about()) else { return message };
    let older = match kind.as_str() {
        BackupJob::NAME => stripped::<BackupJob>(&message, gone),
        ReadVolume::NAME => stripped::<ReadVolume>(&message, gone),
        ParentLeaf::NAME => stripped::<ParentLeaf>(&message, gone),
        Wanted::NAME => stripped::<Wanted>(&message, gone),
        Progress::NAME => stripped::<Progress>(&message, gone),
        RestoreJob::NAME => stripped::<RestoreJob>(&message, gone),
        JobDone::NAME => stripped::<JobDone>(&message, gone),
        later if LATER.contains(&later) => {
            gone.insert(kind);
            Some(Message::new(&about, &OfTheFuture))
        }
        _ => None,
    };
    older.unwrap_or(message)
}

/// The bus as an older program has it.
#[derive(Debug, Clone)]
pub struct OldBus {
    inner: Arc<dyn Bus>,
    gone: Arc<Mutex<PassedOver>>,
}

impl OldBus {
    /// In front of the bus that all others have.
    pub fn new(inner: Arc<dyn Bus>) -> Self {
        Self { inner, gone: Arc::default() }
    }

    /// All that was passed over so far.
    pub fn passed_over(&self) -> PassedOver {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn older(&self, message: Message) -> Message {
        as_older(message, &mut self.gone.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn pass_over(&self, name: impl std::fmt::Display) {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_string());
    }
}

fn is_later_queue(queue: &Queue) -> bool {
    *queue == Queue::checks()
}

/// What only the owner of a restore knows, and what an index seeks.
fn is_later_service(service: &Service) -> bool {
    ["seek.", "restore."].iter().any(|family| service.name().starts_with(family))
}

fn is_later_topic(topic: &Topic) -> bool {
    *topic == Topic::stop_restore() || topic.name().starts_with("event.shared.")
}

#[async_trait]
impl Bus for OldBus {
    async fn publish(&self, queue: &Queue, message: Message) -> Result<(), BusError> {
        self.inner.publish(queue, self.older(message)).await
    }

    async fn consume(&self, queue: &Queue, window: usize) -> Result<Box<dyn Deliveries>, BusError> {
        if is_later_queue(queue) {
            self.pass_over(queue);
            return Ok(Box::new(Silence));
        }
        Ok(Box::new(OldDeliveries { inner: self.inner.consume(queue, window).await?, bus: self.clone() }))
    }

    async fn retire(&self, queue: &Queue) -> Result<(), BusError> {
        self.inner.retire(queue).await
    }

    async fn request(
        &self,
        service: &Service,
        message: Message,
        limit: Duration,
    ) -> Result<Message, BusError> {
        if is_later_service(service) {
            self.pass_over(service.name());
            let why = "an older program does not ask".to_owned();
            return Err(BusError::NoAnswer { service: service.name().to_owned(), why });
        }
        let answer = self.inner.request(service, self.older(message), limit).await?;
        Ok(self.older(answer))
    }

    async fn serve(&self, service: &Service) -> Result<Box<dyn Requests>, BusError> {
        let inner = self.inner.serve(service).await?;
        Ok(match is_later_service(service) {
            true => Box::new(Nobody { inner, bus: self.clone(), service: service.clone() }),
            false => Box::new(OldRequests { inner, bus: self.clone() }),
        })
    }

    async fn broadcast(&self, topic: &Topic, message: Message) -> Result<(), BusError> {
        match is_later_topic(topic) {
            true => {
                self.pass_over(topic.name());
                Ok(())
            }
            false => self.inner.broadcast(topic, self.older(message)).await,
        }
    }

    async fn subscribe(&self, topic: &Topic) -> Result<Box<dyn Broadcasts>, BusError> {
        match is_later_topic(topic) {
            true => {
                self.pass_over(topic.name());
                Ok(Box::new(Silence))
            }
            false => {
                Ok(Box::new(OldBroadcasts { inner: self.inner.subscribe(topic).await?, bus: self.clone() }))
            }
        }
    }
}

/// Nothing is ever taken or heard.
struct Silence;

#[async_trait]
impl Deliveries for Silence {
    async fn next(&mut self) -> Result<Delivery, BusError> {
        std::future::pending().await
    }
}

#[async_trait]
impl Broadcasts for Silence {
    async fn next(&mut self) -> Result<Message, BusError> {
        std::future::pending().await
    }
}

/// Whoever asks is told at once that nobody serves it, as a server tells.
struct Nobody {
    inner: Box<dyn Requests>,
    bus: OldBus,
    service: Service,
}

#[async_trait]
impl Requests for Nobody {
    async fn next(&mut self) -> Result<Request, BusError> {
        loop {
            drop(self.inner.next().await?);
            self.bus.pass_over(self.service.name());
        }
    }
}

struct OldDeliveries {
    inner: Box<dyn Deliveries>,
    bus: OldBus,
}

#[async_trait]
impl Deliveries for OldDeliveries {
    async fn next(&mut self) -> Result<Delivery, BusError> {
        let delivery = self.inner.next().await?;
        Ok(Delivery { message: self.bus.older(delivery.message), ..delivery })
    }
}

struct OldRequests {
    inner: Box<dyn Requests>,
    bus: OldBus,
}

#[async_trait]
impl Requests for OldRequests {
    async fn next(&mut self) -> Result<Request, BusError> {
        let Request { message, reply } = self.inner.next().await?;
        let reply = Box::new(OldReply { inner: reply, bus: self.bus.clone() });
        Ok(Request { message: self.bus.older(message), reply })
    }
}

#[derive(Debug)]
struct OldReply {
    inner: Box<dyn Reply>,
    bus: OldBus,
}

#[async_trait]
impl Reply for OldReply {
    async fn send(self: Box<Self>, message: Message) -> Result<(), BusError> {
        let Self { inner, bus } = *self;
        inner.send(bus.older(message)).await
    }
}

struct OldBroadcasts {
    inner: Box<dyn Broadcasts>,
    bus: OldBus,
}

#[async_trait]
impl Broadcasts for OldBroadcasts {
    async fn next(&mut self) -> Result<Message, BusError> {
        Ok(self.bus.older(self.inner.next().await?))
    }
}
