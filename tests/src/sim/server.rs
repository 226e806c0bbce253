//! A message server that can be restarted: what is in memory is lost with its consumers, what is on disk stays.
//!
//! Two in-process buses: one for what must survive, one that a restart replaces. Consumers, servers and listeners of
//! the old one are told that it is gone, as clients of a real server are. How full each queue gets is looked at whenever
//! it has taken something.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent::bus::*;
use agent::local::LocalBus;
use agent::{Bus, Environment};
use async_trait::async_trait;
use schema::messages::Message;

/// The family of queues that belong to one session each.
const SESSIONS: &str = "session";
/// Bytes of events that may come after the end of a session.
const LATE_EVENTS: usize = 256 << 10;

/// The server.
#[derive(Debug)]
pub struct Server {
    environment: Arc<dyn Environment>,
    chunk_queue: usize,
    holds: usize,
    disk: LocalBus,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    memory: LocalBus,
    queues: BTreeSet<Queue>,
    /// The most that any queue of a family held, in per cent of its limit.
    peaks: BTreeMap<&'static str, u64>,
    /// What went over its limit.
    over: Vec<String>,
}

impl Server {
    /// A server whose queue of new chunks is to hold `chunk_queue` bytes, and holds as many as `holds`.
    pub fn new(environment: Arc<dyn Environment>, chunk_queue: usize, holds: usize) -> Arc<Self> {
        let fresh = || LocalBus::new(environment.clone(), holds);
        let (queues, peaks, over) = (BTreeSet::new(), BTreeMap::new(), Vec::new());
        let state = Mutex::new(State { memory: fresh(), queues, peaks, over });
        Arc::new(Self { disk: fresh(), state, chunk_queue, holds, environment: environment.clone() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory(&self) -> LocalBus {
        self.state().memory.clone()
    }

    fn of(&self, queue: &Queue) -> LocalBus {
        match queue.durability() {
            Durability::File => self.disk.clone(),
            Durability::Memory => {
                let mut state = self.state();
                state.queues.insert(queue.clone());
                state.memory.clone()
            }
        }
    }

    /// Forgets everything in memory.
    pub async fn restart(&self) {
        let fresh = LocalBus::new(self.environment.clone(), self.holds);
        let (old, queues) = {
            let mut state = self.state();
            (mem::replace(&mut state.memory, fresh), mem::take(&mut state.queues))
        };
        for queue in queues {
            // Retiring in-process cannot fail.
            let _ = old.retire(&queue).await;
        }
    }

    /// A queue has just taken a message of this size. A larger one than its limit it takes when it is empty.
    fn look(&self, queue: &Queue, bus: &LocalBus, size: usize) {
        let limit = if *queue == Queue::chunks() { self.chunk_queue } else { queue.max_bytes() };
        let bytes = bus.bytes_in(queue);
        let mut state = self.state();
        if bytes > limit.max(size) {
            state.over.push(format!("queue {queue} held {bytes} bytes, and may hold {limit}"));
        }
        let peak = state.peaks.entry(queue.family()).or_insert(0);
        *peak = (*peak).max((bytes as u64).saturating_mul(100) / (limit as u64).max(1));
    }

    /// The most that any queue of a family held, in per cent of its limit.
    pub fn peaks(&self) -> BTreeMap<&'static str, u64> {
        self.state().peaks.clone()
    }

    /// What went over its limit.
    pub fn over(&self) -> Vec<String> {
        self.state().over.clone()
    }

    /// Memory queues that hold bytes, or whose consumers do, with how many. Left out are a few late events of
    /// sessions that have ended: a server drops their queues by age.
    pub fn held(&self) -> Vec<(Queue, usize)> {
        let state = self.state();
        let bytes = |queue: &Queue| (queue.clone(), state.memory.bytes_in(queue));
        let matters = |(queue, bytes): &(Queue, usize)| match queue.family() == SESSIONS {
            true => *bytes > LATE_EVENTS,
            false => *bytes > 0,
        };
        state.queues.iter().map(bytes).filter(matters).collect()
    }
}

#[async_trait]
impl Bus for Server {
    async fn publish(&self, queue: &Queue, message: Message) -> Result<(), BusError> {
        let (bus, size) = (self.of(queue), message.size());
        bus.publish(queue, message).await?;
        self.look(queue, &bus, size);
        Ok(())
    }

    async fn consume(&self, queue: &Queue, window: usize) -> Result<Box<dyn Deliveries>, BusError> {
        self.of(queue).consume(queue, window).await
    }

    async fn retire(&self, queue: &Queue) -> Result<(), BusError> {
        self.of(queue).retire(queue).await
    }

    async fn request(
        &self,
        service: &Service,
        message: Message,
        limit: Duration,
    ) -> Result<Message, BusError> {
        self.memory().request(service, message, limit).await
    }

    async fn serve(&self, service: &Service) -> Result<Box<dyn Requests>, BusError> {
        self.memory().serve(service).await
    }

    async fn broadcast(&self, topic: &Topic, message: Message) -> Result<(), BusError> {
        self.memory().broadcast(topic, message).await
    }

    async fn subscribe(&self, topic: &Topic) -> Result<Box<dyn Broadcasts>, BusError> {
        self.memory().subscribe(topic).await
    }
}
