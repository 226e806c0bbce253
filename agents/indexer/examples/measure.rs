//! Measures the index cache: how fast packs are announced to it, and how fast it answers for chunks that it knows
//! and for chunks that it does not, with the memory that the process takes.
//!
//! `cargo run --release -p indexer --example measure -- [ENTRIES] [CACHE_MIB] [DIRECTORY]`
#![allow(clippy::disallowed_methods, reason = "a measurement needs a clock")]

#[path = "../tests/support/mod.rs"]
#[allow(dead_code, reason = "it is the tests', of which this uses a part")]
mod support;

use std::time::Instant;

use indexer::Indexer;
use schema::messages::{Answer, Ask, Locate, PackStored};
use schema::pack::{PACK_HEADER_LEN, PackEntry};
use schema::{ChunkId, PackId, SessionId};

const PACK: u64 = 500;
const QUESTION: usize = 64;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default| arguments.next().map_or(default, |text| text.parse().expect("a number"));
    let (entries, cache_mib) = (number(1_000_000), number(32));
    let world = support::World::new().await;
    let mut settings = world.settings("cache");
    settings.cache_bytes = cache_mib << 20;
    if let Some(directory) = std::env::args().nth(3) {
        settings.path = directory.into();
    }

    let indexer = world.open(&settings).await.expect("opened");
    let start = Instant::now();
    for pack in 0..entries / PACK {
        indexer.stored(&announced(pack)).expect("applied");
    }
    report("announced", entries, start);
    println!("{}", memory());
    ask_all(&indexer, "warm", entries);
    drop(indexer);

    let start = Instant::now();
    // Nothing of this is in the bucket: a comparison forgets it all, so look at the rows before.
    let indexer = world.open(&settings).await.expect("opened");
    println!("reopened, and {:?} in {:.2?}", indexer.first_sync(), start.elapsed());
    let start = Instant::now();
    indexer.sweep().await.expect("swept");
    report("swept", entries, start);
    let bytes: u64 =
        support::files(&settings.path).iter().filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum();
    println!("{} MiB of files, journals included; {}", bytes >> 20, memory());
}

/// Pseudo-random, each number once: what a cryptographic hash looks like to a table.
fn id(n: u64) -> ChunkId {
    let mut bytes = [1; 33];
    for (place, part) in bytes[1..].chunks_mut(8).enumerate() {
        let mut x = n.wrapping_add(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(place as u64 + 1));
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        part.copy_from_slice(&(x ^ (x >> 31)).to_le_bytes());
    }
    ChunkId::parse(&bytes).expect("a data chunk")
}

fn announced(pack: u64) -> PackStored {
    let entry = |n: u64| PackEntry {
        id: id(pack * PACK + n),
        offset: (PACK_HEADER_LEN as u64 + n * 60_000) as u32,
        len: 60_000,
    };
    PackStored { pack: PackId::from_parts(pack, 7), entries: (0..PACK).map(entry).collect() }
}

fn ask_all(indexer: &Indexer, what: &str, entries: u64) {
    // A stride that is prime visits every number once, in an order that no pack has.
    let order = |n: u64| (n * 7_368_787) % entries;
    let question = |ids: Vec<ChunkId>| Ask {
        session: SessionId::from_bytes([1; 16]),
        extent: 0,
        force: false,
        shards: 1,
        ids,
    };
    for (kind, first) in [("hits", 0), ("misses", entries)] {
        let start = Instant::now();
        let mut known = 0;
        for at in (0..entries).step_by(QUESTION) {
            let ids = (at..entries.min(at + QUESTION as u64)).map(|n| id(first + order(n))).collect();
            let answers = indexer.ask(&question(ids)).expect("answers").answers;
            known += answers.iter().filter(|answer| matches!(answer, Answer::Known(_))).count();
        }
        report(&format!("{what} {kind} ({known} known)"), entries, start);
    }
    let start = Instant::now();
    for at in (0..entries).step_by(QUESTION) {
        let ids = (at..entries.min(at + QUESTION as u64)).map(|n| id(order(n))).collect();
        indexer.locate(&Locate { shards: 1, ids }).expect("answers");
    }
    report(&format!("{what} located"), entries, start);
    println!("{}", memory());
}

fn report(what: &str, count: u64, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    println!("{what}: {count} in {seconds:.2} s, {:.0} per second", count as f64 / seconds);
}

fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().filter(|l| l.starts_with("VmHWM") || l.starts_with("VmRSS")).collect::<Vec<_>>().join(", ")
}
