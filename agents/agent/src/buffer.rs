//! Page-aligned buffers for direct I/O, from a pool that bounds them.
//!
//! A frozen buffer travels as [`Bytes`] without copying; its memory comes back to the pool when the last slice
//! of it is dropped. Waiting for a buffer is the back-pressure of reading.

use std::sync::{Arc, Mutex};

use bytemuck::Zeroable;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Alignment of every buffer in bytes.
pub const ALIGN: usize = 4096;

#[derive(Clone, Copy, Zeroable, bytemuck::Pod)]
#[repr(C, align(4096))]
struct Page([u8; ALIGN]);

/// A bounded pool of equal buffers.
#[derive(Clone)]
pub struct Pool {
    free: Arc<Mutex<Vec<Box<[Page]>>>>,
    permits: Arc<Semaphore>,
    pages: usize,
}

impl Pool {
    /// A pool of `count` buffers of `len` bytes each, rounded up to whole pages; made when first needed.
    pub fn new(count: usize, len: usize) -> Self {
        Self {
            free: Arc::default(),
            permits: Arc::new(Semaphore::new(count.max(1))),
            pages: len.div_ceil(ALIGN).max(1),
        }
    }

    /// Waits for a buffer. Its content is whatever it last held.
    pub async fn acquire(&self) -> Buffer {
        // The semaphore is never closed, so that waiting cannot fail.
        let permit = self.permits.clone().acquire_owned().await.ok();
        let reused = self.free.lock().ok().and_then(|mut free| free.pop());
        let pages = reused.unwrap_or_else(|| bytemuck::zeroed_slice_box(self.pages));
        Buffer { pages: Some(pages), pool: self.clone(), _permit: permit }
    }

    /// Waits until every buffer is back.
    pub async fn idle(&self, count: usize) {
        let _all = self.permits.acquire_many(count as u32).await;
    }
}

/// One buffer.
pub struct Buffer {
    pages: Option<Box<[Page]>>,
    pool: Pool,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Buffer {
    /// Its bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.pages {
            Some(pages) => bytemuck::cast_slice_mut(pages),
            None => &mut [],
        }
    }

    /// Hands the bytes on; slices of the result share the buffer.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        match &self.pages {
            Some(pages) => bytemuck::cast_slice(pages),
            None => &[],
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let (Some(pages), Ok(mut free)) = (self.pages.take(), self.pool.free.lock()) {
            free.push(pages);
        }
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.as_ref().len())
    }
}
