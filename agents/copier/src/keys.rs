//! Data keys as the second repository gets them: those of the first, or one of this process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use agent::{Environment, Failure, Repository};
use schema::keys::{DataKey, FrameKey, Identity, KEY_DATA_FIRST, SealedKey, WriterKey, index_of};
use schema::{KeyId, PackId, names};
use tokio::sync::Mutex;

/// Keys remembered.
const KEPT: usize = 1024;

/// A data key of this process; no key in a plain repository.
pub(crate) struct Content {
    pub frame: FrameKey,
    pub sealed: Option<SealedKey>,
}

impl Content {
    /// A fresh one, sealed to the recipients of the second repository.
    pub fn new(writer: &WriterKey, environment: &dyn Environment) -> Result<Self, Failure> {
        if !writer.encrypted() {
            return Ok(Self { frame: FrameKey::plain(), sealed: None });
        }
        let key = DataKey::new(&environment.random());
        Ok(Self { frame: key.frame_key(), sealed: Some(key.seal(writer)?) })
    }
}

/// The data keys of the first repository, sealed for the second.
pub(crate) struct KeyRing {
    first: Repository,
    writer: WriterKey,
    /// Opens the keys where the second repository has other recipients; none where it has the same.
    opening: Option<Arc<Identity>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    listed: Option<BTreeMap<u32, Vec<KeyId>>>,
    ready: BTreeMap<KeyId, SealedKey>,
    /// Which key a pack means, of several with one index.
    meant: BTreeMap<(u32, PackId), KeyId>,
}

impl KeyRing {
    /// Refuses where keys would have to be sealed to other recipients and nothing opens them.
    pub fn new(
        first: Repository,
        second: &Repository,
        identity: Option<Arc<Identity>>,
    ) -> Result<Self, Failure> {
        let recipients = |key: &WriterKey| key.recipients().iter().cloned().collect::<BTreeSet<_>>();
        let writer = second.key.clone();
        let opening = match (recipients(&first.key) == recipients(&writer), identity) {
            (true, _) => None,
            (false, Some(identity)) => Some(identity),
            (false, None) => {
                let (first, second) = (first.store.location(), second.store.location());
                return Err(Failure::refused(format!(
                    "{first} and {second} have different recipients, so that their data keys must be opened and sealed \
                     anew: give --identity, or make the recipients the same by `lvkeep key add`"
                )));
            }
        };
        Ok(Self { first, writer, opening, state: Mutex::default() })
    }

    /// The key that frames of a pack call `index`; none of what no data key seals.
    pub async fn get(&self, index: u32, pack: PackId) -> Result<Option<SealedKey>, Failure> {
        if index < KEY_DATA_FIRST {
            return Ok(None);
        }
        let mut state = self.state.lock().await;
        let id = match self.listed(&mut state, index).await?.as_slice() {
            [id] => *id,
            // Several keys may have one index, and a pack has one of them.
            _ => self.meant(&mut state, index, pack).await?,
        };
        if let Some(ready) = state.ready.get(&id) {
            return Ok(Some(ready.clone()));
        }
        let ready = self.ready(id, pack).await?;
        if state.ready.len() >= KEPT {
            state.ready.clear();
        }
        state.ready.insert(id, ready.clone());
        Ok(Some(ready))
    }

    async fn listed(&self, state: &mut State, index: u32) -> Result<Vec<KeyId>, Failure> {
        if state.listed.as_ref().is_none_or(|listed| !listed.contains_key(&index)) {
            let mut by_index: BTreeMap<u32, Vec<KeyId>> = BTreeMap::from([(index, Vec::new())]);
            for listed in self.first.store.list(names::KEYS).await? {
                if let Some(id) = listed.key.rsplit('/').next().and_then(|id| id.parse::<KeyId>().ok()) {
                    by_index.entry(index_of(&id)).or_default().push(id);
                }
            }
            state.listed = Some(by_index);
        }
        Ok(state.listed.as_ref().and_then(|listed| listed.get(&index)).cloned().unwrap_or_default())
    }

    async fn meant(&self, state: &mut State, index: u32, pack: PackId) -> Result<KeyId, Failure> {
        if let Some(id) = state.meant.get(&(index, pack)) {
            return Ok(*id);
        }
        let id = self.in_footer(pack, |key| index_of(&key.id) == index).await?.id;
        if state.meant.len() >= KEPT {
            state.meant.clear();
        }
        state.meant.insert((index, pack), id);
        Ok(id)
    }

    async fn in_footer(
        &self,
        pack: PackId,
        which: impl Fn(&SealedKey) -> bool,
    ) -> Result<SealedKey, Failure> {
        let (_, footer) = self.first.read_footer(pack).await?;
        footer.keys.into_iter().find(which).ok_or_else(|| {
            let pack = names::pack(pack);
            Failure::damaged(format!(
                "the data key of a frame is neither below keys/ nor in the footer of {pack}"
            ))
        })
    }

    /// The key as it stands in the first repository, sealed anew where the second has other recipients.
    async fn ready(&self, id: KeyId, pack: PackId) -> Result<SealedKey, Failure> {
        let found = match self.first.sealed_key(&names::key(id)).await {
            Ok(found) => found,
            Err(failure) if failure.retry => return Err(failure),
            Err(_) => self.in_footer(pack, |key| key.id == id).await?,
        };
        match &self.opening {
            Some(identity) => {
                let opened = DataKey::unseal(self.first.key.family(), &found, identity);
                Ok(opened.map_err(|e| Failure::from(e).context(names::key(id)))?.seal(&self.writer)?)
            }
            None => Ok(SealedKey { generation: self.writer.generation(), ..found }),
        }
    }
}
