//! What a check found, and how far it is.

use std::ops::Range;

use schema::PackId;
pub use schema::check::Finding;
use schema::limits::HOLES_MAX;
use schema::names::Slot;
use schema::root::Root;

use crate::given::NOT_GIVEN;

/// Problems that are told of one snapshot.
const NAMED: usize = 10;
/// Ranges that a report lists of all snapshots, 16 bytes each; of the others only their bytes are known.
const RANGES_MAX: usize = 1 << 20;

/// How far the reading of content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// Bytes of packs that are to be read.
    pub total: u64,
    /// Bytes of them that were.
    pub done: u64,
    /// Whether what was found up to now is recorded, so that another attempt may go on from here.
    pub is_recorded: bool,
    /// Everything up to this pack was read, and what was found there is recorded: another check may go on behind it.
    pub after: Option<PackId>,
    /// Whether something that was found could not be recorded so far: nobody can go on behind it.
    pub is_stuck: bool,
    /// Whether something was found that no record says: who goes on behind it, and was not told, does not hear of it.
    pub is_only_told: bool,
    /// Packs that were read.
    pub packs: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Chunks in them that the identity does not open.
    pub unopened: u64,
    /// What of `found` is only about those.
    pub unopened_in: u64,
    /// Chunks that were recorded as damaged.
    pub recorded: u64,
    /// What is wrong with packs, and is not found again by whoever goes on.
    pub found: &'a [Finding],
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Snapshots that are visible.
    pub snapshots: u64,
    /// Their slots.
    pub looked_at: Vec<Slot>,
    /// Bytes of their volumes.
    pub bytes: u64,
    /// Packs in the listing.
    pub packs: u64,
    /// Packs of which every frame was read.
    pub packs_read: u64,
    /// Bytes of those.
    pub bytes_read: u64,
    /// Objects that are not what they should be, whomever it concerns.
    pub objects: Vec<Finding>,
    /// Snapshots of which something cannot be read.
    pub damaged: Vec<DamagedSnapshot>,
    /// How many ranges are kept of those.
    pub(crate) ranges: usize,
    /// Whether all are, however many there are: they are to be marked.
    pub(crate) keeps_all: bool,
    /// Chunks in content that was read which the identity does not open, so that nothing is known of them.
    pub unopened: u64,
    /// How many of the objects are among them only because of these.
    pub unopened_in: u64,
    /// Chunks that have a damaged copy, and another one that snapshots can be read from.
    pub rescued: u64,
    /// Chunks that are recorded as damaged since this check.
    pub recorded: u64,
    /// Why something that was found could not be recorded.
    pub unrecorded: Option<String>,
    /// Whether another check should go on where nothing more could be recorded, and not at the start.
    pub is_behind: bool,
    /// Chunks that were recorded as damaged and have a copy by now.
    pub healed: u64,
    /// Records that were of no use any more and were removed.
    pub settled: u64,
    /// Objects of which another attempt at the same check finds nothing any more: it does not read them again.
    pub(crate) once: Vec<Finding>,
    /// Whether everything that is recorded as damaged was minded.
    pub(crate) minds_all: bool,
    /// Whether all content was read.
    pub(crate) has_read_all: bool,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.objects.is_empty() && self.damaged.is_empty()
    }

    /// Whether what was not found is not there: as far as all that is damaged is recorded, or in any case.
    pub(crate) fn knows_damage(&self, is_recorded: bool) -> bool {
        self.unrecorded.is_none() && (self.has_read_all || self.minds_all && is_recorded)
    }

    /// Adds a snapshot; where there are too many ranges, without them.
    pub(crate) fn add(&mut self, mut damaged: DamagedSnapshot) {
        let room = if self.keeps_all { usize::MAX } else { RANGES_MAX.saturating_sub(self.ranges) };
        damaged.cut(room);
        self.ranges += damaged.ranges();
        self.damaged.push(damaged);
    }

    /// Takes out what was found of snapshots.
    pub(crate) fn take(&mut self) -> Vec<DamagedSnapshot> {
        self.ranges = 0;
        std::mem::take(&mut self.damaged)
    }

    /// Adds what was found of snapshots before.
    pub(crate) fn merge(&mut self, before: Vec<DamagedSnapshot>) {
        for earlier in before {
            match self.damaged.iter_mut().find(|damaged| damaged.slot == earlier.slot) {
                Some(damaged) => damaged.absorb(earlier),
                None => self.damaged.push(earlier),
            }
        }
        self.damaged.sort_by_key(|damaged| damaged.slot);
    }

    pub(crate) fn object(&mut self, key: impl Into<String>, why: impl Into<String>) {
        self.objects.push(finding(key.into(), why.into()));
    }

    /// That an object is not given may be found by this attempt only.
    pub(crate) fn only_once(&mut self, key: &str) {
        self.once.extend(self.objects.extract_if(.., |one| one.key == key && one.why.starts_with(NOT_GIVEN)));
    }

    /// The same of an object of which another attempt at the check finds nothing any more.
    pub(crate) fn object_once(&mut self, key: impl Into<String>, why: impl Into<String>) {
        self.once.push(finding(key.into(), why.into()));
    }
}

