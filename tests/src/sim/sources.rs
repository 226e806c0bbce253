//! The volumes of a host, in memory, and everything that they ever held: what the oracle compares with.
//!
//! A source is frozen while it is read, as an LVM snapshot is, or live, as a file is. A live one may change after a
//! number of reads; whoever opened it before can find out. Opened again unchanged, a source is the same reading.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use std::time::Duration;

use agent::buffer::Buffer;
use agent::{Environment, Volume, VolumeError, VolumeInfo, Volumes};
use async_trait::async_trait;
use schema::ReadingId;

use super::content::{BLOCK, Content};

/// A source and its history.
#[derive(Debug)]
pub struct Source {
    name: String,
    live: bool,
    /// Says that more may hold data than does, so that zeroes are read too.
    vague: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    versions: Vec<Arc<Content>>,
    reads: u64,
    /// After so many reads the content becomes the next one.
    changes: BTreeMap<u64, Content>,
}

impl Source {
    /// A source with its first content.
    pub fn new(name: &str, live: bool, vague: bool, content: Content) -> Arc<Self> {
        let state = State { versions: vec![Arc::new(content)], reads: 0, changes: BTreeMap::new() };
        Arc::new(Self { name: name.to_owned(), live, vague, state: Mutex::new(state) })
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

    /// What the source held when this reading began, and all that it held since.
    pub fn held(&self, reading: ReadingId) -> Option<Vec<Arc<Content>>> {
        let versions = &self.state().versions;
        let began = (0..versions.len()).find(|version| self.reading(*version) == reading)?;
        Some(versions[began..].to_vec())
    }
}

/// The sources of one host. A read takes up to 15 ms.
#[derive(Debug)]
pub struct Sources {
    environment: Arc<dyn Environment>,
    by_name: BTreeMap<String, Arc<Source>>,
}

impl Sources {
    /// These sources.
    pub fn new(
        environment: Arc<dyn Environment>,
        sources: impl IntoIterator<Item = Arc<Source>>,
    ) -> Arc<Self> {
        let by_name = sources.into_iter().map(|source| (source.name.clone(), source)).collect();
        Arc::new(Self { environment, by_name })
    }
}

impl Sources {
    /// A source by its name.
    pub fn source(&self, name: &str) -> Option<&Arc<Source>> {
        self.by_name.get(name)
    }
}

#[async_trait]
impl Volumes for Sources {
    async fn open(&self, source: &str, reading: Option<ReadingId>) -> Result<Arc<dyn Volume>, VolumeError> {
        let source_name = source.to_owned();
        let Some(source) = self.by_name.get(source) else {
            return Err(VolumeError::CannotOpen { source_name, why: "there is no such source".into() });
        };
        let newest = source.state().versions.len() - 1;
        let version = match reading {
            None => Some(newest),
            // A snapshot outlives its reader; the state of a file does not outlive the next write.
            Some(wanted) => (0..=newest)
                .find(|version| source.reading(*version) == wanted)
                .filter(|version| !source.live || *version == newest),
        };
        let Some(version) = version else {
            return Err(VolumeError::ReadingLost { source_name, why: "it was written to".into() });
        };
        let content = source.state().versions[version].clone();
        let reading = source.reading(version);
        let layout = vec![("kind".to_owned(), "memory".to_owned())];
        let info = VolumeInfo { name: source_name, reading, size: content.size(), layout };
        Ok(Arc::new(Opened {
            environment: self.environment.clone(),
            source: source.clone(),
            info,
            version,
            content,
        }))
    }
}

#[derive(Debug)]
struct Opened {
    environment: Arc<dyn Environment>,
    source: Arc<Source>,
    info: VolumeInfo,
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
        let mut state = self.source.state();
        state.reads += 1;
        let reads = state.reads;
        if let Some(next) = state.changes.remove(&reads) {
            state.versions.push(Arc::new(next));
        }
        Ok(buffer)
    }

    async fn check_unchanged(&self) -> Result<(), VolumeError> {
        match self.source.live && self.source.state().versions.len() - 1 != self.version {
            false => Ok(()),
            true => Err(VolumeError::ReadingLost {
                source_name: self.info.name.clone(),
                why: "it was written to".into(),
            }),
        }
    }
}
