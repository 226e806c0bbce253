//! What stands for snapshots whose roots are damaged: they stay, and so does every run of a group that may be theirs.
//!
//! A volume's other snapshots are decided about as if the damaged one were not there, which keeps as much as if it were
//! or more: it takes nobody's place. One thing is lost with it: times that run backwards are not seen where it is one of
//! the two snapshots that show it, and the rules then go by the times that are left.

use std::collections::BTreeMap;

use agent::DamagedRoot;
use schema::facts::GROUP_MEMBERS;
use schema::root::Root;

use super::Snapshot;

/// A snapshot that stays in each run that lacks a member which may be damaged; to be decided about with the others.
pub fn stand_ins(damaged: &[DamagedRoot], roots: &[Root]) -> Vec<Snapshot> {
    let mut runs: BTreeMap<&str, Vec<&Root>> = BTreeMap::new();
    for root in roots {
        if let Some(run) = &root.group {
            runs.entry(run).or_default().push(root);
        }
    }
    let stands_in = |(run, there): (&str, Vec<&Root>)| {
        let is_other = |one: &&DamagedRoot| there.iter().all(|root| root.slot.volume != one.slot.volume);
        let damaged = damaged.iter().find(is_other).filter(|_| lacks_some(&there))?;
        Some(Snapshot {
            slot: damaged.slot,
            volume: format!("the damaged {}", damaged.slot),
            generation: 0,
            time_ms: 0,
            group: Some(run.to_owned()),
            tags: Vec::new(),
            held: true,
        })
    };
    runs.into_iter().filter_map(stands_in).collect()
}

/// Whether a run has fewer snapshots than members.
fn lacks_some(run: &[&Root]) -> bool {
    let members = run.iter().find_map(|root| root.layout.get(GROUP_MEMBERS)).map(String::as_str);
    let is_missing = |member: &str| run.iter().all(|root| root.source != member);
    members.unwrap_or_default().split_whitespace().any(is_missing)
}
