//! Keeps what stands on a target as a snapshot, before the first byte of it is overwritten; `undo` puts it back.
//!
//! It is a backup like any other, by whoever conducts and reads for this host, of a volume that is named after the
//! target. Meanwhile the target is held: a device is open for this restore alone, and what a file was when it was kept
//! is what it must be when it is overwritten, or nothing is.

use std::fs::{File, Metadata};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use agent::repository::AtSlot;
use agent::{Failure, Queue, Stop, Topic};
use schema::limits::VOLUME_NAME_MAX;
use schema::messages::{self, About, BackupJob, FailureKind, JobDone, JobOutcome, Message};
use schema::names::Slot;
use schema::root::Root;
use schema::state::FileState;
use schema::{JobId, ReadingId};

use crate::pipeline;
use crate::restorer::Restorer;
use crate::sink::Before;
use crate::target::{Circumstances, Target};

/// The tag of what was kept for the restore of a range, with OFFSET+LENGTH behind it.
const RANGE: &str = "lvkeep-range=";

/// The only bytes that the restore overwrote for which this was kept; none where it was all of it.
pub fn kept_range(root: &Root) -> Option<Range<u64>> {
    let (start, len) = root.tags.iter().find_map(|tag| tag.strip_prefix(RANGE))?.split_once('+')?;
    let (start, len): (u64, u64) = (start.parse().ok()?, len.parse().ok()?);
    let end = start.checked_add(len)?;
    (start < end && end <= root.size).then_some(start..end)
}

/// A target that is held.
struct Held {
    file: File,
    path: PathBuf,
    /// Its name for the reader, which stays whatever folder or link leads there.
    source: String,
}

impl Restorer {
    /// Checks a target as a restore does, and keeps what it holds by a backup of the id `undo`. Says where that is, once
    /// it is committed; none where there is nothing to be kept. `target` and its clones hold it from then on.
    ///
    /// The same id again finds what was kept first. What stands there by then is kept as well when it may be something
    /// else: what an attempt that died had overwritten, or what somebody has written since.
    /// Progress is bytes done and all of them.
    pub async fn keep(
        &self,
        root: &Root,
        target: &Target,
        undo: JobId,
        progress: impl Fn(u64, u64),
    ) -> Result<Option<Slot>, Failure> {
        // What would be refused only afterwards.
        self.keys(&self.repository)
            .check()
            .map_err(|why| why.context(format!("cannot restore {}", root.volume)))?;
        let Some(held) = self.hold(root, target, undo).await? else { return Ok(None) };
        let name = target.path().display();
        let kept = self.kept(&held, target, undo, progress).await;
        let (first, now) = kept.map_err(|failure| {
            failure.context(match target.claim().kept_first() {
                Some(first) => format!(
                    "cannot keep again what stands on {name}, of which an attempt that died may have overwritten a part \
                     after it kept it as {}",
                    first.session
                ),
                None => format!("cannot keep what stands on {name}, which was not changed"),
            })
        })?;
        if let Some(state) = held.state()? {
            if state != now.reading {
                return Err(Failure::refused(format!(
                    "{name} was changed just after it was kept as {}; nothing was overwritten: see who writes there, and \
                     start again",
                    now.slot.session
                )));
            }
            target.claim().kept_as(state);
        }
        target.claim().undone_by(undo, first);
        if now.slot != first {
            target.claim().undone_by(now.job, now.slot);
        }
        Ok(Some(first))
    }

