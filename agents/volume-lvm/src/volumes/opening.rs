//! Opening a logical volume for a session: re-attach to the snapshot that it has, or tidy up, look for room, hold the
//! writers still, and take one; for a group, all of its members at once.

use std::sync::{Arc, Mutex};

use agent::{Changes, Opening, Volume, VolumeError, VolumeInfo};
use schema::facts::{BASELINES_REMOVED, FROZEN_MS, NOT_HELD, POST_FAILED, TAKEN_MS};
use schema::messages::Group;
use schema::{JobId, ReadingId, RepoId, SessionId};
use tokio::time::Instant;

use super::planning::{Refused, Take, last_used};
use super::{Held, Place, Run, Shared, cannot_open, facts, snapshot::Snapshot, tool_failed};
use crate::changes::{Mapped, Pool};
use crate::dm::DmName;
use crate::freeze::{self, Freeze, Plan, Stillness, mounted};
use crate::governor::NoRoom;
use crate::marks::Marks;
use crate::ranges::Ranges;
use crate::report::{Inventory, Kind, LogicalVolume};
use crate::settings::Treatment;
use crate::snapshots::{self, Ours, commands};
use crate::target::spelling::taken_for_volume;
use crate::tools::{ToolError, Tools};

/// What a session wants, as values of its own.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    place: Place,
    pub(super) source: String,
    pub(super) session: SessionId,
    pub(super) repository: RepoId,
    reading: Option<ReadingId>,
    parent: Option<SessionId>,
    pub(super) group: Option<Group>,
}

impl Wish {
    pub(super) fn new(opening: &Opening<'_>, place: Place) -> Self {
        Self {
            place,
            source: opening.source.to_owned(),
            session: opening.session,
            repository: opening.repository,
            reading: opening.reading,
            parent: opening.parent,
            group: opening.group.cloned(),
        }
    }
}

/// A session's snapshot that was just taken.
struct Taken {
    name: String,
    /// Why there is no baseline where one was expected.
    lost: Option<String>,
    stillness: Stillness,
    /// Baselines that had to go before the commit.
    gone: Vec<String>,
    /// Snapshots of a group that were taken while nothing held its writers.
    not_held: Option<usize>,
}

/// What the session reads, and how it was come by.
struct Found {
    inventory: Inventory,
    origin: LogicalVolume,
    snapshot: LogicalVolume,
    /// Held from here on, so that it is not released before it is open.
    held: Arc<Held>,
    facts: Vec<(String, String)>,
    /// Why what should have been the baseline is none, and may be gone by now.
    lost: Option<String>,
}

impl Taken {
    fn facts(&self) -> Vec<(String, String)> {
        let Stillness { frozen, failed } = &self.stillness;
        let mut facts = vec![(FROZEN_MS.to_owned(), frozen.as_millis().to_string())];
        if !failed.is_empty() {
            facts.push((POST_FAILED.to_owned(), failed.join("; ")));
        }
        if let Some(count) = self.not_held {
            facts.push((NOT_HELD.to_owned(), count.to_string()));
        }
        if !self.gone.is_empty() {
            facts.push((BASELINES_REMOVED.to_owned(), self.gone.join(" ")));
        }
        facts
    }
}

