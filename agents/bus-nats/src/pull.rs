//! Pulling messages of one queue from the server, for an intake.
//!
//! A pull is bounded in messages, bytes and time; the server says when it ended early. One that a restarted or
//! failed-over server knows nothing of ends with the connection or with its time, and the next one is answered
//! that there is no consumer: then it is made again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use agent::bus::BusError;
use async_nats::datetime::DateTime;
use async_nats::jetstream::AckKind;
use async_nats::{StatusCode, Subscriber};
use futures::StreamExt;
use schema::messages::Message;
use tokio::sync::{MutexGuard, OwnedSemaphorePermit};
use tokio::time::Instant;

use crate::connection::{Nats, Trouble, chain};
use crate::deliveries::{Intake, Pulled};
use crate::family::Family;
use crate::publish::Backoff;
use crate::settle::NatsSettle;

/// How long the server keeps a pull.
const PULL_LIFE: Duration = Duration::from_secs(10);
/// Silence after that means that the server knows nothing of it.
const PULL_GRACE: Duration = Duration::from_secs(2);
/// Messages of one pull at most; fewer than a subscription can hold.
const PULL_MESSAGES: usize = 512;

/// How a pull ended.
#[derive(Debug)]
enum End {
    /// As it should.
    Over,
    /// The connection or the consumer behind it is another one, or none.
    Lost(String),
    /// Somebody deleted the consumer.
    Retired,
}

struct Puller<'a> {
    intake: &'a Intake,
    family: Arc<Family>,
    inbox: String,
    subscriber: Subscriber,
    number: u64,
}

/// Pulls for ever; ends when the queue was retired or the client ended.
pub(crate) async fn pull_on(intake: Arc<Intake>) {
    let nats = intake.nats.clone();
    let inbox = nats.client.new_inbox();
    let subscriber = match nats.client.subscribe(format!("{inbox}.*")).await {
        Ok(subscriber) => subscriber,
        Err(why) => {
            tracing::error!(queue = %intake.queue, why = chain(&why), "cannot take messages: the client ended");
            return;
        }
    };
    let family = nats.family(&intake.queue);
    let mut puller = Puller { intake: &intake, family, inbox, subscriber, number: 0 };
    let mut backoff = Backoff::default();
    let mut told = false;
    loop {
        let Some(reserved) = intake.reserve().await else { return };
        match puller.pull(reserved).await {
            Ok(End::Over) => (backoff, told) = (Backoff::default(), false),
            Ok(End::Lost(why)) => {
                tracing::debug!(queue = %intake.queue, why, "a pull was lost; pulling again");
                backoff.pause().await;
            }
            Ok(End::Retired) => return intake.retire(),
            Err(why) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(queue = %intake.queue, ?why, "cannot take messages yet; trying on");
                }
                backoff.pause().await;
            }
        }
    }
}

