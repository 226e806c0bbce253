//! Sessions: what makes a writer or a reader of the bucket safe beside a collector, without locks or clocks.
//!
//! The order is the protocol: (1) create the session object and wait for the answer; (2) only then read the latest
//! epoch; (3) only then look at packs and parents; (4) commit at the slot by create-if-absent; (5) delete the session
//! object, last, and only after a definite answer from the slot. Nothing is read again at commit.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::try_join_all;
use schema::messages::{FailureKind, JobOutcome};
use schema::names::{self, Slot};
use schema::root::Root;
use schema::session::{Checkpoint, Session, SessionKind};
use schema::{ChunkId, JobId, PackId, SessionId};
use tokio::sync::Mutex;

use crate::damage::Damages;
use crate::epochs::Condemned;
use crate::repository::{AtSlot, Repository, can_be_pack};
use crate::roots::{Roots, not_there};
use crate::store::Created;
use crate::{Environment, Failure, Stop, epochs};

/// Snapshots that are looked at at once.
const AT_ONCE: usize = 16;

/// How often it is tried to end a session while the store gives other objects, and the pause between two tries.
const ENDING_TRIES: u32 = 5;
const ENDING_PAUSE: Duration = Duration::from_secs(1);

/// How long a store may take for its answer once this process is to stop.
const ENDING_HURRY: Duration = Duration::from_secs(10);

/// How long a command that is done waits for a store that gives nothing at all, to end its session.
pub const ENDING_PATIENCE: Duration = Duration::from_secs(300);

/// An open session: its object exists, and its epoch was read after that.
#[derive(Debug)]
pub struct OpenSession {
    repository: Repository,
    session: Session,
    condemned: Condemned,
    damages: Damages,
    packs: Mutex<Packs>,
}

/// Packs that were seen to exist, or not to, since the session began.
#[derive(Debug, Default)]
struct Packs {
    seen: BTreeSet<PackId>,
    missing: BTreeSet<PackId>,
}

/// How a commit ended; each is definite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// The snapshot exists.
    Won,
    /// A tombstone stands in the slot: the session was revoked or cancelled.
    Revoked,
}

impl OpenSession {
    /// Steps 1 to 3: creates the session object, reads the latest epoch, lists the packs. Where that fails, whoever begins
    /// again for the same job ends what is left.
    pub async fn begin(repository: Repository, session: Session) -> Result<Self, Failure> {
        create(&repository, &session).await?;
        match look(&repository).await {
            Ok(seen) => Ok(Self::seen(repository, session, seen)),
            Err(failure) => {
                // Nobody will drive this session, and a collector would wait for it.
                let Err(why) = revoke(&repository, &session).await else { return Err(failure) };
                tracing::warn!(session = %session.id, %why, "a session that could not begin is not over yet");
                Err(Failure { retry: failure.retry || why.retry, ..failure })
            }
        }
    }

    /// The same for what nobody begins again, so that what is left is ended here.
    pub async fn begin_alone(repository: Repository, session: Session, stop: &Stop) -> Result<Self, Failure> {
        let (failure, patience) = match create(&repository, &session).await {
            Ok(()) => match look(&repository).await {
                Ok(seen) => return Ok(Self::seen(repository, session, seen)),
                Err(failure) => (failure, ENDING_PATIENCE),
            },
            // What was sent and not answered may be there all the same.
            Err(failure) if failure.retry => (failure, Duration::ZERO),
            Err(failure) => return Err(failure),
        };
        let Err(why) = dismiss(&repository, &session, stop, patience).await else { return Err(failure) };
        let retry = failure.retry || why.retry;
        Err(Failure { retry, ..left_open(session.id, failure, &why) })
    }

    fn seen(repository: Repository, session: Session, seen: Seen) -> Self {
        let Seen { condemned, damages, packs: seen } = seen;
        let packs = Mutex::new(Packs { seen, missing: BTreeSet::new() });
        Self { repository, session, condemned, damages, packs }
    }

    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The slot; a session that commits has one.
    pub fn slot(&self) -> Result<Slot, Failure> {
        self.session.slot.ok_or_else(|| Failure::refused("a restore commits nothing"))
    }

