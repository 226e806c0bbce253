//! Chunks into packs: by size, by age, on demand; by kind and by key; and what may not go in.

use std::collections::BTreeSet;

use agent::bus::{Bus, Topic};
use schema::messages::{FailureKind, PackStored, SessionEvent};
use schema::{Domain, names};

use crate::support::{Key, MAX_AGE, World};

#[tokio::test(start_paused = true)]
async fn a_pack_closes_by_size() {
    let world = World::plain(30_000).await;
    let mut stored = world.bus.subscribe(&Topic::packs_stored()).await.unwrap();
    for number in 0..7 {
        world.data(1, &[number]).await;
    }
    for expected in [[0, 1, 2], [3, 4, 5]] {
        let pack: PackStored = stored.next().await.unwrap().read().unwrap();
        let ids: Vec<_> = pack.entries.iter().map(|entry| entry.id).collect();
        assert_eq!(ids, expected.map(|number| world.id(Domain::Data, number)));
    }
    assert!(world.now().as_secs() < 1, "size alone closed them");
    // The last one waits for more.
    assert!(world.unsettled() > 10_000);
    assert_eq!(world.announced().await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_pack_closes_by_age() {
    let world = World::plain(1 << 20).await;
    let mut stored = world.bus.subscribe(&Topic::packs_stored()).await.unwrap();
    let started = world.now();
    world.data(1, &[1]).await;
    stored.next().await.unwrap();
    let age = world.now() - started;
    assert!(age >= MAX_AGE && age <= MAX_AGE * 5 / 4, "{age:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pack_closes_when_a_conductor_of_a_session_inside_asks() {
    let world = World::plain(1 << 20).await;
    world.data(1, &[1]).await;
    world.data(2, &[2]).await;
    world.publish(&world.message(3, Domain::Structure, &[3], None)).await;
    world.flush(9).await;
    assert!(world.announced().await.is_empty(), "nobody inside has asked");
    world.flush(2).await;
    let announced = world.announced().await;
    let expected: BTreeSet<_> = [1, 2].map(|number| world.id(Domain::Data, number)).into();
    assert_eq!(announced.values().collect::<Vec<_>>(), [&expected]);
    world.flush(3).await;
    let announced = world.announced().await;
    let (pack, ids) = announced.first_key_value().unwrap();
    assert_eq!(*ids, [world.id(Domain::Structure, 3)].into(), "structure goes into packs of its own");
    assert_eq!(world.footer(*pack).await.sessions, [crate::support::session_id(3)]);
    assert_eq!(world.unsettled(), 0);
    assert!(world.now() < MAX_AGE);
}

/// Each pack is whole, and holds what was sent, byte for byte, with its keys and sessions.
#[tokio::test(start_paused = true)]
async fn a_pack_holds_its_frames_keys_and_sessions() {
    let world = World::encrypted(1 << 20).await;
    let (first, second) = (Key::new(100, 1), Key::new(200, 2));
    let messages = [
        world.message(1, Domain::Data, &[1, 2], Some(&first)),
        world.message(2, Domain::Data, &[3], Some(&second)),
        world.message(1, Domain::Data, &[4], Some(&first)),
    ];
    for message in &messages {
        world.publish(message).await;
    }
    world.flush(1).await;
    let announced = world.announced().await;
    let (pack, _) = announced.first_key_value().unwrap();
    let footer = world.footer(*pack).await;
    assert_eq!(footer.keys, [first.sealed.clone(), second.sealed.clone()]);
    assert_eq!(footer.sessions, [1, 2].map(crate::support::session_id));
    let bytes = world.repository.store.get(&names::pack(*pack)).await.unwrap().unwrap();
    let frames: Vec<u8> = messages.iter().flat_map(|message| message.body.to_vec()).collect();
    assert_eq!(bytes[schema::pack::PACK_HEADER_LEN..][..frames.len()], frames);
    // The keys stand in the bucket too, once each.
    for key in [&first, &second] {
        let stored = world.repository.store.get(&names::key(key.sealed.id)).await.unwrap();
        assert_eq!(stored, Some(key.sealed.sealed.clone()));
    }
}

#[tokio::test(start_paused = true)]
async fn keys_of_one_index_go_into_different_packs() {
    let world = World::encrypted(1 << 20).await;
    let (first, twin) = (Key::new(100, 1), Key::new(100, 2));
    assert_eq!(first.key.frame_key().index(), twin.key.frame_key().index());
    world.publish(&world.message(1, Domain::Data, &[1], Some(&first))).await;
    world.publish(&world.message(1, Domain::Data, &[2], Some(&twin))).await;
    world.publish(&world.message(1, Domain::Data, &[3], Some(&twin))).await;
    world.wait(1).await;
    world.flush(1).await;
    let announced = world.announced().await;
    assert_eq!(announced.len(), 2);
    for (pack, ids) in announced {
        let key = if ids.contains(&world.id(Domain::Data, 1)) { &first } else { &twin };
        assert_eq!(world.footer(pack).await.keys, std::slice::from_ref(&key.sealed));
    }
    assert_eq!(world.unsettled(), 0);
}

/// More keys than one pack can list: the pack closes, and the rest goes into another.
#[tokio::test(start_paused = true)]
async fn what_a_pack_cannot_take_goes_into_the_next() {
    let count = schema::limits::PACK_KEYS_MAX as u32 + 1;
    let world = World::encrypted(1 << 30).await;
    for number in 0..count {
        let key = Key::new(1000 + number, 1);
        world.publish(&world.message(1, Domain::Data, &[2_000_000 + number], Some(&key))).await;
    }
    world.wait(1).await;
    world.flush(1).await;
    world.wait(1).await;
    let announced = world.announced().await;
    let mut sizes: Vec<usize> = announced.values().map(BTreeSet::len).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [1, count as usize - 1]);
    assert_eq!(world.told(1).await, []);
    assert_eq!(world.unsettled(), 0);
}

/// A message that cannot be stored as it is: its session hears so, and nothing of it is stored.
#[tokio::test(start_paused = true)]
async fn frames_that_nobody_could_open_or_that_anybody_could_are_refused_by_name() {
    let world = World::encrypted(1 << 20).await;
    let (key, other) = (Key::new(100, 1), Key::new(200, 2));
    let sealed = world.message(1, Domain::Data, &[1], Some(&key));
    let with = |kind: Domain, key: Option<&Key>, body: &schema::messages::Message| {
        let mut message = world.message(1, kind, &[], key);
        message.body = body.body.clone();
        message
    };
    let structure = world.message(1, Domain::Structure, &[4], None);
    let cases = [
        ("another key came along", with(Domain::Data, Some(&other), &sealed), "did not come along"),
        ("no key came along", with(Domain::Data, None, &sealed), "did not come along"),
        ("it is not encrypted", world.message(1, Domain::Data, &[1], None), "is not encrypted"),
        ("it says to be structure", with(Domain::Structure, Some(&key), &sealed), "not of the pack's kind"),
        ("it says to be data", with(Domain::Data, Some(&key), &structure), "not of the pack's kind"),
    ];
    for (name, message, expected) in cases {
        world.publish(&message).await;
        world.wait(1).await;
        let told = world.told(1).await;
        let [SessionEvent::Failed { kind, why }] = &told[..] else { panic!("{name}: {told:?}") };
        assert!(why.contains(expected), "{name}: {why}");
        assert!(matches!(kind, FailureKind::Refused | FailureKind::Damaged), "{name}: {kind:?}");
    }
    let cut = schema::messages::Message { body: sealed.body.slice(..sealed.body.len() - 1), ..sealed };
    world.publish(&cut).await;
    world.wait(3600).await;
    assert!(matches!(&world.told(1).await[..], [SessionEvent::Failed { kind: FailureKind::Damaged, .. }]));
    assert_eq!(world.puts(), [""; 0], "no pack without content is stored either");
    assert_eq!(world.unsettled(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stop_stores_what_is_open() {
    let world = World::plain(1 << 20).await;
    world.data(1, &[1]).await;
    world.publish(&world.message(1, Domain::Structure, &[2], None)).await;
    world.wait(1).await;
    let expected = [world.id(Domain::Data, 1), world.id(Domain::Structure, 2)];
    let (bus, repository) = world.stop().await;
    let packs = repository.list_packs().await.unwrap();
    let mut stored = Vec::new();
    for (pack, _) in packs {
        stored.extend(repository.read_footer(pack).await.unwrap().1.entries.iter().map(|entry| entry.id));
    }
    stored.sort();
    assert_eq!(stored, expected);
    assert_eq!(bus.bytes_in(&agent::bus::Queue::chunks()), 0);
}
