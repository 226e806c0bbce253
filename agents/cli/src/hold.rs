//! `hold`, `release`, `tag` and `note`: what is said of a snapshot after it was committed.

use agent::marks::{self, Labels};
use agent::{Failure, Repository, forgetting};
use anyhow::bail;
use schema::names::Slot;
use schema::root::Root;
use serde::Serialize;

use crate::app::App;
use crate::args::{HoldArgs, NoteArgs, ReleaseArgs, TagArgs};
use crate::{open, select};

/// What is said of a snapshot, as it is printed.
#[derive(Debug, Serialize)]
struct Said {
    snapshot: String,
    /// None where the snapshot's root cannot be read.
    volume: Option<String>,
    held: bool,
    /// None where the snapshot's root cannot be read, which may have some.
    tags: Option<Vec<String>>,
    note: Option<String>,
}

async fn chosen(app: &App, snapshot: &str) -> anyhow::Result<(Repository, Root, String)> {
    let repository = app.repository().await?;
    open::check_writable(&repository).await?;
    let root = select::snapshot(&repository, snapshot).await?;
    Ok((repository, root, app.settings.host.value.clone()))
}

async fn print(app: &App, repository: &Repository, root: &Root, what: &str) -> anyhow::Result<()> {
    let marks = marks::of(repository, root.slot).await?;
    let Labels { tags, note } = marks.labels(root);
    let (snapshot, volume) = (root.slot.session.to_string(), Some(root.volume.clone()));
    let said = Said { snapshot, volume, held: marks.is_held(), tags: Some(tags), note };
    app.print(&said, || format!("snapshot {} of {} {what}", said.snapshot, root.volume))
}

/// `lvkeep hold`.
pub async fn hold(app: &App, args: &HoldArgs) -> anyhow::Result<()> {
    let (repository, root, by) = chosen(app, &args.snapshot).await?;
    forgetting::hold(&repository, &root, args.note.clone(), &by).await?;
    print(app, &repository, &root, "is held: nothing forgets it until it is released").await
}

/// `lvkeep release`.
pub async fn release(app: &App, args: &ReleaseArgs) -> anyhow::Result<()> {
    let repository = app.repository().await?;
    open::check_writable(&repository).await?;
    // Whoever lets a snapshot go whose root is damaged releases it first.
    if let Some(damaged) = select::damaged(&repository, &args.snapshot).await? {
        let snapshot = damaged.slot.session.to_string();
        release_at(&repository, damaged.slot, &format!("snapshot {snapshot}")).await?;
        let said = Said { snapshot, volume: None, held: false, tags: None, note: None };
        return app.print(&said, || {
            format!("snapshot {} is released; its root cannot be read ({})", said.snapshot, damaged.why)
        });
    }
    let root = select::snapshot(&repository, &args.snapshot).await?;
    let named = format!("snapshot {} of {}", root.slot.session, root.volume);
    release_at(&repository, root.slot, &named).await?;
    print(app, &repository, &root, "is released").await
}

async fn release_at(repository: &Repository, slot: Slot, named: &str) -> anyhow::Result<()> {
    let marks = marks::of(repository, slot).await?;
    let holds: Vec<_> = marks.holds.iter().map(|hold| hold.id).collect();
    marks::release(repository, slot, &holds).await?;
    let removed = marks::remove_damaged(repository, slot, &marks).await?;
    if let Some(mark) = marks.unreadable.iter().find(|mark| !mark.is_damaged) {
        bail!(Failure::refused(format!(
            "a mark of {named} cannot be read, and may be a hold that another version made: {}",
            mark.why
        )));
    }
    if holds.is_empty() && removed == 0 {
        bail!(Failure::refused(format!("{named} is not held")));
    }
    Ok(())
}

/// `lvkeep tag`.
pub async fn tag(app: &App, args: &TagArgs) -> anyhow::Result<()> {
    args.set.iter().filter(|tag| !tag.is_empty()).chain(&args.add).try_for_each(|tag| check_tag(tag))?;
    let (repository, root, by) = chosen(app, &args.snapshot).await?;
    let labels = marks::label(&repository, &root, &by, |labels| change(&mut labels.tags, args)).await?;
    let tags = match labels.tags.as_slice() {
        [] => "has no tags now".to_owned(),
        tags => format!("has the tags {} now", tags.join(", ")),
    };
    print(app, &repository, &root, &tags).await
}

/// What is added comes last, each tag once. Done again, it changes nothing.
fn change(tags: &mut Vec<String>, args: &TagArgs) {
    if !args.set.is_empty() {
        tags.clear();
    }
    tags.retain(|tag| !args.remove.contains(tag));
    for tag in args.set.iter().chain(&args.add).filter(|tag| !tag.is_empty()) {
        if !tags.contains(tag) {
            tags.push(tag.clone());
        }
    }
}

/// The same as of tags that backups set.
fn check_tag(tag: &str) -> anyhow::Result<()> {
    let is_bad = tag.is_empty() || tag.starts_with('@') || tag.contains(|c: char| c.is_control() || c == ',');
    if is_bad {
        bail!(Failure::refused(format!(
            "{tag:?} cannot be a tag: printable characters without commas, and no @ in front"
        )));
    }
    Ok(())
}

/// `lvkeep note`.
pub async fn note(app: &App, args: &NoteArgs) -> anyhow::Result<()> {
    let (repository, root, by) = chosen(app, &args.snapshot).await?;
    let note = Some(args.text.clone()).filter(|text| !text.is_empty());
    let change = |labels: &mut Labels| labels.note.clone_from(&note);
    marks::label(&repository, &root, &by, change).await?;
    let what = if note.is_some() { "has this note now" } else { "has no note now" };
    print(app, &repository, &root, what).await
}
