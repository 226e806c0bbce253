//! The real clock and real randomness, for looking into repositories.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agent::Environment;
use async_trait::async_trait;

/// The machine's own.
#[derive(Debug)]
pub struct RealTime {
    started: Instant,
}

impl RealTime {
    /// Counts from now.
    pub fn new() -> Self {
        Self { started: Instant::now() }
    }
}

impl Default for RealTime {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Environment for RealTime {
    fn now_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        rand::fill(bytes);
    }
}
