//! What the footers of all packs say, and which copies in packs are none.

mod reading;
mod unread;

use std::collections::{BTreeMap, BTreeSet};

use agent::Failure;
use agent::damage::Damages;
use futures::stream::{self, StreamExt};
use schema::limits::DAMAGED_CHUNKS_MAX;
use schema::messages::{Copy, FailureKind};
use schema::pack::{PackFooter, PackHeader};
use schema::{ChunkId, Domain, KeyId, PackId, SessionId, names};

use crate::findings::{Finding, Progress, Report, Trouble};
use crate::given::{Footer, NOT_GIVEN};
use crate::{Checker, Found};
use unread::Unread;

/// What is said of a pack of which nothing can be read, behind the reason.
pub(crate) const UNREADABLE: &str = "; nothing in it can be read";
/// Footers that are read at once.
const AT_ONCE: usize = 16;
/// Chunks that were found damaged and are not recorded yet, at most.
const PENDING_MAX: usize = 1 << 12;

/// What is known of all packs: some 40 bytes for each, and for the damaged ones what is in them.
#[derive(Default)]
pub(crate) struct Packs {
    listed: Vec<(PackId, u64)>,
    structure: Vec<(PackId, u64)>,
    /// Packs of which nothing can be read.
    unreadable: BTreeSet<PackId>,
    /// Packs whose footer the store does not give.
    withheld: BTreeSet<PackId>,
    /// Whether it does not give one, either, that is recorded as one of which nothing can be read.
    withholds_recorded: bool,
    /// Packs whose footer was put together from the frames, and the chunks that were found so.
    torn: BTreeMap<PackId, BTreeSet<ChunkId>>,
    /// Frames that are no copies.
    bad: BTreeMap<ChunkId, BTreeSet<PackId>>,
    /// Those among them that the store does not give.
    not_given: BTreeSet<(ChunkId, PackId)>,
    /// Frames that are recorded as damaged, and are whole as they were read now.
    proven: BTreeSet<(ChunkId, PackId)>,
    /// Whether such packs or frames were found since it was last looked whom that concerns.
    has_damage: bool,
    /// Those packs.
    fresh: BTreeSet<PackId>,
    /// Whether there were more than there is room for.
    is_full: bool,
    /// Keys that seal frames, and the packs that name each.
    pub(crate) keys: BTreeMap<KeyId, Named>,
    /// A pack whose footer, which may name keys, cannot be read.
    pub(crate) nameless: Option<PackId>,
    /// Sessions that stored something.
    pub(crate) sessions: BTreeSet<SessionId>,
}

/// The packs that name a key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Named {
    /// The first of them.
    pub(crate) by: PackId,
    /// How many more there are.
    pub(crate) more: u64,
}

impl Packs {
    /// Packs of which nothing can be read.
    pub(crate) fn unreadable(&self) -> &BTreeSet<PackId> {
        &self.unreadable
    }

    /// Whether there are packs whose footer the store does not give.
    pub(crate) fn is_kept_back(&self) -> bool {
        !self.withheld.is_empty()
    }

    /// Whether there are packs that an index cannot look into, because the store does not give them. On those that are
    /// recorded nobody relies: what is lost with them is.
    pub(crate) fn hinders_seeking(&self) -> bool {
        self.is_kept_back() || self.withholds_recorded
    }

    /// Whether a listing shows the pack.
    pub(crate) fn lists(&self, pack: &PackId) -> bool {
        self.size(pack).is_some()
    }

    /// The pack's size in the listing.
    pub(crate) fn size(&self, pack: &PackId) -> Option<u64> {
        let at = self.listed.binary_search_by_key(pack, |(pack, _)| *pack).ok()?;
        Some(self.listed[at].1)
    }

    /// Frames that are no copies, as far as they were read.
    pub(crate) fn damage(&self) -> impl Iterator<Item = (ChunkId, Vec<PackId>)> {
        self.bad.iter().map(|(id, packs)| (*id, packs.iter().copied().collect()))
    }

    /// Why a copy is none; nothing where it may be relied on, as far as that is known.
    pub(crate) fn trouble(&self, id: &ChunkId, copy: &Copy, recorded: &Damages) -> Option<Trouble> {
        match self.size(&copy.pack) {
            None => Some(Trouble::Gone("the pack is missing")),
            Some(size) => self.trouble_in(id, copy, size, recorded),
        }
    }

