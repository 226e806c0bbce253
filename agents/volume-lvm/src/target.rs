//! Restores to logical volumes: finds the target, makes it where that is asked for, keeps what it held, and makes what
//! is empty in the snapshot read as zero.
//!
//! What is done is decided by pure functions over LVM's report (`plan`) and over device-mapper's tables
//! ([`zeroing`]). Here it happens, in an order in which nothing is lost when a step fails: a volume that was made goes
//! again, and the baseline goes and the safety snapshot is taken last, when nobody else has the volume.

pub(crate) mod device;
mod layout;
mod plan;
mod shared;
pub(crate) mod spelling;
pub(crate) mod tables;
pub mod zeroing;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use agent::{Failure, Place, Stop, Targets, Wish};
use async_trait::async_trait;
use schema::messages::{FailureKind, SharedPlace};
use schema::root::Root;

use self::device::Device;
use self::plan::{Plan, Request, SafetySnapshot, Volume};
use self::shared::SharedVolume;
use self::spelling::{Meaning, Places};
use self::zeroing::Kind;
use crate::dm::{DmName, ThinTable};
use crate::owner::Owner;
use crate::report::{Inventory, LogicalVolume};
use crate::snapshots::commands;
use crate::tools::{ToolError, Tools};

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
    places: Places,
    between_looks: Duration,
}

impl LvmTargets {
    /// Those that these tools know.
    pub fn new(tools: Tools) -> Self {
        let places = Places { dev: "/dev".into(), sys: "/sys".into() };
        Self { tools, places, between_looks: BETWEEN_LOOKS }
    }

    /// The path at which what a restore would write to is read: a volume's device, or the path that `target` is. An
    /// error says why that cannot be told.
    pub fn path(&self, target: &str) -> Result<PathBuf, String> {
        self.places.path(target)
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
        let inventory = Inventory::load(&self.tools).await.map_err(|why| cannot(wish.target, &why))?;
        if or_path && wish.preparation.create.is_none() && inventory.find(&vg, &lv).is_none() {
            return Ok(None);
        }
        let request = Request {
            vg: &vg,
            lv: &lv,
            size: wish.part.end,
            data: data_of(wish.root).min(wish.part.end - wish.part.start),
            only: (wish.part != (0..wish.root.size)).then(|| wish.part.end - wish.part.start),
            layout: &wish.root.layout,
            repository: wish.repository,
            job: wish.job,
            preparation: wish.preparation,
            force: wish.force,
        };
        let plan = plan::plan(&inventory, &request, Owner::is_alive).map_err(refused)?;
        let notes = Mutex::new(plan.notes.clone());
        let (tools, force) = (self.tools.clone(), wish.force);
        Ok(Some(Arc::new(LvmPlace {
            name: format!("{vg}/{lv}"),
            tools,
            plan,
            force,
            between_looks: self.between_looks,
            notes,
            made: OnceLock::new(),
            safety: OnceLock::new(),
            kind: OnceLock::new(),
        })))
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

fn cannot(target: &str, why: &ToolError) -> Failure {
    Failure::new(FailureKind::Device, format!("cannot restore to {target}: {why}"))
}

/// A logical volume that is restored to.
#[derive(Debug)]
struct LvmPlace {
    name: String,
    tools: Tools,
    plan: Plan,
    force: bool,
    between_looks: Duration,
    notes: Mutex<Vec<String>>,
    /// The volume that was made here, or that an earlier attempt had made.
    made: OnceLock<LogicalVolume>,
    safety: OnceLock<SafetySnapshot>,
    kind: OnceLock<Kind>,
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
            Volume::There(volume) => (**volume).clone(),
            Volume::Begun(volume) => self.made.get_or_init(|| (**volume).clone()).clone(),
            Volume::New(arguments) => {
                self.change("lvcreate", arguments).await?;
                let made = self.found().await?;
                self.made.get_or_init(|| made).clone()
            }
        };
        Ok(volume.device().into())
    }

    async fn ready(&self, device: &File) -> Result<(), Failure> {
        let volume = self.volume()?;
        let now = self.found().await?;
        if now.uuid != volume.uuid {
            return Err(self.refused("another volume has its name by now"));
        }
        self.check_alone(&now, device).await?;
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

    fn shared(&self) -> Option<SharedPlace> {
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
        zeroing::run(&Device(device), &kind.steps(range, size), halt)
    }

    async fn end(&self, restored: bool) -> Vec<String> {
        let ended = match (restored, self.made.get()) {
            (true, _) => self.finish().await,
            (false, Some(made)) => self.unmake(made).await,
            (false, None) => Ok(()),
        };
        if let Err(failure) = ended {
            self.note(failure.why);
        }
        if let Some(safety) = self.safety.get().filter(|safety| !safety.holds_all) {
            self.look_after(safety).await;
        }
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl LvmPlace {
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
            (Volume::There(volume) | Volume::Begun(volume), None) => Ok(volume),
            (Volume::New(_), None) => Err(self.refused("it was not made")),
        }
    }

    /// The volume of this name, as it is now.
    async fn found(&self) -> Result<LogicalVolume, Failure> {
        let (vg, lv) = self.name.split_once('/').unwrap_or_default();
        let inventory = Inventory::of_group(&self.tools, vg).await.map_err(|why| cannot(&self.name, &why))?;
        inventory.find(vg, lv).cloned().ok_or_else(|| self.refused("it is gone"))
    }

    /// Opening a device for oneself alone keeps mounts and other devices away, and no process that merely opened it.
    async fn check_alone(&self, volume: &LogicalVolume, device: &File) -> Result<(), Failure> {
        for look in 1..=LOOKS {
            if self.opened(volume).await? <= 1 {
                break;
            }
            if look == LOOKS && !self.force {
                return Err(self.refused("another process has it open (does a guest run from it?)"));
            }
            if look == LOOKS {
                self.note("it was overwritten although another process has it open, by force".to_owned());
            }
            tokio::time::sleep(self.between_looks).await;
        }
        // What was opened is the volume that was checked, and not another that came to its device's name.
        let size = rustix::fs::seek(device, rustix::fs::SeekFrom::End(0)).map_err(io::Error::from);
        match size {
            Ok(size) if size == volume.size => Ok(()),
            Ok(size) => Err(self.refused(format!("its device has {size} bytes, LVM says {}", volume.size))),
            Err(why) => Err(self.refused(why)),
        }
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

    async fn finish(&self) -> Result<(), Failure> {
        let Some(arguments) = plan::finished(self.volume()?) else { return Ok(()) };
        let done = self.change("lvchange", &arguments).await;
        done.map_err(|e| e.context(format!("{} is whole, and its tag still says otherwise", self.name)))
    }

    async fn unmake(&self, made: &LogicalVolume) -> Result<(), Failure> {
        let removed = commands::remove(&self.tools, made).await.map_err(|why| cannot(&self.name, &why));
        removed.map_err(|e| e.context(format!("{} was made for it and stays: lvremove it", self.name)))?;
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.clear();
        notes.push(format!("{} was made for this restore, and is removed again", self.name));
        Ok(())
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