    async fn hold(&self, root: &Root, target: &Target, undo: JobId) -> Result<Option<Held>, Failure> {
        if target.preparation().create.is_some() {
            return Err(Failure::refused(format!(
                "{} is to be made: it holds nothing to be kept",
                target.path().display()
            )));
        }
        let job = target.claim().job().unwrap_or(undo);
        let place = self.find(job, root, target.part(root)?, target).await?;
        let device = match &place {
            Some(place) => Some(place.make().await?),
            None => None,
        };
        let (host, forbidden) = (self.context.host.clone(), self.settings.forbidden.clone());
        let (to, of) = (target.clone(), root.clone());
        let open = move || {
            let circumstances = Circumstances { root: &of, host: &host, forbidden: &forbidden };
            match &device {
                Some(device) => to.open_place(device, &circumstances).map(Some),
                None => to.hold(&circumstances),
            }
        };
        let opened = self.opened(target, open).await?;
        let Some(opened) = opened.filter(|opened| opened.before == Before::Content) else { return Ok(None) };
        if let Some(place) = &place {
            place.check_alone(&opened.file).await?;
        }
        let source = self.source_of(target, place.is_some(), &opened.path)?;
        Ok(Some(Held { file: opened.file, path: opened.path, source }))
    }

    /// The path at which what is written to a target is read.
    pub(crate) fn read_at(&self, target: &Target) -> Result<PathBuf, Failure> {
        match (&self.targets, target.path().to_str()) {
            (Some(targets), Some(name)) => targets.read_at(name),
            _ => Ok(target.path().to_owned()),
        }
    }

    /// The path of what this target, or one beside it, is by this name, where an agent restores to that: whatever name of
    /// a volume it is, what the volume itself is called decides.
    pub(crate) fn path_of(&self, target: &Target, name: &str) -> Result<PathBuf, Failure> {
        let path = self.read_at(&Target::new(name, false))?;
        let place = match &self.targets {
            Some(targets) => targets.name_of(name)?,
            None => None,
        };
        target.check_named(name, place.as_deref(), &path).map(|()| path)
    }

    /// Where what stood there first is kept, and the snapshot of what stands there now.
    async fn kept(
        &self,
        held: &Held,
        target: &Target,
        undo: JobId,
        progress: impl Fn(u64, u64),
    ) -> Result<(Slot, Root), Failure> {
        let (host, volume) = (self.context.host.to_string(), self.undo_volume(&held.source));
        if volume.len() > VOLUME_NAME_MAX {
            return Err(Failure::refused(format!("its name is too long for the volume {volume}")));
        }
        let earlier = self.earlier(&volume, undo).await?;
        if let Some(earlier) = &earlier
            && held.state()? == Some(earlier.reading)
        {
            return Ok((earlier.slot, earlier.clone()));
        }
        let job = match &earlier {
            Some(earlier) => {
                target.claim().has_kept_first(earlier.slot);
                self.context.environment.job_id()
            }
            None => undo,
        };
        let source = held.source.clone();
        let range = target.range().map(|range| format!("{RANGE}{}+{}", range.start, range.end - range.start));
        let (tags, allow_changes, group, plain) = (range.into_iter().collect(), false, None, true);
        let job = BackupJob { job, volume, host, source, tags, allow_changes, group, plain };
        let now = self.backed_up(&job, target.stop().unwrap_or(&self.context.stop), progress).await?;
        if let Some(earlier) = &earlier {
            let (first, now) = (earlier.slot.session, now.slot.session);
            tracing::warn!(%first, %now, source = held.source, "kept again, as an attempt that died left it");
        }
        Ok((earlier.map_or(now.slot, |earlier| earlier.slot), now))
    }

    /// What a backup of this id has kept already.
    async fn earlier(&self, volume: &str, job: JobId) -> Result<Option<Root>, Failure> {
        let key = self.repository.key.volume_key(volume);
        // One that cannot be read may be what was kept first.
        let roots = self.repository.roots(Some(key)).await?.all()?;
        Ok(roots.into_iter().find(|root| root.job == job))
    }

