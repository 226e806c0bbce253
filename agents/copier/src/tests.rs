//! Copies between two repositories in memory.

mod fixture;

use std::time::Duration;

use agent::{Repository, sessions};
use schema::damage::{Damage, DamagedChunk};
use schema::epoch::Epoch;
use schema::facts::{COPIED_FROM, Origin};
use schema::keys::Identity;
use schema::limits::LEAF_SPAN;
use schema::messages::FailureKind;
use schema::names::{self, Slot};
use schema::root::{Forgotten, Root};
use schema::{Domain, JobId, Object, ReadingId, SessionId};

use crate::keys::KeyRing;
use crate::{Copied, Outcome};
use fixture::{Mood, World};

/// More than a leaf, with content at its beginning, twice, and at its end.
fn content(seed: u8) -> Vec<u8> {
    let mut content = vec![0; LEAF_SPAN as usize + 150_000];
    let noise = |at: usize| (at as u32).wrapping_mul(2_654_435_761).rotate_left(seed.into()) as u8 | 1;
    for at in (0..300_000).chain(LEAF_SPAN as usize..content.len()) {
        content[at] = noise(at);
    }
    let (start, twice) = (content[..1 << 16].to_vec(), 1 << 20);
    content[twice..twice + start.len()].copy_from_slice(&start);
    content
}

fn small(seed: u8) -> Vec<u8> {
    content(seed)[..300_000].to_vec()
}

fn copied(outcome: Result<Outcome, agent::Failure>) -> Copied {
    match outcome.unwrap() {
        Outcome::Copied(copied) => copied,
        Outcome::Present => panic!("it was there"),
    }
}

#[tokio::test]
async fn a_copy_holds_the_same_and_the_next_brings_the_difference() {
    for like in [true, false] {
        let world = World::new(like).await;
        let first = content(3);
        let mut second = first.clone();
        second[200_000..200_100].fill(7);
        let roots = [world.volume(1, &first).await, world.volume(2, &second).await];
        let one = copied(world.copy(&roots[0]).await);
        let two = copied(world.copy(&roots[1]).await);
        assert!(one.statistics.chunks_new > 5 && one.fetched > 10_000, "{one:?}");
        assert_eq!((two.statistics.chunks_new, two.statistics.bytes_new), (1, 64 << 10), "{two:?}");
        assert!(two.fetched < one.fetched / 2, "{one:?} {two:?}");
        let there = world.second.roots().await;
        assert_eq!(there.iter().map(|root| root.generation).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(there[1].parent, Some(there[0].slot));
        for (root, content) in there.iter().zip([first, second]) {
            assert!(world.second.content(root, &world.identity).await == content);
        }
        assert!(matches!(world.copy(&roots[0]).await, Ok(Outcome::Present)));
        assert_eq!(world.second.sessions().await, 0);
    }
}

/// Each is asked for what the copy relies on, and is read once; what was forgotten meanwhile is nothing to stand on.
#[tokio::test]
async fn many_copies_of_a_volume_read_each_root_once() {
    let world = World::new(true).await;
    let mut roots = Vec::new();
    for generation in 1..=8 {
        roots.push(world.volume(generation, &[&small(3)[..], &[generation as u8; 5000]].concat()).await);
    }
    world.second.record.take();
    for outcome in world.copy_all(&roots.iter().collect::<Vec<_>>()).await {
        copied(outcome);
    }
    let read = |line: &&String| line.starts_with("get ") && line.contains("snapshots/");
    let record = world.second.record.take();
    // Each commit is read back, and the one below is looked at.
    assert_eq!(record.iter().filter(read).count(), 2 * roots.len() - 1, "{record:#?}");
    let there = world.second.roots().await;
    assert!(there.windows(2).all(|two| two[1].parent == Some(two[0].slot)));
}

#[tokio::test]
async fn what_a_listing_shows_that_is_forgotten_by_now_is_nothing_to_stand_on() {
    for same in [true, false] {
        let world = World::new(true).await;
        let [first, second] = [world.volume(1, &small(3)).await, world.volume(2, &small(4)).await];
        copied(world.copy(&first).await);
        let there = world.second.roots().await.remove(0);
        let key = there.slot.forgotten();
        let marker = Forgotten { slot: there.slot, time_ms: 0, by: "a test".into() };
        let marker = world.second.repository.seal(&key, &marker).unwrap();
        // Right after the markers are listed, and before the slots are.
        world.second.record.write_after("list second/forgotten", &format!("second/{key}"), marker);
        copied(world.copy(if same { &first } else { &second }).await);
        let roots = world.second.roots().await;
        assert!(roots.len() == 1 && roots[0].slot != there.slot && roots[0].parent.is_none(), "{roots:?}");
    }
}

/// Nobody else would end its session, and collections would wait for it for ever.
#[tokio::test(start_paused = true)]
async fn a_copy_whose_store_goes_away_leaves_no_session_or_says_so() {
    for comes_back in [true, false] {
        let world = World::new(true).await;
        let root = world.volume(1, &small(3)).await;
        *world.second.mood.lock().unwrap() = Mood::LosesTheStore;
        let faults = world.second.faults.clone();
        let coming = async {
            world.first.context.environment.sleep(Duration::from_secs(120)).await;
            if comes_back {
                faults.recover();
            }
        };
        let (outcome, ()) = tokio::join!(world.copy(&root), coming);
        let failure = outcome.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Store, "{failure}");
        faults.recover();
        let left = sessions::list(&world.second.repository).await.unwrap();
        assert_eq!(left.len(), usize::from(!comes_back), "{left:?}");
        for session in left {
            let said = format!("`lvkeep cancel {}`", session.id);
            assert!(failure.why.contains("collections wait") && failure.why.contains(&said), "{failure}");
        }
    }
}

