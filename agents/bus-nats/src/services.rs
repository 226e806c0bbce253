//! Requests and broadcasts, on core NATS: nothing is stored, and nothing arrives later than its asker waits.

use std::sync::Arc;
use std::time::Duration;

use agent::bus::{Broadcasts, BusError, Reply, Request, Requests, Service, Topic};
use agent::local::refused;
use async_nats::client::RequestErrorKind;
use async_nats::{Subject, Subscriber};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use schema::messages::{About, Message, Refusal};

use crate::connection::{Nats, chain};

/// How long a subscription or a broadcast waits for a connection.
const PATIENCE: Duration = Duration::from_secs(20);
/// The servers of a service share its requests.
const GROUP: &str = "servers";

fn encode(subject: &str, message: &Message) -> Result<Bytes, BusError> {
    message
        .to_bytes()
        .map_err(|why| BusError::Unsendable { subject: subject.to_owned(), why: why.to_string() })
}

fn gone() -> BusError {
    BusError::Unreachable("the connection was closed".into())
}

impl Nats {
    /// Waits until the server has seen everything that was sent so far: it answers at once that nobody is here.
    async fn round_trip(&self) -> Result<(), BusError> {
        let nobody = format!("{}.s.nobody", self.settings.namespace);
        match self.client.request(nobody, Bytes::new()).await {
            Err(why) if why.kind() != RequestErrorKind::NoResponders => {
                Err(BusError::Unreachable(chain(&why)))
            }
            _ => Ok(()),
        }
    }
}

pub(crate) async fn request(
    nats: &Nats,
    service: &Service,
    message: Message,
    limit: Duration,
) -> Result<Message, BusError> {
    let payload = encode(service.name(), &message)?;
    let no_answer =
        |why: &str| BusError::NoAnswer { service: service.name().to_owned(), why: why.to_owned() };
    nats.wait_connected(limit).await.map_err(|why| no_answer(&why))?;
    let subject = format!("{}.s.{}", nats.settings.namespace, service.name());
    let era = nats.era();
    let request = async_nats::Request::new().payload(payload).timeout(Some(limit));
    let answer = tokio::select! {
        biased;
        answer = nats.client.send_request(subject, request) => answer,
        () = nats.era_is_over(era) => return Err(no_answer("the connection was lost")),
    };
    let answer = answer.map_err(|why| match why.kind() {
        RequestErrorKind::NoResponders => no_answer("nobody serves it now"),
        RequestErrorKind::TimedOut => no_answer("it took too long"),
        _ => no_answer(&chain(&why)),
    })?;
    let answer =
        Message::from_bytes(answer.payload).map_err(|why| no_answer(&format!("unreadable answer: {why}")))?;
    refused(service, answer)
}

struct NatsRequests {
    nats: Arc<Nats>,
    name: String,
    subscriber: Subscriber,
}

#[async_trait]
impl Requests for NatsRequests {
    async fn next(&mut self) -> Result<Request, BusError> {
        loop {
            let request = self.subscriber.next().await.ok_or_else(gone)?;
            let Some(to) = request.reply else { continue };
            match Message::from_bytes(request.payload) {
                Ok(message) => {
                    let reply = NatsReply { nats: self.nats.clone(), service: self.name.clone(), to };
                    return Ok(Request { message, reply: Box::new(reply) });
                }
                Err(why) => {
                    tracing::warn!(service = self.name, %why, "a request that cannot be read was dropped")
                }
            }
        }
    }
}

#[derive(Debug)]
struct NatsReply {
    nats: Arc<Nats>,
    service: String,
    to: Subject,
}

#[async_trait]
impl Reply for NatsReply {
    async fn send(self: Box<Self>, message: Message) -> Result<(), BusError> {
        let encoded = encode(&self.service, &message);
        let payload = match &encoded {
            Ok(payload) => payload.clone(),
            // Whoever asked is told, and does not wait in vain.
            Err(why) => {
                encode(&self.service, &Message::new(&About::nothing(), &Refusal { why: why.to_string() }))?
            }
        };
        self.nats.need_connection(PATIENCE).await?;
        let sent = self.nats.client.publish(self.to, payload).await;
        sent.map_err(|why| BusError::Unreachable(chain(&why)))?;
        encoded.map(|_| ())
    }
}

pub(crate) async fn serve(nats: &Arc<Nats>, service: &Service) -> Result<Box<dyn Requests>, BusError> {
    nats.need_connection(PATIENCE).await?;
    let name = service.name().to_owned();
    let subject = format!("{}.s.{name}", nats.settings.namespace);
    let subscriber = nats.client.queue_subscribe(subject, GROUP.into()).await;
    let subscriber = subscriber.map_err(|why| BusError::Unreachable(chain(&why)))?;
    nats.round_trip().await?;
    Ok(Box::new(NatsRequests { nats: nats.clone(), name, subscriber }))
}

pub(crate) async fn broadcast(nats: &Nats, topic: &Topic, message: Message) -> Result<(), BusError> {
    let payload = encode(topic.name(), &message)?;
    nats.need_connection(PATIENCE).await?;
    let subject = format!("{}.t.{}", nats.settings.namespace, topic.name());
    nats.client.publish(subject, payload).await.map_err(|why| BusError::Unreachable(chain(&why)))
}

struct NatsBroadcasts {
    topic: String,
    subscriber: Subscriber,
}

#[async_trait]
impl Broadcasts for NatsBroadcasts {
    async fn next(&mut self) -> Result<Message, BusError> {
        loop {
            let heard = self.subscriber.next().await.ok_or_else(gone)?;
            match Message::from_bytes(heard.payload) {
                Ok(message) => return Ok(message),
                Err(why) => {
                    tracing::warn!(topic = self.topic, %why, "a broadcast that cannot be read was dropped")
                }
            }
        }
    }
}

pub(crate) async fn subscribe(nats: &Nats, topic: &Topic) -> Result<Box<dyn Broadcasts>, BusError> {
    nats.need_connection(PATIENCE).await?;
    let subject = format!("{}.t.{}", nats.settings.namespace, topic.name());
    let subscriber =
        nats.client.subscribe(subject).await.map_err(|why| BusError::Unreachable(chain(&why)))?;
    nats.round_trip().await?;
    Ok(Box::new(NatsBroadcasts { topic: topic.name().to_owned(), subscriber }))
}
