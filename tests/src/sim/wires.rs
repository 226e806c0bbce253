//! The bus as one role sees it: traced, on a bad day from the seed, and with at most one planned accident.
//!
//! A planned accident hits exactly one message, counted from the start of the run: it gets lost, doubled, loses its
//! answer, or is the last thing that some roles live to see. Queues on disk lose nothing, as their contract says.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent::bus::*;
use agent::faults::bus::{BusFaults, FaultyBus, Injected};
use agent::{Bus, Environment};
use async_trait::async_trait;
use bytes::Bytes;
use schema::messages::{Message, Payload, Progress};
use tokio::task::AbortHandle;

use super::leaks::Leaks;
use super::server::Server;
use super::trace::Trace;

/// After how long a message that nobody settles comes again.
const ACK_WAIT: Duration = Duration::from_secs(30);

/// What happens to one message of a run. Messages are counted from 0, in the order in which they are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accident {
    /// Nothing.
    None,
    /// This message, request or broadcast disappears.
    Lost(u64),
    /// This acknowledgement or answer disappears; counted by themselves.
    Unanswered(u64),
    /// This message arrives so much later; requests and broadcasts disappear.
    Late(u64, Duration),
    /// This message is there twice.
    Doubled(u64),
    /// When this message was sent, every role whose name begins with one of these crashes.
    Crash(u64, Vec<&'static str>),
}

/// What all roles share.
#[derive(Debug)]
pub struct Wires {
    environment: Arc<dyn Environment>,
    trace: Arc<Trace>,
    server: Arc<Server>,
    memory: FaultyBus<Server>,
    disk: FaultyBus<Server>,
    accident: Accident,
    messages: AtomicU64,
    answers: AtomicU64,
    living: Mutex<Vec<(String, AbortHandle)>>,
    happened: AtomicU64,
    leaks: Arc<Leaks>,
}

impl Wires {
    /// Wires to a server.
    pub fn new(
        environment: Arc<dyn Environment>,
        trace: Arc<Trace>,
        server: Arc<Server>,
        faults: BusFaults,
        accident: Accident,
        leaks: Arc<Leaks>,
    ) -> Arc<Self> {
        let kept = BusFaults { publish_lost: 0, seed: faults.seed ^ 1, ..faults.clone() };
        let memory = FaultyBus::new(server.clone(), environment.clone(), faults);
        let disk = FaultyBus::new(server.clone(), environment.clone(), kept);
        let (messages, answers, happened) = Default::default();
        let living = Mutex::default();
        Arc::new(Self {
            environment,
            trace,
            server,
            memory,
            disk,
            accident,
            messages,
            answers,
            living,
            happened,
            leaks,
        })
    }

    /// The server.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The bus for one role.
    pub fn bus(self: &Arc<Self>, role: &str) -> Arc<dyn Bus> {
        Arc::new(RoleBus { role: role.to_owned(), wires: self.clone() })
    }

    /// No more faults from the seed.
    pub fn quiet(&self) {
        self.memory.quiet();
        self.disk.quiet();
    }

    /// Messages that are late.
    pub fn late(&self) -> usize {
        self.memory.late() + self.disk.late()
    }

    /// Faults from the seed so far, in memory and on disk.
    pub fn injected(&self) -> [Injected; 2] {
        [self.memory.injected(), self.disk.injected()]
    }

    /// Messages sent, answers and acknowledgements given, and whether the accident happened.
    pub fn counts(&self) -> (u64, u64, bool) {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (read(&self.messages), read(&self.answers), read(&self.happened) > 0)
    }

    /// A role's task, by name, so that an accident can end it. A name has one task at a time.
    pub fn lives(&self, role: &str, task: AbortHandle) {
        let mut living = self.living.lock().unwrap_or_else(PoisonError::into_inner);
        living.retain(|(name, _)| name != role);
        living.push((role.to_owned(), task));
    }

    fn faulty(&self, queue: &Queue) -> &FaultyBus<Server> {
        match queue.durability() {
            Durability::File => &self.disk,
            Durability::Memory => &self.memory,
        }
    }

    fn happens(&self) {
        self.happened.fetch_add(1, Ordering::Relaxed);
    }

