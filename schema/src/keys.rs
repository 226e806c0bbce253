//! The keys of a repository and who holds which.
//!
//! * [`WriterKey`]: one file for every host; names chunks and opens structure (maps, roots), never content.
//! * [`Identity`]: an ordinary age identity, kept offline or with restorers; opens content.
//! * [`DataKey`]: made by each hasher process when it starts, never stored unsealed; seals content.
//!
//! In a plain repository (`init --no-encryption`) the writer key stands open in `config` and nothing is encrypted.

use std::io::Read;
use std::str::FromStr;

use age::secrecy::ExposeSecret;
use age::x25519;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::crypt::Secret;
use crate::{ChunkId, Domain, FormatError, KeyId, RepoId, Result, VolumeKey, limits};

const WRITER_KEY_PREFIX: &str = "LVKEEP-WRITER-KEY-1-";
/// Version of the bodies of data keys, and of writer keys of repositories that share keys with no earlier one.
const KEY_VERSION: u16 = 1;
/// Version of the body of a writer key that names a family.
const KEY_VERSION_FAMILY: u16 = 2;

/// What a host needs to name chunks and to read and write structure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriterKey {
    repo: RepoId,
    /// The first of the repositories that share these keys, if that is another one.
    family: Option<RepoId>,
    generation: u32,
    encrypted: bool,
    recipients: Vec<String>,
    chunk_id: Secret,
    structure: Secret,
}

#[derive(Serialize, Deserialize)]
struct WriterKeyBody {
    version: u16,
    repo: RepoId,
    generation: u32,
    encrypted: bool,
    recipients: Vec<String>,
    #[serde(with = "serde_bytes")]
    chunk_id: Vec<u8>,
    #[serde(with = "serde_bytes")]
    structure: Vec<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    family: Option<RepoId>,
}

impl WriterKey {
    /// A new key for a new repository. `random` is 64 fresh random bytes; without recipients the repository is plain.
    pub fn new(repo: RepoId, recipients: Vec<String>, random: &[u8; 64]) -> Result<Self> {
        check_recipients(&recipients)?;
        let (mut chunk_id, mut structure) = ([0; 32], [0; 32]);
        chunk_id.copy_from_slice(&random[..32]);
        structure.copy_from_slice(&random[32..]);
        Ok(Self {
            repo,
            family: None,
            generation: 1,
            encrypted: !recipients.is_empty(),
            recipients,
            chunk_id: Secret::new(chunk_id),
            structure: Secret::new(structure),
        })
    }

    /// The key of another repository with the same secrets and recipients: equal chunks have equal ids in both, and data
    /// keys of either open the frames of both.
    pub fn like(&self, repo: RepoId) -> Self {
        Self { repo, family: Some(self.family()), generation: 1, ..self.clone() }
    }

    /// The repository that the key belongs to.
    pub fn repo(&self) -> RepoId {
        self.repo
    }

    /// What the data keys of all repositories that share these keys belong to: the first of them.
    pub fn family(&self) -> RepoId {
        self.family.unwrap_or(self.repo)
    }

    /// Whether the keys are those of an earlier repository.
    pub fn is_shared(&self) -> bool {
        self.family.is_some()
    }

    /// Whether frames of one repository are frames of the other.
    pub fn shares_keys(&self, other: &Self) -> bool {
        let secrets = |key: &Self| (key.family(), key.encrypted, key.chunk_id.clone(), key.structure.clone());
        secrets(self) == secrets(other)
    }

    /// Counts changes of the recipients; a host with a lower one seals to an outdated list.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether content and structure are encrypted.
    pub fn encrypted(&self) -> bool {
        self.encrypted
    }

    /// The age recipients that can open content.
    pub fn recipients(&self) -> &[String] {
        &self.recipients
    }

