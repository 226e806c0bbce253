//! An opened LVM snapshot: the bytes of its device, and what LVM knows about them.

use std::ops::Range;
use std::sync::Arc;

use agent::buffer::Buffer;
use agent::{Changes, Volume, VolumeError, VolumeInfo};
use async_trait::async_trait;

use super::{Held, Shared};
use crate::ranges::Ranges;
use crate::report::Inventory;

/// A snapshot that is being read.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) shared: Arc<Shared>,
    pub(super) held: Arc<Held>,
    pub(super) info: VolumeInfo,
    pub(super) changes: Changes,
    /// The rest of it reads as zero, by the pool's word.
    pub(super) mapped: Option<Ranges>,
    /// Its device.
    pub(super) device: Arc<dyn Volume>,
}

impl Snapshot {
    fn lost(&self, why: impl Into<String>) -> VolumeError {
        VolumeError::ReadingLost { source_name: self.info.name.clone(), why: why.into() }
    }

    fn check_not_given_up(&self) -> Result<(), VolumeError> {
        match self.held.why_given_up() {
            Some(why) => Err(self.lost(why)),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Volume for Snapshot {
    fn info(&self) -> &VolumeInfo {
        &self.info
    }

    fn changes(&self) -> &Changes {
        &self.changes
    }

    async fn allocated(&self, range: Range<u64>) -> Result<Vec<Range<u64>>, VolumeError> {
        match &self.mapped {
            Some(mapped) => Ok(mapped.within(range.start..range.end.min(self.info.size)).collect()),
            None => self.device.allocated(range).await,
        }
    }

    async fn read(&self, offset: u64, buffer: Buffer, at: usize, len: usize) -> Result<Buffer, VolumeError> {
        self.check_not_given_up()?;
        self.device.read(offset, buffer, at, len).await
    }

    /// A snapshot never changes; it may overflow, though, and then says nothing about its origin any more.
    async fn check_unchanged(&self) -> Result<(), VolumeError> {
        self.check_not_given_up()?;
        self.device.check_unchanged().await?;
        let inventory = Inventory::volumes_of_group(&self.shared.tools, &self.held.vg).await;
        let inventory = inventory.map_err(|why| self.lost(why.to_string()))?;
        let Some(volume) = inventory.by_uuid(&self.held.snapshot) else {
            return Err(self.lost("its LVM snapshot was removed"));
        };
        if volume.attributes.is_invalid() {
            return Err(self.lost("its LVM snapshot has overflowed"));
        }
        match volume.attributes.is_writable() || volume.attributes.is_merging() {
            true => Err(self.lost("its LVM snapshot was put to another use")),
            false => Ok(()),
        }
    }
}
