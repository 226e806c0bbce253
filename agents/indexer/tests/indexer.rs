//! The indexer over a repository in memory: what it answers, what it makes of a bucket, and what a damaged or lost
//! cache changes about that: nothing.

mod locator;
mod support;

use std::time::Duration;

use agent::Failure;
use agent::index::IndexClient;
use indexer::{Indexer, OpenError, SyncReport, rebuild};
use schema::messages::{About, Answer, Ask, FailureKind, Locate, Message, PackStored, Seek, Sought};
use schema::{SessionId, names};
use support::*;

#[tokio::test]
async fn an_unknown_chunk_is_yours_then_pending_for_others_then_known() {
    let world = World::new().await;
    let indexer = world.open(&world.settings("a")).await.expect("opened");
    let id = world.id(1);
    assert_eq!(ask(&indexer, 1, false, id), Answer::Yours);
    assert_eq!(ask(&indexer, 2, false, id), Answer::Pending);
    assert_eq!(ask(&indexer, 1, false, id), Answer::Yours, "the same extent asks again");
    let stored = world.put([1, 2]).await;
    indexer.stored(&stored).expect("applied");
    assert_eq!(ask(&indexer, 2, false, id), Answer::Known(stored.pack));
    assert_eq!(ask(&indexer, 2, true, id), Answer::Yours, "force always is");
    assert_eq!(locate(&indexer, &[id, world.id(3)]), [vec![copy_in(&stored, id)], vec![]]);
}

#[tokio::test(start_paused = true)]
async fn claims_end_with_time_and_with_force() {
    let world = World::new().await;
    let indexer = world.open(&world.settings("a")).await.expect("opened");
    let id = world.id(1);
    assert_eq!(ask(&indexer, 1, false, id), Answer::Yours);
    assert_eq!(ask(&indexer, 2, true, id), Answer::Yours);
    assert_eq!(ask(&indexer, 1, false, id), Answer::Pending, "force took it over");
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(ask(&indexer, 1, false, id), Answer::Pending);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(ask(&indexer, 1, false, id), Answer::Yours, "given up");
}

#[tokio::test]
async fn every_copy_is_kept_and_the_newest_is_known() {
    let world = World::new().await;
    let indexer = world.open(&world.settings("a")).await.expect("opened");
    let id = world.id(7);
    let (old, new) = (world.put([7, 8, 7]).await, world.put([6, 7]).await);
    for _ in 0..3 {
        indexer.stored(&new).expect("applied");
        indexer.stored(&old).expect("applied");
    }
    assert_eq!(ask(&indexer, 1, false, id), Answer::Known(new.pack));
    let copies = &locate(&indexer, &[id])[0];
    assert_eq!(copies.len(), 3, "repetition adds nothing: {copies:?}");
    assert_eq!(copies[0], copy_in(&new, id));
    assert!(copies.contains(&copy_in(&old, id)), "{copies:?}");
    world.delete(new.pack).await;
    assert_eq!(indexer.sync().await.expect("compared").packs_forgotten, 1);
    assert_eq!(ask(&indexer, 1, false, id), Answer::Known(old.pack));
    assert_eq!(ask(&indexer, 1, false, world.id(6)), Answer::Yours);
}

#[tokio::test]
async fn an_announced_pack_that_is_not_listed_is_gone_after_a_sync() {
    let world = World::new().await;
    let indexer = world.open(&world.settings("a")).await.expect("opened");
    let (stale, _) = world.build([1, 2, 3]);
    indexer.stored(&stale).expect("applied");
    assert_eq!(ask(&indexer, 1, false, world.id(1)), Answer::Known(stale.pack), "a hint");
    let report = indexer.sync().await.expect("compared");
    assert_eq!((report.packs_forgotten, report.packs_listed), (1, 0));
    assert_eq!(ask(&indexer, 1, false, world.id(1)), Answer::Yours);
    indexer.stored(&stale).expect("late, and of no effect");
    assert_eq!(locate(&indexer, &world.ids(1..=3)), vec![vec![]; 3]);
    assert_eq!(indexer.sync().await.expect("compared").packs_forgotten, 0);
}

