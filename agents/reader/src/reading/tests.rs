//! The reader over the in-process bus: every byte once, failures by name, bounded, and never stuck.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use agent::bus::Settle;
use agent::counters::Counters;
use agent::local::LocalBus;
use agent::{Bus, BusError, Delivery, Stop};
use schema::ReadingId;
use schema::SessionId;
use schema::limits::{LEAF_SPAN, MESSAGE_MAX};
use schema::messages::{Extent, Mapped, SessionEvent};
use schema::root::Tracking;
use tokio::task::JoinHandle;

use super::*;
use crate::Files;
use crate::cut::cut;
use crate::testing::{Memory, REPOSITORY, Shelf, Still, chunk_ids, noise};

mod conducted;

use conducted::Conductors;

const M: usize = 1 << 20;
const SEED: u64 = 7;

/// A host with a running reader.
struct Host {
    bus: LocalBus,
    context: Context,
    settings: Settings,
    conductors: Conductors,
    running: JoinHandle<Result<(), Failure>>,
}

/// What a request led to.
#[derive(Debug, Default)]
struct Told {
    opened: Option<(ReadingId, u64)>,
    tracked: Option<(Tracking, bool)>,
    /// Offset and length.
    unchanged: Vec<(u64, u64)>,
    /// Offset, length, and the bytes unless they are zero.
    pieces: Vec<(u64, u32, Option<Vec<u8>>)>,
    forced: BTreeSet<bool>,
    end: Option<SessionEvent>,
}

impl Host {
    fn new(volumes: Arc<dyn Volumes>, change: impl FnOnce(&mut Settings)) -> Self {
        Self::at(Still::at_ms(1 << 50), volumes, change)
    }

    /// One with another clock.
    fn at(clock: Arc<Still>, volumes: Arc<dyn Volumes>, change: impl FnOnce(&mut Settings)) -> Self {
        let (bus, context) = context(clock);
        let mut settings = Settings::new("h");
        change(&mut settings);
        let reader = Reader::new(context.clone(), volumes, settings.clone(), SEED, chunk_ids());
        let conductors = Conductors::default();
        Self { bus, context, settings, conductors, running: tokio::spawn(reader.run()) }
    }

    async fn request(&self, session: SessionId, source: &str, leaves: Option<Vec<u64>>) {
        self.publish(ReadVolume { leaves, ..request(session, source) }).await;
    }

    /// Sends a request, of a session with a conductor.
    async fn publish(&self, request: ReadVolume) {
        self.conductors.serve(&self.context, request.session);
        let message = Message::new(&About::session(request.session, "h/v"), &request);
        self.bus.publish(&Queue::reads("h"), message).await.unwrap();
    }

    /// Collects until the session is told that a request has ended.
    async fn collect(&self, session: SessionId) -> Told {
        let mut told = Told::default();
        let mut extents = self.bus.consume(&self.settings.extents, 1 << 30).await.unwrap();
        let mut events = self.bus.consume(&Queue::session(session), 1 << 30).await.unwrap();
        while told.end.is_none() || self.bus.bytes_in(&self.settings.extents) > 0 {
            tokio::select! {
                biased;
                delivery = events.next() => told.event(delivery.unwrap()).await,
                delivery = extents.next() => told.extent(delivery.unwrap(), session).await,
            }
        }
        told.pieces.sort_by_key(|piece| piece.0);
        told
    }

    async fn read(&self, session: SessionId, source: &str, leaves: Option<Vec<u64>>) -> Told {
        self.request(session, source, leaves).await;
        self.collect(session).await
    }

    async fn until(&self, condition: impl Fn() -> bool) {
        while !condition() {
            tokio::task::yield_now().await;
        }
    }

    async fn close(&self, session: SessionId, committed: bool) {
        let over = CloseReading { session, host: "h".into(), committed };
        self.bus.broadcast(&Topic::closed(), Message::new(&About::nothing(), &over)).await.unwrap();
    }

    fn requests(&self) -> usize {
        self.bus.bytes_in(&Queue::reads("h"))
    }

    async fn end(self) {
        self.context.stop.raise();
        self.running.await.unwrap().unwrap();
    }
}

fn context(environment: Arc<Still>) -> (LocalBus, Context) {
    let bus = LocalBus::new(environment.clone(), 64 << 20);
    let context = Context {
        bus: Arc::new(bus.clone()),
        environment,
        counters: Arc::new(Counters::default()),
        stop: Stop::default(),
        host: "h".into(),
    };
    (bus, context)
}

