//! Those who restore snapshots beside everything else, most of them by the restorer. Some have a restore's session and
//! walk the map by themselves, and ask the ledger about every frame: also of what was forgotten, which is nowhere
//! restored from.
//!
//! What a session protects stays whole until it ends, also when the snapshot is forgotten meanwhile.

use std::collections::BTreeSet;
use std::time::Duration;

use agent::maps::MapReader;
use agent::repository::AtSlot;
use agent::sessions::OpenSession;
use agent::{Failure, Repository};
use rand::RngExt;
use schema::ChunkId;
use schema::map::Content;
use schema::messages::Copy;
use schema::names::{self, Slot};
use schema::session::SessionKind;

use super::{Person, restoring, undoing};

/// One of how many walks the map by itself.
const WALKS: u32 = 6;

/// Attempts on one leaf, and the pause between two: an index may be behind until it compares itself with the bucket.
const TRIES: u32 = 80;
const PAUSE: Duration = Duration::from_secs(2);

/// Reads some snapshot after the other until it is over.
pub(super) async fn restore(mut person: Person, number: usize) {
    let world = person.world.clone();
    while person.pause(world.plan.life.restoring).await {
        let limit = person.next_life();
        let Ok(slots) = slots(&person).await else { continue };
        let walks = person.random.random_range(0..WALKS) == 0;
        // The restorer refuses what is forgotten.
        let is_wanted = |slot: &Slot| walks || !world.ledger.is_forgotten(*slot);
        let slots: Vec<Slot> = slots.into_iter().filter(is_wanted).collect();
        let Some(slot) = person.one_of(&slots) else { continue };
        if undoing::is_wanted(&mut person) {
            match undoing::overwrite(&mut person, number).await {
                Ok(done) => person.count(done),
                Err(failure) => {
                    world.trace.note(format_args!("{} cannot overwrite: {failure}", person.name));
                    person.die();
                }
            }
        }
        let is_fresh = person.random.random();
        let life = async {
            if !walks {
                return restoring::restore(&person, slot, is_fresh).await;
            }
            let volume = slot.volume.to_string();
            let (protection, open) = person.protect(SessionKind::Restore, &volume, &[]).await?;
            let read = read(&person, &open, slot).await;
            protection.end(read).await
        };
        match person.live(limit, life).await {
            Some(Ok(done)) => person.count(done),
            Some(Err(failure)) => {
                world.trace.note(format_args!("{} cannot read {slot}: {failure}", person.name));
                person.die();
                person.count("restores that failed");
            }
            None => {}
        }
    }
}

/// The slots that a listing shows with more than a tombstone, whether forgotten or not.
async fn slots(person: &Person) -> Result<Vec<Slot>, Failure> {
    let listed = person.repository().store.list(names::SNAPSHOTS).await?;
    let existing = listed.iter().filter(|listed| !person.repository().is_as_short(listed.size));
    let mut slots: Vec<Slot> = existing.filter_map(|listed| Slot::parse_key(&listed.key).ok()).collect();
    slots.sort();
    Ok(slots)
}

async fn read(person: &Person, open: &OpenSession, slot: Slot) -> Result<&'static str, Failure> {
    let repository = person.repository();
    // What an epoch sweeps already is protected by nothing that begins now.
    let is_proposed = person.world.ledger.is_proposed(slot);
    let AtSlot::Snapshot(root) = repository.at_slot(slot).await? else {
        return Ok("restores that came too late");
    };
    let index = person.world.index(&person.name);
    let map = MapReader::new(repository.clone(), index.clone(), (*root).clone())?;
    for leaf in 0..map.geometry().leaves() {
        let mut tries = 0;
        while let Err(failure) = read_leaf(person, &repository, open, &map, leaf).await {
            let is_protected = !is_proposed && !person.world.ledger.has_ended(open.session().id);
            if !is_protected {
                return Ok("restores that nothing protected any more");
            }
            if let Some(chunk) = person.world.ledger.lost(&root) {
                let id = open.session().id;
                let wrong = format!("never-collect-live: {chunk} of {slot} went while session {id} read it");
                person.world.trace.wrong(wrong);
                return Err(failure);
            }
            tries += 1;
            if tries >= TRIES {
                return Err(failure);
            }
            person.world.environment.sleep(PAUSE).await;
        }
    }
    Ok("snapshots walked through")
}

async fn read_leaf(
    person: &Person,
    repository: &Repository,
    open: &OpenSession,
    map: &MapReader,
    leaf: u64,
) -> Result<(), Failure> {
    let leaf = map.leaf(leaf).await?;
    let chunks = leaf.pieces().iter().filter_map(|piece| match piece.content {
        Content::Chunk(id) => Some(id),
        Content::Zero => None,
    });
    let chunks: Vec<ChunkId> = chunks.collect::<BTreeSet<_>>().into_iter().collect();
    for (chunk, mut copies) in chunks.iter().zip(map.locate(&chunks).await?) {
        let mut counting = BTreeSet::new();
        for copy in &copies {
            if open.counts(copy.pack).await? {
                counting.insert(copy.pack);
            }
        }
        copies.sort_by_key(|copy| !counting.contains(&copy.pack));
        read_chunk(person, repository, chunk, &copies).await?;
    }
    Ok(())
}

async fn read_chunk(
    person: &Person,
    repository: &Repository,
    chunk: &ChunkId,
    copies: &[Copy],
) -> Result<(), Failure> {
    let mut last = Failure::damaged(format!("chunk {chunk} is in no pack that is known"));
    for copy in copies {
        match repository.read_frame(copy).await {
            Ok(frame) => match person.world.ledger.check_frame(chunk, &frame) {
                Ok(()) => return Ok(()),
                Err(why) => last = Failure::damaged(why),
            },
            Err(failure) => last = failure,
        }
    }
    Err(last)
}
