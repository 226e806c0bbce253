//! What was kept for an undo outlives every rule as long as its target may be half overwritten.
//!
//! It is held from before the first byte is overwritten, whatever becomes of the process. A restore of the same to the
//! target that ends well lets go of it, and so does an undo, which is one; until then only `lvkeep release` does, by its
//! name. So it is with an ordinary device whatever is restored to it: its name may have meant another one, of which that
//! was kept. So it is, too, where a file or volume of that name was not there any more and is made anew: what is half
//! overwritten may have another name by then. Where nothing was overwritten after all, whoever held it lets go again. A
//! hold that the store does not let go stays, which is said and does no harm.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
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

    /// Remembers what that which is restored to `part` of a target lets go of when all is well: what was kept of that part,
    /// ever; where the target is an ordinary device, whose name may have meant another one, or was made for this restore,
    /// only what is put back.
    pub(crate) fn name_kept(&self, target: &Target, sink: &Sink, root: &Root, part: &Range<u64>) {
        let Sink::Target(opened) = sink else { return };
        let volume = match self.source_of(target, opened.place.is_some(), &opened.path) {
            Ok(source) => self.undo_volume(&source),
            Err(why) => {
                tracing::debug!(%why, "nothing was kept of it");
                return;
            }
        };
        if root.volume == volume && (target.range().is_none() || kept_range(root).as_ref() == target.range())
        {
            target.claim().puts_back(root.slot);
        }
        let is_file = || opened.file.metadata().is_ok_and(|found| found.is_file());
        let is_named = opened.place.is_some() || target.is_named_by_mapper() || is_file();
        if is_named && !opened.is_made() {
            let part = target.range().is_some().then(|| part.clone());
            target.claim().is_kept_as(volume, part);
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
            match holding.await {
                Ok(hold) => held.extend(hold.map(|hold| (*slot, hold))),
                Err(failure) => {
                    self.let_all_go(held).await;
                    let failure: Failure = failure;
                    return Err(
                        failure.context(format!("cannot hold what is kept as {id}; nothing was overwritten"))
                    );
                }
            }
        }
        Ok(held)
    }

    /// Lets go of what is kept of a target where it is of no restore that has not ended: after one that ended well, of what
    /// was kept of what it restored, and for it; after one that overwrote nothing, of what that one alone has held. Else
    /// says how it is let go.
    pub(crate) async fn settle_kept(
        &self,
        claim: &Claim,
        held: Vec<(Slot, MarkId)>,
        result: Result<Report, Failure>,
    ) -> Result<Report, Failure> {
        let stays = || {
            let id = claim.undo().first()?.1.session;
            Some(format!(
                "what stood there, kept as {id}, is forgotten by no rule before a restore of the same to what stands there \
                 now has ended well (`lvkeep release {id}` lets it go)"
            ))
        };
        match result {
            Ok(report) if is_whole(&report) => {
                self.release_kept(claim).await;
                Ok(report)
            }
            Ok(mut report) => {
                report.notes.extend(stays());
                Ok(report)
            }
            Err(failure) if !claim.has_overwritten() => {
                self.let_all_go(held).await;
                Err(failure)
            }
            Err(failure) => match stays() {
                None => Err(failure),
                Some(stays) => Err(Failure { why: format!("{}\n{stays}", failure.why), ..failure }),
            },
        }
    }

    async fn release_kept(&self, claim: &Claim) {
        if let Err(failure) = self.try_release(claim).await {
            tracing::warn!(%failure, "cannot look whether what stood on this target is held: `lvkeep release` lets it go");
        }
    }

    async fn try_release(&self, claim: &Claim) -> Result<(), Failure> {
        let mut own: BTreeSet<Slot> = claim.undo().iter().map(|(_, slot)| *slot).collect();
        own.extend(claim.put_back());
        let mut found = match own.is_empty() {
            true => BTreeMap::new(),
            false => marks::among(&self.repository, &own).await?,
        };
        if let Some((volume, part)) = claim.undo_volume() {
            let key = self.repository.key.volume_key(&volume);
            let mut all = marks::all(&self.repository, Some(key)).await?;
            all.retain(|_, marks| marks.holds.iter().any(|hold| hold.by.starts_with(BY)));
            // Of a range, what was kept for the same or less.
            if let Some(part) = part.filter(|_| !all.is_empty()) {
                let roots = self.repository.roots(Some(key)).await?.warned();
                let is_in = |range: Range<u64>| part.start <= range.start && range.end <= part.end;
                let within = roots.iter().filter(|root| kept_range(root).is_some_and(is_in));
                let within: BTreeSet<Slot> = within.map(|root| root.slot).collect();
                all.retain(|slot, _| within.contains(slot));
            }
            found.extend(all);
        }
        for (slot, marks) in found {
            let holds = marks.holds.iter().filter(|hold| hold.by.starts_with(BY));
            let holds: Vec<MarkId> = holds.map(|hold| hold.id).collect();
            self.let_go(slot, &holds).await;
        }
        Ok(())
    }

    async fn let_all_go(&self, held: Vec<(Slot, MarkId)>) {
        for (slot, hold) in held {
            self.let_go(slot, &[hold]).await;
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
