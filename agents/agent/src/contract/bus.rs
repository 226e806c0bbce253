//! The promises of a [`Bus`], one function each; [`all`] runs them one after the other.
//!
//! A fixture hands in two handles on one bus: clones in one process, two connections to one server. Nothing here
//! depends on the order of messages. Queues are named from the fixture's randomness, so that a bus with old
//! messages on it may be used; only [`full_queue_waits`] needs [`Queue::chunks`] to itself.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use schema::limits::MESSAGE_MAX;
use schema::messages::{About, Message, Refusal, WhoIsThere};
use tokio::task::JoinSet;

use crate::Environment;
use crate::bus::{Bus, BusError, Deliveries, Queue, Requests, Service, Topic};

/// What [`Queue::chunks`] must hold in the bus under test, in bytes.
pub const FULL_QUEUE: usize = 256 << 10;

/// Consumers here ask for this window, in bytes.
const WINDOW: usize = 4 << 20;

/// A bus under test.
#[derive(Debug, Clone)]
pub struct Fixture {
    /// One handle.
    pub near: Arc<dyn Bus>,
    /// Another handle on the same bus; another connection where there are connections.
    pub far: Arc<dyn Bus>,
    /// Clock and randomness.
    pub environment: Arc<dyn Environment>,
    /// How long something that must happen may take.
    pub patience: Duration,
    /// How long to look for something that must not happen. A broken promise may be missed when this is too short;
    /// a kept one never fails.
    pub pause: Duration,
}

impl Fixture {
    async fn within<F: Future>(&self, what: &str, future: F) -> F::Output {
        match self.environment.timeout(self.patience, future).await {
            Some(output) => output,
            None => panic!("{what}: not within {:?}", self.patience),
        }
    }

    async fn never<F: Future>(&self, future: F) -> Option<F::Output> {
        self.environment.timeout(self.pause, future).await
    }

    fn name(&self, stem: &str) -> String {
        format!("{stem}-{:016x}", u64::from_le_bytes(self.environment.random()))
    }

    async fn publish(&self, queue: &Queue, message: Message) {
        self.within("publish", self.near.publish(queue, message)).await.expect("a message is published");
    }

    async fn consume(&self, bus: &Arc<dyn Bus>, queue: &Queue) -> Box<dyn Deliveries> {
        self.within("consume", bus.consume(queue, WINDOW)).await.expect("a queue is taken up")
    }
}

fn labelled(label: impl ToString, body: impl Into<Bytes>) -> Message {
    Message::with_body(&About::nothing(), &WhoIsThere { reply: label.to_string() }, body.into())
}

fn label(message: &Message) -> String {
    message.read::<WhoIsThere>().expect("the message is one of the suite's").reply
}

/// Runs every promise.
pub async fn all(fixture: &Fixture) {
    messages_arrive_whole(fixture).await;
    each_goes_to_one(fixture).await;
    dropped_comes_again(fixture).await;
    confirmed_is_over(fixture).await;
    again_comes_later(fixture).await;
    settled_is_not_queued(fixture).await;
    done_is_final(fixture).await;
    held_tickets_do_not_stop_the_rest(fixture).await;
    full_queue_waits(fixture).await;
    retired_queue_is_empty(fixture).await;
    odd_names_stay_apart(fixture).await;
    request_is_answered(fixture).await;
    refusal_is_an_error(fixture).await;
    nobody_serving_is_transient(fixture).await;
    servers_share_requests(fixture).await;
    broadcast_reaches_all(fixture).await;
}

/// What is published before anybody takes it is kept, and arrives byte for byte.
pub async fn messages_arrive_whole(fixture: &Fixture) {
    let queue = Queue::extents(&fixture.name("whole"));
    let mut sent = BTreeMap::new();
    for len in [0, 1, 4095, 64 << 10, MESSAGE_MAX - 256] {
        let body: Vec<u8> = (0..len).map(|at| (at * 31 + len) as u8).collect();
        let message = labelled(len, body);
        fixture.publish(&queue, message.clone()).await;
        sent.insert(label(&message), message);
    }
    let mut deliveries = fixture.consume(&fixture.far, &queue).await;
    while !sent.is_empty() {
        let delivery = fixture.within("a delivery", deliveries.next()).await.expect("a delivery");
        assert_eq!(delivery.attempt, 1);
        assert_eq!(sent.remove(&label(&delivery.message)), Some(delivery.message));
        delivery.ticket.done().await.expect("settled");
    }
}

