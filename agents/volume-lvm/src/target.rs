//! Restores to logical volumes: finds the target, makes it where that is asked for, keeps what it held, and makes what
//! is empty in the snapshot read as zero.
//!
//! What is done is decided by pure functions over LVM's report (`plan`) and over device-mapper's tables
//! ([`zeroing`]). Here it happens, in an order in which nothing is lost when a step fails: a volume that was made goes
//! again as long as nothing of the snapshot is on it, and the baseline goes and the safety snapshot is taken last, when
//! nobody else has the volume.

pub(crate) mod device;
mod layout;
mod plan;
mod room;
mod shared;
mod sharing;
pub(crate) mod spelling;
pub(crate) mod tables;
mod tracking;
pub mod zeroing;

use std::fmt::Display;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use agent::{Base, Changes, Ending, Failure, Place, Stop, Targets, Wish};
use async_trait::async_trait;
use schema::RepoId;
use schema::messages::{FailureKind, SharedPlace};
use schema::root::Root;

use self::device::Device;
use self::plan::{Plan, Request, SafetySnapshot, Volume};
use self::room::{Ledger, Promise};
use self::shared::SharedVolume;
use self::spelling::{Meaning, Places, taken_for_volume};
use self::zeroing::Kind;
use crate::changes::Tracker;
use crate::dm::{DmName, ThinTable};
use crate::owner::Owner;
use crate::report::{Inventory, LogicalVolume};
use crate::settings::Settings;
use crate::snapshots::commands;
use crate::tools::Tools;

#[cfg(test)]
mod tests;

/// How often it is looked whether somebody else still has a volume open: udev looks into each that appears.
const LOOKS: u32 = 5;
/// Time between two looks.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// The logical volumes of this host, as targets.
#[derive(Debug, Clone)]
pub struct LvmTargets {
    tools: Tools,
    tracker: Tracker,
    places: Places,
    between_looks: Duration,
    ledger: Arc<Ledger>,
}

impl LvmTargets {
    /// Those that these tools know.
    pub fn new(tools: Tools) -> Self {
        let places = Places { dev: "/dev".into(), sys: "/sys".into() };
        let tracker = Tracker::new(tools.clone(), Settings::default().state);
        Self { tools, tracker, places, between_looks: BETWEEN_LOOKS, ledger: Arc::default() }
    }

    /// The path at which what a restore would write to is read: a volume's device, or the path that `target` is. An
    /// error says why that cannot be told.
    pub fn path(&self, target: &str) -> Result<PathBuf, String> {
        self.places.path(target)
    }

    /// The logical volume whose device this is.
    fn volume_at(&self, device: &Path) -> Option<(String, String)> {
        match self.places.meaning(device.to_str()?, false) {
            Ok(Meaning::Volume { vg, lv, .. }) => Some((vg, lv)),
            Ok(Meaning::Path) | Err(_) => None,
        }
    }
}

