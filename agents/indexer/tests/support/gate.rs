//! A store in memory whose listings are taken at once but, while the gate is closed, handed out only later.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::*;
use tokio::sync::watch;

/// Holds listings up.
#[derive(Debug)]
pub struct Gate {
    closed: watch::Sender<bool>,
    waiting: watch::Sender<bool>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { closed: watch::Sender::new(false), waiting: watch::Sender::new(false) }
    }
}

impl Gate {
    pub fn close(&self) {
        self.closed.send_replace(true);
    }

    pub fn open(&self) {
        self.closed.send_replace(false);
    }

    /// Waits until a listing was taken and waits at the gate.
    pub async fn listed(&self) {
        self.waiting.subscribe().wait_for(|waiting| *waiting).await.expect("the gate is there");
    }

    async fn pass(&self) {
        if *self.closed.borrow() {
            self.waiting.send_replace(true);
            self.closed.subscribe().wait_for(|closed| !*closed).await.expect("the gate is there");
        }
    }
}

#[derive(Debug)]
pub struct GatedListing {
    pub objects: InMemory,
    pub gate: Arc<Gate>,
}

impl fmt::Display for GatedListing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} behind a gate", self.objects)
    }
}

#[async_trait]
impl ObjectStore for GatedListing {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.objects.put_opts(at, payload, options).await
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
        self.objects.delete_stream(at)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (listed, gate) = (self.objects.list(prefix), self.gate.clone());
        async move {
            gate.pass().await;
            listed
        }
        .flatten_stream()
        .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}