impl Shared {
    /// Opens a logical volume; none when there is no such volume, and the source may be something else.
    pub(super) async fn open(self: Arc<Self>, wish: Wish) -> Result<Option<Arc<dyn Volume>>, VolumeError> {
        self.thaw_once().await;
        let source = wish.source.clone();
        let failed = |why: ToolError| tool_failed(&source, &why);
        let Some(found) = self.find_or_take(&wish).await? else { return Ok(None) };
        let Found { inventory, origin, snapshot, held, mut facts, lost } = found;
        if !snapshot.attributes.is_active() {
            commands::activate(&self.tools, &snapshot).await.map_err(failed)?;
        }
        let reading = snapshots::reading_of(&snapshot.uuid);
        if wish.reading.is_some_and(|wanted| wanted != reading) {
            let why = format!("{} is not the snapshot that it began with", snapshot.full_name());
            return Err(VolumeError::ReadingLost { source_name: source, why });
        }
        let (changes, baseline_note) = self.changes_since(&wish, &inventory, &origin, &snapshot, lost).await;
        let mapped = match &changes {
            Changes::Unknown { .. } => self.mapped(&inventory, &origin, &snapshot).await,
            Changes::Since { .. } => None,
        };
        facts.extend(baseline_note);
        let device = snapshot.device();
        let inner = Opening {
            source: &device,
            volume: &source,
            session: wish.session,
            repository: wish.repository,
            reading: None,
            parent: None,
            group: None,
            plain: true,
        };
        let device = self.inner.open(&inner).await?;
        if device.info().size != origin.size {
            let (found, expected) = (device.info().size, origin.size);
            return Err(cannot_open(
                &source,
                format!(
                    "its snapshot has {found} bytes, and the volume has {expected}: is it being resized?"
                ),
            ));
        }
        let now = self.table().sessions.get(&wish.session).cloned();
        let held = now.filter(|now| now.snapshot == held.snapshot);
        let held = held.ok_or_else(|| cannot_open(&source, "its session is over"))?;
        let info = VolumeInfo { name: source, reading, size: origin.size, layout: facts };
        Ok(Some(Arc::new(Snapshot { shared: self, held, info, changes, mapped, device })))
    }

    /// The session's snapshot: the one that it has, or a new one.
    async fn find_or_take(self: &Arc<Self>, wish: &Wish) -> Result<Option<Found>, VolumeError> {
        let source = &wish.source;
        let failed = |why: ToolError| tool_failed(source, &why);
        let _changing = self.changing.lock().await;
        let Place { vg, lv, or_path } = &wish.place;
        let inventory = match Inventory::of_group(&self.tools, vg).await {
            Ok(inventory) => inventory,
            Err(ToolError::Failed { .. }) if *or_path => return Ok(None),
            Err(why) if self.places.dev.join(vg).is_dir() => return Err(failed(why)),
            Err(why) => return Err(cannot_open(source, format!("{}{why}", taken_for_volume(source)))),
        };
        let Some(origin) = inventory.find(vg, lv).cloned() else {
            return match or_path {
                true => Ok(None),
                false => Err(cannot_open(source, format!("volume group {vg} has no volume {lv}"))),
            };
        };
        if Marks::of(&origin).is_some() {
            return Err(cannot_open(source, "it is a snapshot of lvkeep's own, which comes and goes"));
        }
        if origin.kind().is_none() {
            // A snapshot that somebody else made is read as it is; pools and parts are refused by their device.
            return match origin.is_thick_snapshot() {
                true => Ok(None),
                false => Err(cannot_open(source, format!("LVM takes no snapshot of a {}", origin.segtype))),
            };
        }
        let existing = snapshots::of_session(&inventory, &origin.uuid, wish.repository, wish.session);
        let claimable = wish
            .group
            .as_ref()
            .and_then(|group| snapshots::unclaimed(&inventory, &origin.uuid, wish.repository, group.run));
        let mut taken = None;
        let snapshot = match (existing.or(claimable), wish.reading) {
            (Some(ours), _) => {
                let marks = commands::claimed(&ours.marks, wish.session, &self.owner, self.settings.embedded);
                commands::mark(&self.tools, ours.volume, &ours.marks, &marks).await.map_err(failed)?;
                ours.volume.name.clone()
            }
            (None, Some(_)) => {
                let why = "its LVM snapshot is gone; start the backup again".to_owned();
                return Err(VolumeError::ReadingLost { source_name: source.clone(), why });
            }
            (None, None) => taken.insert(self.take(wish, &inventory, &origin).await?).name.clone(),
        };
        let inventory = Inventory::of_group(&self.tools, vg).await.map_err(failed)?;
        let Some(snapshot) = inventory.find(vg, &snapshot).cloned() else {
            return Err(cannot_open(
                source,
                format!("LVM says that it made {snapshot}, and it is not there"),
            ));
        };
        if snapshot.attributes.is_invalid() {
            let why = format!("its LVM snapshot {} has overflowed", snapshot.full_name());
            return Err(VolumeError::ReadingLost { source_name: source.clone(), why });
        }
        let held = self.hold(wish, &origin, &snapshot);
        let mut facts = facts::of(&inventory, &origin);
        facts.push(("snapshot".to_owned(), snapshot.full_name()));
        facts.push(facts::backup_of_group(&self.tools, vg, &self.settings.state).await);
        if let Some(marks) = Marks::of(&snapshot).filter(|marks| marks.id != wish.session) {
            // Taken for a group before this session was: its name has the time.
            facts.push((TAKEN_MS.to_owned(), marks.id.time_ms().to_string()));
        }
        let lost = taken.and_then(|taken| {
            facts.extend(taken.facts());
            taken.lost
        });
        Ok(Some(Found { inventory, origin, snapshot, held, facts, lost }))
    }

