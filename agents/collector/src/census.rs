//! The census: what each pack holds that snapshots need. A proposal is made from it; it may be stale without harm.
//!
//! Of a chunk with several copies only the oldest counts as needed: nobody here can tell what a copy of content holds,
//! and a later one may come from a host that was taken over. A copy of a part of a map that could not be opened is none.
//! Nor is one that is recorded as damaged, unless there is no other: then its pack stays as it is.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use agent::repository::{AtSlot, can_be_pack};
use agent::store::Listed;
use agent::{Failure, Repository, marks};
use futures::{StreamExt, TryStreamExt};
use schema::messages::FailureKind;
use schema::names::{self, Slot};
use schema::pack::PackEntry;
use schema::tombstone::Tombstones;
use schema::{PackId, SessionId};

use crate::footers::{Found, Pack};
use crate::live::{LISTS, LiveIds, half};
use crate::mark::{Sources, at_slot, at_slots, mark, not_there};
use crate::structure::{Failed, Structure};

/// What is known of one pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// The pack.
    pub pack: PackId,
    /// Its size in bytes.
    pub size: u64,
    /// Why it stays whatever it holds.
    pub stays: Option<Stays>,
    /// Bytes of its frames. What it holds besides is no reason to rewrite it: a new pack would have that too.
    pub frames: u64,
    /// Bytes of its frames that snapshots need.
    pub live_bytes: u64,
    /// Whether it holds frames that are recorded as damaged, and not needed here.
    pub is_rotten: bool,
    /// One bit for each frame that is needed.
    pub(crate) needed: Vec<u8>,
}

/// Why a pack stays whatever it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stays {
    /// Its footer or all of it is damaged, or a chunk of which there is no other copy: what it holds may be wanted by
    /// whoever mends it.
    Damaged,
    /// The store does not give it, so that nobody knows what it holds.
    Withheld,
    /// An open session stored chunks in it.
    Session,
}

impl Holding {
    /// A pack of which nothing is needed so far.
    pub fn new(pack: PackId, size: u64) -> Self {
        Self { pack, size, stays: None, frames: 0, live_bytes: 0, is_rotten: false, needed: Vec::new() }
    }

    /// Whether the frame of this number is needed.
    pub fn needs(&self, frame: usize) -> bool {
        self.needed.get(frame / 8).is_some_and(|bits| bits & 1 << (frame % 8) != 0)
    }

    /// Notes that a frame of `len` bytes is needed.
    pub fn set(&mut self, frame: usize, len: u32) {
        if self.needs(frame) {
            return;
        }
        if self.needed.len() <= frame / 8 {
            self.needed.resize(frame / 8 + 1, 0);
        }
        self.needed[frame / 8] |= 1 << (frame % 8);
        self.live_bytes += u64::from(len);
    }
}

/// What stands in the bucket.
#[derive(Debug, Clone, Default)]
pub(crate) struct Census {
    /// Forgotten snapshots that were not collected yet, and that nothing holds.
    pub(crate) forgotten: Vec<Slot>,
    /// Packs, in order.
    pub(crate) packs: Vec<Holding>,
}

/// Step 1: packs, open sessions, forgotten markers, holds, and what all snapshots need that are not forgotten.
pub(crate) async fn list_and_mark(sources: &Sources<'_>) -> Result<Census, Failure> {
    let budget = sources.budget;
    sources.footers.begin().await?;
    let mut packs: Vec<Holding> =
        sources.repository.list_packs().await?.into_iter().map(|(id, size)| Holding::new(id, size)).collect();
    packs.sort_by_key(|holding| holding.pack);
    let open: BTreeSet<SessionId> = crate::sessions::listed(sources.repository).await?;
    let existing = Existing::list(sources.repository).await?;
    // A marker of what does not stand anywhere says nothing.
    let mut forgotten: BTreeSet<Slot> = existing.slots.intersection(&existing.markers).copied().collect();
    for (slot, why) in held(sources.repository, &forgotten).await? {
        let id = slot.session;
        tracing::warn!(snapshot = %id, why, "a forgotten snapshot is protected, and stays: `lvkeep unforget {id}` brings it back if its root can be read");
        forgotten.remove(&slot);
    }
    let visible = existing.without(&forgotten)?;
    let forgotten: Vec<Slot> = forgotten.into_iter().collect();

    let mut structure =
        Structure::of(sources.footers, packs.iter().map(|holding| holding.pack), budget.structure).await?;
    let mut from = 0;
    while from < LISTS {
        let mut live = mark(sources, &mut structure, &visible, LiveIds::new(from, budget.live), None).await?;
        let failed = structure.failed();
        count(sources, &packs, &mut live, &failed).await?;
        judge(sources, &mut packs, &live, &open, &failed).await?;
        from = live.range().end;
    }
    Ok(Census { forgotten, packs })
}