    /// The same of a copy in a pack of this size, which may be newer than the listing.
    pub(crate) fn trouble_in(
        &self,
        id: &ChunkId,
        copy: &Copy,
        size: u64,
        recorded: &Damages,
    ) -> Option<Trouble> {
        let pack = &copy.pack;
        if size < u64::from(copy.offset) + u64::from(copy.len) {
            Some(Trouble::Gone("the pack is cut off before it"))
        } else if self.unreadable.contains(pack) {
            Some(Trouble::Gone("nothing of the pack can be read"))
        } else if self.withheld.contains(pack) {
            Some(Trouble::WITHHELD)
        } else if self.torn.get(pack).is_some_and(|found| !found.contains(id)) {
            Some(Trouble::Gone("the pack is torn, and it was not found in it"))
        } else if self.not_given.contains(&(*id, *pack)) {
            Some(Trouble::Withheld("its frame cannot be read"))
        } else if self.bad.get(id).is_some_and(|packs| packs.contains(pack)) {
            Some(Trouble::Gone("its frame cannot be read"))
        } else if recorded.has(id, pack) && !self.is_proven(id, pack) {
            Some(Trouble::Gone("it is recorded as damaged"))
        } else {
            None
        }
    }

    /// Whether packs that are torn or frames that are no copies were found since [`Self::bad_is_known`].
    pub(crate) fn has_damage(&self) -> bool {
        self.has_damage
    }

    /// It was looked whom it concerns.
    pub(crate) fn bad_is_known(&mut self) {
        self.has_damage = false;
        self.fresh.clear();
    }

    /// Packs of which nothing, or less, can be read since [`Self::bad_is_known`].
    pub(crate) fn fresh(&self) -> &BTreeSet<PackId> {
        &self.fresh
    }

    /// Whether a frame that is recorded as damaged was read and is whole.
    pub(crate) fn is_proven(&self, id: &ChunkId, pack: &PackId) -> bool {
        self.proven.contains(&(*id, *pack))
    }

    /// Whether a copy of this chunk was found to be none.
    pub(crate) fn is_named(&self, id: &ChunkId) -> bool {
        self.bad.contains_key(id)
    }

    /// Takes another listing, of which the new packs are yet to be checked.
    pub(crate) fn list_again(&mut self, listed: Vec<(PackId, u64)>) {
        self.listed = listed;
    }

    fn is_bad(&mut self, id: ChunkId, pack: PackId) {
        self.has_damage = true;
        match self.bad.len() < DAMAGED_CHUNKS_MAX || self.bad.contains_key(&id) {
            true => drop(self.bad.entry(id).or_default().insert(pack)),
            false => self.is_full = true,
        }
    }

    fn is_torn(&mut self, pack: PackId, footer: &PackFooter, why: Failure, report: &mut Report) {
        self.is_fresh(pack);
        let found = footer.entries.len();
        let why =
            format!("{why}; {found} chunks in it can be found all the same (`lvkeep repair` moves them)");
        report.object(names::pack(pack), why);
        self.torn.insert(pack, footer.entries.iter().map(|entry| entry.id).collect());
    }

    /// It may be whole, so that it is not recorded as a pack of which no copy is one: what snapshots lack by it is.
    fn is_withheld(&mut self, pack: PackId, why: &Failure, report: &mut Report) {
        self.is_fresh(pack);
        report.object(names::pack(pack), why.to_string());
        self.withheld.insert(pack);
        self.nameless.get_or_insert(pack);
    }

    fn is_fresh(&mut self, pack: PackId) {
        self.has_damage = true;
        self.fresh.insert(pack);
    }

    /// It is recorded, and passed over by whoever checks after that.
    fn is_unreadable(&mut self, pack: PackId, why: Failure, report: &mut Report) {
        self.is_fresh(pack);
        report.object_once(names::pack(pack), format!("{why}{UNREADABLE}"));
        self.unreadable.insert(pack);
    }

    fn note(&mut self, id: PackId, size: u64, header: &PackHeader, footer: &PackFooter) {
        for key in &footer.keys {
            self.keys.entry(key.id).and_modify(|named| named.more += 1).or_insert(Named { by: id, more: 0 });
        }
        self.sessions.extend(&footer.sessions);
        if header.kind == Domain::Structure {
            self.structure.push((id, size));
        }
    }
}

