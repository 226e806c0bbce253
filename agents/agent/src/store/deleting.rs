//! Deleting many objects: in batches where the store has them, one at a time where not.
//!
//! Batches are no API that every S3 store has, and a batch says little about why a key stays. Whatever a batch has not
//! deleted for certain is therefore deleted by itself, which is harmless for what is gone already.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::stream::{self, StreamExt};
use object_store::ObjectStore;
use object_store::path::Path;

use super::{Store, StoreError, StoreErrorKind};

/// Single deletions that are under way at once.
const AT_ONCE: usize = 8;

impl Store {
    /// Deletes in batches by another client of the same bucket, which takes them.
    pub fn with_batches(mut self, batches: Arc<dyn ObjectStore>) -> Self {
        self.batches = Some(batches);
        self
    }

    /// Deletes an object that does no harm where it stays; whether it is gone. A store may not let it go yet, because of a
    /// lock or of a rule for the whole bucket.
    pub async fn delete_or_leave(&self, key: &str) -> Result<bool, StoreError> {
        match self.delete(key).await {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == StoreErrorKind::Denied => {
                tracing::warn!(%error, "the store does not let an object go, which stays and does no harm");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Deletes objects; those that are not there are fine. Returns the keys that the store does not let go: a lock on
    /// them may end later. Any other error is one.
    pub async fn delete_all(&self, keys: &[String]) -> Result<Vec<String>, StoreError> {
        let mut left: BTreeMap<Path, String> = keys.iter().map(|key| (self.path(key), key.clone())).collect();
        if let Some(batches) = self.batches.as_ref().filter(|_| left.len() > 1) {
            let paths: Vec<_> = left.keys().cloned().map(Ok).collect();
            let mut deleted = batches.delete_stream(stream::iter(paths).boxed());
            while let Some(one) = deleted.next().await {
                match one {
                    Ok(path) => drop(left.remove(&path)),
                    Err(error) => tracing::debug!(%error, "a batch of deletions failed; deleting one by one"),
                }
            }
        }
        let mut refused = Vec::new();
        let mut outcomes = stream::iter(left.into_values())
            .map(|key: String| async move { (self.delete(&key).await, key) })
            .buffer_unordered(AT_ONCE);
        while let Some((outcome, key)) = outcomes.next().await {
            match outcome {
                Ok(()) => {}
                Err(error) if error.kind() == StoreErrorKind::Denied => refused.push(key),
                Err(error) => return Err(error),
            }
        }
        Ok(refused)
    }
}
