//! The bus inside one process: bounded in bytes, nothing copied.
//!
//! A queue's bytes count from publishing until the message is settled, so that a queue's limit also bounds what
//! its consumers hold. A message larger than the limit passes when the queue is empty.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use schema::messages::{Message, Refusal};
use tokio::sync::{Notify, broadcast, mpsc, oneshot};

use crate::Environment;
use crate::bus::*;

/// Requests that may wait at one service.
const REQUESTS_MAX: usize = 1024;
/// Broadcasts that a slow listener may be behind before it loses some.
const BROADCASTS_MAX: usize = 1024;

/// The in-process bus. Clones share it.
#[derive(Debug, Clone)]
pub struct LocalBus {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    environment: Arc<dyn Environment>,
    chunk_queue: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    queues: BTreeMap<Queue, Arc<LocalQueue>>,
    services: BTreeMap<Service, Servers>,
    topics: BTreeMap<Topic, broadcast::Sender<Message>>,
}

type Servers = (mpsc::Sender<Request>, Arc<tokio::sync::Mutex<mpsc::Receiver<Request>>>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section leaves the state whole, so that a poisoned lock holds a usable state.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LocalBus {
    /// A bus whose queue of new chunks holds `chunk_queue` bytes: that many are at most in packs being filled
    /// and uploaded, so it must hold two packs.
    pub fn new(environment: Arc<dyn Environment>, chunk_queue: usize) -> Self {
        Self { inner: Arc::new(Inner { environment, chunk_queue, state: Mutex::default() }) }
    }

    fn queue(&self, queue: &Queue) -> Arc<LocalQueue> {
        let max_bytes = match *queue == Queue::chunks() {
            true => self.inner.chunk_queue,
            false => queue.max_bytes(),
        };
        let mut state = lock(&self.inner.state);
        let made = state.queues.entry(queue.clone()).or_insert_with(|| Arc::new(LocalQueue::new(max_bytes)));
        made.clone()
    }

    /// Subscribes under the lock: a topic that nobody listens to is forgotten, so that topics of ended jobs do not
    /// pile up, and one that somebody is about to listen to must not be.
    fn listen(&self, topic: &Topic) -> broadcast::Receiver<Message> {
        let mut state = lock(&self.inner.state);
        state.topics.retain(|_, sender| sender.receiver_count() > 0);
        state
            .topics
            .entry(topic.clone())
            .or_insert_with(|| broadcast::Sender::new(BROADCASTS_MAX))
            .subscribe()
    }

    fn server(&self, service: &Service) -> Servers {
        let mut state = lock(&self.inner.state);
        let made = state.services.entry(service.clone()).or_insert_with(|| {
            let (sender, receiver) = mpsc::channel(REQUESTS_MAX);
            (sender, Arc::new(tokio::sync::Mutex::new(receiver)))
        });
        made.clone()
    }

    /// Bytes that are in a queue or held by its consumers.
    pub fn bytes_in(&self, queue: &Queue) -> usize {
        lock(&self.queue(queue).state).bytes
    }
}

#[derive(Debug)]
struct LocalQueue {
    max_bytes: usize,
    state: Mutex<QueueState>,
    arrived: Notify,
    freed: Notify,
}

#[derive(Debug, Default)]
struct QueueState {
    ready: VecDeque<(Message, u64)>,
    bytes: usize,
    retired: bool,
}

impl LocalQueue {
    fn new(max_bytes: usize) -> Self {
        Self { max_bytes, state: Mutex::default(), arrived: Notify::new(), freed: Notify::new() }
    }

    async fn push(&self, message: Message) {
        let size = message.size();
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            {
                let mut state = lock(&self.state);
                if state.retired {
                    return;
                }
                if state.bytes == 0 || state.bytes + size <= self.max_bytes {
                    state.bytes += size;
                    state.ready.push_back((message, 1));
                    self.arrived.notify_one();
                    return;
                }
            }
            freed.await;
        }
    }

    async fn pop(self: &Arc<Self>, environment: &Arc<dyn Environment>) -> Result<Delivery, BusError> {
        loop {
            let arrived = self.arrived.notified();
            {
                let mut state = lock(&self.state);
                if state.retired {
                    return Err(BusError::Unreachable("the queue was retired".into()));
                }
                if let Some((message, attempt)) = state.ready.pop_front() {
                    if !state.ready.is_empty() {
                        self.arrived.notify_one();
                    }
                    let settle = LocalSettle {
                        queue: self.clone(),
                        environment: environment.clone(),
                        message: message.clone(),
                        attempt,
                        is_done: AtomicBool::new(false),
                    };
                    return Ok(Delivery { message, attempt, ticket: Ticket::new(Arc::new(settle)) });
                }
            }
            arrived.await;
        }
    }

    fn release(&self, size: usize) {
        lock(&self.state).bytes -= size;
        self.freed.notify_waiters();
    }

    fn put_back(&self, message: Message, attempt: u64) {
        lock(&self.state).ready.push_front((message, attempt + 1));
        self.arrived.notify_one();
    }
}

