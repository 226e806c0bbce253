//! How far a check is and what it came to, as it stands in the bucket.
//!
//! Several attempts may share the work of one check: what each found of content counts once, and what every one of them
//! finds anew counts as the last one found it. Lists are cut off, numbers are not. Pure.

use schema::check::{self, Reached};
use schema::limits::{CHECK_DAMAGED_MAX, CHECK_FINDINGS_MAX, CHECK_RANGES_MAX};

use crate::findings::{DamagedSnapshot, Finding, Progress, Report};
use crate::given::NOT_GIVEN;
use crate::packs::UNREADABLE;
use crate::record::RECORDED;
use crate::scope::{Content, Share};

/// What of the content a job says.
pub(crate) fn content(job: &check::Content) -> Content {
    match *job {
        check::Content::None => Content::None,
        check::Content::All => Content::All { after: None },
        check::Content::Percent { percent, behind } => Content::Percent { percent, after: behind },
        check::Content::Share { number, of } => Content::Share(Share { number, of }),
    }
}

/// How far a check is: what attempts before this one had reached, and what this one has since. `last` is what was told
/// before of the same attempt.
pub(crate) fn reached(earlier: &Reached, last: &mut Reached, progress: Progress<'_>) {
    last.total = progress.total;
    if !progress.is_recorded {
        return;
    }
    let mut found = std::mem::take(&mut last.found);
    // Both only grow.
    let known = found.len().saturating_sub(earlier.found.len());
    let room = CHECK_FINDINGS_MAX.saturating_sub(found.len());
    found.extend(progress.found.iter().skip(known).take(room).cloned());
    *last = Reached {
        total: progress.total,
        done: progress.done,
        behind: progress.after.or(last.behind),
        packs: earlier.packs + progress.packs,
        unopened: earlier.unopened + progress.unopened,
        found,
        objects: Some(earlier.objects() + progress.found.len() as u64),
        unopened_in: earlier.unopened_in + progress.unopened_in,
        bytes_read: Some(bytes_read(earlier) + progress.bytes),
        recorded: earlier.recorded + progress.recorded,
    };
}

fn bytes_read(reached: &Reached) -> u64 {
    reached.bytes_read.unwrap_or(reached.done)
}

/// A report as it is told, of a check of which attempts before this one had reached so much.
pub(crate) fn report(found: Report, earlier: &Reached, ended_ms: u64) -> check::Report {
    let is_new = |one: &&Finding| !earlier.found.iter().any(|known| is_told_again(known, one));
    let new: Vec<&Finding> = found.objects.iter().filter(is_new).collect();
    let objects = earlier.objects() + new.len() as u64;
    let listed = new.into_iter().chain(&earlier.found);
    let listed: Vec<Finding> = listed.take(CHECK_FINDINGS_MAX).cloned().collect();
    let mut room = CHECK_RANGES_MAX;
    let damaged = |damaged: &DamagedSnapshot| {
        let lost = damaged.lost.iter().take(room).map(|range| (range.start, range.end)).collect::<Vec<_>>();
        room -= lost.len();
        let (slot, volume) = (damaged.slot, damaged.volume.clone());
        let problems = damaged.problems.clone();
        check::DamagedSnapshot { slot, volume, bytes: damaged.bytes(), lost, problems }
    };
    let snapshots_damaged = found.damaged.iter().take(CHECK_DAMAGED_MAX).map(damaged).collect();
    check::Report {
        ended_ms,
        snapshots: found.snapshots,
        bytes: found.bytes,
        packs: found.packs,
        packs_read: earlier.packs + found.packs_read,
        bytes_read: bytes_read(earlier) + found.bytes_read,
        objects,
        found: listed,
        damaged: found.damaged.len() as u64,
        snapshots_damaged,
        unopened: earlier.unopened + found.unopened,
        unopened_in: earlier.unopened_in + found.unopened_in,
        rescued: found.rescued,
        recorded: earlier.recorded + found.recorded,
        unrecorded: found.unrecorded,
        healed: found.healed,
        settled: found.settled,
    }
}

/// Whether an attempt before has told this: of a pack that was recorded as one of which nothing can be read, while
/// snapshots lack something by it, and of one that the store does not give.
fn is_told_again(known: &Finding, one: &Finding) -> bool {
    let is_it = match one.why == RECORDED {
        true => known.why.ends_with(UNREADABLE),
        false => one.why.starts_with(NOT_GIVEN) && known.why.starts_with(NOT_GIVEN),
    };
    is_it && known.key == one.key
}

#[cfg(test)]
mod tests {
    use schema::PackId;

    use super::*;

    fn findings(attempt: u64, count: u64) -> Vec<Finding> {
        let finding =
            |number| Finding { key: format!("packs/{attempt}/{number}"), why: "it is cut off".into() };
        (0..count).map(finding).collect()
    }

