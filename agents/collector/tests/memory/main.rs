//! Memory of a whole collection, over a bucket that is made up while it is read: packs and maps of as many chunks as one likes.
//!
//! `LVKEEP_TEST_LONG=1` collects among a hundred million chunks, `LVKEEP_CHUNKS=n` among n; with `-- --nocapture` it
//! shows the figures.

mod bucket;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use collector::{Announce, Collector, Limits, Patience, Report, Settings};

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
/// Bytes for each chunk that is needed: a settled one takes four and a half.
const EACH: usize = 7;
const MANY: u64 = 100_000_000;

fn settings(memory: u64, max_repack: u64) -> Settings {
    Settings {
        limits: Limits { max_repack, repack_below: 50 },
        memory,
        patience: Patience::default(),
        exclusive: false,
        announce: Announce::default(),
    }
}

/// What a census and a collection held at most, without what the bucket itself took.
struct Peaks {
    census: usize,
    collection: usize,
    report: Report,
}

async fn collect(shape: Shape, memory: u64, max_repack: u64) -> Peaks {
    let repository = bucket(shape).await;
    let before = HELD.get();
    PEAK.set(before);
    let collector = Collector::new(repository.clone(), settings(memory, max_repack), Default::default());
    let found = collector.dry_run().await.expect("a census");
    let census = PEAK.get() - before;
    // What the first collector kept is not the second one's.
    drop(collector);
    PEAK.set(HELD.get());
    let collector = Collector::new(repository, settings(memory, max_repack), Default::default());
    let report = collector.prune().await.expect("a collection");
    let new = usize::try_from(report.new_bytes).expect("they are in memory");
    let collection = (PEAK.get() - before).saturating_sub(new);
    println!(
        "{} needed chunks: {} KiB at most for a census, {} KiB for a collection; {} packs deleted, {} rewritten, {} \
         snapshots swept",
        shape.leaves * shape.needed,
        census >> 10,
        collection >> 10,
        report.swept.packs,
        report.rewritten,
        report.swept.snapshots
    );
    let (dead, rewritten) = (report.dead, report.rewritten);
    assert_eq!((found.dead, found.rewritten), (dead, rewritten));
    assert_eq!((report.swept.packs, report.swept.snapshots), (dead + rewritten, shape.forgotten));
    Peaks { census, collection, report }
}

fn of_chunks(chunks: u64) -> Shape {
    Shape { leaves: chunks.div_ceil(1024), chunks: 1024, needed: 1024, forgotten: 0 }
}

/// Each needed chunk has a pack, and as many packs again hold what nobody needs. Some may look needed: of an id, 46 bits
/// are compared. Of few chunks that is none.
fn assert_all_found(shape: Shape, dead: u64) {
    let chunks = (shape.leaves * shape.chunks) as f64;
    let look_needed = chunks * chunks / (1u64 << 46) as f64;
    assert!((shape.leaves - dead) as f64 <= 2.0 * look_needed, "{} packs stay", shape.leaves - dead);
}

/// Of so little memory that all but the ids of needed chunks has reached its limit in the smaller case already.
#[tokio::test]
async fn a_collection_takes_some_bytes_for_each_chunk_and_no_more() {
    const MEMORY: u64 = 16 << 20;
    let more = (1 << 20) - (1 << 17);
    let small = collect(of_chunks(1 << 17), MEMORY, 0).await;
    let large = collect(of_chunks(1 << 20), MEMORY, 0).await;
    for (small, large) in [(small.census, large.census), (small.collection, large.collection)] {
        assert!(large - small < EACH * more, "{} bytes for {more} chunks more", large - small);
    }
}

/// Packs of which little is needed are rewritten, and forgotten snapshots are swept, within twice what is given and what
/// packs under way take.
#[tokio::test]
async fn what_is_rewritten_and_swept_fits_as_well() {
    const MEMORY: u64 = 16 << 20;
    let shape = Shape { leaves: 160, chunks: 1024, needed: 256, forgotten: 1000 };
    let Peaks { census, collection, report } = collect(shape, MEMORY, u64::MAX).await;
    assert_eq!((report.dead, report.rewritten), (160, 160));
    for peak in [census, collection] {
        assert!(peak < 2 * MEMORY as usize + (8 << 20), "{peak} bytes");
    }
}

/// A hundred million, where there is time.
#[tokio::test]
async fn a_collection_of_very_many_chunks_fits_in_a_gibibyte() {
    let is_long = std::env::var("LVKEEP_TEST_LONG").is_ok_and(|long| long == "1");
    let ordinary = if is_long { MANY } else { 1 << 17 };
    let chunks = std::env::var("LVKEEP_CHUNKS")
        .map_or(ordinary, |text| text.parse().expect("LVKEEP_CHUNKS is a number"));
    let shape = of_chunks(chunks);
    let Peaks { census, collection, report } = collect(shape, 512 << 20, 0).await;
    assert_all_found(shape, report.dead);
    for peak in [census, collection] {
        assert!(peak < BESIDES + EACH * chunks as usize, "{peak} bytes");
    }
    let resident = resident_at_most();
    println!("{} MiB resident at most", resident >> 20);
    assert!(resident < 1 << 30 || chunks > MANY, "{resident} bytes resident");
}

/// Bytes of this process that were in memory at once, whichever of its tests took them.
fn resident_at_most() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the kernel says");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line");
    let kib = line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number");
    kib << 10
}

/// Neither the ids of chunks nor the places of leaves fit: both are gone through in parts.
#[tokio::test]
async fn a_collection_with_next_to_no_memory_finds_the_same() {
    let shape = Shape { leaves: 1100, chunks: 4, needed: 4, forgotten: 0 };
    let repository = bucket(shape).await;
    let before = HELD.get();
    PEAK.set(before);
    let collector = Collector::new(repository, settings(256 << 10, 0), Default::default());
    let report = collector.dry_run().await.expect("a census");
    let peak = PEAK.get() - before;
    println!("{} MiB at most", peak >> 20);
    assert_eq!((report.dead, report.sums.map(|sums| sums.held)), (shape.leaves, Some(0)));
    assert!(peak < 24 << 20, "{peak} bytes");
}
