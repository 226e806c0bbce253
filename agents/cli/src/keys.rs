//! `key show|add|check`: who can open the repository, and proof that somebody can.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent::store::Listed;
use agent::{Failure, Repository, Roots};
use anyhow::Context;
use indexer::Wish;
use schema::keys::{DataKey, Identity, WriterKey};
use schema::messages::FailureKind;
use schema::names;
use schema::root::Root;
use serde::Serialize;

use crate::app::App;
use crate::embedded::Embedded;
use crate::open::{self, KeyFiles};
use crate::{restore, select};

#[derive(Debug, Serialize)]
struct Shown {
    repository: String,
    encrypted: bool,
    recipients: Vec<String>,
    generation: u32,
    /// What a program needs to know to read the repository.
    features: Vec<String>,
    data_keys: usize,
}

#[derive(Debug, Serialize)]
struct Added {
    recipients: Vec<String>,
    resealed: u64,
    writer_key: PathBuf,
    unopened: Vec<Unopened>,
}

/// A data key that does not open.
#[derive(Debug, Serialize)]
struct Unopened {
    key: String,
    why: String,
}

/// `lvkeep key show`.
pub async fn show(app: &App) -> anyhow::Result<()> {
    let repository = app.repository().await?;
    let head = Repository::head(&repository.store).await?;
    // The newest list is in the bucket; a host's file may be older.
    let shown = Shown {
        repository: repository.key.repo().to_string(),
        encrypted: repository.key.encrypted(),
        recipients: repository.key.recipients().to_vec(),
        generation: repository.key.generation(),
        features: head.read_features,
        data_keys: repository.store.list(names::KEYS).await.map_err(Failure::from)?.len(),
    };
    let outdated = repository.key.generation() < repository.config.key_generation;
    app.print(&shown, || {
        let mut lines = vec![format!("repository {}", shown.repository)];
        match shown.encrypted {
            true => lines.extend(shown.recipients.iter().map(|recipient| format!("  opened by {recipient}"))),
            false => lines.push("  NOT ENCRYPTED".to_owned()),
        }
        lines.push(format!("  {} data keys, recipients' generation {}", shown.data_keys, shown.generation));
        lines.push(format!("  features {}", shown.features.join(", ")));
        if outdated {
            lines.push(
                "  this host's writer key file is OUTDATED: it lacks recipients that were added".to_owned(),
            );
        }
        lines.join("\n")
    })
}

/// `lvkeep key add`: reseals every data key that opens, and the writer key, to one more recipient.
pub async fn add(app: &App, recipient: &str, key_out: Option<&Path>) -> anyhow::Result<()> {
    let store = open::store(&app.settings.repo.value, false, app.environment.clone())?;
    let head = Repository::head(&store).await?;
    head.check_writable().map_err(Failure::from)?;
    let identity = open::identity(&app.settings, head.repo)?
        .with_context(|| "adding a recipient needs an identity that opens the repository (--identity)")
        .map_err(|error| anyhow::Error::from(Failure::refused(error.to_string())))?;
    let repository = Repository::open(store, None, Some(&identity)).await?;
    let key = repository.key.with_recipient(recipient).map_err(open::not_fitting)?;
    let usual = KeyFiles::of(head.repo)?.writer;
    let path = key_out.map_or_else(|| app.settings.key.value.clone().unwrap_or(usual), Path::to_owned);
    // Before anything changes: what stands there may be the only identity.
    let replaces = open::is_writer_key_of(&path, head.repo)?;
    // The configuration first: from then on agents warn about hosts that seal to the old list.
    let config = schema::config::Config { key_generation: key.generation(), ..repository.config.clone() };
    let bytes = config
        .encode_requiring(&head.read_features, &head.write_features, &key, app.environment.random())
        .map_err(Failure::from)?;
    repository.store.put(names::CONFIG, bytes.into()).await.map_err(Failure::from)?;
    // What is stored from here on is sealed to all, whatever becomes of the keys that are there.
    open::write_secret(&path, &key.to_file(), replaces)?;
    let mut resealed = 0;
    let mut unopened = Vec::new();
    for (name, opened) in open_all(&repository, &identity).await? {
        match reseal(&repository, &key, &name, opened).await {
            Ok(()) => resealed += 1,
            Err(why) => unopened.push(Unopened { key: name, why: why.to_string() }),
        }
    }
    let added = Added { recipients: key.recipients().to_vec(), resealed, writer_key: path, unopened };
    app.print(&added, || {
        let everything = if added.unopened.is_empty() { "everything" } else { "what is resealed" };
        let path = added.writer_key.display();
        format!(
            "{recipient} opens {everything} now ({resealed} data keys resealed)\n\
             Give every host the new writer key {path}; until then what it stores is not sealed to the new recipient,\n\
             and `lvkeep key check` with the new identity says so."
        )
    })?;
    conclude(&added.unopened, "so that they are not sealed to the new recipient; once they do, add it again")
}

