//! The seam for sources of bytes: a file, a device, an LVM snapshot.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use schema::messages::Group;
use schema::{ReadingId, RepoId, SessionId};

use crate::buffer::Buffer;

/// Why a source could not be read. Each names the source.
#[derive(Debug, Clone, thiserror::Error)]
pub enum VolumeError {
    /// It cannot be opened.
    #[error("cannot open {source_name}: {why}")]
    CannotOpen {
        /// The source.
        source_name: String,
        /// Why.
        why: String,
    },
    /// Some of it cannot be read.
    #[error("cannot read {source_name} at offset {offset}: {why}")]
    CannotRead {
        /// The source.
        source_name: String,
        /// Where, in bytes.
        offset: u64,
        /// Why.
        why: String,
    },
    /// Too much is being read at once: later it may be possible.
    #[error("cannot open {source_name} yet: {why}")]
    Busy {
        /// The source.
        source_name: String,
        /// Why.
        why: String,
    },
    /// The reading that the session is bound to is gone.
    #[error("{source_name} is not what it was when this session began to read it: {why}")]
    ReadingLost {
        /// The source.
        source_name: String,
        /// What differs.
        why: String,
    },
}

/// What is known of a volume when it is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeInfo {
    /// The source, for messages.
    pub name: String,
    /// The reading: one LVM snapshot, or one opened file in one state.
    pub reading: ReadingId,
    /// Size in bytes.
    pub size: u64,
    /// Facts that rebuild the volume's place, by name.
    pub layout: Vec<(String, String)>,
}

/// What may differ from the state that the parent was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changes {
    /// Anything may: all of it is read.
    Unknown {
        /// For the operator: why nothing is known where something was to be expected. None where nothing was, as of
        /// a file, or of a volume without a parent.
        why: Option<String>,
    },
    /// Nothing outside of these ranges does.
    Since {
        /// The snapshot whose state they are relative to, by its session: the one that was asked for.
        parent: SessionId,
        /// In bytes, in order, none of them empty, none touching the next. At most the volume's size.
        ranges: Vec<Range<u64>>,
    },
}

impl Changes {
    /// Nothing is known, and nothing was to be expected.
    pub const UNTRACKED: Self = Self::Unknown { why: None };

    /// Nothing is known, for this reason.
    pub fn unknown(why: impl Into<String>) -> Self {
        Self::Unknown { why: Some(why.into()) }
    }
}

/// An opened source whose bytes should not change while it is open.
#[async_trait]
pub trait Volume: fmt::Debug + Send + Sync + 'static {
    /// What is known of it.
    fn info(&self) -> &VolumeInfo;

    /// What may differ from the parent. Found out when the volume was opened; the same as long as it is open.
    fn changes(&self) -> &Changes;

    /// The parts of `range` that may hold something other than zeroes, in order; the rest reads as zero.
    async fn allocated(&self, range: Range<u64>) -> Result<Vec<Range<u64>>, VolumeError>;

    /// Fills `buffer[at..at + len]` from `offset`. All three are multiples of the block size, except `len` at the
    /// volume's end. Fewer bytes than asked for are an error that names the offset.
    async fn read(&self, offset: u64, buffer: Buffer, at: usize, len: usize) -> Result<Buffer, VolumeError>;

    /// Fails when the source is not what it was when it was opened.
    async fn check_unchanged(&self) -> Result<(), VolumeError>;
}

/// What a session wants of a source.
#[derive(Debug, Clone, Copy)]
pub struct Opening<'a> {
    /// The source on this host: a path, or `vg/lv`.
    pub source: &'a str,
    /// The volume's name, for messages.
    pub volume: &'a str,
    /// The session; its commit slot carries this id, and so does whatever is taken for it.
    pub session: SessionId,
    /// The repository that the session writes to.
    pub repository: RepoId,
    /// The reading that the session is bound to: the source is opened in that state or not at all.
    pub reading: Option<ReadingId>,
    /// The snapshot that this one is compared with, by its session. [`Volume::changes`] is about this one alone.
    pub parent: Option<SessionId>,
    /// The volumes that are read in the state of one moment with it, itself among them.
    pub group: Option<&'a Group>,
    /// It is read as the file or device that it is, and no snapshot of it is taken.
    pub plain: bool,
}

/// Opens sources by name.
#[async_trait]
pub trait Volumes: fmt::Debug + Send + Sync + 'static {
    /// Opens a source. A session that opens it again gets the same reading, where that is still possible.
    async fn open(&self, opening: &Opening<'_>) -> Result<Arc<dyn Volume>, VolumeError>;

    /// The session is over, and its volumes are no longer used. `committed` says that its snapshot is in the archive
    /// for good: what belongs to it becomes what the next run compares with. Also called for sessions that opened
    /// nothing here, and more than once. What goes wrong is logged, and is for the next run to tidy up.
    async fn close(&self, session: SessionId, committed: bool);

    /// Sessions for which something is held here until they are closed or released.
    fn open_sessions(&self) -> Vec<SessionId> {
        Vec::new()
    }

    /// Nobody drives the session any more, as far as can be told, and nobody knows how it ended: what is held for it
    /// is no longer in use. It is not removed: the next run judges it by what is in the archive, and the session
    /// itself may open it again. What is still open stays as it is.
    async fn release(&self, _session: SessionId) {}
}
