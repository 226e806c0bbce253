//! Which snapshots are taken for a session, once it is known that there is room for all of them.

use std::collections::BTreeMap;

use agent::VolumeError;
use schema::RepoId;

use super::opening::Wish;
use super::{Shared, cannot_open, tool_failed};
use crate::governor::{self, NoRoom};
use crate::marks::Marks;
use crate::report::{Inventory, Kind, LogicalVolume, Uuid, VolumeGroup};
use crate::settings::Treatment;
use crate::snapshots::{self, commands::Store};

/// How often a pool is extended to get below its watermark.
const POOL_STEPS: usize = 3;

/// A snapshot that is about to be taken.
#[derive(Debug, Clone)]
pub(super) struct Take {
    pub(super) origin: LogicalVolume,
    pub(super) marks: Marks,
    pub(super) store: Option<Store>,
    pub(super) treatment: Treatment,
}

/// Why nothing is taken.
#[derive(Debug)]
pub(super) enum Refused {
    /// There is too little room.
    NoRoom(NoRoom),
    /// Anything else.
    Other(VolumeError),
}

impl From<VolumeError> for Refused {
    fn from(why: VolumeError) -> Self {
        Self::Other(why)
    }
}

impl Refused {
    /// What whoever opens this source is told.
    pub(super) fn of(self, source: &str) -> VolumeError {
        match self {
            Self::NoRoom(why) => cannot_open(source, why.to_string()),
            Self::Other(why) => why,
        }
    }
}

impl Shared {
    /// What is taken. `last` is what the last exception store of `own` has come to use, should it be gone by now.
    pub(super) async fn plan(
        &self,
        wish: &Wish,
        members: &[LogicalVolume],
        own: &LogicalVolume,
        last: Option<u64>,
    ) -> Result<Vec<Take>, Refused> {
        let source = &wish.source;
        // Anew: something was removed.
        let load = || async { Inventory::load(&self.tools).await.map_err(|why| tool_failed(source, &why)) };
        let mut inventory = load().await?;
        self.check_count(source, &inventory, members)?;
        for _ in 0..POOL_STEPS {
            if !self.extend_pools(&inventory, members).await {
                break;
            }
            inventory = load().await?;
        }
        let mut groups: BTreeMap<String, _> =
            inventory.groups.iter().map(|group| (group.name.clone(), group.clone())).collect();
        let mut takes = Vec::new();
        for origin in members {
            let treatment = self.settings.of(&origin.full_name());
            let no_group =
                || cannot_open(source, format!("LVM tells nothing about volume group {}", origin.vg));
            let group = groups.get_mut(&origin.vg).ok_or_else(no_group)?;
            let is_own = origin.uuid == own.uuid;
            let known = last_used(&inventory, &origin.uuid, wish.repository);
            let last = last.filter(|_| is_own).max(known);
            let store = self.store(source, &inventory, origin, group, &treatment, last)?;
            let marks = self.marks(wish, origin, is_own);
            takes.push(Take { origin: origin.clone(), marks, store, treatment });
        }
        Ok(takes)
    }

    /// The exception store of a volume's snapshot, taken from what the group has free; none of a thin one.
    fn store(
        &self,
        source: &str,
        inventory: &Inventory,
        origin: &LogicalVolume,
        group: &mut VolumeGroup,
        treatment: &Treatment,
        last: Option<u64>,
    ) -> Result<Option<Store>, Refused> {
        let limits = governor::Limits { store: treatment.store, ..self.settings.limits };
        if origin.kind() != Some(Kind::Thick) {
            if let Some(pool) = inventory.pool_of(origin) {
                governor::pool_has_room(pool, &limits).map_err(Refused::NoRoom)?;
            }
            return Ok(None);
        }
        if !origin.attributes.is_active() {
            let name = origin.full_name();
            let why = format!("{name} is not active: lvchange --activate y {name}");
            return Err(cannot_open(source, why).into());
        }
        let size = governor::store_size(origin, group, treatment.chunk, last, &limits);
        let size = size.map_err(Refused::NoRoom)?;
        group.free = group.free.saturating_sub(size);
        Ok(Some(Store { size, chunk: treatment.chunk }))
    }

    /// A session's own snapshot has the session's name; those of other sessions, whose ids nobody knows yet, get names
    /// of their own.
    fn marks(&self, wish: &Wish, origin: &LogicalVolume, is_own: bool) -> Marks {
        Marks {
            id: if is_own { wish.session } else { self.environment.session_id() },
            repository: wish.repository,
            origin: origin.uuid.clone(),
            session: is_own.then_some(wish.session),
            group: wish.group.as_ref().map(|group| group.run),
            owner: Some(self.owner.clone()),
            embedded: self.settings.embedded,
            baseline: false,
        }
    }

    /// Whether so many more may be read at once.
    fn check_count(
        &self,
        source: &str,
        inventory: &Inventory,
        members: &[LogicalVolume],
    ) -> Result<(), VolumeError> {
        let limit = self.settings.max_snapshots.max(1);
        for member in members {
            let more = members.iter().filter(|other| other.vg == member.vg).count();
            let busy = snapshots::all(inventory)
                .filter(|ours| ours.volume.vg == member.vg && self.in_use(&ours.marks))
                .count();
            if more > limit {
                let why = format!(
                    "its group has {more} volumes in {}, and {limit} snapshots are allowed there at once \
                     (max_snapshots)",
                    member.vg
                );
                return Err(cannot_open(source, why));
            }
            if busy + more > limit {
                let why = format!(
                    "{busy} snapshots are being read in {}, and {limit} are allowed (max_snapshots)",
                    member.vg
                );
                return Err(VolumeError::Busy { source_name: source.to_owned(), why });
            }
        }
        Ok(())
    }
}

/// Bytes that the last run's exception store of a volume has come to use.
pub(super) fn last_used(inventory: &Inventory, origin: &Uuid, repository: RepoId) -> Option<u64> {
    let stores = snapshots::of(inventory, origin, repository).filter(|ours| ours.volume.is_thick_snapshot());
    stores.filter_map(|ours| ours.volume.used()).max()
}
