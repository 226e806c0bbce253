//! Data keys, opened when a frame first needs one and kept open while the process reads content.
//!
//! A frame names its key by four bytes; two keys may share them, so that a name leads to all keys that have it. Keys
//! come from `keys/`, and from the pack's own footer when they are missing or damaged there.

use std::collections::BTreeMap;
use std::sync::Arc;

use schema::keys::{DataKey, FrameKey, Identity, KEY_PLAIN, SealedKey, index_of};
use schema::messages::FailureKind;
use schema::{KeyId, PackId, names};
use tokio::sync::Mutex;

use crate::{Failure, Repository};

/// Packs whose footers were asked for a key, at most.
const OF_PACKS_MAX: usize = 1 << 14;
/// Keys that are missing or do not open, kept so that a damaged repository is not asked for them again and again.
const FAILED_MAX: usize = 1024;

/// The data keys of a repository.
pub struct DataKeys {
    repository: Repository,
    identity: Option<Arc<Identity>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    listed: Option<BTreeMap<u32, Vec<KeyId>>>,
    open: BTreeMap<u32, Arc<[FrameKey]>>,
    /// Where a key below `keys/` does not open that a pack's footer may have.
    of_packs: BTreeMap<(u32, PackId), Arc<[FrameKey]>>,
    failed: BTreeMap<(u32, PackId), Failure>,
}

/// The keys that a name was found to lead to.
struct Found {
    keys: Vec<FrameKey>,
    /// Whether they are the same for every pack.
    is_all: bool,
}

/// Why keys did not open: the first reason, unless the store was at fault. It may have the one that opens.
#[derive(Default)]
struct Trouble(Option<Failure>);

impl Trouble {
    fn add(&mut self, failure: Failure) {
        let is_of_store = |failure: &Failure| failure.kind == FailureKind::Store;
        match &self.0 {
            Some(first) if is_of_store(first) || !is_of_store(&failure) => {}
            _ => self.0 = Some(failure),
        }
    }
}

impl DataKeys {
    /// No key is opened yet.
    pub fn new(repository: Repository, identity: Option<Arc<Identity>>) -> Self {
        Self { repository, identity, state: Mutex::default() }
    }

    /// Refuses when content is encrypted and there is nothing to open it with.
    pub fn check(&self) -> Result<(), Failure> {
        self.identity().map(drop)
    }

    /// Refuses an identity of somebody else, for whom every key would look damaged.
    pub async fn fits(&self) -> Result<(), Failure> {
        match (&self.identity, self.repository.key.encrypted()) {
            (Some(identity), true) => {
                let head = Repository::head(&self.repository.store).await?;
                head.writer_key(Some(identity)).map(drop).map_err(|e| Failure::from(e).context(names::CONFIG))
            }
            _ => Ok(()),
        }
    }

    fn identity(&self) -> Result<Option<&Identity>, Failure> {
        match (self.repository.key.encrypted(), &self.identity) {
            (false, _) => Ok(None),
            (true, Some(identity)) => Ok(Some(identity)),
            (true, None) => Err(Failure::refused("this repository is encrypted: give --identity")),
        }
    }

    /// Whether a stored key opens. Without an identity, whether it is there.
    pub async fn opens(&self, id: KeyId) -> Result<(), Failure> {
        let sealed = self.repository.sealed_key(&names::key(id)).await?;
        match &self.identity {
            Some(identity) => self.unseal(&sealed, identity).map(drop),
            None => Ok(()),
        }
    }

    /// Whether this copy of a key opens.
    pub fn is_whole(&self, copy: &SealedKey) -> bool {
        self.identity.as_ref().is_some_and(|identity| self.unseal(copy, identity).is_ok())
    }

    /// Whether what is stored of a key cannot be opened, and is the same when it is read again. What is empty was made so.
    pub async fn is_lost(&self, id: KeyId) -> Result<bool, Failure> {
        let mut seen = None;
        for _ in 0..2 {
            let stored = self.repository.store.get(&names::key(id)).await?.unwrap_or_default();
            let key =
                SealedKey { id, sealed: stored.clone(), generation: self.repository.config.key_generation };
            if stored.is_empty() || self.is_whole(&key) || seen.is_some_and(|seen| seen != stored) {
                return Ok(false);
            }
            seen = Some(stored);
        }
        Ok(true)
    }

