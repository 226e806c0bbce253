//! What the baselines of a target know of its changes: as for a backup, and by the same rules.
//!
//! A baseline goes on saying what the target was like whatever is written to the target, until it overflows; a list that
//! was taken from it before the first byte is overwritten holds for the whole restore. It holds only for what has
//! reached the device and as long as nobody else writes.

use std::fs::File;

use agent::Base;
use schema::RepoId;

use super::plan::Volume;
use super::{LvmPlace, tables};
use crate::dm::DmName;
use crate::owner::Owner;
use crate::ranges::Ranges;
use crate::report::{Inventory, LogicalVolume};
use crate::snapshots::{self, Ours};

/// What the snapshots of a volume that is there are of. One that a backup reads just now is of no session that is over.
pub(super) fn bases(inventory: &Inventory, volume: &Volume, repository: RepoId) -> Vec<Base> {
    let Volume::There(volume) = volume else { return Vec::new() };
    let over = |ours: &Ours<'_>| !ours.marks.owner.as_ref().is_some_and(Owner::is_alive);
    snapshots::of(inventory, &volume.uuid, repository).filter(over).filter_map(|ours| base(&ours)).collect()
}

fn base(ours: &Ours<'_>) -> Option<Base> {
    let reading = snapshots::reading_of(&ours.volume.uuid);
    ours.marks.session.map(|session| Base { session, reading })
}

impl LvmPlace {
    /// What may differ from one of [`bases`]; or why that cannot be told.
    pub(super) async fn changed_since(&self, device: &File, since: &Base) -> Result<Ranges, String> {
        let (vg, lv) = self.name.split_once('/').unwrap_or_default();
        let inventory = Inventory::of_group(&self.tools, vg).await.map_err(|why| why.to_string())?;
        let expected = self.volume().map_err(|failure| failure.why)?;
        let volume = inventory.find(vg, lv).filter(|volume| volume.uuid == expected.uuid);
        let volume = volume.ok_or("another volume has its name by now")?;
        let mut of_it = snapshots::of(&inventory, &volume.uuid, self.repository);
        let baseline = of_it.find(|ours| base(ours).as_ref() == Some(since));
        let baseline = baseline.ok_or("its LVM snapshot is gone")?;
        let name = baseline.volume.full_name();
        if let Some(why) = snapshots::unfit(&baseline) {
            return Err(format!("{name} {why}"));
        }
        if volume.kind().is_none() || volume.is_thin() != baseline.volume.is_thin() {
            return Err(format!("{name} is of another kind than its volume"));
        }
        if !self.kind_of(volume).await.map_err(|failure| failure.why)?.keeps_equal() {
            return Err("nothing on it may be left alone".to_owned());
        }
        if !self.is_alone(volume).await.map_err(|failure| failure.why)? {
            return Err("another process has the volume open, and may write to it".to_owned());
        }
        written_back(device)
            .await
            .map_err(|why| format!("cannot make durable what was written to it: {why}"))?;
        self.listed(volume, baseline.volume).await
    }

    async fn listed(&self, volume: &LogicalVolume, baseline: &LogicalVolume) -> Result<Ranges, String> {
        if !volume.is_thin() {
            let snapshot = DmName::of(&baseline.vg, &baseline.name);
            let changed = self.tracker.changed_ranges_thick(&snapshot, volume.size).await;
            return changed.map_err(|why| why.to_string());
        }
        let name = DmName::of(&volume.vg, &volume.name);
        let table = self.table(&name).await.map_err(|failure| failure.why)?;
        let device = match tables::is_snapshot_origin(&table) {
            true => name.layer("real"),
            false => name,
        };
        self.tracker.thin_since(baseline, volume, &device).await
    }
}

/// What somebody wrote and closed may be in the page cache only, where no snapshot sees it.
async fn written_back(device: &File) -> std::io::Result<()> {
    let device = device.try_clone()?;
    match tokio::task::spawn_blocking(move || device.sync_all()).await {
        Ok(synced) => synced,
        Err(why) => Err(std::io::Error::other(why)),
    }
}
