//! All roles in one process, over the in-process bus: the default, with nothing installed.

use std::sync::Arc;
use std::time::Duration;

use agent::index::IndexClient;
use agent::local::LocalBus;
use agent::rate::RateLimit;
use agent::{Context, Failure, Protection, Repository, Stop, Volumes};
use anyhow::{Context as _, bail};
use hasher::{ContentKey, Hasher};
use indexer::{Indexer, Locator, LocatorSettings, OpenError, SyncReport, Wish};
use reader::{Files, Reader};
use schema::root::Root;
use storer::Storer;
use tokio::task::JoinSet;
use volume_lvm::LvmVolumes;

use crate::app::App;
use crate::lvm::{self, Hold};
use crate::settings::Settings;
use crate::{open, retention, text};

/// Shards of an index that one process has to itself.
const SHARDS: u16 = 1;
/// Bytes of memory for the index's cache.
const INDEX_CACHE: u64 = 8 << 20;
/// Bytes of one read: smaller than an agent's, since here everything shares one budget.
const SEGMENT: usize = 2 << 20;
/// Claims of an embedded run are its own; they end with it.
const CLAIM_GIVE_UP: Duration = Duration::from_secs(120);

/// Roles at work in this process.
pub struct Embedded {
    /// Bus, clock, counters.
    pub context: Context,
    /// The repository.
    pub repository: Repository,
    /// Asks the index.
    pub index: IndexClient,
    /// What protects what is read, for those who read.
    pub protection: Option<Protection>,
    tasks: JoinSet<Result<(), Failure>>,
    readers: JoinSet<Result<(), Failure>>,
    stop_readers: Stop,
    volumes: Option<Arc<LvmVolumes>>,
    indexers: JoinSet<Result<(), Failure>>,
    stop_index: Stop,
    _private_cache: Option<tempfile::TempDir>,
}

/// Bytes that sealed chunks may take between a hasher and the store: two packs at least.
pub fn chunk_queue(settings: &Settings, pack_size: u64) -> anyhow::Result<usize> {
    let needed = 2 * pack_size + (4 << 20);
    if needed + (48 << 20) > settings.memory.value {
        bail!(
            "memory: {} do not suffice for packs of {}; at least {} are needed",
            text::size(settings.memory.value),
            text::size(pack_size),
            text::size(needed + (48 << 20))
        );
    }
    Ok(needed.max(settings.memory.value / 4) as usize)
}

/// A limit from a setting.
pub fn limit(app: &App, bytes_per_second: Option<u64>) -> RateLimit {
    bytes_per_second.map_or_else(RateLimit::none, |rate| RateLimit::new(rate, app.environment.clone()))
}

/// Settings of an index of this process.
pub fn index_settings(
    settings: &Settings,
    repository: &Repository,
    shards: u16,
    owned: Vec<u16>,
) -> indexer::Settings {
    indexer::Settings {
        path: settings.cache.value.join(repository.key.repo().to_string()).join("index"),
        cache_bytes: INDEX_CACHE,
        shards,
        owned,
        give_up: CLAIM_GIVE_UP,
        sync_interval: Duration::from_secs(600),
    }
}

impl Embedded {
    /// Starts what knows where the chunks of some snapshots are, for commands that read them: the index, where this host
    /// has a cache of it, and otherwise what is found of these snapshots alone. They are protected from before that on.
    pub async fn reading(app: &App, repository: Repository, wishes: &[Wish]) -> anyhow::Result<Self> {
        let protection = Some(protect(app, &repository, wishes).await?);
        let work = Self::start(app, repository, reading_bus(app), Wanted::Of(wishes)).await?;
        Ok(Self { protection, ..work })
    }

    /// Starts an index, for commands that read everything. All snapshots are protected from before that on.
    pub async fn reading_all(app: &App) -> anyhow::Result<Self> {
        let repository = app.repository().await?;
        let protection = Some(app.protected.begin(app, &repository, None).await?);
        let work = Self::start(app, repository, reading_bus(app), Wanted::All).await?;
        Ok(Self { protection, ..work })
    }

