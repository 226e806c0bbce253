//! What stands on a target already is left alone; what differs is fetched, written, or told.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use schema::messages::{FailureKind, Verified};
use schema::root::Root;
use schema::{ChunkId, Domain};

use super::fixture::{CHUNK, Fixture, noise};
use crate::{Differences, Progress, Report, Target};

const MIB: usize = 1 << 20;

/// Ten MiB, of which some are zero.
fn content() -> Vec<u8> {
    let mut content = noise(1, 10 * MIB + 1234);
    content[4 * MIB..6 * MIB].fill(0);
    content
}

async fn onto(fixture: &Fixture, root: &Root, path: &Path, full: bool) -> Report {
    let target = Target::new(path, true).full(full);
    fixture.restorer().restore(root.clone(), target, |_| ()).await.unwrap()
}

fn adds_up(report: &Report) {
    assert_eq!(report.written + report.kept + report.zeroed, report.size);
}

#[tokio::test(start_paused = true)]
async fn only_what_differs_is_fetched_and_written() {
    for encrypted in [false, true] {
        let fixture = match encrypted {
            true => Fixture::encrypted().await,
            false => Fixture::plain().await,
        };
        let content = content();
        let root = fixture.volume(&content).await;
        let path = fixture.path("target");
        let mut other = content.clone();
        // In one chunk, over the edge of two, in what should be zero, and the last byte.
        other[100] ^= 1;
        other[MIB - 1..MIB + 1].fill(7);
        other[5 * MIB] = 9;
        *other.last_mut().unwrap() ^= 1;
        fs::write(&path, &other).unwrap();
        let report = onto(&fixture, &root, &path, false).await;
        assert!(fs::read(&path).unwrap() == content, "encrypted: {encrypted}");
        adds_up(&report);
        assert_eq!(report.written, (3 * CHUNK + 1234) as u64);
        assert_eq!(report.compared, (8 * MIB + 1234) as u64);
        assert!(report.fetched <= (3 * CHUNK + 1234 + 4096) as u64, "{report:?}");

        let again = onto(&fixture, &root, &path, false).await;
        adds_up(&again);
        assert_eq!((again.written, again.fetched, again.requests), (0, 0, 0), "all of it is there");
        let full = onto(&fixture, &root, &path, true).await;
        assert_eq!((full.kept, full.compared, full.written), (0, 0, (8 * MIB + 1234) as u64));
        assert!(fs::read(&path).unwrap() == content);
    }
}

#[tokio::test(start_paused = true)]
async fn a_restore_that_was_cut_off_goes_on() {
    let fixture = Fixture::encrypted().await;
    let content = content();
    let root = fixture.volume(&content).await;
    let path = fixture.path("target");
    // Whole chunks, then half a one, and nothing behind: a killed process leaves the file with its size.
    let there = 7 * MIB + CHUNK / 2;
    let file = File::create(&path).unwrap();
    file.set_len(content.len() as u64).unwrap();
    file.write_all_at(&content[..there], 0).unwrap();
    let report = onto(&fixture, &root, &path, false).await;
    assert!(fs::read(&path).unwrap() == content);
    adds_up(&report);
    assert_eq!(report.kept, (5 * MIB) as u64, "what is whole is kept");
}

/// Windows are compared while others wait to be fetched, by the same threads: neither may wait for the other for ever.
#[tokio::test(start_paused = true)]
#[allow(clippy::disallowed_methods)] // The clock is the test's.
async fn windows_that_differ_everywhere_do_not_wait_for_each_other() {
    let fixture = Fixture::plain().await;
    let window = 256 * MIB;
    let mut content = vec![0; 6 * window];
    let mut old = content.clone();
    for n in 0..6 {
        let from = n * window;
        content[from..from + 24 * MIB].copy_from_slice(&noise(n as u64 + 1, 24 * MIB));
        old[from..from + 24 * MIB].copy_from_slice(&content[from..from + 24 * MIB]);
        // Every other chunk.
        for at in (from..from + 24 * MIB).step_by(2 * CHUNK) {
            old[at] ^= 1;
        }
    }
    let root = fixture.volume(&content).await;
    let path = fixture.path("target");
    fs::write(&path, &old).unwrap();
    // The clock stands while anything is done, and jumps when everybody waits.
    let restoring =
        tokio::time::timeout(std::time::Duration::from_secs(3600), onto(&fixture, &root, &path, false));
    let report = restoring.await.expect("it comes to an end");
    adds_up(&report);
    assert_eq!((report.kept, report.written), (72 * MIB as u64, 72 * MIB as u64));
    assert!(fs::read(&path).unwrap() == content);
}

