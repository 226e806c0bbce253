//! How lvkeep's snapshots are recognised: a reserved name and LVM tags that belong together.
//!
//! A snapshot is lvkeep's when its name is `lvkeep-` and the ULID that its own tags carry, and all of its tags are
//! whole. Renamed, half tagged or tagged twice over, it is somebody's else: whoever put such a volume to another use
//! keeps it. Pure: nothing here touches LVM.
//!
//! The tags, with their values in LVM's alphabet (letters, digits and `_+.-/=!:&#`):
//!
//! | tag | value |
//! |---|---|
//! | `lvkeep.id=` | the ULID in the name |
//! | `lvkeep.repo=` | the repository, 32 hexadecimal digits |
//! | `lvkeep.origin=` | LVM's UUID of the volume that it is a snapshot of |
//! | `lvkeep.session=` | the session, and with it the archive's snapshot, that it was read for |
//! | `lvkeep.group=` | the ULID of the group's run that it was taken with |
//! | `lvkeep.owner=` | the process that uses it, `BOOT/PID/START`; none when it waits as a baseline |
//! | `lvkeep.embedded` | that process drives the session too: it ends with it |
//! | `lvkeep.baseline` | it is kept: its session's commit was read back |

use std::collections::BTreeMap;

use schema::{JobId, RepoId, SessionId};

use crate::owner::Owner;
use crate::report::{LogicalVolume, Uuid};

#[cfg(test)]
mod tests;

/// What every name of ours begins with.
pub const PREFIX: &str = "lvkeep-";

const ID: &str = "lvkeep.id=";
const REPOSITORY: &str = "lvkeep.repo=";
const ORIGIN: &str = "lvkeep.origin=";
const SESSION: &str = "lvkeep.session=";
const GROUP: &str = "lvkeep.group=";
const OWNER: &str = "lvkeep.owner=";
const EMBEDDED: &str = "lvkeep.embedded";
const BASELINE: &str = "lvkeep.baseline";

/// What lvkeep wrote on one of its snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marks {
    /// The ULID in its name.
    pub id: SessionId,
    /// The repository that it was read for.
    pub repository: RepoId,
    /// The volume that it is a snapshot of.
    pub origin: Uuid,
    /// The session; none for a group's snapshot whose session has not come yet.
    pub session: Option<SessionId>,
    /// The group's run that it was taken with.
    pub group: Option<JobId>,
    /// The process that uses it.
    pub owner: Option<Owner>,
    /// The process that took it drove its session too.
    pub embedded: bool,
    /// Its session was committed for certain.
    pub baseline: bool,
}

impl Marks {
    /// The name of a snapshot with this id.
    pub fn name(id: SessionId) -> String {
        format!("{PREFIX}{id}")
    }

    /// The tags that carry these marks.
    pub fn tags(&self) -> Vec<String> {
        let mut tags = vec![
            format!("{ID}{}", self.id),
            format!("{REPOSITORY}{}", self.repository),
            format!("{ORIGIN}{}", self.origin),
        ];
        tags.extend(self.session.map(|session| format!("{SESSION}{session}")));
        tags.extend(self.group.map(|group| format!("{GROUP}{group}")));
        tags.extend(self.owner.as_ref().map(|owner| format!("{OWNER}{owner}")));
        tags.extend(self.embedded.then(|| EMBEDDED.to_owned()));
        tags.extend(self.baseline.then(|| BASELINE.to_owned()));
        tags
    }

    /// The marks of a volume; none when it is not ours beyond doubt.
    pub fn of(volume: &LogicalVolume) -> Option<Self> {
        let id: SessionId = volume.name.strip_prefix(PREFIX)?.parse().ok()?;
        let marks = Self::parse(&volume.tags)?;
        (marks.id == id && !volume.hidden).then_some(marks)
    }

    /// The marks in a list of tags: none when one is missing, there twice, or not understood. Tags that are not
    /// lvkeep's do not matter.
    fn parse(tags: &[String]) -> Option<Self> {
        let mut ours = BTreeMap::new();
        for tag in tags.iter().filter(|tag| tag.starts_with("lvkeep")) {
            let end = tag.find('=').map_or(tag.len(), |at| at + 1);
            let (key, value) = tag.split_at(end);
            if ours.insert(key, value).is_some() {
                return None;
            }
        }
        let marks = Self {
            id: ours.remove(ID)?.parse().ok()?,
            repository: ours.remove(REPOSITORY)?.parse().ok()?,
            origin: Uuid::parse(ours.remove(ORIGIN)?)?,
            session: optional(ours.remove(SESSION))?,
            group: optional(ours.remove(GROUP))?,
            owner: optional(ours.remove(OWNER))?,
            embedded: ours.remove(EMBEDDED).is_some(),
            baseline: ours.remove(BASELINE).is_some(),
        };
        ours.is_empty().then_some(marks)
    }
}

/// What there is, parsed; the outer option says whether it could be.
fn optional<T: std::str::FromStr>(text: Option<&str>) -> Option<Option<T>> {
    match text {
        None => Some(None),
        Some(text) => text.parse().ok().map(Some),
    }
}
