//! `snapshots`: the list.

use schema::root::Root;
use serde::Serialize;

use crate::app::App;
use crate::args::SnapshotsArgs;
use crate::{select, text};

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
    /// The source changed while it was read.
    pub changed_while_read: bool,
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
            changed_while_read: root.changed_while_read,
            encrypted,
        }
    }
}

/// The sources of a snapshot's group of which the same run has no snapshot.
fn lacks(root: &Root, all: &[Root]) -> Vec<String> {
    let Some(group) = &root.group else { return Vec::new() };
    let run = all.iter().filter(|other| other.group.as_ref() == Some(group));
    select::missing(run).into_iter().map(str::to_owned).collect()
}

fn group_text(row: &Row) -> String {
    match (&row.group, row.group_lacks.as_slice()) {
        (None, _) => "-".to_owned(),
        (Some(group), []) => group.clone(),
        (Some(group), lacks) => format!("{group} (WITHOUT {})", lacks.join(", ")),
    }
}

/// Those of the snapshots that are asked for.
pub fn filtered(all: &[Root], args: &SnapshotsArgs) -> anyhow::Result<Vec<Root>> {
    let mut roots = all.to_vec();
    if let Some(pattern) = &args.volume {
        roots.retain(|root| text::matches(pattern, &root.volume));
    }
    if let Some(pattern) = &args.group {
        let named = |group: &String| {
            let name = group.rsplit_once('/').map_or(group.as_str(), |(name, _)| name);
            text::matches(pattern, name) || text::matches(pattern, group)
        };
        roots.retain(|root| root.group.as_ref().is_some_and(named));
    }
    if let Some(pattern) = &args.host {
        roots.retain(|root| text::matches(pattern, &root.host));
    }
    roots.retain(|root| args.tags.iter().all(|tag| root.tags.contains(tag)));
    if let Some(since) = &args.since {
        let since = select::parse_since(since)?;
        roots.retain(|root| root.time_ms >= since);
    }
    if let Some(until) = &args.until {
        let until = select::parse_time(until)?;
        roots.retain(|root| root.time_ms <= until);
    }
    Ok(roots)
}

/// `lvkeep snapshots`.
pub async fn run(app: &App, args: &SnapshotsArgs) -> anyhow::Result<()> {
    let repository = app.repository().await?;
    let all = select::roots(&repository, None).await?;
    let roots = filtered(&all, args)?;
    let encrypted = repository.key.encrypted();
    let rows: Vec<Row> = roots
        .iter()
        .map(|root| Row { group_lacks: lacks(root, &all), ..Row::new(root, encrypted) })
        .collect();
    app.print(&rows, || {
        let mut table = text::Table::new(&["id", "volume", "gen", "time", "size", "added", "group", "tags"]);
        for (row, root) in rows.iter().zip(&roots) {
            let mark = if row.changed_while_read { " (changed while read)" } else { "" };
            table.row([
                row.id.clone(),
                row.volume.clone(),
                row.generation.to_string(),
                text::time(root.time_ms),
                text::size(row.size),
                text::size(row.bytes_stored),
                group_text(row),
                format!("{}{mark}", row.tags.join(",")),
            ]);
        }
        let warning = if encrypted { "" } else { "\nThis repository is NOT ENCRYPTED." };
        format!("{}\n{} snapshots{warning}", table.text(), rows.len())
    })
}
