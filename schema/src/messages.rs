//! What agents say to each other.
//!
//! A message is a MessagePack header and raw bytes. The header names its kind and version and what it is
//! [`About`], so that a queue can say which volume's message it had to give up. On the wire: header length u32,
//! header, body.

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cursor::Cursor;
use crate::keys::SealedKey;
use crate::limits::{ASK_MAX, GROUP_MEMBERS_MAX, MESSAGE_MAX, SEALED_KEY_MAX, VOLUME_MAX, VOLUME_NAME_MAX};
use crate::names::Slot;
use crate::pack::PackEntry;
use crate::root::{Statistics, Tracking};
use crate::{ChunkId, Domain, FormatError, JobId, PackId, Result, SessionId};

const VERSION: u16 = 1;

/// Which session and volume a message serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The session, if there is one yet.
    pub session: Option<SessionId>,
    /// The volume's name; empty for messages about no volume.
    pub volume: String,
}

impl About {
    /// About a session of a volume.
    pub fn session(session: SessionId, volume: impl Into<String>) -> Self {
        Self { session: Some(session), volume: volume.into() }
    }

    /// About no volume.
    pub fn nothing() -> Self {
        Self { session: None, volume: String::new() }
    }
}

/// A value that travels in a message's header.
pub trait Payload: Serialize + DeserializeOwned {
    /// Its name on the wire.
    const NAME: &'static str;

    /// Checks counts and sizes after decoding.
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
struct Header<T> {
    v: u16,
    kind: String,
    about: About,
    msg: T,
}

/// An encoded message. Cloning is cheap; in-process it is handed over without copying the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The encoded header.
    pub header: Bytes,
    /// Raw bytes: chunk data or frames.
    pub body: Bytes,
}

impl Message {
    /// A message without a body.
    pub fn new<T: Payload>(about: &About, payload: &T) -> Self {
        Self::with_body(about, payload, Bytes::new())
    }

    /// A message with a body.
    pub fn with_body<T: Payload>(about: &About, payload: &T, body: Bytes) -> Self {
        let header = Header { v: VERSION, kind: T::NAME.to_owned(), about: about.clone(), msg: payload };
        Self { header: crate::wire::encode(&header).into(), body }
    }

    /// Reads the payload; refuses another kind and a later version by name.
    pub fn read<T: Payload>(&self) -> Result<T> {
        let envelope = self.envelope()?;
        if envelope.kind != T::NAME {
            let why = format!("expected {}, got {:?}", T::NAME, envelope.kind);
            return Err(FormatError::invalid("message", why));
        }
        let payload = crate::wire::decode::<Header<T>>("message", &self.header)?.msg;
        payload.check()?;
        Ok(payload)
    }

    /// What the message is about; works for kinds that this build does not know.
    pub fn about(&self) -> Result<About> {
        self.envelope().map(|envelope| envelope.about)
    }

    /// The message's kind.
    pub fn kind(&self) -> Result<String> {
        self.envelope().map(|envelope| envelope.kind)
    }

    fn envelope(&self) -> Result<Header<serde::de::IgnoredAny>> {
        let header: Header<serde::de::IgnoredAny> = crate::wire::decode("message", &self.header)?;
        if header.v == 0 || header.v > VERSION {
            return Err(FormatError::UnknownVersion { what: "message", found: header.v, known: VERSION });
        }
        if header.about.volume.len() > VOLUME_NAME_MAX {
            let (found, limit) = (header.about.volume.len() as u64, VOLUME_NAME_MAX as u64);
            return Err(FormatError::TooLarge { what: "a volume's name", found, limit });
        }
        Ok(header)
    }

    /// Bytes of the message.
    pub fn size(&self) -> usize {
        4 + self.header.len() + self.body.len()
    }

    /// The message in one buffer, for a wire.
    pub fn to_bytes(&self) -> Result<Bytes> {
        if self.size() > MESSAGE_MAX {
            let (found, limit) = (self.size() as u64, MESSAGE_MAX as u64);
            return Err(FormatError::TooLarge { what: "a message", found, limit });
        }
        let mut out = BytesMut::with_capacity(self.size());
        out.put_u32_le(self.header.len() as u32);
        out.extend_from_slice(&self.header);
        out.extend_from_slice(&self.body);
        Ok(out.freeze())
    }

    /// Splits what [`Message::to_bytes`] made, without copying.
    pub fn from_bytes(bytes: Bytes) -> Result<Self> {
        let mut cursor = Cursor::new("message", &bytes);
        let len = cursor.count("a message's header", 1, MESSAGE_MAX)?;
        Ok(Self { header: bytes.slice(4..4 + len), body: bytes.slice(4 + len..) })
    }
}

macro_rules! payload {
    ($name:ident) => {
        impl Payload for $name {
            const NAME: &'static str = stringify!($name);
        }
    };
    ($name:ident, $self:ident => $check:expr) => {
        impl Payload for $name {
            const NAME: &'static str = stringify!($name);

            fn check(&self) -> Result<()> {
                let $self = self;
                $check
            }
        }
    };
}