    /// Numbers a message; says what becomes of it.
    fn sent(&self) -> Fate {
        let number = self.messages.fetch_add(1, Ordering::Relaxed);
        let fate = match &self.accident {
            Accident::Lost(n) if *n == number => Fate::Lost,
            Accident::Late(n, wait) if *n == number => Fate::Late(*wait),
            Accident::Doubled(n) if *n == number => Fate::Doubled,
            Accident::Crash(n, _) if *n == number => Fate::Last,
            _ => return Fate::Sent,
        };
        self.happens();
        fate
    }

    /// Numbers an answer; whether it disappears.
    fn answer_lost(&self) -> bool {
        let number = self.answers.fetch_add(1, Ordering::Relaxed);
        let lost = self.accident == Accident::Unanswered(number);
        if lost {
            self.happens();
        }
        lost
    }

    /// Ends those whom the accident ends. Whoever sent the message may be among them, and must not go on.
    async fn crash(&self, sender: &str) {
        let Accident::Crash(_, roles) = &self.accident else { return };
        let hit: BTreeSet<String> = {
            let living = self.living.lock().unwrap_or_else(PoisonError::into_inner);
            let hit = living.iter().filter(|(name, _)| roles.iter().any(|role| name.starts_with(role)));
            hit.map(|(name, task)| {
                task.abort();
                name.clone()
            })
            .collect()
        };
        self.trace.note(format_args!("crash of {hit:?}"));
        if hit.contains(sender) {
            std::future::pending::<()>().await;
        }
    }
}

enum Fate {
    Sent,
    Lost,
    Late(Duration),
    Doubled,
    Last,
}

/// What was sent is not in its sender's memory any more, as between processes: else a reader waits for its buffers as
/// long as an extent is late.
fn sent_off(message: Message) -> Message {
    Message { body: Bytes::copy_from_slice(&message.body), ..message }
}

/// The bus of one role.
#[derive(Debug)]
struct RoleBus {
    role: String,
    wires: Arc<Wires>,
}

impl RoleBus {
    fn note(&self, verb: &str, to: &str, message: &Message) {
        let kind = message.kind().unwrap_or_else(|_| "?".into());
        self.wires.trace.note(format_args!("{} {verb} {to} {kind}", self.role));
    }
}

#[async_trait]
impl Bus for RoleBus {
    async fn publish(&self, queue: &Queue, message: Message) -> Result<(), BusError> {
        self.note("publishes", &queue.to_string(), &message);
        self.wires.leaks.published(&self.role, queue, &message);
        let message = sent_off(message);
        let bus = self.wires.faulty(queue);
        match self.wires.sent() {
            Fate::Lost if queue.durability() == Durability::Memory => Ok(()),
            Fate::Sent | Fate::Lost => bus.publish(queue, message).await,
            Fate::Late(wait) => {
                let (bus, queue, environment) = (bus.clone(), queue.clone(), self.wires.environment.clone());
                tokio::spawn(async move {
                    environment.sleep(wait).await;
                    bus.publish(&queue, message).await
                });
                Ok(())
            }
            Fate::Doubled => {
                bus.publish(queue, message.clone()).await?;
                bus.publish(queue, message).await
            }
            Fate::Last => {
                let published = bus.publish(queue, message).await;
                self.wires.crash(&self.role).await;
                published
            }
        }
    }

    async fn consume(&self, queue: &Queue, window: usize) -> Result<Box<dyn Deliveries>, BusError> {
        let inner = self.wires.faulty(queue).consume(queue, window).await?;
        let (role, wires) = (self.role.clone(), self.wires.clone());
        Ok(Box::new(RoleDeliveries { inner, role, wires, queue: queue.to_string() }))
    }

    async fn retire(&self, queue: &Queue) -> Result<(), BusError> {
        self.wires.trace.note(format_args!("{} retires {queue}", self.role));
        self.wires.faulty(queue).retire(queue).await
    }

