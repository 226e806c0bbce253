//! Near roles are served near, all others over the wire; here the wire is a second bus in the same process.

use std::sync::Arc;
use std::time::Duration;

use agent::bus::{Bus, Queue, Service, Topic};
use agent::local::LocalBus;
use agent::near::{Near, NearBus};
use schema::messages::{About, Flush, Message};

use crate::support::{environment, session_id};

struct Buses {
    near: NearBus,
    local: LocalBus,
    far: LocalBus,
}

fn buses() -> Buses {
    let environment = environment();
    let bus = || LocalBus::new(environment.clone(), 1 << 20);
    let (local, far) = (bus(), bus());
    let places = Near { queues: vec![Queue::chunks()], services: vec![Service::index(0)] };
    Buses { near: NearBus::new(places, local.clone(), Arc::new(far.clone())), local, far }
}

fn message(number: u8) -> Message {
    Message::new(&About::nothing(), &Flush { session: session_id(number) })
}

fn number(message: &Message) -> u8 {
    message.read::<Flush>().unwrap().session.as_bytes()[0]
}

#[tokio::test(start_paused = true)]
async fn only_what_has_no_consumer_here_goes_over_the_wire() {
    let Buses { near, local, far } = buses();
    near.publish(&Queue::chunks(), message(1)).await.unwrap();
    assert!(local.bytes_in(&Queue::chunks()) > 0);
    assert_eq!(far.bytes_in(&Queue::chunks()), 0);
    near.publish(&Queue::jobs(), message(2)).await.unwrap();
    assert_eq!(local.bytes_in(&Queue::jobs()), 0);
    assert!(far.bytes_in(&Queue::jobs()) > 0);
    let mut jobs = near.consume(&Queue::jobs(), 1).await.unwrap();
    assert_eq!(number(&jobs.next().await.unwrap().message), 2);
}

/// Others send from afar to a queue whose consumer is here; neither side waits for the other to be empty.
#[tokio::test(start_paused = true)]
async fn a_near_consumer_takes_from_both_sides_in_turn() {
    let Buses { near, local, far } = buses();
    for (number, bus) in [(1, &local), (2, &local), (3, &local), (11, &far), (12, &far), (13, &far)] {
        bus.publish(&Queue::chunks(), message(number)).await.unwrap();
    }
    let mut deliveries = near.consume(&Queue::chunks(), 1 << 20).await.unwrap();
    let mut taken = Vec::new();
    for _ in 0..6 {
        let delivery = deliveries.next().await.unwrap();
        taken.push(number(&delivery.message));
        delivery.ticket.done().await.unwrap();
    }
    assert_eq!(taken, [1, 11, 2, 12, 3, 13]);
    assert_eq!((local.bytes_in(&Queue::chunks()), far.bytes_in(&Queue::chunks())), (0, 0));

    // One side alone is not held up by the other.
    for number in [21, 22] {
        far.publish(&Queue::chunks(), message(number)).await.unwrap();
        let delivery = deliveries.next().await.unwrap();
        assert_eq!(self::number(&delivery.message), number);
        delivery.ticket.done().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_retired_queue_is_gone_on_both_sides() {
    let Buses { near, local, far } = buses();
    for bus in [&local, &far] {
        bus.publish(&Queue::chunks(), message(1)).await.unwrap();
    }
    near.retire(&Queue::chunks()).await.unwrap();
    assert_eq!((local.bytes_in(&Queue::chunks()), far.bytes_in(&Queue::chunks())), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_near_service_answers_near_and_far() {
    let Buses { near, local: _, far } = buses();
    let mut served = near.serve(&Service::index(0)).await.unwrap();
    tokio::spawn(async move {
        while let Ok(request) = served.next().await {
            let answer = message(number(&request.message) + 100);
            let _ = request.reply.send(answer).await;
        }
    });
    let limit = Duration::from_secs(5);
    for bus in [&near as &dyn Bus, &far as &dyn Bus] {
        let answer = bus.request(&Service::index(0), message(1), limit).await.unwrap();
        assert_eq!(number(&answer), 101);
    }
    // A service that is not here is asked for over the wire.
    let mut other = far.serve(&Service::index(1)).await.unwrap();
    tokio::spawn(async move {
        let request = other.next().await.unwrap();
        request.reply.send(message(7)).await.unwrap();
    });
    assert_eq!(number(&near.request(&Service::index(1), message(1), limit).await.unwrap()), 7);
}

#[tokio::test(start_paused = true)]
async fn broadcasts_reach_near_and_far() {
    let Buses { near, local: _, far } = buses();
    let mut here = near.subscribe(&Topic::flush()).await.unwrap();
    let mut there = far.subscribe(&Topic::flush()).await.unwrap();
    near.broadcast(&Topic::flush(), message(5)).await.unwrap();
    assert_eq!(number(&here.next().await.unwrap()), 5);
    assert_eq!(number(&there.next().await.unwrap()), 5);
}
