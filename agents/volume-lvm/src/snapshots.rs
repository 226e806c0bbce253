//! lvkeep's snapshots of a volume: which are whose, which is the baseline, and which go.
//!
//! What happens to them is decided here, purely, from LVM's report, the marks, and who is alive; [`commands`] does it.
//! Only a snapshot that is marked for the very volume (by LVM's UUID, not by name) and the very repository is ever in
//! a list of what goes, and not even then when somebody uses it or put it to another use.

pub mod commands;

use schema::{JobId, ReadingId, RepoId, SessionId};

use crate::governor::NoRoom;
use crate::marks::Marks;
use crate::report::{Inventory, LogicalVolume, Uuid};

#[cfg(test)]
mod tests;

/// One of lvkeep's snapshots.
#[derive(Debug, Clone, PartialEq)]
pub struct Ours<'a> {
    /// What LVM says of it.
    pub volume: &'a LogicalVolume,
    /// What lvkeep wrote on it.
    pub marks: Marks,
}

/// All of lvkeep's snapshots on this host, whoever they are of and for.
pub fn all(inventory: &Inventory) -> impl Iterator<Item = Ours<'_>> {
    let marked = inventory.volumes.iter().filter_map(|volume| Some((volume, Marks::of(volume)?)));
    marked
        .filter(|(volume, marks)| is_snapshot_of(volume, &marks.origin))
        .map(|(volume, marks)| Ours { volume, marks })
}

/// The snapshots of one volume for one repository.
pub fn of<'a>(
    inventory: &'a Inventory,
    origin: &'a Uuid,
    repository: RepoId,
) -> impl Iterator<Item = Ours<'a>> {
    all(inventory).filter(move |ours| ours.marks.origin == *origin && ours.marks.repository == repository)
}

/// Whether LVM says the same about the origin as the marks. A thin snapshot outlives its origin; nobody's origin then.
fn is_snapshot_of(volume: &LogicalVolume, origin: &Uuid) -> bool {
    match &volume.origin_uuid {
        Some(found) => found == origin,
        None => volume.is_thin(),
    }
}

/// Why one of ours stays although nobody needs it any more; none when it may go. One that somebody has open is refused
/// by LVM itself, at the only moment that counts.
pub fn spared(inventory: &Inventory, ours: &Ours<'_>) -> Option<&'static str> {
    let attributes = &ours.volume.attributes;
    // One that overflowed reads and writes nothing any more, whatever its letters say.
    if attributes.is_writable() && !attributes.is_invalid() {
        return Some("somebody made it writable");
    }
    if attributes.is_merging() {
        return Some("it is being merged into its origin");
    }
    // Removing an origin takes along what depends on it: its snapshots with exception stores, and thin volumes of
    // other pools that it shines through in.
    let depends = |other: &&LogicalVolume| {
        other.origin_uuid.as_ref() == Some(&ours.volume.uuid)
            && (other.is_thick_snapshot() || other.pool_uuid != ours.volume.pool_uuid)
    };
    inventory.volumes.iter().find(depends).map(|_| "another volume depends on it")
}

/// What a run does with what it finds.
#[derive(Debug, Clone, PartialEq)]
pub struct Tidy<'a> {
    /// The snapshot that says what changed since the parent.
    pub baseline: Option<Ours<'a>>,
    /// Why there is none, where there should be one.
    pub why: Option<String>,
    /// What goes now: what runs left that committed nothing, and baselines that are no use to anybody.
    pub remove: Vec<Ours<'a>>,
    /// Baselines of other sessions, which go when this run has committed; earlier where there is no room for it beside
    /// them ([`giving_way`]).
    pub waiting: Vec<Ours<'a>>,
}

/// At the start of a run that compares with `parent`: of the volume's snapshots for this repository only baselines are
/// kept. Those of others than the parent go when this run has committed ([`rotate`]), because until then they are what
/// the last one left. `in_use` says whose process still works with them.
pub fn tidy<'a>(
    inventory: &'a Inventory,
    origin: &'a Uuid,
    repository: RepoId,
    parent: Option<SessionId>,
    in_use: impl Fn(&Marks) -> bool,
) -> Tidy<'a> {
    let mut tidy = Tidy { baseline: None, why: None, remove: Vec::new(), waiting: Vec::new() };
    let (mut candidates, others): (Vec<_>, Vec<_>) =
        of(inventory, origin, repository).partition(|ours| parent.is_some() && ours.marks.session == parent);
    let goes = |ours: &Ours<'a>| !in_use(&ours.marks) && spared(inventory, ours).is_none();
    let waits = |ours: &Ours<'a>| ours.marks.baseline && unfit(ours).is_none();
    (tidy.waiting, tidy.remove) = others.into_iter().filter(&goes).partition(waits);
    match (candidates.pop(), candidates.is_empty()) {
        (None, _) => {
            tidy.why = parent.map(|parent| format!("this host has no LVM snapshot of the parent {parent}"));
        }
        (Some(one), false) => {
            // Nobody can tell which of them was read.
            tidy.why =
                Some(format!("{} claims to be the parent's, and others do too", one.volume.full_name()));
        }
        (Some(one), true) => match unfit(&one) {
            None => tidy.baseline = Some(one),
            Some(why) => {
                tidy.why = Some(format!("the parent's LVM snapshot {} {why}", one.volume.full_name()));
                tidy.remove.extend(Some(one).filter(&goes));
            }
        },
    }
    tidy
}

