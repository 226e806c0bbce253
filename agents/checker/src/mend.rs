//! Mends what can be mended from what is in the bucket: whole frames of torn packs move to new packs, and data keys that
//! are gone come back from footers.
//!
//! Nothing is deleted. A torn pack whose frames were moved is recorded as one that nobody relies on, and is collected
//! when nothing needs it. What moves is opened first, so that an identity is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use agent::damage::Damages;
use agent::repository::AtSlot;
use agent::sessions::{self, OpenSession};
use agent::store::{Created, StoreErrorKind};
use agent::{Failure, Repository, Stop};
use schema::chunk::FrameHeader;
use schema::damage::Damage;
use schema::keys::{Identity, KEY_DATA_FIRST, SealedKey, index_of};
use schema::messages::FailureKind;
use schema::names::{self, Slot};
use schema::pack::{PackBuilder, PackFooter, PackHeader};
use schema::session::{Session, SessionKind};
use schema::{KeyId, PackId, SessionId};

use crate::Source;
use crate::given::{Footer, is_withheld};

/// What the session of a repair says that it works on.
const VOLUME: &str = "(repair)";
/// Attempts to upload a pack, each under a fresh name.
const ATTEMPTS: u32 = 9;
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// What was mended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mended {
    /// Torn packs whose frames were moved, and how many that were.
    pub packs: Vec<(PackId, u64)>,
    /// Packs that are torn, or may be, and stay as they are, and why.
    pub unsalvaged: Vec<(PackId, String)>,
    /// Data keys that were stored again.
    pub keys: Vec<KeyId>,
    /// Data keys of which nobody knows whether they should be, and why.
    pub keys_withheld: Vec<(KeyId, String)>,
    /// Markers and tombstones of forgotten snapshots that could not be read, and stand there again.
    pub forgotten: Vec<String>,
    /// Those of them that stay as they are, and why: they are held, or the store does not let them be overwritten.
    pub stays: Vec<(String, String)>,
    /// Objects of collections that could not be read, and that stop nobody any more.
    pub collections: Vec<String>,
    /// Objects of collections that cannot be read, and stay as they are, and why.
    pub unended: Vec<String>,
}

impl Mended {
    fn is_withheld(&mut self, pack: PackId, why: &Failure) {
        self.unsalvaged.push((pack, format!("it was not looked into: {why}")));
    }
}

/// What became of a torn pack.
pub(crate) enum Salvaged {
    /// So many whole frames are in a new pack.
    Moved(u64),
    /// Nothing was moved, and this is why.
    Stays(String),
    /// The store said that it is not there.
    Gone,
}

/// Mends a repository.
pub struct Mender {
    pub(crate) source: Source,
    pub(crate) host: String,
}

impl Mender {
    /// A mender; a plain repository needs no identity.
    pub fn new(repository: Repository, identity: Option<Arc<Identity>>, host: String, stop: Stop) -> Self {
        Self { source: Source::new(repository, identity, stop), host }
    }

    /// Mends. Whoever looks for chunks afterwards must look for new packs first.
    pub async fn mend(&self) -> Result<Mended, Failure> {
        // Without any identity, too: until then nobody can write.
        self.decide().await?;
        self.source.keys.check().map_err(|why| why.context("nothing else can be mended"))?;
        self.source.keys.fits().await?;
        let session = self.begin().await?;
        let id = session.session().id;
        let mended = self.all(id).await;
        // What was stored is found by the index; the session itself commits nothing.
        match (session.dismiss(&self.source.stop).await, mended) {
            (Ok(AtSlot::Tombstone), mended) => mended,
            (Ok(_), mended) => {
                tracing::warn!("the slot of a repair holds something");
                mended
            }
            (Err(why), Ok(mended)) => {
                sessions::warn_left_open(id, &why);
                Ok(mended)
            }
            (Err(why), Err(failure)) => Err(sessions::left_open(id, failure, &why)),
        }
    }

    async fn begin(&self) -> Result<OpenSession, Failure> {
        let environment = self.source.repository.environment();
        let id = environment.session_id();
        let session = Session {
            id,
            kind: SessionKind::Copy,
            slot: Some(Slot { volume: self.source.repository.key.volume_key(VOLUME), session: id }),
            job: environment.job_id(),
            volume: VOLUME.to_owned(),
            host: self.host.clone(),
            started_ms: environment.now_ms(),
            checkpoint: None,
            ended: None,
            undo: Vec::new(),
        };
        OpenSession::begin_alone(self.source.repository.clone(), session, &self.source.stop).await
    }

