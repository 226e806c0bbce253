//! Which snapshots stay: a table of the rules, and properties over random volumes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::time::Duration;

use conductor::retention::{Decided, Policies, Policy, Reason, Rules, Snapshot, decide};
use proptest::collection::vec;
use proptest::prelude::*;
use schema::names::Slot;
use schema::{SessionId, VolumeKey};

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;
/// A Monday, 2024-01-01 00:00.
const START: u64 = 1_704_067_200_000;
const NEVER: u64 = u64::MAX;

fn snapshot(volume: u8, generation: u64, time_ms: u64) -> Snapshot {
    let session = SessionId::from_parts(generation, u128::from(volume));
    Snapshot {
        slot: Slot { volume: VolumeKey::from_bytes([volume; 16]), session },
        volume: format!("host/vg/{volume}"),
        generation,
        time_ms,
        group: None,
        tags: Vec::new(),
        held: false,
    }
}

/// One volume's snapshots, of generations from 1 on.
fn at(times: &[u64]) -> Vec<Snapshot> {
    times.iter().zip(1..).map(|(time, generation)| snapshot(1, generation, START + time)).collect()
}

fn decided(all: &[Snapshot], rules: &Rules) -> Decided {
    decide(all, |_| Some(rules), NEVER, true)
}

/// The generations that stay.
fn kept(all: &[Snapshot], rules: &Rules) -> Vec<u64> {
    let decided = decided(all, rules);
    let stays = all.iter().zip(&decided.reasons).filter(|(_, reasons)| !reasons.is_empty());
    stays.map(|(snapshot, _)| snapshot.generation).collect()
}

#[test]
fn each_rule_keeps_what_it_says() {
    let none = Rules::default();
    let every_six_hours: Vec<u64> = (0..12).map(|n| n * 6 * HOUR).collect();
    let every_ten_days: Vec<u64> = (0..12).map(|n| n * 10 * DAY).collect();
    let day = Some(Duration::from_secs(24 * 3600));
    for (name, rules, times, expected) in [
        ("the newest stays without any rule", none.clone(), &every_six_hours, vec![12]),
        ("last", Rules { last: 3, ..none.clone() }, &every_six_hours, vec![10, 11, 12]),
        ("more than there are", Rules { last: 99, ..none.clone() }, &every_six_hours, (1..=12).collect()),
        ("the newest of each day", Rules { daily: 2, ..none.clone() }, &every_six_hours, vec![8, 12]),
        (
            "hours without a snapshot do not count",
            Rules { hourly: 3, ..none.clone() },
            &every_six_hours,
            vec![10, 11, 12],
        ),
        ("all in one week", Rules { weekly: 5, ..none.clone() }, &every_six_hours, vec![12]),
        ("weeks", Rules { weekly: 3, ..none.clone() }, &every_ten_days, vec![10, 11, 12]),
        (
            "January, February, March, April",
            Rules { monthly: 9, ..none.clone() },
            &every_ten_days,
            vec![4, 6, 10, 12],
        ),
        ("a year", Rules { yearly: 2, ..none.clone() }, &every_ten_days, vec![12]),
        (
            "within a day of the newest",
            Rules { within: day, ..none.clone() },
            &every_six_hours,
            (8..=12).collect(),
        ),
        ("rules add up", Rules { last: 2, daily: 3, ..none.clone() }, &every_six_hours, vec![4, 8, 11, 12]),
    ] {
        assert_eq!(kept(&at(times), &rules), expected, "{name}");
    }
}

#[test]
fn every_rule_that_keeps_a_snapshot_is_named() {
    let mut all = at(&[0, DAY, 2 * DAY]);
    all[0].tags = vec!["audit".into()];
    all[1].held = true;
    let rules = Rules { last: 1, yearly: 1, tags: vec!["audit".into()], ..Rules::default() };
    let words =
        |reasons: &Vec<Reason>| reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let said: Vec<String> = decided(&all, &rules).reasons.iter().map(words).collect();
    assert_eq!(said, ["tag audit", "held", "newest, last, yearly"]);
}

