use std::sync::Arc;

use agent::faults::store::{FaultyStore, StoreFaults, WriteFault};
use agent::{Failure, Stop};

use schema::messages::FailureKind;

use super::fixture::*;
use crate::{Collector, Latest, Report, latest};

async fn prune_over(world: &World, moment: &Moment) -> Result<Report, Failure> {
    let repository = world.over(Arc::new(moment.clone()));
    Collector::new(repository, World::settings(), Default::default()).prune().await
}

/// Crashes a collector at every operation, before and after its effect; another one goes on.
async fn crash_everywhere(encrypted: bool, step: usize, at: fn() -> At) {
    let (base, _) = littered(encrypted).await;
    let reference = base.fork();
    let passes = Moment::new(reference.inner.clone(), 0, At::Passes);
    prune_over(&reference, &passes).await.unwrap();
    reference.prune_to_the_end().await;
    let (operations, clean) = (passes.count(), reference.bytes().await);
    assert!(operations > 60, "{operations} operations");
    for number in (0..operations).step_by(step) {
        let world = base.fork();
        let moment = Moment::new(world.inner.clone(), number, at());
        let died = prune_over(&world, &moment).await;
        assert!(
            died.is_err() || number + 3 > operations,
            "operation {number} of {operations} was not missed"
        );
        assert_eq!(world.check().await, 2, "after a crash at operation {number}");
        world.prune_to_the_end().await;
        assert_eq!(world.check().await, 2, "another collector went on after operation {number}");
        // Frames that had moved already may have been packed otherwise.
        let left = world.bytes().await;
        assert!(
            left <= clean + clean / 2,
            "{left} bytes are left after a crash at operation {number}, not {clean}"
        );
    }
    println!("{operations} operations, {} crashes", operations.div_ceil(step as u64));
}

#[tokio::test(start_paused = true)]
async fn a_crash_before_any_operation_leaves_what_another_collector_finishes() {
    crash_everywhere(false, 1, || At::Dies).await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_after_any_operation_leaves_what_another_collector_finishes() {
    crash_everywhere(false, 1, || At::DiesAfter).await;
}

#[tokio::test(start_paused = true)]
async fn crashes_do_no_harm_to_encrypted_repositories() {
    crash_everywhere(true, 7, || At::DiesAfter).await;
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_is_told_to_stop_stops_also_while_it_deletes() {
    let (base, _) = littered(false).await;
    let passes = Moment::new(base.fork().inner, 0, At::Passes);
    prune_over(&base, &passes).await.unwrap();
    let mut deleting = 0;
    for number in 0..passes.count() {
        let world = base.fork();
        let stop = Stop::default();
        let raised = stop.clone();
        let act = Box::pin(async move { raised.raise() });
        let moment = Moment::act(world.inner.clone(), number, act);
        let repository = world.over(Arc::new(moment));
        let ended = Collector::new(repository, World::settings(), stop).prune().await;
        if let Err(failure) = ended {
            assert_eq!(failure.kind, FailureKind::Revoked, "operation {number}: {failure}");
            deleting += u64::from(matches!(latest(&world.repository).await.unwrap(), Latest::Decided(..)));
        }
        assert_eq!(world.check().await, 2, "operation {number}");
        world.prune_to_the_end().await;
        assert_eq!(world.check().await, 2, "operation {number}");
    }
    assert!(deleting > 0);
}

async fn faulty(base: &World, arrange: impl Fn(&FaultyStore)) -> (World, (Result<Report, Failure>, u64)) {
    let world = base.fork();
    let environment = world.repository.store.environment().clone();
    let store = FaultyStore::new(world.inner.clone(), environment, StoreFaults::default());
    arrange(&store);
    let repository = world.over(Arc::new(store.clone()));
    let report = Collector::new(repository, World::settings(), Default::default()).prune().await;
    (world, (report, store.injected().total()))
}

#[tokio::test(start_paused = true)]
async fn every_write_may_fail_once() {
    let (base, _) = littered(false).await;
    for fault in [WriteFault::Before, WriteFault::After, WriteFault::Late] {
        let mut writes = 0;
        loop {
            writes += 1;
            let (world, (report, injected)) = faulty(&base, |store| store.fail_write(writes, fault)).await;
            let report = report.unwrap_or_else(|failure| panic!("{fault:?} at write {writes}: {failure}"));
            assert!(
                report.swept.packs > 0 && report.swept.snapshots == 2,
                "{fault:?} at write {writes}: {report:?}"
            );
            assert_eq!(world.check().await, 2, "{fault:?} at write {writes}");
            world.prune_to_the_end().await;
            assert_eq!(world.check().await, 2, "{fault:?} at write {writes}");
            if injected == 0 {
                break;
            }
        }
        println!("{fault:?} at each of {writes} writes");
        assert!(writes > 5);
    }
}

#[tokio::test(start_paused = true)]
async fn stores_on_a_bad_day_cost_time_and_nothing_else() {
    let (base, _) = littered(false).await;
    let mut finished = 0;
    for seed in 0..40 {
        let faults = StoreFaults {
            seed,
            fails_before: 40,
            fails_after: 40,
            false_exists: 40,
            late_write: 20,
            cut_body: 20,
            flipped_bit: 20,
            ..StoreFaults::default()
        };
        let (world, (report, _)) = faulty(&base, |store| store.set(faults.clone())).await;
        finished += u64::from(report.is_ok());
        assert_eq!(world.check().await, 2, "seed {seed}: {report:?}");
        world.prune_to_the_end().await;
        assert_eq!(world.check().await, 2, "seed {seed}");
    }
    assert!(finished > 10, "{finished} of 40");
}
