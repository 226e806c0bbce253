//! Hints count only by the session's rule: what does not count is read again by force, and never sealed.

use schema::Domain;
use schema::epoch::Epoch;
use schema::limits::LEAF_SPAN;
use schema::messages::{Mapped, ReadVolume};
use schema::names;
use schema::{ChunkId, PackId};

use crate::support::*;

/// Starts a session of one leaf whose only chunk is mapped like this.
async fn one_leaf(world: &World, number: u8, first: Mapped) -> ReadVolume {
    world.submit(&world.job(number)).await;
    let request = world.asked().await;
    world.opened(request.session, 1, LEAF_SPAN).await;
    world.mapped_leaf(request.session, 0, first).await;
    world.read(&request, false).await;
    request
}

/// The claim was not believed: the leaf is asked for by force, and sealed only when the chunk is stored.
async fn assert_forced(world: &World, number: u8, id: ChunkId, chunk: u32) {
    world.unchanged().await;
    world.wait(10).await;
    assert!(!world.is_asked() && !world.is_reported(&world.job(number)));
    let again = world.asked().await;
    assert_eq!((again.leaves.clone(), again.force), (Some(vec![0]), true));
    assert_eq!(again.reading, Some(reading(1)));
    assert!(world.snapshots().await.is_empty() || number > 1, "never a seal");
    world.mapped_leaf(again.session, 0, Mapped::Pending(id)).await;
    world.read(&again, false).await;
    world.wait(10).await;
    assert!(!world.is_reported(&world.job(number)), "it was promised and is not durable yet");
    world.store(&[chunk]).await;
    let root = world.sealed(&world.job(number)).await;
    let copies = world.leaves(&root).await;
    assert_eq!(copies[0].pieces()[0].content, schema::map::Content::Chunk(id));
}