#[tokio::test]
async fn what_messages_lost_is_found_by_a_sync_and_only_once() {
    let world = World::new().await;
    let (told, lost) = (world.put([1, 2]).await, world.put([3, 4]).await);
    let indexer = world.open(&world.settings("a")).await.expect("opened");
    let expected = SyncReport { packs_listed: 2, footers_read: 2, entries: 4, ..SyncReport::default() };
    assert_eq!(indexer.first_sync(), expected);
    indexer.stored(&told).expect("again");
    let later = world.put([5]).await;
    indexer.stored(&later).expect("applied");
    let part = world.put([20, 21, 22]).await;
    indexer.stored(&PackStored { pack: part.pack, entries: part.entries[1..].to_vec() }).expect("a part");
    assert_eq!(ask(&indexer, 1, false, world.id(22)), Answer::Known(part.pack));
    assert_eq!(ask(&indexer, 1, false, world.id(20)), Answer::Yours);
    let report = indexer.sync().await.expect("compared");
    assert_eq!((report.packs_listed, report.footers_read, report.entries), (4, 1, 3), "only the part's");
    assert_eq!(ask(&indexer, 2, false, world.id(20)), Answer::Known(part.pack));
    assert_eq!(locate(&indexer, &[world.id(3)])[0], [copy_in(&lost, world.id(3))]);
    assert_eq!(indexer.sync().await.expect("compared").footers_read, 0);
}

#[tokio::test]
async fn a_sweep_removes_what_dead_packs_left_and_nothing_else() {
    let world = World::new().await;
    let (dead, alive) = (world.put(0..6000).await, world.put(4000..10_000).await);
    let indexer = world.open(&world.settings("a")).await.expect("opened");
    let ids = world.ids(0..10_000);
    world.delete(dead.pack).await;
    indexer.sync().await.expect("compared");
    let before: Vec<_> = ids.chunks(8000).flat_map(|ids| locate(&indexer, ids)).collect();
    indexer.sweep().await.expect("swept");
    let after: Vec<_> = ids.chunks(8000).flat_map(|ids| locate(&indexer, ids)).collect();
    assert_eq!(before, after);
    assert!(after[..4000].iter().all(Vec::is_empty));
    assert!(after[4000..].iter().all(|copies| matches!(copies[..], [copy] if copy.pack == alive.pack)));
    // The dead pack's row went with its entries, so that even its name is news.
    indexer.stored(&dead).expect("applied");
    assert_eq!(ask(&indexer, 1, false, ids[0]), Answer::Known(dead.pack));
}

#[tokio::test]
async fn a_lost_cache_changes_no_answer() {
    let world = World::new().await;
    let settings = world.settings("a");
    let indexer = world.open(&settings).await.expect("opened");
    let mut packs = Vec::new();
    for n in 0..20 {
        let stored = world.put(n * 50..n * 50 + 80).await;
        indexer.stored(&stored).expect("applied");
        packs.push(stored.pack);
    }
    world.delete(packs[3]).await;
    indexer.sync().await.expect("compared");
    let ids = world.ids(0..1100);
    let expected = locate(&indexer, &ids);
    assert_eq!(expected.iter().map(Vec::len).sum::<usize>(), 19 * 80);
    drop(indexer);

    std::fs::remove_dir_all(&settings.path).expect("deleted");
    let indexer = world.open(&settings).await.expect("opened anew");
    assert_eq!(indexer.first_sync().footers_read, 19);
    assert_eq!(locate(&indexer, &ids), expected);
    drop(indexer);

    let indexer = world.open(&settings).await.expect("opened again");
    assert_eq!(indexer.first_sync().footers_read, 0, "everything was in the cache");
    assert_eq!(locate(&indexer, &ids), expected);
    drop(indexer);

    let report =
        rebuild(world.context.clone(), world.repository.clone(), settings.clone()).await.expect("rebuilt");
    assert_eq!((report.footers_read, report.entries), (19, 19 * 80));
}

#[tokio::test]
async fn a_crash_costs_no_answer() {
    let world = World::new().await;
    let settings = world.settings("a");
    let indexer = world.open(&settings).await.expect("opened");
    for n in 0..20 {
        let stored = world.put(n * 50..n * 50 + 50).await;
        indexer.stored(&stored).expect("applied");
    }
    let ids = world.ids(0..1000);
    let expected = locate(&indexer, &ids);
    // As a kill leaves it, and with the journal cut off at some places, as a power failure may.
    for cut in [None, Some(0), Some(7), Some(1000), Some(40_000), Some(70_000)] {
        let name = format!("crashed-{cut:?}");
        crash_image(&settings.path, &world.path(&name));
        if let Some(len) = cut {
            let journal =
                files(&world.path(&name)).into_iter().find(|f| f.extension().is_some_and(|e| e == "jnl"));
            let journal =
                std::fs::File::options().write(true).open(journal.expect("a journal")).expect("opened");
            journal.set_len(len).expect("cut");
        }
        let survivor = world.open(&world.settings(&name)).await.expect("opened");
        let report = survivor.first_sync();
        assert_eq!(locate(&survivor, &ids), expected, "cut {cut:?}: {report:?}");
        match cut {
            None => assert_eq!(report.footers_read, 0),
            Some(len) => assert!(report.footers_read > 0, "cut {len} lost nothing"),
        }
    }
}

