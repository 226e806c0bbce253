//! The reader and a session's conductor: what is still wanted, what has changed since the parent, and the audit.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;

use agent::{Answerer, Service};
use schema::Domain;
use schema::map::{Content, Leaf, Piece};
use schema::messages::{AskParentLeaf, AskWanted, ParentLeaf, ParentSnapshot, Wanted};

use super::*;
use crate::testing::Lie;
use crate::{abandoned, places};

/// Answers of sessions' conductors, played by hand. What is not set here is refused.
#[derive(Debug, Default, Clone)]
pub(super) struct Conductors(Arc<Mutex<Played>>);

#[derive(Debug, Default)]
struct Played {
    served: BTreeSet<SessionId>,
    /// The parent's leaves, by number.
    leaves: BTreeMap<u64, Leaf>,
    /// What is said to be wanted of a request.
    wanted: BTreeMap<u32, Wanted>,
    asked: Vec<u32>,
}

impl Conductors {
    /// Answers for a session from now on.
    pub(super) fn serve(&self, context: &Context, session: SessionId) {
        if self.0.lock().unwrap().served.insert(session) {
            let (context, answers) = (context.clone(), self.clone());
            tokio::spawn(async move {
                agent::serve(&context, &Service::conductor(session), answers).await.unwrap();
            });
        }
    }

    fn wants(&self, request: u32, leaves: &[(u64, u64)], forced: &[(u64, u64)]) {
        let wanted =
            Wanted { over: false, leaves: leaves.to_vec(), forced: forced.to_vec(), whole: Vec::new() };
        self.0.lock().unwrap().wanted.insert(request, wanted);
    }

    fn wants_whole(&self, request: u32, leaves: &[(u64, u64)], whole: &[(u64, u64)]) {
        self.wants(request, leaves, &[]);
        self.0.lock().unwrap().wanted.get_mut(&request).unwrap().whole = whole.to_vec();
    }

    fn has_parent(&self, bytes: &[u8]) {
        let leaves = bytes.chunks(LEAF_SPAN as usize).map(scanned);
        self.0.lock().unwrap().leaves = (0..).zip(leaves).collect();
    }

    fn asked(&self) -> Vec<u32> {
        self.0.lock().unwrap().asked.clone()
    }
}

#[async_trait]
impl Answerer for Conductors {
    async fn answer(&mut self, message: &Message) -> Result<Message, Failure> {
        let (mut played, none) = (self.0.lock().unwrap(), About::nothing());
        if let Ok(asked) = message.read::<AskWanted>() {
            played.asked.push(asked.request);
            let wanted = played.wanted.get(&asked.request);
            return wanted
                .map(|wanted| Message::new(&none, wanted))
                .ok_or_else(|| Failure::refused("not said"));
        }
        let asked: AskParentLeaf = message.read()?;
        Ok(match played.leaves.get(&asked.leaf) {
            Some(leaf) => {
                let span = leaf.pieces().iter().map(|piece| u64::from(piece.len)).sum();
                Message::with_body(
                    &none,
                    &ParentLeaf { span: Some(span), lost: Vec::new() },
                    leaf.encode().into(),
                )
            }
            None => Message::new(&none, &ParentLeaf { span: None, lost: Vec::new() }),
        })
    }
}

/// The leaf that a full scan makes of these bytes.
fn scanned(bytes: &[u8]) -> Leaf {
    let mut at = 0;
    let pieces = cut(bytes, SEED).into_iter().map(|piece| {
        let chunk = &bytes[at..at + piece.len as usize];
        at += piece.len as usize;
        let content = match piece.zero {
            true => Content::Zero,
            false => Content::Chunk(chunk_ids().id(Domain::Data, chunk)),
        };
        Piece { len: piece.len, content }
    });
    Leaf::new(bytes.len() as u64, pieces.collect::<Vec<_>>()).unwrap()
}

const PARENT: SessionId = SessionId::from_bytes([4; 16]);

/// A request of a session with a parent of `size` bytes.
fn tracked(size: usize, number: u32) -> ReadVolume {
    let parent = Some(ParentSnapshot { session: PARENT, size: size as u64 });
    ReadVolume { parent, force: false, request: number, ..request(session(1), "s") }
}

/// Something that has changed, here and there, and in runs of zeroes.
fn changed(bytes: &[u8]) -> (Vec<u8>, Vec<Range<u64>>) {
    let mut new = bytes.to_vec();
    let mut ranges = Vec::new();
    let changes = [
        (3 * M, 4096),
        (3 * M + 40_960, 8192),
        (9 * M, 300_000),
        (20 * M + 4096, 4096),
        (2 * LEAF_SPAN as usize + M, 70_000),
    ];
    for (n, (at, len)) in changes.into_iter().enumerate() {
        new[at..at + len].copy_from_slice(&noise(90 + n as u64, len));
        ranges.push(at as u64..(at + len) as u64);
    }
    (new, ranges)
}

