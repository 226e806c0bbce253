//! Collectors as they are, which begin now and then and may die at any operation of the store.

use agent::Stop;
use collector::{Announce, Collector, Limits, Report, Settings};
use rand::RngExt;
use schema::messages::FailureKind;

use super::Person;
use crate::sim::doom::Doom;

/// Bytes for the ids of needed chunks.
const MEMORY: u64 = 1 << 20;

const NO_LIMITS: Limits = Limits { max_repack: u64::MAX, repack_below: 100 };

/// Collects until it is over.
pub(super) async fn collect(mut person: Person) {
    let world = person.world.clone();
    let collecting = &world.plan.life.collecting;
    while person.pause(collecting.pause).await {
        let doom = match collecting.fate(&mut person.random) {
            Some(left) => Doom::at(left, person.random.random()),
            None => Doom::none(),
        };
        let collector = Collector::new(
            person.repository_until(&doom),
            Settings {
                limits: collecting.limits.unwrap_or(NO_LIMITS),
                memory: MEMORY,
                patience: collecting.patience,
                exclusive: false,
                announce: announce(&person),
            },
            Stop::default(),
        );
        person.count("runs of collectors");
        match doom.unless_dead(collector.prune()).await {
            Some(Ok(report)) => note(&person, &report),
            Some(Err(failure)) => {
                world.trace.note(format_args!("{} fails: {failure}", person.name));
                person.count("runs of collectors that failed");
                if !matches!(failure.kind, FailureKind::Store | FailureKind::Other) {
                    world.trace.wrong(format!("progress: a collection failed: {failure}"));
                }
            }
            None => {
                world.trace.note(format_args!("{} dies", person.name));
                world.count_fault("deaths of collectors");
            }
        }
    }
}

/// Whoever copies looks at the bucket by themselves.
fn announce(person: &Person) -> Announce {
    match person.of_copies {
        true => Announce::default(),
        false => Announce::to(person.world.wires.bus(&person.name), person.world.shards()),
    }
}

fn note(person: &Person, report: &Report) {
    person.world.trace.note(format_args!("{} ends {report:?}", person.name));
    if !report.waits.is_empty() {
        person.count("runs of collectors that waited in vain");
    }
    (0..report.rewritten).for_each(|_| person.count("packs rewritten"));
}