    /// The keys that frames of `pack` call `index`: one, or rarely several.
    pub async fn get(&self, index: u32, pack: PackId) -> Result<Arc<[FrameKey]>, Failure> {
        let mut state = self.state.lock().await;
        if let Some(open) = state.open.get(&index) {
            return Ok(open.clone());
        }
        if let Some(open) = state.of_packs.get(&(index, pack)) {
            return Ok(open.clone());
        }
        if let Some(failed) = state.failed.get(&(index, pack)) {
            return Err(failed.clone());
        }
        let found = match self.identity()? {
            Some(_) if index == KEY_PLAIN => {
                Err(Failure::damaged("it is not encrypted, and the repository is"))
            }
            None if index == KEY_PLAIN => Ok(Found { keys: vec![FrameKey::plain()], is_all: true }),
            None => Err(Failure::damaged(format!(
                "it is sealed with key {index:08x}, and the repository is plain"
            ))),
            Some(identity) => self.find(&mut state, identity, index, pack).await,
        };
        match found {
            Ok(Found { keys, is_all }) => {
                let keys: Arc<[FrameKey]> = keys.into();
                if is_all {
                    state.open.insert(index, keys.clone());
                } else if state.of_packs.len() < OF_PACKS_MAX {
                    state.of_packs.insert((index, pack), keys.clone());
                }
                Ok(keys)
            }
            Err(failure) => {
                if state.failed.len() < FAILED_MAX && failure.kind != FailureKind::Store {
                    state.failed.insert((index, pack), failure.clone());
                }
                Err(failure)
            }
        }
    }

    async fn find(
        &self,
        state: &mut State,
        identity: &Identity,
        index: u32,
        pack: PackId,
    ) -> Result<Found, Failure> {
        let mut trouble = Trouble::default();
        let mut keys = Vec::new();
        let listed = self.listed(state, index).await.unwrap_or_else(|failure| {
            tracing::warn!(%failure, "cannot list data keys; taking them from the packs' footers");
            trouble.add(failure.context("listing data keys"));
            Vec::new()
        });
        for id in listed {
            match self
                .repository
                .sealed_key(&names::key(id))
                .await
                .and_then(|key| self.unseal(&key, identity))
            {
                Ok(key) => keys.push(key.frame_key()),
                Err(failure) => trouble.add(failure.context(names::key(id))),
            }
        }
        // A key that does not open may have shared its name with one that does.
        let is_all = !keys.is_empty() && trouble.0.is_none();
        if !is_all {
            match self.repository.read_footer(pack).await {
                Ok((_, footer)) => {
                    for key in footer.keys.iter().filter(|key| index_of(&key.id) == index) {
                        match self.unseal(key, identity) {
                            Ok(key) => keys.push(key.frame_key()),
                            Err(failure) => trouble.add(failure.context(format!(
                                "key {} in {}",
                                key.id,
                                names::pack(pack)
                            ))),
                        }
                    }
                }
                Err(failure) => trouble.add(failure.context("the footer, which holds its data key")),
            }
        }
        let missing = || {
            Failure::damaged(format!(
                "its data key {index:08x} is neither below keys/ nor in the footer of {}",
                names::pack(pack)
            ))
        };
        match keys.is_empty() {
            true => Err(trouble.0.unwrap_or_else(missing)),
            false => Ok(Found { keys, is_all }),
        }
    }

    fn unseal(&self, key: &SealedKey, identity: &Identity) -> Result<DataKey, Failure> {
        Ok(DataKey::unseal(self.repository.key.family(), key, identity)?)
    }

    /// The ids of keys with this index, from one listing. Without a listing, footers still hold every key.
    async fn listed(&self, state: &mut State, index: u32) -> Result<Vec<KeyId>, Failure> {
        if state.listed.is_none() {
            let listed = self.repository.store.list(names::KEYS).await?;
            let mut by_index: BTreeMap<u32, Vec<KeyId>> = BTreeMap::new();
            let ids = listed.iter().filter_map(|l| l.key.rsplit('/').next()?.parse::<KeyId>().ok());
            ids.for_each(|id| by_index.entry(index_of(&id)).or_default().push(id));
            state.listed = Some(by_index);
        }
        Ok(state.listed.as_ref().and_then(|listed| listed.get(&index)).cloned().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_store_did_not_give_is_not_said_to_be_damaged() {
        let store = || Failure::new(FailureKind::Store, "no answer");
        let mut trouble = Trouble::default();
        trouble.add(Failure::damaged("first"));
        trouble.add(Failure::damaged("second"));
        assert_eq!(trouble.0.as_ref().map(|failure| &*failure.why), Some("first"));
        trouble.add(store());
        trouble.add(Failure::damaged("third"));
        assert_eq!(trouble.0.map(|failure| failure.kind), Some(FailureKind::Store));
    }
}
