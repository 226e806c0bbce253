//! A plan of many restores: a TOML file, which is checked as a whole before anything of it begins.
//!
//! What a volume's restore is like has the names and the rules of the options of `restore`. Everything that is wrong is
//! said at once, with the line.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use agent::{Failure, Repository};
use anyhow::{Context, bail};
use futures::stream::{self, StreamExt};
use serde::Deserialize;
use toml::Spanned;

use crate::apart::Apart;
use crate::args::RestoreOptions;
use crate::restore::Order;
use crate::settings::AT_ONCE_MAX;
use crate::{cat, select, snapback};

/// Volumes of one host at once, unless the plan says otherwise.
pub const AT_ONCE: usize = 2;
/// Requests to the store at once that a plan may ask for.
const FETCHES_MAX: usize = 256;
/// Volumes of a plan.
const VOLUMES_MAX: usize = 4096;
/// Snapshots looked for at once.
const LOOKED_FOR: usize = 8;

/// The file, as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    volumes_at_once: Option<usize>,
    fetches_at_once: Option<usize>,
    #[serde(default)]
    hosts: BTreeMap<String, Spanned<HostFile>>,
    #[serde(default)]
    volume: Vec<Spanned<VolumeFile>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostFile {
    volumes_at_once: usize,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct VolumeFile {
    snapshot: String,
    target: String,
    range: Option<String>,
    host: Option<String>,
    priority: i32,
    force: bool,
    force_in_use: bool,
    create: bool,
    thin: Option<String>,
    like: bool,
    safety_snapshot: Option<SafetyFile>,
    drop_baseline: bool,
    full: bool,
    no_tracking: bool,
    verify: bool,
    undo: bool,
    keep_going: bool,
    /// Refused, and known so that it is said why.
    snapback: Option<toml::Value>,
}

/// `true`, or a size.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum SafetyFile {
    Wanted(bool),
    Size(String),
}

/// What a plan is checked against.
pub struct Surroundings<'a> {
    /// This host's name.
    pub host: &'a str,
    /// Whether a NATS server is configured.
    pub has_nats: bool,
}

/// A plan of which everything fits, its snapshots included.
pub struct Plan {
    /// What is restored, in this order.
    pub orders: Vec<Planned>,
    /// Reads of content and maps in the store at once, of all who restore.
    pub fetches_at_once: Option<usize>,
    at_once: usize,
    hosts: BTreeMap<String, usize>,
}

/// A volume of a plan.
pub struct Planned {
    /// What is restored.
    pub order: Order,
    /// Higher ones come first.
    pub priority: i32,
}

/// What is wrong with a plan, by line.
type Wrong = Vec<(usize, String)>;

impl VolumeFile {
    fn options(&self) -> RestoreOptions {
        let safety_snapshot = match &self.safety_snapshot {
            None | Some(SafetyFile::Wanted(false)) => None,
            Some(SafetyFile::Wanted(true)) => Some(String::new()),
            Some(SafetyFile::Size(size)) => Some(size.clone()),
        };
        RestoreOptions {
            force: self.force,
            force_in_use: self.force_in_use,
            create: self.create,
            thin: self.thin.clone(),
            like: self.like,
            safety_snapshot,
            drop_baseline: self.drop_baseline,
            full: self.full,
            no_tracking: self.no_tracking,
            verify: self.verify,
            undo: self.undo,
            keep_going: self.keep_going,
            to_host: self.host.clone(),
        }
    }

    fn range(&self) -> anyhow::Result<Option<Range<u64>>> {
        Ok(self.range.as_deref().map(cat::parse).transpose()?)
    }

    fn wrong(&self, around: &Surroundings<'_>) -> Vec<String> {
        let options = self.options();
        let mut wrong = options.clashes();
        wrong.extend(options.preparation().err().map(|why| why.to_string()));
        wrong.extend(self.range().err().map(|why| format!("range: {why}")));
        let more = [
            (
                self.range.is_some() && self.create,
                "range and create: a volume that is made is restored whole",
            ),
            (self.snapshot.is_empty(), "snapshot is missing"),
            (self.target.is_empty(), "target is missing"),
            (self.host.as_deref() == Some(""), "host has no name"),
            (self.snapback.is_some(), snapback::IN_PLANS),
            (
                self.host.is_some() && !around.has_nats,
                "host: another host's agents are reached by a NATS server only (--nats)",
            ),
        ];
        wrong.extend(more.into_iter().filter(|(broken, _)| *broken).map(|(_, why)| why.to_owned()));
        wrong
    }
}

