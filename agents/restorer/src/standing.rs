//! Makes sure that a job is still to be done, before its target is changed.
//!
//! A job may come again while it is being done, and whoever has it first may end it before the other one is ready: the
//! target is somebody else's by then. Whoever has ended a job lets go of its target afterwards, so that what is asked
//! with the target locked is decided. A message that was settled is gone, and so may be the note of the job's end; one
//! that could not be settled leaves the note. One that a message server has lost is gone as well, and nobody has ended
//! its job.

use agent::{Failure, sessions};
use schema::messages::FailureKind;

use crate::claim::Doubt;
use crate::restorer::{Restorer, half_done};
use crate::target::Target;

impl Restorer {
    /// Fails when a target's job was ended by somebody else, when it was lost, or when nobody can be asked.
    pub(crate) async fn check_standing(&self, target: &Target) -> Result<(), Failure> {
        let claim = target.claim();
        let (Some(job), Some(standing)) = (claim.job(), claim.standing()) else { return Ok(()) };
        let name = target.path().display();
        let unsure = |failure: Failure| {
            claim.has_doubt(Doubt::Unsure);
            let failure = failure.context(format!("cannot ask whether {name} is still to be restored to"));
            Failure { retry: true, ..failure }
        };
        let is_queued = standing.is_queued().await.map_err(|why| unsure(why.into()))?;
        if !is_queued && standing.is_lost().await.map_err(|why| unsure(why.into()))? {
            // Somebody may be at it still, until the target is held.
            if !claim.has_held() {
                return Ok(());
            }
            claim.has_doubt(Doubt::Lost);
            let why = format!("the message server has lost the job {job}, and with it who else is at it");
            return Err(half_done(Failure::new(FailureKind::Other, why)));
        }
        if !is_queued {
            claim.has_doubt(Doubt::Over);
            let why = format!("the job {job} was ended by another agent: this one does not change {name}");
            return Err(Failure::refused(why));
        }
        let found = sessions::of_job(&self.repository, job).await.map_err(unsure)?;
        if found.iter().any(|session| session.ended.is_some()) {
            claim.has_doubt(Doubt::Unsure);
            let why = format!("the job {job} is noted to have ended: this agent does not change {name}");
            return Err(Failure { retry: true, ..Failure::refused(why) });
        }
        Ok(())
    }
}
