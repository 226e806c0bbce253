//! Steps 5 and 6: marks again, wholly anew, and reprieves packs until every needed chunk has a copy in a listed pack
//! that is not condemned.
//!
//! Which chunks are needed is asked of a set that has too many rather than too few; whether a copy stands elsewhere is
//! asked by whole ids. A copy elsewhere counts only if it is older than all that are condemned: what moved is, and of
//! others nobody knows what they hold. Copies that are recorded as damaged count neither here nor there.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use agent::Failure;
use agent::damage::Damages;
use futures::{Stream, TryStreamExt};
use schema::PackId;
use schema::epoch::Epoch;
use schema::messages::FailureKind;

use crate::census::Existing;
use crate::epochs;
use crate::footers::{Found, Pack};
use crate::live::{LISTS, LiveIds, half};
use crate::mark::{Sources, mark};
use crate::structure::{Failed, Structure};

/// Which of an epoch's packs are to be deleted.
pub(crate) async fn mark_again_and_reprieve(
    sources: &Sources<'_>,
    epoch: &Epoch,
) -> Result<Vec<PackId>, Failure> {
    sources.footers.begin().await?;
    // Packs before snapshots, both after the last session that was waited for has ended.
    let listed = epochs::packs(sources.repository).await?;
    let existing = Existing::list(sources.repository).await?;
    let needed = match existing.without(&epoch.forgotten.iter().copied().collect()) {
        Ok(needed) => needed,
        Err(failure) => return Ok(reprieve_all(&failure)),
    };
    let mut condemned: Vec<PackId> =
        epoch.condemned.iter().filter(|pack| listed.contains(pack)).copied().collect();
    condemned.sort_unstable();
    condemned.dedup();
    let mut structure =
        Structure::of(sources.footers, listed.iter().copied(), sources.budget.structure).await?;

    let damages = sources.footers.damages();
    let mut risk = Risk { damages, max: sources.budget.at_risk, ..Risk::default() };
    let mut from = 0;
    while from < LISTS {
        let live = LiveIds::new(from, sources.budget.live);
        let live = match mark(sources, &mut structure, &needed, live, Some(epoch.number)).await {
            Ok(live) => live,
            Err(failure) if matches!(failure.kind, FailureKind::Damaged | FailureKind::Refused) => {
                return Ok(reprieve_all(&failure));
            }
            Err(failure) => return Err(failure),
        };
        risk.failed = structure.failed();
        risk.gather(sources.footers.read(condemned.clone()), &live).await?;
        from = live.range().end;
    }
    let outside: Vec<PackId> =
        listed.iter().filter(|pack| condemned.binary_search(pack).is_err()).copied().collect();
    risk.find_elsewhere(sources.footers.read(outside)).await?;
    risk.reprieve(sources.footers.read(condemned)).await
}

/// Nothing is deleted by what cannot be known, and the epoch can end all the same.
fn reprieve_all(why: &Failure) -> Vec<PackId> {
    tracing::error!(%why, "all packs of this collection are reprieved");
    Vec::new()
}

/// Needed chunks that stand in condemned packs, and have not been found elsewhere.
#[derive(Default)]
struct Risk {
    /// With the oldest condemned pack that holds a copy to rely on, if any does.
    chunks: HashMap<u128, Option<PackId>>,
    /// Packs with more than so many are reprieved.
    max: usize,
    failed: Failed,
    /// A copy that is recorded as damaged is none to rely on.
    damages: Arc<Damages>,
    reprieved: HashSet<PackId>,
}

type Packs = Result<(PackId, Found), Failure>;

impl Risk {
    async fn gather(&mut self, condemned: impl Stream<Item = Packs>, live: &LiveIds) -> Result<(), Failure> {
        let mut condemned = std::pin::pin!(condemned);
        while let Some((id, found)) = condemned.try_next().await? {
            let pack = match &found {
                Found::Pack(pack) if self.is_known(id, pack) && !self.reprieved.contains(&id) => pack,
                // Also one that is gone: it was listed, and may only seem to be. Where it was deleted, another verdict
                // says so, and holds.
                _ => {
                    self.reprieved.insert(id);
                    continue;
                }
            };
            let needed = pack.footer.entries.iter().filter(|entry| live.contains(&entry.id) == Some(true));
            for entry in needed.filter(|entry| !self.failed.has(&entry.id, id)) {
                if self.chunks.len() >= self.max {
                    self.reprieved.insert(id);
                    break;
                }
                // Packs come in order, the oldest first.
                let oldest = self.chunks.entry(half(&entry.id)).or_default();
                if oldest.is_none() && !self.damages.has(&entry.id, &id) {
                    *oldest = Some(id);
                }
            }
        }
        Ok(())
    }

    /// Drops what has an older copy in one of these packs, until nothing is left to find.
    async fn find_elsewhere(&mut self, packs: impl Stream<Item = Packs>) -> Result<(), Failure> {
        let mut packs = std::pin::pin!(packs);
        while !self.chunks.is_empty()
            && let Some((id, found)) = packs.try_next().await?
        {
            if let Found::Pack(pack) = found
                && pack.is_whole()
            {
                self.forget(id, &pack);
            }
        }
        Ok(())
    }

    /// Whether it is known what a pack holds, or that nobody relies on it because what could be had of it was moved.
    fn is_known(&self, id: PackId, pack: &Pack) -> bool {
        pack.is_whole() || self.damages.packs().contains(&id)
    }

    /// What this pack holds is at risk no more, unless an older copy to rely on is.
    fn forget(&mut self, id: PackId, pack: &Pack) {
        for entry in pack.footer.entries.iter().filter(|entry| !self.failed.has(&entry.id, id)) {
            let chunk = half(&entry.id);
            let is_oldest = |oldest: &Option<PackId>| oldest.is_none_or(|oldest| id <= oldest);
            if !self.damages.has(&entry.id, &id) && self.chunks.get(&chunk).is_some_and(is_oldest) {
                self.chunks.remove(&chunk);
            }
        }
    }

    /// Reprieves packs, the oldest first, until nothing is at risk; returns the others.
    async fn reprieve(mut self, condemned: impl Stream<Item = Packs>) -> Result<Vec<PackId>, Failure> {
        let mut condemned = std::pin::pin!(condemned);
        let mut delete = Vec::new();
        while let Some((id, found)) = condemned.try_next().await? {
            // A damaged pack stays, and one that is not given or gone, and nothing relies on what is in it.
            let Found::Pack(pack) = found else { continue };
            if !self.is_known(id, &pack) {
                continue;
            }
            let mut copies = pack.footer.entries.iter().filter(|entry| !self.failed.has(&entry.id, id));
            let at_risk = copies.any(|entry| self.chunks.contains_key(&half(&entry.id)));
            match at_risk || self.reprieved.contains(&id) {
                true => self.forget(id, &pack),
                false => delete.push(id),
            }
        }
        Ok(delete)
    }
}
