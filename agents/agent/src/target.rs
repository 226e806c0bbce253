//! The seam for targets of restores that are more than a path: logical volumes.
//!
//! Finding changes nothing. What is found is made if it was asked for, opened by the restorer, readied while nobody
//! else has it, filled, and ended in every outcome.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use schema::messages::{Preparation, SharedPlace};
use schema::root::Root;
use schema::{JobId, RepoId};

use crate::failure::Failure;
use crate::runner::Stop;

/// What a restore wants of a target.
#[derive(Debug, Clone)]
pub struct Wish<'a> {
    /// The target as it was given.
    pub target: &'a str,
    /// The snapshot.
    pub root: &'a Root,
    /// The bytes of it that are restored.
    pub part: Range<u64>,
    /// Its repository.
    pub repository: RepoId,
    /// The job: one that is delivered again finds what it had made.
    pub job: JobId,
    /// What is to be done to the volume first.
    pub preparation: &'a Preparation,
    /// Overwrites what is in use, and what others lose by it.
    pub force: bool,
}

/// Finds targets by name.
#[async_trait]
pub trait Targets: fmt::Debug + Send + Sync + 'static {
    /// The place that the target names, with everything checked that can be, and nothing changed. None when it is a
    /// file or an ordinary device, for which the preparation must be empty.
    async fn find(&self, wish: &Wish<'_>) -> Result<Option<Arc<dyn Place>>, Failure>;

    /// A place that another agent of this host has made and readied, to write to it as well; none when `path` is not
    /// its device. Such a place is not made, readied or ended here.
    fn shared(&self, place: &SharedPlace, path: &Path) -> Option<Arc<dyn Place>>;
}

/// A place to restore to, in the order in which it is used.
#[async_trait]
pub trait Place: fmt::Debug + Send + Sync + 'static {
    /// Its name, such as `vg/lv`: what an agent's configuration allows or not.
    fn name(&self) -> &str;

    /// Makes the place, if that was asked for, and returns its device.
    async fn make(&self) -> Result<PathBuf, Failure>;

    /// Takes what is to be taken before the first byte is overwritten. `device` is what [`Place::make`] returned,
    /// opened.
    async fn ready(&self, device: &File) -> Result<(), Failure>;

    /// Whether what stands there already may be left alone: not where a neighbour that is written may change it.
    fn keeps_equal(&self) -> bool;

    /// Whether what reads as zero already is rather left alone: not where zeroing gives room back.
    fn compares_zeroes(&self) -> bool;

    /// What other agents of this host must know to write to it as well, once it is readied; none when they may not.
    fn shared(&self) -> Option<SharedPlace>;

    /// Makes a range of the opened device read as zero. Blocks; gives up when `halt` is raised.
    fn zero(&self, device: &File, range: Range<u64>, halt: &Stop) -> io::Result<()>;

    /// The restore is over, and the device is closed. A place that was made for one that failed is removed. Returns
    /// what the operator should know.
    async fn end(&self, restored: bool) -> Vec<String>;
}
