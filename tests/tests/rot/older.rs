//! An object that stands again as it was before it was overwritten or deleted: by a store that forgets a write, by
//! replication that is late, or by somebody who puts an old version back.
//!
//! Packs, roots, markers, epochs and verdicts have no older version: their names are taken once, and what stands there
//! is only ever deleted, or overwritten by a tombstone as the root of a snapshot is that was swept. Of that one, and of what is deleted,
//! the older version is what was there before.

use agent::repository::AtSlot;
use agent::{Failure, Stop, forgetting, marks};
use bytes::Bytes;
use collector::{Announce, Collector, Limits, Patience, Settings};
use schema::check::End;
use schema::keys::Identity;
use schema::messages::FailureKind;
use schema::names;
use schema::session::{Checkpoint, Session, SessionKind};
use tests::rot::{Objects, Rot};

use super::{ALL, Victim, flipped, victim};

/// What an object was, and what everything is now.
struct Versions {
    what: &'static str,
    key: String,
    older: Bytes,
    now: Objects,
}

impl Versions {
    async fn of(rot: &Rot, what: &'static str, key: String, older: &Objects) -> Self {
        let (older, now) = (older[&key].clone(), rot.objects().await);
        assert!(now.get(&key) != Some(&older), "{what} has another version");
        Self { what, key, older, now }
    }

    /// The repository in which the older version stands again.
    async fn again(&self, victim: &Victim) -> Rot {
        let mut objects = self.now.clone();
        objects.insert(self.key.clone(), self.older.clone());
        victim.rot.with(&objects).await.unwrap_or_else(|why| panic!("{}: {why}", self.what))
    }
}

/// Both volumes come back, a check finds nothing, the next backup is like any other, and a repair as well.
async fn nothing_suffers(victim: &Victim, rot: &Rot, what: &str) {
    let report = rot.check(ALL).await.unwrap_or_else(|why| panic!("{what}: {why}"));
    assert!(report.is_clean(), "{what}: {report:?}");
    victim.good_is_unharmed(rot, what).await;
    let next = rot.backup("vm/bad", &victim.path).await.unwrap_or_else(|why| panic!("{what}: {why}"));
    for root in [&victim.bad.0, &next] {
        let (restored, _) = rot.restore(root).await.unwrap_or_else(|why| panic!("{what}: {why}"));
        assert!(restored == victim.bad.1, "{what}");
    }
    let (_, report) = rot.repair().await.unwrap_or_else(|why| panic!("{what}: {why}"));
    assert!(report.is_clean(), "{what}: {report:?}");
}

/// `config` and data keys, as they were before somebody else could open them.
#[tokio::test]
async fn before_a_recipient_was_added() {
    let victim = victim().await;
    let rot = victim.rot.with(&victim.objects).await.expect("a repository");
    let repository = &rot.repository;
    let key = repository.key.with_recipient(&Identity::generate().recipients()[0]).expect("a writer key");
    let config = schema::config::Config { key_generation: key.generation(), ..repository.config.clone() };
    let bytes = config.encode(&key, [7; 12]).expect("a configuration");
    repository.store.put(names::CONFIG, bytes.into()).await.expect("it is there");
    let data = victim.brought.iter().find(|key| key.starts_with("keys/")).expect("a data key").clone();
    let sealed = rot.data_key(&data, &key).await.expect("a data key");
    repository.store.put(&data, sealed).await.expect("it is there");
    for key in [names::CONFIG.to_owned(), data] {
        let versions = Versions::of(&rot, "config or key", key, &victim.objects).await;
        nothing_suffers(&victim, &versions.again(&victim).await, &versions.key).await;
    }
}

/// A session of a backup, as it was before it had got far, and as it was before it ended.
#[tokio::test]
async fn a_session_that_was_further_or_is_over() {
    let victim = victim().await;
    let rot = victim.rot.with(&victim.objects).await.expect("a repository");
    let (root, environment) = (&victim.bad.0, rot.repository.environment());
    let id = environment.session_id();
    let mut session = Session {
        id,
        kind: SessionKind::Backup,
        slot: Some(schema::names::Slot { session: id, ..root.slot }),
        job: environment.job_id(),
        volume: "vm/bad".into(),
        host: "host".into(),
        started_ms: 0,
        checkpoint: None,
        ended: None,
        undo: Vec::new(),
    };
    let key = names::session(id);
    rot.put(&key, &session).await.expect("a session");
    let older = rot.objects().await;
    session.checkpoint = Some(Checkpoint { reading: root.reading, size: root.size, leaves: vec![] });
    rot.put(&key, &session).await.expect("a session");
    let further = Versions::of(&rot, "a session with a checkpoint", key.clone(), &older).await;
    rot.repository.store.delete(&key).await.expect("it ends");
    let over = Versions::of(&rot, "a session that is over", key, &further.now).await;
    for versions in [further, over] {
        nothing_suffers(&victim, &versions.again(&victim).await, versions.what).await;
    }
}

