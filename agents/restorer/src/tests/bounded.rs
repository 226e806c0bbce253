//! Requests to the store that many restores share: by two agents of one host, which help each other, and by a command.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use agent::Queue;
use schema::messages::{About, JobOutcome, Message, RestoreJob};
use schema::root::Root;

use super::asked::job;
use super::fixture::{Fixture, noise};
use super::sharing::{Agents, LEAVES, MIB, content, done};
use crate::{Budget, Target};

/// Milliseconds that the store takes for a request, so that the next ones meet it.
const SLOW: u64 = 500;

/// By an agent, within its share.
async fn by_agent(fixture: &Fixture, budget: &Budget, number: usize, root: &Root, path: &Path) {
    let share = budget.share(number).await.unwrap();
    let fetches = Some(share.most() as u32);
    let order = RestoreJob { fetches, ..job(fixture, root, path) };
    let id = order.job;
    let message = Message::new(&About::nothing(), &order);
    fixture.context.bus.publish(&Queue::restores("host"), message).await.unwrap();
    let outcome = done(fixture, id).await;
    assert!(matches!(outcome, JobOutcome::Restored { .. }), "{outcome:?}");
}

/// By the command itself.
async fn by_us(fixture: &Fixture, budget: &Budget, number: usize, root: &Root, path: &Path) {
    let share = budget.share(number).await.unwrap();
    let target = Target::new(path, false).fetching(Some(share.most()));
    fixture.restorer().restore(root.clone(), target, |_| ()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn agents_and_the_command_together_have_what_they_share_and_no_more() {
    let fixture = Fixture::encrypted().await;
    let content = content();
    let root = fixture.volume(&content).await;
    let agents = Agents::start(&fixture, 2);
    fixture.slow.store(SLOW, Ordering::Relaxed);
    // Without shares, each would have the three that its own settings allow. Of two, one restore has to wait.
    for requests in [5, 2] {
        fixture.in_flight.most.store(0, Ordering::Relaxed);
        let budget = Budget::new(requests, 3);
        let paths = [0, 1, 2].map(|number| fixture.path(&format!("{requests}-{number}")));
        tokio::join!(
            by_agent(&fixture, &budget, 0, &root, &paths[0]),
            by_agent(&fixture, &budget, 1, &root, &paths[1]),
            by_us(&fixture, &budget, 2, &root, &paths[2]),
        );
        assert_eq!(fixture.in_flight.most.load(Ordering::Relaxed), requests as u64);
        assert!(paths.iter().all(|path| std::fs::read(path).unwrap() == content));
    }
    assert!(agents.written().iter().all(|bytes| *bytes > 0), "{:?}", agents.written());
    agents.stop(&fixture).await;
}

#[tokio::test(start_paused = true)]
async fn who_helps_has_a_part_of_what_the_owner_was_given() {
    let fixture = Fixture::plain().await;
    let content = content();
    let root = fixture.volume(&content).await;
    let agents = Agents::start(&fixture, 2);
    fixture.slow.store(SLOW, Ordering::Relaxed);
    for requests in [1, 2, 3] {
        fixture.in_flight.most.store(0, Ordering::Relaxed);
        let (before, path) = (agents.written(), fixture.path(&requests.to_string()));
        by_agent(&fixture, &Budget::new(requests, 1), 0, &root, &path).await;
        assert_eq!(fixture.in_flight.most.load(Ordering::Relaxed), requests as u64);
        assert!(std::fs::read(&path).unwrap() == content);
        let by: Vec<u64> = agents.written().iter().zip(before).map(|(now, before)| now - before).collect();
        assert_eq!(by.iter().sum::<u64>(), (LEAVES * MIB) as u64);
        // One request cannot be divided.
        assert_eq!(by.iter().all(|bytes| *bytes > 0), requests > 1, "{requests}: {by:?}");
    }
    agents.stop(&fixture).await;
}

#[tokio::test(start_paused = true)]
async fn a_restore_that_waits_for_its_few_requests_leaves_memory_to_others() {
    let fixture = Fixture::plain().await;
    let content = noise(1, 16 * MIB);
    let root = fixture.volume(&content).await;
    let restorer = fixture.restorer();
    fixture.slow.store(SLOW, Ordering::Relaxed);
    let [few, many] = ["few", "many"].map(|name| fixture.path(name));
    let with_few = restorer.restore(root.clone(), Target::new(&few, false).fetching(Some(1)), |_| ());
    let with_many = async {
        // The other one has begun, and has as much in flight as it may: its third of the requests, and of the memory.
        fixture.context.environment.sleep(Duration::from_millis(6 * SLOW)).await;
        let free = restorer.turns.memory.available_permits() as u64;
        assert!((restorer.turns.bytes / 2..restorer.turns.bytes).contains(&free), "{free} bytes are free");
        restorer.restore(root.clone(), Target::new(&many, false), |_| ()).await.unwrap();
    };
    let (done, ()) = tokio::join!(with_few, with_many);
    done.unwrap();
    assert!([few, many].iter().all(|path| std::fs::read(path).unwrap() == content));
}
