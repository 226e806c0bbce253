//! A store that lets somebody else act, or dies, before or at any one operation.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::*;

/// What happens before, or at, one operation of a store.
pub enum At {
    /// Somebody else acts.
    Act(Mutex<Option<BoxFuture<'static, ()>>>),
    /// From then on nothing has an effect any more.
    Dies,
    /// This one has its effect, and its answer is lost; nothing after it has any.
    DiesAfter,
    /// Nothing.
    Passes,
}

/// A store in front of another, with one moment at which something happens.
#[derive(Clone)]
pub struct Moment(Arc<Inner>);

struct Inner {
    inner: Arc<dyn ObjectStore>,
    number: u64,
    at: At,
    count: AtomicU64,
}

impl Moment {
    pub fn new(inner: Arc<dyn ObjectStore>, number: u64, at: At) -> Self {
        Self(Arc::new(Inner { inner, number, at, count: AtomicU64::new(0) }))
    }

    pub fn act(inner: Arc<dyn ObjectStore>, number: u64, act: BoxFuture<'static, ()>) -> Self {
        Self::new(inner, number, At::Act(Mutex::new(Some(act))))
    }

    /// Operations so far.
    pub fn count(&self) -> u64 {
        self.0.count.load(Ordering::Relaxed)
    }

    /// Whether the operation may be done, and whether its answer arrives.
    async fn pass(&self) -> Result<bool> {
        let number = self.0.count.fetch_add(1, Ordering::Relaxed);
        match &self.0.at {
            At::Act(act) => {
                let act = if number == self.0.number { act.lock().unwrap().take() } else { None };
                if let Some(act) = act {
                    act.await;
                }
                Ok(true)
            }
            At::Dies if number >= self.0.number => Err(dead()),
            At::DiesAfter if number > self.0.number => Err(dead()),
            At::DiesAfter => Ok(number != self.0.number),
            At::Dies | At::Passes => Ok(true),
        }
    }
}

fn dead() -> object_store::Error {
    let why = std::io::Error::new(std::io::ErrorKind::ConnectionReset, "dead");
    object_store::Error::Generic { store: "Moment", source: Box::new(why) }
}

fn answered<T>(arrives: bool, answer: Result<T>) -> Result<T> {
    if arrives { answer } else { Err(dead()) }
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Moment({})", self.0.number)
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "moment {}", self.0.number)
    }
}

#[async_trait]
impl ObjectStore for Moment {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let arrives = self.pass().await?;
        answered(arrives, self.0.inner.put_opts(path, payload, options).await)
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.0.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let arrives = self.pass().await?;
        answered(arrives, self.0.inner.get_opts(path, options).await)
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        let delete = move |path: Path| {
            let this = this.clone();
            async move {
                let arrives = this.pass().await?;
                answered(arrives, this.0.inner.delete(&path).await.map(|()| path))
            }
        };
        paths.and_then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, prefix) = (self.clone(), prefix.cloned());
        let listing = async move {
            let arrives = this.pass().await?;
            let listed: Result<Vec<ObjectMeta>> = this.0.inner.list(prefix.as_ref()).try_collect().await;
            Ok::<_, object_store::Error>(futures::stream::iter(
                answered(arrives, listed)?.into_iter().map(Ok),
            ))
        };
        futures::stream::once(listing).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.inner.copy_opts(from, to, options).await
    }
}