async fn condemn(world: &World, packs: &[PackId]) {
    let epoch = Epoch { number: 1, forgotten: Vec::new(), condemned: packs.to_vec() };
    let key = names::epoch(1);
    world.repository.store.put(&key, world.repository.seal(&key, &epoch).unwrap()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_known_chunk_counts_when_its_pack_does() {
    let world = World::new().await;
    let stored = world.data(&[1]).await;
    world.start(settings());
    one_leaf(&world, 1, Mapped::Known(world.id(1), stored.pack)).await;
    world.unchanged().await;
    let root = world.sealed(&world.job(1)).await;
    assert_eq!((root.statistics.bytes_known, root.statistics.bytes_new), (u64::from(LEN), 0));
}

/// A pack that appeared after the session had listed them: asked for by name.
#[tokio::test(start_paused = true)]
async fn a_pack_that_the_listing_lacks_is_asked_for() {
    let world = World::new().await;
    world.start(settings());
    world.submit(&world.job(1)).await;
    let request = world.asked().await;
    let stored = world.data(&[1]).await;
    world.opened(request.session, 1, LEAF_SPAN).await;
    world.mapped_leaf(request.session, 0, Mapped::Known(world.id(1), stored.pack)).await;
    world.read(&request, false).await;
    world.unchanged().await;
    world.sealed(&world.job(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_condemned_pack_leads_to_a_forced_reading() {
    let world = World::new().await;
    let stored = world.data(&[1]).await;
    world.index(&stored);
    condemn(&world, &[stored.pack]).await;
    world.start(settings());
    let id = world.id(1);
    one_leaf(&world, 1, Mapped::Known(id, stored.pack)).await;
    assert_forced(&world, 1, id, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_pack_leads_to_a_forced_reading() {
    let world = World::new().await;
    let stored = world.data(&[1]).await;
    world.index(&stored);
    world.lose([stored.pack]).await;
    world.start(settings());
    let id = world.id(1);
    one_leaf(&world, 1, Mapped::Known(id, stored.pack)).await;
    assert_forced(&world, 1, id, 1).await;
}

/// Announced while the session runs, and condemned before it began: the collector may delete it at any moment.
#[tokio::test(start_paused = true)]
async fn an_announcement_of_a_condemned_pack_counts_for_nothing() {
    let world = World::new().await;
    let stored = world.data(&[1]).await;
    condemn(&world, &[stored.pack]).await;
    world.start(settings());
    let id = world.id(1);
    one_leaf(&world, 1, Mapped::Pending(id)).await;
    world.wait(1).await;
    world.announce(&stored).await;
    assert_forced(&world, 1, id, 1).await;
}

#[tokio::test(start_paused = true)]
async fn another_copy_that_counts_is_found_through_the_index() {
    let world = World::new().await;
    let (lost, whole) = (world.data(&[1]).await, world.data(&[1]).await);
    for stored in [&whole, &lost] {
        world.index(stored);
    }
    world.lose([lost.pack]).await;
    world.start(settings());
    one_leaf(&world, 1, Mapped::Known(world.id(1), lost.pack)).await;
    world.unchanged().await;
    world.sealed(&world.job(1)).await;
    assert!(!world.is_asked(), "nothing had to be read again");
}

/// The parent has this chunk elsewhere, another one here, or nothing at all; or there is no parent.
#[tokio::test(start_paused = true)]
async fn a_claim_that_the_parent_does_not_bear_out_is_not_believed() {
    let world = World::new().await;
    world.start(settings());
    let id = world.id(1);
    one_leaf(&world, 1, Mapped::Parent(id)).await;
    assert_forced(&world, 1, id, 1).await;

    let world = World::new().await;
    world.start(settings());
    world.backup(&world.job(1), &[1, 2]).await;
    one_leaf(&world, 2, Mapped::Parent(world.id(2))).await;
    world.unchanged().await;
    world.wait(10).await;
    assert!(!world.is_reported(&world.job(2)), "the parent has it, but elsewhere");
    // The index knows it in a pack that counts: that is enough, and found when nothing else moves.
    world.sealed(&world.job(2)).await;
    assert!(!world.is_asked());
}

/// A parent beyond reading spares no work, and does not stand in the way of a new snapshot.
#[tokio::test(start_paused = true)]
async fn a_parent_that_cannot_be_read_does_no_harm() {
    let world = World::new().await;
    world.start(settings());
    let first = world.backup(&world.job(1), &[1, 2]).await;
    world.lose(world.packs_of(Domain::Structure)).await;
    world.table.lock().unwrap().retain(|id, _| id.domain() == Ok(Domain::Data));
    world.take_structures();
    let job = world.job(2);
    world.submit(&job).await;
    let request = world.asked().await;
    world.opened(request.session, 1, 2 * LEAF_SPAN).await;
    let pack = *world.packs_of(Domain::Data).first().unwrap();
    world.mapped_leaf(request.session, 0, Mapped::Known(world.id(1), pack)).await;
    world.mapped_leaf(request.session, 1, Mapped::Parent(world.id(2))).await;
    world.read(&request, false).await;
    world.unchanged().await;
    let root = world.sealed(&job).await;
    assert_eq!((root.generation, root.parent), (2, Some(first.slot)));
    assert_eq!(world.take_structures(), 3, "leaves and node are stored anew");
    assert_eq!(world.leaves(&root).await.len(), 2);
}

/// Structure counts by the same rule as data: a leaf in a condemned pack is stored again.
#[tokio::test(start_paused = true)]
async fn structure_in_a_condemned_pack_is_stored_again() {
    let world = World::new().await;
    world.start(settings());
    let first = world.backup(&world.job(1), &[1]).await;
    world.take_structures();
    let structure: Vec<PackId> = world.packs_of(Domain::Structure).into_iter().collect();
    condemn(&world, &structure).await;
    // Another volume with the same content, so that no parent vouches for the leaf.
    let mut job = world.job(2);
    job.volume = format!("{VOLUME}2");
    world.submit(&job).await;
    let request = world.asked().await;
    world.opened(request.session, 1, LEAF_SPAN).await;
    let pack = *world.packs_of(Domain::Data).first().unwrap();
    world.mapped_leaf(request.session, 0, Mapped::Known(world.id(1), pack)).await;
    world.read(&request, false).await;
    world.unchanged().await;
    assert_eq!(world.sealed(&job).await.top, first.top);
    assert_eq!(world.take_structures(), 1);
}
