//! What was written and deleted, and what follows from it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use agent::Repository;
use bytes::Bytes;
use schema::epoch::{Epoch, Verdict};
use schema::keys::{Identity, WriterKey};
use schema::names::{self, Slot};
use schema::root::Root;
use schema::session::{Session, SessionKind};
use schema::tombstone::{Tombstone, Tombstones};
use schema::{ChunkId, JobId, Object, PackId, SessionId};

use super::super::counts::Counts;
use super::super::sources::Sources;
use super::contents::{Maps, compare};
use super::frames::Frames;
use super::{Kind, Tally};

/// A snapshot that was committed.
#[derive(Debug)]
struct Committed {
    root: Root,
    /// What must not get lost; nothing once a verdict has decided that it goes.
    needs: BTreeSet<ChunkId>,
    is_tombstone: bool,
}

#[derive(Debug)]
pub(super) struct Book {
    key: WriterKey,
    tombstones: Tombstones,
    sources: Vec<Arc<Sources>>,
    frames: Frames,
    maps: Maps,
    /// Every pack that was ever written; what it holds while it is listed.
    packs: BTreeMap<PackId, Option<Vec<ChunkId>>>,
    copies: Tally,
    needed: Tally,
    commits: BTreeMap<Slot, Committed>,
    forgotten: BTreeSet<Slot>,
    sessions: BTreeMap<SessionId, (SessionKind, JobId)>,
    /// Sessions whose slots were taken by a tombstone, and how old each was, in milliseconds.
    taken: BTreeMap<SessionId, u64>,
    ended: BTreeSet<SessionId>,
    epochs: BTreeMap<u64, Epoch>,
    verdicts: BTreeMap<u64, Verdict>,
    /// What stays as it was written first; the config was before the ledger began.
    fixed: BTreeMap<String, Bytes>,
    pub counts: Counts,
}

impl Book {
    pub fn new(repository: &Repository, identity: Option<Arc<Identity>>, sources: Vec<Arc<Sources>>) -> Self {
        let (key, tombstones) = (repository.key.clone(), repository.tombstones);
        let (packs, copies, needed, commits, forgotten) = Default::default();
        let (sessions, taken, ended, epochs, verdicts, fixed) = Default::default();
        let (frames, maps) = (Frames::new(key.clone(), identity), Maps::default());
        let counts = Counts::default();
        Self {
            key,
            tombstones,
            sources,
            frames,
            maps,
            packs,
            copies,
            needed,
            commits,
            forgotten,
            sessions,
            taken,
            ended,
            epochs,
            verdicts,
            fixed,
            counts,
        }
    }

    pub fn written(&mut self, key: &str, bytes: &Bytes, now_ms: u64) -> Result<(), String> {
        let open = |what: schema::FormatError| format!("{key} was written and cannot be read: {what}");
        match Kind::of(key) {
            Kind::Pack(pack) => self.pack(pack, bytes),
            Kind::Root(slot) if self.is_tombstone(key, bytes) => {
                self.tombstone(slot, now_ms);
                Ok(())
            }
            Kind::Root(slot) if self.commits.contains_key(&slot) => Ok(()),
            Kind::Root(slot) => {
                let root = Root::open(bytes, &self.key, key).and_then(|root| root.check(slot));
                self.commit(slot, root.map_err(open)?)
            }
            Kind::Session(id) => {
                let session = Session::open(bytes, &self.key, key).map_err(open)?;
                self.session(id, session.kind, session.job);
                Ok(())
            }
            Kind::Epoch(number) if !bytes.is_empty() => {
                let epoch = Epoch::open(bytes, &self.key, key).map_err(open)?;
                self.epoch(number, epoch)
            }
            Kind::Verdict(number) if !bytes.is_empty() => {
                let verdict = Verdict::open(bytes, &self.key, key).map_err(open)?;
                self.verdict(number, verdict)
            }
            Kind::Forgotten(slot) if !bytes.is_empty() => {
                self.forgotten.insert(slot);
                Ok(())
            }
            Kind::Epoch(number) | Kind::Verdict(number) if self.is_finished(number) => Ok(()),
            Kind::Epoch(_) | Kind::Verdict(_) | Kind::Forgotten(_) => {
                Err(format!("one-winner: {key} was emptied, and still counts"))
            }
            Kind::Fixed => self.fixed(key, bytes),
            Kind::Other => Ok(()),
        }
    }

    pub fn is_tombstone(&self, key: &str, bytes: &Bytes) -> bool {
        match self.tombstones {
            Tombstones::Empty => bytes.is_empty(),
            Tombstones::Sealed => Tombstone::open(bytes, &self.key, key).is_ok(),
        }
    }