/// Each message goes to one of several consumers.
pub async fn each_goes_to_one(fixture: &Fixture) {
    const MESSAGES: usize = 40;
    let queue = Queue::reads(&fixture.name("shared"));
    let mut here = fixture.consume(&fixture.near, &queue).await;
    let mut there = fixture.consume(&fixture.far, &queue).await;
    for number in 0..MESSAGES {
        fixture.publish(&queue, labelled(number, "")).await;
    }
    let mut seen = BTreeMap::<String, usize>::new();
    for _ in 0..MESSAGES {
        let next = async {
            tokio::select! {
                next = here.next() => next,
                next = there.next() => next,
            }
        };
        let delivery = fixture.within("a delivery", next).await.expect("a delivery");
        *seen.entry(label(&delivery.message)).or_default() += 1;
        delivery.ticket.done().await.expect("settled");
    }
    assert_eq!(seen.len(), MESSAGES, "a message came twice: {seen:?}");
    let more = async {
        tokio::select! {
            next = here.next() => next,
            next = there.next() => next,
        }
    };
    assert!(fixture.never(more).await.is_none(), "a settled message came again");
}

/// A delivery whose ticket was dropped comes again, and says so.
pub async fn dropped_comes_again(fixture: &Fixture) {
    let queue = Queue::reads(&fixture.name("dropped"));
    fixture.publish(&queue, labelled("it", "body")).await;
    let mut deliveries = fixture.consume(&fixture.far, &queue).await;
    let first = fixture.within("the first delivery", deliveries.next()).await.expect("a delivery");
    assert_eq!(first.attempt, 1);
    drop(first.ticket);
    let second = fixture.within("the second delivery", deliveries.next()).await.expect("a delivery");
    assert_eq!((second.attempt, &second.message), (2, &first.message));
    second.ticket.done().await.expect("settled");
}

/// A delivery whose settling is confirmed never comes again.
pub async fn confirmed_is_over(fixture: &Fixture) {
    let queue = Queue::reads(&fixture.name("confirmed"));
    fixture.publish(&queue, labelled("it", "body")).await;
    let mut deliveries = fixture.consume(&fixture.far, &queue).await;
    let first = fixture.within("the delivery", deliveries.next()).await.expect("a delivery");
    fixture.within("confirmed", first.ticket.confirmed()).await.expect("settled");
    assert!(fixture.never(deliveries.next()).await.is_none(), "it came again");
}

/// A message is on its queue until it is settled, however often it was delivered, and not when its queue was retired;
/// that it is not does not make it lost.
pub async fn settled_is_not_queued(fixture: &Fixture) {
    let queue = Queue::session(fixture.environment.session_id());
    let mut deliveries = fixture.consume(&fixture.far, &queue).await;
    for is_retired in [false, true] {
        fixture.publish(&queue, labelled("it", "body")).await;
        let first = fixture.within("the first delivery", deliveries.next()).await.expect("a delivery");
        drop(first.ticket);
        let second = fixture.within("the second delivery", deliveries.next()).await.expect("a delivery");
        let standing = second.ticket.standing().expect("a ticket");
        let is_queued = async || fixture.within("an answer", standing.is_queued()).await.expect("an answer");
        assert!(is_queued().await, "it is not settled yet");
        match is_retired {
            false => fixture.within("confirmed", second.ticket.confirmed()).await.expect("settled"),
            true => fixture.within("retire", fixture.near.retire(&queue)).await.expect("retired"),
        }
        assert!(!is_queued().await, "is retired: {is_retired}");
        let is_lost = fixture.within("an answer", standing.is_lost()).await.expect("an answer");
        assert!(!is_lost, "the bus has lost nothing");
    }
}

/// A delivery that is put off comes again, and says so.
pub async fn again_comes_later(fixture: &Fixture) {
    let queue = Queue::reads(&fixture.name("again"));
    fixture.publish(&queue, labelled("it", "body")).await;
    let mut deliveries = fixture.consume(&fixture.far, &queue).await;
    let first = fixture.within("the first delivery", deliveries.next()).await.expect("a delivery");
    fixture.within("again", first.ticket.again(Duration::from_millis(20))).await.expect("settled");
    let second = fixture.within("the second delivery", deliveries.next()).await.expect("a delivery");
    assert_eq!((second.attempt, &second.message), (2, &first.message));
    second.ticket.done().await.expect("settled");
}

/// What is done never comes again, to nobody.
pub async fn done_is_final(fixture: &Fixture) {
    let queue = Queue::reads(&fixture.name("done"));
    fixture.publish(&queue, labelled("it", "body")).await;
    let mut deliveries = fixture.consume(&fixture.far, &queue).await;
    let first = fixture.within("the delivery", deliveries.next()).await.expect("a delivery");
    first.ticket.extend().await.expect("extended");
    first.ticket.done().await.expect("settled");
    assert!(fixture.never(deliveries.next()).await.is_none(), "a settled message came again");
    drop(deliveries);
    let mut others = fixture.consume(&fixture.near, &queue).await;
    assert!(fixture.never(others.next()).await.is_none(), "a settled message came again to another");
}

