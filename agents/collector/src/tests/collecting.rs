use std::collections::BTreeMap;
use std::time::Duration;

use agent::Stop;
use agent::repository::AtSlot;
use schema::messages::{FailureKind, JobOutcome};
use schema::{ChunkId, Domain, JobId, PackId, names};

use super::fixture::*;
use crate::budget::Budget;
use crate::footers::Footers;
use crate::mark::Sources;
use crate::structure::{self, Structure};
use crate::{Collector, Latest, Left, Limits, Patience, census, latest, unfinished};

#[tokio::test(start_paused = true)]
async fn what_nobody_needs_is_deleted_and_what_is_needed_moves() {
    let (world, forgotten) = littered(false).await;
    let before = world.bytes().await;
    let dry = world.collector().dry_run().await.unwrap();
    assert_eq!((world.bytes().await, dry.epoch), (before, None));
    let report = world.prune().await.unwrap();
    assert_eq!((report.epoch, report.swept.snapshots, report.waits.len()), (Some(1), 2, 0));
    assert_eq!((dry.dead, dry.rewritten, dry.sums), (report.dead, report.rewritten, report.sums));
    assert!(report.dead > 0 && report.rewritten > 0 && report.new_packs > 0, "{report:?}");
    assert_eq!(report.swept.packs, report.dead + report.rewritten);
    assert_eq!(world.check().await, 2);
    for slot in forgotten {
        assert!(matches!(world.repository.at_slot(slot).await.unwrap(), AtSlot::Tombstone));
        assert!(world.repository.store.head(&slot.forgotten()).await.unwrap().is_some());
    }
    // 22 chunks of a, 3 of c; two leaves.
    let needed = 27 * CHUNK as u64;
    assert!(
        world.bytes().await < needed + needed / 2 && before > 2 * needed,
        "{before}, {}",
        world.bytes().await
    );
    world.prune_to_the_end().await;
    assert_eq!(world.check().await, 2);
}

#[tokio::test(start_paused = true)]
async fn frames_move_with_their_keys() {
    let (world, _) = littered(true).await;
    let report = world.prune().await.unwrap();
    assert!(report.new_packs > 0);
    // The oracle opens every chunk by the footer of its own pack.
    assert_eq!(world.check().await, 2);
}

/// Without an identity, nobody can tell that what stands below `keys/` opens nothing any more.
#[tokio::test(start_paused = true)]
async fn a_key_that_rots_below_keys_does_not_spread() {
    let (world, _) = littered(true).await;
    for listed in world.repository.store.list(names::KEYS).await.unwrap() {
        let mut bytes = world.repository.store.get(&listed.key).await.unwrap().unwrap().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        world.repository.store.put(&listed.key, bytes.into()).await.unwrap();
    }
    let report = world.prune().await.unwrap();
    assert!(report.new_packs > 0 && report.swept.packs > 0);
    assert_eq!(world.check().await, 2);
}

#[tokio::test(start_paused = true)]
async fn nothing_to_collect_is_no_collection() {
    let world = World::plain().await;
    world.backup("a", &[1, 2, 3]).await;
    assert_eq!(world.prune().await.unwrap().epoch, None);
    assert_eq!(latest(&world.repository).await.unwrap(), Latest::Finished { next: 1 });
    assert_eq!(world.check().await, 1);
}

#[tokio::test(start_paused = true)]
async fn of_two_copies_the_older_one_stays() {
    let world = World::plain().await;
    world.backup("a", &[1, 2, 3]).await;
    let older = world.packs().await;
    world.pack(Domain::Data, &[chunk(1), chunk(2), chunk(3)], session(9)).await;
    world.prune_to_the_end().await;
    assert_eq!(world.packs().await, older);
    assert_eq!(world.check().await, 1);
}

