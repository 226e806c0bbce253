//! Reports as they stand in the bucket, and back.

use schema::check;
use schema::limits::{CHECK_DAMAGED_MAX, CHECK_FINDINGS_MAX, CHECK_RANGES_MAX};

use crate::findings::{DamagedSnapshot, Finding, Report};
use crate::scope::{Content, Share};

/// What of the content a job says.
pub(crate) fn content(job: &check::Content) -> Content {
    match *job {
        check::Content::None => Content::None,
        check::Content::All => Content::All { after: None },
        check::Content::Percent { percent, behind } => Content::Percent { percent, after: behind },
        check::Content::Share { number, of } => Content::Share(Share { number, of }),
    }
}

/// The first of some findings.
pub(crate) fn findings(found: &[Finding]) -> Vec<Finding> {
    found.iter().take(CHECK_FINDINGS_MAX).cloned().collect()
}

/// A report as it is told.
pub(crate) fn report(found: Report, ended_ms: u64) -> check::Report {
    let mut room = CHECK_RANGES_MAX;
    let damaged = |damaged: &DamagedSnapshot| {
        let lost = damaged.lost.iter().take(room).map(|range| (range.start, range.end)).collect::<Vec<_>>();
        room -= lost.len();
        let (slot, volume) = (damaged.slot, damaged.volume.clone());
        let problems = damaged.problems.clone();
        check::DamagedSnapshot { slot, volume, bytes: damaged.bytes(), lost, problems }
    };
    let snapshots_damaged = found.damaged.iter().take(CHECK_DAMAGED_MAX).map(damaged).collect();
    check::Report {
        ended_ms,
        snapshots: found.snapshots,
        bytes: found.bytes,
        packs: found.packs,
        packs_read: found.packs_read,
        bytes_read: found.bytes_read,
        objects: found.objects.len() as u64,
        found: findings(&found.objects),
        damaged: found.damaged.len() as u64,
        snapshots_damaged,
        unopened: found.unopened,
        rescued: found.rescued,
        recorded: found.recorded,
        unrecorded: found.unrecorded,
        healed: found.healed,
        settled: found.settled,
    }
}
