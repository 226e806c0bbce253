//! Object keys in the bucket, relative to the repository's prefix.
//!
//! Keys under `snapshots/`, `forgotten/`, `gc/` and `keys/` were decided by create-if-absent and are never deleted. A slot
//! is only ever overwritten by a tombstone, and an epoch or verdict that nobody needs any more by an empty object.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{DamageId, FormatError, JobId, KeyId, MarkId, PackId, Result, SessionId, VolumeKey};

/// The `config` object.
pub const CONFIG: &str = "config";
/// Where packs are.
pub const PACKS: &str = "packs";
/// Where roots are.
pub const SNAPSHOTS: &str = "snapshots";
/// Where forgotten markers are.
pub const FORGOTTEN: &str = "forgotten";
/// Where holds, tags and notes of snapshots are; they may be deleted.
pub const MARKS: &str = "marks";
/// Where sessions are.
pub const SESSIONS: &str = "sessions";
/// Where data keys are.
pub const KEYS: &str = "keys";
/// Where the collector's epochs are.
pub const EPOCHS: &str = "gc";
/// What the key of the list of sessions that an epoch waits for has behind the epoch's.
pub const AWAITED: &str = ".sessions";
/// What names of volumes begin with that are kept for an undo; the host and the target follow.
pub const UNDO_VOLUMES: &str = "undo/";
/// Where damage is recorded that checks have found.
pub const DAMAGE: &str = "damage";
/// Where it stands what of a snapshot cannot be read any more.
pub const HOLES: &str = "holes";
/// Where checks are that agents were given.
pub const CHECKS: &str = "checks";
/// Where the probe races its creators; everything below is deleted again.
pub const PROBES: &str = "probe";

/// Below which there is something of every repository that was ever written to: all but what probes leave.
pub const FOLDERS: [&str; 10] =
    [PACKS, SNAPSHOTS, KEYS, SESSIONS, EPOCHS, FORGOTTEN, MARKS, DAMAGE, HOLES, CHECKS];

/// The key of a pack.
pub fn pack(id: PackId) -> String {
    // The end of a ULID is random, its start is a time: only the former spreads packs over folders.
    let text = id.to_string();
    let spread = id.as_bytes()[15];
    format!("{PACKS}/{spread:02x}/{text}")
}

/// The pack that a key names.
pub fn parse_pack(key: &str) -> Result<PackId> {
    let id = key
        .strip_prefix(PACKS)
        .and_then(|rest| rest.rsplit('/').next())
        .ok_or_else(|| FormatError::invalid("pack name", format!("{key:?} is not one")))?;
    let id: PackId = id.parse()?;
    if pack(id) != key {
        return Err(FormatError::invalid("pack name", format!("{key:?} is not one")));
    }
    Ok(id)
}

/// The key of a session object.
pub fn session(id: SessionId) -> String {
    format!("{SESSIONS}/{id}")
}

/// The key of a data key.
pub fn key(id: KeyId) -> String {
    format!("{KEYS}/{id}")
}

/// The key of an epoch.
pub fn epoch(n: u64) -> String {
    format!("{EPOCHS}/{n:020}")
}

/// The key of an epoch's verdict.
pub fn verdict(n: u64) -> String {
    format!("{EPOCHS}/{n:020}.verdict")
}

/// The key of the list of sessions that an epoch waits for.
pub fn awaited(n: u64) -> String {
    format!("{EPOCHS}/{n:020}{AWAITED}")
}

/// The key of a record of damage.
pub fn damage(id: DamageId) -> String {
    format!("{DAMAGE}/{id}")
}

/// The record of damage that a key names.
pub fn parse_damage(key: &str) -> Result<DamageId> {
    let id = key.strip_prefix(DAMAGE).and_then(|rest| rest.strip_prefix('/'));
    id.ok_or_else(|| FormatError::invalid("damage name", format!("{key:?} is not one")))?.parse()
}

/// The key of a check that agents were given.
pub fn check(job: JobId) -> String {
    format!("{CHECKS}/{job}")
}

