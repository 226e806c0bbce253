//! `repair`: mends what the bucket itself has, builds the index anew, and marks snapshots with what of them is lost.
//!
//! Nothing is deleted. What is lost is healed by the next backup that still has it.

use std::sync::Arc;

use checker::{Content, Mender};
use schema::names;
use serde::Serialize;

use crate::app::App;
use crate::args::RepairArgs;
use crate::check::{self, Checked, Job};
use crate::{embedded, open};

#[derive(Debug, Serialize)]
struct Repaired {
    packs_salvaged: Vec<Salvaged>,
    packs_not_salvaged: Vec<Unsalvaged>,
    keys_restored: Vec<String>,
    snapshots_marked: u64,
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
    let (damaged, snapshots) = (report.damaged.len(), report.snapshots);
    let withheld = match report.damaged.iter().filter(|damaged| damaged.is_withheld()).count() {
        0 => String::new(),
        some => format!(
            "; of {some} of them the store does not give something now, by which no mark was changed: run this again later"
        ),
    };
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
        snapshots_marked: marked,
        checked: Checked::of(report),
    };
    app.print(&repaired, || repaired.text())?;
    let failure = repaired.checked.failure_of(format!(
        "{damaged} of {snapshots} snapshots have holes, which are marked; a backup of a volume that still has what is lost \
         heals them{withheld}"
    ));
    match failure {
        None => Ok(()),
        Some(failure) => Err(failure.into()),
    }
}

impl Repaired {
    fn text(&self) -> String {
        let salvaged = self.packs_salvaged.iter();
        let mut lines: Vec<String> = salvaged
            .map(|one| format!("{} chunks of {} were moved to a new pack", one.chunks, one.pack))
            .collect();
        let stay = self.packs_not_salvaged.iter();
        lines.extend(stay.map(|one| format!("NOT SALVAGED {}: {}", one.pack, one.why)));
        lines.extend(self.keys_restored.iter().map(|key| format!("{key} was stored again from a footer")));
        lines.push(self.checked.text());
        lines.join("\n")
    }
}
