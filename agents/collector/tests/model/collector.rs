//! The steps of a collector, as this crate takes them.

use crate::world::{
    Bounds, Broken, COLLECTORS, Epoch, SESSIONS, Set, Slot, Stage, Step, World, has, members, rewritten,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CollectorStep {
    /// `latest`, and where nothing is unfinished the listing of forgotten markers.
    Latest,
    /// `census::held`.
    ListHolds,
    /// `rewrite::rewrite`.
    Rewrite,
    /// `epochs::create_epoch`.
    CreateEpoch(Set),
    /// `sessions::list_sessions`: the list that is kept, or a listing.
    ListSessions,
    /// The end of `sessions::list_sessions`: the listing is kept, or the one that came first holds.
    KeepList,
    /// `sessions::occupy_slot`.
    OccupySlot(usize),
    /// `agent::sessions::remove`.
    DeleteObject(usize),
    /// The end of `sessions::wait`: none of them is open.
    WaitIsOver,
    /// The beginning of `verdict::mark_again_and_reprieve`: `epochs::packs`.
    ListPacks,
    /// `mark::mark` in `verdict::mark_again_and_reprieve`.
    MarkAgain,
    /// `Risk::reprieve` at its end.
    Reprieve(Set),
    /// `epochs::create_verdict`.
    CreateVerdict,
    /// `sweep::tombstone_roots`.
    TombstoneRoot(usize),
    /// `sweep::delete_packs`.
    DeletePack(usize),
    /// The end of `sweep::sweep`.
    Finish,
}

/// What collector `number` may do now; it begins no epoch beyond `epochs`.
pub fn steps(bounds: &Bounds, world: &World, number: usize, epochs: usize) -> Vec<CollectorStep> {
    let collector = &world.collectors[number];
    let epoch = &world.epochs[usize::from(collector.epoch)];
    match collector.step {
        Step::Idle if !world.is_finished(world.latest()) || world.latest() < epochs => {
            vec![CollectorStep::Latest]
        }
        Step::Idle => Vec::new(),
        Step::ListingHolds => vec![CollectorStep::ListHolds],
        Step::Proposing => proposals(bounds, world, number),
        Step::ListingSessions => vec![CollectorStep::ListSessions],
        Step::KeepingList => vec![CollectorStep::KeepList],
        Step::Waiting => {
            let open = members(collector.awaited).filter(|session| world.sessions[*session].object);
            let steps: Vec<_> = open.map(|session| revocation(bounds, world, session)).collect();
            match steps.is_empty() {
                true => vec![CollectorStep::WaitIsOver],
                false if bounds.broken == Some(Broken::NeverRevokes) => Vec::new(),
                false => steps,
            }
        }
        Step::ListingPacks => vec![CollectorStep::ListPacks],
        Step::MarkingAgain => vec![CollectorStep::MarkAgain],
        Step::Reprieving => subsets(epoch.condemned & collector.listed)
            .filter(|delete| {
                let stays = |chunk| collector.listed & bounds.holding(chunk) & !delete != 0;
                *delete == 0 || members(collector.needed).all(stays)
            })
            .map(CollectorStep::Reprieve)
            .collect(),
        Step::Deciding => vec![CollectorStep::CreateVerdict],
        Step::Sweeping => match members(collector.forgotten).next() {
            Some(root) => vec![CollectorStep::TombstoneRoot(root)],
            None if collector.delete & world.packs == 0 => vec![CollectorStep::Finish],
            None => members(collector.delete & world.packs).map(CollectorStep::DeletePack).collect(),
        },
    }
}

/// Any list of packs may be condemned, however stale the mark was that made it.
fn proposals(bounds: &Bounds, world: &World, number: usize) -> Vec<CollectorStep> {
    let collector = &world.collectors[number];
    if world.epochs[usize::from(collector.epoch)].created {
        return vec![CollectorStep::CreateEpoch(0)];
    }
    let mut steps: Vec<_> = subsets(world.packs)
        .filter(|condemned| condemned | collector.forgotten != 0)
        .map(CollectorStep::CreateEpoch)
        .collect();
    if bounds.rewrite && !collector.rewrote && world.copies(bounds, 0) != 0 && number + 1 < COLLECTORS {
        steps.push(CollectorStep::Rewrite);
    }
    steps
}

/// A session that is declared dead loses its slot first, and its object once the slot is decided.
fn revocation(bounds: &Bounds, world: &World, session: usize) -> CollectorStep {
    match world.slots[1 + session] {
        Slot::Nothing
            if bounds.broken != Some(Broken::RevokesByDeletingTheSession)
                && !has(bounds.restores, session) =>
        {
            CollectorStep::OccupySlot(session)
        }
        _ => CollectorStep::DeleteObject(session),
    }
}

fn subsets(set: Set) -> impl Iterator<Item = Set> {
    let next = move |subset: &Set| Some(subset.wrapping_sub(set) & set).filter(|next| *next != 0);
    std::iter::successors(Some(0), next)
}

fn open_sessions(world: &World) -> Set {
    (0..SESSIONS).filter(|n| world.sessions[*n].object).fold(0, |set, n| set | 1 << n)
}

/// Takes a step.
pub fn take(bounds: &Bounds, world: &mut World, number: usize, step: CollectorStep) {
    let mut collector = world.collectors[number];
    let at = usize::from(collector.epoch);
    match step {
        CollectorStep::Latest => {
            let latest = world.latest();
            let epoch = world.epochs[latest];
            if world.is_finished(latest) {
                collector.step = if bounds.holds { Step::ListingHolds } else { Step::Proposing };
                collector.epoch = latest as u8 + 1;
                collector.forgotten = match bounds.broken {
                    Some(Broken::ListsHoldsBeforeMarkers) => !world.held(),
                    Some(Broken::SweepsUnforgotten) => world.snapshots(),
                    _ => world.markers & world.snapshots(),
                };
                if bounds.broken == Some(Broken::ListsSessionsBeforeEpoch) {
                    collector.awaited = open_sessions(world);
                }
            } else {
                collector.epoch = latest as u8;
                match epoch.verdict {
                    None => collector.step = Step::ListingSessions,
                    Some(delete) => {
                        collector.step = Step::Sweeping;
                        (collector.delete, collector.forgotten) = (delete, epoch.forgotten);
                    }
                }
            }
        }
        CollectorStep::ListHolds => {
            collector.forgotten &= match bounds.broken {
                Some(Broken::ListsHoldsBeforeMarkers) => world.markers & world.snapshots(),
                Some(Broken::SweepsWhatIsHeld) => Set::MAX,
                _ => !world.held(),
            };
            collector.step = Step::Proposing;
        }
        CollectorStep::Rewrite => {
            world.land(bounds, rewritten(number));
            collector.rewrote = true;
        }
        CollectorStep::CreateEpoch(condemned) => {
            let epoch = &mut world.epochs[at];
            match epoch.created {
                true => collector = collector.idle(),
                false => {
                    *epoch = Epoch { created: true, forgotten: collector.forgotten, condemned, ..*epoch };
                    collector.forgotten = 0;
                    collector.step = match bounds.broken {
                        Some(Broken::ListsSessionsBeforeEpoch) => Step::KeepingList,
                        _ => Step::ListingSessions,
                    };
                }
            }
        }
        CollectorStep::ListSessions => match world.epochs[at].awaited {
            Some(awaited) => (collector.awaited, collector.step) = (awaited, Step::Waiting),
            None => (collector.awaited, collector.step) = (open_sessions(world), Step::KeepingList),
        },
        CollectorStep::KeepList => {
            collector.awaited = *world.epochs[at].awaited.get_or_insert(collector.awaited);
            collector.step = Step::Waiting;
        }
        CollectorStep::OccupySlot(session) => {
            world.sessions[session].revoked |= world.create_slot(1 + session, Slot::Tombstone);
        }
        CollectorStep::DeleteObject(session) => {
            world.sessions[session].object = false;
            world.sessions[session].revoked |= has(bounds.restores, session);
        }
        CollectorStep::WaitIsOver => {
            collector.awaited = 0;
            collector.step = Step::ListingPacks;
        }
        CollectorStep::ListPacks => {
            collector.listed = world.packs;
            collector.step = Step::MarkingAgain;
        }
        CollectorStep::MarkAgain => {
            let forgotten = match bounds.broken {
                Some(Broken::MarksFromFreshForgotten) => world.markers,
                _ => world.epochs[at].forgotten,
            };
            collector.needed = match bounds.broken {
                Some(Broken::SkipsSecondMark) => 0,
                _ => bounds.needs(world.snapshots() & !forgotten),
            };
            collector.step = Step::Reprieving;
        }
        CollectorStep::Reprieve(delete) => {
            (collector.delete, collector.listed, collector.needed) = (delete, 0, 0);
            collector.step = Step::Deciding;
        }
        CollectorStep::CreateVerdict => {
            let epoch = &mut world.epochs[at];
            match epoch.verdict {
                Some(delete) if bounds.broken != Some(Broken::OverwritesVerdict) => collector.delete = delete,
                _ => epoch.verdict = Some(collector.delete),
            }
            collector.forgotten = epoch.forgotten;
            collector.step = Step::Sweeping;
            world.swept |= collector.delete != 0;
        }
        CollectorStep::TombstoneRoot(root) => {
            let deletes = bounds.broken == Some(Broken::DeletesDecidedKey);
            world.slots[root] = if deletes { Slot::Nothing } else { Slot::Tombstone };
            collector.forgotten &= !(1 << root);
        }
        CollectorStep::DeletePack(pack) => world.packs &= !(1 << pack),
        CollectorStep::Finish => collector = collector.idle(),
    }
    if bounds.broken == Some(Broken::DeletesBeforeWaiting) && collector.step == Step::ListingSessions {
        collector.step = Step::ListingPacks;
    }
    world.collectors[number] = collector;
}

/// Whether a collector that comes now, and meets nobody, ends with nothing left to collect.
pub fn finishes(bounds: &Bounds, world: &World) -> bool {
    const FRESH: usize = COLLECTORS - 1;
    let mut world = world.clone();
    for _ in 0..120 {
        let step = match world.collectors[FRESH].step {
            Step::Idle if is_clean(bounds, &world) => return true,
            Step::Idle if world.is_finished(world.latest()) && world.latest() + 1 >= world.epochs.len() => {
                return false;
            }
            Step::Idle => CollectorStep::Latest,
            Step::Proposing => {
                // Everything goes but one copy of each chunk that a snapshot needs which stays.
                let needed = bounds.needs(world.snapshots() & !world.collectors[FRESH].forgotten);
                let first = |copies: Set| copies & copies.wrapping_neg();
                let kept = members(needed).fold(0, |set, chunk| set | first(world.copies(bounds, chunk)));
                CollectorStep::CreateEpoch(world.packs & !kept)
            }
            // Of what may be deleted, everything.
            _ => match steps(bounds, &world, FRESH, 0).into_iter().next_back() {
                Some(step) => step,
                None => return false,
            },
        };
        take(bounds, &mut world, FRESH, step);
        world.normalize(bounds);
    }
    false
}

fn is_clean(bounds: &Bounds, world: &World) -> bool {
    let needed = bounds.needs(world.snapshots()).count_ones();
    world.is_finished(world.latest())
        && world.markers & world.snapshots() & !world.held() == 0
        && world.packs.count_ones() <= needed
}

/// Whether somebody waits for a session; for what the model must reach.
pub fn revoked_one(world: &World) -> bool {
    world.sessions.iter().any(|session| session.revoked)
}

/// Whether every session committed, or restored.
pub fn done_all(bounds: &Bounds, world: &World) -> bool {
    (0..bounds.sessions).all(|number| {
        let session = &world.sessions[number];
        match has(bounds.restores, number) {
            true => session.stage == Stage::Ended && !session.revoked,
            false => has(world.decided, 1 + number) && session.committed,
        }
    })
}
