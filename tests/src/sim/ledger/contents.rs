//! The maps of snapshots, and whether what they say is the plaintext of the reading.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use schema::keys::ChunkIds;
use schema::map::{Content, Geometry, Leaf, Node};
use schema::root::Root;
use schema::{ChunkId, Domain};

use super::super::content::{self, BLOCK};
use super::super::sources::Sources;

/// The plaintext of structure chunks, of all packs that there ever were.
#[derive(Debug, Default)]
pub(super) struct Maps(BTreeMap<ChunkId, Bytes>);

/// Leaves with data, each with the place where it starts.
type Leaves = Vec<(u64, Leaf)>;

impl Maps {
    pub fn keep(&mut self, chunk: ChunkId, plain: &[u8]) {
        self.0.entry(chunk).or_insert_with(|| Bytes::copy_from_slice(plain));
    }

    /// The leaves of a snapshot; notes all chunks that it needs.
    pub fn walk(&self, root: &Root, needs: &mut BTreeSet<ChunkId>) -> Result<Leaves, String> {
        let named = |why: String| format!("sealed-is-readable: the map of {}: {why}", root.slot);
        let geometry = Geometry::new(root.size).map_err(|why| named(why.to_string()))?;
        let mut leaves = Vec::new();
        if let Some(top) = root.top {
            self.below(top, geometry, geometry.depth(), 0, needs, &mut leaves).map_err(named)?;
        }
        Ok(leaves)
    }

    fn below(
        &self,
        chunk: ChunkId,
        geometry: Geometry,
        level: u8,
        first: u64,
        needs: &mut BTreeSet<ChunkId>,
        leaves: &mut Leaves,
    ) -> Result<(), String> {
        needs.insert(chunk);
        let plain = self.0.get(&chunk).ok_or_else(|| format!("chunk {chunk} was never stored"))?;
        if level == 0 {
            let range = geometry.leaf_range(first);
            let leaf = Leaf::parse(plain, range.end - range.start).map_err(|why| why.to_string())?;
            let chunks = leaf.pieces().iter().filter_map(|piece| match piece.content {
                Content::Chunk(id) => Some(id),
                Content::Zero => None,
            });
            needs.extend(chunks);
            leaves.push((range.start, leaf));
            return Ok(());
        }
        let node = Node::parse(plain, level).map_err(|why| why.to_string())?;
        let width = (schema::limits::NODE_FANOUT as u64).pow(u32::from(level) - 1);
        for (child, below) in (0..).zip(node.children()) {
            if let Some(below) = below {
                self.below(*below, geometry, level - 1, first + child * width, needs, leaves)?;
            }
        }
        Ok(())
    }
}

/// `restored-equals-read`: every piece is what the reading held there. What changed while it was read is compared
/// when it is restored.
pub(super) fn compare(
    root: &Root,
    leaves: &Leaves,
    sources: &[Arc<Sources>],
    ids: ChunkIds,
) -> Result<(), String> {
    if root.changed_while_read {
        return Ok(());
    }
    let wrong = |why: String| format!("restored-equals-read: {} of {}: {why}", root.slot, root.volume);
    let source = sources.iter().find_map(|sources| sources.source(&root.source));
    let held = source.and_then(|source| source.held(root.reading)).and_then(|held| held.into_iter().next());
    let held = held.ok_or_else(|| wrong(format!("nobody read it as {}", root.reading)))?;
    if held.size() != root.size {
        return Err(wrong(format!("{} bytes instead of {}", root.size, held.size())));
    }
    let mut data: BTreeMap<u64, u64> = BTreeMap::new();
    for (offset, piece) in leaves.iter().flat_map(|(start, leaf)| leaf.located(*start)) {
        let Content::Chunk(id) = piece.content else { continue };
        let mut plain = vec![0; piece.len as usize];
        held.read(offset, &mut plain);
        if ids.id(Domain::Data, &plain) != id {
            return Err(wrong(format!("the chunk at {offset} is another one")));
        }
        data.insert(offset, offset + u64::from(piece.len));
    }
    match left_out(&held, &data) {
        Some(block) => Err(wrong(format!("block {block} holds data and is not in the map"))),
        None => Ok(()),
    }
}

/// A block that holds data outside of these ranges.
fn left_out(held: &content::Content, data: &BTreeMap<u64, u64>) -> Option<u64> {
    let blocks = held.allocated(0..held.size()).into_iter();
    let mut blocks = blocks.flat_map(|part| part.start / BLOCK..part.end.div_ceil(BLOCK));
    blocks.find(|block| {
        let at = block * BLOCK;
        let is_inside = data.range(..=at).next_back().is_some_and(|(_, end)| at < *end);
        !is_inside && held.block(*block).iter().any(|byte| *byte != 0)
    })
}
