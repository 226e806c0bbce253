//! `prune`: deletes what no snapshot needs, beside backups and restores.

use std::time::Duration;

use agent::Repository;
use collector::{Announce, Collector, Limits, Patience, Report, Settings, Waiting};
use schema::names;
use serde::Serialize;

use crate::app::App;
use crate::args::PruneArgs;
use crate::settings::{parse_seconds, parse_size};
use crate::{bus, open, text};

/// Why a store may not let something go.
pub const LOCKED: &str = "object lock, or credentials that may not delete";

/// A session that a collection waits for.
#[derive(Debug, Serialize)]
pub struct Waits {
    /// Its id.
    pub session: String,
    /// What it is, as far as its object can be read.
    pub kind: Option<String>,
    /// Of which volume.
    pub volume: Option<String>,
    /// On which host.
    pub host: Option<String>,
    /// Since when.
    pub started: Option<String>,
}

impl From<&Waiting> for Waits {
    fn from(waiting: &Waiting) -> Self {
        let about = waiting.about.as_ref();
        Self {
            session: waiting.session.to_string(),
            kind: about.map(|about| format!("{:?}", about.kind).to_lowercase()),
            volume: about.map(|about| about.volume.clone()),
            host: about.map(|about| about.host.clone()),
            started: about.map(|about| text::rfc3339(about.started_ms)),
        }
    }
}

impl Waits {
    /// Which session, and what to do when it is dead.
    pub fn line(&self) -> String {
        let Self { session, kind, volume, host, started } = self;
        match (kind, volume, host, started) {
            (Some(kind), Some(volume), Some(host), Some(started)) => {
                format!(
                    "{kind} of {volume} on {host} since {started} (`lvkeep cancel {session}` if it is dead)"
                )
            }
            _ => format!(
                "session {session}, whose object cannot be read (`lvkeep cancel --force {session}` if it is dead)"
            ),
        }
    }
}

/// A pack that the store does not give.
#[derive(Debug, Serialize)]
struct Withheld {
    pack: String,
    why: String,
}

#[derive(Debug, Serialize)]
struct Pruned {
    dry_run: bool,
    collection: Option<u64>,
    finished: bool,
    snapshots_forgotten: u64,
    snapshots_removed: u64,
    packs_unneeded: u64,
    packs_rewritten: u64,
    packs_written: u64,
    packs_deleted: u64,
    bytes_written: u64,
    bytes_freed: u64,
    /// What the collection will remove yet that waits, at most, or that the store does not let go.
    snapshots_left: u64,
    packs_left: u64,
    bytes_left: u64,
    /// This and the next ones are counted when a collection begins, and not by who goes on with one.
    bytes_total: Option<u64>,
    bytes_unneeded: Option<u64>,
    bytes_movable_later: Option<u64>,
    bytes_scattered: Option<u64>,
    bytes_held_by_sessions: Option<u64>,
    bytes_damaged: Option<u64>,
    bytes_withheld: Option<u64>,
    packs_withheld: Vec<Withheld>,
    packs_locked: usize,
    snapshots_locked: usize,
    /// Of a dry run without a collection, those for which the collection would wait that it would begin.
    waits_for: Vec<Waits>,
}

/// `lvkeep prune`.
pub async fn run(app: &App, args: &PruneArgs) -> anyhow::Result<()> {
    app.stop_on_signals()?;
    let mut repository = app.repository().await?;
    if !args.dry_run {
        open::check_writable(&repository).await?;
        // Two creators of one name must not both win.
        open::probe(&mut repository).await?;
        delete_in_batches(app, &mut repository)?;
    }
    let collector = Collector::new(repository, settings(app, args).await?, app.stop.clone());
    let report = match args.dry_run {
        true => collector.dry_run().await?,
        false => collector.prune().await?,
    };
    let pruned = pruned(args, &report);
    app.print(&pruned, || describe(&pruned))
}

/// Deletes by a client that takes many keys at once, where there is one.
pub fn delete_in_batches(app: &App, repository: &mut Repository) -> anyhow::Result<()> {
    if let Some(batches) = open::batches(&app.settings.repo.value)? {
        repository.store = repository.store.clone().with_batches(batches);
    }
    Ok(())
}

async fn settings(app: &App, args: &PruneArgs) -> anyhow::Result<Settings> {
    let length = |what, text: &Option<String>| {
        text.as_deref().map(|text| parse_seconds(what, text).map(Duration::from_secs_f64)).transpose()
    };
    let announce = match app.settings.nats.value.is_some() && !args.dry_run {
        true => Announce::to(bus::connect(app, "prune").await?, app.settings.index_shards.value),
        false => Announce::default(),
    };
    Ok(Settings {
        limits: Limits {
            max_repack: parse_size("max-repack", &args.max_repack)?,
            repack_below: args.repack_below,
        },
        memory: app.settings.memory.value / 2,
        patience: Patience {
            wait: length("wait", &args.wait)?.unwrap_or_default(),
            revoke_after: length("revoke-after", &args.revoke_after)?,
        },
        exclusive: args.exclusive,
        announce,
    })
}

