//! A small repository in memory, made by the real roles, for tests that damage it: each works on a copy of its objects.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent::bus::{Queue, Service};
use agent::index::IndexClient;
use agent::local::LocalBus;
use agent::rate::RateLimit;
use agent::repository::{AtSlot, NewRepository};
use agent::sessions::newest;
use agent::store::Store;
use agent::{Answerer, Context, Environment, Failure, Repository, Stop};
use async_trait::async_trait;
use bytes::Bytes;
use checker::{Checker, Content, Marked, Mended, Mender, Progress, Report, Serving, Settings};
use conductor::Conductor;
use futures::TryStreamExt;
use hasher::{ContentKey, Hasher};
use indexer::{Locator, LocatorSettings, Wish};
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use reader::{Files, Reader};
use restorer::{Restorer, Target};
use schema::keys::{DataKey, Identity, WriterKey};
use schema::messages::{
    About, Answer, Answers, Ask, BackupJob, Copy, FailureKind, JobDone, JobOutcome, Locate, Located, Message,
    Seek, Sought,
};
use schema::pack::PackEntry;
use schema::root::Root;
use schema::{ChunkId, PackId};
use storer::Storer;
use tokio::task::{JoinHandle, JoinSet};

use crate::sim::environment::SimEnvironment;

const HOST: &str = "host";
/// Bytes of a pack: small, so that there are several.
const PACK: u64 = 64 << 10;

/// All objects of a bucket.
pub type Objects = BTreeMap<String, Bytes>;

/// A repository in a bucket in memory.
pub struct Rot {
    bucket: Arc<InMemory>,
    environment: Arc<dyn Environment>,
    /// The repository.
    pub repository: Repository,
    identity: Arc<Identity>,
    folder: PathBuf,
}

/// What an index knows that was built from the bucket.
#[derive(Clone)]
struct Footers {
    repository: Repository,
    known: BTreeMap<PackId, Vec<PackEntry>>,
    copies: BTreeMap<ChunkId, Vec<Copy>>,
    /// Whether there is a pack that the store does not give.
    is_withheld: bool,
}

impl Footers {
    async fn of(repository: Repository) -> Result<Self, Failure> {
        let (known, copies) = Default::default();
        let mut index = Self { repository, known, copies, is_withheld: false };
        index.look().await?;
        Ok(index)
    }

