//! Finds snapshots: by id, by a unique prefix of one, by NAME@latest, or by NAME@TIME.

use std::collections::BTreeMap;

use agent::marks::{self, Marks};
use agent::store::Listed;
use agent::{DamagedRoot, Failure, Repository, Roots, forgetting};
use anyhow::bail;
use schema::facts::GROUP_MEMBERS;
use schema::names::{self, Slot};
use schema::root::Root;
use schema::{SessionId, VolumeKey};

use crate::app::App;
use crate::args::Chosen;
use crate::{text, times, undo};

/// The roots of all visible snapshots, or of one volume's; oldest first.
pub async fn roots(repository: &Repository, volume: Option<VolumeKey>) -> Result<Roots, Failure> {
    Ok(in_order(repository.roots(volume).await?))
}

/// The roots of all visible snapshots with the tags that they have now, and what their marks say.
pub async fn labelled(repository: &Repository) -> Result<(Roots, BTreeMap<Slot, Marks>), Failure> {
    let mut roots = roots(repository, None).await?;
    let marks = relabel(repository, &mut roots.readable).await?;
    Ok((roots, marks))
}

/// Gives roots the tags that they have now, and says what all marks say.
pub async fn relabel(repository: &Repository, roots: &mut [Root]) -> Result<BTreeMap<Slot, Marks>, Failure> {
    let marks = marks::all(repository, None).await?;
    for root in roots {
        if let Some(marks) = marks.get(&root.slot) {
            root.tags = marks.labels(root).tags;
        }
    }
    Ok(marks)
}

/// The roots that are forgotten, and of which no visible snapshot is the same; oldest first.
async fn all_forgotten(repository: &Repository) -> Result<Roots, Failure> {
    let visible = repository.roots(None).await?.warned();
    let mut roots = repository.roots_at(repository.forgotten_slots(None).await?).await?.forgotten();
    let is_back = |root: &Root| {
        let of_volume = visible.iter().filter(|one| one.volume == root.volume);
        of_volume.into_iter().any(|one| forgetting::is_again(repository, root, one))
    };
    roots.readable.retain(|root| !is_back(root));
    Ok(in_order(roots))
}

/// The same with the tags that they had, and what their marks say.
pub async fn labelled_forgotten(repository: &Repository) -> Result<(Roots, BTreeMap<Slot, Marks>), Failure> {
    let mut roots = all_forgotten(repository).await?;
    let marks = relabel(repository, &mut roots.readable).await?;
    Ok((roots, marks))
}

fn in_order(mut roots: Roots) -> Roots {
    roots.readable.sort_by(|a, b| (&a.volume, a.generation, a.slot).cmp(&(&b.volume, b.generation, b.slot)));
    roots
}

/// The damaged ones that may be asked for: all but those of volumes that are known and not meant. Their times, tags,
/// groups and hosts are not known, and exclude nothing. What was kept for an undo is meant only `with_undo`.
pub fn may_be_chosen(all: &Roots, of: &Chosen, with_undo: bool) -> Vec<DamagedRoot> {
    let is_meant = |volume: &str| {
        let matches = of.volume.as_ref().is_none_or(|pattern| text::matches(pattern, volume));
        matches && (with_undo || !volume.starts_with(undo::NAMES))
    };
    let may_be = |damaged: &&DamagedRoot| {
        let of_volume = all.readable.iter().find(|root| root.slot.volume == damaged.slot.volume);
        of_volume.is_none_or(|root| is_meant(&root.volume))
    };
    all.damaged.iter().filter(may_be).cloned().collect()
}

/// Names what was stepped over, and fails because of it, when all else is done.
pub fn conclude(app: &App, damaged: &[DamagedRoot]) -> anyhow::Result<()> {
    let Some((last, others)) = damaged.split_last() else { return Ok(()) };
    for other in others {
        app.complain(format!("lvkeep: {other}"));
    }
    bail!(last.failure())
}

/// The snapshot with this whole id, when its root is damaged: also one that is forgotten, or was cut off to the length of
/// a tombstone, which no list shows.
pub async fn damaged(repository: &Repository, text: &str) -> Result<Option<DamagedRoot>, Failure> {
    let Ok(id) = text.to_ascii_uppercase().parse::<SessionId>() else { return Ok(None) };
    let slot = |listed: Listed| Slot::parse_key(&listed.key).ok().filter(|slot| slot.session == id);
    let slots = repository.store.list_as(names::SNAPSHOTS, slot).await?;
    let Some(damaged) = repository.roots_at(slots).await?.damaged.pop() else { return Ok(None) };
    let forgotten = repository.store.head(&damaged.slot.forgotten()).await?.is_some();
    Ok(Some(DamagedRoot { forgotten, ..damaged }))
}

