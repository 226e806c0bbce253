//! Connections that break: what was durable is not sent again, and what was not is, until all of it arrived.

use std::sync::atomic::{AtomicBool, Ordering};

use agent::Failure;
use schema::messages::FailureKind;
use schema::stream::{Format, Reply};
use tokio::io::{AsyncWriteExt, duplex};

use crate::stream::apply::{Apply, PATIENCE};
use crate::stream::link::{Connector, Link};
use crate::stream::target::Target;
use crate::stream::testing::{Breaking, Volumes, changed, content};

const SIZE: usize = 3 << 20;
const ALL: usize = usize::MAX;

fn prepared() -> Volumes {
    let volumes = Volumes::new();
    let old = content(SIZE, 1);
    volumes.write("old", &old);
    volumes.write("target", &old);
    volumes.write("new", &changed(&old, 5));
    volumes
}

/// Takes the target back by the snapback.
async fn rewinds(volumes: &Volumes, snapback: &str) {
    volumes.run(&volumes.apply(), &volumes.read(snapback), "target").await.unwrap();
    assert!(volumes.read("target") == volumes.read("old"), "the snapback holds what stood there first");
}

#[tokio::test]
async fn a_connection_may_break_anywhere() {
    let (stream, _) = {
        let volumes = prepared();
        volumes.stream(&volumes.sending("old", "new"), Format::Native).await
    };
    let steps = (0..24).map(|step| stream.len() * step / 24).chain(stream.len() - 90..=stream.len());
    for cut in steps.step_by(3) {
        let volumes = prepared();
        // The first answer must come back, or there is nobody to come back to.
        let breaks = [(cut.max(100), ALL), (cut / 2, ALL), (cut, 60), (ALL, ALL)];
        let elsewhere =
            Breaking::new(volumes.keeping("back", Format::Native), &volumes.path("target"), &breaks);
        let (sent, _) = volumes.sending("old", "new").send_to(&elsewhere, |_| {}).await.unwrap();
        elsewhere.over().await;
        assert!(sent.connections > 1 || cut >= stream.len(), "cut at {cut}");
        assert!(volumes.read("target") == volumes.read("new"), "cut at {cut}");
        rewinds(&volumes, "back").await;
    }
}

#[tokio::test]
async fn an_answer_that_got_lost_is_given_again() {
    let ready = "lvkeep-apply 1 ready\n".len();
    for back in [ready, ready + 10, ready + 30] {
        let volumes = prepared();
        let elsewhere = Breaking::new(
            volumes.keeping("back", Format::Native),
            &volumes.path("target"),
            &[(ALL, back), (ALL, ALL)],
        );
        volumes.sending("old", "new").send_to(&elsewhere, |_| {}).await.unwrap();
        elsewhere.over().await;
        assert_eq!(*elsewhere.connections.lock().unwrap(), [false, true]);
        assert!(volumes.read("target") == volumes.read("new"));
        rewinds(&volumes, "back").await;
    }
}

#[tokio::test]
async fn a_connection_that_never_worked_is_not_made_again() {
    let volumes = prepared();
    let elsewhere = Breaking::new(volumes.apply(), &volumes.path("target"), &[(ALL, 0)]);
    let why = volumes.sending("old", "new").send_to(&elsewhere, |_| {}).await.unwrap_err();
    assert!(why.to_string().contains("no `lvkeep apply` answered"), "{why}");
    assert_eq!(*elsewhere.connections.lock().unwrap(), [false]);
}

#[tokio::test]
async fn connections_without_progress_are_given_up() {
    let volumes = prepared();
    let elsewhere = Breaking::new(volumes.apply(), &volumes.path("target"), &[(200, ALL)]);
    let why = volumes.sending("old", "new").send_to(&elsewhere, |_| {}).await.unwrap_err();
    assert!(why.to_string().contains("gave up after 10 connections"), "{why}");
    assert!(elsewhere.connections.lock().unwrap().len() == 10);
}

#[tokio::test]
async fn a_target_that_an_earlier_connection_still_holds_is_waited_for() {
    let volumes = prepared();
    let breaks = [(300_000, ALL), (ALL, ALL)];
    let elsewhere = Breaking::new(volumes.apply(), &volumes.path("target"), &breaks);
    let busy = Busy { elsewhere, was_busy: AtomicBool::new(false), volumes: &volumes };
    volumes.sending("old", "new").send_to(&busy, |_| {}).await.unwrap();
    busy.elsewhere.over().await;
    assert!(volumes.read("target") == volumes.read("new"));
    assert!(busy.was_busy.load(Ordering::Relaxed));
}

/// The second connection finds the target in use, the third does not.
#[derive(Debug)]
struct Busy<'a> {
    elsewhere: Breaking,
    was_busy: AtomicBool,
    volumes: &'a Volumes,
}

#[async_trait::async_trait]
impl Connector for Busy<'_> {
    fn name(&self) -> String {
        self.elsewhere.name()
    }

    fn comes_back(&self) -> bool {
        true
    }

    async fn connect(&self, reconnecting: bool) -> Result<Link, Failure> {
        self.elsewhere.over().await;
        if !reconnecting || self.was_busy.swap(true, Ordering::Relaxed) {
            return self.elsewhere.connect(reconnecting).await;
        }
        let _held = self.volumes.target("target");
        let Failure { kind, retry, why } = Target::open("t", &self.volumes.path("target"), None).unwrap_err();
        let (mut answers, output) = duplex(4096);
        let reply = Reply::Failed { kind, again: retry, why };
        answers.write_all(format!("Welcome!\n{reply}\n").as_bytes()).await.unwrap();
        Ok(Link { input: Box::pin(tokio::io::sink()), output: Box::pin(output), process: None })
    }
}

#[tokio::test(start_paused = true)]
async fn an_apply_whose_sender_fell_silent_lets_go_of_its_target() {
    let volumes = prepared();
    let (stream, _) = volumes.stream(&volumes.sending("old", "new"), Format::Native).await;
    let (mut input, output) = duplex(64 << 10);
    input.write_all(&stream[..500]).await.unwrap();
    let apply = Apply { answers: true, patience: Some(PATIENCE), ..volumes.apply() };
    let began = tokio::time::Instant::now();
    let why = apply.run(output, tokio::io::sink(), volumes.target("target"), |_| {}).await.unwrap_err();
    assert!(why.retry && why.to_string().contains("taken for dead"), "{why}");
    assert!(began.elapsed() >= PATIENCE);
    volumes.target("target");
    assert_eq!(why.kind, FailureKind::Other);
}