/// A host that was taken over stores rubbish under the names of chunks, beside what others need.
#[tokio::test(start_paused = true)]
async fn what_somebody_calls_a_copy_replaces_none() {
    let world = World::plain().await;
    let first = world.backup("a", &(1..13).collect::<Vec<_>>()).await;
    let AtSlot::Snapshot(root) = world.repository.at_slot(first).await.unwrap() else { panic!() };
    let leaf = world.structure(&root).await;
    let needed: Vec<u64> = (50..54).collect();
    let seeds = [1, 2].iter().chain(&needed).map(|seed| chunk(*seed));
    world.pack_with(Domain::Data, &seeds.collect::<Vec<_>>(), 2, session(9)).await;
    world.pack_with(Domain::Structure, &[leaf], 1, session(9)).await;
    world.backup("b", &needed).await;
    world.prune_to_the_end().await;
    assert_eq!(world.check().await, 2);

    // The good copies move, and stay older than the others.
    world.backup("a", &[1, 2]).await;
    world.forget(first).await;
    let report = world.prune().await.unwrap();
    assert!(report.rewritten > 0 && report.swept.packs > 0, "{report:?}");
    assert_eq!(world.check().await, 2);
    world.prune_to_the_end().await;
    assert_eq!(world.check().await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_part_of_a_map_that_cannot_be_opened_is_no_copy() {
    let world = World::plain().await;
    let slot = world.backup("a", &[1, 2, 3]).await;
    let AtSlot::Snapshot(root) = world.repository.at_slot(slot).await.unwrap() else { panic!() };
    let leaf = world.structure(&root).await;
    let (old, offset, len) = world.copies().await.unwrap()[&root.top.unwrap()][0];
    world.rot(old, offset + len - 1).await;
    let newer = world.pack(Domain::Structure, &[leaf], session(9)).await;
    world.prune_to_the_end().await;
    assert_eq!(world.check().await, 1);
    let left = world.packs().await;
    assert!(left.contains(&newer) && !left.contains(&old), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_is_recorded_as_damaged_is_no_reason_to_delete_an_older_one() {
    let world = World::plain().await;
    world.backup("a", &[1, 2, 3]).await;
    let older = world.packs().await;
    let newer = world.pack(Domain::Data, &[chunk(1), chunk(2), chunk(3)], session(9)).await;
    world.damage(newer, &[1, 2, 3]).await;
    world.prune_to_the_end().await;
    assert_eq!(world.packs().await, older);
    assert_eq!(world.check().await, 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_deleted_while_a_record_of_damage_cannot_be_read() {
    let world = World::plain().await;
    world.backup("a", &[1, 2, 3]).await;
    world.pack(Domain::Data, &[chunk(1), chunk(2), chunk(3)], session(9)).await;
    let before = world.packs().await;
    let key = names::damage(world.repository.environment().damage_id());
    for bytes in [&b"rotten"[..], b""] {
        world.repository.store.put(&key, bytes.into()).await.unwrap();
        let failure = world.prune().await.unwrap_err();
        assert!(failure.to_string().contains(&key), "{failure}");
        assert_eq!(world.packs().await, before);
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_copy_stays_where_it_is_although_it_is_recorded_as_damaged() {
    let world = World::plain().await;
    let gone = world.backup("gone", &(20..40).collect::<Vec<_>>()).await;
    world.backup("a", &[20]).await;
    world.forget(gone).await;
    let before = world.copies().await.unwrap();
    let copies = &before[&world.repository.key.chunk_ids().id(Domain::Data, &chunk(20))];
    world.damage(copies[0].0, &[20]).await;
    world.prune_to_the_end().await;
    assert!(world.packs().await.contains(&copies[0].0), "nothing damaged is moved");
    // What is stored again takes its place.
    world.pack(Domain::Data, &[chunk(20)], session(9)).await;
    world.prune_to_the_end().await;
    assert!(!world.packs().await.contains(&copies[0].0));
    assert_eq!(world.check().await, 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_healed_stays_and_the_damaged_copy_goes_although_it_is_older() {
    // The healed copy stands alone, or moves, because it came beside what nobody needs.
    for beside in [0, 5] {
        let world = World::plain().await;
        let gone = world.backup("gone", &(20..26).collect::<Vec<_>>()).await;
        world.backup("a", &[20, 21]).await;
        world.forget(gone).await;
        let id = world.repository.key.chunk_ids().id(Domain::Data, &chunk(20));
        let (old, offset, len) = world.copies().await.unwrap()[&id][0];
        world.rot(old, offset + len - 1).await;
        world.damage(old, &[20]).await;
        let healed: Vec<_> = [20].into_iter().chain(90..90 + beside).map(chunk).collect();
        let healed = world.pack(Domain::Data, &healed, session(9)).await;
        world.prune_to_the_end().await;
        let copies = world.copies().await.unwrap();
        let left: Vec<_> = copies[&id].iter().map(|(pack, ..)| *pack).collect();
        assert!(!world.packs().await.contains(&old) && left.len() == 1, "{left:?}");
        assert_eq!(left.contains(&healed), beside == 0, "{left:?}");
        assert_eq!(world.check().await, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pack_that_is_needed_but_for_a_damaged_frame_goes_once_that_is_healed() {
    let world = World::plain().await;
    world.backup("a", &[20, 21, 22, 23]).await;
    let id = world.repository.key.chunk_ids().id(Domain::Data, &chunk(20));
    let (old, offset, len) = world.copies().await.unwrap()[&id][0];
    let beside = |copies: &BTreeMap<ChunkId, Vec<(PackId, u32, u32)>>| {
        copies.values().filter(|copies| copies.iter().any(|(pack, ..)| *pack == old)).count()
    };
    assert_eq!(beside(&world.copies().await.unwrap()), 4, "far more of it is needed than is not");
    world.rot(old, offset + len - 1).await;
    world.damage(old, &[20]).await;
    let before = world.packs().await;
    // The only copy stays, and so does its record.
    world.prune_to_the_end().await;
    assert_eq!(world.packs().await, before);
    let healed = world.pack(Domain::Data, &[chunk(20)], session(9)).await;
    let mut settings = World::settings();
    settings.limits = Limits { max_repack: 1, ..settings.limits };
    let poor = Collector::new(world.repository.clone(), settings, Default::default()).prune().await.unwrap();
    assert_eq!((poor.rewritten, poor.epoch), (0, None), "there is no room");
    world.prune_to_the_end().await;
    let left = world.packs().await;
    assert!(left.contains(&healed) && !left.contains(&old), "{left:?}");
    assert_eq!(world.copies().await.unwrap()[&id].len(), 1);
    assert_eq!(world.check().await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_part_of_a_map_that_is_recorded_as_damaged_is_kept_while_no_other_opens() {
    let world = World::plain().await;
    let slot = world.backup("a", &[1, 2, 3]).await;
    let AtSlot::Snapshot(root) = world.repository.at_slot(slot).await.unwrap() else { panic!() };
    let (id, leaf) = (root.top.unwrap(), world.structure(&root).await);
    let old = world.copies().await.unwrap()[&id][0].0;
    let newer = world.pack_with(Domain::Structure, std::slice::from_ref(&leaf), 1, session(9)).await;
    world.damage_ids(old, vec![id]).await;
    world.prune_to_the_end().await;
    assert!(world.packs().await.contains(&old));
    assert_eq!(world.check().await, 1);
    // One that opens takes the place of both.
    let newest = world.pack(Domain::Structure, &[leaf], session(9)).await;
    world.prune_to_the_end().await;
    let left = world.packs().await;
    assert!(left.contains(&newest) && !left.contains(&old) && !left.contains(&newer), "{left:?}");
    assert_eq!(world.check().await, 1);
}

fn session(number: u8) -> schema::SessionId {
    schema::SessionId::from_bytes([number; 16])
}

#[tokio::test(start_paused = true)]
async fn the_budget_limits_what_moves() {
    let (world, _) = littered(false).await;
    let mut settings = World::settings();
    settings.limits = Limits { max_repack: 0, ..settings.limits };
    let report =
        Collector::new(world.repository.clone(), settings, Default::default()).prune().await.unwrap();
    assert_eq!((report.rewritten, report.new_packs), (0, 0));
    assert!(report.dead > 0 && report.sums.unwrap().later > 0);
    assert_eq!(world.check().await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_sweep_waits_for_the_sessions_that_were_open_and_for_no_later_ones() {
    let (world, _) = littered(false).await;
    let mut early = world.begin("early").await.unwrap();
    let report = world.prune().await.unwrap();
    assert_eq!(report.waits.len(), 1);
    let about = report.waits[0].about.clone().unwrap();
    assert_eq!((report.waits[0].session, about.volume.as_str()), (early.open.session().id, "early"));
    let state = unfinished(&world.repository).await.unwrap().unwrap();
    assert_eq!((state.number, state.decided, state.waits), (1, false, report.waits));
    // What it will take away is known all the time, also to who goes on.
    assert_eq!((report.left.snapshots, report.left.packs), (2, state.condemned));
    let sums = report.sums.unwrap();
    assert_eq!(report.left.bytes, sums.dead + sums.rewritten);
    assert_eq!(state.left, report.left);
    assert_eq!(world.collector().dry_run().await.unwrap().left, report.left);

    let mut late = world.begin("late").await.unwrap();
    late.store(&(40..60).collect::<Vec<_>>()).await.unwrap();
    early.store(&(1..25).collect::<Vec<_>>()).await.unwrap();
    let again = world.prune().await.unwrap();
    assert_eq!((again.waits.len(), again.left, again.sums), (1, report.left, None));
    early.commit().await.unwrap().unwrap();
    // The late session is still open, and read the epoch.
    let report = world.prune().await.unwrap();
    assert!(report.swept.packs > 0 && report.swept.snapshots == 2, "{report:?}");
    assert_eq!(report.left, Left::default());
    late.commit().await.unwrap().unwrap();
    assert_eq!(world.check().await, 4);
    world.prune_to_the_end().await;
    assert_eq!(world.check().await, 4);
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_says_for_whom_a_collection_would_wait_and_changes_nothing() {
    let (world, _) = littered(false).await;
    assert_eq!(world.collector().dry_run().await.unwrap().waits, []);
    let early = world.begin("early").await.unwrap();
    // Of one whose driver died after its commit only its object is left.
    let mut dead = world.begin("dead").await.unwrap();
    let object = names::session(dead.open.session().id);
    let left = world.repository.store.get(&object).await.unwrap().unwrap();
    dead.store(&[1]).await.unwrap();
    dead.commit().await.unwrap().unwrap();
    world.repository.store.put(&object, left).await.unwrap();

    let dry = world.collector().dry_run().await.unwrap();
    assert_eq!((dry.waits.len(), dry.waits[0].session), (1, early.open.session().id));
    assert_eq!(dry.waits[0].about.as_ref().unwrap().volume, "early");
    assert!(dry.epoch.is_none() && !dry.is_finished(), "{dry:?}");
    assert!(world.repository.store.head(&object).await.unwrap().is_some());
    assert_eq!(latest(&world.repository).await.unwrap(), Latest::Finished { next: 1 });
    assert_eq!(world.prune().await.unwrap().waits, dry.waits, "it comes to that");

    // What has begun waits for nobody who came later.
    let late = world.begin("late").await.unwrap();
    assert_eq!(world.collector().dry_run().await.unwrap().waits, dry.waits);
    early.open.abandon().await.unwrap();
    assert_eq!(world.collector().dry_run().await.unwrap().waits, []);
    late.open.abandon().await.unwrap();
    world.prune_to_the_end().await;
    // Where nothing is to be collected, nobody would be waited for.
    let _open = world.begin("open").await.unwrap();
    let dry = world.collector().dry_run().await.unwrap();
    assert!(dry.waits.is_empty() && dry.is_finished(), "{dry:?}");
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_when_the_session_does() {
    let (world, _) = littered(false).await;
    let mut backup = world.begin("early").await.unwrap();
    backup.store(&[1, 2, 3]).await.unwrap();
    let mut settings = World::settings();
    settings.patience.wait = Duration::from_secs(3600);
    let collector = Collector::new(world.repository.clone(), settings, Default::default());
    let later = async {
        world.repository.environment().sleep(Duration::from_secs(600)).await;
        backup.commit().await.unwrap().unwrap();
    };
    let (report, ()) = tokio::join!(collector.prune(), later);
    assert!(report.unwrap().swept.packs > 0);
    assert_eq!(world.check().await, 3);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_declared_dead_loses_its_slot_before_its_object() {
    let (world, _) = littered(false).await;
    let mut backup = world.begin("early").await.unwrap();
    backup.store(&(40..60).collect::<Vec<_>>()).await.unwrap();
    let (slot, id) = (backup.open.slot().unwrap(), backup.open.session().id);
    assert_eq!(world.prune().await.unwrap().waits.len(), 1);
    world.repository.environment().sleep(Duration::from_secs(7200)).await;
    let mut settings = World::settings();
    settings.patience = Patience { revoke_after: Some(Duration::from_secs(3600)), ..settings.patience };
    let collector = Collector::new(world.repository.clone(), settings, Default::default());
    assert!(collector.prune().await.unwrap().swept.packs > 0);
    assert!(matches!(world.repository.at_slot(slot).await.unwrap(), AtSlot::Tombstone));
    assert_eq!(world.repository.store.head(&names::session(id)).await.unwrap(), None);
    assert_eq!(backup.commit().await.unwrap(), None);
    assert_eq!(world.check().await, 2);
}

#[tokio::test(start_paused = true)]
async fn the_object_of_a_session_that_has_committed_is_waited_for_no_more() {
    let (world, _) = littered(false).await;
    let mut backup = world.begin("early").await.unwrap();
    backup.store(&(40..60).collect::<Vec<_>>()).await.unwrap();
    let key = names::session(backup.open.session().id);
    let object = world.repository.store.get(&key).await.unwrap().unwrap();
    backup.commit().await.unwrap().unwrap();
    // Its driver died between the commit and the deletion of its object.
    world.repository.store.put(&key, object).await.unwrap();
    let report = world.prune().await.unwrap();
    assert!(report.waits.is_empty() && report.swept.snapshots == 2);
    assert_eq!(world.repository.store.head(&key).await.unwrap(), None);
    assert_eq!(world.check().await, 3);
}

/// Were it removed, an agent that is given the job again would restore over what is in use by now.
#[tokio::test(start_paused = true)]
async fn a_note_that_a_restore_has_ended_is_not_waited_for_and_stays() {
    let (world, _) = littered(false).await;
    let outcome = JobOutcome::Failed { kind: FailureKind::Revoked, why: "stopped".into() };
    let job = JobId::from_bytes([5; 16]);
    let note = agent::sessions::note_end(&world.repository, job, "v", "host", &outcome).await.unwrap();
    world.repository.environment().sleep(Duration::from_secs(7200)).await;
    let mut settings = World::settings();
    settings.patience = Patience { revoke_after: Some(Duration::from_secs(3600)), ..settings.patience };
    let collector = Collector::new(world.repository.clone(), settings, Default::default());
    let report = collector.prune().await.unwrap();
    assert!(report.waits.is_empty() && report.swept.packs > 0, "{report:?}");
    assert!(world.repository.store.head(&names::session(note)).await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_in_memory_is_gone_through_in_parts() {
    let (world, _) = littered(false).await;
    let (stop, budget) = (Stop::default(), Budget::new(1 << 20));
    let footers = Footers::new(world.repository.clone(), budget.footers);
    let sources = Sources { repository: &world.repository, footers: &footers, stop: &stop, budget };
    let expected = census::list_and_mark(&sources).await.unwrap().packs;
    let budget = Budget { structure: 100, visited: 1, ..budget };
    let structure = Structure::of(&footers, world.packs().await, budget.structure).await.unwrap();
    assert!(structure.range().end < structure::LISTS, "{:?}", structure.range());
    let found = census::list_and_mark(&Sources { budget, ..sources }).await.unwrap().packs;
    assert_eq!(found, expected);
}
