//! What conductor, reader and hasher say to each other about one reading: requests, extents, and the events of a
//! session.

use serde::{Deserialize, Serialize};

use super::{FailureKind, Group, Payload, at_most, inside_volume, is_false};
use crate::limits::{
    EXTENT_MAX, EXTENT_PIECES_MAX, LEAF_RUNS_MAX, LEAF_SPAN, LOST_PIECES_MAX, UNCHANGED_RANGES_MAX,
};
use crate::root::Tracking;
use crate::{ChunkId, FormatError, PackId, ReadingId, RepoId, Result, SessionId};

/// The conductor asks a host's reader for a volume, or for some leaves of it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadVolume {
    /// The session.
    pub session: SessionId,
    /// The repository that the session writes to: what is kept for the next run belongs to it alone.
    pub repository: RepoId,
    /// The source on the reader's host.
    pub source: String,
    /// The reading that the session is bound to; none on its first request.
    pub reading: Option<ReadingId>,
    /// The snapshot that the volume is compared with. The reader may leave out what has not changed since, and tells
    /// it by [`SessionEvent::Unchanged`]. Without one, everything is read.
    pub parent: Option<ParentSnapshot>,
    /// The volumes that this one is frozen with.
    pub group: Option<Group>,
    /// Leaves to read; none means all.
    pub leaves: Option<Vec<u64>>,
    /// Leaves are read whole, and chunks are stored even when somebody else is said to be storing them.
    pub force: bool,
    /// A source that changed is no failure.
    pub allow_changes: bool,
    /// Which of the session's requests this is; [`SessionEvent::Read`] says it again. An empty list of leaves asks
    /// only whether the source is still unchanged.
    pub request: u32,
    /// A logical volume is read as the device that it is, and no snapshot of it is taken.
    #[serde(default, skip_serializing_if = "is_false")]
    pub plain: bool,
}
payload!(ReadVolume, read => read.group.as_ref().map_or(Ok(()), Group::check));

/// A snapshot that another one is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentSnapshot {
    /// The session that made it.
    pub session: SessionId,
    /// The size of its volume in bytes. A volume of another size has no use for it.
    pub size: u64,
}

/// The session is over: its reading may be closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloseReading {
    /// The session.
    pub session: SessionId,
    /// The host that read for it.
    pub host: String,
    /// Its snapshot is in the archive for good. Said only after a definite answer of the commit slot.
    pub committed: bool,
}
payload!(CloseReading);

/// Neighbouring whole chunks of a volume; the body holds their bytes, zero ones included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// The session.
    pub session: SessionId,
    /// The reading.
    pub reading: ReadingId,
    /// Where the first piece starts, in bytes.
    pub offset: u64,
    /// Length in bytes of each piece, and whether it is all zeroes.
    pub pieces: Vec<(u32, bool)>,
    /// See [`ReadVolume::force`].
    pub force: bool,
}
payload!(Extent, e => {
    at_most("pieces of an extent", e.pieces.len(), EXTENT_PIECES_MAX)?;
    inside_volume(e.offset)?;
    if e.pieces.iter().any(|p| p.0 == 0) {
        return Err(FormatError::invalid("Extent", "a piece has an impossible length"));
    }
    at_most("an extent", e.pieces.iter().map(|p| p.0 as usize).sum(), EXTENT_MAX)
});

/// What became of a piece of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mapped {
    /// It reads as zero.
    Zero,
    /// The parent has this chunk at the same place.
    Parent(ChunkId),
    /// The index knows it in this pack: a hint.
    Known(ChunkId, PackId),
    /// It was sent to be stored, by this session or by another.
    Pending(ChunkId),
}

