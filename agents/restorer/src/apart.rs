//! Which targets of one command are one, however they are called: what was restored to one of them is not overwritten by
//! the next.
//!
//! Whoever asks knows names alone. Here a target is open and held, so that it is known which file or device it is. Nobody
//! else has restored to it meanwhile; what is remembered is asked again, because a file may have been removed, and its
//! number be another one's.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use agent::{Failure, disks};
use schema::JobId;
use schema::names::Slot;

use crate::sink::Opened;
use crate::target::Target;

/// Targets that are remembered: those of the largest plan.
const TARGETS_MAX: usize = 4096;

/// The targets that jobs of commands had here last.
#[derive(Debug, Default)]
pub(crate) struct Apart(Mutex<VecDeque<One>>);

#[derive(Debug, Clone)]
struct One {
    command: JobId,
    job: JobId,
    slot: Slot,
    name: String,
    path: PathBuf,
}

impl Apart {
    /// Remembers an opened target, of which nothing was changed, and the snapshot that is for it; refuses one that another
    /// job of its command had for another snapshot. Blocks.
    pub fn add(&self, slot: Slot, target: &Target, opened: &Opened) -> Result<(), Failure> {
        let (Some(command), Some(job)) = (target.command(), target.claim().job()) else { return Ok(()) };
        let Ok(found) = opened.file.metadata() else { return Ok(()) };
        let name = target.path().display().to_string();
        let others: Vec<One> = {
            let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let is_other = |one: &&One| one.command == command && one.job != job && one.slot != slot;
            all.iter().filter(is_other).cloned().collect()
        };
        let is_it =
            |one: &&One| std::fs::metadata(&one.path).is_ok_and(|there| disks::is_same(&there, &found));
        if let Some(other) = others.iter().find(is_it) {
            return Err(Failure::refused(format!(
                "cannot restore to {name}: it is what {} is, to which the same command restores another snapshot; nothing was \
                 overwritten: give each volume a target of its own",
                other.name
            )));
        }
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|one| one.job != job);
        if all.len() == TARGETS_MAX {
            all.pop_front();
        }
        all.push_back(One { command, job, slot, name, path: opened.path.clone() });
        Ok(())
    }
}