    /// Starts an index over this host's cache, unless another process has it: that is refused.
    pub async fn unshared(app: &App, repository: Repository) -> anyhow::Result<Self> {
        Self::start(app, repository, reading_bus(app), Wanted::Unshared).await
    }

    /// Starts an index over a repository that is open, for commands that read everything in another way.
    pub async fn indexed(app: &App, repository: Repository) -> anyhow::Result<Self> {
        Self::start(app, repository, reading_bus(app), Wanted::All).await
    }

    /// Starts every role that a backup needs, for commands that also read these snapshots.
    pub async fn reading_and_writing(app: &App, wishes: &[Wish]) -> anyhow::Result<Self> {
        let protection = Some(protect(app, &app.repository().await?, wishes).await?);
        Ok(Self { protection, ..Self::writing(app, None).await? })
    }

    /// Starts what stores chunks that come from elsewhere: a storer and an index.
    pub async fn storing(app: &App, repository: Repository) -> anyhow::Result<Self> {
        let queue = chunk_queue(&app.settings, repository.config.pack_size)?;
        let bus = LocalBus::new(app.environment.clone(), queue);
        let mut work = Self::start(app, repository, bus, Wanted::All).await?;
        work.store(app);
        Ok(work)
    }

    fn store(&mut self, app: &App) {
        let settings = storer::Settings {
            uploads: 2,
            max_age: Duration::from_secs_f64(app.settings.pack_max_age.value),
            shards: SHARDS,
            limit: limit(app, app.settings.limit_upload.value),
        };
        self.tasks.spawn(Storer::new(self.context.clone(), self.repository.clone(), settings).run());
    }

    /// Starts every role that a backup needs. Without `hold`, logical volumes are read as the devices that they are, and
    /// no snapshot of them is taken.
    pub async fn writing(app: &App, hold: Option<&Hold>) -> anyhow::Result<Self> {
        let mut repository = app.repository().await?;
        open::check_writable(&repository).await?;
        if open::directory(repository.store.location()).is_none() {
            open::probe(&mut repository).await?;
        }
        let settings = &app.settings;
        let queue = chunk_queue(settings, repository.config.pack_size)?;
        let bus = LocalBus::new(app.environment.clone(), queue);
        let mut work = Self::start(app, repository, bus, Wanted::All).await?;
        let (context, repository, index) =
            (work.context.clone(), work.repository.clone(), work.index.clone());

        let files = Arc::new(Files::new(app.environment.clone()));
        let volumes: Arc<dyn Volumes> = match hold {
            Some(hold) => {
                let volumes = lvm::volumes(&settings.lvm.value, hold, true, files, app.environment.clone())?;
                work.volumes = Some(volumes.clone());
                volumes
            }
            None => files,
        };
        let mut reading = reader::Settings::new(settings.host.value.clone());
        reading.segment = SEGMENT;
        reading.readers = settings.reads.value;
        reading.audit = settings.lvm.value.audit()?;
        reading.limit = limit(app, settings.limit_read.value);
        let extents = reading.extents.clone();
        // What a session leaves on this host is removed when its conductor says how it ended.
        let hearing = Context { stop: work.stop_readers.clone(), ..context.clone() };
        let key = &repository.key;
        work.readers.spawn(Reader::new(hearing, volumes, reading, key.cut_seed(), key.chunk_ids()).run());

        let content = Arc::new(ContentKey::new(&repository.key, &*app.environment)?);
        let hashing = hasher::Settings { level: settings.level.value, extents };
        for _ in 0..settings.workers.value.max(1) {
            let hasher = Hasher::new(
                context.clone(),
                hashing.clone(),
                index.clone(),
                &repository.key,
                content.clone(),
            )?;
            work.tasks.spawn(hasher.run());
        }

        work.store(app);

        let conducting = conductor::Settings {
            ask_again: Duration::from_secs_f64(settings.ask_again.value),
            hand_back: false,
            // A session that no reader has time for would only wait, and lose patience.
            sessions: settings.reads.value,
            ..conductor::Settings::default()
        };
        let retention = retention::policies(&settings.retention.value)?;
        let conductor = conductor::Conductor::new(context, repository, index, conducting);
        work.tasks.spawn(conductor.with_retention(retention).run());
        Ok(work)
    }

