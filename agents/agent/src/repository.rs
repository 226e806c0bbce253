//! A repository: a store and its writer key. What roots, markers, footers and maps need, in one place.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use schema::config::{CHUNKER_BLOCK_ALIGNED, Config, ConfigHead};
use schema::keys::{Identity, SealedKey, WriterKey};
use schema::limits::{PACK_FOOTER_MAX, PACK_MAX};
use schema::messages::{Copy, FailureKind};
use schema::names::{self, Slot};
use schema::pack::{self, PackFooter, PackHeader, TRAILER_LEN};
use schema::root::Root;
use schema::tombstone::{Tombstone, Tombstones};
use schema::{Domain, FormatError, Object, PackId, RepoId, VolumeKey};

use crate::store::{Created, Limit, Listed, Store, StoreError};
use crate::{Environment, Failure};

/// Bytes read from a pack's end in the hope that its footer is inside.
const FOOTER_GUESS: u64 = 64 << 10;

/// Bytes of the largest pack.
const WHOLE_MAX: u64 = PACK_MAX + (PACK_FOOTER_MAX + TRAILER_LEN) as u64;

/// An opened repository.
#[derive(Debug, Clone)]
pub struct Repository {
    /// Its objects.
    pub store: Store,
    /// Names chunks, opens structure.
    pub key: WriterKey,
    /// What it is.
    pub config: Config,
    /// What its tombstones are.
    pub tombstones: Tombstones,
}

/// What to make a repository with.
#[derive(Debug, Clone)]
pub struct NewRepository {
    /// Who can open content; nobody makes a plain repository.
    pub recipients: Vec<String>,
    /// Target size of packs in bytes.
    pub pack_size: u64,
}

/// What stands at a commit slot.
#[derive(Debug, Clone)]
pub enum AtSlot {
    /// Nothing.
    Nothing,
    /// A tombstone: nothing will ever be committed here.
    Tombstone,
    /// A snapshot.
    Snapshot(Box<Root>),
}

/// A repository that can be made: nothing of it is stored yet, so that its keys can be kept first.
#[derive(Debug)]
pub struct Prepared {
    store: Store,
    key: WriterKey,
    config: Config,
}

impl Prepared {
    async fn of(store: Store, key: WriterKey, pack_size: u64) -> Result<Self, Failure> {
        if store.get(names::CONFIG).await?.is_some() {
            return Err(Failure::refused(format!("{} holds a repository already", store.location())));
        }
        let left = left_in(&store).await?;
        if !left.is_empty() {
            return Err(Failure::refused(format!(
                "{} holds no `config`, and what is left of an archive ({}), which nothing opens any more once another \
                 `config` is here: nothing was made; {BRING_BACK}, or make the new repository in an empty place",
                store.location(),
                left.join(", ")
            )));
        }
        let promise = store.probe().await?;
        let config = Config {
            created_ms: store.environment().now_ms(),
            pack_size,
            chunker: CHUNKER_BLOCK_ALIGNED.to_owned(),
            store: promise,
            key_generation: key.generation(),
        };
        Ok(Self { store, key, config })
    }

    /// The key that hosts will need.
    pub fn key(&self) -> &WriterKey {
        &self.key
    }

    /// Makes it. Refused when somebody else was faster; after any other failure it may have been made.
    pub async fn make(self) -> Result<Repository, Failure> {
        let Self { store, key, config } = self;
        let bytes = config.encode(&key, store.environment().random())?;
        let tombstones = ConfigHead::parse(&bytes)?.tombstones();
        match store.create(names::CONFIG, bytes.into()).await? {
            Created::Won => Ok(Repository { store, key, config, tombstones }),
            Created::Lost(_) => Err(Failure::refused(format!(
                "somebody else has just made a repository in {}",
                store.location()
            ))),
        }
    }
}

impl Repository {
    /// Makes a repository where none is.
    pub async fn init(store: Store, new: &NewRepository) -> Result<Self, Failure> {
        Self::prepare(store, new).await?.make().await
    }

