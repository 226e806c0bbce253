//! Marking: which chunks the snapshots need.
//!
//! Maps share nodes and leaves; each is read once, as far as memory for the ids of what was read suffices: when that is
//! full it begins anew, since snapshots come by volume, and those of one volume share most. Where not all places of parts
//! of maps fit in memory, maps are walked once for each range of leaves.
//!
//! A part of a map that cannot be read stops everything, unless its snapshot has been seen to be gone: a slot is never
//! deleted, so that only a tombstone says so, and not even that one while somebody counts on the snapshot.

use std::collections::{BTreeSet, HashSet};

use agent::repository::AtSlot;
use agent::{Failure, Repository, Stop};
use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt};
use schema::limits::{MAP_DEPTH_MAX, NODE_FANOUT};
use schema::map::{Content, Geometry, Leaf, Node};
use schema::messages::FailureKind;
use schema::names::Slot;
use schema::root::Root;
use schema::{ChunkId, names};

use crate::budget::Budget;
use crate::footers::Footers;
use crate::go_on;
use crate::live::{LiveIds, half};
use crate::structure::{self, Structure};

/// Roots, and leaves of one node, that are read at once. A leaf has 1 MiB at most.
const AT_ONCE: usize = 16;

/// Where marking reads.
pub(crate) struct Sources<'a> {
    pub(crate) repository: &'a Repository,
    pub(crate) footers: &'a Footers,
    pub(crate) stop: &'a Stop,
    pub(crate) budget: Budget,
}

/// Marks what these snapshots need, as far as it is within the range of `live`. The second mark is of an epoch.
pub(crate) async fn mark(
    sources: &Sources<'_>,
    structure: &mut Structure,
    slots: &[Slot],
    live: LiveIds,
    second_of: Option<u64>,
) -> Result<LiveIds, Failure> {
    let mut walk = Walk { sources, structure, live, visited: HashSet::new(), second_of };
    let mut from = 0;
    while from < structure::LISTS {
        walk.structure.cover(sources.footers, from).await?;
        if from == 0 && walk.structure.range().end < structure::LISTS {
            walk.find_nodes(slots).await?;
        }
        walk.visited.clear();
        walk.snapshots(slots).await?;
        from = walk.structure.range().end;
    }
    walk.live.seal();
    Ok(walk.live)
}

/// What stands at these slots, in their order.
pub(crate) fn at_slots(
    repository: &Repository,
    slots: &[Slot],
) -> impl Stream<Item = (Slot, Result<AtSlot, Failure>)> {
    let look = move |slot: Slot| async move { (slot, at_slot(repository, slot).await) };
    stream::iter(slots.to_vec()).map(look).buffered(AT_ONCE)
}

/// What stands at a slot.
pub(crate) async fn at_slot(repository: &Repository, slot: Slot) -> Result<AtSlot, Failure> {
    repository.at_slot(slot).await.map_err(|failure| {
        let id = slot.session;
        let said = match failure.kind {
            FailureKind::Store => {
                format!("snapshot {id} cannot be read now, so that nobody knows what it needs")
            }
            _ => format!(
                "snapshot {id} cannot be read, so that nobody knows what it needs (if it is lost, `lvkeep forget {id}` lets \
                 it go, and before that `lvkeep release {id}` what holds it)"
            ),
        };
        failure.context(said)
    })
}

struct Walk<'a> {
    sources: &'a Sources<'a>,
    structure: &'a mut Structure,
    live: LiveIds,
    visited: HashSet<u128>,
    second_of: Option<u64>,
}

