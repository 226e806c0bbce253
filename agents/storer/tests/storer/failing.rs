//! Uploads that fail: nothing is announced or acknowledged too early, no name is used twice, and nothing hangs.

use std::collections::BTreeSet;

use agent::bus::{Bus, Topic};
use agent::faults::store::{Refusal, WriteFault};
use schema::messages::{FailureKind, PackStored, SessionEvent};
use schema::{Domain, names};

use crate::support::{Key, MAX_AGE, World};

/// The key is durable before the pack, and both are before anybody hears of it.
#[tokio::test(start_paused = true)]
async fn the_key_then_the_pack_then_the_word() {
    let world = World::encrypted(1 << 20).await;
    let key = Key::new(100, 1);
    let mut stored = world.bus.subscribe(&Topic::packs_stored()).await.unwrap();
    world.publish(&world.message(1, Domain::Data, &[1], Some(&key))).await;
    world.wait(1).await;
    world.flush(1).await;
    let pack: PackStored = stored.next().await.unwrap().read().unwrap();
    let expected =
        [format!("create {}", names::key(key.sealed.id)), format!("put {}", names::pack(pack.pack))];
    assert_eq!(world.record.take(), expected);
    // The same key is not filed a second time.
    world.publish(&world.message(1, Domain::Data, &[2], Some(&key))).await;
    world.wait(1).await;
    world.flush(1).await;
    let pack: PackStored = stored.next().await.unwrap().read().unwrap();
    assert_eq!(world.record.take(), [format!("put {}", names::pack(pack.pack))]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_announced_or_acknowledged_while_the_store_is_away() {
    for encrypted in [false, true] {
        let key = Key::new(100, 1);
        let (world, key) = match encrypted {
            true => (World::encrypted(1 << 20).await, Some(&key)),
            false => (World::plain(1 << 20).await, None),
        };
        let message = world.message(1, Domain::Data, &[1], key);
        world.publish(&message).await;
        world.wait(1).await;
        world.faults.crash();
        world.flush(1).await;
        world.wait(10).await;
        assert_eq!(world.unsettled(), message.size());
        assert!(world.announced().await.is_empty());
        world.faults.recover();
        world.wait(30).await;
        assert_eq!(world.announced().await.len(), 1, "encrypted: {encrypted}");
        assert_eq!(world.unsettled(), 0);
        assert_eq!(world.told(1).await, []);
    }
}

/// Each attempt takes a fresh name: one whose answer was lost, or that lands late, is an orphan that nobody knows.
#[tokio::test(start_paused = true)]
async fn an_attempt_takes_a_fresh_name_whatever_became_of_the_last() {
    let world = World::plain(1 << 20).await;
    let faults = [WriteFault::Before, WriteFault::After, WriteFault::Late];
    for (n, fault) in (1..).zip(faults) {
        world.faults.fail_write(n, fault);
    }
    world.data(1, &[1]).await;
    world.wait(1).await;
    world.flush(1).await;
    world.wait(30).await;
    let puts = world.puts();
    assert_eq!(puts.len(), faults.len() + 1);
    assert_eq!(puts.iter().collect::<BTreeSet<_>>().len(), puts.len(), "no name is used twice");
    let announced: Vec<_> = world.announced().await.into_keys().collect();
    assert_eq!(announced.iter().map(|pack| names::pack(*pack)).collect::<Vec<_>>(), puts[faults.len()..]);
    // Each says its own name.
    let (header, _) = world.repository.read_footer(announced[0]).await.unwrap();
    assert_eq!(header.pack, announced[0]);
    let orphan = names::parse_pack(&puts[1]).unwrap();
    assert_eq!(world.repository.read_footer(orphan).await.unwrap().0.pack, orphan);
    assert_eq!(world.context.counters.packs_retried.get(), faults.len() as u64);
    assert_eq!(world.unsettled(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_refuses_for_good_fails_the_sessions_and_hangs_nobody() {
    for (refusal, encrypted) in [
        (Refusal::Writes, false),
        (Refusal::Writes, true),
        (Refusal::Full, false),
        (Refusal::Full, true),
        (Refusal::Everything, false),
    ] {
        let key = Key::new(100, 1);
        let (world, key) = match encrypted {
            true => (World::encrypted(1 << 20).await, Some(&key)),
            false => (World::plain(1 << 20).await, None),
        };
        world.publish(&world.message(1, Domain::Data, &[1], key)).await;
        world.publish(&world.message(2, Domain::Data, &[2], key)).await;
        world.wait(1).await;
        world.faults.refuse(Some(refusal));
        world.flush(1).await;
        world.wait(1).await;
        for session in [1, 2] {
            let told = world.told(session).await;
            let [SessionEvent::Failed { kind: FailureKind::Store, why }] = &told[..] else {
                panic!("{refusal:?}: session {session} was told {told:?}")
            };
            assert!(why.contains(if encrypted { "test/keys/" } else { "test/packs/" }), "{why}");
        }
        assert!(world.announced().await.is_empty());
        assert_eq!(world.unsettled(), 0, "its chunks do not come again");
        // The next session may have more luck.
        world.faults.refuse(None);
        world.publish(&world.message(3, Domain::Data, &[1], key)).await;
        world.wait(1).await;
        world.flush(3).await;
        assert_eq!(world.announced().await.len(), 1, "{refusal:?}");
    }
}

/// After a minute of failures the chunks go back to the queue, and come again: to this storer or to another.
#[tokio::test(start_paused = true)]
async fn a_long_outage_gives_the_messages_back_and_they_are_stored_at_last() {
    let world = World::plain(1 << 20).await;
    world.data(1, &[1]).await;
    world.data(2, &[2]).await;
    world.wait(1).await;
    world.faults.crash();
    world.flush(1).await;
    world.wait(400).await;
    assert!(world.announced().await.is_empty());
    assert!(world.unsettled() > 20_000, "nothing was acknowledged");
    world.faults.recover();
    world.wait(200).await;
    let stored: BTreeSet<_> = world.announced().await.into_values().flatten().collect();
    assert_eq!(stored, [1, 2].map(|number| world.id(Domain::Data, number)).into());
    assert_eq!(world.unsettled(), 0);
    assert_eq!((world.told(1).await, world.told(2).await), (vec![], vec![]));
    let puts = world.puts();
    assert!(puts.len() > 9, "the outage outlasted one upload's attempts: {}", puts.len());
    assert_eq!(puts.iter().collect::<BTreeSet<_>>().len(), puts.len(), "no name is used twice");
}

/// An outage without an end is told to the sessions, by name.
#[tokio::test(start_paused = true)]
async fn an_outage_without_an_end_fails_the_sessions() {
    let world = World::plain(1 << 20).await;
    world.data(1, &[1]).await;
    world.wait(1).await;
    world.faults.crash();
    world.wait(24 * 3600).await;
    assert!(matches!(&world.told(1).await[..], [SessionEvent::Failed { .. }]));
    assert_eq!(world.unsettled(), 0);
}

/// A queue gives away what is silent for too long: tickets are extended while a pack fills and while it is uploaded.
#[tokio::test(start_paused = true)]
async fn tickets_are_extended_while_a_pack_fills_and_while_it_is_uploaded() {
    let world = World::plain(1 << 20).await;
    world.data(1, &[1]).await;
    world.wait(MAX_AGE.as_secs() - 10).await;
    let filling = world.extended();
    assert!(filling >= 3, "{filling}");
    world.faults.crash();
    world.flush(1).await;
    world.wait(30).await;
    assert!(world.extended() >= filling + 3, "{} after {filling}", world.extended());
    world.faults.recover();
    world.wait(60).await;
    assert_eq!(world.unsettled(), 0);
    let settled = world.extended();
    world.wait(60).await;
    assert_eq!(world.extended(), settled, "what is settled is not extended");
}
