//! The session object: who is writing, where it will commit, and how far it has come.

use serde::{Deserialize, Serialize};

use crate::messages::JobOutcome;
use crate::names::Slot;
use crate::object::{Object, ObjectKind};
use crate::{ChunkId, JobId, ReadingId, SessionId};

/// What a session does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionKind {
    /// Stores a volume.
    Backup,
    /// Brings snapshots from another repository.
    Copy,
    /// Stores what a restore overwrites.
    Undo,
    /// Restores; it has no slot.
    Restore,
    /// Commits a forgotten snapshot again.
    Unforget,
}

/// The body of `sessions/<ulid>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its own id.
    pub id: SessionId,
    /// What it does.
    pub kind: SessionKind,
    /// Where it will commit; restores have none.
    pub slot: Option<Slot>,
    /// The job that it runs.
    pub job: JobId,
    /// The volume's name.
    pub volume: String,
    /// The host that drives it.
    pub host: String,
    /// When it began, in milliseconds since 1970; for people.
    pub started_ms: u64,
    /// How far it has come.
    pub checkpoint: Option<Checkpoint>,
    /// How its job ended. A session that says so reads nothing: it stays until its job cannot come again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<JobOutcome>,
    /// The backups by which a restore's target is kept for an undo. What they committed is not forgotten while the session
    /// is open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undo: Vec<JobId>,
}

impl Object for Session {
    const KIND: ObjectKind = ObjectKind::Session;
    const WHAT: &'static str = "session";
}

/// Leaves of the map that are finished and durable, for whoever takes the job over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The reading that they come from; another reading makes them worthless.
    pub reading: ReadingId,
    /// The volume's size in bytes.
    pub size: u64,
    /// Finished leaves: number, and chunk (none where it reads as zero).
    pub leaves: Vec<(u64, Option<ChunkId>)>,
}