/// What a session's conductor is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionEvent {
    /// The reader opened the source.
    Opened {
        /// Its reading.
        reading: ReadingId,
        /// Bytes of the volume.
        size: u64,
        /// Facts that rebuild the volume's place, by name.
        layout: Vec<(String, String)>,
    },
    /// How the reader goes about it. Told once per reading and process, before anything that follows from it.
    Tracked {
        /// The reading.
        reading: ReadingId,
        /// What is read, and why.
        tracking: Tracking,
        /// What was said to be unchanged since the parent was found to differ from it: nothing that was left out in
        /// this session holds.
        distrusted: bool,
    },
    /// Ranges that were not read, because nothing in them has changed since the parent: whole pieces of its map.
    Unchanged {
        /// The reading.
        reading: ReadingId,
        /// The parent's session.
        parent: SessionId,
        /// Offset and length in bytes of each.
        ranges: Vec<(u64, u64)>,
    },
    /// A run of the volume is mapped.
    Mapped {
        /// The reading.
        reading: ReadingId,
        /// Where the first piece starts, in bytes.
        offset: u64,
        /// Length in bytes and fate of each piece.
        pieces: Vec<(u32, Mapped)>,
        /// Bytes that storing the new ones took.
        stored: u64,
        /// Bytes of the volume that were new.
        new: u64,
        /// Chunks that were new.
        chunks_new: u64,
    },
    /// The reader is through with a request.
    Read {
        /// The reading.
        reading: ReadingId,
        /// Which request, see [`ReadVolume::request`].
        request: u32,
        /// Bytes that were read from the source for it.
        bytes_read: u64,
        /// The source is not what it was when reading began.
        changed: bool,
    },
    /// Something that the session cannot do without failed.
    Failed {
        /// What to do about it.
        kind: FailureKind,
        /// For the operator.
        why: String,
    },
}
payload!(SessionEvent, event => match event {
    SessionEvent::Unchanged { ranges, .. } => {
        at_most("unchanged ranges", ranges.len(), UNCHANGED_RANGES_MAX)?;
        ranges.iter().try_for_each(|(offset, len)| inside_volume(*offset).and(inside_volume(*len)))
    }
    SessionEvent::Mapped { pieces, offset, .. } => {
        inside_volume(*offset)?;
        at_most("pieces of an extent", pieces.len(), EXTENT_PIECES_MAX)?;
        match pieces.iter().all(|(len, _)| *len > 0 && u64::from(*len) <= LEAF_SPAN) {
            true => Ok(()),
            false => Err(FormatError::invalid("SessionEvent", "a piece has an impossible length")),
        }
    }
    _ => Ok(()),
});

/// A hasher or a reader asks the session's conductor for a leaf of the parent's map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskParentLeaf {
    /// The session.
    pub session: SessionId,
    /// Which leaf.
    pub leaf: u64,
}
payload!(AskParentLeaf);

/// The parent's leaf in the body, or nothing where there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentLeaf {
    /// Bytes of the volume that the leaf covers; none without a leaf.
    pub span: Option<u64>,
    /// Pieces, by their number in the leaf, whose chunks have no whole copy: they are stored again where they are met.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<u32>,
}
payload!(ParentLeaf, leaf => at_most("lost pieces", leaf.lost.len(), LOST_PIECES_MAX));

/// A reader asks the session's conductor what it still wants of a request: a request may have waited for long, or come
/// twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskWanted {
    /// The session.
    pub session: SessionId,
    /// See [`ReadVolume::request`].
    pub request: u32,
}
payload!(AskWanted);

/// Leaves that are still wanted, as runs: the first and how many. More may be wanted than is said; that is asked for
/// in another request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Nothing is wanted any more, not even a look at the source.
    pub over: bool,
    /// Leaves to read.
    pub leaves: Vec<(u64, u64)>,
    /// Leaves to read as [`ReadVolume::force`] says.
    pub forced: Vec<(u64, u64)>,
    /// Those of `leaves` that are read whole, because not all that the parent has there can be read any more. Whoever
    /// passes this over is asked for them with force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub whole: Vec<(u64, u64)>,
}
payload!(Wanted, wanted => {
    for runs in [&wanted.leaves, &wanted.forced, &wanted.whole] {
        at_most("runs of leaves", runs.len(), LEAF_RUNS_MAX)?;
        runs.iter().try_for_each(|(first, count)| inside_volume(*first).and(inside_volume(*count)))?;
    }
    Ok(())
});