    /// The same key with one more recipient and the next generation.
    pub fn with_recipient(&self, recipient: &str) -> Result<Self> {
        parse_recipient(recipient)?;
        if !self.encrypted {
            return Err(FormatError::invalid("recipient", "this repository is not encrypted"));
        }
        let mut key = self.clone();
        if !key.recipients.iter().any(|r| r == recipient) {
            key.recipients.push(recipient.to_owned());
            check_recipients(&key.recipients)?;
            key.generation = key.generation.saturating_add(1);
        }
        Ok(key)
    }

    /// Names chunks.
    pub fn chunk_ids(&self) -> ChunkIds {
        let key = |context| *self.chunk_id.derive(context).bytes();
        ChunkIds { data: key("lvkeep 1 chunk id: data"), structure: key("lvkeep 1 chunk id: structure") }
    }

    /// The seed of this repository's cut points.
    pub fn cut_seed(&self) -> u64 {
        let derived = self.chunk_id.derive("lvkeep 1 cut seed");
        let mut seed = [0; 8];
        seed.copy_from_slice(&derived.bytes()[..8]);
        u64::from_le_bytes(seed)
    }

    /// Where the snapshots of a volume stand in the bucket.
    pub fn volume_key(&self, volume: &str) -> VolumeKey {
        let hash = self.structure.derive("lvkeep 1 volume key").for_thing(volume.as_bytes());
        let mut out = [0; 16];
        out.copy_from_slice(&hash.bytes()[..16]);
        VolumeKey::from_bytes(out)
    }

    /// The key that seals maps.
    pub fn structure_key(&self) -> FrameKey {
        match self.encrypted {
            true => FrameKey { index: KEY_STRUCTURE, secret: Some(self.structure.derive("lvkeep 1 maps")) },
            false => FrameKey::plain(),
        }
    }

    pub(crate) fn object_key(&self) -> Secret {
        self.structure.derive("lvkeep 1 objects")
    }

    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let body = WriterKeyBody {
            version: self.family.map_or(KEY_VERSION, |_| KEY_VERSION_FAMILY),
            repo: self.repo,
            generation: self.generation,
            encrypted: self.encrypted,
            recipients: self.recipients.clone(),
            chunk_id: self.chunk_id.bytes().to_vec(),
            structure: self.structure.bytes().to_vec(),
            family: self.family,
        };
        Zeroizing::new(crate::wire::encode(&body))
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let body: WriterKeyBody = crate::wire::decode_versioned("writer key", KEY_VERSION_FAMILY, bytes)?;
        check_recipients(&body.recipients)?;
        if body.family.is_some() != (body.version == KEY_VERSION_FAMILY) {
            return Err(FormatError::invalid(
                "writer key",
                "its version and its family do not belong together",
            ));
        }
        if body.encrypted == body.recipients.is_empty() {
            return Err(FormatError::invalid(
                "writer key",
                "it is encrypted for nobody, or plain with recipients",
            ));
        }
        let secret = |bytes: &[u8]| {
            <[u8; 32]>::try_from(bytes)
                .map(Secret::new)
                .map_err(|_| FormatError::invalid("writer key", "a key in it is not 32 bytes long"))
        };
        Ok(Self {
            repo: body.repo,
            family: body.family,
            generation: body.generation,
            encrypted: body.encrypted,
            chunk_id: secret(&body.chunk_id)?,
            structure: secret(&body.structure)?,
            recipients: body.recipients,
        })
    }

    /// The text of a writer key file.
    pub fn to_file(&self) -> Zeroizing<String> {
        let body = self.encode();
        let check = blake3::hash(&body);
        let mut text = format!(
            "# lvkeep writer key of repository {}\n# Hosts that back up need this file. It names chunks and opens maps; it opens no content.\n{WRITER_KEY_PREFIX}",
            self.repo
        );
        for byte in body.iter().chain(&check.as_bytes()[..4]) {
            text.push_str(&format!("{byte:02x}"));
        }
        text.push('\n');
        Zeroizing::new(text)
    }

    /// Reads a writer key file.
    pub fn from_file(text: &str) -> Result<Self> {
        let what = "writer key file";
        let line = text
            .lines()
            .map(str::trim)
            .find(|line| !line.is_empty() && !line.starts_with('#'))
            .ok_or(FormatError::NotOurs { what })?;
        let hex = line.strip_prefix(WRITER_KEY_PREFIX).ok_or_else(|| other_version(what, line))?;
        if hex.len() > limits::SEALED_KEY_MAX {
            let (found, limit) = (hex.len() as u64, limits::SEALED_KEY_MAX as u64);
            return Err(FormatError::TooLarge { what, found, limit });
        }
        let bytes = crate::ids::hex_bytes(hex)
            .map(Zeroizing::new)
            .ok_or_else(|| FormatError::invalid(what, "its key is not lower-case hexadecimal"))?;
        let (body, check) = bytes.split_last_chunk::<4>().ok_or(FormatError::NotOurs { what })?;
        if blake3::hash(body).as_bytes()[..4] != check[..] {
            return Err(FormatError::Damaged { what, check: "its check sum" });
        }
        Self::decode(body)
    }

    /// Seals the key to its own recipients, for `config`. In a plain repository it stands open.
    pub fn seal(&self) -> Result<Vec<u8>> {
        match self.encrypted {
            true => seal_to(&self.recipients, &self.encode()),
            false => Ok(self.encode().to_vec()),
        }
    }

    /// Opens what [`WriterKey::seal`] made of an encrypted repository's key.
    pub fn unseal(sealed: &[u8], identity: &Identity) -> Result<Self> {
        let what = "writer key";
        let opened = identity.open_or_why(what, sealed)?.map_err(|closed| match closed {
            Closed::ToThisIdentity(why) => FormatError::CannotOpen { what, why },
            Closed::Damaged(why) => {
                FormatError::invalid(what, format!("what it is sealed in is damaged ({why})"))
            }
        })?;
        Self::decode(&opened)
    }

    /// Reads what [`WriterKey::seal`] made of a plain repository's key.
    pub fn read_plain(body: &[u8]) -> Result<Self> {
        Self::decode(body)
    }
}

