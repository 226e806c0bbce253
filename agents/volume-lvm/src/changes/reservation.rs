//! The metadata snapshot of a thin pool: reserved, and released on every way out.
//!
//! A pool has only one, so that everybody of ours takes turns by a lock on a file that all processes of the host share.
//! The file also says whether a reservation is ours: it is written before the kernel is asked, so that whoever gets the
//! lock and finds such a note knows that its author died, and releases what it left. What nobody of ours has noted is
//! never released.
//!
//! Reserving and releasing are done on a thread, not by a task: a runtime that ends waits for its threads. Whoever drops
//! a reservation, or the future that was to give it, has it released by the destructor.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::ChangeError;
use crate::dm::{DmName, PoolMode, PoolStatus};
use crate::tools::{ToolError, Tools};

/// How often a lock that is taken is tried again.
const PAUSE: Duration = Duration::from_millis(50);
/// Time that the kernel has to take or drop a metadata snapshot.
const LIMIT: Duration = Duration::from_secs(30);

/// A reserved metadata snapshot.
#[derive(Debug)]
pub struct Reservation {
    tools: Tools,
    pool: DmName,
    lock: Lock,
    held: bool,
}

impl Reservation {
    /// Waits for its turn and reserves the metadata snapshot of `pool`, the pool's `-tpool` device.
    pub async fn take(
        tools: &Tools,
        state: &Path,
        pool: DmName,
        patience: Duration,
    ) -> Result<Self, ChangeError> {
        let lock = Lock::take(state, &pool, patience).await?;
        let tools = tools.with_limit(LIMIT);
        spawn_blocking(move || Self::reserve(tools, pool, lock)).await.map_err(|_| ChangeError::Ending)?
    }

    /// Releases what a process of ours that died has left reserved; leaves alone what one works with now.
    pub async fn release_left(tools: &Tools, state: &Path, pool: DmName) -> Result<(), ChangeError> {
        if !lock_file(state, &pool).exists() {
            return Ok(());
        }
        let lock = match Lock::take(state, &pool, Duration::ZERO).await {
            Err(ChangeError::Busy { .. }) => return Ok(()),
            taken => taken?,
        };
        match lock.noted().map_err(|why| lock.error(why))? {
            Some(Note::Reserving | Note::Held(_)) => {}
            Some(Note::Nothing) | None => return Ok(()),
        }
        let this = Self { tools: tools.with_limit(LIMIT), pool, lock, held: false };
        let released = spawn_blocking(move || this.tidy().map(|()| this.forget()));
        released.await.map_err(|_| ChangeError::Ending)?
    }

    fn reserve(tools: Tools, pool: DmName, lock: Lock) -> Result<Self, ChangeError> {
        let mut this = Self { tools, pool, lock, held: false };
        this.tidy()?;
        this.lock.note(&Note::Reserving).map_err(|why| this.lock.error(why))?;
        this.held = true;
        if let Err(why) = this.message("reserve_metadata_snap") {
            // The kernel said no. After anything else, it may have said yes to somebody who was not listening.
            if matches!(why, ToolError::Failed { .. } | ToolError::Missing { .. }) {
                this.held = false;
                this.forget();
            }
            return Err(why.into());
        }
        let block = this.status()?.held;
        let block =
            block.ok_or_else(|| this.broken("does not hold the metadata snapshot that it was told to"))?;
        this.lock.note(&Note::Held(block)).map_err(|why| this.lock.error(why))?;
        Ok(this)
    }

    /// Looks at the pool's state, and releases what a process of ours that died has left reserved.
    fn tidy(&self) -> Result<(), ChangeError> {
        let status = self.status()?;
        if status.needs_check {
            return Err(self.broken("needs to be checked"));
        }
        match status.mode {
            PoolMode::ReadOnly => return Err(self.broken("is read-only")),
            PoolMode::OutOfDataSpace => {
                tracing::warn!(pool = %self.pool, "the thin pool has no space left for data");
            }
            PoolMode::ReadWrite => {}
        }
        let Some(block) = status.held else { return Ok(()) };
        match self.lock.noted().map_err(|why| self.lock.error(why))? {
            Some(note) if note == Note::Reserving || note == Note::Held(block) => {
                tracing::warn!(pool = %self.pool, "releasing the metadata snapshot that an earlier run left reserved");
                Ok(self.message("release_metadata_snap")?)
            }
            _ => Err(ChangeError::HeldByAnother { pool: self.pool.clone(), block }),
        }
    }

