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
use schema::{JobId, ReadingId, RepoId, SessionId};

use crate::failure::Failure;
use crate::runner::Stop;
use crate::volume::Changes;

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
    /// Overwrites what others lose by it.
    pub force: bool,
    /// Overwrites what another process has open.
    pub in_use: bool,
    /// The device or file to which the same snapshot was just restored.
    pub donor: Option<&'a Path>,
}

/// A state of a place that a snapshot of the repository was made of, and that is kept to know what has changed since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// The snapshot, if it was committed, by its session.
    pub session: SessionId,
    /// The reading that the state is: the snapshot was made of it only if it says the same.
    pub reading: ReadingId,
}

/// How a restore ended, for what it has made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Well.
    Restored,
    /// As well as it can: what is lost does not stand there.
    WithHoles,
    /// Cut off: a part of it stands there, with which a restore goes on that is begun again. It stays.
    CutOff,
    /// Before anything was written, or because the target itself failed: what was made for it goes.
    Failed,
}

/// Finds targets by name.
#[async_trait]
pub trait Targets: fmt::Debug + Send + Sync + 'static {
    /// The place that the target names, with everything checked that can be, and nothing changed. None when it is a
    /// file or an ordinary device, for which the preparation must be empty.
    async fn find(&self, wish: &Wish<'_>) -> Result<Option<Arc<dyn Place>>, Failure>;

    /// The path at which what a restore to `target` writes is read.
    fn read_at(&self, target: &str) -> Result<PathBuf, Failure> {
        Ok(target.into())
    }

    /// The name of the place that `target` means, as [`Place::name`] gives it; none when it is a file or an ordinary
    /// device.
    fn name_of(&self, _target: &str) -> Result<Option<String>, Failure> {
        Ok(None)
    }

    /// A place that another agent of this host has made and readied, to write to it as well; none when `path` is not
    /// its device. Such a place is not made, readied or ended here.
    fn shared(&self, _place: &SharedPlace, _path: &Path) -> Option<Arc<dyn Place>> {
        None
    }
}

/// A place to restore to, in the order in which it is used.
#[async_trait]
pub trait Place: fmt::Debug + Send + Sync + 'static {
    /// Its name, such as `vg/lv`: what an agent's configuration allows or not.
    fn name(&self) -> &str;

    /// Makes the place, if that was asked for, and returns its device.
    async fn make(&self) -> Result<PathBuf, Failure>;

    /// Fails when another process has its opened device in use, as far as can be told. Changes nothing.
    async fn check_alone(&self, _device: &File) -> Result<(), Failure> {
        Ok(())
    }

    /// The states since which it may be known what has changed.
    fn bases(&self) -> Vec<Base> {
        Vec::new()
    }

    /// What may differ from one of these states, on the opened device, as long as nobody else has that. Changes nothing;
    /// asked before [`Place::ready`], which may remove what it is known by.
    async fn changes(&self, _device: &File, _since: &Base) -> Changes {
        Changes::UNTRACKED
    }

    /// Takes what is to be taken before the first byte is overwritten. `device` is what [`Place::make`] returned,
    /// opened.
    async fn ready(&self, device: &File) -> Result<(), Failure>;

    /// Whether what stands there already may be left alone: not where a neighbour that is written may change it.
    fn keeps_equal(&self) -> bool;

    /// Whether it was made with what the wish's donor holds, and shares it: then there is something to compare.
    fn is_copy(&self) -> bool {
        false
    }

    /// Whether what reads as zero already is rather left alone: not where zeroing gives room back.
    fn compares_zeroes(&self) -> bool;

    /// Whether [`Place::make`] has made it, just now: nobody else knows of it.
    fn is_new(&self) -> bool {
        false
    }

    /// Whether an earlier attempt of the wish's job has made it, or an earlier restore of the same snapshot, and it is not
    /// whole.
    fn is_begun(&self) -> bool {
        false
    }

    /// What other agents of this host must know to write to it as well, once it is readied; none when they may not.
    fn shared(&self) -> Option<SharedPlace> {
        None
    }

    /// Makes a range of the opened device read as zero. Blocks; gives up when `halt` is raised.
    fn zero(&self, device: &File, range: Range<u64>, halt: &Stop) -> io::Result<()>;

    /// The restore is over, and the device is closed. A place that was made for one that failed is removed. Returns
    /// what the operator should know.
    async fn end(&self, ending: Ending) -> Vec<String>;

    /// Its job is over, and it was restored or stays as it is: what says on the place itself that it is unfinished goes.
    /// Until then the same job finds what it has made. Returns what the operator should know.
    async fn over(&self) -> Option<String> {
        None
    }
}
