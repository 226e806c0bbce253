//! The world of the model: one chunk that every pack holds and every snapshot needs, which is the hardest case, and
//! packs of other chunks that nobody needs, for collections in which only those go.
//!
//! Packs and snapshots are bits. Snapshot 0 and the first packs exist from the start; snapshot 1 + i is the slot of
//! session i. Whatever may take long is a step of its own, and any step may come late or never: that is a slow process,
//! a dead one, or one that comes back. What a first mark condemns, and what is reprieved beyond need, is arbitrary: that
//! stands for marks that are stale in any way, and for packs of many chunks.

pub const SESSIONS: usize = 2;
pub const SNAPSHOTS: usize = 1 + SESSIONS;
/// The last collector is nobody's but the one that shows progress.
pub const COLLECTORS: usize = 3;
pub const EPOCHS: usize = 6;

/// Bits: of packs, of snapshots, or of sessions.
pub type Set = u8;

/// Members of a set.
pub fn members(set: Set) -> impl Iterator<Item = usize> {
    (0..8).filter(move |bit| set >> bit & 1 == 1)
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
    /// Packs that exist at the start.
    pub packs: Set,
    /// Those of them that hold other chunks, which nobody needs.
    pub others: Set,
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

/// Shortcuts, each of which loses data.
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
    /// Packs that its listing showed; once the epoch is read as well, whether one of them counts.
    pub seen: Set,
    /// The chunk counts as stored.
    pub has_chunk: bool,
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
    pub needed: bool,
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
    /// Packs whose upload is unanswered and may still land.
    pub uploads: Set,
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

    /// Packs that hold the chunk.
    pub fn copies(&self, bounds: &Bounds) -> Set {
        self.packs & !bounds.others
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
            if !is_early && (session.stage != Stage::ParentChosen || session.has_chunk) {
                (session.condemned, session.seen) = (0, 0);
            }
            if matches!(session.stage, Stage::Committing | Stage::Ending | Stage::Ended) {
                session.has_chunk = false;
            }
        }
    }
}
