//! The world of the model: a chunk that is there from the start and that every snapshot needs, which is the hardest
//! case; where that is explored, a second one, which is new and which the snapshots of sessions need as well; and packs
//! of other chunks that nobody needs, for collections in which only those go. A pack holds one chunk.
//!
//! Packs, chunks and snapshots are bits. Snapshot 0 and the first packs exist from the start; snapshot 1 + i is the
//! slot of session i. Whatever may take long is a step of its own, and any step may come late or never: that is a slow
//! process, a dead one, or one that comes back. What a first mark condemns, and what is reprieved beyond need, is arbitrary: that
//! stands for marks that are stale in any way, and for packs of many chunks.

use crate::claims;

pub const SESSIONS: usize = 2;
pub const SNAPSHOTS: usize = 1 + SESSIONS;
/// The last collector is nobody's but the one that shows progress.
pub const COLLECTORS: usize = 3;
pub const EPOCHS: usize = 6;
pub const CHUNKS: usize = 2;

/// Bits: of packs, of chunks, of snapshots, or of sessions.
pub type Set = u16;

/// Members of a set.
pub fn members(mut set: Set) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let member = (set != 0).then(|| set.trailing_zeros() as usize)?;
        set &= set - 1;
        Some(member)
    })
}

/// Whether a set has a member.
pub fn has(set: Set, member: usize) -> bool {
    set >> member & 1 == 1
}

/// What is explored, and how the protocol is broken, if it is.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub sessions: usize,
    /// Those of them that restore: they have no slot, and read one snapshot.
    pub restores: Set,
    pub collectors: usize,
    pub epochs: usize,
    /// The chunks that each session's snapshot needs.
    pub chunks: [Set; SESSIONS],
    /// Sessions ask an index; without one they store whatever does not count.
    pub index: Option<Index>,
    /// Packs that exist at the start.
    pub packs: Set,
    /// Those of them that hold other chunks, which nobody needs.
    pub others: Set,
    /// Snapshots that somebody may forget.
    pub forgettable: Set,
    /// A commit may be unanswered and land late.
    pub late_commits: bool,
    /// The upload of a pack may be unanswered and land late.
    pub late_packs: bool,
    /// Collectors rewrite packs.
    pub rewrite: bool,
    /// Forgotten snapshots may be brought back.
    pub unforget: bool,
    /// Somebody holds snapshot 0.
    pub holds: bool,
    /// Whether every state is asked if a collector that comes now would finish.
    pub progress: bool,
    pub broken: Option<Broken>,
}

impl Bounds {
    /// The chunks that some of these snapshots need.
    pub fn needs(&self, snapshots: Set) -> Set {
        let of = |snapshot: usize| snapshot.checked_sub(1).map_or(1, |session| self.chunks[session]);
        members(snapshots).fold(0, |set, snapshot| set | of(snapshot))
    }

    /// The packs that would hold a chunk.
    pub fn holding(&self, chunk: usize) -> Set {
        let uploads = (0..SESSIONS).fold(0, |set, n| set | upload(n, chunk, false) | upload(n, chunk, true));
        match chunk {
            0 => 0b11 & !self.others | uploads | (0..COLLECTORS).fold(0, |set, n| set | rewritten(n)),
            _ => uploads,
        }
    }
}

/// An index with claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Index {
    /// It forgets no claim, and whoever asks of what was claimed is told so.
    Keeps,
    /// It may forget claims and packs at any time.
    Forgets,
}

/// The pack of a session's first or second upload of a chunk: each has a fresh name.
pub fn upload(session: usize, chunk: usize, again: bool) -> Set {
    1 << (2 + 4 * chunk + 2 * session + usize::from(again))
}

/// The pack that a collector writes.
pub fn rewritten(collector: usize) -> Set {
    1 << (2 + 4 * CHUNKS + collector)
}