#[tokio::test]
async fn damaged_cache_files_are_replaced() {
    let world = World::new().await;
    let settings = world.settings("a");
    let indexer = world.open(&settings).await.expect("opened");
    indexer.stored(&world.put(0..500).await).expect("applied");
    let ids = world.ids(0..500);
    let expected = locate(&indexer, &ids);
    drop(indexer);
    let all: Vec<_> = files(&settings.path.join("rows"));
    assert!(all.len() > 3, "{all:?}");
    for (n, file) in all.iter().enumerate() {
        let name = format!("damaged-{n}");
        crash_image(&settings.path, &world.path(&name));
        let target = world.path(&name).join(file.strip_prefix(&settings.path).expect("below"));
        let mut bytes = std::fs::read(&target).expect("read");
        bytes.truncate(200_000);
        bytes.iter_mut().for_each(|byte| *byte ^= 0x5a);
        std::fs::write(&target, bytes).expect("damaged");
        let indexer = world.open(&world.settings(&name)).await.expect("opened");
        assert_eq!(locate(&indexer, &ids), expected, "damaged: {}", file.display());
    }
    std::fs::write(settings.path.join("damaged"), "").expect("marked");
    let indexer = world.open(&settings).await.expect("opened");
    assert_eq!(indexer.first_sync().footers_read, 1, "a marked cache is built anew");
    drop(indexer);
    assert_eq!(world.open(&settings).await.expect("opened").first_sync().footers_read, 0, "once");
}

#[tokio::test]
async fn a_cache_of_another_repository_or_for_other_shards_is_replaced() {
    let world = World::new().await;
    let settings = world.settings("a");
    let stored = world.put(0..100).await;
    drop(world.open(&settings).await.expect("opened"));
    let other = new_repository(world.context.environment.clone()).await;
    let indexer = Indexer::open(world.context.clone(), other, settings.clone()).await.expect("opened");
    assert_eq!(ask(&indexer, 1, false, world.id(0)), Answer::Yours);
    drop(indexer);
    for (shards, owned) in [(1, &[0][..]), (2, &[0]), (2, &[1]), (2, &[1, 0])] {
        let indexer = world.open(&world.settings_of("a", shards, owned)).await.expect("opened");
        assert_eq!(indexer.first_sync().footers_read, 1, "{owned:?} of {shards}");
        let (ours, others): (Vec<_>, Vec<_>) =
            world.ids(0..100).into_iter().partition(|id| owned.contains(&id.shard(shards)));
        assert_eq!(indexer.first_sync().entries, ours.len() as u64);
        let located = indexer.locate(&Locate { shards, ids: ours.clone() }).expect("ours").copies;
        assert!(located.iter().zip(&ours).all(|(copies, id)| copies[..] == [copy_in(&stored, *id)]));
        for id in others {
            let refused = indexer.locate(&Locate { shards, ids: vec![id] }).expect_err("not ours");
            assert_eq!(refused.kind, FailureKind::Refused);
        }
        let mut wrong = question(1, 0, false, ours);
        wrong.shards = shards + 1;
        let refused = indexer.ask(&wrong).expect_err("another layout");
        assert!(refused.why.contains(&format!("of {} shards", shards + 1)), "{refused}");
        assert!(refused.why.contains(&format!("has {shards}")), "{refused}");
    }
}

