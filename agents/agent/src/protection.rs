//! Protects snapshots while they are read, by a session without a slot: collections wait for it.
//!
//! It begins before anybody looks where chunks are. What is needed of a pack that is found after that stays there, or
//! is in another pack that is found, too. It must be ended in every outcome: what is left of a process that died keeps
//! collections waiting until `lvkeep cancel` removes it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use schema::messages::FailureKind;
use schema::names::Slot;
use schema::root::Root;
use schema::session::{Session, SessionKind};
use schema::{JobId, SessionId};
use tokio::sync::Mutex;

use crate::repository::AtSlot;
use crate::sessions::{self, ENDING_PATIENCE, OpenSession};
use crate::{Failure, Repository, Stop, epochs};

/// Who reads, as others are told.
#[derive(Debug, Clone, Copy)]
pub struct ReadBy<'a> {
    /// What is done with what is read.
    pub kind: SessionKind,
    /// A fresh id.
    pub session: SessionId,
    /// The job that reads.
    pub job: JobId,
    /// What is read.
    pub volume: &'a str,
    /// Where.
    pub host: &'a str,
    /// Backups of what will be overwritten: they are not forgotten before this ends.
    pub undo: &'a [JobId],
}

/// Protects what is read in a repository, unless its store takes no session. Clones share it.
#[derive(Debug, Clone)]
pub struct Protection {
    repository: Repository,
    session: Option<Arc<OpenSession>>,
    /// Backups of what will be overwritten, as the session's object names them.
    undo: Arc<Mutex<Vec<JobId>>>,
    /// After which no store is waited for.
    stop: Stop,
    ended: Arc<Ended>,
}

/// How far the end of one came, whichever of its clones saw it.
#[derive(Debug, Default)]
struct Ended {
    is_over: AtomicBool,
    /// Somebody has waited for it, and was told that it may stay.
    is_told: AtomicBool,
}

impl Protection {
    /// Begins a session. A store that is full or read-only, or an epoch that cannot be read, must not keep anybody from
    /// restoring: that nothing is protected then is said. What is kept for an undo has to be protected. After a word to stop,
    /// the end waits for no store.
    pub async fn begin(repository: &Repository, by: ReadBy<'_>, stop: &Stop) -> Result<Self, Failure> {
        let session = Session {
            id: by.session,
            kind: by.kind,
            slot: None,
            job: by.job,
            volume: by.volume.to_owned(),
            host: by.host.to_owned(),
            started_ms: repository.environment().now_ms(),
            checkpoint: None,
            ended: None,
            undo: by.undo.to_vec(),
        };
        let session = match OpenSession::begin_alone(repository.clone(), session, stop).await {
            Ok(session) => Some(Arc::new(session)),
            Err(failure) if by.undo.is_empty() && is_no_reason(failure.kind) => {
                let why = failure.to_string();
                tracing::warn!(
                    why,
                    "reading without protection: a collection at the same time would end this"
                );
                None
            }
            Err(failure) => {
                return Err(failure.context(format!("cannot protect {} while it is read", by.volume)));
            }
        };
        let undo = Arc::new(Mutex::new(by.undo.to_vec()));
        let (repository, stop, ended) = (repository.clone(), stop.clone(), Arc::default());
        Ok(Self { repository, session, undo, stop, ended })
    }

    /// None at all.
    pub fn none(repository: &Repository) -> Self {
        let (undo, stop, ended) = Default::default();
        Self { repository: repository.clone(), session: None, undo, stop, ended }
    }

    /// Also keeps these backups of what will be overwritten from being forgotten, until it ends.
    pub async fn keep(&self, undo: &[JobId], volume: &str) -> Result<(), Failure> {
        let mut all = self.undo.lock().await;
        let cannot = |failure: Failure| {
            failure
                .context(format!("cannot protect what stood on the target of {volume} until it is restored"))
        };
        let Some(session) = &self.session else {
            return Err(cannot(Failure::refused("no session protects what is read")));
        };
        let undo: Vec<JobId> = all.iter().chain(undo).copied().collect();
        session.name_undo(undo.clone()).await.map_err(cannot)?;
        *all = undo;
        Ok(())
    }

    /// The session, where there is one.
    pub fn session(&self) -> Option<&Arc<OpenSession>> {
        self.session.as_ref()
    }

