//! `undo`, and what makes it possible: a snapshot of a target, committed before its first byte is overwritten.
//!
//! It is a snapshot like any other, of a volume that is named after the target: what the repository holds already
//! takes no room, and it stands for as long as it is wanted, whatever becomes of the restore.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use agent::Failure;
use anyhow::{Context, bail};
use schema::JobId;
use schema::messages::{BackupJob, JobOutcome};
use schema::root::Root;

use crate::app::App;
use crate::args::{RestoreOptions, UndoArgs};
use crate::embedded::Embedded;
use crate::progress::Display;
use crate::restore::Order;
use crate::{backup, restore, select, text};

pub use schema::names::UNDO_VOLUMES as NAMES;

/// Where logical volumes have names that stay.
const MAPPER: &str = "/dev/mapper";

/// What was kept of a target.
pub struct Kept {
    /// The snapshot.
    pub id: String,
    /// The job that kept it.
    pub job: JobId,
}

/// Keeps what stands on a target as a snapshot, and says so. Nothing is kept where there is no target
/// yet, or an empty file.
pub async fn keep(app: &App, work: &mut Embedded, target: &str) -> anyhow::Result<Option<Kept>> {
    let source = restore::path(target)?;
    if is_empty(&source) {
        return Ok(None);
    }
    // Whoever undoes it may stand in another folder, and links may lead elsewhere by then.
    let real = match source.starts_with(MAPPER) {
        true => source,
        false => source.canonicalize().with_context(|| format!("finding {}", source.display()))?,
    };
    let Some(source) = real.to_str().map(str::to_owned) else {
        bail!(Failure::refused(format!("{target}: --undo needs a target whose name is text")));
    };
    let host = app.settings.host.value.clone();
    let volume = format!("{NAMES}{host}/{}", source.trim_start_matches("/dev/").trim_start_matches('/'));
    let (job, tags) = (app.environment.job_id(), Vec::new());
    let job = BackupJob { job, volume, host, source, tags, allow_changes: false, group: None };
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
            let id = slot.session.to_string();
            app.say(format!("what stands on {target} is kept as {id}: `lvkeep undo {id}` puts it back"));
            name_earlier(app, work, &job.volume, &id).await?;
            Ok(Some(Kept { id, job: job.job }))
        }
        JobOutcome::Failed { kind, why } => Err(anyhow::Error::from(Failure::new(kind, why))
            .context(format!("cannot keep what stands on {target}, which was not changed"))),
        JobOutcome::Restored { .. } => bail!("the answer to a backup was that of a restore"),
    }
}

/// When a restore was interrupted and is begun again, what stands there by now is a mixture, and the operator wants what
/// was kept first.
async fn name_earlier(app: &App, work: &Embedded, volume: &str, id: &str) -> anyhow::Result<()> {
    let mut earlier = select::roots(&work.repository, Some(work.repository.key.volume_key(volume))).await?;
    earlier.retain(|root| root.slot.session.to_string() != id);
    earlier.sort_by_key(|root| root.time_ms);
    for root in earlier {
        let (id, time) = (root.slot.session, text::rfc3339(root.time_ms));
        app.say(format!("what stood there at {time} is kept as {id}, too: after a restore that was cut off, it may be what you want back"));
    }
    Ok(())
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
    // Before the index is brought up to date, so that it knows all that this needs.
    let root = select::snapshot(&app.repository().await?, &args.snapshot).await?;
    let work = Embedded::reading(app).await?;
    let undone = put_back(app, args, root, &work).await;
    work.finish().await;
    undone
}

async fn put_back(app: &App, args: &UndoArgs, root: Root, work: &Embedded) -> anyhow::Result<()> {
    check(&root, &app.settings.host.value)?;
    if !args.force {
        check_place(&root.source)?;
    }
    let restorer = restore::make(app, work, restore::identity(app, work)?);
    let options = RestoreOptions { force: args.force, ..RestoreOptions::default() };
    let order = Order { target: root.source.clone(), preparation: options.preparation()?, options, root };
    restore::one(app, &restorer, &order, order.to().with_content(), None).await.map(drop)
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

/// The name must still mean what it did.
fn check_place(source: &str) -> anyhow::Result<()> {
    let path = Path::new(source);
    if path.starts_with(MAPPER) {
        return Ok(());
    }
    let elsewhere = path.canonicalize().is_ok_and(|real| real != path);
    let is_device = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
    let why = match (elsewhere, is_device) {
        (true, _) => "it is a link by now, and was none",
        (false, true) => "a device may have another name by now: look what this one is",
        (false, false) => return Ok(()),
    };
    bail!(Failure::refused(format!("cannot put back what stood on {source}: {why}; force overwrites it")))
}