/// Shortcuts, each of which loses data, stores it twice, or waits for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// What the first mark condemned is deleted.
    SkipsSecondMark,
    /// Sessions are not waited for.
    DeletesBeforeWaiting,
    /// A dead session's object is deleted, and its slot left open.
    RevokesByDeletingTheSession,
    /// A session reads the epochs before its object exists.
    ReadsEpochsBeforeItsObject,
    /// The second mark leaves out what was forgotten meanwhile.
    MarksFromFreshForgotten,
    /// A collected snapshot's key is deleted instead of overwritten.
    DeletesDecidedKey,
    /// The later one of two verdicts holds.
    OverwritesVerdict,
    /// The list of awaited sessions is made before the epoch exists.
    ListsSessionsBeforeEpoch,
    /// A session chooses its parent before its object exists.
    ChoosesParentBeforeItsObject,
    /// A snapshot is brought back though the epoch sweeps it.
    UnforgetsWhatIsSwept,
    /// A session with a commit on its way ends without asking what became of it.
    EndsWithoutAnAnswer,
    /// Whoever holds a snapshot looks for its marker before the hold stands.
    LooksBeforeItHolds,
    /// A collector lists holds before markers.
    ListsHoldsBeforeMarkers,
    /// A collector sweeps what is held.
    SweepsWhatIsHeld,
    /// A collector sweeps what nobody forgot.
    SweepsUnforgotten,
    /// A session lists packs before it reads the epochs.
    ListsPacksBeforeEpoch,
    /// A session commits before what it stores is there.
    SealsBeforeStored,
    /// A collector waits for dead sessions, too.
    NeverRevokes,
    /// A chunk counts because the index names a pack, which nobody has seen.
    BelievesTheIndex,
    /// A chunk counts because somebody else was told to store it.
    BelievesAPromise,
    /// A chunk counts because its pack was announced, though it may be gone.
    BelievesAnnouncements,
    /// A pack counts that is there, and that the epoch condemns.
    CountsWhatIsCondemned,
    /// The index tells everybody to store a chunk that it does not know.
    GivesEveryClaim,
    /// Whoever waits for what was promised waits for ever.
    NeverAsksAgain,
}

/// A hold of snapshot 0, and the look for its marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Hold {
    #[default]
    Nothing,
    /// The marker was looked for first; only in a broken protocol.
    Looked,
    Written,
    /// Somebody was told that it is held.
    Held,
    Refused,
}

/// What stands at a commit slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Slot {
    #[default]
    Nothing,
    Snapshot,
    Tombstone,
}

/// `gc/<n>`, `gc/<n>.sessions` and `gc/<n>.verdict`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Epoch {
    pub created: bool,
    pub forgotten: Set,
    pub condemned: Set,
    pub awaited: Option<Set>,
    pub verdict: Option<Set>,
}

/// Where a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Stage {
    #[default]
    New,
    Begun,
    EpochRead,
    PacksListed,
    ParentChosen,
    Storing,
    Committing,
    Ending,
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Session {
    pub stage: Stage,
    pub object: bool,
    pub condemned: Set,
    pub swept: Set,
    /// Packs that its listing showed and that count; without an index, whether there is one.
    pub seen: Set,
    /// Chunks that count as stored.
    pub has: Set,
    /// Chunks that it has asked an index for, and that are on their way, from this session or from another one.
    pub waits: Set,
    pub upload_unanswered: bool,
    pub commit_unanswered: bool,
    /// A commit is on its way.
    pub late: bool,
    pub committed: bool,
    pub revoked: bool,
}

/// Where a collector is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Step {
    #[default]
    Idle,
    ListingHolds,
    Proposing,
    ListingSessions,
    KeepingList,
    Waiting,
    ListingPacks,
    MarkingAgain,
    Reprieving,
    Deciding,
    Sweeping,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Collector {
    pub step: Step,
    pub epoch: u8,
    pub forgotten: Set,
    pub awaited: Set,
    pub listed: Set,
    pub needed: Set,
    pub delete: Set,
    pub rewrote: bool,
}

