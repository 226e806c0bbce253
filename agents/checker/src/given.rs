//! Reads that one object cannot stop: what the store does not give, though it gives others, is told apart from a store
//! that does not answer.
//!
//! The store has tried several times by itself. Then another object is read, and the one that was not given is asked for
//! once more after a while; so nothing is said of an object that only a bad moment kept back.

use std::collections::BTreeSet;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use agent::Failure;
use agent::repository::AtSlot;
use agent::store::Listed;
use schema::messages::FailureKind;
use schema::names::Slot;
use schema::pack::{PackFooter, PackHeader};
use schema::{PackId, names};

use crate::Source;

/// Pause before an object that the store did not give is asked for again.
const PAUSE: Duration = Duration::from_secs(60);
/// So many in a row that are not given are no single objects. Each counts once: a pack is read in many parts.
const IN_A_ROW_MAX: usize = 64;

/// What is said of an object that is not given, before the reason.
pub(crate) const NOT_GIVEN: &str = "the store does not give it, and gives others";

/// What reading a footer came to.
pub(crate) enum Footer {
    Whole(PackHeader, PackFooter),
    /// Put together from what can be read; why.
    Torn(PackHeader, PackFooter, Failure),
    Unreadable(Failure),
    /// The store does not give it, though it gives other objects.
    Withheld(Failure),
    /// Deleted since the listing.
    Gone,
}

impl Source {
    /// Reads something of the object with this key. Fails when nothing can be known, because the store does not answer.
    /// Inside is what came of it otherwise; a failure [of the store](is_withheld) is about this object alone.
    pub(crate) async fn given<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        key: &str,
        read: impl Fn() -> F,
    ) -> Result<Result<T, Failure>, Failure> {
        match self.given_once(key, &read).await? {
            Err(failure) if is_withheld(&failure) => {
                tracing::warn!(%failure, again_in = ?PAUSE, "an object is asked for once more");
                tokio::select! {
                    () = self.repository.environment().sleep(PAUSE) => {}
                    () = self.stop.raised() => {}
                }
                self.go_on()?;
                self.given_once(key, read).await
            }
            read => Ok(read),
        }
    }

    /// The same of an object that was not given before: it is asked for once.
    pub(crate) async fn given_once<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        key: &str,
        read: impl Fn() -> F,
    ) -> Result<Result<T, Failure>, Failure> {
        let failure = match read().await {
            Err(failure) if is_withheld(&failure) => failure,
            read => {
                self.in_a_row().clear();
                return Ok(read);
            }
        };
        let gives_others = self.repository.gives_others().await;
        let in_a_row = {
            let mut withheld = self.in_a_row();
            withheld.insert(key.to_owned());
            withheld.len()
        };
        match gives_others {
            true if in_a_row < IN_A_ROW_MAX => {
                let why = format!("{NOT_GIVEN}: {failure}");
                Ok(Err(Failure { why, retry: false, ..failure }))
            }
            true => Err(failure.context(format!("{in_a_row} objects in a row"))),
            false => Err(failure),
        }
    }

    fn in_a_row(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.withheld.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a footer, and what can be had of it where it is damaged: one pack at a time as a whole. Fails, too, where a
    /// later version of lvkeep has written the pack.
    pub(crate) async fn read_footer(&self, pack: PackId) -> Result<Footer, Failure> {
        match self.given(&names::pack(pack), || self.footer_of(pack)).await? {
            Err(failure) if is_withheld(&failure) => Ok(Footer::Withheld(failure)),
            read => read,
        }
    }

    /// What stands at a slot that was listed; nothing stands there only while the store does not give it.
    pub(crate) async fn at_slot(&self, slot: Slot) -> Result<Result<AtSlot, Failure>, Failure> {
        let read = || async {
            match self.repository.at_slot(slot).await? {
                AtSlot::Nothing => Err(agent::roots::not_there(slot)),
                found => Ok(found),
            }
        };
        self.given(&slot.snapshot(), read).await
    }

    /// The slots that a listing shows with such a size.
    pub(crate) async fn slots(
        &self,
        folder: &str,
        is_it: impl Fn(u64) -> bool + Send + Sync,
    ) -> Result<BTreeSet<Slot>, Failure> {
        let slot = |listed: Listed| if is_it(listed.size) { Slot::parse_key(&listed.key).ok() } else { None };
        Ok(self.repository.store.list_as(folder, slot).await?.into_iter().collect())
    }

    /// Those that are as short as tombstones.
    pub(crate) async fn short_slots(&self) -> Result<BTreeSet<Slot>, Failure> {
        self.slots(names::SNAPSHOTS, |size| self.repository.is_as_short(size)).await
    }

    async fn footer_of(&self, pack: PackId) -> Result<Footer, Failure> {
        let mut why = match self.repository.read_intact_footer(pack).await {
            Ok((header, footer)) => return Ok(Footer::Whole(header, footer)),
            Err(failure) => failure,
        };
        if self.repository.store.head(&names::pack(pack)).await?.is_none() {
            return Ok(Footer::Gone);
        }
        if is_damage(&why) {
            why = match self.repository.read_intact_footer(pack).await {
                Ok((header, footer)) => {
                    tracing::warn!(%pack, %why, "a footer was damaged when it was read first");
                    return Ok(Footer::Whole(header, footer));
                }
                Err(failure) => failure,
            };
        }
        if !is_damage(&why) {
            return Err(why);
        }
        if why.kind == FailureKind::Refused && self.repository.is_later_pack(pack).await? {
            return Err(later(&names::pack(pack), why));
        }
        let _one = self.whole.lock().await;
        match self.repository.read_footer(pack).await {
            Ok((header, footer)) if !footer.entries.is_empty() => Ok(Footer::Torn(header, footer, why)),
            Ok(_) => Ok(Footer::Unreadable(why)),
            Err(failure) if is_damage(&failure) => Ok(Footer::Unreadable(why)),
            Err(failure) => Err(failure),
        }
    }
}

/// Whether it says that something stored is not what it should be.
pub(crate) fn is_damage(failure: &Failure) -> bool {
    !failure.retry && matches!(failure.kind, FailureKind::Damaged | FailureKind::Refused)
}

/// Whether the store did not give what was asked for.
pub(crate) fn is_withheld(failure: &Failure) -> bool {
    failure.kind == FailureKind::Store
}

/// Whether an object cannot be read, and others can, of a reading that was [given](Source::given).
pub(crate) fn is_lost(failure: &Failure) -> bool {
    is_damage(failure) || is_withheld(failure)
}

/// What a later version wrote is not damaged, and nothing can be said of it.
pub(crate) fn later(what: &str, why: impl std::fmt::Display) -> Failure {
    Failure::refused(format!(
        "{what} was written by a later version of lvkeep, and this one cannot check it: {why}"
    ))
}
