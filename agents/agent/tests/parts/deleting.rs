use std::sync::{Arc, Mutex};

use agent::faults::store::{FaultyStore, Refusal, StoreFaults};
use agent::store::Store;
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::*;

use crate::support::environment;

/// A client that notes which deletions it was given, one list for each request.
#[derive(Debug, Clone)]
struct Noting {
    inner: Arc<dyn ObjectStore>,
    requests: Arc<Mutex<Vec<Vec<String>>>>,
}

impl Noting {
    fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, requests: Arc::default() }
    }

    /// The keys of the requests since it was asked last.
    fn requests(&self) -> Vec<Vec<String>> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

impl std::fmt::Display for Noting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("noting")
    }
}

#[async_trait]
impl ObjectStore for Noting {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (requests, number) = (self.requests.clone(), {
            let mut requests = self.requests.lock().unwrap();
            requests.push(Vec::new());
            requests.len() - 1
        });
        let noted = paths.inspect(move |path| {
            let key = path.as_ref().unwrap().as_ref().strip_prefix("some/prefix/").unwrap().to_owned();
            requests.lock().unwrap()[number].push(key);
        });
        self.inner.delete_stream(noted.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// A bucket with objects below a prefix, the client that deletes one by one, and a store over it.
async fn filled() -> (Arc<InMemory>, Noting, Store, Vec<String>) {
    let inner = Arc::new(InMemory::new());
    let single = Noting::new(inner.clone());
    let store = Store::new(Arc::new(single.clone()), "some/prefix", "test", environment());
    let keys: Vec<String> = (0..25).map(|number| format!("packs/{number:02}/x")).collect();
    for key in &keys {
        store.put(key, Bytes::from_static(b"x")).await.unwrap();
    }
    (inner, single, store, keys)
}

#[tokio::test(start_paused = true)]
async fn what_a_batch_does_not_delete_is_deleted_by_itself() {
    for batches in
        [None, Some(StoreFaults::default()), Some(StoreFaults { fails_before: 500, ..Default::default() })]
    {
        let (inner, single, mut store, keys) = filled().await;
        let faults = batches.clone().unwrap_or_default();
        let many = Noting::new(Arc::new(FaultyStore::new(inner.clone(), environment(), faults)));
        if batches.is_some() {
            store = store.with_batches(Arc::new(many.clone()));
        }
        let stays = keys.len() - 1;
        assert_eq!(store.delete_all(&keys[..stays]).await.unwrap(), Vec::<String>::new());
        // All in one request, and by itself nothing but what is left of it.
        let (one_by_one, at_once) = (single.requests(), many.requests());
        assert!(one_by_one.iter().all(|request| request.len() == 1), "{one_by_one:?}");
        match batches {
            None => assert_eq!((one_by_one.len(), at_once.len()), (stays, 0)),
            Some(ref faults) => {
                assert_eq!(at_once, [keys[..stays].to_vec()]);
                assert_eq!(faults.fails_before > 0, !one_by_one.is_empty(), "{one_by_one:?}");
                assert!(one_by_one.len() < stays, "{one_by_one:?}");
            }
        }
        let left: Vec<String> =
            store.list("packs").await.unwrap().into_iter().map(|listed| listed.key).collect();
        assert_eq!(left, keys[stays..]);
        // What is gone may be deleted again.
        assert_eq!(store.delete_all(&keys).await.unwrap(), Vec::<String>::new());
        assert_eq!(many.requests(), if batches.is_some() { vec![keys] } else { Vec::new() });
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_store_does_not_let_go_is_named() {
    let (inner, _, _, keys) = filled().await;
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
