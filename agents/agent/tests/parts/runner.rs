//! The one loop: what is acknowledged when, what is tried again, and who hears of what was given up.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::bus::{Bus, BusError, Queue, Service, Settle, Ticket};
use agent::local::LocalBus;
use agent::{Answerer, Context, Environment, Failure, Handler, Outcome, Stop};
use async_trait::async_trait;
use bytes::Bytes;
use schema::messages::{About, FailureKind, Flush, Message, SessionEvent};

use crate::support::{VOLUME, environment, session_id};

/// What the handler is to do with the next message.
enum Step {
    Succeed,
    Fail(Failure),
    /// Keeps the ticket in the list of held ones.
    Hold,
    /// As if the process had died: nothing is settled.
    Lose,
    /// Its agent is stopped meanwhile.
    Stop,
}

#[derive(Clone, Default)]
struct Seen {
    at: Arc<Mutex<Vec<Duration>>>,
    /// Bytes of the queue that were unacknowledged during the call.
    unsettled: Arc<Mutex<Vec<usize>>>,
    held: Arc<Mutex<Vec<Ticket>>>,
    drained: Arc<Mutex<bool>>,
    gave_up: Arc<Mutex<Vec<String>>>,
}

struct Scripted {
    steps: VecDeque<Step>,
    otherwise: fn() -> Step,
    bus: LocalBus,
    environment: Arc<dyn Environment>,
    stop: Stop,
    seen: Seen,
}

#[async_trait]
impl Handler for Scripted {
    fn role(&self) -> &'static str {
        "scripted"
    }

    async fn handle(&mut self, message: &Message, ticket: &mut Option<Ticket>) -> Result<Outcome, Failure> {
        self.seen.at.lock().unwrap().push(self.environment.elapsed());
        self.seen.unsettled.lock().unwrap().push(self.bus.bytes_in(&queue()));
        message.about()?;
        match self.steps.pop_front().unwrap_or_else(self.otherwise) {
            Step::Succeed => Ok(Outcome::Done),
            Step::Fail(failure) => Err(failure),
            Step::Hold => {
                self.seen.held.lock().unwrap().extend(ticket.take());
                Ok(Outcome::Held)
            }
            Step::Lose => {
                drop(ticket.take());
                Ok(Outcome::Held)
            }
            Step::Stop => {
                self.stop.raise();
                Err(later())
            }
        }
    }

    async fn gave_up(&mut self, _message: &Message, failure: &Failure) -> Result<(), Failure> {
        let mut gave_up = self.seen.gave_up.lock().unwrap();
        gave_up.push(failure.why.clone());
        match gave_up.len() {
            ..=2 if failure.why == TOLD_LATE => Err(later()),
            _ => Ok(()),
        }
    }

    async fn drain(&mut self) -> Result<(), Failure> {
        *self.seen.drained.lock().unwrap() = true;
        Ok(())
    }
}

/// What the role cannot tell at once.
const TOLD_LATE: &str = "told at the third time";

fn queue() -> Queue {
    Queue::extents("host")
}

struct Loop {
    context: Context,
    bus: LocalBus,
    seen: Seen,
    task: tokio::task::JoinHandle<Result<(), Failure>>,
}

impl Loop {
    fn start(steps: impl IntoIterator<Item = Step>, otherwise: fn() -> Step) -> Self {
        let environment = environment();
        let bus = LocalBus::new(environment.clone(), 1 << 20);
        let context = Context {
            bus: Arc::new(bus.clone()),
            environment: environment.clone(),
            counters: Arc::default(),
            stop: Stop::default(),
            host: "host".into(),
        };
        let seen = Seen::default();
        let handler = Scripted {
            steps: steps.into_iter().collect(),
            otherwise,
            bus: bus.clone(),
            environment,
            stop: context.stop.clone(),
            seen: seen.clone(),
        };
        let running = context.clone();
        let task = tokio::spawn(async move { agent::consume(&running, &queue(), 1, handler).await });
        Self { context, bus, seen, task }
    }

    async fn publish(&self, message: Message) {
        self.bus.publish(&queue(), message).await.unwrap();
    }

    /// Lets an hour of virtual time go by: everything that can happen has happened.
    async fn settle(&self) {
        self.context.environment.sleep(Duration::from_secs(3600)).await;
    }

    fn calls(&self) -> usize {
        self.seen.at.lock().unwrap().len()
    }