#[async_trait]
impl Targets for LvmTargets {
    async fn find(&self, wish: &Wish<'_>) -> Result<Option<Arc<dyn Place>>, Failure> {
        let refused = |why: String| Failure::refused(format!("cannot restore to {}: {why}", wish.target));
        let meaning = self.places.meaning(wish.target, wish.preparation.create.is_some()).map_err(refused)?;
        let Meaning::Volume { vg, lv, or_path } = meaning else { return Ok(None) };
        let has_tools = self.tools.has("lvs");
        if or_path && !has_tools {
            return Ok(None);
        }
        let turn = self.ledger.turn().await;
        let inventory = match Inventory::load(&self.tools).await {
            Ok(inventory) => inventory,
            Err(why) => {
                let meant = if has_tools { String::new() } else { taken_for_volume(wish.target) };
                return Err(cannot(wish.target, &format!("{meant}{why}")));
            }
        };
        if or_path && wish.preparation.create.is_none() && inventory.find(&vg, &lv).is_none() {
            return Ok(None);
        }
        let donor = wish.donor.and_then(|donor| self.volume_at(donor));
        let is_whole = wish.part == (0..wish.root.size);
        let request = Request {
            vg: &vg,
            lv: &lv,
            size: wish.part.end,
            data: data_of(wish.root).min(wish.part.end - wish.part.start),
            only: (!is_whole).then(|| wish.part.end - wish.part.start),
            layout: &wish.root.layout,
            repository: wish.repository,
            snapshot: wish.root.slot.session,
            job: wish.job,
            preparation: wish.preparation,
            force: wish.force,
            donor: donor.as_ref().map(|(vg, lv)| (vg.as_str(), lv.as_str())),
            promised: &turn.promised,
        };
        let meant = match inventory.group(&vg) {
            Some(_) => String::new(),
            None => taken_for_volume(wish.target),
        };
        let plan = plan::plan(&inventory, &request, Owner::is_alive);
        let plan = plan.map_err(|why| refused(format!("{meant}{why}")))?;
        let promises = turn.promise(&plan.promises);
        let bases = tracking::bases(&inventory, &plan.volume, wish.repository);
        let place = LvmPlace::new(format!("{vg}/{lv}"), self, wish.repository, plan);
        Ok(Some(Arc::new(LvmPlace {
            may_be_in_use: wish.in_use,
            is_whole,
            bases,
            between_looks: self.between_looks,
            promises: Mutex::new(Some(promises)),
            ..place
        })))
    }

    fn read_at(&self, target: &str) -> Result<PathBuf, Failure> {
        self.path(target)
            .map_err(|why| Failure::refused(format!("cannot read what stands on {target}: {why}")))
    }

    fn name_of(&self, target: &str) -> Result<Option<String>, Failure> {
        match self.places.meaning(target, false) {
            Ok(Meaning::Volume { vg, lv, .. }) => Ok(Some(format!("{vg}/{lv}"))),
            Ok(Meaning::Path) => Ok(None),
            Err(why) => Err(Failure::refused(format!("cannot tell what {target} is: {why}"))),
        }
    }

    fn shared(&self, place: &SharedPlace, path: &Path) -> Option<Arc<dyn Place>> {
        Some(Arc::new(SharedVolume::find(place, path)?))
    }
}

/// Bytes of a snapshot that are not known to be zero.
fn data_of(root: &Root) -> u64 {
    let counted = &root.statistics;
    let sum = counted.bytes_zero.saturating_add(counted.bytes_known).saturating_add(counted.bytes_new);
    match sum == root.size {
        true => root.size - counted.bytes_zero,
        false => root.size,
    }
}

fn cannot(target: &str, why: &impl Display) -> Failure {
    Failure::new(FailureKind::Device, format!("cannot restore to {target}: {why}"))
}

/// A logical volume that is restored to.
#[derive(Debug)]
struct LvmPlace {
    name: String,
    tools: Tools,
    tracker: Tracker,
    repository: RepoId,
    /// What its baselines are of.
    bases: Vec<Base>,
    plan: Plan,
    may_be_in_use: bool,
    /// All of the snapshot is restored.
    is_whole: bool,
    between_looks: Duration,
    notes: Mutex<Vec<String>>,
    /// The volume that was made here, or that an earlier attempt had made.
    made: OnceLock<LogicalVolume>,
    safety: OnceLock<SafetySnapshot>,
    kind: OnceLock<Kind>,
    /// Room that is kept free for it.
    promises: Mutex<Option<Arc<[Promise]>>>,
    /// Bytes of the pool that were in use before it was made in it, to share them.
    in_use: OnceLock<u64>,
}

#[async_trait]
impl Place for LvmPlace {
    fn name(&self) -> &str {
        &self.name
    }

    async fn make(&self) -> Result<PathBuf, Failure> {
        for note in &self.plan.notes {
            tracing::info!(target = self.name, "{note}");
        }
        let volume = match &self.plan.volume {
            Volume::There(volume) | Volume::Incomplete(volume) => (**volume).clone(),
            Volume::Begun(volume) => self.made.get_or_init(|| (**volume).clone()).clone(),
            Volume::New(arguments) => {
                if let Some(shared) = &self.plan.shares
                    && let Some(in_use) = shared.in_use(&self.tools).await
                {
                    let _ = self.in_use.set(in_use);
                }
                self.change("lvcreate", arguments).await?;
                let made = self.found().await?;
                self.made.get_or_init(|| made).clone()
            }
        };
        Ok(volume.device().into())
    }