#[test]
fn a_newest_snapshot_of_the_future_does_not_let_the_others_go() {
    let all = at(&[0, DAY, 36_500 * DAY]);
    let rules = Rules { within: Some(Duration::from_secs(2 * 24 * 3600)), ..Rules::default() };
    let stays = |now_ms| {
        let decided = decide(&all, |_| Some(&rules), now_ms, true);
        decided.reasons.iter().filter(|reasons| !reasons.is_empty()).count()
    };
    assert_eq!(stays(START + 2 * DAY), 3);
    assert_eq!(stays(0), 3, "nor does a clock that is behind");
    assert_eq!(stays(NEVER), 1);
}

#[test]
fn generations_decide_who_is_newest_and_times_that_run_backwards_are_refused() {
    let rules = Rules { last: 1, daily: 2, ..Rules::default() };
    // A clock that was set back by some hours.
    assert_eq!(kept(&at(&[DAY + 8 * HOUR, DAY + 9 * HOUR, DAY + 3 * HOUR]), &rules), [3]);
    assert_eq!(kept(&at(&[DAY + HOUR, 2 * DAY + HOUR, DAY + 2 * HOUR]), &rules), [2, 3]);
    assert_eq!(kept(&at(&[0, DAY, 0]), &rules), [2, 3], "a day is not too much");
    // By more than a day, at once or little by little; another volume is none the worse.
    for times in [vec![0, 3 * DAY, HOUR], vec![40 * HOUR, 20 * HOUR, 15 * HOUR]] {
        let mut all = at(&times);
        all.extend((1..=3).map(|generation| snapshot(2, generation, START)));
        let Decided { reasons, backwards } = decided(&all, &rules);
        let stays: Vec<bool> = reasons.iter().map(|reasons| !reasons.is_empty()).collect();
        assert_eq!(stays, [true, true, true, false, false, true]);
        assert_eq!(backwards.len(), 1);
        let said = backwards[0].to_string();
        for named in
            [&all[0].volume, &backwards[0].earlier.slot.session.to_string(), &all[2].slot.session.to_string()]
        {
            assert!(said.contains(named), "{said}");
        }
    }
}

#[test]
fn a_run_stays_or_goes_as_a_whole() {
    let run = |volume, generation, run: u64| Snapshot {
        group: Some(format!("g/{run}")),
        ..snapshot(volume, generation, START + run * DAY)
    };
    // The second volume failed in the last two runs.
    let all = [run(1, 1, 1), run(2, 1, 1), run(1, 2, 2), run(2, 2, 2), run(1, 3, 3), run(1, 4, 4)];
    let rules = Rules { last: 1, ..Rules::default() };
    let stays = |together| {
        let decided = decide(&all, |_| Some(&rules), NEVER, together);
        decided.reasons.iter().map(|reasons| !reasons.is_empty()).collect::<Vec<_>>()
    };
    assert_eq!(stays(true), [false, false, true, true, false, true]);
    assert_eq!(stays(false), [false, false, false, true, false, true]);
    // What nobody asked about stays, and so does the rest of its run.
    let decided = decide(&all, |one| (one.volume == all[0].volume).then_some(&rules), NEVER, true);
    assert_eq!(decided.reasons[0], [Reason::Group("g/1".into())]);
    assert_eq!(decided.reasons[1], [Reason::NotChosen]);
}

#[test]
fn the_last_policy_that_matches_decides() {
    let policy =
        |volumes: &str, last| Policy { volumes: volumes.into(), rules: Rules { last, ..Rules::default() } };
    let policies = Policies::new(vec![policy("*", 7), policy("db/*", 30), policy("undo/h/*", 1)]);
    for (volume, expected) in [
        ("db/vg/data", Some(30)),
        ("web/vg/root", Some(7)),
        ("undo/h/disk", Some(1)),
        ("undo/other/disk", None),
    ] {
        assert_eq!(policies.of(volume).map(|rules| rules.last), expected, "{volume}");
    }
}