    async fn told(&self) -> Option<SessionEvent> {
        let told = Queue::session(session_id(9));
        if self.bus.bytes_in(&told) == 0 {
            return None;
        }
        let delivery = self.bus.consume(&told, 1).await.unwrap().next().await.unwrap();
        let event = delivery.message.read().unwrap();
        delivery.ticket.done().await.unwrap();
        Some(event)
    }

    async fn stop(self) {
        self.context.stop.raise();
        self.task.await.unwrap().unwrap();
        assert!(*self.seen.drained.lock().unwrap(), "what is held is finished before the end");
    }
}

fn message() -> Message {
    Message::new(&About::session(session_id(9), VOLUME), &Flush { session: session_id(9) })
}

fn later() -> Failure {
    Failure { kind: FailureKind::Store, retry: true, why: "the store is away".into() }
}

fn never() -> Failure {
    Failure::damaged("chunk 17 is damaged")
}

#[tokio::test(start_paused = true)]
async fn a_message_is_acknowledged_after_its_handler_and_not_before() {
    let run = Loop::start([], || Step::Succeed);
    run.publish(message()).await;
    run.settle().await;
    assert_eq!(*run.seen.unsettled.lock().unwrap(), [message().size()]);
    assert_eq!(run.bus.bytes_in(&queue()), 0);
    assert_eq!(run.told().await, None);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_held_message_is_acknowledged_by_who_holds_it() {
    let run = Loop::start([], || Step::Hold);
    run.publish(message()).await;
    run.settle().await;
    assert_eq!(run.bus.bytes_in(&queue()), message().size());
    let ticket = run.seen.held.lock().unwrap().pop().unwrap();
    ticket.done().await.unwrap();
    assert_eq!(run.bus.bytes_in(&queue()), 0);
    assert_eq!(run.calls(), 1);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_fails_for_now_is_tried_again_after_growing_pauses_and_then_given_up() {
    let run = Loop::start([], || Step::Fail(later()));
    run.publish(message()).await;
    run.settle().await;
    let at = run.seen.at.lock().unwrap().clone();
    let pauses: Vec<u128> = at.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    let slowest = 30_000;
    assert_eq!(pauses, [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, slowest, slowest, slowest, slowest]);
    let expected = SessionEvent::Failed { kind: FailureKind::Store, why: "the store is away".into() };
    assert_eq!(run.told().await, Some(expected));
    assert_eq!(run.told().await, None, "the session is told once");
    assert_eq!(run.bus.bytes_in(&queue()), 0);
    assert_eq!(run.context.counters.messages_rejected.get(), 1);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_succeeds_at_last_is_told_to_nobody() {
    let run = Loop::start((0..11).map(|_| Step::Fail(later())), || Step::Succeed);
    run.publish(message()).await;
    run.settle().await;
    assert_eq!((run.calls(), run.told().await), (12, None));
    assert_eq!(run.bus.bytes_in(&queue()), 0);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_fails_for_good_is_told_at_once() {
    let run = Loop::start([], || Step::Fail(never()));
    run.publish(message()).await;
    run.settle().await;
    let expected = SessionEvent::Failed { kind: FailureKind::Damaged, why: "chunk 17 is damaged".into() };
    assert_eq!((run.calls(), run.told().await), (1, Some(expected)));
    run.stop().await;
}

/// A message that kills whoever handles it must not do so for ever.
#[tokio::test(start_paused = true)]
async fn a_message_that_is_never_settled_is_given_up_unhandled() {
    let run = Loop::start([], || Step::Lose);
    run.publish(message()).await;
    run.settle().await;
    assert_eq!(run.calls(), 24);
    let Some(SessionEvent::Failed { why, .. }) = run.told().await else { panic!("nobody was told") };
    assert!(why.contains("extents.host") && why.contains("25 times"), "{why}");
    assert_eq!(run.bus.bytes_in(&queue()), 0);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_message_is_dropped_and_the_next_one_handled() {
    let run = Loop::start([], || Step::Succeed);
    run.publish(Message { header: Bytes::from_static(b"\xc1garbage"), body: Bytes::new() }).await;
    run.publish(message()).await;
    run.settle().await;
    assert_eq!(run.calls(), 2);
    assert_eq!(run.bus.bytes_in(&queue()), 0);
    assert_eq!(run.context.counters.messages_rejected.get(), 1);
    run.stop().await;
}

/// A message about no session, a job for one: only its role knows who waits for it.
#[tokio::test(start_paused = true)]
async fn the_role_hears_once_of_what_is_given_up() {
    let run = Loop::start([Step::Succeed], || Step::Lose);
    let job = Message::new(&About::nothing(), &Flush { session: session_id(9) });
    run.publish(job.clone()).await;
    run.publish(job.clone()).await;
    run.settle().await;
    let gave_up = run.seen.gave_up.lock().unwrap().clone();
    assert_eq!(gave_up.len(), 1);
    assert!(gave_up[0].contains("25 times"), "{gave_up:?}");
    assert_eq!(run.bus.bytes_in(&queue()), 0);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_told_yet_is_not_given_up() {
    let run = Loop::start([], || Step::Fail(Failure::refused(TOLD_LATE)));
    run.publish(message()).await;
    run.settle().await;
    assert_eq!(run.seen.gave_up.lock().unwrap().len(), 3);
    assert!(run.told().await.is_some());
    assert_eq!(run.bus.bytes_in(&queue()), 0);
    run.stop().await;
}

/// It must not be given to another one meanwhile, who would do what is being given up.
#[tokio::test(start_paused = true)]
async fn what_is_done_about_a_message_for_long_keeps_it() {
    let environment = environment();
    let bus = Arc::new(LocalBus::new(environment.clone(), 1 << 20));
    let (counters, stop, host) = (Arc::default(), Stop::default(), "host".into());
    let context = Context { bus, environment: environment.clone(), counters, stop, host };
    let extended = Arc::new(Extended::default());
    let ticket = Ticket::new(extended.clone());
    let slow = async {
        environment.sleep(Duration::from_secs(60)).await;
        extended.0.load(Ordering::SeqCst)
    };
    let times = agent::keeping(&context, Some(&ticket), slow).await;
    assert!(times > 60, "extended {times} times in a minute");
    ticket.leave();
}

#[tokio::test(start_paused = true)]
async fn what_an_agent_that_is_stopped_hands_back_is_not_given_up() {
    let run = Loop::start((0..11).map(|_| Step::Fail(later())), || Step::Stop);
    run.publish(message()).await;
    run.settle().await;
    assert_eq!((run.calls(), run.told().await), (12, None));
    assert_eq!(run.bus.bytes_in(&queue()), message().size());
    run.stop().await;
}

/// Agents that were stopped have used up the attempts; whoever has it next says why it fails.
#[tokio::test(start_paused = true)]
async fn what_was_handed_back_too_often_is_given_up_by_its_own_reason() {
    let run = Loop::start((0..12).map(|_| Step::Lose), || Step::Fail(later()));
    run.publish(message()).await;
    run.settle().await;
    let expected = SessionEvent::Failed { kind: FailureKind::Store, why: "the store is away".into() };
    assert_eq!((run.calls(), run.told().await), (13, Some(expected)));
    assert_eq!(run.bus.bytes_in(&queue()), 0);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_retired_queue_is_taken_up_again() {
    let run = Loop::start([], || Step::Succeed);
    run.settle().await;
    run.bus.retire(&queue()).await.unwrap();
    run.publish(message()).await;
    run.settle().await;
    assert_eq!((run.calls(), run.bus.bytes_in(&queue())), (1, 0));
    run.stop().await;
}

/// How often a delivery was extended.
#[derive(Debug, Default)]
struct Extended(AtomicU32);

#[async_trait]
impl Settle for Extended {
    async fn done(&self) -> Result<(), BusError> {
        Ok(())
    }

    async fn again(&self, _delay: Duration) -> Result<(), BusError> {
        Ok(())
    }

    async fn extend(&self) -> Result<(), BusError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn is_queued(&self) -> Result<bool, BusError> {
        Ok(true)
    }

    fn abandoned(&self) {}
}

struct Refusing;

#[async_trait]
impl Answerer for Refusing {
    async fn answer(&mut self, message: &Message) -> Result<Message, Failure> {
        match message.body.is_empty() {
            true => Err(Failure::refused("an empty question")),
            false => Ok(message.clone()),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_to_answer_is_sent_back_as_a_refusal() {
    let run = Loop::start([], || Step::Succeed);
    let (context, service) = (run.context.clone(), Service::index(0));
    let serving = tokio::spawn({
        let service = service.clone();
        async move { agent::serve(&context, &service, Refusing).await }
    });
    let limit = Duration::from_secs(5);
    let refused = run.bus.request(&service, message(), limit).await;
    assert!(
        matches!(&refused, Err(BusError::Refused { why, .. }) if why == "an empty question"),
        "{refused:?}"
    );
    let full = Message { body: Bytes::from_static(b"full"), ..message() };
    assert_eq!(run.bus.request(&service, full.clone(), limit).await.unwrap(), full);
    run.stop().await;
    serving.await.unwrap().unwrap();
}
