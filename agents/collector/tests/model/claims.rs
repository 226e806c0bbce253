//! An index with claims, and what sessions make of its answers, as hashers, indexers and conductors do together
//! (`Indexer::ask`, `Driver::fate`, `Driver::on_broadcast`, `Driver::ask_again`).
//!
//! An answer is a hint: a chunk counts only when a pack that holds it counts by the session's own rule. The index is a
//! cache: it may not have heard of a pack, and may name one that is gone; a claim may stand for what nobody stores any
//! more. What it hears and forgets shows only in its answers, so that these stand for all of it. Nor is it told apart
//! when an answer that names a pack comes and when it is weighed: asking later is the same.

use crate::session::{self, SessionStep};
use crate::world::{Bounds, Broken, CHUNKS, Index, Set, Stage, World, has, members, upload};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Claim {
    /// The index names a pack, which may count or not.
    Known(usize),
    /// The chunk is this session's to store: a storer will upload it, some time or never.
    Yours,
    /// Another session was told to store it.
    Pending,
    /// A pack counts that was announced, or that the index knows by now.
    OnBroadcast(usize),
    /// Nothing moves: asked with force, the chunk is this session's to store.
    AskAgain,
}

/// What a session may do for the chunks that it lacks.
pub fn steps(bounds: &Bounds, world: &World, number: usize) -> Vec<SessionStep> {
    let lacks = lacks(bounds, world, number);
    if lacks == 0 {
        return vec![SessionStep::CountNone];
    }
    let of_chunk = |chunk| claims(bounds, world, number, chunk).into_iter().map(move |claim| (chunk, claim));
    members(lacks).flat_map(of_chunk).map(|(chunk, claim)| SessionStep::Claim(chunk, claim)).collect()
}

fn claims(bounds: &Bounds, world: &World, number: usize, chunk: usize) -> Vec<Claim> {
    let announced = members(world.announced & bounds.holding(chunk));
    if !has(world.sessions[number].waits, chunk) {
        let mut claims: Vec<_> = announced.map(Claim::Known).collect();
        let is_claimed = claimed(bounds, world, chunk) & !upload(number, chunk, false) != 0;
        if is_claimed {
            claims.push(Claim::Pending);
        }
        if !is_claimed
            || bounds.index == Some(Index::Forgets)
            || bounds.broken == Some(Broken::GivesEveryClaim)
        {
            claims.push(Claim::Yours);
        }
        return claims;
    }
    let believes = bounds.broken == Some(Broken::BelievesAnnouncements);
    let heard = announced.filter(|pack| believes || counts(bounds, world, number, *pack));
    let mut claims: Vec<_> = heard.map(Claim::OnBroadcast).collect();
    // Another upload of what this session stores already makes no difference: nobody can have condemned the first.
    let stores = claimed(bounds, world, chunk) & upload(number, chunk, false) != 0;
    if !stores && bounds.index == Some(Index::Forgets) && bounds.broken != Some(Broken::NeverAsksAgain) {
        claims.push(Claim::AskAgain);
    }
    claims
}

/// Takes a step.
pub fn take(bounds: &Bounds, world: &mut World, number: usize, chunk: usize, claim: Claim) {
    let is_durable = match claim {
        Claim::OnBroadcast(_) => true,
        Claim::Known(pack) => {
            bounds.broken == Some(Broken::BelievesTheIndex) || counts(bounds, world, number, pack)
        }
        Claim::Pending => bounds.broken == Some(Broken::BelievesAPromise),
        Claim::Yours | Claim::AskAgain => {
            world.uploads |= upload(number, chunk, false);
            false
        }
    };
    let session = &mut world.sessions[number];
    session.waits |= 1 << chunk;
    if is_durable {
        session.has |= 1 << chunk;
    }
}

/// `OpenSession::counts`: the pack was seen to exist since the session began, and the epoch does not condemn it.
fn counts(bounds: &Bounds, world: &World, number: usize, pack: usize) -> bool {
    let session = &world.sessions[number];
    let is_condemned = has(session.condemned, pack) && bounds.broken != Some(Broken::CountsWhatIsCondemned);
    has(session.seen, pack) || has(world.packs, pack) && !is_condemned
}

/// The chunks that a session needs and that do not count yet.
fn lacks(bounds: &Bounds, world: &World, number: usize) -> Set {
    bounds.needs(1 << (1 + number)) & !world.sessions[number].has
}

/// The packs of a chunk that sessions were told to store, whatever became of them.
fn claimed(bounds: &Bounds, world: &World, chunk: usize) -> Set {
    let uploads = (0..bounds.sessions).fold(0, |set, session| set | upload(session, chunk, false));
    (world.uploads | world.announced) & uploads
}

/// An index that keeps its claims has each chunk stored by one session.
pub fn are_stored_once(bounds: &Bounds, world: &World) -> bool {
    bounds.index != Some(Index::Keeps)
        || (0..CHUNKS).all(|chunk| claimed(bounds, world, chunk).count_ones() <= 1)
}

/// Forgets what nobody can ask for any more.
pub fn normalize(bounds: &Bounds, world: &mut World) {
    let asks = |stage| !matches!(stage, Stage::Committing | Stage::Ending | Stage::Ended);
    let asking = (0..bounds.sessions).filter(|number| asks(world.sessions[*number].stage));
    let asked_for = asking.fold(0, |set, number| set | lacks(bounds, world, number));
    for chunk in (0..CHUNKS).filter(|chunk| !has(asked_for, *chunk)) {
        world.announced &= !bounds.holding(chunk);
    }
    let packs = world.packs;
    for (number, session) in world.sessions.iter_mut().enumerate() {
        session.has &= bounds.needs(1 << (1 + number));
        session.waits &= !session.has;
        if session.stage == Stage::ParentChosen {
            // What is gone and was not seen does not count, whoever condemned it.
            session.condemned &= packs;
        } else {
            session.waits = 0;
        }
    }
}

/// Whether each session ends when everybody else has died, those who promised something among them. One that was
/// revoked may find what it stored gone, and gives up.
pub fn all_end(bounds: &Bounds, world: &World) -> bool {
    let is_asked = |number: &usize| bounds.index.is_some() && !world.sessions[*number].revoked;
    (0..bounds.sessions).filter(is_asked).all(|number| ends(bounds, world.clone(), number))
}

fn ends(bounds: &Bounds, mut world: World, number: usize) -> bool {
    for _ in 0..30 {
        if world.sessions[number].stage == Stage::Ended {
            return true;
        }
        let ours = (0..CHUNKS).fold(0, |set, chunk| set | upload(number, chunk, false));
        world.land(bounds, world.uploads & ours);
        let Some(step) = session::steps(bounds, &world, number).into_iter().next() else { return false };
        session::take(bounds, &mut world, number, step);
        world.normalize(bounds);
    }
    false
}
