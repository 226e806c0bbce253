//! An object store that notes what is asked of it, in order, and lets somebody else act in between.
//!
//! The order of operations is the protocol of sessions and uploads: this is how it is asserted. It injects nothing
//! by itself; a write that was planned happens once, right after the operation that it was planned for. The record
//! grows without a limit, so that this is for tests and short runs.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// A recorder in front of a store. Clones share the record.
#[derive(Debug, Clone)]
pub struct RecordingStore {
    inner: Arc<dyn ObjectStore>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    record: Vec<String>,
    planned: Vec<(String, String, Bytes)>,
}

impl RecordingStore {
    /// Records what reaches `inner`, whatever its answer.
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was asked since the record was last taken: `create`, `put`, `get`, `head`, `list` or `delete`, and a key.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.state().record)
    }

    /// Lets somebody else write an object right after the next operation whose line starts with `operation`.
    pub fn write_after(&self, operation: &str, key: &str, bytes: Bytes) {
        self.state().planned.push((operation.to_owned(), key.to_owned(), bytes));
    }

    /// Notes an operation, and takes the writes that follow it.
    fn note(&self, operation: &str, path: Option<&Path>) -> Vec<(String, Bytes)> {
        let line = format!("{operation} {}", path.map_or("", |path| path.as_ref()));
        let mut state = self.state();
        let mut due = Vec::new();
        state.planned.retain(|(at, key, bytes)| {
            let falls = line.starts_with(at.as_str());
            if falls {
                due.push((key.clone(), bytes.clone()));
            }
            !falls
        });
        state.record.push(line);
        due
    }

    async fn write(&self, due: Vec<(String, Bytes)>) -> Result<()> {
        for (key, bytes) in due {
            self.inner.put(&Path::from(key), bytes.into()).await?;
        }
        Ok(())
    }
}

impl fmt::Display for RecordingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "recorded {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for RecordingStore {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let operation = if options.mode == PutMode::Create { "create" } else { "put" };
        let due = self.note(operation, Some(path));
        let written = self.inner.put_opts(path, payload, options).await;
        self.write(due).await?;
        written
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let due = self.note("multipart", Some(path));
        self.write(due).await?;
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let due = self.note(if options.head { "head" } else { "get" }, Some(path));
        let got = self.inner.get_opts(path, options).await;
        self.write(due).await?;
        got
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        let delete = move |path: Path| {
            let this = this.clone();
            async move {
                let due = this.note("delete", Some(&path));
                let deleted = this.inner.delete(&path).await;
                this.write(due).await?;
                deleted.map(|()| path)
            }
        };
        paths.and_then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, prefix) = (self.clone(), prefix.cloned());
        let listing = async move {
            let due = this.note("list", prefix.as_ref());
            // The listing is taken whole before others write.
            let listed: Vec<ObjectMeta> = this.inner.list(prefix.as_ref()).try_collect().await?;
            this.write(due).await?;
            Ok::<_, object_store::Error>(futures::stream::iter(listed.into_iter().map(Ok)))
        };
        futures::stream::once(listing).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let due = self.note("list", prefix);
        let listed = self.inner.list_with_delimiter(prefix).await;
        self.write(due).await?;
        listed
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let due = self.note("copy", Some(to));
        let copied = self.inner.copy_opts(from, to, options).await;
        self.write(due).await?;
        copied
    }
}
