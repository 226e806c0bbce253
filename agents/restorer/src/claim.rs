//! What a restore holds of its target: nobody else of lvkeep writes there meanwhile.
//!
//! A file is locked, and a device opened exclusively, before its first change, and also while what it holds is kept for
//! an undo. Whoever dies lets go of it, and whoever is only slow does not: an agent that was given the job of a slow one
//! waits. A job's target is held until nobody can be given that job again. A file that is made or filled for a job carries the job's id in
//! an extended attribute until the job is over, so that the same job may go on with it after its agent died; to
//! everybody else it is a file that has content. Where a file system has no such attributes, that is all that is lost.

use std::fs::{File, Metadata};
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use agent::bus::{Standing, Ticket};
use agent::{Failure, Place};
use rustix::fs::{FlockOperation, XattrFlags, flock, fremovexattr, fsetxattr, getxattr};
use rustix::io::Errno;
use schema::names::Slot;
use schema::{JobId, ReadingId};

use crate::hold;

/// The attribute that names the job.
const MARK: &str = "user.lvkeep.restore";
/// Bytes of an id as text, and more than a mark may have.
const MARK_MAX: usize = 64;

/// What one restore holds. Clones are the same claim; it ends when the last one is dropped.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claim {
    job: Option<JobId>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    file: Option<File>,
    is_alone: bool,
    has_held: bool,
    kept: Option<ReadingId>,
    place: Option<Arc<dyn Place>>,
    marked: bool,
    busy: bool,
    again: bool,
    waits: bool,
    standing: Option<Standing>,
    doubt: Option<Doubt>,
    first: Option<Slot>,
    undo: Vec<(JobId, Slot)>,
    notes: Vec<String>,
    has_overwritten: bool,
    undo_volume: Option<(String, Option<Range<u64>>)>,
    put_back: Option<Slot>,
    command: Option<JobId>,
}

/// Why a job is not to be done by who was given it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// It is on its queue no more: whoever else was given it has ended it.
    Over,
    /// Its queue was lost, and the job with it: nobody is given it any more, and nobody else tells that.
    Lost,
    /// It is noted to have ended, or nobody could be asked: whoever is given it next knows.
    Unsure,
}

impl Claim {
    /// The claim of a job that may be delivered again.
    pub fn of(job: JobId) -> Self {
        Self { job: Some(job), state: Arc::default() }
    }

    /// The same, where somebody can be asked whether the job is still to be done.
    pub fn delivered(self, ticket: Option<&Ticket>) -> Self {
        self.state().standing = ticket.and_then(Ticket::standing);
        self
    }

    /// Whether its job is still to be done, where somebody can be asked.
    pub fn standing(&self) -> Option<Standing> {
        self.state().standing.clone()
    }

    /// The job is not to be done for this reason.
    pub fn has_doubt(&self, doubt: Doubt) {
        self.state().doubt = Some(doubt);
    }

