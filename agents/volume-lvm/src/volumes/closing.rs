//! The end of a session for its snapshot, and the tidying of what ended sessions left.

use std::sync::Arc;

use schema::{RepoId, SessionId};
use tokio::time::Instant;

use super::{Held, LvmVolumes, Shared, UNCLAIMED};
use crate::changes::{Pool, Tracker};
use crate::freeze::thaw_what_was_left;
use crate::marks::Marks;
use crate::owner::Owner;
use crate::report::Inventory;
use crate::settings::Settings;
use crate::snapshots::{self, Fate, Ours, commands};
use crate::tools::{ToolError, Tools};

impl Shared {
    /// The session is over: its snapshot becomes the baseline, or goes.
    pub(super) async fn close(self: Arc<Self>, session: SessionId, held: &Held, committed: bool) {
        let _changing = self.changing.lock().await;
        let ended = match Inventory::volumes_of_group(&self.tools, &held.vg).await {
            Ok(inventory) if committed => self.rotate(&inventory, session, held).await,
            Ok(inventory) => self.drop_uncommitted(&inventory, session, held).await,
            Err(why) => Err(why),
        };
        self.table().sessions.remove(&session);
        if let Err(why) = ended {
            tracing::warn!(volume = held.volume, %why, "LVM snapshots stay for the next run to tidy up");
        }
    }

    /// Nobody drives the session any more: its snapshot has no owner from here on, and stays. One that is open, or just
    /// being opened, keeps its own.
    pub(super) async fn release(&self, session: SessionId) {
        let _changing = self.changing.lock().await;
        let is_open = |held: &Arc<Held>| Arc::strong_count(held) > 1;
        let (vg, origin, repository) = match self.table().sessions.get(&session) {
            Some(held) if !is_open(held) => (held.vg.clone(), held.origin.clone(), held.repository),
            _ => return,
        };
        let disowned = async {
            let inventory = Inventory::volumes_of_group(&self.tools, &vg).await?;
            let Some(own) = snapshots::of_session(&inventory, &origin, repository, session) else {
                return Ok(());
            };
            let free = Marks { owner: None, ..own.marks.clone() };
            commands::mark(&self.tools, own.volume, &own.marks, &free).await
        };
        match disowned.await {
            Ok(()) => {
                tracing::warn!(%session, "nobody drives the session any more; its LVM snapshot is for the next run to judge");
                // Nobody opens it meanwhile: that takes the lock.
                self.table().sessions.remove(&session);
            }
            Err(why) => {
                tracing::warn!(%session, %why, "an LVM snapshot that nobody needs stays in use for now")
            }
        }
    }

    /// After a commit: the older ones go, and the session's own is kept for the next run or goes too.
    async fn rotate(&self, inventory: &Inventory, session: SessionId, held: &Held) -> Result<(), ToolError> {
        let in_use = |marks: &Marks| self.in_use(marks);
        let own = snapshots::of_session(inventory, &held.origin, held.repository, session);
        if let Some(own) = own.filter(|own| held.keep && own.volume.uuid == held.snapshot) {
            let kept = commands::kept(&own.marks);
            commands::mark(&self.tools, own.volume, &own.marks, &kept).await?;
            if own.volume.is_thin()
                && let Err(why) = commands::deactivate(&self.tools, own.volume).await
            {
                tracing::debug!(%why, "the baseline stays active");
            }
        }
        let gone = snapshots::rotate(inventory, &held.origin, held.repository, session, held.keep, in_use);
        remove_all(&self.tools, &gone).await
    }

    /// Nothing was committed: the older ones stay. A group's snapshot waits for whoever does the volume's job again.
    async fn drop_uncommitted(
        &self,
        inventory: &Inventory,
        session: SessionId,
        held: &Held,
    ) -> Result<(), ToolError> {
        let own = snapshots::of_session(inventory, &held.origin, held.repository, session);
        let Some(own) = own.filter(|own| own.volume.uuid == held.snapshot) else { return Ok(()) };
        let waits = own.marks.group.is_some_and(|run| self.table().groups.contains_key(&run));
        if waits && held.why_given_up().is_none() && !own.volume.attributes.is_invalid() {
            let free = Marks { session: None, ..own.marks.clone() };
            return commands::mark(&self.tools, own.volume, &own.marks, &free).await;
        }
        match snapshots::spared(inventory, &own) {
            None => commands::remove(&self.tools, own.volume).await,
            Some(why) => {
                tracing::warn!(
                    snapshot = own.volume.full_name(),
                    why,
                    "a snapshot of a failed session stays"
                );
                Ok(())
            }
        }
    }

