//! Holds, tags and notes of snapshots, which stand beside their roots.
//!
//! A hold is an object under a fresh name. It is ended by deleting that, and a release deletes only the holds that it
//! has seen: one that is made at the same moment stays. Tags and note are written whole, under the number after the
//! highest, by create-if-absent; whoever writes looks again until the change stands in what counts, so that of changes
//! at one moment none is lost. A mark that cannot be read may be a hold, and counts as one.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::try_join_all;
use schema::mark::{self, Mark, Says};
use schema::messages::FailureKind;
use schema::names::{self, Slot};
use schema::root::Root;
use schema::{MarkId, VolumeKey};

use crate::{Failure, Repository};

/// Marks read at once.
const AT_ONCE: usize = 16;
/// How often a change of labels is written before others are let win.
const TRIES: usize = 16;
/// How often a snapshot's marks are looked at that vanish between a listing and reading them.
const LOOKS: usize = 8;

/// A hold of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Its name.
    pub id: MarkId,
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
    /// Who made it.
    pub by: String,
    /// Why.
    pub note: Option<String>,
}

/// Tags and note of a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    /// The tags, each once, in the order in which they were given.
    pub tags: Vec<String>,
    /// The note.
    pub note: Option<String>,
}

/// A mark that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Its key.
    pub key: String,
    /// Why.
    pub why: String,
    /// Whether it is damaged; otherwise a later version may have written it.
    pub is_damaged: bool,
}

/// What the marks of one snapshot say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks {
    /// Its holds; the oldest name first.
    pub holds: Vec<Hold>,
    /// Marks that cannot be read.
    pub unreadable: Vec<Unreadable>,
    labels: BTreeMap<u64, Labels>,
}

impl Marks {
    /// Whether nothing may forget the snapshot.
    pub fn is_held(&self) -> bool {
        !self.holds.is_empty() || !self.unreadable.is_empty()
    }

    /// Why nothing may forget it, for people.
    pub fn why_held(&self) -> Option<String> {
        let hold = |hold: &Hold| match &hold.note {
            Some(note) => format!("held by {} ({note})", hold.by),
            None => format!("held by {}", hold.by),
        };
        let unreadable =
            || Some(format!("a mark that may be a hold cannot be read: {}", self.unreadable.first()?.why));
        self.holds.first().map(hold).or_else(unreadable)
    }

    /// The tags and the note that count: the root's own until others were written.
    pub fn labels(&self, root: &Root) -> Labels {
        let own = || Labels { tags: root.tags.clone(), note: None };
        self.labels.last_key_value().map_or_else(own, |(_, labels)| labels.clone())
    }

    fn add(&mut self, id: MarkId, mark: Mark) {
        let Mark { time_ms, by, says, .. } = mark;
        match says {
            Says::Hold { note } => self.holds.push(Hold { id, time_ms, by, note }),
            Says::Labels { number, tags, note } => {
                self.labels.insert(number, Labels { tags, note });
            }
        }
        self.holds.sort_by_key(|hold| hold.id);
    }
}

/// What the marks of one snapshot say now.
pub async fn of(repository: &Repository, slot: Slot) -> Result<Marks, Failure> {
    Ok(below(repository, &slot.marks(), |_| true).await?.remove(&slot).unwrap_or_default())
}

/// What the marks of all snapshots say, or of one volume's; those without marks are left out.
pub async fn all(
    repository: &Repository,
    volume: Option<VolumeKey>,
) -> Result<BTreeMap<Slot, Marks>, Failure> {
    let folder =
        volume.map_or_else(|| names::MARKS.to_owned(), |volume| format!("{}/{volume}", names::MARKS));
    below(repository, &folder, |_| true).await
}

/// What the marks of these snapshots say: one listing, and their marks; those without marks are left out.
pub async fn among(
    repository: &Repository,
    slots: &BTreeSet<Slot>,
) -> Result<BTreeMap<Slot, Marks>, Failure> {
    below(repository, names::MARKS, |slot| slots.contains(slot)).await
}

/// The keys of the marks of these snapshots.
pub async fn keys(repository: &Repository, slots: &BTreeSet<Slot>) -> Result<Vec<String>, Failure> {
    let listed = repository.store.list(names::MARKS).await?;
    let named = listed
        .into_iter()
        .filter(|listed| names::parse_mark(&listed.key).is_ok_and(|(slot, _)| slots.contains(&slot)));
    Ok(named.map(|listed| listed.key).collect())
}

