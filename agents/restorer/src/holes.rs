//! Snapshots that are marked with holes: nobody restores one of them without saying that the holes may be zero, unless
//! backups have healed it since, as far as can be known without reading it.

use std::collections::BTreeMap;
use std::ops::Range;

use agent::damage::Damages;
use agent::maps::MapReader;
use agent::{Failure, Repository};
use schema::damage::Holes;
use schema::limits::LEAF_SPAN;
use schema::map::{Content, Geometry};
use schema::messages::{Copy, FailureKind};
use schema::{ChunkId, PackId};

/// Holes that are named.
const NAMED: usize = 10;
/// Leaves of the map that are looked at to see whether holes are healed, 64 MiB of the volume each. Of more, a repair
/// knows.
const LOOKED_AT_MAX: usize = 1 << 10;

/// Refuses a restore of `part` when some of it is marked as lost and not seen to be healed. A mark that cannot be read is
/// passed over: the restore itself finds what is lost.
pub(crate) async fn refuse(
    repository: &Repository,
    map: &MapReader,
    part: &Range<u64>,
) -> Result<(), Failure> {
    let root = map.root();
    let holes = match repository.read::<Holes>(&root.slot.holes()).await {
        Ok(Some(holes)) => holes,
        Ok(None) => return Ok(()),
        Err(failure) if failure.kind == FailureKind::Store => return Err(failure),
        Err(failure) => {
            tracing::warn!(%failure, "marked holes cannot be read");
            return Ok(());
        }
    };
    let marked = inside(&holes, part);
    if marked.is_empty() {
        return Ok(());
    }
    let seen = match holes.is_unrecorded {
        true => Seen::Unrecorded,
        false => look(repository, map, &marked).await?,
    };
    let repair = match seen {
        Seen::Whole => {
            tracing::info!(volume = root.volume, slot = %root.slot, "what was marked as lost is there by now");
            return Ok(());
        }
        Seen::Lacking => "`lvkeep repair`",
        // Only who has read everything takes such a mark away.
        Seen::Unrecorded => "`lvkeep repair --read-data`",
    };
    Err(Failure::damaged(format!(
        "{} was marked by a repair: it has holes that could not be read any more, at {}. Nothing was changed. Where backups \
         have healed it since, {repair} takes the mark away; --keep-going restores the rest (the holes become zero), and \
         another snapshot may be whole",
        root.volume,
        named(&marked)
    )))
}

/// What is seen of marked holes.
enum Seen {
    /// All of it is there.
    Whole,
    /// Something is not, or was not looked at.
    Lacking,
    /// What is recorded nowhere, or in a record that cannot be read, looks whole.
    Unrecorded,
}

/// Looks whether all of these ranges are known to be there: the map is read, and every chunk has a copy in a pack that is
/// listed, in which it is not recorded as damaged.
async fn look(repository: &Repository, map: &MapReader, holes: &[(u64, u64)]) -> Result<Seen, Failure> {
    let Some(leaves) = leaves(holes, map.root().size) else { return Ok(Seen::Lacking) };
    let damages = Damages::load(repository).await?;
    if damages.is_incomplete() {
        return Ok(Seen::Unrecorded);
    }
    let sizes: BTreeMap<PackId, u64> = repository.list_packs().await?.into_iter().collect();
    let is_there = |id: &ChunkId, copies: &[Copy]| copies.iter().any(|copy| damages.spares(id, copy, &sizes));
    for (number, ranges) in leaves {
        let leaf = match map.leaf(number).await {
            Ok(leaf) => leaf,
            Err(failure) if is_away(repository, &failure).await => return Err(failure),
            // What is not given while others are cannot be restored either, and what is lost of it is known.
            Err(_) => return Ok(Seen::Lacking),
        };
        let touches = |at: u64, len: u32| {
            ranges.iter().any(|range| at < range.end && at + u64::from(len) > range.start)
        };
        let pieces = leaf.located(map.geometry().leaf_range(number).start);
        let ids: Vec<ChunkId> = pieces
            .filter_map(|(at, piece)| match piece.content {
                Content::Chunk(id) if touches(at, piece.len) => Some(id),
                _ => None,
            })
            .collect();
        let copies = map.locate(&ids).await?;
        if !ids.iter().zip(copies).all(|(id, copies)| is_there(id, &copies)) {
            return Ok(Seen::Lacking);
        }
    }
    Ok(Seen::Whole)
}

