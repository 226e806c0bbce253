//! What a restore overwrites is in its snapback before it is overwritten, at every moment.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use agent::{Context, Stop};
use bytes::BytesMut;
use schema::messages::FailureKind;
use schema::names;
use schema::root::Root;
use schema::stream::{Decoder, Event, Kind};

use super::fixture::{CHUNK, Fixture, noise};
use crate::{Restorer, Target};

const MIB: usize = 1 << 20;

/// What a target holds when a snapback is applied to it, and whether that is complete.
pub fn put_back(target: &[u8], snapback: &Path) -> (Vec<u8>, bool) {
    let (mut bytes, mut whole) = (target.to_vec(), false);
    let (mut decoder, mut buffer) = (Decoder::new(), BytesMut::from(&fs::read(snapback).unwrap()[..]));
    while let Some(event) = decoder.decode(&mut buffer).unwrap() {
        match event {
            Event::Begun(header) => {
                assert_eq!((header.kind, header.size), (Kind::Snapback, target.len() as u64))
            }
            Event::Data { offset, content } => {
                bytes[offset as usize..offset as usize + content.len()].copy_from_slice(&content)
            }
            Event::Zero { offset, len } => bytes[offset as usize..(offset + len) as usize].fill(0),
            Event::Ended(_) => whole = true,
        }
    }
    (bytes, whole)
}

/// A restorer that may be stopped by itself.
fn stoppable(fixture: &Fixture) -> (Restorer, Stop) {
    let stop = Stop::default();
    let context = Context { stop: stop.clone(), ..fixture.context.clone() };
    let (repository, index) = (fixture.repository.clone(), fixture.index.clone());
    (Restorer::new(context, repository, index, fixture.identity.clone(), fixture.settings()), stop)
}

/// What is to come, with holes and chunks that stand there already; and what stood there.
fn contents() -> (Vec<u8>, Vec<u8>) {
    let mut new = noise(1, 6 * MIB + 777);
    new[MIB + 500..2 * MIB].fill(0);
    let mut old = noise(2, new.len());
    old[2 * MIB..3 * MIB].copy_from_slice(&new[2 * MIB..3 * MIB]);
    old[MIB + 3 * CHUNK..MIB + 5 * CHUNK].fill(0);
    old[4 * MIB..4 * MIB + 3 * CHUNK + 5].fill(0);
    (new, old)
}

async fn damaged(fixture: &Fixture) -> Root {
    let root = fixture.volume(&noise(3, 2 * MIB)).await;
    for (_, copy) in fixture.data_copies() {
        fixture.repository.store.delete(&names::pack(copy.pack)).await.unwrap();
    }
    root
}

#[tokio::test]
async fn at_every_moment_the_snapback_puts_back_what_was_there() {
    let fixture = Fixture::encrypted().await;
    let (new, old) = contents();
    let root = fixture.volume(&new).await;
    let (target, kept) = (fixture.path("target"), fixture.path("kept"));
    for stops_at in (0..7).map(|mib| mib * MIB as u64).chain([u64::MAX]) {
        fs::write(&target, &old).unwrap();
        let (restorer, stop) = stoppable(&fixture);
        let looks = AtomicUsize::new(0);
        let look = |progress: crate::Progress| {
            // Threads go on writing meanwhile.
            let now = fs::read(&target).unwrap();
            assert!(put_back(&now, &kept).0 == old, "after {} bytes", progress.done);
            looks.fetch_add(1, Ordering::Relaxed);
            if progress.done >= stops_at {
                stop.raise();
            }
        };
        let restored =
            restorer.restore(root.clone(), Target::new(&target, false).snapback(&kept), look).await;
        // One that is stopped at its end is over.
        assert!(restored.is_ok() || stops_at < u64::MAX, "{restored:?}");
        assert!(restored.is_err() || stops_at > 0);
        assert!(looks.into_inner() > 0);
        let now = fs::read(&target).unwrap();
        assert!(restored.is_err() || now == new);
        assert!(
            put_back(&now, &kept) == (old.clone(), true),
            "the file is whole when the process is not killed"
        );
        let said = restored.map_or_else(|failure| failure.why, |report| report.notes.concat());
        let apply = format!("`lvkeep apply {} {}`", kept.display(), target.display());
        assert!(said.contains(&apply), "{said}");
        fs::remove_file(&kept).unwrap();
    }
}

#[tokio::test]
async fn only_what_differs_is_kept_and_zeroes_take_nothing() {
    let fixture = Fixture::plain().await;
    let (new, old) = contents();
    let root = fixture.volume(&new).await;
    let (target, kept) = (fixture.path("target"), fixture.path("kept"));
    fs::write(&target, &old).unwrap();
    let restorer = fixture.restorer();
    restorer.restore(root.clone(), Target::new(&target, false).snapback(&kept), |_| ()).await.unwrap();
    let len = fs::metadata(&kept).unwrap().len() as usize;
    assert!((4 * MIB..5 * MIB + CHUNK).contains(&len), "{len}");
    // A range of it, on a target of another size.
    let (short, second) = (fixture.path("short"), fixture.path("second"));
    fs::write(&short, &old[..2 * MIB]).unwrap();
    let ranged = Target::new(&short, false).only(Some(777..MIB as u64)).snapback(&second);
    restorer.restore(root, ranged, |_| ()).await.unwrap();
    let now = fs::read(&short).unwrap();
    assert!(now[777..MIB] == new[777..MIB]);
    assert!(put_back(&now, &second) == (old[..2 * MIB].to_vec(), true));
}

#[tokio::test]
async fn a_restore_that_fails_leaves_a_whole_snapback() {
    let fixture = Fixture::plain().await;
    let root = damaged(&fixture).await;
    let (target, kept) = (fixture.path("target"), fixture.path("kept"));
    let old = noise(4, 2 * MIB);
    for keep_going in [false, true] {
        fs::write(&target, &old).unwrap();
        let to = Target::new(&target, false).snapback(&kept).keep_going(keep_going);
        let restored = fixture.restorer().restore(root.clone(), to, |_| ()).await;
        assert_eq!(restored.is_ok(), keep_going);
        assert!(put_back(&fs::read(&target).unwrap(), &kept) == (old.clone(), true));
        fs::remove_file(&kept).unwrap();
    }
}

#[tokio::test]
async fn what_cannot_be_kept_is_not_overwritten() {
    let fixture = Fixture::plain().await;
    let content = noise(1, MIB);
    let root = fixture.volume(&content).await;
    let (target, kept) = (fixture.path("target"), fixture.path("kept"));
    let refused = async |target: &Path, kept: &Path, words: &[&str]| {
        let to = Target::new(target, true).snapback(kept);
        let failure = fixture.restorer().restore(root.clone(), to, |_| ()).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
        assert!(words.iter().all(|words| failure.why.contains(words)), "{failure}");
    };
    refused(&target, &kept, &["nothing to keep"]).await;
    assert!(!target.exists() && !kept.exists());
    for size in [0, MIB - 1, MIB + 1] {
        fs::write(&target, vec![7; size]).unwrap();
        refused(&target, &kept, &[&size.to_string(), "undo"]).await;
        assert!(!kept.exists() && fs::read(&target).unwrap() == vec![7; size]);
    }
    fs::write(&target, vec![7; MIB]).unwrap();
    fs::write(&kept, b"all that is left").unwrap();
    refused(&target, &kept, &["exists already", "another file", "--unfinished", "last"]).await;
    refused(&target, &target, &["exists already"]).await;
    assert_eq!(fs::read(&kept).unwrap(), b"all that is left");
    assert!(fs::read(&target).unwrap() == vec![7; MIB]);
}
