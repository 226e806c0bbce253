//! Segments in, extents and zeroes out: every byte once, nothing across a leaf, nothing too large.

use agent::buffer::Pool;
use proptest::prelude::*;
use schema::limits::BLOCK;

use super::*;
use crate::cut::cut;
use crate::plan;
use crate::testing::noise;

/// The same without holding the buffer.
fn copied(emitted: Emitted) -> Emitted {
    match emitted {
        Emitted::Extent { offset, pieces, body } => {
            Emitted::Extent { offset, pieces, body: body.to_vec().into() }
        }
        zero => zero,
    }
}

/// Runs one leaf through planning and emitting; that one buffer suffices shows that none is held between steps.
async fn emit(
    leaf_at: u64,
    leaf: &[u8],
    allocated: &[std::ops::Range<u64>],
    segment: u64,
) -> (Vec<Emitted>, u64) {
    let mut emitter = Emitter::new(7);
    let pool = Pool::new(1, HEADROOM + segment as usize);
    let mut emitted = Vec::new();
    for step in plan::steps(leaf_at..leaf_at + leaf.len() as u64, allocated, segment, true) {
        let buffer = match step.data {
            0 => None,
            data => {
                let mut buffer = pool.acquire().await;
                let from = (step.offset - leaf_at) as usize;
                buffer.bytes_mut().fill(0xee);
                buffer.bytes_mut()[HEADROOM..][..data as usize]
                    .copy_from_slice(&leaf[from..from + data as usize]);
                Some(buffer)
            }
        };
        let now = emitter.step(&step, buffer).unwrap();
        assert!(now.len() <= 2 + segment as usize / BLOCK as usize);
        emitted.extend(now.into_iter().map(copied));
    }
    let zeroes = emitter.take_zeroes();
    emitted.extend(emitter.finish());
    (emitted, zeroes)
}

/// Checks each message's bounds and puts them together again: pieces by offset, zeroes joined.
fn assemble(emitted: &[Emitted], leaf_at: u64, leaf: &[u8]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for message in emitted {
        match message {
            Emitted::Extent { offset, pieces: inside, body } => {
                assert!(body.len() <= EXTENT_MAX && inside.len() <= EXTENT_PIECES_MAX);
                assert!(matches!((inside.first(), inside.last()), (Some((_, false)), Some((_, false)))));
                let total: u64 = inside.iter().map(|(len, _)| u64::from(*len)).sum();
                assert_eq!(total, body.len() as u64);
                let from = (offset - leaf_at) as usize;
                assert!(body[..] == leaf[from..from + body.len()]);
                let mut at = *offset;
                for (len, zero) in inside {
                    assert!(!zero || u64::from(*len) <= ZERO_INSIDE_MAX);
                    pieces.push((at, Piece { len: *len, zero: *zero }));
                    at += u64::from(*len);
                }
            }
            Emitted::Zero { offset, pieces: inside } => {
                let mut at = *offset;
                for (len, fate) in inside {
                    assert_eq!(*fate, Mapped::Zero);
                    assert_eq!(at / LEAF_SPAN, (at + u64::from(*len) - 1) / LEAF_SPAN);
                    pieces.push((at, Piece { len: *len, zero: true }));
                    at += u64::from(*len);
                }
            }
        }
    }
    pieces.sort_by_key(|(at, _)| *at);
    let mut at = leaf_at;
    for (offset, piece) in &pieces {
        assert_eq!(*offset, at, "covered exactly once");
        at += u64::from(piece.len);
    }
    assert_eq!(at, leaf_at + leaf.len() as u64);
    pieces.into_iter().map(|(_, piece)| piece).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_leaf_comes_out_as_it_is_cut(
        runs in prop::collection::vec((1usize..100, any::<bool>(), any::<bool>()), 1..10),
        cut_off in 0..BLOCK as usize,
        segment in 1u64..80,
        leaf_at in (0u64..3).prop_map(|n| n * LEAF_SPAN),
    ) {
        let mut leaf = Vec::new();
        let mut allocated = Vec::new();
        for (blocks, data, hole) in runs {
            let (from, len) = (leaf.len() as u64 + leaf_at, blocks * BLOCK as usize);
            match data {
                true => leaf.extend(noise(blocks as u64, len)),
                false => leaf.resize(leaf.len() + len, 0),
            }
            if data || !hole {
                allocated.push(from..from + len as u64);
            }
        }
        leaf.truncate(leaf.len() - cut_off);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (emitted, zeroes) = runtime.block_on(emit(leaf_at, &leaf, &allocated, segment * BLOCK));
        let pieces = assemble(&emitted, leaf_at, &leaf);
        prop_assert_eq!(&pieces, &cut(&leaf, 7));
        let zero: u64 = pieces.iter().filter(|piece| piece.zero).map(|piece| u64::from(piece.len)).sum();
        prop_assert_eq!(zero, zeroes);
    }
}