/// Whether whoever fails so may be well in a while: the index, or a store that gives nothing at all.
async fn is_away(repository: &Repository, failure: &Failure) -> bool {
    failure.retry && (failure.kind != FailureKind::Store || !repository.gives_others().await)
}

/// The leaves of a volume of this size in which there are holes, with these; none when they are too many to look at.
fn leaves(holes: &[(u64, u64)], size: u64) -> Option<BTreeMap<u64, Vec<Range<u64>>>> {
    let mut leaves: BTreeMap<u64, Vec<Range<u64>>> = BTreeMap::new();
    for (start, len) in holes {
        let range = *start..start.saturating_add(*len).min(size);
        for leaf in Geometry::leaf_of(range.start)..range.end.div_ceil(LEAF_SPAN) {
            leaves.entry(leaf).or_default().push(range.clone());
            if leaves.len() > LOOKED_AT_MAX {
                return None;
            }
        }
    }
    Some(leaves)
}

/// The holes that touch a part.
fn inside(holes: &Holes, part: &Range<u64>) -> Vec<(u64, u64)> {
    let touches = |(start, len): &&(u64, u64)| *start < part.end && start.saturating_add(*len) > part.start;
    holes.ranges.iter().filter(touches).copied().collect()
}

fn named(holes: &[(u64, u64)]) -> String {
    let one = |(start, len): &(u64, u64)| format!("{start}+{len}");
    let named: Vec<String> = holes.iter().take(NAMED).map(one).collect();
    match holes.len().saturating_sub(NAMED) {
        0 => named.join(", "),
        more => format!("{}, and {more} more (`lvkeep show` has them)", named.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schema::names::Slot;
    use schema::{SessionId, VolumeKey};

    #[test]
    fn each_leaf_is_looked_at_once_however_many_holes_it_has() {
        let many: Vec<(u64, u64)> = (0..100_000).map(|n| (n * 4096, 2048)).collect();
        let found = leaves(&many, 7 * LEAF_SPAN).unwrap();
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), (0..7).collect::<Vec<_>>());
        assert_eq!(found.values().map(Vec::len).sum::<usize>(), 100_000);
        let across = [(LEAF_SPAN - 1, 2), (3 * LEAF_SPAN, u64::MAX)];
        assert_eq!(leaves(&across, 4 * LEAF_SPAN + 5).unwrap().into_keys().collect::<Vec<_>>(), [0, 1, 3, 4]);
        let max = LOOKED_AT_MAX as u64;
        assert!(leaves(&[(0, max * LEAF_SPAN)], u64::MAX).is_some());
        assert!(leaves(&[(0, max * LEAF_SPAN + 1)], u64::MAX).is_none());
    }

    #[test]
    fn only_holes_of_the_part_count_and_the_first_are_named() {
        let slot = Slot { volume: VolumeKey::from_bytes([1; 16]), session: SessionId::from_bytes([2; 16]) };
        let ranges = (0..20).map(|n| (n * 100, 10)).collect();
        let holes = Holes { version: 1, slot, found_ms: 0, ranges, is_unrecorded: false };
        assert_eq!(inside(&holes, &(10..100)), []);
        assert_eq!(inside(&holes, &(109..201)), [(100, 10), (200, 10)]);
        assert_eq!(named(&[(0, 10), (100, 10)]), "0+10, 100+10");
        assert!(named(&inside(&holes, &(0..2000))).ends_with("900+10, and 10 more (`lvkeep show` has them)"));
    }
}
