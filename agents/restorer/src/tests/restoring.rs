//! What is restored is what was stored: shapes of volumes, sparseness, repeated chunks, sessions.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use agent::faults::store::{FaultyStore, StoreFaults};
use agent::{Environment, Protection, ReadBy, Stop};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use schema::messages::FailureKind;
use schema::names;
use schema::root::Root;
use schema::session::SessionKind;
use std::sync::Arc;

use super::fixture::{CHUNK, Fixture, TestEnvironment, noise};
use crate::{Progress, Settings, Target};

const MIB: usize = 1 << 20;

/// A volume of `len` bytes with runs of content at the given offsets.
fn volume(len: usize, runs: &[(usize, usize)]) -> Vec<u8> {
    let mut content = vec![0; len];
    for (n, (at, size)) in runs.iter().enumerate() {
        content[*at..at + size].copy_from_slice(&noise(n as u64 + 1, *size));
    }
    content
}

#[tokio::test(start_paused = true)]
async fn volumes_of_every_shape_come_back() {
    let shapes: [(&str, Vec<u8>); 8] = [
        ("empty", Vec::new()),
        ("all zero", vec![0; 3 * MIB]),
        ("all zero, many leaves", vec![0; 200 * MIB]),
        ("one byte", vec![9]),
        ("one leaf", volume(2 * MIB, &[(0, MIB), (MIB + 4096, 300_000)])),
        ("not a multiple of a block", volume(MIB + 1234, &[(CHUNK, MIB + 1234 - CHUNK)])),
        ("two leaves", volume(70 * MIB, &[(63 * MIB, 3 * MIB)])),
        ("several windows", volume(530 * MIB, &[(0, 5 * MIB), (255 * MIB, 2 * MIB), (529 * MIB, MIB)])),
    ];
    for encrypted in [false, true] {
        for (n, (name, content)) in shapes.iter().enumerate() {
            let fixture = match encrypted {
                true => Fixture::encrypted().await,
                false => Fixture::plain().await,
            };
            let root = fixture.volume(content).await;
            let path = fixture.path(&n.to_string());
            let report = fixture.restore(&root, &path).await.unwrap();
            assert!(std::fs::read(&path).unwrap() == *content, "{name}, encrypted: {encrypted}");
            assert_eq!(report.written + report.zeroed, content.len() as u64, "{name}");
            assert_eq!(report.size, content.len() as u64, "{name}");
            assert_eq!(report.rescued, 0, "{name}");
            assert_eq!(fixture.sessions().await, Vec::<String>::new(), "{name}");
            let verified = fixture.restorer().verify_readable(root, |_| ()).await.unwrap();
            assert_eq!((verified.written, verified.chunks), (report.written, report.chunks), "{name}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn zero_ranges_of_a_fresh_file_take_no_space() {
    let fixture = Fixture::plain().await;
    let content = volume(100 * MIB, &[(50 * MIB, MIB)]);
    let root = fixture.volume(&content).await;
    let path = fixture.path("sparse");
    let report = fixture.restore(&root, &path).await.unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!(metadata.len(), 100 * MIB as u64);
    assert!(metadata.blocks() * 512 < 2 * MIB as u64, "{} blocks", metadata.blocks());
    assert_eq!(metadata.mode() & 0o777, 0o600, "a disk's content is not for everybody");
    assert_eq!((report.written, report.zeroed), (MIB as u64, 99 * MIB as u64));
}

#[tokio::test(start_paused = true)]
async fn an_existing_file_keeps_nothing_and_becomes_sparse() {
    let fixture = Fixture::encrypted().await;
    let content = volume(10 * MIB + 100, &[(3 * MIB, MIB)]);
    let root = fixture.volume(&content).await;
    for old in [1, 5 * MIB, 10 * MIB + 100, 12 * MIB] {
        let path = fixture.path(&format!("old-{old}"));
        std::fs::write(&path, vec![0xee; old]).unwrap();
        let refused = fixture.restore(&root, &path).await.unwrap_err();
        assert_eq!(refused.kind, FailureKind::Refused);
        assert!(refused.why.contains("has content"), "{refused}");
        assert!(std::fs::read(&path).unwrap() == vec![0xee; old], "a refused target is untouched");
        let target = Target::new(&path, true);
        fixture.restorer().restore(root.clone(), target, |_| ()).await.unwrap();
        assert!(std::fs::read(&path).unwrap() == content, "old length {old}");
        let blocks = std::fs::metadata(&path).unwrap().blocks();
        assert!(blocks * 512 < 2 * MIB as u64, "old length {old}: {blocks} blocks");
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_taken_away_meanwhile_is_not_told_to_be_restored() {
    let fixture = Arc::new(Fixture::plain().await);
    let root = fixture.volume(&noise(1, 3 * MIB)).await;
    type Harm = fn(&std::path::Path);
    let harms: [(&str, Harm); 3] = [
        ("removed", |path| std::fs::remove_file(path).unwrap()),
        ("moved", |path| std::fs::rename(path, path.with_extension("away")).unwrap()),
        ("0 bytes", |path| std::fs::write(path, b"").unwrap()),
    ];
    for (what, harm) in harms {
        let path = fixture.path(what);
        fixture.store_is_open.send_replace(false);
        let (restoring, order, to) = (fixture.clone(), root.clone(), path.clone());
        let restoring = tokio::spawn(async move { restoring.restore(&order, &to).await });
        while std::fs::metadata(&path).map(|found| found.len()).ok() != Some(3 * MIB as u64) {
            tokio::task::yield_now().await;
        }
        harm(&path);
        fixture.store_is_open.send_replace(true);
        let failure = restoring.await.unwrap().unwrap_err();
        assert_eq!(failure.kind, FailureKind::Device);
        for part in ["host/vg/lv", path.to_str().unwrap(), what] {
            assert!(failure.why.contains(part), "{part} is not in: {failure}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_repeated_chunk_is_fetched_once_and_neighbours_together() {
    let fixture = Fixture::plain().await;
    let piece = noise(1, CHUNK);
    let content: Vec<u8> = (0..100).flat_map(|_| piece.clone()).chain(noise(2, 10 * CHUNK)).collect();
    let root = fixture.volume(&content).await;
    let path = fixture.path("repeated");
    let before = fixture.reads.load(Ordering::Relaxed);
    let report = fixture.restore(&root, &path).await.unwrap();
    assert!(std::fs::read(&path).unwrap() == content);
    assert_eq!(report.chunks, 11);
    assert_eq!(report.written, 110 * CHUNK as u64);
    let stored: u64 = fixture.data_copies().iter().map(|(_, copy)| u64::from(copy.len)).sum();
    assert_eq!(report.fetched, stored, "every frame once, and no gaps");
    assert!(report.requests <= 3, "{report:?}");
    let reads = fixture.reads.load(Ordering::Relaxed) - before;
    assert_eq!(reads, report.requests + 1, "and one leaf");
}

#[tokio::test(start_paused = true)]
async fn what_comes_again_far_away_is_taken_from_the_target() {
    const DATA: usize = 4 * MIB;
    const WINDOW: u64 = 4 * schema::limits::LEAF_SPAN;
    let fixture = Fixture::encrypted().await;
    let data: Vec<Vec<u8>> = [1, 2, 3, 4, 5, 1].map(|seed| noise(seed, DATA)).into();
    // At the beginning of each window, which has no memory before those ahead of it are written.
    let root = fixture
        .volume_of(6 * WINDOW, |range| {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            if range.start.is_multiple_of(WINDOW) {
                bytes[..DATA].copy_from_slice(&data[(range.start / WINDOW) as usize]);
            }
            bytes
        })
        .await;
    let stored: u64 = fixture.data_copies().iter().map(|(_, copy)| u64::from(copy.len)).sum();
    let is_right = |path: &Path| {
        let file = std::fs::File::open(path).unwrap();
        data.iter().enumerate().all(|(number, data)| {
            let mut found = vec![0; DATA];
            file.read_exact_at(&mut found, number as u64 * WINDOW).unwrap();
            found == *data
        })
    };
    let path = fixture.path("again");
    let report = fixture.restore(&root, &path).await.unwrap();
    assert!(is_right(&path));
    assert_eq!((report.copied, report.fetched), (DATA as u64, stored));
    assert_eq!(report.written, 5 * DATA as u64);
    // Where it does not stand any more, it is fetched.
    let path = fixture.path("changed");
    let spoil = |now: Progress| {
        // The first window's first bytes are written, and the last one has not been looked at.
        if (3 * WINDOW / 2..5 * WINDOW / 2).contains(&now.done) {
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&[0xee; CHUNK], 0).unwrap();
        }
    };
    let report = fixture.restorer().restore(root, Target::new(&path, false), spoil).await.unwrap();
    assert_eq!(report.copied, (DATA - CHUNK) as u64);
    let file = std::fs::File::open(&path).unwrap();
    let mut found = vec![0; DATA];
    file.read_exact_at(&mut found, 5 * WINDOW).unwrap();
    assert!(found == data[5]);
}

#[tokio::test(start_paused = true)]
async fn progress_reaches_the_end_and_never_goes_back() {
    let fixture = Fixture::plain().await;
    let content = volume(80 * MIB, &[(0, 8 * MIB), (70 * MIB, MIB)]);
    let root = fixture.volume(&content).await;
    let seen: Mutex<Vec<Progress>> = Mutex::default();
    let target = Target::new(fixture.path("p"), false);
    fixture.restorer().restore(root, target, |now| seen.lock().unwrap().push(now)).await.unwrap();
    let seen = seen.into_inner().unwrap();
    assert_eq!(seen.first().unwrap().done, 0);
    assert_eq!(seen.last().unwrap().done, 80 * MIB as u64);
    assert!(seen.iter().all(|now| now.total == 80 * MIB as u64));
    assert!(seen.is_sorted_by_key(|now| (now.done, now.fetched)));
    assert_eq!(fixture.context.counters.bytes_restored.get(), 9 * MIB as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_repository_restores_on_several_threads() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap());
    let fixture = Fixture::new(store, true).await;
    let content = volume(330 * MIB, &[(MIB, 40 * MIB), (190 * MIB, 30 * MIB)]);
    let root = fixture.volume(&content).await;
    let path = fixture.path("out");
    let settings = Settings { protect: false, ..fixture.settings() };
    let report =
        fixture.restorer_with(settings).restore(root, Target::new(&path, false), |_| ()).await.unwrap();
    assert!(std::fs::read(&path).unwrap() == content);
    assert!(report.fetched > 0 && report.fetched < 70 * MIB as u64);
}

/// Restores to a file that is there by now, and fetches only what is missing.
async fn gone_on(fixture: &Fixture, root: &Root, path: &Path, content: &[u8]) {
    let target = Target::new(path, true);
    let report = fixture.restorer().restore(root.clone(), target, |_| ()).await.unwrap();
    assert!(report.kept > 0 && report.fetched < root.size, "{report:?}");
    assert_eq!(report.kept + report.written, root.size);
    assert!(std::fs::read(path).unwrap() == content);
}

#[tokio::test(start_paused = true)]
async fn a_stopped_restore_says_so_and_is_gone_on_with() {
    let mut fixture = Fixture::plain().await;
    let content = noise(1, 20 * MIB);
    let root = fixture.volume(&content).await;
    for is_empty in [false, true] {
        let path = fixture.path(&format!("stopped-{is_empty}"));
        if is_empty {
            std::fs::write(&path, b"").unwrap();
        }
        let stop = fixture.context.stop.clone();
        let raise = |now: Progress| {
            if now.done > 0 {
                stop.raise();
            }
        };
        let target = Target::new(&path, false);
        let failure = fixture.restorer().restore(root.clone(), target, raise).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Revoked);
        for part in ["was stopped", path.to_str().unwrap(), "stays", "do not use it", "--force goes on"] {
            assert!(failure.why.contains(part), "{part} is not in: {failure}");
        }
        assert_eq!(fixture.sessions().await, Vec::<String>::new());
        fixture.context.stop = Stop::default();
        let refused = fixture.restore(&root, &path).await.unwrap_err();
        assert!(refused.why.contains("has content"), "{refused}");
        gone_on(&fixture, &root, &path, &content).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_restore_whose_store_goes_away_is_gone_on_with() {
    let environment: Arc<dyn Environment> = Arc::new(TestEnvironment::default());
    let store = FaultyStore::new(Arc::new(InMemory::new()), environment, StoreFaults::default());
    let fixture = Fixture::new(Arc::new(store.clone()), false).await;
    let content = noise(1, 20 * MIB);
    let root = fixture.volume(&content).await;
    let path = fixture.path("cut-off");
    let crash = |now: Progress| {
        if now.done > 0 {
            store.crash();
        }
    };
    let failure =
        fixture.restorer().restore(root.clone(), Target::new(&path, false), crash).await.unwrap_err();
    assert!(failure.kind == FailureKind::Store && failure.retry, "{failure}");
    assert!(failure.why.contains("--force goes on"), "{failure}");
    store.recover();
    gone_on(&fixture, &root, &path, &content).await;
}

#[tokio::test(start_paused = true)]
async fn a_restore_that_has_written_nothing_leaves_nothing() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, MIB)).await;
    for (_, copy) in fixture.data_copies() {
        fixture.repository.store.delete(&names::pack(copy.pack)).await.unwrap();
    }
    let (fresh, empty) = (fixture.path("fresh"), fixture.path("empty"));
    std::fs::write(&empty, b"").unwrap();
    for path in [&fresh, &empty] {
        let failure = fixture.restore(&root, path).await.unwrap_err();
        assert!(failure.kind == FailureKind::Damaged && !failure.why.contains("stays"), "{failure}");
    }
    assert!(!fresh.exists() && std::fs::read(&empty).unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_snapshot_is_protected_while_it_is_read_and_may_be_forgotten() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, MIB)).await;
    let (store, marker) = (fixture.repository.store.clone(), root.slot.forgotten());
    let seen = Mutex::new(Vec::new());
    let listing = |_| {
        let listed = futures::executor::block_on(store.list(names::SESSIONS)).unwrap();
        seen.lock().unwrap().extend(listed.into_iter().map(|l| l.key));
        let forgetting = store.put(&marker, "forgotten".into());
        futures::executor::block_on(forgetting).unwrap();
    };
    let target = Target::new(fixture.path("a"), false);
    fixture.restorer().restore(root.clone(), target, listing).await.unwrap();
    assert!(!seen.lock().unwrap().is_empty());
    assert_eq!(fixture.sessions().await, Vec::<String>::new());
    seen.lock().unwrap().clear();
    let unprotected = fixture.restorer_with(Settings { protect: false, ..fixture.settings() });
    unprotected.restore(root, Target::new(fixture.path("b"), false), listing).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_collected_snapshot_is_refused_before_anything_is_written() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, MIB)).await;
    let tombstone = fixture.repository.tombstone(root.slot).unwrap();
    fixture.repository.store.put(&root.slot.snapshot(), tombstone).await.unwrap();
    let path = fixture.path("x");
    let failure = fixture.restore(&root, &path).await.unwrap_err();
    assert!(failure.why.contains("was collected"), "{failure}");
    assert!(!path.exists());
    assert_eq!(fixture.sessions().await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_snapshot_is_refused_before_anything_is_written() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, MIB)).await;
    fixture.repository.store.put(&root.slot.forgotten(), "forgotten".into()).await.unwrap();
    let path = fixture.path("x");
    let failure = fixture.restore(&root, &path).await.unwrap_err();
    assert!(failure.kind == FailureKind::Refused && failure.why.contains("was forgotten"), "{failure}");
    assert!(!path.exists());
    assert_eq!(fixture.sessions().await, Vec::<String>::new());
}

/// Between two of them a collection could remove what the second one's view names.
#[tokio::test(start_paused = true)]
async fn one_session_protects_many_restores() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, MIB)).await;
    let environment = &fixture.context.environment;
    let by = ReadBy {
        kind: SessionKind::Restore,
        session: environment.session_id(),
        job: environment.job_id(),
        volume: "all of them",
        host: "host",
        undo: &[],
    };
    let protection = Protection::begin(&fixture.repository, by, &Stop::default()).await.unwrap();
    let open = fixture.sessions().await;
    assert_eq!(open, [names::session(by.session)]);
    let restorer = fixture.restorer().protected(protection.clone());
    for name in ["a", "b"] {
        let target = Target::new(fixture.path(name), false);
        restorer.restore(root.clone(), target, |_| ()).await.unwrap();
        assert_eq!(fixture.sessions().await, open);
    }
    protection.end(Ok(())).await.unwrap();
    assert_eq!(fixture.sessions().await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn more_restores_than_windows_all_come_to_an_end() {
    let fixture = Fixture::plain().await;
    let (first, last) = ((0, MIB), (519 * MIB, MIB));
    let root = fixture.volume(&volume(520 * MIB, &[first, last])).await;
    let restorer = fixture.restorer();
    let restores = (0..20).map(|_| restorer.verify_readable(root.clone(), |_| ()));
    for ended in futures::future::join_all(restores).await {
        assert_eq!(ended.unwrap().written, (2 * MIB) as u64);
    }
}