    /// Refuses a snapshot that somebody forgot before this began: a collection may not wait for whoever reads it. One that
    /// is forgotten later stays until the end; so does one that an earlier attempt of the same job protects.
    pub async fn check(&self, root: &Root) -> Result<(), Failure> {
        let (slot, volume, id) = (root.slot, &root.volume, root.slot.session);
        // In this order: a snapshot that is not forgotten now is in no collection that began before this.
        let is_forgotten = self.repository.store.head(&slot.forgotten()).await?.is_some();
        let is_safe = !is_forgotten || self.is_gone_on_with(slot).await?;
        match self.repository.at_slot(slot).await? {
            AtSlot::Tombstone => {
                Err(Failure::refused(format!("the snapshot {slot} of {volume} was collected")))
            }
            AtSlot::Snapshot(_) | AtSlot::Nothing if !is_safe => Err(Failure::refused(format!(
                "the snapshot {slot} of {volume} was forgotten, and a collection may remove it at any time: `lvkeep unforget \
                 {id}` brings it back (`lvkeep snapshots` lists the others)"
            ))),
            AtSlot::Snapshot(_) | AtSlot::Nothing => Ok(()),
        }
    }

    /// Whether an attempt of the same job that died had begun before a snapshot was forgotten. Its session must still be
    /// there, and a collection that sweeps the snapshot already must be waiting for it.
    async fn is_gone_on_with(&self, slot: Slot) -> Result<bool, Failure> {
        let Some(session) = &self.session else { return Ok(false) };
        let own = session.session();
        let others = sessions::of_job(&self.repository, own.job).await?;
        let others = others.into_iter().filter(|other| other.id != own.id && other.ended.is_none());
        let earlier: BTreeSet<SessionId> = others.map(|other| other.id).collect();
        match earlier.is_empty() || !session.sweeps(slot) {
            // Later collections wait for this session, too.
            true => Ok(!earlier.is_empty()),
            false => {
                let awaited = epochs::awaited(&self.repository).await?.ok_or_else(|| is_undecided(slot))?;
                Ok(awaited.iter().any(|session| earlier.contains(session)))
            }
        }
    }

    /// Says so when something was missing because nothing protected the snapshot any more.
    pub async fn explained(&self, root: &Root, failure: Failure) -> Failure {
        if !matches!(failure.kind, FailureKind::Damaged | FailureKind::Store) {
            return failure;
        }
        let volume = &root.volume;
        let because = match &self.session {
            Some(session) if matches!(session.exists().await, Ok(false)) => {
                format!("because the session {} of whoever read was declared dead", session.session().id)
            }
            Some(_) => return failure,
            None if matches!(self.repository.at_slot(root.slot).await, Ok(AtSlot::Tombstone)) => {
                "because nothing protected it".to_owned()
            }
            None => return failure,
        };
        let why =
            format!("the snapshot of {volume} was collected while it was read, {because} ({})", failure.why);
        Failure::new(FailureKind::Revoked, why)
    }

    /// Deletes the session's object, after what was read came to this. A store that is away is waited for; where the session
    /// may stay open all the same, a failure says so, and else the log; what was said once is only tried once more.
    pub async fn end<T>(self, done: Result<T, Failure>) -> Result<T, Failure> {
        let Some(session) = &self.session else { return done };
        if self.ended.is_over.load(Ordering::Relaxed) {
            return done;
        }
        let session = session.session();
        let was_told = self.ended.is_told.load(Ordering::Relaxed);
        let patience = if was_told { Duration::ZERO } else { ENDING_PATIENCE };
        let ended = sessions::dismiss(&self.repository, session, &self.stop, patience).await;
        self.ended.is_over.store(ended.is_ok(), Ordering::Relaxed);
        self.ended.is_told.store(true, Ordering::Relaxed);
        match (ended, done) {
            (Ok(_), done) => done,
            (Err(_), done) if was_told => done,
            (Err(why), Ok(done)) => {
                sessions::warn_left_open(session.id, &why);
                Ok(done)
            }
            (Err(why), Err(failure)) => Err(sessions::left_open(session.id, failure, &why)),
        }
    }
}

/// A collection is to sweep a snapshot, and has not said which sessions it waits for.
fn is_undecided(slot: Slot) -> Failure {
    let why = format!(
        "a collection has begun to remove the snapshot {slot}, and was stopped before it listed the sessions that it waits \
         for, so that nobody knows whether an earlier attempt of this restore is one of them: try again (`lvkeep prune` goes \
         on with the collection)"
    );
    Failure { kind: FailureKind::Store, retry: true, why }
}

/// Whether reading goes on without protection.
fn is_no_reason(kind: FailureKind) -> bool {
    matches!(kind, FailureKind::Store | FailureKind::Damaged | FailureKind::Refused)
}
