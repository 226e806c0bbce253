use std::sync::Arc;

use agent::faults::store::{FaultyStore, Refusal, StoreFaults};
use agent::repository::AtSlot;
use agent::sessions::OpenSession;
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::*;
use schema::epoch::{Awaited, Epoch};
use schema::messages::FailureKind;
use schema::names::Slot;
use schema::session::{Session, SessionKind};
use schema::{Domain, JobId, SessionId, names};

use super::fixture::*;
use crate::{Collector, Latest, Left, latest, unfinished};

/// A store that lets no pack go.
#[derive(Debug)]
struct Locked(Arc<object_store::memory::InMemory>);

impl std::fmt::Display for Locked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("locked")
    }
}

#[async_trait]
impl ObjectStore for Locked {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.0.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.0.get_opts(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let inner = self.0.clone();
        let delete = move |path: Path| {
            let inner = inner.clone();
            async move {
                if path.as_ref().starts_with("packs/") {
                    return Err(Error::PermissionDenied { path: path.to_string(), source: "locked".into() });
                }
                inner.delete(&path).await.map(|()| path)
            }
        };
        paths.and_then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_pack_that_is_locked_is_left_and_tried_again() {
    let (world, _) = littered(false).await;
    let repository = world.over(Arc::new(Locked(world.inner.clone())));
    let collector = Collector::new(repository.clone(), World::settings(), Default::default());
    let report = collector.prune().await.unwrap();
    assert_eq!((report.swept.packs, report.swept.snapshots), (0, 2));
    assert!(!report.swept.locked.is_empty());
    let state = unfinished(&repository).await.unwrap().unwrap();
    let sizes = repository.list_packs().await.unwrap();
    let locked = sizes.iter().filter(|(pack, _)| report.swept.locked.contains(pack));
    let (packs, bytes) = (report.swept.locked.len() as u64, locked.map(|(_, size)| size).sum());
    assert!(bytes > 0);
    assert_eq!((state.decided, state.left), (true, Left { snapshots: 0, packs, bytes }));
    assert_eq!(report.left, state.left);
    // Until the lock ends, no other collection begins.
    assert_eq!(collector.prune().await.unwrap().epoch, report.epoch);
    assert_eq!(world.check().await, 2);
    world.prune_to_the_end().await;
    assert_eq!(unfinished(&world.repository).await.unwrap(), None);
    assert_eq!(world.check().await, 2);
}

#[tokio::test(start_paused = true)]
async fn credentials_that_only_read_are_named() {
    let (world, _) = littered(false).await;
    let environment = world.repository.store.environment().clone();
    let store = FaultyStore::new(world.inner.clone(), environment, StoreFaults::default());
    store.refuse(Some(Refusal::Writes));
    let repository = world.over(Arc::new(store));
    let failure =
        Collector::new(repository, World::settings(), Default::default()).prune().await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Store);
    assert_eq!(latest(&world.repository).await.unwrap(), Latest::Finished { next: 1 });
}

#[tokio::test(start_paused = true)]
async fn a_store_without_conditional_create_needs_somebodys_word() {
    let (world, _) = littered(false).await;
    let mut repository = world.repository.clone();
    repository.config.store.conditional_create = false;
    let mut settings = World::settings();
    let collector = Collector::new(repository.clone(), settings.clone(), Default::default());
    let failure = collector.prune().await.unwrap_err();
    assert!(failure.kind == FailureKind::Refused && failure.why.contains("--exclusive"), "{failure}");
    settings.exclusive = true;
    let report = Collector::new(repository, settings, Default::default()).prune().await.unwrap();
    assert!(report.swept.packs > 0);
    assert_eq!(world.check().await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_map_that_is_missing_stops_the_collection_until_its_snapshot_is_forgotten() {
    let (world, _) = littered(false).await;
    let lost = world.backup("lost", &[70, 71, 72]).await;
    let AtSlot::Snapshot(root) = world.repository.at_slot(lost).await.unwrap() else { panic!() };
    let (pack, ..) = world.copies().await.unwrap()[&root.top.unwrap()][0];
    world.repository.store.delete(&names::pack(pack)).await.unwrap();
    let before = world.packs().await;
    let failure = world.prune().await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Damaged);
    assert!(failure.why.contains("lost") && failure.why.contains(&lost.session.to_string()), "{failure}");
    assert_eq!(world.packs().await, before);

    world.forget(lost).await;
    assert!(world.prune().await.unwrap().swept.packs > 0);
    assert_eq!(world.check().await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_map_that_gets_lost_during_a_collection_reprieves_everything_and_the_epoch_ends() {
    let (world, _) = littered(false).await;
    let lost = world.backup("lost", &[70, 71, 72]).await;
    let early = world.begin("early").await.unwrap();
    assert_eq!(world.prune().await.unwrap().waits.len(), 1);
    early.open.abandon().await.unwrap();
    let AtSlot::Snapshot(root) = world.repository.at_slot(lost).await.unwrap() else { panic!() };
    let (pack, ..) = world.copies().await.unwrap()[&root.top.unwrap()][0];
    world.repository.store.delete(&names::pack(pack)).await.unwrap();
    let before = world.packs().await;
    assert_eq!(world.prune().await.unwrap_err().kind, FailureKind::Damaged);
    assert_eq!(world.packs().await, before);
    assert_eq!(latest(&world.repository).await.unwrap(), Latest::Finished { next: 2 });
    world.forget(lost).await;
    world.prune_to_the_end().await;
    assert_eq!(world.check().await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_verdict_is_made_of_what_is_there_whatever_an_epoch_condemns() {
    let (world, _) = littered(false).await;
    // A mark that was as stale as can be: it condemned everything.
    let condemned = world.packs().await.into_iter().collect();
    let epoch = Epoch { number: 1, forgotten: Vec::new(), condemned };
    let key = names::epoch(1);
    let bytes = world.repository.seal(&key, &epoch).unwrap();
    world.repository.store.put(&key, bytes).await.unwrap();
    world.prune_to_the_end().await;
    assert_eq!(world.check().await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_verdict_believes_no_copy_that_is_newer_than_what_it_would_replace() {
    let world = World::plain().await;
    world.backup("a", &[1, 2, 3]).await;
    let condemned = world.packs().await.into_iter().collect();
    let nobody = SessionId::from_bytes([9; 16]);
    world.pack_with(Domain::Data, &[chunk(1), chunk(2), chunk(3)], 3, nobody).await;
    let epoch = Epoch { number: 1, forgotten: Vec::new(), condemned };
    let key = names::epoch(1);
    let bytes = world.repository.seal(&key, &epoch).unwrap();
    world.repository.store.put(&key, bytes).await.unwrap();
    world.prune_to_the_end().await;
    assert_eq!(world.check().await, 1);
}

/// Until any one operation of the collector, a store says of a condemned pack that it is not there, and lists it.
#[tokio::test(start_paused = true)]
async fn a_condemned_pack_that_only_seems_to_be_gone_is_not_deleted() {
    let base = World::plain().await;
    base.backup("a", &[1, 2, 3]).await;
    let first = base.repository.key.chunk_ids().id(Domain::Data, &chunk(1));
    let (needed, ..) = base.copies().await.unwrap()[&first][0];
    let condemned = base.packs().await.into_iter().collect();
    let (key, epoch) = (names::epoch(1), Epoch { number: 1, forgotten: Vec::new(), condemned });
    let bytes = base.repository.seal(&key, &epoch).unwrap();
    base.repository.store.put(&key, bytes).await.unwrap();
    for number in 0.. {
        let world = base.fork();
        let (store, _) = hiding(&world);
        store.hide(Some(&names::pack(needed)));
        let given = store.clone();
        let moment = Moment::act(Arc::new(store), number, Box::pin(async move { given.hide(None) }));
        let repository = world.over(Arc::new(moment.clone()));
        Collector::new(repository, World::settings(), Default::default()).prune().await.unwrap();
        assert!(world.packs().await.contains(&needed), "operation {number}");
        assert_eq!(world.check().await, 1, "operation {number}");
        if moment.count() <= number {
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_root_that_gets_unreadable_during_a_collection_reprieves_everything_and_the_epoch_ends() {
    let (world, _) = littered(false).await;
    let lost = world.backup("lost", &[70, 71, 72]).await;
    let mut early = world.begin("early").await.unwrap();
    early.store(&[1, 2]).await.unwrap();
    let object = names::session(early.open.session().id);
    assert_eq!(world.prune().await.unwrap().waits.len(), 1);
    let (store, own) = (&world.repository.store, early.open.slot().unwrap());
    let body = store.get(&object).await.unwrap().unwrap();
    early.commit().await.unwrap().unwrap();
    // Its driver died before it could delete its object, and a newer lvkeep wrote what nobody here can read.
    store.put(&object, body).await.unwrap();
    for slot in [own, lost] {
        let mut newer = store.get(&slot.snapshot()).await.unwrap().unwrap().to_vec();
        newer[5] = 0xff;
        *newer.last_mut().unwrap() ^= 1;
        store.put(&slot.snapshot(), newer.into()).await.unwrap();
    }
    let before = world.packs().await;
    assert_eq!(world.prune().await.unwrap_err().kind, FailureKind::Refused);
    assert_eq!(store.head(&object).await.unwrap(), None);
    assert_eq!(world.packs().await, before);
    assert_eq!(latest(&world.repository).await.unwrap(), Latest::Finished { next: 2 });
}

fn hiding(world: &World) -> (FaultyStore, Collector) {
    let environment = world.repository.store.environment().clone();
    let store = FaultyStore::new(world.inner.clone(), environment, StoreFaults::default());
    let repository = world.over(Arc::new(store.clone()));
    (store, Collector::new(repository, World::settings(), Default::default()))
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_is_listed_and_not_there_is_needed_all_the_same() {
    let (world, _) = littered(false).await;
    let early = world.begin("early").await.unwrap();
    let (store, collector) = hiding(&world);
    let snapshot = world.visible().await[0].snapshot();
    store.hide(Some(&snapshot));
    let first = collector.prune().await.unwrap_err();
    store.hide(None);
    assert_eq!(collector.prune().await.unwrap().waits.len(), 1);
    early.open.abandon().await.unwrap();
    let before = world.packs().await;
    store.hide(Some(&snapshot));
    let second = collector.prune().await.unwrap_err();
    for failure in [first, second] {
        assert!(failure.kind == FailureKind::Store && failure.why.contains(&snapshot), "{failure}");
    }
    assert_eq!(world.packs().await, before);
    store.hide(None);
    assert!(collector.prune().await.unwrap().swept.packs > 0);
    assert_eq!(world.check().await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_somebody_overwrites_during_a_collection_stops_it() {
    let (world, _) = littered(false).await;
    let early = world.begin("early").await.unwrap();
    assert_eq!(world.prune().await.unwrap().waits.len(), 1);
    early.open.abandon().await.unwrap();
    let victim = world.visible().await[0];
    let mut refused = 0;
    for number in 0..40 {
        let world = world.fork();
        let (repository, key) = (world.repository.clone(), victim.snapshot());
        let act = Box::pin(async move {
            let tombstone = repository.tombstone(victim).unwrap();
            repository.store.put(&key, tombstone).await.unwrap();
        });
        let moment = Moment::act(world.inner.clone(), number, act);
        let repository = world.over(Arc::new(moment));
        let pruned = Collector::new(repository, World::settings(), Default::default()).prune().await;
        if let Err(failure) = pruned {
            assert!(
                failure.kind == FailureKind::Store && failure.why.contains(&victim.snapshot()),
                "{failure}"
            );
            refused += 1;
        }
    }
    assert!(refused > 0);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_listed_and_not_there_is_waited_for() {
    let (world, _) = littered(false).await;
    let mut backup = world.begin("early").await.unwrap();
    backup.store(&(40..60).collect::<Vec<_>>()).await.unwrap();
    let (store, collector) = hiding(&world);
    store.hide(Some(&names::session(backup.open.session().id)));
    assert_eq!(collector.prune().await.unwrap().waits.len(), 1);
    backup.commit().await.unwrap().unwrap();
    assert_eq!(world.check().await, 3);
}

#[tokio::test(start_paused = true)]
async fn an_epoch_that_is_listed_and_not_there_is_not_finished() {
    let (world, _) = littered(false).await;
    let early = world.begin("early").await.unwrap();
    assert_eq!(world.prune().await.unwrap().waits.len(), 1);
    let (store, collector) = hiding(&world);
    store.hide(Some(&names::epoch(1)));
    let failure = collector.prune().await.unwrap_err();
    assert!(failure.kind == FailureKind::Store && failure.why.contains(&names::epoch(1)), "{failure}");
    early.open.abandon().await.unwrap();
}

/// Any listing that was made after the epoch is right, and whoever collects next waits for no later session.
#[tokio::test(start_paused = true)]
async fn a_list_of_sessions_that_cannot_be_read_is_made_anew_and_kept() {
    let key = names::awaited(1);
    let (original, _) = littered(false).await;
    let early = original.begin("early").await.unwrap();
    assert_eq!(original.prune().await.unwrap().waits.len(), 1);
    let whole = original.repository.store.get(&key).await.unwrap().unwrap();
    let [mut torn, mut newer] = [whole.to_vec(), whole.to_vec()];
    *torn.last_mut().unwrap() ^= 1;
    newer[5] = 0xff;
    *newer.last_mut().unwrap() ^= 1;
    let other = Awaited { number: 2, sessions: Vec::new() };
    let other = original.repository.seal(&key, &other).unwrap();
    for (rotten, is_mended) in
        [(Bytes::new(), true), (torn.into(), true), (other, true), (newer.into(), false)]
    {
        let world = original.fork();
        world.repository.store.put(&key, rotten.clone()).await.unwrap();
        let waits = world.prune().await.unwrap().waits;
        assert_eq!(waits.iter().map(|one| one.session).collect::<Vec<_>>(), [early.open.session().id]);
        let late = world.begin("late").await.unwrap();
        let waits = world.prune().await.unwrap().waits;
        assert_eq!(waits.len(), if is_mended { 1 } else { 2 }, "{waits:?}");
        let kept = world.repository.store.get(&key).await.unwrap().unwrap();
        assert_eq!(kept != rotten, is_mended);
        late.open.abandon().await.unwrap();
        // Also once nobody waits for anything.
        let open = agent::sessions::list(&world.repository).await.unwrap();
        for session in &open {
            agent::sessions::revoke(&world.repository, session).await.unwrap();
        }
        world.prune_to_the_end().await;
        let latest = agent::epochs::latest(&world.repository).await.unwrap().unwrap().number;
        world.repository.store.put(&names::awaited(latest), Bytes::new()).await.unwrap();
        world.prune().await.unwrap();
        assert_eq!(agent::epochs::awaited(&world.repository).await.unwrap(), Some(Vec::new()));
        assert_eq!(world.check().await, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn damaged_packs_stay_and_nothing_relies_on_them() {
    let world = World::plain().await;
    world.backup("a", &[1, 2, 3, 4]).await;
    let nobody = SessionId::from_bytes([9; 16]);
    // Newer copies of everything, in a pack whose end is torn.
    let torn = world.pack(Domain::Data, &[chunk(1), chunk(2), chunk(3), chunk(4)], nobody).await;
    let key = names::pack(torn);
    let bytes = world.repository.store.get(&key).await.unwrap().unwrap();
    world.repository.store.put(&key, bytes.slice(..bytes.len() - 40)).await.unwrap();
    let empty = world.repository.environment().pack_id();
    world.repository.store.put(&names::pack(empty), Bytes::from_static(b"short")).await.unwrap();
    let before = world.packs().await;
    let report = world.prune().await.unwrap();
    assert_eq!(report.epoch, None);
    assert_eq!(world.packs().await, before);
    assert!(report.sums.unwrap().damaged > 0);
    assert_eq!(world.check().await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_torn_pack_goes_when_what_was_whole_in_it_was_moved() {
    let world = World::plain().await;
    world.backup("a", &[1, 2, 3]).await;
    let copies = world.copies().await.unwrap();
    let (torn, ..) = copies[&world.repository.key.chunk_ids().id(Domain::Data, &chunk(1))][0];
    let key = names::pack(torn);
    let bytes = world.repository.store.get(&key).await.unwrap().unwrap();
    world.repository.store.put(&key, bytes.slice(..bytes.len() - 40)).await.unwrap();
    world.damage_pack(torn).await;
    // Nothing of it has moved yet.
    world.prune_to_the_end().await;
    assert!(world.packs().await.contains(&torn));
    let nobody = SessionId::from_bytes([9; 16]);
    let moved = world.pack(Domain::Data, &[chunk(1), chunk(2), chunk(3)], nobody).await;
    world.prune_to_the_end().await;
    let left = world.packs().await;
    assert!(left.contains(&moved) && !left.contains(&torn), "{left:?}");
    assert_eq!(world.check().await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_pack_whose_frames_are_not_where_it_says_is_not_rewritten() {
    let (world, _) = littered(false).await;
    for pack in world.packs().await {
        let (header, footer) = world.repository.read_footer(pack).await.unwrap();
        if header.kind == Domain::Data {
            let key = names::pack(pack);
            let mut bytes = world.repository.store.get(&key).await.unwrap().unwrap().to_vec();
            footer.entries.iter().for_each(|entry| bytes[entry.offset as usize + 20] ^= 1);
            world.repository.store.put(&key, bytes.into()).await.unwrap();
        }
    }
    let dry = world.collector().dry_run().await.unwrap();
    let report = world.prune().await.unwrap();
    assert!(report.rewritten < dry.rewritten, "{} of {}", report.rewritten, dry.rewritten);
    assert_eq!(report.swept.packs, report.dead + report.rewritten);
}

#[tokio::test(start_paused = true)]
async fn what_was_begun_for_a_snapshot_that_is_gone_does_not_count_for_another() {
    let (base, _) = littered(false).await;
    let mut twins = [base.backup("one", &[70, 71]).await, base.backup("other", &[70, 71]).await];
    twins.sort();
    let AtSlot::Snapshot(root) = base.repository.at_slot(twins[1]).await.unwrap() else { panic!() };
    let (pack, ..) = base.copies().await.unwrap()[&root.top.unwrap()][0];
    base.repository.store.delete(&names::pack(pack)).await.unwrap();
    let before = base.packs().await;
    for number in 0.. {
        let world = base.fork();
        let (repository, first) = (world.repository.clone(), twins[0]);
        let swept = async move {
            let tombstone = repository.tombstone(first).unwrap();
            repository.store.put(&first.snapshot(), tombstone).await.unwrap();
        };
        let moment = Moment::act(world.inner.clone(), number, Box::pin(swept));
        let repository = world.over(Arc::new(moment.clone()));
        let failure =
            Collector::new(repository, World::settings(), Default::default()).prune().await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Damaged, "operation {number}");
        assert_eq!(world.packs().await, before, "operation {number}");
        if moment.count() <= number {
            break;
        }
    }
}

/// What a marker names that never stood anywhere keeps nobody from collecting; what is listed and not given may be what a
/// restore has to undo.
#[tokio::test(start_paused = true)]
async fn what_may_have_to_be_undone_is_not_taken_for_absent() {
    let world = World::plain().await;
    let slot = world.backup("undo/host/a", &[1, 2]).await;
    world.forget(slot).await;
    let nowhere = Slot { session: SessionId::from_bytes([9; 16]), ..slot };
    world.forget(nowhere).await;
    let root = world.repository.roots_at(vec![slot]).await.unwrap().readable.remove(0);
    let session = Session {
        id: world.repository.environment().session_id(),
        kind: SessionKind::Restore,
        slot: None,
        job: JobId::from_bytes([9; 16]),
        volume: "a".into(),
        host: "host".into(),
        started_ms: 0,
        checkpoint: None,
        ended: None,
        undo: vec![root.job],
    };
    let open = OpenSession::begin(world.repository.clone(), session).await.unwrap();
    let (store, collector) = hiding(&world);
    store.hide(Some(&slot.snapshot()));
    let failure = collector.prune().await.unwrap_err();
    assert!(failure.kind == FailureKind::Store && failure.why.contains(&slot.snapshot()), "{failure}");
    store.hide(None);
    assert_eq!(collector.prune().await.unwrap().epoch, None, "it is protected");
    open.end().await.unwrap();
    world.prune_to_the_end().await;
    assert!(world.packs().await.is_empty());
}
