//! A store that stops somebody before one of their operations, until they may go on, or dies.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use agent::Stop;
use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::*;

/// Where somebody is stopped. Clones share it.
#[derive(Debug, Clone)]
pub struct Pause {
    number: u64,
    count: Arc<AtomicU64>,
    dead: Arc<AtomicBool>,
    /// They are there, or have ended before.
    pub reached: Stop,
    /// They may go on.
    pub go: Stop,
}

impl Pause {
    /// Before the operation of this number, counted from 0.
    pub fn before(number: u64) -> Self {
        let (count, dead, reached, go) = Default::default();
        Self { number, count, dead, reached, go }
    }

    /// From now on nothing that they do has an effect.
    pub fn die(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    /// Operations that were begun.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    async fn pass(&self) -> Result<()> {
        if self.count.fetch_add(1, Ordering::Relaxed) == self.number {
            self.reached.raise();
            self.go.raised().await;
        }
        match self.dead.load(Ordering::Relaxed) {
            true => Err(Error::PermissionDenied { path: String::new(), source: "dead".into() }),
            false => Ok(()),
        }
    }
}

/// A store with a pause.
#[derive(Debug, Clone)]
pub struct PausingStore(Arc<dyn ObjectStore>, Pause);

impl PausingStore {
    /// A store in front of another.
    pub fn new(inner: Arc<dyn ObjectStore>, pause: Pause) -> Self {
        Self(inner, pause)
    }
}

impl fmt::Display for PausingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a pause in front of {}", self.0)
    }
}

#[async_trait]
impl ObjectStore for PausingStore {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.1.pass().await?;
        self.0.put_opts(at, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.1.pass().await?;
        self.0.get_opts(at, options).await
    }

    fn delete_stream(&self, at: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inner, pause) = (self.0.clone(), self.1.clone());
        let delete = move |path: Path| {
            let (inner, pause) = (inner.clone(), pause.clone());
            async move {
                pause.pass().await?;
                inner.delete(&path).await.map(|()| path)
            }
        };
        at.and_then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (Self(inner, pause), prefix) = (self.clone(), prefix.cloned());
        let listed = async move {
            pause.pass().await?;
            Ok::<_, Error>(inner.list(prefix.as_ref()))
        };
        futures::stream::once(listed).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}