/// A consumer may keep tickets, within its window, while more deliveries come.
pub async fn held_tickets_do_not_stop_the_rest(fixture: &Fixture) {
    const MESSAGES: usize = 20;
    let queue = Queue::extents(&fixture.name("held"));
    for number in 0..MESSAGES {
        fixture.publish(&queue, labelled(number, vec![7; 64 << 10])).await;
    }
    let mut deliveries = fixture.consume(&fixture.far, &queue).await;
    let mut held = Vec::new();
    for _ in 0..MESSAGES {
        held.push(fixture.within("a delivery", deliveries.next()).await.expect("a delivery"));
    }
    for delivery in held {
        delivery.ticket.extend().await.expect("extended");
        delivery.ticket.done().await.expect("settled");
    }
    assert!(fixture.never(deliveries.next()).await.is_none(), "a settled message came again");
}

/// A full queue makes the publisher wait, until something is settled.
pub async fn full_queue_waits(fixture: &Fixture) {
    const BODY: usize = 60 << 10;
    let queue = Queue::chunks();
    let mut published = 0;
    loop {
        let mut publish = pin!(fixture.near.publish(&queue, labelled(published, vec![1; BODY])));
        published += 1;
        if let Some(result) = fixture.never(&mut publish).await {
            result.expect("a message is published");
            assert!(
                published * BODY <= FULL_QUEUE,
                "{published} messages of {BODY} bytes do not fill the queue"
            );
            continue;
        }
        let mut deliveries = fixture.consume(&fixture.far, &queue).await;
        let first = fixture.within("a delivery", deliveries.next()).await.expect("a delivery");
        assert!(fixture.never(&mut publish).await.is_none(), "a delivery that is not settled made room");
        first.ticket.done().await.expect("settled");
        fixture.within("the publisher that waited", &mut publish).await.expect("a message is published");
        for _ in 1..published {
            let next = fixture.within("a delivery", deliveries.next()).await.expect("a delivery");
            next.ticket.done().await.expect("settled");
        }
        assert!(published > 2, "the queue holds too little to show anything");
        return;
    }
}

/// A retired queue drops what is left and ends its consumers; it may be taken up again.
pub async fn retired_queue_is_empty(fixture: &Fixture) {
    let queue = Queue::session(fixture.environment.session_id());
    let mut deliveries = fixture.consume(&fixture.far, &queue).await;
    for number in 0..3 {
        fixture.publish(&queue, labelled(number, "left over")).await;
    }
    let first = fixture.within("a delivery", deliveries.next()).await.expect("a delivery");
    first.ticket.done().await.expect("settled");
    fixture.within("retire", fixture.near.retire(&queue)).await.expect("retired");
    let end = async { while deliveries.next().await.is_ok() {} };
    fixture.within("the end of a retired queue's consumer", end).await;
    drop(deliveries);

    fixture.publish(&queue, labelled("after", "")).await;
    let mut deliveries = fixture.consume(&fixture.near, &queue).await;
    let only = fixture.within("a delivery", deliveries.next()).await.expect("a delivery");
    assert_eq!(label(&only.message), "after");
    only.ticket.done().await.expect("settled");
    drop(deliveries);
    fixture.within("retire", fixture.near.retire(&queue)).await.expect("retired");
    fixture.within("retire twice", fixture.near.retire(&queue)).await.expect("retiring twice is no error");
}

/// Names of hosts may hold anything, and different ones stay different.
pub async fn odd_names_stay_apart(fixture: &Fixture) {
    let stem = fixture.name("odd");
    let names = ["a.b", "a=2eb", "a b", "*", ">", "$x/\\y", "h\u{f6}st", "\n", "A.B"];
    let queues: Vec<Queue> = names.iter().map(|name| Queue::reads(&format!("{stem}{name}"))).collect();
    for (name, queue) in names.iter().zip(&queues) {
        fixture.publish(queue, labelled(name, "")).await;
    }
    for (name, queue) in names.iter().zip(&queues) {
        let mut deliveries = fixture.consume(&fixture.far, queue).await;
        let delivery = fixture.within("a delivery", deliveries.next()).await.expect("a delivery");
        assert_eq!(label(&delivery.message), *name);
        delivery.ticket.done().await.expect("settled");
    }
}

fn service(fixture: &Fixture) -> Service {
    Service::conductor(fixture.environment.session_id())
}