/// What the marks below a folder say. Where one vanished since the listing, what replaced it may not have been listed.
async fn below(
    repository: &Repository,
    folder: &str,
    wanted: impl Fn(&Slot) -> bool,
) -> Result<BTreeMap<Slot, Marks>, Failure> {
    let (mut marks, mut vanished) = look(repository, folder, wanted).await?;
    for _ in 1..LOOKS {
        for slot in std::mem::take(&mut vanished) {
            marks.remove(&slot);
            let (again, gone) = look(repository, &slot.marks(), |_| true).await?;
            marks.extend(again);
            vanished.extend(gone);
        }
    }
    match vanished.first() {
        None => Ok(marks),
        Some(slot) => Err(Failure {
            kind: FailureKind::Store,
            retry: true,
            why: format!(
                "the object store lists marks below {} and does not give them: try again",
                slot.marks()
            ),
        }),
    }
}

/// What the marks say that one listing shows, and of which snapshots any of them was gone when it was read.
async fn look(
    repository: &Repository,
    folder: &str,
    wanted: impl Fn(&Slot) -> bool,
) -> Result<(BTreeMap<Slot, Marks>, BTreeSet<Slot>), Failure> {
    let (mut marks, mut vanished) = (BTreeMap::<Slot, Marks>::new(), BTreeSet::new());
    let listed = repository.store.list(folder).await?;
    let mut named = Vec::new();
    for listed in listed {
        let Some(slot) = names::marked(&listed.key).filter(&wanted) else { continue };
        match names::parse_mark(&listed.key) {
            Ok((_, id)) => named.push((slot, id)),
            Err(_) => {
                let (why, key) = (format!("{} is no mark", listed.key), listed.key);
                let strange = Unreadable { key, why, is_damaged: false };
                marks.entry(slot).or_default().unreadable.push(strange);
            }
        }
    }
    for some in named.chunks(AT_ONCE) {
        let read = try_join_all(some.iter().map(|(slot, id)| read(repository, *slot, *id))).await?;
        for ((slot, id), found) in some.iter().zip(read) {
            match found {
                Ok(Some(mark)) => marks.entry(*slot).or_default().add(*id, mark),
                Ok(None) => {
                    vanished.insert(*slot);
                }
                Err(failure) => {
                    let (key, is_damaged) = (slot.mark(*id), failure.kind == FailureKind::Damaged);
                    let unreadable = Unreadable { key, why: failure.why, is_damaged };
                    marks.entry(*slot).or_default().unreadable.push(unreadable);
                }
            }
        }
    }
    Ok((marks, vanished))
}

/// One mark, or why it cannot be read; a store that does not answer is an error.
async fn read(
    repository: &Repository,
    slot: Slot,
    id: MarkId,
) -> Result<Result<Option<Mark>, Failure>, Failure> {
    match repository.read::<Mark>(&slot.mark(id)).await {
        Ok(found) => Ok(found.map(|mark| mark.check(slot, id).map_err(Failure::from)).transpose()),
        Err(failure) if failure.kind == FailureKind::Store => Err(failure),
        Err(failure) => Ok(Err(failure)),
    }
}

/// Writes a hold; it stands when this returns.
pub async fn hold(
    repository: &Repository,
    slot: Slot,
    note: Option<String>,
    by: &str,
) -> Result<MarkId, Failure> {
    mark::check_note(note.as_deref()).map_err(refused)?;
    write_hold(repository, slot, by, note).await
}

/// Deletes these holds of a snapshot.
pub async fn release(repository: &Repository, slot: Slot, holds: &[MarkId]) -> Result<(), Failure> {
    for id in holds {
        repository.store.delete(&slot.mark(*id)).await?;
    }
    Ok(())
}

