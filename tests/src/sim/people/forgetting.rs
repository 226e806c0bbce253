//! Snapshots that are forgotten, brought back and held, by the code that does it for operators and policies, in either
//! repository. Whoever forgets also ends what others left who died.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::time::Duration;

use agent::forgetting::{self, Forgot};
use agent::{Failure, Repository, marks, sessions};
use rand::RngExt;
use schema::JobId;
use schema::messages::FailureKind;
use schema::names::Slot;
use schema::root::Root;
use schema::session::SessionKind;

use super::Person;
use crate::sim::cluster::World;

const BY: &str = "a simulation";

/// Forgets what is older than what is kept, a volume at a time; now and then everything of one.
pub(super) async fn forget(mut person: Person) {
    let world = person.world.clone();
    while person.pause(world.plan.life.forgetting).await {
        let Ok(roots) = person.repository().roots(None).await else { continue };
        let volumes: BTreeSet<_> = roots.readable.iter().map(|root| root.slot.volume).collect();
        let Some(volume) = person.one_of(&volumes.into_iter().collect::<Vec<_>>()) else { continue };
        let keep = match person.random.random_range(0..20) {
            0 => 0,
            _ => world.plan.life.keep,
        };
        let mut of_volume: Vec<Root> =
            roots.readable.into_iter().filter(|root| root.slot.volume == volume).collect();
        of_volume.sort_by_key(|root| (root.generation, root.slot));
        of_volume.truncate(of_volume.len().saturating_sub(keep));
        let limit = person.next_life();
        let looked = async {
            forget_all(&person, &of_volume).await?;
            end_the_dead(&person).await
        };
        match person.live(limit, looked).await {
            Some(Ok(())) => continue,
            Some(Err(failure)) => {
                world.trace.note(format_args!("{} cannot do it: {failure}", person.name));
            }
            None => {}
        }
        of_volume.iter().for_each(|root| leave(&world, root.slot));
    }
}

/// Whoever was bringing this snapshot back may have left a session.
fn leave(world: &World, slot: Slot) {
    let mut unfinished = world.unfinished.lock().unwrap_or_else(PoisonError::into_inner);
    unfinished.insert(JobId::from_bytes(*slot.session.as_bytes()));
}

/// Collections would wait for them. A backup's session is for whoever takes its job over.
async fn end_the_dead(person: &Person) -> Result<(), Failure> {
    let repository = person.repository();
    for session in sessions::list(&repository).await? {
        if session.kind != SessionKind::Backup && person.is_abandoned(&session) {
            sessions::revoke(&repository, &session).await?;
            person.count("sessions of the dead ended");
        }
    }
    Ok(())
}

async fn forget_all(person: &Person, roots: &[Root]) -> Result<(), Failure> {
    let repository = person.repository();
    for root in roots {
        person.count(match forgetting::forget(&repository, root, BY).await? {
            Forgot::Done => "snapshots forgotten",
            Forgot::Protected(_) => "snapshots that something protected",
            Forgot::BroughtBack(..) => "snapshots that were held while they were forgotten",
        });
    }
    Ok(())
}

/// Brings forgotten snapshots back; one whose attempt did not end is tried again.
pub(super) async fn remember(mut person: Person) {
    let world = person.world.clone();
    let mut unfinished: Option<Root> = None;
    while person.pause(world.plan.life.remembering).await {
        let Ok(forgotten) = forgotten(&person.repository()).await else { continue };
        let root = match unfinished.take() {
            Some(root) => root,
            None => match person.one_of(&forgotten) {
                Some(root) => root,
                None => continue,
            },
        };
        let limit = person.next_life();
        let repository = person.repository();
        match person.live(limit, forgetting::unforget(&repository, &root, BY)).await {
            Some(Ok(back)) if back.already => person.count("snapshots that were back already"),
            Some(Ok(_)) => person.count("snapshots brought back"),
            Some(Err(failure)) => {
                world.trace.note(format_args!("{} cannot remember {}: {failure}", person.name, root.slot));
                leave(&world, root.slot);
                match failure.kind {
                    FailureKind::Refused if person.ledger().is_proposed(root.slot) => {
                        person.count("snapshots that were remembered too late");
                    }
                    FailureKind::Refused => {
                        let slot = root.slot;
                        let wrong =
                            format!("progress: {slot} is swept by nobody and stays forgotten: {failure}");
                        world.trace.wrong(wrong);
                    }
                    FailureKind::Damaged => {
                        world
                            .trace
                            .wrong(format!("sealed-is-readable: {} is forgotten: {failure}", root.slot));
                    }
                    _ => unfinished = Some(root),
                }
            }
            None => {
                leave(&world, root.slot);
                unfinished = Some(root);
            }
        }
    }
}

async fn forgotten(repository: &Repository) -> Result<Vec<Root>, Failure> {
    let slots = repository.forgotten_slots(None).await?;
    Ok(repository.roots_at(slots).await?.readable)
}

/// Holds a snapshot for a while; nothing sweeps it meanwhile, whoever forgets it.
pub(super) async fn hold(mut person: Person) {
    let world = person.world.clone();
    while person.pause(world.plan.life.remembering).await {
        let repository = person.repository();
        let Ok(roots) = repository.roots(None).await else { continue };
        let Some(root) = person.one_of(&roots.readable) else { continue };
        if forgetting::hold(&repository, &root, None, BY).await.is_ok() {
            person.count("snapshots held");
            person.pause(world.plan.life.remembering).await;
            if let Some(gone) = swept(&world, &root) {
                world.trace.wrong(format!("never-collect-live: {gone} was held, and is swept"));
            }
        }
        while let Err(failure) = release_all(&repository).await {
            world.trace.note(format_args!("{} cannot release: {failure}", person.name));
            person.world.environment.sleep(Duration::from_secs(1)).await;
        }
    }
}

/// Releases everything that is held.
pub(super) async fn release_all(repository: &Repository) -> Result<(), Failure> {
    for (slot, marks) in marks::all(repository, None).await? {
        let holds: Vec<_> = marks.holds.iter().map(|hold| hold.id).collect();
        marks::release(repository, slot, &holds).await?;
    }
    Ok(())
}

/// A snapshot that a verdict sweeps, and which did not come back anywhere either.
pub(super) fn swept(world: &World, root: &Root) -> Option<Slot> {
    let is_same = |other: &Root| (other.job, other.generation) == (root.job, root.generation);
    let stays =
        world.ledger.commits().iter().any(|other| is_same(other) && !world.ledger.is_swept(other.slot));
    (!stays).then_some(root.slot)
}
