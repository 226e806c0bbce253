//! The contract of the store: on a directory, in memory, and under faults that retries must hide; then the rules of
//! `Store::create` one by one, against each fault.
//!
//! Waiting costs nothing: the environment's clock jumps. Fault tests run on one thread, so that a seed decides all.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agent::Environment;
use agent::contract::store as contract;
use agent::faults::listing::LateListing;
use agent::faults::store::{FaultyStore, Injected, LATE_MAX, Refusal, StoreFaults, WriteFault};
use agent::store::{Created, Store, StoreErrorKind};
use bytes::Bytes;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

#[derive(Debug)]
struct JumpingClock {
    now_us: AtomicU64,
    random: Mutex<StdRng>,
}

#[async_trait::async_trait]
impl Environment for JumpingClock {
    fn now_ms(&self) -> u64 {
        1_700_000_000_000 + self.elapsed().as_millis() as u64
    }

    fn elapsed(&self) -> Duration {
        Duration::from_micros(self.now_us.load(Ordering::Relaxed))
    }

    async fn sleep(&self, duration: Duration) {
        self.now_us.fetch_add(duration.as_micros() as u64, Ordering::Relaxed);
        tokio::task::yield_now().await;
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        self.random.lock().unwrap().fill_bytes(bytes);
    }
}

fn environment() -> Arc<dyn Environment> {
    Arc::new(JumpingClock { now_us: AtomicU64::new(0), random: Mutex::new(StdRng::seed_from_u64(1)) })
}

fn store(inner: impl ObjectStore, prefix: &str) -> Store {
    Store::new(Arc::new(inner), prefix, "test", environment())
}

fn faulty(faults: StoreFaults) -> (FaultyStore, Store) {
    let environment = environment();
    let faulty = FaultyStore::new(Arc::new(InMemory::new()), environment.clone(), faults);
    (faulty.clone(), Store::new(Arc::new(faulty), "repo", "test", environment))
}

