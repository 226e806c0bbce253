//! Small objects: each is opened, and what they say of each other must fit.
//!
//! What was deleted behind everybody's back is found where something else still speaks of it: a slot holds a commit or a
//! tombstone for ever, so that a session which stored something and has neither slot nor object has lost its snapshot.

use std::collections::BTreeSet;

use agent::repository::AtSlot;
use agent::{Failure, epochs};
use futures::stream::{self, StreamExt};
use schema::check::Check;
use schema::damage::{Damage, Holes};
use schema::epoch::{Awaited, Epoch, Verdict};
use schema::mark::Mark;
use schema::messages::FailureKind;
use schema::names::{self, Slot};
use schema::root::Forgotten;
use schema::session::Session;
use schema::tombstone::Tombstones;
use schema::{KeyId, Object, SessionId};

use crate::Checker;
use crate::findings::Report;
use crate::given::{Footer, is_damage, is_lost, is_withheld};
use crate::packs::{Named, Packs};

/// Objects that are read at once.
const AT_ONCE: usize = 16;
/// What becomes of a latest collection that cannot be read.
const IS_ENDED: &str = "`lvkeep repair` ends that collection, or says what must be brought back";
/// What becomes of its list of sessions.
const IS_LISTED: &str = "`lvkeep prune` lists the sessions that are waited for anew";

impl Checker {
    /// Opens every small object but roots, and compares them with each other and with the packs.
    pub(crate) async fn small_objects(
        &self,
        packs: &Packs,
        cut_off: &BTreeSet<Slot>,
        report: &mut Report,
    ) -> Result<(), Failure> {
        self.config(report).await?;
        let sessions: BTreeSet<SessionId> =
            self.all(names::SESSIONS, |key| names::parse_session(key).ok(), report).await?;
        let stored = |sessions: &Session, key: &str| names::session(sessions.id) == *key;
        self.open(sessions.iter().map(|id| names::session(*id)), stored, report).await?;
        let slots: BTreeSet<Slot> =
            self.all(names::SNAPSHOTS, |key| Slot::parse_key(key).ok(), report).await?;
        let forgotten: BTreeSet<Slot> =
            self.all(names::FORGOTTEN, |key| Slot::parse_key(key).ok(), report).await?;
        let is_marker = |marker: &Forgotten, key: &str| marker.slot.forgotten() == *key;
        self.open(forgotten.iter().map(Slot::forgotten), is_marker, report).await?;
        lost_snapshots(packs, &sessions, &slots, &forgotten, report);
        self.roots(&slots, &forgotten, cut_off, report).await?;
        self.epochs(report).await?;
        self.keys_of_packs(packs, report).await?;
        let holes: BTreeSet<Slot> = self.all(names::HOLES, |key| Slot::parse_key(key).ok(), report).await?;
        self.open(holes.iter().map(Slot::holes), |holes: &Holes, key| holes.slot.holes() == *key, report)
            .await?;
        let marks: BTreeSet<_> = self.all(names::MARKS, |key| names::parse_mark(key).ok(), report).await?;
        self.open(marks.into_iter().map(|(slot, id)| slot.mark(id)), is_mark_of, report).await?;
        let records: BTreeSet<_> =
            self.all(names::DAMAGE, |key| names::parse_damage(key).ok(), report).await?;
        self.open(records.into_iter().map(names::damage), |_: &Damage, _| true, report).await?;
        let checks: BTreeSet<_> = self.all(names::CHECKS, |key| names::parse_check(key).ok(), report).await?;
        let is_it = |check: &Check, key: &str| names::check(check.job) == *key;
        self.open(checks.into_iter().map(names::check), is_it, report).await
    }