/// The one snapshot that `text` means.
pub async fn snapshot(repository: &Repository, text: &str) -> anyhow::Result<Root> {
    match text.rsplit_once('@') {
        Some((name, when)) => by_time(repository, name, when).await,
        None => by_id(repository, text).await,
    }
}

async fn by_id(repository: &Repository, text: &str) -> anyhow::Result<Root> {
    let visible = repository.visible_slots(None).await?;
    if let Some(root) = starting_with(repository, text, visible).await?.all()?.pop() {
        return Ok(root);
    }
    let forgotten = repository.forgotten_slots(None).await?;
    if let Some(root) = starting_with(repository, text, forgotten).await?.forgotten().all()?.pop() {
        let (id, volume) = (root.slot.session, &root.volume);
        bail!(Failure::refused(format!(
            "snapshot {id} of {volume} is forgotten: `lvkeep unforget {id}` brings it back until it is collected"
        )));
    }
    bail!(Failure::refused(format!(
        "no snapshot has the id {text:?} (`lvkeep snapshots` lists them; a volume's newest is NAME@latest)"
    )))
}

/// The one forgotten snapshot whose id begins with `text`.
pub async fn forgotten(repository: &Repository, text: &str) -> anyhow::Result<Root> {
    let forgotten = repository.forgotten_slots(None).await?;
    if let Some(root) = starting_with(repository, text, forgotten).await?.forgotten().all()?.pop() {
        return Ok(root);
    }
    bail!(Failure::refused(format!(
        "no forgotten snapshot has the id {text:?}: it was collected, or never forgotten (`lvkeep snapshots --forgotten` \
         lists what can be brought back)"
    )))
}

/// The one snapshot among these of which the id begins with `text`.
async fn starting_with(repository: &Repository, text: &str, mut slots: Vec<Slot>) -> anyhow::Result<Roots> {
    let wanted = text.to_ascii_uppercase();
    slots.retain(|slot| slot.session.to_string().starts_with(&wanted));
    if slots.len() > 1 {
        bail!(Failure::refused(format!(
            "{text:?} is the start of {} snapshots' ids: write more of it",
            slots.len()
        )));
    }
    Ok(repository.roots_at(slots).await?)
}

async fn by_time(repository: &Repository, name: &str, when: &str) -> anyhow::Result<Root> {
    let found = roots(repository, Some(repository.key.volume_key(name))).await?;
    let unknown = |failure: Failure| {
        failure.context(format!("which snapshot of {name:?} {when:?} means is not known (an id names one)"))
    };
    let mut roots = found.all().map_err(unknown)?;
    if roots.is_empty() {
        bail!(Failure::refused(format!(
            "volume {name:?} has no snapshot (`lvkeep snapshots` lists volumes)"
        )));
    }
    if when == "latest" {
        roots.sort_by_key(|root| (root.generation, root.slot));
    } else {
        let limit = times::until(when)?;
        roots.retain(|root| root.time_ms <= limit);
        roots.sort_by_key(|root| (root.time_ms, root.generation));
    }
    match roots.pop() {
        Some(root) => Ok(root),
        None => bail!(Failure::refused(format!("volume {name:?} has no snapshot as old as {when}"))),
    }
}

/// The snapshots of one run of a group: NAME@latest, NAME@TIME, or NAME/RUN; and the damaged ones that may be of it.
pub async fn group(repository: &Repository, text: &str) -> anyhow::Result<Roots> {
    run_of(roots(repository, None).await?, text)
}

fn run_of(all: Roots, text: &str) -> anyhow::Result<Roots> {
    let (name, limit) = match text.rsplit_once('@') {
        Some((name, "latest")) => (name, u64::MAX),
        Some((name, when)) => (name, times::until(when)?),
        None => (text.rsplit_once('/').map_or(text, |(name, _)| name), u64::MAX),
    };
    let by_name = text.contains('@');
    let of_name = |root: &Root| {
        let group = root.group.as_ref().and_then(|group| group.rsplit_once('/'));
        group.is_some_and(|(of, _)| of == name)
    };
    let mut damaged = may_be_of(&all, of_name);
    let is_meant = |root: &&Root| match by_name {
        true => of_name(root) && root.time_ms <= limit,
        false => root.group.as_deref() == Some(text),
    };
    let newest = all.readable.iter().filter(is_meant).max_by_key(|root| root.time_ms);
    if let Some(one) = damaged.first().filter(|_| by_name || newest.is_none()) {
        let unknown =
            format!("which run of a group {text:?} means is not known (NAME/RUN names one that can be read)");
        bail!(one.failure().context(unknown));
    }
    let Some(run) = newest.and_then(|root| root.group.clone()) else {
        bail!(Failure::refused(format!(
            "no group's run is {text:?} (`lvkeep snapshots --group '*'` lists them; the newest is NAME@latest)"
        )));
    };
    let readable: Vec<Root> =
        all.readable.into_iter().filter(|root| root.group.as_ref() == Some(&run)).collect();
    damaged.retain(|one| readable.iter().all(|root| root.slot.volume != one.slot.volume));
    Ok(Roots { readable, damaged })
}

