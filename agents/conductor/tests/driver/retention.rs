//! Policies, applied after sessions that were sealed.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::bus::{BusError, Settle, Ticket};
use agent::faults::store::StoreFaults;
use agent::{Environment, Handler, Stop};
use async_trait::async_trait;
use conductor::Settings;
use conductor::retention::{Policies, Policy, Rules};
use schema::messages::{BackupJob, Group};
use schema::names::Slot;
use schema::{JobId, SessionId};

use crate::support::*;

/// Keeps the newest of every volume.
fn newest() -> Policies {
    let rules = Rules { last: 1, ..Rules::default() };
    Policies::new(vec![Policy { volumes: "*".into(), rules }])
}

/// A job of a group's run; the group has two volumes.
fn member(world: &World, number: u8, run: u8, name: &str) -> BackupJob {
    let members = ["a", "b"].map(|name| format!("/dev/vg/{name}")).to_vec();
    let group = Group { run: JobId::from_bytes([run; 16]), name: "g".into(), members };
    let (source, volume) = (format!("/dev/vg/{name}"), format!("host/dev/vg/{name}"));
    BackupJob { source, volume, group: Some(group), ..world.job(number) }
}

#[tokio::test(start_paused = true)]
async fn a_policy_forgets_what_it_does_not_keep_and_leaves_other_volumes_alone() {
    let world = World::new().await;
    let conductor = world.start_keeping(settings(), newest());
    let other = BackupJob { volume: "host/vg/other".into(), ..world.job(9) };
    let other = world.backup(&other, &[9]).await;
    world.backup(&world.job(1), &[1]).await;
    let last = world.backup(&world.job(2), &[2]).await;
    let mut expected = vec![other.slot, last.slot];
    expected.sort();
    assert_eq!(world.snapshots().await, expected);
    assert_eq!(world.context.counters.snapshots_forgotten.get(), 1);
    conductor.stop().await;
}

/// The first volume of a run has its session before the second one: until then nothing lets the run before go.
#[tokio::test(start_paused = true)]
async fn runs_of_a_group_go_as_a_whole() {
    let world = World::new().await;
    let conductor = world.start_keeping(settings(), newest());
    let mut runs = Vec::new();
    for run in 1..=3 {
        let a = world.backup(&member(&world, 10 + run, run, "a"), &[1]).await;
        let before = world.snapshots().await.len();
        let b = world.backup(&member(&world, 20 + run, run, "b"), &[2]).await;
        runs = vec![a.slot, b.slot];
        assert_eq!((before, world.snapshots().await.len()), (if run == 1 { 1 } else { 3 }, 2));
    }
    runs.sort();
    assert_eq!(world.snapshots().await, runs);
    conductor.stop().await;
}

/// When a delivery was extended.
#[derive(Debug)]
struct Extended {
    environment: Arc<dyn Environment>,
    at: Mutex<Vec<Duration>>,
}

#[async_trait]
impl Settle for Extended {
    async fn done(&self) -> Result<(), BusError> {
        Ok(())
    }

    async fn again(&self, _delay: Duration) -> Result<(), BusError> {
        Ok(())
    }

    async fn extend(&self) -> Result<(), BusError> {
        self.at.lock().unwrap().push(self.environment.elapsed());
        Ok(())
    }

    async fn is_queued(&self) -> Result<bool, BusError> {
        Ok(true)
    }

    fn abandoned(&self) {}
}

/// Whoever was given the job a second time would end its session, and do it all again.
#[tokio::test(start_paused = true)]
async fn a_job_is_nobody_elses_while_a_policy_is_applied() {
    let world = World::new().await;
    let conductor = world.start(settings());
    for number in 1..=40 {
        world.backup(&world.job(number), &[1]).await;
    }
    conductor.stop().await;
    let slow_max = Duration::from_secs(4);
    world.faults.set(StoreFaults { slow: 1000, slow_max, ..StoreFaults::default() });
    let environment = world.context.environment.clone();
    let extended = Arc::new(Extended { environment, at: Mutex::default() });
    // So slow a store is not asked again.
    let patient = Settings { ask_again: Duration::from_secs(3000), ..settings() };
    let mut conductor = world.conductor(patient, newest(), Stop::default());
    let (job, mut ticket) = (world.job(41), Some(Ticket::new(extended.clone())));
    let given = message(&job);
    let (handled, ()) = tokio::join!(conductor.handle(&given, &mut ticket), world.read_all(&[1]));
    handled.unwrap();
    let (ended, ended_ms) = (world.context.environment.elapsed(), world.context.environment.now_ms());
    let last = world.sealed(&job).await;
    assert_eq!(world.snapshots().await, [last.slot]);
    let at = [&extended.at.lock().unwrap()[..], &[ended][..]].concat();
    let longest = at.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(longest < Duration::from_secs(2), "it was left alone for {longest:?}");
    // One after the other, 40 of them take more than twice as long.
    assert!(ended_ms - last.sealed_ms < 150_000, "{} ms", ended_ms - last.sealed_ms);
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_cannot_be_applied_fails_no_backup() {
    let world = World::new().await;
    let conductor = world.start_keeping(settings(), newest());
    // Whether a snapshot of another volume of the run is held is not known.
    let volume = world.repository.key.volume_key("host/dev/vg/b");
    let other = Slot { volume, session: SessionId::from_bytes([7; 16]) };
    let hold = agent::marks::hold(&world.repository, other, None, "a test").await.unwrap();
    world.faults.hide(Some(&other.mark(hold)));
    for run in 1..=2 {
        world.backup(&member(&world, run, run, "a"), &[1]).await;
    }
    assert_eq!(world.context.counters.retentions_failed.get(), 1);
    assert_eq!(world.snapshots().await.len(), 2);
    conductor.stop().await;
}

/// The damaged one stays, and so do the newest and a run that may be the damaged one's.
#[tokio::test(start_paused = true)]
async fn a_damaged_root_keeps_what_may_belong_to_it_and_nothing_else() {
    let world = World::new().await;
    let damage = async |slot: Slot| {
        world.repository.store.put(&slot.snapshot(), "damaged".into()).await.unwrap();
        slot
    };
    let conductor = world.start(settings());
    let alone = world.backup(&world.job(1), &[1]).await.slot;
    let middle = damage(world.backup(&world.job(2), &[2]).await.slot).await;
    let run = world.backup(&member(&world, 10, 1, "a"), &[1]).await.slot;
    let other = damage(world.backup(&member(&world, 20, 1, "b"), &[2]).await.slot).await;
    conductor.stop().await;
    let conductor = world.start_keeping(settings(), newest());
    let newest = world.backup(&world.job(3), &[3]).await.slot;
    let whole = [member(&world, 11, 2, "a"), member(&world, 21, 2, "b")];
    let whole = [world.backup(&whole[0], &[1]).await.slot, world.backup(&whole[1], &[2]).await.slot];
    let mut expected = vec![middle, run, other, newest, whole[0], whole[1]];
    expected.sort();
    assert_eq!(world.snapshots().await, expected, "all but {alone}");
    assert_eq!(world.context.counters.retentions_failed.get(), 0);
    conductor.stop().await;
}
