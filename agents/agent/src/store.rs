//! The bucket: object_store's own trait, with the errors and the few operations that lvkeep relies on.
//!
//! Names are never used twice, so that everything but packs may be repeated: reads and listings are tried again on
//! transient errors, and [`Store::create`] finds out by reading whether it won. A pack upload is one attempt; whoever
//! repeats it takes a fresh name.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};

use schema::config::StorePromise;

use crate::Environment;

mod deleting;
mod limit;

pub use limit::Limit;

/// Tries of an operation that may be repeated; the doubling pauses between them are 13 seconds in all.
const TRIES: u32 = 8;
/// The first pause between tries.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// What went wrong with the store, and with which object.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{operation} {object}: {why}")]
pub struct StoreError {
    operation: &'static str,
    object: String,
    kind: StoreErrorKind,
    why: String,
}

/// What kind of trouble it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// The object does not exist.
    NotFound,
    /// The credentials do not allow it.
    Denied,
    /// No space is left.
    Full,
    /// The store answers something else than success; later it may do better.
    Unavailable,
    /// The object exists already.
    Exists,
    /// The store lacks a promise that nothing works without.
    Unfit,
}

impl StoreError {
    /// Whether trying again later may help.
    pub fn is_transient(&self) -> bool {
        self.kind == StoreErrorKind::Unavailable
    }

    /// What kind of trouble it is.
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }
}

/// Who won a create-if-absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// The object holds what we wrote.
    Won,
    /// Somebody else's content is there.
    Lost(Bytes),
}

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its key, relative to the repository.
    pub key: String,
    /// Its size in bytes.
    pub size: u64,
}

/// A repository's part of a bucket or directory.
#[derive(Clone)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
    batches: Option<Arc<dyn ObjectStore>>,
    prefix: Path,
    location: Arc<str>,
    environment: Arc<dyn Environment>,
    /// The narrowest first.
    limits: Arc<[Arc<Limit>]>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.location)
    }
}

impl Store {
    /// A store below `prefix` of a bucket; `location` is what messages call it.
    pub fn new(
        inner: Arc<dyn ObjectStore>,
        prefix: &str,
        location: &str,
        environment: Arc<dyn Environment>,
    ) -> Self {
        let (prefix, location, limits) = (Path::from(prefix), location.into(), Arc::default());
        Self { inner, batches: None, prefix, location, environment, limits }
    }

    /// What messages call it.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// Clock and randomness that it waits by.
    pub fn environment(&self) -> &Arc<dyn Environment> {
        &self.environment
    }

    fn path(&self, key: &str) -> Path {
        // The prefix is escaped already, and must not be a second time.
        self.prefix.parts().chain(Path::from(key).parts()).collect()
    }

    fn error(&self, operation: &'static str, key: &str, error: &object_store::Error) -> StoreError {
        use object_store::Error;
        let kind = match error {
            Error::NotFound { .. } => StoreErrorKind::NotFound,
            Error::AlreadyExists { .. } | Error::Precondition { .. } => StoreErrorKind::Exists,
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => StoreErrorKind::Denied,
            other => io_kind(other),
        };
        StoreError { operation, object: format!("{}/{key}", self.location), kind, why: root_cause(error) }
    }

    async fn repeat<T, F: Future<Output = object_store::Result<T>>>(
        &self,
        operation: &'static str,
        key: &str,
        mut step: impl FnMut() -> F,
    ) -> Result<T, StoreError> {
        let mut pause = FIRST_PAUSE;
        for try_number in 1.. {
            let error = match step().await {
                Ok(value) => return Ok(value),
                Err(error) => self.error(operation, key, &error),
            };
            if !error.is_transient() || try_number >= TRIES {
                return Err(error);
            }
            tracing::debug!(%error, try_number, "the store did not do it; trying again");
            self.environment.sleep(pause).await;
            pause *= 2;
        }
        unreachable!("the loop returns")
    }

    /// The whole object, or none.
    pub async fn get(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        let path = self.path(key);
        let get = || async {
            let _turn = self.turn().await;
            body(self.inner.get(&path).await?).await
        };
        absent(self.repeat("reading", key, get).await)
    }

