//! Puts anew what says that a snapshot is forgotten or was swept, where that cannot be read: markers, and the tombstones
//! of snapshots that are forgotten. Nobody else ever writes a marker again, and collections go by a tombstone's size.

use std::collections::BTreeSet;

use agent::repository::AtSlot;
use agent::store::StoreErrorKind;
use agent::{Failure, marks};
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use schema::messages::FailureKind;
use schema::names::{self, Slot};
use schema::root::Forgotten;

use crate::given::is_withheld;
use crate::mend::{Mended, Mender};

/// Objects that are read at once.
const AT_ONCE: usize = 16;

impl Mender {
    pub(crate) async fn forgotten(&self, mended: &mut Mended) -> Result<(), Failure> {
        let repository = &self.source.repository;
        let markers = self.source.slots(names::FORGOTTEN, |_| true).await?;
        for slot in self.unreadable(&markers, |slot| self.marker(slot)).await? {
            let (key, time_ms) = (slot.forgotten(), repository.environment().now_ms());
            let marker = Forgotten { slot, time_ms, by: format!("a repair on {}", self.host) };
            self.put_anew(key.clone(), repository.seal(&key, &marker)?, mended).await?;
        }
        // Of a slot that is not forgotten nobody knows whether a snapshot stood there.
        let short = self.source.short_slots().await?.intersection(&markers).copied().collect();
        let unreadable = self.unreadable(&short, |slot| self.tombstone(slot)).await?;
        let marks = marks::among(repository, &unreadable.iter().copied().collect()).await?;
        for slot in unreadable {
            // It may be brought back from elsewhere, where it is held and nothing of it is deleted.
            if let Some(why) = marks.get(&slot).and_then(|marks| marks.why_held()) {
                mended.stays.push((slot.snapshot(), why));
                continue;
            }
            self.put_anew(slot.snapshot(), repository.tombstone(slot)?, mended).await?;
        }
        Ok(())
    }

    /// Those of which a reading fails because of what is there.
    async fn unreadable<F: Future<Output = Result<Result<(), Failure>, Failure>>>(
        &self,
        slots: &BTreeSet<Slot>,
        read: impl Fn(Slot) -> F,
    ) -> Result<Vec<Slot>, Failure> {
        let read = &read;
        let look = |slot: Slot| async move { (slot, read(slot).await) };
        let mut looking = stream::iter(slots.iter().copied()).map(look).buffered(AT_ONCE);
        let mut suspects = Vec::new();
        while let Some((slot, found)) = looking.next().await {
            self.source.go_on()?;
            if is_unreadable(found?)? {
                suspects.push(slot);
            }
        }
        // Once more before that is believed.
        let mut unreadable = Vec::new();
        for slot in suspects {
            if is_unreadable(read(slot).await?)? {
                unreadable.push(slot);
            }
        }
        Ok(unreadable)
    }

    async fn marker(&self, slot: Slot) -> Result<Result<(), Failure>, Failure> {
        let (key, repository) = (slot.forgotten(), &self.source.repository);
        let read = || async {
            match repository.read::<Forgotten>(&key).await? {
                Some(marker) if marker.slot != slot => {
                    Err(Failure::damaged(format!("{key} is the marker of {}", marker.slot)))
                }
                _ => Ok(()),
            }
        };
        self.source.given(&key, read).await
    }

    async fn tombstone(&self, slot: Slot) -> Result<Result<(), Failure>, Failure> {
        Ok(self.source.at_slot(slot).await?.map(drop::<AtSlot>))
    }

    async fn put_anew(&self, key: String, bytes: Bytes, mended: &mut Mended) -> Result<(), Failure> {
        match self.source.repository.store.put(&key, bytes).await {
            Ok(()) => mended.forgotten.push(key),
            Err(error) if error.kind() == StoreErrorKind::Denied => {
                mended.stays.push((key, error.to_string()));
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// Whether what is there is damaged. What a later version wrote is not, and what is not given may be whole.
fn is_unreadable(found: Result<(), Failure>) -> Result<bool, Failure> {
    match found {
        Ok(()) => Ok(false),
        Err(failure) if failure.kind == FailureKind::Damaged => Ok(true),
        Err(failure) if failure.kind == FailureKind::Refused || is_withheld(&failure) => Ok(false),
        Err(failure) => Err(failure),
    }
}
