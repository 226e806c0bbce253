//! The seam for messages: work queues, requests, broadcasts.
//!
//! What is promised: a work queue delivers at least once, in any order, and sometimes not at all (a server that
//! restarts may lose memory queues with their definition); an unacknowledged delivery comes again; a full queue
//! makes the publisher wait. A request is answered once or times out. A broadcast reaches who listens, or nobody.
//! Every step of every role is right under exactly this.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schema::messages::Message;
use schema::{JobId, SessionId};

/// Why the bus could not do something.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BusError {
    /// The server is away, or did not answer in time.
    #[error("the message bus is not reachable ({0})")]
    Unreachable(String),
    /// Nobody serves the subject, or it did not answer in time.
    #[error("no answer on {service}: {why}")]
    NoAnswer {
        /// The service that was asked.
        service: String,
        /// What happened.
        why: String,
    },
    /// A service answered that it cannot.
    #[error("{service} refused: {why}")]
    Refused {
        /// The service that was asked.
        service: String,
        /// Its words.
        why: String,
    },
    /// The message can never be sent.
    #[error("message for {subject} cannot be sent: {why}")]
    Unsendable {
        /// Where it was to go.
        subject: String,
        /// Why not.
        why: String,
    },
}

impl BusError {
    /// Whether trying again later may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::NoAnswer { .. })
    }
}

/// Whether a queue must survive a restart of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// Jobs and their ends: kept on disk.
    File,
    /// Bulk: kept in memory; loss only delays.
    Memory,
}

/// A work queue. Each has a limit in bytes, beside its constructor.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Queue {
    family: &'static str,
    member: String,
    durability: Durability,
    max_bytes: usize,
}

impl Queue {
    fn new(family: &'static str, member: String, durability: Durability, max_bytes: usize) -> Self {
        Self { family, member, durability, max_bytes }
    }

    /// Backup jobs, for any conductor. 16 MiB are some ten thousand jobs.
    pub fn jobs() -> Self {
        Self::new("jobs", "backup".into(), Durability::File, 16 << 20)
    }

    /// Restore jobs for the restorers of a host.
    pub fn restores(host: &str) -> Self {
        Self::new("jobs", format!("restore-{}", token(host)), Durability::File, 16 << 20)
    }

    /// Checks of the repository, for any agent that checks.
    pub fn checks() -> Self {
        Self::new("jobs", "check".into(), Durability::File, 16 << 20)
    }

    /// Requests to the readers of a host: small, and one per session and re-drive.
    pub fn reads(host: &str) -> Self {
        Self::new("reads", token(host), Durability::Memory, 16 << 20)
    }

    /// Extents for hashers. The host's own hashers by default: `pool` is then the host's name.
    /// 64 MiB keep eight hashers busy for a second.
    pub fn extents(pool: &str) -> Self {
        Self::new("extents", token(pool), Durability::Memory, 64 << 20)
    }

    /// Sealed chunks for storers. Acknowledged only when stored, so it holds at least two packs per storer.
    pub fn chunks() -> Self {
        Self::new("chunks", "new".into(), Durability::Memory, 256 << 20)
    }

    /// Stored packs for a shard of the index: 40 bytes per chunk.
    pub fn stored(shard: u16) -> Self {
        Self::new("stored", shard.to_string(), Durability::Memory, 16 << 20)
    }

    /// Events for the conductor of a session: 1 KiB per MiB of volume.
    pub fn session(session: SessionId) -> Self {
        Self::new("session", session.to_string(), Durability::Memory, 16 << 20)
    }

    /// The end of a job, for whoever asked for it.
    pub fn done(job: JobId) -> Self {
        Self::new("done", job.to_string(), Durability::File, 1 << 20)
    }

    /// The family of queues that share a stream.
    pub fn family(&self) -> &'static str {
        self.family
    }

    /// Which of the family; one token of a subject.
    pub fn member(&self) -> &str {
        &self.member
    }

    /// Whether it must survive a restart of the server.
    pub fn durability(&self) -> Durability {
        self.durability
    }

    /// Bytes that it holds at most, in one process; a server's stream has a limit per family.
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.family, self.member)
    }
}