    fn progress(number: u8, found: &[Finding]) -> Progress<'_> {
        let count = found.len() as u64;
        Progress {
            total: 100,
            done: u64::from(number) * 10,
            is_recorded: true,
            is_stuck: false,
            is_only_told: false,
            after: Some(PackId::from_bytes([number; 16])),
            packs: count,
            bytes: 9 * count,
            unopened: 2 * count,
            unopened_in: count,
            recorded: 3 * count,
            found,
        }
    }

    /// However many attempts a check takes, and however much they find.
    #[test]
    fn numbers_go_on_where_lists_are_cut_off() {
        let per_attempt = CHECK_FINDINGS_MAX as u64 * 2 / 3;
        let mut earlier = Reached::default();
        let mut all = Vec::new();
        for attempt in 1..=3 {
            let found = findings(attempt, per_attempt);
            all.extend(found.iter().cloned());
            let mut now = earlier.clone();
            for part in [10, per_attempt] {
                reached(&earlier, &mut now, progress(attempt as u8, &found[..part as usize]));
            }
            // What is not recorded will be found again.
            let more = [&found[..], &findings(9, 5)].concat();
            let before = now.clone();
            reached(&earlier, &mut now, Progress { is_recorded: false, after: None, ..progress(9, &more) });
            assert_eq!(now, before);
            earlier = now;
        }
        let count = 3 * per_attempt;
        assert_eq!(earlier.found[..], all[..CHECK_FINDINGS_MAX]);
        assert_eq!((earlier.objects(), earlier.packs, earlier.bytes_read), (count, count, Some(9 * count)));
        assert_eq!((earlier.unopened, earlier.unopened_in, earlier.recorded), (2 * count, count, 3 * count));
        assert_eq!((earlier.done, earlier.behind), (30, Some(PackId::from_bytes([3; 16]))));
        let last = Report {
            objects: findings(4, 5),
            packs_read: 6,
            bytes_read: 60,
            unopened: 7,
            unopened_in: 1,
            recorded: 8,
            ..Report::default()
        };
        let told = report(last, &earlier, 1);
        assert_eq!((told.objects, told.found.len()), (count + 5, CHECK_FINDINGS_MAX));
        assert_eq!(told.found[..5], findings(4, 5), "what it found itself comes first");
        assert_eq!((told.packs_read, told.bytes_read), (count + 6, 9 * count + 60));
        assert_eq!(
            (told.unopened, told.unopened_in, told.recorded),
            (2 * count + 7, count + 1, 3 * count + 8)
        );
    }

    /// Only what was told before is dropped.
    #[test]
    fn findings_of_one_object_are_told_apart() {
        let of = |why: &str| Finding { key: "packs/1".into(), why: why.into() };
        let unreadable = of(&format!("it is cut off{UNREADABLE}"));
        let withheld = of(&format!("{NOT_GIVEN}: no answer"));
        let (torn, unopened, recorded) = (of("its footer is torn"), of("no key opens it"), of(RECORDED));
        for (before, now, left) in [
            (vec![&unopened], vec![&torn], vec![&torn, &unopened]),
            (
                vec![&unopened, &unopened, &unopened],
                vec![&torn],
                vec![&torn, &unopened, &unopened, &unopened],
            ),
            (vec![&unreadable, &unopened], vec![&recorded], vec![&unreadable, &unopened]),
            (vec![&unopened], vec![&recorded], vec![&recorded, &unopened]),
            (vec![&withheld], vec![&withheld], vec![&withheld]),
            (vec![&withheld], vec![&torn], vec![&torn, &withheld]),
            (vec![&unreadable, &unopened], vec![], vec![&unreadable, &unopened]),
        ] {
            let all = |some: Vec<&Finding>| some.into_iter().cloned().collect::<Vec<_>>();
            let earlier = Reached { found: all(before), ..Reached::default() };
            let told = report(Report { objects: all(now), ..Report::default() }, &earlier, 1);
            assert_eq!((told.objects, told.found), (left.len() as u64, all(left)));
        }
    }

    /// As agents of earlier versions left it.
    #[test]
    fn what_is_not_said_is_taken_from_what_is() {
        let earlier = Reached { done: 40, packs: 2, found: findings(1, 3), ..Reached::default() };
        let told = report(Report::default(), &earlier, 1);
        assert_eq!((told.objects, told.bytes_read, told.packs_read), (3, 40, 2));
        let mut now = earlier.clone();
        let found = findings(2, 2);
        reached(&earlier, &mut now, progress(5, &found));
        assert_eq!((now.objects(), now.bytes_read), (5, Some(58)));
    }
}
