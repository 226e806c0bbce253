//! The one loop: takes messages, lets a handler do the work, and settles them in one place.
//!
//! A message is acknowledged only after its effect is durable: when the handler returns, or when the handler took
//! the ticket and settles it itself (storers, whose effect is an upload of many messages). What fails for good is
//! told to the session's conductor by name, so that no message disappears in silence.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schema::messages::{Message, Refusal, SessionEvent};
use tokio::sync::watch;

use crate::bus::{Bus, BusError, Delivery, Queue, Request, Service, Ticket};
use crate::counters::Counters;
use crate::{Environment, Failure};

/// Deliveries of one message after which what fails for now is given up.
const ATTEMPTS_MAX: u64 = 12;
/// After so many times as many it is given up unseen: a message that kills its handler must not do so for ever. An agent
/// that is stopped hands back what fails, and whoever has it next must still see why.
const UNSEEN_AFTER: u64 = 2;
/// Pause before a message that failed for now is tried again; doubles with every attempt up to [`RETRY_SLOWEST`], so
/// that the attempts span some minutes: a role that this one needs may be restarting.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
const RETRY_SLOWEST: Duration = Duration::from_secs(30);
/// Pause between extensions of a message that somebody is at for long.
const EXTEND: Duration = Duration::from_millis(500);
/// Pause before the bus is tried again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);

/// What every agent has at hand.
#[derive(Debug, Clone)]
pub struct Context {
    /// The bus.
    pub bus: Arc<dyn Bus>,
    /// Clock and randomness.
    pub environment: Arc<dyn Environment>,
    /// Counters of this process.
    pub counters: Arc<Counters>,
    /// Says when to stop.
    pub stop: Stop,
    /// This host's name.
    pub host: Arc<str>,
}

/// A flag that is raised once and can be waited for.
#[derive(Debug, Clone)]
pub struct Stop(Arc<watch::Sender<bool>>);

impl Default for Stop {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Stop {
    /// Raises the flag.
    pub fn raise(&self) {
        self.0.send_replace(true);
    }

    /// Whether it is raised.
    pub fn is_raised(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it is raised.
    pub async fn raised(&self) {
        // The sender lives as long as `self`, so that waiting cannot fail.
        let _ = self.0.subscribe().wait_for(|raised| *raised).await;
    }
}

/// What became of a message that did not fail.
#[derive(Debug)]
pub enum Outcome {
    /// Its effect is durable: acknowledge it.
    Done,
    /// The handler keeps the ticket and settles it when the effect is durable.
    Held,
}

/// A role's work on one queue.
#[async_trait]
pub trait Handler: Send {
    /// The role, for logs.
    fn role(&self) -> &'static str;

    /// How often the next message was delivered, this time included.
    fn delivered(&mut self, _attempt: u64) {}

    /// Does what the message asks. Right under repetition. To return [`Outcome::Held`], take the ticket.
    async fn handle(&mut self, message: &Message, ticket: &mut Option<Ticket>) -> Result<Outcome, Failure>;

    /// Deliveries of one message after which it is given up when it fails for now, and after twice as many in any case.
    /// Also those count after which an agent was stopped and handed the message back.
    fn attempts(&self) -> u64 {
        ATTEMPTS_MAX
    }

    /// A message is dropped for good: tells whoever waits for its effect, where nobody else does. As long as that fails,
    /// the message stays.
    async fn gave_up(&mut self, _message: &Message, _failure: &Failure) -> Result<(), Failure> {
        Ok(())
    }

