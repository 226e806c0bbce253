//! Tables of ranges. What is done with them is tested with whole restores.

use super::*;

fn told(ranges: impl IntoIterator<Item = Range<u64>>) -> String {
    let told = ranges.into_iter().map(|range| format!("{}-{}", range.start, range.end));
    told.collect::<Vec<_>>().join(" ")
}

#[test]
fn what_lies_between_ranges() {
    let ranges = [10..20, 30..40, 50..60];
    for (within, expected) in [
        (0..100, "0-10 20-30 40-50 60-100"),
        (15..35, "20-30"),
        (10..60, "20-30 40-50"),
        (12..18, ""),
        (20..30, "20-30"),
        (25..25, ""),
        (60..61, "60-61"),
    ] {
        assert_eq!(told(gaps(&ranges, within.clone())), expected, "{within:?}");
    }
    assert_eq!(told(gaps(&[], 3..5)), "3-5");
}

#[test]
fn zeroes_are_taken_out_in_parts_or_whole() {
    let known = [0..50, 60..100, 200..300];
    for (in_parts, left, bytes) in [(true, "50-60 100-110", 180), (false, "10-110", 100)] {
        let mut window = Window { zeroes: vec![10..110, 200..300], ..Window::default() };
        assert_eq!(without_zeroes(&mut window, &known, in_parts), bytes);
        assert_eq!(told(window.zeroes), left);
    }
}
