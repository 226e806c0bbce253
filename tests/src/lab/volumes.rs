//! Volume groups, thick and thin volumes and their snapshots, made with LVM's own tools.

use serde_json::Value;

use super::command::run;
use super::disks;

/// A volume group.
#[derive(Debug, Clone)]
pub struct VolumeGroup {
    name: String,
}

/// A logical volume by its group and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its group.
    pub group: String,
    /// Its name in the group.
    pub name: String,
}

/// A thin pool.
#[derive(Debug, Clone)]
pub struct Pool {
    /// The pool as a logical volume.
    pub volume: Volume,
}

impl VolumeGroup {
    /// A group on both scratch disks.
    pub fn new(name: &str) -> Self {
        let [first, second] = disks();
        Self::on(name, &[&first, &second])
    }

    /// A group on the disks that are named.
    pub fn on(name: &str, disks: &[&str]) -> Self {
        run("pvcreate", &[&["-q"], disks].concat());
        run("vgcreate", &[&["-q", name], disks].concat());
        Self { name: name.to_owned() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A thick volume of so many MiB.
    pub fn thick(&self, name: &str, mib: u64) -> Volume {
        run("lvcreate", &["-q", "-y", "-Wn", "-n", name, "-L", &format!("{mib}m"), &self.name]);
        self.volume(name)
    }

    /// A thin pool with blocks of so many KiB.
    pub fn pool(&self, name: &str, mib: u64, block_kib: u64) -> Pool {
        let (size, block) = (format!("{mib}m"), format!("{block_kib}k"));
        let place = ["-n", name, "-L", &size, "-c", &block, "--poolmetadatasize", "16m"];
        run("lvcreate", &[&["-q", "-y", "--type", "thin-pool"], &place[..], &[self.name.as_str()]].concat());
        Pool { volume: self.volume(name) }
    }

    /// A volume of this group by its name, made or not.
    pub fn volume(&self, name: &str) -> Volume {
        Volume { group: self.name.clone(), name: name.to_owned() }
    }

    /// What `lvs` reports of every volume, hidden ones too: fields by their names, as text.
    pub fn report(&self, fields: &str) -> Vec<Value> {
        let said = run(
            "lvs",
            &["-a", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", fields, &self.name],
        );
        let report: Value = serde_json::from_str(&said).unwrap_or_else(|why| panic!("lvs: {why}: {said}"));
        report["report"][0]["lv"].as_array().expect("a report of logical volumes").clone()
    }

    /// The names of all volumes, without hidden ones.
    pub fn names(&self) -> Vec<String> {
        let visible =
            self.report("lv_name").into_iter().filter_map(|lv| lv["lv_name"].as_str().map(str::to_owned));
        visible.filter(|name| !name.starts_with('[')).collect()
    }

    /// The volumes that lvkeep took: those whose names it reserves for itself.
    pub fn kept(&self) -> Vec<Volume> {
        let mut names: Vec<String> = self.names();
        names.retain(|name| name.starts_with("lvkeep-"));
        names.sort();
        names.iter().map(|name| self.volume(name)).collect()
    }
}

impl Pool {
    /// A thin volume of so many MiB.
    pub fn thin(&self, name: &str, mib: u64) -> Volume {
        let Volume { group, name: pool } = &self.volume;
        let (size, place) = (format!("{mib}m"), format!("{group}/{pool}"));
        run("lvcreate", &["-q", "-y", "-Wn", "-n", name, "-V", &size, "--thinpool", &place]);
        Volume { group: group.clone(), name: name.to_owned() }
    }

    /// The device whose status and messages are the pool's.
    pub fn mapped(&self) -> String {
        self.volume.mapped_name("-tpool")
    }

    /// The device that holds its metadata.
    pub fn metadata_device(&self) -> String {
        format!("/dev/mapper/{}", self.volume.mapped_name("_tmeta"))
    }
}

impl Volume {
    /// `group/name`, as LVM and lvkeep take it.
    pub fn path(&self) -> String {
        format!("{}/{}", self.group, self.name)
    }

    /// Its device.
    pub fn device(&self) -> String {
        format!("/dev/{}/{}", self.group, self.name)
    }

    /// Its name in the device mapper, where hyphens are doubled, with a suffix for one of its parts: `-cow`, `-real`.
    pub fn mapped_name(&self, suffix: &str) -> String {
        let [group, name] = [&self.group, &self.name].map(|text| text.replace('-', "--"));
        format!("{group}-{name}{suffix}")
    }

    /// One field of `lvs`.
    pub fn field(&self, name: &str) -> String {
        let arguments = ["--noheadings", "--units", "b", "--nosuffix", "-o", name, &self.path()];
        run("lvs", &arguments).trim().to_owned()
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.field("lv_size").parse().expect("a size in bytes")
    }

    /// Its LVM identity.
    pub fn uuid(&self) -> String {
        self.field("lv_uuid")
    }

    /// A thick snapshot with room for so many MiB of changes.
    pub fn snapshot(&self, name: &str, mib: u64, chunk_kib: u64) -> Volume {
        let (size, chunk) = (format!("{mib}m"), format!("{chunk_kib}k"));
        run("lvcreate", &["-q", "-y", "-s", "-n", name, "-L", &size, "-c", &chunk, &self.path()]);
        Volume { group: self.group.clone(), name: name.to_owned() }
    }

    /// A thin snapshot, active: LVM leaves it inactive of its own accord.
    pub fn thin_snapshot(&self, name: &str) -> Volume {
        run("lvcreate", &["-q", "-y", "-s", "-kn", "-n", name, &self.path()]);
        let snapshot = Volume { group: self.group.clone(), name: name.to_owned() };
        snapshot.activate();
        snapshot
    }

    /// Makes its device appear, also when it is one that is not activated with the others.
    pub fn activate(&self) {
        run("lvchange", &["-q", "-y", "-ay", "-K", &self.path()]);
    }

    /// Removes it.
    pub fn remove(&self) {
        run("lvremove", &["-q", "-f", "-y", &self.path()]);
    }

    /// Whether LVM knows it.
    pub fn exists(&self) -> bool {
        super::command::succeeds("lvs", &[&self.path()])
    }

    /// Whether it is gone, at once or when what LVM does in the background is over.
    pub fn goes(&self) -> bool {
        for _ in 0..60 {
            if !self.exists() {
                return true;
            }
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
        false
    }
}
