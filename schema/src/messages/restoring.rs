//! What is asked of restorer agents.

use serde::{Deserialize, Serialize};

use super::{FailureKind, Payload, at_most, inside_volume, is_false};
use crate::limits::VOLUME_NAME_MAX;
use crate::names::Slot;
use crate::{FormatError, JobId, Result};

/// What stands for the target of a job that agents without [`More`] must not do. They pass over what they do not know,
/// and would overwrite all of it; but none of them restores to a relative path, and each says which one it was given.
pub const NEEDS_NEWER_AGENT: &str = "(this-agent-is-too-old-for-what-was-asked-update-it)";

/// An operator asks for a restore by the agent of another host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreJob {
    /// The job.
    pub job: JobId,
    /// The snapshot.
    pub slot: Slot,
    /// Where to write on the restorer's host: a path, or `VG/LV`. [`NEEDS_NEWER_AGENT`] where there is `more`.
    pub target: String,
    /// Overwrite a file that has content. Older agents take it for a device that is in use as well, so that only older
    /// commands say it here; see [`More::force`].
    pub force: bool,
    /// What is done to a logical volume first.
    pub preparation: Preparation,
    /// Write all of it, also what stands there already.
    #[serde(default, skip_serializing_if = "is_false")]
    pub full: bool,
    /// Read what stands there, also where it is known not to have changed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub untracked: bool,
    /// A target on the same host to which the same snapshot was restored just now: what can be taken from there is not
    /// fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub donor: Option<String>,
    /// Reads of content and maps in the store at once, at most, also of all who help: its share of what somebody shares
    /// out. An agent that does not know of it reads as often as its own limit allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetches: Option<u32>,
    /// The command that asks: none of its targets is another's. An agent that does not know of it overwrites one that has
    /// two names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<JobId>,
    /// What not every agent can do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub more: Option<Box<More>>,
}
payload!(RestoreJob, job => job.check_fields());

/// What is asked of a restore beyond writing all of a snapshot, and the target with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct More {
    /// Where to write.
    pub target: String,
    /// Only these bytes of the volume: where they begin, and where they end.
    pub range: Option<(u64, u64)>,
    /// What cannot be read any more is left out, and zero.
    pub keep_going: bool,
    /// What stands on the target is kept first, as a snapshot that a backup of this id makes.
    pub undo: Option<JobId>,
    /// What was kept there for an undo is put back: the target holds something, and must be what it was.
    pub put_back: bool,
    /// What was written is read again, from the device, and compared.
    #[serde(default, skip_serializing_if = "is_false")]
    pub verify: bool,
    /// Somebody has looked: a device that something is put back on is the one that it was. An agent that passes this over
    /// refuses such a device without force.
    #[serde(default, skip_serializing_if = "is_false")]
    pub same_device: bool,
    /// Overwrite a file that has content, the snapshot's own source, or what others lose by it. An agent that passes this
    /// over refuses those.
    #[serde(default, skip_serializing_if = "is_false")]
    pub force: bool,
    /// Overwrite it although somebody uses it. An agent that passes this over refuses it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub in_use: bool,
}

impl RestoreJob {
    /// A job that old agents refuse by name when it is more than they can do.
    pub fn asking(self, more: More) -> Self {
        match more == More::default() {
            true => self,
            false => {
                let more = Some(Box::new(More { target: self.target, ..more }));
                Self { target: NEEDS_NEWER_AGENT.to_owned(), more, ..self }
            }
        }
    }

    /// Where to write on the restorer's host.
    pub fn target(&self) -> &str {
        self.more.as_ref().map_or(&self.target, |more| &more.target)
    }

    /// Whether what stands on the target, or others have of it, may go.
    pub fn is_forced(&self) -> bool {
        self.force || self.more.as_ref().is_some_and(|more| more.force)
    }

    fn check_fields(&self) -> Result<()> {
        self.preparation.check()?;
        let Some(more) = &self.more else { return Ok(()) };
        if self.target != NEEDS_NEWER_AGENT {
            return Err(FormatError::invalid("a restore job", "agents that know less of it would do it"));
        }
        let Some((start, end)) = more.range else { return Ok(()) };
        inside_volume(start).and_then(|()| inside_volume(end))
    }
}

/// What is done to a logical volume before a snapshot is restored to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preparation {
    /// It is made; there must be none of its name, but one on which a restore of the same snapshot was cut off.
    pub create: Option<NewVolume>,
    /// A snapshot of what it holds is taken.
    pub safety: Option<Safety>,
    /// What is kept there to track changes is removed.
    pub drop_baseline: bool,
}

impl Preparation {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn check(&self) -> Result<()> {
        match &self.create {
            Some(NewVolume::Thin { pool }) => at_most("a pool's name", pool.len(), VOLUME_NAME_MAX),
            _ => Ok(()),
        }
    }
}

/// What a logical volume that is made for a restore is like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewVolume {
    /// Extents of its own, one after the other.
    Plain,
    /// Blocks of a thin pool in its volume group.
    Thin {
        /// The pool.
        pool: String,
    },
    /// As the one that was backed up, where that is known and possible.
    Alike,
}

/// A snapshot of a target before it is overwritten.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Safety {
    /// Bytes that it may take where that must be said beforehand. None: what the volume group has, and the target
    /// needs.
    pub size: Option<u64>,
}

/// A part of a volume that cannot be read any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostRange {
    /// Where it begins, in bytes of the volume.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Names the chunk, and every copy and what is wrong with it.
    pub why: String,
}

/// What came of reading again what was restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verified {
    /// The target holds what the snapshot holds.
    Equal,
    /// It does not.
    Differs {
        /// Bytes in chunks, or runs of zeroes, in which something differs.
        bytes: u64,
        /// Where the first of them begins, in bytes of the volume.
        start: u64,
        /// Where it ends.
        end: u64,
    },
    /// Not all of it was read.
    Unread {
        /// What to do about it.
        kind: FailureKind,
        /// For the operator: names the volume and the target.
        why: String,
    },
}