/// Hashes plaintext to chunk ids.
#[derive(Clone)]
pub struct ChunkIds {
    data: [u8; 32],
    structure: [u8; 32],
}

impl ChunkIds {
    pub(crate) fn fuzz() -> Self {
        Self { data: [1; 32], structure: [2; 32] }
    }

    /// The id of a chunk with this plaintext.
    pub fn id(&self, domain: Domain, plaintext: &[u8]) -> ChunkId {
        let key = match domain {
            Domain::Data => &self.data,
            Domain::Structure => &self.structure,
        };
        ChunkId::new(domain, *blake3::keyed_hash(key, plaintext).as_bytes())
    }
}

/// Key index of frames that are not encrypted.
pub const KEY_PLAIN: u32 = 0;
/// Key index of frames sealed with the structure key.
pub const KEY_STRUCTURE: u32 = 1;
/// The lowest key index of a data key.
pub const KEY_DATA_FIRST: u32 = 16;

/// A key that seals and opens frames, with the index that their headers carry.
#[derive(Debug, Clone)]
pub struct FrameKey {
    index: u32,
    secret: Option<Secret>,
}

impl FrameKey {
    /// No key: frames of a plain repository.
    pub fn plain() -> Self {
        Self { index: KEY_PLAIN, secret: None }
    }

    /// What frame headers call it.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The key of one chunk; none in a plain repository.
    pub(crate) fn for_chunk(&self, id: &ChunkId) -> Option<Secret> {
        self.secret.as_ref().map(|secret| secret.for_thing(id.as_bytes()))
    }
}

/// A data key as the bucket and the bus carry it: its id and the age file that holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedKey {
    /// Which key.
    pub id: KeyId,
    /// The age file, sealed to all recipients.
    pub sealed: Bytes,
    /// The writer key's generation when it was sealed: says which recipients it knew.
    pub generation: u32,
}

/// A data key, open. It is made by a hasher process, or opened with an identity.
#[derive(Debug, Clone)]
pub struct DataKey {
    id: KeyId,
    secret: Secret,
}

