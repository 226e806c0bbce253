//! What snapshots and targets mean: logical volumes by LVM's own word, anything else as the path that it is.
//!
//! A snapshot says what changed since it was taken; the changed bytes are read from its origin, as lvmsync does, or
//! from a newer snapshot, which is one moment. The newer one is taken for nothing but what it holds: whichever of two
//! classic snapshots is older, everything in which they differ is in the list of one or the other.

use std::path::Path;
use std::sync::Arc;

use agent::{Failure, Stop};
use schema::messages::FailureKind;

use super::blocking;
use super::differences;
use super::source::Source;
use super::target::Target;
use crate::changes::{Pool, Tracker};
use crate::dm::{DmName, ThinTable};
use crate::marks::Marks;
use crate::ranges::Ranges;
use crate::report::{Inventory, LogicalVolume};
use crate::target::spelling::{Meaning, Places};
use crate::target::tables;
use crate::target::zeroing::Kind;
use crate::tools::Tools;

/// What changed, and where it is read from.
#[derive(Debug)]
pub struct Changed {
    /// What the changed bytes are read from.
    pub source: Arc<Source>,
    /// What changed.
    pub ranges: Ranges,
    /// What the operator should know.
    pub notes: Vec<String>,
}

/// The logical volumes of this host.
#[derive(Debug, Clone)]
pub struct Host {
    tools: Tools,
    tracker: Tracker,
    places: Places,
}

impl Host {
    /// With these tools; `tracker` is made of the same ones.
    pub fn new(tools: Tools, tracker: Tracker) -> Self {
        Self { tools, tracker, places: Places { dev: "/dev".into(), sys: "/sys".into() } }
    }

    /// What changed since `snapshot` was taken, in its origin or, if that is given, in `newer`.
    pub async fn changed(
        &self,
        snapshot: &str,
        newer: Option<&str>,
        stop: &Stop,
    ) -> Result<Changed, Failure> {
        let refused = |why: String| Failure::refused(format!("cannot send {snapshot}: {why}"));
        let inventory = self.inventory([Some(snapshot), newer]).await?;
        let older = self.find(&inventory, snapshot)?;
        let to = newer.map(|newer| self.find(&inventory, newer)).transpose()?.flatten();
        // What is read from, when LVM may have a list of what changed.
        let from = match (older, to, newer) {
            (Some(older), None, None) => Some(origin_of(&inventory, older).map_err(refused)?),
            (Some(_), Some(to), _) => Some(to),
            (None, None, None) => {
                let why = "it is no LVM snapshot; --to says with what a file or another device is compared";
                return Err(refused(why.to_owned()));
            }
            _ => None,
        };
        let mut notes = Vec::new();
        if let Some((older, from)) = older.zip(from) {
            let source = open_source(&from.full_name(), &device_of(from).map_err(refused)?).await?;
            let settling = source.clone();
            blocking(move || settling.settle()).await?;
            if let Some(ranges) = self.listed(&inventory, older, from).await? {
                if from.attributes.is_open() && newer.is_none() {
                    notes.push(format!(
                        "{0} is in use: of what is written to it from now on, some is sent and some is not; --to a \
                         newer snapshot sends one moment",
                        from.full_name()
                    ));
                }
                return Ok(Changed { source, ranges, notes });
            }
        }
        let Some(newer) = newer else {
            return Err(refused("it is no snapshot of anything that LVM knows; see --to".to_owned()));
        };
        notes.push(format!("no snapshot says how {snapshot} and {newer} differ: both are read whole"));
        let old = open_source(snapshot, &path_of(snapshot, older).map_err(refused)?).await?;
        let new = open_source(newer, &path_of(newer, to).map_err(refused)?).await?;
        let ranges = differences::between(old, new.clone(), stop.clone()).await?;
        Ok(Changed { source: new, ranges, notes })
    }

    /// Opens what changes are applied to; a logical volume by its name or its path.
    pub async fn target(&self, target: &str) -> Result<Arc<Target>, Failure> {
        let refused = |why: String| Failure::refused(format!("cannot apply to {target}: {why}"));
        let inventory = self.inventory([Some(target), None]).await?;
        let (path, kind) = match self.find(&inventory, target)? {
            None => (target.to_owned(), None),
            Some(volume) if Marks::of(volume).is_some() => {
                return Err(refused("it is one of lvkeep's own snapshots".to_owned()));
            }
            Some(volume) => {
                for snapshot in inventory.thick_snapshots_of(volume) {
                    tracing::warn!(
                        target = volume.full_name(),
                        snapshot = snapshot.full_name(),
                        full = snapshot.data_percent,
                        "a snapshot of the target keeps what is overwritten, and is lost when it fills up: watch it"
                    );
                }
                (device_of(volume).map_err(refused)?, Some(self.kind_of(volume).await?))
            }
        };
        let name = target.to_owned();
        blocking(move || Target::open(&name, Path::new(&path), kind)).await.map(Arc::new)
    }

    /// What LVM knows, where one of these may be a volume of its.
    async fn inventory(&self, names: [Option<&str>; 2]) -> Result<Inventory, Failure> {
        let mut wanted = false;
        for name in names.into_iter().flatten() {
            wanted |= match self.meaning(name)? {
                Meaning::Path => false,
                Meaning::Volume { or_path, .. } => !or_path || self.tools.has("lvs"),
            };
        }
        match wanted {
            false => Ok(Inventory::default()),
            true => Inventory::load(&self.tools).await.map_err(device),
        }
    }

