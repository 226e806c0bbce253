//! Ends collections whose objects cannot be read, which nobody else can.
//!
//! Nobody knows then what a collector that is slow, and has read them before, may still delete or sweep. So what it may
//! delete is emptied first, if something may still need it: whole frames move to new packs, as out of a torn one. After
//! that it may all go. Objects of collections that are over say nothing any more, and are emptied.

use std::collections::{BTreeMap, BTreeSet};

use agent::Failure;
use agent::epochs::{self, Latest, Stored};
use agent::store::Created;
use bytes::Bytes;
use schema::epoch::{Awaited, Epoch, Verdict};
use schema::messages::FailureKind;
use schema::{Object, PackId, SessionId, names};

use crate::given::{Footer, is_withheld};
use crate::mend::{Mended, Mender, Salvaged};

impl Mender {
    /// Without a verdict, and with an epoch that cannot be read, nobody can begin a session. Such a collection deletes
    /// nothing: a verdict says so that nobody can change, and one that came meanwhile holds.
    pub(crate) async fn decide(&self) -> Result<(), Failure> {
        let repository = &self.source.repository;
        let Some(Latest { number, epoch: Err(why), verdict: Stored::Nothing }) = self.latest().await? else {
            return Ok(());
        };
        if why.kind == FailureKind::Refused {
            return Err(why);
        }
        let key = names::verdict(number);
        let nothing = Verdict { number, delete: Vec::new() };
        repository.store.create(&key, repository.seal(&key, &nothing)?).await?;
        Ok(())
    }

    /// Ends what only a repair can end.
    pub(crate) async fn end_collections(
        &self,
        session: SessionId,
        mended: &mut Mended,
    ) -> Result<(), Failure> {
        let Some(Latest { number, epoch, verdict }) = self.latest().await? else { return Ok(()) };
        self.empty_what_is_over(number, mended).await?;
        let (key, packs, why) = match (&epoch, &verdict) {
            (Ok(epoch), Stored::Unreadable(why)) => (names::verdict(number), &epoch.condemned, why),
            (Err(why), Stored::Is(verdict)) => (names::epoch(number), &verdict.delete, why),
            _ => return Ok(()),
        };
        if why.kind == FailureKind::Refused {
            mended.unended.push(format!("{key}: {why}"));
            return Ok(());
        }
        let listed: BTreeSet<PackId> =
            self.source.list_packs().await?.into_iter().map(|(pack, _)| pack).collect();
        // Roots are swept before the first pack goes: what is still forgotten then was not to be swept.
        let is_swept = matches!(verdict, Stored::Is(_)) && packs.iter().any(|pack| !listed.contains(pack));
        let left = packs.iter().filter(|pack| listed.contains(pack)).copied().collect();
        let stay = match is_swept {
            true => BTreeSet::new(),
            false => match self.move_out(left, session, mended).await? {
                Some(stay) => stay,
                None => {
                    mended.unended.push(format!("{key}: {why}"));
                    return Ok(());
                }
            },
        };
        let packs: Vec<PackId> = packs.iter().filter(|pack| !stay.contains(pack)).copied().collect();
        match verdict {
            Stored::Is(_) => {
                self.put(&key, &Epoch { number, forgotten: Vec::new(), condemned: packs }).await?
            }
            _ => self.put(&key, &Verdict { number, delete: packs }).await?,
        }
        mended.collections.push(key);
        Ok(())
    }

    /// The latest collection. What cannot be read is read once more before that is believed.
    async fn latest(&self) -> Result<Option<Latest>, Failure> {
        let repository = &self.source.repository;
        match epochs::latest(repository).await? {
            Some(Latest { epoch: Err(_), .. } | Latest { verdict: Stored::Unreadable(_), .. }) => {
                epochs::latest(repository).await
            }
            found => Ok(found),
        }
    }

    /// Moves what is whole in these packs to new ones. Returns those of which nothing can be had, and none when something
    /// had to stay where it is.
    async fn move_out(
        &self,
        packs: Vec<PackId>,
        session: SessionId,
        mended: &mut Mended,
    ) -> Result<Option<BTreeSet<PackId>>, Failure> {
        let (mut unreadable, mut is_all) = (BTreeSet::new(), true);
        for pack in packs {
            self.source.go_on()?;
            let salvaged = match self.source.read_footer(pack).await? {
                Footer::Whole(header, footer) | Footer::Torn(header, footer, _) => {
                    self.salvage(pack, header, &footer, session).await?
                }
                Footer::Withheld(why) => Salvaged::Stays(format!("it was not looked into: {why}")),
                Footer::Unreadable(_) => {
                    unreadable.insert(pack);
                    continue;
                }
                // It was listed. What only seems to be gone must not be deleted for that.
                Footer::Gone => Salvaged::Gone,
            };
            match salvaged {
                Salvaged::Gone => drop(unreadable.insert(pack)),
                Salvaged::Moved(0) => {}
                Salvaged::Moved(moved) => mended.packs.push((pack, moved)),
                Salvaged::Stays(why) => {
                    mended.unsalvaged.push((pack, why));
                    is_all = false;
                }
            }
        }
        Ok(is_all.then_some(unreadable))
    }

    /// Empties what cannot be read of the collections before this one, and what should be there and is gone.
    async fn empty_what_is_over(&self, before: u64, mended: &mut Mended) -> Result<(), Failure> {
        let listed = self.source.repository.store.list(names::EPOCHS).await?;
        let sizes: BTreeMap<String, u64> =
            listed.into_iter().map(|listed| (listed.key, listed.size)).collect();
        for key in (1..before).flat_map(|number| [names::epoch(number), names::verdict(number)]) {
            if !sizes.contains_key(&key)
                && self.source.repository.store.create(&key, Bytes::new()).await? == Created::Won
            {
                mended.collections.push(key);
            }
        }
        for (key, _) in sizes.into_iter().filter(|(_, size)| *size > 0) {
            if epochs::number_of(&key).is_none_or(|number| number >= before) {
                continue;
            }
            self.source.go_on()?;
            let is_damaged = match key.rsplit_once('.') {
                Some((_, "sessions")) => self.is_damaged::<Awaited>(&key).await?,
                Some(_) => self.is_damaged::<Verdict>(&key).await?,
                None => self.is_damaged::<Epoch>(&key).await?,
            };
            if is_damaged {
                self.source.repository.store.put(&key, Bytes::new()).await?;
                mended.collections.push(key);
            }
        }
        Ok(())
    }

    async fn is_damaged<T: Object + Send>(&self, key: &str) -> Result<bool, Failure> {
        let read = || self.source.repository.read::<T>(key);
        for _ in 0..2 {
            match self.source.given(key, read).await? {
                Err(failure) if failure.kind == FailureKind::Damaged => {}
                Err(failure) if failure.kind != FailureKind::Refused && !is_withheld(&failure) => {
                    return Err(failure);
                }
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    async fn put<T: Object>(&self, key: &str, value: &T) -> Result<(), Failure> {
        let repository = &self.source.repository;
        Ok(repository.store.put(key, repository.seal(key, value)?).await?)
    }
}