/// Which forgotten snapshots are held, and why: whoever forgot them died before bringing them back. Holds are looked for
/// after markers, and whoever holds looks for the marker after the hold stands: one of both sees the other.
async fn held(
    repository: &Repository,
    forgotten: &BTreeSet<Slot>,
) -> Result<BTreeMap<Slot, String>, Failure> {
    if forgotten.is_empty() {
        return Ok(BTreeMap::new());
    }
    let marks = marks::among(repository, forgotten).await?;
    let mut held: BTreeMap<Slot, String> =
        marks.into_iter().filter_map(|(slot, marks)| Some((slot, marks.why_held()?))).collect();
    held.extend(needed_for_undo(repository, forgotten).await?);
    Ok(held)
}

/// Which forgotten snapshots were kept for restores that have not ended, and why each stays. One whose root is damaged
/// undoes nothing; one that is listed and not there may be needed.
async fn needed_for_undo(
    repository: &Repository,
    forgotten: &BTreeSet<Slot>,
) -> Result<Vec<(Slot, String)>, Failure> {
    let jobs = crate::sessions::undone(repository).await?;
    let mut needed = Vec::new();
    if jobs.is_empty() {
        return Ok(needed);
    }
    for slot in forgotten {
        let root = match repository.at_slot(*slot).await {
            Ok(AtSlot::Snapshot(root)) => root,
            Ok(AtSlot::Tombstone) => continue,
            Ok(AtSlot::Nothing) => return Err(not_there(*slot)),
            Err(failure) if failure.kind == FailureKind::Damaged => continue,
            Err(failure) => return Err(failure),
        };
        let session = jobs.get(&root.job).filter(|_| root.volume.starts_with(names::UNDO_VOLUMES));
        if let Some(session) = session {
            needed
                .push((*slot, format!("the restore that it was kept for has not ended: session {session}")));
        }
    }
    Ok(needed)
}

/// What stands in slots, and what is forgotten of it.
pub(crate) struct Existing {
    /// Slots that hold more than a tombstone.
    slots: BTreeSet<Slot>,
    /// Those among them that are as short as a tombstone and none, and what is wrong with them.
    cut_off: BTreeMap<Slot, Failure>,
    /// The snapshots that are forgotten by a marker.
    markers: BTreeSet<Slot>,
}

impl Existing {
    /// What is as short as a tombstone is looked at, so that no root that was cut off goes for one: but for what is
    /// forgotten, of which there is ever more, and of which nothing is said. A sweep takes away what is said.
    pub(crate) async fn list(repository: &Repository) -> Result<Self, Failure> {
        let slot = |listed: Listed| Slot::parse_key(&listed.key).ok();
        let markers: BTreeSet<Slot> =
            repository.store.list_as(names::FORGOTTEN, slot).await?.into_iter().collect();
        let marked = |listed: Listed| names::marked(&listed.key);
        let marked: BTreeSet<Slot> =
            repository.store.list_as(names::MARKS, marked).await?.into_iter().collect();
        let is_sealed = repository.tombstones == Tombstones::Sealed;
        let (mut slots, mut short) = (BTreeSet::new(), Vec::new());
        for listed in repository.store.list(names::SNAPSHOTS).await? {
            let Ok(slot) = Slot::parse_key(&listed.key) else { continue };
            if !repository.is_as_short(listed.size) {
                slots.insert(slot);
            } else if is_sealed && (!markers.contains(&slot) || marked.contains(&slot)) {
                short.push(slot);
            }
        }
        let mut cut_off = BTreeMap::new();
        let mut looking = std::pin::pin!(at_slots(repository, &short));
        while let Some((slot, mut found)) = looking.next().await {
            if found.as_ref().is_err_and(|failure| failure.kind != FailureKind::Store) {
                // Once more before that is believed.
                found = at_slot(repository, slot).await;
            }
            match found {
                Ok(AtSlot::Tombstone) => continue,
                Ok(AtSlot::Snapshot(_)) => {}
                Ok(AtSlot::Nothing) => return Err(not_there(slot)),
                Err(failure) if failure.kind == FailureKind::Store => return Err(failure),
                Err(failure) => drop(cut_off.insert(slot, failure)),
            }
            slots.insert(slot);
        }
        Ok(Self { slots, cut_off, markers })
    }

