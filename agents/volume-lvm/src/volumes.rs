//! Logical volumes as sources: each session reads an LVM snapshot of its own, and knows what changed since the last.
//!
//! `vg/lv`, and paths of devices that LVM made, come here; everything else goes to the inner [`Volumes`] without any
//! tool of LVM's being run. The bytes of a snapshot are read by the inner one too, from the snapshot's device.
//!
//! One process owns a snapshot from its making until its session is over. Everything that changes LVM is done one at a
//! time and in a task of its own, so that a session that is given up in the middle leaves a snapshot that is known and
//! goes when the session is closed. What a dead process left is found by its tags when the same volume is opened again.

mod closing;
mod facts;
mod opening;
mod planning;
mod snapshot;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent::{Environment, Opening, Volume, VolumeError, Volumes};
use async_trait::async_trait;
use schema::{JobId, RepoId, SessionId};
use tokio::sync::{Mutex as AsyncMutex, OnceCell};
use tokio::time::{Duration, Instant};

use crate::changes::Tracker;
use crate::freeze::thaw_what_was_left;
use crate::marks::Marks;
use crate::owner::Owner;
use crate::report::{Uuid, is_name};
use crate::settings::Settings;
use crate::target::spelling::{Meaning, Places};
use crate::tools::{ToolError, Tools};

pub use closing::Cleaned;

#[cfg(test)]
mod tests;

/// How long a group's snapshot waits for the session of its volume.
const UNCLAIMED: Duration = Duration::from_secs(3600);

/// The logical volumes of this host; other sources by way of an inner one.
#[derive(Debug, Clone)]
pub struct LvmVolumes {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    inner: Arc<dyn Volumes>,
    tools: Tools,
    tracker: Tracker,
    settings: Settings,
    environment: Arc<dyn Environment>,
    owner: Owner,
    places: Places,
    table: Mutex<Table>,
    /// Whoever changes LVM's volumes, or decides what to change, holds this.
    changing: AsyncMutex<()>,
    thawed: OnceCell<()>,
}

/// What this process has.
#[derive(Debug, Default)]
struct Table {
    sessions: BTreeMap<SessionId, Arc<Held>>,
    /// Groups whose moment was made here.
    groups: BTreeMap<JobId, Run>,
    watched: bool,
}

/// The run of a group.
#[derive(Debug)]
struct Run {
    /// When its snapshots were taken, or one of them was last seen being read.
    since: Instant,
    /// Volume groups that they are in.
    vgs: BTreeSet<String>,
}

/// A snapshot that a session reads.
#[derive(Debug)]
struct Held {
    vg: String,
    /// Name of the volume, for people.
    volume: String,
    /// The volume that it is a snapshot of.
    origin: Uuid,
    /// Bytes of it.
    size: u64,
    /// The snapshot itself.
    snapshot: Uuid,
    pool: Option<Uuid>,
    repository: RepoId,
    group: Option<JobId>,
    keep: bool,
    /// Why it is given up: it is about to overflow.
    given_up: Mutex<Option<String>>,
}

impl Held {
    fn give_up(&self, why: &str) -> bool {
        let mut given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        let first = given_up.is_none();
        given_up.get_or_insert_with(|| why.to_owned());
        first
    }

