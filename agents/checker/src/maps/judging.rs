//! Tells copies of a chunk apart: those that may be relied on, and what is wrong with the others.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

use agent::{Failure, maps};
use bytes::Bytes;
use schema::messages::{About, Copy};
use schema::root::Root;
use schema::{ChunkId, PackId, names};

use super::Walk;
use crate::findings::Trouble;
use crate::given::{is_lost, is_withheld};

/// Parts of a pack in a row that the store does not give, after which no other one is asked for.
const ASKED_MAX: usize = 4;

/// The copies of a chunk.
#[derive(Default)]
pub(super) struct Judged {
    /// Those that may be relied on.
    pub(super) whole: Vec<Copy>,
    /// The packs of the others.
    pub(super) bad: Vec<PackId>,
    /// What is wrong with those.
    troubles: Vec<String>,
    /// Packs that the index knows and that are not there any more.
    gone: Vec<PackId>,
    /// Whether the store keeps back what may be one.
    pub(super) is_withheld: bool,
}

impl Walk<'_> {
    /// Tells the copies apart that may be relied on.
    pub(super) async fn judge(&self, root: &Root, ids: &[ChunkId]) -> Result<Vec<Judged>, Failure> {
        let about = About { session: None, volume: root.volume.clone() };
        let located = self.checker.index.locate(&about, ids).await?;
        let mut judged = Vec::with_capacity(ids.len());
        for (id, copies) in ids.iter().zip(located) {
            let (listed, others): (Vec<Copy>, Vec<Copy>) =
                copies.into_iter().partition(|copy| self.packs.lists(&copy.pack));
            let mut one = Judged::default();
            for copy in &listed {
                let trouble = self.packs.trouble(id, copy, self.recorded);
                one.take(copy, trouble.or_else(|| self.not_given(&copy.pack)));
            }
            if one.whole.is_empty() {
                let tried: Vec<PackId> = listed.iter().chain(&others).map(|copy| copy.pack).collect();
                one = self.judge_sought(&about, id, tried).await?;
                // It may be in a pack that nobody can look into now.
                one.is_withheld |= self.packs.is_kept_back();
            }
            judged.push(one);
        }
        Ok(judged)
    }

    /// The same of a chunk that seems to be lost. While the store keeps packs back, nobody can look into all of them, and
    /// what the index has by now has to do; it is not asked to look again.
    async fn judge_sought(&self, about: &About, id: &ChunkId, tried: Vec<PackId>) -> Result<Judged, Failure> {
        if self.is_blind.load(Ordering::Relaxed) {
            return self.judge_located(about, id).await;
        }
        match self.judge_all(about, id, tried).await {
            Err(failure) if failure.retry && self.hinders_seeking() => {
                // Before it failed, the index may have learned of packs that are newer than the listing.
                let judged = self.judge_located(about, id).await?;
                if judged.whole.is_empty() {
                    tracing::warn!(%failure, "chunks are not sought elsewhere");
                    self.is_blind.store(true, Ordering::Relaxed);
                }
                Ok(judged)
            }
            judged => judged,
        }
    }

    /// The same by what the index has now, while there are packs that nobody can look into.
    async fn judge_located(&self, about: &About, id: &ChunkId) -> Result<Judged, Failure> {
        let copies = self.checker.index.locate(about, &[*id]).await?.pop().unwrap_or_default();
        self.judge_named(id, &copies).await
    }

    /// The same by what can be sought, by the bucket as it is now: the index and the listing may be older than
    /// its pack. What is named may be gone, too: it is sought until nothing else is named.
    async fn judge_all(
        &self,
        about: &About,
        id: &ChunkId,
        mut tried: Vec<PackId>,
    ) -> Result<Judged, Failure> {
        loop {
            let copies = self.looks.seek(about, id, &tried).await?;
            let judged = self.judge_named(id, &copies).await?;
            let new = copies.iter().map(|copy| copy.pack).filter(|pack| !tried.contains(pack));
            let new: Vec<PackId> = new.collect();
            if !judged.whole.is_empty() || new.is_empty() {
                return Ok(judged);
            }
            tried.extend(new);
        }
    }

    async fn judge_named(&self, id: &ChunkId, copies: &[Copy]) -> Result<Judged, Failure> {
        self.checker.source.go_on()?;
        let mut judged = Judged::default();
        for copy in copies {
            let size = match self.packs.size(&copy.pack) {
                Some(size) => Some(size),
                None if self.not_given(&copy.pack).is_some() => {
                    judged.take(copy, Some(Trouble::WITHHELD));
                    continue;
                }
                None => {
                    let (store, key) = (&self.checker.source.repository.store, names::pack(copy.pack));
                    match self.ask(copy.pack, || async { Ok(store.head(&key).await?) }).await? {
                        Err(failure) if is_lost(&failure) => {
                            judged.take(copy, Some(Trouble::WITHHELD));
                            continue;
                        }
                        size => size?,
                    }
                }
            };
            match size {
                Some(size) => {
                    let trouble = self.packs.trouble_in(id, copy, size, self.recorded);
                    judged.take(copy, trouble.or_else(|| self.not_given(&copy.pack)));
                }
                None => judged.gone.push(copy.pack),
            }
        }
        Ok(judged)
    }

    /// Reads a chunk of structure from any of these copies.
    pub(super) async fn read_copies(
        &self,
        id: ChunkId,
        copies: &[Copy],
    ) -> Result<Result<Bytes, Failure>, Failure> {
        let mut last = Failure::damaged(format!("chunk {id} has no copy"));
        for copy in copies {
            let read =
                || maps::read_structure(&self.checker.source.repository, id, std::slice::from_ref(copy));
            match self.ask(copy.pack, read).await? {
                // Whether it is lost is not known while one of its copies is not given.
                Err(failure) if is_lost(&failure) => {
                    last = if is_withheld(&last) { last } else { failure };
                }
                read => return Ok(read),
            }
        }
        Ok(Err(last))
    }

    /// Reads something of a pack, with patience only as long as the store may be about to give it.
    async fn ask<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        pack: PackId,
        read: impl Fn() -> F,
    ) -> Result<Result<T, Failure>, Failure> {
        let (source, key) = (&self.checker.source, names::pack(pack));
        let is_first = !self.withheld().contains_key(&pack);
        let read =
            if is_first { source.given(&key, read).await? } else { source.given_once(&key, read).await? };
        match &read {
            Err(failure) if is_withheld(failure) => *self.withheld().entry(pack).or_default() += 1,
            _ => drop(self.withheld().remove(&pack)),
        }
        Ok(read)
    }

    /// What is wrong with every copy in a pack of which the store has not given several parts in a row.
    fn not_given(&self, pack: &PackId) -> Option<Trouble> {
        (self.withheld().get(pack).copied() >= Some(ASKED_MAX)).then_some(Trouble::WITHHELD)
    }

    /// Whether there are packs that an index may not be able to look into.
    fn hinders_seeking(&self) -> bool {
        self.packs.hinders_seeking() || !self.withheld().is_empty()
    }

    fn withheld(&self) -> MutexGuard<'_, BTreeMap<PackId, usize>> {
        self.withheld.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Judged {
    fn take(&mut self, copy: &Copy, trouble: Option<Trouble>) {
        let why = match trouble {
            None => return self.whole.push(*copy),
            Some(Trouble::Gone(why)) => why,
            Some(Trouble::Withheld(why)) => {
                self.is_withheld = true;
                why
            }
        };
        self.bad.push(copy.pack);
        self.troubles.push(format!("{}: {why}", names::pack(copy.pack)));
    }

    /// What is wrong, where there is none to rely on.
    pub(super) fn why(&self) -> String {
        let gone = self.gone.iter().map(|pack| format!("{}: the pack is missing", names::pack(*pack)));
        let troubles: Vec<String> = self.troubles.iter().cloned().chain(gone).collect();
        match troubles.is_empty() {
            true => "is in no pack".to_owned(),
            false => format!("has no readable copy: {}", troubles.join("; ")),
        }
    }
}
