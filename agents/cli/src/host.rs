//! `host`: what lvkeep keeps on this host, LVM snapshots above all, and what of it nobody needs any more.

use std::collections::{BTreeMap, BTreeSet};

use agent::{Repository, Roots, sessions};
use schema::{RepoId, SessionId};
use volume_lvm::snapshots::Fate;
use volume_lvm::{Cleaned, LvmVolumes, Tools};

use crate::app::App;
use crate::{select, text};

/// `lvkeep host list`.
pub async fn list(app: &App) -> anyhow::Result<()> {
    let found = survey(app, false, Fate::Unknown).await?;
    print(app, &found)
}

/// `lvkeep host clean`.
pub async fn clean(app: &App, unknown: bool) -> anyhow::Result<()> {
    let untold = if unknown { Fate::GivenUp } else { Fate::Unknown };
    let found = survey(app, true, untold).await?;
    print(app, &found)
}

async fn survey(app: &App, remove: bool, untold: Fate) -> anyhow::Result<Vec<Cleaned>> {
    let repository = match app.repository().await {
        Ok(repository) => Some(repository),
        Err(why) => {
            let why = text::error(&why);
            app.say(format!("the repository cannot be asked which sessions are over ({why})"));
            None
        }
    };
    survey_with(app, repository.as_ref(), remove, untold).await
}

/// Removes what crashed runs left, and thaws what they left frozen; the repository says which of their sessions are over.
pub async fn sweep(app: &App, repository: Option<&Repository>) -> anyhow::Result<()> {
    for gone in survey_with(app, repository, true, Fate::Unknown).await?.iter().filter(|one| one.removed) {
        let why = gone.orphan.as_deref().unwrap_or_default();
        app.say(format!("removed the LVM snapshot {}: {why}", gone.snapshot));
    }
    Ok(())
}

async fn survey_with(
    app: &App,
    repository: Option<&Repository>,
    remove: bool,
    untold: Fate,
) -> anyhow::Result<Vec<Cleaned>> {
    let (tools, settings) = (Tools::new(), app.settings.lvm.value.settings(&Default::default())?);
    let nobody_tells = |_: RepoId, _: Option<SessionId>| untold;
    let Some(repository) = repository else {
        return Ok(LvmVolumes::survey(&tools, &settings, nobody_tells, remove).await?);
    };
    // Only what is here is asked about.
    let here = LvmVolumes::survey(&tools, &settings, nobody_tells, false).await?;
    let own = repository.key.repo();
    let wanted = here.iter().filter(|one| one.repository == own.to_string());
    let wanted: BTreeSet<SessionId> = wanted.filter_map(|one| one.session.as_deref()?.parse().ok()).collect();
    let fates = fates(repository, &wanted).await?;
    let fate = |of: RepoId, session: Option<SessionId>| {
        let known = session.filter(|_| of == own).and_then(|session| fates.get(&session).copied());
        known.unwrap_or(untold)
    };
    Ok(LvmVolumes::survey(&tools, &settings, fate, remove).await?)
}

/// What became of these sessions. Open ones are looked for first: one that ends meanwhile is then taken for open.
async fn fates(
    repository: &Repository,
    wanted: &BTreeSet<SessionId>,
) -> anyhow::Result<BTreeMap<SessionId, Fate>> {
    if wanted.is_empty() {
        return Ok(BTreeMap::new());
    }
    let open: BTreeSet<SessionId> =
        sessions::list_all(repository).await?.into_iter().map(|(id, _)| id).collect();
    let slots = repository.visible_slots(None).await?;
    let mut fates = BTreeMap::new();
    for session in wanted {
        let is_open = open.contains(session);
        let fate = match slots.iter().find(|slot| slot.session == *session) {
            None if is_open => Fate::Open,
            None => Fate::Over,
            Some(slot) => {
                let Roots { readable, damaged } = select::roots(repository, Some(slot.volume)).await?;
                let is_damaged = damaged.iter().any(|damaged| damaged.slot == *slot);
                match sessions::newest(readable).is_some_and(|root| root.slot == *slot) {
                    // Also where the store does not let the object of a session go.
                    true => Fate::Newest,
                    false if is_open => Fate::Open,
                    false if is_damaged => Fate::Unknown,
                    false => Fate::Over,
                }
            }
        };
        fates.insert(*session, fate);
    }
    Ok(fates)
}

fn print(app: &App, found: &Vec<Cleaned>) -> anyhow::Result<()> {
    app.print(found, || {
        let mut table = text::Table::new(&["snapshot", "of", "session", "store", "full", "state"]);
        for one in found {
            let state = match (&one.orphan, one.removed, one.in_use, one.baseline) {
                (Some(why), true, ..) => format!("removed: {why}"),
                (Some(why), false, ..) => format!("orphan: {why}"),
                (None, _, true, _) => "being read".to_owned(),
                (None, _, _, true) => "baseline".to_owned(),
                (None, ..) => "its session goes on, or nobody here can tell".to_owned(),
            };
            table.row([
                one.snapshot.clone(),
                one.origin.clone().unwrap_or_else(|| "-".to_owned()),
                one.session.clone().unwrap_or_else(|| "-".to_owned()),
                one.size.map_or_else(|| "thin".to_owned(), text::size),
                one.full.map_or_else(|| "-".to_owned(), |full| format!("{full:.1} %")),
                state,
            ]);
        }
        format!("{}\n{}", table.text(), text::count(found.len() as u64, "snapshot"))
    })
}