#[tokio::test]
async fn a_snapshot_that_is_older_than_what_is_there_stands_on_that() {
    for like in [true, false] {
        let world = World::new(like).await;
        let older = content(3);
        let mut newer = older.clone();
        newer[200_000..200_100].fill(7);
        let roots = [world.volume(1, &older).await, world.volume(2, &newer).await];
        copied(world.copy(&roots[1]).await);
        let late = copied(world.copy(&roots[0]).await);
        assert_eq!(late.statistics.chunks_new, 1, "{late:?}");
        let latest = sessions::newest(world.second.roots().await).unwrap();
        assert!(world.second.content(&latest, &world.identity).await == newer);
    }
}

#[tokio::test]
async fn what_is_recorded_as_damaged_is_brought_again() {
    for like in [true, false] {
        let world = World::new(like).await;
        let first = content(3);
        let mut second = first.clone();
        second[200_000..200_100].fill(7);
        let roots = [world.volume(1, &first).await, world.volume(2, &second).await];
        copied(world.copy(&roots[0]).await);
        let repository = &world.second.repository;
        let last = &first[first.len() - 150_000 % (64 << 10)..];
        let id = repository.key.chunk_ids().id(Domain::Data, last);
        let packs = || world.second.table.lock().unwrap()[&id].iter().map(|copy| copy.pack).collect();
        let damaged: Vec<_> = packs();
        let chunks = vec![DamagedChunk { id, packs: damaged.clone() }];
        let record = Damage { version: 1, found_ms: 0, host: "host".into(), packs: vec![], chunks };
        let name = names::damage(repository.environment().damage_id());
        let sealed = repository.seal(&name, &record).unwrap();
        repository.store.create(&name, sealed).await.unwrap();
        let next = copied(world.copy(&roots[1]).await);
        assert_eq!(next.statistics.chunks_new, 2, "what is damaged, and what is new: {next:?}");
        assert!(packs().len() > damaged.len());
        let there = sessions::newest(world.second.roots().await).unwrap();
        assert!(world.second.content(&there, &world.identity).await == second);
    }
}

#[tokio::test]
async fn another_copy_is_read_when_one_is_damaged() {
    for like in [true, false] {
        let world = World::new(like).await;
        let content = content(3);
        let root = world.volume(1, &content).await;
        let damaged = world.first.data()[0].pack;
        let name = names::pack(damaged);
        let store = &world.first.repository.store;
        let whole = store.get(&name).await.unwrap().unwrap();
        let mut bytes = whole.to_vec();
        bytes[200] ^= 1;
        store.put(&name, bytes.into()).await.unwrap();
        let failure = world.copy(&root).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Damaged, "{failure}");
        assert!(failure.why.contains("at offset") && failure.why.contains(&name), "{failure}");
        assert_eq!((world.second.roots().await.len(), world.second.sessions().await), (0, 0));

        // The same once more: what is damaged comes first.
        world.volume(2, &content).await;
        copied(world.copy(&root).await);
        assert!(world.second.content(&world.second.roots().await[0], &world.identity).await == content);
    }
}

/// Also a chunk of which the index knows no copy at all.
#[tokio::test]
async fn what_a_collection_moved_is_sought_in_the_bucket_before_it_is_lost() {
    for (like, forgets) in [(true, false), (false, false), (true, true), (false, true)] {
        let world = World::new(like).await;
        let content = content(3);
        let root = world.volume(1, &content).await;
        world.first.move_packs().await;
        if forgets {
            world.first.table.lock().unwrap().clear();
        }
        copied(world.copy(&root).await);
        assert!(world.second.content(&world.second.roots().await[0], &world.identity).await == content);
    }
}