fn finding(key: String, why: String) -> Finding {
    tracing::warn!(key, why, "damage was found");
    Finding { key, why }
}

/// A snapshot of which something cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedSnapshot {
    /// The snapshot.
    pub slot: Slot,
    /// Its volume; none when the root itself cannot be read.
    pub volume: Option<String>,
    /// Bytes of the volume that cannot be read, in order and joined; the first of them where [`Self::is_cut`].
    pub lost: Vec<Range<u64>>,
    /// How many bytes that are, with those that are not listed; at least, where several walks have found some.
    bytes: u64,
    /// Whether ranges are left out, because a report has room for no more.
    is_cut: bool,
    /// For people: the first of what is wrong.
    pub problems: Vec<String>,
    /// What of `lost` is so for good, as far as is known: the rest is what the store does not give now.
    pub(crate) gone: Vec<Range<u64>>,
    /// Whether there is such a rest.
    is_withheld: bool,
    more: u64,
    /// Its root, where that can be read: by it, it is recognised where it is brought back.
    pub(crate) root: Option<Box<Root>>,
}

impl DamagedSnapshot {
    pub(crate) fn new(slot: Slot, volume: Option<String>) -> Self {
        let (lost, problems, gone) = Default::default();
        let (bytes, is_cut, is_withheld, more) = Default::default();
        Self { slot, volume, lost, bytes, is_cut, problems, gone, is_withheld, more, root: None }
    }

    /// Notes a problem, and what cannot be read because of it, or [only now](Problem::is_withheld). Ranges may come in any
    /// order.
    pub(crate) fn add(&mut self, Problem { range, why, is_withheld }: Problem) {
        match self.problems.len() < NAMED {
            true => self.problems.push(why),
            false => self.more += 1,
        }
        match is_withheld {
            true => self.is_withheld = true,
            false => add(&mut self.gone, range.clone()),
        }
        add(&mut self.lost, range);
    }

    /// Whether something of it cannot be read only because the store does not give it now.
    pub fn is_withheld(&self) -> bool {
        self.is_withheld
    }

    /// Whether not all ranges are listed that cannot be read.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// How many ranges are kept.
    fn ranges(&self) -> usize {
        self.lost.len() + self.gone.len()
    }

    /// Keeps so many ranges at most, for people: what is to be marked is not known then.
    fn cut(&mut self, room: usize) {
        if self.ranges() <= room {
            return;
        }
        self.is_cut = true;
        self.lost.truncate(room);
        self.lost.shrink_to_fit();
        (self.gone, self.root) = (Vec::new(), None);
    }

    pub(crate) fn of(self, root: &Root) -> Self {
        Self { root: Some(Box::new(root.clone())), ..self }
    }

    fn absorb(&mut self, earlier: Self) {
        // What the store does not give is told by every walk.
        self.problems.retain(|problem| !earlier.problems.contains(problem));
        self.problems.splice(0..0, earlier.problems);
        self.lost.extend(earlier.lost);
        self.gone.extend(earlier.gone);
        self.is_withheld |= earlier.is_withheld;
        self.is_cut |= earlier.is_cut;
        self.volume = earlier.volume.or(self.volume.take());
        self.root = earlier.root.or(self.root.take());
        // Both may have found the same.
        let bytes = self.bytes.max(earlier.bytes);
        self.join();
        self.bytes = self.bytes.max(bytes);
    }

    pub(crate) fn finish(mut self) -> Option<Self> {
        self.join();
        if self.more > 0 {
            self.problems.push(format!("and {} more", self.more));
        }
        (!self.problems.is_empty()).then_some(self)
    }

    fn join(&mut self) {
        for ranges in [&mut self.lost, &mut self.gone] {
            join(ranges);
            ranges.shrink_to_fit();
        }
        self.bytes = self.lost.iter().map(|range| range.end - range.start).sum();
    }

