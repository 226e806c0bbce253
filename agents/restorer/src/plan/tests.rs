//! Tables and properties of plans.

use std::collections::BTreeMap;

use proptest::prelude::*;
use schema::Domain;

use super::*;

fn id(n: u8) -> ChunkId {
    let mut bytes = [n; 33];
    bytes[0] = Domain::Data as u8;
    ChunkId::parse(&bytes).unwrap()
}

fn pack(n: u8) -> PackId {
    PackId::from_bytes([n; 16])
}

fn chunk(n: u8, len: u32) -> Piece {
    Piece { len, content: Content::Chunk(id(n)) }
}

fn zero(len: u32) -> Piece {
    Piece { len, content: Content::Zero }
}

fn place(pieces: &[Piece]) -> Vec<(u64, Piece)> {
    let mut at = 0;
    let located = pieces.iter().map(|piece| {
        at += u64::from(piece.len);
        (at - u64::from(piece.len), *piece)
    });
    located.collect()
}

#[test]
fn zero_runs_are_joined_and_repeated_chunks_share_a_fetch() {
    let pieces = [zero(10), zero(20), chunk(1, 5), chunk(2, 7), zero(1), chunk(1, 5), zero(2), chunk(1, 6)];
    let window = Window::new(place(&pieces));
    assert_eq!(window.zeroes, [0..30, 42..43, 48..50]);
    let seen: Vec<_> = window.chunks.iter().map(|w| (w.id, w.len, w.offsets.clone())).collect();
    assert_eq!(
        seen,
        [(id(1), 5, vec![30, 43]), (id(2), 7, vec![35]), (id(1), 6, vec![50])],
        "a chunk that the map gives two lengths is verified for each"
    );
}

#[test]
fn neighbours_are_fetched_together() {
    const KIB: u32 = 1 << 10;
    let gap = GAP_MAX as u32;
    // Frames as (pack, offset, length), and the ranges that they are fetched by.
    type Row = (&'static str, Vec<(u8, u32, u32)>, Vec<(u8, Range<u64>)>);
    let table: Vec<Row> = vec![
        ("adjacent", vec![(1, 48, 100), (1, 148, 100)], vec![(1, 48..248)]),
        ("in any order", vec![(1, 148, 100), (1, 48, 100)], vec![(1, 48..248)]),
        ("a gap that is small enough", vec![(1, 48, 100), (1, 148 + gap, 100)], vec![(1, 48..248 + GAP_MAX)]),
        (
            "a gap that is not",
            vec![(1, 48, 100), (1, 149 + gap, 100)],
            vec![(1, 48..148), (1, 149 + GAP_MAX..249 + GAP_MAX)],
        ),
        ("two packs", vec![(1, 48, 100), (2, 148, 100)], vec![(1, 48..148), (2, 148..248)]),
        (
            "more than one fetch may hold",
            vec![(1, 0, 100 * KIB), (1, 100 * KIB, 100 * KIB), (1, 200 * KIB, 100 * KIB)],
            vec![(1, 0..200 << 10), (1, 200 << 10..300 << 10)],
        ),
        ("overlapping, as no pack is", vec![(1, 48, 200), (1, 100, 60)], vec![(1, 48..248)]),
        ("at the end of what offsets can say", vec![(1, u32::MAX, 100)], vec![(1, 4294967295..4294967395)]),
    ];
    for (name, frames, expected) in table {
        let pieces: Vec<Piece> = (0..frames.len()).map(|n| chunk(n as u8 + 1, 4096)).collect();
        let mut window = Window::new(place(&pieces));
        for (wanted, (p, offset, len)) in window.chunks.iter_mut().zip(&frames) {
            wanted.copies = vec![Copy { pack: pack(*p), offset: *offset, len: *len }];
        }
        window.rank(|_, _| true);
        let fetches = window.fetches(200 << 10);
        let mut got: Vec<_> = fetches.iter().map(|f| (f.pack.as_bytes()[0], f.range.clone())).collect();
        got.sort_by_key(|(p, range)| (*p, range.start));
        assert_eq!(got, expected, "{name}");
    }
}

#[test]
fn the_best_copy_counts_and_is_near_others() {
    let mut window = Window::new(place(&[chunk(1, 4096), chunk(2, 4096), chunk(3, 4096)]));
    let copy = |p, offset| Copy { pack: pack(p), offset, len: 100 };
    window.chunks[0].copies = vec![copy(1, 0), copy(2, 0), copy(3, 0)];
    window.chunks[1].copies = vec![copy(2, 100), copy(3, 100)];
    window.chunks[2].copies =
        vec![copy(3, 200), Copy { len: u32::MAX, ..copy(2, 7) }, Copy { len: 48, ..copy(2, 7) }];
    let first = |window: &Window| {
        let packs = window.chunks.iter().map(|w| w.copies.first().map(|c| c.pack.as_bytes()[0]));
        packs.collect::<Vec<_>>()
    };
    window.rank(|_, _| true);
    assert_eq!(first(&window), [Some(3), Some(3), Some(3)]);
    assert_eq!(window.chunks[2].copies.len(), 1, "copies that cannot be frames are dropped");
    window.rank(|_, p| p != pack(3));
    assert_eq!(first(&window), [Some(2), Some(2), Some(3)], "copies that do not count come last, and stay");
    window.chunks[1].copies.clear();
    assert_eq!(window.without_copies().collect::<Vec<_>>(), [1]);
}

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let piece = prop_oneof![
        (1..1_000_000_u32).prop_map(zero),
        // Lengths depend on the chunk, as in a map that is right.
        (1..30_u8).prop_map(|n| chunk(n, 4096 * u32::from(n))),
    ];
    prop::collection::vec(piece, 0..120)
}

