//! A snapshot of the volume in the second repository that an incremental copy stands on.
//!
//! It is visible to the session, so that what stands in its map needs no further question, but for what is recorded as
//! damaged. A map that cannot be read spares no work, and stands in nobody's way.

use std::collections::{BTreeMap, BTreeSet};

use agent::Failure;
use agent::maps::MapReader;
use agent::sessions::OpenSession;
use schema::ChunkId;
use schema::map::{Content, Leaf, Piece};
use schema::root::Root;

use crate::{Copier, by_origin};

/// What is there, and where names differ, the snapshot that it is a copy of.
pub(crate) struct Base {
    there: MapReader,
    here: Option<MapReader>,
    /// Chunks of the second repository that have no copy to rely on.
    lost: BTreeSet<ChunkId>,
}

/// The snapshot to stand on: the last one before `root`, or else the first one after it, of those that are of use.
pub(crate) fn choose<'a>(
    visible: &'a [Root],
    root: &Root,
    is_of_use: impl Fn(&Root) -> bool,
) -> Option<&'a Root> {
    let of_use = || visible.iter().filter(|one| is_of_use(one));
    let order = |one: &&Root| (one.generation, one.slot);
    let before = of_use().filter(|one| one.generation <= root.generation).max_by_key(order);
    before.or_else(|| of_use().min_by_key(order))
}

impl Base {
    /// A base for the copy of `root`, and its root in the second repository. A listing had what is visible: of what is
    /// chosen the session itself asks whether it still is.
    pub async fn find(
        copier: &Copier,
        session: &OpenSession,
        mut visible: Vec<Root>,
        root: &Root,
        lost: BTreeSet<ChunkId>,
    ) -> Result<Option<(Self, Root)>, Failure> {
        let (from, to) = (&copier.from, &copier.to);
        let source = |there: &Root| copier.sources.get(&by_origin(there, &to.repository));
        let is_of_use =
            |there: &Root| copier.is_verbatim() || source(there).is_some_and(|s| s.size == there.size);
        let there = loop {
            let Some(there) = choose(&visible, root, is_of_use).cloned() else { return Ok(None) };
            if session.sees(there.slot).await? {
                break there;
            }
            visible.retain(|one| one.slot != there.slot);
        };
        let here = match copier.is_verbatim() {
            true => None,
            false => source(&there).cloned(),
        };
        let here = here.map(|here| MapReader::new(from.repository.clone(), from.index.clone(), here));
        let map = MapReader::new(to.repository.clone(), to.index.clone(), there.clone())?;
        Ok(Some((Self { there: map, here: here.transpose()?, lost }, there)))
    }

    /// The leaf of the second repository that stands for this one of the first, if it stands at the same place in the base.
    pub async fn leaf(&self, number: u64, leaf: ChunkId) -> Option<ChunkId> {
        if number >= self.there.geometry().leaves() {
            return None;
        }
        let same = match &self.here {
            Some(here) => readable(here.leaf_id(number).await).flatten() == Some(leaf),
            None => true,
        };
        let there = if same { readable(self.there.leaf_id(number).await).flatten() } else { None };
        let there = there.filter(|there| self.here.is_some() || *there == leaf)?;
        self.is_reliable(number, there).await.then_some(there)
    }

    /// Whether nothing of a leaf is lost. Reads it only when anything is.
    async fn is_reliable(&self, number: u64, leaf: ChunkId) -> bool {
        if self.lost.is_empty() {
            return true;
        }
        let is_lost = |piece: &Piece| matches!(piece.content, Content::Chunk(id) if self.lost.contains(&id));
        let read = async || readable(self.there.leaf(number).await);
        !self.lost.contains(&leaf) && read().await.is_some_and(|leaf| !leaf.pieces().iter().any(is_lost))
    }

    /// What the chunks of a leaf are called in the second repository, where that is otherwise than in the first.
    pub async fn names(&self, number: u64) -> BTreeMap<ChunkId, ChunkId> {
        let Some(here) = &self.here else { return BTreeMap::new() };
        if number >= self.there.geometry().leaves() {
            return BTreeMap::new();
        }
        match (readable(here.leaf(number).await), readable(self.there.leaf(number).await)) {
            (Some(here), Some(there)) => {
                let mut pairs = pairs(&here, &there);
                pairs.retain(|_, there| !self.lost.contains(there));
                pairs
            }
            _ => BTreeMap::new(),
        }
    }
}

/// The chunks of two leaves that are cut alike, by their places; none of leaves that are not.
fn pairs(here: &Leaf, there: &Leaf) -> BTreeMap<ChunkId, ChunkId> {
    let (here, there) = (here.pieces(), there.pieces());
    let alike = here.len() == there.len()
        && here.iter().zip(there).all(|(a, b)| {
            let same_kind = matches!(a.content, Content::Zero) == matches!(b.content, Content::Zero);
            a.len == b.len && same_kind
        });
    if !alike {
        return BTreeMap::new();
    }
    let pair = |(a, b): (&Piece, &Piece)| match (a.content, b.content) {
        (Content::Chunk(here), Content::Chunk(there)) => Some((here, there)),
        _ => None,
    };
    here.iter().zip(there).filter_map(pair).collect()
}

fn readable<T>(result: Result<T, Failure>) -> Option<T> {
    result.inspect_err(|failure| tracing::warn!(%failure, "the map of an earlier copy cannot be read")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(len: u32, id: u8) -> Piece {
        let id = ChunkId::parse(&[[1; 1].as_slice(), &[id; 32]].concat().try_into().expect("33 bytes"));
        Piece { len, content: Content::Chunk(id.expect("a data chunk")) }
    }

    fn leaf(pieces: &[Piece]) -> Leaf {
        let span = pieces.iter().map(|piece| u64::from(piece.len)).sum();
        Leaf::new(span, pieces.iter().copied()).expect("a leaf")
    }

    #[test]
    fn only_leaves_that_are_cut_alike_tell_names() {
        let zero = Piece { len: 4096, content: Content::Zero };
        let here = leaf(&[chunk(4096, 1), zero, chunk(8192, 2)]);
        for (there, names) in [
            (leaf(&[chunk(4096, 3), zero, chunk(8192, 4)]), 2),
            (leaf(&[chunk(4096, 3), zero, chunk(4096, 4), chunk(4096, 5)]), 0),
            (leaf(&[chunk(4096, 3), chunk(4096, 6), chunk(8192, 4)]), 0),
            (leaf(&[chunk(8192, 3), zero, chunk(4096, 4)]), 0),
        ] {
            assert_eq!(pairs(&here, &there).len(), names, "{there:?}");
        }
    }
}
