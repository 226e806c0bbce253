//! Whole leaves in memory: what is read, cut and left out adds up to what cutting the whole leaf gives.

use proptest::prelude::*;
use schema::limits::CHUNK_MAX;
use schema::{Domain, RepoId};

use super::*;
use crate::cut::{self, Cutter, cut};
use crate::testing::noise;

const B: u64 = BLOCK;
const SEED: u64 = 7;
/// The leaf's place in the volume.
const START: u64 = 3 * schema::limits::LEAF_SPAN;

fn id_of(bytes: &[u8]) -> ChunkId {
    let key = schema::keys::WriterKey::new(RepoId::from_bytes([1; 16]), Vec::new(), &[3; 64]).unwrap();
    key.chunk_ids().id(Domain::Data, bytes)
}

/// The map of a leaf with these bytes, as a full scan cuts it.
fn scanned(bytes: &[u8]) -> Leaf {
    let mut at = 0;
    let piece = |piece: cut::Piece| {
        let chunk = &bytes[at..at + piece.len as usize];
        at += piece.len as usize;
        let content = if piece.zero { Content::Zero } else { Content::Chunk(id_of(chunk)) };
        schema::map::Piece { len: piece.len, content }
    };
    Leaf::new(bytes.len() as u64, cut(bytes, SEED).into_iter().map(piece).collect::<Vec<_>>()).unwrap()
}

/// What a tracked reading of a leaf does.
struct Tracked {
    leaf: Leaf,
    /// In order.
    read: Vec<Range<u64>>,
    spans: Vec<Range<u64>>,
}

/// Reads a leaf of `bytes` of which `changed` may differ from the parent's.
fn track(parent: &Leaf, bytes: &[u8], changed: &[Range<u64>]) -> Tracked {
    let parent = Arc::new(ParentLeaf::new(START, parent));
    let end = parent.range().end;
    let spans = parent.spans(changed);
    let (mut pieces, mut read, mut at) = (Vec::new(), Vec::new(), START);
    let mut cutter = Cutter::new(SEED);
    let mut told = START;
    let cut = |told: &mut u64, pieces: &mut Vec<schema::map::Piece>, piece: cut::Piece| {
        let from = (*told - START) as usize;
        *told += u64::from(piece.len);
        let content = match piece.zero {
            true => Content::Zero,
            false => Content::Chunk(id_of(&bytes[from..from + piece.len as usize])),
        };
        pieces.push(schema::map::Piece { len: piece.len, content });
    };
    let starts = spans.iter().map(|span| span.start).skip(1).chain([end]);
    let leading = spans.first().map_or(end, |span| span.start);
    let pass = |told: &mut u64, pieces: &mut Vec<schema::map::Piece>, range: Range<u64>| {
        assert_eq!(*told, range.start);
        for piece in parent.touching(&range) {
            let (from, to) = (piece.range.start.max(range.start), piece.range.end.min(range.end));
            assert!(piece.id.is_none() || (from..to) == piece.range, "a chunk is left out in part");
            let content = piece.id.map_or(Content::Zero, Content::Chunk);
            pieces.push(schema::map::Piece { len: (to - from) as u32, content });
        }
        *told = range.end;
    };
    pass(&mut told, &mut pieces, at..leading);
    for (span, next) in spans.iter().zip(starts) {
        let mut gap = Gap::new(parent.clone(), span.end..next);
        let mut range = span.clone();
        let mut ends_run = parent.ends_chunks_at(span.end);
        loop {
            assert!(read.last().is_none_or(|last: &Range<u64>| last.end <= range.start));
            read.push(range.clone());
            at = range.end;
            let bytes = &bytes[(range.start - START) as usize..(range.end - START) as usize];
            cutter.push(bytes, |piece| cut(&mut told, &mut pieces, piece));
            if ends_run {
                cutter.finish(|piece| cut(&mut told, &mut pieces, piece));
            }
            match gap.next(cutter.unfinished() > 0) {
                Next::Unchanged(rest) => {
                    assert_eq!((rest.start, cutter.unfinished()), (at, 0));
                    cutter.finish(|piece| cut(&mut told, &mut pieces, piece));
                    pass(&mut told, &mut pieces, rest);
                    break;
                }
                Next::Read { range: more, ends_run: ends } => {
                    assert_eq!(more.start, at);
                    (range, ends_run) = (more, ends);
                }
                Next::Nothing => break,
            }
        }
    }
    assert_eq!((told, cutter.is_between_pieces()), (end, true), "every byte is told once");
    Tracked { leaf: Leaf::new(bytes.len() as u64, pieces).unwrap(), read, spans }
}

