//! `key show|add|check`: who can open the repository, and proof that somebody can.

use std::path::Path;
use std::sync::Arc;

use agent::{Failure, Repository, Roots};
use anyhow::Context;
use indexer::Wish;
use schema::keys::{DataKey, Identity, SealedKey};
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
    data_keys: usize,
}

/// `lvkeep key show`.
pub async fn show(app: &App) -> anyhow::Result<()> {
    let repository = app.repository().await?;
    // The newest list is in the bucket; a host's file may be older.
    let shown = Shown {
        repository: repository.key.repo().to_string(),
        encrypted: repository.key.encrypted(),
        recipients: repository.key.recipients().to_vec(),
        generation: repository.key.generation(),
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
        if outdated {
            lines.push(
                "  this host's writer key file is OUTDATED: it lacks recipients that were added".to_owned(),
            );
        }
        lines.join("\n")
    })
}

/// `lvkeep key add`: reseals every data key and the writer key to one more recipient.
pub async fn add(app: &App, recipient: &str, key_out: Option<&Path>) -> anyhow::Result<()> {
    let store = open::store(&app.settings.repo.value, false, app.environment.clone())?;
    let head = Repository::head(&store).await?;
    head.check_writable().map_err(Failure::from)?;
    let identity = open::identity(&app.settings, head.repo)?
        .with_context(|| "adding a recipient needs an identity that opens the repository (--identity)")
        .map_err(|error| anyhow::Error::from(Failure::refused(error.to_string())))?;
    let repository = Repository::open(store, None, Some(&identity)).await?;
    let key = repository.key.with_recipient(recipient).map_err(open::not_fitting)?;
    // The configuration first: from then on agents warn about hosts that seal to the old list.
    let config = schema::config::Config { key_generation: key.generation(), ..repository.config.clone() };
    let bytes = config
        .encode_requiring(&head.read_features, &head.write_features, &key, app.environment.random())
        .map_err(Failure::from)?;
    repository.store.put(names::CONFIG, bytes.into()).await.map_err(Failure::from)?;
    let mut resealed = 0;
    for listed in repository.store.list(names::KEYS).await.map_err(Failure::from)? {
        let sealed = repository.sealed_key(&listed.key).await?;
        let data = unseal(&repository, &sealed, &identity, &listed.key)?;
        let again = data.seal(&key).map_err(Failure::from)?;
        repository.store.put(&listed.key, again.sealed).await.map_err(Failure::from)?;
        resealed += 1;
    }
    let usual = KeyFiles::of(head.repo)?.writer;
    let path = key_out.map_or_else(|| app.settings.key.value.clone().unwrap_or(usual), Path::to_owned);
    open::write_secret(&path, &key.to_file(), true)?;
    let value =
        serde_json::json!({ "recipients": key.recipients(), "resealed": resealed, "writer_key": path });
    app.print(&value, || {
        format!(
            "{recipient} opens everything now ({resealed} data keys resealed)\n\
             Give every host the new writer key {}; until then what it stores is not sealed to the new recipient,\n\
             and `lvkeep key check` with the new identity says so.",
            path.display()
        )
    })
}

fn unseal(
    repository: &Repository,
    sealed: &SealedKey,
    identity: &Identity,
    name: &str,
) -> anyhow::Result<DataKey> {
    DataKey::unseal(repository.key.family(), sealed, identity)
        .map_err(Failure::from)
        .with_context(|| name.to_owned())
}

/// `lvkeep key check`: the identity opens the writer key and every data key, and what each volume's newest snapshot
/// begins with.
pub async fn check(app: &App, path: &Path) -> anyhow::Result<()> {
    app.stop_on_signals()?;
    let identity = Arc::new(open::read_identity(path)?);
    let store = open::store(&app.settings.repo.value, false, app.environment.clone())?;
    let head = Repository::head(&store).await?;
    let repository = Repository::open(store, None, Some(&identity)).await?;
    if !head.encrypted {
        return Err(Failure::refused("this repository is not encrypted: no identity is needed").into());
    }
    let keys = repository.open_keys(&identity).await?.len();
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
    let value = serde_json::json!({ "data_keys": keys, "volumes": newest.len(), "chunks": chunks });
    app.print(&value, || {
        format!(
            "{} opens the writer key, all {keys} data keys, and {chunks} chunks of {} volumes",
            path.display(),
            newest.len()
        )
    })?;
    select::conclude(app, &damaged)
}
