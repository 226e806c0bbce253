//! The volumes of a host, in memory, and everything that they ever held: what the oracle compares with.
//!
//! A source is frozen while it is read, as an LVM snapshot is, or live, as a file is. A live one may change after a
//! number of reads; whoever opened it before can find out. Opened again unchanged, a source is the same reading. Some of
//! what it held cannot be read at one place.
//!
//! A frozen one may know what changed since the state that an earlier session read, as long as that one's baseline is
//! there: it outlives readers, goes with a session that was not committed, and with the next one that was.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use std::time::Duration;

use agent::buffer::Buffer;
use agent::{Changes, Environment, Opening, Volume, VolumeError, VolumeInfo, Volumes};
use async_trait::async_trait;
use schema::{ReadingId, SessionId};

use super::content::{BLOCK, Content};
use super::leaks::Leaks;

/// A source and its history.
#[derive(Debug)]
pub struct Source {
    name: String,
    live: bool,
    /// Says that more may hold data than does, so that zeroes are read too.
    vague: bool,
    tracking: Tracking,
    /// One of how many of its states has a place that cannot be read; 0: none.
    bad: u64,
    state: Mutex<State>,
}

/// What a source knows of its changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tracking {
    /// Nothing.
    None,
    /// All of them, in units of so many bytes.
    True(u64),
    /// The same; now and then a baseline is lost.
    Lossy(u64),
    /// It leaves out every other range.
    Lies,
}

/// What a session left behind.
#[derive(Debug, Clone, Copy)]
struct Baseline {
    version: usize,
    committed: bool,
}

#[derive(Debug)]
struct State {
    versions: Vec<Arc<Content>>,
    reads: u64,
    /// After so many reads the content becomes the next one.
    changes: BTreeMap<u64, Content>,
    baselines: BTreeMap<SessionId, Baseline>,
    /// Sessions that met a place that cannot be read, and where.
    broken: BTreeMap<SessionId, u64>,
}

