//! How fast a thick volume takes writes: without a baseline, and with one, to which each chunk is copied before it
//! changes for the first time.

use std::time::Instant;

use super::{CONFIGURATION, Case, Runs, Writes, group, mib};
use crate::lab::{Keeper, Traces, seed, step};

const SIZE_MIB: u64 = 4096;
/// Bytes written in one go, a sync after all.
const STREAM: u64 = 768 << 20;
const STREAM_WRITE: u64 = 1 << 20;
/// Blocks written at random, a sync after all.
const BLOCKS: u64 = 12 << 10;
/// Blocks written at random, a sync after each.
const SYNCED: u64 = 2000;
const BLOCK: u64 = 4096;

/// Writes that are the same whenever they are repeated.
#[derive(Debug, Clone, Copy)]
struct Load {
    name: &'static str,
    bytes: u64,
    length: u64,
    random: bool,
    synced: bool,
}

const LOADS: [Load; 3] = [
    Load { name: "in sequence", bytes: STREAM, length: STREAM_WRITE, random: false, synced: false },
    Load { name: "random, 4 KiB", bytes: BLOCKS * BLOCK, length: BLOCK, random: true, synced: false },
    Load {
        name: "random, 4 KiB, each synced",
        bytes: SYNCED * BLOCK,
        length: BLOCK,
        random: true,
        synced: true,
    },
];

/// Of a thick volume.
pub fn write_rate() {
    let group = group();
    let volume = group.thick("web", SIZE_MIB);
    let keeper = Keeper::with_usual_packs(CONFIGURATION);
    let runs = Runs::usual(&keeper, &group, &volume);
    step("the volume is filled");
    let mut writes = Writes::new(&volume.device(), volume.size(), seed());
    writes.fill();
    let mut places: Vec<Vec<u64>> = Vec::new();
    for (load, number) in LOADS.iter().zip(0..) {
        places.push(match load.random {
            true => {
                let found = writes.places(load.bytes / load.length, load.length);
                shuffled(found.into_iter().map(|place| place.start).collect(), seed() + number)
            }
            false => (0..load.bytes / load.length).map(|at| (1 << 30) + at * load.length).collect(),
        });
    }
    step("without a baseline");
    let rate = |load: &Load, places: &[u64]| measured(&writes, load, places);
    // The first time warms up.
    let twice = |(load, places): (&Load, &Vec<u64>)| [rate(load, places), rate(load, places)][1];
    let without: Vec<f64> = LOADS.iter().zip(&places).map(twice).collect();
    step("a backup, which leaves a baseline");
    runs.backup(&[]);
    let mut cases = Vec::new();
    for ((load, places), without) in LOADS.iter().zip(&places).zip(without) {
        step(load.name);
        let copied = rate(load, places);
        let again = rate(load, places);
        let mut case = Case::new("write_rate", load.name);
        case.fact("without a baseline, MiB/s", without);
        case.fact("with one, chunks for the first time, MiB/s", copied);
        case.fact("with one, the same chunks again, MiB/s", again);
        case.fact("without : with, first time", without / copied);
        case.fact("without : with, again", without / again);
        cases.push(case);
    }
    cases.into_iter().for_each(Case::say);
    let baseline = keeper.baseline(&group, &volume);
    println!("    the baseline is {} % full", baseline.field("data_percent"));
    Traces::of(&group, &[]).are_only(1);
}

/// MiB per second.
fn measured(writes: &Writes, load: &Load, places: &[u64]) -> f64 {
    let bytes = vec![b'!'; load.length as usize];
    rustix::fs::sync();
    let started = Instant::now();
    for at in places {
        writes.write_bytes(&bytes, *at);
        if load.synced {
            writes.sync();
        }
    }
    writes.sync();
    mib(load.bytes) / started.elapsed().as_secs_f64()
}

fn shuffled(mut places: Vec<u64>, seed: u64) -> Vec<u64> {
    use rand::SeedableRng;
    use rand::seq::SliceRandom;
    places.shuffle(&mut rand::rngs::StdRng::seed_from_u64(seed));
    places
}
