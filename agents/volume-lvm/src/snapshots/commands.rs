//! LVM's commands for lvkeep's snapshots. Each does one thing, and says what it did.
//!
//! Tags are given in the command that makes a snapshot, so that there is none without them. What is removed is named
//! by UUID, which LVM compares under its own lock: a name that was given to another volume meanwhile removes nothing.

use schema::SessionId;

use crate::marks::Marks;
use crate::owner::Owner;
use crate::report::LogicalVolume;
use crate::tools::{ToolError, Tools};

/// Room for what changes while a snapshot with an exception store exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Store {
    /// Bytes of the store.
    pub size: u64,
    /// Bytes of one chunk.
    pub chunk: u64,
}

/// Takes a snapshot of `origin`, read-only and marked; thin where no store is given. It may not be active yet.
pub async fn take(
    tools: &Tools,
    origin: &LogicalVolume,
    marks: &Marks,
    store: Option<Store>,
) -> Result<(), ToolError> {
    let name = Marks::name(marks.id);
    let (mut arguments, tags, source) = (
        vec!["--yes", "--quiet", "--snapshot", "--name", &name, "--permission", "r"],
        marks.tags(),
        origin.full_name(),
    );
    for tag in &tags {
        arguments.extend(["--addtag", tag]);
    }
    let sizes = store.map(|store| (format!("{}b", store.chunk), format!("{}b", store.size)));
    match &sizes {
        Some((chunk, size)) => arguments.extend(["--chunksize", chunk, "--size", size]),
        // At boot nobody needs it.
        None => arguments.extend(["--setactivationskip", "y"]),
    }
    arguments.push(&source);
    let output = tools.change("lvcreate", &arguments).await?;
    if !output.stderr.is_empty() {
        tracing::debug!(source, said = output.stderr, "lvcreate");
    }
    Ok(())
}

/// Makes a snapshot's device appear.
pub async fn activate(tools: &Tools, snapshot: &LogicalVolume) -> Result<(), ToolError> {
    let name = snapshot.full_name();
    tools.change("lvchange", &["--quiet", "--activate", "y", "--ignoreactivationskip", &name]).await.map(drop)
}

/// Makes a snapshot's device go. One with an exception store is active as long as its origin is.
pub async fn deactivate(tools: &Tools, snapshot: &LogicalVolume) -> Result<(), ToolError> {
    let name = snapshot.full_name();
    tools.change("lvchange", &["--quiet", "--activate", "n", &name]).await.map(drop)
}

/// Removes a snapshot, and no other volume that has its name by now.
pub async fn remove(tools: &Tools, snapshot: &LogicalVolume) -> Result<(), ToolError> {
    let (name, only) = (snapshot.full_name(), format!("lv_uuid=\"{}\"", snapshot.uuid));
    tools.change("lvremove", &["--yes", "--quiet", "--select", &only, &name]).await.map(drop)
}

/// Writes other marks on a snapshot in place of those that it has.
pub async fn mark(
    tools: &Tools,
    snapshot: &LogicalVolume,
    from: &Marks,
    to: &Marks,
) -> Result<(), ToolError> {
    let (before, after) = (from.tags(), to.tags());
    let mut arguments = vec!["--quiet"];
    for tag in before.iter().filter(|tag| !after.contains(tag)) {
        arguments.extend(["--deltag", tag]);
    }
    for tag in after.iter().filter(|tag| !before.contains(tag)) {
        arguments.extend(["--addtag", tag]);
    }
    if arguments.len() == 1 {
        return Ok(());
    }
    let name = snapshot.full_name();
    arguments.push(&name);
    tools.change("lvchange", &arguments).await.map(drop)
}

/// The marks of a snapshot that a process takes over for a session.
pub fn claimed(marks: &Marks, session: SessionId, owner: &Owner, embedded: bool) -> Marks {
    Marks { session: Some(session), owner: Some(owner.clone()), embedded, ..marks.clone() }
}

/// The marks of a snapshot that waits for the next run.
pub fn kept(marks: &Marks) -> Marks {
    Marks { owner: None, embedded: false, baseline: true, ..marks.clone() }
}

/// Makes a volume larger: a snapshot's exception store, or a pool's data.
pub async fn extend(tools: &Tools, volume: &LogicalVolume, by: u64) -> Result<(), ToolError> {
    let (name, by) = (volume.full_name(), format!("+{by}b"));
    tools.change("lvextend", &["--quiet", "--size", &by, &name]).await.map(drop)
}

/// Makes a pool's metadata larger.
pub async fn extend_metadata(tools: &Tools, pool: &LogicalVolume, by: u64) -> Result<(), ToolError> {
    let (name, by) = (pool.full_name(), format!("+{by}b"));
    tools.change("lvextend", &["--quiet", "--poolmetadatasize", &by, &name]).await.map(drop)
}