    async fn config(&self, report: &mut Report) -> Result<(), Failure> {
        let key = &self.source.repository.key;
        let opened = agent::Repository::head(&self.source.repository.store).await.and_then(|head| {
            let config = head.open(key)?;
            Ok((config, head.repo))
        });
        match opened {
            Ok((config, repo)) if config == self.source.repository.config && repo == key.repo() => Ok(()),
            Ok(_) => {
                report.object(names::CONFIG, "it is another one than when it was read first");
                Ok(())
            }
            Err(failure) if is_damage(&failure) => {
                report.object(names::CONFIG, failure.to_string());
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    /// What the keys below a folder name; of others it is said that they are strange.
    async fn all<T: Ord>(
        &self,
        folder: &str,
        parse: impl Fn(&str) -> Option<T>,
        report: &mut Report,
    ) -> Result<BTreeSet<T>, Failure> {
        let mut found = BTreeSet::new();
        for listed in self.source.repository.store.list(folder).await? {
            match parse(&listed.key) {
                Some(named) => drop(found.insert(named)),
                None => report.object(listed.key, "no object of a repository has such a name"),
            }
        }
        Ok(found)
    }

    /// Opens objects of one kind.
    async fn open<T: Object + Send>(
        &self,
        keys: impl Iterator<Item = String>,
        fits: impl Fn(&T, &str) -> bool,
        report: &mut Report,
    ) -> Result<(), Failure> {
        let keys: Vec<String> = keys.collect();
        let read = |key: String| async move {
            let read = self.source.given(&key, || self.source.repository.read::<T>(&key)).await;
            (key, read)
        };
        let mut reading = stream::iter(keys).map(read).buffered(AT_ONCE);
        while let Some((key, read)) = reading.next().await {
            self.source.go_on()?;
            match read? {
                Ok(Some(value)) if fits(&value, &key) => {}
                // Gone, or emptied by a repair.
                Ok(None) => {}
                Ok(Some(_)) => report.object(&key, format!("it is the {} of something else", T::WHAT)),
                Err(failure) if is_lost(&failure) => report.object(&key, failure.to_string()),
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    /// A snapshot's parent was once in its slot, and something must be there for ever. Visible snapshots that cannot be
    /// read are told of when their maps are walked.
    async fn roots(
        &self,
        slots: &BTreeSet<Slot>,
        forgotten: &BTreeSet<Slot>,
        cut_off: &BTreeSet<Slot>,
        report: &mut Report,
    ) -> Result<(), Failure> {
        let short = self.tombstones(forgotten, report).await?;
        let all: Vec<Slot> = slots.difference(&short).copied().collect();
        // What is cut off is said of the snapshot.
        let tombstones: BTreeSet<Slot> = short.difference(cut_off).copied().collect();
        let at_slot = |slot: Slot| async move { (slot, self.source.at_slot(slot).await) };
        let mut roots = stream::iter(all).map(at_slot).buffered(AT_ONCE);
        while let Some((slot, root)) = roots.next().await {
            self.source.go_on()?;
            match root? {
                Ok(AtSlot::Snapshot(root)) => {
                    // It was a snapshot once, and becomes a tombstone only when it was forgotten.
                    let is_gone = |parent: &Slot| !slots.contains(parent) || tombstones.contains(parent);
                    let is_forgotten = |parent: &Slot| forgotten.contains(parent);
                    if let Some(parent) =
                        root.parent.filter(|parent| is_gone(parent) && !is_forgotten(parent))
                    {
                        let key = parent.snapshot();
                        if !report.objects.iter().any(|found| found.key == key) {
                            let what = if slots.contains(&parent) { "no snapshot any more" } else { "gone" };
                            report.object(
                                key,
                                format!("it is {what}: the parent of a snapshot of {}", root.volume),
                            );
                        }
                    }
                }
                Ok(_) => {}
                Err(failure) if is_lost(&failure) && forgotten.contains(&slot) => {
                    let then = if is_withheld(&failure) {
                        ""
                    } else {
                        " (`lvkeep prune` sweeps it, unless it is held)"
                    };
                    report.object(slot.snapshot(), format!("{failure}; it is forgotten{then}"));
                }
                // Said of the snapshot.
                Err(failure) if is_lost(&failure) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    /// The slots that are as short as tombstones. Those that are not forgotten are said of their snapshots.
    async fn tombstones(
        &self,
        forgotten: &BTreeSet<Slot>,
        report: &mut Report,
    ) -> Result<BTreeSet<Slot>, Failure> {
        let short = self.source.short_slots().await?;
        if self.source.repository.tombstones == Tombstones::Empty {
            return Ok(short);
        }
        let at_slot = |slot: Slot| async move { (slot, self.source.at_slot(slot).await) };
        let mut reading = stream::iter(short.intersection(forgotten).copied()).map(at_slot).buffered(AT_ONCE);
        while let Some((slot, read)) = reading.next().await {
            self.source.go_on()?;
            match read? {
                Ok(AtSlot::Tombstone | AtSlot::Snapshot(_) | AtSlot::Nothing) => {}
                Err(failure) if failure.kind == FailureKind::Damaged => {
                    let why = format!(
                        "{failure}; it is forgotten (`lvkeep repair` puts a tombstone there, unless it is held)"
                    );
                    report.object(slot.snapshot(), why);
                }
                Err(failure) if is_lost(&failure) => {
                    report.object(slot.snapshot(), format!("{failure}; it is forgotten"));
                }
                Err(failure) => return Err(failure),
            }
        }
        drop(reading);
        Ok(short)
    }

    /// Snapshots that no list shows, because their roots were cut off to the length of a tombstone. What a session left
    /// that was given up, and cannot be read, is among them: nobody knows that it is none.
    pub(crate) async fn cut_off(&self) -> Result<BTreeSet<Slot>, Failure> {
        if self.source.repository.tombstones == Tombstones::Empty {
            return Ok(BTreeSet::new());
        }
        let forgotten = self.source.slots(names::FORGOTTEN, |_| true).await?;
        let short = self.source.short_slots().await?;
        let at_slot = |slot: Slot| async move { (slot, self.source.at_slot(slot).await) };
        let mut reading = stream::iter(short.difference(&forgotten).copied()).map(at_slot).buffered(AT_ONCE);
        let mut cut_off = BTreeSet::new();
        while let Some((slot, read)) = reading.next().await {
            self.source.go_on()?;
            match read? {
                Ok(AtSlot::Tombstone | AtSlot::Nothing) => {}
                Err(failure) if !is_lost(&failure) => return Err(failure),
                Ok(AtSlot::Snapshot(_)) | Err(_) => drop(cut_off.insert(slot)),
            }
        }
        Ok(cut_off)
    }

    async fn epochs(&self, report: &mut Report) -> Result<(), Failure> {
        let listed = self.source.repository.store.list(names::EPOCHS).await?;
        let (empty, keys): (Vec<_>, BTreeSet<String>) = (
            listed.iter().filter(|listed| listed.size == 0).map(|listed| listed.key.clone()).collect(),
            listed.iter().map(|listed| listed.key.clone()).collect(),
        );
        let suffix = |key: &String, suffix: &str| key.ends_with(suffix);
        let (verdicts, rest): (Vec<String>, Vec<String>) =
            keys.iter().cloned().partition(|key| suffix(key, ".verdict"));
        let (awaited, proposed): (Vec<String>, Vec<String>) =
            rest.into_iter().partition(|key| suffix(key, names::AWAITED));
        let last = keys.iter().filter_map(|key| epochs::number_of(key)).max().unwrap_or(0);
        for (key, what_then) in [
            (names::epoch(last), IS_ENDED),
            (names::verdict(last), IS_ENDED),
            (names::awaited(last), IS_LISTED),
        ] {
            if empty.contains(&key) {
                let why = format!("it is empty, as nothing of the latest collection ever is ({what_then})");
                report.object(key, why);
            }
        }
        for number in 1..=last {
            for (key, is_due) in [
                (names::epoch(number), true),
                (names::verdict(number), keys.contains(&names::epoch(number + 1))),
            ] {
                if is_due && !keys.contains(&key) {
                    report.object(key, "it is gone, and a later collection speaks of it");
                }
            }
        }
        let is = |number: u64, key: &str, name: fn(u64) -> String| name(number) == *key;
        self.open(proposed.into_iter(), |epoch: &Epoch, key| is(epoch.number, key, names::epoch), report)
            .await?;
        self.open(verdicts.into_iter(), |one: &Verdict, key| is(one.number, key, names::verdict), report)
            .await?;
        let earlier = awaited.into_iter().filter(|key| *key != names::awaited(last));
        self.open(earlier, |one: &Awaited, key| is(one.number, key, names::awaited), report).await?;
        self.latest_list(last, report).await
    }

    /// The list of the latest collection: a collector makes it anew where it is damaged.
    async fn latest_list(&self, number: u64, report: &mut Report) -> Result<(), Failure> {
        let key = names::awaited(number);
        let why = match self.source.given(&key, || self.source.repository.read::<Awaited>(&key)).await? {
            Ok(Some(list)) if list.number == number => return Ok(()),
            // Gone; that it is empty is said.
            Ok(None) => return Ok(()),
            Ok(Some(_)) => format!("it is the {} of something else ({IS_LISTED})", Awaited::WHAT),
            Err(failure) if failure.kind == FailureKind::Damaged => format!("{failure} ({IS_LISTED})"),
            Err(failure) if is_lost(&failure) => failure.to_string(),
            Err(failure) => return Err(failure),
        };
        report.object(key, why);
        Ok(())
    }

    /// Every data key that a pack names is stored, and opens where there is an identity. One that no pack names seals
    /// nothing that anybody could read; a pack that is being written with it brings its own copy.
    async fn keys_of_packs(&self, packs: &Packs, report: &mut Report) -> Result<(), Failure> {
        let listed: BTreeSet<KeyId> =
            self.all(names::KEYS, |key| key.strip_prefix("keys/")?.parse::<KeyId>().ok(), report).await?;
        for (id, named) in &packs.keys {
            if !listed.contains(id) {
                let why = format!(
                    "it is gone; {} has a copy in its footer (`lvkeep repair` stores it again)",
                    names::pack(named.by)
                );
                report.object(names::key(*id), why);
            }
        }
        for id in listed {
            self.source.go_on()?;
            let key = names::key(id);
            let opens = || self.source.given(&key, || self.source.keys.opens(id));
            // Once more before that is believed.
            let Err(_) = opens().await? else { continue };
            let Err(failure) = opens().await? else { continue };
            match (packs.keys.get(&id), packs.nameless) {
                (Some(named), _) => {
                    let needed = self.needed_for(id, *named, is_withheld(&failure)).await?;
                    report.object(key, format!("{failure}; {needed}"));
                }
                (None, Some(torn)) => {
                    let torn = names::pack(torn);
                    let why = format!(
                        "{failure}; no pack names it, but the footer of {torn} cannot be read, which may name it \
                         (`lvkeep repair` says whether a key is missed there)"
                    );
                    report.object(key, why);
                }
                (None, None) => tracing::info!(
                    key,
                    %failure,
                    "a data key does not open, and no pack names it: nothing is lost by that"
                ),
            }
        }
        Ok(())
    }

    /// What a key that does not open where it is stored is needed for, and where it still may be had.
    async fn needed_for(&self, id: KeyId, named: Named, is_withheld: bool) -> Result<String, Failure> {
        let pack = names::pack(named.by);
        let packs = match named.more {
            0 => format!("{pack} alone names it"),
            more => format!("{pack} and {more} other packs name it"),
        };
        let copy = match self.source.read_footer(named.by).await? {
            Footer::Whole(_, footer) | Footer::Torn(_, footer, _) => {
                footer.keys.into_iter().find(|key| key.id == id)
            }
            Footer::Unreadable(_) | Footer::Withheld(_) | Footer::Gone => None,
        };
        if self.source.keys.check().is_err() {
            return Ok(format!(
                "{packs}; footers have copies, of which only an identity tells whether they open"
            ));
        }
        let is_whole = copy.is_some_and(|copy| self.source.keys.is_whole(&copy));
        let (store, key) = (&self.source.repository.store, names::key(id));
        let size = self.source.given_once(&key, || async { Ok(store.head(&key).await?) }).await?;
        let is_empty = matches!(size, Ok(Some(0)));
        let then = match (is_whole, is_empty) {
            (true, _) if is_withheld => {
                "the copy in that footer opens, so that nothing is lost. `lvkeep repair` leaves what the store does not \
                 give: if it never does again, delete it by hand, and `lvkeep repair` stores it again"
            }
            (true, false) => {
                "the copy in that footer opens, so that nothing is lost (`lvkeep repair` stores it again)"
            }
            (true, true) => {
                "the copy in that footer opens, so that nothing is lost. It was made empty, which `lvkeep repair` leaves: \
                 once it is deleted by hand, `lvkeep repair` stores it again"
            }
            (false, _) => {
                "the copy in that footer does not open either: what it seals can be read only from packs whose own copy \
                 opens (`lvkeep repair` looks for one; `lvkeep check --read-data` says which snapshots and ranges cannot be \
                 read)"
            }
        };
        Ok(format!("{packs}, and {then}"))
    }
}

/// Whether a mark is about the snapshot below which it stands, and within bounds.
fn is_mark_of(mark: &Mark, key: &str) -> bool {
    names::parse_mark(key).is_ok_and(|(slot, id)| mark.clone().check(slot, id).is_ok())
}

/// Sessions that stored something and have neither a slot nor an object, and markers without a slot.
fn lost_snapshots(
    packs: &Packs,
    sessions: &BTreeSet<SessionId>,
    slots: &BTreeSet<Slot>,
    forgotten: &BTreeSet<Slot>,
    report: &mut Report,
) {
    let decided: BTreeSet<SessionId> = slots.iter().map(|slot| slot.session).collect();
    for session in packs.sessions.iter().filter(|id| !decided.contains(id) && !sessions.contains(id)) {
        let key = format!("{}/*/{session}", names::SNAPSHOTS);
        report.object(
            key,
            "it is gone: the session stored something, and has neither a snapshot nor a tombstone",
        );
    }
    for slot in forgotten.difference(slots) {
        report.object(slot.snapshot(), "it is gone: a snapshot that was forgotten leaves a tombstone");
    }
}