impl Walk<'_> {
    async fn snapshots(&mut self, slots: &[Slot]) -> Result<(), Failure> {
        let mut roots = std::pin::pin!(at_slots(self.sources.repository, slots));
        while let Some((slot, at_slot)) = roots.next().await {
            match at_slot? {
                AtSlot::Snapshot(root) => self.snapshot(&root).await?,
                AtSlot::Tombstone => self.check_swept(slot).await?,
                AtSlot::Nothing => return Err(not_there(slot)),
            }
        }
        Ok(())
    }

    /// Finds the nodes of these snapshots, whatever range of the table is in memory. What is not found is said by the
    /// walk that needs it.
    async fn find_nodes(&mut self, slots: &[Slot]) -> Result<(), Failure> {
        let mut levels = vec![BTreeSet::new(); usize::from(MAP_DEPTH_MAX) + 1];
        let mut roots = std::pin::pin!(at_slots(self.sources.repository, slots));
        while let Some((_, at_slot)) = roots.next().await {
            if let AtSlot::Snapshot(root) = at_slot? {
                let level = usize::from(Geometry::new(root.size)?.depth());
                levels.get_mut(level).into_iter().for_each(|ids| ids.extend(root.top));
            }
        }
        for level in (1..=MAP_DEPTH_MAX).rev() {
            let ids = std::mem::take(&mut levels[usize::from(level)]);
            self.structure.seek(self.sources.footers, &ids).await?;
            for id in ids.into_iter().filter(|_| level > 1) {
                let bytes = match self.structure.read(self.sources.repository, id).await {
                    Err(failure) if failure.kind == FailureKind::Damaged => continue,
                    read => read?,
                };
                let node = Node::parse(&bytes, level);
                let below = &mut levels[usize::from(level) - 1];
                node.iter().for_each(|node| below.extend(node.children().iter().copied().flatten()));
            }
        }
        Ok(())
    }

    async fn snapshot(&mut self, root: &Root) -> Result<(), Failure> {
        let Err(failure) = self.map(root).await else { return Ok(()) };
        // What was begun and not finished must not count as read when another snapshot shares it.
        self.visited.clear();
        if failure.kind != FailureKind::Damaged {
            return Err(failure);
        }
        match self.sources.repository.at_slot(root.slot).await? {
            AtSlot::Snapshot(_) => Err(self.unknown(root, failure)),
            AtSlot::Tombstone => self.check_swept(root.slot).await,
            AtSlot::Nothing => Err(not_there(root.slot)),
        }
    }

    /// A part of a map is in no pack that can be read. It may be in one that the store does not give now: then nothing is
    /// lost as far as is known, and the second mark ends its collection with an empty verdict all the same.
    fn unknown(&self, root: &Root, failure: Failure) -> Failure {
        let map = format!("the map of {} ({})", root.volume, root.slot.session);
        let withheld = self.sources.footers.withheld();
        let Some((pack, said)) = withheld.first_key_value() else {
            return failure.context(format!(
                "{map} cannot be read, so that nobody knows what it needs: nothing is deleted (`lvkeep check` says more; a \
                 snapshot that is lost can be forgotten)"
            ));
        };
        let others = match withheld.len() - 1 {
            0 => String::new(),
            more => format!(" and {more} other packs"),
        };
        let why = format!(
            "{map} cannot be read while the store does not give {}{others}, so that nothing is deleted; run `lvkeep prune` \
             again when it does: {said}",
            names::pack(*pack)
        );
        let kind = if self.second_of.is_some() { failure.kind } else { FailureKind::Store };
        Failure { kind, why, ..failure }
    }

    /// Whether a snapshot that was listed may be a tombstone by now. Whoever sweeps one that this epoch keeps goes by a
    /// later epoch, and has seen this one's verdict.
    async fn check_swept(&self, slot: Slot) -> Result<(), Failure> {
        let Some(number) = self.second_of else { return Ok(()) };
        match agent::epochs::verdict(self.sources.repository, number).await? {
            Some(_) => Ok(()),
            None => Err(Failure::new(
                FailureKind::Store,
                format!(
                    "{} was overwritten by nobody who may while collection {number} was under way: nothing is deleted; find \
                     out who did it, and run `lvkeep prune` again",
                    slot.snapshot()
                ),
            )),
        }
    }

    async fn map(&mut self, root: &Root) -> Result<(), Failure> {
        let geometry = Geometry::new(root.size)?;
        // What is to be read: a chunk, its level above the leaves, and its number in that level.
        let mut below: Vec<(ChunkId, u8, u64)> =
            root.top.map(|top| (top, geometry.depth(), 0)).into_iter().collect();
        while let Some((id, level, number)) = below.pop() {
            go_on(self.sources.stop)?;
            if level == 0 {
                self.leaves(geometry, vec![(id, number)]).await?;
                continue;
            }
            if !self.enter(&id) {
                continue;
            }
            let node = Node::parse(&self.read(id).await?, level)?;
            let first = number * NODE_FANOUT as u64;
            let children = node.children().iter().zip(first..).filter_map(|(id, n)| Some(((*id)?, n)));
            match level {
                1 => self.leaves(geometry, children.collect()).await?,
                _ => below.extend(children.map(|(id, number)| (id, level - 1, number))),
            }
        }
        Ok(())
    }

    async fn leaves(&mut self, geometry: Geometry, mut leaves: Vec<(ChunkId, u64)>) -> Result<(), Failure> {
        leaves.retain(|(id, _)| self.structure.covers(id) && self.enter(id));
        let mut missed = Vec::new();
        {
            let (structure, repository) = (&*self.structure, self.sources.repository);
            let read = |(id, number)| async move { (id, number, structure.read(repository, id).await) };
            let mut read = stream::iter(leaves).map(read).buffer_unordered(AT_ONCE);
            while let Some((id, number, bytes)) = read.next().await {
                match bytes {
                    Ok(bytes) => insert(&mut self.live, geometry, number, &bytes)?,
                    Err(failure) if failure.kind == FailureKind::Damaged => missed.push((id, number)),
                    Err(failure) => return Err(failure),
                }
            }
        }
        for (id, number) in missed {
            let bytes = self.read_again(id).await?;
            insert(&mut self.live, geometry, number, &bytes)?;
        }
        Ok(())
    }

    /// Marks a structure chunk; whether what is below it must be read.
    fn enter(&mut self, id: &ChunkId) -> bool {
        self.live.insert(id);
        if self.visited.len() >= self.sources.budget.visited {
            self.visited.clear();
        }
        self.visited.insert(half(id))
    }

    async fn read(&mut self, id: ChunkId) -> Result<Bytes, Failure> {
        match self.structure.read(self.sources.repository, id).await {
            Err(failure) if failure.kind == FailureKind::Damaged => self.read_again(id).await,
            read => read,
        }
    }

    async fn read_again(&mut self, id: ChunkId) -> Result<Bytes, Failure> {
        self.structure.read_again(self.sources.repository, self.sources.footers, id).await
    }
}

/// One wrong answer must not make a snapshot's packs look unneeded.
pub(crate) fn not_there(slot: Slot) -> Failure {
    let key = slot.snapshot();
    let why = format!(
        "the object store lists {key} and does not give it: nothing is deleted; run `lvkeep prune` again"
    );
    Failure { kind: FailureKind::Store, retry: true, why }
}

/// Marks what a leaf names.
fn insert(live: &mut LiveIds, geometry: Geometry, number: u64, bytes: &[u8]) -> Result<(), Failure> {
    let range = geometry.leaf_range(number);
    for piece in Leaf::parse(bytes, range.end - range.start)?.pieces() {
        if let Content::Chunk(id) = piece.content {
            live.insert(&id);
        }
    }
    Ok(())
}
