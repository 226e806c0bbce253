//! `undo`, and what makes it possible: a snapshot of a target, committed before its first byte is overwritten.
//!
//! It is a snapshot like any other, of a volume that is named after the target: what the repository holds already
//! takes no room, and it stands for as long as it is wanted, whatever becomes of the restore.

use std::path::Path;

use agent::Failure;
use anyhow::{Context, bail};
use schema::messages::{BackupJob, JobOutcome};
use schema::root::Root;

use crate::app::App;
use crate::args::{RestoreOptions, UndoArgs};
use crate::embedded::Embedded;
use crate::progress::Display;
use crate::restore::Order;
use crate::{backup, restore, select};

/// What names of volumes begin with that are kept for an undo; the host and the target follow.
const NAMES: &str = "undo/";

/// Keeps what stands on a target as a snapshot, and says so. Nothing is kept where there is no target yet, or an empty
/// file.
pub async fn keep(app: &App, work: &mut Embedded, target: &str) -> anyhow::Result<()> {
    let source = restore::path(target)?;
    if is_empty(&source) {
        return Ok(());
    }
    // Whoever undoes it may stand in another folder.
    let source = std::path::absolute(&source).with_context(|| format!("finding {}", source.display()))?;
    let Some(source) = source.to_str().map(str::to_owned) else {
        bail!(Failure::refused(format!("{target}: --undo needs a target whose name is text")));
    };
    let host = app.settings.host.value.clone();
    let volume = format!("{NAMES}{host}/{}", source.trim_start_matches("/dev/").trim_start_matches('/'));
    let job = BackupJob {
        job: app.environment.job_id(),
        volume,
        host,
        source,
        tags: Vec::new(),
        allow_changes: false,
        group: None,
    };
    let context = work.context.clone();
    let display = Display::new(app);
    let bar = display.bar(&job.volume);
    let outcome = tokio::select! {
        biased;
        outcome = backup::follow_job(&context, &job, &bar) => outcome,
        error = work.role_failed() => Err(error),
    };
    bar.finish();
    match outcome.with_context(|| format!("keeping what stands on {target}"))? {
        JobOutcome::Sealed { slot, .. } => {
            let id = slot.session;
            app.say(format!("what stands on {target} is kept as {id}: `lvkeep undo {id}` puts it back"));
            Ok(())
        }
        JobOutcome::Failed { kind, why } => Err(anyhow::Error::from(Failure::new(kind, why))
            .context(format!("cannot keep what stands on {target}; nothing was changed"))),
        JobOutcome::Restored { .. } => bail!("the answer to a backup was that of a restore"),
    }
}

/// Errors are the backup's or the restore's to tell.
fn is_empty(path: &Path) -> bool {
    match std::fs::metadata(path) {
        Ok(found) => found.is_file() && found.len() == 0,
        Err(why) => why.kind() == std::io::ErrorKind::NotFound,
    }
}

/// `lvkeep undo`.
pub async fn run(app: &App, args: &UndoArgs) -> anyhow::Result<()> {
    app.stop_on_signals()?;
    let work = Embedded::reading(app).await?;
    let undone = put_back(app, args, &work).await;
    work.finish().await;
    undone
}

async fn put_back(app: &App, args: &UndoArgs, work: &Embedded) -> anyhow::Result<()> {
    let root = select::snapshot(&work.repository, &args.snapshot).await?;
    check(&root, &app.settings.host.value)?;
    let restorer = restore::make(app, work, restore::identity(app, work)?);
    let options = RestoreOptions { force: args.force, ..RestoreOptions::default() };
    let order = Order { target: root.source.clone(), preparation: options.preparation()?, options, root };
    restore::one(app, &restorer, &order, order.to().with_content()).await
}

/// Only what was kept for it is put back, and only where it was.
fn check(root: &Root, host: &str) -> anyhow::Result<()> {
    let (id, volume) = (root.slot.session, &root.volume);
    if !volume.starts_with(NAMES) {
        bail!(Failure::refused(format!(
            "{id} is a snapshot of {volume}, and was not kept by `restore --undo`: `lvkeep restore {id} TARGET` restores it"
        )));
    }
    if root.host != host {
        bail!(Failure::refused(format!(
            "{id} was kept on host {}, and this is {host}: run this there, or `lvkeep restore {id} TARGET`",
            root.host
        )));
    }
    Ok(())
}
