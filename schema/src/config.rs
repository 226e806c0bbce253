//! The `config` object: what a repository is, and what is needed to use it.
//!
//! ```text
//! "LVKC" version u16 = 1, encrypted u8, reserved u8, repo id 16, head length u32, head (MessagePack), sealed body
//! ```
//!
//! The head is readable by anyone with the bucket: features and the writer key, which is sealed to the recipients
//! (or stands open in a plain repository). The body is an envelope of kind `Config`, bound to the head's hash.

use serde::{Deserialize, Serialize};

use crate::cursor::Cursor;
use crate::keys::{Identity, WriterKey};
use crate::limits::SEALED_KEY_MAX;
use crate::object::{self, ObjectKind};
use crate::tombstone::Tombstones;
use crate::{FormatError, RepoId, Result};

const MAGIC: [u8; 4] = *b"LVKC";
const VERSION: u16 = 1;
const WHAT: &str = "config";
const FEATURES_MAX: usize = 64;
/// Bytes of the readable part.
const HEAD_MAX: usize = SEALED_KEY_MAX;

/// What every repository requires.
pub const FEATURE_BASE: &str = "base-1";
/// Data keys belong to the first of several repositories that share their keys.
pub const FEATURE_SHARED_KEYS: &str = "shared-keys-1";
/// Tombstones are sealed objects; without it, they are empty ones.
pub const FEATURE_SEALED_TOMBSTONES: &str = "sealed-tombstones-1";
/// Features that this build knows; a repository may require any of them.
pub const KNOWN_FEATURES: &[&str] = &[FEATURE_BASE, FEATURE_SHARED_KEYS, FEATURE_SEALED_TOMBSTONES];

/// The readable part of `config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigHead {
    /// The repository.
    pub repo: RepoId,
    /// Whether content is encrypted.
    pub encrypted: bool,
    /// Features that a reader must know.
    pub read_features: Vec<String>,
    /// Features that a writer must know besides.
    pub write_features: Vec<String>,
    writer_key: Vec<u8>,
    body: Vec<u8>,
    digest: [u8; 32],
}

#[derive(Serialize, Deserialize)]
struct Head {
    read_features: Vec<String>,
    write_features: Vec<String>,
    #[serde(with = "serde_bytes")]
    writer_key: Vec<u8>,
}

/// What the probe found of the store at `init`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorePromise {
    /// Create-if-absent lets exactly one of several racing creators win.
    pub conditional_create: bool,
}

/// The sealed part of `config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// When the repository was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// Target size of packs in bytes.
    pub pack_size: u64,
    /// How volumes are cut: names the algorithm and its sizes.
    pub chunker: String,
    /// What the store promised when it was probed.
    pub store: StorePromise,
    /// The recipients' generation (see [`WriterKey::generation`]).
    pub key_generation: u32,
}

/// The only way of cutting so far: block-aligned, 16 KiB minimum, 64 KiB average, 256 KiB maximum.
pub const CHUNKER_BLOCK_ALIGNED: &str = "block-aligned-16k-64k-256k";

impl Config {
    /// The bytes of `config` of a new repository, which requires what it needs. `nonce` is 12 fresh random bytes.
    pub fn encode(&self, writer: &WriterKey, nonce: [u8; 12]) -> Result<Vec<u8>> {
        let shared = writer.is_shared().then_some(FEATURE_SHARED_KEYS);
        let needed = [FEATURE_BASE, FEATURE_SEALED_TOMBSTONES].into_iter().chain(shared);
        let needed: Vec<String> = needed.map(str::to_owned).collect();
        self.encode_requiring(&needed, &needed, writer, nonce)
    }

