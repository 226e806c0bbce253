//! `snapshots`: the list.

use std::collections::{BTreeMap, BTreeSet};

use agent::Failure;
use schema::root::Root;
use serde::Serialize;

use crate::app::App;
use crate::args::{Chosen, SnapshotsArgs};
use crate::settings::Origin;
use crate::{holes, select, text, times};

/// A snapshot, as it is printed.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Its id.
    pub id: String,
    /// The volume.
    pub volume: String,
    /// Its generation.
    pub generation: u64,
    /// The moment that it shows, RFC 3339.
    pub time: String,
    /// Bytes of the volume.
    pub size: u64,
    /// Bytes that it added to the repository.
    pub bytes_stored: u64,
    /// Bytes of the volume that were new.
    pub bytes_new: u64,
    /// The host.
    pub host: String,
    /// The run of a group that it was taken with, NAME/RUN.
    pub group: Option<String>,
    /// The sources of that run of which there is no snapshot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub group_lacks: Vec<String>,
    /// Tags.
    pub tags: Vec<String>,
    /// The operator's note.
    pub note: Option<String>,
    /// Nothing forgets it.
    pub held: bool,
    /// The source changed while it was read.
    pub changed_while_read: bool,
    /// Bytes that are marked as lost.
    pub bytes_lost: u64,
    /// Whether the repository is encrypted.
    pub encrypted: bool,
}

impl Row {
    /// The row of a root.
    pub fn new(root: &Root, encrypted: bool) -> Self {
        Self {
            id: root.slot.session.to_string(),
            volume: root.volume.clone(),
            generation: root.generation,
            time: text::rfc3339(root.time_ms),
            size: root.size,
            bytes_stored: root.statistics.bytes_stored,
            bytes_new: root.statistics.bytes_new,
            host: root.host.clone(),
            group: root.group.clone(),
            group_lacks: Vec::new(),
            tags: root.tags.clone(),
            note: None,
            held: false,
            changed_while_read: root.changed_while_read,
            bytes_lost: 0,
            encrypted,
        }
    }
}

/// What each run of a group has no snapshot of.
fn lacking(all: &[Root]) -> BTreeMap<&str, Vec<&str>> {
    let mut runs: BTreeMap<&str, Vec<&Root>> = BTreeMap::new();
    for root in all {
        if let Some(group) = &root.group {
            runs.entry(group).or_default().push(root);
        }
    }
    runs.into_iter().map(|(group, run)| (group, select::missing(run.iter().copied()))).collect()
}

fn group_text(row: &Row) -> String {
    match (&row.group, row.group_lacks.as_slice()) {
        (None, _) => "-".to_owned(),
        (Some(group), []) => group.clone(),
        (Some(group), lacks) => format!("{group} (WITHOUT {})", lacks.join(", ")),
    }
}

/// Those of the snapshots that are asked for, by what they are of and by their time.
pub fn filtered(
    app: &App,
    all: &[Root],
    of: &Chosen,
    since: Option<&str>,
    until: Option<&str>,
) -> anyhow::Result<Vec<Root>> {
    let mut roots = all.to_vec();
    if let Some(pattern) = &of.volume {
        roots.retain(|root| text::matches(pattern, &root.volume));
    }
    if let Some(pattern) = &of.group {
        let named = |group: &String| {
            let name = group.rsplit_once('/').map_or(group.as_str(), |(name, _)| name);
            text::matches(pattern, name) || text::matches(pattern, group)
        };
        roots.retain(|root| root.group.as_ref().is_some_and(named));
    }
    // The variable that names this host chooses nothing.
    if let Some(pattern) = of.host.as_ref().filter(|_| app.settings.host.origin == Origin::Flag) {
        roots.retain(|root| text::matches(pattern, &root.host));
    }
    roots.retain(|root| of.tags.iter().all(|tag| root.tags.contains(tag)));
    if let Some(since) = since.map(times::since).transpose()? {
        roots.retain(|root| root.time_ms >= since);
    }
    if let Some(until) = until.map(times::until).transpose()? {
        roots.retain(|root| root.time_ms <= until);
    }
    Ok(roots)
}

/// Whether anything but a time says which snapshots, and not all of them, are asked for.
pub fn is_narrowed(app: &App, of: &Chosen) -> bool {
    let by_host = of.host.is_some() && app.settings.host.origin == Origin::Flag;
    of.volume.is_some() || of.group.is_some() || by_host || !of.tags.is_empty()
}

/// What else may have been meant, where no volume is called as was asked for: volumes go by HOST/PATH.
pub fn hint(all: &[Root], of: &Chosen) -> Option<String> {
    let pattern = of.volume.as_deref()?;
    let below = format!("{}/*", pattern.trim_end_matches('/'));
    let count = |pattern: &str| {
        let names = all.iter().map(|root| root.volume.as_str()).filter(|name| text::matches(pattern, name));
        names.collect::<BTreeSet<_>>().len()
    };
    let found = count(&below);
    (count(pattern) == 0 && found > 0)
        .then(|| format!("no volume is called {pattern:?}; '{below}' means {found} volumes"))
}