    /// Whether a copy in this pack counts: the pack was seen to exist since step 1, and the epoch of step 2 does not
    /// condemn it. A pack that the listing lacks is asked for by name.
    pub async fn counts(&self, pack: PackId) -> Result<bool, Failure> {
        if self.condemned.packs.contains(&pack) {
            return Ok(false);
        }
        {
            let packs = self.packs.lock().await;
            if packs.seen.contains(&pack) {
                return Ok(true);
            }
            if packs.missing.contains(&pack) {
                return Ok(false);
            }
        }
        let exists = self.repository.store.head(&names::pack(pack)).await?.is_some_and(can_be_pack);
        let mut packs = self.packs.lock().await;
        match exists {
            true => packs.seen.insert(pack),
            // Pack names are never used twice and packs never come back.
            false => packs.missing.insert(pack),
        };
        Ok(exists)
    }

    /// Whether the epoch of step 2 sweeps this snapshot, as far as is known.
    pub fn sweeps(&self, slot: Slot) -> bool {
        self.condemned.swept.as_ref().is_none_or(|swept| swept.contains(&slot))
    }

    /// Whether it could be read in step 2 what is swept.
    pub fn knows_what_is_swept(&self) -> bool {
        self.condemned.swept.is_some()
    }

    /// Whether the copy of a chunk in a pack counts: the pack does, and no damage of this copy was recorded when the
    /// session began.
    pub async fn counts_for(&self, id: &ChunkId, pack: PackId) -> Result<bool, Failure> {
        Ok(!self.damages.has(id, &pack) && self.counts(pack).await?)
    }

    /// The damage that was recorded when the session began.
    pub fn damages(&self) -> &Damages {
        &self.damages
    }

    /// A pack that this process itself has just uploaded, or that was announced after it was durable, may have been
    /// asked for too early: look again.
    pub async fn forget_missing(&self, pack: PackId) {
        self.packs.lock().await.missing.remove(&pack);
    }

    /// The parent: the highest generation among the snapshots that are unforgotten and visible now, and can be read.
    pub async fn choose_parent(&self) -> Result<Option<Root>, Failure> {
        Ok(newest(self.visible().await?.warned()))
    }

    /// The snapshots of the session's volume that are unforgotten and visible now.
    pub async fn visible(&self) -> Result<Roots, Failure> {
        let slot = self.slot()?;
        let slots = self.repository.visible_slots(Some(slot.volume)).await?;
        let mut roots = Roots::default();
        for some in slots.chunks(AT_ONCE) {
            let looked = some.iter().map(|slot| self.visible_at(*slot));
            for found in try_join_all(looked).await? {
                roots.readable.extend(found.readable);
                roots.damaged.extend(found.damaged);
            }
        }
        Ok(roots)
    }

    /// What is visible at a slot now, which some listing had.
    async fn visible_at(&self, slot: Slot) -> Result<Roots, Failure> {
        let mut roots = Roots::default();
        // The listing may be old: ask for the marker first, then for the slot.
        if self.repository.store.head(&slot.forgotten()).await?.is_none() {
            roots.add(slot, self.repository.at_slot(slot).await)?;
        }
        Ok(roots)
    }

    /// Whether a snapshot of which somebody knows what it holds is visible now.
    pub async fn sees(&self, slot: Slot) -> Result<bool, Failure> {
        Ok(!self.visible_at(slot).await?.readable.is_empty())
    }

    /// The generation of a snapshot that is newer than all of its volume: than those that are visible, and than those that
    /// are forgotten and may come back.
    pub async fn next_generation(&self, visible: &Roots) -> Result<u64, Failure> {
        let volume = self.slot()?.volume;
        let slots = self.repository.forgotten_slots(Some(volume)).await?;
        let forgotten = self.repository.roots_at(slots).await?;
        let known = visible.readable.iter().chain(&forgotten.readable);
        let newest = known.max_by_key(|root| (root.generation, root.slot));
        let is_later = |slot: Slot| newest.is_none_or(|newest| newest.slot < slot);
        let unknown = match visible.damaged.iter().chain(&forgotten.damaged).any(|one| is_later(one.slot)) {
            // Each that came later may have taken a number, also what was collected before the damaged one was made.
            true => {
                let decided = self.repository.decided_slots(volume).await?;
                decided.into_iter().filter(|slot| is_later(*slot)).count() as u64
            }
            false => 0,
        };
        let highest = newest.map_or(0, |newest| newest.generation);
        Ok(highest.saturating_add(unknown).saturating_add(1))
    }

