//! What the bucket holds at every moment, kept from each write and deletion as it happens, and what may never happen.
//!
//! A pack is opened when it lands, a snapshot is compared with the plaintext of its reading when it is committed, and
//! from then on no deletion may take the last copy of a chunk that it needs: until a verdict decides an epoch that
//! sweeps it. What breaks an invariant is noted at that moment. It knows what is stored and nothing of how roles work.

mod book;
mod contents;
mod frames;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use agent::Repository;
use bytes::Bytes;
use schema::keys::Identity;
use schema::names::{self, Slot};
use schema::root::Root;
use schema::session::SessionKind;
use schema::{ChunkId, JobId, PackId, SessionId};

use super::counts::Counts;
use super::leaks::Leaks;
use super::sources::Sources;
use super::trace::Trace;

use book::Book;

/// The ledger of one bucket.
#[derive(Debug)]
pub struct Ledger {
    trace: Arc<Trace>,
    book: Mutex<Option<Book>>,
    leaks: OnceLock<Arc<Leaks>>,
}

impl Ledger {
    /// A ledger that has not begun.
    pub fn new(trace: Arc<Trace>) -> Self {
        Self { trace, book: Mutex::default(), leaks: OnceLock::new() }
    }

    /// Begins with an empty repository; `sources` say what was read.
    pub fn begin(
        &self,
        repository: &Repository,
        identity: Option<Arc<Identity>>,
        sources: Vec<Arc<Sources>>,
        leaks: Arc<Leaks>,
    ) {
        self.leaks.get_or_init(|| leaks);
        *self.locked() = Some(Book::new(repository, identity, sources));
    }

    fn locked(&self) -> MutexGuard<'_, Option<Book>> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, judged: Result<(), String>) {
        if let Err(wrong) = judged {
            self.trace.wrong(wrong);
        }
    }

    /// An object was written.
    pub fn written(&self, key: &str, bytes: &Bytes) {
        if let Some(leaks) = self.leaks.get() {
            leaks.written(key, bytes);
        }
        if let Some(book) = &mut *self.locked() {
            self.tell(book.written(key, bytes, self.trace.now_ms()));
        }
    }

    /// An object is deleted.
    pub fn deleted(&self, key: &str) {
        if let Some(book) = &mut *self.locked() {
            self.tell(book.deleted(key));
        }
    }

    fn ask<T: Default>(&self, question: impl FnOnce(&Book) -> T) -> T {
        self.locked().as_ref().map(question).unwrap_or_default()
    }

    /// Whether a verdict has decided that this snapshot's root goes.
    pub fn is_swept(&self, slot: Slot) -> bool {
        self.ask(|book| book.is_swept(slot))
    }

    /// Whether what is written to a slot is a tombstone.
    pub fn is_tombstone(&self, key: &str, bytes: &Bytes) -> bool {
        self.ask(|book| book.is_tombstone(key, bytes))
    }

    /// Whether an epoch sweeps this snapshot, decided or not.
    pub fn is_proposed(&self, slot: Slot) -> bool {
        self.ask(|book| book.is_proposed(slot))
    }

    /// Every root that was ever committed.
    pub fn commits(&self) -> Vec<Root> {
        self.ask(Book::commits)
    }

    /// Whether a snapshot was forgotten.
    pub fn is_forgotten(&self, slot: Slot) -> bool {
        self.ask(|book| book.is_forgotten(slot))
    }

    /// What kind of session it was.
    pub fn kind(&self, session: SessionId) -> Option<SessionKind> {
        self.ask(|book| book.kind(session))
    }

    /// Whether the object of a session was ever deleted.
    pub fn has_ended(&self, session: SessionId) -> bool {
        self.ask(|book| book.has_ended(session))
    }

    /// Whether a session of this job lost its slot when it was as old as this: somebody may have declared it dead.
    pub fn was_old(&self, job: JobId, age: Duration) -> bool {
        self.ask(|book| book.was_old(job, age))
    }

    /// Whether a listed pack holds this chunk.
    pub fn has_copy(&self, chunk: &ChunkId) -> bool {
        self.ask(|book| book.has_copy(chunk))
    }

    /// A chunk of a snapshot that no listed pack holds.
    pub fn lost(&self, root: &Root) -> Option<ChunkId> {
        self.ask(|book| book.lost(root))
    }

    /// Opens a frame that was read; an error when it does not hold this chunk.
    pub fn check_frame(&self, chunk: &ChunkId, frame: &[u8]) -> Result<(), String> {
        match &mut *self.locked() {
            Some(book) => book.check_frame(chunk, frame),
            None => Ok(()),
        }
    }

    /// Listed packs of which no snapshot needs anything.
    pub fn garbage(&self) -> Vec<PackId> {
        self.ask(Book::garbage)
    }

    /// Listed packs of which a snapshot needs something.
    pub fn needed(&self) -> Vec<PackId> {
        self.ask(Book::needed)
    }

    /// What was counted.
    pub fn counts(&self) -> Counts {
        self.ask(|book| book.counts.clone())
    }
}

/// What a key stands for.
enum Kind {
    Pack(PackId),
    Root(Slot),
    Forgotten(Slot),
    Session(SessionId),
    Epoch(u64),
    Verdict(u64),
    /// It stays as it was written first: the config, a data key, the sessions that an epoch waits for.
    Fixed,
    Other,
}

impl Kind {
    fn of(key: &str) -> Self {
        let folder = key.split('/').next().unwrap_or_default();
        let found = match folder {
            names::PACKS => names::parse_pack(key).map(Self::Pack),
            names::SNAPSHOTS => Slot::parse_key(key).map(Self::Root),
            names::FORGOTTEN => Slot::parse_key(key).map(Self::Forgotten),
            names::SESSIONS => names::parse_session(key).map(Self::Session),
            names::EPOCHS => names::parse_epoch(key).map(|(number, is_verdict)| match is_verdict {
                true => Self::Verdict(number),
                false => Self::Epoch(number),
            }),
            names::CONFIG | names::KEYS => Ok(Self::Fixed),
            _ => Ok(Self::Other),
        };
        match folder {
            names::EPOCHS => found.unwrap_or(Self::Fixed),
            _ => found.unwrap_or(Self::Other),
        }
    }
}

/// How often each chunk is there, or needed.
#[derive(Debug, Default)]
struct Tally(BTreeMap<ChunkId, u32>);

impl Tally {
    fn add(&mut self, chunk: ChunkId) {
        *self.0.entry(chunk).or_insert(0) += 1;
    }

    /// One less; whether it was the last one.
    fn remove(&mut self, chunk: &ChunkId) -> bool {
        let Some(left) = self.0.get_mut(chunk) else { return false };
        *left -= 1;
        let was_last = *left == 0;
        if was_last {
            self.0.remove(chunk);
        }
        was_last
    }

    fn has(&self, chunk: &ChunkId) -> bool {
        self.0.contains_key(chunk)
    }
}