#[tokio::test(start_paused = true)]
async fn a_smaller_or_larger_file_keeps_what_is_the_same() {
    let fixture = Fixture::plain().await;
    let content = content();
    let root = fixture.volume(&content).await;
    for len in [3 * MIB, 20 * MIB] {
        let path = fixture.path(&format!("{len}"));
        let mut old = content.clone();
        old.resize(len, 0xee);
        fs::write(&path, &old).unwrap();
        let report = onto(&fixture, &root, &path, false).await;
        assert!(fs::read(&path).unwrap() == content, "{len}");
        adds_up(&report);
        assert!(report.kept >= (3 * MIB) as u64, "{report:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_chunk_that_repeats_is_written_where_it_is_not_yet() {
    let fixture = Fixture::plain().await;
    let content = noise(3, CHUNK).repeat(40);
    let root = fixture.volume(&content).await;
    let path = fixture.path("target");
    let mut old = content.clone();
    old[7 * CHUNK..9 * CHUNK].fill(1);
    fs::write(&path, &old).unwrap();
    let report = onto(&fixture, &root, &path, false).await;
    assert!(fs::read(&path).unwrap() == content);
    assert_eq!((report.copied, report.fetched), (2 * CHUNK as u64, 0), "it stands beside");
}

/// In another window than where it stands.
#[tokio::test(start_paused = true)]
async fn what_stands_on_the_target_far_away_is_not_fetched() {
    let fixture = Fixture::plain().await;
    let mut content = vec![0; 520 * MIB];
    content[..4 * MIB].copy_from_slice(&noise(3, 4 * MIB));
    content.copy_within(..4 * MIB, 515 * MIB);
    let root = fixture.volume(&content).await;
    let (first, second) = (fixture.path("first"), fixture.path("second"));
    for path in [&first, &second] {
        let old = File::create(path).unwrap();
        old.set_len(content.len() as u64).unwrap();
        old.write_all_at(&content[..4 * MIB], 0).unwrap();
    }
    let report = onto(&fixture, &root, &first, false).await;
    assert!(fs::read(&first).unwrap() == content);
    assert_eq!((report.kept, report.copied, report.fetched), (4 * MIB as u64, 4 * MIB as u64, 0));

    // What was taken from another target counts, too: it stands there once, and is wanted twice.
    let (path, donor) = (fixture.path("third"), second);
    let target = Target::new(&path, true).after(&donor);
    let report = fixture.restorer().restore(root, target, |_| ()).await.unwrap();
    assert!(fs::read(&path).unwrap() == content);
    assert_eq!((report.copied + report.kept, report.fetched), (8 * MIB as u64, 0), "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn what_differs_is_told_and_nothing_is_changed() {
    let fixture = Fixture::encrypted().await;
    let content = content();
    let root = fixture.volume(&content).await;
    let path = fixture.path("target");
    let restorer = fixture.restorer();
    let compare = || restorer.compare(root.clone(), &path, |_| ());
    // What is behind the end does not count.
    let mut other = content.clone();
    other.extend([1; 5000]);
    fs::write(&path, &other).unwrap();
    assert_eq!(compare().await.unwrap(), Differences::default());
    other[2 * MIB] ^= 1;
    other[4 * MIB + 3] = 1;
    other[content.len() - 1] ^= 1;
    fs::write(&path, &other).unwrap();
    let last = 10 * MIB as u64..content.len() as u64;
    let (chunk, zeroes) = (CHUNK as u64, 4 * MIB as u64..4 * MIB as u64 + (256 << 10));
    let bytes = chunk + (256 << 10) + 1234;
    let first = vec![2 * MIB as u64..2 * MIB as u64 + chunk, zeroes, last];
    let found = compare().await.unwrap();
    assert_eq!((found.bytes, found.first), (bytes, first));
    assert!(fs::read(&path).unwrap() == other, "nothing was written");
    assert_eq!(fixture.sessions().await, Vec::<String>::new());

    fs::write(&path, &content[..MIB]).unwrap();
    let failure = compare().await.unwrap_err();
    assert!(failure.kind == FailureKind::Refused && failure.why.contains("1048576 bytes"), "{failure}");
    fs::remove_file(&path).unwrap();
    assert_eq!(compare().await.unwrap_err().kind, FailureKind::Device);
}

/// Whatever stands beside it on the target, and whatever its chunks hold beside it.
#[tokio::test(start_paused = true)]
async fn only_a_range_is_compared() {
    let fixture = Fixture::encrypted().await;
    let content = content();
    let root = fixture.volume(&content).await;
    let (path, end) = (fixture.path("target"), content.len());
    let restorer = fixture.restorer();
    let ranges = [100..101, CHUNK - 1..3 * CHUNK + 1, 3 * MIB + 5..7 * MIB + 9, 5 * MIB + 1..5 * MIB + 2];
    for range in ranges.into_iter().chain([end - 1..end, 0..end, 7..7]) {
        let mut there = vec![0xee; range.end];
        there[range.clone()].copy_from_slice(&content[range.clone()]);
        let part = range.start as u64..range.end as u64;
        let compare = |there: &[u8]| {
            fs::write(&path, there).unwrap();
            restorer.compare_range(root.clone(), &path, part.clone(), |_| ())
        };
        assert_eq!(compare(&there).await.unwrap(), Differences::default(), "{range:?}");
        // Its first and its last byte, with what is told of chunks as a whole, or of a part of one.
        for at in [range.start, range.end.saturating_sub(1)].into_iter().filter(|_| !range.is_empty()) {
            let mut other = there.clone();
            other[at] ^= 1;
            let found = compare(&other).await.unwrap();
            let [told] = found.first.as_slice() else { panic!("{range:?}, {at}: {found:?}") };
            assert!(told.contains(&(at as u64)) && part.start <= told.start && told.end <= part.end);
            assert_eq!(found.bytes, told.end - told.start);
        }
    }
    let compare = |range| restorer.compare_range(root.clone(), &path, range, |_| ());
    let refused = compare(5..end as u64 + 1).await.unwrap_err();
    assert!(refused.why.contains(&end.to_string()), "{refused}");
    fs::write(&path, &content[..MIB]).unwrap();
    let refused = compare(5..MIB as u64 + 1).await.unwrap_err();
    assert!(refused.why.contains("1048576 bytes"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_range_that_was_restored_is_read_again() {
    let fixture = Fixture::encrypted().await;
    let root = fixture.volume(&noise(1, MIB)).await;
    let path = fixture.path("target");
    fs::write(&path, vec![0xee; MIB / 2]).unwrap();
    let range = CHUNK as u64 / 2..5 * CHUNK as u64 + 1;
    let target = Target::new(&path, true).only(Some(range)).read_again(true);
    let report = fixture.restorer().restore(root, target, |_| ()).await.unwrap();
    assert_eq!(report.verified, Some(Verified::Equal));
}

#[tokio::test(start_paused = true)]
async fn a_file_that_becomes_shorter_is_said_to() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, MIB)).await;
    let path = fixture.path("target");
    for (len, is_said) in [(MIB / 2, false), (MIB, false), (MIB + 5, true)] {
        fs::write(&path, vec![0xee; len]).unwrap();
        let notes = onto(&fixture, &root, &path, false).await.notes;
        assert_eq!(notes.len(), usize::from(is_said), "{notes:?}");
        assert!(!is_said || notes[0].contains("from 1048581 to 1048576 bytes"), "{notes:?}");
    }
}

/// Whoever cannot read the snapshot after all still has what stood behind its end.
#[tokio::test(start_paused = true)]
async fn a_longer_file_is_cut_off_when_everything_else_is_restored() {
    let fixture = Fixture::plain().await;
    let content = noise(1, 4 * MIB);
    let root = fixture.volume(&content).await;
    let (path, old) = (fixture.path("target"), noise(2, 5 * MIB + 777));
    fs::write(&path, &old).unwrap();
    let all = fixture.table.lock().unwrap().clone();
    let restore = async || {
        let target = Target::new(&path, true);
        fixture.restorer().restore(root.clone(), target, |_| ()).await
    };
    // Nothing is read, and then all but the last chunk.
    let last = fixture.repository.key.chunk_ids().id(Domain::Data, &content[4 * MIB - CHUNK..]);
    let everything: Vec<ChunkId> = fixture.data_copies().into_iter().map(|(id, _)| id).collect();
    for lost in [everything, vec![last]] {
        fixture.table.lock().unwrap().retain(|id, _| !lost.contains(id));
        let failure = restore().await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Damaged, "{failure}");
        assert!(!failure.why.contains("was cut off"), "{failure}");
        let now = fs::read(&path).unwrap();
        assert_eq!(now.len(), old.len());
        assert!(now[4 * MIB - CHUNK..] == old[4 * MIB - CHUNK..]);
        *fixture.table.lock().unwrap() = all.clone();
    }
    let report = restore().await.unwrap();
    assert!(fs::read(&path).unwrap() == content);
    let told = format!("was cut off from {} to {} bytes", old.len(), content.len());
    assert!(report.notes.len() == 1 && report.notes[0].contains(&told), "{:?}", report.notes);
}

/// A file of which nothing was overwritten is as it was, also where it would have become longer.
#[tokio::test(start_paused = true)]
async fn a_shorter_file_is_as_long_as_it_was_when_nothing_could_be_read() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, 4 * MIB)).await;
    let (path, old) = (fixture.path("target"), noise(2, 3 * MIB + 77));
    fs::write(&path, &old).unwrap();
    fixture.table.lock().unwrap().clear();
    let failure =
        fixture.restorer().restore(root.clone(), Target::new(&path, true), |_| ()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Damaged, "{failure}");
    assert!(fs::read(&path).unwrap() == old);
}

