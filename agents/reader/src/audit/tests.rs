//! What is drawn for an audit. That differences are found is tested with the reader and in the simulation.

use agent::Changes;
use proptest::prelude::*;
use schema::SessionId;
use schema::limits::LEAF_SPAN;
use schema::map::{Content, Leaf, Piece};

use super::*;
use crate::testing::chunk_ids;

const K: u64 = 1 << 10;
const M: u64 = 1 << 20;

fn since(ranges: &[Range<u64>]) -> Changes {
    Changes::Since { parent: SessionId::from_parts(1, 1), ranges: ranges.to_vec() }
}

fn windows(audit: Audit, changes: &Changes, size: u64) -> Vec<Range<u64>> {
    let mut n = 0u64;
    let draw = || {
        n += 1;
        n.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    };
    audit.windows(Changed::new(changes, size).unwrap().gaps(), draw)
}

fn total(windows: &[Range<u64>]) -> u64 {
    windows.iter().map(|window| window.end - window.start).sum()
}

#[test]
fn how_much_is_drawn() {
    let none = since(&[]);
    assert_eq!(windows(Audit::OFF, &none, 1 << 30), []);
    assert_eq!(windows(Audit::default(), &since(std::slice::from_ref(&(0..100))), 100), []);
    assert_eq!(windows(Audit::ALL, &none, 100 * M), [0..64 * M, 64 * M..100 * M]);
    let little = windows(Audit::default(), &none, 700 * K + 5);
    assert_eq!((little.len(), little[0].clone()), (1, 0..700 * K + 5), "little is looked at whole");
    for (size, expected) in [(64 * M, M), (4 << 30, 4 * M), (1 << 40, 1 << 30), (1 << 44, 1 << 30)] {
        let drawn = total(&windows(Audit::default(), &none, size));
        assert!(drawn <= expected + 2 * M && drawn * 10 >= expected * 7, "{drawn} of {size}");
    }
    let capped = Audit { bytes_max: 8 * M, ..Audit::ALL };
    assert!(total(&windows(capped, &none, 1 << 32)) <= 8 * M);
}

/// What an audit could not read fails its session by name. Where word of that gets lost, the same is read again.
#[test]
fn a_session_draws_the_same_share_each_time_and_another_session_another_one() {
    let windows = |number| {
        let changes = since(&[]);
        let gaps = Changed::new(&changes, 1 << 40).unwrap().gaps();
        Audit::default().windows(gaps, drawn(SessionId::from_parts(7, number)))
    };
    assert_eq!(windows(1), windows(1));
    let (one, other) = (windows(1), windows(2));
    assert!(one.len() > 100 && one.iter().filter(|window| other.contains(window)).count() < 10);
}

#[test]
fn only_what_is_wholly_unchanged_is_compared() {
    let id = |n: u8| chunk_ids().id(schema::Domain::Data, &[n]);
    let chunk = |len: u64, n| Piece { len: len as u32, content: Content::Chunk(id(n)) };
    let zero = |len: u64| Piece { len: len as u32, content: Content::Zero };
    let pieces = [chunk(64 * K, 1), chunk(32 * K, 2), zero(100 * K), chunk(16 * K, 3)];
    let leaf = ParentLeaf::new(0, &Leaf::new(212 * K, pieces).unwrap());
    let changes = since(&[70 * K..71 * K, 100 * K..101 * K]);
    let changed = Changed::new(&changes, 212 * K).unwrap();
    let compared = |window| comparable(&leaf, &changed, &window);
    assert_eq!(compared(0..68 * K), [(0..64 * K, Some(id(1)))]);
    assert_eq!(compared(72 * K..100 * K), [(96 * K..100 * K, None)]);
    assert_eq!(
        compared(104 * K..200 * K),
        [(104 * K..196 * K, None), (196 * K..212 * K, Some(id(3)))],
        "zeroes as far as the window goes, chunks whole"
    );
}

proptest! {
    #[test]
    fn windows_lie_in_what_is_unchanged(
        cuts in proptest::collection::vec(0u64..200 * M, 0..40), share in 1..=1_000_000u32, seed: u64,
    ) {
        let mut cuts = cuts;
        cuts.sort_unstable();
        cuts.dedup();
        let ranges: Vec<_> = cuts.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect();
        let changes = since(&ranges);
        let changed = Changed::new(&changes, 200 * M).unwrap();
        let mut n = seed;
        let draw = || {
            n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            n >> 7
        };
        let windows = Audit { share, bytes_max: 1 << 30 }.windows(changed.gaps(), draw);
        prop_assert!(windows.windows(2).all(|pair| pair[0].end <= pair[1].start));
        for window in &windows {
            prop_assert!(window.start < window.end && window.end <= 200 * M);
            prop_assert!(window.start.is_multiple_of(BLOCK) && changed.within(window).is_empty());
            prop_assert_eq!(window.start / LEAF_SPAN, (window.end - 1) / LEAF_SPAN);
        }
        let unchanged: u64 = changed.gaps().map(|gap| gap.end - gap.start).sum();
        prop_assert!(unchanged == 0 || !windows.is_empty());
    }
}
