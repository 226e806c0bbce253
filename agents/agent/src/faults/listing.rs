//! A store whose listings lag behind its writes, as some stores' did and some gateways' still do.
//!
//! That breaks the contract of the seam: it is here to show that such a store is recognised.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// Lists an object only after so many listings that lack it. Clones share what they have seen.
#[derive(Debug, Clone)]
pub struct LateListing {
    inner: Arc<dyn ObjectStore>,
    lag: u32,
    /// What was written, and how many listings will lack it yet.
    unseen: Arc<Mutex<Vec<(Path, u32)>>>,
}

impl LateListing {
    /// Wraps a store.
    pub fn new(inner: Arc<dyn ObjectStore>, lag: u32) -> Self {
        Self { inner, lag, unseen: Arc::default() }
    }

    fn unseen(&self) -> MutexGuard<'_, Vec<(Path, u32)>> {
        self.unseen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wrote(&self, location: &Path) {
        let mut unseen = self.unseen();
        unseen.retain(|(path, _)| path != location);
        unseen.push((location.clone(), self.lag));
    }

    /// What the listing that begins now lacks.
    fn lacks(&self) -> Vec<Path> {
        let mut unseen = self.unseen();
        unseen.retain(|(_, listings)| *listings > 0);
        unseen.iter_mut().for_each(|(_, listings)| *listings -= 1);
        unseen.iter().map(|(path, _)| path.clone()).collect()
    }
}

impl fmt::Display for LateListing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LateListing({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for LateListing {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let written = self.inner.put_opts(location, payload, opts).await?;
        self.wrote(location);
        Ok(written)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.wrote(location);
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let lacks = self.lacks();
        let shown = move |meta: &Result<ObjectMeta>| {
            let is_shown = meta.as_ref().map_or(true, |meta| !lacks.contains(&meta.location));
            std::future::ready(is_shown)
        };
        self.inner.list(prefix).filter(shown).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let lacks = self.lacks();
        let mut listed = self.inner.list_with_delimiter(prefix).await?;
        listed.objects.retain(|meta| !lacks.contains(&meta.location));
        Ok(listed)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await?;
        self.wrote(to);
        Ok(())
    }
}