    /// Makes a repository that shares the keys of another one, for its recipients.
    pub async fn init_like(store: Store, other: &WriterKey, pack_size: u64) -> Result<Self, Failure> {
        Self::prepare_like(store, other, pack_size).await?.make().await
    }

    /// Draws the key of a repository that is to be made where none is.
    pub async fn prepare(store: Store, new: &NewRepository) -> Result<Prepared, Failure> {
        let environment = store.environment().clone();
        let repo = RepoId::from_bytes(environment.random());
        let key = WriterKey::new(repo, new.recipients.clone(), &environment.random())
            .map_err(|wrong| Failure::refused(wrong.to_string()))?;
        Prepared::of(store, key, new.pack_size).await
    }

    /// The same for one that shares the keys of another one.
    pub async fn prepare_like(store: Store, other: &WriterKey, pack_size: u64) -> Result<Prepared, Failure> {
        let repo = RepoId::from_bytes(store.environment().random());
        Prepared::of(store, other.like(repo), pack_size).await
    }

    /// Reads what is open in a repository's `config`.
    pub async fn head(store: &Store) -> Result<ConfigHead, Failure> {
        match store.get(names::CONFIG).await? {
            Some(bytes) => ConfigHead::parse(&bytes).map_err(|error| of_config(store, error)),
            None => Err(without_config(store).await),
        }
    }

    /// Opens a repository with its writer key, or with an identity, which opens the writer key in the bucket.
    pub async fn open(
        store: Store,
        key: Option<WriterKey>,
        identity: Option<&Identity>,
    ) -> Result<Self, Failure> {
        let head = Self::head(&store).await?;
        let opened = || {
            let key = match key {
                Some(key) if head.encrypted => key,
                _ => head.writer_key(identity)?,
            };
            Ok((head.open(&key)?, key))
        };
        let (config, key) = opened().map_err(|error| of_config(&store, error))?;
        if config.chunker != CHUNKER_BLOCK_ALIGNED {
            return Err(Failure::refused(format!(
                "the repository cuts chunks by {:?}, which this lvkeep lacks: use a newer lvkeep",
                config.chunker
            )));
        }
        Ok(Self { store, key, config, tombstones: head.tombstones() })
    }

    /// Clock and randomness.
    pub fn environment(&self) -> &dyn Environment {
        &**self.store.environment()
    }

    /// Seals a small object for its key.
    pub fn seal<T: Object>(&self, key: &str, value: &T) -> Result<Bytes, Failure> {
        Ok(value.seal(&self.key, key, self.environment().random())?.into())
    }