impl Told {
    async fn extent(&mut self, delivery: Delivery, session: SessionId) {
        let message = &delivery.message;
        assert!(message.size() <= MESSAGE_MAX);
        let extent: Extent = message.read().unwrap();
        assert_eq!(extent.session, session);
        self.forced.insert(extent.force);
        assert_eq!(extent.reading, self.opened.expect("opened comes before extents").0);
        let end = extent.offset + message.body.len() as u64 - 1;
        assert_eq!(extent.offset / LEAF_SPAN, end / LEAF_SPAN);
        let mut at = 0;
        for (len, zero) in extent.pieces {
            let bytes = &message.body[at..at + len as usize];
            assert_eq!(zero, bytes.iter().all(|byte| *byte == 0));
            self.pieces.push((extent.offset + at as u64, len, (!zero).then(|| bytes.to_vec())));
            at += len as usize;
        }
        assert_eq!(at, message.body.len());
        delivery.ticket.done().await.unwrap();
    }

    async fn event(&mut self, delivery: Delivery) {
        match delivery.message.read().unwrap() {
            SessionEvent::Opened { reading, size, .. } => self.opened = Some((reading, size)),
            SessionEvent::Tracked { tracking, distrusted, .. } => self.tracked = Some((tracking, distrusted)),
            SessionEvent::Unchanged { ranges, .. } => self.unchanged.extend(ranges),
            SessionEvent::Mapped { mut offset, pieces, .. } => {
                for (len, mapped) in pieces {
                    assert_eq!(mapped, Mapped::Zero);
                    self.pieces.push((offset, len, None));
                    offset += u64::from(len);
                }
            }
            end => self.end = Some(end),
        }
        delivery.ticket.done().await.unwrap();
    }

    /// Checks that the pieces are those of `leaves` of a volume with these bytes, each once, cut as they should be.
    fn assert_covers(&self, bytes: &[u8], leaves: impl Iterator<Item = usize>) {
        let mut pieces = self.pieces.iter();
        for leaf in leaves {
            let start = leaf * LEAF_SPAN as usize;
            let leaf = &bytes[start..bytes.len().min(start + LEAF_SPAN as usize)];
            let mut at = start;
            for cut in cut(leaf, SEED) {
                let (offset, len, content) = pieces.next().expect("a piece is missing");
                assert_eq!((*offset, *len, content.is_none()), (at as u64, cut.len, cut.zero));
                at += cut.len as usize;
                if let Some(content) = content {
                    assert!(content[..] == bytes[*offset as usize..at]);
                }
            }
        }
        assert!(pieces.next().is_none(), "a piece too many");
        assert!(self.forced.iter().all(|forced| *forced), "every extent is forced as the request was");
    }

    fn failure(&self) -> (FailureKind, &str) {
        match &self.end {
            Some(SessionEvent::Failed { kind, why }) => (*kind, why),
            other => panic!("{other:?} instead of a failure"),
        }
    }
}

fn request(session: SessionId, source: &str) -> ReadVolume {
    ReadVolume {
        session,
        repository: REPOSITORY,
        source: source.to_owned(),
        reading: None,
        parent: None,
        leaves: None,
        force: true,
        allow_changes: false,
        group: None,
        request: 3,
        plain: false,
    }
}

fn session(n: u128) -> SessionId {
    SessionId::from_parts(1, n)
}

/// Noise with zero runs of many lengths.
fn mixed(len: usize) -> Vec<u8> {
    let mut bytes = noise(1, len);
    let (mut at, mut n) = (50_000, 0);
    while at < len {
        let run = [4096, 5000, 65_536, 80_000, 300_000, 3 * M][n % 6].min(len - at);
        bytes[at..at + run].fill(0);
        (at, n) = (at + run + 123_456 + n * 1000, n + 1);
    }
    bytes
}