/// Deletes those of a snapshot's marks that are damaged, and still are when they are read again. Each may be a hold, and
/// counts as one: this is for whoever releases the snapshot.
pub async fn remove_damaged(repository: &Repository, slot: Slot, marks: &Marks) -> Result<usize, Failure> {
    let mut removed = 0;
    for unreadable in marks.unreadable.iter().filter(|mark| mark.is_damaged) {
        let Ok((_, id)) = names::parse_mark(&unreadable.key) else { continue };
        let again = read(repository, slot, id).await?;
        if again.is_err_and(|failure| failure.kind == FailureKind::Damaged) {
            repository.store.delete(&unreadable.key).await?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Deletes all that is said of a slot in which there will never be a snapshot.
pub async fn remove(repository: &Repository, slot: Slot) -> Result<(), Failure> {
    for listed in repository.store.list(&slot.marks()).await? {
        repository.store.delete(&listed.key).await?;
    }
    Ok(())
}

/// Changes tags and note of a snapshot, and says what they are then. `change` is done again where others write at the
/// same moment, and must change nothing the second time.
pub async fn label(
    repository: &Repository,
    root: &Root,
    by: &str,
    change: impl Fn(&mut Labels),
) -> Result<Labels, Failure> {
    for _ in 0..TRIES {
        let found = of(repository, root.slot).await?;
        if let Some(Unreadable { why, .. }) = found.unreadable.first() {
            let (id, volume) = (root.slot.session, &root.volume);
            return Err(Failure::refused(format!(
                "a mark of snapshot {id} of {volume} cannot be read, and may be its tags: {why}"
            )));
        }
        let before = found.labels(root);
        let mut after = before.clone();
        change(&mut after);
        if after == before {
            return Ok(after);
        }
        let Labels { tags, note } = after;
        mark::check_tags(&tags).and_then(|()| mark::check_note(note.as_deref())).map_err(refused)?;
        let number = next_number(&found, root)?;
        create_labels(repository, root.slot, by, number, Labels { tags, note }).await?;
        for older in found.labels.keys() {
            // What counts has a higher number, whoever wrote it.
            repository.store.delete_or_leave(&root.slot.labels(*older)).await?;
        }
    }
    let (id, volume) = (root.slot.session, &root.volume);
    Err(Failure::refused(format!(
        "others change the tags of snapshot {id} of {volume} all the time: try again"
    )))
}

/// The number after the highest, of which there are as many as a name has room for.
fn next_number(found: &Marks, root: &Root) -> Result<u64, Failure> {
    let highest = found.labels.last_key_value().map_or(0, |(number, _)| *number);
    let fits = |number: &u64| MarkId::from_parts(*number, 0).time_ms() == *number;
    highest.checked_add(1).filter(fits).ok_or_else(|| {
        let (id, volume) = (root.slot.session, &root.volume);
        Failure::refused(format!(
            "the tags of snapshot {id} of {volume} have the highest number that there is: `lvkeep` did not write {}",
            root.slot.labels(highest)
        ))
    })
}

/// Copies what is said of a snapshot to another slot.
pub async fn carry(repository: &Repository, from: Slot, to: Slot, by: &str) -> Result<(), Failure> {
    let marks = of(repository, from).await?;
    if let Some(Unreadable { why, .. }) = marks.unreadable.first() {
        return Err(Failure::refused(format!("a mark of snapshot {} cannot be read: {why}", from.session)));
    }
    for hold in marks.holds {
        write_hold(repository, to, &hold.by, hold.note).await?;
    }
    match marks.labels.into_iter().next_back() {
        Some((_, labels)) => create_labels(repository, to, by, 1, labels).await,
        None => Ok(()),
    }
}

/// Writes labels, unless others have this number already.
async fn create_labels(
    repository: &Repository,
    slot: Slot,
    by: &str,
    number: u64,
    Labels { tags, note }: Labels,
) -> Result<(), Failure> {
    let key = slot.labels(number);
    let mark = new_mark(repository, slot, by, Says::Labels { number, tags, note });
    repository.store.create(&key, repository.seal(&key, &mark)?).await?;
    Ok(())
}

async fn write_hold(
    repository: &Repository,
    slot: Slot,
    by: &str,
    note: Option<String>,
) -> Result<MarkId, Failure> {
    let id = repository.environment().mark_id();
    let (key, mark) = (slot.mark(id), new_mark(repository, slot, by, Says::Hold { note }));
    repository.store.put(&key, repository.seal(&key, &mark)?).await?;
    Ok(id)
}

fn new_mark(repository: &Repository, slot: Slot, by: &str, says: Says) -> Mark {
    let time_ms = repository.environment().now_ms();
    Mark { version: Mark::VERSION, slot, time_ms, by: by.to_owned(), says }
}

/// What an operator asks for is too large; nothing that is stored is damaged.
fn refused(error: schema::FormatError) -> Failure {
    Failure::refused(error.to_string())
}
