//! The protocol of sessions and collectors, explored by a model checker: everything that may happen, in any order, with
//! processes that stop or come back at any step, and writes that land late.
//!
//! The steps have the names that the code has, or say which of its functions they are. Ordinary runs are small;
//! `LVKEEP_TEST_LONG=1` explores more. Each shortcut that was ever tempting must be caught.

mod claims;
mod collector;
mod hold;
mod session;
mod world;

use collector::CollectorStep;
use session::SessionStep;
use stateright::{Checker, HasDiscoveries, Model, Property};
use world::{Bounds, Broken, Epoch, Hold, Index, SNAPSHOTS, Set, Slot, World, has, members};

const NEVER_COLLECT_LIVE: &str = "never-collect-live";
const ONE_WINNER: &str = "one-winner";
const SEALED_IS_READABLE: &str = "sealed-is-readable";
const HELD_STAYS: &str = "held-stays";
const STORED_ONCE: &str = "while claims stand, a chunk is stored once";
const PROGRESS: &str = "progress";
const READ_TO_THE_END: &str = "what a restore reads stays until it ends";

/// What may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A session takes a step.
    Session(usize, SessionStep),
    /// A collector takes a step.
    Collector(usize, CollectorStep),
    /// Somebody forgets a snapshot; has looked for holds at any time before, and dies before looking again.
    Forget(usize),
    /// Whoever holds snapshot 0 takes a step.
    Hold,
    /// An upload that was given up lands, or, with an index, any.
    PackLandsLate(usize),
    /// A commit that was given up reaches its slot.
    CommitLandsLate(usize),
}

impl Model for Bounds {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let announced = if self.index.is_some() { self.packs } else { 0 };
        let mut world = World { packs: self.packs, announced, decided: 1, ..World::default() };
        world.slots[0] = Slot::Snapshot;
        vec![world]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        for number in 0..self.sessions {
            actions
                .extend(session::steps(self, world, number).into_iter().map(|s| Action::Session(number, s)));
            if world.sessions[number].late {
                actions.push(Action::CommitLandsLate(number));
            }
        }
        for number in 0..self.collectors {
            let steps = collector::steps(self, world, number, self.epochs);
            actions.extend(steps.into_iter().map(|step| Action::Collector(number, step)));
        }
        let forgettable = world.snapshots() & !world.markers & self.forgettable;
        actions.extend(members(forgettable).map(Action::Forget));
        if self.holds && hold::next(self, world).is_some() {
            actions.push(Action::Hold);
        }
        actions.extend(members(world.uploads).map(Action::PackLandsLate));
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut world = world.clone();
        match action {
            Action::Session(number, step) => session::take(self, &mut world, number, step),
            Action::Collector(number, step) => collector::take(self, &mut world, number, step),
            Action::Forget(snapshot) => world.markers |= 1 << snapshot,
            Action::Hold => world.hold = hold::next(self, &world)?,
            Action::PackLandsLate(pack) => world.land(self, 1 << pack),
            Action::CommitLandsLate(number) => {
                world.sessions[number].late = false;
                session::commit(&mut world, number);
            }
        }
        world.normalize(self);
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NEVER_COLLECT_LIVE, |bounds: &Bounds, world: &World| {
                let sweeps_unforgotten = |epoch: &Epoch| epoch.forgotten & !world.markers != 0;
                world.has_all(bounds, bounds.needs(world.live()))
                    && !world.epochs.iter().any(sweeps_unforgotten)
            }),
            Property::always(SEALED_IS_READABLE, |bounds: &Bounds, world: &World| {
                world.has_all(bounds, bounds.needs(world.snapshots() & !world.markers))
            }),
            Property::always(READ_TO_THE_END, |bounds: &Bounds, world: &World| {
                world.has_all(bounds, session::reads(bounds, world))
            }),
            Property::always(HELD_STAYS, |_, world: &World| {
                world.hold != Hold::Held
                    || world.slots[0] == Slot::Snapshot && !world.epochs.iter().any(|e| has(e.forgotten, 0))
            }),
            Property::always(ONE_WINNER, |_, world: &World| {
                !world.two_winners && world.sessions.iter().all(|s| !(s.committed && s.revoked))
            }),
            Property::always(PROGRESS, |bounds: &Bounds, world: &World| {
                !bounds.progress || collector::finishes(bounds, world) && claims::all_end(bounds, world)
            }),
            Property::always(STORED_ONCE, claims::are_stored_once),
            Property::sometimes("something is swept while a snapshot lives", |_, world: &World| {
                world.swept && world.live() != 0
            }),
            Property::sometimes("a session is revoked and something is swept", |_, world: &World| {
                world.swept && collector::revoked_one(world)
            }),
            Property::sometimes(
                "every session commits and something is swept",
                |bounds: &Bounds, world: &World| world.swept && collector::done_all(bounds, world),
            ),
        ]
    }
}

