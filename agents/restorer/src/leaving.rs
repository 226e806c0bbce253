//! What a restore leaves of a place: one that was cut off leaves what it has written, for a restore that goes on there.

use std::sync::Arc;

use agent::{Ending, Failure, Place};

use crate::claim::Claim;

/// What becomes of a place on which a restore failed.
#[derive(Clone, Copy)]
pub(crate) enum Left {
    /// It is ended so.
    As(Ending),
    /// It stays as what its job has begun, which comes again.
    ForItsJob,
}

/// Ends a place, in every outcome. Returns what the operator should know.
pub(crate) async fn end_place(place: Option<&dyn Place>, ending: Ending) -> Vec<String> {
    match place {
        Some(place) => place.end(ending).await,
        None => Vec::new(),
    }
}

/// Ends a place on which a restore failed.
pub(crate) async fn leave(place: Option<Arc<dyn Place>>, claim: Option<&Claim>, left: Left) -> Vec<String> {
    // What is removed must not be open then.
    if let (Some(_), Some(claim), Left::As(Ending::Failed)) = (&place, claim, left) {
        claim.release();
    }
    let ending = match left {
        Left::As(ending) => ending,
        Left::ForItsJob => Ending::CutOff,
    };
    let mut notes = end_place(place.as_deref(), ending).await;
    if let Left::As(Ending::CutOff) = left {
        notes.extend(let_stay(place, claim).await);
    }
    notes
}

/// Lets a place be what it is from now on, or once its job is over.
pub(crate) async fn let_stay(place: Option<Arc<dyn Place>>, claim: Option<&Claim>) -> Option<String> {
    match (place, claim) {
        (Some(place), Some(claim)) if claim.is_of_job() => {
            claim.end_later(place);
            None
        }
        (Some(place), _) => place.over().await,
        (None, _) => None,
    }
}

pub(crate) fn with_notes(failure: Failure, notes: &[String]) -> Failure {
    let why = std::iter::once(failure.why.as_str()).chain(notes.iter().map(String::as_str));
    Failure { why: why.collect::<Vec<_>>().join("\n"), ..failure }
}