impl Source {
    /// A source with its first content.
    pub fn new(
        name: &str,
        live: bool,
        vague: bool,
        tracking: Tracking,
        bad: u64,
        content: Content,
    ) -> Arc<Self> {
        let state = State {
            versions: vec![Arc::new(content)],
            reads: 0,
            changes: BTreeMap::new(),
            baselines: BTreeMap::new(),
            broken: BTreeMap::new(),
        };
        Arc::new(Self { name: name.to_owned(), live, vague, tracking, bad, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its name, which readers open it by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it holds now.
    pub fn content(&self) -> Arc<Content> {
        let state = self.state();
        state.versions[state.versions.len() - 1].clone()
    }

    /// The number of what it holds now.
    pub fn version(&self) -> usize {
        self.state().versions.len() - 1
    }

    /// The number of what a reading read.
    pub fn version_of(&self, reading: ReadingId) -> Option<usize> {
        (0..=self.version()).find(|version| self.reading(*version) == reading)
    }

    /// Becomes another content now.
    pub fn change(&self, content: Content) {
        self.state().versions.push(Arc::new(content));
    }

    /// Becomes another content after `reads` more reads.
    pub fn change_after(&self, reads: u64, content: Content) {
        let mut state = self.state();
        let at = state.reads + reads;
        state.changes.insert(at, content);
    }

    fn reading(&self, version: usize) -> ReadingId {
        let mut id = [0; 16];
        let hash = blake3::hash(format!("{} {version}", self.name).as_bytes());
        id.copy_from_slice(&hash.as_bytes()[..16]);
        ReadingId::from_bytes(id)
    }

    /// What may have changed between the state that `parent` read and `version`.
    fn changes(&self, parent: Option<SessionId>, version: usize, lost: bool) -> Changes {
        let (Some(parent), false) = (parent, self.live) else { return Changes::UNTRACKED };
        let state = self.state();
        let unit = match self.tracking {
            Tracking::None => return Changes::UNTRACKED,
            Tracking::Lossy(_) if lost => return Changes::unknown("the baseline overflowed"),
            Tracking::True(unit) | Tracking::Lossy(unit) => unit,
            Tracking::Lies => BLOCK,
        };
        let Some(baseline) = state.baselines.get(&parent) else {
            return Changes::unknown(format!("there is no baseline of {parent}"));
        };
        let (old, new) = (&state.versions[baseline.version], &state.versions[version]);
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for (number, range) in (0..).zip(old.difference(new)) {
            if self.tracking == Tracking::Lies && number % 2 == 0 {
                continue;
            }
            let (start, end) = (range.start / unit * unit, range.end.next_multiple_of(unit).min(new.size()));
            match ranges.last_mut() {
                Some(last) if last.end >= start => last.end = last.end.max(end),
                _ => ranges.push(start..end),
            }
        }
        Changes::Since { parent, ranges }
    }

    /// Where a state cannot be read.
    fn bad_place(&self, version: usize, content: &Content) -> Option<u64> {
        let drawn = blake3::hash(format!("{} {version} is bad", self.name).as_bytes());
        let [.., low, high] = *drawn.as_bytes();
        let is_bad = self.bad > 0 && u64::from(u16::from_le_bytes([low, high])).is_multiple_of(self.bad);
        let parts = if is_bad { content.allocated(0..content.size()) } else { Vec::new() };
        parts.get(usize::from(drawn.as_bytes()[0]) % parts.len().max(1)).map(|part| part.start)
    }

    /// Where a session met a place that cannot be read.
    pub fn broken(&self, session: SessionId) -> Option<u64> {
        self.state().broken.get(&session).copied()
    }

    /// The places that sessions could not read.
    pub fn all_broken(&self) -> Vec<u64> {
        self.state().broken.values().copied().collect()
    }

    /// The session is over.
    fn close(&self, session: SessionId, committed: bool) {
        let mut state = self.state();
        match state.baselines.get_mut(&session) {
            None => {}
            Some(_) if !committed => {
                state.baselines.remove(&session);
            }
            Some(baseline) => {
                baseline.committed = true;
                state.baselines.retain(|other, baseline| *other == session || !baseline.committed);
            }
        }
    }

    /// What the source held when this reading began, and all that it held since.
    pub fn held(&self, reading: ReadingId) -> Option<Vec<Arc<Content>>> {
        let began = self.version_of(reading)?;
        Some(self.state().versions[began..].to_vec())
    }
}

/// The sources of one host. A read takes up to 15 ms.
#[derive(Debug)]
pub struct Sources {
    environment: Arc<dyn Environment>,
    by_name: BTreeMap<String, Arc<Source>>,
    /// Whoever opens one is given what it was before it was last written to.
    stale: bool,
    /// What cannot be read reads as zero.
    skips: bool,
    /// Where what is read must not be met again.
    leaks: Arc<Leaks>,
}

impl Sources {
    /// These sources.
    pub fn new(
        environment: Arc<dyn Environment>,
        sources: impl IntoIterator<Item = Arc<Source>>,
        stale: bool,
        skips: bool,
        leaks: Arc<Leaks>,
    ) -> Arc<Self> {
        let by_name = sources.into_iter().map(|source| (source.name.clone(), source)).collect();
        Arc::new(Self { environment, by_name, stale, skips, leaks })
    }
}

impl Sources {
    /// A source by its name.
    pub fn source(&self, name: &str) -> Option<&Arc<Source>> {
        self.by_name.get(name)
    }

    /// The places that sessions could not read, of all of them.
    pub fn all_broken(&self) -> Vec<u64> {
        self.by_name.values().flat_map(|source| source.all_broken()).collect()
    }
}

#[async_trait]
impl Volumes for Sources {
    async fn open(&self, opening: &Opening<'_>) -> Result<Arc<dyn Volume>, VolumeError> {
        let source_name = opening.source.to_owned();
        let Some(source) = self.by_name.get(opening.source) else {
            return Err(VolumeError::CannotOpen { source_name, why: "there is no such source".into() });
        };
        let newest = source.version().saturating_sub(usize::from(self.stale));
        let taken = source.state().baselines.get(&opening.session).map(|baseline| baseline.version);
        let version = match opening.reading {
            // What was taken for the session is its reading.
            None => Some(taken.unwrap_or(newest)),
            // A snapshot outlives its reader; the state of a file does not outlive the next write.
            Some(wanted) => (0..=newest)
                .find(|version| source.reading(*version) == wanted)
                .filter(|version| !source.live || *version == newest),
        };
        let Some(version) = version else {
            return Err(VolumeError::ReadingLost { source_name, why: "it was written to".into() });
        };
        let content = source.state().versions[version].clone();
        let changes = match source.tracking {
            Tracking::None => Changes::UNTRACKED,
            _ => {
                let [drawn] = self.environment.random();
                source.changes(opening.parent, version, drawn % 8 == 0)
            }
        };
        if source.tracking != Tracking::None && !source.live {
            let baseline = Baseline { version, committed: false };
            source.state().baselines.entry(opening.session).or_insert(baseline);
        }
        let reading = source.reading(version);
        let layout = vec![("kind".to_owned(), "memory".to_owned())];
        let info = VolumeInfo { name: source_name, reading, size: content.size(), layout };
        Ok(Arc::new(Opened {
            environment: self.environment.clone(),
            source: source.clone(),
            session: opening.session,
            bad: source.bad_place(version, &content),
            skips: self.skips,
            leaks: self.leaks.clone(),
            info,
            changes,
            version,
            content,
        }))
    }

    async fn close(&self, session: SessionId, committed: bool) {
        self.by_name.values().for_each(|source| source.close(session, committed));
    }
}

#[derive(Debug)]
struct Opened {
    environment: Arc<dyn Environment>,
    source: Arc<Source>,
    session: SessionId,
    /// Where it cannot be read.
    bad: Option<u64>,
    skips: bool,
    leaks: Arc<Leaks>,
    info: VolumeInfo,
    changes: Changes,
    version: usize,
    content: Arc<Content>,
}

impl Opened {
    /// What a read sees just now.
    fn seen(&self) -> Arc<Content> {
        match self.source.live {
            true => self.source.content(),
            false => self.content.clone(),
        }
    }
}

#[async_trait]
impl Volume for Opened {
    fn info(&self) -> &VolumeInfo {
        &self.info
    }

    fn changes(&self) -> &Changes {
        &self.changes
    }

    async fn allocated(&self, range: Range<u64>) -> Result<Vec<Range<u64>>, VolumeError> {
        let mut parts = self.seen().allocated(range.clone());
        if self.source.vague {
            // Half a MiB of every sixteen, whatever is there.
            let step = 16 << 20;
            let first = range.start.next_multiple_of(step);
            parts.extend(
                (first..range.end).step_by(step as usize).map(|at| at..(at + (512 << 10)).min(range.end)),
            );
            parts.sort_by_key(|part| part.start);
        }
        Ok(parts)
    }

    async fn read(
        &self,
        offset: u64,
        mut buffer: Buffer,
        at: usize,
        len: usize,
    ) -> Result<Buffer, VolumeError> {
        let end = offset + len as u64;
        let aligned = offset.is_multiple_of(BLOCK) && (end.is_multiple_of(BLOCK) || end == self.info.size);
        if !aligned || end > self.info.size {
            let why = format!("a read of {len} bytes is not aligned, or reaches over the end");
            return Err(VolumeError::CannotRead { source_name: self.info.name.clone(), offset, why });
        }
        let [wait] = self.environment.random();
        self.environment.sleep(Duration::from_millis(u64::from(wait % 16))).await;
        self.seen().read(offset, &mut buffer.bytes_mut()[at..at + len]);
        self.leaks.read(&buffer.bytes_mut()[at..at + len]);
        let mut state = self.source.state();
        if let Some(bad) = self.bad.filter(|bad| (offset..end).contains(bad)) {
            state.broken.insert(self.session, bad);
            if !self.skips {
                let (source_name, why) = (self.info.name.clone(), "Input/output error (os error 5)".into());
                return Err(VolumeError::CannotRead { source_name, offset: bad, why });
            }
            buffer.bytes_mut()[at..at + len].fill(0);
        }
        state.reads += 1;
        let reads = state.reads;
        if let Some(next) = state.changes.remove(&reads) {
            state.versions.push(Arc::new(next));
        }
        Ok(buffer)
    }

    async fn check_unchanged(&self) -> Result<(), VolumeError> {
        match self.source.live && self.source.version() != self.version {
            false => Ok(()),
            true => Err(VolumeError::ReadingLost {
                source_name: self.info.name.clone(),
                why: "it was written to".into(),
            }),
        }
    }
}