/// A hold that was released holds again, and the labels before the last ones say nothing beside them.
#[tokio::test]
async fn what_was_said_of_a_snapshot_before() {
    let victim = victim().await;
    let rot = victim.rot.with(&victim.objects).await.expect("a repository");
    let (repository, root) = (&rot.repository, &victim.older);
    let label = async |tag: &'static str| {
        let labels = marks::label(repository, root, "a test", |labels| labels.tags = vec![tag.into()]).await;
        labels.expect("labels");
    };
    let hold = marks::hold(repository, root.slot, None, "a test").await.expect("a hold");
    label("first").await;
    let older = rot.objects().await;
    marks::release(repository, root.slot, &[hold]).await.expect("it is released");
    label("second").await;
    let held = Versions::of(&rot, "a hold", root.slot.mark(hold), &older).await.again(&victim).await;
    let first = Versions::of(&rot, "labels", root.slot.labels(1), &older).await.again(&victim).await;
    for (rot, is_held) in [(&held, true), (&first, false)] {
        let marks = marks::of(&rot.repository, root.slot).await.expect("marks");
        assert_eq!((marks.is_held(), marks.labels(root).tags), (is_held, vec!["second".to_owned()]));
        nothing_suffers(&victim, rot, "marks").await;
    }
}

/// A record of damage that was settled, and the holes that it had made in a snapshot which is healed.
#[tokio::test]
async fn damage_that_is_healed() {
    let victim = victim().await;
    let (data, frames) = victim.pack(schema::Domain::Data);
    let mut objects = victim.objects.clone();
    objects.insert(data.clone(), flipped(&objects[&data], frames[0].0 + frames[0].1 / 2));
    let rot = victim.rot.with(&objects).await.expect("a repository");
    rot.repair().await.expect("a repair");
    let holed = rot.objects().await;
    let holes = holed.keys().find(|key| key.starts_with("holes/")).expect("holes").clone();
    rot.backup("vm/bad", &victim.path).await.expect("a backup");
    rot.repair().await.expect("a repair");
    let versions = Versions::of(&rot, "holes", holes.clone(), &holed).await;
    let rot = versions.again(&victim).await;
    // What they say is looked at: it is there.
    let root = &victim.bad.0;
    let (restored, _) = rot.restore_as(root, false).await.expect("a restore");
    assert!(restored == victim.bad.1);
    rot.repair().await.expect("a repair");
    assert!(!rot.objects().await.contains_key(&holes));
    let (restored, _) = rot.restore_as(root, false).await.expect("a restore");
    assert!(restored == victim.bad.1);

    // When what it names is gone, a record says nothing any more.
    collect(&rot).await.expect("a collection");
    rot.check(ALL).await.expect("a report");
    let record = holed.keys().find(|key| key.starts_with("damage/")).expect("a record").clone();
    let settled = Versions::of(&rot, "a record of damage", record.clone(), &holed).await;
    let rot = settled.again(&victim).await;
    nothing_suffers(&victim, &rot, settled.what).await;
    assert!(!rot.objects().await.contains_key(&record), "it is taken away again");
}

/// The root of a snapshot that was swept, over its tombstone: it stays forgotten, and is swept again.
#[tokio::test]
async fn a_root_that_was_swept() {
    let victim = victim().await;
    let rot = victim.rot.with(&victim.objects).await.expect("a repository");
    let root = &victim.older;
    forgetting::forget(&rot.repository, root, "a test").await.expect("it is forgotten");
    let older = rot.objects().await;
    collect(&rot).await.expect("a collection");
    let versions = Versions::of(&rot, "a root", root.slot.snapshot(), &older).await;
    let rot = versions.again(&victim).await;
    nothing_suffers(&victim, &rot, versions.what).await;
    // It does not come back, and the next collection sweeps it again.
    let refused = forgetting::unforget(&rot.repository, root, "a test").await.expect_err("it was swept");
    assert_eq!(refused.kind, FailureKind::Refused, "{refused}");
    collect(&rot).await.expect("a collection");
    let at_slot = rot.repository.at_slot(root.slot).await.expect("a slot");
    assert!(matches!(at_slot, AtSlot::Tombstone), "{at_slot:?}");
    victim.good_is_unharmed(&rot, versions.what).await;
}

