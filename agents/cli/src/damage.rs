//! Damage that checks have recorded, as `status` tells it: how much there is, and whether anything may lack it yet.
//!
//! Records stay for as long as the packs do that they name. So what is recorded alarms nobody where it is known to stand
//! elsewhere by now, which this host's index knows, if it has one that no other process has just now. Whom it concerns only
//! `check` knows.

use std::collections::{BTreeMap, BTreeSet};

use agent::damage::Damages;
use agent::{Failure, Repository};
use schema::messages::{About, FailureKind};
use schema::names::Slot;
use schema::{ChunkId, PackId};
use serde::Serialize;

use crate::app::App;
use crate::embedded::{self, Embedded};
use crate::{holes, text};

/// What is recorded below `damage/` and `holes/`, as it is printed.
#[derive(Debug, Default, Serialize)]
pub struct Recorded {
    /// Records of damage that could be read, as far as there is room to mind what they say.
    records: u64,
    /// Chunks that they name.
    chunks: u64,
    /// Frames of those that are no copies.
    frames: u64,
    /// Packs of which nothing can be read.
    packs: u64,
    /// Chunks among them that stand elsewhere by now; nothing where this host has no index to ask, or not now.
    chunks_healed: Option<u64>,
    /// Whether another process has the index.
    is_index_busy: bool,
    /// Whether there is a record that could not be read, or for which there was no room.
    is_incomplete: bool,
    /// Snapshots that a repair has marked with what of them is lost.
    snapshots_marked: u64,
}

impl Recorded {
    /// Reads it. `visible` are the snapshots that can be marked, `packs` those that are there, with their sizes.
    pub async fn load(
        app: &App,
        repository: &Repository,
        visible: &BTreeSet<Slot>,
        packs: &[(PackId, u64)],
    ) -> anyhow::Result<Self> {
        let damages = Damages::load(repository).await?;
        let marked = holes::slots(repository).await?;
        let healed = healed(app, repository, &damages, packs).await;
        Ok(Self {
            records: damages.records() as u64,
            chunks: damages.chunks().count() as u64,
            frames: damages.chunks().map(|(_, packs)| packs.len() as u64).sum(),
            packs: damages.packs().len() as u64,
            chunks_healed: match healed {
                Healed::So(chunks) => Some(chunks),
                Healed::Unknown | Healed::NotNow => None,
            },
            is_index_busy: matches!(healed, Healed::NotNow),
            is_incomplete: damages.is_incomplete(),
            snapshots_marked: marked.intersection(visible).count() as u64,
        })
    }

    /// Chunks that may be needed and stand nowhere else, as far as is known here.
    fn chunks_lost(&self) -> u64 {
        self.chunks.saturating_sub(self.chunks_healed.unwrap_or_default())
    }

    /// Why somebody should look at it, if anybody should.
    pub fn alarm(&self) -> Option<Failure> {
        let alarms = self.alarms();
        (!alarms.is_empty()).then(|| Failure::damaged(alarms.join("; ")))
    }

    fn alarms(&self) -> Vec<String> {
        let (lost, marked) = (self.chunks_lost(), self.snapshots_marked);
        let mut alarms = Vec::new();
        if lost > 0 {
            let (chunks, are) = (text::count(lost, "damaged chunk"), text::of(lost, "is", "are"));
            let unknown = match self.is_index_busy {
                true => {
                    "; whether it is healed is not known now, because another process has this host's index"
                }
                false => "",
            };
            alarms.push(format!(
                "{chunks} {are} recorded (`lvkeep check` names the snapshots it concerns){unknown}"
            ));
        }
        if self.is_incomplete {
            alarms
                .push("not all that is recorded as damaged can be read (`lvkeep check` says why)".to_owned());
        }
        if marked > 0 {
            let (snapshots, are) = (text::count(marked, "snapshot"), text::of(marked, "is", "are"));
            let of = text::of(marked, "it", "them");
            alarms.push(format!(
                "{snapshots} {are} marked with what of {of} is lost (`lvkeep snapshots` shows it; where backups have healed \
                 it, `lvkeep repair` takes the mark away)"
            ));
        }
        alarms
    }