    /// Notes how far the session is, for whoever takes its job over.
    pub async fn checkpoint(&mut self, checkpoint: Checkpoint) -> Result<(), Failure> {
        self.session.checkpoint = Some(checkpoint);
        self.write(&self.session).await
    }

    /// Names the backups of what a restore will overwrite, all of them.
    pub(crate) async fn name_undo(&self, undo: Vec<JobId>) -> Result<(), Failure> {
        self.write(&Session { undo, ..self.session.clone() }).await
    }

    async fn write(&self, session: &Session) -> Result<(), Failure> {
        let key = names::session(session.id);
        // A session whose object is gone was revoked; writing it again would only make a collector wait for nobody.
        if !self.exists().await? {
            return Err(revoked(session));
        }
        let bytes = self.repository.seal(&key, session)?;
        Ok(self.repository.store.put(&key, bytes).await?)
    }

    /// Step 4, and the commit read back. Only the error case leaves the slot undecided.
    pub async fn commit(&self, root: &Root) -> Result<Commit, Failure> {
        let key = self.slot()?.snapshot();
        let bytes = self.repository.seal(&key, root)?;
        match self.repository.store.create(&key, bytes).await? {
            // Whoever hears of the commit removes what the next run would need without it: it must be there to read.
            Created::Won => match self.repository.at_slot(self.slot()?).await? {
                AtSlot::Snapshot(found) if *found == *root => Ok(Commit::Won),
                _ => Err(Failure::new(
                    FailureKind::Store,
                    format!("the object store took {key} and does not give it back"),
                )),
            },
            Created::Lost(found) => match self.repository.decided(self.slot()?, &found)? {
                AtSlot::Tombstone => Ok(Commit::Revoked),
                AtSlot::Snapshot(_) | AtSlot::Nothing => {
                    Err(Failure::new(FailureKind::Other, format!("{key} holds a snapshot of somebody else")))
                }
            },
        }
    }

    /// Step 5, after a commit with a definite answer; also for restores, which have no slot.
    pub async fn end(self) -> Result<(), Failure> {
        remove(&self.repository, &self.session).await
    }

    /// Gives the session up: decides the slot first, then deletes the session object. When the slot cannot be decided,
    /// the object stays, and collections wait for it until somebody ends it. Says what the slot holds.
    pub async fn abandon(self) -> Result<AtSlot, Failure> {
        revoke(&self.repository, &self.session).await
    }

    /// The same where nobody comes by who would end it otherwise: see [`dismiss`].
    pub async fn dismiss(self, stop: &Stop) -> Result<AtSlot, Failure> {
        dismiss(&self.repository, &self.session, stop, ENDING_PATIENCE).await
    }

    /// Whether the session object still exists: a restore that lost it is not protected any more. One that says by now that
    /// it is over is only there because the store does not let it go.
    pub async fn exists(&self) -> Result<bool, Failure> {
        match self.repository.read::<Session>(&names::session(self.session.id)).await {
            Ok(found) => Ok(found.is_some_and(|found| found.ended.is_none())),
            // It is there, whatever it says.
            Err(failure) if matches!(failure.kind, FailureKind::Damaged | FailureKind::Refused) => Ok(true),
            Err(failure) => Err(failure),
        }
    }
}

/// Step 1.
async fn create(repository: &Repository, session: &Session) -> Result<(), Failure> {
    let key = names::session(session.id);
    match repository.store.create(&key, repository.seal(&key, session)?).await? {
        Created::Won => Ok(()),
        Created::Lost(_) => {
            Err(Failure::new(FailureKind::Other, format!("{key} exists already: session ids must be fresh")))
        }
    }
}

/// What a session sees when it begins.
struct Seen {
    condemned: Condemned,
    damages: Damages,
    packs: BTreeSet<PackId>,
}

/// Steps 2 and 3: what the latest epoch says, and only then the packs that exist.
async fn look(repository: &Repository) -> Result<Seen, Failure> {
    let condemned = match epochs::latest(repository).await? {
        Some(latest) => latest.condemned()?,
        None => Condemned { packs: BTreeSet::new(), swept: Some(BTreeSet::new()) },
    };
    let listed = repository.list_packs().await?;
    let packs = listed.into_iter().filter(|(_, size)| can_be_pack(*size)).map(|(pack, _)| pack);
    Ok(Seen { condemned, damages: Damages::load(repository).await?, packs: packs.collect() })
}

