//! Finding the chunks of a snapshot in a repository that holds much more: with memory for what it wants alone.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;

use agent::index::IndexClient;
use agent::maps::MapReader;
use bytes::Bytes;
use indexer::{Locator, LocatorReport, LocatorSettings, Wish};
use schema::chunk::{Codec, FrameHeader, Sealer};
use schema::keys::KEY_PLAIN;
use schema::limits::LEAF_SPAN;
use schema::map::{Content, Leaf, Piece, build_nodes};
use schema::messages::{About, Copy, FailureKind, Locate};
use schema::names::{self, Slot};
use schema::pack::{PackBuilder, PackHeader};
use schema::root::{Root, Statistics, Tracking};
use schema::{ChunkId, Domain, JobId, PackId, ReadingId, SessionId};

use super::support::*;

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

/// The id of a chunk that nobody opens.
fn id(seed: u64) -> ChunkId {
    let mut bytes = [Domain::Data as u8; 33];
    for (number, part) in bytes[1..].as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let mixed = (seed * 4 + number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        *part = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9).to_le_bytes();
    }
    ChunkId::parse(&bytes).unwrap()
}

async fn put(world: &World, kind: Domain, frames: &[FrameHeader], body: Bytes) -> PackId {
    let pack = world.context.environment.pack_id();
    let header = PackHeader { repo: world.repository.key.repo(), pack, kind, class: 0 };
    let mut builder = PackBuilder::new(header);
    builder.push(frames, body, SessionId::from_bytes([1; 16])).unwrap();
    world.repository.store.put_once(&names::pack(pack), builder.finish().0).await.unwrap();
    pack
}

/// A pack of data chunks that have a place and no content.
async fn data(world: &World, ids: impl Iterator<Item = ChunkId>) -> PackId {
    let frame = |id| FrameHeader { id, key: KEY_PLAIN, payload: 1, codec: Codec::Raw };
    let frames: Vec<FrameHeader> = ids.map(frame).collect();
    let len = frames.iter().map(FrameHeader::frame_len).sum();
    put(world, Domain::Data, &frames, Bytes::from(vec![0; len])).await
}

async fn structure(world: &World, plain: &[u8]) -> (ChunkId, PackId) {
    let id = world.repository.key.chunk_ids().id(Domain::Structure, plain);
    let mut frame = Vec::new();
    Sealer::new(3).unwrap().seal(id, plain, &world.repository.key.structure_key(), &mut frame).unwrap();
    let header = FrameHeader::parse(&frame).unwrap();
    (id, put(world, Domain::Structure, &[header], frame.into()).await)
}

/// A snapshot of a volume that has chunks in some leaves, each part of its map in a pack of its own, and these packs.
async fn snapshot(world: &World, leaves: u64, full: &[(u64, Vec<ChunkId>)]) -> (Root, Vec<PackId>) {
    let (mut row, mut packs) = (vec![None; leaves as usize], Vec::new());
    for (number, chunks) in full {
        let pieces = chunks.iter().map(|id| Piece { len: 4096, content: Content::Chunk(*id) });
        let rest = (LEAF_SPAN - 4096 * chunks.len() as u64) as u32;
        let zero = (rest > 0).then_some(Piece { len: rest, content: Content::Zero });
        let (id, pack) = structure(world, &Leaf::new(LEAF_SPAN, pieces.chain(zero)).unwrap().encode()).await;
        row[*number as usize] = Some(id);
        packs.push(pack);
    }
    let mut nodes = Vec::new();
    let top = build_nodes(row, |node| {
        nodes.push(node.encode());
        Ok(world.repository.key.chunk_ids().id(Domain::Structure, &node.encode()))
    });
    for node in nodes {
        packs.push(structure(world, &node).await.1);
    }
    let slot = Slot { volume: world.repository.key.volume_key("v"), session: SessionId::from_bytes([2; 16]) };
    let root = Root {
        version: Root::VERSION,
        volume: "v".into(),
        host: "host".into(),
        source: "/source".into(),
        slot,
        reading: ReadingId::from_bytes([7; 16]),
        job: JobId::from_bytes([8; 16]),
        generation: 1,
        parent: None,
        size: leaves * LEAF_SPAN,
        top: top.unwrap(),
        time_ms: 0,
        sealed_ms: 0,
        group: None,
        changed_while_read: false,
        layout: BTreeMap::new(),
        tags: Vec::new(),
        statistics: Statistics::default(),
        tracking: Tracking::Everything { why: None },
    };
    (root, packs)
}