    async fn check_alone(&self, device: &File) -> Result<(), Failure> {
        self.alone(device).await.map(drop)
    }

    fn bases(&self) -> Vec<Base> {
        self.bases.clone()
    }

    async fn changes(&self, device: &File, since: &Base) -> Changes {
        match self.changed_since(device, since).await {
            Ok(changed) => Changes::Since { parent: since.session, ranges: changed.into_vec() },
            Err(why) => Changes::unknown(why),
        }
    }

    async fn ready(&self, device: &File) -> Result<(), Failure> {
        let now = self.alone(device).await?;
        for one in &self.plan.drop {
            commands::remove(&self.tools, one).await.map_err(|why| cannot(&self.name, &why))?;
        }
        if let Some(safety) = &self.plan.safety {
            if !safety.taken {
                self.change("lvcreate", &safety.arguments(&now)).await?;
            }
            let vg = &now.vg;
            let name = &safety.name;
            self.note(format!(
                "{vg}/{name} holds what was there: `lvconvert --merge {vg}/{name}` goes back to it, `lvremove \
                 {vg}/{name}` lets it go"
            ));
            let _ = self.safety.set(safety.clone());
        }
        let kind = self.kind_of(&now).await?;
        tracing::debug!(target = self.name, ?kind, "restoring to a logical volume");
        let _ = self.kind.set(kind);
        Ok(())
    }

    fn keeps_equal(&self) -> bool {
        self.kind.get().is_some_and(Kind::keeps_equal)
    }

    fn is_copy(&self) -> bool {
        self.plan.shares.is_some()
    }

    fn is_new(&self) -> bool {
        matches!(self.plan.volume, Volume::New(_)) && self.made.get().is_some()
    }

    fn is_begun(&self) -> bool {
        matches!(self.plan.volume, Volume::Begun(_) | Volume::Incomplete(_))
    }

    fn shared(&self) -> Option<SharedPlace> {
        // What its zeroes spare is known here alone.
        if self.is_copy() {
            return None;
        }
        let (kind, volume) = (self.kind.get()?, self.volume().ok()?);
        Some(SharedPlace { name: self.name.clone(), size: volume.size, zeroing: (*kind).into() })
    }

    fn compares_zeroes(&self) -> bool {
        matches!(self.kind.get(), Some(Kind::Thick { .. }))
    }

    fn zero(&self, device: &File, range: Range<u64>, halt: &Stop) -> io::Result<()> {
        // Zeroes that are written hold for every kind of volume.
        let kind = self.kind.get().copied().unwrap_or(Kind::Thick { watched: false });
        let size = self.volume().map_or(range.end, |volume| volume.size);
        let steps = match self.plan.shares.is_some() && kind.keeps_equal() {
            true => sharing::sparing(kind.steps(range, size)),
            false => kind.steps(range, size),
        };
        zeroing::run(&Device(device), &steps, halt)
    }