#[derive(Debug)]
struct LocalSettle {
    queue: Arc<LocalQueue>,
    environment: Arc<dyn Environment>,
    message: Message,
    attempt: u64,
    is_done: AtomicBool,
}

#[async_trait]
impl Settle for LocalSettle {
    async fn done(&self) -> Result<(), BusError> {
        self.is_done.store(true, Ordering::SeqCst);
        self.queue.release(self.message.size());
        Ok(())
    }

    async fn again(&self, delay: Duration) -> Result<(), BusError> {
        // Beside the caller, who must not wait for one message.
        let (environment, queue, message, attempt) =
            (self.environment.clone(), self.queue.clone(), self.message.clone(), self.attempt);
        tokio::spawn(async move {
            environment.sleep(delay).await;
            queue.put_back(message, attempt);
        });
        Ok(())
    }

    async fn extend(&self) -> Result<(), BusError> {
        Ok(())
    }

    async fn is_queued(&self) -> Result<bool, BusError> {
        let state = lock(&self.queue.state);
        Ok(!state.retired && !self.is_done.load(Ordering::SeqCst))
    }

    fn abandoned(&self) {
        self.queue.put_back(self.message.clone(), self.attempt);
    }
}

#[derive(Debug)]
struct LocalReply(oneshot::Sender<Message>);

#[async_trait]
impl Reply for LocalReply {
    async fn send(self: Box<Self>, message: Message) -> Result<(), BusError> {
        // Whoever asked may have given up waiting.
        let _ = self.0.send(message);
        Ok(())
    }
}

struct LocalDeliveries {
    queue: Arc<LocalQueue>,
    environment: Arc<dyn Environment>,
}

#[async_trait]
impl Deliveries for LocalDeliveries {
    async fn next(&mut self) -> Result<Delivery, BusError> {
        self.queue.pop(&self.environment).await
    }
}

struct LocalRequests(Arc<tokio::sync::Mutex<mpsc::Receiver<Request>>>);

#[async_trait]
impl Requests for LocalRequests {
    async fn next(&mut self) -> Result<Request, BusError> {
        let next = self.0.lock().await.recv().await;
        next.ok_or_else(|| BusError::Unreachable("the bus is gone".into()))
    }
}

struct LocalBroadcasts(broadcast::Receiver<Message>);

#[async_trait]
impl Broadcasts for LocalBroadcasts {
    async fn next(&mut self) -> Result<Message, BusError> {
        loop {
            match self.0.recv().await {
                Ok(message) => return Ok(message),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => {
                    return Err(BusError::Unreachable("the bus is gone".into()));
                }
            }
        }
    }
}

#[async_trait]
impl Bus for LocalBus {
    async fn publish(&self, queue: &Queue, message: Message) -> Result<(), BusError> {
        self.queue(queue).push(message).await;
        Ok(())
    }

    async fn consume(&self, queue: &Queue, _window: usize) -> Result<Box<dyn Deliveries>, BusError> {
        let environment = self.inner.environment.clone();
        Ok(Box::new(LocalDeliveries { queue: self.queue(queue), environment }))
    }

    async fn retire(&self, queue: &Queue) -> Result<(), BusError> {
        let retired = lock(&self.inner.state).queues.remove(queue);
        if let Some(retired) = retired {
            let mut state = lock(&retired.state);
            state.retired = true;
            state.ready.clear();
            drop(state);
            retired.freed.notify_waiters();
            retired.arrived.notify_waiters();
        }
        Ok(())
    }

    async fn request(
        &self,
        service: &Service,
        message: Message,
        limit: Duration,
    ) -> Result<Message, BusError> {
        let (reply, answer) = oneshot::channel();
        let sender = self.server(service).0;
        let asked = async {
            sender.send(Request { message, reply: Box::new(LocalReply(reply)) }).await.ok()?;
            answer.await.ok()
        };
        let no_answer =
            |why: &str| BusError::NoAnswer { service: service.name().to_owned(), why: why.to_owned() };
        match self.inner.environment.timeout(limit, asked).await {
            Some(Some(answer)) => refused(service, answer),
            Some(None) => Err(no_answer("whoever served it ended")),
            None => Err(no_answer("it took too long")),
        }
    }

    async fn serve(&self, service: &Service) -> Result<Box<dyn Requests>, BusError> {
        Ok(Box::new(LocalRequests(self.server(service).1)))
    }

    async fn broadcast(&self, topic: &Topic, message: Message) -> Result<(), BusError> {
        if let Some(sender) = lock(&self.inner.state).topics.get(topic) {
            // Nobody listening is no error.
            let _ = sender.send(message);
        }
        Ok(())
    }

    async fn subscribe(&self, topic: &Topic) -> Result<Box<dyn Broadcasts>, BusError> {
        Ok(Box::new(LocalBroadcasts(self.listen(topic))))
    }
}

/// Turns an answer that says no into an error; every implementation passes its answers through here.
pub fn refused(service: &Service, answer: Message) -> Result<Message, BusError> {
    match answer.read::<Refusal>() {
        Ok(refusal) => Err(BusError::Refused { service: service.name().to_owned(), why: refusal.why }),
        Err(_) => Ok(answer),
    }
}
