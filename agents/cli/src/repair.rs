//! `repair`: mends what the bucket itself has, builds the index anew, and marks snapshots with what of them is lost.
//!
//! Nothing is deleted. What is lost is healed by the next backup that still has it.

use std::sync::Arc;

use agent::Failure;
use checker::{Content, Marked, Mender, Report};
use schema::names;
use serde::Serialize;

use crate::app::App;
use crate::args::RepairArgs;
use crate::check::{self, Checked, Job};
use crate::{embedded, open, text};

#[derive(Debug, Serialize)]
struct Repaired {
    packs_salvaged: Vec<Salvaged>,
    packs_not_salvaged: Vec<Unsalvaged>,
    keys_restored: Vec<String>,
    keys_not_looked_into: Vec<Unread>,
    /// Markers and tombstones of forgotten snapshots that stand there again.
    forgotten_restored: Vec<String>,
    forgotten_not_restored: Vec<Unread>,
    /// Objects of collections that could not be read, and stop nobody any more.
    collections_ended: Vec<String>,
    collections_not_ended: Vec<String>,
    snapshots_marked: u64,
    /// Marks that stay because not all damage is known.
    marks_kept: u64,
    marks_failed: Vec<String>,
    #[serde(flatten)]
    checked: Checked,
}

#[derive(Debug, Serialize)]
struct Salvaged {
    pack: String,
    chunks: u64,
}

#[derive(Debug, Serialize)]
struct Unsalvaged {
    pack: String,
    why: String,
}

#[derive(Debug, Serialize)]
struct Unread {
    key: String,
    why: String,
}

/// `lvkeep repair`.
pub async fn run(app: &App, args: &RepairArgs) -> anyhow::Result<()> {
    app.stop_on_signals()?;
    let repository = app.repository().await?;
    open::check_writable(&repository).await?;
    let identity = open::identity(&app.settings, repository.key.repo())?.map(Arc::new);
    let host = app.settings.host.value.clone();
    let mended = Mender::new(repository.clone(), identity, host, app.stop.clone()).mend().await?;
    // What is in the cache may be of packs that are not as they were.
    embedded::rebuild(app, &repository).await?;
    let content = if args.read_data { Content::All { after: None } } else { Content::None };
    let job = Job { content, stopped: None, record: true, mark: true };
    let (report, marked) = check::check(app, &repository, &job, &|_| ()).await?;
    let said = Said::of(&report, &marked);
    let repaired = Repaired {
        packs_salvaged: mended
            .packs
            .iter()
            .map(|(pack, chunks)| Salvaged { pack: names::pack(*pack), chunks: *chunks })
            .collect(),
        packs_not_salvaged: mended
            .unsalvaged
            .into_iter()
            .map(|(pack, why)| Unsalvaged { pack: names::pack(pack), why })
            .collect(),
        keys_restored: mended.keys.iter().map(|id| names::key(*id)).collect(),
        keys_not_looked_into: mended
            .keys_withheld
            .into_iter()
            .map(|(id, why)| Unread { key: names::key(id), why })
            .collect(),
        forgotten_restored: mended.forgotten,
        forgotten_not_restored: mended.stays.into_iter().map(|(key, why)| Unread { key, why }).collect(),
        collections_ended: mended.collections,
        collections_not_ended: mended.unended,
        snapshots_marked: marked.snapshots,
        marks_kept: marked.kept,
        marks_failed: marked.failures,
        checked: Checked::of(report),
    };
    app.print(&repaired, || repaired.text(app.is_verbose))?;
    let failure = match (repaired.checked.failure_of(said.text()), &repaired.marks_failed[..]) {
        (failure, []) => failure,
        (None, failed) => Some(Failure::damaged(failed.join(". "))),
        (Some(failure), failed) => {
            Some(Failure { why: format!("{}. {}", failure.why, failed.join(". ")), ..failure })
        }
    };
    match failure {
        None => Ok(()),
        Some(failure) => Err(failure.into()),
    }
}

/// Snapshots, of which this is said.
struct Said {
    snapshots: u64,
    damaged: usize,
    marked: u64,
    withheld: usize,
}

impl Said {
    fn of(report: &Report, marked: &Marked) -> Self {
        let withheld = report.damaged.iter().filter(|damaged| damaged.is_withheld()).count();
        let (snapshots, damaged) = (report.snapshots, report.damaged.len());
        Self { snapshots, damaged, marked: marked.snapshots, withheld }
    }

    fn text(&self) -> String {
        let Self { snapshots, damaged, marked, withheld } = self;
        let marked = match marked {
            0 => String::new(),
            some => format!(
                "; {some} {} marked with what of {} is lost, which a backup of a volume that still has it heals (the next \
                 `lvkeep repair` takes the mark away then)",
                text::of(*some, "is", "are"),
                text::of(*some, "it", "them")
            ),
        };
        let withheld = match withheld {
            0 => String::new(),
            some => format!(
                "; of {some} of them the store does not give something now, by which no mark was changed: run this again \
                 later"
            ),
        };
        let snapshots = text::count(*snapshots, "snapshot");
        format!("{damaged} of {snapshots} cannot be read whole{marked}{withheld}")
    }
}

impl Repaired {
    fn text(&self, is_verbose: bool) -> String {
        let salvaged = self.packs_salvaged.iter();
        let mut lines: Vec<String> = salvaged
            .map(|one| {
                let (chunks, were) = (text::count(one.chunks, "chunk"), text::of(one.chunks, "was", "were"));
                format!("{chunks} of {} {were} moved to a new pack", one.pack)
            })
            .collect();
        let stay = self.packs_not_salvaged.iter();
        lines.extend(stay.map(|one| format!("NOT SALVAGED {}: {}", one.pack, one.why)));
        lines.extend(self.keys_restored.iter().map(|key| format!("{key} was stored again from a footer")));
        let unread = self.keys_not_looked_into.iter();
        lines.extend(unread.map(|one| format!("NOT LOOKED INTO {}: {}", one.key, one.why)));
        let forgotten = self.forgotten_restored.iter();
        lines.extend(
            forgotten
                .map(|key| format!("{key} could not be read, and says again that a snapshot is forgotten")),
        );
        let stays = self.forgotten_not_restored.iter();
        lines.extend(stays.map(|one| format!("NOT PUT ANEW {}: {}", one.key, one.why)));
        let ended = self.collections_ended.iter();
        lines.extend(ended.map(|key| format!("{key} could not be read, and stops no collection any more")));
        lines.extend(self.collections_not_ended.iter().map(|why| format!("NOT ENDED: {why}")));
        lines.extend(self.marks_failed.iter().map(|why| format!("NOT MARKED: {why}")));
        if self.marks_kept > 0 {
            lines.push(format!(
                "{} in which nothing was found {} marked, because not all damage is known: `lvkeep repair --read-data` \
                 finds out",
                text::count(self.marks_kept, "snapshot"),
                text::of(self.marks_kept, "stays", "stay")
            ));
        }
        lines.push(self.checked.text(is_verbose));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing is said to be marked that is not, and what may be given again is said to be.
    #[test]
    fn what_is_marked_is_said_and_what_is_withheld() {
        for (marked, withheld, says_marked, says_again) in
            [(0, 1, false, true), (1, 0, true, false), (1, 1, true, true)]
        {
            let text = Said { snapshots: 5, damaged: 2, marked, withheld }.text();
            assert!(text.starts_with("2 of 5 snapshots"), "{text}");
            assert_eq!(text.contains("marked with"), says_marked, "{text}");
            assert_eq!(text.contains("again later"), says_again, "{text}");
        }
    }
}