async fn answer_all(mut requests: Box<dyn Requests>, server: &'static str) {
    while let Ok(request) = requests.next().await {
        let body = [server.as_bytes(), b" ", &request.message.body].concat();
        let answer = labelled(label(&request.message), body);
        // Whoever asked may be gone.
        let _ = request.reply.send(answer).await;
    }
}

/// A request gets the server's answer.
pub async fn request_is_answered(fixture: &Fixture) {
    let service = service(fixture);
    let requests = fixture.within("serve", fixture.far.serve(&service)).await.expect("served");
    let mut servers = JoinSet::new();
    servers.spawn(answer_all(requests, "one"));
    for body in [&b""[..], b"question", &[5; 300 << 10]] {
        let question = labelled(body.len(), body.to_vec());
        let answer = fixture.near.request(&service, question, fixture.patience).await.expect("an answer");
        assert_eq!(label(&answer), body.len().to_string());
        assert_eq!(answer.body, [b"one ", body].concat());
    }
}

/// A server that says no is an error that trying again does not help.
pub async fn refusal_is_an_error(fixture: &Fixture) {
    let service = service(fixture);
    let mut requests = fixture.within("serve", fixture.far.serve(&service)).await.expect("served");
    let mut servers = JoinSet::new();
    servers.spawn(async move {
        while let Ok(request) = requests.next().await {
            let refusal = Message::new(&About::nothing(), &Refusal { why: "not on a Sunday".into() });
            let _ = request.reply.send(refusal).await;
        }
    });
    match fixture.near.request(&service, labelled("it", ""), fixture.patience).await {
        Err(BusError::Refused { service: who, why }) => {
            assert_eq!((who.as_str(), why.as_str()), (service.name(), "not on a Sunday"));
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// Where nobody serves, asking fails, and asking again later may help.
pub async fn nobody_serving_is_transient(fixture: &Fixture) {
    let service = service(fixture);
    let asked = fixture.near.request(&service, labelled("it", ""), fixture.pause);
    match fixture.within("a request that nobody serves", asked).await {
        Err(why @ BusError::NoAnswer { .. }) => assert!(why.is_transient()),
        other => panic!("expected no answer, got {other:?}"),
    }
}

/// Several servers share the requests; each is answered once.
pub async fn servers_share_requests(fixture: &Fixture) {
    let service = service(fixture);
    let mut servers = JoinSet::new();
    for (bus, name) in [(&fixture.near, "one"), (&fixture.far, "two")] {
        let requests = fixture.within("serve", bus.serve(&service)).await.expect("served");
        servers.spawn(answer_all(requests, name));
    }
    for number in 0..20 {
        let answer =
            fixture.near.request(&service, labelled(number, "q"), fixture.patience).await.expect("an answer");
        assert_eq!(label(&answer), number.to_string());
        assert!(answer.body == "one q" || answer.body == "two q");
    }
}

/// A broadcast reaches everybody who listens, and nobody else; a listener hears what is sent after it subscribed.
pub async fn broadcast_reaches_all(fixture: &Fixture) {
    let topic = Topic::roll_call_reply(&fixture.name("topic"));
    let other = Topic::roll_call_reply(&fixture.name("other"));
    fixture.near.broadcast(&topic, labelled("nobody", "")).await.expect("nobody listening is no error");
    let mut near = fixture.within("subscribe", fixture.near.subscribe(&topic)).await.expect("subscribed");
    let mut far = fixture.within("subscribe", fixture.far.subscribe(&topic)).await.expect("subscribed");
    let mut others = fixture.within("subscribe", fixture.far.subscribe(&other)).await.expect("subscribed");
    fixture.near.broadcast(&topic, labelled("all", "body")).await.expect("broadcast");
    for listener in [&mut near, &mut far] {
        let heard = fixture.within("a broadcast", listener.next()).await.expect("a broadcast");
        assert_eq!(heard, labelled("all", "body"));
    }
    assert!(fixture.never(others.next()).await.is_none(), "a broadcast reached another topic");
}

/// For a bus that may repeat and reorder but not lose: every message arrives, and what is settled stays settled
/// once acknowledgements get through.
pub async fn at_least_once(fixture: &Fixture, messages: usize) {
    let queue = Queue::reads(&fixture.name("at-least-once"));
    for number in 0..messages {
        fixture.publish(&queue, labelled(number, vec![3; 1 << 10])).await;
    }
    let mut deliveries = fixture.consume(&fixture.far, &queue).await;
    let mut seen = BTreeMap::<String, usize>::new();
    while seen.len() < messages {
        let delivery = fixture.within("a delivery", deliveries.next()).await.expect("a delivery");
        *seen.entry(label(&delivery.message)).or_default() += 1;
        delivery.ticket.done().await.expect("settled");
    }
}
