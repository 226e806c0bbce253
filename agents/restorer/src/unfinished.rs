//! What was kept for an undo outlives every rule as long as its target may be half overwritten.
//!
//! It is held from before the first byte is overwritten, whatever becomes of the process. A restore onto the target that
//! ends well lets go of it, and so does an undo, which is one, also of a range alone; until then only `lvkeep release` does, by its name. Where
//! nothing was overwritten after all, whoever held it lets go again. A hold that the store does not let go stays, which is
//! said and does no harm.

use std::collections::BTreeSet;
use std::path::Path;

use agent::{Failure, marks};
use schema::messages::Verified;
use schema::names::{Slot, UNDO_VOLUMES};
use schema::root::Root;
use schema::{JobId, MarkId};

use crate::claim::Claim;
use crate::keeping::kept_range;
use crate::report::Report;
use crate::restorer::Restorer;
use crate::sink::Sink;
use crate::target::Target;

/// Who holds: hosts have no such names.
pub(crate) const BY: &str = "an unfinished restore on ";

impl Restorer {
    /// What a target is called by its reader, which stays whatever folder or link leads there: `path` is without links.
    pub(crate) fn source_of(&self, target: &Target, is_place: bool, path: &Path) -> Result<String, Failure> {
        let source = match is_place {
            true => self.read_at(target)?,
            false if target.is_named_by_mapper() => target.path().to_owned(),
            false => path.to_owned(),
        };
        source.to_str().map(str::to_owned).ok_or_else(|| {
            let name = target.path().display();
            Failure::refused(format!("{name}: an undo needs a target whose name is text"))
        })
    }

    /// The volume of which what stands on a target is kept.
    pub(crate) fn undo_volume(&self, source: &str) -> String {
        let name = source.trim_start_matches("/dev/").trim_start_matches('/');
        format!("{UNDO_VOLUMES}{}/{name}", self.context.host)
    }

    /// Remembers what that which is restored lets go when all is well: of all of a target, the volume of which what stood
    /// there is kept, if it ever was; of the range for whose restore it was kept, that alone.
    pub(crate) fn name_kept(&self, target: &Target, sink: &Sink, root: &Root, is_all: bool) {
        let Sink::Target(opened) = sink else { return };
        let volume = match self.source_of(target, opened.place.is_some(), &opened.path) {
            Ok(source) => self.undo_volume(&source),
            Err(why) => {
                tracing::debug!(%why, "nothing was kept of it");
                return;
            }
        };
        if is_all {
            target.claim().is_kept_as(volume);
        } else if root.volume == volume && kept_range(root).as_ref() == target.range() {
            target.claim().puts_back(root.slot);
        }
    }

    /// Holds what is kept of a target, before the first byte of it is overwritten. Returns what was not held before.
    pub(crate) async fn hold_kept(&self, undo: &[(JobId, Slot)]) -> Result<Vec<(Slot, MarkId)>, Failure> {
        let (by, mut held) = (format!("{BY}{}", self.context.host), Vec::new());
        for (_, slot) in undo {
            let id = slot.session;
            let holding = async {
                let marks = marks::of(&self.repository, *slot).await?;
                if marks.holds.iter().any(|hold| hold.by.starts_with(BY)) {
                    return Ok(None);
                }
                let note = format!(
                    "the restore that it was kept for has not ended well: `lvkeep undo {id}` puts it back, `lvkeep release \
                     {id}` lets it go"
                );
                marks::hold(&self.repository, *slot, Some(note), &by).await.map(Some)
            };
            let hold = holding.await.map_err(|failure: Failure| {
                failure.context(format!("cannot hold what is kept as {id}; nothing was overwritten"))
            })?;
            held.extend(hold.map(|hold| (*slot, hold)));
        }
        Ok(held)
    }

    /// Lets go of what is kept of a target where it is of no restore that has not ended: after one that ended well, of all
    /// that was kept of the target, if all of it was restored, and of what was kept for that one; after one that
    /// overwrote nothing, of what that one alone has held. Else says how it is let go.
    pub(crate) async fn settle_kept(
        &self,
        claim: &Claim,
        held: Vec<(Slot, MarkId)>,
        result: Result<Report, Failure>,
    ) -> Result<Report, Failure> {
        let undo = claim.undo();
        let failure = match result {
            Ok(report) if !is_whole(&report) => return Ok(report),
            Ok(report) => {
                self.release_kept(claim).await;
                return Ok(report);
            }
            Err(failure) => failure,
        };
        if !claim.has_overwritten() {
            for (slot, hold) in held {
                self.let_go(slot, &[hold]).await;
            }
            return Err(failure);
        }
        match undo.first() {
            None => Err(failure),
            Some((_, first)) => {
                let id = first.session;
                let why = format!(
                    "{}\nwhat stood there, kept as {id}, is forgotten by no rule before a restore to this target has \
                     ended well (`lvkeep release {id}` lets it go)",
                    failure.why
                );
                Err(Failure { why, ..failure })
            }
        }
    }

    async fn release_kept(&self, claim: &Claim) {
        let mut own: BTreeSet<Slot> = claim.undo().iter().map(|(_, slot)| *slot).collect();
        own.extend(claim.put_back());
        let found = match claim.undo_volume() {
            Some(volume) => marks::all(&self.repository, Some(self.repository.key.volume_key(&volume))).await,
            None if own.is_empty() => return,
            None => marks::among(&self.repository, &own).await,
        };
        let found = match found {
            Ok(found) => found,
            Err(failure) => {
                tracing::warn!(%failure, "cannot look whether what stood on this target is held: `lvkeep release` lets it go");
                return;
            }
        };
        for (slot, marks) in found {
            let holds = marks.holds.iter().filter(|hold| hold.by.starts_with(BY));
            let holds: Vec<MarkId> = holds.map(|hold| hold.id).collect();
            self.let_go(slot, &holds).await;
        }
    }

    async fn let_go(&self, slot: Slot, holds: &[MarkId]) {
        if let Err(failure) = marks::release(&self.repository, slot, holds).await {
            let id = slot.session;
            tracing::warn!(%failure, "{id} was kept for a restore that is over, and stays held: `lvkeep release {id}` lets it go");
        }
    }
}

/// Whether a restore left nothing to be wished for.
fn is_whole(report: &Report) -> bool {
    report.lost == 0 && matches!(report.verified, None | Some(Verified::Equal))
}
