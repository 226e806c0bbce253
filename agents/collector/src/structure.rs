//! Where structure chunks are: copies of map nodes and leaves, found by the footers of the packs that hold them.
//!
//! The table holds a range of ids, and gives up the upper half of it when it would outgrow its budget: whoever walks
//! maps comes again for the rest. Nodes, of which there are few, are then looked for by themselves.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use agent::damage::Damages;
use agent::{Failure, Repository, maps};
use bytes::Bytes;
use futures::TryStreamExt;
use schema::messages::{Copy, FailureKind};
use schema::pack::PackEntry;
use schema::{ChunkId, Domain, PackId, names};

use crate::footers::{Footers, Found, Pack};
use crate::live::half;

/// Lists of a full table.
pub(crate) const LISTS: usize = 1 << 10;
/// Copies that a list makes room for at first.
const ROOM_FIRST: usize = 4;
/// Copies that could not be opened and are remembered; more than these are an alarm.
const FAILED_MAX: usize = 1 << 16;

/// Copies of structure chunks that could not be opened though another one could. Nothing relies on them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Failed(BTreeSet<(u128, PackId)>);

impl Failed {
    /// Whether the copy of a chunk in this pack is one of them.
    pub(crate) fn has(&self, id: &ChunkId, pack: PackId) -> bool {
        !self.0.is_empty() && self.0.contains(&(half(id), pack))
    }
}

/// The first eight bytes of an id. What shares them is told apart when it is opened.
type First = [u32; 2];

fn first(id: &ChunkId) -> First {
    let first = (half(id) >> 64) as u64;
    [(first >> 32) as u32, first as u32]
}

fn list(first: First) -> usize {
    first[0] as usize >> (32 - LISTS.ilog2())
}

/// A copy; 20 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    first: First,
    pack: u32,
    offset: u32,
    len: u32,
}

/// Copies of structure chunks.
pub(crate) struct Structure {
    /// Packs whose footers were read as they were written; of others, the next reading may be better.
    whole: BTreeSet<PackId>,
    /// Those that hold structure, in the order of their numbers.
    packs: Vec<PackId>,
    budget: usize,
    range: Range<usize>,
    lists: Vec<Vec<Place>>,
    room: usize,
    /// Outside of the range: nodes, and what came late. Sorted.
    besides: Vec<Place>,
    /// Copies that are recorded as damaged.
    damages: Arc<Damages>,
    failed: Mutex<Failed>,
}

impl Structure {
    /// Of these packs; the table takes `budget` bytes.
    pub(crate) async fn of(
        footers: &Footers,
        packs: impl IntoIterator<Item = PackId>,
        budget: usize,
    ) -> Result<Self, Failure> {
        let mut structure = Self {
            whole: BTreeSet::new(),
            packs: Vec::new(),
            budget,
            range: 0..LISTS,
            lists: vec![Vec::new(); LISTS],
            room: 0,
            besides: Vec::new(),
            damages: footers.damages(),
            failed: Mutex::default(),
        };
        let packs: Vec<PackId> = packs.into_iter().collect();
        let mut read = std::pin::pin!(footers.read(packs));
        while let Some((id, found)) = read.try_next().await? {
            structure.add(id, &found, false);
        }
        structure.sort();
        Ok(structure)
    }

    /// The lists that the table holds; the next pass begins at the end.
    pub(crate) fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Whether copies of this chunk are in the table, if there are any.
    pub(crate) fn covers(&self, id: &ChunkId) -> bool {
        self.range.contains(&list(first(id)))
    }

    /// Fills the table with what is in list `from` and later ones, as far as it fits.
    pub(crate) async fn cover(&mut self, footers: &Footers, from: usize) -> Result<(), Failure> {
        if self.range.start == from {
            return Ok(());
        }
        self.range = from..LISTS;
        self.lists = vec![Vec::new(); LISTS - from];
        self.room = 0;
        let mut read = std::pin::pin!(footers.read(self.packs.clone()));
        for number in 0.. {
            let Some((_, found)) = read.try_next().await? else { break };
            if let Found::Pack(pack) = found {
                pack.footer.entries.iter().for_each(|entry| self.insert(place(number, entry)));
            }
        }
        self.sort();
        Ok(())
    }

    /// Finds copies of these chunks beside the table.
    pub(crate) async fn seek(&mut self, footers: &Footers, ids: &BTreeSet<ChunkId>) -> Result<(), Failure> {
        if ids.is_empty() {
            return Ok(());
        }
        let mut read = std::pin::pin!(footers.read(self.packs.clone()));
        for number in 0.. {
            let Some((_, found)) = read.try_next().await? else { break };
            if let Found::Pack(pack) = found {
                let wanted = pack.footer.entries.iter().filter(|entry| ids.contains(&entry.id));
                self.besides.extend(wanted.map(|entry| place(number, entry)));
            }
        }
        self.sort();
        Ok(())
    }