/// Those of the waiting baselines that go before the commit, because it could never come: their volume group has too
/// little room for one more exception store, and has enough without them. The largest go first, and no more than are
/// needed.
pub fn giving_way<'o, 'a>(waiting: &'o [Ours<'a>], refused: &NoRoom) -> Option<Vec<&'o Ours<'a>>> {
    let NoRoom::Group { vg, free, needed, .. } = refused else { return None };
    let in_group = |ours: &&Ours<'_>| ours.volume.is_thick_snapshot() && ours.volume.vg == *vg;
    let mut all: Vec<_> = waiting.iter().filter(in_group).collect();
    all.sort_by_key(|ours| std::cmp::Reverse(ours.volume.size));
    let (mut there, mut way) = (*free, Vec::new());
    for ours in all {
        if there >= *needed {
            break;
        }
        there = there.saturating_add(ours.volume.size);
        way.push(ours);
    }
    (there >= *needed).then_some(way)
}

/// The id of a reading of a snapshot: of LVM's identity of it.
pub(crate) fn reading_of(snapshot: &Uuid) -> ReadingId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"lvkeep 1 lvm reading").update(snapshot.as_str().as_bytes());
    let mut id = [0; 16];
    id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    ReadingId::from_bytes(id)
}

/// Why a snapshot says nothing about what changed.
pub(crate) fn unfit(ours: &Ours<'_>) -> Option<&'static str> {
    let attributes = &ours.volume.attributes;
    let overflowed =
        ours.volume.is_thick_snapshot() && ours.volume.data_percent.is_some_and(|full| full >= 100.0);
    if attributes.is_invalid() || overflowed {
        return Some("has overflowed (more was written than it had room for)");
    }
    if attributes.is_merging() {
        return Some("is being merged into its origin");
    }
    if attributes.is_writable() {
        return Some("was made writable, and may have been written to");
    }
    attributes.ailment().is_some().then_some("is not well: LVM reports a fault of it or of its pool")
}

/// After a session's commit was read back: what goes. The session's own snapshot stays where a baseline is wanted.
pub fn rotate<'a>(
    inventory: &'a Inventory,
    origin: &'a Uuid,
    repository: RepoId,
    committed: SessionId,
    keep: bool,
    in_use: impl Fn(&Marks) -> bool,
) -> Vec<Ours<'a>> {
    let ours = of(inventory, origin, repository);
    ours.filter(|ours| match ours.marks.session == Some(committed) {
        true => !keep,
        false => !in_use(&ours.marks),
    })
    .filter(|ours| spared(inventory, ours).is_none())
    .collect()
}

/// The snapshot that a session reads.
pub fn of_session<'a>(
    inventory: &'a Inventory,
    origin: &'a Uuid,
    repository: RepoId,
    session: SessionId,
) -> Option<Ours<'a>> {
    of(inventory, origin, repository).find(|ours| ours.marks.session == Some(session))
}

/// The snapshot that a group's run took of a volume, and that no session has claimed yet.
pub fn unclaimed<'a>(
    inventory: &'a Inventory,
    origin: &'a Uuid,
    repository: RepoId,
    run: JobId,
) -> Option<Ours<'a>> {
    let free = |ours: &Ours<'a>| ours.marks.group == Some(run) && ours.marks.session.is_none();
    of(inventory, origin, repository).find(free)
}

/// What became of a snapshot's session, as far as somebody can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Its snapshot is the newest of its volume in the archive: this is its baseline.
    Newest,
    /// It is open: somebody drives it.
    Open,
    /// It ended without a snapshot, or a newer one has been made since.
    Over,
    /// Nobody here can tell.
    Unknown,
    /// Nobody here can tell, and the operator says that nobody needs it.
    GivenUp,
}

/// Why a snapshot is an orphan, when the host is cleaned; none when it stays. What agents took, and nobody here can judge,
/// stays unless it is given up: an agent that starts again goes on with it, and it may be a baseline by the archive.
pub fn orphaned(
    inventory: &Inventory,
    ours: &Ours<'_>,
    fate: Fate,
    in_use: impl Fn(&Marks) -> bool,
) -> Option<&'static str> {
    if in_use(&ours.marks) {
        return None;
    }
    if inventory.by_uuid(&ours.marks.origin).is_none() {
        return Some("its origin does not exist any more");
    }
    // The next run of its volume says that a baseline has overflowed, and removes it.
    if ours.volume.attributes.is_invalid() && fate != Fate::Newest {
        return Some("it has overflowed");
    }
    match (fate, ours.marks.session, ours.marks.baseline) {
        (Fate::Unknown, None, _) if !ours.marks.embedded => None,
        (_, None, _) => Some("no session of its group came for it"),
        (Fate::Newest, ..) => None,
        (Fate::Open, ..) if ours.marks.embedded => {
            Some("the process that took it and drove its session is gone")
        }
        (Fate::Open, ..) => None,
        (Fate::Over, ..) => Some("its session is over, and it is not the baseline of its volume"),
        (Fate::Unknown | Fate::GivenUp, _, true) => None,
        (Fate::Unknown, ..) if !ours.marks.embedded => None,
        (Fate::Unknown | Fate::GivenUp, _, false) => Some("the process that took it is gone"),
    }
}