    /// The bytes of `config` of a repository that requires these features to be read and to be written.
    pub fn encode_requiring(
        &self,
        read_features: &[String],
        write_features: &[String],
        writer: &WriterKey,
        nonce: [u8; 12],
    ) -> Result<Vec<u8>> {
        let (read_features, write_features) = (read_features.to_vec(), write_features.to_vec());
        let head = crate::wire::encode(&Head { read_features, write_features, writer_key: writer.seal()? });
        if head.len() > HEAD_MAX {
            let (found, limit) = (head.len() as u64, HEAD_MAX as u64);
            return Err(FormatError::TooLarge { what: "the head of config", found, limit });
        }
        let mut out = Vec::new();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[u8::from(writer.encrypted()), 0]);
        out.extend_from_slice(writer.repo().as_bytes());
        out.extend_from_slice(&(head.len() as u32).to_le_bytes());
        out.extend_from_slice(&head);
        let key = body_key(blake3::hash(&out).as_bytes());
        out.extend(object::seal(writer, ObjectKind::Config, &key, nonce, &crate::wire::encode(self))?);
        Ok(out)
    }
}

fn body_key(digest: &[u8; 32]) -> String {
    let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
    format!("config/{hex}")
}

impl ConfigHead {
    /// Reads the readable part and refuses features that this build lacks to read the repository.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut cursor = Cursor::new(WHAT, bytes);
        cursor.expect(&MAGIC, VERSION)?;
        let encrypted = match (cursor.u8()?, cursor.u8()?) {
            (0, 0) => false,
            (1, 0) => true,
            (flag, reserved) => {
                return Err(FormatError::invalid(WHAT, format!("its flags are {flag} and {reserved}")));
            }
        };
        let repo = RepoId::from_bytes(cursor.array()?);
        let len = cursor.count("the head of config", 1, HEAD_MAX)?;
        let head: Head = crate::wire::decode(WHAT, cursor.take(len)?)?;
        let body = cursor.take(cursor.left())?;
        let features = head.read_features.len().max(head.write_features.len());
        if features > FEATURES_MAX {
            let (found, limit) = (features as u64, FEATURES_MAX as u64);
            return Err(FormatError::TooLarge { what: "features", found, limit });
        }
        require(&head.read_features, "read")?;
        Ok(Self {
            repo,
            encrypted,
            read_features: head.read_features,
            write_features: head.write_features,
            writer_key: head.writer_key,
            digest: *blake3::hash(&bytes[..bytes.len() - body.len()]).as_bytes(),
            body: body.to_vec(),
        })
    }

    /// What the repository's tombstones are.
    pub fn tombstones(&self) -> Tombstones {
        match self.read_features.iter().any(|feature| feature == FEATURE_SEALED_TOMBSTONES) {
            true => Tombstones::Sealed,
            false => Tombstones::Empty,
        }
    }

    /// Refuses when the repository requires a feature for writing that this build lacks.
    pub fn check_writable(&self) -> Result<()> {
        require(&self.write_features, "write")
    }

    /// The writer key out of the bucket: with an identity, or as it stands in a plain repository.
    pub fn writer_key(&self, identity: Option<&Identity>) -> Result<WriterKey> {
        let key = match (self.encrypted, identity) {
            (false, _) => WriterKey::read_plain(&self.writer_key)?,
            (true, Some(identity)) => WriterKey::unseal(&self.writer_key, identity)?,
            (true, None) => {
                let why = "the repository is encrypted: give its writer key file, or an identity".to_owned();
                return Err(FormatError::CannotOpen { what: "writer key", why });
            }
        };
        self.check_key(&key)?;
        Ok(key)
    }

    fn check_key(&self, key: &WriterKey) -> Result<()> {
        if key.repo() != self.repo {
            let why = format!("the writer key is of repository {}, this is {}", key.repo(), self.repo);
            return Err(FormatError::CannotOpen { what: WHAT, why });
        }
        if key.encrypted() != self.encrypted {
            return Err(FormatError::invalid(WHAT, "it and the writer key differ about encryption"));
        }
        Ok(())
    }

    /// Opens the sealed part.
    pub fn open(&self, writer: &WriterKey) -> Result<Config> {
        self.check_key(writer)?;
        let body = object::open(writer, ObjectKind::Config, WHAT, &body_key(&self.digest), &self.body)?;
        crate::wire::decode(WHAT, &body)
    }
}

fn require(features: &[String], action: &'static str) -> Result<()> {
    match features.iter().find(|f| !KNOWN_FEATURES.contains(&f.as_str())) {
        Some(feature) => Err(FormatError::UnknownFeature { feature: feature.clone(), action }),
        None => Ok(()),
    }
}
