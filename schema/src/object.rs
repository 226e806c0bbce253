//! The envelope of small objects: roots, sessions, markers, marks, epochs.
//!
//! ```text
//! "LVKO" version u16 = 1, kind u8, cipher u8, repo id 16, nonce 12, body length u32, body, tag 16
//! ```
//!
//! The tag covers everything before the body and the object's own key in the bucket, so that an object moved to
//! another key, or to another repository, is refused. Cipher 1 is AES-256-GCM under a key derived from the
//! writer key; cipher 0 (plain repositories) leaves the body readable and the tag is keyed BLAKE3.
//! An empty object has no envelope: a tombstone of an older repository, or what a repair left of an epoch.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::crypt::{self, TAG_LEN};
use crate::cursor::Cursor;
use crate::keys::WriterKey;
use crate::limits::OBJECT_MAX;
use crate::{FormatError, RepoId, Result};

const MAGIC: [u8; 4] = *b"LVKO";
const VERSION: u16 = 1;
const HEADER_LEN: usize = 40;

/// What a small object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ObjectKind {
    /// A snapshot's root.
    Root = 1,
    /// A session in progress.
    Session = 2,
    /// A forgotten marker.
    Forgotten = 3,
    /// An epoch of the collector.
    Epoch = 4,
    /// The verdict of an epoch.
    Verdict = 5,
    /// The sealed part of `config`.
    Config = 6,
    /// A hold, tags or a note of a snapshot.
    Mark = 7,
    /// The sessions that an epoch of the collector waits for.
    Awaited = 9,
    /// What a check found.
    Damage = 10,
    /// What of a snapshot cannot be read any more.
    Holes = 11,
    /// A check that agents were given.
    Check = 12,
    /// What stands in a slot where no snapshot is.
    Tombstone = 13,
}

impl ObjectKind {
    /// Whether an empty object may stand for one: a repair leaves it of a collection that is over.
    pub fn may_be_emptied(self) -> bool {
        matches!(self, Self::Epoch | Self::Verdict | Self::Awaited)
    }
}

/// A value that is stored as a small object.
pub trait Object: Serialize + DeserializeOwned {
    /// Which kind it is stored as.
    const KIND: ObjectKind;
    /// What messages call it.
    const WHAT: &'static str;

    /// Seals the value for the object key `key`. `nonce` is 12 fresh random bytes.
    fn seal(&self, writer: &WriterKey, key: &str, nonce: [u8; 12]) -> Result<Vec<u8>> {
        seal(writer, Self::KIND, key, nonce, &crate::wire::encode(self))
    }

    /// Opens what stands at the object key `key`.
    fn open(bytes: &[u8], writer: &WriterKey, key: &str) -> Result<Self> {
        Self::decode(&open(writer, Self::KIND, Self::WHAT, key, bytes)?)
    }

    /// Reads the body inside the envelope.
    fn decode(body: &[u8]) -> Result<Self> {
        crate::wire::decode(Self::WHAT, body)
    }
}

pub(crate) fn seal(
    writer: &WriterKey,
    kind: ObjectKind,
    key: &str,
    nonce: [u8; 12],
    body: &[u8],
) -> Result<Vec<u8>> {
    if body.len() > OBJECT_MAX {
        let (found, limit) = (body.len() as u64, OBJECT_MAX as u64);
        return Err(FormatError::TooLarge { what: "an object", found, limit });
    }
    let mut out = Vec::with_capacity(HEADER_LEN + body.len() + TAG_LEN);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[kind as u8, u8::from(writer.encrypted())]);
    out.extend_from_slice(writer.repo().as_bytes());
    out.extend_from_slice(&nonce);
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    let aad = aad(&out, key);
    out.extend_from_slice(body);
    let secret = writer.object_key();
    let tag = match writer.encrypted() {
        true => crypt::seal(&secret, nonce, &aad, &mut out[HEADER_LEN..])?,
        false => plain_tag(&secret, &aad, body),
    };
    out.extend_from_slice(&tag);
    Ok(out)
}

pub(crate) fn open(
    writer: &WriterKey,
    kind: ObjectKind,
    what: &'static str,
    key: &str,
    bytes: &[u8],
) -> Result<Vec<u8>> {
    let mut cursor = Cursor::new(what, bytes);
    match cursor.expect(&MAGIC, VERSION) {
        // The tag covers the version: what opens with this one has rotted there, and no later lvkeep wrote it.
        Err(FormatError::UnknownVersion { .. })
            if open(writer, kind, what, key, &versioned(bytes)).is_ok() =>
        {
            return Err(FormatError::Damaged { what, check: "its version" });
        }
        expected => expected?,
    };
    let (found_kind, cipher) = (cursor.u8()?, cursor.u8()?);
    let repo = RepoId::from_bytes(cursor.array()?);
    let nonce = cursor.array()?;
    let len = cursor.count("an object's body", 1, OBJECT_MAX)?;
    let body = cursor.take(len)?;
    let tag = cursor.take(TAG_LEN)?;
    cursor.end()?;
    if found_kind != kind as u8 {
        return Err(FormatError::invalid(what, format!("it is an object of kind {found_kind}")));
    }
    if repo != writer.repo() {
        return Err(FormatError::invalid(what, format!("it belongs to repository {repo}")));
    }
    if cipher != u8::from(writer.encrypted()) {
        return Err(FormatError::invalid(what, "it is not encrypted as the repository says"));
    }
    let damaged =
        FormatError::Damaged { what, check: "its authentication tag (damaged, or moved from another name)" };
    let aad = aad(&bytes[..HEADER_LEN], key);
    let secret = writer.object_key();
    if !writer.encrypted() {
        return match plain_tag(&secret, &aad, body) == *tag {
            true => Ok(body.to_vec()),
            false => Err(damaged),
        };
    }
    let mut plain = Vec::new();
    crypt::open(&secret, nonce, &aad, &bytes[HEADER_LEN..], &mut plain).map_err(|_| damaged)?;
    Ok(plain)
}

/// The same object, of the version that this build writes.
fn versioned(bytes: &[u8]) -> Vec<u8> {
    let (magic, rest) = bytes.split_at(MAGIC.len());
    [magic, &VERSION.to_le_bytes(), &rest[2..]].concat()
}

fn aad(header: &[u8], key: &str) -> Vec<u8> {
    [header, key.as_bytes()].concat()
}

fn plain_tag(secret: &crypt::Secret, aad: &[u8], body: &[u8]) -> [u8; TAG_LEN] {
    let mut hasher = blake3::Hasher::new_keyed(secret.bytes());
    hasher.update(&(aad.len() as u64).to_le_bytes());
    hasher.update(aad);
    hasher.update(body);
    let mut out = [0; TAG_LEN];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..TAG_LEN]);
    out
}
