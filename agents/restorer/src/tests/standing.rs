//! Whether a job is still to be done: asked while its target is held, and decided by the message server, by other
//! agents, or by nobody any more.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::bus::{Broadcasts, BusError, Deliveries, Delivery, Requests, Settle, Ticket};
use agent::faults::store::{FaultyStore, StoreFaults};
use agent::{Bus, Environment, Queue, Service, Topic, sessions};
use async_trait::async_trait;
use object_store::memory::InMemory;
use schema::messages::{
    About, FailureKind, JobDone, JobOutcome, Message, More, NewVolume, Preparation, RestoreJob, StopRestore,
};

use super::asked::{done, job, send};
use super::ending::{delivered, kept, left, sessions};
use super::fixture::{Fixture, TestEnvironment, noise, serving};
use super::places::Volume;
use crate::claim::Claim;
use crate::{Restorer, hold};

const LEN: usize = 1 << 20;

/// What a message server says of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Queued,
    Settled,
    Lost,
}

/// A bus of which somebody else decides what becomes of messages, and sees when it is asked for that.
#[derive(Clone)]
struct Asked {
    inner: Arc<dyn Bus>,
    word: Arc<dyn Fn() -> Word + Send + Sync>,
    /// So often it does not take that a job is done.
    refused: Arc<AtomicU32>,
}

impl fmt::Debug for Asked {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a bus that is asked")
    }
}

impl Asked {
    fn restorer(fixture: &Fixture, word: impl Fn() -> Word + Send + Sync + 'static) -> Restorer {
        Self::refusing(fixture, 0, word)
    }

    fn refusing(
        fixture: &Fixture,
        refused: u32,
        word: impl Fn() -> Word + Send + Sync + 'static,
    ) -> Restorer {
        let mut restorer = fixture.restorer();
        let (inner, refused) = (fixture.context.bus.clone(), Arc::new(AtomicU32::new(refused)));
        restorer.context.bus = Arc::new(Self { inner, word: Arc::new(word), refused });
        restorer
    }
}

#[async_trait]
impl Bus for Asked {
    async fn publish(&self, queue: &Queue, message: Message) -> Result<(), BusError> {
        let fewer = |refused: u32| refused.checked_sub(1);
        if message.read::<JobDone>().is_ok()
            && self.refused.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_ok()
        {
            return Err(BusError::Unsendable { subject: queue.to_string(), why: "not yet".into() });
        }
        self.inner.publish(queue, message).await
    }

    async fn consume(&self, queue: &Queue, window: usize) -> Result<Box<dyn Deliveries>, BusError> {
        let deliveries = self.inner.consume(queue, window).await?;
        Ok(Box::new(AskedDeliveries(self.clone(), deliveries)))
    }

    async fn retire(&self, queue: &Queue) -> Result<(), BusError> {
        self.inner.retire(queue).await
    }

    async fn request(&self, to: &Service, what: Message, limit: Duration) -> Result<Message, BusError> {
        self.inner.request(to, what, limit).await
    }

    async fn serve(&self, service: &Service) -> Result<Box<dyn Requests>, BusError> {
        self.inner.serve(service).await
    }

    async fn broadcast(&self, topic: &Topic, message: Message) -> Result<(), BusError> {
        self.inner.broadcast(topic, message).await
    }

    async fn subscribe(&self, topic: &Topic) -> Result<Box<dyn Broadcasts>, BusError> {
        self.inner.subscribe(topic).await
    }
}

struct AskedDeliveries(Asked, Box<dyn Deliveries>);

#[async_trait]
impl Deliveries for AskedDeliveries {
    async fn next(&mut self) -> Result<Delivery, BusError> {
        let Delivery { message, attempt, ticket } = self.1.next().await?;
        let ticket = Ticket::new(Arc::new(AskedSettle(self.0.clone(), Mutex::new(Some(ticket)))));
        Ok(Delivery { message, attempt, ticket })
    }
}

#[derive(Debug)]
struct AskedSettle(Asked, Mutex<Option<Ticket>>);

impl AskedSettle {
    /// What is lost, or settled by somebody else, nobody settles.
    fn take(&self) -> Result<Option<Ticket>, BusError> {
        let ticket = self.1.lock().unwrap().take();
        match (self.0.word)() {
            Word::Queued => Ok(ticket),
            Word::Settled | Word::Lost => {
                ticket.into_iter().for_each(Ticket::leave);
                Err(BusError::Unreachable("it is not there".into()))
            }
        }
    }
}

