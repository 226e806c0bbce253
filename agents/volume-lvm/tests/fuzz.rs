//! Every parser on random and on mutated bytes: none panics, and none allocates by what the bytes claim.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use volume_lvm::fuzz::TARGETS;

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
            // A chunk of the largest size, and a mark for each chunk of the volume.
            "exceptions" => 1 << 20,
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

const DELTA: &str = r#"<superblock uuid="" time="5" transaction="3" data_block_size="128" nr_data_blocks="1000">
  <diff left="1" right="3">
    <same begin="0" length="2"/>
    <different>
      <range begin="2" left_data_begin="2" right_data_begin="100" length="1"/>
    </different>
    <left_only begin="3" length="2"/>
    <right_only begin="20" length="7"/>
  </diff>
</superblock>
"#;

const DUMP: &str = r#"<superblock uuid="" time="5" transaction="3" version="2" data_block_size="128" nr_data_blocks="1000">
  <device dev_id="3" mapped_blocks="14" transaction="1" creation_time="1" snap_time="1">
    <range_mapping origin_begin="0" data_begin="0" length="2" time="0"/>
    <single_mapping origin_block="2" data_block="100" time="1"/>
  </device>
</superblock>"#;

/// A store in chunks of 4 KiB with three exceptions.
fn store() -> Vec<u8> {
    let mut bytes = vec![0; 5 * 4096];
    bytes[..16].copy_from_slice(b"SnAp\x01\0\0\0\x01\0\0\0\x08\0\0\0");
    for (n, old) in [7u64, 256, 8].into_iter().enumerate() {
        let at = 4096 + 16 * n;
        bytes[at..at + 8].copy_from_slice(&old.to_le_bytes());
        bytes[at + 8..at + 16].copy_from_slice(&(n as u64 + 2).to_le_bytes());
    }
    bytes
}

fn seeds() -> Vec<Vec<u8>> {
    let text = [
        DELTA,
        DUMP,
        "0 2097152 thin-pool 3 20/4096 115/16384 - rw no_discard_passdown queue_if_no_space - 1024 ",
        "0 4194304 thin 253:4 7 253:9",
        "0 1048576 snapshot 2064/262144 16\n",
        "0 1048576 snapshot 253:1 253:2 PO 1024 1 discard_zeroes_cow",
    ];
    text.into_iter().map(|text| text.as_bytes().to_vec()).chain([store()]).collect()
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
fn samples_and_every_cut_of_them() {
    for bytes in seeds() {
        for len in 0..=bytes.len().min(1500) {
            run(&bytes[..len]);
        }
        run(&bytes);
    }
}

#[test]
fn random_bytes() {
    let bytes = prop_oneof![vec(any::<u8>(), 0..64), vec(any::<u8>(), 0..20_000)];
    runner(1000)
        .run(&bytes, |bytes| {
            run(&bytes);
            Ok(())
        })
        .unwrap();
}

/// Numbers that claim everything, broken markup, and elements without end, at any place of any sample.
#[test]
fn mutated_samples() {
    let seeds = seeds();
    let claims = prop_oneof![
        Just(b"18446744073709551615".to_vec()),
        Just(b"9223372036854775807".to_vec()),
        Just(b"\" begin=\"0\" length=\"18446744073709551615\"/><same".to_vec()),
        Just(b"<same begin=\"0\" length=\"1\"/>".repeat(200)),
        Just(b"<device dev_id=\"1\" mapped_blocks=\"1\">".repeat(50)),
        Just(b"<!--".to_vec()),
        Just(b"<![CDATA[".to_vec()),
        Just(b"<!DOCTYPE a [<!ENTITY b \"c\">]>".to_vec()),
        Just(vec![b'x'; 9000]),
        Just(vec![0xff; 8]),
        Just(vec![0; 8]),
        vec(any::<u8>(), 1..4),
    ];
    let mutation = (any::<Index>(), claims, any::<bool>());
    runner(3000)
        .run(&(any::<Index>(), vec(mutation, 1..4)), |(seed, mutations)| {
            let mut bytes = seeds[seed.index(seeds.len())].clone();
            for (at, claim, overwrite) in mutations {
                // Where the fields of a store are, mostly: beyond 8 KiB there are only chunks that nobody reads.
                let at = at.index(bytes.len().min(4200));
                let end = if overwrite { (at + claim.len()).min(bytes.len()) } else { at };
                bytes.splice(at..end, claim);
            }
            run(&bytes);
            Ok(())
        })
        .unwrap();
}

/// A header that claims chunks of any size, over entries that claim any place.
#[test]
fn stores_of_any_header() {
    let fields = (
        any::<bool>(),
        prop_oneof![Just(8u32), Just(1024), Just(1 << 31), any::<u32>()],
        vec(any::<u64>(), 0..64),
    );
    runner(2000)
        .run(&fields, |(valid, sectors, entries)| {
            let mut bytes = store();
            bytes[4] = valid.into();
            bytes[12..16].copy_from_slice(&sectors.to_le_bytes());
            for (n, entry) in entries.iter().enumerate() {
                bytes[4096 + 8 * n..4104 + 8 * n].copy_from_slice(&(entry % 64).to_le_bytes());
            }
            run(&bytes);
            Ok(())
        })
        .unwrap();
}
