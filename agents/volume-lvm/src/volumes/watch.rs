//! Watches what fills up while snapshots are being read, and acts before it overflows.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::{Held, Shared};
use crate::governor::{self, Act};
use crate::report::{Inventory, LogicalVolume, VolumeGroup};
use crate::snapshots::{self, Ours, commands};
use crate::tools::ToolError;

/// Pause between two looks.
const INTERVAL: Duration = Duration::from_secs(3);

impl Shared {
    /// Sees to it that somebody watches as long as there is something to watch.
    pub(super) fn watch(self: &Arc<Self>) {
        let begin = !std::mem::replace(&mut self.table().watched, true);
        if begin {
            let shared = self.clone();
            tokio::spawn(async move {
                while !shared.is_idle() {
                    tokio::time::sleep(INTERVAL).await;
                    shared.clone().remove_unclaimed(false).await;
                    shared.look().await;
                }
            });
        }
    }

    /// Nothing is open: the watch ends, and the next snapshot begins another.
    fn is_idle(&self) -> bool {
        let mut table = self.table();
        let idle = table.sessions.is_empty() && table.groups.is_empty();
        table.watched = !idle;
        idle
    }

    /// One look at every group in which something is read.
    pub(super) async fn look(&self) {
        let (held, groups) = self.watched();
        for vg in &groups {
            // Whoever changes something has changed what is seen here.
            let _changing = self.changing.lock().await;
            let inventory = match Inventory::of_group(&self.tools, vg).await {
                Ok(inventory) => inventory,
                Err(why) => {
                    tracing::warn!(vg, %why, "cannot look how full snapshots are");
                    continue;
                }
            };
            let Some(group) = inventory.group(vg).cloned() else { continue };
            let here: Vec<&Arc<Held>> = held.iter().filter(|held| held.vg == *vg).collect();
            self.look_at(&inventory, group, &here).await;
        }
    }

    /// What is being read, and the volume groups in which something is or waits to be.
    fn watched(&self) -> (Vec<Arc<Held>>, BTreeSet<String>) {
        let table = self.table();
        let held: Vec<Arc<Held>> = table.sessions.values().cloned().collect();
        let runs = table.groups.values().flat_map(|run| run.vgs.iter().cloned());
        let groups = held.iter().map(|held| held.vg.clone()).chain(runs).collect();
        (held, groups)
    }

    /// This process' snapshots of groups that no session has come for yet.
    fn waiting<'a>(&'a self, inventory: &'a Inventory) -> impl Iterator<Item = Ours<'a>> {
        snapshots::all(inventory).filter(|ours| {
            let of_this = ours.marks.session.is_none() && ours.marks.owner.as_ref() == Some(&self.owner);
            of_this && ours.marks.group.is_some_and(|run| self.table().groups.contains_key(&run))
        })
    }

    async fn look_at(&self, inventory: &Inventory, mut group: VolumeGroup, here: &[&Arc<Held>]) {
        let mut pools = BTreeSet::new();
        let limits = &self.settings.limits;
        // What overflows before its turn comes fails then.
        for waiting in self.waiting(inventory).filter(|waiting| waiting.volume.is_thick_snapshot()) {
            let origin = inventory.by_uuid(&waiting.marks.origin).map_or(u64::MAX, |origin| origin.size);
            let act = governor::watch_store(waiting.volume, origin, &group, limits);
            self.act(act, waiting.volume, &mut group, &[]).await;
        }
        for held in here {
            if let Some(snapshot) = inventory.by_uuid(&held.snapshot)
                && snapshot.is_thick_snapshot()
            {
                let act = governor::watch_store(snapshot, held.size, &group, limits);
                self.act(act, snapshot, &mut group, &[held]).await;
                // The baseline is worth extending, and nothing to give anything up for.
                let older = snapshots::of(inventory, &held.origin, held.repository);
                for older in older.filter(|older| older.volume.uuid != held.snapshot) {
                    let act = governor::watch_store(older.volume, held.size, &group, limits);
                    self.act(act, older.volume, &mut group, &[]).await;
                }
            }
            if let Some(pool) = held.pool.as_ref().and_then(|uuid| inventory.by_uuid(uuid))
                && pools.insert(pool.uuid.clone())
            {
                let metadata = metadata_size(inventory, pool);
                let users: Vec<&Arc<Held>> =
                    here.iter().copied().filter(|held| held.pool.as_ref() == Some(&pool.uuid)).collect();
                for act in governor::watch_pool(pool, metadata, &group, limits) {
                    self.act(Some(act), pool, &mut group, &users).await;
                }
            }
        }
    }

    /// Extends the pools of these volumes that are too full for one more snapshot, as far as that is allowed. Says
    /// whether it tried.
    pub(super) async fn extend_pools(&self, inventory: &Inventory, members: &[LogicalVolume]) -> bool {
        let mut pools = BTreeSet::new();
        let mut tried = false;
        for pool in members.iter().filter_map(|member| inventory.pool_of(member)) {
            let Some(mut group) = inventory.group(&pool.vg).cloned() else { continue };
            if !pools.insert(pool.uuid.clone()) {
                continue;
            }
            let acts =
                governor::watch_pool(pool, metadata_size(inventory, pool), &group, &self.settings.limits);
            for act in acts.into_iter().filter(|act| !matches!(act, Act::GiveUp(_))) {
                self.act(Some(act), pool, &mut group, &[]).await;
                tried = true;
            }
        }
        tried
    }

    async fn act(
        &self,
        act: Option<Act>,
        volume: &LogicalVolume,
        group: &mut VolumeGroup,
        users: &[&Arc<Held>],
    ) {
        let (extended, by): (Result<(), ToolError>, u64) = match act {
            None => return,
            Some(Act::GiveUp(why)) => {
                for held in users {
                    if held.give_up(&why) {
                        tracing::error!(volume = held.volume, why, "a backup is given up");
                    }
                }
                return;
            }
            Some(Act::Extend(by)) => (commands::extend(&self.tools, volume, by).await, by),
            Some(Act::ExtendMetadata(by)) => (commands::extend_metadata(&self.tools, volume, by).await, by),
        };
        let name = volume.full_name();
        match extended {
            Ok(()) => {
                group.free = group.free.saturating_sub(by);
                tracing::info!(volume = name, by, "extended before it is full");
            }
            Err(why) => tracing::warn!(%why, "could not extend what fills up"),
        }
    }
}

/// Bytes of a pool's metadata volume.
fn metadata_size(inventory: &Inventory, pool: &LogicalVolume) -> u64 {
    let is_it = |volume: &&LogicalVolume| {
        volume.vg == pool.vg && Some(&volume.name) == pool.metadata_lv.as_ref() && volume.hidden
    };
    inventory.volumes.iter().find(is_it).map_or(0, |volume| volume.size)
}
