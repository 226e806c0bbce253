//! Retention: which snapshots stay and which go, as a function over values.
//!
//! Snapshots of a volume are taken in the order of their generations, the newest first; clocks only say which of them
//! are of one hour, day, week (from Monday), month or year, in UTC, so that every host decides alike. A volume's newest
//! snapshot and what is held never go. A group's run stays as a whole while anything keeps one of its snapshots. Where a
//! volume's times run backwards, no clock can be believed, and nothing of that volume goes.

mod applying;
mod calendar;
mod stand_ins;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use schema::names::Slot;

pub(crate) use applying::{Applied, apply};
pub use applying::{Policies, Policy};
use calendar::Period;
pub use stand_ins::stand_ins;

/// How far a volume's times may run backwards from one generation to the next ones, in milliseconds.
const BACKWARDS_MAX: u64 = 24 * 60 * 60 * 1000;

/// What is to be kept. Without any rule nothing is decided.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// The newest so many.
    pub last: u32,
    /// The newest of each of the newest so many hours that have one.
    pub hourly: u32,
    /// The same of days.
    pub daily: u32,
    /// The same of weeks.
    pub weekly: u32,
    /// The same of months.
    pub monthly: u32,
    /// The same of years.
    pub yearly: u32,
    /// What is at most so much older than the volume's newest snapshot.
    pub within: Option<Duration>,
    /// What has one of these tags.
    pub tags: Vec<String>,
}

impl Rules {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn periods(&self) -> [(Period, u32); 5] {
        [
            (Period::Hour, self.hourly),
            (Period::Day, self.daily),
            (Period::Week, self.weekly),
            (Period::Month, self.monthly),
            (Period::Year, self.yearly),
        ]
    }
}

/// What is decided about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Where it stands.
    pub slot: Slot,
    /// Its volume.
    pub volume: String,
    /// Its generation.
    pub generation: u64,
    /// The moment that it shows, in milliseconds since 1970.
    pub time_ms: u64,
    /// The run of a group that it belongs to.
    pub group: Option<String>,
    /// Its tags.
    pub tags: Vec<String>,
    /// Whether something holds it.
    pub held: bool,
}

/// Why a snapshot stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It is its volume's newest.
    Newest,
    /// It is held.
    Held,
    /// It is among the newest.
    Last,
    /// It is the newest of its hour, day, week, month or year.
    Of(Period),
    /// It is recent.
    Within,
    /// It has this tag.
    Tag(String),
    /// Another snapshot of its group's run stays.
    Group(String),
    /// Nobody asked about it.
    NotChosen,
    /// Its volume's times run backwards.
    Backwards,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest => f.write_str("newest"),
            Self::Held => f.write_str("held"),
            Self::Last => f.write_str("last"),
            Self::Of(period) => f.write_str(period.adverb()),
            Self::Within => f.write_str("within"),
            Self::Tag(tag) => write!(f, "tag {tag}"),
            Self::Group(run) => write!(f, "run {run} stays"),
            Self::NotChosen => f.write_str("not chosen"),
            Self::Backwards => f.write_str("times run backwards"),
        }
    }
}

/// Two snapshots of a volume of which the later one by generation is more than a day older by its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backwards {
    /// The earlier one by generation.
    pub earlier: Snapshot,
    /// The later one.
    pub later: Snapshot,
}

impl fmt::Display for Backwards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { earlier, later } = self;
        write!(
            f,
            "the times of {} run backwards by more than a day, from snapshot {} (generation {}) to {} (generation {}): a \
             clock was wrong, and nothing of the volume is forgotten by rules; forget the wrong one by its id",
            earlier.volume, earlier.slot.session, earlier.generation, later.slot.session, later.generation
        )
    }
}

/// What was decided.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decided {
    /// Why each snapshot stays, in the order in which they were given; what has no reason goes.
    pub reasons: Vec<Vec<Reason>>,
    /// Volumes whose times run backwards.
    pub backwards: Vec<Backwards>,
}