    /// A range of an object; an object that ends before the range does is an error that no other try helps.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let path = self.path(key);
        let wanted = range.end.saturating_sub(range.start);
        if wanted == 0 {
            return Ok(Bytes::new());
        }
        let got = self
            .repeat("reading", key, || async {
                let _turn = self.turn().await;
                let options =
                    GetOptions { range: Some(GetRange::Bounded(range.clone())), ..Default::default() };
                match self.inner.get_opts(&path, options).await {
                    Ok(got) => body(got).await.map(Some),
                    // Stores tell a range behind the end apart in many ways; the size says it for certain.
                    Err(error) => match self.settled_size(&path, &error).await {
                        Some(size) if size <= range.start => Ok(None),
                        _ => Err(error),
                    },
                }
            })
            .await?;
        let came = got.as_ref().map_or(0, Bytes::len) as u64;
        match got {
            Some(got) if came == wanted => Ok(got),
            _ => {
                let why = format!("it ends before offset {} ({came} of {wanted} bytes came)", range.end);
                let (operation, kind) = ("reading", StoreErrorKind::NotFound);
                Err(StoreError { operation, object: format!("{}/{key}", self.location), kind, why })
            }
        }
    }

    /// The size of an object of which a part could not be read for another reason than being absent.
    async fn settled_size(&self, path: &Path, error: &object_store::Error) -> Option<u64> {
        match error {
            object_store::Error::NotFound { .. } => None,
            _ => self.inner.head(path).await.ok().map(|meta| meta.size),
        }
    }

    /// At most the last `len` bytes of an object, with its whole size.
    pub async fn get_suffix(&self, key: &str, len: u64) -> Result<(Bytes, u64), StoreError> {
        let path = self.path(key);
        self.repeat("reading", key, || async {
            let _turn = self.turn().await;
            if len == 0 {
                return Ok((Bytes::new(), self.inner.head(&path).await?.size));
            }
            let options = GetOptions { range: Some(GetRange::Suffix(len)), ..GetOptions::default() };
            let got = match self.inner.get_opts(&path, options).await {
                Ok(got) => got,
                // An empty object has no last bytes: some stores call that an impossible range.
                Err(error) => match self.settled_size(&path, &error).await {
                    Some(0) => return Ok((Bytes::new(), 0)),
                    _ => return Err(error),
                },
            };
            let size = got.meta.size;
            Ok((body(got).await?, size))
        })
        .await
    }

    /// An object's size, or none.
    pub async fn head(&self, key: &str) -> Result<Option<u64>, StoreError> {
        let path = self.path(key);
        let head = || async {
            let _turn = self.turn().await;
            self.inner.head(&path).await
        };
        absent(self.repeat("looking for", key, head).await).map(|found| found.map(|m| m.size))
    }

    /// All objects below a folder, in no order.
    pub async fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
        self.list_as(folder, Some).await
    }

    /// What becomes of all objects below a folder, in no order: of many, only that is kept.
    pub async fn list_as<T: Send>(
        &self,
        folder: &str,
        become_of: impl Fn(Listed) -> Option<T> + Send + Sync,
    ) -> Result<Vec<T>, StoreError> {
        let path = self.path(folder);
        let skip = match self.prefix.as_ref().len() {
            0 => 0,
            len => len + 1,
        };
        let listed = |meta: ObjectMeta| Listed {
            key: meta.location.as_ref().get(skip..).unwrap_or("").to_owned(),
            size: meta.size,
        };
        self.repeat("listing", folder, || {
            let found = self.inner.list(Some(&path)).map_ok(|meta| become_of(listed(meta)));
            found.try_filter_map(|kept| std::future::ready(Ok(kept))).try_collect()
        })
        .await
    }

    /// Whether anything is below a folder, by the beginning of its listing.
    pub async fn has_any(&self, folder: &str) -> Result<bool, StoreError> {
        let path = self.path(folder);
        let first = || async { self.inner.list(Some(&path)).try_next().await };
        Ok(self.repeat("listing", folder, first).await?.is_some())
    }

    /// Writes an object, over an older one if there is one.
    pub async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        let path = self.path(key);
        self.repeat("writing", key, || self.inner.put(&path, bytes.clone().into())).await.map(drop)
    }

    /// One attempt to write a new object in parts. On any error it may or may not exist.
    pub async fn put_once(&self, key: &str, parts: Vec<Bytes>) -> Result<(), StoreError> {
        let payload: PutPayload = parts.into_iter().collect();
        let written = self.inner.put(&self.path(key), payload).await;
        written.map(drop).map_err(|error| self.error("writing", key, &error))
    }

    /// Creates an object if nothing is there, and says for certain who won: whatever the store answers but
    /// success is settled by reading the key. Own bytes = won, others = lost, absent = tried again.
    pub async fn create(&self, key: &str, bytes: Bytes) -> Result<Created, StoreError> {
        let path = self.path(key);
        let mut pause = FIRST_PAUSE;
        for try_number in 1.. {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            let error = match self.inner.put_opts(&path, bytes.clone().into(), options).await {
                Ok(_) => return Ok(Created::Won),
                Err(error) => self.error("creating", key, &error),
            };
            match self.get(key).await {
                Ok(Some(found)) if found == bytes => return Ok(Created::Won),
                Ok(Some(found)) => return Ok(Created::Lost(found)),
                Ok(None)
                    if try_number < TRIES
                        && (error.is_transient() || error.kind == StoreErrorKind::Exists) => {}
                // Something stands there; what, is not known before it can be read.
                Err(unread) if error.kind == StoreErrorKind::Exists => return Err(unread),
                Ok(None) | Err(_) => return Err(error),
            }
            tracing::debug!(%error, try_number, "a conditional write left nothing; trying again");
            self.environment.sleep(pause).await;
            pause *= 2;
        }
        unreachable!("the loop returns")
    }

    /// Deletes an object; none being there is fine.
    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let path = self.path(key);
        absent(self.repeat("deleting", key, || self.inner.delete(&path)).await).map(drop)
    }

    /// Races creators for one name and reads what they left: whether the store keeps the promise that commits need.
    /// A race that the network disturbed says nothing and is run again, under another name.
    pub async fn probe(&self) -> Result<StorePromise, StoreError> {
        let mut pause = FIRST_PAUSE;
        for try_number in 1.. {
            let key = format!("{}/{}", schema::names::PROBES, self.environment.session_id());
            let raced = self.race(&key).await;
            self.delete_or_leave(&key).await?;
            match raced {
                Ok(conditional_create) => return Ok(StorePromise { conditional_create }),
                Err(error)
                    if matches!(error.kind, StoreErrorKind::Denied | StoreErrorKind::Unfit)
                        || try_number >= TRIES =>
                {
                    return Err(error);
                }
                Err(error) => tracing::debug!(%error, try_number, "a race of creators was disturbed; again"),
            }
            self.environment.sleep(pause).await;
            pause *= 2;
        }
        unreachable!("the loop returns")
    }

    /// One race: whether exactly one creator won and its bytes stayed; an error when that cannot be told. What was written
    /// must be listed, whoever won.
    async fn race(&self, key: &str) -> Result<bool, StoreError> {
        let winner = self.winner(key).await?;
        let found = match self.get(key).await? {
            // A store that refuses conditions has written nothing yet.
            None if winner.is_none() => {
                self.put(key, Bytes::from_static(&[0; 8])).await?;
                None
            }
            found => found,
        };
        if !self.list(schema::names::PROBES).await?.iter().any(|listed| listed.key == key) {
            // Without this no snapshot would ever be found again, and what it needs be deleted.
            let why = "an object that was just written is not in the listing; a store must list every completed write \
                       (a bucket's name has 3 to 63 characters: some stores list nothing in others)";
            let object = format!("{}/{}", self.location, schema::names::PROBES);
            let (operation, kind) = ("listing", StoreErrorKind::Unfit);
            return Err(StoreError { operation, object, kind, why: why.to_owned() });
        }
        Ok(winner.is_some_and(|winner| found.is_some_and(|found| found[..] == [winner; 8])))
    }

    /// The only creator that was told that it won; none where several were, or the store knows no conditions.
    async fn winner(&self, key: &str) -> Result<Option<u8>, StoreError> {
        const RACERS: u8 = 6;
        let path = self.path(key);
        let creator = |racer: u8| {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            self.inner.put_opts(&path, PutPayload::from(vec![racer; 8]), options)
        };
        let mut results = futures::future::join_all((0..RACERS).map(creator)).await;
        results.push(creator(RACERS).await); // late, when it is certain that somebody has won
        let winners: Vec<u8> = (0..=RACERS).filter(|racer| results[usize::from(*racer)].is_ok()).collect();
        if winners.len() > 1 {
            return Ok(None);
        }
        for error in results.iter().filter_map(|result| result.as_ref().err()) {
            if matches!(
                error,
                object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. }
            ) {
                return Ok(None);
            }
            let error = self.error("creating", key, error);
            if error.kind != StoreErrorKind::Exists {
                return Err(error);
            }
        }
        if winners.is_empty() {
            let (operation, why) = ("creating", "every creator was told that it exists already".to_owned());
            let object = format!("{}/{key}", self.location);
            return Err(StoreError { operation, object, kind: StoreErrorKind::Unavailable, why });
        }
        Ok(winners.first().copied())
    }
}

/// The body of an answer. One that is shorter or longer than announced is an error, to be tried again.
async fn body(got: object_store::GetResult) -> object_store::Result<Bytes> {
    let announced = got.range.end.saturating_sub(got.range.start);
    let bytes = got.bytes().await?;
    if bytes.len() as u64 == announced {
        return Ok(bytes);
    }
    let why = format!("{} of {announced} bytes came", bytes.len());
    Err(object_store::Error::Generic { store: "Store", source: why.into() })
}

fn absent<T>(result: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind == StoreErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Looks for a cause of the operating system: it decides whether another try is of use.
fn io_kind(error: &object_store::Error) -> StoreErrorKind {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            match io.kind() {
                std::io::ErrorKind::StorageFull
                | std::io::ErrorKind::QuotaExceeded
                | std::io::ErrorKind::FileTooLarge => {
                    return StoreErrorKind::Full;
                }
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                    return StoreErrorKind::Denied;
                }
                _ => {}
            }
        }
        cause = error.source();
    }
    StoreErrorKind::Unavailable
}

/// The error with its causes on one line: the store's own words are what an operator needs.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
