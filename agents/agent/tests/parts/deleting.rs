use std::sync::Arc;

use agent::faults::store::{FaultyStore, Refusal, StoreFaults};
use agent::store::Store;
use bytes::Bytes;
use object_store::memory::InMemory;

use crate::support::environment;

async fn filled() -> (Arc<InMemory>, Store, Vec<String>) {
    let inner = Arc::new(InMemory::new());
    let store = Store::new(inner.clone(), "some/prefix", "test", environment());
    let keys: Vec<String> = (0..25).map(|number| format!("packs/{number:02}/x")).collect();
    for key in &keys {
        store.put(key, Bytes::from_static(b"x")).await.unwrap();
    }
    (inner, store, keys)
}

#[tokio::test(start_paused = true)]
async fn what_a_batch_does_not_delete_is_deleted_by_itself() {
    for batches in
        [None, Some(StoreFaults::default()), Some(StoreFaults { fails_before: 500, ..Default::default() })]
    {
        let (inner, mut store, keys) = filled().await;
        if let Some(faults) = batches {
            store = store.with_batches(Arc::new(FaultyStore::new(inner.clone(), environment(), faults)));
        }
        let stays = keys.len() - 1;
        assert_eq!(store.delete_all(&keys[..stays]).await.unwrap(), Vec::<String>::new());
        let left: Vec<String> =
            store.list("packs").await.unwrap().into_iter().map(|listed| listed.key).collect();
        assert_eq!(left, keys[stays..]);
        // What is gone may be deleted again.
        assert_eq!(store.delete_all(&keys).await.unwrap(), Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_store_does_not_let_go_is_named() {
    let (inner, _, keys) = filled().await;
    let faulty = FaultyStore::new(inner.clone(), environment(), StoreFaults::default());
    faulty.refuse(Some(Refusal::Writes));
    let store = Store::new(Arc::new(faulty.clone()), "some/prefix", "test", environment())
        .with_batches(Arc::new(faulty.clone()));
    let mut refused = store.delete_all(&keys).await.unwrap();
    refused.sort();
    assert_eq!(refused, keys);
    faulty.crash();
    assert!(store.delete_all(&keys).await.is_err());
}
