//! Forgetting snapshots, and bringing them back until a collection has swept them.
//!
//! Forgetting creates a marker, and never touches the slot. What protects a snapshot is looked for right before that,
//! and again when the marker stands: whoever holds it looks for the marker after the hold stands, so that one of both
//! sees the other. A snapshot that was held meanwhile is brought back at once.
//!
//! Bringing back is a session that commits the same root in a new slot: (1) its object, (2) the latest epoch, (3) only
//! then the marker and the slot, (4) the commit, (5) its object is deleted. What the epoch sweeps stays forgotten.
//!
//! What of a snapshot is lost goes along, and is looked for once more between (4) and (5). Whoever marks a snapshot asks
//! [`also_at`] after that where it is to be marked, too: one of both sees the other, also when one of them dies.

use std::collections::BTreeSet;

use schema::damage::Holes;
use schema::facts::{COPIED_FROM, Origin};
use schema::messages::FailureKind;
use schema::names::{self, Slot, UNDO_VOLUMES};
use schema::root::{Forgotten, Root};
use schema::session::{Session, SessionKind};
use schema::{JobId, SessionId};

use crate::repository::AtSlot;
use crate::sessions::{self, Commit, OpenSession};
use crate::store::Created;
use crate::{Failure, Repository, Stop, marks};

/// What became of a snapshot that was to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Forgot {
    /// It is forgotten.
    Done,
    /// It stays, and this is why.
    Protected(String),
    /// Something came to protect it at the same moment: it stands in this slot now.
    BroughtBack(Slot, String),
}

/// Forgets a snapshot, unless something protects it.
pub async fn forget(repository: &Repository, root: &Root, by: &str) -> Result<Forgot, Failure> {
    if let Some(why) = protected(repository, root).await? {
        return Ok(Forgot::Protected(why));
    }
    mark_forgotten(repository, root.slot, by).await?;
    let Some(why) = protected(repository, root).await? else { return Ok(Forgot::Done) };
    // Whoever forgets many, as a policy does, waits for no store that is away.
    let stop = Stop::default();
    stop.raise();
    let back = bring_back(repository, root, by, &stop).await.map_err(|failure| {
        let (id, volume) = (root.slot.session, &root.volume);
        failure.context(format!("snapshot {id} of {volume} was forgotten, and must not be ({why})"))
    })?;
    Ok(Forgot::BroughtBack(back.root.slot, why))
}

/// Forgets a snapshot whose root cannot be read, unless something may protect it. It cannot be brought back.
pub async fn forget_damaged(repository: &Repository, slot: Slot, by: &str) -> Result<Forgot, Failure> {
    if let Some(why) = damaged_protected(repository, slot).await? {
        return Ok(Forgot::Protected(why));
    }
    mark_forgotten(repository, slot, by).await?;
    // A hold that came at this moment keeps collections away from it; nothing else undoes the marker.
    Ok(marks::of(repository, slot).await?.why_held().map_or(Forgot::Done, Forgot::Protected))
}

/// Why a snapshot whose root cannot be read must not be forgotten. It may be any that a restore may have to undo.
pub async fn damaged_protected(repository: &Repository, slot: Slot) -> Result<Option<String>, Failure> {
    match marks::of(repository, slot).await?.why_held() {
        Some(why) => Ok(Some(why)),
        None => restore_that_needs(repository, |undo| !undo.is_empty()).await,
    }
}

/// Creates the marker. Somebody else may have forgotten it already.
async fn mark_forgotten(repository: &Repository, slot: Slot, by: &str) -> Result<(), Failure> {
    let (key, time_ms) = (slot.forgotten(), repository.environment().now_ms());
    let marker = Forgotten { slot, time_ms, by: by.to_owned() };
    match repository.store.create(&key, repository.seal(&key, &marker)?).await? {
        Created::Won | Created::Lost(_) => Ok(()),
    }
}

