//! Snapbacks: applied in reverse order they go back in time, whatever happened while they were made.

use proptest::prelude::*;
use schema::lvmsync;
use schema::messages::FailureKind;
use schema::stream::Format;

use crate::stream::apply::Apply;
use crate::stream::testing::{Volumes, changed, content};

const SIZE: usize = 2 << 20;

/// Changes from one state to the next.
async fn step(volumes: &Volumes, old: &[u8], new: &[u8], format: Format) -> Vec<u8> {
    volumes.write("old", old);
    volumes.write("new", new);
    volumes.stream(&volumes.sending("old", "new"), format).await.0
}

#[tokio::test]
async fn snapbacks_in_reverse_order_go_back_in_time() {
    for format in [Format::Native, Format::Lvmsync] {
        let volumes = Volumes::new();
        let mut states = vec![content(SIZE, 1)];
        volumes.write("target", &states[0]);
        for round in 0..5 {
            let now = changed(&states[round], round as u64);
            let stream = step(&volumes, &states[round], &now, format).await;
            let apply = volumes.keeping(&format!("back-{round}"), format);
            let applied = volumes.run(&apply, &stream, "target").await.unwrap();
            assert!(volumes.read("target") == now);
            let back = volumes.read(&format!("back-{round}"));
            assert!(
                applied.saved > 0 && applied.saved < SIZE as u64,
                "only what differs is kept: {applied:?}"
            );
            assert_eq!(back.starts_with(lvmsync::GREETING), format == Format::Lvmsync);
            states.push(now);
        }
        for round in (0..5).rev() {
            let back = volumes.read(&format!("back-{round}"));
            volumes.run(&volumes.apply(), &back, "target").await.unwrap();
            assert!(volumes.read("target") == states[round], "{format:?}, before round {round}");
        }
    }
}

#[tokio::test]
async fn the_snapback_of_a_rewind_goes_forward_again() {
    let volumes = Volumes::new();
    let (old, new) = (content(SIZE, 1), changed(&content(SIZE, 1), 9));
    volumes.write("target", &old);
    let stream = step(&volumes, &old, &new, Format::Native).await;
    volumes.run(&volumes.keeping("back", Format::Native), &stream, "target").await.unwrap();
    volumes.run(&volumes.keeping("forth", Format::Native), &volumes.read("back"), "target").await.unwrap();
    assert!(volumes.read("target") == old);
    volumes.run(&volumes.apply(), &volumes.read("forth"), "target").await.unwrap();
    assert!(volumes.read("target") == new);
}

#[tokio::test]
async fn lvmsync_reads_our_snapback_by_its_own_format() {
    let volumes = Volumes::new();
    volumes.write("target", &[7; 256 << 10]);
    let mut stream = lvmsync::GREETING.to_vec();
    stream.extend(lvmsync::head(128 << 10, 4));
    stream.extend(b"now!");
    volumes.run(&volumes.keeping("back", Format::Lvmsync), &stream, "target").await.unwrap();
    let mut expected = b"lvmsync PROTO[3]\n".to_vec();
    expected.extend([0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 4, 7, 7, 7, 7]);
    assert_eq!(volumes.read("back"), expected);
}

#[tokio::test]
async fn a_file_that_exists_is_never_overwritten() {
    let volumes = Volumes::new();
    let (old, new) = (content(SIZE, 1), changed(&content(SIZE, 1), 4));
    volumes.write("target", &old);
    let stream = step(&volumes, &old, &new, Format::Native).await;
    let other = step(&volumes, &old, &changed(&old, 5), Format::Native).await;
    volumes.run(&volumes.keeping("back", Format::Native), &stream, "target").await.unwrap();
    let back = volumes.read("back");
    volumes.write("letter", b"Dear Sir or Madam");
    volumes.write("changes", &stream);
    std::os::unix::fs::symlink("/dev/null", volumes.path("null")).unwrap();
    for (name, stream, format, words) in [
        ("back", &stream, Format::Native, "is complete"),
        ("back", &other, Format::Native, "of another stream"),
        ("back", &stream, Format::Lvmsync, "exists already"),
        ("letter", &stream, Format::Native, "is no snapback"),
        ("changes", &stream, Format::Native, "is no snapback"),
        ("null", &stream, Format::Native, "no regular file"),
    ] {
        let why = volumes.run(&volumes.keeping(name, format), stream, "target").await.unwrap_err();
        assert_eq!(why.kind, FailureKind::Refused, "{why}");
        assert!(why.to_string().contains(words), "{why}");
    }
    assert!(volumes.read("back") == back && volumes.read("changes") == stream);
    assert!(volumes.read("target") == new, "and nothing was applied");
}