/// Decides which of all visible snapshots of some volumes go. `rules` says by which rules one is decided about, if at
/// all; `now_ms` only keeps a newest snapshot of the future from letting all others go. With `together`, a group's run
/// stays or goes as a whole.
pub fn decide<'a>(
    all: &[Snapshot],
    rules: impl Fn(&Snapshot) -> Option<&'a Rules>,
    now_ms: u64,
    together: bool,
) -> Decided {
    let mut volumes: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (at, snapshot) in all.iter().enumerate() {
        volumes.entry(&snapshot.volume).or_default().push(at);
    }
    let mut decided = Decided { reasons: vec![Vec::new(); all.len()], backwards: Vec::new() };
    for (_, mut newest_first) in volumes {
        newest_first.sort_by_key(|at| std::cmp::Reverse((all[*at].generation, all[*at].slot)));
        of_volume(all, &newest_first, &rules, now_ms, &mut decided);
    }
    if together {
        keep_runs(all, &mut decided.reasons);
    }
    decided
}

fn of_volume<'a>(
    all: &[Snapshot],
    newest_first: &[usize],
    rules: &impl Fn(&Snapshot) -> Option<&'a Rules>,
    now_ms: u64,
    decided: &mut Decided,
) {
    let Some(newest) = newest_first.first().map(|at| &all[*at]) else { return };
    let chosen: Vec<(usize, &Rules)> =
        newest_first.iter().filter_map(|at| Some((*at, rules(&all[*at])?))).collect();
    let mut keep = |at: usize, reason: Reason| decided.reasons[at].push(reason);
    keep(newest_first[0], Reason::Newest);
    for at in newest_first {
        if all[*at].held {
            keep(*at, Reason::Held);
        }
        if rules(&all[*at]).is_none() {
            keep(*at, Reason::NotChosen);
        }
    }
    let backwards = backwards(newest_first.iter().rev().map(|at| &all[*at]));
    if let Some(backwards) = backwards.filter(|_| !chosen.is_empty()) {
        newest_first.iter().for_each(|at| keep(*at, Reason::Backwards));
        decided.backwards.push(backwards);
        return;
    }
    by_rules(all, &chosen, newest.time_ms.min(now_ms), &mut keep);
}

/// The rules of what was chosen of one volume, the newest first. All of it has the same rules.
fn by_rules(
    all: &[Snapshot],
    chosen: &[(usize, &Rules)],
    reference_ms: u64,
    keep: &mut impl FnMut(usize, Reason),
) {
    let Some((_, rules)) = chosen.first() else { return };
    for (at, _) in chosen.iter().take(rules.last as usize) {
        keep(*at, Reason::Last);
    }
    for (period, count) in rules.periods() {
        let mut seen = BTreeSet::new();
        for (at, _) in chosen {
            if seen.len() < count as usize && seen.insert(period.of(all[*at].time_ms)) {
                keep(*at, Reason::Of(period));
            }
        }
    }
    for (at, _) in chosen {
        let snapshot = &all[*at];
        let is_within = |within: Duration| {
            let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
            snapshot.time_ms.saturating_add(within_ms) >= reference_ms
        };
        if rules.within.is_some_and(is_within) {
            keep(*at, Reason::Within);
        }
        for tag in rules.tags.iter().filter(|tag| snapshot.tags.contains(tag)) {
            keep(*at, Reason::Tag(tag.clone()));
        }
    }
}

/// The first two snapshots between which the times run backwards too far; the oldest generation comes first.
fn backwards<'a>(oldest_first: impl Iterator<Item = &'a Snapshot>) -> Option<Backwards> {
    let mut latest: Option<&Snapshot> = None;
    for snapshot in oldest_first {
        match latest {
            Some(earlier) if snapshot.time_ms.saturating_add(BACKWARDS_MAX) < earlier.time_ms => {
                return Some(Backwards { earlier: earlier.clone(), later: snapshot.clone() });
            }
            Some(earlier) if snapshot.time_ms <= earlier.time_ms => {}
            _ => latest = Some(snapshot),
        }
    }
    None
}

/// What belongs to a run of which something stays, stays.
fn keep_runs(all: &[Snapshot], reasons: &mut [Vec<Reason>]) {
    let kept = all.iter().zip(&*reasons).filter(|(_, reasons)| !reasons.is_empty());
    let runs: BTreeSet<&str> = kept.filter_map(|(snapshot, _)| snapshot.group.as_deref()).collect();
    for (snapshot, reasons) in all.iter().zip(reasons) {
        if let Some(run) = snapshot.group.as_deref().filter(|run| runs.contains(run))
            && reasons.is_empty()
        {
            reasons.push(Reason::Group(run.to_owned()));
        }
    }
}
