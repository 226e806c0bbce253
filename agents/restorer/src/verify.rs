//! Reads again what was restored, while the target is held and the snapshot protected as for the restore.
//!
//! What comes of it is told beside what the restore did: the target is restored all the same.

use agent::{Failure, Protection};
use schema::JobId;
use schema::messages::{FailureKind, Verified};
use schema::root::Root;

use crate::differences::Differences;
use crate::report::{Progress, Report};
use crate::restorer::{Purpose, Restorer};
use crate::target::Target;

impl Restorer {
    /// Reads a target from its device and compares it with the snapshot that was restored to it just now.
    pub(crate) async fn read_again(
        &self,
        job: JobId,
        root: &Root,
        target: &Target,
        protection: &Protection,
        progress: &impl Fn(Progress),
    ) -> (Verified, Differences) {
        let name = target.path().display().to_string();
        let comparing = async {
            let purpose = Purpose::Compare(self.path_of(target, &name)?, target.part(root)?);
            let session = protection.session().cloned();
            self.to_target(job, root.clone(), self.reads(target.limit()), session, purpose, progress).await
        };
        let stop = target.stop().unwrap_or(&self.context.stop);
        let compared: Result<Report, Failure> = tokio::select! {
            biased;
            () = stop.raised() => Err(stopped(root, target)),
            compared = comparing => compared,
        };
        let failure =
            match compared {
                Ok(Report { differences, .. }) => {
                    let verified = differences.first.first().map_or(Verified::Equal, |first| {
                        Verified::Differs { bytes: differences.bytes, start: first.start, end: first.end }
                    });
                    return (verified, differences);
                }
                // It was ended by the same flag.
                Err(_) if stop.is_raised() => stopped(root, target),
                Err(failure) => protection.explained(root, failure).await,
            };
        let why = format!("{} was restored to {name}; reading it again failed: {}", root.volume, failure.why);
        tracing::error!(%job, why);
        (Verified::Unread { kind: failure.kind, why }, Differences::default())
    }
}

/// Who stopped it, and why, others know.
fn stopped(root: &Root, target: &Target) -> Failure {
    let (id, name) = (root.slot.session, target.path().display());
    let range = match target.part(root) {
        Ok(part) if part != (0..root.size) => format!(" --range {}+{}", part.start, part.end - part.start),
        _ => String::new(),
    };
    let why = format!(
        "stopped before all of it was read again; `lvkeep verify {id} {name}{range}` on its host reads it"
    );
    Failure::new(FailureKind::Revoked, why)
}