    /// Why the job is not to be done.
    pub fn doubt(&self) -> Option<Doubt> {
        self.state().doubt
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks an opened target for as long as it is open; fails when another restore has it.
    pub fn lock(&self, file: &File, path: &Path) -> Result<(), Failure> {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                hold::unmark(file);
                Ok(())
            }
            Err(Errno::WOULDBLOCK) => Err(self.busy(path)),
            Err(why) => {
                tracing::warn!(path = %path.display(), %why, "this file system has no locks: nobody else may restore to it now");
                Ok(())
            }
        }
    }

    /// The failure of a restore that finds another one there.
    pub fn busy(&self, path: &Path) -> Failure {
        self.state().busy = true;
        is_taken(path)
    }

    /// The failure of one that opened the target for itself alone, and waits until nobody has it locked.
    pub fn must_wait(&self, path: &Path) -> Failure {
        self.state().waits = true;
        is_taken(path)
    }

    /// Whether it has to be opened once more.
    pub fn has_to_wait(&self) -> bool {
        std::mem::take(&mut self.state().waits)
    }

    /// Whether another restore was found there.
    pub fn is_busy(&self) -> bool {
        self.state().busy
    }

    /// The failure of an attempt that overwrote nothing: its job is handed back where that may help.
    pub fn undecided(&self, failure: Failure) -> Failure {
        self.state().again = failure.retry;
        failure
    }

    /// Whether its job is handed back, because nobody knows yet whether it may go on.
    pub fn comes_again(&self) -> bool {
        self.state().again
    }

    /// Whether it is of a job, which may be delivered again.
    pub fn is_of_job(&self) -> bool {
        self.job.is_some()
    }

    /// Holds an opened target until [`Self::let_go`], also when the file is closed before. `is_alone` says that it is a
    /// device that nobody else has exclusively.
    pub fn keep(&self, file: &File, is_alone: bool) {
        // Without another handle, the lock ends with the file.
        let mut state = self.state();
        (state.file, state.is_alone, state.has_held) = (file.try_clone().ok(), is_alone, true);
    }

    /// Whether it holds the target, or has held it.
    pub fn has_held(&self) -> bool {
        self.state().has_held
    }

    /// What is held of the target that `found` describes, and whether nobody else has it: opened once more, it would be
    /// in the way of itself.
    pub fn held(&self, found: &Metadata) -> Option<(File, bool)> {
        let state = self.state();
        let file = state.file.as_ref()?;
        let held = file.metadata().ok()?;
        let is_device = held.file_type().is_block_device();
        let same = match is_device && found.file_type().is_block_device() {
            true => held.rdev() == found.rdev(),
            false => (held.dev(), held.ino()) == (found.dev(), found.ino()),
        };
        let file = same.then(|| file.try_clone().ok()).flatten()?;
        Some((file, state.is_alone))
    }

    /// What a file holds in this state is kept.
    pub fn kept_as(&self, state: ReadingId) {
        self.state().kept = Some(state);
    }

    /// In which state what a file held was kept.
    pub fn kept(&self) -> Option<ReadingId> {
        self.state().kept
    }

    /// What stood on the target before an attempt that died is kept there.
    pub fn has_kept_first(&self, slot: Slot) {
        self.state().first = Some(slot);
    }

    /// Where what stood on the target before an attempt that died is kept.
    pub fn kept_first(&self) -> Option<Slot> {
        self.state().first
    }

    /// What stands on the target is kept in this slot, by this backup.
    pub fn undone_by(&self, job: JobId, slot: Slot) {
        self.state().undo.push((job, slot));
    }

    /// By which backups what stood on the target is kept, and where.
    pub fn undo(&self) -> Vec<(JobId, Slot)> {
        self.state().undo.clone()
    }

    /// The target is one of several of this command.
    pub fn is_of_command(&self, command: Option<JobId>) {
        self.state().command = command;
    }

    /// The command of which the target is one of several.
    pub fn command(&self) -> Option<JobId> {
        self.state().command
    }

    /// Something of what stood on the target may be gone.
    pub fn overwrote(&self) {
        self.state().has_overwritten = true;
    }

    /// Whether something of what stood on the target may be gone.
    pub fn has_overwritten(&self) -> bool {
        self.state().has_overwritten
    }

    /// What is kept of the target is of this volume, and only this part of it is restored.
    pub fn is_kept_as(&self, volume: String, part: Option<Range<u64>>) {
        self.state().undo_volume = Some((volume, part));
    }

    /// Of which volume what is kept of the target is, and which part of the target is restored, unless all of it is.
    pub fn undo_volume(&self) -> Option<(String, Option<Range<u64>>)> {
        self.state().undo_volume.clone()
    }

    /// What was kept in this slot is put back.
    pub fn puts_back(&self, slot: Slot) {
        self.state().put_back = Some(slot);
    }

    /// Where that which is put back was kept.
    pub fn put_back(&self) -> Option<Slot> {
        self.state().put_back
    }

    /// What the operator should know of the target; said once, however often it is looked at.
    pub fn note(&self, note: String) {
        let notes = &mut self.state().notes;
        if notes.is_empty() {
            tracing::warn!("{note}");
            notes.push(note);
        }
    }

    /// What the operator should know of the target.
    pub fn notes(&self) -> Vec<String> {
        self.state().notes.clone()
    }

    /// The job, where it may be delivered again.
    pub fn job(&self) -> Option<JobId> {
        self.job
    }

    /// Lets go of a volume that is to be removed.
    pub fn release(&self) {
        self.state().file = None;
    }

    /// Whether this file was begun for the same job.
    pub fn has_begun(&self, path: &Path) -> bool {
        let Some(job) = self.job else { return false };
        let mut mark = [0; MARK_MAX];
        match getxattr(path, MARK, &mut mark) {
            Ok(len) => mark.get(..len) == Some(job.to_string().as_bytes()),
            Err(_) => false,
        }
    }

    /// Notes in a file that it is filled for this job.
    pub fn begin(&self, file: &File, path: &Path) {
        let Some(job) = self.job else { return };
        match fsetxattr(file, MARK, job.to_string().as_bytes(), XattrFlags::empty()) {
            Ok(()) => self.state().marked = true,
            Err(why) => {
                tracing::debug!(path = %path.display(), %why, "a restore that dies here is not gone on with");
            }
        }
    }

    /// Removes what says that the file is filled for another job: it would come back and overwrite what is there by then.
    pub fn unmark(&self, file: &File) {
        if let Err(why) = fremovexattr(file, MARK)
            && why != Errno::NODATA
        {
            tracing::debug!(%why, "this file has no marks");
        }
    }

    /// The volume that it is has all of its content, and is ended with the job.
    pub fn end_later(&self, place: Arc<dyn Place>) {
        self.state().place = Some(place);
    }

    /// The job is over, and nobody can be given it again. Its volume is ended while it is held: whoever gets hold of it
    /// would else find one that was begun, and remove it. Whether there was one to be ended.
    pub async fn end(&self) -> bool {
        let place = self.state().place.take();
        if let Some(place) = &place
            && let Some(note) = place.over().await
        {
            tracing::warn!(target = place.name(), note);
        }
        self.let_go();
        place.is_some()
    }

    /// Lets go of the target.
    pub fn let_go(&self) {
        let State { file, marked, .. } = std::mem::take(&mut *self.state());
        let Some(file) = file.filter(|_| marked) else { return };
        if let Err(why) = fremovexattr(&file, MARK) {
            tracing::debug!(%why, "the mark of a restore stays on its file");
        }
    }
}

fn is_taken(path: &Path) -> Failure {
    let path = path.display();
    let why = format!("cannot restore to {path}: another restore is writing to it, or has it locked");
    Failure { retry: true, ..Failure::refused(why) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_claim_at_a_time_and_a_mark_for_one_job() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("target");
        let (first, second) = (Claim::of(JobId::from_bytes([1; 16])), Claim::of(JobId::from_bytes([2; 16])));
        let file = File::create(&path).unwrap();
        first.lock(&file, &path).unwrap();
        first.keep(&file, false);
        first.begin(&file, &path);
        drop(file);
        let other = File::options().write(true).open(&path).unwrap();
        let failure = second.lock(&other, &path).unwrap_err();
        assert!(failure.retry && failure.why.contains("another restore"), "{failure}");
        assert!(second.is_busy() && !first.is_busy());
        assert!(first.has_begun(&path) && !second.has_begun(&path) && !Claim::default().has_begun(&path));
        first.let_go();
        assert!(!first.has_begun(&path));
        second.lock(&other, &path).unwrap();
    }
}