#[tokio::test(start_paused = true)]
async fn ranges_are_handed_on_in_order() {
    let fixture = Fixture::encrypted().await;
    let mut content = noise(5, 3 * MIB);
    content.resize(130 * MIB, 0);
    content.extend(noise(6, MIB + 77));
    let root = fixture.volume(&content).await;
    let end = content.len();
    for range in
        [0..end, 0..0, 1000..1001, CHUNK - 1..CHUNK + 1, 2 * MIB..129 * MIB, 64 * MIB - 5..end, end - 1..end]
    {
        let (out, mut parts) = tokio::sync::mpsc::channel(1);
        let restorer = fixture.restorer();
        let bytes = range.start as u64..range.end as u64;
        let (report, read) = tokio::join!(restorer.read(root.clone(), bytes, out, |_| ()), async {
            let mut all = Vec::new();
            while let Some(part) = parts.recv().await {
                all.extend(part);
            }
            all
        });
        assert!(read == content[range.clone()], "{range:?}");
        let report = report.unwrap();
        assert!(report.fetched <= (range.len() + 3 * CHUNK) as u64, "{range:?}: {report:?}");
        assert_eq!(report.size, range.len() as u64);
    }
    // Whoever has seen enough ends it, and no session stays.
    for seen in [0, 1] {
        let (out, mut parts) = tokio::sync::mpsc::channel(1);
        let restorer = fixture.restorer();
        let (read, ()) = tokio::join!(restorer.read(root.clone(), 0..end as u64, out, |_| ()), async {
            for _ in 0..seen {
                assert_eq!(parts.recv().await.unwrap().len(), 2 * MIB, "of little memory");
            }
            drop(parts);
        });
        read.unwrap();
        assert_eq!(fixture.sessions().await, Vec::<String>::new());
    }
    let (out, _parts) = tokio::sync::mpsc::channel(1);
    let refused = fixture.restorer().read(root, 5..end as u64 + 1, out, |_| ()).await.unwrap_err();
    assert!(refused.why.contains(&end.to_string()), "{refused}");
    assert_eq!(fixture.sessions().await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_leaf_of_the_map_is_read_once_for_all_parts_in_it() {
    let fixture = Fixture::plain().await;
    let content = noise(7, 20 * MIB);
    let root = fixture.volume(&content).await;
    let (out, mut parts) = tokio::sync::mpsc::channel(1);
    let (restorer, before) = (fixture.restorer(), fixture.reads.load(Ordering::Relaxed));
    let (report, count) = tokio::join!(restorer.read(root, 0..content.len() as u64, out, |_| ()), async {
        let mut count = 0;
        while parts.recv().await.is_some() {
            count += 1;
        }
        count
    });
    assert_eq!(count, 10);
    assert_eq!(fixture.reads.load(Ordering::Relaxed) - before, report.unwrap().requests + 1);
}

#[tokio::test(start_paused = true)]
async fn only_a_range_is_restored() {
    let fixture = Fixture::encrypted().await;
    let content = content();
    let root = fixture.volume(&content).await;
    let stale = vec![0xee; 11 * MIB];
    let end = content.len();
    for (n, range) in
        [100..101, CHUNK - 1..3 * CHUNK + 1, 3 * MIB + 5..7 * MIB + 9, 5 * MIB + 1..5 * MIB + 2, end - 1..end]
            .into_iter()
            .enumerate()
    {
        // Into what is longer than the snapshot, what ends with the range, and what is not there yet.
        for len in [stale.len(), range.end, 0] {
            let path = fixture.path(&format!("{n}-{len}"));
            if len > 0 {
                fs::write(&path, &stale[..len]).unwrap();
            }
            let only = Some(range.start as u64..range.end as u64);
            for done in [false, true] {
                let target = Target::new(&path, true).only(only.clone());
                let report = fixture.restorer().restore(root.clone(), target, |_| ()).await.unwrap();
                let mut expected = match len {
                    0 => vec![0; end],
                    len => stale[..len].to_vec(),
                };
                expected[range.clone()].copy_from_slice(&content[range.clone()]);
                assert!(fs::read(&path).unwrap() == expected, "{range:?} into {len} bytes");
                adds_up(&report);
                assert_eq!(report.size, range.len() as u64);
                assert!(!done || report.written <= 2 * CHUNK as u64, "whole chunks stood there: {report:?}");
            }
        }
    }
    for (range, len, why) in [
        (0..end + 1, end + 1, "none from 0 to"),
        (5..5, end, "none from 5 to 5"),
        (MIB..2 * MIB, 2 * MIB - 1, "ends before 2097152"),
    ] {
        let path = fixture.path("refused");
        fs::write(&path, &stale[..len]).unwrap();
        let target = Target::new(&path, true).only(Some(range.start as u64..range.end as u64));
        let refused = fixture.restorer().restore(root.clone(), target, |_| ()).await.unwrap_err();
        assert!(refused.kind == FailureKind::Refused && refused.why.contains(why), "{refused}");
        assert!(fs::read(&path).unwrap() == stale[..len]);
    }
}

#[tokio::test(start_paused = true)]
async fn further_targets_take_from_the_first_what_it_holds() {
    let fixture = Fixture::encrypted().await;
    let content = content();
    let root = fixture.volume(&content).await;
    let first = fixture.path("first");
    onto(&fixture, &root, &first, false).await;
    let after = |path: &Path, donor: &Path| {
        let target = Target::new(path, true).after(donor);
        let (restorer, root) = (fixture.restorer(), root.clone());
        async move { restorer.restore(root, target, |_| ()).await.unwrap() }
    };
    let data = (8 * MIB + 1234) as u64;
    for stale in [false, true] {
        let path = fixture.path(&format!("further-{stale}"));
        if stale {
            fs::write(&path, vec![0xee; 3 * MIB]).unwrap();
        }
        let report = after(&path, &first).await;
        assert!(fs::read(&path).unwrap() == content);
        assert_eq!(report.written + report.kept + report.copied + report.zeroed, report.size);
        assert_eq!((report.copied + report.kept, report.fetched), (data, 0), "{report:?}");
    }
    // What the donor lacks is fetched, and what it has too much is not believed.
    let mut damaged = content.clone();
    damaged[MIB] ^= 1;
    damaged[4 * MIB + 5] = 1;
    fs::write(&first, &damaged).unwrap();
    let path = fixture.path("after-damage");
    let report = after(&path, &first).await;
    assert!(fs::read(&path).unwrap() == content);
    assert_eq!(report.written, CHUNK as u64, "{report:?}");
    fs::remove_file(&first).unwrap();
    let path = fixture.path("after-nothing");
    assert_eq!(after(&path, &first).await.written, data);
    assert!(fs::read(&path).unwrap() == content);
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_reads_as_zero_is_compared_step_by_step() {
    let fixture = Fixture::plain().await;
    let len = 520 * MIB;
    let root = fixture.volume(&vec![0; len]).await;
    let path = fixture.path("target");
    let file = File::create(&path).unwrap();
    file.set_len(len as u64).unwrap();
    file.write_all_at(&[1], (len - 1) as u64).unwrap();
    let told = std::sync::Mutex::new(Vec::new());
    let progress = |now: Progress| told.lock().unwrap().push(now.done);
    let found = fixture.restorer().compare(root, &path, progress).await.unwrap();
    assert_eq!(found.first.last().unwrap().end, len as u64, "{found:?}");
    let mut told = told.into_inner().unwrap();
    told.dedup();
    assert_eq!(told.len(), 4, "at the beginning and after each step: {told:?}");
}
