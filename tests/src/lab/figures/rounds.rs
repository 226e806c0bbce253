//! 30 rounds of changes and tracked backups: whether chunks and stored bytes are those of a full scan in the end.

use super::{CONFIGURATION, Case, Kind, Map, Runs, UNIT, Writes, group, mib};
use crate::lab::{Keeper, Traces, Volume, VolumeGroup, rounds, run, seed, step};

/// Smaller than in the other figures: what is asked does not depend on it.
const SIZE_MIB: u64 = 1024;

/// Of a thick volume.
pub fn thirty_rounds_thick() {
    let group = group();
    let volume = group.thick("web", SIZE_MIB);
    thirty_rounds("thirty_rounds_thick", &group, &volume);
    Traces::of(&group, &[]).are_only(2);
}

/// Of a thin volume.
pub fn thirty_rounds_thin() {
    let group = group();
    let pool = group.pool("pool", 4 * SIZE_MIB, UNIT >> 10);
    let volume = pool.thin("web", SIZE_MIB);
    thirty_rounds("thirty_rounds_thin", &group, &volume);
    Traces::of(&group, &[&pool]).are_only(2);
}

fn thirty_rounds(figure: &'static str, group: &VolumeGroup, volume: &Volume) {
    let keeper = Keeper::with_usual_packs(CONFIGURATION);
    let runs = Runs::usual(&keeper, group, volume);
    let mut writes = Writes::new(&volume.device(), volume.size(), seed());
    writes.fill();
    step("the first backup");
    let mut last = runs.backup(&[]);
    let count = rounds(30);
    let (mut seconds, mut read) = (0.0, 0);
    for (round, kind) in (1..=count).zip([Kind::BLOCKS, Kind::PIECES, Kind::CLUSTERED].into_iter().cycle()) {
        step(&format!("round {round}: {}", kind.name));
        writes.change(1, kind);
        last = runs.tracked(&[]);
        seconds += last.seconds;
        read += last.read();
    }
    let map = Map::of(&keeper, last.backup.snapshot());
    let (repository, chunks) = (occupied(&keeper), last.backup.count("chunks"));
    step("a full scan into the same repository");
    let again = runs.full(&[]);
    let same = Map::of(&keeper, again.backup.snapshot());
    step("a full scan into a fresh repository");
    let fresh_keeper = Keeper::with_usual_packs(CONFIGURATION);
    let fresh_runs = Runs::usual(&fresh_keeper, group, volume);
    let fresh = fresh_runs.backup(&[]);
    let fresh_map = Map::of(&fresh_keeper, fresh.backup.snapshot());

    let mut case = Case::new(figure, &format!("{count} rounds of 1 % of {SIZE_MIB} MiB"));
    case.fact("tracked backups, seconds each", seconds / count as f64);
    case.fact("tracked backups, read each, MiB", mib(read / count.max(1)));
    case.fact("chunks, after the rounds", map.chunks());
    case.fact("chunks, as the summary has it", chunks);
    case.fact("chunks, full scan, same repository", same.chunks());
    case.fact("new chunks, full scan, same repository", again.backup.count("chunks_new"));
    case.fact("chunks, full scan, fresh repository", fresh_map.chunks());
    case.fact("chunks, rounds : fresh", map.chunks() as f64 / fresh_map.chunks() as f64);
    case.fact("stored, the last snapshot's chunks, MiB", mib(map.stored()));
    case.fact("stored, fresh, its chunks, MiB", mib(fresh_map.stored()));
    case.fact("stored, rounds : fresh", map.stored() as f64 / fresh_map.stored() as f64);
    case.fact("repository with all rounds, MiB", mib(repository));
    case.fact("repository, fresh, MiB", mib(occupied(&fresh_keeper)));
    case.fact("full scan, same repository, seconds", again.seconds);
    case.fact("full scan, fresh repository, seconds", fresh.seconds);
    case.say();
    assert_eq!(map.top, same.top, "the same map by tracked backups and by a full scan");
    assert_eq!(again.backup.count("chunks_new"), 0, "a full scan finds nothing new");
    fresh_runs.restores(&fresh);
    runs.restores(&last);
}

/// Bytes of a repository on its file system.
fn occupied(keeper: &Keeper) -> u64 {
    let said = run("du", &["-s", "-B1", keeper.repository()]);
    said.split_whitespace().next().and_then(|bytes| bytes.parse().ok()).expect("a number of bytes")
}
