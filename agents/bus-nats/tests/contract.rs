//! The contract of the bus, on a real nats-server: calm, with faults, and restarted in the middle.

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use agent::bus::{Bus, Deliveries, Delivery, Queue, Service, Topic};
use agent::contract::bus as contract;
use agent::faults::bus::{BusFaults, FaultyBus, Injected};
use bus_nats::NatsBus;
use schema::messages::{About, Message, WhoIsThere};
use support::Server;

fn message(label: u64) -> Message {
    Message::with_body(&About::nothing(), &WhoIsThere { reply: label.to_string() }, vec![1; 4 << 10].into())
}

fn label(delivery: &Delivery) -> u64 {
    delivery.message.read::<WhoIsThere>().expect("one of ours").reply.parse().expect("a number")
}

async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(Duration::from_secs(60), future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: not within a minute"),
    }
}

async fn next(deliveries: &mut Box<dyn Deliveries>) -> Delivery {
    within("a delivery", deliveries.next()).await.expect("a delivery")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_keeps_the_contract() {
    let server = Server::start();
    contract::all(&support::fixture(&server).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_wrapper_over_nats_keeps_the_contract() {
    let server = Server::start();
    let mut fixture = support::fixture(&server).await;
    let environment = fixture.environment.clone();
    let near = FaultyBus::<dyn Bus>::new(fixture.near.clone(), environment, BusFaults::default());
    fixture.far = Arc::new(near.beside(fixture.far.clone()));
    fixture.near = Arc::new(near.clone());
    contract::all(&fixture).await;
    assert_eq!(near.injected(), Injected::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doubled_late_and_unacknowledged_messages_arrive_at_least_once() {
    let server = Server::start();
    let mut fixture = support::fixture(&server).await;
    let faults = BusFaults {
        seed: 7,
        publish_doubled: 200,
        publish_late: 300,
        late_max: Duration::from_millis(50),
        done_lost: 300,
        ..BusFaults::default()
    };
    let near = FaultyBus::<dyn Bus>::new(fixture.near.clone(), fixture.environment.clone(), faults);
    fixture.far = Arc::new(near.beside(fixture.far.clone()));
    fixture.near = Arc::new(near.clone());
    contract::at_least_once(&fixture, 200).await;
    let injected = near.injected();
    assert!(
        injected.publish_doubled > 0 && injected.publish_late > 0 && injected.done_lost > 0,
        "{injected:?}"
    );
    near.quiet();
    contract::at_least_once(&fixture, 50).await;
    contract::done_is_final(&fixture).await;
    assert_eq!(near.injected(), injected);
}

/// Publishes numbers without end, and says how many were accepted.
async fn publish_numbers(bus: Arc<NatsBus>, queue: Queue, published: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        bus.publish(&queue, message(number)).await.expect("published");
        number += 1;
        published.store(number, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishers_and_consumers_go_on_after_a_restart_that_lost_memory_streams() {
    let mut server = Server::start();
    let (near, far) = (support::connect(&server).await, support::connect(&server).await);
    let queue = Queue::reads("host");
    let (published, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let publisher =
        tokio::spawn(publish_numbers(near.clone(), queue.clone(), published.clone(), stop.clone()));
    let mut deliveries = far.consume(&queue, 4 << 20).await.unwrap();
    for _round in 0..2 {
        for _ in 0..50 {
            next(&mut deliveries).await.ticket.done().await.unwrap();
        }
        server.kill();
        server.start_again();
        let accepted_before = published.load(Ordering::SeqCst);
        // Later messages flow, to the consumer that was there before.
        loop {
            let delivery = next(&mut deliveries).await;
            let number = label(&delivery);
            delivery.ticket.done().await.unwrap();
            if number > accepted_before + 50 {
                break;
            }
        }
    }
    stop.store(true, Ordering::SeqCst);
    let drain = tokio::spawn(async move {
        loop {
            next(&mut deliveries).await.ticket.done().await.unwrap();
        }
    });
    within("the publisher's end", publisher).await.unwrap();
    drain.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_consumers_of_all_kinds_notice_a_restart() {
    let mut server = Server::start();
    let (near, far) = (support::connect(&server).await, support::connect(&server).await);
    let (bulk, single) = (Queue::extents("pool"), Queue::reads("host"));
    let mut bulk_deliveries = far.consume(&bulk, 4 << 20).await.unwrap();
    let mut single_deliveries = far.consume(&single, 1).await.unwrap();
    let service = Service::index(0);
    let mut requests = far.serve(&service).await.unwrap();
    let mut listener = far.subscribe(&Topic::flush()).await.unwrap();
    server.kill();
    server.start_again();

    near.publish(&bulk, message(1)).await.unwrap();
    assert_eq!(label(&next(&mut bulk_deliveries).await), 1);
    near.publish(&single, message(2)).await.unwrap();
    assert_eq!(label(&next(&mut single_deliveries).await), 2);
    tokio::spawn(async move {
        let request = requests.next().await.unwrap();
        request.reply.send(message(4)).await.unwrap();
    });
    let asked = async {
        // Until the server has reconnected, nobody serves.
        while near.request(&service, message(3), Duration::from_secs(5)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("an answer", asked).await;
    near.broadcast(&Topic::flush(), message(5)).await.unwrap();
    assert_eq!(within("a broadcast", listener.next()).await.unwrap(), message(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settling_from_before_a_restart_does_not_settle_a_new_message() {
    let mut server = Server::start();
    let (near, far) = (support::connect(&server).await, support::connect(&server).await);
    let queue = Queue::reads("host");
    near.publish(&queue, message(1)).await.unwrap();
    let mut deliveries = far.consume(&queue, 4 << 20).await.unwrap();
    let old = next(&mut deliveries).await;
    server.kill();
    server.start_again();

    // The new stream counts from one again: this message has the old one's number.
    near.publish(&queue, message(2)).await.unwrap();
    let new = next(&mut deliveries).await;
    assert_eq!(label(&new), 2);
    assert!(old.ticket.extend().await.is_err());
    old.ticket.done().await.unwrap();
    drop(new.ticket);
    let again = next(&mut deliveries).await;
    assert_eq!((label(&again), again.attempt), (2, 2));
    again.ticket.done().await.unwrap();
}

/// Neither is on its queue any more, and only one of them was handled by somebody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_a_restart_lost_is_told_from_one_that_was_settled() {
    let mut server = Server::start();
    let bus = support::connect(&server).await;
    let queue = Queue::reads("host");
    let mut deliveries = bus.consume(&queue, 4 << 20).await.unwrap();
    let mut standings = Vec::new();
    for number in 0..2 {
        bus.publish(&queue, message(number)).await.unwrap();
        let delivery = next(&mut deliveries).await;
        let standing = delivery.ticket.standing().unwrap();
        assert!(standing.is_queued().await.unwrap() && !standing.is_lost().await.unwrap());
        match number {
            0 => delivery.ticket.confirmed().await.unwrap(),
            _ => delivery.ticket.leave(),
        }
        standings.push(standing);
    }
    assert!(!standings[0].is_queued().await.unwrap() && !standings[0].is_lost().await.unwrap());
    server.kill();
    server.start_again();
    assert!(!standings[1].is_queued().await.unwrap() && standings[1].is_lost().await.unwrap());
}

/// A server whose files were put back to what they were has the stream, and knows nothing of what came later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_came_after_what_a_server_was_put_back_to_is_lost() {
    let mut server = Server::start();
    let bus = support::connect(&server).await;
    let queue = Queue::restores("host");
    bus.publish(&queue, message(0)).await.unwrap();
    let mut deliveries = bus.consume(&queue, 4 << 20).await.unwrap();
    next(&mut deliveries).await.ticket.confirmed().await.unwrap();
    server.kill();
    let copy = server.copied();
    server.start_again();
    bus.publish(&queue, message(1)).await.unwrap();
    let late = next(&mut deliveries).await;
    let standing = late.ticket.standing().unwrap();
    assert!(standing.is_queued().await.unwrap() && !standing.is_lost().await.unwrap());
    server.kill();
    server.put_back(copy);
    server.start_again();
    assert!(!standing.is_queued().await.unwrap() && standing.is_lost().await.unwrap());
    late.ticket.leave();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_survive_a_restart_and_so_does_settling_them() {
    let mut server = Server::start();
    let bus = support::connect(&server).await;
    for number in 0..3 {
        bus.publish(&Queue::jobs(), message(number)).await.unwrap();
    }
    let mut deliveries = bus.consume(&Queue::jobs(), 1).await.unwrap();
    let first = next(&mut deliveries).await;
    let mut left = BTreeSet::from([0, 1, 2]);
    left.remove(&label(&first));
    server.kill();
    server.start_again();
    // The killed server may have forgotten that it delivered the first one, and deliver it before it hears that it is
    // settled: once, and never after that.
    let mut early = BTreeSet::from([label(&first)]);
    first.ticket.done().await.unwrap();
    while !left.is_empty() {
        let delivery = next(&mut deliveries).await;
        let known = left.remove(&label(&delivery)) || early.remove(&label(&delivery));
        assert!(known, "{} came again", label(&delivery));
        delivery.ticket.done().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_window_leaves_jobs_to_others() {
    let server = Server::start();
    let (near, far) = (support::connect(&server).await, support::connect(&server).await);
    let mut busy = near.consume(&Queue::jobs(), 1).await.unwrap();
    near.publish(&Queue::jobs(), message(1)).await.unwrap();
    let mine = next(&mut busy).await;
    near.publish(&Queue::jobs(), message(2)).await.unwrap();
    let mut idle = far.consume(&Queue::jobs(), 1).await.unwrap();
    let other = next(&mut idle).await;
    assert_eq!((label(&mine), label(&other)), (1, 2));
    // The window is one byte: no second message before the first is settled.
    near.publish(&Queue::jobs(), message(3)).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(300), busy.next()).await.is_err());
    mine.ticket.done().await.unwrap();
    assert_eq!(label(&next(&mut busy).await), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn window_bounds_what_is_unsettled() {
    let server = Server::start();
    let bus = support::connect(&server).await;
    let queue = Queue::extents("pool");
    let big =
        Message::with_body(&About::nothing(), &WhoIsThere { reply: "0".into() }, vec![1; 900_000].into());
    for _ in 0..12 {
        bus.publish(&queue, big.clone()).await.unwrap();
    }
    let mut deliveries = bus.consume(&queue, 4_000_000).await.unwrap();
    let mut held = Vec::new();
    while let Ok(delivery) = tokio::time::timeout(Duration::from_millis(500), deliveries.next()).await {
        held.push(delivery.unwrap());
    }
    assert!((3..=4).contains(&held.len()), "{} messages of 900 kB in a window of 4 MB", held.len());
    let mut settled = 0;
    while settled < 12 {
        if held.is_empty() {
            held.push(next(&mut deliveries).await);
        }
        held.pop().unwrap().ticket.done().await.unwrap();
        settled += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_kept_alive_and_what_is_forgotten_comes_again() {
    let server = Server::start();
    let mut settings = support::settings(&server);
    settings.ack_wait = Duration::from_secs(1);
    let bus = NatsBus::connect(settings).await.unwrap();
    let queue = Queue::reads("host");
    let mut deliveries = bus.consume(&queue, 4 << 20).await.unwrap();
    for number in 0..5 {
        bus.publish(&queue, message(number)).await.unwrap();
    }
    let mut first = next(&mut deliveries).await;
    let forgotten = label(&first);
    // A handler that takes several times the ack wait, without a word.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let mut seen = BTreeSet::new();
    for _ in 0..5 {
        let delivery = next(&mut deliveries).await;
        assert_eq!(delivery.attempt > 1, label(&delivery) == forgotten, "attempt {}", delivery.attempt);
        seen.insert(label(&delivery));
        match label(&delivery) == forgotten {
            true => first = delivery,
            false => delivery.ticket.done().await.unwrap(),
        }
    }
    assert_eq!(seen.len(), 5);
    first.ticket.done().await.unwrap();
}

/// Two have the same message: one took so long that it came again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_slow_hears_that_another_has_settled_it() {
    let server = Server::start();
    let mut settings = support::settings(&server);
    settings.ack_wait = Duration::from_secs(1);
    let (slow, other) =
        (NatsBus::connect(settings.clone()).await.unwrap(), NatsBus::connect(settings).await.unwrap());
    let queue = Queue::restores("host");
    slow.publish(&queue, message(1)).await.unwrap();
    let mut deliveries = slow.consume(&queue, 1).await.unwrap();
    let first = next(&mut deliveries).await;
    let mut others = other.consume(&queue, 1).await.unwrap();
    let second = next(&mut others).await;
    assert_eq!((label(&second), second.attempt), (1, 2));
    let standing = first.ticket.standing().unwrap();
    assert!(standing.is_queued().await.unwrap());
    second.ticket.confirmed().await.unwrap();
    assert!(!standing.is_queued().await.unwrap());
    first.ticket.leave();
}
