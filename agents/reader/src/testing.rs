//! What the tests share: a clock that stands still until somebody sleeps, and volumes in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::buffer::Buffer;
use agent::{Changes, Environment, Opening, Volume, VolumeError, VolumeInfo, Volumes};
use async_trait::async_trait;
use schema::keys::{ChunkIds, WriterKey};
use schema::{ReadingId, RepoId, SessionId};

/// A clock that only sleeping moves, and numbers for randomness.
#[derive(Debug, Default)]
pub(crate) struct Still {
    now: Mutex<Duration>,
    drawn: AtomicU64,
    sleeps: AtomicU64,
    stuck: bool,
    eager: bool,
    ends: Option<Duration>,
}

impl Still {
    /// A clock at `ms` milliseconds since 1970 that not even sleeping moves.
    pub(crate) fn stuck_at_ms(ms: u64) -> Arc<Self> {
        Arc::new(Self { now: Mutex::new(Duration::from_millis(ms)), stuck: true, ..Self::default() })
    }

    /// A clock at `ms` milliseconds since 1970.
    pub(crate) fn at_ms(ms: u64) -> Arc<Self> {
        Arc::new(Self { now: Mutex::new(Duration::from_millis(ms)), ..Self::default() })
    }

    /// A clock on which even long sleeps end at once.
    pub(crate) fn eager() -> Arc<Self> {
        Arc::new(Self { eager: true, ..Self::default() })
    }

    /// A clock at `ms` milliseconds since 1970 on which long sleeps end at once if they are this long.
    pub(crate) fn ending(ms: u64, ends: Duration) -> Arc<Self> {
        let now = Mutex::new(Duration::from_millis(ms));
        Arc::new(Self { now, ends: Some(ends), ..Self::default() })
    }

    /// How often somebody slept.
    pub(crate) fn sleeps(&self) -> u64 {
        self.sleeps.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Environment for Still {
    fn now_ms(&self) -> u64 {
        self.now.lock().unwrap().as_millis() as u64
    }

    fn elapsed(&self) -> Duration {
        *self.now.lock().unwrap()
    }

    async fn sleep(&self, duration: Duration) {
        if duration > Duration::from_secs(1) && !self.eager && self.ends != Some(duration) {
            // Time limits and heartbeats: nothing in these tests takes that long.
            return std::future::pending().await;
        }
        tokio::task::yield_now().await;
        if !self.stuck {
            *self.now.lock().unwrap() += duration;
        }
        self.sleeps.fetch_add(1, Ordering::SeqCst);
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let drawn = self.drawn.fetch_add(1, Ordering::SeqCst) + 1;
            let drawn = drawn.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
            chunk.copy_from_slice(&drawn[..chunk.len()]);
        }
    }
}

/// The repository of all these tests.
pub(crate) const REPOSITORY: RepoId = RepoId::from_bytes([6; 16]);

/// Its chunk ids.
pub(crate) fn chunk_ids() -> ChunkIds {
    WriterKey::new(REPOSITORY, Vec::new(), &[3; 64]).unwrap().chunk_ids()
}

/// Opens a source for some session without a parent.
pub(crate) fn opening(source: &str, reading: Option<ReadingId>) -> Opening<'_> {
    let session = SessionId::from_parts(1, 1);
    Opening {
        source,
        volume: "h/v",
        session,
        repository: REPOSITORY,
        reading,
        parent: None,
        group: None,
        plain: false,
    }
}

/// Bytes that look random, the same for the same seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new_keyed(&[seed as u8; 32]).update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A volume in memory, in which whole zero megabytes are holes.
#[derive(Debug)]
pub(crate) struct Memory {
    bytes: Vec<u8>,
    bad: Option<u64>,
    changed: AtomicBool,
    changes: Option<Vec<Range<u64>>>,
    lie: Lie,
}

/// What is wrong with a list of changes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum Lie {
    #[default]
    None,
    /// It is relative to another snapshot.
    OtherParent,
    /// It is not in order.
    Disorder,
    /// It was lost.
    Unknown,
}

impl Memory {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, bad: None, changed: AtomicBool::new(false), changes: None, lie: Lie::None }
    }

    /// One in which the byte at `bad` cannot be read.
    pub(crate) fn with_bad(bytes: Vec<u8>, bad: u64) -> Self {
        Self { bad: Some(bad), ..Self::new(bytes) }
    }

    /// One that says what has changed since the parent.
    pub(crate) fn tracked(bytes: Vec<u8>, changes: Vec<Range<u64>>) -> Self {
        Self { changes: Some(changes), ..Self::new(bytes) }
    }

    /// The same with something wrong about its list of changes.
    pub(crate) fn lying(self, lie: Lie) -> Self {
        Self { lie, ..self }
    }

    /// One that says that it changed.
    pub(crate) fn changed(bytes: Vec<u8>) -> Self {
        Self { changed: AtomicBool::new(true), ..Self::new(bytes) }
    }
}

#[derive(Debug)]
struct Lent {
    memory: Arc<Memory>,
    info: VolumeInfo,
    changes: Changes,
    gate: Arc<Gate>,
}

/// Sources by name. Every opening is a reading of its own.
#[derive(Debug)]
pub(crate) struct Shelf {
    memories: BTreeMap<String, Arc<Memory>>,
    opened: AtomicU64,
    closed: Mutex<Vec<(SessionId, bool)>>,
    held: Mutex<BTreeSet<SessionId>>,
    released: Mutex<Vec<SessionId>>,
    /// How often sources cannot be opened yet.
    busy: Mutex<BTreeMap<String, u32>>,
    gate: Arc<Gate>,
}