    /// For people, when there is anything to say.
    pub fn text(&self) -> Option<String> {
        let alarms = self.alarms();
        let mut lines: Vec<String> = alarms.into_iter().map(|alarm| format!("DAMAGED: {alarm}")).collect();
        if let Some(healed @ 1..) = self.chunks_healed {
            let (chunks, are) = (text::count(healed, "damaged chunk"), text::of(healed, "is", "are"));
            lines.push(format!(
                "{chunks} {are} recorded, and whole elsewhere by now: a `lvkeep check` after the `lvkeep prune` that removes \
                 the damaged {} takes the record away",
                text::of(healed, "copy", "copies")
            ));
        }
        (!lines.is_empty()).then(|| lines.join("\n"))
    }
}

/// How many of the chunks that are recorded stand elsewhere.
enum Healed {
    So(u64),
    /// What is not known to be healed is not.
    Unknown,
    /// Another process has the index.
    NotNow,
}

/// Asks this host's index. No reason to fail.
async fn healed(app: &App, repository: &Repository, damages: &Damages, packs: &[(PackId, u64)]) -> Healed {
    let ids: Vec<ChunkId> = damages.chunks().map(|(id, _)| *id).collect();
    if ids.is_empty() {
        return Healed::So(0);
    }
    if !embedded::has_cache(app, repository) {
        return Healed::Unknown;
    }
    let located = async {
        let work = Embedded::unshared(app, repository.clone()).await?;
        let located = work.index.locate(&About::nothing(), &ids).await;
        work.finish().await;
        Ok::<_, anyhow::Error>(located?)
    };
    let sizes: BTreeMap<PackId, u64> = packs.iter().copied().collect();
    match located.await {
        Ok(located) => {
            let each = ids.iter().zip(&located);
            let healed =
                each.filter(|(id, copies)| copies.iter().any(|copy| damages.spares(id, copy, &sizes)));
            Healed::So(healed.count() as u64)
        }
        Err(why) if why.downcast_ref::<Failure>().is_some_and(|why| why.kind == FailureKind::Refused) => {
            Healed::NotNow
        }
        Err(why) => {
            tracing::warn!(why = text::error(&why), "cannot see what of the damage is healed");
            Healed::Unknown
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is healed is said, and alarms nobody; what nobody can know is no reason for silence.
    #[test]
    fn what_is_recorded_alarms_until_it_is_known_to_be_healed() {
        let recorded = |chunks, chunks_healed, snapshots_marked| Recorded {
            records: 1,
            chunks,
            chunks_healed,
            snapshots_marked,
            ..Recorded::default()
        };
        let (one, whole) = (
            "DAMAGED: 1 damaged chunk is recorded (`lvkeep check`",
            "1 damaged chunk is recorded, and whole",
        );
        let marked = "DAMAGED: 1 snapshot is marked with what of it is lost";
        for (recorded, is_alarm, said) in [
            (Recorded::default(), false, &[][..]),
            (recorded(1, None, 0), true, &[one]),
            (recorded(3, Some(1), 0), true, &["DAMAGED: 2 damaged chunks are recorded (", whole]),
            (recorded(1, Some(1), 0), false, &[whole]),
            (recorded(1, Some(1), 1), true, &[marked, whole]),
            (Recorded { is_incomplete: true, ..recorded(0, Some(0), 0) }, true, &["DAMAGED: not all"]),
            (
                Recorded { is_index_busy: true, ..recorded(2, None, 0) },
                true,
                &["DAMAGED: 2 damaged chunks are recorded ("],
            ),
        ] {
            let text = recorded.text().unwrap_or_default();
            assert_eq!(recorded.alarm().is_some(), is_alarm, "{text}");
            assert_eq!(text.lines().count(), said.len(), "{text}");
            assert!(text.lines().zip(said).all(|(line, said)| line.starts_with(said)), "{text}");
        }
    }
}
