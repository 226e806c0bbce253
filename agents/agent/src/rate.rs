//! Rate limits in bytes per second, for `--limit-read` and `--limit-upload`.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use crate::Environment;

/// A limit on a flow of bytes; without a rate it never waits.
#[derive(Debug, Clone)]
pub struct RateLimit {
    inner: Option<Arc<Limited>>,
}

#[derive(Debug)]
struct Limited {
    bytes_per_second: u64,
    environment: Arc<dyn Environment>,
    free_at: Mutex<Duration>,
}

impl RateLimit {
    /// No limit.
    pub fn none() -> Self {
        Self { inner: None }
    }

    /// At most `bytes_per_second`.
    pub fn new(bytes_per_second: u64, environment: Arc<dyn Environment>) -> Self {
        let inner =
            Limited { bytes_per_second: bytes_per_second.max(1), environment, free_at: Mutex::default() };
        Self { inner: Some(Arc::new(inner)) }
    }

    /// Waits until `bytes` more may pass. One large step is let through at once and paid for by the next.
    pub async fn pass(&self, bytes: u64) {
        let Some(limited) = &self.inner else { return };
        let wait = {
            let mut free_at = limited.free_at.lock().await;
            let now = limited.environment.elapsed();
            let start = (*free_at).max(now);
            *free_at = start + Duration::from_secs_f64(bytes as f64 / limited.bytes_per_second as f64);
            start - now
        };
        if !wait.is_zero() {
            limited.environment.sleep(wait).await;
        }
    }
}