    /// Reads a small object: none where nothing is, or what a repair has emptied of a collection.
    pub async fn read<T: Object>(&self, key: &str) -> Result<Option<T>, Failure> {
        match self.store.get(key).await? {
            Some(bytes) if !(bytes.is_empty() && T::KIND.may_be_emptied()) => {
                self.open_object(key, &bytes).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn open_object<T: Object>(&self, key: &str, bytes: &[u8]) -> Result<T, Failure> {
        let place = || format!("{}/{key}", self.store.location());
        if bytes.is_empty() {
            return Err(Failure::damaged(format!("{} is empty", place())));
        }
        T::open(bytes, &self.key, key).map_err(|e| Failure::from(e).context(place()))
    }

    /// What stands at a slot.
    pub async fn at_slot(&self, slot: Slot) -> Result<AtSlot, Failure> {
        match self.store.get(&slot.snapshot()).await? {
            Some(bytes) => self.decided(slot, &bytes),
            None => Ok(AtSlot::Nothing),
        }
    }

    /// What these bytes say that stand at a slot.
    pub fn decided(&self, slot: Slot, bytes: &[u8]) -> Result<AtSlot, Failure> {
        let key = slot.snapshot();
        match self.tombstones {
            Tombstones::Empty if bytes.is_empty() => return Ok(AtSlot::Tombstone),
            Tombstones::Sealed if self.is_as_short(bytes.len() as u64) => {
                let opened = self.open_object::<Tombstone>(&key, bytes).map(|_| AtSlot::Tombstone);
                return opened.map_err(|failure| match failure.kind {
                    FailureKind::Damaged => Failure::damaged(format!(
                        "{}/{key} is neither the root of a snapshot nor a tombstone, as which it is as short",
                        self.store.location()
                    )),
                    _ => failure,
                });
            }
            Tombstones::Empty | Tombstones::Sealed => {}
        }
        let root: Root = self.open_object(&key, bytes)?;
        let root = root.check(slot).map_err(|e| Failure::from(e).context(key))?;
        Ok(AtSlot::Snapshot(Box::new(root)))
    }

    /// The bytes of a tombstone for a slot.
    pub fn tombstone(&self, slot: Slot) -> Result<Bytes, Failure> {
        match self.tombstones {
            Tombstones::Empty => Ok(Bytes::new()),
            Tombstones::Sealed => self.seal(&slot.snapshot(), &Tombstone::NEW),
        }
    }

    /// Whether what a listing shows with so many bytes in a slot is as short as a tombstone. Whoever goes by that alone
    /// overlooks what was cut off to this very length; a check does not, nor whoever deletes.
    pub fn is_as_short(&self, size: u64) -> bool {
        size == self.tombstones.size()
    }

    /// The slots below `snapshots/` (one volume's, or all) that hold more than a tombstone and are not forgotten.
    /// Markers are listed before slots, as the protocol asks.
    pub async fn visible_slots(&self, volume: Option<VolumeKey>) -> Result<Vec<Slot>, Failure> {
        let (forgotten, mut slots) = self.listed_slots(volume).await?;
        slots.retain(|slot| !forgotten.contains(slot));
        Ok(slots)
    }

    /// The slots that hold more than a tombstone and are forgotten.
    pub async fn forgotten_slots(&self, volume: Option<VolumeKey>) -> Result<Vec<Slot>, Failure> {
        let (forgotten, mut slots) = self.listed_slots(volume).await?;
        slots.retain(|slot| forgotten.contains(slot));
        Ok(slots)
    }

    /// The markers, and then the slots that hold more than a tombstone, in order.
    async fn listed_slots(&self, volume: Option<VolumeKey>) -> Result<(BTreeSet<Slot>, Vec<Slot>), Failure> {
        let folder = |base: &str| volume.map_or_else(|| base.to_owned(), |v| format!("{base}/{v}"));
        let forgotten = self
            .store
            .list(&folder(names::FORGOTTEN))
            .await?
            .iter()
            .filter_map(|listed| Slot::parse_key(&listed.key).ok())
            .collect();
        let listed = self.store.list(&folder(names::SNAPSHOTS)).await?;
        let longer = listed.iter().filter(|listed| !self.is_as_short(listed.size));
        let mut slots: Vec<Slot> = longer.filter_map(|listed| Slot::parse_key(&listed.key).ok()).collect();
        slots.sort();
        Ok((forgotten, slots))
    }

    /// Whether the store gives the one object that is always there: what it does not give then is about that object alone.
    pub async fn gives_others(&self) -> bool {
        matches!(self.store.get(names::CONFIG).await, Ok(Some(_)))
    }

    /// The slots of a volume that hold anything, tombstones as well.
    pub async fn decided_slots(&self, volume: VolumeKey) -> Result<Vec<Slot>, Failure> {
        let slot = |listed: Listed| Slot::parse_key(&listed.key).ok();
        Ok(self.store.list_as(&format!("{}/{volume}", names::SNAPSHOTS), slot).await?)
    }

    /// The ids of all packs that a listing shows, with their sizes.
    pub async fn list_packs(&self) -> Result<Vec<(PackId, u64)>, Failure> {
        let pack = |listed: Listed| Some((names::parse_pack(&listed.key).ok()?, listed.size));
        Ok(self.store.list_as(names::PACKS, pack).await?)
    }

    /// What a pack holds, as its header says.
    pub async fn read_header(&self, id: PackId) -> Result<PackHeader, Failure> {
        let key = names::pack(id);
        let bytes = self.store.get_range(&key, 0..pack::PACK_HEADER_LEN as u64).await?;
        PackHeader::parse(&bytes).map_err(|e| Failure::from(e).context(&key))
    }

    /// The footer of a pack that holds chunks of this kind, by one request where it is whole.
    pub async fn read_footer_of(&self, id: PackId, kind: Domain) -> Result<PackFooter, Failure> {
        let key = names::pack(id);
        let (end, size) = self.store.get_suffix(&key, FOOTER_GUESS).await?;
        let header = PackHeader { repo: self.key.repo(), pack: id, kind, class: 0 }.encode();
        if let Ok(trailer) = pack::Trailer::parse(&end, size) {
            let suffix = self.suffix(&key, &trailer, end, size).await?;
            if let Ok((_, footer)) = trailer.footer(&header, &suffix, size) {
                return Ok(footer);
            }
        }
        self.read_footer(id).await.map(|(_, footer)| footer)
    }

    /// Footer and trailer of a pack, of which `end` is the end.
    async fn suffix(
        &self,
        key: &str,
        trailer: &pack::Trailer,
        end: Bytes,
        size: u64,
    ) -> Result<Bytes, StoreError> {
        match trailer.suffix_len() <= end.len() as u64 {
            true => Ok(end.slice(end.len() - trailer.suffix_len() as usize..)),
            false => self.store.get_range(key, size - trailer.suffix_len()..size).await,
        }
    }

    /// A pack's footer, from its end. Where that or the header is damaged, what can be had of it all the same: a footer
    /// that is whole, or one without keys and sessions that is put together from the frames.
    pub async fn read_footer(&self, id: PackId) -> Result<(PackHeader, PackFooter), Failure> {
        match self.parse_footer(id).await? {
            Ok(parsed) => self.of_pack(id, parsed),
            Err(error) => {
                tracing::warn!(pack = %id, %error, "a pack's footer is unreadable; reading all of it instead");
                self.rebuild_footer(id, error).await
            }
        }
    }

    /// A pack's footer, from its end, as it was written.
    pub async fn read_intact_footer(&self, id: PackId) -> Result<(PackHeader, PackFooter), Failure> {
        let parsed = self.parse_footer(id).await?;
        self.of_pack(id, parsed.map_err(|e| Failure::from(e).context(names::pack(id)))?)
    }

    /// Whether a later version of lvkeep wrote a pack, rather than that it rotted: its check sum says so.
    pub async fn is_later_pack(&self, id: PackId) -> Result<bool, Failure> {
        let key = names::pack(id);
        let (end, size) = self.store.get_suffix(&key, FOOTER_GUESS).await?;
        let Ok(trailer) = pack::Trailer::parse(&end, size) else { return Ok(false) };
        let suffix = self.suffix(&key, &trailer, end, size).await?;
        let header = self.store.get_range(&key, 0..pack::PACK_HEADER_LEN as u64).await?;
        Ok(trailer.is_later(&header, &suffix))
    }

    async fn parse_footer(
        &self,
        id: PackId,
    ) -> Result<Result<(PackHeader, PackFooter), FormatError>, StoreError> {
        let key = names::pack(id);
        let (end, size) = self.store.get_suffix(&key, FOOTER_GUESS).await?;
        let trailer = match pack::Trailer::parse(&end, size) {
            Ok(trailer) => trailer,
            Err(error) => return Ok(Err(error)),
        };
        let suffix = self.suffix(&key, &trailer, end, size).await?;
        let header = self.store.get_range(&key, 0..pack::PACK_HEADER_LEN as u64).await?;
        Ok(trailer.footer(&header, &suffix, size))
    }

    async fn rebuild_footer(
        &self,
        id: PackId,
        error: FormatError,
    ) -> Result<(PackHeader, PackFooter), Failure> {
        let key = names::pack(id);
        let error = Failure::from(error).context(&key);
        match self.store.head(&key).await? {
            Some(size) if size > WHOLE_MAX => return Err(error.context("it is larger than a pack can be")),
            Some(_) => {}
            None => return Err(error),
        }
        let whole = self.store.get(&key).await?.unwrap_or_default();
        // What its header must say is known.
        let header = |kind| PackHeader { repo: self.key.repo(), pack: id, kind, class: 0 };
        for header in [Domain::Data, Domain::Structure].map(header) {
            if let Ok(footer) = pack::parse_footer(&header, &whole) {
                return Ok((header, footer));
            }
        }
        let (header, entries) = pack::salvage(&whole).map_err(|e| Failure::from(e).context(&key))?;
        self.of_pack(id, (header, PackFooter { entries, keys: Vec::new(), sessions: Vec::new() }))
    }

    fn of_pack(
        &self,
        id: PackId,
        (header, footer): (PackHeader, PackFooter),
    ) -> Result<(PackHeader, PackFooter), Failure> {
        match header.repo == self.key.repo() && header.pack == id {
            true => Ok((header, footer)),
            false => {
                let key = names::pack(id);
                Err(Failure::damaged(format!("{key} is another pack, or of another repository")))
            }
        }
    }

    /// One frame.
    pub async fn read_frame(&self, copy: &Copy) -> Result<Bytes, Failure> {
        let start = u64::from(copy.offset);
        Ok(self.store.get_range(&names::pack(copy.pack), start..start + u64::from(copy.len)).await?)
    }

    /// The same, which is read from no more often at once than this allows.
    pub fn limited(&self, limit: Arc<Limit>) -> Self {
        Self { store: self.store.limited(limit), ..self.clone() }
    }

    /// A data key as it is stored.
    pub async fn sealed_key(&self, key: &str) -> Result<SealedKey, Failure> {
        let bytes = self.store.get(key).await?.unwrap_or_default();
        let id =
            key.strip_prefix("keys/").unwrap_or(key).parse().map_err(|e| Failure::from(e).context(key))?;
        if bytes.is_empty() {
            return Err(Failure::new(FailureKind::Damaged, format!("{key} is missing from the repository")));
        }
        Ok(SealedKey { id, sealed: bytes, generation: self.config.key_generation })
    }
}

/// What to do where `config` is lost or damaged: packs open by nothing else.
const BRING_BACK: &str = "bring `config` back, from a version that the bucket keeps or from a copy";

/// What is wrong with `config`.
fn of_config(store: &Store, error: FormatError) -> Failure {
    if let FormatError::NotOurs { .. } = error {
        return Failure::damaged(format!(
            "{}/{} is none of lvkeep's: see that this is the right place, and not another program's; if it is, {BRING_BACK}",
            store.location(),
            names::CONFIG
        ));
    }
    let is_later = matches!(error, FormatError::UnknownVersion { .. } | FormatError::UnknownFeature { .. });
    let failure = Failure::from(error).context(format!("{}/{}", store.location(), names::CONFIG));
    match failure.kind {
        FailureKind::Damaged => Failure { why: format!("{}: {BRING_BACK}", failure.why), ..failure },
        // Its head is covered by nothing that opens without its key.
        _ if is_later => Failure {
            why: format!("{} (if none was ever used here, it is damaged: {BRING_BACK})", failure.why),
            ..failure
        },
        _ => failure,
    }
}

/// Why there is no repository where no `config` is.
async fn without_config(store: &Store) -> Failure {
    let place = store.location();
    match left_in(store).await {
        Ok(left) if !left.is_empty() => Failure::damaged(format!(
            "{place}: `config` is missing, but what looks like the rest of an archive is here ({}): see that this is the right \
             place, and {BRING_BACK}; do not `init`",
            left.join(", ")
        )),
        Ok(_) | Err(_) => Failure::refused(format!(
            "{place} holds no repository: see that this is the right place, and mounted where it has to be (`lvkeep init` \
             makes a new one)"
        )),
    }
}

/// What of a repository is in a store, beside its `config`, by folders.
async fn left_in(store: &Store) -> Result<Vec<String>, StoreError> {
    let mut left = Vec::new();
    for folder in names::FOLDERS {
        if store.has_any(folder).await? {
            left.push(format!("{folder}/"));
        }
    }
    Ok(left)
}

/// Whether a pack of this size can hold anything.
pub fn can_be_pack(size: u64) -> bool {
    size >= (pack::PACK_HEADER_LEN + TRAILER_LEN) as u64
}
