//! Snapshots that are forgotten, and such as are committed once more: copied, or remembered before they are collected.
//! Whoever forgets also ends what others left who died.

use agent::repository::AtSlot;
use agent::sessions::{Commit, OpenSession};
use agent::{Failure, sessions};
use collector::Latest;
use rand::RngExt;
use schema::names::{self, Slot};
use schema::root::{Forgotten, Root};
use schema::session::SessionKind;

use super::Person;
use crate::sim::build::volume_name;

/// Forgets what is older than what is kept, a volume at a time; now and then everything of one.
pub(super) async fn forget(mut person: Person) {
    let world = person.world.clone();
    while person.pause(world.plan.life.forgetting).await {
        let volume = volume_name(person.random.random_range(0..world.plan.volumes.len()));
        let keep = match person.random.random_range(0..20) {
            0 => 0,
            _ => world.plan.life.keep,
        };
        let looked = async {
            forget_older(&person, &volume, keep).await?;
            end_the_dead(&person).await
        };
        if let Err(failure) = looked.await {
            world.trace.note(format_args!("{} cannot do it: {failure}", person.name));
        }
    }
}

/// Collections would wait for them. A backup's session is for whoever takes its job over.
async fn end_the_dead(person: &Person) -> Result<(), Failure> {
    let repository = person.repository();
    for session in sessions::list(&repository).await? {
        if session.kind != SessionKind::Backup && person.world.has_crashed(&session.host) {
            sessions::revoke(&repository, &session).await?;
            person.count("sessions of the dead ended");
        }
    }
    Ok(())
}

async fn forget_older(person: &Person, volume: &str, keep: usize) -> Result<(), Failure> {
    let repository = person.repository();
    let mut slots = repository.visible_slots(Some(repository.key.volume_key(volume))).await?;
    slots.sort_by_key(|slot| slot.session);
    slots.truncate(slots.len().saturating_sub(keep));
    for slot in slots {
        let marker =
            Forgotten { slot, time_ms: person.world.environment.now_ms(), by: "a simulation".into() };
        let key = slot.forgotten();
        repository.store.create(&key, repository.seal(&key, &marker)?).await?;
        person.count("snapshots forgotten");
    }
    Ok(())
}

/// Commits some snapshot once more, forgotten ones among them.
pub(super) async fn copy(mut person: Person) {
    let world = person.world.clone();
    while person.pause(world.plan.life.copying).await {
        let limit = person.next_life();
        let is_forgotten = |slot: &Slot| world.ledger.is_forgotten(*slot);
        let Ok(mut slots) = slots(&person).await else { continue };
        if person.random.random() && slots.iter().any(is_forgotten) {
            slots.retain(is_forgotten);
        }
        let Some(slot) = person.one_of(&slots) else { continue };
        match person.live(limit, commit_again(&person, slot)).await {
            Some(Ok(done)) => person.count(done),
            Some(Err(failure)) => {
                world.trace.note(format_args!("{} cannot copy {slot}: {failure}", person.name));
                // With a commit that was not answered, the object stays.
                person.die();
                person.count("copies that failed");
            }
            None => {}
        }
    }
}

/// The slots that a listing shows with more than a tombstone, whether forgotten or not.
pub(super) async fn slots(person: &Person) -> Result<Vec<Slot>, Failure> {
    let listed = person.repository().store.list(names::SNAPSHOTS).await?;
    let existing = listed.iter().filter(|listed| listed.size > 0);
    let mut slots: Vec<Slot> = existing.filter_map(|listed| Slot::parse_key(&listed.key).ok()).collect();
    slots.sort();
    Ok(slots)
}

/// The protocol's order: the epochs are read before the slot is looked at.
async fn commit_again(person: &Person, slot: Slot) -> Result<&'static str, Failure> {
    let open = person.begin(SessionKind::Copy, slot).await?;
    let repository = person.repository();
    let is_swept = match collector::latest(&repository).await? {
        Latest::Open(epoch) | Latest::Decided(epoch, _) => epoch.forgotten.contains(&slot),
        Latest::Finished { .. } => false,
    };
    let found = repository.at_slot(slot).await?;
    let AtSlot::Snapshot(root) = found else { return too_late(open).await };
    if is_swept {
        return too_late(open).await;
    }
    let committed = open.commit(&Root { slot: open.slot()?, ..*root }).await?;
    open.end().await?;
    Ok(match committed {
        Commit::Won => "snapshots copied",
        Commit::Revoked => "copies that were revoked",
    })
}

async fn too_late(open: OpenSession) -> Result<&'static str, Failure> {
    open.abandon().await?;
    Ok("copies that came too late")
}
