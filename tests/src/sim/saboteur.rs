//! What must never happen, done on purpose: whoever proves something by runs that end well has to know that a run would
//! fail.
//!
//! Most of it is done to the bucket when every job has ended, beside all roles; some of it are roles that do not work.

use agent::{Failure, Queue, Repository, Topic, forgetting};
use bytes::Bytes;
use schema::chunk::{FrameHeader, Sealer};
use schema::epoch::{Awaited, Epoch, Verdict};
use schema::keys::{DataKey, FrameKey, SealedKey, WriterKey};
use schema::map::{Content, Leaf, Piece};
use schema::messages::{About, Cancel, Domain8, FailureKind, Message, NewChunks};
use schema::names::{self, Slot};
use schema::pack::{PackBuilder, PackHeader};
use schema::root::Root;
use schema::session::{Session, SessionKind};
use schema::{ChunkId, Domain, JobId, KeyId, PackId};

use super::bucket::History;
use super::build::source_name;
use super::cluster::World;
use super::content::BLOCK;

/// What happens that must not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// Roles whose name begins so never take anything, and never answer.
    Silence(&'static str),
    /// Readers open what a source was before it was last written to.
    ReadsWhatWas,
    /// Readers take what cannot be read for zeroes.
    SkipsWhatCannotBeRead,
    /// Hashers seal content with no key.
    SealsNothing,
    /// A block of a source is told to everybody.
    TellsContent,
    /// A block of a source is stored as it is, beside the packs.
    StoresContent,
    /// A data key is sent with what it seals, as it is.
    SendsKey,
    /// A data key is stored as it is.
    StoresKey,
    /// The queue of new chunks takes whatever comes, and storers take nothing.
    IgnoresLimits,
    /// What was restored is something else a moment later.
    SpoilsRestores,
    /// Somebody forgets the newest snapshot, which a policy keeps.
    ForgetsNewest,
    /// A pack that a snapshot needs is deleted.
    DeletesPack,
    /// The same, as a collection that takes it for garbage does it.
    CollectsPack,
    /// A collection sweeps a snapshot that nobody forgot.
    SweepsUnforgotten,
    /// Two collections are unfinished at a time.
    BeginsTwice,
    /// A tombstone is put over a commit.
    OverwritesSlot,
    /// A commit is cut off.
    EmptiesSlot,
    /// A root is there before a pack that it needs.
    CommitsBeforeStoring,
    /// A pack that a snapshot needs is no more, and nobody deleted it.
    LosesPack,
    /// A root is no more, and nobody deleted it.
    LosesRoot,
    /// The first object below a folder is deleted, or the object of this name.
    Deletes(&'static str),
    /// The same is written again, as something else.
    Overwrites(&'static str),
    /// A session is left that nobody drives.
    LeavesSession,
}

impl Sabotage {
    /// Whether a role does nothing.
    pub fn silences(&self, role: &str) -> bool {
        match self {
            Self::Silence(begin) => role.starts_with(begin),
            Self::IgnoresLimits => role.starts_with("storer"),
            _ => false,
        }
    }

    /// Happens, if it is to happen when every job has ended.
    pub async fn happen(&self, world: &World, history: &History) -> Result<(), Failure> {
        world.trace.note(format_args!("sabotage: {self:?}"));
        let (repository, store) = (&world.repository, &world.repository.store);
        let nothing = |what: &str| Failure::new(FailureKind::Other, format!("there is no {what}"));
        let pack = || world.ledger.needed().first().copied().ok_or_else(|| nothing("pack"));
        let root = || world.ledger.commits().pop().ok_or_else(|| nothing("snapshot"));
        match *self {
            Self::Silence(_)
            | Self::IgnoresLimits
            | Self::ReadsWhatWas
            | Self::SkipsWhatCannotBeRead
            | Self::SealsNothing
            | Self::SpoilsRestores => {}
            Self::ForgetsNewest => {
                let newest =
                    world.ledger.commits().into_iter().max_by_key(|root| (root.generation, root.slot));
                let newest = newest.ok_or_else(|| nothing("snapshot"))?;
                forgetting::forget(repository, &newest, "a saboteur").await?;
            }
            Self::DeletesPack => store.delete(&names::pack(pack()?)).await?,
            Self::CollectsPack => {
                let pack = pack()?;
                begin(repository, 1, Vec::new(), vec![pack]).await?;
                decide(repository, vec![pack]).await?;
                store.delete(&names::pack(pack)).await?;
            }
            Self::SweepsUnforgotten => {
                let slot = root()?.slot;
                begin(repository, 1, vec![slot], Vec::new()).await?;
                decide(repository, Vec::new()).await?;
                store.put(&slot.snapshot(), repository.tombstone(slot)?).await?;
            }
            Self::BeginsTwice => {
                begin(repository, 1, Vec::new(), vec![pack()?]).await?;
                begin(repository, 2, Vec::new(), Vec::new()).await?;
            }
            Self::OverwritesSlot => {
                let slot = root()?.slot;
                store.put(&slot.snapshot(), repository.tombstone(slot)?).await?;
            }
            Self::EmptiesSlot => store.put(&root()?.slot.snapshot(), Bytes::new()).await?,
            Self::CommitsBeforeStoring => commit_before_storing(repository, root()?).await?,
            Self::LosesPack => {
                history.lose(&names::pack(pack()?)).await.map_err(|why| nothing(&why.to_string()))?
            }
            Self::LosesRoot => {
                history.lose(&root()?.slot.snapshot()).await.map_err(|why| nothing(&why.to_string()))?;
            }
            Self::Deletes(below) => {
                let key = first(repository, below).await?.ok_or_else(|| nothing(below))?;
                store.delete(&key).await?;
            }
            Self::Overwrites(below) => {
                let key = first(repository, below).await?.ok_or_else(|| nothing(below))?;
                store.put(&key, Bytes::from_static(b"something else")).await?;
            }
            Self::TellsContent => {
                let cancel = Cancel { session: repository.environment().session_id() };
                let message = Message::with_body(&About::nothing(), &cancel, block(world)?);
                world.wires.bus("saboteur").broadcast(&Topic::cancel(), message).await?;
            }
            Self::StoresContent => {
                store.put(&names::check(JobId::from_bytes([1; 16])), block(world)?).await?
            }
            Self::SendsKey => {
                let (id, sealed) = open_key(repository);
                let key = Some(SealedKey { id, sealed, generation: 1 });
                let session = repository.environment().session_id();
                let chunks = NewChunks { session, kind: Domain8(Domain::Data), key };
                let message = Message::new(&About::nothing(), &chunks);
                world.wires.bus("saboteur").publish(&Queue::chunks(), message).await?;
            }
            Self::StoresKey => {
                let (id, open) = open_key(repository);
                store.put(&names::key(id), open).await?;
            }
            Self::LeavesSession => leave_session(repository, root()?).await?,
        }
        Ok(())
    }
}

/// The same key, by which nothing is encrypted.
pub fn without_recipients(key: &WriterKey) -> Result<WriterKey, Failure> {
    Ok(WriterKey::new(key.repo(), Vec::new(), &[1; 64])?)
}

/// A block that a source holds.
fn block(world: &World) -> Result<Bytes, Failure> {
    let content = world.source(&source_name(0)).map(|source| source.content());
    let content = content.ok_or_else(|| Failure::refused("there is no source"))?;
    let first = |range: std::ops::Range<u64>| range.start / BLOCK..range.end.div_ceil(BLOCK);
    let blocks = content.allocated(0..content.size()).into_iter().flat_map(first);
    let block = blocks.map(|number| content.block(number)).find(|block| block.iter().any(|byte| *byte != 0));
    Ok(block.ok_or_else(|| Failure::refused("it holds nothing"))?.into())
}

/// A data key that is not sealed.
fn open_key(repository: &Repository) -> (KeyId, Bytes) {
    let random: [u8; 48] = repository.environment().random();
    (DataKey::new(&random).id(), Bytes::copy_from_slice(&random))
}

async fn begin(
    repository: &Repository,
    number: u64,
    forgotten: Vec<Slot>,
    condemned: Vec<PackId>,
) -> Result<(), Failure> {
    let key = names::epoch(number);
    let epoch = Epoch { number, forgotten, condemned };
    Ok(repository.store.put(&key, repository.seal(&key, &epoch)?).await?)
}

async fn decide(repository: &Repository, delete: Vec<PackId>) -> Result<(), Failure> {
    let key = names::verdict(1);
    Ok(repository.store.put(&key, repository.seal(&key, &Verdict { number: 1, delete })?).await?)
}

/// The first object below a folder. The list of awaited sessions is made: nobody collects in a small scenario.
async fn first(repository: &Repository, below: &str) -> Result<Option<String>, Failure> {
    let store = &repository.store;
    if below == names::EPOCHS {
        let key = names::awaited(1);
        let awaited = Awaited { number: 1, sessions: Vec::new() };
        store.put(&key, repository.seal(&key, &awaited)?).await?;
    }
    if store.head(below).await?.is_some() {
        return Ok(Some(below.to_owned()));
    }
    Ok(store.list(below).await?.into_iter().map(|listed| listed.key).min())
}

async fn leave_session(repository: &Repository, root: Root) -> Result<(), Failure> {
    let environment = repository.environment();
    let session = Session {
        id: environment.session_id(),
        kind: SessionKind::Restore,
        slot: None,
        job: environment.job_id(),
        volume: root.volume,
        host: root.host,
        started_ms: environment.now_ms(),
        checkpoint: None,
        ended: None,
        undo: Vec::new(),
    };
    let key = names::session(session.id);
    Ok(repository.store.put(&key, repository.seal(&key, &session)?).await?)
}

/// A snapshot of one chunk, whose pack is late.
async fn commit_before_storing(repository: &Repository, like: Root) -> Result<(), Failure> {
    let plain = vec![7; 4096];
    let (data, chunk) = pack(repository, Domain::Data, &plain)?;
    let len = plain.len() as u32;
    let piece = Piece { len, content: Content::Chunk(chunk) };
    let leaf = Leaf::new(u64::from(len), [piece])?;
    let (structure, top) = pack(repository, Domain::Structure, &leaf.encode())?;
    repository.store.put_once(&names::pack(structure.0), structure.1).await?;
    let slot = Slot { session: repository.environment().session_id(), ..like.slot };
    let root = Root { slot, size: u64::from(len), top: Some(top), ..like };
    let key = slot.snapshot();
    repository.store.put(&key, repository.seal(&key, &root)?).await?;
    Ok(repository.store.put_once(&names::pack(data.0), data.1).await?)
}

/// A pack of one chunk, and the chunk's id.
fn pack(
    repository: &Repository,
    kind: Domain,
    plain: &[u8],
) -> Result<((PackId, Vec<Bytes>), ChunkId), Failure> {
    let (key, environment) = (&repository.key, repository.environment());
    let id = key.chunk_ids().id(kind, plain);
    let frame_key = match kind {
        Domain::Structure => key.structure_key(),
        _ => FrameKey::plain(),
    };
    let mut frame = Vec::new();
    Sealer::new(1)?.seal(id, plain, &frame_key, &mut frame)?;
    let header = FrameHeader::parse(&frame)?;
    let pack = environment.pack_id();
    let mut builder = PackBuilder::new(PackHeader { repo: key.repo(), pack, kind, class: 0 });
    builder.push(&[header], frame.into(), environment.session_id())?;
    Ok(((pack, builder.finish().0), id))
}
