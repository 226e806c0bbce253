//! The contract of the bus, on the in-process bus and on the fault wrapper over it.
//!
//! Time is paused: waiting costs nothing, and a wait in vain ends at once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::Environment;
use agent::bus::{Bus, BusError, Queue, Service, Topic};
use agent::contract::bus::{self as contract, Fixture};
use agent::faults::bus::{BusFaults, FaultyBus, Injected};
use agent::local::LocalBus;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use schema::messages::{About, Message, WhoIsThere};

#[derive(Debug)]
struct PausedTime {
    start: tokio::time::Instant,
    random: Mutex<StdRng>,
}

#[allow(clippy::disallowed_methods, reason = "this is the seam, over a paused clock")]
#[async_trait::async_trait]
impl Environment for PausedTime {
    fn now_ms(&self) -> u64 {
        1_700_000_000_000 + self.elapsed().as_millis() as u64
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        self.random.lock().expect("not poisoned").fill_bytes(bytes);
    }
}

fn environment() -> Arc<dyn Environment> {
    let random = Mutex::new(StdRng::seed_from_u64(1));
    Arc::new(PausedTime { start: tokio::time::Instant::now(), random })
}

fn local(environment: &Arc<dyn Environment>) -> Arc<LocalBus> {
    Arc::new(LocalBus::new(environment.clone(), contract::FULL_QUEUE))
}

fn faulty(faults: BusFaults) -> (FaultyBus<LocalBus>, Fixture) {
    let environment = environment();
    let bus = FaultyBus::new(local(&environment), environment.clone(), faults);
    (bus.clone(), fixture(Arc::new(bus), environment))
}

fn fixture(bus: Arc<dyn Bus>, environment: Arc<dyn Environment>) -> Fixture {
    let (patience, pause) = (Duration::from_secs(60), Duration::from_secs(1));
    Fixture { near: bus.clone(), far: bus, environment, patience, pause }
}

fn message(text: &str) -> Message {
    Message::new(&About::nothing(), &WhoIsThere { reply: text.into() })
}

#[tokio::test(start_paused = true)]
async fn in_process_bus_keeps_the_contract() {
    let environment = environment();
    contract::all(&fixture(local(&environment), environment)).await;
}

#[tokio::test(start_paused = true)]
async fn fault_wrapper_without_faults_keeps_the_contract() {
    let (bus, fixture) = faulty(BusFaults::default());
    contract::all(&fixture).await;
    assert_eq!(bus.injected(), Injected::default());
}

#[tokio::test(start_paused = true)]
async fn doubled_late_and_unacknowledged_messages_arrive_at_least_once() {
    for seed in 0..20 {
        let faults = BusFaults {
            seed,
            publish_doubled: 200,
            publish_late: 300,
            late_max: Duration::from_secs(5),
            done_lost: 300,
            ..BusFaults::default()
        };
        let (bus, fixture) = faulty(faults);
        contract::at_least_once(&fixture, 200).await;
        let injected = bus.injected();
        assert!(
            injected.publish_doubled > 0 && injected.publish_late > 0 && injected.done_lost > 0,
            "{injected:?}"
        );
        bus.quiet();
        contract::at_least_once(&fixture, 50).await;
        contract::done_is_final(&fixture).await;
        assert_eq!(bus.injected(), injected, "quiet means no more faults");
    }
}

#[tokio::test(start_paused = true)]
async fn lost_messages_are_counted() {
    let (bus, fixture) = faulty(BusFaults { seed: 3, publish_lost: 250, ..BusFaults::default() });
    let queue = Queue::reads("host");
    let mut missing: BTreeSet<usize> = (0..200).collect();
    for number in 0..200 {
        bus.publish(&queue, message(&number.to_string())).await.unwrap();
    }
    let mut deliveries = bus.consume(&queue, 1 << 20).await.unwrap();
    while let Some(next) = fixture.environment.timeout(fixture.pause, deliveries.next()).await {
        let delivery = next.unwrap();
        missing.remove(&delivery.message.read::<WhoIsThere>().unwrap().reply.parse().unwrap());
        delivery.ticket.done().await.unwrap();
    }
    assert!(!missing.is_empty());
    assert_eq!(missing.len() as u64, bus.injected().publish_lost);
}

#[tokio::test(start_paused = true)]
async fn lost_requests_and_replies_look_like_no_answer() {
    for (request_lost, reply_lost) in [(1000, 0), (0, 1000)] {
        let (bus, fixture) = faulty(BusFaults { seed: 4, request_lost, reply_lost, ..BusFaults::default() });
        let service = Service::index(0);
        let mut requests = bus.serve(&service).await.unwrap();
        let served = tokio::spawn(async move {
            let request = requests.next().await.unwrap();
            request.reply.send(message("answer")).await.unwrap();
        });
        let asked = fixture.environment.elapsed();
        let answer = bus.request(&service, message("question"), fixture.pause).await;
        assert!(matches!(answer, Err(BusError::NoAnswer { .. })), "{answer:?}");
        assert_eq!(fixture.environment.elapsed() - asked, fixture.pause);
        assert_eq!(served.is_finished(), request_lost == 0);
        assert_eq!(bus.injected().total(), 1);
        if request_lost > 0 {
            bus.quiet();
            bus.request(&service, message("question"), fixture.pause).await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn broadcasts_get_lost_and_doubled() {
    let faults = BusFaults { seed: 5, broadcast_lost: 300, broadcast_doubled: 300, ..BusFaults::default() };
    let (bus, fixture) = faulty(faults);
    let mut listener = bus.subscribe(&Topic::flush()).await.unwrap();
    for number in 0..100 {
        bus.broadcast(&Topic::flush(), message(&number.to_string())).await.unwrap();
    }
    let mut heard = 0;
    while fixture.environment.timeout(fixture.pause, listener.next()).await.is_some() {
        heard += 1;
    }
    let injected = bus.injected();
    assert!(injected.broadcast_lost > 0 && injected.broadcast_doubled > 0);
    assert_eq!(heard, 100 - injected.broadcast_lost + injected.broadcast_doubled);
}

#[tokio::test(start_paused = true)]
async fn one_seed_injects_the_same_faults() {
    let mut seen = Vec::new();
    for _ in 0..2 {
        let faults = BusFaults { seed: 6, publish_doubled: 300, done_lost: 300, ..BusFaults::default() };
        let (bus, fixture) = faulty(faults);
        contract::at_least_once(&fixture, 100).await;
        seen.push(bus.injected());
    }
    assert_eq!(seen[0], seen[1]);
    assert!(seen[0].total() > 0);
}