async fn find(world: &World, memory: u64, wish: Wish) -> Locator {
    let settings = LocatorSettings { memory, scratch: world.path("scratch") };
    Locator::find(world.context.clone(), world.repository.clone(), &settings, &[wish]).await.unwrap()
}

fn copies(locator: &Locator, id: ChunkId) -> Vec<PackId> {
    let found = locator.locate(&Locate { shards: 1, ids: vec![id] }).unwrap();
    found.copies[0].iter().map(|copy: &Copy| copy.pack).collect()
}

/// As many chunks as 30 GiB of content, which an index would need some 30 MB for.
#[tokio::test]
async fn what_a_snapshot_does_not_want_costs_no_memory() {
    const OTHERS: u64 = 500;
    const EACH: u64 = 1000;
    const LEAVES: u64 = 2000;
    let world = World::new().await;
    let old = data(&world, (0..100).map(id)).await;
    for other in 0..OTHERS {
        data(&world, (0..EACH).map(|n| id(1_000_000 + other * EACH + n))).await;
    }
    let new = data(&world, (50..150).map(id)).await;
    // Two levels of nodes.
    let (first, last) = ((0..100).map(id).collect(), (100..150).map(id).collect());
    let (root, packs) = snapshot(&world, LEAVES, &[(0, first), (LEAVES - 1, last)]).await;

    let before = HELD.get();
    PEAK.set(before);
    let locator = find(&world, 4 << 20, Wish::all(root.clone())).await;
    let peak = PEAK.get() - before;
    assert!(peak < 6 << 20, "{peak} bytes were held");
    let LocatorReport { packs: listed, footers, copies: kept, spilled } = locator.report();
    let structure = packs.len() as u64;
    assert_eq!((listed, footers, spilled), (OTHERS + 2 + structure, OTHERS + 2 + 3 * structure, false));
    assert!((200..300).contains(&kept), "{kept} copies were kept");
    assert_eq!(copies(&locator, id(0)), [old]);
    assert_eq!(copies(&locator, id(70)), [new, old], "every copy, the newest first");
    assert_eq!(copies(&locator, id(149)), [new]);
    let other = locator.locate(&Locate { shards: 1, ids: vec![id(1_000_000)] }).unwrap_err();
    assert_eq!(other.kind, FailureKind::Refused, "{other}");
    drop(locator);

    let last = Wish { part: (LEAVES - 1) * LEAF_SPAN..root.size, ..Wish::all(root.clone()) };
    let locator = find(&world, 4 << 20, last).await;
    assert_eq!(copies(&locator, id(149)), [new]);
    assert!(locator.locate(&Locate { shards: 1, ids: vec![id(0)] }).is_err(), "not in the part");
    assert_eq!(find(&world, 4 << 20, Wish::map(root)).await.report().footers, 3 * structure);
}

#[tokio::test]
async fn what_has_no_room_in_memory_is_on_disk_until_the_end() {
    const CHUNKS: u64 = LEAF_SPAN / 4096;
    let world = World::new().await;
    let mut packs = Vec::new();
    for from in (0..CHUNKS).step_by(2048) {
        packs.push(data(&world, (from..from + 2048).map(id)).await);
    }
    let again = data(&world, (0..10).map(id)).await;
    let (root, _) = snapshot(&world, 1, &[(0, (0..CHUNKS).map(id).collect())]).await;
    let locator = find(&world, 1 << 20, Wish::all(root)).await;
    assert!(locator.report().spilled && world.path("scratch").is_dir());
    for n in (0..CHUNKS).step_by(37) {
        let expected = packs[n as usize / 2048];
        assert!(copies(&locator, id(n)).contains(&expected), "chunk {n}");
    }
    assert_eq!(copies(&locator, id(3)), [again, packs[0]]);
    drop(locator);
    assert!(!world.path("scratch").exists());
}

#[tokio::test]
async fn a_damaged_map_hides_what_is_below_it_and_nothing_else() {
    let world = World::new().await;
    let pack = data(&world, (0..20).map(id)).await;
    let (first, last) = ((0..10).map(id).collect(), (10..20).map(id).collect());
    let (root, packs) = snapshot(&world, 2, &[(0, first), (1, last)]).await;
    let garbage = Bytes::from(vec![9; 4096]);
    world.repository.store.put(&names::pack(packs[0]), garbage.clone()).await.unwrap();
    // Neither does it help that nobody knows what kind of pack another one was.
    world.repository.store.put(&names::pack(world.context.environment.pack_id()), garbage).await.unwrap();
    let locator = find(&world, 1 << 20, Wish::all(root)).await;
    assert!(locator.locate(&Locate { shards: 1, ids: vec![id(0)] }).is_err());
    assert_eq!(copies(&locator, id(10)), [pack]);
}