impl Told {
    /// Checks that what was told and what was left out is the volume, each byte once. Returns the bytes told.
    fn assert_is(&self, parent: &[u8], new: &[u8]) -> u64 {
        let mut all: Vec<(u64, u64, &[u8])> = Vec::new();
        let zeroes = vec![0; LEAF_SPAN as usize];
        for (offset, len, bytes) in &self.pieces {
            all.push((*offset, u64::from(*len), bytes.as_deref().unwrap_or(&zeroes[..*len as usize])));
        }
        let told = all.iter().map(|(_, len, _)| len).sum();
        for (offset, len) in &self.unchanged {
            all.push((*offset, *len, &parent[*offset as usize..(*offset + *len) as usize]));
        }
        all.sort_by_key(|piece| piece.0);
        let mut at = 0;
        for (offset, len, bytes) in all {
            assert_eq!(offset, at, "every byte is told once");
            assert!(
                bytes == &new[at as usize..(at + len) as usize],
                "{len} bytes at {at} are not the volume's"
            );
            at += len;
        }
        assert_eq!(at, new.len() as u64);
        told
    }
}

#[tokio::test]
async fn only_what_has_changed_is_read() {
    let parent = mixed(3 * LEAF_SPAN as usize + 5 * M + 77);
    let (new, ranges) = changed(&parent);
    let listed: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    for segment in [128 << 10, 4 * M] {
        let shelf = Shelf::new([("s", Memory::tracked(new.clone(), ranges.clone()))]);
        let host = Host::new(shelf, |settings| settings.segment = segment);
        host.conductors.has_parent(&parent);
        host.publish(tracked(new.len(), 1)).await;
        let told = host.collect(session(1)).await;
        told.assert_is(&parent, &new);
        let Some((Tracking::Since { parent: since, changed, audited }, false)) = told.tracked else {
            panic!("{:?}", told.tracked)
        };
        assert_eq!((since, changed), (PARENT, listed));
        assert!((M as u64 / 2..3 * M as u64).contains(&audited), "{audited}");
        let Some(SessionEvent::Read { bytes_read, .. }) = told.end else { panic!("{:?}", told.end) };
        assert_eq!(bytes_read, host.context.counters.bytes_read.get(), "what is said to be read was read");
        assert!(bytes_read - audited < listed + 10 * 256 * 1024, "{bytes_read} bytes were read");
        host.end().await;
    }
}

#[tokio::test]
async fn a_list_that_leaves_out_a_change_is_found_out() {
    let parent = mixed(LEAF_SPAN as usize + 20 * M);
    let zeroes = parent.chunks(4096).position(|block| block.iter().all(|byte| *byte == 0)).unwrap() * 4096;
    for hidden in [zeroes, 30_000, LEAF_SPAN as usize + 7 * M] {
        let mut new = parent.clone();
        new[hidden] ^= 1;
        new[5 * M..6 * M].fill(7);
        let ranges = Vec::from([(5, 6)].map(|(from, to)| from * M as u64..to * M as u64));
        let shelf = Shelf::new([("s", Memory::tracked(new.clone(), ranges))]);
        let host = Host::new(shelf, |settings| settings.audit = Audit::ALL);
        host.conductors.has_parent(&parent);
        host.publish(tracked(new.len(), 1)).await;
        let mut told = host.collect(session(1)).await;
        let Some((Tracking::Everything { why: Some(why) }, true)) = &told.tracked else {
            panic!("{:?}", told.tracked)
        };
        assert!(why.contains("audit"), "{why}");
        told.forced.clear();
        told.assert_covers(&new, 0..2);
        assert!(told.unchanged.is_empty());
        // It stays found out.
        host.publish(ReadVolume { leaves: Some(vec![1]), ..tracked(new.len(), 2) }).await;
        let again = host.collect(session(1)).await;
        assert!(matches!(again.tracked, Some((Tracking::Everything { .. }, true))), "{:?}", again.tracked);
        assert!(again.unchanged.is_empty());
        host.end().await;
    }
}