/// The damaged ones of volumes of which there are such snapshots, or none at all.
fn may_be_of(all: &Roots, is_such: impl Fn(&Root) -> bool) -> Vec<DamagedRoot> {
    let may_be = |damaged: &&DamagedRoot| {
        let mut of_volume =
            all.readable.iter().filter(|root| root.slot.volume == damaged.slot.volume).peekable();
        of_volume.peek().is_none() || of_volume.any(&is_such)
    };
    all.damaged.iter().filter(may_be).cloned().collect()
}

/// The members of a group's run of which there is no snapshot among those of the run.
pub fn missing<'a>(run: impl Iterator<Item = &'a Root> + Clone) -> Vec<&'a str> {
    let members = run.clone().find_map(|root| root.layout.get(GROUP_MEMBERS)).map(String::as_str);
    let is_missing = |member: &&str| !run.clone().any(|root| root.source == *member);
    members.unwrap_or_default().split_whitespace().filter(is_missing).collect()
}

#[cfg(test)]
mod tests {
    use agent::{DamagedRoot, Roots};
    use schema::names::Slot;
    use schema::root::Root;
    use schema::{SessionId, VolumeKey};

    use super::{may_be_chosen, run_of};
    use crate::args::Chosen;
    use crate::snapshots::tests::root;

    /// Two volumes of a group and one that is of none; and a damaged root of a volume.
    fn with_damaged(volume: u8) -> Roots {
        let slot = |volume, session| Slot {
            volume: VolumeKey::from_bytes([volume; 16]),
            session: SessionId::from_bytes([session; 16]),
        };
        let of =
            |volume, group| Root { slot: slot(volume, volume), ..root(group, &format!("{volume}"), "1 2") };
        let damaged = DamagedRoot { slot: slot(volume, 9), why: "a test".into(), forgotten: false };
        Roots { readable: vec![of(1, Some("g/1")), of(2, Some("g/1")), of(3, None)], damaged: vec![damaged] }
    }

    /// A run of which everything is damaged is not passed over for an older one.
    #[test]
    fn what_may_be_of_a_later_run_is_an_error() {
        for (volume, may_be_of_run) in [(1, 0), (2, 0), (4, 1)] {
            for text in ["g@latest", "g@2026-11-20", "g/2"] {
                let error = run_of(with_damaged(volume), text).unwrap_err().to_string();
                assert!(error.contains("is damaged") && error.contains(text), "{error}");
            }
            let run = run_of(with_damaged(volume), "g/1").unwrap();
            assert_eq!((run.readable.len(), run.damaged.len()), (2, may_be_of_run), "{volume}");
        }
        assert_eq!(run_of(with_damaged(3), "g@latest").unwrap().readable.len(), 2, "it is of none");
    }

    #[test]
    fn what_is_forgotten_is_not_to_be_forgotten_again() {
        let said = with_damaged(1).forgotten().all().unwrap_err().why;
        assert!(said.contains("cannot be brought back") && !said.contains("lvkeep forget"), "{said}");
    }

    #[test]
    fn only_its_volume_excludes_what_is_damaged() {
        let chosen =
            |of: &Chosen, volume, with_undo| may_be_chosen(&with_damaged(volume), of, with_undo).len();
        let of = |volume: Option<&str>, tags: &[&str]| Chosen {
            volume: volume.map(str::to_owned),
            group: None,
            host: None,
            tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
        };
        assert_eq!(chosen(&of(None, &["a"]), 1, false), 1, "its tags are not known");
        assert_eq!(chosen(&of(Some("h/1"), &["a"]), 1, false), 1);
        assert_eq!(chosen(&of(Some("h/2"), &[]), 1, false), 0, "it is of another volume");
        assert_eq!(chosen(&of(Some("h/2"), &[]), 4, false), 1, "its volume is not known");
    }
}