    async fn start(
        app: &App,
        repository: Repository,
        bus: LocalBus,
        wanted: Wanted<'_>,
    ) -> anyhow::Result<Self> {
        let context = app.context(Arc::new(bus));
        // Whoever asks the index must get its answers until the end.
        let stop_index = Stop::default();
        let indexing = Context { stop: stop_index.clone(), ..context.clone() };
        let opening = async {
            match wanted {
                Wanted::Of(wishes) => open_for(app, &indexing, &repository, wishes).await,
                Wanted::All => open_index(app, &indexing, &repository, true).await,
                Wanted::Unshared => open_index(app, &indexing, &repository, false).await,
            }
        };
        let (answering, private) = tokio::select! {
            biased;
            opened = opening => opened?,
            () = context.stop.raised() => return Err(interrupted().into()),
        };
        let index = IndexClient::new(context.bus.clone(), app.environment.clone(), SHARDS);
        let mut indexers = JoinSet::new();
        match answering {
            Answering::Index(indexer) => indexers.spawn(indexer.run()),
            Answering::Wishes(locator) => indexers.spawn(locator.run()),
        };
        Ok(Self {
            context,
            repository,
            index,
            protection: None,
            tasks: JoinSet::new(),
            readers: JoinSet::new(),
            stop_readers: Stop::default(),
            volumes: None,
            indexers,
            stop_index,
            _private_cache: private,
        })
    }

    /// Waits until a role ends before it was told to: that is a failure. After a stop, waits until all have ended:
    /// the conductor gives its sessions up first.
    pub async fn role_failed(&mut self) -> anyhow::Error {
        loop {
            let ended = tokio::select! {
                ended = self.tasks.join_next() => ended,
                Some(ended) = self.readers.join_next() => Some(ended),
                Some(ended) = self.indexers.join_next() => Some(ended),
            };
            match ended {
                Some(Ok(Err(failure))) => return failure.into(),
                Some(Err(why)) => return anyhow::anyhow!("a role ended unexpectedly: {why}"),
                Some(Ok(Ok(()))) if self.context.stop.is_raised() => {}
                Some(Ok(Ok(()))) => return anyhow::anyhow!("a role ended unexpectedly"),
                None => break,
            }
        }
        self.stop_readers.raise();
        join(&mut self.readers).await;
        interrupted().into()
    }

    /// Lets the roles finish, the readers and the index after them.
    pub async fn finish(mut self) {
        self.context.stop.raise();
        join(&mut self.tasks).await;
        self.stop_readers.raise();
        join(&mut self.readers).await;
        if let Some(volumes) = &self.volumes {
            volumes.finish().await;
        }
        self.stop_index.raise();
        join(&mut self.indexers).await;
    }
}

async fn protect(app: &App, repository: &Repository, wishes: &[Wish]) -> anyhow::Result<Protection> {
    let roots: Vec<&Root> = wishes.iter().map(|wish| &wish.root).collect();
    app.protected.begin(app, repository, Some(&roots)).await
}

async fn join(tasks: &mut JoinSet<Result<(), Failure>>) {
    while let Some(ended) = tasks.join_next().await {
        if let Ok(Err(failure)) = ended {
            tracing::warn!(%failure, "a role did not end well");
        }
    }
}

/// Somebody asked this process to stop.
pub fn interrupted() -> Failure {
    Failure::new(schema::messages::FailureKind::Revoked, "interrupted")
}

/// What an index has to answer.
enum Wanted<'a> {
    /// Where the chunks of these are.
    Of(&'a [Wish]),
    /// Everything.
    All,
    /// Everything, out of the one cache of this host.
    Unshared,
}

/// Who answers where chunks are.
enum Answering {
    Index(Indexer),
    Wishes(Box<Locator>),
}

type Opened = (Answering, Option<tempfile::TempDir>);