#[tokio::test]
async fn a_session_that_is_revoked_commits_nothing() {
    let world = World::new(true).await;
    let root = world.volume(1, &content(3)).await;
    *world.second.mood.lock().unwrap() = Mood::Revokes;
    let failure = world.copy(&root).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Revoked, "{failure}");
    assert_eq!((world.second.roots().await.len(), world.second.sessions().await), (0, 0));
    *world.second.mood.lock().unwrap() = Mood::Stores;
    assert_eq!(copied(world.copy(&root).await).statistics.bytes_stored, 0, "all of it was stored");
}

#[tokio::test]
async fn a_storer_that_fails_ends_the_copy_by_name() {
    let world = World::new(true).await;
    let root = world.volume(1, &content(3)).await;
    *world.second.mood.lock().unwrap() = Mood::Fails;
    let failure = world.copy(&root).await.unwrap_err();
    assert_eq!((failure.kind, failure.why.as_str()), (FailureKind::Store, "the disk is full"));
    assert_eq!((world.second.roots().await.len(), world.second.sessions().await), (0, 0));
}

#[tokio::test]
async fn what_is_condemned_or_stands_on_a_forgotten_snapshot_is_stored_again() {
    for like in [true, false] {
        let world = World::new(like).await;
        let root = world.volume(1, &content(3)).await;
        let slot = copied(world.copy(&root).await).slot;
        let before = world.second.data();
        let repository = &world.second.repository;
        let marker = Forgotten { slot, time_ms: 0, by: "a test".into() };
        let sealed = repository.seal(&slot.forgotten(), &marker).unwrap();
        repository.store.create(&slot.forgotten(), sealed).await.unwrap();
        let mut condemned: Vec<_> = before.iter().map(|copy| copy.pack).collect();
        condemned.sort();
        condemned.dedup();
        let epoch = Epoch { number: 1, forgotten: vec![slot], condemned };
        let sealed = epoch.seal(&repository.key, &names::epoch(1), [0; 12]).unwrap();
        repository.store.create(&names::epoch(1), sealed.into()).await.unwrap();

        copied(world.copy(&root).await);
        assert_eq!(world.second.data().len(), 2 * before.len());
    }
}

#[tokio::test]
async fn a_data_key_is_taken_from_the_packs_footer_when_it_is_gone() {
    let world = World::new(true).await;
    let content = content(3);
    let root = world.volume(1, &content).await;
    let name = names::key(world.data_key.id());
    world.first.repository.store.delete(&name).await.unwrap();
    copied(world.copy(&root).await);
    assert!(world.second.repository.store.get(&name).await.unwrap().is_some());
    assert!(world.second.content(&world.second.roots().await[0], &world.identity).await == content);
}

#[tokio::test]
async fn without_an_identity_no_key_is_handed_on_to_other_recipients() {
    let world = World::new(true).await;
    let (first, second) = (&world.first.repository, &world.second.repository);
    let ring = |first: &Repository, second: &Repository, identity| {
        KeyRing::new(first.clone(), second, identity).map(|_| ()).map_err(|failure| failure.kind)
    };
    let with = |repository: &Repository, one: &str| {
        let key = repository.key.with_recipient(one).unwrap();
        Repository { key, ..repository.clone() }
    };
    let [one, other] = [Identity::generate(), Identity::generate()].map(|new| new.recipients()[0].clone());
    assert_eq!(ring(first, second, None), Ok(()));
    assert_eq!(ring(first, &with(second, &one), None), Err(FailureKind::Refused));
    assert_eq!(ring(first, &with(second, &one), Some(world.identity.clone())), Ok(()));
    let both = [with(&with(first, &one), &other), with(&with(second, &other), &one)];
    assert_eq!(ring(&both[0], &both[1], None), Ok(()), "their order says nothing");
}

/// Puts a root into a repository, as it is.
async fn put(place: &fixture::Place, root: &Root) {
    let sealed = place.repository.seal(&root.slot.snapshot(), root).unwrap();
    place.repository.store.put(&root.slot.snapshot(), sealed).await.unwrap();
}

/// Another slot of the same volume, whose id was made at the same moment.
fn beside(slot: Slot, random: u128) -> Slot {
    Slot { session: SessionId::from_parts(slot.session.time_ms(), random), ..slot }
}

async fn forget(place: &fixture::Place, slot: Slot) {
    let marker = Forgotten { slot, time_ms: 0, by: "a test".into() };
    let sealed = place.repository.seal(&slot.forgotten(), &marker).unwrap();
    place.repository.store.create(&slot.forgotten(), sealed).await.unwrap();
}

