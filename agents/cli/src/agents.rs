//! `agent`: any set of roles in one process over NATS, until SIGTERM.
//!
//! Each role gets what it needs and no more: reader and hasher get by with the writer key, the others open the bucket;
//! only restorer and checker have an identity.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use agent::index::IndexClient;
use agent::{Context, Failure, Queue, Repository, Stop, Topic};
use anyhow::{Context as _, bail};
use conductor::Conductor;
use hasher::{ContentKey, Hasher};
use indexer::Indexer;
use reader::{Files, Reader};
use restorer::{Restorer, Serving};
use schema::keys::{Identity, WriterKey};
use schema::messages::{About, AgentIsThere, Message, WhoIsThere};
use storer::Storer;
use tokio::task::JoinSet;
use volume_lvm::Tools;

use crate::app::App;
use crate::args::Role;
use crate::checking::Checking;
use crate::collecting::Collecting;
use crate::{bus, embedded, host, lvm, metrics, open, prune, restore, retention, text};

/// How often a restorer tells how far it is, at least.
const BEAT: Duration = Duration::from_secs(1);

/// `lvkeep agent`.
pub async fn run(app: &App) -> anyhow::Result<()> {
    let roles: BTreeSet<Role> = app.settings.roles.value.iter().copied().collect();
    if roles.is_empty() {
        bail!("no role: give at least one --role, or roles under [agent] in the configuration file");
    }
    app.stop_on_signals()?;
    let needs_no_bucket = [Role::Reader, Role::Hasher];
    let repository = match roles.iter().any(|role| !needs_no_bucket.contains(role)) {
        true => Some(open_bucket(app).await?),
        false => None,
    };
    let key = match &repository {
        Some(repository) => repository.key.clone(),
        None => open::writer_key_from_file(&app.settings)?,
    };
    let names: Vec<&str> = roles.iter().map(|role| role.name()).collect();
    let connection = bus::connect_agent(app, &names.join("+"), &key, &roles, repository.as_ref()).await?;
    let context = app.context(connection);
    if let Some(address) = &app.settings.metrics.value {
        metrics::serve(address, app.counters.clone()).await?;
    }
    let mut starting = Starting {
        app,
        context: context.clone(),
        repository,
        key,
        tasks: JoinSet::new(),
        indexers: JoinSet::new(),
        stop_index: Stop::default(),
    };
    for role in &roles {
        starting.role(*role).await.with_context(|| format!("starting the {}", role.name()))?;
    }
    let Starting { mut tasks, mut indexers, stop_index, .. } = starting;
    tasks.spawn(answer_roll_calls(context.clone(), names.iter().map(|name| (*name).to_owned()).collect()));
    app.say(format!("agent on {} is ready: {}", app.settings.host.value, names.join(", ")));
    let mut failed = None;
    loop {
        let ended = tokio::select! {
            ended = tasks.join_next(), if !tasks.is_empty() => ended,
            ended = indexers.join_next(), if !indexers.is_empty() => ended,
            else => break,
        };
        if tasks.is_empty() {
            // The other roles of this process get answers from its index until they have ended.
            stop_index.raise();
        }
        let failure = match ended.unwrap_or(Ok(Ok(()))) {
            Ok(Ok(())) => continue,
            Ok(Err(failure)) => anyhow::Error::from(failure),
            Err(why) => anyhow::anyhow!("a role ended unexpectedly: {why}"),
        };
        tracing::error!(%failure, "a role ended; this agent stops");
        app.stop.raise();
        failed.get_or_insert(failure);
    }
    match failed {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

/// Opens the repository, and asks the store once more whether it keeps its promise.
async fn open_bucket(app: &App) -> anyhow::Result<Repository> {
    let mut repository = app.repository().await?;
    open::check_writable(&repository).await?;
    open::probe(&mut repository).await?;
    Ok(repository)
}

struct Starting<'a> {
    app: &'a App,
    context: Context,
    repository: Option<Repository>,
    key: WriterKey,
    tasks: JoinSet<Result<(), Failure>>,
    indexers: JoinSet<Result<(), Failure>>,
    stop_index: Stop,
}

impl Starting<'_> {
    fn repository(&self) -> anyhow::Result<Repository> {
        self.repository.clone().context("this role needs the bucket")
    }

    fn index(&self) -> IndexClient {
        let shards = self.app.settings.index_shards.value;
        IndexClient::new(self.context.bus.clone(), self.app.environment.clone(), shards)
    }

    async fn role(&mut self, role: Role) -> anyhow::Result<()> {
        match role {
            Role::Reader => self.reader().await?,
            Role::Hasher => self.hashers()?,
            Role::Indexer => self.indexer().await?,
            Role::Storer => self.storer()?,
            Role::Conductor => self.conductor()?,
            Role::Restorer => self.restorer()?,
            Role::Checker => self.checker()?,
        }
        Ok(())
    }

    async fn reader(&mut self) -> anyhow::Result<()> {
        let app = self.app;
        let mut settings = reader::Settings::new(app.settings.host.value.clone());
        settings.limit = embedded::limit(app, app.settings.limit_read.value);
        settings.readers = app.settings.reads.value;
        settings.audit = app.settings.lvm.value.audit()?;
        let files = Arc::new(Files::new(app.environment.clone()));
        let lvm = &app.settings.lvm.value;
        let volumes = lvm::volumes(lvm, &Default::default(), false, files, app.environment.clone())?;
        if Tools::new().has("lvs") {
            sweep(app, self.repository.as_ref()).await;
        }
        let (seed, ids) = (self.key.cut_seed(), self.key.chunk_ids());
        self.tasks.spawn(Reader::new(self.context.clone(), volumes, settings, seed, ids).run());
        Ok(())
    }

    fn hashers(&mut self) -> anyhow::Result<()> {
        let settings = &self.app.settings;
        let content = Arc::new(ContentKey::new(&self.key, &*self.app.environment)?);
        let hashing =
            hasher::Settings { level: settings.level.value, extents: Queue::extents(&settings.host.value) };
        for _ in 0..settings.workers.value.max(1) {
            let hasher =
                Hasher::new(self.context.clone(), hashing.clone(), self.index(), &self.key, content.clone())?;
            self.tasks.spawn(hasher.run());
        }
        Ok(())
    }

    async fn indexer(&mut self) -> anyhow::Result<()> {
        let settings = &self.app.settings;
        let shards = settings.index_shards.value;
        let owned = match settings.shards.value.is_empty() {
            true => (0..shards).collect(),
            false => settings.shards.value.clone(),
        };
        let repository = self.repository()?;
        let mut indexing = embedded::index_settings(settings, &repository, shards, owned);
        indexing.path.set_file_name("index-agent");
        indexing.sync_interval = Duration::from_secs(60);
        if let Some(folder) = indexing.path.parent() {
            open::private_directory(folder)?;
        }
        let context = Context { stop: self.stop_index.clone(), ..self.context.clone() };
        let indexer = tokio::select! {
            biased;
            opened = Indexer::open(context, repository, indexing) => opened.map_err(Failure::from)?,
            () = self.context.stop.raised() => return Err(embedded::interrupted().into()),
        };
        self.indexers.spawn(indexer.run());
        Ok(())
    }

    fn storer(&mut self) -> anyhow::Result<()> {
        let settings = &self.app.settings;
        let storing = storer::Settings {
            uploads: 4,
            max_age: Duration::from_secs_f64(settings.pack_max_age.value),
            shards: settings.index_shards.value,
            limit: embedded::limit(self.app, settings.limit_upload.value),
        };
        self.tasks.spawn(Storer::new(self.context.clone(), self.repository()?, storing).run());
        Ok(())
    }

    fn conductor(&mut self) -> anyhow::Result<()> {
        let conducting = conductor::Settings {
            ask_again: Duration::from_secs_f64(self.app.settings.ask_again.value),
            ..conductor::Settings::default()
        };
        let (context, repository) = (self.context.clone(), self.repository()?);
        if let Some(seconds) = self.app.settings.prune_every.value {
            let (mut collected, every) = (repository.clone(), Duration::from_secs_f64(seconds));
            prune::delete_in_batches(self.app, &mut collected)?;
            self.tasks.spawn(Collecting::new(self.app, context.clone(), collected, every).run());
        }
        if let Some(seconds) = self.app.settings.check_every.value {
            let (every, share) = (Duration::from_secs_f64(seconds), self.app.settings.check_share.value);
            self.tasks.spawn(Checking::new(context.clone(), repository.clone(), every, share).run());
        }
        let conductor = Conductor::new(context, repository, self.index(), conducting);
        let retention = retention::policies(&self.app.settings.retention.value)?;
        self.tasks.spawn(conductor.with_retention(retention).run());
        Ok(())
    }

    fn restorer(&mut self) -> anyhow::Result<()> {
        let settings = &self.app.settings;
        let repository = self.repository()?;
        let identity = self.identity(&repository, "restorer")?;
        let restoring = restore::settings(self.app, &repository);
        let restorer = Restorer::new(self.context.clone(), repository, self.index(), identity, restoring);
        let restorer = restorer.with_targets(restore::targets());
        let serving = Serving {
            host: settings.host.value.clone(),
            allowed: settings.targets.value.clone(),
            at_once: settings.restores.value,
            beat: BEAT.min(self.beat()),
            span: settings.span.value,
        };
        if serving.allowed.is_empty() {
            tracing::warn!(
                "this restorer serves no target: name folders, devices or VG/PATTERN with --target"
            );
        }
        self.tasks.spawn(restorer.run(serving));
        Ok(())
    }

    fn checker(&mut self) -> anyhow::Result<()> {
        let settings = &self.app.settings;
        let repository = self.repository()?;
        let identity = self.identity(&repository, "checker")?;
        let serving = checker::Serving {
            host: settings.host.value.clone(),
            beat: self.beat(),
            patience: Duration::from_secs_f64(settings.redeliver.value),
            limit: embedded::limit(self.app, settings.limit_read.value),
        };
        let (context, index) = (self.context.clone(), self.index());
        self.tasks.spawn(checker::Service::new(context, repository, index, identity, serving).run());
        Ok(())
    }

    fn identity(&self, repository: &Repository, role: &str) -> anyhow::Result<Option<Arc<Identity>>> {
        let identity = open::identity(&self.app.settings, repository.key.repo())?;
        if repository.key.encrypted() && identity.is_none() {
            let why = format!("a {role} of an encrypted repository needs an identity (--identity)");
            return Err(Failure::refused(why).into());
        }
        Ok(identity.map(Arc::new))
    }

    /// How often a job's delivery is extended.
    fn beat(&self) -> Duration {
        Duration::from_secs_f64(self.app.settings.redeliver.value / 3.0)
    }
}