    async fn all(&self, session: SessionId) -> Result<Mended, Failure> {
        let mut mended = Mended::default();
        self.end_collections(session, &mut mended).await?;
        self.forgotten(&mut mended).await?;
        let recorded = Damages::load(&self.source.repository).await?;
        let listed = self.source.repository.store.list(names::KEYS).await?;
        let mut seen = BTreeSet::new();
        let known: BTreeSet<KeyId> =
            listed.iter().filter_map(|key| key.key.strip_prefix("keys/")?.parse().ok()).collect();
        let mut torn = Vec::new();
        for (pack, _) in self.source.list_packs().await? {
            self.source.go_on()?;
            match self.source.read_footer(pack).await? {
                Footer::Whole(_, footer) => self.keys(&footer, &known, &mut seen, &mut mended).await?,
                Footer::Torn(_, footer, _) => {
                    self.keys(&footer, &known, &mut seen, &mut mended).await?;
                    torn.push(pack);
                }
                Footer::Withheld(why) if !recorded.packs().contains(&pack) => mended.is_withheld(pack, &why),
                Footer::Unreadable(_) | Footer::Withheld(_) | Footer::Gone => {}
            }
        }
        // With all keys at hand.
        for pack in torn.into_iter().filter(|pack| !recorded.packs().contains(pack)) {
            let (header, footer) = match self.source.read_footer(pack).await? {
                Footer::Torn(header, footer, _) => (header, footer),
                Footer::Withheld(why) => {
                    mended.is_withheld(pack, &why);
                    continue;
                }
                Footer::Whole(..) | Footer::Unreadable(_) | Footer::Gone => continue,
            };
            match self.salvage(pack, header, &footer, session).await? {
                Salvaged::Moved(0) | Salvaged::Gone => {}
                Salvaged::Moved(moved) => {
                    self.record(pack).await?;
                    mended.packs.push((pack, moved));
                }
                Salvaged::Stays(why) => {
                    tracing::warn!(%pack, why, "a torn pack is not salvaged");
                    mended.unsalvaged.push((pack, why));
                }
            }
        }
        Ok(mended)
    }

    /// Stores keys again that are gone, or cannot be opened where the footer's copy can.
    async fn keys(
        &self,
        footer: &PackFooter,
        known: &BTreeSet<KeyId>,
        seen: &mut BTreeSet<KeyId>,
        mended: &mut Mended,
    ) -> Result<(), Failure> {
        for key in &footer.keys {
            if seen.contains(&key.id) || !self.source.keys.is_whole(key) {
                continue;
            }
            let name = names::key(key.id);
            match known.contains(&key.id) {
                false => {
                    self.source.repository.store.create(&name, key.sealed.clone()).await?;
                    mended.keys.push(key.id);
                }
                true => match self.source.given(&name, || self.source.keys.is_lost(key.id)).await? {
                    Ok(false) => {}
                    Ok(true) => {
                        self.source.repository.store.put(&name, key.sealed.clone()).await?;
                        mended.keys.push(key.id);
                    }
                    Err(failure) if is_withheld(&failure) => {
                        mended.keys_withheld.push((key.id, failure.to_string()));
                    }
                    Err(failure) => return Err(failure),
                },
            }
            seen.insert(key.id);
        }
        Ok(())
    }