/// The highest generation; of equal ones, the later slot.
pub fn newest(roots: Vec<Root>) -> Option<Root> {
    roots.into_iter().max_by_key(|root| (root.generation, root.slot))
}

/// The error of a session that lost its slot.
pub fn revoked(session: &Session) -> Failure {
    Failure::new(
        FailureKind::Revoked,
        format!(
            "session {} of {} was cancelled or declared dead; nothing was committed",
            session.id, session.volume
        ),
    )
}

/// Revokes a session by occupying its slot with a tombstone; whatever stands there then is decided for ever. Only then
/// its object is deleted, and only then what stands there is read: also where that fails, the session is over.
pub async fn revoke(repository: &Repository, session: &Session) -> Result<AtSlot, Failure> {
    let won = match session.slot {
        None => false,
        Some(slot) => occupy(repository, slot).await?,
    };
    remove(repository, session).await?;
    match session.slot {
        None => Ok(AtSlot::Nothing),
        Some(_) if won => Ok(AtSlot::Tombstone),
        Some(slot) => match repository.at_slot(slot).await? {
            AtSlot::Nothing => Err(not_there(slot)),
            found => Ok(found),
        },
    }
}

/// Gives up a session that nobody else comes by to end: collections would wait for it for ever. The store is waited for
/// as long as it gives nothing at all, with this much patience, and not any more once this process is to stop.
pub async fn dismiss(
    repository: &Repository,
    session: &Session,
    stop: &Stop,
    patience: Duration,
) -> Result<AtSlot, Failure> {
    let environment = repository.environment();
    let start = environment.elapsed();
    let mut tries = 0;
    loop {
        // What is cut off here may be done again by whoever comes next.
        let ended = tokio::select! {
            biased;
            ended = revoke(repository, session) => ended,
            failure = hurried(environment, stop) => return Err(failure),
        };
        let failure = match ended {
            Ok(found) => return Ok(found),
            Err(failure) => failure,
        };
        let is_over = environment.elapsed().saturating_sub(start) >= patience || stop.is_raised();
        if !failure.retry || is_over {
            return Err(failure);
        }
        tries += u32::from(repository.gives_others().await);
        if tries == ENDING_TRIES {
            return Err(failure);
        }
        tracing::warn!(session = %session.id, %failure, "a session cannot be ended yet; collections wait for it, and it is tried again");
        environment.timeout(ENDING_PAUSE, stop.raised()).await;
    }
}

/// The end of a store's time to answer, some seconds after a word to stop.
async fn hurried(environment: &dyn Environment, stop: &Stop) -> Failure {
    stop.raised().await;
    environment.sleep(ENDING_HURRY).await;
    let seconds = ENDING_HURRY.as_secs();
    let why = format!("the object store gave no answer in the {seconds} s after a word to stop");
    Failure { kind: FailureKind::Store, retry: true, why }
}

/// What there is to do about a session that may be left with nobody to end it; one of which it is not known which it is.
pub fn may_stay(session: Option<SessionId>) -> String {
    let (which, id) = match session {
        Some(id) => (format!("session {id}"), format!(" {id}")),
        None => ("its session".to_owned(), String::new()),
    };
    format!(
        "{which} may stay open, and collections wait for it then: `lvkeep status` shows it, `lvkeep cancel{id}` ends it"
    )
}

/// The failure of what had a session that could not be [ended](dismiss).
pub fn left_open(session: SessionId, failure: Failure, why: &Failure) -> Failure {
    Failure { why: format!("{}; {} ({why})", failure.why, may_stay(Some(session))), ..failure }
}

/// The same of what went well.
pub fn warn_left_open(session: SessionId, why: &Failure) {
    tracing::warn!(%why, "{}", may_stay(Some(session)));
}