fn copies() -> impl Strategy<Value = BTreeMap<u8, Vec<(u8, u32, u32)>>> {
    let copy = (1..4_u8, 0..6_000_000_u32, prop_oneof![9 => 49..200_000_u32, 1 => any::<u32>()]);
    prop::collection::btree_map(1..30_u8, prop::collection::vec(copy, 0..4), 0..30)
}

proptest! {
    #[test]
    fn every_piece_is_planned_exactly_once(pieces in pieces(), copies in copies(), limit in 300_000..4_000_000_u64) {
        let located = place(&pieces);
        let mut window = Window::new(located.clone());
        for wanted in &mut window.chunks {
            let known = copies.get(&wanted.id.as_bytes()[1]).cloned().unwrap_or_default();
            wanted.copies = known.iter().map(|(p, offset, len)| Copy { pack: pack(*p), offset: *offset, len: *len }).collect();
        }
        window.rank(|_, p| p != pack(2));
        let fetches = window.fetches(limit);

        // The window is the pieces: each byte once, nothing outside.
        let mut planned: Vec<(u64, u64, Option<ChunkId>)> = Vec::new();
        planned.extend(window.zeroes.iter().map(|z| (z.start, z.end, None)));
        let mut reached = vec![0; window.chunks.len()];
        fetches.iter().flat_map(|f| &f.frames).for_each(|frame| reached[frame.chunk] += 1);
        window.without_copies().for_each(|n| reached[n] += 1);
        prop_assert!(reached.iter().all(|times| *times == 1));
        for wanted in &window.chunks {
            planned.extend(wanted.offsets.iter().map(|o| (*o, o + u64::from(wanted.len), Some(wanted.id))));
        }
        planned.sort();
        let total: u64 = pieces.iter().map(|p| u64::from(p.len)).sum();
        let mut at = 0;
        for (start, end, _) in &planned {
            prop_assert_eq!(*start, at);
            at = *end;
        }
        prop_assert_eq!(at, total);
        for (offset, piece) in &located {
            if let Content::Chunk(id) = piece.content {
                prop_assert!(planned.contains(&(*offset, offset + u64::from(piece.len), Some(id))));
            }
        }

        // Fetches keep their bounds, and every frame lies inside its fetch.
        for fetch in &fetches {
            prop_assert!(fetch.len() <= limit || fetch.frames.len() == 1);
            let mut end = fetch.range.start;
            for frame in &fetch.frames {
                let range = range_of(&frame.copy);
                prop_assert_eq!(frame.copy.pack, fetch.pack);
                prop_assert!(is_plausible(&frame.copy));
                prop_assert!(range.start >= fetch.range.start && range.end <= fetch.range.end);
                prop_assert!(range.start <= end + GAP_MAX);
                end = end.max(range.end);
            }
            prop_assert_eq!(end, fetch.range.end);
        }
    }
}
