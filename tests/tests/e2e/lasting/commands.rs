//! Commands that run beside each other, and the only ways in which each of them may fail.

use std::collections::BTreeSet;

use tests::e2e::{Process, Ran};

use super::strikes::Server;
use super::told::Forgets;

/// What the object store failing costs a command, and what a bus that cannot be reached does.
const STORE_FAILED: i32 = 5;
const FAILED: i32 = 1;
/// The request cannot be done as it was asked.
const REFUSED: i32 = 3;
/// What it read was collected.
const REVOKED: i32 = 7;

/// How a restore names a snapshot that was forgotten.
const FORGOTTEN: [&str; 4] =
    ["is forgotten: `lvkeep unforget", "was forgotten, and", "was collected", "no snapshot has the id"];
/// How `unforget` names one that a collection sweeps.
const SWEPT: [&str; 3] = ["no forgotten snapshot has the id", "is being swept", "was swept by a collection"];

/// Reasons that say more than that it did not work.
pub const STAYS: &str = "the newest stays";
pub const IS_SWEPT: &str = "swept";

/// The name of collections where commands are counted.
pub const PRUNE: &str = "lvkeep prune";

/// A command that runs.
pub struct Running {
    pub what: What,
    pub process: Process,
    /// It was alive when it was killed.
    pub is_killed: bool,
    /// Servers that were down at any time since it began.
    pub away: BTreeSet<Server>,
}

/// What it does.
#[derive(Debug)]
pub enum What {
    /// Of a host, whose volume holds what this copy does.
    Backup {
        host: usize,
        copy: String,
    },
    /// Whether it tells the index by the bus.
    Prune {
        by_bus: bool,
    },
    Forget(Forgets),
    Unforget {
        id: String,
    },
    /// Of a snapshot that holds what this copy does.
    Restore {
        id: String,
        copy: String,
    },
    /// Looks for sessions that killed commands of a lane left behind.
    Look(Lane),
    /// Ends one.
    Cancel(Lane),
}

/// Commands that come one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    Host(usize),
    Prunes,
    /// Who forgets, and brings back.
    Keeper,
    /// Who restores.
    Restorer,
}

impl What {
    /// Its name where it is counted.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Backup { .. } => "lvkeep backup",
            Self::Prune { .. } => PRUNE,
            Self::Forget(_) => "lvkeep forget",
            Self::Unforget { .. } => "lvkeep unforget",
            Self::Restore { .. } => "lvkeep restore",
            Self::Look(_) => "lvkeep status",
            Self::Cancel(_) => "lvkeep cancel",
        }
    }

    pub fn lane(&self) -> Lane {
        match self {
            Self::Backup { host, .. } => Lane::Host(*host),
            Self::Prune { .. } => Lane::Prunes,
            Self::Forget(_) | Self::Unforget { .. } => Lane::Keeper,
            Self::Restore { .. } => Lane::Restorer,
            Self::Look(lane) | Self::Cancel(lane) => *lane,
        }
    }

    /// Whether what is left of it keeps collections waiting until somebody cancels that.
    pub fn leaves_sessions(&self) -> bool {
        matches!(self, Self::Unforget { .. } | Self::Restore { .. })
    }
}

/// How a command ended that was not killed.
pub enum Ended {
    Well(Ran),
    /// For this reason, which is one that the test knows.
    Failed(&'static str),
}

impl Running {
    pub fn new(what: What, process: Process, away: Option<Server>) -> Self {
        Self { what, process, is_killed: false, away: away.into_iter().collect() }
    }

    /// `kill -9`; whether that ended it.
    pub fn kill(&mut self) -> bool {
        self.is_killed = self.process.kill();
        self.is_killed
    }

    /// How it ended. Panics where nothing that happened to it may have led to that; `may_be_forgotten` says that somebody
    /// was told to forget the snapshot that it is about.
    pub fn judge(what: &What, ran: Ran, away: &BTreeSet<Server>, may_be_forgotten: bool) -> Ended {
        if ran.status.success() {
            return Ended::Well(ran);
        }
        let says = |words: &[&str]| words.iter().any(|words| ran.err.contains(words));
        let [store_was_away, bus_was_away] =
            [Server::Store, Server::Bus].map(|server| away.contains(&server));
        // Agents have all the time in the world, and commands that read or collect have minutes.
        let reason = match (what, ran.code()) {
            // One that could not ask; whoever has asked is answered.
            (What::Backup { .. }, FAILED) if bus_was_away && says(&["cannot connect to the NATS server"]) => {
                Some("the bus was away")
            }
            (What::Backup { .. }, _) => None,
            (_, STORE_FAILED) if store_was_away => Some("the store was away"),
            (What::Prune { by_bus: true }, FAILED)
                if bus_was_away && says(&["NATS server", "message bus"]) =>
            {
                Some("the bus was away")
            }
            (What::Prune { .. }, FAILED) if says(&["other collectors were quicker each time"]) => {
                Some("others were quicker")
            }
            (What::Restore { .. }, REFUSED) if may_be_forgotten && says(&FORGOTTEN) => Some("forgotten"),
            (What::Restore { .. }, REVOKED)
                if may_be_forgotten && store_was_away && says(&["because nothing protected it"]) =>
            {
                Some("collected while it was read without protection")
            }
            (What::Forget(Forgets::Named { .. }), REFUSED) if says(&["is the newest of"]) => Some(STAYS),
            (What::Forget(Forgets::Named { in_doubt: true, .. }), REFUSED) if says(&FORGOTTEN) => {
                Some("forgotten")
            }
            (What::Unforget { .. }, REFUSED) if says(&SWEPT) => Some(IS_SWEPT),
            (What::Cancel(_), REFUSED) if says(&["had committed snapshot", "no session"]) => {
                Some("it had ended")
            }
            _ => None,
        };
        match reason {
            Some(reason) => Ended::Failed(reason),
            None => panic!(
                "{what:?} failed for no reason that there was; away meanwhile: {away:?}, may be forgotten: \
                 {may_be_forgotten}\n{ran}"
            ),
        }
    }
}
