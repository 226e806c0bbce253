//! The latest collection, as everybody reads it.
//!
//! Names under `gc/` are never deleted. So one that is listed and not there is an answer that nobody may go by: what a
//! collection condemns would count as there for ever. Nobody empties an object of the latest collection: one that is
//! empty is damaged, and an epoch that is gone is missed by what is left of the same number. What is damaged stops nobody
//! who can be certain without it: a verdict deletes nothing but what its epoch condemned, and says by itself what it
//! deletes.

use std::collections::{BTreeMap, BTreeSet};

use schema::epoch::{Awaited, Epoch, Verdict};
use schema::messages::FailureKind;
use schema::names::Slot;
use schema::{Object, PackId, SessionId, names};

use crate::{Failure, Repository};

/// What of a collection's objects there is to read.
#[derive(Debug, Clone)]
pub enum Stored<T> {
    /// Nothing.
    Nothing,
    /// It.
    Is(T),
    /// Something that cannot be read, or is empty.
    Unreadable(Failure),
}

/// The collection with the highest number.
#[derive(Debug, Clone)]
pub struct Latest {
    /// Its number.
    pub number: u64,
    /// Its epoch, or why that cannot be read.
    pub epoch: Result<Epoch, Failure>,
    /// Its verdict, if there is one.
    pub verdict: Stored<Verdict>,
}

/// What nobody who begins now may rely on.
#[derive(Debug, Clone)]
pub struct Condemned {
    /// Packs.
    pub packs: BTreeSet<PackId>,
    /// Forgotten snapshots; none when nobody knows which.
    pub swept: Option<BTreeSet<Slot>>,
}

impl Latest {
    /// What it condemns: its verdict, or before there is one, everything that it proposed. One that is finished condemns
    /// packs that are gone anyway, so that nobody needs to know whether it is.
    pub fn condemned(self) -> Result<Condemned, Failure> {
        let (packs, forgotten) = match (self.verdict, self.epoch) {
            (Stored::Is(verdict), epoch) => (verdict.delete, epoch.ok().map(|epoch| epoch.forgotten)),
            (_, Ok(epoch)) => (epoch.condemned, Some(epoch.forgotten)),
            (verdict, Err(why)) => return Err(unknown(self.number, why, &verdict)),
        };
        let swept = forgotten.map(|forgotten| forgotten.into_iter().collect());
        Ok(Condemned { packs: packs.into_iter().collect(), swept })
    }
}

/// Nobody knows what a collection condemns. What a later version wrote is refused as it is.
pub fn unknown(number: u64, why: Failure, verdict: &Stored<Verdict>) -> Failure {
    let what = match verdict {
        _ if why.kind == FailureKind::Refused => return why,
        Stored::Unreadable(verdict) => format!(
            "nor can its verdict ({verdict}), so that nobody knows which packs it deletes: bring one of the two objects \
             back, from a version that the store keeps or from another copy of the bucket"
        ),
        _ => "and it has no verdict, so that nobody knows which packs it condemns: `lvkeep repair` decides that it \
              deletes none, and everything goes on"
            .to_owned(),
    };
    Failure::damaged(format!("collection {number} cannot be read ({why}), {what}"))
}

/// Reads the latest collection, if there ever was one.
pub async fn latest(repository: &Repository) -> Result<Option<Latest>, Failure> {
    let listed = repository.store.list(names::EPOCHS).await?;
    let sizes: BTreeMap<String, u64> = listed.into_iter().map(|listed| (listed.key, listed.size)).collect();
    let Some(number) = sizes.keys().filter_map(|key| number_of(key)).max() else { return Ok(None) };
    // The epoch is read before its verdict is looked for: a verdict that appears in between condemns fewer packs.
    let key = names::epoch(number);
    let epoch: Result<Epoch, Failure> = match stored(repository, &key, sizes.get(&key).copied()).await? {
        Stored::Is(epoch) => Ok(epoch),
        Stored::Nothing => Err(Failure::damaged(format!("{key} is gone"))),
        Stored::Unreadable(why) => Err(why),
    };
    if let Ok(epoch) = &epoch {
        check_number(Epoch::WHAT, epoch.number, number)?;
    }
    let key = names::verdict(number);
    let verdict: Stored<Verdict> = stored(repository, &key, sizes.get(&key).copied()).await?;
    if let Stored::Is(verdict) = &verdict {
        check_number(Verdict::WHAT, verdict.number, number)?;
    }
    Ok(Some(Latest { number, epoch, verdict }))
}

/// An epoch's verdict, if there is one.
pub async fn verdict(repository: &Repository, number: u64) -> Result<Option<Verdict>, Failure> {
    let verdict: Option<Verdict> = repository.read(&names::verdict(number)).await?;
    if let Some(verdict) = &verdict {
        check_number(Verdict::WHAT, verdict.number, number)?;
    }
    Ok(verdict)
}

/// The number of the collection whose object has this key.
pub fn number_of(key: &str) -> Option<u64> {
    names::parse_epoch(key.strip_suffix(names::AWAITED).unwrap_or(key)).ok().map(|(number, _)| number)
}

/// Reads one of the latest collection's objects, of which a listing had the size.
async fn stored<T: Object>(
    repository: &Repository,
    key: &str,
    listed: Option<u64>,
) -> Result<Stored<T>, Failure> {
    match (repository.read::<T>(key).await, listed) {
        (Ok(Some(value)), _) => Ok(Stored::Is(value)),
        (Ok(None), None) => Ok(Stored::Nothing),
        (Ok(None), Some(0)) => Ok(Stored::Unreadable(Failure::damaged(format!("{key} is empty")))),
        (Ok(None), Some(_)) => Err(not_there(key)),
        (Err(failure), _) if matches!(failure.kind, FailureKind::Damaged | FailureKind::Refused) => {
            Ok(Stored::Unreadable(failure))
        }
        (Err(failure), _) => Err(failure),
    }
}

/// The sessions that the latest collection waits for. Before it has listed them nobody knows: it may have stopped, and
/// will wait for all that are there when it goes on.
pub async fn awaited(repository: &Repository) -> Result<Option<Vec<SessionId>>, Failure> {
    let listed = repository.store.list(names::EPOCHS).await?;
    let Some(number) = listed.iter().filter_map(|listed| number_of(&listed.key)).max() else {
        return Ok(None);
    };
    let key = names::awaited(number);
    let size = listed.iter().find(|listed| listed.key == key).map(|listed| listed.size);
    match stored::<Awaited>(repository, &key, size).await? {
        Stored::Is(awaited) => {
            check_number(Awaited::WHAT, awaited.number, number)?;
            Ok(Some(awaited.sessions))
        }
        Stored::Nothing => Ok(None),
        Stored::Unreadable(why) => Err(why),
    }
}

/// Refuses an object that says that it is of another collection.
pub fn check_number(what: &str, found: u64, expected: u64) -> Result<(), Failure> {
    match found == expected {
        true => Ok(()),
        false => Err(Failure::damaged(format!("{what} {expected} says that it is {found}"))),
    }
}

fn not_there(key: &str) -> Failure {
    let why = format!(
        "the object store lists {key} and does not give it, so that nobody knows what is being deleted; try again"
    );
    Failure { kind: FailureKind::Store, retry: true, why }
}
