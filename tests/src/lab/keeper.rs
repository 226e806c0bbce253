//! lvkeep in the guest: a repository, backups of logical volumes, restores that are compared.

use serde_json::Value;

use super::content::size;
use super::volumes::{Volume, VolumeGroup};
use crate::e2e::{Archive, Machine, Process, Ran, same_bytes};

/// A host with a repository of its own.
#[derive(Debug)]
pub struct Keeper {
    /// Where lvkeep runs.
    pub machine: Machine,
    repository: String,
    identity: String,
}

/// What `backup --json` said of one source.
#[derive(Debug, Clone)]
pub struct Backup {
    /// All of it.
    pub said: Value,
}

/// What of a volume was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tracked {
    /// All of it, and why if something else was to be expected.
    Everything {
        /// The reason that is given.
        why: Option<String>,
    },
    /// What may have changed since the parent.
    Since {
        /// Bytes that may have changed.
        changed: u64,
        /// Bytes that were read to see whether the rest is unchanged.
        audited: u64,
    },
}

impl Tracked {
    /// Whether all of it was read.
    pub fn is_everything(&self) -> bool {
        matches!(self, Self::Everything { .. })
    }
}

impl Keeper {
    /// A repository of small packs in a directory, and lvkeep's configuration.
    pub fn new(configuration: &str) -> Self {
        Self::made(configuration, &["init", "--pack-size", "4MiB"])
    }

    /// The same with packs of the usual size.
    pub fn with_usual_packs(configuration: &str) -> Self {
        Self::made(configuration, &["init"])
    }

    fn made(configuration: &str, init: &[&str]) -> Self {
        let mut machine = Machine::bare("lab");
        machine.configure(configuration);
        let repository = machine.place("repository");
        machine.set("LVKEEP_REPO", &repository);
        let key = machine.place("writer-key");
        let made = machine.json(&[init, &["--key-out", &key]].concat());
        let identity = made["identity"].as_str().unwrap_or_else(|| panic!("no identity: {made}")).to_owned();
        Self { machine, repository, identity }
    }

    /// Makes another repository on the same host; `--repo` leads to it.
    pub fn another_repository(&self, name: &str) -> String {
        let path = self.machine.place(name);
        self.machine
            .run(&["init", "--repo", &path, "--identity-out", &self.machine.place(&format!("{name}.id"))])
            .ok();
        path
    }

    /// Where the repository is.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The file of the identity that opens it.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Backs up one volume, which must succeed.
    #[track_caller]
    pub fn backup(&self, volume: &Volume) -> Backup {
        self.backup_with(&[&volume.path()])
    }

    /// Backs up one source with options, which must succeed.
    #[track_caller]
    pub fn backup_with(&self, arguments: &[&str]) -> Backup {
        let ran = self.machine.run(&[&["--json", "backup"], arguments].concat()).ok();
        let backup = Backup { said: ran.json() };
        println!("    backup {}: {}", arguments.join(" "), backup.said);
        backup
    }

    /// Backs up several sources with options, which must succeed; each is one.
    #[track_caller]
    pub fn backup_all(&self, arguments: &[&str]) -> Vec<Backup> {
        let ran = self.machine.run(&[&["--json", "backup"], arguments].concat()).ok();
        println!("    backup {}: {}", arguments.join(" "), ran.out.trim());
        let parse = |line| Backup { said: serde_json::from_str(line).expect("an object in a line") };
        ran.out.lines().map(parse).collect()
    }

    /// Starts a backup and does not wait for it.
    pub fn start_backup(&self, arguments: &[&str]) -> Process {
        self.machine.start(&[&["backup"], arguments].concat())
    }

    /// Runs lvkeep to its end, whatever that is.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        self.machine.run(arguments)
    }

    /// A snapshot, restored to a file, holds what `device` holds now, byte for byte.
    #[track_caller]
    pub fn restores(&self, snapshot: &str, device: &str) {
        let target = self.machine.place("restored.img");
        self.machine.run(&["restore", snapshot, &target]).ok();
        assert_eq!(size(&target), size(device), "the size of {snapshot}");
        same_bytes(device, &target);
        std::fs::remove_file(target).expect("the restored file is deleted");
    }

    /// The newest snapshot of a volume, as `restore` takes it.
    pub fn latest(&self, volume: &Volume) -> String {
        let listed = self.machine.json(&["snapshots"]);
        let of_volume =
            |one: &&Value| one["volume"].as_str().is_some_and(|name| name.ends_with(&volume.path()));
        let named = listed.as_array().expect("a list of snapshots").iter().find(of_volume);
        let name = named
            .and_then(|one| one["volume"].as_str())
            .unwrap_or_else(|| panic!("{}: {listed}", volume.path()));
        format!("{name}@latest")
    }

    /// How many snapshots the repository has.
    pub fn snapshots(&self) -> usize {
        self.machine.json(&["snapshots"]).as_array().expect("a list of snapshots").len()
    }

    /// Makes of a snapshot what a collection makes of one that was forgotten: a tombstone.
    pub fn collected(&self, snapshot: &str) {
        Archive::in_directory(&self.repository, &self.identity).sweep(snapshot);
    }

    /// The one snapshot that lvkeep keeps on the volume, made readable: what the last backup read.
    #[track_caller]
    pub fn baseline(&self, group: &VolumeGroup, volume: &Volume) -> Volume {
        let of_volume = |kept: &Volume| kept.field("origin") == volume.name;
        let found: Vec<Volume> = group.kept().into_iter().filter(of_volume).collect();
        let [baseline] = found.as_slice() else {
            panic!("{} has {} snapshots of lvkeep, not one", volume.path(), found.len())
        };
        baseline.activate();
        baseline.clone()
    }
}

impl Backup {
    /// The snapshot's id.
    #[track_caller]
    pub fn snapshot(&self) -> &str {
        self.said["snapshot"].as_str().unwrap_or_else(|| panic!("no snapshot in {}", self.said))
    }

    /// The volume's name in the archive.
    pub fn volume(&self) -> &str {
        self.said["volume"].as_str().unwrap_or_else(|| panic!("no volume in {}", self.said))
    }

    /// What was read, as the summary has it.
    #[track_caller]
    pub fn tracked(&self) -> Tracked {
        let tracking = &self.said["tracking"];
        match (tracking["bytes_changed"].as_u64(), tracking["bytes_audited"].as_u64()) {
            (Some(changed), Some(audited)) => Tracked::Since { changed, audited },
            (None, None) if tracking.is_object() => {
                Tracked::Everything { why: tracking["why_everything"].as_str().map(str::to_owned) }
            }
            _ => panic!("it is not said what was read: {}", self.said),
        }
    }

    /// A count of the summary.
    #[track_caller]
    pub fn count(&self, name: &str) -> u64 {
        self.said[name].as_u64().unwrap_or_else(|| panic!("no count {name} in {}", self.said))
    }
}