/// How many reads may still begin.
#[derive(Debug)]
struct Gate(tokio::sync::Semaphore);

impl Shelf {
    pub(crate) fn new<const N: usize>(memories: [(&str, Memory); N]) -> Arc<Self> {
        Self::with_reads(memories, tokio::sync::Semaphore::MAX_PERMITS)
    }

    /// Sources that give out `reads` reads altogether; then reading hangs.
    pub(crate) fn with_reads<const N: usize>(memories: [(&str, Memory); N], reads: usize) -> Arc<Self> {
        let memories = memories.map(|(name, memory)| (name.to_owned(), Arc::new(memory))).into();
        let gate = Arc::new(Gate(tokio::sync::Semaphore::new(reads)));
        Arc::new(Self {
            memories,
            opened: AtomicU64::new(0),
            closed: Mutex::default(),
            held: Mutex::default(),
            released: Mutex::default(),
            busy: Mutex::default(),
            gate,
        })
    }

    pub(crate) fn opened(&self) -> u64 {
        self.opened.load(Ordering::SeqCst)
    }

    /// From here on a source cannot be opened yet, so many times.
    pub(crate) fn set_busy(&self, source: &str, times: u32) {
        self.busy.lock().unwrap().insert(source.to_owned(), times);
    }

    /// The sessions that it released.
    pub(crate) fn released(&self) -> Vec<SessionId> {
        self.released.lock().unwrap().clone()
    }

    /// The sessions that it was told are over, and whether each was committed.
    pub(crate) fn closed(&self) -> Vec<(SessionId, bool)> {
        self.closed.lock().unwrap().clone()
    }
}

#[async_trait]
impl Volumes for Shelf {
    async fn open(&self, opening: &Opening<'_>) -> Result<Arc<dyn Volume>, VolumeError> {
        tokio::task::yield_now().await;
        let source_name = opening.source.to_owned();
        let Some(memory) = self.memories.get(opening.source) else {
            return Err(VolumeError::CannotOpen { source_name, why: "there is no such source".into() });
        };
        if let Some(times) = self.busy.lock().unwrap().get_mut(opening.source)
            && *times > 0
        {
            *times -= 1;
            return Err(VolumeError::Busy { source_name, why: "too many are being read".into() });
        }
        self.held.lock().unwrap().insert(opening.session);
        let count = self.opened.fetch_add(1, Ordering::SeqCst);
        if opening.reading.is_some() {
            return Err(VolumeError::ReadingLost { source_name, why: "it was closed".into() });
        }
        let reading = ReadingId::from_bytes(u128::from(count).to_le_bytes());
        let layout = vec![("kind".to_owned(), "memory".to_owned())];
        let info = VolumeInfo { name: source_name, reading, size: memory.bytes.len() as u64, layout };
        let changes = match (opening.parent, &memory.changes) {
            (Some(parent), Some(ranges)) => match memory.lie {
                Lie::None => Changes::Since { parent, ranges: ranges.clone() },
                Lie::OtherParent => Changes::Since { parent: opening.session, ranges: ranges.clone() },
                Lie::Disorder => Changes::Since { parent, ranges: [&ranges[..], &ranges[..]].concat() },
                Lie::Unknown => Changes::unknown("the baseline overflowed"),
            },
            _ => Changes::UNTRACKED,
        };
        Ok(Arc::new(Lent { memory: memory.clone(), info, changes, gate: self.gate.clone() }))
    }

    async fn close(&self, session: SessionId, committed: bool) {
        self.held.lock().unwrap().remove(&session);
        self.closed.lock().unwrap().push((session, committed));
    }

    fn open_sessions(&self) -> Vec<SessionId> {
        self.held.lock().unwrap().iter().copied().collect()
    }

    async fn release(&self, session: SessionId) {
        self.held.lock().unwrap().remove(&session);
        self.released.lock().unwrap().push(session);
    }
}

#[async_trait]
impl Volume for Lent {
    fn info(&self) -> &VolumeInfo {
        &self.info
    }

    fn changes(&self) -> &Changes {
        &self.changes
    }

    async fn allocated(&self, range: Range<u64>) -> Result<Vec<Range<u64>>, VolumeError> {
        const PART: u64 = 1 << 20;
        let end = range.end.min(self.info.size);
        let parts = (range.start / PART..end.div_ceil(PART)).map(|n| n * PART..(n * PART + PART).min(end));
        Ok(parts
            .filter(|part| self.memory.bytes[part.start as usize..part.end as usize].iter().any(|b| *b != 0))
            .collect())
    }

    async fn read(
        &self,
        offset: u64,
        mut buffer: Buffer,
        at: usize,
        len: usize,
    ) -> Result<Buffer, VolumeError> {
        if let Ok(permit) = self.gate.0.acquire().await {
            permit.forget();
        }
        if let Some(bad) = self.memory.bad.filter(|bad| (offset..offset + len as u64).contains(bad)) {
            let why = "a bad sector".to_owned();
            return Err(VolumeError::CannotRead { source_name: self.info.name.clone(), offset: bad, why });
        }
        let from = offset as usize;
        buffer.bytes_mut()[at..at + len].copy_from_slice(&self.memory.bytes[from..from + len]);
        Ok(buffer)
    }

    async fn check_unchanged(&self) -> Result<(), VolumeError> {
        match self.memory.changed.load(Ordering::SeqCst) {
            true => Err(VolumeError::ReadingLost {
                source_name: self.info.name.clone(),
                why: "it was written to".into(),
            }),
            false => Ok(()),
        }
    }
}
