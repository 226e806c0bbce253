//! 1 % of a volume of 4 GiB changed: what a tracked backup reads, how long it takes, how long writers are held.

use std::ops::Range;

use super::{CONFIGURATION, Case, Counter, Kind, Map, Run, Runs, UNIT, Writer, Writes, group, mib, rounded};
use crate::lab::{Keeper, Traces, Volume, VolumeGroup, disks, seed, step, total};

const SIZE_MIB: u64 = 4096;
const KINDS: [Kind; 3] = [Kind::BLOCKS, Kind::PIECES, Kind::CLUSTERED];
/// The guest's disk is in the memory of its host, where everything can be read in a second or two: most disks are slower.
const USUAL_DISK: [&str; 2] = ["--limit-read", "200MiB"];
/// Writes of a writer whom nobody disturbs.
const UNDISTURBED: u64 = 2000;

/// Of a thick volume.
pub fn changed_thick() {
    let group = group();
    let volume = group.thick("web", SIZE_MIB);
    // The device beneath the volume and its snapshots; it is there while there is a snapshot.
    let beneath = volume.mapped_name("-real");
    changed("changed_thick", &group, &volume, &beneath);
    Traces::of(&group, &[]).are_only(1);
}

/// Of a thin volume.
pub fn changed_thin() {
    let group = group();
    let pool = group.pool("pool", 2 * SIZE_MIB, UNIT >> 10);
    let volume = pool.thin("web", SIZE_MIB);
    changed("changed_thin", &group, &volume, &pool.volume.mapped_name("_tdata"));
    Traces::of(&group, &[&pool]).are_only(1);
}

/// One kind of changes, and what backups made of them.
struct Found {
    kind: Kind,
    written: Vec<Range<u64>>,
    /// Of the parent.
    parent: Map,
    tracked: Run,
    /// Of the same content: nothing is new to it.
    again: Run,
    /// Of as many other changes, which are new to it.
    full: Run,
    /// A tracked one and one of everything as if from [`USUAL_DISK`], each of other changes again.
    slow: [Run; 2],
}

fn changed(figure: &'static str, group: &VolumeGroup, volume: &Volume, beneath: &str) {
    let keeper = Keeper::with_usual_packs(CONFIGURATION);
    let runs = Runs::usual(&keeper, group, volume);
    let slow_runs = Runs { options: &USUAL_DISK, ..runs };
    let disk = [Counter::new(&disks()[0])];
    step("the volume is filled");
    let mut writes = Writes::new(&volume.device(), volume.size(), seed());
    writes.fill();
    step("the first backup");
    let mut last = runs.backup(&disk);
    first(figure, &last, &runs);
    let [disk] = disk;
    let counters = [Counter::new(&format!("/dev/mapper/{beneath}")), disk];
    let mut beyond = Vec::new();
    for kind in KINDS {
        step(kind.name);
        let written = writes.change(1, kind);
        let parent = Map::of(&keeper, last.backup.snapshot());
        let tracked = runs.tracked(&counters);
        step("a full scan of the same");
        let again = runs.full(&[]);
        let maps = [&tracked, &again].map(|run| Map::of(&keeper, run.backup.snapshot()).top);
        assert_eq!(maps[0], maps[1], "both give the same map");
        step("a full scan of other changes");
        writes.change(1, kind);
        let full = runs.full(&counters[1..]);
        step("both again as if from a usual disk");
        writes.change(1, kind);
        let slow = slow_runs.tracked(&[]);
        writes.change(1, kind);
        last = slow_runs.full(&[]);
        let slow = [slow, last.clone()];
        let found = Found { kind, written, parent, tracked, again, full, slow };
        beyond.extend(found.say(figure, &runs));
    }
    runs.restores(&last);
    held(figure, &mut writes, &runs);
    assert!(beyond.is_empty(), "more is read than is promised: {}", beyond.join("; "));
}

fn first(figure: &'static str, first: &Run, runs: &Runs<'_>) {
    let mut case = Case::new(figure, "first backup, a full scan into a fresh repository");
    case.fact("reading the volume alone, seconds", runs.reading_alone());
    case.fact("read, MiB", mib(first.read()));
    case.fact("read from the disk, MiB", mib(first.counted[0]));
    case.fact("seconds", first.seconds);
    case.fact("frozen_ms", runs.frozen_ms(first));
    case.fact("stored, MiB", mib(first.backup.count("bytes_stored")));
    case.say();
}

impl Found {
    /// Says it; and whether more was read than is promised.
    fn say(self, figure: &'static str, runs: &Runs<'_>) -> Option<String> {
        let Self { kind, written, parent, tracked, again, full, slow } = self;
        let ranges = rounded(&written, UNIT);
        let (changed, audited) = tracked.changed_and_audited();
        let (read, widened) = (tracked.read(), parent.widened(&ranges));
        let mut case = Case::new(figure, kind.name);
        case.fact("written, MiB", mib(total(&written)));
        case.fact("tracked, MiB", mib(changed));
        case.fact("tracked, widened to chunks, MiB", mib(widened));
        case.fact("audited, MiB", mib(audited));
        case.fact("read, MiB", mib(read));
        case.fact("read beneath the volume, MiB", mib(tracked.counted[0]));
        case.fact("read from the disk, MiB", mib(tracked.counted[1]));
        case.fact("read without audit : tracked", (read - audited) as f64 / changed as f64);
        case.fact("read without audit : widened", (read - audited) as f64 / widened as f64);
        case.fact("stored, MiB", mib(tracked.backup.count("bytes_stored")));
        case.fact("seconds", tracked.seconds);
        case.fact("frozen_ms", runs.frozen_ms(&tracked));
        case.fact("full scan, read, MiB", mib(full.read()));
        case.fact("full scan, read from the disk, MiB", mib(full.counted[0]));
        case.fact("full scan, stored, MiB", mib(full.backup.count("bytes_stored")));
        case.fact("full scan, seconds", full.seconds);
        case.fact("full scan : tracked, time", full.seconds / tracked.seconds);
        case.fact("full scan of nothing new, seconds", again.seconds);
        let [slow, slow_full] = slow.map(|run| run.seconds);
        case.fact("at 200 MiB/s, seconds", slow);
        case.fact("at 200 MiB/s, full scan, seconds", slow_full);
        case.fact("at 200 MiB/s, full scan : tracked, time", slow_full / slow);
        case.say();
        assert_eq!(changed, total(&ranges), "what is tracked is what was written, in whole units");
        let promised = widened * 11 / 10 + audited;
        (read > promised).then(|| format!("{}: {read} bytes, {promised} promised", kind.name))
    }
}

/// A backup while somebody writes to the origin.
fn held(figure: &'static str, writes: &mut Writes, runs: &Runs<'_>) {
    step("a tracked backup while somebody writes");
    let written = writes.change(1, Kind::PIECES);
    let writer = Writer::start(&runs.volume.device(), written[0].start);
    let undisturbed = writer.longest_ms_over(UNDISTURBED);
    let backup = runs.tracked(&[]);
    let disturbed = writer.end();
    let mut case = Case::new(figure, "while somebody writes 4 KiB and syncs, again and again");
    case.fact("seconds", backup.seconds);
    case.fact("frozen_ms", runs.frozen_ms(&backup));
    case.fact("longest wait of the writer without lvkeep, ms", undisturbed);
    case.fact("longest wait of the writer, ms", disturbed);
    case.say();
}