#[tokio::test]
async fn an_empty_file_may_be_given_as_mktemp_makes_it() {
    let volumes = Volumes::new();
    let (old, new) = (content(SIZE, 1), changed(&content(SIZE, 1), 4));
    volumes.write("target", &old);
    volumes.write("back", b"");
    let stream = step(&volumes, &old, &new, Format::Native).await;
    volumes.run(&volumes.keeping("back", Format::Native), &stream, "target").await.unwrap();
    volumes.run(&volumes.apply(), &volumes.read("back"), "target").await.unwrap();
    assert!(volumes.read("target") == old);
}

#[tokio::test]
async fn a_complete_snapback_adds_nothing_for_a_sender_that_came_back() {
    let volumes = Volumes::new();
    let (old, new) = (content(SIZE, 1), changed(&content(SIZE, 1), 4));
    volumes.write("target", &old);
    let stream = step(&volumes, &old, &new, Format::Native).await;
    let keeping = volumes.keeping("back", Format::Native);
    volumes.run(&keeping, &stream, "target").await.unwrap();
    let back = volumes.read("back");
    let again = Apply { answers: true, reconnected: true, ..keeping };
    volumes.run(&again, &stream, "target").await.unwrap();
    assert!(volumes.read("back") == back);
    // Something that it does not hold is about to be overwritten: the target is not what it was.
    volumes.write("target", &content(SIZE, 77));
    let why = volumes.run(&again, &stream, "target").await.unwrap_err();
    assert!(why.to_string().contains("is complete, and holds nothing of offset"), "{why}");
    assert!(volumes.read("target") == content(SIZE, 77), "nothing is overwritten that is not kept");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]

    /// An apply that is cut off anywhere, with a snapback that is torn on top, is taken back exactly; and gone on with,
    /// it ends as if nothing had happened, with a snapback of the state before it all.
    #[test]
    fn a_snapback_holds_whatever_was_overwritten(seed in 0u64..1000, cut in 0.0f64..1.0, goes_on: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let volumes = Volumes::new();
            let old = content(SIZE, seed);
            let new = changed(&old, seed);
            volumes.write("target", &old);
            let stream = step(&volumes, &old, &new, Format::Native).await;
            let cut = (stream.len() as f64 * cut) as usize;
            let keeping = volumes.keeping("back", Format::Native);
            let broken = volumes.run(&keeping, &stream[..cut], "target").await;
            assert!(broken.is_err());
            if !volumes.path("back").exists() {
                assert!(volumes.read("target") == old, "without a snapback nothing is overwritten");
                return;
            }
            if goes_on {
                // The torn part of a record that was never durable.
                let torn = [volumes.read("back"), vec![1; 17]].concat();
                volumes.write("back", &torn);
                volumes.run(&keeping, &stream, "target").await.unwrap();
                assert!(volumes.read("target") == new);
                volumes.run(&volumes.apply(), &volumes.read("back"), "target").await.unwrap();
            } else {
                let why = volumes.run(&volumes.apply(), &volumes.read("back"), "target").await.unwrap_err();
                assert!(why.to_string().contains("cut off"), "it does not claim to be whole: {why}");
                volumes.write("target-2", &volumes.read("target"));
                let unfinished = Apply { unfinished: true, ..volumes.apply() };
                volumes.run(&unfinished, &volumes.read("back"), "target").await.unwrap();
            }
            assert!(volumes.read("target") == old);
        });
    }
}
