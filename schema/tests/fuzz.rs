//! Every parser on random and on mutated bytes: none panics, and none allocates by what the bytes claim.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "formats/files.rs"]
mod files;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use schema::fuzz::TARGETS;

/// Counts what each thread holds, and the most that it held.
struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

fn grow(bytes: usize) {
    let held = HELD.get() + bytes;
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
}

// SAFETY: every call goes to the system's allocator with the caller's own arguments; counting touches only cells
// of the thread that need no initialisation and no destructor.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.set(HELD.get().saturating_sub(layout.size()));
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both exist while the content moves.
        grow(size);
        HELD.set(HELD.get().saturating_sub(layout.size()));
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs every target on `bytes` and checks what it allocated at most.
fn run(bytes: &[u8]) {
    for (name, parse) in TARGETS {
        let besides = match *name {
            "frame_open" => 3 * schema::limits::STRUCTURE_MAX,
            "sealed_key" => 64 << 10, // the age library reads in steps of its own
            _ => 0,
        };
        let before = HELD.get();
        PEAK.set(before);
        parse(bytes);
        let peak = PEAK.get() - before;
        let limit = (64 << 10) + 64 * bytes.len() + besides;
        assert!(peak <= limit, "{name} allocated {peak} bytes for an input of {}", bytes.len());
    }
}

/// The golden files, and what stands inside their envelopes and check sums.
fn seeds() -> Vec<Vec<u8>> {
    let files = files::all();
    let object = |bytes: &[u8]| bytes.strip_prefix(b"LVKO").map(|_| bytes[40..bytes.len() - 16].to_vec());
    let pack = |bytes: &[u8]| {
        let end = bytes.strip_suffix(b"LVKPEND\0")?;
        let (rest, trailer) = end.split_last_chunk::<20>()?;
        let len = u32::from_le_bytes([trailer[0], trailer[1], trailer[2], trailer[3]]) as usize;
        Some(rest[rest.len() - len..].to_vec())
    };
    let config = |bytes: &[u8]| {
        let at = bytes.windows(10).position(|w| w == b"writer_key")? + 10;
        let (marker, rest) = bytes[at..].split_at(2);
        (marker[0] == 0xc4).then(|| rest[..usize::from(marker[1])].to_vec())
    };
    let plain = files.iter().filter(|(name, _)| name.ends_with("-plain"));
    let inner: Vec<_> =
        plain.filter_map(|(_, b)| object(b).or_else(|| pack(b)).or_else(|| config(b))).collect();
    assert_eq!(inner.len(), 17, "twelve objects, a footer, four writer keys");
    files.into_iter().map(|(_, bytes)| bytes).chain(inner).collect()
}

fn runner(cases: u32) -> TestRunner {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[42; 32]))
}

#[test]
fn the_allocator_counts() {
    let before = HELD.get();
    PEAK.set(before);
    drop(std::hint::black_box(vec![1u8; 1 << 20]));
    assert!(PEAK.get() - before >= 1 << 20);
    assert_eq!(HELD.get(), before);
}

#[test]
fn golden_files_and_every_cut_of_them() {
    for bytes in seeds() {
        for len in 0..=bytes.len().min(1500) {
            run(&bytes[..len]);
        }
        run(&bytes);
    }
}

#[test]
fn random_bytes() {
    let bytes = prop_oneof![vec(any::<u8>(), 0..64), vec(any::<u8>(), 0..5000)];
    runner(2000)
        .run(&bytes, |bytes| {
            run(&bytes);
            Ok(())
        })
        .unwrap();
}

/// Lengths that claim everything, at any place of any golden file, and a few changed bytes.
#[test]
fn mutated_golden_files() {
    let seeds = seeds();
    let claims = prop_oneof![
        Just(vec![0xff; 4]),
        Just(vec![0xdd, 0xff, 0xff, 0xff, 0xff]),
        Just(vec![0xdd, 0x00, 0x01, 0xff, 0xff]),
        Just(vec![0xdf, 0xff, 0xff, 0xff, 0xff]),
        Just(vec![0xc6, 0xff, 0xff, 0xff, 0xff]),
        Just(vec![0xdc, 0xff, 0xff]),
        Just(vec![0x91; 64]),
        vec(any::<u8>(), 1..4),
    ];
    let mutation = (any::<Index>(), claims, any::<bool>());
    runner(4000)
        .run(&(any::<Index>(), vec(mutation, 1..4), 0usize..2000), |(seed, mutations, pad)| {
            let mut bytes = seeds[seed.index(seeds.len())].clone();
            for (at, claim, overwrite) in mutations {
                let at = at.index(bytes.len());
                let end = if overwrite { (at + claim.len()).min(bytes.len()) } else { at };
                bytes.splice(at..end, claim);
            }
            bytes.extend(std::iter::repeat_n(0xc0, pad));
            run(&bytes);
            Ok(())
        })
        .unwrap();
}

/// MessagePack arrays that claim more elements than there are bytes, or as many, in place of every array.
#[test]
fn arrays_that_claim_too_much() {
    for bytes in seeds() {
        for at in 0..bytes.len() {
            if matches!(bytes[at], 0x90..=0x9f | 0xdc) {
                let (before, after) = (&bytes[..at], &bytes[at + 1..]);
                run(&[before, &[0xdd, 0x7f, 0xff, 0xff, 0xff], after].concat());
                run(&[before, &[0xdd, 0, 0, 0x04, 0], &[0x90; 0x404], after].concat());
            }
        }
    }
}