/// A name as one token of a subject: anything outside `[A-Za-z0-9_-]` is escaped as `=` and two hex digits,
/// so that different names stay different.
pub fn token(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => out.push(byte as char),
            _ => out.push_str(&format!("={byte:02x}")),
        }
    }
    out
}

/// Something that answers requests.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Service(String);

impl Service {
    /// A shard of the index.
    pub fn index(shard: u16) -> Self {
        Self(format!("index.{shard}"))
    }

    /// The same shard, for whoever wants it to look at the bucket first: that may take minutes.
    pub fn seek(shard: u16) -> Self {
        Self(format!("seek.{shard}"))
    }

    /// What only a session's conductor knows: the parent's map, and what is still wanted.
    pub fn conductor(session: SessionId) -> Self {
        Self(format!("conductor.{session}"))
    }

    /// What only the owner of a restore knows: its target, and which spans of it are still to be written.
    pub fn restore(session: SessionId) -> Self {
        Self(format!("restore.{session}"))
    }

    /// Its subject without any prefix.
    pub fn name(&self) -> &str {
        &self.0
    }
}

/// Something that is broadcast.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Topic(String);

impl Topic {
    /// Packs that became durable.
    pub fn packs_stored() -> Self {
        Self("event.stored".into())
    }

    /// Flush requests to storers.
    pub fn flush() -> Self {
        Self("event.flush".into())
    }

    /// Sessions that are over, to readers.
    pub fn closed() -> Self {
        Self("event.closed".into())
    }

    /// Cancelled sessions, to conductors.
    pub fn cancel() -> Self {
        Self("event.cancel".into())
    }

    /// Jobs that nobody wants any more, to restorers.
    pub fn stop_restore() -> Self {
        Self("event.stop-restore".into())
    }

    /// How far a job is.
    pub fn progress(job: JobId) -> Self {
        Self(format!("progress.{job}"))
    }

    /// Targets that can do with help, to the restorers of their host.
    pub fn shared(host: &str) -> Self {
        Self(format!("event.shared.{}", token(host)))
    }

    /// Roll calls.
    pub fn roll_call() -> Self {
        Self("event.roll-call".into())
    }

    /// Answers to one roll call.
    pub fn roll_call_reply(nonce: &str) -> Self {
        Self(format!("reply.{}", token(nonce)))
    }

    /// Its subject without any prefix.
    pub fn name(&self) -> &str {
        &self.0
    }
}

/// The bus.
#[async_trait]
pub trait Bus: fmt::Debug + Send + Sync + 'static {
    /// Puts a message on a work queue; waits while the queue is full. Returns when the queue has it.
    async fn publish(&self, queue: &Queue, message: Message) -> Result<(), BusError>;

    /// Starts taking from a work queue; at most `window` bytes or so are unacknowledged at once.
    async fn consume(&self, queue: &Queue, window: usize) -> Result<Box<dyn Deliveries>, BusError>;

    /// Removes a queue that belongs to one session or job and is done with; what is left in it is dropped.
    async fn retire(&self, queue: &Queue) -> Result<(), BusError>;

    /// Asks a service and waits for its answer, at most `limit`.
    async fn request(
        &self,
        service: &Service,
        message: Message,
        limit: Duration,
    ) -> Result<Message, BusError>;

    /// Starts answering for a service. Several may serve it; one of them gets each request.
    async fn serve(&self, service: &Service) -> Result<Box<dyn Requests>, BusError>;

    /// Tells whoever listens.
    async fn broadcast(&self, topic: &Topic, message: Message) -> Result<(), BusError>;

    /// Starts listening. A listener that does not keep up loses messages.
    async fn subscribe(&self, topic: &Topic) -> Result<Box<dyn Broadcasts>, BusError>;
}

/// Deliveries of one consumer of a queue.
#[async_trait]
pub trait Deliveries: Send {
    /// Waits for the next one. Dropping the future loses nothing.
    async fn next(&mut self) -> Result<Delivery, BusError>;
}

