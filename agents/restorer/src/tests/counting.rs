//! An object store that counts reads of packs, and makes them wait.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::*;
use tokio::sync::watch;

#[derive(Debug)]
pub struct Counting {
    pub inner: Arc<dyn ObjectStore>,
    pub reads: Arc<AtomicU64>,
    /// Reads wait until this is true.
    pub is_open: watch::Sender<bool>,
    pub in_flight: Arc<InFlight>,
    /// Milliseconds that each takes.
    pub slow: Arc<AtomicU64>,
}

/// How many reads are in flight, and the most that ever were.
#[derive(Debug, Default)]
pub struct InFlight {
    pub now: AtomicU64,
    pub most: AtomicU64,
}

/// One of them.
struct Read(Arc<InFlight>);

impl Drop for Read {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Display for Counting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "counting {}", self.inner)
    }
}

impl Counting {
    /// Over a store, and open when this is true.
    pub fn new(inner: Arc<dyn ObjectStore>, is_open: watch::Sender<bool>) -> Self {
        Self { inner, reads: Arc::default(), is_open, in_flight: Arc::default(), slow: Arc::default() }
    }

    #[allow(clippy::disallowed_methods)] // It stands for a store, which knows no environment.
    async fn enter(&self, path: &Path) -> Option<Read> {
        if !path.as_ref().contains("packs/") {
            return None;
        }
        self.reads.fetch_add(1, Ordering::Relaxed);
        let now = self.in_flight.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.in_flight.most.fetch_max(now, Ordering::Relaxed);
        let read = Read(self.in_flight.clone());
        drop(self.is_open.subscribe().wait_for(|open| *open).await);
        let slow = self.slow.load(Ordering::Relaxed);
        if slow > 0 {
            tokio::time::sleep(Duration::from_millis(slow)).await;
        }
        Some(read)
    }
}

#[async_trait]
impl ObjectStore for Counting {
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
        let _read = if options.head { None } else { self.enter(path).await };
        self.inner.get_opts(path, options).await
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        for _ in ranges {
            drop(self.enter(path).await);
        }
        self.inner.get_ranges(path, ranges).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
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
