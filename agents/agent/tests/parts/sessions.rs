//! Sessions against objects written by hand: what counts, who is the parent, and in which order a session looks.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::{World, pack_id, session_id};
use agent::epochs;
use agent::faults::store::{Refusal, StoreFaults};
use agent::repository::AtSlot;
use agent::sessions::{self, OpenSession};
use bytes::Bytes;
use schema::damage::{Damage, DamagedChunk};
use schema::epoch::Awaited;
use schema::messages::FailureKind;
use schema::session::{Session, SessionKind};
use schema::{ChunkId, names};

async fn begin(world: &World, session: u8) -> OpenSession {
    OpenSession::begin(world.repository.clone(), world.session(session)).await.unwrap()
}

/// The steps of the protocol, one operation after the other.
#[tokio::test(start_paused = true)]
async fn a_session_looks_in_the_order_of_the_protocol() {
    let world = World::new().await;
    world.epoch(3, 3, &[]).await;
    world.verdict(3, 3, &[]).await;
    world.snapshot(&world.root(1, 1, 0)).await;
    let session = begin(&world, 9).await;
    session.choose_parent().await.unwrap().unwrap();
    let (slot, volume) = (world.slot(1), world.slot(1).volume);
    let expected = [
        format!("create {}", names::session(session_id(9))),
        "list gc".into(),
        format!("get {}", names::epoch(3)),
        format!("get {}", names::verdict(3)),
        "list packs".into(),
        "list damage".into(),
        format!("list forgotten/{volume}"),
        format!("list snapshots/{volume}"),
        format!("head {}", slot.forgotten()),
        format!("get {}", slot.snapshot()),
    ];
    assert_eq!(world.record.take(), expected);
}

/// What a session finds in `gc/`, and which of the packs 1 to 4 then count.
#[tokio::test(start_paused = true)]
async fn the_latest_epoch_condemns() {
    /// Number, packs proposed, packs of the verdict; none is an empty object, no verdict is none at all.
    type Written = (u64, Option<&'static [u8]>, Option<Option<&'static [u8]>>);
    struct Case {
        name: &'static str,
        epochs: &'static [Written],
        counts: &'static [u8],
    }
    let cases = [
        Case { name: "no epoch", epochs: &[], counts: &[1, 2, 3, 4] },
        Case { name: "proposed", epochs: &[(1, Some(&[1, 2]), None)], counts: &[3, 4] },
        Case { name: "verdict", epochs: &[(1, Some(&[1, 2]), Some(Some(&[2])))], counts: &[1, 3, 4] },
        Case {
            name: "a verdict of none",
            epochs: &[(1, Some(&[1, 2]), Some(Some(&[])))],
            counts: &[1, 2, 3, 4],
        },
        Case {
            name: "only the latest",
            epochs: &[(1, Some(&[1]), Some(Some(&[1]))), (2, Some(&[3]), None)],
            counts: &[1, 2, 4],
        },
        Case {
            name: "the latest by number, not by length or text",
            epochs: &[(10, Some(&[4]), None), (9, Some(&[3]), None)],
            counts: &[1, 2, 3],
        },
        Case {
            name: "an emptied epoch, its verdict not",
            epochs: &[(1, None, Some(Some(&[2])))],
            counts: &[1, 3, 4],
        },
        Case { name: "an emptied verdict", epochs: &[(1, Some(&[1]), Some(None))], counts: &[2, 3, 4] },
    ];
    for case in cases {
        let world = World::new().await;
        for number in 1..=4 {
            world.any_pack(number).await;
        }
        let ids = |packs: &[u8]| packs.iter().map(|number| pack_id(*number)).collect::<Vec<_>>();
        for (number, proposed, verdict) in case.epochs {
            match proposed {
                Some(packs) => world.epoch(*number, *number, &ids(packs)).await,
                None => world.empty(&names::epoch(*number)).await,
            }
            match verdict {
                Some(Some(packs)) => world.verdict(*number, *number, &ids(packs)).await,
                Some(None) => world.empty(&names::verdict(*number)).await,
                None => {}
            }
        }
        let session = begin(&world, 9).await;
        let mut counting = Vec::new();
        for number in 1..=4 {
            if session.counts(pack_id(number)).await.unwrap() {
                counting.push(number);
            }
        }
        assert_eq!(counting, case.counts, "{}", case.name);
    }
}