    pub fn deleted(&mut self, key: &str) -> Result<(), String> {
        match Kind::of(key) {
            Kind::Pack(pack) => self.pack_deleted(pack),
            Kind::Session(id) => {
                self.ended.insert(id);
                Ok(())
            }
            Kind::Root(_) | Kind::Forgotten(_) | Kind::Epoch(_) | Kind::Verdict(_) | Kind::Fixed => {
                Err(format!("one-winner: {key} was deleted, and its name is taken for ever"))
            }
            Kind::Other => Ok(()),
        }
    }

    /// Without the config and the keys nothing can be read; whom an epoch waits for is decided once.
    fn fixed(&mut self, key: &str, bytes: &Bytes) -> Result<(), String> {
        let first = self.fixed.entry(key.to_owned()).or_insert_with(|| bytes.clone());
        match first == bytes && key != names::CONFIG {
            true => Ok(()),
            false => Err(format!("one-winner: {key} was written again")),
        }
    }

    /// `sealed-is-readable` begins here: every frame of a pack opens, and is what it says.
    fn pack(&mut self, pack: PackId, bytes: &Bytes) -> Result<(), String> {
        if self.packs.contains_key(&pack) {
            return Err(format!("one-winner: pack {pack} was written twice"));
        }
        let chunks = self.frames.open_pack(bytes, |chunk, plain| self.maps.keep(chunk, plain));
        let chunks = chunks.map_err(|why| format!("sealed-is-readable: pack {pack}: {why}"))?;
        chunks.iter().for_each(|chunk| self.copies.add(*chunk));
        self.packs.insert(pack, Some(chunks));
        self.counts.add("packs written", 1);
        Ok(())
    }

    fn pack_deleted(&mut self, pack: PackId) -> Result<(), String> {
        if !self.verdicts.values().any(|verdict| verdict.delete.contains(&pack)) {
            return Err(format!("never-collect-live: pack {pack} was deleted, and no verdict says so"));
        }
        // Deleted again, as anybody may.
        let Some(chunks) = self.packs.get_mut(&pack).and_then(Option::take) else { return Ok(()) };
        self.counts.add("packs deleted", 1);
        for chunk in chunks {
            if self.copies.remove(&chunk) && self.needed.has(&chunk) {
                let whose = self.commits.values().find(|commit| commit.needs.contains(&chunk));
                let whose = whose.map(|commit| commit.root.slot.to_string()).unwrap_or_default();
                return Err(format!(
                    "never-collect-live: pack {pack} held the last copy of {chunk}, of {whose}"
                ));
            }
        }
        Ok(())
    }

    fn commit(&mut self, slot: Slot, root: Root) -> Result<(), String> {
        let mut needs = BTreeSet::new();
        let judged = self.maps.walk(&root, &mut needs).and_then(|leaves| {
            match needs.iter().find(|chunk| !self.copies.has(chunk)) {
                Some(missing) => {
                    Err(format!("sealed-is-readable: {slot} needs {missing}, which is in no pack"))
                }
                None => compare(&root, &leaves, &self.sources, self.key.chunk_ids()),
            }
        });
        needs.iter().for_each(|chunk| self.needed.add(*chunk));
        self.counts.add("snapshots committed", 1);
        self.commits.insert(slot, Committed { root, needs, is_tombstone: false });
        judged
    }

    fn tombstone(&mut self, slot: Slot, now_ms: u64) {
        match self.commits.get_mut(&slot) {
            Some(commit) => {
                let was_swept = std::mem::replace(&mut commit.is_tombstone, true);
                self.counts.add("snapshots swept", u64::from(!was_swept));
            }
            None => {
                let age = now_ms.saturating_sub(slot.session.time_ms());
                self.taken.entry(slot.session).or_insert(age);
            }
        }
    }

    fn session(&mut self, id: SessionId, kind: SessionKind, job: JobId) {
        if self.sessions.insert(id, (kind, job)).is_none() {
            self.counts.add("sessions", 1);
            self.counts.add(
                match kind {
                    SessionKind::Backup => "sessions that back up",
                    SessionKind::Copy => "sessions that copy",
                    SessionKind::Unforget => "sessions that unforget",
                    SessionKind::Undo => "sessions that keep what is overwritten",
                    SessionKind::Restore => "sessions that restore",
                },
                1,
            );
        }
    }