#[tokio::test]
async fn a_pack_that_came_later_is_found_when_somebody_seeks() {
    let world = World::new().await;
    let old = data(&world, (0..10).map(id)).await;
    let (root, _) = snapshot(&world, 1, &[(0, (0..10).map(id).collect())]).await;
    let locator = find(&world, 1 << 20, Wish::all(root)).await;
    let running = tokio::spawn(locator.run());
    let new = data(&world, (5..20).map(id)).await;
    let (bus, environment) = (world.context.bus.clone(), world.context.environment.clone());
    let (client, about) = (IndexClient::new(bus, environment, 1), About::nothing());
    let packs = |copies: &[Copy]| copies.iter().map(|copy| copy.pack).collect::<Vec<_>>();
    assert_eq!(packs(&client.locate(&about, &[id(7)]).await.unwrap()[0]), [old]);
    let (copies, by) = client.seek(&about, &id(7), &[]).await.unwrap();
    assert_eq!(packs(&copies), [new, old]);
    data(&world, (5..20).map(id)).await;
    assert_eq!(client.seek(&about, &id(7), &[by]).await.unwrap().0, copies, "it has looked");
    assert_eq!(client.locate(&about, &[id(7)]).await.unwrap()[0], copies);
    client.seek(&about, &id(15), &[]).await.expect_err("nobody wanted it");
    world.repository.store.delete(&names::pack(old)).await.unwrap();
    let (copies, _) = client.seek(&about, &id(7), &[]).await.unwrap();
    assert!(!packs(&copies).contains(&old) && packs(&copies).contains(&new), "what is gone is not named");
    world.context.stop.raise();
    running.await.unwrap().unwrap();
}

/// A part of the map was nowhere when it was walked. What it names is told to be nowhere at once, since looking takes long;
/// who seeks one chunk finds all of those that were asked for.
#[tokio::test]
async fn what_a_part_of_a_map_names_that_was_found_late_is_sought_together() {
    let world = World::new().await;
    let (first, second) = (data(&world, (0..10).map(id)).await, data(&world, (5..20).map(id)).await);
    let (root, packs) = snapshot(&world, 2, &[(1, (0..20).map(id).collect())]).await;
    let leaf = packs[0];
    let bytes = world.repository.store.get(&names::pack(leaf)).await.unwrap().unwrap();
    world.repository.store.delete(&names::pack(leaf)).await.unwrap();
    let locator = find(&world, 1 << 20, Wish::all(root.clone())).await;
    let running = tokio::spawn(locator.run());
    let (bus, environment) = (world.context.bus.clone(), world.context.environment.clone());
    let (client, about) = (IndexClient::new(bus, environment, 1), About::nothing());
    world.repository.store.put(&names::pack(leaf), bytes).await.unwrap();
    let map = MapReader::new(world.repository.clone(), client.clone(), root).unwrap().thorough();
    assert_eq!(map.leaf(1).await.unwrap().pieces().len(), 21);
    let ids: Vec<ChunkId> = (0..20).map(id).collect();
    assert!(client.locate(&about, &ids).await.unwrap().iter().all(Vec::is_empty));
    client.seek(&about, &id(7), &[]).await.unwrap();
    let found = client.locate(&about, &ids).await.unwrap();
    for (n, copies) in found.iter().enumerate() {
        let packs: Vec<PackId> = copies.iter().map(|copy| copy.pack).collect();
        let expected =
            [second, first].into_iter().filter(|pack| if *pack == first { n < 10 } else { n >= 5 });
        assert_eq!(packs, expected.collect::<Vec<_>>(), "chunk {n}");
    }
    world.context.stop.raise();
    running.await.unwrap().unwrap();
}

