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
    /// The store does not give it, though it gives others: nobody knows what it holds.
    Withheld,
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
    /// Packs that the store did not give since [`Self::begin`], and what it said.
    withheld: Mutex<BTreeMap<PackId, String>>,
}

#[derive(Default)]
struct Kept {
    packs: BTreeMap<PackId, Arc<Pack>>,
    entries: usize,
}

impl Footers {
    /// Keeps footers with `max` entries together.
    pub(crate) fn new(repository: Repository, max: usize) -> Self {
        let (damages, kept, whole, withheld) = Default::default();
        Self { repository, damages, kept, max, whole, withheld }
    }

    /// Begins a mark: reads the damage that is recorded by now, and asks anew for what was not given. Fails when any
    /// damage cannot be known: of two copies the damaged one would stay.
    pub(crate) async fn begin(&self) -> Result<(), Failure> {
        let damages = Damages::load_all(&self.repository).await?;
        *self.damages.lock().unwrap_or_else(PoisonError::into_inner) = damages.into();
        self.withheld.lock().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(())
    }

    /// Packs that the store does not give, and what it says.
    pub(crate) fn withheld(&self) -> BTreeMap<PackId, String> {
        self.withheld.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
        // Each try takes as long as the store's patience, and each pass reads all footers.
        if self.withheld.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&pack) {
            return Ok(Found::Withheld);
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
        let head = self.repository.store.head(&names::pack(pack)).await;
        match (head.map_err(Failure::from), failure.kind) {
            (Ok(None), _) => Ok(Found::Gone),
            (Ok(Some(_)), FailureKind::Damaged | FailureKind::Refused) => {
                tracing::warn!(%pack, %failure, "a pack cannot be read; it stays");
                Ok(Found::Unreadable)
            }
            (Ok(Some(_)), FailureKind::Store) => self.not_given(pack, failure).await,
            (Err(head), _) if head.kind == FailureKind::Store => self.not_given(pack, head).await,
            (Ok(Some(_)) | Err(_), _) => Err(failure),
        }
    }

    /// One object must not keep everything else from being collected; nothing is said of it.
    async fn not_given(&self, pack: PackId, failure: Failure) -> Result<Found, Failure> {
        if !self.repository.gives_others().await {
            return Err(failure);
        }
        tracing::warn!(%pack, %failure, "the store does not give a pack, and gives others; it stays");
        self.withheld.lock().unwrap_or_else(PoisonError::into_inner).insert(pack, failure.to_string());
        Ok(Found::Withheld)
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
