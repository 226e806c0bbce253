//! Step 4: waits for the sessions that were open when the epoch stood there already.
//!
//! The first listing after the epoch is kept beside it, so that whoever goes on later waits for those alone: later
//! sessions have read the epoch. Where what is kept is damaged or empty, another listing takes its place. A session whose slot is decided can commit nothing else; its object is all that is left
//! of it. Whether another one is dead, only the operator knows, or a limit that the operator set. What only notes how a
//! restore's job ended reads nothing: it is not waited for, and it stays until the job cannot come again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use agent::counters::Gauge;
use agent::epochs::check_number;
use agent::store::Created;
use agent::{Failure, Repository, Stop};
use bytes::Bytes;
use schema::epoch::Awaited;
use schema::messages::FailureKind;
use schema::names;
use schema::session::{Session, SessionKind};
use schema::{JobId, Object, SessionId};

/// Pauses between two looks, from the first one to the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(20));

/// A session that a collection waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The session.
    pub session: SessionId,
    /// What it does; none when its object cannot be read.
    pub about: Option<About>,
}

/// What a session says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Backup, restore, or another kind.
    pub kind: SessionKind,
    /// The volume.
    pub volume: String,
    /// The host that drives it.
    pub host: String,
    /// When it began, in milliseconds since 1970.
    pub started_ms: u64,
}

/// How long to wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Patience {
    /// For sessions to end by themselves.
    pub wait: Duration,
    /// Sessions that began longer ago are declared dead.
    pub revoke_after: Option<Duration>,
}

/// The sessions whose objects exist, also those that cannot be read.
pub(crate) async fn listed(repository: &Repository) -> Result<BTreeSet<SessionId>, Failure> {
    let listed = repository.store.list(names::SESSIONS).await?;
    Ok(listed.iter().filter_map(|listed| names::parse_session(&listed.key).ok()).collect())
}

/// The jobs whose snapshots restores may still have to undo, and the sessions that say so.
pub(crate) async fn undone(repository: &Repository) -> Result<BTreeMap<JobId, SessionId>, Failure> {
    let mut jobs = BTreeMap::new();
    for id in listed(repository).await? {
        match repository.read::<Session>(&names::session(id)).await {
            Ok(Some(session)) => jobs.extend(session.undo.into_iter().map(|job| (job, id))),
            Ok(None) => {}
            Err(failure) if failure.kind == FailureKind::Store => return Err(failure),
            // It is waited for until an operator has looked at it.
            Err(failure) => tracing::warn!(%failure, "what this session would undo is not known"),
        }
    }
    Ok(jobs)
}

/// The sessions that an epoch waits for: as the first listing had them, or as a new one has them. Any that was made after
/// the epoch is right; the oldest has fewest sessions that began later.
pub(crate) async fn list_sessions(
    repository: &Repository,
    number: u64,
) -> Result<BTreeSet<SessionId>, Failure> {
    let key = names::awaited(number);
    let found = match repository.store.get(&key).await? {
        Some(found) => found,
        None => {
            let sessions = listed(repository).await?;
            match repository.store.create(&key, sealed(repository, number, &sessions)?).await? {
                Created::Won => return Ok(sessions),
                Created::Lost(found) => found,
            }
        }
    };
    match kept(repository, number, &found) {
        Ok(first) => Ok(first),
        Err(why) => list_anew(repository, number, why).await,
    }
}

/// Empties the list of a collection that is decided: it waits for nobody any more, and nobody may take a later session for
/// one of its; the list is damage all the same as long as it cannot be read. That it cannot be mended now stops nobody.
pub(crate) async fn mend_list(repository: &Repository, number: u64) {
    let mended = async {
        let Some(found) = repository.store.get(&names::awaited(number)).await? else { return Ok(()) };
        match kept(repository, number, &found) {
            Err(why) => mend(repository, number, &BTreeSet::new(), why).await,
            Ok(_) => Ok::<_, Failure>(()),
        }
    };
    if let Err(failure) = mended.await {
        tracing::warn!(%failure, "the list of a collection's sessions was not looked at");
    }
}

/// What a list says.
fn kept(repository: &Repository, number: u64, found: &[u8]) -> Result<BTreeSet<SessionId>, Failure> {
    let key = names::awaited(number);
    let awaited =
        Awaited::open(found, &repository.key, &key).map_err(|why| Failure::from(why).context(&key))?;
    check_number(Awaited::WHAT, awaited.number, number)?;
    Ok(awaited.sessions.into_iter().collect())
}

fn sealed(repository: &Repository, number: u64, sessions: &BTreeSet<SessionId>) -> Result<Bytes, Failure> {
    repository
        .seal(&names::awaited(number), &Awaited { number, sessions: sessions.iter().copied().collect() })
}

/// Lists the sessions in place of a list that cannot be read.
async fn list_anew(
    repository: &Repository,
    number: u64,
    why: Failure,
) -> Result<BTreeSet<SessionId>, Failure> {
    let sessions = listed(repository).await?;
    mend(repository, number, &sessions, why).await?;
    Ok(sessions)
}

