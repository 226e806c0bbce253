//! What a role's step can fail with: what the caller does next, and what the operator reads.

use schema::FormatError;
use schema::messages::FailureKind;

use crate::bus::BusError;
use crate::store::{StoreError, StoreErrorKind};
use crate::volume::VolumeError;

/// A failed step.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{why}")]
pub struct Failure {
    /// Which exit code and advice it leads to.
    pub kind: FailureKind,
    /// Doing the same again later may help.
    pub retry: bool,
    /// For the operator: names the volume, object or subject.
    pub why: String,
}

impl Failure {
    /// A failure that will not go away by itself.
    pub fn new(kind: FailureKind, why: impl Into<String>) -> Self {
        Self { kind, retry: false, why: why.into() }
    }

    /// The request is wrong.
    pub fn refused(why: impl Into<String>) -> Self {
        Self::new(FailureKind::Refused, why)
    }

    /// Stored data is damaged or missing.
    pub fn damaged(why: impl Into<String>) -> Self {
        Self::new(FailureKind::Damaged, why)
    }

    /// Puts what was being done in front.
    pub fn context(mut self, what: impl std::fmt::Display) -> Self {
        self.why = format!("{what}: {}", self.why);
        self
    }
}

impl From<FormatError> for Failure {
    fn from(error: FormatError) -> Self {
        let kind = match &error {
            FormatError::UnknownVersion { .. }
            | FormatError::UnknownFeature { .. }
            | FormatError::CannotOpen { .. } => FailureKind::Refused,
            _ => FailureKind::Damaged,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let kind = match error.kind() {
            // Whoever may live without an object asks in a way for which its absence is no error.
            StoreErrorKind::NotFound => FailureKind::Damaged,
            _ => FailureKind::Store,
        };
        Self { kind, retry: error.is_transient(), why: error.to_string() }
    }
}

impl From<BusError> for Failure {
    fn from(error: BusError) -> Self {
        Self { kind: FailureKind::Other, retry: error.is_transient(), why: error.to_string() }
    }
}

impl From<VolumeError> for Failure {
    fn from(error: VolumeError) -> Self {
        let retry = matches!(error, VolumeError::Busy { .. });
        Self { kind: FailureKind::Device, retry, why: error.to_string() }
    }
}