    /// Finishes or hands back what is held, before the agent ends.
    async fn drain(&mut self) -> Result<(), Failure> {
        Ok(())
    }
}

/// Runs a handler on a queue until the context's flag is raised.
pub async fn consume(
    context: &Context,
    queue: &Queue,
    window: usize,
    mut handler: impl Handler,
) -> Result<(), Failure> {
    let role = handler.role();
    while !context.stop.is_raised() {
        let mut deliveries = match context.bus.consume(queue, window).await {
            Ok(deliveries) => deliveries,
            Err(why) => {
                tracing::warn!(role, %queue, %why, "cannot take messages yet");
                pause(context, RECONNECT_PAUSE).await;
                continue;
            }
        };
        loop {
            let next = tokio::select! {
                biased;
                () = context.stop.raised() => break,
                next = deliveries.next() => next,
            };
            match next {
                Ok(delivery) => settle(context, queue, &mut handler, delivery).await,
                Err(why) => {
                    tracing::warn!(role, %queue, %why, "lost the queue; taking it up again");
                    pause(context, RECONNECT_PAUSE).await;
                    break;
                }
            }
        }
    }
    handler.drain().await
}

async fn pause(context: &Context, duration: Duration) {
    tokio::select! {
        biased;
        () = context.stop.raised() => {}
        () = context.environment.sleep(duration) => {}
    }
}

/// Handles one delivery and settles it: the only place that acknowledges for a handler.
async fn settle(context: &Context, queue: &Queue, handler: &mut impl Handler, delivery: Delivery) {
    let Delivery { message, attempt, ticket } = delivery;
    let (mut ticket, most) = (Some(ticket), handler.attempts());
    context.counters.messages_taken.add(1);
    let result = match attempt > UNSEEN_AFTER * most {
        false => {
            handler.delivered(attempt);
            handler.handle(&message, &mut ticket).await
        }
        true => Err(Failure::new(
            schema::messages::FailureKind::Other,
            format!("a message on {queue} was delivered {attempt} times without success"),
        )),
    };
    context.counters.messages_handled.add(1);
    let settled = match result {
        Ok(Outcome::Held) => Ok(()),
        Ok(Outcome::Done) => finish(ticket).await,
        // What ends because its agent does has not failed.
        Err(failure) if failure.retry && (attempt < most || context.stop.is_raised()) => {
            tracing::debug!(%queue, attempt, %failure, "trying a message again");
            context.counters.messages_retried.add(1);
            let doublings = u32::try_from(attempt - 1).unwrap_or(u32::MAX).min(10);
            hand_back(ticket, (RETRY_PAUSE * 2u32.pow(doublings)).min(RETRY_SLOWEST)).await
        }
        Err(failure) => match keeping(context, ticket.as_ref(), handler.gave_up(&message, &failure)).await {
            Ok(()) => give_up(context, queue, &message, failure, ticket).await,
            Err(why) => {
                tracing::warn!(%queue, %why, "cannot give a message up yet");
                hand_back(ticket, RETRY_SLOWEST).await
            }
        },
    };
    if let Err(why) = settled {
        tracing::debug!(%queue, %why, "could not settle a message; it will come again");
    }
}

/// Does something about a message that is given to nobody else meanwhile, also where the store makes it wait.
pub async fn keeping<T>(context: &Context, ticket: Option<&Ticket>, step: impl Future<Output = T>) -> T {
    tokio::select! {
        biased;
        done = step => done,
        never = keep(context, ticket) => match never {},
    }
}

async fn keep(context: &Context, ticket: Option<&Ticket>) -> Infallible {
    loop {
        context.environment.sleep(EXTEND).await;
        if let Some(ticket) = ticket {
            // What cannot be extended is delivered again; every role is right under that.
            let _ = ticket.extend().await;
        }
    }
}

async fn finish(ticket: Option<Ticket>) -> Result<(), BusError> {
    match ticket {
        Some(ticket) => ticket.done().await,
        None => Ok(()),
    }
}

async fn hand_back(ticket: Option<Ticket>, delay: Duration) -> Result<(), BusError> {
    match ticket {
        Some(ticket) => ticket.again(delay).await,
        None => Ok(()),
    }
}

/// The target of events whose failure is also told to whoever asked for the work.
pub const TOLD: &str = "told";

/// Tells the session's conductor, then drops the message for good.
async fn give_up(
    context: &Context,
    queue: &Queue,
    message: &Message,
    failure: Failure,
    ticket: Option<Ticket>,
) -> Result<(), BusError> {
    context.counters.messages_rejected.add(1);
    match message.about() {
        Ok(about) => {
            let (volume, why) = (&about.volume, failure.to_string());
            match about.session {
                Some(_) => tracing::error!(target: TOLD, %queue, volume, why, "gave up a message"),
                None => tracing::error!(%queue, volume, why, "gave up a message"),
            }
            if let Some(session) = about.session {
                let event = SessionEvent::Failed { kind: failure.kind, why: failure.why };
                context.bus.publish(&Queue::session(session), Message::new(&about, &event)).await?;
            }
        }
        Err(why) => tracing::error!(%queue, %failure, %why, "gave up a message that cannot be read"),
    }
    finish(ticket).await
}

/// Answers requests to a service.
#[async_trait]
pub trait Answerer: Send {
    /// Answers one request; a failure is sent back as a refusal.
    async fn answer(&mut self, message: &Message) -> Result<Message, Failure>;
}

/// Serves a service until the context's flag is raised.
pub async fn serve(context: &Context, service: &Service, mut answerer: impl Answerer) -> Result<(), Failure> {
    while !context.stop.is_raised() {
        let mut requests = match context.bus.serve(service).await {
            Ok(requests) => requests,
            Err(why) => {
                tracing::warn!(service = service.name(), %why, "cannot serve yet");
                pause(context, RECONNECT_PAUSE).await;
                continue;
            }
        };
        loop {
            let next = tokio::select! {
                biased;
                () = context.stop.raised() => break,
                next = requests.next() => next,
            };
            let Ok(Request { message, reply }) = next else {
                pause(context, RECONNECT_PAUSE).await;
                break;
            };
            let answer = match answerer.answer(&message).await {
                Ok(answer) => answer,
                Err(failure) => {
                    let about = message.about().unwrap_or_else(|_| schema::messages::About::nothing());
                    Message::new(&about, &Refusal { why: failure.why })
                }
            };
            if let Err(why) = reply.send(answer).await {
                tracing::debug!(service = service.name(), %why, "an answer was lost; it will be asked again");
            }
        }
    }
    Ok(())
}