    async fn request(
        &self,
        service: &Service,
        message: Message,
        limit: Duration,
    ) -> Result<Message, BusError> {
        self.note("asks", service.name(), &message);
        self.wires.leaks.told(&self.role, service.name(), &message);
        let asked = self.wires.environment.elapsed();
        let fate = self.wires.sent();
        let answer = match fate {
            Fate::Lost | Fate::Late(_) => None,
            Fate::Sent => Some(self.wires.memory.request(service, message, limit).await),
            Fate::Doubled => {
                let twin = message.clone();
                let pair = (
                    self.wires.memory.request(service, message, limit),
                    self.wires.memory.request(service, twin, limit),
                );
                Some(futures::future::join(pair.0, pair.1).await.0)
            }
            Fate::Last => {
                let request = self.wires.memory.request(service, message, limit);
                let crash = async {
                    tokio::task::yield_now().await;
                    self.wires.crash(&self.role).await;
                };
                Some(futures::future::join(request, crash).await.0)
            }
        };
        if let Some(Ok(answer)) = &answer {
            self.wires.leaks.told(service.name(), &self.role, answer);
        }
        if let Some(answer) = answer
            && !(answer.is_ok() && self.wires.answer_lost())
        {
            return answer;
        }
        let waited = self.wires.environment.elapsed().saturating_sub(asked);
        self.wires.environment.sleep(limit.saturating_sub(waited)).await;
        Err(BusError::NoAnswer { service: service.name().to_owned(), why: "it took too long".into() })
    }

    async fn serve(&self, service: &Service) -> Result<Box<dyn Requests>, BusError> {
        self.wires.memory.serve(service).await
    }

    async fn broadcast(&self, topic: &Topic, message: Message) -> Result<(), BusError> {
        self.wires.leaks.told(&self.role, topic.name(), &message);
        if message.kind().is_ok_and(|kind| kind == Progress::NAME) {
            return self.wires.memory.broadcast(topic, message).await;
        }
        self.note("tells", topic.name(), &message);
        let bus = &self.wires.memory;
        match self.wires.sent() {
            Fate::Sent => bus.broadcast(topic, message).await,
            Fate::Lost | Fate::Late(_) => Ok(()),
            Fate::Doubled => {
                bus.broadcast(topic, message.clone()).await?;
                bus.broadcast(topic, message).await
            }
            Fate::Last => {
                let told = bus.broadcast(topic, message).await;
                self.wires.crash(&self.role).await;
                told
            }
        }
    }

    async fn subscribe(&self, topic: &Topic) -> Result<Box<dyn Broadcasts>, BusError> {
        self.wires.memory.subscribe(topic).await
    }
}

struct RoleDeliveries {
    inner: Box<dyn Deliveries>,
    role: String,
    queue: String,
    wires: Arc<Wires>,
}

#[async_trait]
impl Deliveries for RoleDeliveries {
    async fn next(&mut self) -> Result<Delivery, BusError> {
        let Delivery { message, attempt, ticket } = self.inner.next().await?;
        let kind = message.kind().unwrap_or_else(|_| "?".into());
        self.wires.trace.note(format_args!("{} takes {} {kind} attempt {attempt}", self.role, self.queue));
        let ticket = Mutex::new(Some(ticket));
        let settle = RoleSettle { ticket, wires: self.wires.clone() };
        Ok(Delivery { message, attempt, ticket: Ticket::new(Arc::new(settle)) })
    }
}

#[derive(Debug)]
struct RoleSettle {
    ticket: Mutex<Option<Ticket>>,
    wires: Arc<Wires>,
}

impl RoleSettle {
    fn take(&self) -> Option<Ticket> {
        self.ticket.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[async_trait]
impl Settle for RoleSettle {
    async fn done(&self) -> Result<(), BusError> {
        match self.take() {
            Some(ticket) if self.wires.answer_lost() => {
                drop(ticket);
                Ok(())
            }
            Some(ticket) => ticket.done().await,
            None => Ok(()),
        }
    }

    async fn again(&self, delay: Duration) -> Result<(), BusError> {
        match self.take() {
            Some(ticket) => ticket.again(delay).await,
            None => Ok(()),
        }
    }

    async fn extend(&self) -> Result<(), BusError> {
        Ok(())
    }

    async fn is_queued(&self) -> Result<bool, BusError> {
        let standing = {
            let ticket = self.ticket.lock().unwrap_or_else(PoisonError::into_inner);
            ticket.as_ref().and_then(Ticket::standing)
        };
        match standing {
            Some(standing) => standing.is_queued().await,
            None => Ok(false),
        }
    }

    fn abandoned(&self) {
        drop(self.take());
    }
}

/// Neither settled nor abandoned: the ticket was left. The message comes again when nobody has settled it for long.
impl Drop for RoleSettle {
    fn drop(&mut self) {
        if let Some(ticket) = self.take() {
            let environment = self.wires.environment.clone();
            tokio::spawn(async move {
                environment.sleep(ACK_WAIT).await;
                drop(ticket);
            });
        }
    }
}