#[tokio::test]
async fn torn_footers_are_salvaged_and_hopeless_packs_skipped() {
    let world = World::new().await;
    let store = &world.repository.store;
    let whole = world.put(0..10).await;
    let damage = |stored: PackStored, places: &'static [(usize, bool)]| async move {
        let key = names::pack(stored.pack);
        let mut bytes = store.get(&key).await.expect("read").expect("there").to_vec();
        let len = bytes.len();
        for (place, from_end) in places {
            bytes[if *from_end { len - place } else { *place }] ^= 0xff;
        }
        store.put(&key, bytes.into()).await.expect("written");
        stored
    };
    let torn = damage(world.put(10..20).await, &[(1, true), (40, true)]).await;
    let torn_footer = damage(world.put(20..30).await, &[(60, true)]).await;
    let hopeless = damage(world.put(30..40).await, &[(1, true), (3, false)]).await;
    let (_, parts) = world.build(40..50);
    store
        .put(&names::pack(world.context.environment.pack_id()), parts.concat().into())
        .await
        .expect("a stranger");
    store.put(&names::pack(world.context.environment.pack_id()), Vec::new().into()).await.expect("nothing");

    let indexer = world.open(&world.settings("a")).await.expect("opened");
    let report = indexer.first_sync();
    assert_eq!((report.packs_listed, report.footers_read, report.packs_unreadable), (5, 3, 2));
    for stored in [&whole, &torn, &torn_footer] {
        for entry in &stored.entries {
            assert_eq!(locate(&indexer, &[entry.id])[0], [copy_in(stored, entry.id)]);
        }
    }
    assert!(hopeless.entries.iter().all(|entry| ask(&indexer, 1, false, entry.id) == Answer::Yours));
    let again = indexer.sync().await.expect("compared");
    assert_eq!((again.footers_read, again.packs_unreadable), (0, 2), "tried once");
}

#[tokio::test]
async fn two_processes_cannot_share_a_cache() {
    let world = World::new().await;
    let settings = world.settings("a");
    let first = world.open(&settings).await.expect("opened");
    let second = world.open(&settings).await.expect_err("in use");
    assert!(matches!(&second, OpenError::Locked { path } if *path == settings.path), "{second}");
    let failure = Failure::from(second);
    assert_eq!(failure.kind, FailureKind::Refused);
    assert!(failure.why.contains("in use by another process"), "{failure}");
    let rebuilt = rebuild(world.context.clone(), world.repository.clone(), settings.clone()).await;
    assert!(matches!(rebuilt, Err(OpenError::Locked { .. })));
    world.open(&world.settings("private")).await.expect("a private one");
    drop(first);
    world.open(&settings).await.expect("free again");
}

#[tokio::test]
async fn a_pack_that_is_announced_while_a_listing_runs_is_kept() {
    let (world, gate) = World::with_gate().await;
    let indexer = world.open(&world.settings("a")).await.expect("opened");
    let before = world.build([1]).0;
    indexer.stored(&before).expect("applied");
    // The listing sees nothing, is held up, and ends only after another pack was announced.
    gate.close();
    let during = world.build([2]).0;
    let announcing = async {
        gate.listed().await;
        indexer.stored(&during).expect("applied");
        gate.open();
    };
    let (report, ()) = tokio::join!(indexer.sync(), announcing);
    assert_eq!(report.expect("compared").packs_forgotten, 1, "the one that was known before");
    assert_eq!(ask(&indexer, 1, false, world.id(1)), Answer::Yours);
    assert_eq!(ask(&indexer, 1, false, world.id(2)), Answer::Known(during.pack));
}

