//! Takes what comes again in a volume from where it stands on the target already, so that it is fetched once.
//!
//! Inside a window each chunk is fetched once anyhow; this is about windows that are far from each other, as where a
//! volume holds copies of an image. What stands there by now, written or found, is remembered as far as there is room
//! for it, and verified by its id when it is read again, so that what is remembered wrongly costs a read.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use agent::Failure;
use schema::ChunkId;

use crate::compare::{Place, all_of, runs, same_of_run, without};
use crate::plan::{Wanted, Window};
use crate::reading::{Aligned, Reading};
use crate::report::Report;
use crate::sink::Sink;
use crate::unit::Work;

/// Bytes that a chunk's place takes, with what a growing table has to spare.
const PLACE_LEN: u64 = 32;

/// Room for places, which all restores of a restorer have together.
#[derive(Debug)]
pub(crate) struct Room(AtomicUsize);

impl Room {
    /// For as many places as fit so many bytes.
    pub fn new(bytes: u64) -> Self {
        Self(AtomicUsize::new((bytes / PLACE_LEN) as usize))
    }

    fn take_one(&self) -> bool {
        let less = |free: usize| free.checked_sub(1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    fn give_back(&self, places: usize) {
        self.0.fetch_add(places, Ordering::Relaxed);
    }
}

/// Where chunks of a restore stand on its target.
pub(crate) struct Repeats {
    /// Offsets of the volume, by a part of the chunk's id.
    places: Mutex<HashMap<u64, u64>>,
    /// What they take; none where nothing is remembered.
    room: Option<Arc<Room>>,
    reading: OnceLock<Option<Reading>>,
}

/// What of a window stands somewhere.
struct Again {
    /// Where, in order.
    places: Vec<Place>,
    /// Which offsets want the chunk of each place.
    wanted: HashMap<u64, Vec<u64>>,
}

/// The places of a chunk that lie in `part` as a whole.
fn whole(wanted: &Wanted, part: &Range<u64>) -> impl Iterator<Item = u64> {
    let (part, len) = (part.clone(), u64::from(wanted.len));
    wanted.offsets.iter().copied().filter(move |at| part.start <= *at && at + len <= part.end)
}

fn key(id: &ChunkId) -> u64 {
    let mut part = [0; 8];
    // The first byte is the domain.
    part.copy_from_slice(&id.as_bytes()[1..9]);
    u64::from_le_bytes(part)
}

impl Repeats {
    /// Remembers as many as there is room for while it goes on.
    pub fn new(room: Option<Arc<Room>>) -> Self {
        let (places, reading) = (Mutex::default(), OnceLock::new());
        Self { places, room, reading }
    }

    /// These chunks were written, as far as they are wanted of `part`.
    pub fn note<'a>(&self, part: &Range<u64>, written: impl Iterator<Item = &'a Wanted>) {
        self.note_at(written.filter_map(|wanted| Some((wanted.id, whole(wanted, part).next()?))));
    }

    /// These chunks stand on the target, each at its offset.
    pub fn note_at(&self, there: impl Iterator<Item = (ChunkId, u64)>) {
        let Some(room) = &self.room else { return };
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, at) in there {
            if let Entry::Vacant(entry) = places.entry(key(&id))
                && room.take_one()
            {
                entry.insert(at);
            }
        }
    }

    fn of(&self, window: &Window, part: &Range<u64>) -> Again {
        let known = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let mut again = Again { places: Vec::new(), wanted: HashMap::new() };
        for chunk in &window.chunks {
            // Of two that are taken for one, the second is fetched.
            if let Some(offset) = known.get(&key(&chunk.id))
                && let Entry::Vacant(entry) = again.wanted.entry(*offset)
            {
                entry.insert(whole(chunk, part).collect());
                again.places.push(Place { id: chunk.id, offset: *offset, len: chunk.len });
            }
        }
        again.places.sort_unstable_by_key(|place| place.offset);
        again
    }

    /// The target. Blocks.
    fn reading(&self, sink: &Sink) -> Option<&Reading> {
        let Sink::Target(opened) = sink else { return None };
        let open = || {
            let reading = Reading::of_written(opened);
            reading.inspect_err(|why| tracing::debug!(%why, "what comes again is fetched again")).ok()
        };
        self.reading.get_or_init(open).as_ref()
    }
}

impl Drop for Repeats {
    fn drop(&mut self) {
        let places = self.places.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.room.iter().for_each(|room| room.give_back(places.len()));
    }
}

/// Writes what stands elsewhere on the target already, and takes it out of the window.
pub(crate) async fn copy_repeated(work: &Arc<Work>, window: &mut Window) -> Result<Report, Failure> {
    let Again { places, wanted } = work.repeats.of(window, &work.part);
    let wanted = Arc::new(wanted);
    let running = runs(&places).into_iter().map(|run| {
        let (run, wanted) = (run.to_vec(), wanted.clone());
        work.reading(move |work, buffer| copied(work, &run, &wanted, buffer))
    });
    let copied = all_of(running).await?.into_iter().collect();
    Ok(Report { copied: without(window, &copied), ..Report::default() })
}

/// Writes those of a run's chunks that stand where they should, and returns the offsets that have them now. Blocks.
fn copied(
    work: &Work,
    run: &[Place],
    wanted: &HashMap<u64, Vec<u64>>,
    buffer: &mut Aligned,
) -> Result<Vec<u64>, Failure> {
    let mut copied = Vec::new();
    let Some(reading) = work.repeats.reading(&work.sink).filter(|_| !work.halt.is_raised()) else {
        return Ok(copied);
    };
    match same_of_run(work, reading, run, buffer) {
        Ok(found) => {
            for (place, bytes) in found {
                for offset in wanted.get(&place.offset).into_iter().flatten() {
                    work.sink.write(*offset, bytes)?;
                    work.counters.bytes_restored.add(bytes.len() as u64);
                    copied.push(*offset);
                }
            }
        }
        Err(why) => tracing::warn!(volume = work.volume, %why, "fetched instead"),
    }
    Ok(copied)
}

#[cfg(test)]
mod tests {
    use schema::Domain;

    use super::*;

    fn chunks(of: u8) -> impl Iterator<Item = (ChunkId, u64)> {
        (0..100).map(move |n: u8| {
            let mut id = [n; 33];
            (id[0], id[1]) = (Domain::Data as u8, of);
            (ChunkId::parse(&id).unwrap(), u64::from(n))
        })
    }

    #[test]
    fn many_restores_remember_no_more_than_there_is_room_for() {
        let room = Arc::new(Room::new(250 * PLACE_LEN));
        let restores: Vec<Repeats> = (0..64).map(|_| Repeats::new(Some(room.clone()))).collect();
        let known = |one: &Repeats| one.places.lock().unwrap().len();
        for (of, one) in restores.iter().enumerate() {
            one.note_at(chunks(of as u8));
            one.note_at(chunks(of as u8));
        }
        let all: Vec<usize> = restores.iter().map(known).collect();
        assert_eq!(all[..4], [100, 100, 50, 0]);
        assert_eq!(all.iter().sum::<usize>(), 250);
        // What those that end had is for the others.
        let last = restores.into_iter().next_back().unwrap();
        last.note_at(chunks(63));
        assert_eq!(known(&last), 100);
        let none = Repeats::new(None);
        none.note_at(chunks(1));
        assert_eq!(known(&none), 0);
    }
}
