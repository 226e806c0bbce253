//! Memory of a whole collection, over a bucket that is made up while it is read: packs and maps of as many chunks as one likes.
//!
//! `LVKEEP_CHUNKS=100000000 cargo test --release -p collector --test memory -- --nocapture` shows the figure for a
//! hundred million chunks.

mod bucket;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use collector::{Announce, Collector, Limits, Patience, Settings};

use bucket::{Shape, bucket};

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

/// What does not depend on the number of chunks, or has a share of its own: footers that are kept, packs that were made,
/// reads under way.
const BESIDES: usize = 256 << 20;

fn settings(memory: u64) -> Settings {
    Settings {
        limits: Limits { max_repack: 0, repack_below: 50 },
        memory,
        patience: Patience::default(),
        exclusive: false,
        announce: Announce::default(),
    }
}

#[tokio::test]
async fn a_collection_takes_some_bytes_for_each_chunk_and_no_more() {
    let chunks: u64 = std::env::var("LVKEEP_CHUNKS")
        .map_or(1 << 17, |text| text.parse().expect("LVKEEP_CHUNKS is a number"));
    let shape = Shape { leaves: chunks.div_ceil(1024), chunks: 1024 };
    let repository = bucket(shape).await;
    let before = HELD.get();
    PEAK.set(before);
    let collector = Collector::new(repository.clone(), settings(512 << 20), Default::default());
    let report = collector.dry_run().await.expect("a census");
    let census = PEAK.get() - before;
    // What the first collector kept is not the second one's.
    drop(collector);
    PEAK.set(HELD.get());
    let collector = Collector::new(repository, settings(512 << 20), Default::default());
    let pruned = collector.prune().await.expect("a collection");
    let collection = PEAK.get() - before;
    let chunks = shape.leaves * shape.chunks;
    println!(
        "{chunks} chunks: {} MiB at most for a census, {} MiB for a collection, {} packs deleted",
        census >> 20,
        collection >> 20,
        pruned.swept.packs
    );
    // Each needed chunk has a pack, and as many packs again hold what nobody needs. Some may look needed: of an id, 46
    // bits are compared. Of few chunks that is none.
    assert_eq!(pruned.swept.packs, report.dead);
    let look_needed = chunks as f64 * chunks as f64 / (1u64 << 46) as f64;
    assert!(
        (shape.leaves - report.dead) as f64 <= 2.0 * look_needed,
        "{} packs stay",
        shape.leaves - report.dead
    );
    for peak in [census, collection] {
        assert!(peak < BESIDES + 7 * chunks as usize, "{peak} bytes");
    }
}

/// Neither the ids of chunks nor the places of leaves fit: both are gone through in parts.
#[tokio::test]
async fn a_collection_with_next_to_no_memory_finds_the_same() {
    let shape = Shape { leaves: 1100, chunks: 4 };
    let repository = bucket(shape).await;
    let before = HELD.get();
    PEAK.set(before);
    let collector = Collector::new(repository, settings(256 << 10), Default::default());
    let report = collector.dry_run().await.expect("a census");
    let peak = PEAK.get() - before;
    println!("{} MiB at most", peak >> 20);
    assert_eq!((report.dead, report.sums.map(|sums| sums.held)), (shape.leaves, Some(0)));
    assert!(peak < 24 << 20, "{peak} bytes");
}