    async fn end(&self, ending: Ending) -> Vec<String> {
        match (ending, self.made.get()) {
            (Ending::Failed, Some(made)) => {
                if let Err(failure) = self.unmake(made).await {
                    self.note(failure.why);
                }
            }
            (Ending::WithHoles, made) => {
                self.tell_shared().await;
                if made.is_some() || self.is_begun() {
                    let name = &self.name;
                    self.note(format!(
                        "{name} was made for this restore, has holes, and is incomplete, as its tag says; the same restore \
                         goes on from there once they are healed"
                    ));
                }
            }
            (Ending::CutOff | Ending::Failed, made) if made.is_some() || self.is_begun() => {
                let name = &self.name;
                self.note(format!(
                    "{name} was made for this restore and stays, incomplete, as its tag says: do not use it; the same \
                     restore goes on from there, `lvremove {name}` lets it go"
                ));
            }
            (Ending::Restored, _) => {
                self.tell_shared().await;
                if let Err(failure) = self.complete().await {
                    self.note(failure.why);
                }
            }
            (Ending::Failed | Ending::CutOff, _) => {}
        }
        self.promises.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(safety) = self.safety.get().filter(|safety| !safety.holds_all) {
            self.look_after(safety).await;
        }
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn over(&self) -> Option<String> {
        self.finish().await.err().map(|failure| failure.why)
    }
}

impl LvmPlace {
    fn new(name: String, targets: &LvmTargets, repository: RepoId, plan: Plan) -> Self {
        let notes = Mutex::new(plan.notes.clone());
        Self {
            name,
            tools: targets.tools.clone(),
            tracker: targets.tracker.clone(),
            repository,
            bases: Vec::new(),
            plan,
            may_be_in_use: false,
            is_whole: true,
            between_looks: Duration::ZERO,
            notes,
            made: OnceLock::new(),
            safety: OnceLock::new(),
            kind: OnceLock::new(),
            promises: Mutex::default(),
            in_use: OnceLock::new(),
        }
    }

    fn refused(&self, why: impl std::fmt::Display) -> Failure {
        Failure::refused(format!("cannot restore to {}: {why}", self.name))
    }

    fn note(&self, note: String) {
        tracing::info!(target = self.name, "{note}");
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(note);
    }

    async fn change(&self, program: &str, arguments: &[String]) -> Result<(), Failure> {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.tools.change(program, &arguments).await.map(drop).map_err(|why| cannot(&self.name, &why))
    }

    fn volume(&self) -> Result<&LogicalVolume, Failure> {
        match (&self.plan.volume, self.made.get()) {
            (_, Some(made)) => Ok(made),
            (Volume::There(volume) | Volume::Begun(volume) | Volume::Incomplete(volume), None) => Ok(volume),
            (Volume::New(_), None) => Err(self.refused("it was not made")),
        }
    }

    /// The volume of this name, as it is now.
    async fn found(&self) -> Result<LogicalVolume, Failure> {
        let (vg, lv) = self.name.split_once('/').unwrap_or_default();
        let inventory = Inventory::of_group(&self.tools, vg).await.map_err(|why| cannot(&self.name, &why))?;
        inventory.find(vg, lv).cloned().ok_or_else(|| self.refused("it is gone"))
    }

    /// The volume as it is now, which is still the one that was found. Opening a device for oneself alone keeps mounts
    /// and other devices away, and no process that merely opened it.
    async fn alone(&self, device: &File) -> Result<LogicalVolume, Failure> {
        let volume = self.found().await?;
        if volume.uuid != self.volume()?.uuid {
            return Err(self.refused("another volume has its name by now"));
        }
        if !self.is_alone(&volume).await? {
            if !self.may_be_in_use {
                return Err(self.refused(
                    "another process has it open (does a guest run from it?): stop it first (--force-in-use TARGET overwrites \
                     it all the same)",
                ));
            }
            self.note("it was overwritten although another process has it open, as asked".to_owned());
        }
        // What was opened is the volume that was checked, and not another that came to its device's name.
        let size = rustix::fs::seek(device, rustix::fs::SeekFrom::End(0)).map_err(io::Error::from);
        match size {
            Ok(size) if size == volume.size => Ok(volume),
            Ok(size) => Err(self.refused(format!("its device has {size} bytes, LVM says {}", volume.size))),
            Err(why) => Err(self.refused(why)),
        }
    }

    /// Whether nobody but this process has its device open.
    async fn is_alone(&self, volume: &LogicalVolume) -> Result<bool, Failure> {
        for look in 1..=LOOKS {
            if self.opened(volume).await? <= 1 {
                return Ok(true);
            }
            if look < LOOKS {
                tokio::time::sleep(self.between_looks).await;
            }
        }
        Ok(false)
    }

    /// How often its device is open, by this process too.
    async fn opened(&self, volume: &LogicalVolume) -> Result<u64, Failure> {
        let name = DmName::of(&volume.vg, &volume.name);
        let arguments = ["info", "--columns", "--noheadings", "-o", "open", name.as_str()];
        let said = self.tools.run("dmsetup", &arguments).await.map_err(|why| cannot(&self.name, &why))?;
        let text = said.text();
        text.trim().parse().map_err(|_| self.refused(format!("dmsetup says that it is open {text:?} times")))
    }

