//! The configuration's policies, applied after a session: reads what they decide about, and forgets what goes.

use std::collections::BTreeSet;

use agent::forgetting::{self, Forgot};
use agent::pattern::matches;
use agent::{DamagedRoot, Failure, Repository, marks};
use futures::future::join_all;
use schema::facts::GROUP_MEMBERS;
use schema::names::UNDO_VOLUMES;
use schema::root::Root;

use super::{Decided, Rules, Snapshot, decide, stand_ins};

/// Snapshots forgotten at once.
const AT_ONCE: usize = 16;

/// What is kept of the volumes whose names match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The pattern, in which `*` stands for anything.
    pub volumes: String,
    /// What is kept of them.
    pub rules: Rules,
}

/// Policies in the order of the configuration; the last one that matches a volume decides.
#[derive(Debug, Clone, Default)]
pub struct Policies(Vec<Policy>);

impl Policies {
    /// Those of a configuration.
    pub fn new(policies: Vec<Policy>) -> Self {
        Self(policies)
    }

    /// What is kept of a volume; without rules, everything. What was kept for an undo is meant only where the pattern
    /// says so.
    pub fn of(&self, volume: &str) -> Option<&Rules> {
        let is_meant = |policy: &&Policy| {
            let undo = !volume.starts_with(UNDO_VOLUMES) || policy.volumes.starts_with(UNDO_VOLUMES);
            undo && matches(&policy.volumes, volume)
        };
        self.0.iter().rfind(is_meant).map(|policy| &policy.rules)
    }
}

/// What applying a policy did.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// Snapshots that are forgotten.
    pub(crate) forgotten: Vec<Root>,
    /// What the operator should know.
    pub(crate) notes: Vec<String>,
}

/// Applies the policies to a volume, and to the whole runs of the groups that it was in. What is done when something
/// fails stands in `applied`; nothing more is begun then.
pub(crate) async fn apply(
    repository: &Repository,
    policies: &Policies,
    volume: &str,
    by: &str,
    applied: &mut Applied,
) -> Result<(), Failure> {
    if policies.of(volume).is_none() {
        return Ok(());
    }
    let mut read = Read::default();
    read.add(repository, volume).await?;
    if read.going(repository, policies, volume).1.is_empty() {
        applied.notes = read.going(repository, policies, volume).0;
        return Ok(());
    }
    for member in members(&read.roots) {
        read.add(repository, &member).await?;
    }
    let (notes, going) = read.going(repository, policies, volume);
    applied.notes = notes;
    for some in going.chunks(AT_ONCE) {
        let ended = join_all(some.iter().map(|root| forgetting::forget(repository, root, by))).await;
        let mut failed = None;
        for (root, forgot) in some.iter().zip(ended) {
            match forgot {
                Ok(Forgot::Done) => applied.forgotten.push(root.clone()),
                // It was held after it was looked at.
                Ok(Forgot::Protected(why) | Forgot::BroughtBack(_, why)) => {
                    tracing::info!(snapshot = %root.slot.session, volume = root.volume, why, "a snapshot stays");
                }
                Err(failure) => drop(failed.get_or_insert(failure)),
            }
        }
        if let Some(failure) = failed {
            return Err(failure);
        }
    }
    Ok(())
}

/// Snapshots of some volumes.
#[derive(Default)]
struct Read {
    volumes: BTreeSet<String>,
    roots: Vec<Root>,
    snapshots: Vec<Snapshot>,
    damaged: Vec<DamagedRoot>,
}

impl Read {
    async fn add(&mut self, repository: &Repository, volume: &str) -> Result<(), Failure> {
        if !self.volumes.insert(volume.to_owned()) {
            return Ok(());
        }
        let key = Some(repository.key.volume_key(volume));
        let roots = repository.roots(key).await?;
        let marks = marks::all(repository, key).await?;
        self.damaged.extend(roots.damaged);
        for root in roots.readable {
            let marks = marks.get(&root.slot).cloned().unwrap_or_default();
            self.snapshots.push(Snapshot::new(&root, &marks));
            self.roots.push(root);
        }
        Ok(())
    }

    /// What is wrong with the volume's times and roots, and those of its snapshots and of their runs that go.
    fn going(&self, repository: &Repository, policies: &Policies, volume: &str) -> (Vec<String>, Vec<Root>) {
        let now_ms = repository.environment().now_ms();
        let rules = |snapshot: &Snapshot| policies.of(&snapshot.volume);
        let all = [&self.snapshots[..], &stand_ins(&self.damaged, &self.roots)].concat();
        let Decided { reasons, backwards } = decide(&all, rules, now_ms, true);
        let own = self.roots.iter().filter(|root| root.volume == volume);
        let runs: BTreeSet<&String> = own.filter_map(|root| root.group.as_ref()).collect();
        let is_ours = |root: &Root| {
            root.volume == volume || root.group.as_ref().is_some_and(|group| runs.contains(group))
        };
        let going = self.roots.iter().zip(&reasons).filter(|(root, why)| why.is_empty() && is_ours(root));
        let of_volume = backwards.iter().filter(|backwards| backwards.earlier.volume == volume);
        let key = repository.key.volume_key(volume);
        let damaged = self.damaged.iter().filter(|damaged| damaged.slot.volume == key);
        let notes = of_volume.map(ToString::to_string).chain(damaged.map(ToString::to_string));
        (notes.collect(), going.map(|(root, _)| root.clone()).collect())
    }
}

/// The names of the volumes that were in a group with one of these snapshots: their names differ by their sources.
fn members(roots: &[Root]) -> BTreeSet<String> {
    let of = |root: &Root| -> Vec<String> {
        let sources = root.group.as_ref().and_then(|_| root.layout.get(GROUP_MEMBERS));
        let host = root.volume.strip_suffix(&root.source);
        let named = host.zip(sources).into_iter();
        named.flat_map(|(host, all)| all.split_whitespace().map(move |one| format!("{host}{one}"))).collect()
    };
    roots.iter().flat_map(of).collect()
}

impl Snapshot {
    /// What retention looks at in a root and its marks.
    pub fn new(root: &Root, marks: &marks::Marks) -> Self {
        Self {
            slot: root.slot,
            volume: root.volume.clone(),
            generation: root.generation,
            time_ms: root.time_ms,
            group: root.group.clone(),
            tags: marks.labels(root).tags,
            held: marks.is_held(),
        }
    }
}
