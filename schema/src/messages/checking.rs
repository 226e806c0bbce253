//! What is asked of agents that check.

use serde::{Deserialize, Serialize};

use super::Payload;
use crate::JobId;

/// A check is wanted; what it is to read stands in the bucket, at `checks/<job>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckJob {
    /// The job.
    pub job: JobId,
}
payload!(CheckJob);
