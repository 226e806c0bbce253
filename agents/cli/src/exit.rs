//! Exit codes: one per kind of failure, so that scripts and timers need not read text.

use std::ops::Range;
use std::process::ExitCode;

use agent::Failure;
use schema::messages::FailureKind;

/// The text that `--help` and the manual page print.
pub const TABLE: &str = "\
Exit codes:
  0    done
  1    failed for another reason than those below (the message says which)
  2    wrong usage
  3    refused: the request cannot be done as asked, or a key does not fit
  4    the source or target device or file failed
  5    the object store failed
  6    stored data is damaged or missing
  7    the session was cancelled, revoked or interrupted
  8    status --max-age: a volume's last snapshot is too old
  9    the backup is there, but the command after its LVM snapshot (--post) failed
  10   verify, restore --verify: the target differs from the snapshot";

/// Code of `status --max-age` when a volume's last snapshot is too old.
pub const TOO_OLD: u8 = 8;

/// Code of a backup that is there, after whose LVM snapshot the operator's command failed.
const POST_FAILED: u8 = 9;

/// Code of a comparison that found a difference.
const DIFFERS: u8 = 10;

/// A backup is there, and what the operator wanted done after its LVM snapshot was not.
#[derive(Debug, thiserror::Error)]
#[error("{volume} is backed up, but the command after its LVM snapshot (--post) failed: {why}")]
pub struct PostFailed {
    /// The volume.
    pub volume: String,
    /// Which command, and how.
    pub why: String,
}

/// A target was read, and does not hold what the snapshot holds.
#[derive(Debug, thiserror::Error)]
#[error("{target} differs from {volume}, first between {} and {}", first.start, first.end)]
pub struct Differs {
    /// The target.
    pub target: String,
    /// The snapshot's volume.
    pub volume: String,
    /// The first range in which something differs.
    pub first: Range<u64>,
}

/// A target that ends before the snapshot does.
#[derive(Debug, thiserror::Error)]
#[error(
    "{target} differs from {volume}: it has {has} bytes, and the snapshot {size}; what is from {has} on is missing"
)]
pub struct Shorter {
    /// The target.
    pub target: String,
    /// The snapshot's volume.
    pub volume: String,
    /// Bytes of the target.
    pub has: u64,
    /// Bytes of the snapshot, or those that were asked for.
    pub size: u64,
}

/// The exit code of an error.
pub fn code(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(|cause| cause.is::<PostFailed>()) {
        return ExitCode::from(POST_FAILED);
    }
    if error.chain().any(|cause| cause.is::<Differs>() || cause.is::<Shorter>()) {
        return ExitCode::from(DIFFERS);
    }
    let kind = error.chain().find_map(|cause| cause.downcast_ref::<Failure>()).map(|failure| failure.kind);
    ExitCode::from(match kind {
        None | Some(FailureKind::Other) => 1,
        Some(FailureKind::Refused) => 3,
        Some(FailureKind::Device) => 4,
        Some(FailureKind::Store) => 5,
        Some(FailureKind::Damaged) => 6,
        Some(FailureKind::Revoked) => 7,
    })
}
