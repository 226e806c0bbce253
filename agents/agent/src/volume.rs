//! The seam for sources of bytes: a file, a device, an LVM snapshot.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use schema::ReadingId;

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

/// An opened source whose bytes should not change while it is open.
#[async_trait]
pub trait Volume: fmt::Debug + Send + Sync + 'static {
    /// What is known of it.
    fn info(&self) -> &VolumeInfo;

    /// The parts of `range` that may hold something other than zeroes, in order; the rest reads as zero.
    async fn allocated(&self, range: Range<u64>) -> Result<Vec<Range<u64>>, VolumeError>;

    /// Fills `buffer[at..at + len]` from `offset`. All three are multiples of the block size, except `len` at the
    /// volume's end. Fewer bytes than asked for are an error that names the offset.
    async fn read(&self, offset: u64, buffer: Buffer, at: usize, len: usize) -> Result<Buffer, VolumeError>;

    /// Fails when the source is not what it was when it was opened.
    async fn check_unchanged(&self) -> Result<(), VolumeError>;
}

/// Opens sources by name.
#[async_trait]
pub trait Volumes: fmt::Debug + Send + Sync + 'static {
    /// Opens `source`; with `reading`, only in the state that it had then.
    async fn open(&self, source: &str, reading: Option<ReadingId>) -> Result<Arc<dyn Volume>, VolumeError>;
}