/// Requests to a service.
#[async_trait]
pub trait Requests: Send {
    /// Waits for the next one.
    async fn next(&mut self) -> Result<Request, BusError>;
}

/// Messages on a topic.
#[async_trait]
pub trait Broadcasts: Send {
    /// Waits for the next one.
    async fn next(&mut self) -> Result<Message, BusError>;
}

/// One message of a work queue, to be settled. Dropped without a word, it comes again.
#[derive(Debug)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// How often it was delivered, this time included.
    pub attempt: u64,
    /// Settles it.
    pub ticket: Ticket,
}

/// The right to settle a delivery. Dropped without a word, the message comes again.
#[derive(Debug)]
pub struct Ticket(Option<Arc<dyn Settle>>);

impl Ticket {
    /// A ticket over an implementation's own way of settling.
    pub fn new(settle: Arc<dyn Settle>) -> Self {
        Self(Some(settle))
    }

    /// The effect is durable: never again.
    pub async fn done(mut self) -> Result<(), BusError> {
        match self.0.take() {
            Some(settle) => settle.done().await,
            None => Ok(()),
        }
    }

    /// The effect is durable, and must not come twice: returns when the bus has confirmed that it never delivers the
    /// message again.
    pub async fn confirmed(mut self) -> Result<(), BusError> {
        match self.0.take() {
            Some(settle) => settle.confirmed().await,
            None => Ok(()),
        }
    }

    /// Not now: again after about `delay`.
    pub async fn again(mut self, delay: Duration) -> Result<(), BusError> {
        match self.0.take() {
            Some(settle) => settle.again(delay).await,
            None => Ok(()),
        }
    }

    /// Neither done nor again: whoever holds the message now decides.
    pub fn leave(mut self) {
        self.0.take();
    }

    /// Still at it: do not give it to another.
    pub async fn extend(&self) -> Result<(), BusError> {
        match &self.0 {
            Some(settle) => settle.extend().await,
            None => Ok(()),
        }
    }

    /// Asks about the message for whoever does not settle it.
    pub fn standing(&self) -> Option<Standing> {
        self.0.clone().map(Standing)
    }
}

/// Asks whether a message that was delivered is still to be worked on.
#[derive(Debug, Clone)]
pub struct Standing(Arc<dyn Settle>);

impl Standing {
    /// Whether the message is still on its queue: not after whoever else was given it has settled it as done.
    pub async fn is_queued(&self) -> Result<bool, BusError> {
        self.0.is_queued().await
    }

    /// Whether the bus has lost the message, with the whole of its queue: nobody has settled it, and it never comes again.
    pub async fn is_lost(&self) -> Result<bool, BusError> {
        self.0.is_lost().await
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(settle) = self.0.take() {
            settle.abandoned();
        }
    }
}

/// How an implementation settles a delivery.
#[async_trait]
pub trait Settle: fmt::Debug + Send + Sync {
    /// See [`Ticket::done`].
    async fn done(&self) -> Result<(), BusError>;
    /// See [`Ticket::confirmed`].
    async fn confirmed(&self) -> Result<(), BusError> {
        self.done().await
    }
    /// See [`Ticket::again`].
    async fn again(&self, delay: Duration) -> Result<(), BusError>;
    /// See [`Ticket::extend`].
    async fn extend(&self) -> Result<(), BusError>;
    /// See [`Standing::is_queued`].
    async fn is_queued(&self) -> Result<bool, BusError>;
    /// See [`Standing::is_lost`].
    async fn is_lost(&self) -> Result<bool, BusError> {
        Ok(false)
    }
    /// The ticket was dropped.
    fn abandoned(&self);
}

/// A request, to be answered.
#[derive(Debug)]
pub struct Request {
    /// The question.
    pub message: Message,
    /// Takes the answer.
    pub reply: Box<dyn Reply>,
}

/// How an implementation takes an answer.
#[async_trait]
pub trait Reply: fmt::Debug + Send + Sync {
    /// Sends the answer.
    async fn send(self: Box<Self>, message: Message) -> Result<(), BusError>;
}
