//! A job that is delivered again: what its earlier sessions left.
//!
//! Each earlier session is revoked by occupying its slot, which decides it for ever; only then its object is deleted.
//! When the slot turns out to hold a snapshot, the job is done.

use std::collections::BTreeMap;

use agent::repository::AtSlot;
use agent::{Failure, Repository, sessions};
use schema::facts::{BASELINES_REMOVED, GROUP_BACKUP_LEFT_OUT, NOT_HELD, POST_FAILED};
use schema::messages::{BackupJob, JobOutcome};
use schema::root::Root;
use schema::session::{Checkpoint, Session};
use schema::{SessionId, names};

/// What was found.
pub(crate) struct Taken {
    pub(crate) already_done: Option<JobOutcome>,
    pub(crate) checkpoint: Option<Checkpoint>,
    /// Sessions that are over, and whether each was committed; nobody else tells their readers.
    pub(crate) over: Vec<(SessionId, bool)>,
}

/// Takes a job over, with or without `patience` for sessions that are not given.
pub(crate) async fn take_over(
    repository: &Repository,
    job: &BackupJob,
    patience: bool,
) -> Result<Taken, Failure> {
    let mut taken = Taken { already_done: None, checkpoint: None, over: Vec::new() };
    for session in sessions_of(repository, job, patience).await? {
        tracing::info!(session = %session.id, "taking over");
        let at_slot = sessions::revoke(repository, &session).await?;
        taken.over.push((session.id, matches!(at_slot, AtSlot::Snapshot(_))));
        match at_slot {
            AtSlot::Snapshot(root) => taken.already_done = Some(sealed(&root)),
            AtSlot::Nothing | AtSlot::Tombstone => taken.checkpoint = session.checkpoint.or(taken.checkpoint),
        }
    }
    Ok(taken)
}

/// The sessions of a job. With `patience`, one that the store does not give at the moment is a failure: it may be one of
/// this job's, and nobody else would end it. Without, it is passed over where the store gives something else.
async fn sessions_of(
    repository: &Repository,
    job: &BackupJob,
    patience: bool,
) -> Result<Vec<Session>, Failure> {
    let mut found = Vec::new();
    for (id, session) in sessions::list_all(repository).await? {
        let session = match session {
            Some(session) => Some(session),
            None => match repository.read::<Session>(&names::session(id)).await {
                Ok(session) => session,
                Err(failure) if failure.retry && (patience || !repository.gives_others().await) => {
                    return Err(failure);
                }
                Err(_) => None,
            },
        };
        found.extend(session.filter(|session| session.job == job.job));
    }
    Ok(found)
}

/// Whether a session is the one that goes on with its job. The same job may have been taken up twice at one moment:
/// both sessions exist by now, so that at least one of them sees the other, and the greater id goes on. Rivals of a
/// lesser id are revoked.
pub(crate) async fn goes_on(
    repository: &Repository,
    job: &BackupJob,
    own: SessionId,
) -> Result<bool, Failure> {
    let mut rivals = sessions_of(repository, job, false).await?;
    rivals.retain(|other| other.id != own);
    if rivals.iter().any(|rival| rival.id > own) {
        return Ok(false);
    }
    for rival in rivals {
        tracing::info!(session = %rival.id, "the same job was taken up twice; this one goes on");
        sessions::revoke(repository, &rival).await?;
    }
    Ok(true)
}

/// Whether another session than `own` drives this job, or has sealed it already. The own object may still be there:
/// a store that was away could not be told that the session is over. An error is no answer: somebody else may well.
pub(crate) async fn is_elsewhere(
    repository: &Repository,
    job: &BackupJob,
    own: SessionId,
    patience: bool,
) -> Result<bool, Failure> {
    for session in sessions_of(repository, job, patience).await? {
        if session.id == own || session.ended.is_some() {
            continue;
        }
        // One that is decided drives nothing any more: the store may not have let its object go.
        let is_open = match session.slot {
            Some(slot) => repository.store.head(&slot.snapshot()).await?.is_none(),
            None => true,
        };
        if is_open {
            return Ok(true);
        }
    }
    // The own one is no other session's: its commit may have been written although nobody was told so.
    let roots = roots_of(repository, job).await?;
    Ok(roots.iter().any(|root| root.slot.session != own))
}

/// The end of a job of which a snapshot is there.
pub(crate) async fn sealed_already(
    repository: &Repository,
    job: &BackupJob,
) -> Result<Option<JobOutcome>, Failure> {
    Ok(roots_of(repository, job).await?.first().map(sealed))
}

/// The snapshots of a job.
async fn roots_of(repository: &Repository, job: &BackupJob) -> Result<Vec<Root>, Failure> {
    let mut roots = repository.roots(Some(repository.key.volume_key(&job.volume))).await?.warned();
    roots.retain(|root| root.job == job.job);
    Ok(roots)
}

/// The outcome that a committed root stands for.
pub(crate) fn sealed(root: &Root) -> JobOutcome {
    JobOutcome::Sealed {
        slot: root.slot,
        generation: root.generation,
        size: root.size,
        statistics: root.statistics,
        changed_while_read: root.changed_while_read,
        tracking: root.tracking.clone(),
        notes: notes(&root.layout),
        post_failed: root.layout.get(POST_FAILED).cloned(),
    }
}

/// What the operator should know of a snapshot.
fn notes(layout: &BTreeMap<String, String>) -> Vec<String> {
    let left_out = layout
        .get(GROUP_BACKUP_LEFT_OUT)
        .map(|why| format!("LVM's description of the volume group is not in the snapshot: {why}"));
    let removed = layout.get(BASELINES_REMOVED).map(|names| {
        format!(
            "removed before the commit, because the volume group had no room for one more LVM snapshot: {names}; \
             whoever backs the volume up under another name reads everything next time"
        )
    });
    let not_held = layout.get(NOT_HELD).map(|count| {
        format!(
            "nothing held the writers of the group's {count} volumes while their snapshots were taken, one after the \
             other: --freeze, --pre or --domain do"
        )
    });
    left_out.into_iter().chain(removed).chain(not_held).collect()
}