/// Thaws what crashed runs left frozen, and removes what nobody needs for certain: with the bucket more than without.
async fn sweep(app: &App, repository: Option<&Repository>) {
    let mut swept = host::sweep(app, repository).await;
    if let (Err(why), Some(_)) = (&swept, repository) {
        tracing::warn!(why = text::error(why), "cannot ask the repository which sessions are over");
        swept = host::sweep(app, None).await;
    }
    if let Err(why) = swept {
        // The next backup of each volume tidies up.
        tracing::warn!(why = text::error(&why), "cannot look for what crashed runs left");
    }
}

async fn answer_roll_calls(context: Context, roles: Vec<String>) -> Result<(), Failure> {
    while !context.stop.is_raised() {
        let mut calls = match context.bus.subscribe(&Topic::roll_call()).await {
            Ok(calls) => calls,
            Err(_) => {
                context.environment.sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        loop {
            let call = tokio::select! {
                biased;
                () = context.stop.raised() => return Ok(()),
                call = calls.next() => call,
            };
            let Ok(message) = call else { break };
            let Ok(call) = message.read::<WhoIsThere>() else { continue };
            let counters = context.counters.list();
            let answer = AgentIsThere {
                host: context.host.to_string(),
                pid: std::process::id(),
                roles: roles.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                sessions: Vec::new(),
                counters: counters.into_iter().map(|(name, _, value)| (name.to_owned(), value)).collect(),
            };
            let topic = Topic::roll_call_reply(&call.reply);
            // Whoever asked may be gone.
            let _ = context.bus.broadcast(&topic, Message::new(&About::nothing(), &answer)).await;
        }
    }
    Ok(())
}