const SMALL: Bounds = Bounds {
    sessions: 1,
    restores: 0,
    collectors: 1,
    epochs: 1,
    chunks: [1, 1],
    index: None,
    packs: 1,
    others: 0,
    forgettable: (1 << SNAPSHOTS) - 1,
    late_commits: true,
    late_packs: true,
    rewrite: true,
    unforget: true,
    holds: false,
    progress: true,
    broken: None,
};

fn is_long() -> bool {
    std::env::var("LVKEEP_TEST_LONG").is_ok_and(|long| long == "1")
}

/// Explores everything within these bounds; every property holds, and what should happen somewhere does.
fn holds(name: &str, bounds: Bounds) {
    let checker = bounds.checker().threads(if is_long() { 2 } else { 1 }).spawn_bfs().join();
    println!("{name}: {} states explored, {} steps deep", checker.unique_state_count(), checker.max_depth());
    checker.assert_properties();
}

/// A broken protocol is caught by one of these properties.
fn is_caught(broken: Broken, bounds: Bounds, by: &[&'static str]) {
    let bounds = Bounds { broken: Some(broken), progress: by.contains(&PROGRESS), ..bounds };
    let enough = HasDiscoveries::AnyOf(by.iter().copied().collect());
    let checker = bounds.checker().threads(1).finish_when(enough).spawn_bfs().join();
    let found = by.iter().find_map(|property| Some((*property, checker.discovery(property)?)));
    let Some((property, path)) = found else {
        panic!("{broken:?} was not caught in {} states", checker.unique_state_count())
    };
    let steps: Vec<_> = path.into_actions().into_iter().map(|action| format!("  {action:?}")).collect();
    println!(
        "{broken:?} breaks {property} after {} states, in {} steps:\n{}",
        checker.unique_state_count(),
        steps.len(),
        steps.join("\n")
    );
}

#[test]
fn one_session_and_one_collector() {
    holds("one session, one collector, one epoch", SMALL);
}

#[test]
fn one_session_and_two_collections() {
    holds("one session, one collector, two epochs", Bounds { epochs: 2, ..SMALL });
}

#[test]
fn one_session_and_two_collections_of_other_packs() {
    let long = is_long();
    let bounds =
        Bounds { epochs: 2, packs: 3, others: 2, late_packs: long, rewrite: long, progress: long, ..SMALL };
    holds("one session, one collector, two epochs, a pack of other chunks", bounds);
}

#[test]
fn one_session_and_two_collectors() {
    let bounds = Bounds { collectors: 2, rewrite: is_long(), ..SMALL };
    holds("one session, two collectors, one epoch", bounds);
}

#[test]
fn two_sessions_and_one_collector() {
    let long = is_long();
    let bounds = Bounds { sessions: 2, late_packs: long, rewrite: long, progress: long, ..SMALL };
    holds("two sessions, one collector, one epoch", bounds);
}

#[test]
fn a_restore_and_two_collections() {
    holds("one restore, one collector, two epochs", Bounds { restores: 1, epochs: 2, ..SMALL });
}

#[test]
fn a_restore_and_a_session_and_one_collector() {
    let long = is_long();
    let bounds =
        Bounds { sessions: 2, restores: 1, late_packs: long, rewrite: long, progress: long, ..SMALL };
    holds("one restore, one session, one collector, one epoch", bounds);
}

#[test]
fn a_hold_and_two_collections() {
    holds("a hold, one collector, two epochs", Bounds { holds: true, epochs: 2, ..SMALL });
}

/// Two sessions that claim one chunk, beside a collector.
const CLAIMS: Bounds = Bounds {
    sessions: 2,
    index: Some(Index::Forgets),
    late_commits: false,
    late_packs: false,
    rewrite: false,
    unforget: false,
    progress: false,
    ..SMALL
};

/// A chunk that is stored, and one that is new.
const BOTH: Set = 0b11;
const NEW: Set = 0b10;

#[test]
fn a_session_that_asks_an_index_and_two_collections() {
    let bounds = Bounds { sessions: 1, chunks: [BOTH, 0], epochs: 2, progress: true, ..CLAIMS };
    holds("one session, an index, two chunks, one collector, two epochs", bounds);
}

#[test]
fn two_sessions_that_wait_for_each_other() {
    let bounds = Bounds { progress: true, forgettable: 1, ..CLAIMS };
    holds("two sessions, an index, one collector, one epoch", bounds);
}

#[test]
fn two_sessions_and_an_index_that_keeps_claims() {
    let bounds = Bounds { index: Some(Index::Keeps), ..CLAIMS };
    holds("two sessions, an index that keeps claims, one collector, one epoch", bounds);
}

#[test]
fn two_sessions_that_claim_two_chunks() {
    let forgettable = if is_long() { CLAIMS.forgettable } else { 1 };
    let bounds = Bounds { chunks: [NEW, BOTH], forgettable, ..CLAIMS };
    holds("two sessions, an index, two chunks, one collector, one epoch", bounds);
}

#[test]
fn larger_bounds() {
    if !is_long() {
        return println!("only with LVKEEP_TEST_LONG=1");
    }
    let plain = Bounds { late_packs: false, late_commits: false, rewrite: false, progress: false, ..SMALL };
    holds("one session, two collectors, two epochs", Bounds { collectors: 2, epochs: 2, ..plain });
    holds("two sessions, one collector, two epochs", Bounds { sessions: 2, epochs: 2, ..plain });
    holds("two sessions, two collectors, one epoch", Bounds { sessions: 2, collectors: 2, ..plain });
    let both = Bounds { chunks: [BOTH, BOTH], forgettable: 1, ..CLAIMS };
    holds("two sessions that need both chunks, an index, one collector, one epoch", both);
}

#[test]
fn each_shortcut_is_caught() {
    const LIVE: &[&str] = &[NEVER_COLLECT_LIVE];
    let two = Bounds { sessions: 2, ..SMALL };
    let plain = Bounds { late_packs: false, rewrite: false, ..SMALL };
    is_caught(Broken::SkipsSecondMark, SMALL, LIVE);
    is_caught(Broken::DeletesBeforeWaiting, SMALL, LIVE);
    is_caught(Broken::RevokesByDeletingTheSession, SMALL, LIVE);
    is_caught(Broken::ReadsEpochsBeforeItsObject, plain, LIVE);
    is_caught(Broken::ListsSessionsBeforeEpoch, plain, LIVE);
    is_caught(Broken::MarksFromFreshForgotten, two, LIVE);
    is_caught(Broken::DeletesDecidedKey, SMALL, &[ONE_WINNER]);
    is_caught(Broken::OverwritesVerdict, Bounds { collectors: 2, ..plain }, LIVE);
    is_caught(Broken::ChoosesParentBeforeItsObject, plain, LIVE);
    is_caught(Broken::UnforgetsWhatIsSwept, plain, LIVE);
    is_caught(Broken::EndsWithoutAnAnswer, SMALL, LIVE);
    is_caught(Broken::SweepsUnforgotten, plain, LIVE);
    is_caught(Broken::ListsPacksBeforeEpoch, Bounds { epochs: 2, packs: 3, others: 2, ..plain }, LIVE);
    is_caught(Broken::SealsBeforeStored, SMALL, &[SEALED_IS_READABLE]);
    is_caught(Broken::NeverRevokes, SMALL, &[PROGRESS]);
    let restore = Bounds { restores: 1, epochs: 2, ..SMALL };
    for broken in [Broken::ChoosesParentBeforeItsObject, Broken::DeletesBeforeWaiting] {
        is_caught(broken, restore, &[READ_TO_THE_END]);
    }
    let one = Bounds { sessions: 1, chunks: [BOTH, 0], ..CLAIMS };
    is_caught(Broken::BelievesTheIndex, one, LIVE);
    is_caught(Broken::CountsWhatIsCondemned, one, LIVE);
    is_caught(Broken::BelievesAnnouncements, CLAIMS, LIVE);
    is_caught(Broken::BelievesAPromise, CLAIMS, &[SEALED_IS_READABLE]);
    is_caught(Broken::NeverAsksAgain, one, &[PROGRESS]);
    is_caught(Broken::NeverAsksAgain, CLAIMS, &[PROGRESS]);
    is_caught(Broken::GivesEveryClaim, Bounds { index: Some(Index::Keeps), ..CLAIMS }, &[STORED_ONCE]);
    let held = Bounds { holds: true, ..plain };
    for broken in [Broken::LooksBeforeItHolds, Broken::ListsHoldsBeforeMarkers, Broken::SweepsWhatIsHeld] {
        is_caught(broken, held, &[HELD_STAYS]);
    }
}