/// Why a snapshot must not be forgotten: a hold, or a restore that may still have to be undone.
pub async fn protected(repository: &Repository, root: &Root) -> Result<Option<String>, Failure> {
    let is_undo = root.volume.starts_with(UNDO_VOLUMES);
    // What such a restore holds besides is of use only once that has ended.
    if is_undo && let Some(why) = restore_that_needs(repository, |undo| undo.contains(&root.job)).await? {
        return Ok(Some(why));
    }
    Ok(marks::of(repository, root.slot).await?.why_held())
}

/// Why what was kept for an undo must stay: a restore that has not ended, by the backups that it may need.
async fn restore_that_needs(
    repository: &Repository,
    is_needed: impl Fn(&[JobId]) -> bool,
) -> Result<Option<String>, Failure> {
    for listed in repository.store.list(names::SESSIONS).await? {
        match repository.read::<Session>(&listed.key).await {
            Ok(Some(Session { id, host, undo, .. })) if is_needed(&undo) => {
                return Ok(Some(format!(
                    "the restore that it was kept for has not ended: session {id} on {host} (`lvkeep cancel {id}` if it is \
                     dead)"
                )));
            }
            Ok(_) => {}
            Err(failure) if failure.kind == FailureKind::Store => return Err(failure),
            Err(failure) => {
                let why = failure.why;
                let id = listed.key.rsplit('/').next().unwrap_or_default();
                return Ok(Some(format!(
                    "a session that may be of its restore cannot be read ({why}): `lvkeep cancel {id}` says what to do"
                )));
            }
        }
    }
    Ok(None)
}

/// Holds a snapshot: from then on nothing forgets it, and no collection sweeps it. Refused when it is forgotten.
pub async fn hold(
    repository: &Repository,
    root: &Root,
    note: Option<String>,
    by: &str,
) -> Result<(), Failure> {
    let hold = marks::hold(repository, root.slot, note, by).await?;
    // Whoever forgets, and whoever collects, looks for holds after the marker: one of both sees the other.
    if repository.store.head(&root.slot.forgotten()).await?.is_none() {
        return Ok(());
    }
    marks::release(repository, root.slot, &[hold]).await?;
    let (id, volume) = (root.slot.session, &root.volume);
    Err(Failure::refused(format!(
        "snapshot {id} of {volume} was forgotten at this moment, and is not held: `lvkeep unforget {id}` brings it back"
    )))
}

/// A snapshot that was brought back.
#[derive(Debug, Clone)]
pub struct Back {
    /// Its root, in its new slot.
    pub root: Root,
    /// Whether it had been brought back before.
    pub already: bool,
}

/// Brings a forgotten snapshot back in a new slot, with the same content, generation, holds, tags, note and marked holes. Refuses when
/// it is not forgotten, and when a collection sweeps it or has swept it.
pub async fn unforget(repository: &Repository, root: &Root, by: &str) -> Result<Back, Failure> {
    // A command that is killed says nothing: it waits for a store that is away.
    bring_back(repository, root, by, &Stop::default()).await
}

