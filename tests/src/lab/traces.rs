//! What must not be left behind: snapshots that nobody owns, a pool's reserved metadata, complaints of the kernel.

use std::sync::mpsc;
use std::time::Duration;

use super::command::{run, succeeds};
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
        nothing_is_frozen();
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

/// How long a small file on a volume may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Every mounted file system of a volume takes a small file. One that is frozen is thawed, so that the guest can end.
#[track_caller]
pub fn nothing_is_frozen() {
    let mounts = std::fs::read_to_string("/proc/mounts").expect("the mounts");
    for line in mounts.lines() {
        let [device, folder, _, options] = line.split(' ').take(4).collect::<Vec<_>>()[..] else {
            panic!("a mount: {line}")
        };
        let is_writable = options.split(',').any(|option| option == "rw");
        if device.starts_with("/dev/mapper/") && is_writable && !takes_a_file(folder) {
            let was_frozen = succeeds("fsfreeze", &["--unfreeze", folder]);
            panic!("{folder} takes no file within {PATIENCE:?}; frozen: {was_frozen}");
        }
    }
}

fn takes_a_file(folder: &str) -> bool {
    let probe = format!("{folder}/is-it-frozen");
    let (told, written) = mpsc::sync_channel(1);
    // Whoever writes to a frozen file system cannot be stopped.
    std::thread::spawn(move || {
        let done = std::fs::write(&probe, "no").and_then(|()| std::fs::remove_file(&probe));
        let _ = told.send(done);
    });
    match written.recv_timeout(PATIENCE) {
        Ok(done) => done.map(|()| true).unwrap_or_else(|why| panic!("{folder}: {why}")),
        Err(_) => false,
    }
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
