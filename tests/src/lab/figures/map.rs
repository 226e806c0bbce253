//! A snapshot's chunks: where each lies in the volume, and how much of the repository it takes.

use std::collections::BTreeMap;
use std::ops::Range;

use agent::maps::read_structure;
use schema::ChunkId;
use schema::map::{Content, Geometry, Leaf, Node};
use schema::messages::Copy;

use crate::e2e::Archive;
use crate::lab::Keeper;

/// The chunks of one snapshot.
#[derive(Debug)]
pub struct Map {
    /// Its top: snapshots of one repository whose tops are the same have the same chunks at the same places.
    pub top: Option<ChunkId>,
    /// In order.
    chunks: Vec<(Range<u64>, ChunkId)>,
    /// Bytes of each different chunk as it is stored.
    stored: BTreeMap<ChunkId, u64>,
}

impl Map {
    /// Of a snapshot by its id.
    pub fn of(keeper: &Keeper, snapshot: &str) -> Self {
        let archive = Archive::in_directory(keeper.repository(), keeper.identity());
        let slots = archive.block_on(archive.repository().visible_slots(None)).expect("a listing");
        let slot = slots.into_iter().find(|slot| slot.session.to_string() == snapshot);
        let slot = slot.unwrap_or_else(|| panic!("no snapshot {snapshot}"));
        let root = match archive.block_on(archive.repository().at_slot(slot)).expect("the slot is read") {
            agent::repository::AtSlot::Snapshot(root) => root,
            other => panic!("{snapshot}: {other:?}"),
        };
        let copies = copies(&archive);
        let geometry = Geometry::new(root.size).expect("a size");
        let mut row = vec![root.top];
        for level in (1..=geometry.depth()).rev() {
            row = row.iter().flat_map(|id| children(&archive, &copies, *id, level)).collect();
        }
        let mut map = Self { top: root.top, chunks: Vec::new(), stored: BTreeMap::new() };
        for (id, number) in row.into_iter().zip(0..geometry.leaves()) {
            let Some(id) = id else { continue };
            let range = geometry.leaf_range(number);
            let bytes = structure(&archive, &copies, id);
            map.add(range.start, &Leaf::parse(&bytes, range.end - range.start).expect("a leaf"), &copies);
        }
        map
    }

    fn add(&mut self, start: u64, leaf: &Leaf, copies: &BTreeMap<ChunkId, Copy>) {
        for (at, piece) in leaf.located(start) {
            if let Content::Chunk(id) = piece.content {
                self.chunks.push((at..at + u64::from(piece.len), id));
                self.stored.insert(id, u64::from(copies[&id].len));
            }
        }
    }

    /// How many chunks the volume has.
    pub fn chunks(&self) -> u64 {
        self.chunks.len() as u64
    }

    /// Bytes of the repository that its chunks take, each counted once.
    pub fn stored(&self) -> u64 {
        self.stored.values().sum()
    }

    /// Bytes of `ranges`, in order, widened to whole chunks.
    pub fn widened(&self, ranges: &[Range<u64>]) -> u64 {
        let mut reached = 0;
        let mut bytes = 0;
        for range in ranges {
            let first = self.chunks.partition_point(|(chunk, _)| chunk.end <= range.start);
            let touched = self.chunks[first..].iter().take_while(|(chunk, _)| chunk.start < range.end);
            let touched: Vec<_> = touched.map(|(chunk, _)| chunk).collect();
            let start =
                touched.first().map_or(range.start, |chunk| chunk.start.min(range.start)).max(reached);
            let end = touched.last().map_or(range.end, |chunk| chunk.end.max(range.end)).max(start);
            bytes += end - start;
            reached = end;
        }
        bytes
    }
}

/// A copy of every chunk in the repository.
fn copies(archive: &Archive) -> BTreeMap<ChunkId, Copy> {
    let mut copies = BTreeMap::new();
    for pack in archive.packs().expect("a listing of packs") {
        let (_, footer) = archive.block_on(archive.repository().read_footer(pack)).expect("a footer");
        copies.extend(
            footer
                .entries
                .iter()
                .map(|entry| (entry.id, Copy { pack, offset: entry.offset, len: entry.len })),
        );
    }
    copies
}

fn structure(archive: &Archive, copies: &BTreeMap<ChunkId, Copy>, id: ChunkId) -> Vec<u8> {
    let copy = [copies[&id]];
    let read = read_structure(archive.repository(), id, &copy);
    archive.block_on(read).expect("a part of the map is read").to_vec()
}

/// The children of a node; of one that reads as zero, as many as it may have.
fn children(
    archive: &Archive,
    copies: &BTreeMap<ChunkId, Copy>,
    id: Option<ChunkId>,
    level: u8,
) -> Vec<Option<ChunkId>> {
    match id {
        Some(id) => Node::parse(&structure(archive, copies, id), level).expect("a node").children().to_vec(),
        None => vec![None; schema::limits::NODE_FANOUT],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_widened_to_chunks_and_none_counts_twice() {
        let id = |n: u8| ChunkId::parse(&std::array::from_fn(|at| if at == 0 { 1 } else { n })).unwrap();
        let chunks = vec![(10..20, id(1)), (20..40, id(2)), (60..70, id(3))];
        let map = Map { top: None, chunks, stored: BTreeMap::new() };
        for (ranges, bytes) in [
            (&[(12, 13)][..], 10),
            (&[(19, 21)], 30),
            (&[(12, 13), (15, 16)], 10),
            (&[(12, 13), (21, 22)], 30),
            (&[(0, 5)], 5),
            (&[(5, 11)], 15),
            (&[(30, 61)], 50),
            (&[(45, 50), (50, 62)], 25),
        ] {
            let ranges: Vec<Range<u64>> = ranges.iter().map(|(start, end)| *start..*end).collect();
            assert_eq!(map.widened(&ranges), bytes, "{ranges:?}");
        }
    }
}