/// Removes the object of a session that is over. Where the store does not let it go, it stays: a slot that is decided says
/// that it is over, and the next one who comes by removes it. One without a slot has to say so itself, so that it keeps
/// nobody waiting; as one of no job, so that no restore takes it for its own end.
pub async fn remove(repository: &Repository, session: &Session) -> Result<(), Failure> {
    let key = names::session(session.id);
    if repository.store.delete_or_leave(&key).await? || session.slot.is_some() {
        return Ok(());
    }
    let why = "it is over, and the store does not let its object go".to_owned();
    let over = Session {
        job: repository.environment().job_id(),
        checkpoint: None,
        ended: Some(JobOutcome::Failed { kind: FailureKind::Revoked, why }),
        undo: Vec::new(),
        ..session.clone()
    };
    Ok(repository.store.put(&key, repository.seal(&key, &over)?).await?)
}

/// Puts a tombstone in a slot unless something stands there; whether it did. A store that lets everybody win who creates
/// would overwrite a commit: it is asked first.
async fn occupy(repository: &Repository, slot: Slot) -> Result<bool, Failure> {
    let key = slot.snapshot();
    if repository.store.head(&key).await?.is_some() {
        return Ok(false);
    }
    Ok(repository.store.create(&key, repository.tombstone(slot)?).await? == Created::Won)
}

/// The slot of a session, where something stands at it: for a session whose object cannot be read.
pub async fn decided_slot(repository: &Repository, session: SessionId) -> Result<Option<Slot>, Failure> {
    let listed = repository.store.list(names::SNAPSHOTS).await?;
    let mut slots = listed.iter().filter_map(|listed| Slot::parse_key(&listed.key).ok());
    Ok(slots.find(|slot| slot.session == session))
}

/// All sessions whose objects exist and can be read.
pub async fn list(repository: &Repository) -> Result<Vec<Session>, Failure> {
    let sessions = list_all(repository).await?;
    Ok(sessions.into_iter().filter_map(|(_, session)| session).collect())
}

/// All sessions whose objects exist; none where one cannot be read.
pub async fn list_all(repository: &Repository) -> Result<Vec<(SessionId, Option<Session>)>, Failure> {
    let mut sessions = Vec::new();
    for listed in repository.store.list(names::SESSIONS).await? {
        let Ok(id) = names::parse_session(&listed.key) else { continue };
        match repository.read::<Session>(&listed.key).await {
            Ok(Some(session)) => sessions.push((id, Some(session))),
            Ok(None) => {}
            Err(failure) => {
                tracing::warn!(%failure, "a session object cannot be read");
                sessions.push((id, None));
            }
        }
    }
    sessions.sort_by_key(|(id, _)| *id);
    Ok(sessions)
}

/// The sessions of a restore's job whose objects exist, those among them that only say how it ended. What cannot be
/// read for now is an error: it may be such a one.
pub async fn of_job(repository: &Repository, job: JobId) -> Result<Vec<Session>, Failure> {
    let mut sessions = undamaged(repository).await?;
    sessions.retain(|session| session.job == job);
    Ok(sessions)
}

/// All sessions whose objects exist, but for damaged ones. What cannot be read for now is an error.
pub(crate) async fn undamaged(repository: &Repository) -> Result<Vec<Session>, Failure> {
    let mut found = Vec::new();
    for listed in repository.store.list(names::SESSIONS).await? {
        match repository.read::<Session>(&listed.key).await {
            Ok(session) => found.extend(session),
            Err(failure) if failure.kind == FailureKind::Store => return Err(failure),
            Err(failure) => tracing::warn!(%failure, "a session object cannot be read"),
        }
    }
    Ok(found)
}

/// Notes that a restore's job is over. Whoever is given the job after that does not do it again.
pub async fn note_end(
    repository: &Repository,
    job: JobId,
    volume: &str,
    host: &str,
    outcome: &JobOutcome,
) -> Result<SessionId, Failure> {
    let environment = repository.environment();
    let session = Session {
        id: environment.session_id(),
        kind: SessionKind::Restore,
        slot: None,
        job,
        volume: volume.to_owned(),
        host: host.to_owned(),
        started_ms: environment.now_ms(),
        checkpoint: None,
        ended: Some(outcome.clone()),
        undo: Vec::new(),
    };
    let key = names::session(session.id);
    let bytes = repository.seal(&key, &session)?;
    repository.store.put(&key, bytes).await?;
    Ok(session.id)
}

/// Removes what [`note_end`] has noted.
pub async fn forget_end(repository: &Repository, note: SessionId) -> Result<(), Failure> {
    Ok(repository.store.delete(&names::session(note)).await?)
}