/// The same, which waits for no store that is away once a word to stop came.
async fn bring_back(repository: &Repository, root: &Root, by: &str, stop: &Stop) -> Result<Back, Failure> {
    // Whoever brings this very snapshot back runs the same job, so that what a crashed attempt left is found.
    let job = job_of(root.slot);
    for session in sessions::list(repository).await? {
        if session.job == job && session.kind == SessionKind::Unforget {
            let at_slot = sessions::revoke(repository, &session).await?;
            if let (AtSlot::Tombstone, Some(slot)) = (at_slot, session.slot) {
                unmark(repository, slot).await;
            }
        }
    }
    if let Some(back) = brought_back(repository, root).await? {
        let_go(repository, root.slot).await;
        return Ok(Back { root: back, already: true });
    }
    let session = session(repository, root, job);
    let to = session.slot.unwrap_or(root.slot);
    let session = OpenSession::begin_alone(repository.clone(), session, stop).await?;
    let id = session.session().id;
    let mut holes = Carried { repository, from: root.slot, to, holes: None };
    let back = match commit_again(&session, root, &mut holes, by).await {
        Ok(back) => {
            let ended = match holes.carry().await {
                Ok(()) => session.end().await,
                Err(failure) => Err(failure),
            };
            if let Err(failure) = ended {
                tracing::warn!(%failure, "the snapshot is back; its session's object stays for the collector");
            }
            back
        }
        Err(failure) => match session.dismiss(stop).await {
            Ok(AtSlot::Snapshot(back)) => {
                if let Err(failure) = holes.carry().await {
                    tracing::warn!(%failure, "the snapshot is back; `lvkeep repair` marks again what of it is lost");
                }
                *back
            }
            Ok(AtSlot::Nothing | AtSlot::Tombstone) => {
                unmark(repository, to).await;
                return Err(failure);
            }
            Err(why) => return Err(sessions::left_open(id, failure, &why)),
        },
    };
    let_go(repository, root.slot).await;
    Ok(Back { root: back, already: false })
}

/// Deletes what was to be said of a snapshot that never came to be.
async fn unmark(repository: &Repository, slot: Slot) {
    if let Err(failure) = marks::remove(repository, slot).await {
        tracing::debug!(%slot, %failure, "marks of no snapshot stay");
    }
    if let Err(error) = repository.store.delete(&slot.holes()).await {
        tracing::debug!(%slot, %error, "holes of no snapshot stay");
    }
}

/// What of a snapshot is lost, on its way to where that comes back.
struct Carried<'a> {
    repository: &'a Repository,
    from: Slot,
    to: Slot,
    /// What was carried.
    holes: Option<Holes>,
}

impl Carried<'_> {
    /// Marks what comes back until nothing new is said of where it was. It overwrites nothing that was said meanwhile:
    /// who marks both marks where it was first.
    async fn carry(&mut self) -> Result<(), Failure> {
        let Self { repository, from, to, .. } = *self;
        loop {
            let holes = match repository.read::<Holes>(&from.holes()).await {
                Ok(Some(holes)) => holes,
                Ok(None) => return Ok(()),
                Err(failure) if failure.kind == FailureKind::Store => return Err(failure),
                Err(failure) => {
                    tracing::warn!(%from, %failure, "what of the snapshot is lost cannot be read: `lvkeep repair` marks it again");
                    return Ok(());
                }
            };
            if self.holes.as_ref() == Some(&holes) {
                return Ok(());
            }
            let (key, there) = (to.holes(), Holes { slot: to, ..holes.clone() });
            repository.store.put(&key, repository.seal(&key, &there)?).await?;
            self.holes = Some(holes);
        }
    }
}

/// The slots in which a snapshot stands that was brought back, or into which somebody is about to bring it. What is marked
/// at `root` before this is asked belongs there, too; whoever begins later looks at the mark by itself.
pub async fn also_at(repository: &Repository, root: &Root) -> Result<BTreeSet<Slot>, Failure> {
    if repository.store.head(&root.slot.forgotten()).await?.is_none() {
        return Ok(BTreeSet::new());
    }
    // Sessions before slots: the slot of one that is over is decided.
    let sessions = sessions::undamaged(repository).await?;
    let volume = Some(root.slot.volume);
    let mut slots = repository.visible_slots(volume).await?;
    slots.extend(repository.forgotten_slots(volume).await?);
    let standing = repository.roots_at(slots).await?.readable;
    let back = standing.iter().filter(|other| is_again(repository, root, other)).map(|other| other.slot);
    let mut at: BTreeSet<Slot> = back.collect();
    let jobs: BTreeSet<JobId> = at.iter().chain([&root.slot]).map(|slot| job_of(*slot)).collect();
    let coming = |session: &Session| session.kind == SessionKind::Unforget && jobs.contains(&session.job);
    at.extend(sessions.into_iter().filter(coming).filter_map(|session| session.slot));
    Ok(at)
}