fn pruned(args: &PruneArgs, report: &Report) -> Pruned {
    let sums = report.sums.as_ref();
    Pruned {
        dry_run: args.dry_run,
        collection: report.epoch,
        finished: report.is_finished(),
        snapshots_forgotten: report.forgotten,
        snapshots_removed: report.swept.snapshots,
        packs_unneeded: report.dead,
        packs_rewritten: report.rewritten,
        packs_written: report.new_packs,
        packs_deleted: report.swept.packs,
        bytes_written: report.new_bytes,
        bytes_freed: report.swept.bytes,
        snapshots_left: report.left.snapshots,
        packs_left: report.left.packs,
        bytes_left: report.left.bytes,
        bytes_total: sums.map(|sums| sums.total),
        bytes_unneeded: sums.map(|sums| sums.dead + sums.rewritten.saturating_sub(sums.moved)),
        bytes_movable_later: sums.map(|sums| sums.later),
        bytes_scattered: sums.map(|sums| sums.scattered),
        bytes_held_by_sessions: sums.map(|sums| sums.held),
        bytes_damaged: sums.map(|sums| sums.damaged),
        bytes_withheld: sums.map(|sums| sums.withheld),
        packs_withheld: report
            .withheld
            .iter()
            .map(|(pack, why)| Withheld { pack: names::pack(*pack), why: why.clone() })
            .collect(),
        packs_locked: report.swept.locked.len(),
        snapshots_locked: report.swept.locked_roots.len(),
        waits_for: report.waits.iter().map(Waits::from).collect(),
    }
}

impl Pruned {
    /// Whether a dry run has found nothing to do.
    fn is_nothing(&self) -> bool {
        let found = self.snapshots_forgotten + self.packs_unneeded + self.packs_rewritten;
        found == 0 && self.is_to_begin()
    }

    /// Whether this is of a collection that has not begun.
    fn is_to_begin(&self) -> bool {
        self.dry_run && self.collection.is_none()
    }

    /// What was written for it, and what it comes to with that.
    fn rewritten(&self) -> String {
        if self.packs_written == 0 {
            return String::new();
        }
        let net = match self.bytes_freed.checked_sub(self.bytes_written) {
            Some(less) if self.finished => format!(": {} less in the end", text::size(less)),
            _ => String::new(),
        };
        format!(
            "; {} {} rewritten to {} ({}){net}",
            text::count(self.packs_rewritten, "pack"),
            text::of(self.packs_rewritten, "was", "were"),
            text::count(self.packs_written, "new one"),
            text::size(self.bytes_written)
        )
    }
}

fn describe(pruned: &Pruned) -> String {
    let mut lines = Vec::new();
    let size = text::size;
    match pruned.dry_run {
        true if pruned.is_nothing() => lines.push("nothing to collect".to_owned()),
        true => lines.push(format!(
            "would remove {} and {}, {} of them after moving what is needed to new ones: {} less in the end",
            text::count(pruned.snapshots_forgotten, "forgotten snapshot"),
            text::count(pruned.packs_unneeded + pruned.packs_rewritten, "pack"),
            pruned.packs_rewritten,
            size(pruned.bytes_unneeded.unwrap_or_default()),
        )),
        false if pruned.collection.is_none() => lines.push("nothing to collect".to_owned()),
        false => lines.push(format!(
            "removed {} and {} ({}){}",
            text::count(pruned.snapshots_removed, "forgotten snapshot"),
            text::count(pruned.packs_deleted, "pack"),
            size(pruned.bytes_freed),
            pruned.rewritten()
        )),
    }
    let mut left = |bytes: Option<u64>, what: &str| {
        if let Some(bytes) = bytes.filter(|bytes| *bytes > 0) {
            lines.push(format!("left: {} {what}", size(bytes)));
        }
    };
    left(pruned.bytes_movable_later, "no longer needed, for another run (--max-repack)");
    left(pruned.bytes_scattered, "no longer needed, in packs that mostly are (--repack-below)");
    left(pruned.bytes_held_by_sessions, "in packs that open sessions write to");
    left(
        pruned.bytes_damaged,
        "in damaged packs that may hold what stands nowhere else: they stay until backups or `lvkeep repair` have mended it",
    );
    left(pruned.bytes_withheld, "in packs that the store does not give, though it gives others");
    lines.extend(pruned.packs_withheld.iter().map(|one| format!("NOT GIVEN {}: {}", one.pack, one.why)));
    let waits = if pruned.is_to_begin() { "would wait for" } else { "waits for" };
    lines.extend(pruned.waits_for.iter().map(|one| format!("{waits} {}", one.line())));
    let Pruned { snapshots_left, packs_left, .. } = pruned;
    let bytes_left = size(pruned.bytes_left);
    if !pruned.waits_for.is_empty() && pruned.is_to_begin() {
        lines.push(
            "nothing would be deleted until they have ended (`--wait` waits for that; `--revoke-after` cancels old ones)"
                .to_owned(),
        );
    } else if !pruned.waits_for.is_empty() {
        lines.push(format!(
            "nothing more is deleted until they have ended; the next prune goes on, and then removes {} and up to {} \
             ({bytes_left})",
            text::count(*snapshots_left, "forgotten snapshot"),
            text::count(*packs_left, "pack")
        ));
    }
    if pruned.packs_locked + pruned.snapshots_locked > 0 {
        lines.push(format!(
            "the store does not let {} ({bytes_left}) and {} go yet ({LOCKED}); the next prune tries again",
            text::count(*packs_left, "pack"),
            text::count(*snapshots_left, "snapshot")
        ));
    }
    lines.join("\n")
}
