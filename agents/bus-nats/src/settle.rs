//! Settling a delivery.
//!
//! A server that lost its memory numbers a new stream's messages from one again. An acknowledgement from before
//! would then settle another message that nobody has handled: so none leaves on a new connection before the
//! stream proved to be the one that the delivery came from.

use std::sync::Arc;
use std::time::Duration;

use agent::Queue;
use agent::bus::{BusError, Settle};
use async_nats::Subject;
use async_nats::datetime::DateTime;
use async_nats::jetstream::AckKind;
use async_nats::jetstream::stream::RawMessageErrorKind;
use async_trait::async_trait;
use tokio::sync::OwnedSemaphorePermit;

use crate::connection::{Nats, Trouble, chain};
use crate::family::Family;

/// How long settling waits for a connection. What is not settled comes again.
const SETTLE_PATIENCE: Duration = Duration::from_secs(20);

/// The right to settle one delivery. Its bytes count against the consumer's window until it is dropped.
#[derive(Debug)]
pub(crate) struct NatsSettle {
    pub nats: Arc<Nats>,
    pub family: Arc<Family>,
    pub queue: Queue,
    /// When the stream was made that the delivery came from.
    pub created: DateTime,
    /// Its number there.
    pub sequence: u64,
    pub reply: Subject,
    pub _window: Option<OwnedSemaphorePermit>,
}

impl NatsSettle {
    /// Tells the server; false if it no longer knows the stream.
    pub async fn tell(&self, kind: AckKind) -> Result<bool, BusError> {
        if !self.is_known().await? {
            return Ok(false);
        }
        let sent = self.nats.client.publish(self.reply.clone(), kind.into()).await;
        sent.map(|()| true).map_err(|why| self.unreachable(why))
    }

    /// Acknowledges, and waits until the server has it. Where the stream is gone, the message never comes again either.
    async fn confirm(&self) -> Result<(), BusError> {
        if !self.is_known().await? {
            return Ok(());
        }
        let asked = self.nats.client.request(self.reply.clone(), AckKind::Ack.into());
        match tokio::time::timeout(SETTLE_PATIENCE, asked).await {
            Ok(answered) => answered.map(drop).map_err(|why| self.unreachable(why)),
            Err(_) => Err(self.unreachable("no answer")),
        }
    }

    /// Whether the stream still has the message: a work queue keeps none that was acknowledged.
    async fn is_queued(&self) -> Result<bool, BusError> {
        if !self.is_known().await? {
            return Ok(false);
        }
        let asked = async {
            let stream = self.nats.context.get_stream_no_info(&self.family.stream).await;
            let stream = stream.map_err(|why| self.unreachable(chain(&why)))?;
            match stream.get_raw_message(self.sequence).await {
                Ok(_) => Ok(true),
                Err(why) if why.kind() == RawMessageErrorKind::NoMessageFound => Ok(false),
                Err(why) => Err(self.unreachable(chain(&why))),
            }
        };
        match tokio::time::timeout(SETTLE_PATIENCE, asked).await {
            Ok(answered) => answered,
            Err(_) => Err(self.unreachable("no answer")),
        }
    }

    /// Whether the stream is another one, or was put back to before the message came.
    async fn is_lost(&self) -> Result<bool, BusError> {
        if !self.is_known().await? {
            return Ok(true);
        }
        let asked = async {
            let stream = self.nats.context.get_stream(&self.family.stream).await;
            stream.map_err(|why| self.unreachable(chain(&why)))
        };
        match tokio::time::timeout(SETTLE_PATIENCE, asked).await {
            Ok(stream) => Ok(stream?.cached_info().state.last_sequence < self.sequence),
            Err(_) => Err(self.unreachable("no answer")),
        }
    }

    /// Whether the server still knows the stream that the delivery came from.
    async fn is_known(&self) -> Result<bool, BusError> {
        self.nats.need_connection(SETTLE_PATIENCE).await?;
        match self.family.ensure(&self.nats).await {
            Ok(created) => Ok(created == self.created),
            Err(Trouble::Away(why) | Trouble::Never(why)) => Err(self.unreachable(why)),
            Err(Trouble::Full | Trouble::Missing) => Err(self.unreachable("the queue is gone")),
        }
    }

    fn unreachable(&self, why: impl std::fmt::Display) -> BusError {
        BusError::Unreachable(format!("settling a message on {}: {why}", self.queue))
    }

    fn lost(&self) -> BusError {
        BusError::Unreachable(format!("the server restarted and lost the messages on {}", self.queue))
    }

    /// Hands the delivery back without waiting, as well as that goes; else it comes again after the ack wait.
    pub fn hand_back(self: Arc<Self>) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            if let Err(why) = self.tell(AckKind::Nak(None)).await {
                tracing::debug!(queue = %self.queue, %why, "could not hand a message back; it comes again later");
            }
        });
    }
}

/// What a [`agent::bus::Ticket`] holds.
#[derive(Debug)]
pub(crate) struct Handle(pub Arc<NatsSettle>);

#[async_trait]
impl Settle for Handle {
    async fn done(&self) -> Result<(), BusError> {
        // Where the stream is gone, the message never comes again either.
        self.0.tell(AckKind::Ack).await.map(|_| ())
    }

    async fn confirmed(&self) -> Result<(), BusError> {
        self.0.confirm().await
    }

    async fn again(&self, delay: Duration) -> Result<(), BusError> {
        match self.0.tell(AckKind::Nak(Some(delay))).await? {
            true => Ok(()),
            false => Err(self.0.lost()),
        }
    }

    async fn extend(&self) -> Result<(), BusError> {
        match self.0.tell(AckKind::Progress).await? {
            true => Ok(()),
            false => Err(self.0.lost()),
        }
    }

    async fn is_queued(&self) -> Result<bool, BusError> {
        self.0.is_queued().await
    }

    async fn is_lost(&self) -> Result<bool, BusError> {
        self.0.is_lost().await
    }

    fn abandoned(&self) {
        self.0.clone().hand_back();
    }
}
