//! Restores that keep what they overwrite: a backup of the target, whose snapshot stays until the restore has ended.

use std::sync::PoisonError;

use agent::Failure;
use rand::RngExt;
use schema::JobId;
use schema::messages::{BackupJob, JobOutcome};
use schema::names::{Slot, UNDO_VOLUMES};
use schema::root::Root;
use schema::session::SessionKind;

use super::Person;
use super::forgetting::swept;
use crate::sim::build::{target_name, templates};
use crate::sim::client::{self, Job, What};
use crate::sim::cluster;

/// Keeps what stands on a target, and overwrites it. Nobody forgets what was kept before the restore has ended.
pub(super) async fn overwrite(person: &mut Person, target: usize) -> Result<&'static str, Failure> {
    let world = person.world.clone();
    let job = world.environment.job_id();
    let Some(kept) = keep(person, job, target).await else {
        return Ok("restores that could not keep anything");
    };
    let (protection, open) = person.protect(SessionKind::Restore, "what is overwritten", &[job]).await?;
    // What was forgotten before the session named it is no undo.
    if person.repository().store.head(&kept.slot.forgotten()).await?.is_some() {
        return protection.end(Ok("restores whose undo was forgotten too soon")).await;
    }
    let host = target % world.plan.hosts;
    if let Some(source) = world.sources[host].source(&target_name(target)) {
        let mut content = (*source.content()).clone();
        content.scribble(&mut person.random, &templates(&world.plan));
        source.change(content);
    }
    let pause = person.random_below(world.plan.life.forgetting);
    world.environment.sleep(pause).await;
    if let (Some(gone), false) = (swept(&world, &kept), world.ledger.has_ended(open.session().id)) {
        world.trace.wrong(format!("never-collect-live: {gone} may have to be put back, and is swept"));
    }
    protection.end(Ok("restores with an undo")).await
}

/// Backs a target up, as a restorer has it done.
async fn keep(person: &Person, job: JobId, target: usize) -> Option<Root> {
    let world = &person.world;
    let host = cluster::host(target % world.plan.hosts);
    let request = BackupJob {
        job,
        volume: format!("{UNDO_VOLUMES}{host}/vg/target{target}"),
        host,
        source: target_name(target),
        tags: Vec::new(),
        allow_changes: false,
        group: None,
        plain: true,
    };
    let note = |asked: Job| {
        let mut kept = world.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|one: &Job| one.job != job);
        kept.push(asked);
    };
    let asked = Job::new(world, job, What::Target(target));
    // Whoever dies hears nothing of it.
    note(asked.clone());
    let outcome = client::ask(world, &request).await;
    note(asked.ended(world, outcome.clone()));
    let Some(JobOutcome::Sealed { slot, .. }) = outcome else { return None };
    committed(person, slot)
}

fn committed(person: &Person, slot: Slot) -> Option<Root> {
    person.world.ledger.commits().into_iter().find(|root| root.slot == slot)
}

/// Whether a restore keeps what it overwrites.
pub(super) fn is_wanted(person: &mut Person) -> bool {
    person.random.random_range(0..8) == 0
}
