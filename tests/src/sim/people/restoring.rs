//! Restores by the restorer, under a session of its own, to files that are compared with what was read. Often a file
//! holds what an earlier restore left, complete or not.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use agent::repository::AtSlot;
use agent::{Context, Failure, Stop};
use restorer::{Restorer, Settings, Target};
use schema::messages::FailureKind;
use schema::names::Slot;
use schema::root::Root;

use super::Person;
use crate::sim::{Sabotage, oracle};

/// Attempts, and the pause between two: what fails by the bus or the bucket is tried again.
const TRIES: u32 = 40;
const PAUSE: Duration = Duration::from_secs(4);

/// Restores a snapshot to the file of whoever does it.
pub(super) async fn restore(person: &Person, slot: Slot, is_fresh: bool) -> Result<&'static str, Failure> {
    let (world, repository) = (&person.world, person.repository());
    let AtSlot::Snapshot(root) = repository.at_slot(slot).await? else {
        return Ok("restores that came too late");
    };
    let path = world.targets.path().join(&person.name);
    if is_fresh {
        let _ = std::fs::remove_file(&path);
    }
    let name = &person.name;
    let context =
        Context { host: person.host().into(), ..world.context(name, person.lives, Stop::default()) };
    let settings = Settings { threads: 1, ..Settings::default() };
    let restorer = Restorer::new(context, repository, world.index(name), world.identity.clone(), settings);
    for _ in 0..TRIES {
        let target = Target::new(&path, true).with_content();
        match restorer.restore((*root).clone(), target, |_| ()).await {
            Ok(_) => {
                if world.plan.sabotage == Some(Sabotage::SpoilsRestores) {
                    spoil(&path);
                }
                if let Err(why) = oracle::compare(world, &root, &path) {
                    let wrong =
                        format!("restored-equals-read: {slot} of {}, restored by {name}: {why}", root.volume);
                    world.trace.wrong(wrong);
                }
                return Ok("snapshots restored");
            }
            Err(failure) => {
                world.trace.note(format_args!("{name} cannot restore {slot}: {failure}"));
                if let Some(ended) = explained(person, &root, &failure) {
                    return Ok(ended);
                }
            }
        }
        world.environment.sleep(PAUSE).await;
    }
    Err(Failure::new(FailureKind::Store, "the restore failed again and again"))
}

/// Turns around what stands at the beginning of a file.
fn spoil(path: &Path) {
    let turned = || {
        let file = File::options().read(true).write(true).open(path)?;
        let mut bytes = vec![0; 4096.min(file.metadata()?.len() as usize)];
        file.read_exact_at(&mut bytes, 0)?;
        bytes.iter_mut().for_each(|byte| *byte = !*byte);
        file.write_all_at(&bytes, 0)
    };
    let _: std::io::Result<()> = turned();
}

/// Why a restore may fail for good.
fn explained(person: &Person, root: &Root, failure: &Failure) -> Option<&'static str> {
    let (world, slot) = (&person.world, root.slot);
    match failure.kind {
        FailureKind::Refused if world.ledger.is_forgotten(slot) => Some("restores of what was forgotten"),
        FailureKind::Revoked => Some("restores that nothing protected any more"),
        FailureKind::Damaged if !failure.retry && world.ledger.is_forgotten(slot) => {
            // Whoever began without a session, because the bucket took none, is protected by nothing.
            Some("restores that nothing protected")
        }
        FailureKind::Refused | FailureKind::Damaged if !failure.retry => {
            let wrong =
                format!("sealed-is-readable: {slot} of {} cannot be restored: {failure}", root.volume);
            world.trace.wrong(wrong);
            Some("restores that failed")
        }
        _ => None,
    }
}