    /// What the kernel does with its blocks now.
    async fn kind_of(&self, volume: &LogicalVolume) -> Result<Kind, Failure> {
        let name = DmName::of(&volume.vg, &volume.name);
        let table = self.table(&name).await?;
        let watched = tables::is_snapshot_origin(&table);
        if !volume.is_thin() {
            return Ok(Kind::Thick { watched });
        }
        let pool =
            volume.pool.as_deref().ok_or_else(|| self.refused("LVM does not say which pool it is in"))?;
        let thin = match watched {
            true => self.table(&name.layer("real")).await?,
            false => table,
        };
        let thin = ThinTable::parse(&thin).map_err(|why| self.refused(why))?;
        let said = self.table(&DmName::of(&volume.vg, pool).layer("tpool")).await?;
        let pool = tables::pool(&said)
            .ok_or_else(|| self.refused(format!("dmsetup says of its pool {pool}: `{}`", said.trim())))?;
        Ok(tables::thin_kind(&thin, pool, watched))
    }

    async fn table(&self, name: &DmName) -> Result<String, Failure> {
        let said = self.tools.run("dmsetup", &["table", name.as_str()]).await;
        said.map(|output| output.text()).map_err(|why| cannot(&self.name, &why))
    }

    /// The restore is over, and no job finds it as its own any more.
    async fn finish(&self) -> Result<(), Failure> {
        self.untag(plan::UNFINISHED, "unfinished").await
    }

    /// All of a snapshot is on it: it is not to be gone on with, whoever asks for it to be made.
    async fn complete(&self) -> Result<(), Failure> {
        match self.is_whole {
            true => self.untag(plan::INCOMPLETE, "incomplete").await,
            false => Ok(()),
        }
    }

    async fn untag(&self, start: &str, what: &str) -> Result<(), Failure> {
        let Some(arguments) = plan::without_tags(self.volume()?, start) else { return Ok(()) };
        let mut done = self.change("lvchange", &arguments).await;
        if done.is_err() {
            done = self.change("lvchange", &arguments).await;
        }
        done.map_err(|e| {
            let why =
                format!("the tag {start} of {}, which says that it is {what}, is wrong and stays", self.name);
            e.context(format!("{why}: take it away with lvchange --deltag"))
        })
    }

    async fn unmake(&self, made: &LogicalVolume) -> Result<(), Failure> {
        let removed = commands::remove(&self.tools, made).await.map_err(|why| cannot(&self.name, &why));
        removed.map_err(|e| e.context(format!("{} was made for it and stays: lvremove it", self.name)))?;
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.clear();
        notes.push(format!("{} was made for this restore, and is removed again", self.name));
        Ok(())
    }

    /// Says what it shares with the volume that it began as.
    async fn tell_shared(&self) {
        let (Some(shared), Some(before)) = (&self.plan.shares, self.in_use.get()) else { return };
        let (Some(now), Ok(volume)) = (shared.in_use(&self.tools).await, self.found().await) else { return };
        let (mapped, grown) = (volume.used().unwrap_or(0), now.saturating_sub(*before));
        let (donor, mapped, grown) = (&shared.donor, plan::size(mapped), plan::size(grown));
        self.note(format!(
            "it has {mapped} of its pool, and the pool grew by {grown} meanwhile: the rest is shared with {donor}"
        ));
    }

    /// Says so when a safety snapshot has overflowed.
    async fn look_after(&self, safety: &SafetySnapshot) {
        let (vg, _) = self.name.split_once('/').unwrap_or_default();
        let Ok(inventory) = Inventory::of_group(&self.tools, vg).await else { return };
        let lost = inventory.find(vg, &safety.name).is_none_or(|one| one.attributes.is_invalid());
        if lost {
            let name = &safety.name;
            self.note(format!("{vg}/{name} has overflowed: what was there is lost (lvremove {vg}/{name})"));
        }
    }
}