impl Puller<'_> {
    async fn pull(&mut self, mut reserved: OwnedSemaphorePermit) -> Result<End, Trouble> {
        let intake = self.intake;
        let nats = &*intake.nats;
        let mut turn = Some(intake.turn.lock().await);
        if nats.wait_connected(PULL_LIFE).await.is_err() {
            return Ok(End::Lost("not connected".into()));
        }
        let created = self.ensure_consumer(nats).await?;
        let era = nats.era();
        let sent = Instant::now();
        let messages = if intake.prefetch { PULL_MESSAGES } else { 1 };
        let inbox = self.send(nats, messages, reserved.num_permits()).await?;
        let mut taken = 0;
        while taken < messages {
            let message = tokio::select! {
                biased;
                message = self.subscriber.next() => message,
                () = nats.era_is_over(era) => return Ok(End::Lost("the connection was lost".into())),
                () = tokio::time::sleep_until(sent + PULL_LIFE + PULL_GRACE) => {
                    intake.consumer_era.store(0, Ordering::SeqCst);
                    return Ok(End::Lost("no word from the server".into()));
                }
            };
            let Some(message) = message else { return Ok(End::Retired) };
            match message.status {
                None | Some(StatusCode::OK) => {
                    release(&mut turn);
                    taken += 1;
                    self.put(message, created, &mut reserved).await;
                }
                Some(StatusCode::IDLE_HEARTBEAT) => {}
                // A word on an earlier pull.
                Some(_) if message.subject.as_str() != inbox => {}
                Some(status) => {
                    return Ok(self.end(status, message.description.as_deref(), taken, sent).await);
                }
            }
        }
        Ok(End::Over)
    }

    async fn ensure_consumer(&self, nats: &Nats) -> Result<DateTime, Trouble> {
        let era = nats.era();
        if self.intake.consumer_era.load(Ordering::SeqCst) != era {
            nats.make_consumer(&self.intake.queue).await?;
            self.intake.consumer_era.store(era, Ordering::SeqCst);
        }
        self.family.ensure(nats).await
    }

    /// Sends the pull, and returns where the server will say how it ended.
    async fn send(&mut self, nats: &Nats, messages: usize, bytes: usize) -> Result<String, Trouble> {
        self.number += 1;
        let inbox = format!("{}.{}", self.inbox, self.number);
        let subject =
            format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", self.family.stream, self.intake.queue.member());
        let life = PULL_LIFE.as_nanos();
        let request = match self.intake.prefetch {
            true => format!(r#"{{"batch":{messages},"max_bytes":{bytes},"expires":{life}}}"#),
            false => format!(r#"{{"batch":{messages},"expires":{life}}}"#),
        };
        let sent = nats.client.publish_with_reply(subject, inbox.clone(), request.into()).await;
        sent.map(|()| inbox).map_err(|why| Trouble::Away(chain(&why)))
    }

    async fn put(
        &self,
        message: async_nats::Message,
        created: DateTime,
        reserved: &mut OwnedSemaphorePermit,
    ) {
        let intake = self.intake;
        let len = message.length;
        let Some((attempt, sequence, reply)) = delivered(&intake.nats, &message) else { return };
        let settle = Arc::new(NatsSettle {
            nats: intake.nats.clone(),
            family: self.family.clone(),
            queue: intake.queue.clone(),
            created,
            sequence,
            reply,
            _window: intake.charge(reserved, len),
        });
        match Message::from_bytes(message.payload) {
            Ok(message) => intake.put(Pulled { message, attempt, at: Instant::now(), settle }),
            Err(why) => {
                tracing::error!(queue = %intake.queue, %why, "dropped a message that cannot be read");
                settle.drop_for_good().await;
            }
        }
    }

    async fn end(&self, status: StatusCode, why: Option<&str>, messages: usize, sent: Instant) -> End {
        let why = why.unwrap_or_default();
        let lost = || {
            self.intake.consumer_era.store(0, Ordering::SeqCst);
            self.family.forget();
            End::Lost(format!("{status}: {why}"))
        };
        match status {
            StatusCode::NO_RESPONDERS => lost(),
            StatusCode::TIMEOUT | StatusCode::NOT_FOUND => End::Over,
            _ if why.contains("Consumer Deleted") => End::Retired,
            // The next message does not fit into the rest of the pull.
            _ if why.contains("MaxBytes") && messages > 0 => End::Over,
            // Shutting down, another leader, and what else there is: not at full speed.
            _ if sent.elapsed() < PULL_GRACE => lost(),
            _ => End::Over,
        }
    }
}

fn release(turn: &mut Option<MutexGuard<'_, ()>>) {
    *turn = None;
}

/// How often the message was delivered, its number in the stream, and where it is settled; none for what is no delivery.
fn delivered(nats: &Nats, message: &async_nats::Message) -> Option<(u64, u64, async_nats::Subject)> {
    let reply = message.reply.clone()?;
    let probe = async_nats::Message { payload: bytes::Bytes::new(), ..message.clone() };
    let probe = async_nats::jetstream::Message { message: probe, context: nats.context.clone() };
    let info = probe.info().ok()?;
    Some((u64::try_from(info.delivered).unwrap_or(1).max(1), info.stream_sequence, reply))
}

impl NatsSettle {
    pub(crate) async fn keep_alive(&self) -> Result<(), BusError> {
        self.tell(AckKind::Progress).await.map(|_| ())
    }

    async fn drop_for_good(&self) {
        if let Err(why) = self.tell(AckKind::Term).await {
            tracing::debug!(queue = %self.queue, %why, "could not drop a message; it comes again");
        }
    }
}