    /// Moves the whole frames of a torn pack, or of one that is to go.
    pub(crate) async fn salvage(
        &self,
        pack: PackId,
        header: PackHeader,
        footer: &PackFooter,
        session: SessionId,
    ) -> Result<Salvaged, Failure> {
        let checked = self.source.check_frames(pack, &header, footer).await?;
        if checked.is_gone {
            return Ok(Salvaged::Gone);
        }
        // Once the rest has moved, the pack is collected; a key that opens these may be found yet.
        if let Some((id, why)) = checked.keyless.first() {
            return Ok(Salvaged::Stays(format!("no key opens chunk {id}: {why}")));
        }
        // Nor may it go while something in it was not seen.
        if let Some((id, why)) = checked.withheld.first() {
            return Ok(Salvaged::Stays(format!("chunk {id} cannot be read now: {why}")));
        }
        let bad: BTreeSet<_> = checked.bad.into_iter().map(|(id, _)| id).collect();
        let mut builder = self.builder(&header);
        let mut keys = BTreeMap::new();
        for entry in footer.entries.iter().filter(|entry| !bad.contains(&entry.id)) {
            self.source.go_on()?;
            // The old pack goes by this: what is pushed must be what was opened.
            let Some(frame) = self.source.whole_frame(pack, header.kind, entry).await? else {
                let id = entry.id;
                return Ok(Salvaged::Stays(format!(
                    "chunk {id} is whole at times and at times not: repair again"
                )));
            };
            let head = FrameHeader::parse(&frame)?;
            if head.key >= KEY_DATA_FIRST {
                let key = self.sealed_key(head.key, footer, &mut keys).await?;
                builder.add_key(&key);
            }
            builder.push(&[head], frame, session)?;
        }
        if builder.is_empty() {
            return Ok(Salvaged::Moved(0));
        }
        builder.add_sessions(&footer.sessions);
        let moved = builder.entries().len() as u64;
        self.upload(builder, pack).await?;
        Ok(Salvaged::Moved(moved))
    }

    fn builder(&self, header: &PackHeader) -> PackBuilder {
        PackBuilder::new(PackHeader { pack: self.older(header.pack), ..*header })
    }

    /// A name that is older than a pack's, as for what a collection moves: of several copies the oldest counts.
    fn older(&self, pack: PackId) -> PackId {
        let random = u128::from_le_bytes(self.source.repository.environment().random());
        PackId::from_parts(pack.time_ms().saturating_sub(1), random)
    }

    /// The key that frames call by this number, as it is stored.
    async fn sealed_key(
        &self,
        index: u32,
        footer: &PackFooter,
        known: &mut BTreeMap<u32, SealedKey>,
    ) -> Result<SealedKey, Failure> {
        if let Some(key) = known.get(&index) {
            return Ok(key.clone());
        }
        let mut found = footer.keys.iter().find(|key| index_of(&key.id) == index).cloned();
        if found.is_none() {
            let listed = self.source.repository.store.list(names::KEYS).await?;
            let ids = listed.iter().filter_map(|key| key.key.strip_prefix("keys/")?.parse::<KeyId>().ok());
            let named: Vec<KeyId> = ids.filter(|id| index_of(id) == index).collect();
            if let [id] = named[..] {
                found = Some(self.source.repository.sealed_key(&names::key(id)).await?);
            }
        }
        let key =
            found.ok_or_else(|| Failure::damaged(format!("no single data key is called {index:08x}")))?;
        known.insert(index, key.clone());
        Ok(key)
    }

    /// Uploads what was moved out of a pack and reads it back.
    async fn upload(&self, mut builder: PackBuilder, from: PackId) -> Result<(), Failure> {
        let (store, environment) = (&self.source.repository.store, self.source.repository.environment());
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            let key = names::pack(builder.header().pack);
            let (parts, _) = builder.clone().finish();
            let error = match store.put_once(&key, parts.clone()).await {
                Ok(()) => {
                    let found = store.get(&key).await?.unwrap_or_default();
                    return match *found == parts.concat() {
                        true => Ok(()),
                        false => {
                            let why = format!(
                                "the object store took {key} and does not give it back as it was written"
                            );
                            Err(Failure::new(FailureKind::Store, why))
                        }
                    };
                }
                Err(error) => error,
            };
            let again = error.is_transient() || error.kind() == StoreErrorKind::Exists;
            if !again || attempt >= ATTEMPTS {
                return Err(error.into());
            }
            environment.sleep(pause).await;
            pause *= 2;
            builder = builder.renamed(self.older(from));
        }
        unreachable!("the loop returns")
    }

    /// Nobody relies on the pack any more.
    async fn record(&self, pack: PackId) -> Result<(), Failure> {
        let environment = self.source.repository.environment();
        let (found_ms, host) = (environment.now_ms(), self.host.clone());
        let record =
            Damage { version: Damage::VERSION, found_ms, host, packs: vec![pack], chunks: Vec::new() };
        let key = names::damage(environment.damage_id());
        match self.source.repository.store.create(&key, self.source.repository.seal(&key, &record)?).await? {
            Created::Won => Ok(()),
            Created::Lost(_) => Err(Failure::refused(format!("{key} exists already: names must be fresh"))),
        }
    }
}