fn rules() -> impl Strategy<Value = Rules> {
    let count = || 0..5u32;
    let within = proptest::option::of((0..10 * DAY).prop_map(Duration::from_millis));
    let tags = vec("[ab]", 0..2);
    (count(), count(), count(), count(), count(), count(), within, tags).prop_map(
        |(last, hourly, daily, weekly, monthly, yearly, within, tags)| Rules {
            last,
            hourly,
            daily,
            weekly,
            monthly,
            yearly,
            within,
            tags,
        },
    )
}

/// Up to three volumes whose times go forwards, and now and then some hours backwards.
fn archive() -> impl Strategy<Value = Vec<Snapshot>> {
    let one =
        (1..4u8, 0..40 * HOUR, 0..6 * HOUR, vec("[abc]", 0..2), any::<bool>(), proptest::option::of(0..6u8));
    (vec(one, 0..40), any::<u64>()).prop_map(|(steps, seed)| {
        let (mut generations, mut times) = ([0; 4], [START; 4]);
        let mut all: Vec<Snapshot> = Vec::new();
        for (volume, forwards, backwards, tags, held, run) in steps {
            let at = usize::from(volume);
            generations[at] += 1;
            times[at] += forwards;
            let held = held && generations[at] % 3 == 0;
            let group = run.map(|run| format!("g/{run}"));
            all.push(Snapshot {
                tags,
                held,
                group,
                ..snapshot(volume, generations[at], times[at] - backwards)
            });
        }
        // The order in which they are given must not matter.
        all.sort_by_key(|one| (one.slot.session.time_ms() ^ seed, one.slot));
        all
    })
}

fn slots(all: &[Snapshot], rules: &Rules) -> BTreeSet<Slot> {
    let decided = decided(all, rules);
    let stays = all.iter().zip(&decided.reasons).filter(|(_, reasons)| !reasons.is_empty());
    stays.map(|(snapshot, _)| snapshot.slot).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn the_newest_and_what_is_held_stay(all in archive(), rules in rules()) {
        let kept = slots(&all, &rules);
        for one in &all {
            let newest = all.iter().filter(|other| other.volume == one.volume).map(|other| other.generation).max();
            prop_assert!(kept.contains(&one.slot) || (!one.held && Some(one.generation) != newest));
        }
    }

    #[test]
    fn deciding_again_changes_nothing(all in archive(), rules in rules()) {
        let kept = slots(&all, &rules);
        let left: Vec<Snapshot> = all.into_iter().filter(|one| kept.contains(&one.slot)).collect();
        prop_assert_eq!(slots(&left, &rules), kept);
    }

    #[test]
    fn whoever_keeps_more_keeps_all_that_was_kept(all in archive(), less in rules(), more in rules()) {
        let within = less.within.max(more.within);
        let both = Rules {
            last: less.last.max(more.last),
            hourly: less.hourly.max(more.hourly),
            daily: less.daily.max(more.daily),
            weekly: less.weekly.max(more.weekly),
            monthly: less.monthly.max(more.monthly),
            yearly: less.yearly.max(more.yearly),
            within,
            tags: less.tags.iter().chain(&more.tags).cloned().collect(),
        };
        let kept = slots(&all, &both);
        prop_assert!(slots(&all, &less).is_subset(&kept) && slots(&all, &more).is_subset(&kept));
    }

    #[test]
    fn no_run_is_torn(all in archive(), rules in rules()) {
        let kept = slots(&all, &rules);
        for one in all.iter().filter(|one| one.group.is_some()) {
            for other in all.iter().filter(|other| other.group == one.group) {
                prop_assert_eq!(kept.contains(&one.slot), kept.contains(&other.slot));
            }
        }
    }
}