#[async_trait]
impl Settle for AskedSettle {
    async fn done(&self) -> Result<(), BusError> {
        match self.take() {
            Ok(Some(ticket)) => ticket.done().await,
            _ => Ok(()),
        }
    }

    async fn again(&self, delay: Duration) -> Result<(), BusError> {
        match self.take()? {
            Some(ticket) => ticket.again(delay).await,
            None => Ok(()),
        }
    }

    async fn extend(&self) -> Result<(), BusError> {
        Ok(())
    }

    async fn is_queued(&self) -> Result<bool, BusError> {
        Ok((self.0.word)() == Word::Queued)
    }

    async fn is_lost(&self) -> Result<bool, BusError> {
        Ok((self.0.word)() == Word::Lost)
    }

    fn abandoned(&self) {
        drop(self.take());
    }
}

/// Whether a target is held, and how long it is.
type Seen = (bool, Option<u64>);

/// Otherwise a guest may have it by the time that an agent goes on which slept just after it asked.
#[tokio::test(start_paused = true)]
async fn a_file_without_content_is_held_before_it_is_asked_for_the_last_time() {
    let fixture = Fixture::plain().await;
    let content = noise(1, LEN);
    let root = fixture.volume(&content).await;
    for (name, is_there) in [("absent", false), ("empty", true)] {
        for word in [Word::Queued, Word::Settled] {
            let path = fixture.path(&format!("{name}-{word:?}"));
            if is_there {
                std::fs::write(&path, b"").unwrap();
            }
            let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
            let (at, seeing) = (path.clone(), seen.clone());
            let restorer = Asked::restorer(&fixture, move || {
                let is_held = hold::is_locked(&at);
                seeing.lock().unwrap().push((is_held, std::fs::metadata(&at).ok().map(|found| found.len())));
                // It is over by the time that the target is held.
                if is_held { word } else { Word::Queued }
            });
            let agent = tokio::spawn(restorer.run(serving(vec![fixture.folder.path().to_path_buf()])));
            let order = RestoreJob { force: true, ..job(&fixture, &root, &path) };
            send(&fixture, &order).await;
            if word == Word::Queued {
                assert!(matches!(done(&fixture, &order).await, JobOutcome::Restored { .. }));
                assert!(std::fs::read(&path).unwrap() == content);
            }
            while !seen.lock().unwrap().iter().any(|(is_held, _)| *is_held) || hold::is_locked(&path) {
                tokio::task::yield_now().await;
            }
            let first = seen.lock().unwrap().iter().find(|(is_held, _)| *is_held).copied();
            assert_eq!(first, Some((true, Some(0))), "{name}: held, and nothing written yet");
            if word == Word::Settled {
                let there = std::fs::metadata(&path).ok().map(|found| found.len());
                assert_eq!(there, is_there.then_some(0), "{name} stays as it was");
                assert!(!Claim::of(order.job).has_begun(&path));
            }
            agent.abort();
            let _ = agent.await;
        }
    }
}

/// A message server that came back without its memory: nobody has ended the job, and nobody else tells anybody.
#[tokio::test(start_paused = true)]
async fn a_job_that_the_message_server_has_lost_fails_and_keeps_its_undo() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, LEN)).await;
    let (undo, kept) = kept(&fixture).await;
    let path = fixture.path("x");
    std::fs::write(&path, b"half").unwrap();
    let order = RestoreJob { force: true, ..job(&fixture, &root, &path) };
    let order = order.asking(More { undo: Some(undo), ..More::default() });
    let session = left(&fixture, order.job, vec![undo]).await;
    left(&fixture, order.job, Vec::new()).await;
    // What it would have asked for once more is not what is looked at here.
    let order = RestoreJob { more: None, target: path.to_str().unwrap().into(), ..order };
    let agent = Asked::restorer(&fixture, || Word::Lost);
    let agent = tokio::spawn(agent.run(serving(vec![fixture.folder.path().to_path_buf()])));
    send(&fixture, &order).await;
    let told = fixture.context.environment.timeout(Duration::from_secs(60), done(&fixture, &order)).await;
    let Some(JobOutcome::Failed { why, .. }) = told else { panic!("{told:?}") };
    assert!(why.contains("has lost the job") && why.contains("half overwritten"), "{why}");
    assert!(why.contains(&format!("lvkeep cancel {session}")), "{why}");
    assert_eq!(std::fs::read(&path).unwrap(), b"half");
    while hold::is_locked(&path) || sessions(&fixture).await.len() > 1 {
        tokio::task::yield_now().await;
    }
    let left: Vec<_> = sessions(&fixture).await.iter().map(|session| session.id).collect();
    assert_eq!(left, [session], "what stood there, {}, stays protected", kept.slot);
    agent.abort();
}