#[tokio::test]
async fn everything_is_read_where_a_list_is_of_no_use() {
    let parent = mixed(20 * M);
    let (mut new, changed) = (parent.clone(), M as u64..2 * M as u64);
    new[M..2 * M].fill(3);
    let memory = |lie| Memory::tracked(new.clone(), Vec::from([changed.clone()])).lying(lie);
    let cases = [
        (memory(Lie::None), 1, "its size was"),
        (memory(Lie::OtherParent), 0, "not since the parent"),
        (memory(Lie::Disorder), 0, "not in order"),
        (memory(Lie::Unknown), 0, "overflowed"),
    ];
    for (memory, larger, word) in cases {
        let host = Host::new(Shelf::new([("s", memory)]), |_| {});
        host.conductors.has_parent(&parent);
        host.publish(tracked(new.len() + larger, 1)).await;
        let mut told = host.collect(session(1)).await;
        let Some((Tracking::Everything { why: Some(why) }, false)) = &told.tracked else {
            panic!("{:?}", told.tracked)
        };
        assert!(why.contains(word), "{why:?} does not say {word:?}");
        told.forced.clear();
        told.assert_covers(&new, 0..1);
        host.end().await;
    }
    // A conductor that knows no parent's leaves, and a request that names no parent.
    let host = Host::new(Shelf::new([("s", memory(Lie::None))]), |_| {});
    host.publish(tracked(new.len(), 1)).await;
    let told = host.collect(session(1)).await;
    assert!(
        matches!(&told.tracked, Some((Tracking::Everything { why: Some(_) }, false))),
        "{:?}",
        told.tracked
    );
    host.publish(ReadVolume { parent: None, ..tracked(0, 2) }).await;
    let told = host.collect(session(1)).await;
    assert_eq!(told.tracked, Some((Tracking::Everything { why: None }, false)));
    host.end().await;
}

#[tokio::test]
async fn forced_leaves_are_read_whole() {
    let parent = mixed(3 * LEAF_SPAN as usize);
    let (new, ranges) = changed(&parent);
    let host = Host::new(Shelf::new([("s", Memory::tracked(new.clone(), ranges))]), |_| {});
    host.conductors.has_parent(&parent);
    host.conductors.wants(1, &[(0, 1), (2, 1)], &[(1, 1)]);
    host.publish(tracked(new.len(), 1)).await;
    let told = host.collect(session(1)).await;
    told.assert_is(&parent, &new);
    assert_eq!(told.forced, BTreeSet::from([false, true]));
    let leaf = LEAF_SPAN..2 * LEAF_SPAN;
    assert!(told.unchanged.iter().all(|(offset, len)| offset + len <= leaf.start || *offset >= leaf.end));
    host.end().await;
}

/// What the parent has there cannot be relied on; what is stored of it is told by the index.
#[tokio::test]
async fn leaves_that_are_wanted_whole_are_read_whole_without_force() {
    let parent = mixed(3 * LEAF_SPAN as usize);
    let (new, ranges) = changed(&parent);
    let host = Host::new(Shelf::new([("s", Memory::tracked(new.clone(), ranges))]), |_| {});
    host.conductors.has_parent(&parent);
    host.conductors.wants_whole(1, &[(0, 3)], &[(1, 1)]);
    host.publish(tracked(new.len(), 1)).await;
    let told = host.collect(session(1)).await;
    told.assert_is(&parent, &new);
    assert_eq!(told.forced, BTreeSet::from([false]));
    let leaf = LEAF_SPAN..2 * LEAF_SPAN;
    assert!(told.unchanged.iter().all(|(offset, len)| offset + len <= leaf.start || *offset >= leaf.end));
    assert!(!told.unchanged.is_empty());
    host.end().await;
}

/// A reader that was busy, or away, finds requests that each list everything that was missing at their time.
#[tokio::test]
async fn requests_that_waited_do_not_read_again_what_is_there() {
    let bytes = mixed(4 * LEAF_SPAN as usize);
    let shelf = Shelf::new([("s", Memory::new(bytes.clone()))]);
    let host = Host::new(shelf.clone(), |_| {});
    let all = Some(vec![0, 1, 2, 3]);
    // The second one comes while the first one is served, by the other loop.
    host.conductors.wants(1, &[(0, 4)], &[]);
    host.conductors.wants(2, &[(3, 1)], &[]);
    for n in 3..8 {
        host.conductors.wants(n, &[], &[]);
    }
    for n in 1..8 {
        host.publish(ReadVolume { leaves: all.clone(), ..tracked(0, n) }).await;
    }
    let mut extents = host.bus.consume(&host.settings.extents, 1 << 30).await.unwrap();
    let mut events = host.bus.consume(&Queue::session(session(1)), 1 << 30).await.unwrap();
    let (mut answered, mut read) = (Vec::new(), 0);
    while answered.len() < 7 {
        let delivery = tokio::select! {
            extent = extents.next() => extent.unwrap(),
            event = events.next() => event.unwrap(),
        };
        if let Ok(SessionEvent::Read { request, bytes_read, .. }) = delivery.message.read() {
            answered.push(request);
            read += bytes_read;
        }
        delivery.ticket.done().await.unwrap();
    }
    assert_eq!(answered, [1, 2, 3, 4, 5, 6, 7], "each is answered, in its turn");
    assert_eq!(host.conductors.asked(), [1, 2, 3, 4, 5, 6, 7]);
    assert!(read < bytes.len() as u64 * 5 / 4, "{read} bytes were read of {}", bytes.len());
    host.until(|| host.requests() == 0).await;
    host.end().await;
}