fn at_most(what: &'static str, found: usize, limit: usize) -> Result<()> {
    match found <= limit {
        true => Ok(()),
        false => Err(FormatError::TooLarge { what, found: found as u64, limit: limit as u64 }),
    }
}

/// Offsets stay below the largest volume, so that adding lengths to them never overflows.
fn inside_volume(offset: u64) -> Result<()> {
    match offset <= VOLUME_MAX {
        true => Ok(()),
        false => {
            Err(FormatError::TooLarge { what: "an offset in a volume", found: offset, limit: VOLUME_MAX })
        }
    }
}

mod checking;
mod reading;
mod restoring;
mod seeking;
mod sharing;
pub use checking::*;
pub use reading::*;
pub use restoring::*;
pub use seeking::*;
pub use sharing::*;

/// An operator asks for a backup of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupJob {
    /// The job.
    pub job: JobId,
    /// The volume's name.
    pub volume: String,
    /// The host whose reader opens the source.
    pub host: String,
    /// The source there: a path.
    pub source: String,
    /// Tags for the snapshot.
    pub tags: Vec<String>,
    /// A source that changes while it is read is sealed all the same, and marked.
    pub allow_changes: bool,
    /// The volumes that this one is frozen with, itself among them.
    pub group: Option<Group>,
    /// A logical volume is read as the device that it is, and no snapshot of it is taken: whoever wants it sees to it
    /// that nobody writes there.
    #[serde(default, skip_serializing_if = "is_false")]
    pub plain: bool,
}
payload!(BackupJob, job => {
    at_most("a volume's name", job.volume.len(), VOLUME_NAME_MAX)?;
    job.group.as_ref().map_or(Ok(()), Group::check)
});

/// Volumes of one host that are read in the state of one moment. Each has a job and a session of its own; the first
/// that is opened makes that moment for all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// This run of the group.
    pub run: JobId,
    /// What the operator calls it.
    pub name: String,
    /// The sources, as they stand in their jobs.
    pub members: Vec<String>,
}

impl Group {
    fn check(&self) -> Result<()> {
        at_most("members of a group", self.members.len(), GROUP_MEMBERS_MAX)?;
        let names = self.members.iter().chain([&self.name]);
        at_most("a name in a group", names.map(String::len).max().unwrap_or(0), VOLUME_NAME_MAX)
    }
}

/// Name and run, as snapshots carry it.
impl std::fmt::Display for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.name, self.run)
    }
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// How a job ended. Sent until somebody took it; the bucket says the same for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobDone {
    /// The job.
    pub job: JobId,
    /// Its end.
    pub outcome: JobOutcome,
}
payload!(JobDone);

/// The end of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobOutcome {
    /// A snapshot was committed.
    Sealed {
        /// Where.
        slot: Slot,
        /// Its generation.
        generation: u64,
        /// The volume's size in bytes.
        size: u64,
        /// Counters.
        statistics: Statistics,
        /// The source changed while it was read, and that was allowed.
        changed_while_read: bool,
        /// What was read, and why.
        tracking: Tracking,
        /// What the operator should know of the snapshot.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        notes: Vec<String>,
        /// Which of the operator's commands failed after the snapshot was taken, and how.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        post_failed: Option<String>,
    },
    /// A snapshot was restored.
    Restored {
        /// Bytes written to the target.
        written: u64,
        /// Bytes left alone, because they stood there already.
        #[serde(default, skip_serializing_if = "is_zero")]
        kept: u64,
        /// Bytes of the target that were read to see what stands there.
        #[serde(default, skip_serializing_if = "is_zero")]
        compared: u64,
        /// Bytes of those left alone that were not read, because they are known not to have changed.
        #[serde(default, skip_serializing_if = "is_zero")]
        tracked: u64,
        /// Bytes that were read to see whether that is so.
        #[serde(default, skip_serializing_if = "is_zero")]
        audited: u64,
        /// Bytes made to read as zero.
        zeroed: u64,
        /// Bytes fetched from the store.
        fetched: u64,
        /// What the operator should know of the target.
        notes: Vec<String>,
        /// Bytes taken from another target of the same snapshot, or from another place of this one.
        #[serde(default, skip_serializing_if = "is_zero")]
        copied: u64,
        /// Chunks whose best copy was missing or damaged.
        #[serde(default, skip_serializing_if = "is_zero")]
        rescued: u64,
        /// Bytes that cannot be read any more, and are zero on the target: only where that was asked for.
        #[serde(default, skip_serializing_if = "is_zero")]
        lost: u64,
        /// Where they are, in order; the first of them.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        holes: Vec<LostRange>,
        /// What stood on the target before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        undo: Option<Slot>,
        /// What came of reading it again. None where that was not asked for, and of agents that do not know how.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        verified: Option<Verified>,
        /// Which file or device the target is, whatever its name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stands_on: Option<Box<FileIdentity>>,
    },
    /// It failed.
    Failed {
        /// What to do about it.
        kind: FailureKind,
        /// For the operator: names the volume, and the offset or object.
        why: String,
    },
}

