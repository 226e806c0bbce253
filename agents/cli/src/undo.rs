//! `undo`, and what makes it possible: a snapshot of a target, committed before its first byte is overwritten.
//!
//! It is a snapshot like any other, of a volume that is named after the target: what the repository holds already
//! takes no room, and it stands for as long as it is wanted, whatever becomes of the restore. What was kept for the
//! restore of a range says so, and only that is put back: a guest may have written beside it since.

use std::os::unix::fs::FileTypeExt;

use agent::marks::{self, Marks};
use agent::{Failure, Repository};
use anyhow::bail;
use restorer::{Restorer, Target};
use schema::names::Slot;
use schema::root::Root;

use crate::app::App;
use crate::args::{RestoreOptions, UndoArgs};
use crate::embedded::Embedded;
use crate::far::{Asked, Far};
use crate::restore::Order;
use crate::{bus, restore, select, text};

/// What names of volumes begin with that are kept for an undo; the host and the target follow.
pub use schema::names::UNDO_VOLUMES as NAMES;

/// Where the device mapper's names are, which mean the same for as long as they are there.
const MAPPER: &str = "/dev/mapper";

/// The target of an order, held, and the id under which what stands there is kept where that is asked for. Nothing is
/// kept where there is no target yet, or an empty file. Progress is bytes done and all of them.
pub async fn keep(
    app: &App,
    repository: &Repository,
    restorer: &Restorer,
    order: &Order,
    target: Target,
    progress: impl Fn(u64, u64),
) -> anyhow::Result<(Target, Option<String>)> {
    if !order.options.undo {
        return Ok((target, None));
    }
    let held = target.clone().with_content();
    match restorer.keep(&order.root, &held, app.environment.job_id(), progress).await? {
        None => Ok((target, None)),
        Some(slot) => {
            say(app, repository, slot, &order.target, None).await;
            Ok((held, Some(slot.session.to_string())))
        }
    }
}

/// Says where what stands on a target is kept, whatever else is not to be said: nobody could guess it. When a restore was
/// interrupted and is begun again, what stands there by now is a mixture, and the operator wants what was kept first: that
/// is held until a restore has ended well, or it was put back.
pub async fn say(app: &App, repository: &Repository, kept: Slot, target: &str, host: Option<&str>) {
    let (id, to_host) = (kept.session, host.map_or(String::new(), |host| format!(" --to-host {host}")));
    let same_device = match host {
        None if is_named_device(target) => " --same-device",
        _ => "",
    };
    let elsewhere = match host {
        Some(_) if target.starts_with("/dev/") => " (--same-device, too, where it is no logical volume)",
        _ => "",
    };
    app.say_always(format!(
        "what stands on {target} is kept as {id}: `lvkeep undo {id}{to_host}{same_device}` puts it back{elsewhere}"
    ));
    let others = match select::roots(repository, Some(kept.volume)).await {
        Ok(others) => others.warned(),
        Err(why) => {
            tracing::warn!(%why, "cannot look what was kept earlier");
            return;
        }
    };
    let slots = others.iter().map(|root| root.slot).filter(|slot| *slot != kept).collect();
    let marks = match marks::among(repository, &slots).await {
        Ok(marks) => marks,
        Err(why) => {
            tracing::warn!(%why, "cannot look what was kept earlier");
            return;
        }
    };
    let is_held = |root: &Root| marks.get(&root.slot).is_some_and(Marks::is_held);
    let mut others: Vec<Root> =
        others.into_iter().filter(|root| root.slot != kept && is_held(root)).collect();
    others.sort_by_key(|root| root.time_ms);
    for root in others {
        let (id, time) = (root.slot.session, text::rfc3339(root.time_ms));
        app.say(format!("what stood there at {time} is kept as {id}, too: after a restore that was cut off, it may be what you want back"));
    }
}

/// Whether a target is a device of this host by a name that may mean another one later, which `undo` asks about.
fn is_named_device(target: &str) -> bool {
    let is_device = std::fs::metadata(target).is_ok_and(|found| found.file_type().is_block_device());
    let is_volume = || restore::targets().name_of(target).is_ok_and(|name| name.is_some());
    is_device && !target.starts_with(MAPPER) && !is_volume()
}

/// `lvkeep undo`.
pub async fn run(app: &App, args: &UndoArgs) -> anyhow::Result<()> {
    app.stop_on_signals()?;
    let repository = app.repository().await?;
    // Before the index is brought up to date, so that it knows all that this needs.
    let root = select::snapshot(&repository, &args.snapshot).await?;
    check(&root, args.to_host.as_deref().unwrap_or(&app.settings.host.value))?;
    let target = root.source.clone();
    restore::check_named(&args.force_in_use, std::iter::once(target.as_str()))?;
    let force_in_use = !args.force_in_use.is_empty();
    let options = RestoreOptions { force: args.force, force_in_use, ..RestoreOptions::default() };
    let preparation = options.preparation()?;
    let range = restorer::kept_range(&root).filter(|_| !args.whole);
    if let Some(range) = &range {
        let range = text::range(range);
        app.say(format!(
            "only {range} of {target} is put back, which the restore has overwritten: the rest stays as it is (--whole puts \
             back all that stood there)"
        ));
    }
    let order = Order { root, target, range, options, preparation };
    if let Some(host) = &args.to_host {
        let context = app.context(bus::connect(app, "undo").await?);
        let command = app.environment.job_id();
        let far = Far { app, context: &context, repository: &repository, host, command };
        let asked = Asked { put_back: true, same_device: args.same_device, ..Asked::default() };
        return restore::far_one(&far, &order, asked).await.map(drop);
    }
    let work = Embedded::reading(app, repository.clone(), &[order.wish()]).await?;
    let target = order.to().put_back().same_device(args.same_device);
    let undone = put_back(app, &order, target, &work).await;
    work.finish().await;
    undone
}

async fn put_back(app: &App, order: &Order, target: Target, work: &Embedded) -> anyhow::Result<()> {
    let restorer = restore::make(app, work, restore::identity(app, work)?);
    restore::one(app, &restorer, order, target, None).await.map(drop)
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
            "{id} was kept on host {}, and not on {host}: run this there or with --to-host, or `lvkeep restore {id} TARGET`",
            root.host
        )));
    }
    Ok(())
}