const PREFIXES: [&str; 5] = ["", "a", "a/b", "/a//b/", "with space~and%20more"];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn in_memory() {
    let inner = Arc::new(InMemory::new());
    for prefix in PREFIXES {
        contract::all(&Store::new(inner.clone(), prefix, "test", environment())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn in_a_directory() {
    for (prefix, fsync) in [("", false), ("a/b", false), ("with space~and%20more", false), ("a", true)] {
        let folder = tempfile::tempdir().unwrap();
        let inner = LocalFileSystem::new_with_prefix(folder.path()).unwrap().with_fsync(fsync);
        contract::all(&store(inner, prefix)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn repositories_beside_each_other_do_not_meet() {
    let inner = Arc::new(InMemory::new());
    let at = |prefix| Store::new(inner.clone(), prefix, "test", environment());
    for neighbour in ["ab", "a/bc", "a/b.c"] {
        at(neighbour).put("object", Bytes::from_static(b"theirs")).await.unwrap();
    }
    contract::all(&at("a/b")).await;
    assert_eq!(at("a/bc").list("").await.unwrap().len(), 1);
}

/// Which of the injected faults a case is about.
type Counted = fn(Injected) -> u64;

/// Every kind of fault that retries must hide.
#[tokio::test]
async fn under_faults_that_retries_hide() {
    let none = StoreFaults { seed: 7, slow_max: Duration::from_secs(9), ..StoreFaults::default() };
    let cases: [(StoreFaults, Counted); 6] = [
        (StoreFaults { fails_before: 60, ..none.clone() }, |i| i.failed_before),
        (StoreFaults { fails_after: 60, ..none.clone() }, |i| i.failed_after),
        (StoreFaults { false_exists: 200, ..none.clone() }, |i| i.false_exists),
        (StoreFaults { cut_body: 200, ..none.clone() }, |i| i.cut_bodies),
        (StoreFaults { slow: 200, ..none.clone() }, |i| i.slow),
        (
            StoreFaults {
                fails_before: 20,
                fails_after: 20,
                false_exists: 50,
                cut_body: 50,
                slow: 50,
                ..none.clone()
            },
            |i| i.failed_before.min(i.failed_after).min(i.false_exists).min(i.cut_bodies).min(i.slow),
        ),
    ];
    for (faults, injected) in cases {
        let (handle, store) = faulty(faults.clone());
        contract::all(&store).await;
        assert!(injected(handle.injected()) > 3, "{faults:?}: {:?}", handle.injected());
    }
}

#[tokio::test]
async fn when_the_first_write_of_every_key_fails() {
    for fault in [WriteFault::Before, WriteFault::After, WriteFault::Exists] {
        let (handle, store) = faulty(StoreFaults::default());
        for n in 0..20 {
            handle.fail_first_writes(Some(fault));
            let key = format!("slot/{n}");
            let bytes = Bytes::from(key.clone());
            assert_eq!(store.create(&key, bytes.clone()).await.unwrap(), Created::Won, "{fault:?}");
            assert_eq!(store.get(&key).await.unwrap(), Some(bytes));
        }
        assert_eq!(handle.injected().total(), 20, "{fault:?}");
    }
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_found_out() {
    let (handle, store) = faulty(StoreFaults::default());
    handle.ignore_create(true);
    contract::without_create(&store).await;
    handle.quiet();
    assert!(!store.probe().await.unwrap().conditional_create, "being weak is no fault that ends");
}

#[tokio::test]
async fn a_store_that_lists_late_is_found_out() {
    for lag in 1..5 {
        let store = store(LateListing::new(Arc::new(InMemory::new()), lag), "");
        let error = store.probe().await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Unfit, "{error}");
        assert!(error.to_string().contains("must list every completed write"), "{error}");
    }
}

/// Being weak excuses nothing: what is not listed yet would be deleted from.
#[tokio::test]
async fn a_store_that_lists_late_and_ignores_conditions_is_found_out_as_well() {
    for lag in 1..5 {
        let listing = Arc::new(LateListing::new(Arc::new(InMemory::new()), lag));
        let weak = FaultyStore::new(listing, environment(), StoreFaults::default());
        weak.ignore_create(true);
        let error = store(weak, "").probe().await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Unfit, "{error}");
        assert!(error.to_string().contains("must list every completed write"), "{error}");
    }
}

/// A rule for the whole bucket, or a lock on all that is in it.
#[tokio::test]
async fn a_store_that_lets_nothing_go_is_no_worse_for_it() {
    let (handle, store) = faulty(StoreFaults::default());
    handle.refuse(Some(Refusal::Deletions));
    assert!(store.probe().await.unwrap().conditional_create);
    assert_eq!(store.list("").await.unwrap().len(), 1, "what it has written stays");
    store.put("object", MINE).await.unwrap();
    assert_eq!(store.delete("object").await.unwrap_err().kind(), StoreErrorKind::Denied);
    assert!(!store.delete_or_leave("object").await.unwrap());
    assert_eq!(store.delete_all(&["object".to_owned()]).await.unwrap(), ["object"]);
    handle.quiet();
    assert!(store.delete_or_leave("object").await.unwrap() && store.delete_or_leave("object").await.unwrap());
}

#[tokio::test]
async fn the_probe_is_not_misled_by_faults() {
    for weak in [false, true] {
        for seed in 0..60 {
            let faults = StoreFaults {
                seed,
                fails_before: 30,
                fails_after: 30,
                false_exists: 30,
                ..Default::default()
            };
            let (handle, store) = faulty(faults);
            handle.ignore_create(weak);
            assert_eq!(store.probe().await.unwrap().conditional_create, !weak, "seed {seed}");
            handle.quiet();
            assert!(store.list("").await.unwrap().is_empty(), "a probe leaves nothing behind");
        }
    }
}

#[tokio::test]
#[should_panic(expected = "created twice")]
async fn the_suite_refuses_a_store_that_ignores_conditions() {
    let (handle, store) = faulty(StoreFaults::default());
    handle.ignore_create(true);
    contract::all(&store).await;
}

#[tokio::test]
async fn turned_bits_are_one_each_and_only_in_bodies() {
    let (handle, store) = faulty(StoreFaults { seed: 3, flipped_bit: 1000, ..StoreFaults::default() });
    store.put("object", vec![0; 999].into()).await.unwrap();
    for reads in 1..50 {
        let found = store.get("object").await.unwrap().unwrap();
        assert_eq!(found.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
        assert_eq!(store.head("object").await.unwrap(), Some(999));
        assert_eq!(handle.injected(), Injected { flipped_bits: reads, ..Injected::default() });
    }
}

const MINE: Bytes = Bytes::from_static(b"mine");
const THEIRS: Bytes = Bytes::from_static(b"theirs");

#[tokio::test]
async fn create_under_one_fault() {
    use WriteFault::{After, Before, Exists, Late};
    for rival in [None, Some(THEIRS), Some(Bytes::new()), Some(MINE)] {
        for plan in [
            vec![],
            vec![Before],
            vec![After],
            vec![Exists],
            vec![Late],
            vec![Exists, Exists, Exists, Exists, Exists, Exists, Exists],
            vec![Before, Exists, Before, Exists, After],
            vec![Late, Late, Late, Late, Late, Exists, After],
        ] {
            let (handle, store) = faulty(StoreFaults::default());
            if let Some(rival) = &rival {
                store.put("slot", rival.clone()).await.unwrap();
            }
            for (n, fault) in plan.iter().enumerate() {
                handle.fail_write(n as u64 + 1, *fault);
            }
            let want = match &rival {
                Some(rival) if *rival != MINE => Created::Lost(rival.clone()),
                _ => Created::Won,
            };
            assert_eq!(store.create("slot", MINE).await.unwrap(), want, "{rival:?} {plan:?}");
            // Whatever is still on its way lands.
            for _ in 0..20 {
                let stands = rival.clone().unwrap_or(MINE);
                assert_eq!(store.get("slot").await.unwrap(), Some(stands), "{rival:?} {plan:?}");
            }
        }
    }
}

#[tokio::test]
async fn create_gives_up_by_name() {
    let (handle, store) = faulty(StoreFaults { false_exists: 1000, ..StoreFaults::default() });
    let error = store.create("slot", MINE).await.unwrap_err();
    assert_eq!((error.kind(), handle.injected().false_exists), (StoreErrorKind::Exists, 8));
    assert!(error.to_string().contains("test/slot"), "{error}");

    // Who has won is not known while nobody can read it, which another time may be.
    let (handle, store) = faulty(StoreFaults::default());
    store.put("slot", THEIRS).await.unwrap();
    handle.withhold("repo/slot", None);
    let error = store.create("slot", MINE).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("reading test/slot"), "{error}");
    handle.withhold_nothing();
    assert_eq!(store.create("slot", MINE).await.unwrap(), Created::Lost(THEIRS));

    for (refusal, kind) in [
        (Refusal::Everything, StoreErrorKind::Denied),
        (Refusal::Writes, StoreErrorKind::Denied),
        (Refusal::Full, StoreErrorKind::Full),
    ] {
        let (handle, store) = faulty(StoreFaults::default());
        handle.refuse(Some(refusal));
        assert_eq!(store.create("slot", MINE).await.unwrap_err().kind(), kind, "{refusal:?}");
        assert_eq!(store.put("slot", MINE).await.unwrap_err().kind(), kind, "{refusal:?}");
        assert_eq!(store.environment().elapsed(), Duration::ZERO, "{refusal:?} is not waited for");
        assert_eq!(store.get("slot").await.is_err(), refusal == Refusal::Everything);
        assert_eq!(store.delete("slot").await.is_err(), refusal != Refusal::Full);
        handle.quiet();
        assert_eq!(store.create("slot", MINE).await.unwrap(), Created::Won);
    }
}

#[tokio::test]
async fn a_crashed_store_is_waited_for_and_then_given_up() {
    let (handle, store) = faulty(StoreFaults::default());
    store.put("object", MINE).await.unwrap();
    handle.crash();
    for error in [
        store.get("object").await.unwrap_err(),
        store.create("slot", MINE).await.unwrap_err(),
        store.list("").await.unwrap_err(),
        store.delete("object").await.unwrap_err(),
        store.get_range("object", 0..2).await.unwrap_err(),
        store.get_suffix("object", 2).await.unwrap_err(),
        store.probe().await.unwrap_err(),
    ] {
        assert!(error.is_transient(), "{error}");
    }
    let crashed = handle.injected();
    assert_eq!(crashed.crashed, crashed.total());
    handle.recover();
    assert_eq!(store.get("object").await.unwrap(), Some(MINE));
    assert_eq!(handle.injected(), crashed);
}

#[tokio::test]
async fn one_attempt_is_one_attempt() {
    let (handle, store) = faulty(StoreFaults::default());
    for (fault, landed) in [(WriteFault::Before, None), (WriteFault::After, Some(MINE))] {
        handle.fail_write(1, fault);
        let key = format!("packs/{fault:?}");
        assert!(store.put_once(&key, vec![MINE]).await.unwrap_err().is_transient());
        assert_eq!(store.get(&key).await.unwrap(), landed);
    }
    handle.fail_write(2, WriteFault::Before);
    store.put_once("packs/1", vec![MINE]).await.unwrap();
    store.put_once("packs/2", vec![MINE]).await.unwrap_err();
    store.put_once("packs/3", vec![MINE]).await.unwrap();
    assert_eq!(store.list("packs").await.unwrap().len(), 3);
}

#[tokio::test]
async fn late_writes_land_and_are_bounded() {
    let (handle, store) = faulty(StoreFaults { late_write: 1000, ..StoreFaults::default() });
    store.put_once("packs/late", vec![MINE]).await.unwrap_err();
    handle.quiet();
    let mut operations = 0;
    while store.get("packs/late").await.unwrap().is_none() {
        operations += 1;
        assert!(operations < 20, "it never lands");
    }
    // A late write lands over what was written since, as it does on real stores.
    handle.fail_write(1, WriteFault::Late);
    store.put_once("object", vec![MINE]).await.unwrap_err();
    store.put("object", THEIRS).await.unwrap();
    for _ in 0..20 {
        store.head("other").await.unwrap();
    }
    assert_eq!(store.get("object").await.unwrap(), Some(MINE));
    for n in 0..2 * LATE_MAX {
        handle.fail_write(1, WriteFault::Late);
        store.put_once(&format!("many/{n}"), vec![MINE]).await.unwrap_err();
    }
    for _ in 0..20 {
        store.head("other").await.unwrap();
    }
    assert_eq!(store.list("many").await.unwrap().len() as u64, handle.injected().late_writes - 2);
}

#[tokio::test]
async fn a_range_behind_the_end_is_certain_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let inner = LocalFileSystem::new_with_prefix(folder.path()).unwrap();
    let store = store(inner, "");
    store.put("pack", MINE).await.unwrap();
    let error = store.get_range("pack", 100..200).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::NotFound);
    assert_eq!(error.to_string(), "reading test/pack: it ends before offset 200 (0 of 100 bytes came)");
    assert_eq!(store.environment().elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn a_seed_decides_all() {
    let run = async |seed| {
        let faults =
            StoreFaults { seed, fails_before: 100, fails_after: 100, slow: 100, ..Default::default() };
        let (handle, store) = faulty(faults);
        for n in 0..100 {
            store.put(&format!("{n}"), MINE).await.unwrap();
        }
        (handle.injected(), store.environment().elapsed())
    };
    assert_eq!(run(1).await, run(1).await);
    assert_ne!(run(1).await, run(2).await);
}

/// In a directory: objects appear whole, and what a killed writer leaves is no object.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_directory_shows_nothing_half_written() {
    const SIZE: usize = 1 << 20;
    let folder = tempfile::tempdir().unwrap();
    let inner = LocalFileSystem::new_with_prefix(folder.path()).unwrap();
    let store = store(inner, "repo");
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..60u8 {
                let parts = (0..16).map(|_| Bytes::from(vec![n; SIZE / 16])).collect();
                store.put_once("packs/over", parts).await.unwrap();
                let fresh = format!("packs/fresh/{n}");
                assert_eq!(store.create(&fresh, vec![n; SIZE].into()).await.unwrap(), Created::Won);
            }
        })
    };
    let mut seen = 0;
    while !writer.is_finished() || seen == 0 {
        if let Some(bytes) = store.get("packs/over").await.unwrap() {
            assert!(bytes.len() == SIZE && bytes.iter().all(|byte| *byte == bytes[0]), "torn");
            seen += 1;
        }
        for listed in store.list("packs").await.unwrap() {
            assert_eq!(listed.size, SIZE as u64, "{} is listed half written", listed.key);
        }
    }
    writer.await.unwrap();
    assert_eq!(store.list("packs").await.unwrap().len(), 61);
    // The names under which object_store stages a file.
    std::fs::write(folder.path().join("repo/packs/over#1"), b"half").unwrap();
    std::fs::write(folder.path().join("repo/packs/fresh/killed#1"), b"half").unwrap();
    assert_eq!(store.list("packs").await.unwrap().len(), 61);
    store.put("packs/over", MINE).await.unwrap();
    assert_eq!(store.get("packs/over").await.unwrap(), Some(MINE));
}
