//! The bucket as one role sees it, and its history: commit slots are decided once and for ever.
//!
//! A write or deletion that was sent reaches the store even when its sender is no more, as requests do. A role may be
//! doomed to die at one of its operations.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures::TryStreamExt;
use futures::stream::{BoxStream, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::*;
use schema::names::{self, Slot};

use super::doom::Doom;
use super::ledger::Ledger;
use super::trace::Trace;

/// The objects themselves, with what must be remembered of them.
#[derive(Debug)]
pub struct History {
    objects: InMemory,
    trace: Arc<Trace>,
    ledger: Arc<Ledger>,
    state: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    slots: BTreeMap<Path, bytes::Bytes>,
    deleted: BTreeSet<Path>,
    back: BTreeSet<Path>,
    writes: u64,
}

impl History {
    /// An empty bucket.
    pub fn new(trace: Arc<Trace>) -> Arc<Self> {
        let ledger = Arc::new(Ledger::new(trace.clone()));
        Arc::new(Self { objects: InMemory::new(), trace, ledger, state: Arc::default() })
    }

    /// What it holds.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    fn state(&self) -> MutexGuard<'_, Seen> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a key was written again after it was deleted: by a write that landed late.
    pub fn came_back(&self, key: &str) -> bool {
        self.state().back.contains(&Path::from(key))
    }

    /// Counts writes from now on.
    pub fn count_writes(&self) {
        self.state().writes = 0;
    }

    /// Writes that were counted.
    pub fn writes(&self) -> u64 {
        self.state().writes
    }

    /// An object is no more, and nobody deleted it.
    pub async fn lose(&self, key: &str) -> Result<()> {
        self.objects.delete(&Path::from(key)).await
    }

    fn is_slot(at: &Path) -> bool {
        at.parts().next().is_some_and(|first| first.as_ref() == names::SNAPSHOTS)
    }

    fn written(&self, at: &Path, bytes: bytes::Bytes) {
        let mut state = self.state();
        if state.deleted.contains(at) {
            state.back.insert(at.clone());
        }
        if Self::is_slot(at) {
            let decided = state.slots.entry(at.clone()).or_insert_with(|| bytes.clone());
            if *decided != bytes {
                // Only a collection makes a tombstone of a snapshot.
                let is_swept = Slot::parse_key(at.as_ref()).is_ok_and(|slot| self.ledger.is_swept(slot));
                if !(is_swept && self.ledger.is_tombstone(at.as_ref(), &bytes)) {
                    self.trace.wrong(format!("one-winner: {at} was decided, and written again"));
                }
                *decided = bytes.clone();
            }
        }
        drop(state);
        self.ledger.written(at.as_ref(), &bytes);
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a bucket with a history")
    }
}

#[async_trait]
impl ObjectStore for History {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let bytes = bytes::Bytes::from(payload.clone());
        let result = self.objects.put_opts(at, payload, options).await;
        let how = if result.is_ok() { "lands" } else { "meets another" };
        self.trace.note(format_args!("bucket: {at} {how}"));
        self.state().writes += 1;
        if result.is_ok() {
            self.written(at, bytes);
        }
        result
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.objects.get_opts(at, options).await
    }

    fn delete_stream(&self, at: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (trace, ledger, state) = (self.trace.clone(), self.ledger.clone(), self.state.clone());
        let noted = at.inspect_ok(move |path| {
            trace.note(format_args!("bucket: {path} is deleted"));
            ledger.deleted(path.as_ref());
            state.lock().unwrap_or_else(PoisonError::into_inner).deleted.insert(path.clone());
        });
        self.objects.delete_stream(noted.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.objects.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}

/// The bucket for one role.
#[derive(Debug, Clone)]
pub struct RoleBucket {
    role: Arc<str>,
    inner: Arc<dyn ObjectStore>,
    trace: Arc<Trace>,
    doom: Doom,
}

impl RoleBucket {
    /// What `role` sees of `inner`.
    pub fn new(role: &str, inner: Arc<dyn ObjectStore>, trace: Arc<Trace>) -> Self {
        Self { role: role.into(), inner, trace, doom: Doom::none() }
    }

    /// The same for one that is to die.
    pub fn doomed(self, doom: Doom) -> Self {
        Self { doom, ..self }
    }
}

impl fmt::Display for RoleBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the bucket of {}", self.role)
    }
}

/// Runs a request to its end, whatever becomes of its sender.
async fn sent<T: Send + 'static>(request: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let ended = tokio::spawn(request).await;
    ended.unwrap_or_else(|why| Err(Error::Generic { store: "RoleBucket", source: why.into() }))
}

#[async_trait]
impl ObjectStore for RoleBucket {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.trace.note(format_args!("{} puts {at}", self.role));
        let (inner, at) = (self.inner.clone(), at.clone());
        self.doom.around(sent(async move { inner.put_opts(&at, payload, options).await })).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        let got = self.doom.around(self.inner.get_opts(at, options)).await;
        self.trace.note(format_args!("{} gets {at}: {}", self.role, if got.is_ok() { "ok" } else { "no" }));
        got
    }

    fn delete_stream(&self, at: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inner, doom) = (self.inner.clone(), self.doom.clone());
        at.then(move |path| {
            let (inner, doom) = (inner.clone(), doom.clone());
            async move {
                let path = path?;
                doom.around(sent(async move { inner.delete(&path).await.map(|()| path) })).await
            }
        })
        .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let text = prefix.map(ToString::to_string).unwrap_or_default();
        // What is kept of a target has a key that goes by the folder of this run.
        let prefix_text = if text.starts_with(names::MARKS) { names::MARKS } else { &text };
        self.trace.note(format_args!("{} lists {prefix_text}", self.role));
        let (doom, listed) = (self.doom.clone(), self.inner.list(prefix));
        futures::stream::once(async move { doom.around(async { Ok::<_, Error>(listed) }).await })
            .try_flatten()
            .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
