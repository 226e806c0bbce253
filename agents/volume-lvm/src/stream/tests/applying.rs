//! What is refused, and what a stream that breaks off leaves behind.

use agent::Failure;
use schema::lvmsync;
use schema::messages::FailureKind;
use schema::stream::{Applied, Format};

use crate::stream::apply::Apply;
use crate::stream::testing::{Volumes, changed, content};

const SIZE: usize = 3 << 20;

async fn prepared() -> (Volumes, Vec<u8>) {
    let volumes = Volumes::new();
    let old = content(SIZE, 1);
    volumes.write("old", &old);
    volumes.write("target", &old);
    volumes.write("new", &changed(&old, 3));
    let (stream, _) = volumes.stream(&volumes.sending("old", "new"), Format::Native).await;
    (volumes, stream)
}

async fn check(volumes: &Volumes, apply: &Apply, stream: &[u8]) -> Result<(), Failure> {
    apply.check(stream, &volumes.target("target")).await
}

#[tokio::test]
async fn a_stream_from_a_pipe_that_breaks_off_is_told_and_may_be_applied_again() {
    let (volumes, stream) = prepared().await;
    for cut in [stream.len() / 3, stream.len() / 2, stream.len() - 1] {
        let why = volumes.run(&volumes.apply(), &stream[..cut], "target").await.unwrap_err();
        assert_eq!(why.kind, FailureKind::Damaged);
        assert!(why.to_string().contains("cut off") && why.to_string().contains("whole records"), "{why}");
    }
    assert!(volumes.read("target") != volumes.read("old"), "what came whole was applied");
    for _ in 0..2 {
        volumes.run(&volumes.apply(), &stream, "target").await.unwrap();
        assert!(volumes.read("target") == volumes.read("new"));
    }
}

#[tokio::test]
async fn a_check_finds_what_is_wrong_and_changes_nothing() {
    let (volumes, stream) = prepared().await;
    let apply = volumes.apply();
    check(&volumes, &apply, &stream).await.unwrap();
    let mut flipped = stream.clone();
    flipped[stream.len() / 2] ^= 4;
    let behind = [&stream[..], b"more"].concat();
    let mut beyond = lvmsync::GREETING.to_vec();
    beyond.extend(lvmsync::head(SIZE as u64 - 2, 4));
    beyond.extend(b"late");
    for (bytes, kind, words) in [
        (&stream[..stream.len() - 1], FailureKind::Damaged, "--unfinished"),
        (&flipped[..], FailureKind::Damaged, "is damaged"),
        (&behind[..], FailureKind::Damaged, "bytes follow its end"),
        (&beyond[..], FailureKind::Refused, "goes up to offset 3145730"),
        (b"no stream", FailureKind::Damaged, "first bytes"),
        (b"", FailureKind::Damaged, "cut off"),
    ] {
        let why = check(&volumes, &apply, bytes).await.unwrap_err();
        assert_eq!(why.kind, kind, "{why}");
        assert!(why.to_string().contains(words), "{why}");
    }
    let unfinished = Apply { unfinished: true, ..volumes.apply() };
    check(&volumes, &unfinished, &stream[..stream.len() - 1]).await.unwrap();
    assert!(check(&volumes, &unfinished, &flipped).await.is_err(), "damage is no end");
    assert!(volumes.read("target") == volumes.read("old"));
}

#[tokio::test]
async fn another_format_than_the_one_asked_for_is_refused() {
    let (volumes, native) = prepared().await;
    for (only, stream) in [(Format::Lvmsync, native), (Format::Native, lvmsync::GREETING.to_vec())] {
        let apply = Apply { only: Some(only), ..volumes.apply() };
        let why = volumes.run(&apply, &stream, "target").await.unwrap_err();
        assert_eq!(why.kind, FailureKind::Refused, "{why}");
    }
}

#[tokio::test]
async fn the_rest_of_a_stream_is_only_for_whoever_had_its_beginning() {
    let (volumes, _) = prepared().await;
    let header = schema::stream::Header {
        id: schema::StreamId::from_bytes([1; 16]),
        kind: schema::stream::Kind::Changes,
        of: None,
        size: SIZE as u64,
        first: 3,
        name: "vg/web".into(),
    };
    let (encoder, mut stream) = schema::stream::Encoder::begin(&header).unwrap();
    stream.extend(encoder.end());
    let why = volumes.run(&volumes.apply(), &stream, "target").await.unwrap_err();
    assert!(why.to_string().contains("begins with record 3"), "{why}");
    // Its snapback was made by whoever had the beginning, and is gone.
    let apply = Apply { answers: true, reconnected: true, ..volumes.keeping("back", Format::Native) };
    let why = volumes.run(&apply, &stream, "target").await.unwrap_err();
    assert!(why.to_string().contains("is not there"), "{why}");
    assert!(!volumes.path("back").exists());
}

#[tokio::test]
async fn lvmsyncs_records_may_overlap_and_the_last_one_holds() {
    let (volumes, _) = prepared().await;
    let mut stream = lvmsync::GREETING.to_vec();
    let mut expected = volumes.read("old");
    for (offset, len, byte) in [(1 << 20, 9000, 1u8), (4096, 4096, 2), ((1 << 20) + 5000, 8000, 3), (0, 0, 4)]
    {
        stream.extend(lvmsync::head(offset, len));
        stream.extend(vec![byte; len as usize]);
        expected[offset as usize..(offset + u64::from(len)) as usize].fill(byte);
    }
    let applied = volumes.run(&volumes.keeping("back", Format::Native), &stream, "target").await.unwrap();
    assert_eq!(applied, Applied { records: 3, written: 21_096, zeroed: 0, saved: applied.saved });
    assert!(volumes.read("target") == expected);
    volumes.run(&volumes.apply(), &volumes.read("back"), "target").await.unwrap();
    assert!(volumes.read("target") == volumes.read("old"));
}

#[tokio::test]
async fn a_file_keeps_its_holes_where_ranges_read_as_zero() {
    let volumes = Volumes::new();
    volumes.write("target", &[7; 4 << 20]);
    volumes.write("new", &[0; 4 << 20]);
    let sending = volumes.sending_of("new", std::iter::once(0..4 << 20).collect());
    let (stream, sent) = volumes.stream(&sending, Format::Native).await;
    assert!(stream.len() < 1000 && sent.zero == 4 << 20);
    volumes.run(&volumes.apply(), &stream, "target").await.unwrap();
    assert!(volumes.read("target") == [0; 4 << 20]);
}
