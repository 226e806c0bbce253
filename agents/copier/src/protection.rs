//! The session in the first repository: while its object is there, no collection removes what was visible when it began.

use agent::sessions::OpenSession;
use agent::{Context, Failure, Repository};
use schema::PackId;
use schema::messages::FailureKind;
use schema::session::{Session, SessionKind};

/// Protects what is read of a repository. None where its store takes no objects.
pub struct Protection {
    session: Option<OpenSession>,
    location: String,
}

impl Protection {
    /// Begins it, before anything is listed. `about` is for people: what is read.
    pub async fn begin(context: &Context, repository: &Repository, about: String) -> Result<Self, Failure> {
        let session = Session {
            id: context.environment.session_id(),
            kind: SessionKind::Copy,
            slot: None,
            job: context.environment.job_id(),
            volume: about,
            host: context.host.to_string(),
            started_ms: context.environment.now_ms(),
            checkpoint: None,
            ended: None,
            undo: Vec::new(),
        };
        let location = repository.store.location().to_owned();
        let session = match OpenSession::begin(repository.clone(), session).await {
            Ok(session) => Some(session),
            // Credentials that only read must not keep anybody from copying.
            Err(failure) if failure.kind == FailureKind::Store => {
                tracing::warn!(%failure, "reading without protection: a collection at the same time would end this");
                None
            }
            Err(failure) => {
                return Err(failure.context(format!("cannot protect {location} while it is read")));
            }
        };
        Ok(Self { session, location })
    }

    /// Whether a copy in this pack is likely to be there until the end.
    pub(crate) async fn counts(&self, pack: PackId) -> bool {
        match &self.session {
            // A pack that cannot be asked for just now is tried last.
            Some(session) => session.counts(pack).await.unwrap_or(false),
            None => true,
        }
    }

    /// Says so when something was missing because nothing protected it any more.
    pub(crate) async fn explained(&self, failure: Failure) -> Failure {
        let missing = matches!(failure.kind, FailureKind::Damaged | FailureKind::Store);
        match &self.session {
            Some(session) if missing && matches!(session.exists().await, Ok(false)) => {
                let (id, location, why) = (session.session().id, &self.location, failure.why);
                let why = format!(
                    "this copy's session {id} in {location} was declared dead, and what it reads may be collected ({why})"
                );
                Failure::new(FailureKind::Revoked, why)
            }
            _ => failure,
        }
    }

    /// Ends it. Should that fail, a collection waits until the session is declared dead.
    pub async fn end(self) {
        let Some(session) = self.session else { return };
        let id = session.session().id;
        if let Err(failure) = session.end().await {
            tracing::warn!(session = %id, %failure, "cannot delete the session object of a copy");
        }
    }
}