#[derive(Serialize, Deserialize)]
struct DataKeyBody {
    version: u16,
    repo: RepoId,
    id: KeyId,
    #[serde(with = "serde_bytes")]
    secret: Vec<u8>,
}

impl DataKey {
    /// A new key from 48 fresh random bytes.
    pub fn new(random: &[u8; 48]) -> Self {
        let (mut id, mut secret) = ([0; 16], [0; 32]);
        id.copy_from_slice(&random[..16]);
        secret.copy_from_slice(&random[16..]);
        if key_index(&id) < KEY_DATA_FIRST {
            id[3] |= 0x80;
        }
        Self { id: KeyId::from_bytes(id), secret: Secret::new(secret) }
    }

    /// Its id.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// What frame headers call it: the first four bytes of its id.
    pub fn frame_key(&self) -> FrameKey {
        FrameKey { index: index_of(&self.id), secret: Some(self.secret.clone()) }
    }

    /// Seals the key to the recipients of `writer`.
    pub fn seal(&self, writer: &WriterKey) -> Result<SealedKey> {
        let body = DataKeyBody {
            version: KEY_VERSION,
            repo: writer.family(),
            id: self.id,
            secret: self.secret.bytes().to_vec(),
        };
        let body = Zeroizing::new(crate::wire::encode(&body));
        let sealed = seal_to(&writer.recipients, &body)?.into();
        Ok(SealedKey { id: self.id, sealed, generation: writer.generation })
    }

    /// Opens a sealed key and checks that it is the one it is filed as, of the repository that the writer key calls its
    /// family.
    pub fn unseal(family: RepoId, key: &SealedKey, identity: &Identity) -> Result<Self> {
        let what = "data key";
        let opened = identity.open(what, &key.sealed)?;
        let body: DataKeyBody = crate::wire::decode_versioned(what, KEY_VERSION, &opened)?;
        if body.repo != family || body.id != key.id {
            return Err(FormatError::invalid(what, "it belongs to another repository or key"));
        }
        if index_of(&body.id) < KEY_DATA_FIRST {
            return Err(FormatError::invalid(what, "its id is reserved"));
        }
        let secret = <[u8; 32]>::try_from(&body.secret[..])
            .map_err(|_| FormatError::invalid(what, "it is not 32 bytes long"))?;
        Ok(Self { id: body.id, secret: Secret::new(secret) })
    }
}

fn key_index(id: &[u8; 16]) -> u32 {
    u32::from_le_bytes([id[0], id[1], id[2], id[3]])
}

/// The index by which frame headers call the key `id`.
pub fn index_of(id: &KeyId) -> u32 {
    key_index(id.as_bytes())
}

/// A later version's writer key file, by name; anything else is none at all.
fn other_version(what: &'static str, line: &str) -> FormatError {
    let stem = WRITER_KEY_PREFIX.trim_end_matches("1-");
    let version =
        line.strip_prefix(stem).and_then(|rest| rest.split('-').next()).and_then(|v| v.parse().ok());
    match version {
        Some(found) => FormatError::UnknownVersion { what, found, known: KEY_VERSION },
        None => FormatError::NotOurs { what },
    }
}

fn check_recipients(recipients: &[String]) -> Result<()> {
    if recipients.len() > limits::RECIPIENTS_MAX {
        let (found, limit) = (recipients.len() as u64, limits::RECIPIENTS_MAX as u64);
        return Err(FormatError::TooLarge { what: "recipients", found, limit });
    }
    recipients.iter().try_for_each(|recipient| parse_recipient(recipient).map(drop))
}

fn parse_recipient(text: &str) -> Result<x25519::Recipient> {
    x25519::Recipient::from_str(text).map_err(|why| {
        FormatError::invalid("recipient", format!("{text:?} is not an age recipient (age1...): {why}"))
    })
}

