//! Publishing: a message is on the queue when the server said so.
//!
//! A full queue is waited for, however long it takes, by one publisher per queue at a time: the others wait behind
//! it and do not send their megabyte in vain. A server that is away is waited for [`UNREACHABLE_AFTER`]. An answer
//! that got lost means publishing again, so that a message may be there twice.

use std::sync::{Arc, Weak};
use std::time::Duration;

use agent::Queue;
use agent::bus::BusError;
use async_nats::jetstream;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use schema::messages::Message;
use tokio::time::Instant;

use crate::connection::{Nats, Trouble, chain, lock};

/// Trouble that lasts longer is told to the caller.
pub(crate) const UNREACHABLE_AFTER: Duration = Duration::from_secs(60);
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// Pauses that grow to [`PAUSE_MAX`].
#[derive(Debug)]
pub(crate) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(PAUSE_MIN)
    }
}

impl Backoff {
    pub async fn pause(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(PAUSE_MAX);
    }
}

/// A place in the row of publishers that wait for a full queue.
struct Turn<'a> {
    nats: &'a Nats,
    queue: &'a Queue,
    held: Option<tokio::sync::OwnedMutexGuard<()>>,
}

impl<'a> Turn<'a> {
    async fn wait(nats: &'a Nats, queue: &'a Queue) -> Self {
        let gate = {
            let mut gates = lock(&nats.gates);
            let known = gates.get(queue).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let gate = Arc::new(tokio::sync::Mutex::new(()));
                gates.insert(queue.clone(), Arc::downgrade(&gate));
                gate
            })
        };
        Self { nats, queue, held: Some(gate.lock_owned().await) }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.held = None;
        let mut gates = lock(&self.nats.gates);
        if gates.get(self.queue).is_some_and(|gate| gate.strong_count() == 0) {
            gates.remove(self.queue);
        }
    }
}

pub(crate) async fn publish(nats: &Nats, queue: &Queue, message: Message) -> Result<(), BusError> {
    let unsendable = |why: String| BusError::Unsendable { subject: queue.to_string(), why };
    let payload = message.to_bytes().map_err(|why| unsendable(why.to_string()))?;
    let subject = nats.subject(queue);
    let mut backoff = Backoff::default();
    let mut turn = None;
    let mut away_since = None;
    loop {
        match attempt(nats, queue, &subject, payload.clone()).await {
            Ok(()) => return Ok(()),
            Err(Trouble::Full) => {
                away_since = None;
                match turn {
                    None => turn = Some(Turn::wait(nats, queue).await),
                    Some(_) => backoff.pause().await,
                }
            }
            Err(Trouble::Missing) => nats.family(queue).forget(),
            Err(Trouble::Never(why)) => return Err(unsendable(why)),
            Err(Trouble::Away(why)) => {
                let since = *away_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= UNREACHABLE_AFTER {
                    return Err(BusError::Unreachable(format!("publishing on {queue}: {why}")));
                }
                backoff.pause().await;
            }
        }
    }
}

async fn attempt(nats: &Nats, queue: &Queue, subject: &str, payload: Bytes) -> Result<(), Trouble> {
    nats.wait_connected(UNREACHABLE_AFTER).await.map_err(Trouble::Away)?;
    nats.family(queue).ensure(nats).await?;
    let era = nats.era();
    let sent = async {
        let publish = PublishMessage::build().payload(payload);
        nats.context.send_publish(subject.to_owned(), publish).await?.await
    };
    tokio::select! {
        biased;
        result = sent => result.map(|_| ()).map_err(|why| trouble(&why)),
        () = nats.era_is_over(era) => Err(Trouble::Away("the connection was lost".into())),
    }
}

fn trouble(why: &PublishError) -> Trouble {
    match why.kind() {
        PublishErrorKind::StreamNotFound => Trouble::Missing,
        PublishErrorKind::MaxPayloadExceeded => Trouble::Never(chain(why)),
        PublishErrorKind::Other => match code(why) {
            // What discarding new messages answers; insufficient resources: all streams together are too much.
            Some(ErrorCode::STREAM_STORE_FAILED | ErrorCode::INSUFFICIENT_RESOURCES) => Trouble::Full,
            Some(ErrorCode::STREAM_NOT_FOUND) => Trouble::Missing,
            Some(ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM) => Trouble::Never(chain(why)),
            _ => Trouble::Away(chain(why)),
        },
        _ => Trouble::Away(chain(why)),
    }
}

fn code(why: &PublishError) -> Option<ErrorCode> {
    let source = std::error::Error::source(why)?;
    source.downcast_ref::<jetstream::Error>().map(jetstream::Error::error_code)
}
