//! Death at one operation of the store: before it is sent, or when it is done and nobody has heard of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use agent::Stop;

/// When somebody dies. Clones share the count.
#[derive(Debug, Clone)]
pub struct Doom(Option<Arc<Fate>>);

#[derive(Debug)]
struct Fate {
    left: AtomicU64,
    is_done_first: bool,
    dead: Stop,
}

impl Doom {
    /// Never.
    pub fn none() -> Self {
        Self(None)
    }

    /// At the operation after `left` others.
    pub fn at(left: u64, is_done_first: bool) -> Self {
        Self(Some(Arc::new(Fate { left: AtomicU64::new(left), is_done_first, dead: Stop::default() })))
    }

    /// Does `operation`, or dies: then nothing is ever answered.
    pub async fn around<T>(&self, operation: impl Future<Output = T>) -> T {
        let Some(fate) = &self.0 else { return operation.await };
        let left = fate.left.load(Ordering::Relaxed);
        fate.left.store(left.saturating_sub(1), Ordering::Relaxed);
        if left > 0 {
            return operation.await;
        }
        if fate.is_done_first {
            drop(operation.await);
        }
        fate.dead.raise();
        std::future::pending().await
    }

    /// Runs `life` until its end, none when it died before.
    pub async fn unless_dead<T>(&self, life: impl Future<Output = T>) -> Option<T> {
        let dead = async {
            match &self.0 {
                Some(fate) => fate.dead.raised().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = dead => None,
            ended = life => Some(ended),
        }
    }
}