/// What stands below `keys/`, opened, and why it does not open where that is so. Fails only when the store cannot be asked.
async fn open_all(
    repository: &Repository,
    identity: &Identity,
) -> Result<Vec<(String, Result<DataKey, Failure>)>, Failure> {
    let mut keys = Vec::new();
    for Listed { key, .. } in repository.store.list(names::KEYS).await? {
        let opened = repository
            .sealed_key(&key)
            .await
            .and_then(|sealed| Ok(DataKey::unseal(repository.key.family(), &sealed, identity)?));
        match opened {
            Err(failure) if failure.kind == FailureKind::Store && !repository.gives_others().await => {
                return Err(failure);
            }
            opened => keys.push((key, opened)),
        }
    }
    Ok(keys)
}

async fn reseal(
    repository: &Repository,
    key: &WriterKey,
    name: &str,
    opened: Result<DataKey, Failure>,
) -> Result<(), Failure> {
    Ok(repository.store.put(name, opened?.seal(key)?.sealed).await?)
}

/// Fails when there are data keys that do not open.
fn conclude(unopened: &[Unopened], so: &str) -> anyhow::Result<()> {
    if unopened.is_empty() {
        return Ok(());
    }
    let each: Vec<String> = unopened.iter().map(|one| format!("{}: {}", one.key, one.why)).collect();
    let why = format!(
        "{} data keys do not open, {so}. `lvkeep check` says what needs them, and whether packs have copies that open. {}",
        unopened.len(),
        each.join("; ")
    );
    Err(Failure::damaged(why).into())
}

/// `lvkeep key check`: the identity opens the writer key and every data key, and what each volume's newest snapshot
/// begins with. What does not open hides nothing else.
pub async fn check(app: &App, path: &Path) -> anyhow::Result<()> {
    app.stop_on_signals()?;
    let identity = Arc::new(open::read_identity(path)?);
    let store = open::store(&app.settings.repo.value, false, app.environment.clone())?;
    let head = Repository::head(&store).await?;
    let repository = Repository::open(store, None, Some(&identity)).await?;
    if !head.encrypted {
        return Err(Failure::refused("this repository is not encrypted: no identity is needed").into());
    }
    let (mut keys, mut unopened) = (0, Vec::new());
    for (key, opened) in open_all(&repository, &identity).await? {
        match opened {
            Ok(_) => keys += 1,
            Err(why) => unopened.push(Unopened { key, why: why.to_string() }),
        }
    }
    let repository = app.repository().await?;
    let mut newest = std::collections::BTreeMap::new();
    let Roots { readable, damaged } = select::roots(&repository, None).await?;
    for root in readable {
        newest.insert(root.volume.clone(), root);
    }
    let sample = |root: &Root| Wish { part: 0..restorer::SAMPLE, ..Wish::all(root.clone()) };
    let samples: Vec<Wish> = newest.values().map(sample).collect();
    let work = Embedded::reading(app, repository, &samples).await?;
    let restorer = restore::make(app, &work, Some(identity));
    let mut chunks = 0;
    for root in newest.values() {
        let report = restorer
            .verify_sample(root.clone())
            .await
            .with_context(|| format!("a sample of {} ({})", root.volume, root.slot.session))?;
        chunks += report.chunks;
    }
    work.finish().await;
    let value = serde_json::json!({
        "data_keys": keys,
        "unopened": unopened,
        "volumes": newest.len(),
        "chunks": chunks,
    });
    app.print(&value, || {
        let all = if unopened.is_empty() { "all " } else { "" };
        format!(
            "{} opens the writer key, {all}{keys} data keys, and {chunks} chunks of {} volumes",
            path.display(),
            newest.len()
        )
    })?;
    select::conclude(app, &damaged)?;
    conclude(&unopened, "so that what they alone have sealed cannot be restored with it")
}