impl Collector {
    /// As it was before, but for what its rewriting left.
    pub fn idle(&self) -> Self {
        Self { rewrote: self.rewrote, ..Self::default() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct World {
    pub packs: Set,
    pub slots: [Slot; SNAPSHOTS],
    pub markers: Set,
    pub hold: Hold,
    pub epochs: [Epoch; EPOCHS],
    pub sessions: [Session; SESSIONS],
    pub collectors: [Collector; COLLECTORS],
    /// Packs whose upload is unanswered and may still land; with an index, all that storers are to upload.
    pub uploads: Set,
    /// With an index, packs that were announced at some time, also those that are gone.
    pub announced: Set,
    /// Slots that were decided once.
    pub decided: Set,
    /// A slot changed after it was decided, other than from a snapshot to a tombstone.
    pub two_winners: bool,
    pub swept: bool,
}

impl World {
    pub fn snapshots(&self) -> Set {
        (0..SNAPSHOTS).filter(|n| self.slots[*n] == Slot::Snapshot).fold(0, |set, n| set | 1 << n)
    }

    /// Snapshots that no verdict has given up.
    pub fn live(&self) -> Set {
        let swept = self.epochs.iter().filter(|epoch| epoch.verdict.is_some());
        self.snapshots() & !swept.fold(0, |set, epoch| set | epoch.forgotten)
    }

    /// Snapshots below which a hold stands.
    pub fn held(&self) -> Set {
        Set::from(matches!(self.hold, Hold::Written | Hold::Held))
    }

    /// Packs that hold a chunk.
    pub fn copies(&self, bounds: &Bounds, chunk: usize) -> Set {
        self.packs & bounds.holding(chunk)
    }

    /// Whether there is a copy of each of these chunks.
    pub fn has_all(&self, bounds: &Bounds, chunks: Set) -> bool {
        members(chunks).all(|chunk| self.copies(bounds, chunk) != 0)
    }

    /// An upload arrives at the store.
    pub fn land(&mut self, bounds: &Bounds, pack: Set) {
        self.packs |= pack;
        self.uploads &= !pack;
        if bounds.index.is_some() {
            self.announced |= pack;
        }
    }

    pub fn latest(&self) -> usize {
        (1..EPOCHS).rev().find(|n| self.epochs[*n].created).unwrap_or(0)
    }

    pub fn is_finished(&self, number: usize) -> bool {
        let epoch = &self.epochs[number];
        number == 0
            || epoch
                .verdict
                .is_some_and(|delete| delete & self.packs == 0 && epoch.forgotten & self.snapshots() == 0)
    }

    /// Writes to a slot only if nothing is there; whether it did.
    pub fn create_slot(&mut self, number: usize, value: Slot) -> bool {
        if self.slots[number] != Slot::Nothing {
            return false;
        }
        self.two_winners |= has(self.decided, number);
        self.decided |= 1 << number;
        self.slots[number] = value;
        true
    }

    /// Forgets what can make no difference any more, so that fewer states are told apart.
    pub fn normalize(&mut self, bounds: &Bounds) {
        let (packs, snapshots) = (self.packs, self.snapshots());
        for epoch in &mut self.epochs {
            if let Some(delete) = epoch.verdict {
                epoch.condemned = 0;
                epoch.awaited = None;
                epoch.forgotten &= snapshots;
                // Whoever has seen a pack that is gone must be told that it was condemned.
                if bounds.broken != Some(Broken::ListsPacksBeforeEpoch) {
                    epoch.verdict = Some(delete & packs);
                }
            }
        }
        for collector in &mut self.collectors {
            let decided = self.epochs[usize::from(collector.epoch)].verdict.is_some();
            let undecided = matches!(
                collector.step,
                Step::ListingSessions
                    | Step::KeepingList
                    | Step::Waiting
                    | Step::ListingPacks
                    | Step::MarkingAgain
                    | Step::Reprieving
                    | Step::Deciding
            );
            // Whatever it finds out, the verdict that is there holds.
            if decided && undecided && bounds.broken != Some(Broken::OverwritesVerdict) {
                *collector = Collector { step: Step::Deciding, epoch: collector.epoch, ..collector.idle() };
            }
            if collector.step == Step::Sweeping {
                collector.delete &= packs;
                collector.forgotten &= snapshots;
            }
        }
        for number in 0..SESSIONS {
            let session = &mut self.sessions[number];
            if self.slots[1 + number] != Slot::Nothing && bounds.broken != Some(Broken::DeletesDecidedKey) {
                session.late = false;
            }
            let is_early =
                matches!(session.stage, Stage::New | Stage::Begun | Stage::EpochRead | Stage::PacksListed);
            if !is_early {
                session.swept = 0;
            }
            if !is_early
                && (session.stage != Stage::ParentChosen || session.has != 0 && bounds.index.is_none())
            {
                (session.condemned, session.seen) = (0, 0);
            }
            if matches!(session.stage, Stage::Committing | Stage::Ending | Stage::Ended) {
                session.has = 0;
            }
        }
        if bounds.index.is_some() {
            claims::normalize(bounds, self);
        }
    }
}