/// Another agent had restored it by then, and noted that, and died before the volume's tag was gone.
#[tokio::test(start_paused = true)]
async fn a_volume_that_was_restored_stays_although_its_job_was_lost() {
    let environment: Arc<dyn Environment> = Arc::new(TestEnvironment::default());
    let store = FaultyStore::new(Arc::new(InMemory::new()), environment, StoreFaults::default());
    let fixture = Fixture::new(Arc::new(store.clone()), false).await;
    let root = fixture.volume(&noise(1, LEN)).await;
    let order = created(&fixture, &root);
    let mut volume = Volume::of(&fixture, LEN);
    volume.is_begun = true;
    volume.noted = Some((fixture.repository.clone(), order.job, restored()));
    volume.crashes = Some(store.clone());
    let restorer = Asked::restorer(&fixture, || Word::Lost).with_targets(Arc::new(volume.clone()));
    let agent = tokio::spawn(restorer.run(serving(vec!["vg/*".into()])));
    send(&fixture, &order).await;
    let hour = Duration::from_secs(3600);
    let told = fixture.context.environment.timeout(hour, done(&fixture, &order)).await;
    assert_eq!(told, None, "while nobody knows how it ended");
    store.recover();
    assert_eq!(done(&fixture, &order).await, restored());
    assert_eq!(
        volume.held_when_over().first(),
        Some(&true),
        "whoever had it before would take it for one that was begun"
    );
    while volume.steps().len() < 2 {
        tokio::task::yield_now().await;
    }
    // However often it is said to be over, it is never ended as one that is not whole.
    let mut steps = volume.steps();
    steps.dedup();
    assert_eq!(steps, ["make", "over"]);
    agent.abort();
}

/// It came to another agent while it waited here: that one has begun it, or ended it.
#[tokio::test(start_paused = true)]
async fn a_job_that_another_agent_has_is_not_told_to_be_stopped() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, LEN)).await;
    let path = fixture.path("x");
    std::fs::write(&path, b"of the other").unwrap();
    let other = std::fs::File::open(&path).unwrap();
    Claim::default().lock(&other, &path).unwrap();
    let minute = Duration::from_secs(60);
    for has_ended in [false, true] {
        let word = Arc::new(Mutex::new(Word::Queued));
        let said = word.clone();
        let restorer = Asked::restorer(&fixture, move || *said.lock().unwrap());
        let agent = tokio::spawn(restorer.run(serving(vec![fixture.folder.path().to_path_buf()])));
        let order = RestoreJob { force: true, ..job(&fixture, &root, &path) };
        send(&fixture, &order).await;
        fixture.context.environment.sleep(minute).await;
        match has_ended {
            false => drop(left(&fixture, order.job, Vec::new()).await),
            true => *word.lock().unwrap() = Word::Settled,
        }
        let before = sessions(&fixture).await;
        let stop = Message::new(&About::nothing(), &StopRestore { job: order.job });
        fixture.context.bus.broadcast(&Topic::stop_restore(), stop).await.unwrap();
        let told = fixture.context.environment.timeout(minute, done(&fixture, &order)).await;
        assert_eq!(told, None, "has ended: {has_ended}");
        assert_eq!(sessions(&fixture).await, before, "nor is anything of the other one ended");
        agent.abort();
        let _ = agent.await;
    }
}

/// Whoever had restored it died before its tag was gone.
#[tokio::test(start_paused = true)]
async fn a_volume_that_was_restored_is_ended_although_its_job_is_given_up() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, LEN)).await;
    let order = created(&fixture, &root);
    let mut volume = Volume::of(&fixture, LEN);
    volume.is_begun = true;
    sessions::note_end(&fixture.repository, order.job, "v", "host", &restored()).await.unwrap();
    delivered(&fixture, &order, 200).await;
    let agent = tokio::spawn(volume.restorer(&fixture).run(serving(vec!["vg/*".into()])));
    assert_eq!(done(&fixture, &order).await, restored());
    assert_eq!(volume.steps(), ["over"]);
    agent.abort();
}