/// Whether what was found in content is recorded.
struct Told {
    unopened: u64,
    /// Findings that were looked at.
    seen: usize,
    is_only_told: bool,
}

impl Told {
    /// As it is before content is read.
    fn before(report: &Report) -> Self {
        Self { unopened: report.unopened, seen: report.once.len(), is_only_told: false }
    }

    /// Whether something was found since then that no record says. Of a pack that is not given none does, and of what the
    /// identity does not open; of anything else one does where there `is_room` for it.
    fn is_only_told(&mut self, report: &Report, is_room: bool) -> bool {
        let fresh = &report.once[self.seen..];
        self.seen = report.once.len();
        let is_unrecorded = |one: &Finding| !is_room || one.why.starts_with(NOT_GIVEN);
        self.is_only_told |= report.unopened > self.unopened || fresh.iter().any(is_unrecorded);
        self.is_only_told
    }
}

impl Checker {
    /// Lists the packs and reads their footers.
    pub(crate) async fn footers(&self, recorded: &Damages, report: &mut Report) -> Result<Packs, Failure> {
        let listed = self.source.list_packs().await?;
        report.packs = listed.len() as u64;
        let mut packs = Packs { listed: listed.clone(), ..Packs::default() };
        let read =
            |(pack, size): (PackId, u64)| async move { (pack, size, self.source.read_footer(pack).await) };
        let mut footers = stream::iter(listed).map(read).buffered(AT_ONCE);
        while let Some((pack, size, footer)) = footers.next().await {
            self.source.go_on()?;
            // Nobody relies on it, and it stays until it is collected.
            if recorded.packs().contains(&pack) {
                packs.unreadable.insert(pack);
                if let Ok(Footer::Unreadable(_) | Footer::Withheld(_)) = footer {
                    packs.nameless.get_or_insert(pack);
                }
                packs.withholds_recorded |= matches!(footer, Ok(Footer::Withheld(_)));
                continue;
            }
            match footer? {
                Footer::Whole(header, footer) => packs.note(pack, size, &header, &footer),
                Footer::Torn(header, footer, why) => {
                    packs.note(pack, size, &header, &footer);
                    if header.kind == Domain::Data && footer.keys.is_empty() {
                        packs.nameless.get_or_insert(pack);
                    }
                    packs.is_torn(pack, &footer, why, report);
                }
                Footer::Unreadable(why) => {
                    packs.nameless.get_or_insert(pack);
                    packs.is_unreadable(pack, why, report);
                }
                Footer::Withheld(why) => packs.is_withheld(pack, &why, report),
                Footer::Gone => {}
            }
        }
        Ok(packs)
    }

    /// Reads all packs that hold structure.
    pub(crate) async fn structure_frames(
        &self,
        recorded: &Damages,
        packs: &mut Packs,
        report: &mut Report,
    ) -> Result<(), Failure> {
        for (pack, size) in packs.structure.clone() {
            self.source.go_on()?;
            self.frames_of(pack, size, recorded, packs, report).await?;
        }
        Ok(())
    }