    /// Removes snapshots of this process' groups that nobody came for: those that have waited long, or all.
    pub(super) async fn remove_unclaimed(self: Arc<Self>, all: bool) {
        let over: Vec<_> = {
            let mut table = self.table();
            // As long as one of its volumes is being read, the others may have to wait for their turn.
            let busy: Vec<_> = table.sessions.values().filter_map(|held| held.group).collect();
            for run in busy {
                if let Some(run) = table.groups.get_mut(&run) {
                    run.since = Instant::now();
                }
            }
            let over = table.groups.iter().filter(|(_, run)| all || run.since.elapsed() >= UNCLAIMED);
            let over: Vec<_> = over.map(|(run, _)| *run).collect();
            table.groups.retain(|run, _| !over.contains(run));
            over
        };
        if over.is_empty() {
            return;
        }
        let _changing = self.changing.lock().await;
        let Ok(inventory) = Inventory::load(&self.tools).await else { return };
        let waits = |ours: &Ours<'_>| {
            let marks = &ours.marks;
            marks.session.is_none()
                && marks.owner.as_ref() == Some(&self.owner)
                && marks.group.is_some_and(|run| over.contains(&run))
                && snapshots::spared(&inventory, ours).is_none()
        };
        let gone: Vec<Ours<'_>> = snapshots::all(&inventory).filter(waits).collect();
        if let Err(why) = remove_all(&self.tools, &gone).await {
            tracing::warn!(%why, "snapshots of a group stay for the next run to tidy up");
        }
    }
}

/// Removes each, and reports the first that could not be.
async fn remove_all(tools: &Tools, gone: &[Ours<'_>]) -> Result<(), ToolError> {
    let mut first = Ok(());
    for ours in gone {
        tracing::debug!(snapshot = ours.volume.full_name(), "removing");
        let removed = commands::remove(tools, ours.volume).await;
        first = first.and(removed);
    }
    first
}

/// One of lvkeep's snapshots, as it is listed, and what became of it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Cleaned {
    /// `vg/lv` of the snapshot.
    pub snapshot: String,
    /// `vg/lv` of its origin; none when that does not exist any more.
    pub origin: Option<String>,
    /// The repository.
    pub repository: String,
    /// The session.
    pub session: Option<String>,
    /// Thin, or with an exception store.
    pub thin: bool,
    /// Bytes of its exception store.
    pub size: Option<u64>,
    /// How full that is, in percent.
    pub full: Option<f64>,
    /// Its session's commit was read back, and it waits for the next run.
    pub baseline: bool,
    /// The process that uses it still runs.
    pub in_use: bool,
    /// Why it is an orphan; none when it is needed.
    pub orphan: Option<String>,
    /// It was removed.
    pub removed: bool,
}

impl LvmVolumes {
    /// All of lvkeep's snapshots on this host, judged by what `fate` says of their sessions. With `remove`, orphans go,
    /// what dead processes left frozen is thawed, and what they left reserved of pools is released.
    pub async fn survey(
        tools: &Tools,
        settings: &Settings,
        fate: impl Fn(RepoId, Option<SessionId>) -> Fate,
        remove: bool,
    ) -> Result<Vec<Cleaned>, ToolError> {
        if remove {
            thaw_what_was_left(tools, &settings.state).await;
        }
        let inventory = Inventory::load(tools).await?;
        if remove {
            let tracker = Tracker::new(tools.clone(), &settings.state);
            for pool in inventory.volumes.iter().filter(|volume| volume.segtype == "thin-pool") {
                let pool = Pool { group: pool.vg.clone(), name: pool.name.clone() };
                if let Err(why) = tracker.release_left(&pool).await {
                    tracing::warn!(%why, "a pool's metadata snapshot stays reserved, or somebody else's");
                }
            }
        }
        let in_use = |marks: &Marks| marks.owner.as_ref().is_some_and(Owner::is_alive);
        let mut cleaned = Vec::new();
        for ours in snapshots::all(&inventory) {
            let fate = fate(ours.marks.repository, ours.marks.session);
            let orphan = snapshots::orphaned(&inventory, &ours, fate, in_use);
            let spared = snapshots::spared(&inventory, &ours);
            let mut removed = false;
            if remove && orphan.is_some() && spared.is_none() {
                match commands::remove(tools, ours.volume).await {
                    Ok(()) => removed = true,
                    Err(why) => tracing::warn!(%why, "an orphan stays"),
                }
            }
            let orphan = orphan.map(|why| match spared {
                Some(but) => format!("{why}; it stays, because {but}"),
                None => why.to_owned(),
            });
            let thick = ours.volume.is_thick_snapshot();
            cleaned.push(Cleaned {
                snapshot: ours.volume.full_name(),
                origin: inventory.by_uuid(&ours.marks.origin).map(|origin| origin.full_name()),
                repository: ours.marks.repository.to_string(),
                session: ours.marks.session.map(|session| session.to_string()),
                thin: ours.volume.is_thin(),
                size: thick.then_some(ours.volume.size),
                full: ours.volume.data_percent.filter(|_| thick),
                baseline: ours.marks.baseline,
                in_use: in_use(&ours.marks),
                orphan,
                removed,
            });
        }
        Ok(cleaned)
    }
}