/// The filter of what was looked for has room for less, so that it takes many others for wanted.
#[tokio::test]
async fn what_passes_for_looked_for_is_looked_for_all_the_same() {
    const FIRST: u64 = LEAF_SPAN / 4096;
    let world = World::new().await;
    data(&world, (0..FIRST).map(id)).await;
    let late = data(&world, (FIRST..FIRST + 40).map(id)).await;
    let leaves = [(0, (0..FIRST).map(id).collect()), (1, (FIRST..FIRST + 41).map(id).collect())];
    let (root, packs) = snapshot(&world, 2, &leaves).await;
    let leaf = world.repository.store.get(&names::pack(packs[1])).await.unwrap().unwrap();
    world.repository.store.delete(&names::pack(packs[1])).await.unwrap();
    let locator = find(&world, 1 << 20, Wish::all(root.clone())).await;
    let asked = |n| locator.locate(&Locate { shards: 1, ids: vec![id(n)] });
    let passing = (FIRST..FIRST + 40).filter(|n| asked(*n).is_ok()).count();
    assert!(passing > 0, "this shows nothing");
    let running = tokio::spawn(locator.run());
    world.repository.store.put(&names::pack(packs[1]), leaf).await.unwrap();
    let (bus, environment) = (world.context.bus.clone(), world.context.environment.clone());
    let client = IndexClient::new(bus, environment, 1);
    for n in FIRST..FIRST + 40 {
        let (copies, _) = client.seek(&About::nothing(), &id(n), &[]).await.unwrap();
        let packs: Vec<PackId> = copies.iter().map(|copy| copy.pack).collect();
        assert_eq!(packs, [late], "chunk {n}");
    }
    // What is nowhere is so.
    let (copies, by) = client.seek(&About::nothing(), &id(FIRST + 40), &[]).await.unwrap();
    assert!(copies.is_empty());
    assert!(client.seek(&About::nothing(), &id(FIRST + 40), &[by]).await.unwrap().0.is_empty());
    world.context.stop.raise();
    running.await.unwrap().unwrap();
}

/// One look has found the part. What it names was moved since, to a pack that nobody has looked at.
#[tokio::test]
async fn what_a_part_of_a_map_names_is_found_although_it_was_moved_since_the_look() {
    let world = World::new().await;
    let old = data(&world, (0..20).map(id)).await;
    let (root, packs) = snapshot(&world, 2, &[(1, (0..20).map(id).collect())]).await;
    let leaf = world.repository.store.get(&names::pack(packs[0])).await.unwrap().unwrap();
    world.repository.store.delete(&names::pack(packs[0])).await.unwrap();
    let locator = find(&world, 1 << 20, Wish::all(root.clone())).await;
    let running = tokio::spawn(locator.run());
    world.repository.store.put(&names::pack(packs[0]), leaf).await.unwrap();
    let (bus, environment) = (world.context.bus.clone(), world.context.environment.clone());
    let (client, about) = (IndexClient::new(bus, environment, 1), About::nothing());
    let (_, by) = client.seek(&about, &root.top.unwrap(), &[]).await.unwrap();
    let new = data(&world, (0..20).map(id)).await;
    world.repository.store.delete(&names::pack(old)).await.unwrap();
    let ids: Vec<ChunkId> = (0..20).map(id).collect();
    client.locate(&about, &ids).await.unwrap();
    for id in &ids {
        let (copies, _) = client.seek(&about, id, &[by]).await.unwrap();
        assert_eq!(copies.iter().map(|copy| copy.pack).collect::<Vec<_>>(), [new]);
    }
    world.context.stop.raise();
    running.await.unwrap().unwrap();
}

/// What came later is more than there is memory for: it goes to disk, a part at a time.
#[tokio::test]
async fn what_is_found_later_may_have_no_room_in_memory() {
    const CHUNKS: u64 = LEAF_SPAN / 4096;
    const PACKS: usize = 8;
    let world = World::new().await;
    data(&world, (0..CHUNKS).map(id)).await;
    let (root, _) = snapshot(&world, 1, &[(0, (0..CHUNKS).map(id).collect())]).await;
    let locator = find(&world, 4 << 20, Wish::all(root)).await;
    assert!(!locator.report().spilled);
    let running = tokio::spawn(locator.run());
    for _ in 0..PACKS {
        data(&world, (0..CHUNKS / 4).map(id)).await;
    }
    let (bus, environment) = (world.context.bus.clone(), world.context.environment.clone());
    let client = IndexClient::new(bus, environment, 1);
    for n in [7, CHUNKS / 4 - 1] {
        let (copies, _) = client.seek(&About::nothing(), &id(n), &[]).await.unwrap();
        assert_eq!(copies.len(), PACKS + 1, "chunk {n}");
    }
    assert!(world.path("scratch").is_dir());
    world.context.stop.raise();
    running.await.unwrap().unwrap();
}
