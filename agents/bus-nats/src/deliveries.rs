//! Deliveries of one consumer: what was pulled and waits to be taken, bounded in bytes.
//!
//! A window of at least one message's bytes is prefetched from the server by two tasks in turns; what waits here is
//! kept alive at the server, so that a slow handler does not make it come again. A smaller window asks for one
//! message at a time, and only when somebody waits for one: for jobs that another process should get meanwhile.
//! A delivery's bytes count against the window from its pull until its ticket is settled or dropped.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use agent::Queue;
use agent::bus::{BusError, Deliveries, Delivery, Ticket};
use async_trait::async_trait;
use schema::limits::MESSAGE_MAX;
use schema::messages::Message;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::connection::{Nats, OVERHEAD, lock};
use crate::pull;
use crate::settle::{Handle, NatsSettle};

/// Bytes that a pull must be able to take: one message and what NATS adds.
pub(crate) const PULL_MIN: usize = MESSAGE_MAX + OVERHEAD;
/// Bytes that one pull asks for at most.
const PULL_MAX: usize = 8 << 20;

/// A message that was pulled.
#[derive(Debug)]
pub(crate) struct Pulled {
    pub message: Message,
    pub attempt: u64,
    pub at: Instant,
    pub settle: Arc<NatsSettle>,
}

/// Where pulled messages wait to be taken.
#[derive(Debug)]
pub(crate) struct Intake {
    pub nats: Arc<Nats>,
    pub queue: Queue,
    /// Whether messages are pulled before anybody waits for one.
    pub prefetch: bool,
    window: usize,
    free: Arc<Semaphore>,
    ready: Mutex<VecDeque<Pulled>>,
    arrived: Notify,
    wanted: Notify,
    waiting: AtomicBool,
    retired: AtomicBool,
    retirement: Notify,
    /// Only one pull waits for a first message, so that an idle consumer costs the server little.
    pub turn: tokio::sync::Mutex<()>,
    /// The connection in which the consumer was seen to exist.
    pub consumer_era: AtomicU64,
}

impl Intake {
    pub fn new(nats: Arc<Nats>, queue: Queue, window: usize) -> Arc<Self> {
        let window = window.clamp(1, u32::MAX as usize);
        Arc::new(Self {
            consumer_era: AtomicU64::new(nats.era()),
            nats,
            queue,
            prefetch: window >= PULL_MIN,
            window,
            free: Arc::new(Semaphore::new(window)),
            ready: Mutex::default(),
            arrived: Notify::new(),
            wanted: Notify::new(),
            waiting: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            retirement: Notify::new(),
            turn: tokio::sync::Mutex::default(),
        })
    }