/// Older programs gave what came back another id and did not say which it had, and a copy named the id that it saw.
#[tokio::test]
async fn what_an_older_program_brought_back_is_not_copied_again() {
    for (like, is_collected) in [(true, false), (true, true), (false, false), (false, true)] {
        let world = World::new(like).await;
        let mut first = world.volume(1, &content(3)).await;
        copied(world.copy(&first).await);
        // With tags that it was given since.
        let mut back = Root { slot: beside(first.slot, 7), ..first.clone() };
        put(&world.first, &back).await;
        forget(&world.first, first.slot).await;
        if is_collected {
            let repository = &world.first.repository;
            let tombstone = repository.tombstone(first.slot).unwrap();
            repository.store.put(&first.slot.snapshot(), tombstone).await.unwrap();
        }
        back.tags = vec!["kept".into()];
        assert!(matches!(world.copy(&back).await, Ok(Outcome::Present)), "{like}");

        // And the other way round: the copy names the other id, and what came back later says where it was made.
        let other = World::new(like).await;
        first = other.volume(1, &content(3)).await;
        let seen = Root { slot: beside(first.slot, 7), ..first.clone() };
        put(&other.first, &seen).await;
        forget(&other.first, first.slot).await;
        copied(other.copy(&seen).await);
        forget(&other.first, seen.slot).await;
        let origin = Origin::of(&first, other.first.repository.key.repo());
        let layout = [(COPIED_FROM.to_owned(), origin.to_string())].into();
        let back = Root { slot: beside(first.slot, 8), layout, ..first.clone() };
        put(&other.first, &back).await;
        assert!(matches!(other.copy(&back).await, Ok(Outcome::Present)), "{like}");
    }
}

#[tokio::test]
async fn two_snapshots_are_never_taken_for_one() {
    let changes: [fn(&mut Root); 9] = [
        |root| root.slot.session = SessionId::from_parts(root.slot.session.time_ms() + 1, 7),
        |root| root.reading = ReadingId::from_bytes([9; 16]),
        |root| root.generation += 1,
        |root| root.time_ms += 1,
        |root| root.source += "/other",
        |root| root.changed_while_read = true,
        |root| root.group = Some("run".into()),
        |root| root.statistics.bytes_zero += 4096,
        |root| drop(root.layout.insert("kind".into(), "thin".into())),
    ];
    for like in [true, false] {
        let world = World::new(like).await;
        let first = world.volume(1, &content(3)).await;
        copied(world.copy(&first).await);
        forget(&world.first, first.slot).await;
        for (change, random) in changes.iter().zip(7..) {
            let mut other = Root { slot: beside(first.slot, random), ..first.clone() };
            change(&mut other);
            put(&world.first, &other).await;
            copied(world.copy(&other).await);
            assert!(matches!(world.copy(&other).await, Ok(Outcome::Present)));
            forget(&world.first, other.slot).await;
        }
    }
}

/// Two jobs may read the same state of a volume at one moment.
#[tokio::test]
async fn a_twin_of_what_was_copied_is_copied_too() {
    for like in [true, false] {
        let world = World::new(like).await;
        let first = world.volume(1, &content(3)).await;
        let twins = [7, 8].map(|random| {
            let job = JobId::from_bytes([random; 16]);
            Root { slot: beside(first.slot, random.into()), job, ..first.clone() }
        });
        for twin in &twins {
            put(&world.first, twin).await;
        }
        copied(world.copy(&first).await);
        for twin in &twins {
            copied(world.copy(twin).await);
        }
        forget(&world.first, first.slot).await;
        // Both copies may be of it.
        let back = Root { slot: beside(first.slot, 9), ..first.clone() };
        twins.iter().for_each(|twin| assert_ne!(twin.slot, back.slot));
        put(&world.first, &back).await;
        copied(world.copy(&back).await);
        assert_eq!(world.second.roots().await.len(), 4);
    }
}

/// Of what is read while it changes, two readings of one state may differ.
#[tokio::test]
async fn what_changed_while_it_was_read_is_recognised_by_its_map_alone() {
    for like in [true, false] {
        let world = World::new(like).await;
        let first = world.volume(1, &content(3)).await;
        let changed = Root { slot: beside(first.slot, 7), changed_while_read: true, ..first.clone() };
        put(&world.first, &changed).await;
        copied(world.copy(&changed).await);
        forget(&world.first, changed.slot).await;
        let back = Root { slot: beside(first.slot, 8), ..changed.clone() };
        put(&world.first, &back).await;
        assert_eq!(matches!(world.copy(&back).await, Ok(Outcome::Present)), like);
        forget(&world.first, back.slot).await;
        let other = world.volume(1, &content(4)).await;
        let other = Root { slot: beside(first.slot, 9), top: other.top, ..changed };
        put(&world.first, &other).await;
        copied(world.copy(&other).await);
    }
}