/// A store that lists an epoch or a verdict and does not give it says nothing of what is condemned.
#[tokio::test(start_paused = true)]
async fn an_epoch_that_is_listed_and_not_there_is_no_epoch_to_go_by() {
    for missing in [names::epoch(5), names::verdict(5)] {
        let world = World::new().await;
        world.epoch(5, 5, &[pack_id(1)]).await;
        world.verdict(5, 5, &[pack_id(1)]).await;
        world.faults.hide(Some(&missing));
        let failure = OpenSession::begin(world.repository.clone(), world.session(9)).await.unwrap_err();
        assert!(failure.kind == FailureKind::Store && failure.retry, "{failure}");
        assert!(failure.why.contains(&missing), "{failure}");
    }
}

#[tokio::test(start_paused = true)]
async fn for_whom_a_collection_waits_is_not_known_before_it_has_listed_them() {
    let (world, key) = (World::new().await, names::awaited(5));
    assert_eq!(epochs::awaited(&world.repository).await.unwrap(), None);
    world.epoch(5, 5, &[]).await;
    assert_eq!(epochs::awaited(&world.repository).await.unwrap(), None);
    let awaited = Awaited { number: 5, sessions: vec![session_id(1)] };
    world.put(&key, world.repository.seal(&key, &awaited).unwrap()).await;
    assert_eq!(epochs::awaited(&world.repository).await.unwrap(), Some(awaited.sessions));
    world.faults.hide(Some(&key));
    let failure = epochs::awaited(&world.repository).await.unwrap_err();
    assert!(failure.kind == FailureKind::Store && failure.retry && failure.why.contains(&key), "{failure}");
    world.faults.hide(None);
    world.empty(&key).await;
    let failure = epochs::awaited(&world.repository).await.unwrap_err();
    assert!(failure.kind == FailureKind::Damaged && failure.why.contains(&key), "{failure}");
}