/// Its end could not be told the first time, so that it comes again.
#[tokio::test(start_paused = true)]
async fn a_volume_that_was_restored_is_ended_when_its_job_is_remembered() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, LEN)).await;
    let mut volume = Volume::of(&fixture, LEN);
    volume.is_new = true;
    let order = created(&fixture, &root);
    let restorer = Asked::refusing(&fixture, 2, || Word::Queued).with_targets(Arc::new(volume.clone()));
    let agent = tokio::spawn(restorer.run(serving(vec!["vg/*".into()])));
    send(&fixture, &order).await;
    assert!(matches!(done(&fixture, &order).await, JobOutcome::Restored { .. }));
    while !fixture.sessions().await.is_empty() {
        tokio::task::yield_now().await;
    }
    // By whoever gave it up, and by whoever remembered it.
    assert_eq!(volume.steps(), ["make", "ready ee", "end true", "over", "over"]);
    agent.abort();
}

fn created(fixture: &Fixture, root: &schema::root::Root) -> RestoreJob {
    let preparation = Preparation { create: Some(NewVolume::Plain), ..Preparation::default() };
    RestoreJob { preparation, ..job(fixture, root, Path::new("vg/lv")) }
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_was_made_for_a_job_that_is_over_goes_again() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, LEN)).await;
    let mut volume = Volume::of(&fixture, LEN);
    (volume.is_new, volume.retired) = (true, Some((fixture.context.bus.clone(), Queue::restores("host"))));
    let agent = tokio::spawn(volume.restorer(&fixture).run(serving(vec!["vg/*".into()])));
    send(&fixture, &created(&fixture, &root)).await;
    while volume.steps().len() < 2 || !fixture.sessions().await.is_empty() {
        tokio::task::yield_now().await;
    }
    fixture.context.stop.raise();
    agent.await.unwrap().unwrap();
    assert_eq!(volume.steps(), ["make", "end false"]);
}

/// Whoever had it made saw too late that nobody wants it any more, or died.
#[tokio::test(start_paused = true)]
async fn a_volume_that_a_stopped_job_has_left_stays_and_is_named() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, LEN)).await;
    for is_begun in [true, false] {
        let mut volume = Volume::of(&fixture, LEN);
        volume.is_begun = is_begun;
        let order = created(&fixture, &root);
        let stopped = JobOutcome::Failed { kind: FailureKind::Revoked, why: "stopped".into() };
        sessions::note_end(&fixture.repository, order.job, "v", "host", &stopped).await.unwrap();
        let agent = tokio::spawn(volume.restorer(&fixture).run(serving(vec!["vg/*".into()])));
        send(&fixture, &order).await;
        let JobOutcome::Failed { why, .. } = done(&fixture, &order).await else { panic!("restored") };
        let (told, steps): (_, &[&str]) = match is_begun {
            true => ("stopped\na note", &["make", "end cut off", "over"]),
            // What stands there by now is somebody else's.
            false => ("stopped", &[]),
        };
        assert_eq!(why, told);
        assert_eq!(volume.steps(), steps);
        agent.abort();
        let _ = agent.await;
    }
}

/// The command noted that no agent is to begin it while one had done it already.
#[tokio::test(start_paused = true)]
async fn what_was_restored_is_not_told_to_be_stopped() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, LEN)).await;
    let mut volume = Volume::of(&fixture, LEN);
    volume.is_begun = true;
    let order = created(&fixture, &root);
    let restored = restored();
    let stopped = JobOutcome::Failed { kind: FailureKind::Revoked, why: "stopped".into() };
    for outcome in [&stopped, &restored, &stopped] {
        sessions::note_end(&fixture.repository, order.job, "v", "host", outcome).await.unwrap();
    }
    let agent = tokio::spawn(volume.restorer(&fixture).run(serving(vec!["vg/*".into()])));
    send(&fixture, &order).await;
    assert_eq!(done(&fixture, &order).await, restored);
    while !fixture.sessions().await.is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(volume.steps(), ["over"]);
    agent.abort();
}

fn restored() -> JobOutcome {
    JobOutcome::Restored {
        written: 1,
        kept: 0,
        compared: 0,
        tracked: 0,
        audited: 0,
        zeroed: 0,
        fetched: 0,
        notes: Vec::new(),
        copied: 0,
        rescued: 0,
        lost: 0,
        holes: Vec::new(),
        undo: None,
        verified: None,
        stands_on: None,
    }
}