    fn why_given_up(&self) -> Option<String> {
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl LvmVolumes {
    /// The host's volumes by these tools; what is no logical volume is opened by `inner`.
    pub fn new(
        inner: Arc<dyn Volumes>,
        tools: Tools,
        settings: Settings,
        environment: Arc<dyn Environment>,
    ) -> Result<Self, String> {
        let tracker = Tracker::new(tools.clone(), settings.state.clone());
        let places = Places { dev: "/dev".into(), sys: "/sys".into() };
        let shared = Shared {
            inner,
            tools,
            tracker,
            settings,
            environment,
            owner: Owner::this()?,
            places,
            table: Mutex::default(),
            changing: AsyncMutex::new(()),
            thawed: OnceCell::new(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Removes group snapshots of this process that no session came for: after the last session of the process.
    pub async fn finish(&self) {
        self.shared.clone().remove_unclaimed(true).await;
    }
}

#[async_trait]
impl Volumes for LvmVolumes {
    async fn open(&self, opening: &Opening<'_>) -> Result<Arc<dyn Volume>, VolumeError> {
        let place = self.shared.place_of(opening.source).filter(|_| !opening.plain);
        let Some(place) = place else {
            return self.shared.inner.open(opening).await;
        };
        if place.or_path && !self.shared.tools.has("lvs") {
            return self.shared.inner.open(opening).await;
        }
        let wish = opening::Wish::new(opening, place);
        let shared = self.shared.clone();
        let source = opening.source.to_owned();
        // In a task of its own: see above.
        let opened = tokio::spawn(async move { shared.open(wish).await }).await;
        let opened = opened.map_err(|why| cannot_open(&source, format!("opening it ended early: {why}")))?;
        match opened? {
            Some(volume) => Ok(volume),
            None => self.shared.inner.open(opening).await,
        }
    }

    async fn close(&self, session: SessionId, committed: bool) {
        self.shared.inner.close(session, committed).await;
        let shared = self.shared.clone();
        let Some(held) = shared.table().sessions.get(&session).cloned() else { return };
        // What was begun is finished, whoever stops waiting.
        let closing = tokio::spawn(async move { shared.close(session, &held, committed).await });
        if let Err(why) = closing.await {
            tracing::warn!(%session, %why, "the session's snapshot stays for the next run to tidy up");
        }
    }

    fn open_sessions(&self) -> Vec<SessionId> {
        self.shared.table().sessions.keys().copied().collect()
    }

    async fn release(&self, session: SessionId) {
        let shared = self.shared.clone();
        let releasing = tokio::spawn(async move { shared.release(session).await });
        if let Err(why) = releasing.await {
            tracing::warn!(%session, %why, "the session's snapshot stays in use");
        }
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Every critical section leaves the table whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The logical volume that a source names, if it names one.
    fn place_of(&self, source: &str) -> Option<Place> {
        if !Path::new(source).is_absolute() {
            let (vg, lv) = source.split_once('/')?;
            let place = || Place { vg: vg.to_owned(), lv: lv.to_owned(), or_path: false };
            return (is_name(vg) && is_name(lv)).then(place);
        }
        match self.places.meaning(source, false) {
            Ok(Meaning::Volume { vg, lv, or_path }) => Some(Place { vg, lv, or_path }),
            // What is only a part of a volume is a device like any other.
            Ok(Meaning::Path) | Err(_) => None,
        }
    }

    /// Whether somebody still works with a snapshot that carries these marks.
    fn in_use(&self, marks: &Marks) -> bool {
        match &marks.owner {
            None => false,
            Some(owner) if *owner != self.owner => owner.is_alive(),
            Some(_) => {
                let table = self.table();
                let waits =
                    |run: &JobId| table.groups.get(run).is_some_and(|run| run.since.elapsed() < UNCLAIMED);
                match &marks.session {
                    Some(session) => table.sessions.contains_key(session),
                    None => marks.group.as_ref().is_some_and(waits),
                }
            }
        }
    }

    /// Once per process: thaws what others left frozen when they died.
    async fn thaw_once(&self) {
        let thaw = || async {
            thaw_what_was_left(&self.tools, &self.settings.state).await;
        };
        self.thawed.get_or_init(thaw).await;
    }
}

/// The group and name of the logical volume behind the path of a device that exists, by device-mapper's word and
/// without any tool; none for every other path.
pub fn of_device(path: &str) -> Option<(String, String)> {
    let places = Places { dev: "/dev".into(), sys: "/sys".into() };
    match places.meaning(path, false) {
        Ok(Meaning::Volume { vg, lv, or_path: false }) if Path::new(path).is_absolute() => Some((vg, lv)),
        _ => None,
    }
}

/// A logical volume, by name.
#[derive(Debug, Clone)]
struct Place {
    vg: String,
    lv: String,
    /// It may also be meant as a path, should there be no such volume.
    or_path: bool,
}

fn cannot_open(source: &str, why: impl Into<String>) -> VolumeError {
    VolumeError::CannotOpen { source_name: source.to_owned(), why: why.into() }
}

fn tool_failed(source: &str, why: &ToolError) -> VolumeError {
    cannot_open(source, why.to_string())
}