#[tokio::test]
async fn every_byte_of_a_volume_is_told_once() {
    let beyond_a_leaf = LEAF_SPAN as usize + 5 * M + 123;
    let cases = [
        ("empty", vec![]),
        ("byte", vec![9]),
        ("zero byte", vec![0]),
        ("block", noise(2, 4096)),
        ("not whole blocks", mixed(9 * M + 4095)),
        ("only zeroes", vec![0; 3 * M + 5]),
        ("two leaves", mixed(beyond_a_leaf)),
    ];
    for segment in [64 << 10, 4 * M] {
        for (name, bytes) in &cases {
            let shelf = Shelf::new([("s", Memory::new(bytes.clone()))]);
            let host = Host::new(shelf, |settings| settings.segment = segment);
            let told = host.read(session(1), "s", None).await;
            assert_eq!(told.opened.unwrap().1, bytes.len() as u64, "{name}");
            told.assert_covers(bytes, 0..bytes.len().div_ceil(LEAF_SPAN as usize));
            let read = host.context.counters.bytes_read.get();
            let reading = told.opened.unwrap().0;
            assert_eq!(
                told.end,
                Some(SessionEvent::Read { reading, request: 3, bytes_read: read, changed: false })
            );
            let data: u64 = told.pieces.iter().filter(|p| p.2.is_some()).map(|p| u64::from(p.1)).sum();
            assert_eq!(host.context.counters.bytes_zero.get(), bytes.len() as u64 - data);
            host.end().await;
        }
    }
}

#[tokio::test]
async fn leaves_are_read_again_as_they_were() {
    let bytes = mixed(3 * LEAF_SPAN as usize + 7);
    let shelf = Shelf::new([("s", Memory::new(bytes.clone()))]);
    let host = Host::new(shelf.clone(), |_| {});
    let first = host.read(session(1), "s", Some(vec![2, 0, 2])).await;
    first.assert_covers(&bytes, [0, 2].into_iter());
    let again = host.read(session(1), "s", Some(vec![3])).await;
    again.assert_covers(&bytes, [3].into_iter());
    let none = host.read(session(1), "s", Some(vec![])).await;
    assert!(none.pieces.is_empty() && matches!(none.end, Some(SessionEvent::Read { bytes_read: 0, .. })));
    assert_eq!((first.opened, shelf.opened()), (again.opened, 1), "one reading per session");
    let beyond = host.read(session(1), "s", Some(vec![4])).await;
    assert_eq!(beyond.failure().0, FailureKind::Refused);
    assert!(beyond.failure().1.contains("leaf 4"));
    host.end().await;
}

#[tokio::test]
async fn what_cannot_be_read_fails_the_session_by_name() {
    let at = 7 * M as u64 + 4096;
    let shelf = Shelf::new([("bad", Memory::with_bad(noise(1, 20 * M), at))]);
    let host = Host::new(shelf, |_| {});
    let told = host.read(session(1), "bad", None).await;
    let (kind, why) = told.failure();
    assert_eq!(kind, FailureKind::Device);
    for word in ["h/v", "bad", &at.to_string(), "sector"] {
        assert!(why.contains(word), "{why:?} does not name {word}");
    }
    let told = host.read(session(2), "missing", None).await;
    assert!(told.failure().1.contains("missing"));
    host.until(|| host.requests() == 0).await;
    host.end().await;
}

#[tokio::test]
async fn a_source_that_changed_is_said_to_have() {
    let host = Host::new(Shelf::new([("s", Memory::changed(mixed(M)))]), |_| {});
    let told = host.read(session(1), "s", None).await;
    assert!(matches!(told.end, Some(SessionEvent::Read { changed: true, .. })));
    host.end().await;
}

#[tokio::test]
async fn another_reading_is_refused() {
    let host = Host::new(Shelf::new([("s", Memory::new(mixed(M)))]), |_| {});
    let reading = Some(ReadingId::from_bytes([8; 16]));
    let session = session(1);
    host.publish(ReadVolume { reading, force: false, ..request(session, "s") }).await;
    assert_eq!(host.collect(session).await.failure().0, FailureKind::Device);
    host.end().await;
}

#[tokio::test]
async fn a_session_that_is_over_is_not_read_for() {
    let shelf = Shelf::with_reads([("s", Memory::new(noise(1, 40 * M)))], 3);
    let host = Host::new(shelf.clone(), |settings| settings.segment = M);
    host.request(session(1), "s", None).await;
    host.until(|| host.context.counters.bytes_read.get() == 3 * M as u64).await;
    assert!(host.requests() > 0);
    host.close(session(1), false).await;
    host.until(|| host.requests() == 0).await;
    host.request(session(1), "s", None).await;
    host.until(|| host.requests() == 0).await;
    assert_eq!(shelf.opened(), 1, "a late request opens nothing");
    assert_eq!(shelf.closed(), [(session(1), false)]);
    host.end().await;
}

