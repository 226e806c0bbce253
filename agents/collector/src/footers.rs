//! What packs hold, by their footers; footers are read from the bucket, and some are kept.
//!
//! Packs never change and their names are never used twice, so that a footer that was read once is right as long as its
//! pack is listed. No index is asked: it is a cache, and what is deleted by it could not be brought back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use agent::damage::Damages;
use agent::{Failure, Repository};
use futures::stream::{self, Stream, StreamExt};
use schema::messages::FailureKind;
use schema::pack::{PackFooter, PackHeader};
use schema::{PackId, names};

/// Footers that are read at once.
const AT_ONCE: usize = 16;
/// A pack's header and footer.
#[derive(Debug)]
pub(crate) struct Pack {
    pub(crate) header: PackHeader,
    pub(crate) footer: PackFooter,
}

impl Pack {
    /// Whether the footer is the one that was written. One that was put together from the frames names no session.
    pub(crate) fn is_whole(&self) -> bool {
        !self.footer.sessions.is_empty()
    }
}

/// What reading a footer came to.
#[derive(Debug, Clone)]
pub(crate) enum Found {
    /// The pack.
    Pack(Arc<Pack>),
    /// It exists, and not even its frames can be read.
    Unreadable,
    /// It is not there any more.
    Gone,
}

/// Reads footers.
pub(crate) struct Footers {
    repository: Repository,
    damages: Mutex<Arc<Damages>>,
    kept: Mutex<Kept>,
    /// Entries of the footers that are kept.
    max: usize,
    /// A pack whose footer is torn is read as a whole: one at a time.
    whole: futures::lock::Mutex<()>,
}

#[derive(Default)]
struct Kept {
    packs: BTreeMap<PackId, Arc<Pack>>,
    entries: usize,
}

impl Footers {
    /// Keeps footers with `max` entries together.
    pub(crate) fn new(repository: Repository, max: usize) -> Self {
        let (damages, kept) = Default::default();
        Self { repository, damages, kept, max, whole: Default::default() }
    }

    /// Reads the damage that is recorded by now. Fails when any of it cannot be known: of two copies the damaged one
    /// would stay.
    pub(crate) async fn read_damages(&self) -> Result<(), Failure> {
        let damages = Damages::load_all(&self.repository).await?;
        *self.damages.lock().unwrap_or_else(PoisonError::into_inner) = damages.into();
        Ok(())
    }

    /// The damage that was recorded when it was read last.
    pub(crate) fn damages(&self) -> Arc<Damages> {
        self.damages.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Footers of these packs, in their order.
    pub(crate) fn read<'a>(
        &'a self,
        packs: impl IntoIterator<Item = PackId, IntoIter: Send + 'a>,
    ) -> impl Stream<Item = Result<(PackId, Found), Failure>> + Send + 'a {
        let read = move |pack| async move { Ok((pack, self.one(pack).await?)) };
        stream::iter(packs).map(read).buffered(AT_ONCE)
    }

    /// One footer.
    pub(crate) async fn one(&self, pack: PackId) -> Result<Found, Failure> {
        if let Some(kept) = self.kept.lock().unwrap_or_else(PoisonError::into_inner).packs.get(&pack) {
            return Ok(Found::Pack(kept.clone()));
        }
        let intact = match self.repository.read_intact_footer(pack).await {
            Err(failure) if failure.kind == FailureKind::Damaged => {
                let _one = self.whole.lock().await;
                self.repository.read_footer(pack).await
            }
            intact => intact,
        };
        let failure = match intact {
            Ok((header, footer)) => return Ok(Found::Pack(self.keep(pack, Pack { header, footer }))),
            Err(failure) => failure,
        };
        let exists = self.repository.store.head(&names::pack(pack)).await?.is_some();
        match (exists, failure.kind) {
            (false, _) => Ok(Found::Gone),
            (true, FailureKind::Damaged | FailureKind::Refused) => {
                tracing::warn!(%pack, %failure, "a pack cannot be read; it stays");
                Ok(Found::Unreadable)
            }
            (true, _) => Err(failure),
        }
    }

    fn keep(&self, id: PackId, pack: Pack) -> Arc<Pack> {
        let pack = Arc::new(pack);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // A torn footer is read anew each time: it may have been the reading that was torn.
        if pack.is_whole() && kept.entries + pack.footer.entries.len() <= self.max {
            kept.entries += pack.footer.entries.len();
            kept.packs.insert(id, pack.clone());
        }
        pack
    }
}