    /// Bytes that cannot be read.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Why a copy cannot be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It is none.
    Gone(&'static str),
    /// The store does not give it now.
    Withheld(&'static str),
}

impl Trouble {
    /// Nothing of its pack is given.
    pub(crate) const WITHHELD: Self = Self::Withheld("the store does not give the pack");
}

/// What is wrong in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// What cannot be read because of it.
    pub(crate) range: Range<u64>,
    /// For people.
    pub(crate) why: String,
    /// Whether the store does not give what is needed, which may be whole.
    pub(crate) is_withheld: bool,
}

fn add(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ if range.is_empty() => {}
        _ => ranges.push(range),
    }
    if ranges.len() > 2 * HOLES_MAX {
        join(ranges);
    }
}

/// Puts ranges in order and makes one of those that touch.
pub(crate) fn join(ranges: &mut Vec<Range<u64>>) {
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, last| {
        let touches = next.start <= last.end;
        if touches {
            last.end = last.end.max(next.end);
        }
        touches
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::{SessionId, VolumeKey};

    #[test]
    fn ranges_are_joined_and_problems_counted() {
        let slot = Slot { volume: VolumeKey::from_bytes([1; 16]), session: SessionId::from_bytes([2; 16]) };
        let mut damaged = DamagedSnapshot::new(slot, Some("v".into()));
        for start in [50, 60, 10, 0, 55, 90] {
            let (range, why) = (start..start + 10, format!("offset {start}"));
            damaged.add(Problem { range, why, is_withheld: start == 60 });
        }
        for _ in 0..7 {
            damaged.add(Problem { range: 95..100, why: "again".into(), is_withheld: false });
        }
        let damaged = damaged.finish().expect("something is wrong");
        assert_eq!(damaged.lost, [0..20, 50..70, 90..100]);
        assert_eq!(damaged.bytes(), 50);
        assert_eq!(damaged.gone, [0..20, 50..65, 90..100]);
        assert!(damaged.is_withheld());
        assert_eq!(damaged.problems.len(), NAMED + 1);
        assert_eq!(damaged.problems[NAMED], "and 3 more");
        assert_eq!(DamagedSnapshot::new(slot, None).finish(), None);
    }

    /// However much is damaged, a check keeps so much of it, and numbers go on; what is to be marked is kept whole.
    #[test]
    fn a_report_of_very_much_damage_stays_small() {
        const EACH: u64 = RANGES_MAX as u64 / 5;
        let volume = VolumeKey::from_bytes([1; 16]);
        let damaged = |number: u8| {
            let slot = Slot { volume, session: SessionId::from_bytes([number; 16]) };
            let mut damaged = DamagedSnapshot::new(slot, Some("v".into()));
            for start in (0..EACH).map(|range| range * 20) {
                damaged.add(Problem { range: start..start + 10, why: "no copy".into(), is_withheld: false });
            }
            damaged.finish().expect("something is wrong")
        };
        let report = |keeps_all| {
            let mut report = Report { keeps_all, ..Report::default() };
            (0..6).for_each(|number| report.add(damaged(number)));
            report
        };
        let kept = |report: &Report| report.damaged.iter().map(DamagedSnapshot::ranges).sum::<usize>();
        let is_cut = |report: &Report| report.damaged.iter().map(DamagedSnapshot::is_cut).collect::<Vec<_>>();
        let all = report(true);
        assert_eq!((kept(&all), is_cut(&all)), (12 * EACH as usize, vec![false; 6]));
        let mut some = report(false);
        assert!(kept(&some) <= RANGES_MAX, "{}", kept(&some));
        assert_eq!(is_cut(&some), [false, false, true, true, true, true]);
        // Another walk finds the same.
        let before = some.take();
        (0..6).for_each(|number| some.add(damaged(number)));
        some.merge(before);
        assert!(kept(&some) <= RANGES_MAX, "{}", kept(&some));
        assert_eq!(is_cut(&some), [false, false, true, true, true, true]);
        assert!(some.damaged.iter().all(|one| one.bytes() == EACH * 10 && !one.problems.is_empty()));
    }

    /// Of a root that is not given no range is known.
    #[test]
    fn what_is_not_given_is_known_without_a_range() {
        let slot = Slot { volume: VolumeKey::from_bytes([1; 16]), session: SessionId::from_bytes([2; 16]) };
        let of = |is_withheld| {
            let mut damaged = DamagedSnapshot::new(slot, None);
            damaged.add(Problem { range: 0..0, why: "no answer".into(), is_withheld });
            damaged.finish().expect("something is wrong")
        };
        assert!(of(true).is_withheld() && !of(false).is_withheld());
        let mut later = of(false);
        later.absorb(of(true));
        assert!(later.is_withheld() && later.lost.is_empty());
    }
}
