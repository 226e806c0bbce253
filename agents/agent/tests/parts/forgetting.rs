//! Forgetting and bringing back, against marks, epochs and tombstones written by hand.

use std::time::Duration;

use agent::forgetting::{self, Forgot};
use agent::marks;
use agent::repository::AtSlot;
use agent::sessions;
use schema::damage::Holes;
use schema::epoch::Epoch;
use schema::facts::Origin;
use schema::messages::FailureKind;
use schema::root::Root;
use schema::session::{Session, SessionKind};
use schema::{MarkId, names};

use crate::support::{World, session_id};

async fn world_with(root: impl Fn(&World) -> Root) -> (World, Root) {
    let world = World::new().await;
    let root = root(&world);
    world.snapshot(&root).await;
    (world, root)
}

async fn forgotten() -> (World, Root) {
    let (world, root) = world_with(|world| world.root(1, 3, 5)).await;
    assert_eq!(forgetting::forget(&world.repository, &root, "test").await.unwrap(), Forgot::Done);
    world.record.take();
    (world, root)
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_looked_at_before_and_after_its_marker() {
    let (world, root) = world_with(|world| world.root(1, 1, 0)).await;
    world.record.take();
    forgetting::forget(&world.repository, &root, "test").await.unwrap();
    let marks = format!("list {}", root.slot.marks());
    assert_eq!(world.record.take(), [marks.clone(), format!("create {}", root.slot.forgotten()), marks]);
    assert!(world.repository.roots(None).await.unwrap().readable.is_empty());
    assert_eq!(world.repository.forgotten_slots(None).await.unwrap(), [root.slot]);
    // Once more, nothing is different.
    assert_eq!(forgetting::forget(&world.repository, &root, "test").await.unwrap(), Forgot::Done);
}

#[tokio::test(start_paused = true)]
async fn what_is_held_is_not_forgotten_until_it_is_released() {
    let (world, root) = world_with(|world| world.root(1, 1, 0)).await;
    let repository = &world.repository;
    marks::hold(repository, root.slot, Some("audit".into()), "me").await.unwrap();
    let expected = Forgot::Protected("held by me (audit)".into());
    assert_eq!(forgetting::forget(repository, &root, "test").await.unwrap(), expected);
    let holds = marks::of(repository, root.slot).await.unwrap().holds;
    marks::release(repository, root.slot, &[holds[0].id]).await.unwrap();
    // Something below its name that cannot be read may be a hold.
    let key = root.slot.mark(holds[0].id);
    world.put(&key, "damaged".into()).await;
    let refused = forgetting::forget(repository, &root, "test").await.unwrap();
    assert!(matches!(&refused, Forgot::Protected(why) if why.contains(&key)), "{refused:?}");
    repository.store.delete(&key).await.unwrap();
    assert_eq!(forgetting::forget(repository, &root, "test").await.unwrap(), Forgot::Done);
}

#[tokio::test(start_paused = true)]
async fn what_is_held_while_it_is_forgotten_comes_back() {
    let (world, root) = forgotten().await;
    // The hold came after the first look, and the marker after the hold's.
    marks::hold(&world.repository, root.slot, None, "me").await.unwrap();
    let back = forgetting::unforget(&world.repository, &root, "test").await.unwrap().root;
    assert!(marks::of(&world.repository, back.slot).await.unwrap().is_held());
    // Held where it was as well, it would never be collected there.
    assert!(!marks::of(&world.repository, root.slot).await.unwrap().is_held());
}

/// The steps of the protocol, one operation after the other.
#[tokio::test(start_paused = true)]
async fn bringing_back_looks_in_the_order_of_the_protocol() {
    let (world, root) = forgotten().await;
    let back = forgetting::unforget(&world.repository, &root, "test").await.unwrap();
    assert!(!back.already);
    let (volume, session) = (root.slot.volume, names::session(back.root.slot.session));
    let expected = [
        "list sessions".to_owned(),
        format!("list forgotten/{volume}"),
        format!("list snapshots/{volume}"),
        format!("create {session}"),
        "list gc".into(),
        "list packs".into(),
        "list damage".into(),
        format!("head {}", root.slot.forgotten()),
        format!("get {}", root.slot.snapshot()),
        format!("list {}", root.slot.marks()),
        format!("get {}", root.slot.holes()),
        format!("create {}", back.root.slot.snapshot()),
        format!("get {}", back.root.slot.snapshot()),
        format!("get {}", root.slot.holes()),
        format!("delete {session}"),
        format!("list {}", root.slot.marks()),
    ];
    assert_eq!(world.record.take(), expected);
}

#[tokio::test(start_paused = true)]
async fn what_comes_back_is_the_same_and_is_no_newer_than_it_was() {
    let (world, root) = forgotten().await;
    let repository = &world.repository;
    marks::label(repository, &root, "me", |labels| labels.tags = vec!["kept".into()]).await.unwrap();
    let (slot, ranges) = (root.slot, vec![(4096, 8192)]);
    let holes = Holes { version: Holes::VERSION, slot, found_ms: 0, ranges, is_unrecorded: true };
    let key = root.slot.holes();
    repository.store.put(&key, repository.seal(&key, &holes).unwrap()).await.unwrap();
    // A backup that was made meanwhile has the same generation.
    let later = Root { slot: world.slot(200), ..world.root(2, 3, 9) };
    world.snapshot(&later).await;
    let back = forgetting::unforget(repository, &root, "test").await.unwrap();
    let own = world.repository.key.repo();
    assert_eq!(Origin::of(&back.root, own), Origin::of(&root, own), "what copies take it for");
    assert_eq!(Root { slot: root.slot, layout: root.layout.clone(), ..back.root.clone() }, root);
    let labels = marks::of(repository, back.root.slot).await.unwrap().labels(&back.root);
    assert_eq!(labels.tags, ["kept"]);
    let carried = repository.read::<Holes>(&back.root.slot.holes()).await.unwrap();
    assert_eq!(carried, Some(Holes { slot: back.root.slot, ..holes }), "what of it is lost is still said");
    let visible = repository.roots(None).await.unwrap().readable;
    assert_eq!(visible.len(), 2);
    assert_eq!(sessions::newest(visible), Some(later));
    let again = forgetting::unforget(repository, &root, "test").await.unwrap();
    assert!(again.already);
    assert_eq!(again.root, back.root);
    assert!(sessions::list(repository).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_a_collection_sweeps_or_swept_does_not_come_back() {
    for verdict in [false, true] {
        let (world, root) = forgotten().await;
        let epoch = Epoch { number: 4, forgotten: vec![root.slot], condemned: Vec::new() };
        world.put(&names::epoch(4), world.repository.seal(&names::epoch(4), &epoch).unwrap()).await;
        if verdict {
            world.verdict(4, 4, &[]).await;
        }
        let refused = forgetting::unforget(&world.repository, &root, "test").await.unwrap_err();
        assert!(refused.why.contains("is being swept"), "{refused}");
        // The next epoch says nothing of it: it is gone by then.
        world.tombstone(root.slot).await;
        world.epoch(5, 5, &[]).await;
        let refused = forgetting::unforget(&world.repository, &root, "test").await.unwrap_err();
        assert!(refused.why.contains("was swept"), "{refused}");
        assert!(world.repository.roots(None).await.unwrap().readable.is_empty());
        assert!(sessions::list(&world.repository).await.unwrap().is_empty(), "nobody waits for it");
    }
}

/// A collection that cannot be read may be sweeping it, also one whose epoch was cut to nothing.
#[tokio::test(start_paused = true)]
async fn what_a_collection_may_sweep_that_cannot_be_read_does_not_come_back() {
    let (world, root) = forgotten().await;
    world.verdict(4, 4, &[]).await;
    for rot in ["rot", ""] {
        world.put(&names::epoch(4), rot.into()).await;
        let refused = forgetting::unforget(&world.repository, &root, "test").await.unwrap_err();
        assert!(refused.why.contains("`lvkeep repair`"), "{refused}");
        assert!(sessions::list(&world.repository).await.unwrap().is_empty(), "nobody waits for it");
    }
    world.epoch(4, 4, &[]).await;
    forgetting::unforget(&world.repository, &root, "test").await.unwrap();
}

/// Nobody else would end its session, and collections would wait for it for ever.
#[tokio::test(start_paused = true)]
async fn who_brings_back_leaves_no_session_when_the_store_goes_away_or_says_so() {
    for comes_back in [true, false] {
        let (world, root) = forgotten().await;
        world.faults.withhold(&root.slot.forgotten(), None);
        let away = async {
            world.environment.sleep(Duration::from_secs(5)).await;
            world.faults.crash();
            world.environment.sleep(Duration::from_secs(100)).await;
            if comes_back {
                world.faults.recover();
            }
        };
        let (back, ()) = tokio::join!(forgetting::unforget(&world.repository, &root, "test"), away);
        let failure = back.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Store, "{failure}");
        world.faults.recover();
        world.faults.withhold_nothing();
        let left = sessions::list(&world.repository).await.unwrap();
        assert_eq!(left.len(), usize::from(!comes_back), "{left:?}");
        for session in left {
            assert!(failure.why.contains(&format!("`lvkeep cancel {}`", session.id)), "{failure}");
        }
        forgetting::unforget(&world.repository, &root, "test").await.unwrap();
        assert!(sessions::list(&world.repository).await.unwrap().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_forgotten_is_not_brought_back() {
    let (world, root) = world_with(|world| world.root(1, 1, 0)).await;
    let refused = forgetting::unforget(&world.repository, &root, "test").await.unwrap_err();
    assert!(refused.why.contains("is not forgotten"), "{refused}");
    assert_eq!(world.repository.roots(None).await.unwrap().readable, [root]);
}

/// The attempt that crashed is over before the next one begins, whether it had committed or not.
#[tokio::test(start_paused = true)]
async fn a_crashed_attempt_is_found_again() {
    for committed in [false, true] {
        let (world, root) = forgotten().await;
        let session = Session {
            kind: SessionKind::Unforget,
            job: schema::JobId::from_bytes(*root.slot.session.as_bytes()),
            ..world.session(9)
        };
        let key = names::session(session_id(9));
        world.put(&key, world.repository.seal(&key, &session).unwrap()).await;
        if committed {
            world.snapshot(&Root { slot: world.slot(9), ..root.clone() }).await;
        }
        let back = forgetting::unforget(&world.repository, &root, "test").await.unwrap();
        assert_eq!((back.already, back.root.slot == world.slot(9)), (committed, committed));
        assert!(sessions::list(&world.repository).await.unwrap().is_empty());
        let at_slot = world.repository.at_slot(world.slot(9)).await.unwrap();
        assert_eq!(matches!(at_slot, AtSlot::Tombstone), !committed);
        assert_eq!(world.repository.roots(None).await.unwrap().readable.len(), 1);
    }
}

/// Before snapshots that came back said so.
#[tokio::test(start_paused = true)]
async fn what_an_older_program_brought_back_is_recognised() {
    let (world, root) = forgotten().await;
    let earlier = Root { slot: world.slot(9), ..root.clone() };
    world.snapshot(&earlier).await;
    let back = forgetting::unforget(&world.repository, &root, "test").await.unwrap();
    assert_eq!((back.already, back.root), (true, earlier));
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_whose_root_is_damaged_can_be_forgotten_unless_something_may_protect_it() {
    let world = World::new().await;
    let (repository, slot) = (&world.repository, world.slot(1));
    world.put(&slot.snapshot(), "damaged".into()).await;
    let forget = || forgetting::forget_damaged(repository, slot, "test");
    let hold = marks::hold(repository, slot, Some("audit".into()), "me").await.unwrap();
    assert_eq!(forget().await.unwrap(), Forgot::Protected("held by me (audit)".into()));
    marks::release(repository, slot, &[hold]).await.unwrap();
    let undo = vec![schema::JobId::from_bytes([5; 16])];
    let restore = Session { kind: SessionKind::Restore, slot: None, undo, ..world.session(9) };
    let key = names::session(session_id(9));
    world.put(&key, repository.seal(&key, &restore).unwrap()).await;
    let refused = forget().await.unwrap();
    assert!(matches!(&refused, Forgot::Protected(why) if why.contains("lvkeep cancel")), "{refused:?}");
    repository.store.delete(&key).await.unwrap();
    assert_eq!(forget().await.unwrap(), Forgot::Done);
    assert_eq!(repository.forgotten_slots(None).await.unwrap(), [slot]);
    assert!(repository.roots(None).await.unwrap().damaged.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_a_restore_may_have_to_undo_stays_until_it_ends() {
    let undo = "undo/host/vg/lv";
    let (world, root) = world_with(|world| {
        let slot = schema::names::Slot { volume: world.repository.key.volume_key(undo), ..world.slot(1) };
        Root { volume: undo.into(), slot, ..world.root(1, 1, 0) }
    })
    .await;
    let restore =
        Session { kind: SessionKind::Restore, slot: None, undo: vec![root.job], ..world.session(9) };
    let key = names::session(session_id(9));
    world.put(&key, world.repository.seal(&key, &restore).unwrap()).await;
    let refused = forgetting::forget(&world.repository, &root, "test").await.unwrap();
    assert!(matches!(&refused, Forgot::Protected(why) if why.contains("lvkeep cancel")), "{refused:?}");
    world.put(&key, "damaged".into()).await;
    let refused = forgetting::forget(&world.repository, &root, "test").await.unwrap();
    assert!(matches!(&refused, Forgot::Protected(why) if why.contains(&key)), "{refused:?}");
    world.repository.store.delete(&key).await.unwrap();
    assert_eq!(forgetting::forget(&world.repository, &root, "test").await.unwrap(), Forgot::Done);
}

#[tokio::test(start_paused = true)]
async fn of_changes_at_one_moment_none_is_lost() {
    let (world, root) = world_with(|world| Root { tags: vec!["own".into()], ..world.root(1, 1, 0) }).await;
    let add = |tag: &'static str| {
        let (repository, root) = (world.repository.clone(), root.clone());
        async move {
            let change = |labels: &mut marks::Labels| {
                if !labels.tags.iter().any(|has| has == tag) {
                    labels.tags.push(tag.to_owned());
                }
            };
            marks::label(&repository, &root, "me", change).await
        }
    };
    let (a, b, c) = tokio::join!(add("a"), add("b"), add("c"));
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    let marks = marks::of(&world.repository, root.slot).await.unwrap();
    let mut tags = marks.labels(&root).tags;
    tags.sort();
    assert_eq!(tags, ["a", "b", "c", "own"]);
    let too_long =
        marks::label(&world.repository, &root, "me", |labels| labels.note = Some("n".repeat(5000))).await;
    assert!(too_long.unwrap_err().why.contains("a note"));
}

#[tokio::test(start_paused = true)]
async fn a_mark_that_is_listed_and_not_given_is_not_taken_for_none() {
    let (world, root) = world_with(|world| world.root(1, 1, 0)).await;
    let repository = &world.repository;
    let id = marks::hold(repository, root.slot, None, "me").await.unwrap();
    world.faults.hide(Some(&root.slot.mark(id)));
    assert_eq!(marks::all(repository, None).await.unwrap_err().kind, FailureKind::Store);
    forgetting::forget(repository, &root, "test").await.unwrap_err();
    world.faults.hide(None);
    assert!(marks::of(repository, root.slot).await.unwrap().is_held());
}

#[tokio::test(start_paused = true)]
async fn what_is_no_mark_below_a_snapshot_may_be_a_hold() {
    let (world, root) = world_with(|world| world.root(1, 1, 0)).await;
    let repository = &world.repository;
    let empty = root.slot.mark(MarkId::from_parts(7, 7));
    for key in [empty, format!("{}/note.txt", root.slot.marks()), format!("{}/a/b", root.slot.marks())] {
        world.put(&key, "".into()).await;
        let marks = marks::of(repository, root.slot).await.unwrap();
        assert!(marks.why_held().is_some_and(|why| why.contains(&key)), "{marks:?}");
        repository.store.delete(&key).await.unwrap();
    }
    assert!(!marks::of(repository, root.slot).await.unwrap().is_held());
}
