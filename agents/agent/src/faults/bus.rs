//! A bus on a bad day: messages, acknowledgements, requests, replies and broadcasts get lost, doubled or late.
//!
//! Every fault is one that the contract of [`Bus`] allows. The plan's seed and the order of calls decide all of
//! them, so that a run on one thread repeats itself. Chances are per thousand; what was injected is counted.
//! Messages that are late wait in a task each, at most [`LATE_MAX`] at a time.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use schema::messages::Message;

use crate::Environment;
use crate::bus::*;

/// Messages that are late at one time; more are published at once.
pub const LATE_MAX: usize = 1024;

/// What goes wrong, and how often: chances per thousand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BusFaults {
    /// Decides when.
    pub seed: u64,
    /// A published message disappears, though publishing succeeded.
    pub publish_lost: u16,
    /// A published message is there twice.
    pub publish_doubled: u16,
    /// A published message arrives later, up to `late_max`.
    pub publish_late: u16,
    /// How late a message arrives at most.
    pub late_max: Duration,
    /// An acknowledgement disappears: the message comes again.
    pub done_lost: u16,
    /// A request never arrives; who asks waits in vain.
    pub request_lost: u16,
    /// A request is served, but its answer never arrives.
    pub reply_lost: u16,
    /// A broadcast disappears.
    pub broadcast_lost: u16,
    /// A broadcast is heard twice.
    pub broadcast_doubled: u16,
}

/// Faults injected so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Injected {
    /// Published messages that disappeared.
    pub publish_lost: u64,
    /// Published messages that were doubled.
    pub publish_doubled: u64,
    /// Published messages that were late.
    pub publish_late: u64,
    /// Acknowledgements that disappeared.
    pub done_lost: u64,
    /// Requests that never arrived.
    pub request_lost: u64,
    /// Answers that never arrived.
    pub reply_lost: u64,
    /// Broadcasts that disappeared.
    pub broadcast_lost: u64,
    /// Broadcasts that were doubled.
    pub broadcast_doubled: u64,
}

impl Injected {
    /// All of them together.
    pub fn total(&self) -> u64 {
        self.publish_lost
            + self.publish_doubled
            + self.publish_late
            + self.done_lost
            + self.request_lost
            + self.reply_lost
            + self.broadcast_lost
            + self.broadcast_doubled
    }
}

#[derive(Debug, Default)]
struct Count(AtomicU64);

impl Count {
    fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct Dice {
    faults: BusFaults,
    random: Mutex<StdRng>,
    quiet: AtomicBool,
    late: AtomicUsize,
    publish_lost: Count,
    publish_doubled: Count,
    publish_late: Count,
    done_lost: Count,
    request_lost: Count,
    reply_lost: Count,
    broadcast_lost: Count,
    broadcast_doubled: Count,
}

impl Dice {
    /// Whether a fault happens now; counts it.
    fn falls(&self, per_mille: u16, count: &Count) -> bool {
        if per_mille == 0 || self.quiet.load(Ordering::Relaxed) {
            return false;
        }
        let falls =
            self.random.lock().unwrap_or_else(PoisonError::into_inner).random_range(0..1000) < per_mille;
        if falls {
            count.0.fetch_add(1, Ordering::Relaxed);
        }
        falls
    }

    fn lateness(&self) -> Duration {
        let max = u64::try_from(self.faults.late_max.as_micros()).unwrap_or(u64::MAX);
        let micros = self.random.lock().unwrap_or_else(PoisonError::into_inner).random_range(0..=max);
        Duration::from_micros(micros)
    }
}

/// A bus that injects faults into another. Clones share the dice.
#[derive(Debug)]
pub struct FaultyBus<B: ?Sized> {
    inner: Arc<B>,
    environment: Arc<dyn Environment>,
    dice: Arc<Dice>,
}

impl<B: ?Sized> Clone for FaultyBus<B> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), environment: self.environment.clone(), dice: self.dice.clone() }
    }
}

impl<B: Bus + ?Sized> FaultyBus<B> {
    /// Wraps `inner`; what is late waits in `environment`.
    pub fn new(inner: Arc<B>, environment: Arc<dyn Environment>, faults: BusFaults) -> Self {
        let dice = Dice {
            random: Mutex::new(StdRng::seed_from_u64(faults.seed)),
            faults,
            quiet: AtomicBool::new(false),
            late: AtomicUsize::new(0),
            publish_lost: Count::default(),
            publish_doubled: Count::default(),
            publish_late: Count::default(),
            done_lost: Count::default(),
            request_lost: Count::default(),
            reply_lost: Count::default(),
            broadcast_lost: Count::default(),
            broadcast_doubled: Count::default(),
        };
        Self { inner, environment, dice: Arc::new(dice) }
    }

    /// Another handle with the same dice on `inner`, for buses with one handle per process.
    pub fn beside(&self, inner: Arc<B>) -> Self {
        Self { inner, environment: self.environment.clone(), dice: self.dice.clone() }
    }

    /// No more faults from here on. What is late still arrives late.
    pub fn quiet(&self) {
        self.dice.quiet.store(true, Ordering::Relaxed);
    }

    /// Faults injected so far.
    pub fn injected(&self) -> Injected {
        let dice = &self.dice;
        Injected {
            publish_lost: dice.publish_lost.read(),
            publish_doubled: dice.publish_doubled.read(),
            publish_late: dice.publish_late.read(),
            done_lost: dice.done_lost.read(),
            request_lost: dice.request_lost.read(),
            reply_lost: dice.reply_lost.read(),
            broadcast_lost: dice.broadcast_lost.read(),
            broadcast_doubled: dice.broadcast_doubled.read(),
        }
    }