    /// At most one epoch is unfinished, and none sweeps what nobody forgot.
    fn epoch(&mut self, number: u64, epoch: Epoch) -> Result<(), String> {
        let latest = self.epochs.keys().next_back().copied().unwrap_or(0);
        if number == latest + 1 {
            let is_over = latest == 0 || self.is_finished(latest);
            let unforgotten = epoch.forgotten.iter().find(|slot| !self.forgotten.contains(slot)).copied();
            self.epochs.insert(number, epoch);
            self.counts.add("collections", 1);
            if let Some(slot) = unforgotten {
                return Err(format!("never-collect-live: epoch {number} sweeps {slot}, which nobody forgot"));
            }
            return match is_over {
                true => Ok(()),
                false => {
                    Err(format!("never-collect-live: epoch {number} began before {latest} was finished"))
                }
            };
        }
        match self.epochs.get(&number) {
            Some(known) if *known == epoch => Ok(()),
            _ => Err(format!("one-winner: epoch {number} was written, and {latest} is the latest")),
        }
    }

    fn is_finished(&self, number: u64) -> bool {
        let (Some(epoch), Some(verdict)) = (self.epochs.get(&number), self.verdicts.get(&number)) else {
            return false;
        };
        let is_gone = |pack: &PackId| self.packs.get(pack).is_none_or(Option::is_none);
        let is_tombstone = |slot: &Slot| self.commits.get(slot).is_none_or(|commit| commit.is_tombstone);
        verdict.delete.iter().all(is_gone) && epoch.forgotten.iter().all(is_tombstone)
    }

    /// Nothing protects what an epoch sweeps any more.
    fn verdict(&mut self, number: u64, verdict: Verdict) -> Result<(), String> {
        if let Some(known) = self.verdicts.get(&number) {
            return match *known == verdict {
                true => Ok(()),
                false => Err(format!("one-winner: the verdict of epoch {number} was written twice")),
            };
        }
        let Some(epoch) = self.epochs.get(&number) else {
            return Err(format!(
                "never-collect-live: there is a verdict of epoch {number}, which nobody began"
            ));
        };
        let condemned: BTreeSet<&PackId> = epoch.condemned.iter().collect();
        let strays = verdict.delete.iter().filter(|pack| !condemned.contains(pack)).count();
        for slot in &epoch.forgotten {
            let Some(commit) = self.commits.get_mut(slot) else { continue };
            for chunk in std::mem::take(&mut commit.needs) {
                self.needed.remove(&chunk);
            }
        }
        self.counts.add("verdicts", 1);
        self.counts.add("packs condemned", epoch.condemned.len() as u64);
        self.verdicts.insert(number, verdict);
        match strays {
            0 => Ok(()),
            _ => Err(format!("never-collect-live: the verdict of {number} deletes what was not condemned")),
        }
    }

    pub fn is_swept(&self, slot: Slot) -> bool {
        self.verdicts.keys().any(|number| self.epochs[number].forgotten.contains(&slot))
    }

    pub fn is_proposed(&self, slot: Slot) -> bool {
        self.epochs.values().any(|epoch| epoch.forgotten.contains(&slot))
    }

    pub fn commits(&self) -> Vec<Root> {
        self.commits.values().map(|commit| commit.root.clone()).collect()
    }

    pub fn is_forgotten(&self, slot: Slot) -> bool {
        self.forgotten.contains(&slot)
    }

    pub fn kind(&self, session: SessionId) -> Option<SessionKind> {
        self.sessions.get(&session).map(|(kind, _)| *kind)
    }

    pub fn was_old(&self, job: JobId, age: Duration) -> bool {
        let of_job = |session: &SessionId| self.sessions.get(session).is_some_and(|(_, of)| *of == job);
        let is_old = |ms: u64| Duration::from_millis(ms) >= age;
        self.taken.iter().any(|(session, ms)| of_job(session) && is_old(*ms))
    }

    pub fn has_ended(&self, session: SessionId) -> bool {
        self.ended.contains(&session)
    }

    pub fn has_copy(&self, chunk: &ChunkId) -> bool {
        self.copies.has(chunk)
    }

    pub fn lost(&self, root: &Root) -> Option<ChunkId> {
        let mut needs = BTreeSet::new();
        // A map that cannot be walked was told when it was committed.
        let _ = self.maps.walk(root, &mut needs);
        needs.into_iter().find(|chunk| !self.copies.has(chunk))
    }

    pub fn check_frame(&mut self, chunk: &ChunkId, frame: &[u8]) -> Result<(), String> {
        self.frames.open(chunk, frame).map(drop)
    }

    pub fn garbage(&self) -> Vec<PackId> {
        self.packs_that(|is_needed| !is_needed)
    }

    pub fn needed(&self) -> Vec<PackId> {
        self.packs_that(|is_needed| is_needed)
    }

    fn packs_that(&self, fits: impl Fn(bool) -> bool) -> Vec<PackId> {
        let listed = self.packs.iter().filter_map(|(pack, chunks)| Some((pack, chunks.as_ref()?)));
        let fit = listed.filter(|(_, chunks)| fits(chunks.iter().any(|chunk| self.needed.has(chunk))));
        fit.map(|(pack, _)| *pack).collect()
    }
}