    /// Looks for packs that came after: a snapshot that was committed meanwhile may stand on them.
    async fn look_again(&mut self, repository: &Repository, footers: &Footers) -> Result<(), Failure> {
        let listed = repository.list_packs().await?.into_iter().map(|(pack, _)| pack);
        let fresh: Vec<PackId> = listed.filter(|pack| !self.whole.contains(pack)).collect();
        let mut read = std::pin::pin!(footers.read(fresh));
        while let Some((id, found)) = read.try_next().await? {
            self.add(id, &found, true);
        }
        self.sort();
        Ok(())
    }

    fn add(&mut self, id: PackId, found: &Found, late: bool) {
        let Found::Pack(pack) = found else { return };
        if pack.is_whole() {
            self.whole.insert(id);
        }
        if pack.header.kind == Domain::Structure {
            self.add_structure(id, pack, late);
        }
    }

    fn add_structure(&mut self, id: PackId, pack: &Pack, late: bool) {
        let Ok(number) = u32::try_from(self.packs.len()) else { return };
        self.packs.push(id);
        for entry in &pack.footer.entries {
            let place = place(number, entry);
            self.insert(place);
            if late && !self.covers(&entry.id) {
                self.besides.push(place);
            }
        }
    }

    fn insert(&mut self, place: Place) {
        let number = list(place.first);
        if !self.range.contains(&number) {
            return;
        }
        let list = &mut self.lists[number - self.range.start];
        if list.len() == list.capacity() {
            let before = list.capacity();
            list.reserve_exact((before / 8).max(ROOM_FIRST));
            self.room += list.capacity() - before;
        }
        list.push(place);
        while self.room * size_of::<Place>() > self.budget && self.lists.len() > 1 {
            self.lists.truncate(self.lists.len().div_ceil(2));
            self.range.end = self.range.start + self.lists.len();
            self.room = self.lists.iter().map(Vec::capacity).sum();
        }
    }

    fn sort(&mut self) {
        self.lists.iter_mut().for_each(|list| list.sort_unstable());
        self.besides.sort_unstable();
        self.besides.dedup();
    }

    /// Reads a chunk from the oldest copy that can be opened, and notes those before it. Copies in whole packs come first,
    /// and those that are recorded as damaged last.
    pub(crate) async fn read(&self, repository: &Repository, id: ChunkId) -> Result<Bytes, Failure> {
        let mut failure = None;
        let mut tried = Vec::new();
        for copy in self.copies_of(&id) {
            match maps::read_structure(repository, id, &[copy]).await {
                Ok(bytes) => return self.note(id, &tried).map(|()| bytes),
                // Whether the chunk is lost is not known while one of its copies cannot be reached.
                Err(one) if failure.is_none() || one.kind != FailureKind::Damaged => failure = Some(one),
                Err(_) => {}
            }
            tried.push(copy.pack);
        }
        match failure {
            Some(failure) => Err(failure),
            None => maps::read_structure(repository, id, &[]).await,
        }
    }

    fn copies_of(&self, id: &ChunkId) -> Vec<Copy> {
        let first = first(id);
        let number = list(first);
        let places = match self.range.contains(&number) {
            true => &self.lists[number - self.range.start],
            false => &self.besides,
        };
        let start = places.partition_point(|place| place.first < first);
        let places = places[start..].iter().take_while(|place| place.first == first);
        let copy = |place: &Place| Copy {
            pack: self.packs[place.pack as usize],
            offset: place.offset,
            len: place.len,
        };
        let mut copies: Vec<Copy> = places.map(copy).collect();
        copies
            .sort_by_key(|copy| (self.damages.has(id, &copy.pack), !self.whole.contains(&copy.pack), *copy));
        copies.dedup();
        copies
    }

    fn note(&self, id: ChunkId, packs: &[PackId]) -> Result<(), Failure> {
        if packs.is_empty() {
            return Ok(());
        }
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.0.extend(packs.iter().map(|pack| (half(&id), *pack)));
        match failed.0.len() <= FAILED_MAX {
            true => Ok(()),
            false => Err(Failure::damaged(format!(
                "more than {FAILED_MAX} copies of parts of maps cannot be opened, the last one in {}: nothing is deleted \
                 (`lvkeep check` says more)",
                names::pack(packs[0])
            ))),
        }
    }

    /// The copies that could not be opened so far.
    pub(crate) fn failed(&self) -> Failed {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads a chunk of which no whole copy was found, once more after looking for new packs.
    pub(crate) async fn read_again(
        &mut self,
        repository: &Repository,
        footers: &Footers,
        id: ChunkId,
    ) -> Result<Bytes, Failure> {
        self.look_again(repository, footers).await?;
        self.read(repository, id).await
    }
}

fn place(pack: u32, entry: &PackEntry) -> Place {
    Place { first: first(&entry.id), pack, offset: entry.offset, len: entry.len }
}
