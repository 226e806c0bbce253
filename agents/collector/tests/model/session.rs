//! The steps of a session, as `agent::sessions` takes them.

use crate::claims::{self, Claim};
use crate::world::{Bounds, Broken, Session, Set, Slot, Stage, World, has, members, upload};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SessionStep {
    /// `create`, with which `OpenSession::begin` begins.
    CreateObject,
    /// `epochs::latest`, which `look` asks first.
    ReadLatestEpoch,
    /// `Repository::list_packs`, which `look` asks after that.
    ListPacks,
    /// `OpenSession::choose_parent`; of a restore, the look at its snapshot once `Protection::begin` has ended.
    ChooseParent(usize),
    /// `forgetting::unforget`, which commits the root anew.
    Unforget(usize),
    /// `OpenSession::choose_parent` where there is none, or none that helps.
    ChooseNone,
    /// `OpenSession::counts`: it does.
    CountPack,
    /// Nothing more counts: what the parent does not have is stored.
    CountNone,
    /// A storer's `Uploader::store`.
    StorePack,
    /// The same, given up and tried again under a fresh name.
    StoreUnanswered,
    /// What it makes of the index, for a chunk.
    Claim(usize, Claim),
    /// `OpenSession::commit`.
    Commit,
    /// The same, without an answer.
    CommitUnanswered,
    /// `OpenSession::end`.
    End,
}

/// The stages of steps 1 to 3, in the order in which this protocol takes them.
fn order(bounds: &Bounds) -> [SessionStep; 4] {
    use SessionStep::{ChooseNone, CreateObject, ListPacks, ReadLatestEpoch};
    match bounds.broken {
        Some(Broken::ReadsEpochsBeforeItsObject) => [ReadLatestEpoch, CreateObject, ListPacks, ChooseNone],
        Some(Broken::ListsPacksBeforeEpoch) => [CreateObject, ListPacks, ReadLatestEpoch, ChooseNone],
        Some(Broken::ChoosesParentBeforeItsObject) => [ChooseNone, CreateObject, ReadLatestEpoch, ListPacks],
        _ => [CreateObject, ReadLatestEpoch, ListPacks, ChooseNone],
    }
}

const EARLY: [Stage; 5] =
    [Stage::New, Stage::Begun, Stage::EpochRead, Stage::PacksListed, Stage::ParentChosen];

/// What session `number` may do now.
pub fn steps(bounds: &Bounds, world: &World, number: usize) -> Vec<SessionStep> {
    let session = &world.sessions[number];
    let early = EARLY[..4].iter().position(|stage| *stage == session.stage);
    if let Some(place) = early {
        return match order(bounds)[place] {
            SessionStep::ChooseNone if has(bounds.restores, number) => snapshots(world),
            SessionStep::ChooseNone => parents(bounds, world, number),
            step => vec![step],
        };
    }
    match session.stage {
        Stage::ParentChosen if has(bounds.restores, number) => vec![SessionStep::End],
        Stage::ParentChosen if bounds.index.is_some() => claims::steps(bounds, world, number),
        Stage::ParentChosen if session.has != 0 => vec![SessionStep::CountNone],
        // A copy counts when its pack was listed, or exists when it is asked for, and is not condemned.
        Stage::ParentChosen if session.seen != 0 || world.copies(bounds, 0) & !session.condemned != 0 => {
            vec![SessionStep::CountPack, SessionStep::CountNone]
        }
        Stage::ParentChosen => vec![SessionStep::CountNone],
        Stage::Storing => {
            let mut steps = vec![SessionStep::StorePack];
            if bounds.late_packs && !session.upload_unanswered {
                steps.push(SessionStep::StoreUnanswered);
            }
            if bounds.broken == Some(Broken::SealsBeforeStored) {
                steps.push(SessionStep::Commit);
            }
            steps
        }
        Stage::Committing => {
            let mut steps = vec![SessionStep::Commit];
            if bounds.late_commits && !session.commit_unanswered {
                steps.push(SessionStep::CommitUnanswered);
            }
            if session.commit_unanswered && bounds.broken == Some(Broken::EndsWithoutAnAnswer) {
                steps.push(SessionStep::End);
            }
            steps
        }
        Stage::Ending => vec![SessionStep::End],
        _ => Vec::new(),
    }
}

