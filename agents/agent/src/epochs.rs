//! The latest collection, as everybody reads it.
//!
//! Names under `gc/` are never deleted. So one that is listed and not there is an answer that nobody may go by: what a
//! collection condemns would count as there for ever. Only a listing says that an epoch shrank to nothing. One that is
//! damaged stops nobody who can be certain without it: a verdict deletes nothing but what its epoch condemned, and says
//! by itself what it deletes.

use std::collections::{BTreeMap, BTreeSet};

use schema::epoch::{Awaited, Epoch, Verdict};
use schema::messages::FailureKind;
use schema::names::Slot;
use schema::{Object, PackId, SessionId, names};

use crate::{Failure, Repository};

/// What of a collection's objects there is to read.
#[derive(Debug, Clone)]
pub enum Stored<T> {
    /// Nothing, or no more than an empty object.
    Nothing,
    /// It.
    Is(T),
    /// Something that cannot be read, or not any more.
    Unreadable(Failure),
}

/// The collection with the highest number.
#[derive(Debug, Clone)]
pub struct Latest {
    /// Its number.
    pub number: u64,
    /// Its epoch; nothing when that shrank to nothing, because the collection is finished.
    pub epoch: Stored<Epoch>,
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
        let epoch = match self.epoch {
            Stored::Nothing => Ok((Vec::new(), Some(BTreeSet::new()))),
            Stored::Is(epoch) => Ok((epoch.condemned, Some(epoch.forgotten.into_iter().collect()))),
            Stored::Unreadable(why) => Err(why),
        };
        let (packs, swept) = match (self.verdict, epoch) {
            (Stored::Is(verdict), epoch) => (verdict.delete, epoch.ok().and_then(|(_, swept)| swept)),
            (_, Ok(proposed)) => proposed,
            (verdict, Err(why)) => return Err(unknown(self.number, why, &verdict)),
        };
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
    let Some(number) =
        sizes.keys().filter_map(|key| names::parse_epoch(key).ok()).map(|(number, _)| number).max()
    else {
        return Ok(None);
    };
    // The epoch is read before its verdict is looked for: a verdict that appears in between condemns fewer packs.
    let key = names::epoch(number);
    let epoch = match sizes.get(&key) {
        Some(0) => Stored::Nothing,
        listed => match stored::<Epoch>(repository, &key, listed.is_some()).await? {
            Stored::Nothing => return Err(not_there(&key)),
            read => read,
        },
    };
    if let Stored::Is(epoch) = &epoch {
        check_number(Epoch::WHAT, epoch.number, number)?;
    }
    let key = names::verdict(number);
    let verdict = match stored::<Verdict>(repository, &key, true).await? {
        Stored::Nothing => match sizes.get(&key) {
            None => Stored::Nothing,
            Some(0) => Stored::Unreadable(Failure::damaged(format!("{key} is empty"))),
            Some(_) => return Err(not_there(&key)),
        },
        read => read,
    };
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

/// Reads one of a collection's objects. One that is neither listed nor there is gone.
async fn stored<T: Object>(
    repository: &Repository,
    key: &str,
    is_listed: bool,
) -> Result<Stored<T>, Failure> {
    match repository.read::<T>(key).await {
        Ok(Some(value)) => Ok(Stored::Is(value)),
        Ok(None) if !is_listed => Ok(Stored::Unreadable(Failure::damaged(format!("{key} is gone")))),
        Ok(None) => Ok(Stored::Nothing),
        Err(failure) if matches!(failure.kind, FailureKind::Damaged | FailureKind::Refused) => {
            Ok(Stored::Unreadable(failure))
        }
        Err(failure) => Err(failure),
    }
}

/// The sessions that the latest collection waits for. Before it has listed them nobody knows: it may have stopped, and
/// will wait for all that are there when it goes on.
pub async fn awaited(repository: &Repository) -> Result<Option<Vec<SessionId>>, Failure> {
    let listed = repository.store.list(names::EPOCHS).await?;
    let numbers = listed.iter().filter_map(|listed| names::parse_epoch(&listed.key).ok());
    let Some(number) = numbers.map(|(number, _)| number).max() else { return Ok(None) };
    let key = names::awaited(number);
    match repository.read::<Awaited>(&key).await? {
        Some(awaited) => {
            check_number(Awaited::WHAT, awaited.number, number)?;
            Ok(Some(awaited.sessions))
        }
        None if listed.iter().any(|listed| listed.key == key) => Err(not_there(&key)),
        None => Ok(None),
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
