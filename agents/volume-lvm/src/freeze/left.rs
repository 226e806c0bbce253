//! The note of what is frozen, for whoever comes after a process that died.
//!
//! A file per freezing process in a folder that nobody else can write to: its commands are run. The folder is on
//! `/run`, so that a reboot, which thaws everything, forgets them.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Command, FreezeError};
use crate::owner::Owner;
use crate::tools::Tools;

/// Bytes of one note at most.
const NOTE_MAX: u64 = 256 << 10;
/// Notes that are looked at.
const NOTES_MAX: usize = 1024;
const SUFFIX: &str = "frozen";

#[derive(Serialize, Deserialize)]
struct Note {
    owner: String,
    undo: Vec<Command>,
}

/// This process' note.
#[derive(Debug)]
pub(super) struct Left {
    path: PathBuf,
    owner: Owner,
}

impl Left {
    /// A note in this folder, which is made if need be; nothing is written yet.
    pub(super) fn new(folder: &Path) -> Result<Self, FreezeError> {
        let cannot = |why: String| FreezeError::CannotNote { path: folder.to_owned(), why };
        fs::DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(folder)
            .map_err(|why| cannot(why.to_string()))?;
        is_private(folder).map_err(cannot)?;
        let owner = Owner::this().map_err(cannot)?;
        // Several freezings of one process may be under way.
        static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("{}-{count}.{SUFFIX}", owner.to_string().replace('/', "-"));
        Ok(Self { path: folder.join(name), owner })
    }

    /// Writes down all that is to be undone.
    pub(super) fn note(&self, undo: &[Command]) -> Result<(), FreezeError> {
        let cannot = |why: String| FreezeError::CannotNote { path: self.path.clone(), why };
        let note = Note { owner: self.owner.to_string(), undo: undo.to_vec() };
        let bytes = serde_json::to_vec(&note).map_err(|why| cannot(why.to_string()))?;
        if bytes.len() as u64 > NOTE_MAX {
            return Err(cannot(format!("{} bytes are too many", bytes.len())));
        }
        let temporary = self.path.with_extension("new");
        let write = || {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &self.path)
        };
        write().map_err(|why| cannot(why.to_string()))
    }

    /// Nothing is frozen any more.
    pub(super) fn forget(&self) {
        if let Err(why) = fs::remove_file(&self.path)
            && why.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %why, "a note of what was frozen stays");
        }
    }
}

fn is_private(folder: &Path) -> Result<(), String> {
    let found = fs::symlink_metadata(folder).map_err(|why| why.to_string())?;
    let own = found.uid() == rustix::process::geteuid().as_raw();
    match found.is_dir() && own && found.mode() & 0o022 == 0 {
        true => Ok(()),
        false => Err("it must be a folder that only its owner, this user, can write to".to_owned()),
    }
}

/// Thaws what processes left that are gone. Says what was thawed.
pub async fn thaw_what_was_left(tools: &Tools, folder: &Path) -> Vec<String> {
    let mut thawed = Vec::new();
    for path in notes(folder) {
        let Some(note) = read(&path) else {
            tracing::warn!(path = %path.display(), "a note of what was frozen cannot be read; look at it by hand");
            continue;
        };
        if note.owner.parse::<Owner>().is_ok_and(|owner| owner.is_alive()) {
            continue;
        }
        for command in note.undo.iter().rev() {
            let shown = format!("{} {}", command.program, command.arguments.join(" "));
            match command.run(tools).await {
                Ok(()) => {
                    tracing::warn!(command = shown, "thawed what a process that is gone had left frozen")
                }
                // What its own watchdog has thawed already is no longer frozen.
                Err(why) => {
                    tracing::warn!(%why, "could not thaw what a process that is gone had left, or it is thawed")
                }
            }
            thawed.push(shown);
        }
        if let Err(why) = fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %why, "a note of what was frozen stays");
        }
    }
    thawed
}

fn notes(folder: &Path) -> Vec<PathBuf> {
    if !folder.exists() {
        return Vec::new();
    }
    if let Err(why) = is_private(folder) {
        tracing::warn!(folder = %folder.display(), why, "its notes of what was frozen are not believed");
        return Vec::new();
    }
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.filter(|path| path.extension().is_some_and(|end| end == SUFFIX)).take(NOTES_MAX).collect()
}

fn read(path: &Path) -> Option<Note> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(NOTE_MAX + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 <= NOTE_MAX).then(|| serde_json::from_slice(&bytes).ok()).flatten()
}
