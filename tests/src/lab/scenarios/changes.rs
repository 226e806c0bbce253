//! What LVM's metadata say of changes, against what was written and against what differs.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use volume_lvm::changes::{ChangeError, Mapped, Pool as ThinPool, Tracker};
use volume_lvm::dm::DmName;
use volume_lvm::ranges::Ranges;
use volume_lvm::tools::Tools;

use crate::lab::{
    Content, Pool, Traces, Volume, VolumeGroup, differing, held_metadata_root, is_zero, rounds, run, seed,
    step,
};

const BLOCK: u64 = 4096;
const STATE: &str = "/run/lvkeep";

/// The exception list holds every chunk that was written to and no other, whatever the chunks' size; an overflow is
/// told apart.
pub fn thick_changes() {
    let group = VolumeGroup::new("vg0");
    for chunk_kib in [4, 512] {
        thick_rounds(&group, chunk_kib);
    }
    thick_under_load(&group);
    overflow(&group);
}

fn thick_rounds(group: &VolumeGroup, chunk_kib: u64) {
    step(&format!("chunks of {chunk_kib} KiB"));
    let origin = group.thick("origin-1", 128);
    let (size, chunk) = (origin.size(), chunk_kib << 10);
    let mut content = Content::new(&origin.device(), seed() + chunk_kib);
    content.fill(50);
    let mut baseline = origin.snapshot("snap-0", 160, chunk_kib);
    assert!(thick(&baseline, size).expect("an empty list is a list").is_empty());
    let mut since = Vec::new();
    for round in 1..=rounds(2) {
        let mut written = std::mem::take(&mut since);
        written.extend(content.overwrite(30, 200_000));
        written.extend(content.zero(5, 100_000));
        let newer = origin.snapshot(&format!("snap-{round}"), 160, chunk_kib);
        // What comes later is in the older one's list, too.
        since = content.overwrite(10, 50_000);
        written.extend_from_slice(&since);
        let found = thick(&baseline, size).expect("the list can be used");
        holds(&found, &differing(baseline.device(), newer.device(), BLOCK));
        assert_eq!(found, widened(&written, chunk, size), "exactly the chunks that were written to");
        if round == 2 {
            step("the same after the kernel has read it from the disk itself");
            run("vgchange", &["-q", "-an", group.name()]);
            run("vgchange", &["-q", "-ay", group.name()]);
            assert_eq!(thick(&baseline, size).expect("the list can be used"), found);
        }
        baseline.remove();
        baseline = newer;
    }
    baseline.remove();
    origin.remove();
    Traces::of(group, &[]).are_only(0);
}

/// Lists that are read while the kernel writes to them hold everything from before the newer snapshot.
fn thick_under_load(group: &VolumeGroup) {
    step("while the origin is written to");
    let origin = group.thick("busy", 32);
    let size = origin.size();
    Content::new(&origin.device(), seed()).fill(50);
    let over = AtomicBool::new(false);
    let mut baseline = origin.snapshot("busy-0", 48, 4);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let mut content = Content::new(&origin.device(), seed() + 1);
            while !over.load(Ordering::Relaxed) {
                content.overwrite(2, 100_000);
            }
        });
        for round in 1..=rounds(2) {
            let newer = origin.snapshot(&format!("busy-{round}"), 48, 4);
            let found = thick(&baseline, size);
            let differing = differing(baseline.device(), newer.device(), BLOCK);
            holds(&found.expect("the list can be used"), &differing);
            assert!(!differing.is_empty());
            baseline.remove();
            baseline = newer;
        }
        over.store(true, Ordering::Relaxed);
    });
    baseline.remove();
    origin.remove();
}

fn overflow(group: &VolumeGroup) {
    step("a snapshot that overflows");
    let origin = group.thick("full", 64);
    let snapshot = origin.snapshot("small", 4, 4);
    Content::new(&origin.device(), seed()).fill(90);
    match thick(&snapshot, origin.size()) {
        Err(why @ ChangeError::Overflowed { .. }) => println!("    it says: {why}"),
        other => panic!("an overflow: {other:?}"),
    }
}

