use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn set(ranges: &Ranges) -> BTreeSet<u64> {
    ranges.iter().flatten().collect()
}

fn well_formed(ranges: &Ranges) -> bool {
    let pairs = ranges.ranges.windows(2).all(|pair| pair[0].end < pair[1].start);
    pairs && ranges.iter().all(|range| range.start < range.end)
}

fn small() -> impl Strategy<Value = Vec<Range<u64>>> {
    vec((0u64..300, 0u64..20).prop_map(|(start, len)| start..start + len), 0..40)
}

proptest! {
    #[test]
    fn they_hold_exactly_what_was_added_in_any_order(parts in small()) {
        let expected: BTreeSet<u64> = parts.iter().cloned().flatten().collect();
        let ranges: Ranges = parts.into_iter().collect();
        prop_assert!(well_formed(&ranges), "{ranges:?}");
        prop_assert_eq!(ranges.bytes(), expected.len() as u64);
        prop_assert_eq!(set(&ranges), expected);
    }

    #[test]
    fn unions_clamps_and_windows_are_those_of_sets(a in small(), b in small(), size in 0u64..350, at in 0u64..350) {
        let (a, b): (Ranges, Ranges) = (a.into_iter().collect(), b.into_iter().collect());
        let both = a.union(&b);
        prop_assert!(well_formed(&both));
        prop_assert_eq!(set(&both), &set(&a) | &set(&b));
        let below = a.clone().clamp(size);
        prop_assert!(well_formed(&below));
        prop_assert_eq!(set(&below), set(&a).range(..size).copied().collect::<BTreeSet<_>>());
        let window = size.min(at)..size.max(at);
        let within: BTreeSet<u64> = a.within(window.clone()).flatten().collect();
        prop_assert_eq!(within, set(&a).range(window).copied().collect::<BTreeSet<_>>());
        prop_assert_eq!(a.contains(at), set(&a).contains(&at));
    }

    #[test]
    fn widening_adds_nothing_but_the_rest_of_units(parts in small(), unit in 1u64..40, size in 320u64..400) {
        let ranges: Ranges = parts.into_iter().collect();
        let wide = ranges.widen(unit, size);
        prop_assert!(well_formed(&wide));
        let units: BTreeSet<u64> = set(&ranges).iter().map(|at| at / unit).collect();
        let expected: BTreeSet<u64> =
            units.iter().flat_map(|n| n * unit..(n + 1) * unit).filter(|at| *at < size).collect();
        prop_assert_eq!(set(&wide), expected);
    }

    #[test]
    fn closing_gaps_loses_nothing_and_keeps_the_promise(parts in small(), most in 0usize..10) {
        let ranges: Ranges = parts.into_iter().collect();
        let mut fewer = ranges.clone();
        fewer.close_gaps(most);
        prop_assert!(well_formed(&fewer));
        prop_assert!(fewer.len() <= most.max(1));
        prop_assert!(set(&fewer).is_superset(&set(&ranges)));
        prop_assert_eq!(fewer.iter().next().map(|r| r.start), ranges.iter().next().map(|r| r.start));
        prop_assert_eq!(fewer.iter().last().map(|r| r.end), ranges.iter().last().map(|r| r.end));
    }
}

#[test]
fn small_gaps_are_closed_before_large_ones() {
    let mut ranges: Ranges = [0..10, 12..20, 1000..1010, 1011..1020, 9000..9001].into_iter().collect();
    ranges.close_gaps(3);
    assert_eq!(ranges.into_vec(), [0..20, 1000..1020, 9000..9001]);
}

#[test]
fn their_number_stays_bounded_whatever_is_added() {
    let mut ranges = Ranges::new();
    for n in 0..=Ranges::MOST as u64 {
        ranges.push(n * 8192..n * 8192 + 4096);
    }
    assert!(ranges.len() <= Ranges::MOST / 2, "{}", ranges.len());
    assert!(ranges.contains(0) && ranges.contains(Ranges::MOST as u64 * 8192));
}

#[test]
fn the_end_of_the_number_line_is_no_trap() {
    let ranges: Ranges = std::iter::once(u64::MAX - 5..u64::MAX).collect();
    assert!(ranges.widen(4096, u64::MAX).iter().eq(std::iter::once(u64::MAX - 4095..u64::MAX)));
    assert!(ranges.contains(u64::MAX - 1));
}
