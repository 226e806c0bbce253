//! Regular files and block devices, by path.
//!
//! The reading of a file is its identity and state (path, inode, size, times), so that another process may go on
//! with an unchanged file; the reading of a device also holds a nonce, since nothing about a device says that it
//! was written to, and therefore ends with the process that opened it.
//!
//! Never writes, locks or creates anything. A file that changes is noticed by [`Volume::check_unchanged`], not
//! prevented; a device that others write to is not noticed at all, which is what LVM snapshots are for.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::buffer::Buffer;
use agent::{Changes, Environment, Opening, Volume, VolumeError, VolumeInfo, Volumes};
use async_trait::async_trait;
use schema::{ReadingId, SessionId};

use crate::source::{Identity, Kind, Source};

#[cfg(test)]
mod tests;

/// Two writes closer than this may carry the same time: the coarsest clock of a file system's times ticks every
/// 10 ms.
const CLOCK_GRAIN: Duration = Duration::from_millis(50);
/// Waits for a file's times to be of the past; after them it is one that is written all the time, which shows.
const SETTLE_TRIES: u32 = 20;
/// Identities remembered, so that a lost reading can be explained.
const REMEMBERED: usize = 64;

/// Files and devices of this host.
#[derive(Debug)]
pub struct Files {
    environment: Arc<dyn Environment>,
    opened: Mutex<VecDeque<(ReadingId, Identity)>>,
}

impl Files {
    /// Opens with this clock and these nonces.
    pub fn new(environment: Arc<dyn Environment>) -> Self {
        Self { environment, opened: Mutex::default() }
    }

    async fn open_source(
        &self,
        source: Source,
        reading: Option<ReadingId>,
    ) -> Result<Arc<dyn Volume>, VolumeError> {
        let source = Arc::new(source);
        let identity = self.settled(&source).await?;
        let now = match source.kind() {
            Kind::File => identity.reading(&[]),
            Kind::Device => identity.reading(&self.environment.random::<16>()),
        };
        if let Some(wanted) = reading.filter(|wanted| *wanted != now) {
            let why = self.explain(&source, wanted, &identity);
            return Err(VolumeError::ReadingLost { source_name: source.name().to_owned(), why });
        }
        self.remember(now, &identity);
        let kind = match source.kind() {
            Kind::File => "file",
            Kind::Device => "device",
        };
        let layout = vec![
            ("kind".to_owned(), kind.to_owned()),
            ("path".to_owned(), source.path().to_string_lossy().into_owned()),
            ("size".to_owned(), identity.size.to_string()),
        ];
        let info = VolumeInfo { name: source.name().to_owned(), reading: now, size: identity.size, layout };
        Ok(Arc::new(Opened { source, identity, info }))
    }

    /// The identity, once a file's times are old enough that any later write must change them.
    async fn settled(&self, source: &Arc<Source>) -> Result<Identity, VolumeError> {
        let mut tries = 0;
        loop {
            let asked = source.clone();
            let identity = blocking(source, move || asked.identity()).await?;
            let now = i128::from(self.environment.now_ms()) * 1_000_000;
            let grain = CLOCK_GRAIN.as_nanos() as i128;
            let fresh = |time: i128| (now - time).abs() <= grain;
            if source.kind() == Kind::Device || !(fresh(identity.modified) || fresh(identity.changed)) {
                return Ok(identity);
            }
            if tries == SETTLE_TRIES {
                tracing::warn!(
                    source = source.name(),
                    "the file is being written to while its backup begins"
                );
                return Ok(identity);
            }
            tries += 1;
            self.environment.sleep(CLOCK_GRAIN + Duration::from_millis(1)).await;
        }
    }

    fn remember(&self, reading: ReadingId, identity: &Identity) {
        let Ok(mut opened) = self.opened.lock() else { return };
        opened.retain(|(known, _)| *known != reading);
        opened.push_front((reading, identity.clone()));
        opened.truncate(REMEMBERED);
    }

    /// Why the reading is gone. What a reading was is known only to the process that opened it.
    fn explain(&self, source: &Source, wanted: ReadingId, now: &Identity) -> String {
        let earlier = self.opened.lock().ok().and_then(|opened| {
            opened.iter().find(|(reading, _)| *reading == wanted).map(|(_, identity)| identity.clone())
        });
        match (source.kind(), earlier) {
            (Kind::Device, _) => "the reading of a plain device ends when its agent closes it or restarts; \
                                  start the backup again"
                .to_owned(),
            (Kind::File, Some(earlier)) => {
                now.differs_from(&earlier).unwrap_or_else(|| "its path differs".to_owned())
            }
            (Kind::File, None) => format!(
                "its path, inode, size or times differ; it now has {} bytes; start the backup again",
                now.size
            ),
        }
    }
}

#[async_trait]
impl Volumes for Files {
    async fn open(&self, opening: &Opening<'_>) -> Result<Arc<dyn Volume>, VolumeError> {
        let name = opening.source.to_owned();
        let opened = tokio::task::spawn_blocking(move || Source::open(&name)).await;
        self.open_source(opened.map_err(|why| unfinished(opening.source, why))??, opening.reading).await
    }

    /// Nothing is kept for a session.
    async fn close(&self, _session: SessionId, _committed: bool) {}
}

/// An opened file or device.
#[derive(Debug)]
struct Opened {
    source: Arc<Source>,
    identity: Identity,
    info: VolumeInfo,
}

#[async_trait]
impl Volume for Opened {
    fn info(&self) -> &VolumeInfo {
        &self.info
    }

    fn changes(&self) -> &Changes {
        &Changes::UNTRACKED
    }

    async fn allocated(&self, range: Range<u64>) -> Result<Vec<Range<u64>>, VolumeError> {
        let range = range.start.min(self.info.size)..range.end.min(self.info.size);
        let (source, size) = (self.source.clone(), self.info.size);
        blocking(&self.source, move || source.allocated(range, size)).await
    }

    async fn read(
        &self,
        offset: u64,
        mut buffer: Buffer,
        at: usize,
        len: usize,
    ) -> Result<Buffer, VolumeError> {
        let source = self.source.clone();
        let fill = move || {
            let room = buffer.bytes_mut().len();
            match at.checked_add(len).and_then(|end| buffer.bytes_mut().get_mut(at..end)) {
                Some(bytes) => source.fill(offset, bytes).map(|()| buffer),
                None => Err(VolumeError::CannotRead {
                    source_name: source.name().to_owned(),
                    offset,
                    why: format!("{len} bytes at {at} do not fit into a buffer of {room}"),
                }),
            }
        };
        blocking(&self.source, fill).await
    }

    async fn check_unchanged(&self) -> Result<(), VolumeError> {
        let (source, opened) = (self.source.clone(), self.identity.clone());
        let check = move || {
            let there = match source.identity_at_path() {
                Ok(there) => there.differs_from(&opened),
                Err(why) => Some(why),
            };
            match there {
                Some(why) => Ok(Some(why)),
                None => Ok(source.identity()?.differs_from(&opened)),
            }
        };
        match blocking(&self.source, check).await? {
            Some(why) => Err(VolumeError::ReadingLost { source_name: self.info.name.clone(), why }),
            None => Ok(()),
        }
    }
}

/// Runs what blocks off the event loop.
async fn blocking<T: Send + 'static>(
    source: &Source,
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    tokio::task::spawn_blocking(work).await.map_err(|why| unfinished(source.name(), why))?
}

fn unfinished(source: &str, why: tokio::task::JoinError) -> VolumeError {
    VolumeError::CannotOpen { source_name: source.to_owned(), why: format!("the step did not finish: {why}") }
}
