//! Newtype ids. None has a `Default`: an id is made from what it names, or from a clock and randomness by the caller.
//!
//! Text forms are what operators see and what object keys carry; `FromStr` accepts exactly what `Display` prints.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::FormatError;

/// Writes bytes as lower-case hex.
fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|b| write!(f, "{b:02x}"))
}

/// Reads exactly `N` bytes of lower-case hex.
fn parse_hex<const N: usize>(what: &'static str, text: &str) -> crate::Result<[u8; N]> {
    let bytes = hex_bytes(text).and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| {
        let (shown, digits) = (text.get(..N * 2 + 8).unwrap_or(text), N * 2);
        FormatError::invalid(what, format!("{shown:?} is not {digits} lower-case hexadecimal digits"))
    })
}

/// The bytes that lower-case hex stands for; none for anything else.
pub(crate) fn hex_bytes(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect()
}

struct BytesVisitor<const N: usize>(&'static str);

impl<'de, const N: usize> de::Visitor<'de> for BytesVisitor<N> {
    type Value = [u8; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{N} bytes of a {}", self.0)
    }

    fn visit_bytes<E: de::Error>(self, v: &[u8]) -> Result<[u8; N], E> {
        v.try_into().map_err(|_| E::invalid_length(v.len(), &self))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<[u8; N], A::Error> {
        let mut out = [0; N];
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = seq.next_element()?.ok_or_else(|| de::Error::invalid_length(i, &self))?;
        }
        Ok(out)
    }
}

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Takes the raw bytes.
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The raw bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_bytes(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                d.deserialize_bytes(BytesVisitor::<$len>($what)).map(Self)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

macro_rules! hex_text {
    ($name:ident, $what:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0)
            }
        }

        impl FromStr for $name {
            type Err = FormatError;

            fn from_str(text: &str) -> crate::Result<Self> {
                parse_hex($what, text).map(Self)
            }
        }
    };
}

macro_rules! ulid_text {
    ($name:ident, $what:literal) => {
        impl $name {
            /// An id from a time (milliseconds since 1970) and 80 random bits. Order by time is a convenience
            /// for people; no safety relies on it.
            pub fn from_parts(time_ms: u64, random: u128) -> Self {
                Self(ulid::Ulid::from_parts(time_ms, random).to_bytes())
            }

            /// The time that the id carries, in milliseconds since 1970.
            pub fn time_ms(&self) -> u64 {
                ulid::Ulid::from_bytes(self.0).timestamp_ms()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut buffer = [0; ulid::ULID_LEN];
                f.write_str(ulid::Ulid::from_bytes(self.0).array_to_str(&mut buffer))
            }
        }

        impl FromStr for $name {
            type Err = FormatError;

            fn from_str(text: &str) -> crate::Result<Self> {
                // The library also reads lower case and numbers beyond 128 bits, which name other ids' objects.
                let mut buffer = [0; ulid::ULID_LEN];
                match ulid::Ulid::from_string(text) {
                    Ok(id) if id.array_to_str(&mut buffer) == text => Ok(Self(id.to_bytes())),
                    _ => Err(FormatError::invalid($what, format!("{text:?} is not a ULID"))),
                }
            }
        }
    };
}

byte_id!(
    /// A repository, random at `init`.
    RepoId, 16, "repository id"
);
hex_text!(RepoId, "repository id");
byte_id!(
    /// A data key of one hasher process, random.
    KeyId, 16, "key id"
);
hex_text!(KeyId, "key id");
byte_id!(
    /// A volume's place in the bucket: a keyed hash of its name, so that a listing tells no names.
    VolumeKey, 16, "volume key"
);
hex_text!(VolumeKey, "volume key");
byte_id!(
    /// One LVM snapshot, or one opened file or device, being read.
    ReadingId, 16, "reading id"
);
hex_text!(ReadingId, "reading id");
byte_id!(
    /// One backup, copy, undo or restore in progress; also the name of the snapshot that it commits.
    SessionId, 16, "session id"
);
ulid_text!(SessionId, "session id");
byte_id!(
    /// What an operator asked for; a job that is taken over runs in several sessions, one after the other.
    JobId, 16, "job id"
);
ulid_text!(JobId, "job id");
byte_id!(
    /// One upload of one pack; every attempt has a fresh one.
    PackId, 16, "pack id"
);
ulid_text!(PackId, "pack id");
byte_id!(
    /// One hold, or one change of a snapshot's tags or note.
    MarkId, 16, "mark id"
);
ulid_text!(MarkId, "mark id");
byte_id!(
    /// One record of damage; every record has a fresh one.
    DamageId, 16, "damage id"
);
ulid_text!(DamageId, "damage id");
byte_id!(
    /// One stream of changes, random; a connection that takes up another's work carries the same one.
    StreamId, 16, "stream id"
);
hex_text!(StreamId, "stream id");

/// BLAKE3-256 of an object's bytes, unkeyed: says whether two objects are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobDigest([u8; 32]);

impl BlobDigest {
    /// Hashes `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

/// What a chunk holds; the first byte of its id, and part of the key that hashes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Domain {
    /// Bytes of a volume.
    Data = 1,
    /// A map leaf or node.
    Structure = 2,
}

impl Domain {
    /// Reads the byte that stands for a domain.
    pub fn from_byte(byte: u8) -> crate::Result<Self> {
        match byte {
            1 => Ok(Self::Data),
            2 => Ok(Self::Structure),
            other => Err(FormatError::invalid("chunk id", format!("unknown id domain {other}"))),
        }
    }

    /// The longest plaintext of a chunk of this domain, in bytes.
    pub const fn max_len(self) -> usize {
        match self {
            Self::Data => crate::limits::CHUNK_MAX,
            Self::Structure => crate::limits::STRUCTURE_MAX,
        }
    }
}

byte_id!(
    /// A chunk: one byte of [`Domain`], then keyed BLAKE3-256 of its plaintext.
    ChunkId, 33, "chunk id"
);
hex_text!(ChunkId, "chunk id");

impl ChunkId {
    pub(crate) fn new(domain: Domain, hash: [u8; 32]) -> Self {
        let mut bytes = [0; 33];
        bytes[0] = domain as u8;
        bytes[1..].copy_from_slice(&hash);
        Self(bytes)
    }

    /// Takes 33 bytes and checks the domain.
    pub fn parse(bytes: &[u8; 33]) -> crate::Result<Self> {
        Domain::from_byte(bytes[0])?;
        Ok(Self(*bytes))
    }

    /// What the chunk holds.
    pub fn domain(&self) -> crate::Result<Domain> {
        Domain::from_byte(self.0[0])
    }

    /// The hash alone.
    pub fn hash(&self) -> &[u8] {
        &self.0[1..]
    }

    /// Which of `shards` shards of the index owns this id.
    pub fn shard(&self, shards: u16) -> u16 {
        u16::from_le_bytes([self.0[1], self.0[2]]) % shards.max(1)
    }
}