/// The job of the check that a key names.
pub fn parse_check(key: &str) -> Result<JobId> {
    let job = key.strip_prefix(CHECKS).and_then(|rest| rest.strip_prefix('/'));
    job.ok_or_else(|| FormatError::invalid("check name", format!("{key:?} is not one")))?.parse()
}

/// The session that a key names.
pub fn parse_session(key: &str) -> Result<SessionId> {
    let id = key.strip_prefix(SESSIONS).and_then(|rest| rest.strip_prefix('/'));
    id.ok_or_else(|| FormatError::invalid("session name", format!("{key:?} is not one")))?.parse()
}

/// The epoch that a key names, and whether it is the verdict. Its list of awaited sessions is neither.
pub fn parse_epoch(key: &str) -> Result<(u64, bool)> {
    let bad = || FormatError::invalid("epoch name", format!("{key:?} is not one"));
    let rest = key.strip_prefix(EPOCHS).and_then(|rest| rest.strip_prefix('/')).ok_or_else(bad)?;
    let (number, is_verdict) = match rest.strip_suffix(".verdict") {
        Some(number) => (number, true),
        None => (rest, false),
    };
    if number.len() != 20 || !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    Ok((number.parse().map_err(|_| bad())?, is_verdict))
}

/// The snapshot below whose marks a key stands, whatever it names there.
pub fn marked(key: &str) -> Option<Slot> {
    let rest = key.strip_prefix(MARKS)?.strip_prefix('/')?;
    let (volume, rest) = rest.split_once('/')?;
    let (session, _) = rest.split_once('/')?;
    Some(Slot { volume: volume.parse().ok()?, session: session.parse().ok()? })
}

/// The snapshot and the mark that a key names.
pub fn parse_mark(key: &str) -> Result<(Slot, MarkId)> {
    let rest = key.strip_prefix(MARKS).and_then(|rest| rest.strip_prefix('/'));
    let (slot, id) = rest
        .and_then(|rest| rest.rsplit_once('/'))
        .ok_or_else(|| FormatError::invalid("mark name", format!("{key:?} is not one")))?;
    Ok((slot.parse()?, id.parse()?))
}

/// A commit slot: where exactly one session commits its snapshot, or a tombstone stands for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Slot {
    /// The volume.
    pub volume: VolumeKey,
    /// The session that may commit here.
    pub session: SessionId,
}

impl Slot {
    /// The key of the snapshot's root.
    pub fn snapshot(&self) -> String {
        format!("{SNAPSHOTS}/{self}")
    }

    /// The key of its forgotten marker.
    pub fn forgotten(&self) -> String {
        format!("{FORGOTTEN}/{self}")
    }

    /// Where its marks are.
    pub fn marks(&self) -> String {
        format!("{MARKS}/{self}")
    }

    /// The key of one of its marks.
    pub fn mark(&self, id: MarkId) -> String {
        format!("{MARKS}/{self}/{id}")
    }

    /// The key of its labels of this number: the mark id whose time is the number, and whose random bits are zero.
    pub fn labels(&self, number: u64) -> String {
        self.mark(MarkId::from_parts(number, 0))
    }

    /// The key of the list of its holes.
    pub fn holes(&self) -> String {
        format!("{HOLES}/{self}")
    }

    /// The slot that a key below `snapshots/`, `forgotten/` or `holes/` names.
    pub fn parse_key(key: &str) -> Result<Self> {
        key.strip_prefix(SNAPSHOTS)
            .or_else(|| key.strip_prefix(FORGOTTEN))
            .or_else(|| key.strip_prefix(HOLES))
            .and_then(|rest| rest.strip_prefix('/'))
            .ok_or_else(|| FormatError::invalid("slot", format!("{key:?} is not below snapshots/")))?
            .parse()
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.volume, self.session)
    }
}

impl FromStr for Slot {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || FormatError::invalid("slot", format!("{text:?} is not VOLUME/SESSION"));
        let (volume, session) = text.split_once('/').ok_or_else(bad)?;
        Ok(Self { volume: volume.parse()?, session: session.parse()? })
    }
}