    /// Reads as much content as is asked for, and records what is damaged as it goes.
    pub(crate) async fn content_frames(
        &self,
        found: &mut Found,
        progress: &(impl Fn(Progress<'_>) + Sync),
    ) -> Result<(), Failure> {
        let Found { report, recorded, packs, lost, .. } = found;
        // What holds structure was read before.
        let is_content = |pack: &&(PackId, u64)| packs.structure.binary_search(*pack).is_err();
        let content: Vec<(PackId, u64)> = packs.listed.iter().filter(is_content).copied().collect();
        let mut unread = Unread::new(self.settings.content.of(&content, self.stopped));
        let mut done = self.stopped.map_or(0, |stopped| stopped.done);
        let read = (report.packs_read, report.bytes_read, report.unopened, report.unopened_in);
        let mut told = Told::before(report);
        // What could not be recorded is tried again.
        let mut pending = usize::from(self.unrecorded.is_pending());
        let mut now = |report: &Report, done: u64, pending: usize, unread: &Unread| {
            let is_recorded = pending == 0 && !unread.has_moved();
            progress(Progress {
                total: done + unread.bytes(),
                done,
                is_recorded,
                is_stuck: self.unrecorded.is_pending(),
                // Whether there was room shows once it is recorded.
                is_only_told: match is_recorded {
                    true => told.is_only_told(report, self.settings.record && !self.unrecorded.is_full()),
                    false => told.is_only_told,
                },
                after: unread.after().filter(|_| is_recorded),
                packs: report.packs_read - read.0,
                bytes: report.bytes_read - read.1,
                unopened: report.unopened - read.2,
                unopened_in: report.unopened_in - read.3,
                recorded: report.recorded,
                found: &report.once,
            });
        };
        now(report, done, pending, &unread);
        let mut number = 0;
        while let Some((pack, size)) = unread.next() {
            self.may_go_on(size).await?;
            match self.frames_of(pack, size, recorded, packs, report).await? {
                Some(bad) => (pending, done) = (pending + bad, done + size),
                None => self.is_gone(pack, &mut unread, packs, report).await?,
            }
            if pending > 0 && (unread.is_empty() || pending >= PENDING_MAX || number % 64 == 0) {
                let damage = packs.damage().chain(lost.iter().map(|(id, packs)| (*id, packs.clone())));
                report.recorded += self.record(recorded, &packs.unreadable, damage).await?;
                pending = usize::from(self.unrecorded.is_pending());
            }
            now(report, done, pending, &unread);
            number += 1;
        }
        Ok(())
    }

    /// A pack is gone. What is needed of it a collection has moved before, to names that may have been passed by now.
    async fn is_gone(
        &self,
        pack: PackId,
        unread: &mut Unread,
        packs: &mut Packs,
        report: &mut Report,
    ) -> Result<(), Failure> {
        let listed = self.source.list_packs().await?;
        let (gone, came) = unread.is_gone(&packs.listed, &listed);
        report.packs = (report.packs + came).saturating_sub(gone);
        packs.list_again(listed);
        if packs.lists(&pack) {
            let why = format!("{NOT_GIVEN}: it is listed, and said not to be there");
            packs.is_withheld(pack, &Failure::new(FailureKind::Store, why), report);
            // It was counted among those that are gone.
            report.packs += 1;
            report.only_once(&names::pack(pack));
        }
        Ok(())
    }

    /// Waits until a pack of this size may be read.
    async fn may_go_on(&self, size: u64) -> Result<(), Failure> {
        self.source.go_on()?;
        let waiting = async {
            if let Some(pace) = &self.pace {
                pace.wait().await;
            }
            self.limit.pass(size).await;
        };
        tokio::select! {
            () = waiting => self.source.go_on(),
            () = self.source.stop.raised() => self.source.go_on(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_record_says_is_known_to_be_only_told() {
        let bad = "chunk 1: its check sum does not fit";
        let withheld = format!("{NOT_GIVEN}: no answer");
        for (why, unopened, is_room, expected) in [
            (None, 0, false, false),
            (Some(bad), 0, true, false),
            (Some(bad), 0, false, true),
            (Some(&*withheld), 0, true, true),
            (Some(bad), 3, true, true),
        ] {
            let mut report = Report { unopened: 1, ..Report::default() };
            report.object_once("packs/before", &*withheld);
            let mut told = Told::before(&report);
            why.into_iter().for_each(|why| report.object_once("packs/1", why));
            report.unopened += unopened;
            assert_eq!(told.is_only_told(&report, is_room), expected, "{why:?}");
            // Whatever comes after that.
            assert_eq!(told.is_only_told(&report, true), expected, "{why:?}");
        }
    }

    #[test]
    fn more_damage_than_there_is_room_for_is_noticed() {
        let mut packs = Packs::default();
        let pack = PackId::from_bytes([1; 16]);
        let chunk = |number: u32| {
            let mut id = [1; 33];
            id[1..5].copy_from_slice(&number.to_le_bytes());
            ChunkId::parse(&id).expect("a chunk of data")
        };
        (0..DAMAGED_CHUNKS_MAX as u32).for_each(|number| packs.is_bad(chunk(number), pack));
        packs.is_bad(chunk(0), PackId::from_bytes([2; 16]));
        assert!(!packs.is_full);
        packs.is_bad(chunk(DAMAGED_CHUNKS_MAX as u32), pack);
        assert!(packs.is_full);
    }
}