    /// From here on the snapshot goes when the session is closed.
    fn hold(self: &Arc<Self>, wish: &Wish, origin: &LogicalVolume, snapshot: &LogicalVolume) -> Arc<Held> {
        let held = Arc::new(Held {
            vg: origin.vg.clone(),
            volume: origin.full_name(),
            origin: origin.uuid.clone(),
            size: origin.size,
            snapshot: snapshot.uuid.clone(),
            pool: origin.pool_uuid.clone(),
            repository: wish.repository,
            group: wish.group.as_ref().map(|group| group.run),
            keep: self.settings.of(&origin.full_name()).keep_baseline,
            given_up: Mutex::default(),
        });
        self.table().sessions.insert(wish.session, held.clone());
        self.watch();
        held
    }

    /// Takes the session's snapshot, with those of its group.
    async fn take(
        &self,
        wish: &Wish,
        inventory: &Inventory,
        origin: &LogicalVolume,
    ) -> Result<Taken, VolumeError> {
        let source = &wish.source;
        let failed = |why: ToolError| tool_failed(source, &why);
        let tidy = snapshots::tidy(inventory, &origin.uuid, wish.repository, wish.parent, |marks| {
            self.in_use(marks) || marks.session == Some(wish.session)
        });
        // Of what is removed now, too.
        let last = last_used(inventory, &origin.uuid, wish.repository);
        for ours in &tidy.remove {
            tracing::info!(
                snapshot = ours.volume.full_name(),
                "removing an LVM snapshot that nobody needs any more"
            );
            commands::remove(&self.tools, ours.volume).await.map_err(failed)?;
        }
        let members = match &wish.group {
            Some(group) => self.members(wish, group).await?,
            None => vec![origin.clone()],
        };
        let mut gone = Vec::new();
        let mut planned = self.plan(wish, &members, origin, last).await;
        // With other members, who may lack room as well, nothing goes that might go in vain.
        if members.len() == 1
            && let Err(Refused::NoRoom(why)) = &planned
            && let Some(way) = snapshots::giving_way(&tidy.waiting, why)
        {
            gone = self.remove_early(&way, why).await.map_err(failed)?;
            planned = self.plan(wish, &members, origin, last).await;
        }
        let takes = planned.map_err(|why| why.of(source))?;
        let own = takes.iter().find(|take| take.origin.uuid == origin.uuid);
        let name = own.map(|take| Marks::name(take.marks.id));
        let name = name.ok_or_else(|| cannot_open(source, "it is not among the members of its group"))?;
        let vgs = takes.iter().map(|take| take.origin.vg.clone()).collect();
        let count = takes.len();
        let (stillness, held) = self.take_all(source, takes).await?;
        let not_held = (count > 1 && !held).then_some(count);
        if let Some(group) = &wish.group {
            self.table().groups.insert(group.run, Run { since: Instant::now(), vgs });
        }
        Ok(Taken { name, lost: tidy.why, stillness, gone, not_held })
    }