/// The job of whoever brings back what stands in this slot.
fn job_of(slot: Slot) -> JobId {
    JobId::from_bytes(*slot.session.as_bytes())
}

/// Ends the holds of a forgotten snapshot whose copy carries them: no collection would ever sweep it.
async fn let_go(repository: &Repository, slot: Slot) {
    let released = async {
        let holds: Vec<_> = marks::of(repository, slot).await?.holds.iter().map(|hold| hold.id).collect();
        marks::release(repository, slot, &holds).await
    };
    if let Err(failure) = released.await {
        tracing::warn!(%slot, %failure, "the snapshot is back; where it was it may still be held, and is not collected");
    }
}

/// The snapshot with the same root that is visible now.
async fn brought_back(repository: &Repository, root: &Root) -> Result<Option<Root>, Failure> {
    let visible = repository.roots(Some(root.slot.volume)).await?.warned();
    Ok(visible.into_iter().find(|other| is_again(repository, root, other)))
}

/// Whether `other` is the snapshot `root`, brought back.
pub fn is_again(repository: &Repository, root: &Root, other: &Root) -> bool {
    let same = |root: Root| Root { slot: other.slot, ..root } == *other;
    other.slot != root.slot && (same(root.clone()) || same(again(repository, root)))
}

/// The same root, which says where it was made: what copies it takes it for the one that it was.
fn again(repository: &Repository, root: &Root) -> Root {
    let origin = Origin::of(root, repository.key.repo());
    let mut again = root.clone();
    again.layout.insert(COPIED_FROM.to_owned(), origin.to_string());
    again
}

/// Its id carries the time of the snapshot's, so that a later one of the same generation stays the later one.
fn session(repository: &Repository, root: &Root, job: JobId) -> Session {
    let environment = repository.environment();
    let random = u128::from_le_bytes(environment.random()) >> 48;
    let id = SessionId::from_parts(root.slot.session.time_ms(), random);
    Session {
        id,
        kind: SessionKind::Unforget,
        slot: Some(Slot { session: id, ..root.slot }),
        job,
        volume: root.volume.clone(),
        host: root.host.clone(),
        started_ms: environment.now_ms(),
        checkpoint: None,
        ended: None,
        undo: Vec::new(),
    }
}

/// Steps 3 and 4: the marker and the slot are looked at after the epoch was read.
async fn commit_again(
    session: &OpenSession,
    root: &Root,
    holes: &mut Carried<'_>,
    by: &str,
) -> Result<Root, Failure> {
    let Carried { repository, from, to, .. } = *holes;
    let (id, volume) = (root.slot.session, &root.volume);
    let refused = |why: &str| Failure::refused(format!("snapshot {id} of {volume} {why}"));
    if !session.knows_what_is_swept() {
        return Err(refused(
            "may be being swept by a collection that cannot be read: `lvkeep repair` finds out, and then it can be brought \
             back or not",
        ));
    }
    if session.sweeps(from) {
        return Err(refused("is being swept by a collection, and cannot be brought back"));
    }
    if repository.store.head(&from.forgotten()).await?.is_none() {
        return Err(refused("is not forgotten"));
    }
    let found = match repository.at_slot(from).await? {
        AtSlot::Snapshot(found) => *found,
        AtSlot::Nothing | AtSlot::Tombstone => return Err(refused("was swept by a collection, and is gone")),
    };
    // A hold counts from the moment of the commit.
    marks::carry(repository, from, to, by).await?;
    holes.carry().await?;
    let again = Root { slot: to, ..again(repository, &found) };
    match session.commit(&again).await? {
        Commit::Won => Ok(again),
        Commit::Revoked => {
            let why = format!(
                "session {} was cancelled, or another brings snapshot {id} of {volume} back: nothing was committed",
                session.session().id
            );
            Err(Failure::new(FailureKind::Revoked, why))
        }
    }
}
