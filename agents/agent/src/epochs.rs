//! The latest collection, as everybody reads it.
//!
//! Names under `gc/` are never deleted. So one that is listed and not there is an answer that nobody may go by: what a
//! collection condemns would count as there for ever. Only a listing says that an epoch shrank to nothing.

use std::collections::BTreeMap;

use schema::epoch::{Awaited, Epoch, Verdict};
use schema::messages::FailureKind;
use schema::{Object, SessionId, names};

use crate::{Failure, Repository};

/// The collection with the highest number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Latest {
    /// Its number.
    pub number: u64,
    /// Its epoch; none when that shrank to nothing, because the collection is finished.
    pub epoch: Option<Epoch>,
    /// Its verdict, if there is one.
    pub verdict: Option<Verdict>,
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
    let epoch: Option<Epoch> = match sizes.get(&key) {
        Some(0) => None,
        _ => Some(repository.read(&key).await?.ok_or_else(|| not_there(&key))?),
    };
    if let Some(epoch) = &epoch {
        check_number(Epoch::WHAT, epoch.number, number)?;
    }
    let key = names::verdict(number);
    let verdict = verdict(repository, number).await?;
    match (&verdict, sizes.get(&key)) {
        (None, Some(1..)) => Err(not_there(&key)),
        _ => Ok(Some(Latest { number, epoch, verdict })),
    }
}

/// An epoch's verdict, if there is one.
pub async fn verdict(repository: &Repository, number: u64) -> Result<Option<Verdict>, Failure> {
    let verdict: Option<Verdict> = repository.read(&names::verdict(number)).await?;
    if let Some(verdict) = &verdict {
        check_number(Verdict::WHAT, verdict.number, number)?;
    }
    Ok(verdict)
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