    fn meaning(&self, name: &str) -> Result<Meaning, Failure> {
        let refused = |why: String| Failure::refused(format!("{name}: {why}"));
        self.places.meaning(name, false).map_err(refused)
    }

    /// The volume that a name means; none when it is a path.
    fn find<'a>(&self, inventory: &'a Inventory, name: &str) -> Result<Option<&'a LogicalVolume>, Failure> {
        let Meaning::Volume { vg, lv, or_path } = self.meaning(name)? else { return Ok(None) };
        match inventory.find(&vg, &lv) {
            None if !or_path => Err(Failure::refused(format!("LVM knows no volume {vg}/{lv}"))),
            found => Ok(found),
        }
    }

    /// How `to` differs from `older`, by lists of LVM's; none when there is no such list.
    async fn listed(
        &self,
        inventory: &Inventory,
        older: &LogicalVolume,
        to: &LogicalVolume,
    ) -> Result<Option<Ranges>, Failure> {
        if older.is_thick_snapshot() {
            let origin = origin_of(inventory, older).map_err(Failure::refused)?;
            let mut lists = vec![older];
            match to.uuid == origin.uuid {
                true => {}
                false if to.is_thick_snapshot() && to.origin_uuid == older.origin_uuid => lists.push(to),
                false => return Ok(None),
            }
            let mut ranges = Ranges::new();
            for snapshot in lists {
                device_of(snapshot).map_err(Failure::refused)?;
                let name = DmName::of(&snapshot.vg, &snapshot.name);
                let listed = self.tracker.changed_ranges_thick(&name, origin.size).await.map_err(device)?;
                ranges = ranges.union(&listed);
            }
            return Ok(Some(ranges));
        }
        let pool = inventory.pool_of(older).filter(|_| older.is_thin() && to.is_thin());
        let same = inventory.pool_of(to).zip(pool).filter(|(a, b)| a.uuid == b.uuid);
        let (Some((pool, _)), Some(id)) = (same, older.thin_id) else { return Ok(None) };
        device_of(to).map_err(Failure::refused)?;
        let pool = Pool { group: pool.vg.clone(), name: pool.name.clone() };
        let newer = DmName::of(&to.vg, &to.name);
        let delta = self.tracker.changed_ranges_thin(&pool, id, &newer, to.size).await.map_err(device)?;
        let mut ranges = delta.changed;
        // What it grew by is not mapped on either side.
        ranges.push(older.size..to.size);
        Ok(Some(ranges))
    }

    /// What matters of a volume that is written to.
    async fn kind_of(&self, volume: &LogicalVolume) -> Result<Kind, Failure> {
        let name = DmName::of(&volume.vg, &volume.name);
        let table = self.table(&name).await?;
        let watched = tables::is_snapshot_origin(&table);
        let Some(pool) = volume.pool.as_deref().filter(|_| volume.is_thin()) else {
            return Ok(Kind::Thick { watched });
        };
        let thin = match watched {
            true => self.table(&name.layer("real")).await?,
            false => table,
        };
        let thin = ThinTable::parse(&thin).map_err(device)?;
        let said = self.table(&DmName::of(&volume.vg, pool).layer("tpool")).await?;
        let pool = tables::pool(&said).ok_or_else(|| {
            device(format!("{}: dmsetup says of its pool {pool}: `{}`", volume.full_name(), said.trim()))
        })?;
        Ok(tables::thin_kind(&thin, pool, watched))
    }

    async fn table(&self, name: &DmName) -> Result<String, Failure> {
        let said = self.tools.run("dmsetup", &["table", name.as_str()]).await;
        said.map(|output| output.text()).map_err(device)
    }
}

fn device(why: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Device, why.to_string())
}

/// The volume that a snapshot was taken of.
fn origin_of<'a>(inventory: &'a Inventory, snapshot: &LogicalVolume) -> Result<&'a LogicalVolume, String> {
    let name = snapshot.full_name();
    let by_uuid = snapshot.origin_uuid.as_ref().and_then(|uuid| inventory.by_uuid(uuid));
    let by_name = || inventory.find(&snapshot.vg, snapshot.origin.as_deref()?);
    by_uuid.or_else(by_name).ok_or_else(|| format!("{name} is no snapshot, or its origin is gone; see --to"))
}

/// The device of a volume, which must have one.
fn device_of(volume: &LogicalVolume) -> Result<String, String> {
    let name = volume.full_name();
    match volume.attributes.is_active() {
        true => Ok(volume.device()),
        false => Err(format!("{name} is not active: `lvchange --activate y --ignoreactivationskip {name}`")),
    }
}

fn path_of(name: &str, volume: Option<&LogicalVolume>) -> Result<String, String> {
    volume.map_or(Ok(name.to_owned()), device_of)
}

async fn open_source(name: &str, path: &str) -> Result<Arc<Source>, Failure> {
    let (name, path) = (name.to_owned(), path.to_owned());
    blocking(move || Source::open(&name, Path::new(&path))).await.map(Arc::new)
}
