//! The seam for time, randomness and threads.
//!
//! Safety never depends on them: clocks decide only when to give up waiting, random bits only make names unlikely to
//! collide, and threads only who waits for whom. The simulation replaces this with a seeded one without threads.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use schema::messages::FailureKind;
use schema::{DamageId, JobId, MarkId, PackId, SessionId};
use tokio::sync::oneshot;

use crate::Failure;

/// Time, randomness and threads.
#[async_trait]
pub trait Environment: fmt::Debug + Send + Sync + 'static {
    /// Milliseconds since 1970, for people.
    fn now_ms(&self) -> u64;

    /// Time since some fixed moment; never goes backwards.
    fn elapsed(&self) -> Duration;

    /// Waits.
    async fn sleep(&self, duration: Duration);

    /// Fills `bytes` with random ones, fit for keys.
    fn fill_random(&self, bytes: &mut [u8]);

    /// Does work that keeps a processor or a disk busy for long, where it holds no task up. Use `on_a_thread`.
    async fn run_blocking(&self, work: Box<dyn FnOnce() + Send>) {
        // Of work that panicked the panic was printed, and what it was to send is missing.
        let _ = tokio::task::spawn_blocking(work).await;
    }
}

impl dyn Environment {
    /// `N` random bytes.
    pub fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill_random(&mut bytes);
        bytes
    }

    fn ulid_parts(&self) -> (u64, u128) {
        (self.now_ms(), u128::from_le_bytes(self.random()) >> 48)
    }

    /// A fresh session id.
    pub fn session_id(&self) -> SessionId {
        let (ms, random) = self.ulid_parts();
        SessionId::from_parts(ms, random)
    }

    /// A fresh pack id.
    pub fn pack_id(&self) -> PackId {
        let (ms, random) = self.ulid_parts();
        PackId::from_parts(ms, random)
    }

    /// A fresh mark id.
    pub fn mark_id(&self) -> MarkId {
        let (ms, random) = self.ulid_parts();
        MarkId::from_parts(ms, random)
    }

    /// A fresh id for a record of damage.
    pub fn damage_id(&self) -> DamageId {
        let (ms, random) = self.ulid_parts();
        DamageId::from_parts(ms, random)
    }

    /// A fresh job id.
    pub fn job_id(&self) -> JobId {
        let (ms, random) = self.ulid_parts();
        JobId::from_parts(ms, random)
    }

    /// What `step` makes, which keeps a processor or a disk busy for long.
    ///
    /// # Errors
    ///
    /// If the step panicked.
    pub async fn on_a_thread<T: Send + 'static>(
        &self,
        step: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let (made, result) = oneshot::channel();
        let work = move || {
            // Nobody listens if whoever waited was dropped.
            let _ = made.send(step());
        };
        self.run_blocking(Box::new(work)).await;
        let ended =
            |_| Failure::new(FailureKind::Other, "a thread that worked on this ended without a result");
        result.await.map_err(ended)
    }

    /// Waits for `future`, at most this long.
    pub async fn timeout<F: Future>(&self, limit: Duration, future: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            output = future => Some(output),
            () = self.sleep(limit) => None,
        }
    }
}