    /// Messages that are late and have not arrived yet.
    pub fn late(&self) -> usize {
        self.dice.late.load(Ordering::Relaxed)
    }

    fn publish_later(&self, queue: &Queue, message: Message) {
        let (this, queue) = (self.clone(), queue.clone());
        let wait = self.dice.lateness();
        self.dice.late.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            this.environment.sleep(wait).await;
            if let Err(why) = this.inner.publish(&queue, message).await {
                tracing::debug!(%queue, %why, "a late message got lost");
                this.dice.publish_lost.0.fetch_add(1, Ordering::Relaxed);
            }
            this.dice.late.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

struct FaultyDeliveries {
    inner: Box<dyn Deliveries>,
    dice: Arc<Dice>,
}

#[async_trait]
impl Deliveries for FaultyDeliveries {
    async fn next(&mut self) -> Result<Delivery, BusError> {
        let Delivery { message, attempt, ticket } = self.inner.next().await?;
        let settle = FaultySettle { ticket: tokio::sync::Mutex::new(Some(ticket)), dice: self.dice.clone() };
        Ok(Delivery { message, attempt, ticket: Ticket::new(Arc::new(settle)) })
    }
}

#[derive(Debug)]
struct FaultySettle {
    ticket: tokio::sync::Mutex<Option<Ticket>>,
    dice: Arc<Dice>,
}

#[async_trait]
impl Settle for FaultySettle {
    async fn done(&self) -> Result<(), BusError> {
        let Some(ticket) = self.ticket.lock().await.take() else { return Ok(()) };
        if self.dice.falls(self.dice.faults.done_lost, &self.dice.done_lost) {
            drop(ticket);
            return Ok(());
        }
        ticket.done().await
    }

    async fn confirmed(&self) -> Result<(), BusError> {
        let Some(ticket) = self.ticket.lock().await.take() else { return Ok(()) };
        match self.dice.falls(self.dice.faults.done_lost, &self.dice.done_lost) {
            true => Err(BusError::Unreachable("no answer to a settled message".into())),
            false => ticket.confirmed().await,
        }
    }

    async fn again(&self, delay: Duration) -> Result<(), BusError> {
        match self.ticket.lock().await.take() {
            Some(ticket) => ticket.again(delay).await,
            None => Ok(()),
        }
    }

    async fn extend(&self) -> Result<(), BusError> {
        match &*self.ticket.lock().await {
            Some(ticket) => ticket.extend().await,
            None => Ok(()),
        }
    }

    async fn is_queued(&self) -> Result<bool, BusError> {
        match self.ticket.lock().await.as_ref().and_then(Ticket::standing) {
            Some(standing) => standing.is_queued().await,
            None => Ok(false),
        }
    }

    async fn is_lost(&self) -> Result<bool, BusError> {
        match self.ticket.lock().await.as_ref().and_then(Ticket::standing) {
            Some(standing) => standing.is_lost().await,
            None => Ok(false),
        }
    }

    fn abandoned(&self) {
        // Nobody else settles a ticket that its holder has dropped.
        if let Ok(mut ticket) = self.ticket.try_lock() {
            drop(ticket.take());
        }
    }
}

/// Neither settled nor abandoned: the ticket was left, and so is the one inside.
impl Drop for FaultySettle {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.get_mut().take() {
            ticket.leave();
        }
    }
}

#[async_trait]
impl<B: Bus + ?Sized> Bus for FaultyBus<B> {
    async fn publish(&self, queue: &Queue, message: Message) -> Result<(), BusError> {
        let (dice, faults) = (&self.dice, &self.dice.faults);
        if dice.falls(faults.publish_lost, &dice.publish_lost) {
            return Ok(());
        }
        if dice.falls(faults.publish_doubled, &dice.publish_doubled) {
            self.inner.publish(queue, message.clone()).await?;
        }
        if self.late() < LATE_MAX && dice.falls(faults.publish_late, &dice.publish_late) {
            self.publish_later(queue, message);
            return Ok(());
        }
        self.inner.publish(queue, message).await
    }

    async fn consume(&self, queue: &Queue, window: usize) -> Result<Box<dyn Deliveries>, BusError> {
        let inner = self.inner.consume(queue, window).await?;
        Ok(Box::new(FaultyDeliveries { inner, dice: self.dice.clone() }))
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
        let (dice, faults) = (&self.dice, &self.dice.faults);
        let asked = self.environment.elapsed();
        if !dice.falls(faults.request_lost, &dice.request_lost) {
            let answer = self.inner.request(service, message, limit).await;
            if !dice.falls(faults.reply_lost, &dice.reply_lost) {
                return answer;
            }
        }
        // Whoever asks cannot tell a lost request or answer from a slow one.
        self.environment.sleep(limit.saturating_sub(self.environment.elapsed().saturating_sub(asked))).await;
        Err(BusError::NoAnswer { service: service.name().to_owned(), why: "it took too long".into() })
    }

    async fn serve(&self, service: &Service) -> Result<Box<dyn Requests>, BusError> {
        self.inner.serve(service).await
    }

    async fn broadcast(&self, topic: &Topic, message: Message) -> Result<(), BusError> {
        let (dice, faults) = (&self.dice, &self.dice.faults);
        if dice.falls(faults.broadcast_lost, &dice.broadcast_lost) {
            return Ok(());
        }
        if dice.falls(faults.broadcast_doubled, &dice.broadcast_doubled) {
            self.inner.broadcast(topic, message.clone()).await?;
        }
        self.inner.broadcast(topic, message).await
    }

    async fn subscribe(&self, topic: &Topic) -> Result<Box<dyn Broadcasts>, BusError> {
        self.inner.subscribe(topic).await
    }
}