#[tokio::test(start_paused = true)]
async fn an_epoch_or_verdict_with_a_wrong_number_is_refused_and_the_session_given_up() {
    for verdict in [false, true] {
        let world = World::new().await;
        match verdict {
            false => world.epoch(5, 4, &[]).await,
            true => {
                world.epoch(5, 5, &[]).await;
                world.verdict(5, 6, &[]).await;
            }
        }
        let failure = OpenSession::begin(world.repository.clone(), world.session(9)).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Damaged);
        let expected = if verdict {
            format!("verdict 5 says that it is {}", 6)
        } else {
            "epoch 5 says that it is 4".into()
        };
        assert!(failure.why.to_lowercase().contains(&expected), "{failure}");
        // Nobody drives it: a collector must not wait for it.
        assert_eq!(world.get(&names::session(session_id(9))).await, None);
        let found = world.repository.at_slot(world.slot(9)).await.unwrap();
        assert!(matches!(found, AtSlot::Tombstone), "{found:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pack_counts_when_it_was_seen_since_the_session_began() {
    let world = World::new().await;
    let listed = world.any_pack(1).await;
    let session = begin(&world, 9).await;
    world.record.take();
    assert!(session.counts(listed).await.unwrap());
    assert_eq!(world.record.take(), [""; 0], "a pack that was listed needs no question");

    let later = world.any_pack(2).await;
    assert!(session.counts(later).await.unwrap());
    assert_eq!(world.record.take(), [format!("head {}", names::pack(later))]);
    assert!(session.counts(later).await.unwrap());
    assert_eq!(world.record.take(), [""; 0], "what was seen stays seen");

    assert!(!session.counts(pack_id(3)).await.unwrap());
    assert!(!session.counts(pack_id(3)).await.unwrap());
    assert_eq!(world.record.take(), [format!("head {}", names::pack(pack_id(3)))]);
    let announced = world.any_pack(3).await;
    assert!(!session.counts(announced).await.unwrap(), "it is believed to be missing");
    session.forget_missing(announced).await;
    assert!(session.counts(announced).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_damaged_copy_does_not_count_and_its_pack_does() {
    let world = World::new().await;
    let (one, other) = (world.any_pack(1).await, world.any_pack(2).await);
    let chunk = |number: u8| ChunkId::parse(&[1, number].repeat(17)[..33].try_into().unwrap()).unwrap();
    let damaged = vec![DamagedChunk { id: chunk(1), packs: vec![one] }];
    let record = |packs, chunks| Damage { version: 1, found_ms: 0, host: "h".into(), packs, chunks };
    let environment = world.repository.environment();
    for record in [record(vec![], damaged), record(vec![other], vec![])] {
        let key = names::damage(environment.damage_id());
        world.put(&key, world.repository.seal(&key, &record).unwrap()).await;
    }
    world.put(&names::damage(environment.damage_id()), Bytes::from_static(b"damaged itself")).await;
    let session = begin(&world, 9).await;
    for (id, pack, counts) in [(1, one, false), (2, one, true), (1, other, false), (2, other, false)] {
        assert_eq!(session.counts_for(&chunk(id), pack).await.unwrap(), counts, "{id} in {pack}");
    }
    assert!(session.counts(one).await.unwrap());
    assert!(session.damages().names(&chunk(1)) && !session.damages().names(&chunk(2)));
}

#[tokio::test(start_paused = true)]
async fn a_condemned_pack_never_counts_however_often_it_is_announced() {
    let world = World::new().await;
    let pack = world.any_pack(1).await;
    world.epoch(1, 1, &[pack]).await;
    let session = begin(&world, 9).await;
    world.record.take();
    session.forget_missing(pack).await;
    assert!(!session.counts(pack).await.unwrap());
    assert_eq!(world.record.take(), [""; 0]);
}

/// A tombstone where a pack was, before the session began and after.
#[tokio::test(start_paused = true)]
async fn an_object_too_small_for_a_pack_does_not_count() {
    let world = World::new().await;
    let smallest = schema::pack::PACK_HEADER_LEN + schema::pack::TRAILER_LEN;
    let put = |number: u8, len: usize| {
        let world = &world;
        async move { world.put(&names::pack(pack_id(number)), vec![0; len].into()).await }
    };
    put(1, 0).await;
    put(2, smallest - 1).await;
    put(3, smallest).await;
    let session = begin(&world, 9).await;
    put(4, 0).await;
    put(5, smallest - 1).await;
    put(6, smallest).await;
    for (number, counts) in [(1, false), (2, false), (3, true), (4, false), (5, false), (6, true)] {
        assert_eq!(session.counts(pack_id(number)).await.unwrap(), counts, "pack {number}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_parent_is_the_highest_generation_not_the_newest_clock() {
    let world = World::new().await;
    world.snapshot(&world.root(1, 1, 3_000)).await;
    world.snapshot(&world.root(2, 3, 1_000)).await;
    world.snapshot(&world.root(3, 2, 2_000)).await;
    let session = begin(&world, 9).await;
    assert_eq!(session.choose_parent().await.unwrap().unwrap().slot, world.slot(2));
}

#[tokio::test(start_paused = true)]
async fn forgotten_and_tombstoned_snapshots_are_no_parents_nor_are_other_volumes() {
    let world = World::new().await;
    world.snapshot(&world.root(1, 1, 0)).await;
    world.snapshot(&world.root(2, 2, 0)).await;
    world.put(&world.slot(2).forgotten(), world.forgotten(world.slot(2))).await;
    world.tombstone(world.slot(3)).await;
    let mut stranger = world.root(4, 9, 0);
    stranger.slot.volume = world.repository.key.volume_key("host/vg/other");
    world.snapshot(&stranger).await;
    let session = begin(&world, 9).await;
    assert_eq!(session.choose_parent().await.unwrap().unwrap().slot, world.slot(1));
}

/// The listings were made, and only then the snapshot is forgotten, or its slot overwritten.
#[tokio::test(start_paused = true)]
async fn what_happens_after_the_listing_is_seen_all_the_same() {
    for by_marker in [true, false] {
        let world = World::new().await;
        world.snapshot(&world.root(1, 1, 0)).await;
        world.snapshot(&world.root(2, 2, 0)).await;
        let session = begin(&world, 9).await;
        let slot = world.slot(2);
        let (key, bytes) = match by_marker {
            true => (slot.forgotten(), world.forgotten(slot)),
            false => (slot.snapshot(), world.repository.tombstone(slot).unwrap()),
        };
        world.record.write_after("list snapshots/", &key, bytes);
        assert_eq!(session.choose_parent().await.unwrap().unwrap().slot, world.slot(1), "{by_marker}");
    }
    // A marker that appears after it was looked for does no harm: the collection that sweeps this snapshot opens
    // later, and waits for the session.
    let world = World::new().await;
    world.snapshot(&world.root(1, 1, 0)).await;
    let session = begin(&world, 9).await;
    let slot = world.slot(1);
    world.record.write_after("head forgotten/", &slot.forgotten(), world.forgotten(slot));
    assert_eq!(session.choose_parent().await.unwrap().unwrap().slot, slot);
}

/// Several at once, and each in the order of the protocol.
#[tokio::test(start_paused = true)]
async fn many_snapshots_are_looked_at_together_and_each_after_its_marker() {
    let world = World::new().await;
    let slots: Vec<_> = (1..=40).map(|number| world.slot(number)).collect();
    for number in 1..=40 {
        world.snapshot(&world.root(number, number.into(), 0)).await;
    }
    let session = begin(&world, 200).await;
    world.record.take();
    world.faults.set(StoreFaults { slow: 1000, slow_max: Duration::from_secs(1), ..StoreFaults::default() });
    let visible = session.visible().await.unwrap().all().unwrap();
    assert_eq!(visible.iter().map(|root| root.slot).collect::<Vec<_>>(), slots);
    let record = world.record.take();
    let at = |line: String| record.iter().position(|one| *one == line).unwrap();
    assert!(
        slots.iter().all(|slot| {
            at(format!("head {}", slot.forgotten())) < at(format!("get {}", slot.snapshot()))
        })
    );
    let first = at(format!("get {}", slots[0].snapshot()));
    assert!(slots[..4].iter().all(|slot| at(format!("head {}", slot.forgotten())) < first), "{record:#?}");
    // As many requests as before.
    assert_eq!(record.len(), 2 + 2 * slots.len());
}

#[tokio::test(start_paused = true)]
async fn no_snapshot_means_no_parent() {
    let world = World::new().await;
    world.tombstone(world.slot(1)).await;
    assert_eq!(begin(&world, 9).await.choose_parent().await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_root_moved_from_another_slot_is_named_and_is_no_parent() {
    let world = World::new().await;
    let root = world.root(1, 1, 0);
    world.snapshot(&root).await;
    let bytes = world.get(&root.slot.snapshot()).await.unwrap();
    world.put(&world.slot(2).snapshot(), bytes).await;
    let session = begin(&world, 9).await;
    assert_eq!(session.choose_parent().await.unwrap(), Some(root));
    let visible = session.visible().await.unwrap();
    assert_eq!(visible.damaged.len(), 1, "{visible:?}");
    let failure = visible.all().unwrap_err();
    assert_eq!(failure.kind, FailureKind::Damaged);
    assert!(failure.why.contains(&world.slot(2).snapshot()), "{failure}");
    assert!(failure.why.contains(&format!("lvkeep forget {}", session_id(2))), "{failure}");

    // Sealed for the place where it stands, but made for another.
    let world = World::new().await;
    let key = world.slot(2).snapshot();
    world.put(&key, world.repository.seal(&key, &world.root(1, 1, 0)).unwrap()).await;
    let failure = begin(&world, 9).await.visible().await.unwrap().all().unwrap_err();
    assert!(failure.why.contains(&key), "{failure}");
}

/// Whatever comes back, what was made last is the latest.
#[tokio::test(start_paused = true)]
async fn a_generation_is_above_what_may_come_back_or_cannot_be_read() {
    let world = World::new().await;
    let next = async || {
        let session = begin(&world, 200).await;
        let visible = session.visible().await.unwrap();
        let next = session.next_generation(&visible).await.unwrap();
        session.end().await.unwrap();
        next
    };
    assert_eq!(next().await, 1);
    world.snapshot(&world.root(1, 1, 0)).await;
    world.snapshot(&world.root(2, 5, 0)).await;
    assert_eq!(next().await, 6);
    for number in [1, 2] {
        world.put(&world.slot(number).forgotten(), world.forgotten(world.slot(number))).await;
    }
    assert_eq!(next().await, 6, "both may come back");
    world.tombstone(world.slot(2)).await;
    assert_eq!(next().await, 2, "one was collected");
    for number in [3, 4] {
        world.put(&world.slot(number).snapshot(), "damaged".into()).await;
    }
    assert_eq!(next().await, 5, "each may have taken a number, and so may what was collected");
    world.put(&world.slot(4).forgotten(), world.forgotten(world.slot(4))).await;
    assert_eq!(next().await, 5);
    world.snapshot(&world.root(5, 4, 0)).await;
    assert_eq!(next().await, 5, "what came before the newest has a lower one");
    // Generations 5 to 7 were collected, and 8 is damaged.
    for number in [6, 7, 8] {
        world.tombstone(world.slot(number)).await;
    }
    assert_eq!(next().await, 5, "nothing is left of what was later");
    world.put(&world.slot(9).snapshot(), "damaged".into()).await;
    assert_eq!(next().await, 9, "the gap took numbers");
}

#[tokio::test(start_paused = true)]
async fn a_session_id_is_never_used_twice() {
    let world = World::new().await;
    let first = begin(&world, 9).await;
    let failure = OpenSession::begin(world.repository.clone(), world.session(9)).await.unwrap_err();
    assert!(failure.why.contains(&names::session(session_id(9))), "{failure}");
    // The first one is untouched by that.
    assert!(first.exists().await.unwrap());
    assert_eq!(world.get(&world.slot(9).snapshot()).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_cannot_be_created_looks_at_nothing() {
    let world = World::new().await;
    world.faults.refuse(Some(Refusal::Writes));
    let failure = OpenSession::begin(world.repository.clone(), world.session(9)).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Store);
    let looked: Vec<String> =
        world.record.take().into_iter().filter(|line| line.starts_with("list")).collect();
    assert_eq!(looked, [""; 0]);
}

/// Restores protect what they read, and have no slot.
#[tokio::test(start_paused = true)]
async fn a_restore_has_no_slot_and_ends_by_deleting_its_object() {
    let world = World::new().await;
    let restore = Session { kind: SessionKind::Restore, slot: None, ..world.session(9) };
    let session = OpenSession::begin(world.repository.clone(), restore.clone()).await.unwrap();
    assert_eq!(session.slot().unwrap_err().kind, FailureKind::Refused);
    assert_eq!(session.choose_parent().await.unwrap_err().kind, FailureKind::Refused);
    assert_eq!(session.commit(&world.root(9, 1, 0)).await.unwrap_err().kind, FailureKind::Refused);
    assert!(session.exists().await.unwrap());
    world.record.take();
    session.end().await.unwrap();
    assert_eq!(world.record.take(), [format!("delete {}", names::session(session_id(9)))]);

    // Revoked by somebody: it finds that it is not protected any more.
    let restore = Session { id: session_id(8), ..restore };
    let session = OpenSession::begin(world.repository.clone(), restore.clone()).await.unwrap();
    sessions::revoke(&world.repository, &restore).await.unwrap();
    assert!(!session.exists().await.unwrap());
    let keys = world.repository.store.list("").await.unwrap();
    let keys: BTreeSet<_> = keys.into_iter().map(|listed| listed.key).collect();
    assert_eq!(keys.into_iter().collect::<Vec<_>>(), [names::CONFIG], "no slot was occupied");
}
