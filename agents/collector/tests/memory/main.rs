//! Memory of a census, over a bucket that is made up while it is read: packs and maps of as many chunks as one likes.
//!
//! `LVKEEP_CHUNKS=100000000 cargo test --release -p collector --test memory -- --nocapture` shows the figure for a
//! hundred million chunks.

mod bucket;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use collector::{Announce, Collector, Limits, Patience, Settings};

use bucket::{CHUNKS_PER_LEAF, bucket};

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

/// What does not depend on the number of chunks: footers that are kept, reads under way.
const BESIDES: usize = 128 << 20;

#[tokio::test]
async fn a_census_takes_some_bytes_for_each_chunk_and_no_more() {
    let chunks: u64 = std::env::var("LVKEEP_CHUNKS")
        .map_or(1 << 17, |text| text.parse().expect("LVKEEP_CHUNKS is a number"));
    let leaves = chunks.div_ceil(CHUNKS_PER_LEAF);
    let repository = bucket(leaves).await;
    let settings = Settings {
        limits: Limits { max_repack: 0, repack_below: 50 },
        memory: 512 << 20,
        patience: Patience::default(),
        exclusive: false,
        announce: Announce::default(),
    };
    let before = HELD.get();
    PEAK.set(before);
    let report = Collector::new(repository, settings, Default::default()).dry_run().await.expect("a census");
    let peak = PEAK.get() - before;
    let chunks = leaves * CHUNKS_PER_LEAF;
    println!("{chunks} chunks: {} MiB at most, {} packs dead", peak >> 20, report.dead);
    // Each needed chunk has a pack, and as many packs again hold what nobody needs.
    assert_eq!(report.dead, leaves);
    assert!(peak < BESIDES + 7 * chunks as usize, "{peak} bytes");
}