/// A check of agents as it was before it had got far, and as it was before it ended.
#[tokio::test]
async fn a_check_that_was_further_or_is_over() {
    let victim = victim().await;
    let rot = victim.rot.with(&victim.objects).await.expect("a repository");
    let mut check = super::open_check(rot.repository.environment().job_id());
    let key = names::check(check.job);
    rot.put(&key, &check).await.expect("a check");
    let older = rot.objects().await;
    check.reached.done = 1;
    rot.put(&key, &check).await.expect("a check");
    let further = Versions::of(&rot, "a check that was further", key.clone(), &older).await;
    check.end = Some(End::Checked(Box::default()));
    rot.put(&key, &check).await.expect("a check");
    let over = Versions::of(&rot, "a check that is over", key.clone(), &further.now).await;
    rot.repository.store.delete(&key).await.expect("it is taken away");
    let gone = Versions::of(&rot, "a check that is gone", key, &over.now).await;
    for (versions, is_over) in [(further, false), (over, false), (gone, true)] {
        let rot = versions.again(&victim).await;
        nothing_suffers(&victim, &rot, versions.what).await;
        let checks = checker::jobs::list(&rot.repository).await.expect("checks");
        assert_eq!(checks.iter().map(|check| check.end.is_some()).collect::<Vec<_>>(), [is_over]);
    }
}

/// A data key that somebody made empty opens again what it had sealed.
#[tokio::test]
async fn a_key_that_was_emptied() {
    let victim = victim().await;
    let rot = victim.rot.with(&victim.objects).await.expect("a repository");
    let key = names::key(victim.key());
    rot.repository.store.put(&key, Bytes::new()).await.expect("it is empty");
    assert!(!rot.check(ALL).await.expect("a report").is_clean());
    let versions = Versions::of(&rot, "a data key", key, &victim.objects).await;
    nothing_suffers(&victim, &versions.again(&victim).await, versions.what).await;
}

/// A pack that was swept: nobody needs it, and the next collection sweeps it again.
#[tokio::test]
async fn a_pack_that_was_swept() {
    let victim = victim().await;
    let rot = victim.rot.with(&victim.objects).await.expect("a repository");
    forgetting::forget(&rot.repository, &victim.older, "a test").await.expect("it is forgotten");
    let older = rot.objects().await;
    collect(&rot).await.expect("a collection");
    let now = rot.objects().await;
    let swept: Vec<_> =
        older.keys().filter(|key| key.starts_with("packs/") && !now.contains_key(*key)).cloned().collect();
    assert!(!swept.is_empty());
    for key in swept {
        let versions = Versions::of(&rot, "a pack", key, &older).await;
        let rot = versions.again(&victim).await;
        nothing_suffers(&victim, &rot, &versions.key).await;
        collect(&rot).await.expect("a collection");
        assert!(!rot.objects().await.contains_key(&versions.key), "{}", versions.key);
        victim.good_is_unharmed(&rot, versions.what).await;
    }
}

pub(super) async fn collect(rot: &Rot) -> Result<(), Failure> {
    collect_as(rot, false).await
}

/// The same, where somebody gives their word that nothing else writes.
pub(super) async fn collect_as(rot: &Rot, exclusive: bool) -> Result<(), Failure> {
    done(prune_as(rot, exclusive).await?)
}

pub(super) async fn prune(rot: &Rot) -> Result<collector::Report, Failure> {
    prune_as(rot, false).await
}

fn done(report: collector::Report) -> Result<(), Failure> {
    match report.waits.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(FailureKind::Other, format!("it waits: {report:?}"))),
    }
}

async fn prune_as(rot: &Rot, exclusive: bool) -> Result<collector::Report, Failure> {
    let settings = Settings {
        limits: Limits { max_repack: u64::MAX, repack_below: 100 },
        memory: 1 << 20,
        patience: Patience::default(),
        exclusive,
        announce: Announce::default(),
    };
    Collector::new(rot.repository.clone(), settings, Stop::default()).prune().await
}