fn seal_to(recipients: &[String], plaintext: &[u8]) -> Result<Vec<u8>> {
    let recipients = recipients.iter().map(|r| parse_recipient(r)).collect::<Result<Vec<_>>>()?;
    let failed = |why: String| FormatError::invalid("recipients", why);
    let encryptor = age::Encryptor::with_recipients(recipients.iter().map(|r| r as &dyn age::Recipient))
        .map_err(|e| failed(e.to_string()))?;
    let mut sealed = Vec::new();
    let mut writer = encryptor.wrap_output(&mut sealed).map_err(|e| failed(e.to_string()))?;
    std::io::Write::write_all(&mut writer, plaintext).map_err(|e| failed(e.to_string()))?;
    writer.finish().map_err(|e| failed(e.to_string()))?;
    Ok(sealed)
}

/// One or more age identities from one file; opens what is sealed to any of them.
pub struct Identity {
    keys: Vec<x25519::Identity>,
}

impl Identity {
    /// A new identity. The only randomness that this crate takes itself: the age library draws it from the system.
    pub fn generate() -> Self {
        Self { keys: vec![x25519::Identity::generate()] }
    }

    /// Reads an age identity file (`AGE-SECRET-KEY-1...` lines, `#` comments).
    pub fn from_file(text: &str) -> Result<Self> {
        let what = "identity file";
        let keys = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| {
                x25519::Identity::from_str(line)
                    .map_err(|why| FormatError::invalid(what, format!("no age identity: {why}")))
            })
            .collect::<Result<Vec<_>>>()?;
        if keys.is_empty() {
            return Err(FormatError::invalid(what, "it holds no AGE-SECRET-KEY-1 line"));
        }
        Ok(Self { keys })
    }

    /// The text of an identity file, readable by `age` too.
    pub fn to_file(&self) -> Zeroizing<String> {
        let mut text = String::new();
        for key in &self.keys {
            text.push_str(&format!(
                "# public key: {}\n{}\n",
                key.to_public(),
                key.to_string().expose_secret()
            ));
        }
        Zeroizing::new(text)
    }

    /// The recipients (`age1...`) that these identities open for.
    pub fn recipients(&self) -> Vec<String> {
        self.keys.iter().map(|key| key.to_public().to_string()).collect()
    }

    fn open(&self, what: &'static str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        self.open_or_why(what, sealed)?.map_err(|closed| match closed {
            Closed::ToThisIdentity(why) | Closed::Damaged(why) => FormatError::CannotOpen { what, why },
        })
    }

    fn open_or_why(
        &self,
        what: &'static str,
        sealed: &[u8],
    ) -> Result<std::result::Result<Zeroizing<Vec<u8>>, Closed>> {
        if sealed.len() > limits::SEALED_KEY_MAX {
            let (found, limit) = (sealed.len() as u64, limits::SEALED_KEY_MAX as u64);
            return Err(FormatError::TooLarge { what, found, limit });
        }
        Ok(self.opened(sealed))
    }

    fn opened(&self, sealed: &[u8]) -> std::result::Result<Zeroizing<Vec<u8>>, Closed> {
        let closed = |error: age::DecryptError| match error {
            age::DecryptError::NoMatchingKeys => {
                Closed::ToThisIdentity(format!("{error} (is this the identity of this repository?)"))
            }
            other => Closed::Damaged(other.to_string()),
        };
        let decryptor = age::Decryptor::new_buffered(sealed).map_err(closed)?;
        let keys = self.keys.iter().map(|key| key as &dyn age::Identity);
        let mut reader = decryptor.decrypt(keys).map_err(closed)?;
        let mut plaintext = Zeroizing::new(Vec::new());
        reader.read_to_end(&mut plaintext).map_err(|error| Closed::Damaged(error.to_string()))?;
        Ok(plaintext)
    }
}

/// Why what is sealed does not open.
enum Closed {
    /// To another recipient alone, as far as can be told: what is damaged where a recipient stands looks the same.
    ToThisIdentity(String),
    /// To anybody.
    Damaged(String),
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Identity").field(&self.recipients()).finish()
    }
}