fn total(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// Blocks of noise and of zeroes in turns; the lengths are in blocks.
fn runs(lengths: &[(usize, bool)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (n, (blocks, zero)) in lengths.iter().enumerate() {
        let len = blocks * B as usize;
        bytes.extend(if *zero { vec![0; len] } else { noise(n as u64 + 1, len) });
    }
    bytes
}

#[test]
fn some_changes_and_what_is_read_for_them() {
    let chunk =
        |len: u64, n: u8| schema::map::Piece { len: len as u32, content: Content::Chunk(id_of(&[n])) };
    let zero = |len: u64| schema::map::Piece { len: len as u32, content: Content::Zero };
    let pieces = [chunk(8 * B, 1), chunk(4 * B, 2), zero(10 * B), chunk(6 * B, 3), zero(2 * B)];
    let leaf = ParentLeaf::new(0, &Leaf::new(30 * B, pieces).unwrap());
    let spans = |changed: &[(u64, u64)]| {
        let changed: Vec<_> = changed.iter().map(|(from, to)| from * B..to * B).collect();
        leaf.spans(&changed).iter().map(|span| (span.start / B, span.end / B)).collect::<Vec<_>>()
    };
    assert_eq!(spans(&[]), []);
    assert_eq!(spans(&[(3, 4)]), [(0, 8)], "a chunk is read whole");
    assert_eq!(spans(&[(7, 9)]), [(0, 12)]);
    assert_eq!(spans(&[(15, 17)]), [(15, 17)], "zeroes are not widened");
    assert_eq!(spans(&[(12, 13)]), [(8, 13)], "the chunk that the first zeroes ended");
    assert_eq!(spans(&[(21, 22)]), [(21, 22)], "the last of the zeroes");
    assert_eq!(spans(&[(1, 2), (10, 11)]), [(0, 12)], "neighbours are one span");
    assert_eq!(spans(&[(1, 2), (23, 24)]), [(0, 8), (22, 28)]);
    assert_eq!(spans(&[(28, 30)]), [(22, 30)]);
    assert_eq!(spans(&[(0, 30)]), [(0, 30)]);
}

#[test]
fn an_open_chunk_goes_on_until_a_cut_meets_the_parents() {
    let chunk =
        |len: u64, n: u8| schema::map::Piece { len: len as u32, content: Content::Chunk(id_of(&[n])) };
    let zero = |len: u64| schema::map::Piece { len: len as u32, content: Content::Zero };
    let pieces = [chunk(4 * B, 1), chunk(4 * B, 2), chunk(4 * B, 3), zero(4 * B), chunk(4 * B, 4)];
    let leaf = Arc::new(ParentLeaf::new(0, &Leaf::new(20 * B, pieces).unwrap()));
    let read = |from: u64, to: u64, ends_run| Next::Read { range: from * B..to * B, ends_run };
    let mut gap = Gap::new(leaf.clone(), 4 * B..20 * B);
    assert_eq!(gap.next(true), read(4, 8, false));
    assert_eq!(gap.next(true), read(8, 12, true), "the parent's zeroes end a chunk unseen");
    assert_eq!(gap.next(false), Next::Unchanged(12 * B..20 * B));
    assert_eq!(gap.next(false), Next::Nothing);
    let mut gap = Gap::new(leaf.clone(), 8 * B..12 * B);
    assert_eq!(gap.next(true), read(8, 12, false), "these zeroes have changed");
    assert_eq!(gap.next(true), Next::Nothing);
    let mut gap = Gap::new(leaf.clone(), 16 * B..20 * B);
    assert_eq!(gap.next(true), read(16, 20, true), "the leaf ends");
    let mut gap = Gap::new(leaf, 4 * B..8 * B);
    assert_eq!(gap.next(false), Next::Unchanged(4 * B..8 * B));
}

#[test]
fn lists_that_are_not_what_they_should_be_are_not_used() {
    let since = |ranges: &[Range<u64>]| Changes::Since {
        parent: schema::SessionId::from_parts(1, 1),
        ranges: ranges.to_vec(),
    };
    let good = [0..1, 2..10, 90..100];
    assert!(Changed::new(&since(&good), 100).is_some());
    assert_eq!(Changed::new(&since(&good), 100).unwrap().bytes(), 19);
    let bad: [&[(u64, u64)]; 6] =
        [&[(1, 1)], &[(5, 6), (2, 3)], &[(0, 5), (4, 9)], &[(0, 5), (5, 9)], &[(99, 101)], &[(7, 6)]];
    for bad in bad {
        let ranges: Vec<_> = bad.iter().map(|(from, to)| *from..*to).collect();
        assert!(Changed::new(&since(&ranges), 100).is_none(), "{bad:?}");
    }
    assert!(Changed::new(&Changes::UNTRACKED, 100).is_none());
}

#[test]
fn what_is_within_and_what_is_between() {
    let ranges = vec![1..2, B + 5..2 * B, 4 * B..4 * B + 1, 9 * B..9 * B + 100];
    let changes = Changes::Since { parent: schema::SessionId::from_parts(1, 1), ranges };
    let changed = Changed::new(&changes, 9 * B + 100).unwrap();
    assert_eq!(changed.within(&(0..9 * B + 100)), [0..2 * B, 4 * B..5 * B, 9 * B..9 * B + 100]);
    assert_eq!(changed.within(&(B..5 * B)), [B..2 * B, 4 * B..5 * B]);
    assert_eq!(changed.within(&(2 * B..4 * B)), []);
    assert_eq!(changed.gaps().collect::<Vec<_>>(), [2 * B..4 * B, 5 * B..9 * B]);
}

/// A part of a leaf, new bytes for it, and where.
fn change() -> impl Strategy<Value = (usize, usize, u8)> {
    (0..400usize, 1..40usize, 0..8u8)
}

fn write(bytes: &mut [u8], at: usize, blocks: usize, kind: u8, seed: u64) -> Range<u64> {
    let len = bytes.len();
    let from = (at * B as usize).min(len - 1) / B as usize * B as usize;
    let to = (from + blocks * B as usize).min(len);
    match kind {
        0..3 => bytes[from..to].fill(0),
        // Said to have changed, and has not.
        3 => {}
        _ => bytes[from..to].copy_from_slice(&noise(seed, to - from)),
    }
    START + from as u64..START + to as u64
}

fn union(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every byte is told once, every changed byte is read, and the leaf becomes what a full scan makes of it.
    #[test]
    fn a_tracked_leaf_is_what_a_full_scan_makes_of_it(
        lengths in proptest::collection::vec((1..90usize, proptest::bool::weighted(0.3)), 1..7),
        rounds in proptest::collection::vec(proptest::collection::vec(change(), 0..5), 1..4),
        odd in 0..B as usize,
    ) {
        let mut bytes = runs(&lengths);
        bytes.truncate(bytes.len() - odd);
        let mut leaf = scanned(&bytes);
        for (round, changes) in rounds.iter().enumerate() {
            let mut changed = Vec::new();
            for (n, (at, blocks, kind)) in changes.iter().enumerate() {
                changed.push(write(&mut bytes, *at, *blocks, *kind, 100 + (round * 10 + n) as u64));
            }
            let changed = union(changed);
            let tracked = track(&leaf, &bytes, &changed);
            prop_assert_eq!(&tracked.leaf, &scanned(&bytes));
            for range in &changed {
                prop_assert!(tracked.read.iter().any(|read| read.start <= range.start && range.start < read.end));
            }
            // Beyond the spans, an open chunk is followed to its end and no further.
            let beyond = total(&tracked.read) - total(&tracked.spans);
            prop_assert!(beyond <= tracked.spans.len() as u64 * 2 * CHUNK_MAX as u64, "{} beyond", beyond);
            leaf = tracked.leaf;
        }
    }
}

/// Thirty rounds of small random writes, each backed up from the one before, against one scan of what there is then.
#[test]
fn rounds_of_tracked_backups_do_not_fragment() {
    let mut bytes = noise(1, 48 << 20);
    let mut leaf = scanned(&bytes);
    let blocks = bytes.len() as u64 / B;
    let (mut random, mut read, mut widened) = (0x9e37_79b9u64, 0, 0);
    for round in 0..30 {
        let mut changed = Vec::new();
        for write in 0..60 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = ((random >> 20) % blocks * B) as usize;
            let len = [B, B, 2 * B, 8 * B][(random >> 12) as usize % 4] as usize;
            let end = (at + len).min(bytes.len());
            let new = noise(1000 + round * 100 + write, end - at);
            bytes[at..end].copy_from_slice(&new);
            changed.push(START + at as u64..START + end as u64);
        }
        let tracked = track(&leaf, &bytes, &union(changed));
        (read, widened) = (read + total(&tracked.read), widened + total(&tracked.spans));
        leaf = tracked.leaf;
    }
    let (tracked, scanned) = (leaf.pieces().len(), scanned(&bytes).pieces().len());
    assert!(tracked * 10 <= scanned * 11, "{tracked} pieces where a full scan makes {scanned}");
    assert!(read * 10 <= widened * 11, "{read} bytes read where the widened ranges have {widened}");
}