/// What a failure asks of the operator; each has an exit code of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The source or target is at fault.
    Device,
    /// The store is at fault.
    Store,
    /// The request cannot be done as it was asked.
    Refused,
    /// Stored data is damaged or missing.
    Damaged,
    /// Somebody cancelled it, or took its commit slot.
    Revoked,
    /// Anything else; a defect of lvkeep or of its surroundings.
    Other,
}

/// How far a job is; lost ones are not missed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The job.
    pub job: JobId,
    /// The session that runs it now.
    pub session: SessionId,
    /// The volume's name.
    pub volume: String,
    /// Bytes to do.
    pub total: u64,
    /// Bytes done.
    pub done: u64,
    /// Counters so far.
    pub statistics: Statistics,
    /// What stood on the target of a restore, once that is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<Slot>,
}
payload!(Progress);

/// Sealed frames for the storer; the body holds them one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewChunks {
    /// The session.
    pub session: SessionId,
    /// What the chunks hold.
    pub kind: Domain8,
    /// The data key that sealed them, if one did.
    pub key: Option<SealedKey>,
}
payload!(NewChunks, new => at_most("a sealed key", new.key.as_ref().map_or(0, |k| k.sealed.len()), SEALED_KEY_MAX));

/// A [`Domain`] as one byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Domain8(pub Domain);

impl TryFrom<u8> for Domain8 {
    type Error = FormatError;

    fn try_from(byte: u8) -> Result<Self> {
        Domain::from_byte(byte).map(Self)
    }
}

impl From<Domain8> for u8 {
    fn from(domain: Domain8) -> u8 {
        domain.0 as u8
    }
}

/// A pack is durable. Goes to the owning shards of the index, and to whoever waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackStored {
    /// The pack.
    pub pack: PackId,
    /// Chunks inside and where.
    pub entries: Vec<PackEntry>,
}
payload!(PackStored);

/// A hasher asks a shard of the index about the chunks of one extent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// The session; with `extent` the owner of any claim.
    pub session: SessionId,
    /// Where the extent starts.
    pub extent: u64,
    /// Always answer `Yours`.
    pub force: bool,
    /// How many shards the asker believes that there are.
    pub shards: u16,
    /// The chunks.
    pub ids: Vec<ChunkId>,
}
payload!(Ask, ask => at_most("ids in a question", ask.ids.len(), ASK_MAX));

/// The index's answer for one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It is in this pack: a hint.
    Known(PackId),
    /// Nobody has it: store it.
    Yours,
    /// Somebody else is storing it.
    Pending,
}

/// Answers in the order of the question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    /// One per id.
    pub answers: Vec<Answer>,
}
payload!(Answers, a => at_most("answers", a.answers.len(), ASK_MAX));

/// Where are all copies of these chunks?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locate {
    /// How many shards the asker believes that there are.
    pub shards: u16,
    /// The chunks.
    pub ids: Vec<ChunkId>,
}
payload!(Locate, l => at_most("ids in a question", l.ids.len(), ASK_MAX));

/// One stored copy of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Copy {
    /// The pack.
    pub pack: PackId,
    /// Where its frame starts in the pack, in bytes.
    pub offset: u32,
    /// Bytes of the frame.
    pub len: u32,
}

/// All known copies, in the order of the question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Located {
    /// One list per id.
    pub copies: Vec<Vec<Copy>>,
}
payload!(Located, l => at_most("answers", l.copies.len(), ASK_MAX));

/// A service could not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For the operator.
    pub why: String,
}
payload!(Refusal);

/// Close the packs that hold chunks of this session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flush {
    /// The session.
    pub session: SessionId,
}
payload!(Flush);

/// Give the session up: its slot is a tombstone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// The session.
    pub session: SessionId,
}
payload!(Cancel);

/// Restorer agents, stop this job where you have begun it: nobody wants it any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRestore {
    /// The job.
    pub job: JobId,
}
payload!(StopRestore);

/// A job that an agent was given waits: a restore for another one, a backup for the store or the index. Told beside
/// [`Progress`], on the same topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreWaits {
    /// The job.
    pub job: JobId,
    /// The host of the agent.
    pub host: String,
    /// What for, for people.
    pub why: String,
}
payload!(RestoreWaits);

/// Every agent, say who you are: answers go to the topic `reply`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhoIsThere {
    /// The topic for answers.
    pub reply: String,
}
payload!(WhoIsThere);

/// One agent process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentIsThere {
    /// Its host.
    pub host: String,
    /// Its process id.
    pub pid: u32,
    /// Its roles.
    pub roles: Vec<String>,
    /// The version of its binary.
    pub version: String,
    /// Its sessions in progress, one line each, for people.
    pub sessions: Vec<String>,
    /// Its counters.
    pub counters: Vec<(String, u64)>,
}
payload!(AgentIsThere);