    /// The queue is no more: what waits is dropped, and whoever waits is told.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::SeqCst);
        let dropped = std::mem::take(&mut *lock(&self.ready));
        drop(dropped);
        self.arrived.notify_one();
        self.retirement.notify_waiters();
    }

    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::SeqCst)
    }

    async fn retirement(&self) {
        let retirement = self.retirement.notified();
        if !self.is_retired() {
            retirement.await;
        }
    }

    /// Bytes for one pull: waits until enough of the window is free, or somebody wants a message.
    pub async fn reserve(&self) -> Option<OwnedSemaphorePermit> {
        if !self.prefetch {
            loop {
                let wanted = self.wanted.notified();
                if self.waiting.load(Ordering::SeqCst) && lock(&self.ready).is_empty() {
                    break;
                }
                wanted.await;
            }
            return self.free.clone().acquire_many_owned(1).await.ok();
        }
        let most = (self.window / 2).clamp(PULL_MIN, PULL_MAX);
        let mut reserved = self.free.clone().acquire_many_owned(PULL_MIN as u32).await.ok()?;
        let more = self.free.available_permits().min(most - PULL_MIN);
        if let Ok(extra) = self.free.clone().try_acquire_many_owned(more as u32) {
            reserved.merge(extra);
        }
        Some(reserved)
    }

    /// The part of the window that a message of `len` bytes takes, from what its pull reserved.
    pub fn charge(&self, reserved: &mut OwnedSemaphorePermit, len: usize) -> Option<OwnedSemaphorePermit> {
        let len = len.clamp(1, self.window);
        if let Some(missing) = len.checked_sub(reserved.num_permits()).filter(|missing| *missing > 0) {
            // A small window is charged when a message's length is known. Where that much is not free, the message
            // takes what there is: it is here already.
            let more = self.free.available_permits().min(missing);
            if let Ok(more) = self.free.clone().try_acquire_many_owned(more as u32) {
                reserved.merge(more);
            }
        }
        reserved.split(len.min(reserved.num_permits()))
    }

    pub fn put(&self, pulled: Pulled) {
        if self.is_retired() {
            return;
        }
        lock(&self.ready).push_back(pulled);
        self.arrived.notify_one();
    }

    fn take(&self) -> Option<Pulled> {
        loop {
            let pulled = lock(&self.ready).pop_front()?;
            // Without prefetching nothing is kept alive: another has it by now.
            if self.prefetch || pulled.at.elapsed() < self.nats.settings.ack_wait {
                return Some(pulled);
            }
        }
    }

    async fn keep_alive(self: Arc<Self>) {
        let often = self.nats.settings.ack_wait / 3;
        loop {
            tokio::time::sleep(often).await;
            let waiting: Vec<Arc<NatsSettle>> = {
                let ready = lock(&self.ready);
                ready
                    .iter()
                    .filter(|pulled| pulled.at.elapsed() >= often / 2)
                    .map(|p| p.settle.clone())
                    .collect()
            };
            for settle in waiting {
                if let Err(why) = settle.keep_alive().await {
                    tracing::debug!(queue = %self.queue, %why, "could not keep a message; it may come again");
                    break;
                }
            }
        }
    }
}

/// The consumer's side of an intake. Dropping it hands back what waits.
pub(crate) struct NatsDeliveries {
    intake: Arc<Intake>,
    _tasks: JoinSet<()>,
}

impl NatsDeliveries {
    pub fn start(intake: Arc<Intake>) -> Self {
        let mut tasks = JoinSet::new();
        tasks.spawn(run(intake.clone(), pull::pull_on(intake.clone())));
        if intake.prefetch {
            tasks.spawn(run(intake.clone(), pull::pull_on(intake.clone())));
            tasks.spawn(run(intake.clone(), intake.clone().keep_alive()));
        }
        Self { intake, _tasks: tasks }
    }
}

/// Runs a task until the queue is retired.
async fn run(intake: Arc<Intake>, task: impl Future<Output = ()>) {
    tokio::select! {
        () = intake.retirement() => {}
        () = task => {}
    }
}

impl Drop for NatsDeliveries {
    fn drop(&mut self) {
        let waiting = std::mem::take(&mut *lock(&self.intake.ready));
        waiting.into_iter().for_each(|pulled| pulled.settle.hand_back());
    }
}

/// Somebody waits, until this is dropped.
struct Waiting<'a>(&'a Intake);

impl<'a> Waiting<'a> {
    fn new(intake: &'a Intake) -> Self {
        intake.waiting.store(true, Ordering::SeqCst);
        intake.wanted.notify_one();
        Self(intake)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.store(false, Ordering::SeqCst);
    }
}

#[async_trait]
impl Deliveries for NatsDeliveries {
    async fn next(&mut self) -> Result<Delivery, BusError> {
        let intake = &*self.intake;
        loop {
            let arrived = intake.arrived.notified();
            if intake.is_retired() {
                return Err(BusError::Unreachable(format!("queue {} was retired", intake.queue)));
            }
            if let Some(Pulled { message, attempt, settle, .. }) = intake.take() {
                let ticket = Ticket::new(Arc::new(Handle(settle)));
                return Ok(Delivery { message, attempt, ticket });
            }
            let _waiting = Waiting::new(intake);
            arrived.await;
        }
    }
}
