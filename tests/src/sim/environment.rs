//! Virtual time, seeded randomness and no threads: the seam that makes a run repeat itself.
//!
//! What would work on a thread works at once: the moments at which threads end are the machine's.
//!
//! Time is tokio's paused clock: it moves only when nothing else can, so that long waits are free. It must be made
//! inside a runtime that started paused. It can also leap, as on machines that were suspended: the clock shows later
//! and no timer has run, so that months cost no more than what is done in them, and what was on its way is stale.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use agent::Environment;
use async_trait::async_trait;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// When virtual time begins, in milliseconds since 1970.
const BEGINNING_MS: u64 = 1_900_000_000_000;

/// Clock and randomness of one run.
#[derive(Debug)]
pub struct SimEnvironment {
    start: tokio::time::Instant,
    leapt_ms: AtomicU64,
    random: Mutex<StdRng>,
}

impl SimEnvironment {
    /// Time begins now.
    pub fn new(seed: u64) -> Self {
        let random = Mutex::new(StdRng::seed_from_u64(seed));
        Self { start: tokio::time::Instant::now(), leapt_ms: AtomicU64::new(0), random }
    }

    /// So much time has gone by, and nobody could do anything in it.
    pub fn leap(&self, time: Duration) {
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.leapt_ms.fetch_add(ms, Ordering::Relaxed);
    }
}

#[async_trait]
impl Environment for SimEnvironment {
    fn now_ms(&self) -> u64 {
        BEGINNING_MS + u64::try_from(self.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed() + Duration::from_millis(self.leapt_ms.load(Ordering::Relaxed))
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(bytes);
    }

    async fn run_blocking(&self, work: Box<dyn FnOnce() + Send>) {
        work();
    }
}