    /// Has a backup made, and waits for its end.
    async fn backed_up(
        &self,
        job: &BackupJob,
        stop: &Stop,
        progress: impl Fn(u64, u64),
    ) -> Result<Root, Failure> {
        let (bus, done) = (&self.context.bus, Queue::done(job.job));
        let mut told = bus.subscribe(&Topic::progress(job.job)).await?;
        let about = About { session: None, volume: job.volume.clone() };
        bus.publish(&Queue::jobs(), Message::new(&about, job)).await?;
        let heard = async {
            loop {
                let delivery = async { bus.consume(&done, 1).await?.next().await };
                match delivery.await {
                    Ok(delivery) => return delivery,
                    Err(why) => {
                        tracing::warn!(%why, volume = job.volume, "still waiting for what stands there to be kept");
                        self.context.environment.sleep(pipeline::RETRY_PAUSE).await;
                    }
                }
            }
        };
        let hearing = async {
            while let Ok(message) = told.next().await {
                if let Ok(now) = message.read::<messages::Progress>() {
                    progress(now.done, now.total);
                }
            }
            std::future::pending::<()>().await
        };
        let delivery = tokio::select! {
            biased;
            delivery = heard => delivery,
            () = hearing => unreachable!("progress has no end"),
            () = stop.raised() => return Err(pipeline::stopped(&job.volume)),
        };
        let told: JobDone = delivery.message.read()?;
        // When this is lost, the queue ends by its age.
        let _ = delivery.ticket.done().await;
        let _ = bus.retire(&done).await;
        match told.outcome {
            JobOutcome::Sealed { slot, .. } => match self.repository.at_slot(slot).await? {
                AtSlot::Snapshot(root) => Ok(*root),
                AtSlot::Tombstone | AtSlot::Nothing => {
                    Err(Failure::new(FailureKind::Revoked, format!("what was kept as {slot} is gone")))
                }
            },
            JobOutcome::Failed { kind, why } => Err(Failure::new(kind, why)),
            JobOutcome::Restored { .. } => {
                Err(Failure::new(FailureKind::Other, "the answer to a backup was that of a restore"))
            }
        }
    }
}

impl Held {
    /// The reading of a file as it is now; none of a device, which nobody else may open to write.
    fn state(&self) -> Result<Option<ReadingId>, Failure> {
        let found = self.file.metadata().map_err(|why| {
            Failure::new(FailureKind::Device, format!("cannot look at {}: {why}", self.path.display()))
        })?;
        Ok(state(&self.path, &found))
    }
}

/// The reading of a file in this state, as its reader tells it.
pub(crate) fn state(path: &Path, found: &Metadata) -> Option<ReadingId> {
    let time = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
    let state = FileState {
        path: path.as_os_str().as_bytes(),
        file_system: found.dev(),
        device: found.rdev(),
        inode: found.ino(),
        size: found.len(),
        modified: time(found.mtime(), found.mtime_nsec()),
        changed: time(found.ctime(), found.ctime_nsec()),
    };
    found.is_file().then(|| state.reading(&[]))
}

#[cfg(test)]
mod tests {
    use schema::root::{Statistics, Tracking};
    use schema::{SessionId, VolumeKey};

    use super::*;

    #[test]
    fn a_range_is_known_by_a_tag_that_makes_sense() {
        let slot = Slot { volume: VolumeKey::from_bytes([1; 16]), session: SessionId::from_parts(0, 1) };
        let root = |tags: &[&str]| Root {
            version: Root::VERSION,
            volume: "undo/host/x".into(),
            host: "host".into(),
            source: "/x".into(),
            slot,
            reading: ReadingId::from_bytes([7; 16]),
            job: JobId::from_bytes([8; 16]),
            generation: 1,
            parent: None,
            size: 100,
            top: None,
            time_ms: 0,
            sealed_ms: 0,
            group: None,
            changed_while_read: false,
            layout: Default::default(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            statistics: Statistics::default(),
            tracking: Tracking::Everything { why: None },
        };
        for (tags, expected) in [
            (&["before", "lvkeep-range=5+95"][..], Some(5..100)),
            (&["lvkeep-range=5+96"], None),
            (&["lvkeep-range=5+0"], None),
            (&["lvkeep-range=5+18446744073709551615"], None),
            (&["lvkeep-range=5"], None),
            (&["lvkeep-range"], None),
            (&[], None),
        ] {
            assert_eq!(kept_range(&root(tags)), expected, "{tags:?}");
        }
    }
}
