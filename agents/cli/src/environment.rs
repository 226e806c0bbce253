//! The real clock and the system's randomness.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agent::Environment;
use async_trait::async_trait;
use rand::TryRng;

/// The machine's own.
#[derive(Debug)]
pub struct SystemEnvironment {
    started: Instant,
}

impl SystemEnvironment {
    /// Counts from now.
    pub fn new() -> Self {
        Self { started: Instant::now() }
    }
}

#[async_trait]
impl Environment for SystemEnvironment {
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
        if let Err(why) = rand::rngs::SysRng.try_fill_bytes(bytes) {
            // Without randomness there are no keys and no names: nothing can be done safely.
            eprintln!("lvkeep: the system gives no random bytes: {why}");
            std::process::abort();
        }
    }
}
