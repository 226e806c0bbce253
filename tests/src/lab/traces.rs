//! What must not be left behind: snapshots that nobody owns, a pool's reserved metadata, complaints of the kernel.

use super::command::run;
use super::volumes::{Pool, VolumeGroup};

/// What lvkeep may leave on a volume group.
#[derive(Debug)]
pub struct Traces<'a> {
    group: &'a VolumeGroup,
    pools: Vec<&'a Pool>,
}

/// Words of kernel messages that mean that something broke.
const COMPLAINTS: [&str; 7] =
    ["BUG:", "Oops", "Call Trace", "Kernel panic", "hung task", "I/O error", "needs_check"];

impl<'a> Traces<'a> {
    /// Of a group and the pools in it.
    pub fn of(group: &'a VolumeGroup, pools: &[&'a Pool]) -> Self {
        Self { group, pools: pools.to_vec() }
    }

    /// Exactly `kept` snapshots of lvkeep are there, nobody holds a pool's metadata, no file system is frozen, and the
    /// kernel did not complain.
    #[track_caller]
    pub fn are_only(&self, kept: usize) {
        let found = self.group.kept();
        assert_eq!(
            found.len(),
            kept,
            "lvkeep's snapshots: {:?}",
            self.group.report("lv_name,lv_tags,origin")
        );
        self.pools_are_free();
        kernel_is_content();
    }

    /// Nobody holds a pool's metadata.
    #[track_caller]
    pub fn pools_are_free(&self) {
        for pool in &self.pools {
            let held = held_metadata_root(pool);
            assert_eq!(held, None, "{} has a reserved metadata snapshot", pool.volume.path());
        }
    }
}

/// The block of the pool's reserved metadata snapshot, if there is one.
pub fn held_metadata_root(pool: &Pool) -> Option<u64> {
    let status = run("dmsetup", &["status", &pool.mapped()]);
    let field = status.split_whitespace().nth(6).unwrap_or_else(|| panic!("the pool's status: {status}"));
    (field != "-").then(|| field.parse().expect("a block's number"))
}

/// The kernel's log has nothing of what means that something broke.
#[track_caller]
pub fn kernel_is_content() {
    let log = run("dmesg", &[]);
    for line in log.lines() {
        let is_bad = COMPLAINTS.iter().any(|words| line.contains(words));
        assert!(!is_bad, "the kernel says: {line}");
    }
}