#[tokio::test]
async fn a_session_that_wants_nothing_any_more_opens_nothing() {
    let shelf = Shelf::new([("s", Memory::new(mixed(M)))]);
    let host = Host::new(shelf.clone(), |_| {});
    let over = Wanted { over: true, leaves: Vec::new(), forced: Vec::new(), whole: Vec::new() };
    host.conductors.0.lock().unwrap().wanted.insert(1, over);
    host.publish(tracked(M, 1)).await;
    host.until(|| host.requests() == 0).await;
    assert_eq!(shelf.opened(), 0);
    host.end().await;
}

/// What volumes keep for the next run depends on it: a commit that was told before the stop is not forgotten.
#[tokio::test]
async fn volumes_hear_how_their_sessions_ended() {
    let shelf = Shelf::new([("s", Memory::new(mixed(M)))]);
    let host = Host::new(shelf.clone(), |_| {});
    host.read(session(1), "s", None).await;
    host.close(session(1), true).await;
    let elsewhere = CloseReading { session: session(2), host: "other".into(), committed: true };
    host.bus.broadcast(&Topic::closed(), Message::new(&About::nothing(), &elsewhere)).await.unwrap();
    host.close(session(3), false).await;
    host.end().await;
    assert_eq!(shelf.closed(), [(session(1), true), (session(3), false)]);
}

/// The word that the parent's session is over was lost.
#[tokio::test]
async fn a_session_closes_the_one_that_it_compares_with() {
    let bytes = mixed(M);
    let shelf = Shelf::new([("s", Memory::new(bytes.clone()))]);
    let host = Host::new(shelf.clone(), |_| {});
    host.read(PARENT, "s", None).await;
    host.publish(tracked(bytes.len(), 1)).await;
    host.collect(session(1)).await;
    assert_eq!(shelf.closed(), [(PARENT, true)]);
    host.end().await;
}

/// A conductor that died, or a word that was lost, must not cost a snapshot for the agent's life.
#[tokio::test]
async fn what_nobody_drives_is_released_and_what_somebody_drives_is_not() {
    let shelf = Shelf::new([("s", Memory::new(mixed(M)))]);
    let host = Host::at(Still::ending(1 << 50, abandoned::PAUSE), shelf.clone(), |_| {});
    host.conductors.wants(0, &[], &[]);
    host.read(session(1), "s", None).await;
    let rounds = || host.conductors.asked().iter().filter(|request| **request == 0).count();
    host.until(|| rounds() > 2 * abandoned::ROUNDS as usize).await;
    assert_eq!(shelf.released(), []);
    host.conductors.0.lock().unwrap().wanted.clear();
    host.until(|| !shelf.released().is_empty()).await;
    assert_eq!((shelf.released(), shelf.closed()), (vec![session(1)], vec![]));
    // Whoever drove it was only away.
    host.request(session(1), "s", None).await;
    host.until(|| shelf.opened() == 2).await;
    host.end().await;
}

#[tokio::test]
async fn waiting_for_a_place_is_no_failure_and_takes_nobody_elses() {
    let bytes = mixed(M);
    let shelf = Shelf::new([("a", Memory::new(bytes.clone())), ("b", Memory::new(bytes.clone()))]);
    let host =
        Host::at(Still::ending(1 << 50, places::PAUSE), shelf.clone(), |settings| settings.readers = 1);
    shelf.set_busy("a", u32::MAX);
    host.request(session(1), "a", None).await;
    host.request(session(1), "a", None).await;
    host.read(session(2), "b", None).await;
    // More often than a message may fail.
    shelf.set_busy("a", 40);
    let told = host.collect(session(1)).await;
    told.assert_covers(&bytes, 0..1);
    assert_eq!(shelf.opened(), 2);
    host.until(|| host.requests() == 0).await;
    host.end().await;
}

#[tokio::test]
async fn a_session_that_is_over_waits_no_longer() {
    let shelf = Shelf::new([("s", Memory::new(mixed(M)))]);
    let host = Host::at(Still::ending(1 << 50, places::PAUSE), shelf.clone(), |_| {});
    shelf.set_busy("s", u32::MAX);
    host.conductors.wants(1, &[(0, 1)], &[]);
    host.publish(tracked(M, 1)).await;
    host.until(|| host.conductors.asked().len() > 3).await;
    let over = Wanted { over: true, leaves: Vec::new(), forced: Vec::new(), whole: Vec::new() };
    host.conductors.0.lock().unwrap().wanted.insert(1, over);
    host.until(|| host.requests() == 0).await;
    assert_eq!(shelf.opened(), 0);
    host.end().await;
}