#[tokio::test]
async fn a_reader_that_stops_hands_its_request_back() {
    let shelf = Shelf::with_reads([("s", Memory::new(noise(1, 40 * M)))], 3);
    let host = Host::new(shelf, |settings| settings.segment = M);
    host.request(session(1), "s", None).await;
    host.until(|| host.context.counters.bytes_read.get() == 3 * M as u64).await;
    host.context.stop.raise();
    host.running.await.unwrap().unwrap();
    let again = host.bus.consume(&Queue::reads("h"), 1).await.unwrap().next().await.unwrap();
    assert_eq!((again.attempt, again.message.read::<ReadVolume>().unwrap().session), (2, session(1)));
}

#[tokio::test]
async fn memory_is_bounded_by_the_pool_when_nobody_takes_extents() {
    let bytes = noise(1, 40 * M);
    let host = Host::new(Shelf::new([("s", Memory::new(bytes.clone()))]), |settings| {
        (settings.segment, settings.segments) = (M, 4);
    });
    host.request(session(1), "s", None).await;
    let read = || host.context.counters.bytes_read.get();
    host.until(|| read() == 4 * M as u64).await;
    for _ in 0..10_000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(read(), 4 * M as u64);
    host.collect(session(1)).await.assert_covers(&bytes, 0..1);
    host.end().await;
}

#[tokio::test]
async fn more_volumes_than_buffers_all_come_to_an_end() {
    let bytes = noise(1, 6 * M);
    let host = Host::new(Shelf::new([("s", Memory::new(bytes))]), |settings| {
        (settings.segment, settings.segments, settings.readers) = (256 << 10, 1, 8);
    });
    for n in 0..8 {
        host.request(session(n), "s", None).await;
    }
    let mut extents = host.bus.consume(&host.settings.extents, 1 << 30).await.unwrap();
    let mut told = 0;
    while told < 8 * 6 * M {
        let delivery = extents.next().await.unwrap();
        told += delivery.message.body.len();
        delivery.ticket.done().await.unwrap();
    }
    host.until(|| host.requests() == 0).await;
    host.end().await;
}

#[tokio::test]
async fn a_sparse_file_is_told_whole_and_a_truncated_one_fails_at_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let mut bytes = vec![0; LEAF_SPAN as usize + 9 * M + 1000];
    let file = File::create(&path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for at in [0, 5 * M + 100, 30 * M, LEAF_SPAN as usize - 4096, LEAF_SPAN as usize + 8 * M] {
        let part = mixed(M + 500);
        bytes[at..at + part.len()].copy_from_slice(&part);
        file.write_all_at(&part, at as u64).unwrap();
    }
    drop(file);
    let source = path.to_str().unwrap();
    let host = Host::new(Arc::new(Files::new(Still::at_ms(1 << 50))), |_| {});
    let told = host.read(session(1), source, None).await;
    told.assert_covers(&bytes, 0..2);
    let read = host.context.counters.bytes_read.get();
    assert!(read < 10 * M as u64, "{read} bytes were read of 5 MiB");

    OpenOptions::new().write(true).open(&path).unwrap().set_len(30 * M as u64 + 777).unwrap();
    let told = host.read(session(1), source, None).await;
    let (kind, why) = told.failure();
    assert_eq!(kind, FailureKind::Device);
    assert!(why.contains(&format!("offset {}", 30 * M + 777)) && why.contains("shorter"), "{why}");
    host.end().await;
}

/// Counts how often a delivery was kept.
#[derive(Debug, Default)]
struct Kept(AtomicU64);

#[async_trait]
impl Settle for Kept {
    async fn done(&self) -> Result<(), BusError> {
        Ok(())
    }

    async fn again(&self, _delay: Duration) -> Result<(), BusError> {
        Ok(())
    }

    async fn extend(&self) -> Result<(), BusError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Err(BusError::Unreachable("for a moment".into()))
    }

    async fn is_queued(&self) -> Result<bool, BusError> {
        Ok(true)
    }

    fn abandoned(&self) {}
}

#[tokio::test]
async fn a_request_is_kept_while_it_is_served() {
    let clock = Still::eager();
    let (_, context) = context(clock.clone());
    let reader = Reader::new(context.clone(), Shelf::new([]), Settings::new("h"), SEED, chunk_ids());
    let kept = Arc::new(Kept::default());
    let ticket = Some(Ticket::new(kept.clone()));
    let reading = reader.shared.readings.of(session(1)).unwrap();
    let thrice = async {
        while kept.0.load(Ordering::SeqCst) < 3 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        () = thrice => {}
        never = reader.shared.keep(&ticket, &reading) => match never {},
    }
    assert_eq!(context.environment.elapsed(), 3 * HEARTBEAT);
}
