//! Connects to the NATS server that the settings name, and keeps what is near in this process.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use agent::local::LocalBus;
use agent::near::{Near, NearBus};
use agent::{Bus, Failure, Queue, Repository, Service};
use anyhow::Context;
use bus_nats::NatsBus;
use schema::RepoId;
use schema::keys::WriterKey;

use crate::app::App;
use crate::args::Role;
use crate::{embedded, open};

/// Hexadecimal digits of the repository's id that keep repositories on one server apart.
const NAMESPACE_LEN: usize = 16;

/// Connects as a command: the namespace comes from the writer key file, or from the bucket.
pub async fn connect(app: &App, name: &str) -> anyhow::Result<Arc<dyn Bus>> {
    let repo = match &app.settings.key.value {
        Some(_) => open::writer_key_from_file(&app.settings)?.repo(),
        None => {
            let store = open::store(&app.settings.repo.value, false, app.environment.clone())?;
            Repository::head(&store).await?.repo
        }
    };
    Ok(Arc::new(nats(app, name, repo).await?))
}

async fn nats(app: &App, name: &str, repo: RepoId) -> anyhow::Result<NatsBus> {
    let url = app.settings.nats.value.clone().context("no NATS server is configured (--nats)")?;
    let mut namespace = repo.to_string();
    namespace.truncate(NAMESPACE_LEN);
    let mut settings = bus_nats::Settings::new(url, namespace);
    settings.name = format!("lvkeep {name} on {}", app.settings.host.value);
    settings.credentials_file = app.settings.nats_credentials.value.clone();
    settings.ca_file = app.settings.nats_ca.value.clone();
    settings.ack_wait = Duration::from_secs_f64(app.settings.redeliver.value);
    NatsBus::connect(settings)
        .await
        .map_err(|error| Failure::new(schema::messages::FailureKind::Other, error.to_string()).into())
}

/// Connects as an agent: what its own roles do is handed over in-process.
pub async fn connect_agent(
    app: &App,
    name: &str,
    key: &WriterKey,
    roles: &BTreeSet<Role>,
    repository: Option<&Repository>,
) -> anyhow::Result<Arc<dyn Bus>> {
    let settings = &app.settings;
    if key.encrypted() && roles.contains(&Role::Reader) != roles.contains(&Role::Hasher) {
        check_privacy(app)?;
    }
    let far = nats(app, name, key.repo()).await?;
    let mut near = Near::default();
    if roles.contains(&Role::Hasher) {
        near.queues.push(Queue::extents(&settings.host.value));
    }
    if roles.contains(&Role::Storer) {
        near.queues.push(Queue::chunks());
    }
    if roles.contains(&Role::Indexer) {
        let all: Vec<u16> = (0..settings.index_shards.value).collect();
        let owned = if settings.shards.value.is_empty() { &all } else { &settings.shards.value };
        near.queues.extend(owned.iter().map(|shard| Queue::stored(*shard)));
        near.services.extend(owned.iter().flat_map(|shard| [Service::index(*shard), Service::seek(*shard)]));
    }
    let chunk_queue = match repository {
        Some(repository) if roles.contains(&Role::Storer) => {
            far.check_windows(repository.config.pack_size)
                .map_err(|error| Failure::refused(error.to_string()))?;
            embedded::chunk_queue(settings, repository.config.pack_size)?
        }
        _ => 1 << 20,
    };
    let local = LocalBus::new(app.environment.clone(), chunk_queue);
    Ok(Arc::new(NearBus::new(near, local, Arc::new(far))))
}

/// A reader without a hasher beside it sends what it read as it is, and a hasher without a reader beside it asks for
/// that: only over TLS, or within this machine.
fn check_privacy(app: &App) -> anyhow::Result<()> {
    let settings = &app.settings;
    let url = settings.nats.value.as_deref().unwrap_or_default();
    let private = settings.nats_ca.value.is_some() || url.split(',').all(|server| is_private(server.trim()));
    match private {
        true => Ok(()),
        false => Err(Failure::refused(format!(
            "{url} is not encrypted, and a reader and a hasher in different processes exchange the content of volumes: \
             use tls://, or run both roles in one agent"
        ))
        .into()),
    }
}

fn is_private(server: &str) -> bool {
    let (scheme, rest) = server.split_once("://").unwrap_or(("nats", server));
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let name = match host.strip_prefix('[') {
        Some(bracketed) => bracketed.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    scheme == "tls"
        || name == "localhost"
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::is_private;

    #[test]
    fn content_travels_over_tls_or_not_at_all() {
        for (server, expected) in [
            ("tls://nats.example:4222", true),
            ("nats://127.0.0.1:4222", true),
            ("nats://user:pa@ss@127.0.0.1:4222", true),
            ("nats://[::1]:4222", true),
            ("localhost", true),
            ("nats://10.0.0.1:4222", false),
            ("nats://127.0.0.1.example:4222", false),
            ("nats://127.0.0.1@nats.example", false),
        ] {
            assert_eq!(is_private(server), expected, "{server}");
        }
    }
}
