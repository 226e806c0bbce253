//! The cache's directory: held by one process at a time, and deleted when it is of no use.
//!
//! Only `lock`, `damaged` and `rows/` inside it are ours; nothing else there is ever touched. The lock belongs to the
//! open file, so that it ends with the process however that ends.
#![allow(
    clippy::disallowed_methods,
    reason = "the one file of the indexer that touches its cache's directory"
)]

use std::fs::{self, File, TryLockError};
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};

use agent::Failure;
use schema::messages::FailureKind;

use crate::indexer::OpenError;

/// A locked directory; dropping it unlocks it.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Makes the directory if need be, and locks it.
    pub(crate) fn lock(path: &Path) -> Result<Self, OpenError> {
        let made = fs::create_dir_all(path).and_then(|()| {
            File::options().create(true).truncate(false).read(true).write(true).open(path.join("lock"))
        });
        let lock = made.map_err(|error| failed(path, "making it", &error))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(OpenError::Locked { path: path.to_owned() }),
            Err(TryLockError::Error(error)) => Err(failed(path, "locking it", &error).into()),
        }
    }

    /// Whether rows are in the directory at a path.
    pub(crate) fn has_rows(path: &Path) -> bool {
        path.join("rows").is_dir()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the rows are.
    pub(crate) fn rows(&self) -> PathBuf {
        self.path.join("rows")
    }

    fn mark(&self) -> PathBuf {
        self.path.join("damaged")
    }

    /// Notes that the rows are unreadable, so that the next start builds them anew. Failing to is no harm: the next
    /// reader of the same rows fails as well.
    pub(crate) fn mark_damaged(&self) {
        if let Err(error) = File::create(self.mark()) {
            tracing::warn!(path = %self.path.display(), %error, "cannot mark the index cache as damaged");
        }
    }

    pub(crate) fn is_marked_damaged(&self) -> bool {
        self.mark().exists()
    }

    /// Deletes the rows.
    pub(crate) fn clear(&self) -> Result<(), Failure> {
        let absent = |result: Result<(), Error>| match result {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        };
        absent(fs::remove_dir_all(self.rows()))
            .and_then(|()| absent(fs::remove_file(self.mark())))
            .map_err(|error| failed(&self.path, "deleting what is in it", &error))
    }
}

/// A directory that is deleted when this is dropped.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// It need not be there yet.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.display(), %error, "this is not needed any more: delete it");
            }
            _ => {}
        }
    }
}

fn failed(path: &Path, what: &str, error: &Error) -> Failure {
    Failure::new(
        FailureKind::Other,
        format!(
            "the index cache {}: {what} failed ({error}); make it writable, make room, or set another place",
            path.display()
        ),
    )
}