    /// Removes baselines that would have waited for the commit. Says which.
    async fn remove_early(&self, gone: &[&Ours<'_>], why: &NoRoom) -> Result<Vec<String>, ToolError> {
        let mut names = Vec::new();
        for ours in gone {
            let snapshot = ours.volume.full_name();
            tracing::warn!(
                snapshot,
                %why,
                "removing the baseline of another session before this one has committed: there is no room for both"
            );
            commands::remove(&self.tools, ours.volume).await?;
            names.push(snapshot);
        }
        Ok(names)
    }

    /// The volumes of a group, whose moment must not have been yet.
    async fn members(&self, wish: &Wish, group: &Group) -> Result<Vec<LogicalVolume>, VolumeError> {
        let source = &wish.source;
        let inventory = Inventory::load(&self.tools).await.map_err(|why| tool_failed(source, &why))?;
        let of_this_run =
            |marks: &Marks| marks.group == Some(group.run) && marks.repository == wish.repository;
        let was = self.table().groups.contains_key(&group.run)
            || snapshots::all(&inventory).any(|ours| of_this_run(&ours.marks));
        if was {
            return Err(cannot_open(
                source,
                format!(
                    "the snapshots of group {} were taken, and the one of this volume is gone: start the group's \
                     backup again",
                    group.name
                ),
            ));
        }
        let volume = |member: &String| {
            let place = self.place_of(member);
            let found = place.and_then(|place| inventory.find(&place.vg, &place.lv).cloned());
            let found = found.filter(|volume| volume.kind().is_some());
            found.ok_or_else(|| {
                cannot_open(source, format!("{member} of its group {} is no volume here", group.name))
            })
        };
        group.members.iter().map(volume).collect()
    }

    /// Takes all of them while writers are held still; all or none. Says whether anything held them.
    async fn take_all(&self, source: &str, takes: Vec<Take>) -> Result<(Stillness, bool), VolumeError> {
        let wanted = takes.iter().map(|take| {
            let Treatment { freeze, hooks, .. } = &take.treatment;
            let at = (*freeze == Freeze::FileSystem).then(|| mounted(&take.origin.device())).flatten();
            (freeze, hooks, at)
        });
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        let plan = Plan::new(wanted, &kernel).map_err(|why| cannot_open(source, why.to_string()))?;
        let held = !plan.is_empty();
        let (tools, several) = (self.tools.clone(), takes.clone());
        let body = async move {
            for take in &several {
                commands::take(&tools, &take.origin, &take.marks, take.store).await?;
            }
            Ok::<(), ToolError>(())
        };
        let taken = freeze::around(&self.tools, &self.settings.state, plan, self.settings.times, body).await;
        let why = match taken {
            Ok((Ok(()), still)) => {
                tracing::info!(
                    source,
                    frozen_ms = still.frozen.as_millis() as u64,
                    "writers were held still"
                );
                return Ok((still, held));
            }
            Ok((Err(why), _)) => why.to_string(),
            Err(why) => why.to_string(),
        };
        remove_taken(&self.tools, &takes).await;
        Err(cannot_open(source, why))
    }

    /// What changed since the parent, and which snapshot says so.
    async fn changes_since(
        &self,
        wish: &Wish,
        inventory: &Inventory,
        origin: &LogicalVolume,
        snapshot: &LogicalVolume,
        lost: Option<String>,
    ) -> (Changes, Option<(String, String)>) {
        let Some(parent) = wish.parent else { return (Changes::UNTRACKED, None) };
        if !self.settings.of(&origin.full_name()).keep_baseline {
            let none = snapshots::of_session(inventory, &origin.uuid, wish.repository, parent).is_none();
            if none {
                return (Changes::UNTRACKED, None);
            }
        }
        let tidy = snapshots::tidy(inventory, &origin.uuid, wish.repository, Some(parent), |_| true);
        let Some(baseline) = tidy.baseline else {
            let why = lost.or(tidy.why).unwrap_or_else(|| "there is no baseline".to_owned());
            return (Changes::unknown(why), None);
        };
        match self.ranges(wish, origin, snapshot, baseline.volume).await {
            Ok(ranges) => {
                let note = ("baseline".to_owned(), baseline.volume.full_name());
                (Changes::Since { parent, ranges }, Some(note))
            }
            Err(why) => {
                tracing::warn!(
                    volume = origin.full_name(),
                    why,
                    "it is not known what changed: reading everything"
                );
                (Changes::unknown(why), None)
            }
        }
    }

    async fn ranges(
        &self,
        wish: &Wish,
        origin: &LogicalVolume,
        snapshot: &LogicalVolume,
        baseline: &LogicalVolume,
    ) -> Result<Vec<std::ops::Range<u64>>, String> {
        let name = DmName::of(&baseline.vg, &baseline.name);
        let (Some(kind), true) = (origin.kind(), origin.is_thin() == baseline.is_thin()) else {
            return Err(format!("{} is of another kind than its volume", baseline.full_name()));
        };
        if kind == Kind::Thick {
            let since = async |name: &DmName| {
                let ranges = self.tracker.changed_ranges_thick(name, origin.size).await;
                ranges.map_err(|why| why.to_string())
            };
            let mut ranges = since(&name).await?;
            // A group's snapshot may be older than the baseline: another run may have committed since the group's
            // moment. Whichever is older, everything in which the two differ is in the list of one or the other.
            if !is_of(snapshot, wish.session) {
                ranges = ranges.union(&since(&DmName::of(&snapshot.vg, &snapshot.name)).await?);
            }
            return Ok(ranges.into_vec());
        }
        let newer = DmName::of(&snapshot.vg, &snapshot.name);
        self.tracker.thin_since(baseline, snapshot, &newer).await.map(Ranges::into_vec)
    }

    /// What a thin snapshot maps, when the rest of it reads as zero.
    async fn mapped(
        &self,
        inventory: &Inventory,
        origin: &LogicalVolume,
        snapshot: &LogicalVolume,
    ) -> Option<Ranges> {
        if !origin.is_thin() {
            return None;
        }
        let pool = Pool::of(snapshot)?;
        tracing::debug!(
            pool = inventory.pool_of(origin).map(LogicalVolume::full_name),
            "asking what is mapped"
        );
        let name = DmName::of(&snapshot.vg, &snapshot.name);
        match self.tracker.mapped_ranges_thin(&pool, &name, snapshot.size).await {
            Ok(Mapped::Only(ranges)) => Some(ranges),
            Ok(Mapped::ShinesThrough { .. }) => None,
            Err(why) => {
                tracing::warn!(volume = origin.full_name(), %why, "it is not known what is mapped: reading everything");
                None
            }
        }
    }
}

/// Whether a snapshot was taken for this very session, and thus after the parent's, which the session knew before.
fn is_of(snapshot: &LogicalVolume, session: SessionId) -> bool {
    Marks::of(snapshot).is_some_and(|marks| marks.id == session)
}

/// Removes what was taken of a group before one of it could not be.
async fn remove_taken(tools: &Tools, takes: &[Take]) {
    let Ok(inventory) = Inventory::load(tools).await else {
        tracing::warn!(
            "LVM does not answer: snapshots that were taken in vain stay for the next run to tidy up"
        );
        return;
    };
    let ids: Vec<(SessionId, Option<JobId>)> =
        takes.iter().map(|take| (take.marks.id, take.marks.group)).collect();
    for ours in snapshots::all(&inventory).filter(|ours| ids.contains(&(ours.marks.id, ours.marks.group))) {
        if let Err(why) = commands::remove(tools, ours.volume).await {
            tracing::warn!(%why, "a snapshot that was taken in vain stays for the next run to tidy up");
        }
    }
}