/// Puts these sessions in place of a list that cannot be read. It stays where a later version has written it.
async fn mend(
    repository: &Repository,
    number: u64,
    sessions: &BTreeSet<SessionId>,
    why: Failure,
) -> Result<(), Failure> {
    tracing::warn!(%why, "the sessions that a collection waits for are listed anew");
    if why.kind != FailureKind::Damaged {
        return Ok(());
    }
    // Where nothing can be overwritten, each collector lists them by itself.
    if let Err(error) =
        repository.store.put(&names::awaited(number), sealed(repository, number, sessions)?).await
    {
        tracing::warn!(%error, "the list stays as it is");
    }
    Ok(())
}

/// Waits until these sessions are gone; returns those that are not. How old the oldest is that is waited for is told at
/// each look.
pub(crate) async fn wait(
    repository: &Repository,
    sessions: &BTreeSet<SessionId>,
    patience: Patience,
    stop: &Stop,
    age: &Gauge,
) -> Result<Vec<Waiting>, Failure> {
    let environment = repository.environment();
    let start = environment.elapsed();
    let mut pause = PAUSES.0;
    loop {
        let open = still_open(repository, sessions, patience).await?;
        age.set(oldest(repository, &open).as_secs());
        let left = patience.wait.saturating_sub(environment.elapsed().saturating_sub(start));
        if open.is_empty() || left.is_zero() || stop.is_raised() {
            return Ok(open);
        }
        environment.timeout(pause.min(left), stop.raised()).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// How long ago the first of these began, by its id where it does not say so.
fn oldest(repository: &Repository, open: &[Waiting]) -> Duration {
    let began = |waiting: &Waiting| match &waiting.about {
        Some(about) => about.started_ms,
        None => waiting.session.time_ms(),
    };
    let now = repository.environment().now_ms();
    Duration::from_millis(open.iter().map(began).min().map_or(0, |first| now.saturating_sub(first)))
}

/// Those of the sessions that are still open.
async fn open_of(
    repository: &Repository,
    sessions: &BTreeSet<SessionId>,
) -> Result<Vec<(Waiting, Option<Session>)>, Failure> {
    let mut open = Vec::new();
    let mut absent = false;
    for session in listed(repository).await?.intersection(sessions).copied() {
        let body = match repository.read::<Session>(&names::session(session)).await {
            Ok(Some(body)) if body.ended.is_some() => continue,
            Ok(Some(body)) => body,
            Ok(None) => {
                absent = true;
                open.push((Waiting { session, about: None }, None));
                continue;
            }
            Err(failure) => {
                tracing::warn!(%failure, "a session object cannot be read; its session is waited for all the same");
                open.push((Waiting { session, about: None }, None));
                continue;
            }
        };
        let (volume, host) = (body.volume.clone(), body.host.clone());
        let about = About { kind: body.kind, volume, host, started_ms: body.started_ms };
        open.push((Waiting { session, about: Some(about) }, Some(body)));
    }
    if absent {
        // One wrong answer must not end a session: that its object is gone, another listing has to say.
        let listed = listed(repository).await?;
        open.retain(|(waiting, _)| listed.contains(&waiting.session));
    }
    Ok(open)
}

/// Those of the sessions that are still open and may commit something, or read. Changes nothing.
pub(crate) async fn undecided(
    repository: &Repository,
    sessions: &BTreeSet<SessionId>,
) -> Result<Vec<Waiting>, Failure> {
    let mut open = Vec::new();
    for (waiting, session) in open_of(repository, sessions).await? {
        // The next collector removes what is left of it.
        if let Some(session) = session
            && is_decided(repository, &session).await?
        {
            continue;
        }
        open.push(waiting);
    }
    Ok(open)
}

async fn still_open(
    repository: &Repository,
    sessions: &BTreeSet<SessionId>,
    patience: Patience,
) -> Result<Vec<Waiting>, Failure> {
    let mut open = Vec::new();
    for (waiting, body) in open_of(repository, sessions).await? {
        let over = match body {
            Some(body) => is_over(repository, &body, patience).await?,
            None => false,
        };
        if !over {
            open.push(waiting);
        }
    }
    Ok(open)
}

/// Ends what is left of a session whose slot is decided, and decides the slot of one that is declared dead.
async fn is_over(repository: &Repository, session: &Session, patience: Patience) -> Result<bool, Failure> {
    if is_decided(repository, session).await? {
        agent::sessions::remove(repository, session).await?;
        return Ok(true);
    }
    let age = Duration::from_millis(repository.environment().now_ms().saturating_sub(session.started_ms));
    if patience.revoke_after.is_none_or(|limit| age < limit) {
        return Ok(false);
    }
    tracing::warn!(session = %session.id, volume = %session.volume, host = %session.host, "declared dead: its slot is occupied");
    occupy_slot(repository, session).await?;
    Ok(true)
}

/// Whether something stands at a session's slot, also what cannot be read: it can commit nothing else.
async fn is_decided(repository: &Repository, session: &Session) -> Result<bool, Failure> {
    match session.slot {
        Some(slot) => Ok(repository.store.head(&slot.snapshot()).await?.is_some()),
        None => Ok(false),
    }
}

/// Revokes a session: its slot first, whatever that comes to, and only then its object.
pub(crate) async fn occupy_slot(repository: &Repository, session: &Session) -> Result<(), Failure> {
    agent::sessions::revoke(repository, session).await.map(drop)
}
