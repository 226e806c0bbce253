//! What is sent arrives, and nothing else.

use std::path::Path;

use agent::rate::RateLimit;
use agent::{Failure, Stop};
use schema::messages::FailureKind;
use schema::stream::Format;

use crate::ranges::Ranges;
use crate::stream::link::Here;
use crate::stream::place::Remote;
use crate::stream::send::Sending;
use crate::stream::testing::{Volumes, changed, content};

const SIZE: usize = 5 << 20;

fn prepared() -> Volumes {
    let volumes = Volumes::new();
    let old = content(SIZE, 1);
    volumes.write("old", &old);
    volumes.write("target", &old);
    volumes.write("new", &changed(&old, 7));
    volumes
}

#[tokio::test]
async fn changes_arrive_in_either_format_and_nothing_else_is_touched() {
    for format in [Format::Native, Format::Lvmsync] {
        let volumes = prepared();
        let sending = volumes.sending("old", "new");
        let (stream, sent) = volumes.stream(&sending, format).await;
        assert_eq!(sent.data + sent.zero, sending.bytes());
        assert!((stream.len() as u64) < sent.data + 20_000, "a record costs little");
        // A larger target keeps what is behind the end.
        let mut larger = volumes.read("target");
        larger.extend([9; 5000]);
        volumes.write("target", &larger);
        let applied = volumes.run(&volumes.apply(), &stream, "target").await.unwrap();
        assert_eq!((applied.written, applied.zeroed), (sent.data, sent.zero), "{format:?}");
        let found = volumes.read("target");
        assert!(found[..SIZE] == volumes.read("new") && found[SIZE..] == [9; 5000], "{format:?}");
    }
}

#[tokio::test]
async fn changes_are_applied_in_this_process() {
    let volumes = prepared();
    let sending = volumes.sending("old", "new");
    let here = Here { apply: volumes.apply(), target: volumes.target("target") };
    let progress = std::cell::Cell::new(0);
    let (sent, applied) = sending.send_to(&here, |done| progress.set(done)).await.unwrap();
    assert_eq!((progress.get(), sent.changed), (sending.bytes(), sending.bytes()));
    assert_eq!((sent.connections, applied.written + applied.zeroed), (1, sending.bytes()));
    assert!(volumes.read("target") == volumes.read("new"));
}

#[tokio::test]
async fn nothing_changed_is_a_whole_stream_too() {
    let volumes = prepared();
    let sending = volumes.sending_of("new", Ranges::new());
    let (stream, _) = volumes.stream(&sending, Format::Native).await;
    let applied = volumes.run(&volumes.apply(), &stream, "target").await.unwrap();
    assert_eq!(applied.records, 0);
    assert!(volumes.read("target") == volumes.read("old"));
}

#[tokio::test]
async fn ranges_beyond_the_source_are_not_sent() {
    let volumes = prepared();
    volumes.write("odd", &content(1_000_001, 3));
    let sending = volumes.sending_of("odd", std::iter::once(0..64 << 20).collect());
    assert_eq!(sending.bytes(), 1_000_001);
    let (stream, _) = volumes.stream(&sending, Format::Native).await;
    volumes.run(&volumes.apply(), &stream, "target").await.unwrap();
    assert!(volumes.read("target")[..1_000_001] == volumes.read("odd"));
}

#[tokio::test]
async fn a_source_that_gets_shorter_is_an_error_and_no_end() {
    let volumes = prepared();
    let sending = volumes.sending_of("new", std::iter::once(0..SIZE as u64).collect());
    std::fs::File::options().write(true).open(volumes.path("new")).unwrap().set_len(3 << 20).unwrap();
    let mut out = Vec::new();
    let why = sending.write_to(Format::Native, &mut out, |_| {}).await.unwrap_err();
    assert_eq!(why.kind, FailureKind::Device);
    assert!(why.to_string().contains("cannot read new at offset 3145728"), "{why}");
    let why = volumes.run(&volumes.apply(), &out, "target").await.unwrap_err();
    assert!(why.to_string().contains("cut off"), "what was written has no end: {why}");
}

#[tokio::test]
async fn a_sender_that_is_stopped_says_so() {
    let volumes = prepared();
    let stop = Stop::default();
    let ranges = std::iter::once(0..SIZE as u64).collect();
    let environment = volumes.environment.clone();
    let sending =
        Sending::new(volumes.source("new"), ranges, "vg/web", RateLimit::none(), stop.clone(), environment);
    stop.raise();
    let here = Here { apply: volumes.apply(), target: volumes.target("target") };
    let why = sending.send_to(&here, |_| {}).await.unwrap_err();
    assert_eq!(why.kind, FailureKind::Revoked);
}

#[tokio::test]
async fn a_target_that_is_refused_is_not_tried_again() {
    let volumes = prepared();
    volumes.write("small", &content(SIZE - 1, 1));
    let here = Here { apply: volumes.apply(), target: volumes.target("small") };
    let why = volumes.sending("old", "new").send_to(&here, |_| {}).await.unwrap_err();
    assert_eq!(why.kind, FailureKind::Refused);
    assert!(why.to_string().contains("it has 5242879 bytes, and vg/web has 5242880"), "{why}");
    assert!(volumes.read("small") == content(SIZE - 1, 1));
}

/// Stands for lvmsync behind a remote shell: keeps what it was asked, and the stream.
fn lvmsync(volumes: &Volumes, script: &str) -> Remote {
    let shell = volumes.write("shell", script.as_bytes());
    Remote {
        rsh: vec!["sh".into(), shell.to_str().unwrap().into(), volumes.path("out").to_str().unwrap().into()],
        host: "vmsrv2".into(),
        program: "lvmsync".into(),
        format: Format::Lvmsync,
        target: "/dev/vg/web".into(),
        snapback: Some(Path::new("/var/snap back").to_owned()),
    }
}

#[tokio::test]
async fn lvmsync_at_the_other_side_gets_its_own_words_and_its_own_stream() {
    let volumes = prepared();
    let remote = lvmsync(&volumes, "echo \"$2 $3\" >\"$1.asked\"; cat >\"$1\"; echo lvmsync talks");
    let sending = volumes.sending("old", "new");
    let sent = sending.send_to_lvmsync(&remote, |_| {}).await.unwrap();
    assert_eq!((sent.data, sent.zero), (sending.bytes(), 0));
    let asked = String::from_utf8(volumes.read("out.asked")).unwrap();
    assert_eq!(asked, "vmsrv2 lvmsync --apply - --snapback '/var/snap back' /dev/vg/web\n");
    assert!(volumes.read("out") == volumes.stream(&sending, Format::Lvmsync).await.0);
}

#[tokio::test]
async fn an_lvmsync_that_fails_is_a_failure() {
    let volumes = prepared();
    for (script, words) in [("cat >/dev/null; exit 3", "exit status: 3"), ("exit 0", "stopped listening")] {
        let sending = volumes.sending_of("new", std::iter::once(0..SIZE as u64).collect());
        let why: Failure = sending.send_to_lvmsync(&lvmsync(&volumes, script), |_| {}).await.unwrap_err();
        assert!(why.to_string().contains(words) && why.to_string().contains("vmsrv2:/dev/vg/web"), "{why}");
    }
}