/// Reading needs no room for packs.
fn reading_bus(app: &App) -> LocalBus {
    LocalBus::new(app.environment.clone(), 8 << 20)
}

/// Opens the index's cache; when another process has it, a private temporary one where that is wanted.
async fn open_index(
    app: &App,
    context: &Context,
    repository: &Repository,
    may_be_private: bool,
) -> anyhow::Result<Opened> {
    let owned: Vec<u16> = (0..SHARDS).collect();
    let settings = index_settings(&app.settings, repository, SHARDS, owned);
    if let Some(folder) = settings.path.parent() {
        open::private_directory(folder)?;
    }
    match Indexer::open(context.clone(), repository.clone(), settings.clone()).await {
        Ok(indexer) => Ok((Answering::Index(indexer), None)),
        Err(OpenError::Locked { path }) if may_be_private => {
            tracing::info!(path = %path.display(), "another process has the index's cache; taking a private one");
            let folder = path.parent().context("the cache is below a folder")?;
            let private = tempfile::Builder::new().prefix("private-").tempdir_in(folder)?;
            let settings = indexer::Settings { path: private.path().join("index"), ..settings };
            let indexer = Indexer::open(context.clone(), repository.clone(), settings).await;
            Ok((Answering::Index(indexer.map_err(Failure::from)?), Some(private)))
        }
        Err(error) => Err(Failure::from(error).into()),
    }
}

/// Opens the index's cache where there is one that nobody else has, or finds the chunks of what is wished for.
async fn open_for(
    app: &App,
    context: &Context,
    repository: &Repository,
    wishes: &[Wish],
) -> anyhow::Result<Opened> {
    let settings = index_settings(&app.settings, repository, SHARDS, (0..SHARDS).collect());
    if Indexer::has_cache(&settings) {
        match Indexer::open(context.clone(), repository.clone(), settings).await {
            Ok(indexer) => return Ok((Answering::Index(indexer), None)),
            Err(OpenError::Locked { path }) => {
                tracing::info!(path = %path.display(), "another process has the index's cache");
            }
            // On a rescue system it may be read-only, or full.
            Err(OpenError::Failed(why)) => {
                tracing::warn!(%why, "the index's cache cannot be used: the chunks are looked for without it");
            }
        }
    }
    let below = || app.settings.cache.value.join(repository.key.repo().to_string());
    let folder = app.settings.work_dir.value.clone().unwrap_or_else(below);
    // What fits the memory needs none.
    if let Err(why) = open::private_directory(&folder) {
        tracing::debug!(folder = %folder.display(), %why, "there is nothing but the memory");
    }
    let scratch = folder.join(format!("lookup-{}", app.environment.job_id()));
    let settings = LocatorSettings { memory: app.settings.memory.value / 4, scratch };
    let locator = Locator::find(context.clone(), repository.clone(), &settings, wishes).await?;
    Ok((Answering::Wishes(locator.into()), None))
}

/// Whether this host has an index's cache.
pub fn has_cache(app: &App, repository: &Repository) -> bool {
    Indexer::has_cache(&index_settings(&app.settings, repository, SHARDS, (0..SHARDS).collect()))
}

/// Builds the index's cache anew.
pub async fn rebuild(app: &App, repository: &Repository) -> anyhow::Result<SyncReport> {
    let context = app.context(Arc::new(LocalBus::new(app.environment.clone(), 1 << 20)));
    let settings = index_settings(&app.settings, repository, SHARDS, (0..SHARDS).collect());
    if let Some(folder) = settings.path.parent() {
        open::private_directory(folder)?;
    }
    Ok(indexer::rebuild(context, repository.clone(), settings).await.map_err(Failure::from)?)
}

/// `index rebuild`.
pub async fn rebuild_index(app: &App) -> anyhow::Result<()> {
    let repository = app.repository().await?;
    let path = index_settings(&app.settings, &repository, SHARDS, Vec::new()).path;
    let report = rebuild(app, &repository).await?;
    let value = serde_json::json!({ "path": path, "report": format!("{report:?}") });
    app.print(&value, || format!("rebuilt {}: {report:?}", path.display()))
}
