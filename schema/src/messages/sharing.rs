//! What the restorers of one host say to each other about one target that several of them write to.

use serde::{Deserialize, Serialize};

use super::{Payload, at_most, inside_volume};
use crate::limits::{PATH_MAX, VOLUME_NAME_MAX};
use crate::names::Slot;
use crate::{Result, SessionId};

/// A restore can do with help. Told to all restorers of its host again and again; it says nothing that is acted upon,
/// but whom to ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetShared {
    /// The restore, by an id that was drawn when it began to share its target.
    pub session: SessionId,
}
payload!(TargetShared);

/// Which target is it, and what is restored there?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskTarget {
    /// The restore.
    pub session: SessionId,
}
payload!(AskTarget);

/// The target of a restore, and how it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedTarget {
    /// The snapshot.
    pub slot: Slot,
    /// The path of the file or device, without symbolic links.
    pub path: String,
    /// What must stand there.
    pub file: FileIdentity,
    /// The logical volume that it is.
    pub place: Option<SharedPlace>,
    /// Whatever nobody has written to reads as zero.
    pub is_zero: bool,
    /// What stands there already is left alone.
    pub compares: bool,
}
payload!(SharedTarget, target => {
    at_most("a path", target.path.len(), PATH_MAX)?;
    at_most("a boot's id", target.file.boot.len(), VOLUME_NAME_MAX)?;
    target.place.as_ref().map_or(Ok(()), |place| at_most("a volume's name", place.name.len(), VOLUME_NAME_MAX))
});

/// One file or device node of one running kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// The kernel's boot id.
    pub boot: String,
    /// The device that the file or node lies on.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
    /// The device that the node stands for; zero for a file.
    pub special: u64,
}

impl FileIdentity {
    /// Whether both are one file, or nodes of one device.
    pub fn is_same_target(&self, other: &Self) -> bool {
        let is_device = self.special != 0 || other.special != 0;
        let same = match is_device {
            true => self.special == other.special,
            false => (self.device, self.inode) == (other.device, other.inode),
        };
        same && self.boot == other.boot
    }
}

/// A logical volume as whoever helps must know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedPlace {
    /// Its name, as VG/LV.
    pub name: String,
    /// Bytes of it.
    pub size: u64,
    /// How a range of it is made to read as zero.
    pub zeroing: Zeroing,
}

/// What matters about a logical volume where ranges of it are to read as zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Zeroing {
    /// Its extents are its own.
    Thick {
        /// Snapshots keep a copy of whatever is overwritten.
        watched: bool,
    },
    /// It gets blocks from a pool.
    Thin {
        /// Bytes of the pool's blocks.
        block: u64,
        /// The pool zeroes a new block before a part of it is written.
        zeroes: bool,
        /// The pool forgets blocks that are discarded.
        discards: bool,
        /// What was never written reads as another volume does.
        external_origin: bool,
    },
}

/// A restorer that helps says what it does, and asks what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskSpan {
    /// Tells one who helps from the next; drawn when its process begins.
    pub worker: u64,
    /// What it does.
    pub now: SpanNow,
}
payload!(AskSpan, ask => match &ask.now {
    SpanNow::Idle => Ok(()),
    SpanNow::Working { offset, .. } | SpanNow::Done { offset, .. } | SpanNow::Failed { offset, .. } => {
        inside_volume(*offset)
    }
});

/// What one who helps does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SpanNow {
    /// Nothing: the answer is the span to restore. Asked again, it is the same one.
    Idle,
    /// It restores a span: the answer is that span as long as that is wanted.
    Working {
        /// Where the span starts.
        offset: u64,
        /// Bytes of it that are done.
        done: u64,
    },
    /// A span is on the target. The answer is empty.
    Done {
        /// Where it started.
        offset: u64,
        /// What was done.
        figures: SpanFigures,
    },
    /// A span could not be restored, or not by it. The answer is empty.
    Failed {
        /// Where it started.
        offset: u64,
        /// For the operator.
        why: String,
    },
}

/// What was done for a span, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanFigures {
    /// Written.
    pub written: u64,
    /// Left alone.
    pub kept: u64,
    /// Made to read as zero.
    pub zeroed: u64,
    /// Read to see what stands there.
    pub compared: u64,
    /// Fetched from the store.
    pub fetched: u64,
    /// Requests that fetched them: a number.
    pub requests: u64,
    /// Chunks opened and verified: a number.
    pub chunks: u64,
    /// Chunks whose best copy was missing or damaged: a number.
    pub rescued: u64,
}

/// The answer to [`AskSpan`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Offset and bytes; none when there is nothing to do.
    pub range: Option<(u64, u64)>,
    /// Reads of content and maps in the store at once, at most, while the span is restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetches: Option<u32>,
}
payload!(Span, span => match span.range {
    Some((offset, len)) => inside_volume(offset).and_then(|()| inside_volume(len)),
    None => Ok(()),
});
