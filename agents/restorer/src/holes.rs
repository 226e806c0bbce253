//! Snapshots that are marked with holes: nobody restores one of them without saying that the holes may be zero.

use std::ops::Range;

use agent::{Failure, Repository};
use schema::damage::Holes;
use schema::messages::FailureKind;
use schema::root::Root;

/// Holes that are named.
const NAMED: usize = 10;

/// Refuses a restore of `part` when some of it is marked as lost. A mark that cannot be read is passed over: the restore
/// itself finds what is lost.
pub(crate) async fn refuse(repository: &Repository, root: &Root, part: &Range<u64>) -> Result<(), Failure> {
    let holes = match repository.read::<Holes>(&root.slot.holes()).await {
        Ok(Some(holes)) => holes,
        Ok(None) => return Ok(()),
        Err(failure) if failure.kind == FailureKind::Store => return Err(failure),
        Err(failure) => {
            tracing::warn!(%failure, "marked holes cannot be read");
            return Ok(());
        }
    };
    match inside(&holes, part) {
        holes if holes.is_empty() => Ok(()),
        holes => Err(Failure::damaged(format!(
            "{} has holes that cannot be read any more, at {}: nothing was changed; give --keep-going to restore the rest \
             (the holes become zero), or take another snapshot",
            root.volume,
            named(&holes)
        ))),
    }
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
