//! What a backup reads: files and devices by path, logical volumes as `vg/lv`, by pattern, by LVM tag, or as the disks
//! of a libvirt domain.
//!
//! LVM and libvirt are asked only where something on the command line is theirs. What exists as a file is a file.

use std::path::Path;

use agent::Failure;
use anyhow::{Context, bail};
use schema::JobId;
use schema::messages::Group;
use volume_lvm::{Inventory, LogicalVolume, Tools, domain, volumes};

use crate::app::App;
use crate::args::BackupArgs;

/// A source, as its host's reader takes it, and what it is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// A path, or `vg/lv`.
    pub source: String,
    /// `vg/lv`, or the path without its first slash.
    pub name: String,
    /// The volume group, of logical volumes.
    pub group: Option<String>,
}

impl Source {
    fn path(path: String) -> Self {
        Self { name: path.trim_start_matches('/').to_owned(), source: path, group: None }
    }

    fn volume(vg: &str, lv: &str) -> Self {
        let name = format!("{vg}/{lv}");
        Self { source: name.clone(), name, group: Some(vg.to_owned()) }
    }
}

/// What one word of the command line means, before LVM is asked.
#[derive(Debug, PartialEq, Eq)]
enum Word<'a> {
    Path(&'a str),
    Volume(&'a str, &'a str),
    Pattern(&'a str),
    Tag(&'a str),
}

/// By its form alone; `exists` says whether there is a file of this name.
fn meaning(word: &str, exists: impl Fn(&str) -> bool) -> Word<'_> {
    if let Some(tag) = word.strip_prefix('@') {
        return Word::Tag(tag);
    }
    if word.contains('*') && !exists(word) {
        let pattern = word.strip_prefix("/dev/").unwrap_or(word);
        if pattern.split_once('/').is_some_and(|(vg, lv)| is_pattern(vg) && is_pattern(lv)) {
            return Word::Pattern(pattern);
        }
    }
    match word.split_once('/') {
        Some((vg, lv))
            if volume_lvm::report::is_name(vg) && volume_lvm::report::is_name(lv) && !exists(word) =>
        {
            Word::Volume(vg, lv)
        }
        _ => Word::Path(word),
    }
}

fn is_pattern(part: &str) -> bool {
    !part.is_empty() && volume_lvm::report::is_name(&part.replace('*', "x"))
}

/// All sources of a command, each once, in the order in which they were named.
pub async fn resolve(app: &App, args: &BackupArgs) -> anyhow::Result<Vec<Source>> {
    let local = app.is_local();
    let tags = args.tags.iter().filter(|tag| tag.starts_with('@'));
    let words: Vec<&str> = args.sources.iter().chain(tags).map(String::as_str).collect();
    let mut lvm = Lvm { tools: Tools::new(), inventory: None };
    let mut found = Vec::new();
    for word in &words {
        match meaning(word, |path| Path::new(path).exists()) {
            Word::Path(path) => found.push(of_path(app, path, local)?),
            Word::Volume(vg, lv) => found.push(Source::volume(vg, lv)),
            Word::Pattern(_) | Word::Tag(_) if !local => {
                return Err(Failure::refused(format!(
                    "{word}: what matches is known on host {} alone: run this there, or name the volumes",
                    app.settings.host.value
                ))
                .into());
            }
            Word::Pattern(pattern) => found.extend(
                lvm.matching(word, |volume| {
                    let snapshot = volume.role.split(',').any(|role| role == "snapshot");
                    !snapshot && volume_lvm::settings::matches(pattern, &volume.full_name())
                })
                .await?,
            ),
            Word::Tag(tag) => {
                found.extend(lvm.matching(word, |volume| volume.tags.iter().any(|has| has == tag)).await?);
            }
        }
    }
    if let Some(domain) = args.domain.as_deref().filter(|_| words.is_empty()) {
        found.extend(disks_of(app, &lvm.tools, domain, local).await?);
    }
    let mut sources: Vec<Source> = Vec::new();
    for source in found {
        if !sources.contains(&source) {
            sources.push(source);
        }
    }
    if sources.is_empty() {
        bail!("nothing to back up: name files, devices, VG/LV, VG/PATTERN, --tag @TAG or --domain NAME");
    }
    Ok(sources)
}

/// The group of all sources of a command, where one is asked for.
pub fn group(app: &App, args: &BackupArgs, sources: &[Source]) -> anyhow::Result<Option<Group>> {
    let name = match (&args.group, &args.domain) {
        (Some(name), _) => name,
        (None, Some(domain)) => domain,
        (None, None) => return Ok(None),
    };
    if name.is_empty() || name.contains(|c: char| c.is_control() || c == '@' || c == '/') {
        bail!("{name:?} cannot be a group's name: printable characters without @ and /");
    }
    if let Some(other) = sources.iter().find(|source| source.group.is_none()) {
        return Err(Failure::refused(format!(
            "{} cannot be in group {name}: only logical volumes are frozen together",
            other.source
        ))
        .into());
    }
    let members: Vec<String> = sources.iter().map(|source| source.source.clone()).collect();
    if members.len() > schema::limits::GROUP_MEMBERS_MAX {
        bail!("{} volumes are too many for one group", members.len());
    }
    let run: JobId = app.environment.job_id();
    Ok(Some(Group { run, name: name.clone(), members }))
}

/// A path, as the reader sees it; devices that LVM made go by their volume's name.
fn of_path(app: &App, path: &str, local: bool) -> anyhow::Result<Source> {
    if local && let Some((vg, lv)) = volumes::of_device(path) {
        return Ok(Source::volume(&vg, &lv));
    }
    // On another host a path must be absolute already.
    if app.settings.nats.value.is_some() && path.starts_with('/') {
        return Ok(Source::path(path.to_owned()));
    }
    let absolute = std::path::absolute(path).with_context(|| path.to_owned())?;
    let text = absolute.to_str().with_context(|| format!("{path:?} is not valid UTF-8"))?;
    Ok(Source::path(text.to_owned()))
}

/// LVM's inventory, asked for once.
struct Lvm {
    tools: Tools,
    inventory: Option<Inventory>,
}

impl Lvm {
    async fn matching(
        &mut self,
        word: &str,
        wanted: impl Fn(&LogicalVolume) -> bool,
    ) -> anyhow::Result<Vec<Source>> {
        let inventory = match self.inventory.take() {
            Some(inventory) => inventory,
            None => Inventory::load(&self.tools).await.with_context(|| word.to_owned())?,
        };
        let usable = |volume: &&LogicalVolume| {
            volume.kind().is_some() && !volume.name.starts_with(volume_lvm::marks::PREFIX)
        };
        let matching = inventory.volumes.iter().filter(usable).filter(|volume| wanted(volume));
        let found: Vec<Source> = matching.map(|volume| Source::volume(&volume.vg, &volume.name)).collect();
        self.inventory = Some(inventory);
        match found.is_empty() {
            true => Err(Failure::refused(format!("{word}: no logical volume of this host matches")).into()),
            false => Ok(found),
        }
    }
}

async fn disks_of(app: &App, tools: &Tools, name: &str, local: bool) -> anyhow::Result<Vec<Source>> {
    if !local {
        let host = &app.settings.host.value;
        return Err(
            Failure::refused(format!("the disks of domain {name} are known on host {host} alone")).into()
        );
    }
    let disks = domain::disks(tools, name).await?;
    if disks.is_empty() {
        return Err(Failure::refused(format!("domain {name} has no disk that could be backed up")).into());
    }
    disks.iter().map(|disk| of_path(app, disk, local)).collect()
}

#[cfg(test)]
mod tests {
    use super::{Word, meaning};

    #[test]
    fn words_mean_what_they_look_like() {
        let exists = |path: &str| path == "images/disk";
        for (word, expected) in [
            ("vg0/web", Word::Volume("vg0", "web")),
            ("images/disk", Word::Path("images/disk")),
            ("disk.img", Word::Path("disk.img")),
            ("./vg0/web", Word::Path("./vg0/web")),
            ("../vg0", Word::Path("../vg0")),
            ("a/b/c", Word::Path("a/b/c")),
            ("/dev/vg0/web", Word::Path("/dev/vg0/web")),
            ("vg0/*", Word::Pattern("vg0/*")),
            ("/dev/vg0/web-*", Word::Pattern("vg0/web-*")),
            ("*/root", Word::Pattern("*/root")),
            ("*.img", Word::Path("*.img")),
            ("@backup", Word::Tag("backup")),
        ] {
            assert_eq!(meaning(word, exists), expected, "{word}");
        }
    }
}
