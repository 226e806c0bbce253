//! From a job to a sealed snapshot: volumes of every shape, and what the root says of them.

use std::collections::BTreeSet;

use schema::JobId;
use schema::facts::{BASELINES_REMOVED, COPIED_FROM, NOT_HELD, TAKEN_MS};
use schema::limits::LEAF_SPAN;
use schema::map::{Content, Leaf, Piece};
use schema::messages::{BackupJob, Group, JobOutcome, Mapped, SessionEvent};
use schema::root::Statistics;

use crate::support::*;

fn leaf(world: &World, chunk: u32) -> Leaf {
    let first = Piece { len: LEN, content: Content::Chunk(world.id(chunk)) };
    Leaf::new(LEAF_SPAN, [first, Piece { len: REST, content: Content::Zero }]).unwrap()
}

fn assert_adds_up(statistics: &Statistics, size: u64) {
    let sum = statistics.bytes_zero + statistics.bytes_known + statistics.bytes_new;
    assert_eq!(sum, size, "{statistics:?}");
}

#[tokio::test(start_paused = true)]
async fn a_volume_of_several_leaves() {
    let world = World::new().await;
    let conductor = world.start(settings());
    let job = world.job(1);
    let root = world.backup(&job, &[10, 11, 12]).await;
    assert_eq!((root.generation, root.parent, root.size), (1, None, 3 * LEAF_SPAN));
    assert_eq!((root.volume.as_str(), root.host.as_str(), root.source.as_str()), (VOLUME, HOST, SOURCE));
    assert_eq!((root.job, root.reading, root.tags.clone()), (job.job, reading(1), job.tags.clone()));
    assert_eq!(root.layout.get("lv").map(String::as_str), Some("vg/lv"));
    assert!(!root.changed_while_read && root.sealed_ms >= root.time_ms);
    assert_eq!(world.leaves(&root).await, [10, 11, 12].map(|chunk| leaf(&world, chunk)));
    assert_eq!(world.take_structures(), 4, "three leaves and a node");
    let statistics = &root.statistics;
    assert_adds_up(statistics, root.size);
    assert_eq!((statistics.bytes_new, statistics.bytes_zero), (3 * u64::from(LEN), 3 * u64::from(REST)));
    assert_eq!((statistics.chunks, statistics.chunks_new, statistics.bytes_read), (3, 3, 2000));
    assert!(statistics.bytes_stored > 3 * u64::from(LEN) / 2, "structure is stored too");
    assert_eq!(world.open_sessions().await, []);
    conductor.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_of_one_leaf_has_no_node_and_one_that_ends_inside_a_block_is_whole() {
    let world = World::new().await;
    world.start(settings());
    let job = world.job(1);
    world.submit(&job).await;
    let request = world.asked().await;
    assert_eq!((request.reading, request.leaves.clone(), request.force), (None, None, false));
    assert_eq!((request.source.as_str(), request.allow_changes), (SOURCE, false));
    let size = u64::from(LEN) + 1234;
    world.opened(request.session, 1, size).await;
    world
        .mapped(
            request.session,
            0,
            &[(LEN, Mapped::Pending(world.id(1))), (1234, Mapped::Pending(world.id(2)))],
        )
        .await;
    world.store(&[1, 2]).await;
    world.unchanged().await;
    let root = world.sealed(&job).await;
    assert_eq!(root.size, size);
    assert_adds_up(&root.statistics, size);
    assert_eq!(world.leaves(&root).await[0].pieces().len(), 2);
    assert_eq!(world.take_structures(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_volume_of_no_bytes_and_one_of_zeroes_have_no_map() {
    for size in [0, LEAF_SPAN, 3 * LEAF_SPAN + 512] {
        let world = World::new().await;
        world.start(settings());
        let job = world.job(1);
        world.submit(&job).await;
        let request = world.asked().await;
        world.opened(request.session, 1, size).await;
        let mut at = 0;
        while at < size {
            let len = (size - at).min(LEAF_SPAN) as u32;
            world.mapped(request.session, at, &[(len, Mapped::Zero)]).await;
            at += u64::from(len);
        }
        world.unchanged().await;
        let root = world.sealed(&job).await;
        assert_eq!((root.size, root.top, root.statistics.bytes_zero), (size, None, size));
        assert_adds_up(&root.statistics, size);
        assert_eq!(world.take_structures(), 0);
        assert!(world.leaves(&root).await.iter().all(Leaf::is_zero));
    }
}

/// Nothing is sealed before the source was found unchanged after its last byte was read.
#[tokio::test(start_paused = true)]
async fn the_last_look_at_the_source_comes_after_the_last_byte() {
    let world = World::new().await;
    world.start(settings());
    let job = world.job(1);
    world.submit(&job).await;
    let request = world.asked().await;
    world.opened(request.session, 1, LEAF_SPAN).await;
    world.read(&request, false).await;
    world.wait(5).await;
    assert!(!world.is_asked(), "not everything is mapped");
    world.mapped_leaf(request.session, 0, Mapped::Pending(world.id(1))).await;
    world.store(&[1]).await;
    let check = world.asked().await;
    assert_eq!(check.leaves, Some(Vec::new()));
    assert_eq!((check.reading, check.session), (Some(reading(1)), request.session));
    // The answer to an older request is none to this one.
    world.read(&request, false).await;
    world.wait(5).await;
    assert!(!world.is_reported(&job) && world.snapshots().await.is_empty());
    world.read(&check, false).await;
    world.sealed(&job).await;
}

/// The second snapshot: what the parent has counts without a question, and equal structure is not stored again.
#[tokio::test(start_paused = true)]
async fn a_second_snapshot_shares_what_is_equal() {
    let world = World::new().await;
    world.start(settings());
    let first = world.backup(&world.job(1), &[10, 11, 12]).await;
    world.take_structures();
    let job = world.job(2);
    world.submit(&job).await;
    let request = world.asked().await;
    let session = request.session;
    world.opened(session, 1, 3 * LEAF_SPAN).await;
    world.mapped_leaf(session, 0, Mapped::Parent(world.id(10))).await;
    world.mapped_leaf(session, 1, Mapped::Pending(world.id(20))).await;
    world.mapped_leaf(session, 2, Mapped::Parent(world.id(12))).await;
    world.read(&request, false).await;
    world.store(&[20]).await;
    world.unchanged().await;
    let root = world.sealed(&job).await;
    assert_eq!((root.generation, root.parent), (2, Some(first.slot)));
    assert_eq!(world.leaves(&root).await, [10, 20, 12].map(|chunk| leaf(&world, chunk)));
    assert_eq!(world.take_structures(), 2, "one leaf and the node above it");
    assert_adds_up(&root.statistics, root.size);
    assert_eq!(root.statistics.bytes_new, u64::from(LEN));
    assert_eq!(root.statistics.bytes_known, 2 * u64::from(LEN));

    // All equal: nothing is stored at all.
    let job = world.job(3);
    world.submit(&job).await;
    let request = world.asked().await;
    world.opened(request.session, 1, 3 * LEAF_SPAN).await;
    for (leaf, chunk) in (0..).zip([10, 20, 12]) {
        world.mapped_leaf(request.session, leaf, Mapped::Parent(world.id(chunk))).await;
    }
    world.read(&request, false).await;
    world.unchanged().await;
    let third = world.sealed(&job).await;
    assert_eq!((third.generation, third.top), (3, root.top));
    assert_eq!((world.take_structures(), third.statistics.bytes_stored), (0, 0));
}

/// Events come in any order, some twice, divided otherwise: everything counts once.
#[tokio::test(start_paused = true)]
async fn events_may_come_twice_and_in_any_order() {
    let world = World::new().await;
    world.start(settings());
    let job = world.job(1);
    world.submit(&job).await;
    let request = world.asked().await;
    let session = request.session;
    let (first, second) = (Mapped::Pending(world.id(1)), Mapped::Pending(world.id(2)));
    let known = world.data(&[3]).await;
    world.index(&known);
    let known = Mapped::Known(world.id(3), known.pack);
    let len = u64::from(LEN);
    world.opened(session, 1, LEAF_SPAN + len).await;
    world.store(&[1]).await;
    world.mapped(session, LEAF_SPAN, &[(LEN, known)]).await;
    world.mapped(session, 2 * len, &[(REST - LEN, Mapped::Zero)]).await;
    world.read(&request, false).await;
    world.mapped(session, len, &[(LEN, second)]).await;
    world.mapped(session, len, &[(LEN, second), (REST - LEN, Mapped::Zero)]).await;
    world.opened(session, 1, LEAF_SPAN + len).await;
    // An extent that is divided otherwise than before: only its first piece had not come.
    world.mapped(session, 0, &[(LEN, first), (LEN, second), (4096, Mapped::Zero)]).await;
    world.mapped(session, 0, &[(LEN, first)]).await;
    world.store(&[2]).await;
    world.unchanged().await;
    let root = world.sealed(&job).await;
    assert_adds_up(&root.statistics, root.size);
    let statistics = root.statistics;
    assert_eq!((statistics.bytes_new, statistics.bytes_known), (2 * len, len));
    assert_eq!((statistics.bytes_zero, statistics.chunks), (LEAF_SPAN - 2 * len, 3));
}

/// Two conductors' worth of sessions at once, each with its own volume.
#[tokio::test(start_paused = true)]
async fn several_sessions_run_beside_each_other() {
    let world = World::new().await;
    world.start(conductor::Settings { sessions: 2, ..settings() });
    let mut jobs = [world.job(1), world.job(2)];
    jobs[1].volume = format!("{VOLUME}2");
    for job in &jobs {
        world.submit(job).await;
    }
    let requests = [world.asked().await, world.asked().await];
    let sessions: BTreeSet<_> = requests.iter().map(|request| request.session).collect();
    assert_eq!(sessions.len(), 2);
    // Each is mapped in turn; an event of one is none of the other.
    for request in &requests {
        world.opened(request.session, 1, LEAF_SPAN).await;
        world.mapped_leaf(request.session, 0, Mapped::Pending(world.id(1))).await;
    }
    world.store(&[1]).await;
    for _ in &requests {
        world.unchanged().await;
    }
    let roots = [world.sealed(&jobs[0]).await, world.sealed(&jobs[1]).await];
    assert_ne!(roots[0].slot.volume, roots[1].slot.volume);
    assert_eq!(roots[0].top, roots[1].top);
}

#[tokio::test(start_paused = true)]
async fn progress_is_told_while_it_goes_on() {
    use agent::bus::{Bus, Topic};
    let world = World::new().await;
    world.start(settings());
    let job = world.job(1);
    let mut progress = world.bus.subscribe(&Topic::progress(job.job)).await.unwrap();
    world.submit(&job).await;
    let request = world.asked().await;
    world.opened(request.session, 1, 2 * LEAF_SPAN).await;
    world.mapped(request.session, 0, &[(LEAF_SPAN as u32, Mapped::Zero)]).await;
    let told: schema::messages::Progress = progress.next().await.unwrap().read().unwrap();
    assert_eq!((told.total, told.done, told.session), (2 * LEAF_SPAN, LEAF_SPAN, request.session));
    assert_eq!((told.volume.as_str(), told.statistics.bytes_zero), (VOLUME, LEAF_SPAN));
    // A reading that says nothing more is no reason to be silent.
    progress.next().await.unwrap();
    let failed = SessionEvent::Failed { kind: schema::messages::FailureKind::Device, why: "gone".into() };
    world.tell(request.session, failed).await;
    world.failed(&job).await;
}

/// Snapshots are chosen by the moment that they show, and a reader could say anything.
#[tokio::test(start_paused = true)]
async fn the_moment_of_a_group_is_between_its_run_and_the_session() {
    let run_ms = 1_600_000_000_000;
    let group =
        Group { run: JobId::from_parts(run_ms, 1), name: "shop".into(), members: vec![SOURCE.into()] };
    let ahead = Group { run: JobId::from_parts(1_800_000_000_000, 1), ..group.clone() };
    for (number, group, said, shown) in [
        (1, Some(group.clone()), run_ms + 5, Some(run_ms + 5)),
        (2, Some(group.clone()), 7, Some(run_ms)),
        (3, Some(group), u64::MAX, None),
        (4, Some(ahead), run_ms, None),
        (5, None, 7, None),
    ] {
        let world = World::new().await;
        world.start(settings());
        let job = BackupJob { group, ..world.job(number) };
        world.submit(&job).await;
        let session = world.asked().await.session;
        let layout = vec![(TAKEN_MS.to_owned(), said.to_string())];
        world.tell(session, SessionEvent::Opened { reading: reading(1), size: 0, layout }).await;
        world.unchanged().await;
        let root = world.sealed(&job).await;
        match shown {
            Some(shown) => assert_eq!(root.time_ms, shown, "{number}"),
            None => assert!(root.time_ms >= 1_700_000_000_000 && root.time_ms <= root.sealed_ms, "{number}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_operator_should_know_of_a_snapshot_is_noted() {
    for (fact, value, said) in [
        (BASELINES_REMOVED, "vg/lvkeep-1", "vg/lvkeep-1"),
        (NOT_HELD, "3", "nothing held the writers of the group's 3"),
    ] {
        let world = World::new().await;
        world.start(settings());
        let job = world.job(1);
        world.submit(&job).await;
        let session = world.asked().await.session;
        let layout = vec![(fact.to_owned(), value.to_owned())];
        world.tell(session, SessionEvent::Opened { reading: reading(1), size: 0, layout }).await;
        world.unchanged().await;
        let JobOutcome::Sealed { notes, .. } = world.done(&job).await else { panic!("it was not sealed") };
        assert!(notes.len() == 1 && notes[0].contains(said), "{notes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_backup_is_no_copy_whatever_its_reader_says() {
    let world = World::new().await;
    world.start(settings());
    let job = world.job(1);
    world.submit(&job).await;
    let session = world.asked().await.session;
    let layout = [(COPIED_FROM, "somewhere"), ("kind", "thin")];
    let layout = layout.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    world.tell(session, SessionEvent::Opened { reading: reading(1), size: 0, layout }).await;
    world.unchanged().await;
    let layout = world.sealed(&job).await.layout;
    assert_eq!((layout.get(COPIED_FROM), layout.get("kind").map(String::as_str)), (None, Some("thin")));
}