    /// Releases it. That this fails is logged: it is tried again by whoever reserves it next, and takes nothing from
    /// what was found out.
    pub async fn release(mut self) {
        // Also when nobody waits for the thread any more, it comes to its end; and so does the destructor.
        let _ = spawn_blocking(move || self.release_now()).await;
    }

    fn release_now(&mut self) {
        if !std::mem::take(&mut self.held) {
            return;
        }
        match self.message("release_metadata_snap") {
            Ok(()) => self.forget(),
            Err(why) => match self.status() {
                Ok(status) if status.held.is_none() => self.forget(),
                _ => tracing::error!(
                    pool = %self.pool, %why,
                    "cannot release the metadata snapshot of the thin pool; the next run tries it again"
                ),
            },
        }
    }

    fn forget(&self) {
        if let Err(why) = self.lock.note(&Note::Nothing) {
            tracing::error!(lock = %self.lock.path.display(), %why, "cannot note that nothing is reserved");
        }
    }

    fn message(&self, message: &str) -> Result<(), ToolError> {
        self.tools.run_now("dmsetup", &["message", self.pool.as_str(), "0", message]).map(drop)
    }

    fn status(&self) -> Result<PoolStatus, ChangeError> {
        let said = self.tools.run_now("dmsetup", &["status", self.pool.as_str()])?;
        PoolStatus::parse(&said.text())
            .map_err(|why| ChangeError::OtherDevice { device: self.pool.clone(), why })
    }

    fn broken(&self, why: &'static str) -> ChangeError {
        ChangeError::PoolBroken { pool: self.pool.clone(), why }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.release_now();
    }
}

/// What stands in a lock's file.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Note {
    /// Nothing of ours is reserved.
    Nothing,
    /// One of ours is about to reserve it, when nobody else had.
    Reserving,
    /// Reserved by one of ours, at this block.
    Held(u64),
}

impl Note {
    /// Bytes that one takes. All have the same length, so that one write replaces the other wholly: a process that is
    /// killed in the middle leaves either.
    const LEN: usize = 32;

    fn render(&self) -> String {
        let text = match self {
            Self::Nothing => "nothing".to_owned(),
            Self::Reserving => "reserving".to_owned(),
            Self::Held(block) => format!("held {block}"),
        };
        format!("{text:<width$}\n", width = Self::LEN - 1)
    }

    /// What is none of ours is none.
    fn parse(text: &str) -> Option<Self> {
        match text.trim() {
            "" | "nothing" => Some(Self::Nothing),
            "reserving" => Some(Self::Reserving),
            other => other.strip_prefix("held ")?.parse().ok().map(Self::Held),
        }
    }
}

fn lock_file(state: &Path, pool: &DmName) -> PathBuf {
    state.join(format!("pool-{pool}.lock"))
}

/// The lock of a pool, held until it is dropped. Its file stays: who removes one that others wait for lets two in.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    async fn take(state: &Path, pool: &DmName, patience: Duration) -> Result<Self, ChangeError> {
        let path = lock_file(state, pool);
        let name = || path.display().to_string();
        let cannot = |why: io::Error| ChangeError::Lock { lock: name(), why };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(state).map_err(cannot)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(cannot)?;
        let began = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { path, file }),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) if began.elapsed() < patience => sleep(PAUSE).await,
                Err(Errno::WOULDBLOCK) => {
                    return Err(ChangeError::Busy { pool: pool.clone(), lock: name(), patience });
                }
                Err(why) => return Err(cannot(why.into())),
            }
        }
    }

    fn note(&self, note: &Note) -> io::Result<()> {
        self.file.write_all_at(note.render().as_bytes(), 0)?;
        self.file.sync_data()
    }

    fn noted(&self) -> io::Result<Option<Note>> {
        let mut bytes = [0; Note::LEN];
        let len = self.file.read_at(&mut bytes, 0)?;
        Ok(Note::parse(&String::from_utf8_lossy(&bytes[..len])))
    }

    fn error(&self, why: io::Error) -> ChangeError {
        ChangeError::Lock { lock: self.path.display().to_string(), why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_replace_each_other_wholly() {
        for note in [Note::Nothing, Note::Reserving, Note::Held(0), Note::Held(u64::MAX)] {
            assert_eq!(note.render().len(), Note::LEN);
            assert_eq!(Note::parse(&note.render()), Some(note));
        }
        assert_eq!(Note::parse(""), Some(Note::Nothing), "a new file");
        assert_eq!(Note::parse("held by somebody"), None);
        assert_eq!(Note::parse("held"), None);
    }
}
