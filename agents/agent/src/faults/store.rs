//! An object store on a bad day: operations fail before or after their effect, answers lie, bodies end early.
//!
//! Every fault is one that a real store shows: an error never means that nothing happened, `AlreadyExists` may be
//! answered though nothing landed, a write may land after it was given up. What never happens: a listing that lacks a
//! completed write, or, unless it is asked for by name, `NotFound` for an object that is there. Chances are per thousand and decided by the
//! seed and the order of calls, so that a run on one thread repeats itself; faults can also be planned one by one.
//! What was injected is counted. Late writes wait in memory, at most [`LATE_MAX`] of them.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result,
};
use rand::RngExt;

use crate::Environment;

mod dice;

pub use dice::{Injected, LATE_MAX, Refusal, StoreFaults, WriteFault};
use dice::{LateWrite, State};

/// A late write lands within this many further operations.
const LATE_OPERATIONS: u32 = 12;

/// A store that injects faults into another. Clones share the dice and the switches.
#[derive(Clone)]
pub struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    environment: Arc<dyn Environment>,
    state: Arc<Mutex<State>>,
}

impl FaultyStore {
    /// Wraps `inner`; slow operations wait in `environment`.
    pub fn new(inner: Arc<dyn ObjectStore>, environment: Arc<dyn Environment>, faults: StoreFaults) -> Self {
        let state = State::new(faults);
        Self { inner, environment, state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the chances from now on; the dice are not set back.
    pub fn set(&self, faults: StoreFaults) {
        self.state().faults = faults;
    }

    /// Lets the `n`-th write from now fail; 1 is the next one. Other plans stay.
    pub fn fail_write(&self, n: u64, fault: WriteFault) {
        self.state().planned.push((n.max(1), fault));
    }

    /// Lets the first attempt on each key fail from now on, or no more. Remembers every key that is written.
    pub fn fail_first_writes(&self, fault: Option<WriteFault>) {
        let mut state = self.state();
        state.first_writes = fault;
        state.written.clear();
    }

    /// Refuses operations for good, until told otherwise.
    pub fn refuse(&self, refusal: Option<Refusal>) {
        self.state().refusal = refusal;
    }

    /// Writes over what exists even when asked to create, as some stores silently do.
    pub fn ignore_create(&self, ignore: bool) {
        self.state().ignores_create = ignore;
    }

    /// Answers that an object does not exist, though listings have it; or no more.
    pub fn hide(&self, key: Option<&str>) {
        self.state().hidden = key.map(Path::from);
    }

    /// Gives an object to nobody, as if it did not exist, though listings and its head have it; or no more.
    pub fn keep_back(&self, key: Option<&str>) {
        self.state().kept_back = key.map(Path::from);
    }

    /// Every operation fails from now on. One that is on its way loses its answer.
    pub fn crash(&self) {
        self.state().crashed = true;
    }

    /// Gives nothing of an object but errors, as a disk does that cannot read a file any more; with a range, nothing of
    /// that part, nor of the whole at once.
    pub fn withhold(&self, key: &str, part: Option<Range<u64>>) {
        self.state().withheld.insert(Path::from(key), part);
    }

    /// Refuses writes below a folder; or no more.
    pub fn lock(&self, folder: Option<&str>) {
        self.state().locked = folder.map(Path::from);
    }

    /// Turns a bit in the `n`-th body of an object that is given from now on; 1 is the next one.
    pub fn turn_bit(&self, key: &str, n: u64) {
        self.state().turning = Some((Path::from(key), n.max(1)));
    }

    /// Whether the bit is still to be turned.
    pub fn is_turning(&self) -> bool {
        self.state().turning.is_some()
    }

    /// Gives everything again.
    pub fn withhold_nothing(&self) {
        self.state().withheld.clear();
    }

    /// Ends a crash.
    pub fn recover(&self) {
        self.state().crashed = false;
    }

    /// No faults from now on: no chances, plans, refusals or crash; late writes still land. Whether the store
    /// ignores conditions stays as it is, since that is its nature.
    pub fn quiet(&self) {
        let mut state = self.state();
        state.faults = StoreFaults::default();
        state.planned.clear();
        state.first_writes = None;
        state.turning = None;
        state.refusal = None;
        state.crashed = false;
    }

    /// What was injected so far.
    pub fn injected(&self) -> Injected {
        self.state().injected
    }

    /// What happens to every operation at its start: late writes land, then it is slow, refused, or let through.
    async fn arrive(&self, location: &Path, writes: bool, deletes: bool) -> Result<()> {
        let (due, pause) = {
            let mut state = self.state();
            let due = state.due();
            let chance = state.faults.slow;
            let pause = state.falls(chance).then(|| {
                let max = u64::try_from(state.faults.slow_max.as_micros()).unwrap_or(u64::MAX);
                state.injected.slow += 1;
                Duration::from_micros(state.random.random_range(0..=max))
            });
            (due, pause)
        };
        for write in due {
            // Whoever sent it has gone: its result is nobody's.
            drop(self.inner.put_opts(&write.location, write.payload, write.options).await);
        }
        if let Some(pause) = pause {
            self.environment.sleep(pause).await;
        }
        self.up()?;
        let mut state = self.state();
        let is_locked = writes && state.locked.as_ref().is_some_and(|folder| location.prefix_matches(folder));
        let refusal = match state.refusal {
            _ if is_locked => denied(location),
            Some(Refusal::Everything) => denied(location),
            Some(Refusal::Writes) if writes || deletes => denied(location),
            Some(Refusal::Deletions) if deletes => denied(location),
            Some(Refusal::Full) if writes => generic(io::ErrorKind::StorageFull, "no space is left"),
            _ => return Ok(()),
        };
        state.injected.refused += 1;
        Err(refusal)
    }

    /// Fails while the store is down.
    fn up(&self) -> Result<()> {
        let mut state = self.state();
        if !state.crashed {
            return Ok(());
        }
        state.injected.crashed += 1;
        Err(generic(io::ErrorKind::ConnectionRefused, "injected: the store is down"))
    }

    /// Whether an operation fails without an effect.
    fn before(&self) -> Result<()> {
        let mut state = self.state();
        let chance = state.faults.fails_before;
        if !state.falls(chance) {
            return Ok(());
        }
        state.injected.failed_before += 1;
        Err(lost())
    }

    /// Whether an operation that is done loses its answer.
    fn after(&self) -> Result<()> {
        self.up()?;
        let mut state = self.state();
        let chance = state.faults.fails_after;
        if !state.falls(chance) {
            return Ok(());
        }
        state.injected.failed_after += 1;
        Err(lost())
    }

    /// Whether what is asked for is withheld.
    fn is_given(&self, location: &Path, options: &GetOptions) -> Result<()> {
        let is_given = match (self.state().withheld.get(location), &options.range) {
            (None, _) => true,
            (Some(None), _) => false,
            (Some(Some(_)), _) if options.head => true,
            (Some(Some(bad)), Some(GetRange::Bounded(range))) => {
                range.end <= bad.start || bad.end <= range.start
            }
            (Some(Some(_)), Some(GetRange::Suffix(_))) => true,
            (Some(Some(_)), _) => false,
        };
        match is_given {
            true => Ok(()),
            false => Err(generic(io::ErrorKind::Other, "injected: it cannot be read")),
        }
    }

    async fn delete_one(&self, location: &Path) -> Result<()> {
        self.arrive(location, false, true).await?;
        self.before()?;
        let deleted = self.inner.delete(location).await;
        self.after()?;
        deleted
    }

    /// Cuts the body or turns a bit in it.
    async fn spoil(&self, got: GetResult) -> Result<GetResult> {
        let (cut, flip) = {
            let mut state = self.state();
            let (cut, flip) = (state.faults.cut_body, state.faults.flipped_bit);
            let turns = state.turns(&got.meta.location);
            (state.falls(cut), state.falls(flip) || turns)
        };
        let len = got.range.end.saturating_sub(got.range.start);
        if !(cut || flip) || len == 0 {
            return Ok(got);
        }
        let (meta, range) = (got.meta.clone(), got.range.clone());
        let (attributes, extensions) = (got.attributes.clone(), got.extensions.clone());
        let mut body = Vec::from(got.bytes().await?);
        let mut error = None;
        let mut state = self.state();
        if flip && !body.is_empty() {
            let bit = state.random.random_range(0..body.len() * 8);
            body[bit / 8] ^= 1 << (bit % 8);
            state.injected.flipped_bits += 1;
        }
        if cut && !body.is_empty() {
            let keep = state.random.random_range(0..body.len());
            body.truncate(keep);
            error = state.random.random_bool(0.5).then(lost);
            state.injected.cut_bodies += 1;
        }
        let parts = std::iter::once(Ok(Bytes::from(body))).chain(error.map(Err));
        let payload = GetResultPayload::Stream(stream::iter(parts.collect::<Vec<_>>()).boxed());
        Ok(GetResult { payload, meta, range, attributes, extensions })
    }
}

fn generic(kind: io::ErrorKind, why: &'static str) -> Error {
    Error::Generic { store: "FaultyStore", source: Box::new(io::Error::new(kind, why)) }
}

fn lost() -> Error {
    generic(io::ErrorKind::ConnectionReset, "injected: the connection broke")
}

fn denied(location: &Path) -> Error {
    Error::PermissionDenied { path: location.to_string(), source: "injected: access denied".into() }
}

impl fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyStore").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultyStore({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        mut opts: PutOptions,
    ) -> Result<PutResult> {
        self.arrive(location, true, false).await?;
        let fault = {
            let mut state = self.state();
            if state.ignores_create && opts.mode == PutMode::Create {
                opts.mode = PutMode::Overwrite;
            }
            let fault = state.write_fault(location, opts.mode == PutMode::Create);
            if fault == Some(WriteFault::Late) {
                let operations = state.random.random_range(0..LATE_OPERATIONS);
                let (location, payload, options) = (location.clone(), payload.clone(), opts.clone());
                state.late.push(LateWrite { operations, location, payload, options });
            }
            fault
        };
        match fault {
            Some(WriteFault::Before | WriteFault::Late) => return Err(lost()),
            Some(WriteFault::Exists) => {
                let source = "injected: a conflict with nothing".into();
                return Err(Error::AlreadyExists { path: location.to_string(), source });
            }
            Some(WriteFault::Swallowed) => {
                return Ok(PutResult { e_tag: None, version: None, extensions: Default::default() });
            }
            Some(WriteFault::After) | None => {}
        }
        let written = self.inner.put_opts(location, payload, opts).await;
        self.up()?;
        match fault {
            Some(_) => Err(lost()),
            None => written,
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.arrive(location, true, false).await?;
        self.before()?;
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.arrive(location, false, false).await?;
        self.is_given(location, &options)?;
        self.before()?;
        let head = options.head;
        let is_absent = {
            let state = self.state();
            let is = |absent: &Option<Path>| absent.as_ref() == Some(location);
            is(&state.hidden) || !head && is(&state.kept_back)
        };
        if is_absent {
            return Err(Error::NotFound { path: location.to_string(), source: "injected: not there".into() });
        }
        let got = self.inner.get_opts(location, options).await?;
        self.up()?;
        if head { Ok(got) } else { self.spoil(got).await }
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        let delete = move |location| {
            let this = this.clone();
            async move { this.delete_one(&location).await.map(|()| location) }
        };
        locations.and_then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, prefix) = (self.clone(), prefix.cloned());
        let listing = async move {
            this.arrive(prefix.as_ref().unwrap_or(&Path::ROOT), false, false).await?;
            let broken = this.before();
            let listed = this.inner.list(prefix.as_ref());
            let Err(error) = broken else { return Ok::<_, Error>(listed) };
            let shown = this.state().random.random_range(0..3);
            Ok(listed.take(shown).chain(stream::iter([Err(error)])).boxed())
        };
        stream::once(listing).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.arrive(prefix.unwrap_or(&Path::ROOT), false, false).await?;
        self.before()?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.arrive(to, true, false).await?;
        self.before()?;
        let copied = self.inner.copy_opts(from, to, options).await;
        self.after()?;
        copied
    }
}