    /// Packs do not change: what was read once is known.
    async fn look(&mut self) -> Result<(), Failure> {
        let mut packs = self.repository.list_packs().await?;
        packs.sort_unstable();
        self.known.retain(|known, _| packs.iter().any(|(pack, _)| pack == known));
        self.is_withheld = false;
        for (pack, _) in
            packs.into_iter().filter(|(pack, _)| !self.known.contains_key(pack)).collect::<Vec<_>>()
        {
            match self.repository.read_footer(pack).await {
                Ok((_, footer)) => drop(self.known.insert(pack, footer.entries)),
                Err(failure) if failure.kind == FailureKind::Store => self.is_withheld = true,
                // What cannot be read holds nothing that an index could know.
                Err(_) => {}
            }
        }
        self.copies.clear();
        for (pack, entries) in &self.known {
            for entry in entries {
                let copy = Copy { pack: *pack, offset: entry.offset, len: entry.len };
                self.copies.entry(entry.id).or_default().push(copy);
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Answerer for Footers {
    async fn answer(&mut self, message: &Message) -> Result<Message, Failure> {
        if let Ok(seek) = message.read::<Seek>() {
            self.look().await?;
            if self.is_withheld {
                let why = "the store does not give a pack, which may hold it";
                return Err(Failure { retry: true, ..Failure::new(FailureKind::Store, why) });
            }
            let copies = seek.ids.iter().map(|id| self.copies.get(id).cloned().unwrap_or_default());
            return Ok(Message::new(&About::nothing(), &Sought { copies: copies.collect(), by: 1 }));
        }
        let copies = |id: &ChunkId| self.copies.get(id).cloned().unwrap_or_default();
        if let Ok(locate) = message.read::<Locate>() {
            let located = Located { copies: locate.ids.iter().map(copies).collect() };
            return Ok(Message::new(&About::nothing(), &located));
        }
        let ask: Ask = message.read()?;
        let answer = |id| match copies(id).last() {
            Some(copy) if !ask.force => Answer::Known(copy.pack),
            _ => Answer::Yours,
        };
        let answers = Answers { answers: ask.ids.iter().map(answer).collect() };
        Ok(Message::new(&About::nothing(), &answers))
    }
}

/// Agents that check one repository.
pub struct Agents<'a> {
    rot: &'a Rot,
    /// Their bus.
    pub bus: LocalBus,
    context: Context,
    index: IndexClient,
}

/// One of them.
pub struct Agent {
    /// Its own counters and flag.
    pub context: Context,
    /// It, until it ends.
    pub task: JoinHandle<Result<(), Failure>>,
}

impl Agents<'_> {
    /// Starts one that reads so many bytes per second.
    pub fn start(&self, bytes_per_second: Option<u64>) -> Agent {
        let limit = match bytes_per_second {
            Some(bytes) => RateLimit::new(bytes, self.rot.environment.clone()),
            None => RateLimit::none(),
        };
        let context = Context { counters: Arc::default(), stop: Stop::default(), ..self.context.clone() };
        let (beat, patience) = (Duration::from_secs(10), Duration::from_secs(30));
        let serving = Serving { host: HOST.to_owned(), beat, patience, limit };
        let (repository, identity) = (self.rot.repository.clone(), Some(self.rot.identity.clone()));
        let service =
            checker::Service::new(context.clone(), repository, self.index.clone(), identity, serving);
        Agent { context, task: tokio::spawn(service.run()) }
    }
}

impl Rot {
    /// An empty repository; files go to `folder`.
    pub async fn new(folder: &Path) -> Result<Self, Failure> {
        Self::new_over(folder, |bucket, _| bucket).await
    }

    /// The same, made through another store in front of its bucket.
    pub async fn new_over(
        folder: &Path,
        front: impl FnOnce(Arc<InMemory>, Arc<dyn Environment>) -> Arc<dyn ObjectStore>,
    ) -> Result<Self, Failure> {
        let environment: Arc<dyn Environment> = Arc::new(SimEnvironment::new(1));
        let bucket = Arc::new(InMemory::new());
        let identity = Arc::new(Identity::generate());
        let new = NewRepository { recipients: identity.recipients(), pack_size: PACK };
        let front = front(bucket.clone(), environment.clone());
        let store = Store::new(front, "", "bucket", environment.clone());
        let repository = Repository::init(store, &new).await?;
        Ok(Self { bucket, environment, repository, identity, folder: folder.to_owned() })
    }

    /// The objects that there are.
    pub async fn objects(&self) -> Objects {
        let listed: Vec<_> = self.bucket.list(None).try_collect().await.unwrap_or_default();
        let mut objects = Objects::new();
        for meta in listed {
            if let Ok(got) = self.bucket.get(&meta.location).await
                && let Ok(bytes) = got.bytes().await
            {
                objects.insert(meta.location.to_string(), bytes);
            }
        }
        objects
    }

    /// The same repository over other objects. Fails when it cannot be opened.
    pub async fn with(&self, objects: &Objects) -> Result<Self, Failure> {
        let bucket = Arc::new(InMemory::new());
        for (key, bytes) in objects {
            let payload = PutPayload::from(bytes.clone());
            let put = bucket.put(&key.as_str().into(), payload).await;
            put.map_err(|why| Failure::refused(why.to_string()))?;
        }
        let store = Store::new(bucket.clone(), "", "bucket", self.environment.clone());
        let key = self.repository.key.clone();
        let repository = Repository::open(store, Some(key), Some(&self.identity)).await?;
        let (environment, identity) = (self.environment.clone(), self.identity.clone());
        Ok(Self { bucket, environment, repository, identity, folder: self.folder.clone() })
    }

    /// The same repository through another store in front of its bucket.
    pub fn over(&self, front: impl FnOnce(Arc<InMemory>) -> Arc<dyn ObjectStore>) -> Self {
        let bucket = self.bucket.clone();
        let store = Store::new(front(bucket.clone()), "", "bucket", self.environment.clone());
        let repository = Repository { store, ..self.repository.clone() };
        let (environment, identity) = (self.environment.clone(), self.identity.clone());
        Self { bucket, environment, repository, identity, folder: self.folder.clone() }
    }

    fn context(&self) -> Context {
        Context {
            bus: Arc::new(LocalBus::new(self.environment.clone(), 16 << 20)),
            environment: self.environment.clone(),
            counters: Arc::default(),
            stop: Stop::default(),
            host: HOST.into(),
        }
    }

    /// Serves an index that is built from the bucket.
    async fn index(&self, context: &Context) -> Result<IndexClient, Failure> {
        let index = Footers::of(self.repository.clone()).await?;
        for service in [Service::index(0), Service::seek(0)] {
            let (serving, index) = (context.clone(), index.clone());
            tokio::spawn(async move { agent::serve(&serving, &service, index).await });
        }
        Ok(IndexClient::new(context.bus.clone(), self.environment.clone(), 1))
    }

    /// Backs a file up by all roles.
    pub async fn backup(&self, volume: &str, path: &Path) -> Result<Root, Failure> {
        let context = self.context();
        let index = self.index(&context).await?;
        let roles = self.roles(&context, &index)?;
        let job = BackupJob {
            job: self.environment.job_id(),
            volume: volume.to_owned(),
            host: HOST.to_owned(),
            source: path.display().to_string(),
            tags: Vec::new(),
            allow_changes: false,
            group: None,
            plain: false,
        };
        context.bus.publish(&Queue::jobs(), Message::new(&About::nothing(), &job)).await?;
        let mut ends = context.bus.consume(&Queue::done(job.job), 1).await?;
        let done: JobDone = ends.next().await?.message.read()?;
        context.stop.raise();
        roles.join_all().await;
        match done.outcome {
            JobOutcome::Sealed { .. } => self.latest(volume).await,
            outcome => Err(Failure::refused(format!("{volume}: {outcome:?}"))),
        }
    }

    fn roles(&self, context: &Context, index: &IndexClient) -> Result<JoinSet<Result<(), Failure>>, Failure> {
        let (context, key) = (context.clone(), &self.repository.key);
        let mut roles = JoinSet::new();
        let reading = reader::Settings::new(HOST);
        let extents = reading.extents.clone();
        let files = Arc::new(Files::new(self.environment.clone()));
        roles.spawn(Reader::new(context.clone(), files, reading, key.cut_seed(), key.chunk_ids()).run());
        let content = Arc::new(ContentKey::new(key, &*self.environment)?);
        let hashing = hasher::Settings { level: 1, extents };
        roles.spawn(Hasher::new(context.clone(), hashing, index.clone(), key, content)?.run());
        let limit = RateLimit::none();
        let storing = storer::Settings { uploads: 1, max_age: Duration::from_secs(3600), shards: 1, limit };
        roles.spawn(Storer::new(context.clone(), self.repository.clone(), storing).run());
        let conducting = conductor::Settings { sessions: 1, ..conductor::Settings::default() };
        roles.spawn(Conductor::new(context, self.repository.clone(), index.clone(), conducting).run());
        Ok(roles)
    }

    /// The newest snapshot of a volume.
    pub async fn latest(&self, volume: &str) -> Result<Root, Failure> {
        let mut roots = Vec::new();
        for slot in self.repository.visible_slots(Some(self.repository.key.volume_key(volume))).await? {
            if let AtSlot::Snapshot(root) = self.repository.at_slot(slot).await? {
                roots.push(*root);
            }
        }
        newest(roots).ok_or_else(|| Failure::damaged(format!("{volume} has no snapshot")))
    }

    async fn checker(&self, context: &Context, content: Content) -> Result<Checker, Failure> {
        let index = self.index(context).await?;
        let settings = Settings { host: HOST.to_owned(), content, record: true };
        let (identity, stop) = (Some(self.identity.clone()), Stop::default());
        Ok(Checker::new(self.repository.clone(), index, identity, settings, stop))
    }

    /// Checks.
    pub async fn check(&self, content: Content) -> Result<Report, Failure> {
        self.check_with(content, |_| ()).await
    }

    /// The same, telling how far it is.
    pub async fn check_with(
        &self,
        content: Content,
        progress: impl Fn(Progress<'_>) + Sync,
    ) -> Result<Report, Failure> {
        let context = self.context();
        let report = self.checker(&context, content).await?.check(None, &progress).await;
        context.stop.raise();
        report
    }

    /// A bus for agents that check, with an index.
    pub async fn agents(&self) -> Result<Agents<'_>, Failure> {
        let bus = LocalBus::new(self.environment.clone(), 16 << 20);
        let context = Context { bus: Arc::new(bus.clone()), ..self.context() };
        let index = self.index(&context).await?;
        Ok(Agents { rot: self, bus, context, index })
    }

    /// Backs a file up beside a check, whose index was built before.
    pub async fn check_beside_backup(&self, volume: &str, path: &Path) -> Result<Report, Failure> {
        let context = self.context();
        let checker = self.checker(&context, Content::All { after: None }).await?;
        self.backup(volume, path).await?;
        let report = checker.check(None, &|_| ()).await;
        context.stop.raise();
        report
    }

    /// Mends, and looks at nothing else.
    pub async fn mend(&self) -> Result<Mended, Failure> {
        let (identity, stop) = (Some(self.identity.clone()), Stop::default());
        Mender::new(self.repository.clone(), identity, HOST.to_owned(), stop).mend().await
    }

    /// Mends, checks everything, and marks.
    pub async fn repair(&self) -> Result<(Mended, Report), Failure> {
        self.repair_with(Content::All { after: None }).await
    }

    /// Mends, checks, and marks.
    pub async fn repair_with(&self, content: Content) -> Result<(Mended, Report), Failure> {
        let context = self.context();
        let mended = self.mend().await?;
        let checker = self.checker(&context, content).await?.marking();
        let report = checker.check(None, &|_| ()).await?;
        checker.mark(&report).await?;
        context.stop.raise();
        Ok((mended, report))
    }

    /// Marks snapshots with what a report says is lost of them.
    pub async fn mark(&self, report: &Report) -> Result<Marked, Failure> {
        let context = self.context();
        let index = IndexClient::new(context.bus.clone(), self.environment.clone(), 1);
        let settings = Settings { host: HOST.to_owned(), content: Content::None, record: false };
        Checker::new(self.repository.clone(), index, None, settings, context.stop).mark(report).await
    }

    /// Restores a snapshot, as a command on another machine does it; what cannot be read is zero.
    pub async fn restore(&self, root: &Root) -> Result<(Vec<u8>, restorer::Report), Failure> {
        self.restore_as(root, true).await
    }

    /// Restores a snapshot, past what cannot be read or up to it.
    pub async fn restore_as(
        &self,
        root: &Root,
        keep_going: bool,
    ) -> Result<(Vec<u8>, restorer::Report), Failure> {
        let context = self.context();
        let scratch = self.folder.join("scratch");
        let settings = LocatorSettings { memory: 1 << 20, scratch };
        let wishes = [Wish::all(root.clone())];
        let locator = Locator::find(context.clone(), self.repository.clone(), &settings, &wishes).await?;
        tokio::spawn(locator.run());
        let index = IndexClient::new(context.bus.clone(), self.environment.clone(), 1);
        let settings = restorer::Settings { threads: 1, ..restorer::Settings::default() };
        let identity = Some(self.identity.clone());
        let restorer = Restorer::new(context.clone(), self.repository.clone(), index, identity, settings);
        let path = self.folder.join(format!("restored-{}", self.environment.job_id()));
        let restored =
            restorer.restore(root.clone(), Target::new(&path, false).keep_going(keep_going), |_| ()).await;
        context.stop.raise();
        let bytes = std::fs::read(&path).unwrap_or_default();
        let _ = std::fs::remove_file(&path);
        Ok((bytes, restored?))
    }

    /// A data key as it is sealed to the recipients of a writer key.
    pub async fn data_key(&self, name: &str, writer: &WriterKey) -> Result<Bytes, Failure> {
        let sealed = self.repository.sealed_key(name).await?;
        let opened = DataKey::unseal(self.repository.key.family(), &sealed, &self.identity)?;
        Ok(opened.seal(writer)?.sealed)
    }

    /// Stores a small object.
    pub async fn put<T: schema::Object>(&self, key: &str, value: &T) -> Result<(), Failure> {
        Ok(self.repository.store.put(key, self.repository.seal(key, value)?).await?)
    }
}
