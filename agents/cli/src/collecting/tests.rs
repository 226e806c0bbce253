use std::sync::Arc;

use agent::Environment;
use agent::faults::store::{FaultyStore, Refusal, StoreFaults};
use agent::local::LocalBus;
use agent::repository::{AtSlot, NewRepository};
use agent::sessions::OpenSession;
use agent::store::Store;
use object_store::memory::InMemory;
use schema::chunk::{FrameHeader, Sealer};
use schema::keys::FrameKey;
use schema::names::Slot;
use schema::pack::{PackBuilder, PackHeader};
use schema::session::{Session, SessionKind};
use schema::{Domain, names};

use super::*;
use crate::environment::SystemEnvironment;

/// An agent that collects from a bucket with one pack that nobody needs. Its turns do not wait.
async fn world() -> (Collecting, FaultyStore) {
    let environment: Arc<dyn Environment> = Arc::new(SystemEnvironment::new());
    let bucket = FaultyStore::new(Arc::new(InMemory::new()), environment.clone(), StoreFaults::default());
    let store = Store::new(Arc::new(bucket.clone()), "", "bucket", environment.clone());
    let new = NewRepository { recipients: Vec::new(), pack_size: 1 << 20 };
    let repository = Repository::init(store, &new).await.expect("a repository");
    let (pack, kind) = (environment.pack_id(), Domain::Data);
    let header = PackHeader { repo: repository.key.repo(), pack, kind, class: 0 };
    let (mut builder, mut frame) = (PackBuilder::new(header), Vec::new());
    let id = repository.key.chunk_ids().id(kind, b"nobody needs this");
    let mut sealer = Sealer::new(1).expect("a sealer");
    sealer.seal(id, b"nobody needs this", &FrameKey::plain(), &mut frame).expect("a frame");
    let head = FrameHeader::parse(&frame).expect("a header");
    builder.push(&[head], frame.into(), environment.session_id()).expect("room");
    repository.store.put_once(&names::pack(pack), builder.finish().0).await.expect("a pack");
    let context = Context {
        bus: Arc::new(LocalBus::new(environment.clone(), 1 << 20)),
        environment,
        counters: Arc::default(),
        stop: Default::default(),
        host: "host".into(),
    };
    let settings = Settings {
        limits: Limits { max_repack: 1 << 20, repack_below: REPACK_BELOW },
        memory: 1 << 20,
        patience: Patience::default(),
        exclusive: false,
        announce: Announce::default(),
    };
    (Collecting { context, repository, settings, every: Duration::ZERO, next: None }, bucket)
}

impl Collecting {
    async fn packs(&self) -> usize {
        self.repository.list_packs().await.expect("packs").len()
    }

    fn collected(&self) -> u64 {
        self.context.counters.collections.get()
    }
}

#[tokio::test]
async fn a_collection_that_the_store_does_not_let_end_is_not_finished() {
    let (mut collecting, bucket) = world().await;
    bucket.refuse(Some(Refusal::Deletions));
    for turn in 0..2 {
        assert!(!collecting.turn().await.expect("a turn"), "it waits for nobody");
        assert_eq!((collecting.packs().await, collecting.collected()), (1, 0), "turn {turn}");
    }
    bucket.refuse(None);
    collecting.turn().await.expect("a turn");
    assert_eq!((collecting.packs().await, collecting.collected()), (0, 1));
    collecting.turn().await.expect("a turn");
    assert_eq!(collecting.collected(), 1, "there was nothing to collect");
}

/// A backup that lost its machine, days ago.
#[tokio::test]
async fn how_long_a_session_is_waited_for_is_measured_and_it_is_cancelled_when_that_is_set() {
    let (mut collecting, _) = world().await;
    let (repository, environment) = (collecting.repository.clone(), collecting.context.environment.clone());
    let days = |days: u64| Duration::from_secs(days * 24 * 3600);
    let id = environment.session_id();
    let slot = Slot { volume: repository.key.volume_key("host/vg/lv"), session: id };
    let session = Session {
        id,
        kind: SessionKind::Backup,
        slot: Some(slot),
        job: environment.job_id(),
        volume: "host/vg/lv".into(),
        host: "host".into(),
        started_ms: environment.now_ms() - days(3).as_millis() as u64,
        checkpoint: None,
        ended: None,
        undo: Vec::new(),
    };
    OpenSession::begin(repository.clone(), session).await.expect("a session");
    let counters = collecting.context.counters.clone();
    let waited = || Duration::from_secs(counters.collection_waits_seconds.get());
    assert_eq!(waited(), Duration::ZERO);
    for revoke_after in [None, Some(days(4))] {
        collecting.settings.patience.revoke_after = revoke_after;
        assert!(collecting.turn().await.expect("a turn"), "it goes on waiting");
        assert!(waited() >= days(3) && waited() < days(4), "{:?}", waited());
        assert_eq!((collecting.packs().await, collecting.collected()), (1, 0));
    }
    collecting.settings.patience.revoke_after = Some(days(2));
    assert!(!collecting.turn().await.expect("a turn"));
    assert_eq!(waited(), Duration::ZERO);
    assert_eq!((collecting.packs().await, collecting.collected()), (0, 1));
    let at_slot = repository.at_slot(slot).await.expect("a slot");
    assert!(matches!(at_slot, AtSlot::Tombstone), "nothing of it will be committed: {at_slot:?}");
}
