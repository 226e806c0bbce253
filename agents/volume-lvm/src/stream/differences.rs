//! Where two files or devices differ, by reading both of them whole: for what no snapshot tracks.

use std::sync::Arc;

use agent::buffer::{Buffer, Pool};
use agent::{Failure, Stop};

use super::pieces::PIECE;
use super::source::Source;
use super::{blocking, interrupted};
use crate::ranges::Ranges;

/// What is compared at once, in bytes.
const UNIT: usize = 64 << 10;

/// The ranges of `new` in which it differs from `old`; what only `new` has differs.
pub async fn between(old: Arc<Source>, new: Arc<Source>, stop: Stop) -> Result<Ranges, Failure> {
    let pool = Pool::new(2, PIECE as usize);
    let buffers = [pool.acquire().await, pool.acquire().await];
    blocking(move || compare(&old, &new, buffers, &stop)).await
}

fn compare(old: &Source, new: &Source, buffers: [Buffer; 2], stop: &Stop) -> Result<Ranges, Failure> {
    let [mut ours, mut theirs] = buffers;
    let mut found = Ranges::new();
    let both = old.size().min(new.size());
    let mut at = 0;
    while at < both {
        if stop.is_raised() {
            return Err(interrupted());
        }
        let len = (both - at).min(PIECE) as usize;
        old.read(at, ours.bytes_mut(), len)?;
        new.read(at, theirs.bytes_mut(), len)?;
        for unit in differing(&ours.as_ref()[..len], &theirs.as_ref()[..len], UNIT) {
            found.push(at + unit.start as u64..at + unit.end as u64);
        }
        at += len as u64;
    }
    found.push(both..new.size());
    Ok(found)
}

/// The units in which two equally long slices differ, neighbours joined.
pub(super) fn differing(a: &[u8], b: &[u8], unit: usize) -> Vec<std::ops::Range<usize>> {
    let mut found: Vec<std::ops::Range<usize>> = Vec::new();
    for (number, (a, b)) in a.chunks(unit).zip(b.chunks(unit)).enumerate() {
        if a == b {
            continue;
        }
        let range = number * unit..number * unit + a.len();
        match found.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => found.push(range),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_that_differ_are_joined() {
        let mut b = [0; 26];
        for (at, expected) in [(0, "[0..4]"), (5, "[0..8]"), (25, "[0..8, 24..26]")] {
            b[at] = 1;
            assert_eq!(format!("{:?}", differing(&[0; 26], &b, 4)), expected);
        }
        assert_eq!(differing(&[], &[], 4), []);
    }

    #[tokio::test]
    async fn files_differ_where_they_do_and_behind_the_end_of_the_shorter() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            Arc::new(Source::open(name, &path).unwrap())
        };
        let mut bytes = vec![7; 3 << 20];
        let old = file("old", &bytes);
        bytes[1 << 20] = 8;
        bytes.extend([0; 100]);
        let new = file("new", &bytes);
        let found = between(old.clone(), new.clone(), Stop::default()).await.unwrap();
        let changed = (1 << 20)..(1 << 20) + UNIT as u64;
        assert_eq!(found.into_vec(), [changed.clone(), 3 << 20..(3 << 20) + 100]);
        let found = between(new, old, Stop::default()).await.unwrap();
        assert_eq!(found.iter().next(), Some(changed));
        assert_eq!(found.len(), 1);
    }
}