/// The line of a byte, from 1.
fn line_of(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}

impl File {
    /// Everything that can be said without the repository.
    fn wrong(&self, text: &str, around: &Surroundings<'_>) -> Wrong {
        let mut wrong = Wrong::new();
        let mut bounded = |line, what: &str, found: Option<usize>, limit: usize| {
            if let Some(found) = found.filter(|found| !(1..=limit).contains(found)) {
                wrong.push((line, format!("{what}: {found} is not between 1 and {limit}")));
            }
        };
        bounded(1, "volumes_at_once", self.volumes_at_once, AT_ONCE_MAX);
        bounded(1, "fetches_at_once", self.fetches_at_once, FETCHES_MAX);
        bounded(1, "volumes", Some(self.volume.len()), VOLUMES_MAX);
        let used: BTreeSet<&str> =
            self.volume.iter().filter_map(|volume| volume.get_ref().host.as_deref()).collect();
        for file in self.hosts.values() {
            let line = line_of(text, file.span().start);
            bounded(line, "volumes_at_once", Some(file.get_ref().volumes_at_once), AT_ONCE_MAX);
        }
        for (host, file) in self.hosts.iter().filter(|(host, _)| !used.contains(host.as_str())) {
            let line = line_of(text, file.span().start);
            wrong.push((line, format!("hosts.{host}: no volume goes to this host")));
        }
        let mut targets = Apart::new(around.host);
        for volume in &self.volume {
            let (line, volume) = (line_of(text, volume.span().start), volume.get_ref());
            wrong.extend(volume.wrong(around).into_iter().map(|why| (line, why)));
            let host = volume.host.as_deref().unwrap_or(around.host);
            let target = &volume.target;
            if let Some(other) = targets.add(host, target, line) {
                let why = format!("{target} on {host} is the target of the volume in line {other}, too");
                wrong.push((line, why));
            }
        }
        wrong
    }
}

impl Plan {
    /// Reads a plan, and looks for its snapshots. Changes nothing.
    pub async fn read(
        path: &Path,
        repository: &Repository,
        around: &Surroundings<'_>,
    ) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let file: File = toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
        let mut wrong = file.wrong(&text, around);
        let looking = file.volume.iter().filter(|volume| !volume.get_ref().snapshot.is_empty());
        let found: Vec<Result<Planned, (usize, String)>> = stream::iter(looking)
            .map(|volume| planned(repository, line_of(&text, volume.span().start), volume.get_ref()))
            .buffered(LOOKED_FOR)
            .collect()
            .await;
        let mut orders = Vec::new();
        for one in found {
            match one {
                Ok(order) => orders.push(order),
                Err(why) => wrong.push(why),
            }
        }
        refuse(path, wrong)?;
        // Volumes of one priority stay as they stand.
        orders.sort_by_key(|planned| std::cmp::Reverse(planned.priority));
        let hosts = file.hosts.into_iter().map(|(host, file)| (host, file.into_inner().volumes_at_once));
        Ok(Self {
            orders,
            fetches_at_once: file.fetches_at_once,
            at_once: file.volumes_at_once.unwrap_or(AT_ONCE),
            hosts: hosts.collect(),
        })
    }

    /// Volumes at once of a host, or of this process.
    pub fn at_once(&self, host: Option<&str>) -> usize {
        host.and_then(|host| self.hosts.get(host)).copied().unwrap_or(self.at_once)
    }
}

async fn planned(
    repository: &Repository,
    line: usize,
    volume: &VolumeFile,
) -> Result<Planned, (usize, String)> {
    let options = volume.options();
    let wrong = |why: anyhow::Error| (line, crate::text::error(&why));
    let root = select::snapshot(repository, &volume.snapshot).await.map_err(wrong)?;
    // What is wrong with it is said already.
    let preparation = options.preparation().unwrap_or_default();
    let range = volume.range().unwrap_or_default();
    let order = Order { root, target: volume.target.clone(), range, options, preparation };
    Ok(Planned { order, priority: volume.priority })
}