/// `thin_delta` and `thin_dump` on a reserved metadata snapshot tell what differs and what is mapped; whatever happens,
/// nothing stays reserved, and what others reserved stays.
pub fn thin_changes() {
    let group = VolumeGroup::new("vg0");
    let pool = group.pool("pool-1", 512, 64);
    thin_rounds(&pool, 64);
    together(&pool);
    Traces::of(&group, &[&pool]).are_only(0);
}

/// The same in blocks that are no power of two; and what cannot be told is refused, and leaves nothing reserved.
pub fn thin_refusals() {
    let group = VolumeGroup::new("vg0");
    let pool = group.pool("pool-1", 512, 192);
    thin_rounds(&pool, 192);
    refusals(&pool);
    Traces::of(&group, &[&pool]).are_only(0);
    external_origin(&group);
}

fn thin_rounds(pool: &Pool, block_kib: u64) {
    step(&format!("blocks of {block_kib} KiB"));
    let volume = pool.thin("thin", 96);
    let (size, block) = (volume.size(), block_kib << 10);
    let mut content = Content::new(&volume.device(), seed());
    content.fill(50);
    let mut baseline = volume.thin_snapshot("base-0");
    let mut since = Vec::new();
    for round in 1..=rounds(2) {
        let mut touched = std::mem::take(&mut since);
        touched.extend(content.overwrite(20, 150_000));
        touched.extend(content.zero(3, 100_000));
        touched.extend(content.discard(5, 4 * block, block));
        let newer = volume.thin_snapshot(&format!("base-{round}"));
        // What comes later is in neither of the two.
        since = content.overwrite(5, 50_000);
        let found = thin(pool, &baseline, &newer, size).expect("the list can be used");
        assert_eq!(found.block, block);
        holds(&found.changed, &differing(baseline.device(), newer.device(), BLOCK));
        let possible = widened(&touched, block, size);
        found
            .changed
            .iter()
            .for_each(|range| assert!(inside(&possible, &range), "{range:?} was not touched"));
        for range in found.emptied.iter() {
            assert!(is_zero(&newer.device(), range.clone()), "{range:?} is not empty");
        }
        let Ok(Mapped::Only(mapped)) = mapped(pool, &newer, size) else {
            panic!("a volume without an external origin")
        };
        unmapped(&mapped, size).for_each(|range| assert!(is_zero(&newer.device(), range)));
        assert_eq!(held_metadata_root(pool), None);
        baseline.remove();
        baseline = newer;
    }
}

/// Two volumes of one pool, asked for at once.
fn together(pool: &Pool) {
    step("two volumes of one pool at once");
    let volumes = ["one", "two"].map(|name| {
        let volume = pool.thin(name, 32);
        let mut content = Content::new(&volume.device(), seed());
        content.fill(50);
        let older = volume.thin_snapshot(&format!("{name}-0"));
        let written = content.overwrite(5, 50_000);
        (older, volume.thin_snapshot(&format!("{name}-1")), written)
    });
    std::thread::scope(|threads| {
        for (older, newer, written) in &volumes {
            threads.spawn(|| {
                let found = thin(pool, older, newer, newer.size()).expect("the list can be used");
                holds(&found.changed, written);
            });
        }
    });
    assert_eq!(held_metadata_root(pool), None);
}