    /// Those that nobody may take for swept, but for these. Fails when nobody knows what one of them needs.
    pub(crate) fn without(self, forgotten: &BTreeSet<Slot>) -> Result<Vec<Slot>, Failure> {
        match self.cut_off.into_iter().find(|(slot, _)| !forgotten.contains(slot)) {
            Some((_, why)) => Err(why),
            None => Ok(self.slots.difference(forgotten).copied().collect()),
        }
    }
}

/// The frames of a pack that may be moved or dropped: of a damaged one, where it is recorded that nobody relies on it.
fn entries(found: &Found, is_recorded: bool) -> &[PackEntry] {
    match found {
        Found::Pack(pack) if pack.is_whole() || is_recorded => &pack.footer.entries,
        _ => &[],
    }
}

async fn count(
    sources: &Sources<'_>,
    packs: &[Holding],
    live: &mut LiveIds,
    failed: &Failed,
) -> Result<(), Failure> {
    let ids: Vec<PackId> = packs.iter().map(|holding| holding.pack).collect();
    let damages = sources.footers.damages();
    let mut footers = std::pin::pin!(sources.footers.read(ids));
    while let Some((pack, found)) = footers.try_next().await? {
        let copies = entries(&found, false).iter().filter(|entry| !failed.has(&entry.id, pack));
        copies.filter(|entry| !damages.has(&entry.id, &pack)).for_each(|entry| live.count(&entry.id));
    }
    Ok(())
}

async fn judge(
    sources: &Sources<'_>,
    packs: &mut Vec<Holding>,
    live: &LiveIds,
    open: &BTreeSet<SessionId>,
    failed: &Failed,
) -> Result<(), Failure> {
    let ids: Vec<PackId> = packs.iter().map(|holding| holding.pack).collect();
    let damages = sources.footers.damages();
    let mut doubles = Doubles { met: HashSet::new(), max: sources.budget.doubles };
    let mut gone = BTreeSet::new();
    let mut footers = std::pin::pin!(sources.footers.read(ids).map_ok(|(_, found)| found));
    // Packs come in order, the oldest first: of two copies, the earlier one stays.
    let mut number = 0;
    while let Some(found) = footers.try_next().await? {
        let holding = &mut packs[number];
        let is_recorded = damages.packs().contains(&holding.pack);
        let why = match &found {
            Found::Gone => {
                gone.insert(holding.pack);
                None
            }
            Found::Unreadable => Some(Stays::Damaged),
            Found::Withheld => Some(Stays::Withheld),
            Found::Pack(pack) => stays(pack, holding.size, open, is_recorded),
        };
        // What was found about other chunks holds.
        holding.stays = holding.stays.or(why);
        let entries = entries(&found, is_recorded);
        holding.frames = entries.iter().map(|entry| u64::from(entry.len)).sum();
        for (frame, entry) in entries.iter().enumerate() {
            let (is_live, is_damaged) = (live.contains(&entry.id), damages.has(&entry.id, &holding.pack));
            if is_live != Some(true) || failed.has(&entry.id, holding.pack) {
                holding.is_rotten |= is_live.is_some() && is_damaged;
                continue;
            }
            if is_damaged {
                if live.counted(&entry.id) == 0 {
                    holding.set(frame, entry.len);
                    holding.stays = Some(Stays::Damaged);
                } else {
                    holding.is_rotten = true;
                }
            } else if live.counted(&entry.id) < 2 || doubles.is_first(half(&entry.id)) {
                holding.set(frame, entry.len);
            }
        }
        number += 1;
    }
    packs.retain(|holding| !gone.contains(&holding.pack));
    Ok(())
}

fn stays(pack: &Pack, size: u64, open: &BTreeSet<SessionId>, is_recorded: bool) -> Option<Stays> {
    // What could be had of a recorded one was moved.
    if !is_recorded && (!pack.is_whole() || !can_be_pack(size)) {
        return Some(Stays::Damaged);
    }
    pack.footer.sessions.iter().any(|session| open.contains(session)).then_some(Stays::Session)
}

/// Chunks with several copies, of which one has been met. Of those that do not fit, every copy counts as needed.
struct Doubles {
    met: HashSet<u128>,
    max: usize,
}

impl Doubles {
    /// Whether no copy of a chunk has been met before, as far as that is remembered.
    fn is_first(&mut self, chunk: u128) -> bool {
        match self.met.len() < self.max {
            true => self.met.insert(chunk),
            false => !self.met.contains(&chunk),
        }
    }
}