fn refuse(path: &Path, mut wrong: Wrong) -> anyhow::Result<()> {
    if wrong.is_empty() {
        return Ok(());
    }
    wrong.sort();
    let path = path.display();
    let lines: Vec<String> = wrong.iter().map(|(line, why)| format!("{path}:{line}: {why}")).collect();
    bail!(Failure::refused(format!("nothing of this plan was begun:\n{}", lines.join("\n"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Surroundings<'static> = Surroundings { host: "here", has_nats: true };

    fn wrong(text: &str) -> Wrong {
        toml::from_str::<File>(text).unwrap().wrong(text, &HERE)
    }

    #[test]
    fn a_plan_says_what_restore_is_told() {
        let text = r#"
volumes_at_once = 4
fetches_at_once = 16

[hosts.new]
volumes_at_once = 1

[[volume]]
snapshot = "old/dc@latest"
target = "vg1/dc"
host = "new"
priority = 100
create = true
thin = "pool"

[[volume]]
snapshot = "01ABC"
target = "/srv/x.img"
range = "1MiB+4KiB"
safety_snapshot = "1GiB"
verify = true
force_in_use = true
"#;
        assert!(wrong(text).is_empty(), "{:?}", wrong(text));
        let file: File = toml::from_str(text).unwrap();
        let options: Vec<RestoreOptions> = file.volume.iter().map(|one| one.get_ref().options()).collect();
        assert_eq!((options[0].thin.as_deref(), options[0].to_host.as_deref()), (Some("pool"), Some("new")));
        assert_eq!(options[1].preparation().unwrap().safety.unwrap().size, Some(1 << 30));
        assert_eq!(file.volume[0].get_ref().priority, 100);
        let ranges: Vec<_> = file.volume.iter().map(|one| one.get_ref().range().unwrap()).collect();
        assert_eq!(ranges, [None, Some(1 << 20..(1 << 20) + 4096)]);
        let overrides = [&options[0], &options[1]].map(|options| (options.force, options.force_in_use));
        assert_eq!(overrides, [(false, false), (false, true)], "each volume has its own");
    }

    #[test]
    fn everything_wrong_is_said_with_its_line() {
        let text = r#"volumes_at_once = 65
[hosts.nobody]
volumes_at_once = 0
[[volume]]
snapshot = "a@latest"
target = "vg1/a"
like = true
[[volume]]
snapshot = "b@latest"
target = "/dev/vg1/a"
host = "here"
verify = true
[[volume]]
target = "vg1/c"
range = "many"
safety_snapshot = "many"
snapback = "/srv/kept"
"#;
        let mut wrong = wrong(text);
        wrong.sort();
        let expected = [
            (1, "volumes_at_once: 65"),
            (2, "hosts.nobody: no volume"),
            (2, "volumes_at_once: 0"),
            (4, "like:"),
            (8, "/dev/vg1/a on here is the target of the volume in line 4"),
            (13, "range:"),
            (13, "safety_snapshot:"),
            (13, "snapback:"),
            (13, "snapshot is missing"),
        ];
        assert_eq!(wrong.len(), expected.len(), "{wrong:?}");
        for ((line, why), (at, start)) in wrong.iter().zip(expected) {
            assert!(*line == at && why.starts_with(start), "{line}: {why}, and not {at}: {start}");
        }
    }

    #[test]
    fn one_file_under_two_names_is_one_target() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(at("disk.img"), b"").unwrap();
        std::os::unix::fs::symlink(at("disk.img"), at("link.img")).unwrap();
        let volume = |name: &str, host: &str| {
            format!("[[volume]]\nsnapshot = \"{name}@latest\"\ntarget = {:?}\n{host}", at(name))
        };
        let both = |host: &str| volume("disk.img", host) + &volume("link.img", host);
        let found = wrong(&both(""));
        let expected = format!("{} on here is the target of the volume in line 1, too", at("link.img"));
        assert_eq!(found, [(4, expected)]);
        assert!(wrong(&both("host = \"there\"\n")).is_empty(), "what stands elsewhere is not known here");
    }

    #[test]
    fn a_host_needs_a_server_and_a_plan_a_volume() {
        let text = "[[volume]]\nsnapshot = \"a\"\ntarget = \"b\"\nhost = \"h\"\n";
        let file: File = toml::from_str(text).unwrap();
        let alone = Surroundings { has_nats: false, ..HERE };
        assert!(file.wrong(text, &alone)[0].1.contains("--nats"));
        assert!(wrong("")[0].1.contains("volumes: 0"));
    }

    #[test]
    fn what_a_plan_does_not_know_is_refused_with_its_line() {
        for text in ["volume_at_once = 1\n", "\n[[volume]]\nsnapshots = \"a\"\n", "[hosts.a]\n"] {
            let why = toml::from_str::<File>(text).unwrap_err().to_string();
            assert!(why.contains("at line"), "{why}");
        }
    }
}