#[tokio::test]
async fn served_over_the_bus_by_two_processes_of_two_shards_each() {
    for shards in [1_u16, 4] {
        let world = World::new().await;
        let listed = world.put(0..200).await;
        let halves: Vec<Vec<u16>> = match shards {
            1 => vec![vec![0]],
            _ => vec![vec![0, 3], vec![1, 2]],
        };
        let mut running = Vec::new();
        for (n, owned) in halves.iter().enumerate() {
            let indexer =
                world.open(&world.settings_of(&format!("{n}"), shards, owned)).await.expect("opened");
            running.push(tokio::spawn(indexer.run()));
        }
        let (bus, environment) = (world.context.bus.clone(), world.context.environment.clone());
        let client = IndexClient::new(bus.clone(), environment, shards);
        let about = About::nothing();
        let session = |n| SessionId::from_bytes([n; 16]);
        let ids = world.ids(0..300);
        let answers = client.ask(&about, session(1), 0, false, &ids).await.expect("answers");
        assert!(answers[..200].iter().all(|answer| *answer == Answer::Known(listed.pack)));
        assert!(answers[200..].iter().all(|answer| *answer == Answer::Yours));
        let answers = client.ask(&about, session(2), 0, false, &ids[200..]).await.expect("answers");
        assert!(answers.iter().all(|answer| *answer == Answer::Pending));

        // Each shard is told only what concerns it, and the conductor's wait is played by asking until it is known.
        let stored = world.put(200..300).await;
        for shard in 0..shards {
            let entries = stored.entries.iter().filter(|e| e.id.shard(shards) == shard).copied().collect();
            let told = PackStored { pack: stored.pack, entries };
            bus.publish(&agent::Queue::stored(shard), Message::new(&about, &told)).await.expect("told");
        }
        let known = vec![Answer::Known(stored.pack); 100];
        while client.ask(&about, session(2), 0, false, &ids[200..]).await.expect("answers") != known {
            tokio::task::yield_now().await;
        }
        let located = client.locate(&about, &ids).await.expect("answers");
        assert!(
            located[200..].iter().zip(&ids[200..]).all(|(found, id)| found[..] == [copy_in(&stored, *id)])
        );

        // A question of another layout is refused by name.
        let asked =
            Ask { session: session(1), extent: 0, force: false, shards: shards + 1, ids: ids[..1].to_vec() };
        let direct = bus
            .request(&agent::Service::index(0), Message::new(&about, &asked), Duration::from_secs(9))
            .await;
        let why = direct.expect_err("refused").to_string();
        assert!(why.contains(&format!("has {shards}")), "{why}");

        world.context.stop.raise();
        for task in running {
            task.await.expect("no panic").expect("ended well");
        }
    }
}

#[tokio::test]
async fn the_bucket_is_looked_at_for_whoever_does_not_know_that_it_was() {
    let world = World::new().await;
    let indexer = world.open(&world.settings("a")).await.expect("opened");
    let sought = async |looked: Vec<u64>| {
        indexer.seek(Seek { shards: 1, ids: world.ids([2]), looked }).await.expect("an answer")
    };
    let silent = world.put([1, 2]).await;
    assert_eq!(locate(&indexer, &world.ids([2])), [vec![]]);
    let Sought { copies, by } = sought(vec![]).await;
    let found = copy_in(&silent, world.id(2));
    assert_eq!(copies, [vec![found]]);
    let later = copy_in(&world.put([2]).await, world.id(2));
    assert_eq!(sought(vec![by ^ 1, by]).await.copies, [vec![found]]);
    assert_eq!(sought(vec![by ^ 1]).await.copies, [vec![later, found]], "somebody else looked");
}

/// One pack that the store does not give keeps nothing else from being known, and nobody hears that its chunks are nowhere.
#[tokio::test(start_paused = true)]
async fn a_pack_that_the_store_does_not_give_stops_nothing_and_is_not_taken_for_lost() {
    let (world, store) = World::faulty().await;
    let (kept_back, given) = (world.put([1]).await, world.put([2]).await);
    store.withhold(&names::pack(kept_back.pack), None);
    let indexer = world.open(&world.settings("a")).await.expect("opened");
    let first = indexer.first_sync();
    assert_eq!((first.packs_listed, first.footers_read, first.packs_withheld), (2, 1, 1));
    assert_eq!(locate(&indexer, &world.ids(1..=2)), [vec![], vec![copy_in(&given, world.id(2))]]);
    let seek = || Seek { shards: 1, ids: world.ids([1]), looked: vec![] };
    let failure = indexer.seek(seek()).await.expect_err("it may be there");
    assert!(failure.kind == FailureKind::Store && failure.retry, "{failure}");
    store.withhold_nothing();
    let sought = indexer.seek(seek()).await.expect("an answer");
    assert_eq!(sought.copies, [vec![copy_in(&kept_back, world.id(1))]]);
    // A store that gives nothing is another matter.
    store.withhold(&names::pack(given.pack), None);
    store.withhold(names::CONFIG, None);
    assert!(world.open(&world.settings("b")).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn the_bucket_is_looked_at_now_and_then() {
    let world = World::new().await;
    let indexer = world.open(&world.settings("a")).await.expect("opened");
    let running = tokio::spawn(indexer.clone().run());
    let silent = world.put([1, 2, 3]).await;
    while ask(&indexer, 1, false, world.id(2)) != Answer::Known(silent.pack) {
        tokio::time::advance(Duration::from_secs(100)).await;
        tokio::task::yield_now().await;
    }
    assert!(world.context.environment.elapsed() >= Duration::from_secs(600));
    world.context.stop.raise();
    running.await.expect("no panic").expect("ended well");
}