/// What may be restored; nothing is refused.
fn snapshots(world: &World) -> Vec<SessionStep> {
    let visible = members(world.snapshots() & !world.markers);
    let steps: Vec<_> = visible.map(SessionStep::ChooseParent).collect();
    if steps.is_empty() { vec![SessionStep::End] } else { steps }
}

/// The chunks that restores are reading which nobody declared dead.
pub fn reads(bounds: &Bounds, world: &World) -> Set {
    let reading = members(bounds.restores).map(|number| &world.sessions[number]);
    let reading = reading.filter(|session| session.object && session.stage == Stage::ParentChosen);
    reading.fold(0, |set, session| set | session.has)
}

fn parents(bounds: &Bounds, world: &World, number: usize) -> Vec<SessionStep> {
    let mut steps = vec![SessionStep::ChooseNone];
    for snapshot in 0..world.slots.len() {
        if world.slots[snapshot] != Slot::Snapshot || snapshot == 1 + number {
            continue;
        }
        if !has(world.markers, snapshot) {
            steps.push(SessionStep::ChooseParent(snapshot));
        } else if bounds.unforget
            && (!has(world.sessions[number].swept, snapshot)
                || bounds.broken == Some(Broken::UnforgetsWhatIsSwept))
        {
            steps.push(SessionStep::Unforget(snapshot));
        }
    }
    steps
}

/// Takes a step.
pub fn take(bounds: &Bounds, world: &mut World, number: usize, step: SessionStep) {
    let latest = world.epochs[world.latest()];
    let packs = world.packs;
    let next = |stage: Stage| {
        let place = EARLY.iter().position(|early| *early == stage).unwrap_or(0);
        EARLY[(place + 1).min(EARLY.len() - 1)]
    };
    let session = &mut world.sessions[number];
    match step {
        SessionStep::CreateObject => {
            session.object = true;
            session.stage = next(session.stage);
        }
        SessionStep::ReadLatestEpoch => {
            session.condemned = latest.verdict.unwrap_or(latest.condemned);
            session.swept = latest.forgotten;
            session.stage = next(session.stage);
            match bounds.broken {
                Some(Broken::ListsPacksBeforeEpoch) => count_seen(bounds, session),
                _ => session.condemned &= packs,
            }
        }
        SessionStep::ListPacks => {
            session.seen = packs;
            session.stage = next(session.stage);
            if bounds.broken != Some(Broken::ListsPacksBeforeEpoch) {
                count_seen(bounds, session);
            }
        }
        SessionStep::ChooseParent(snapshot) | SessionStep::Unforget(snapshot) => {
            session.has = bounds.needs(1 << snapshot);
            session.stage = next(session.stage);
        }
        SessionStep::ChooseNone => session.stage = next(session.stage),
        SessionStep::CountPack => session.stage = Stage::Committing,
        SessionStep::CountNone => {
            session.stage = if session.has != 0 { Stage::Committing } else { Stage::Storing };
        }
        SessionStep::StorePack => {
            session.stage = Stage::Committing;
            world.packs |= upload(number, 0, session.upload_unanswered);
        }
        SessionStep::StoreUnanswered => {
            session.upload_unanswered = true;
            world.uploads |= upload(number, 0, false);
        }
        SessionStep::Claim(chunk, claim) => claims::take(bounds, world, number, chunk, claim),
        SessionStep::Commit => {
            session.stage = Stage::Ending;
            commit(world, number);
        }
        SessionStep::CommitUnanswered => {
            session.commit_unanswered = true;
            session.late = true;
        }
        SessionStep::End => {
            session.object = false;
            session.stage = Stage::Ended;
        }
    }
}

/// Of packs that hold the chunk it does not matter which one counts, unless an index names one of them.
fn count_seen(bounds: &Bounds, session: &mut Session) {
    session.seen &= !session.condemned;
    if bounds.index.is_none() {
        session.seen = Set::from(session.seen & bounds.holding(0) != 0);
    }
}

/// A commit arrives at the store, now or late.
pub fn commit(world: &mut World, number: usize) {
    if world.create_slot(1 + number, Slot::Snapshot) {
        world.sessions[number].committed = true;
    }
}