/// There is nothing of what was asked for.
pub fn nothing(all: &[Root], of: &Chosen) -> Failure {
    let hint = hint(all, of).map_or(String::new(), |hint| format!("; {hint}"));
    Failure::refused(format!("no snapshot is what was asked for (`lvkeep snapshots` lists them){hint}"))
}

/// `lvkeep snapshots`.
pub async fn run(app: &App, args: &SnapshotsArgs) -> anyhow::Result<()> {
    let repository = app.repository().await?;
    let (all, marks) = match args.forgotten {
        true => select::labelled_forgotten(&repository).await?,
        false => select::labelled(&repository).await?,
    };
    let roots = filtered(app, &all.readable, &args.of, args.since.as_deref(), args.until.as_deref())?;
    let encrypted = repository.key.encrypted();
    let lacking = lacking(&all.readable);
    let holes = holes::all(&repository).await?;
    let row = |root: &Root| {
        let lacks = root.group.as_deref().and_then(|group| lacking.get(group));
        let group_lacks = lacks.into_iter().flatten().map(|&source| source.to_owned()).collect();
        let marks = marks.get(&root.slot).cloned().unwrap_or_default();
        let (note, held) = (marks.labels(root).note, marks.is_held());
        let bytes_lost = holes.get(&root.slot).copied().unwrap_or(0);
        Row { group_lacks, note, held, bytes_lost, ..Row::new(root, encrypted) }
    };
    let rows: Vec<Row> = roots.iter().map(row).collect();
    app.print(&rows, || {
        let mut table = text::Table::new(&["id", "volume", "gen", "time", "size", "added", "group", "tags"]);
        for (row, root) in rows.iter().zip(&roots) {
            let held = if row.held { " (held)" } else { "" };
            let mark = if row.changed_while_read { " (changed while read)" } else { "" };
            let lost = match row.bytes_lost {
                0 => String::new(),
                bytes => format!(" (LOST {})", text::size(bytes)),
            };
            table.row([
                row.id.clone(),
                row.volume.clone(),
                row.generation.to_string(),
                text::time(root.time_ms),
                text::size(row.size),
                text::size(row.bytes_stored),
                group_text(row),
                format!("{}{held}{mark}{lost}", row.tags.join(",")),
            ]);
        }
        let warning = if encrypted { "" } else { "\nThis repository is NOT ENCRYPTED." };
        format!("{}\n{}{warning}", table.text(), text::count(rows.len() as u64, "snapshot"))
    })?;
    if let Some(hint) = hint(&all.readable, &args.of) {
        app.say(format!("lvkeep: {hint}"));
    }
    select::conclude(app, &select::may_be_chosen(&all, &args.of, true))
}

#[cfg(test)]
pub mod tests {
    use schema::facts::GROUP_MEMBERS;
    use schema::names::Slot;
    use schema::root::{Statistics, Tracking};
    use schema::{JobId, ReadingId, SessionId, VolumeKey};

    use super::*;

    /// A root of a source in a run of a group.
    pub fn root(group: Option<&str>, source: &str, members: &str) -> Root {
        let slot = Slot { volume: VolumeKey::from_bytes([1; 16]), session: SessionId::from_bytes([2; 16]) };
        Root {
            version: Root::VERSION,
            volume: format!("h/{source}"),
            host: "h".into(),
            source: source.into(),
            slot,
            reading: ReadingId::from_bytes([3; 16]),
            job: JobId::from_bytes([4; 16]),
            generation: 1,
            parent: None,
            size: 0,
            top: None,
            time_ms: 0,
            sealed_ms: 0,
            group: group.map(str::to_owned),
            changed_while_read: false,
            layout: BTreeMap::from([(GROUP_MEMBERS.to_owned(), members.to_owned())]),
            tags: Vec::new(),
            statistics: Statistics::default(),
            tracking: Tracking::Everything { why: None },
        }
    }

    #[test]
    fn who_leaves_out_what_stands_behind_the_hosts_name_is_told_so() {
        let all = [root(None, "vg/a", ""), root(None, "vg/b", ""), root(None, "vg/b", "")];
        let of = |volume: &str| Chosen {
            volume: Some(volume.to_owned()),
            group: None,
            host: None,
            tags: Vec::new(),
        };
        for pattern in ["h", "h/", "h/vg"] {
            let said = hint(&all, &of(pattern)).unwrap();
            assert!(
                said.contains(&format!("'{}/*' means 2 volumes", pattern.trim_end_matches('/'))),
                "{said}"
            );
            assert!(nothing(&all, &of(pattern)).why.ends_with(&said));
        }
        for pattern in ["h/vg/a", "h/*", "*", "other", ""] {
            assert_eq!(hint(&all, &of(pattern)), None, "{pattern}");
        }
    }

    #[test]
    fn each_run_lacks_its_own_members() {
        let all = [
            root(Some("g/1"), "vg/a", "vg/a vg/b vg/c"),
            root(None, "vg/b", ""),
            root(Some("g/2"), "vg/b", "vg/a vg/b"),
            root(Some("g/1"), "vg/c", "vg/a vg/b vg/c"),
            root(Some("g/2"), "vg/a", "vg/a vg/b"),
        ];
        assert_eq!(lacking(&all), BTreeMap::from([("g/1", vec!["vg/b"]), ("g/2", vec![])]));
    }
}