fn refusals(pool: &Pool) {
    step("what cannot be told");
    let volume = pool.thin("gone", 16);
    let (older, newer) = (volume.thin_snapshot("gone-0"), volume.thin_snapshot("gone-1"));
    let id: u32 = older.field("thin_id").parse().expect("an id");
    older.remove();
    let refused = thin_since(pool, id, &newer, newer.size()).expect_err("the baseline is gone");
    assert!(matches!(refused, ChangeError::NoDevice { .. }), "{refused}");
    assert_eq!(held_metadata_root(pool), None);

    step("a metadata snapshot that another program holds");
    let message = |message: &str| run("dmsetup", &["message", &pool.mapped(), "0", message]);
    message("reserve_metadata_snap");
    let held = held_metadata_root(pool).expect("a block");
    let refused = mapped(pool, &newer, newer.size()).expect_err("somebody else holds it");
    assert!(matches!(refused, ChangeError::HeldByAnother { .. }), "{refused}");
    assert_eq!(held_metadata_root(pool), Some(held), "what others hold is left alone");

    step("one that a process of ours left behind");
    let lock = format!("{STATE}/pool-{}.lock", pool.mapped());
    std::fs::write(lock, format!("held {held}\n")).expect("a note");
    mapped(pool, &newer, newer.size()).expect("it is released and reserved anew");
    assert_eq!(held_metadata_root(pool), None);
}

fn external_origin(group: &VolumeGroup) {
    step("a volume with an external origin");
    let below = group.thick("below", 32);
    Content::new(&below.device(), seed()).fill(90);
    run("lvchange", &["-q", "-an", &below.path()]);
    run("lvchange", &["-q", "-pr", &below.path()]);
    let pool = group.pool("above", 128, 64);
    run(
        "lvcreate",
        &["-q", "-y", "-s", "-kn", "-n", "shining", "--thinpool", &pool.volume.path(), &below.path()],
    );
    let volume = group.volume("shining");
    volume.activate();
    let written = Content::new(&volume.device(), seed()).overwrite(5, 50_000);
    match mapped(&pool, &volume, volume.size()).expect("the list can be used") {
        Mapped::ShinesThrough { mapped, .. } => holds(&mapped, &written),
        other => panic!("an external origin: {other:?}"),
    }
}

fn tracker() -> Tracker {
    Tracker::new(Tools::new(), STATE)
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

fn name(volume: &Volume) -> DmName {
    DmName::of(&volume.group, &volume.name)
}

fn names(pool: &Pool) -> ThinPool {
    ThinPool { group: pool.volume.group.clone(), name: pool.volume.name.clone() }
}

fn thick(baseline: &Volume, size: u64) -> Result<Ranges, ChangeError> {
    wait(tracker().changed_ranges_thick(&name(baseline), size))
}

fn thin(
    pool: &Pool,
    older: &Volume,
    newer: &Volume,
    size: u64,
) -> Result<volume_lvm::delta::Delta, ChangeError> {
    thin_since(pool, older.field("thin_id").parse().expect("an id"), newer, size)
}

fn thin_since(
    pool: &Pool,
    older: u32,
    newer: &Volume,
    size: u64,
) -> Result<volume_lvm::delta::Delta, ChangeError> {
    wait(tracker().changed_ranges_thin(&names(pool), older, &name(newer), size))
}

fn mapped(pool: &Pool, volume: &Volume, size: u64) -> Result<Mapped, ChangeError> {
    wait(tracker().mapped_ranges_thin(&names(pool), &name(volume), size))
}

/// What of a volume is not mapped, in pieces that can be read at once.
fn unmapped(mapped: &Ranges, size: u64) -> impl Iterator<Item = Range<u64>> {
    let pieces = (0..size).step_by(64 << 10).map(move |at| at..(at + (64 << 10)).min(size));
    pieces.filter(|piece| mapped.within(piece.clone()).next().is_none())
}

/// Whole blocks: what is written to a part of one is written with the rest of it.
fn widened(ranges: &[Range<u64>], unit: u64, size: u64) -> Ranges {
    ranges.iter().cloned().collect::<Ranges>().widen(BLOCK, size).widen(unit, size)
}

#[track_caller]
fn holds(found: &Ranges, ranges: &[Range<u64>]) {
    let missing: Vec<_> = ranges.iter().filter(|range| !inside(found, range)).collect();
    assert!(missing.is_empty(), "{} of {} are missing: {missing:?}", missing.len(), ranges.len());
}

fn inside(found: &Ranges, range: &Range<u64>) -> bool {
    found.within(range.clone()).eq([range.clone()])
}