#[tokio::test]
async fn short_zeroes_stay_inside_and_long_ones_do_not() {
    let data = noise(1, 16 << 10);
    for (zeroes, extents) in [(4 << 10, 1), (64 << 10, 1), (68 << 10, 2)] {
        let leaf = [&data[..], &vec![0; zeroes], &data[..]].concat();
        let (emitted, _) = emit(0, &leaf, std::slice::from_ref(&(0..leaf.len() as u64)), 4 << 20).await;
        assert_eq!(emitted.iter().filter(|e| matches!(e, Emitted::Extent { .. })).count(), extents);
        assemble(&emitted, 0, &leaf);
    }
}

#[tokio::test]
async fn many_small_chunks_share_extents() {
    let one = [noise(1, 4096), vec![0; 4096]].concat();
    let leaf = one.repeat(1024);
    let (emitted, _) = emit(0, &leaf, std::slice::from_ref(&(0..leaf.len() as u64)), 8 << 20).await;
    assert_eq!(assemble(&emitted, 0, &leaf).len(), 2048);
    let extents = emitted.iter().filter(|e| matches!(e, Emitted::Extent { .. })).count();
    assert_eq!(extents, leaf.len().div_ceil(EXTENT_MAX));
}

#[test]
fn a_hole_of_many_leaves_is_told_in_few_messages() {
    let mut emitter = Emitter::new(7);
    let mut emitted = Vec::new();
    for leaf in 0..1000 {
        let step = Step { offset: leaf * LEAF_SPAN, data: 0, hole: LEAF_SPAN as u32, ends_run: true };
        emitted.extend(emitter.step(&step, None).unwrap());
    }
    assert_eq!(emitter.take_zeroes(), 1000 * LEAF_SPAN);
    emitted.extend(emitter.finish());
    assert_eq!(emitted.len(), 1000usize.div_ceil(64));
    let mut at = 0;
    for message in emitted {
        let Emitted::Zero { offset, pieces } = message else { panic!("an extent out of a hole") };
        assert_eq!(offset, at);
        assert!(
            pieces.len() <= EXTENT_PIECES_MAX && pieces.iter().all(|(len, _)| u64::from(*len) == LEAF_SPAN)
        );
        at += pieces.len() as u64 * LEAF_SPAN;
    }
    assert_eq!(at, 1000 * LEAF_SPAN);
}

#[test]
fn leaves_that_are_not_neighbours_are_told_apart() {
    let mut emitter = Emitter::new(7);
    let step = |leaf| Step { offset: leaf * LEAF_SPAN, data: 0, hole: LEAF_SPAN as u32, ends_run: true };
    let mut emitted = emitter.step(&step(1), None).unwrap();
    emitted.extend(emitter.step(&step(5), None).unwrap());
    emitted.extend(emitter.finish());
    let one = |leaf: u64| Emitted::Zero {
        offset: leaf * LEAF_SPAN,
        pieces: vec![(LEAF_SPAN as u32, Mapped::Zero)],
    };
    assert_eq!(emitted, [one(1), one(5)]);
}

#[tokio::test]
async fn a_buffer_that_cannot_hold_the_data_is_no_hole() {
    let step = Step { offset: 0, data: 8192, hole: 0, ends_run: true };
    let small = Pool::new(1, HEADROOM + 4096).acquire().await;
    assert_eq!(Emitter::new(7).step(&step, Some(small)), None);
    assert_eq!(Emitter::new(7).step(&step, None), None);
}
