//! Packs: immutable objects of many frames of one kind.
//!
//! ```text
//! header  48  "LVKPACK\0" version u16 = 1, kind u8 (id domain), class u8, 4 reserved, repo id 16, pack id 16
//! frames      one after the other, see `chunk`
//! footer      count u32, then per frame: 32-byte hash, frame length u32 (offsets follow from the order);
//!             then the MessagePack of the key table and of the sessions whose chunks are inside
//! trailer 28  footer length u32, 16 bytes of BLAKE3 over header and footer, "LVKPEND\0"
//! ```
//!
//! `class` is reserved for retention classes; 0 until then. A torn footer loses nothing: frames describe themselves.

use std::collections::BTreeSet;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::chunk::{FRAME_HEADER_LEN, FRAME_MAGIC, FrameHeader};
use crate::cursor::Cursor;
use crate::keys::SealedKey;
use crate::limits::{PACK_ENTRIES_MAX, PACK_FOOTER_MAX, PACK_KEYS_MAX, PACK_MAX, PACK_SESSIONS_MAX};
use crate::{ChunkId, Domain, FormatError, PackId, RepoId, Result, SessionId};

/// Bytes of a pack's header.
pub const PACK_HEADER_LEN: usize = 48;
/// Bytes of a pack's trailer.
pub const TRAILER_LEN: usize = 28;
const MAGIC: [u8; 8] = *b"LVKPACK\0";
const END_MAGIC: [u8; 8] = *b"LVKPEND\0";
const VERSION: u16 = 1;
const WHAT: &str = "pack";

/// A pack's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackHeader {
    /// The repository that it belongs to.
    pub repo: RepoId,
    /// Its own id, as its name says.
    pub pack: PackId,
    /// What its chunks hold.
    pub kind: Domain,
    /// Retention class, reserved: 0.
    pub class: u8,
}

impl PackHeader {
    /// Its bytes.
    pub fn encode(&self) -> [u8; PACK_HEADER_LEN] {
        let mut out = [0; PACK_HEADER_LEN];
        out[..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[10] = self.kind as u8;
        out[11] = self.class;
        out[16..32].copy_from_slice(self.repo.as_bytes());
        out[32..].copy_from_slice(self.pack.as_bytes());
        out
    }

    /// Reads the header at the start of `bytes`.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut cursor = Cursor::new(WHAT, bytes);
        cursor.expect(&MAGIC, VERSION)?;
        let kind = Domain::from_byte(cursor.u8()?)?;
        let class = cursor.u8()?;
        cursor.take(4)?;
        Ok(Self {
            kind,
            class,
            repo: RepoId::from_bytes(cursor.array()?),
            pack: PackId::from_bytes(cursor.array()?),
        })
    }
}

/// Where a chunk stands in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackEntry {
    /// The chunk.
    pub id: ChunkId,
    /// Where its frame starts, in bytes from the pack's start.
    pub offset: u32,
    /// Bytes of its frame, header included.
    pub len: u32,
}

/// A pack's footer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackFooter {
    /// The frames in order.
    pub entries: Vec<PackEntry>,
    /// The keys that frames here are sealed with, each sealed to the recipients.
    pub keys: Vec<SealedKey>,
    /// The sessions that asked for chunks here.
    pub sessions: Vec<SessionId>,
}

#[derive(Serialize, Deserialize)]
struct FooterTail {
    keys: Vec<SealedKey>,
    sessions: Vec<SessionId>,
}

impl PackFooter {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4 + self.entries.len() * 36 + 512);
        out.extend_from_slice(&(self.entries.len() as u32).to_le_bytes());
        for entry in &self.entries {
            out.extend_from_slice(entry.id.hash());
            out.extend_from_slice(&entry.len.to_le_bytes());
        }
        let tail = FooterTail { keys: self.keys.clone(), sessions: self.sessions.clone() };
        out.extend_from_slice(&crate::wire::encode(&tail));
        out
    }

    fn parse(kind: Domain, frames_end: u64, bytes: &[u8]) -> Result<Self> {
        if frames_end > PACK_MAX {
            return Err(FormatError::TooLarge { what: "a pack", found: frames_end, limit: PACK_MAX });
        }
        let mut cursor = Cursor::new("pack footer", bytes);
        let count = cursor.count("chunks of a pack", 36, PACK_ENTRIES_MAX)?;
        let mut entries = Vec::with_capacity(count);
        let mut offset = PACK_HEADER_LEN as u64;
        for _ in 0..count {
            let id = ChunkId::new(kind, cursor.array()?);
            let len = cursor.u32()?;
            if (len as usize) < FRAME_HEADER_LEN || offset + u64::from(len) > frames_end {
                return Err(FormatError::invalid("pack footer", "its entries do not fit its frames"));
            }
            entries.push(PackEntry { id, offset: offset as u32, len });
            offset += u64::from(len);
        }
        if offset != frames_end {
            return Err(FormatError::invalid("pack footer", "its entries do not cover its frames"));
        }
        let tail: FooterTail = crate::wire::decode("pack footer", cursor.take(cursor.left())?)?;
        for (what, found, limit) in [
            ("keys of a pack", tail.keys.len(), PACK_KEYS_MAX),
            ("sessions of a pack", tail.sessions.len(), PACK_SESSIONS_MAX),
        ] {
            if found > limit {
                return Err(FormatError::TooLarge { what, found: found as u64, limit: limit as u64 });
            }
        }
        Ok(Self { entries, keys: tail.keys, sessions: tail.sessions })
    }
}

/// Collects frames into a pack without copying them; a clone shares their bytes.
#[derive(Debug, Clone)]
pub struct PackBuilder {
    header: PackHeader,
    parts: Vec<Bytes>,
    len: u64,
    footer: PackFooter,
}

impl PackBuilder {
    /// An empty pack.
    pub fn new(header: PackHeader) -> Self {
        Self {
            header,
            parts: vec![Bytes::copy_from_slice(&header.encode())],
            len: PACK_HEADER_LEN as u64,
            footer: PackFooter { entries: Vec::new(), keys: Vec::new(), sessions: Vec::new() },
        }
    }

    /// The pack's header.
    pub fn header(&self) -> &PackHeader {
        &self.header
    }

    /// The same pack under another name, for another attempt to upload it.
    pub fn renamed(mut self, pack: PackId) -> Self {
        self.header.pack = pack;
        self.parts[0] = Bytes::copy_from_slice(&self.header.encode());
        self
    }

    /// The sessions that asked for chunks here.
    pub fn sessions(&self) -> &[SessionId] {
        &self.footer.sessions
    }

    /// The keys that frames here are sealed with.
    pub fn keys(&self) -> &[SealedKey] {
        &self.footer.keys
    }

    /// Bytes collected so far, header included.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether no frame is inside yet.
    pub fn is_empty(&self) -> bool {
        self.footer.entries.is_empty()
    }

    /// The frames collected so far.
    pub fn entries(&self) -> &[PackEntry] {
        &self.footer.entries
    }

    /// Adds a run of whole frames with their headers, on behalf of a session.
    pub fn push(&mut self, frames: &[FrameHeader], body: Bytes, session: SessionId) -> Result<()> {
        if self.len + body.len() as u64 > PACK_MAX
            || self.footer.entries.len() + frames.len() > PACK_ENTRIES_MAX
        {
            let found = self.len + body.len() as u64;
            return Err(FormatError::TooLarge { what: "a pack", found, limit: PACK_MAX });
        }
        for (what, found, limit) in [
            ("keys of a pack", self.footer.keys.len(), PACK_KEYS_MAX),
            ("sessions of a pack", self.footer.sessions.len(), PACK_SESSIONS_MAX),
        ] {
            if found >= limit {
                return Err(FormatError::TooLarge { what, found: found as u64 + 1, limit: limit as u64 });
            }
        }
        let mut offset = self.len;
        let mut entries = Vec::with_capacity(frames.len());
        for frame in frames {
            if frame.id.domain()? != self.header.kind {
                return Err(FormatError::invalid(WHAT, "a frame is not of the pack's kind"));
            }
            let len = frame.frame_len() as u32;
            entries.push(PackEntry { id: frame.id, offset: offset as u32, len });
            offset += u64::from(len);
        }
        if offset - self.len != body.len() as u64 {
            return Err(FormatError::invalid(WHAT, "the frames' lengths are not the body's"));
        }
        self.footer.entries.extend(entries);
        self.len = offset;
        self.parts.push(body);
        if !self.footer.sessions.contains(&session) {
            self.footer.sessions.push(session);
        }
        Ok(())
    }

    /// Notes further sessions whose chunks are inside; false, and nothing is noted, when there is no room for them.
    pub fn add_sessions(&mut self, sessions: &[SessionId]) -> bool {
        let mut known: BTreeSet<SessionId> = self.footer.sessions.iter().copied().collect();
        let fresh: Vec<SessionId> = sessions.iter().copied().filter(|id| known.insert(*id)).collect();
        let fits = known.len() <= PACK_SESSIONS_MAX;
        if fits {
            self.footer.sessions.extend(fresh);
        }
        fits
    }

    /// Whether a key with this key's index but another id is inside already: then the frame must go elsewhere.
    pub fn clashes_with(&self, key: &SealedKey) -> bool {
        let index = crate::keys::index_of(&key.id);
        self.footer.keys.iter().any(|k| k.id != key.id && crate::keys::index_of(&k.id) == index)
    }

    /// Notes a key that frames inside are sealed with.
    pub fn add_key(&mut self, key: &SealedKey) {
        if !self.footer.keys.iter().any(|k| k.id == key.id) {
            self.footer.keys.push(key.clone());
        }
    }

    /// Adds footer and trailer: the pack's parts in order, and its footer.
    pub fn finish(mut self) -> (Vec<Bytes>, PackFooter) {
        let footer = self.footer.encode();
        let mut end = BytesMut::with_capacity(footer.len() + TRAILER_LEN);
        end.extend_from_slice(&footer);
        end.extend_from_slice(&(footer.len() as u32).to_le_bytes());
        end.extend_from_slice(&footer_check(&self.header.encode(), &footer));
        end.extend_from_slice(&END_MAGIC);
        self.parts.push(end.freeze());
        (self.parts, self.footer)
    }
}

fn footer_check(header: &[u8], footer: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(header);
    hasher.update(footer);
    let mut out = [0; 16];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    out
}

/// A pack's trailer: where the footer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    footer_len: u32,
    check: [u8; 16],
}

impl Trailer {
    /// Reads the last [`TRAILER_LEN`] bytes of a pack of `size` bytes.
    pub fn parse(bytes: &[u8], size: u64) -> Result<Self> {
        let what = "pack trailer";
        let start = bytes.len().checked_sub(TRAILER_LEN);
        let mut cursor = Cursor::new(what, bytes.get(start.unwrap_or(0)..).unwrap_or_default());
        let footer_len = cursor.u32()?;
        let check = cursor.array()?;
        if cursor.array::<8>()? != END_MAGIC {
            return Err(FormatError::Damaged { what, check: "its end (cut off or torn)" });
        }
        let limit = size.saturating_sub((PACK_HEADER_LEN + TRAILER_LEN) as u64).min(PACK_FOOTER_MAX as u64);
        if u64::from(footer_len) > limit {
            return Err(FormatError::TooLarge { what: "a pack's footer", found: footer_len.into(), limit });
        }
        Ok(Self { footer_len, check })
    }

    /// Bytes from the end of the pack that hold footer and trailer.
    pub fn suffix_len(&self) -> u64 {
        u64::from(self.footer_len) + TRAILER_LEN as u64
    }

    /// Whether a later version wrote this pack, of which `suffix` are the last [`Self::suffix_len`] bytes, and nothing
    /// happened to header and footer since: their check sum fits. Every version has it in the same place.
    pub fn is_later(&self, header: &[u8], suffix: &[u8]) -> bool {
        let (Some(header), Some(footer)) =
            (header.get(..PACK_HEADER_LEN), suffix.get(..self.footer_len as usize))
        else {
            return false;
        };
        let is_newer = header[..8] == MAGIC && u16::from_le_bytes([header[8], header[9]]) > VERSION;
        is_newer && footer_check(header, footer) == self.check
    }

    /// Reads the footer from the pack's last [`Self::suffix_len`] bytes.
    pub fn footer(&self, header: &[u8], suffix: &[u8], size: u64) -> Result<(PackHeader, PackFooter)> {
        let parsed = PackHeader::parse(header)?;
        let mut cursor = Cursor::new("pack footer", suffix);
        let footer = cursor.take(self.footer_len as usize)?;
        let header = header.get(..PACK_HEADER_LEN).unwrap_or(header);
        if footer_check(header, footer) != self.check {
            return Err(FormatError::Damaged { what: "pack footer", check: "its check sum" });
        }
        let frames_end = size.saturating_sub(self.suffix_len());
        Ok((parsed, PackFooter::parse(parsed.kind, frames_end, footer)?))
    }
}

/// Reads a whole pack in memory: header and footer.
pub fn parse_pack(bytes: &[u8]) -> Result<(PackHeader, PackFooter)> {
    let size = bytes.len() as u64;
    let trailer = Trailer::parse(bytes, size)?;
    let start = bytes.len().saturating_sub(trailer.suffix_len() as usize);
    trailer.footer(&bytes[..PACK_HEADER_LEN.min(bytes.len())], &bytes[start..], size)
}

/// Reads the footer of a whole pack in memory, whatever its header looks like: what it must say is known.
pub fn parse_footer(header: &PackHeader, bytes: &[u8]) -> Result<PackFooter> {
    let size = bytes.len() as u64;
    let trailer = Trailer::parse(bytes, size)?;
    let start = bytes.len().saturating_sub(trailer.suffix_len() as usize);
    Ok(trailer.footer(&header.encode(), &bytes[start..], size)?.1)
}

/// Rebuilds the entries of a pack from its frames alone, for a pack whose footer is torn: what stands between frames
/// whose headers are whole is left out.
pub fn salvage(bytes: &[u8]) -> Result<(PackHeader, Vec<PackEntry>)> {
    let header = PackHeader::parse(bytes)?;
    let mut entries = Vec::new();
    let mut at = PACK_HEADER_LEN;
    while at < bytes.len() && at as u64 <= PACK_MAX && entries.len() < PACK_ENTRIES_MAX {
        let end = |frame: &FrameHeader| at + frame.frame_len();
        let frame = FrameHeader::parse(&bytes[at..]).ok();
        match frame.filter(|frame| end(frame) <= bytes.len() && end(frame) as u64 <= PACK_MAX) {
            Some(frame) => {
                entries.push(PackEntry { id: frame.id, offset: at as u32, len: frame.frame_len() as u32 });
                at = end(&frame);
            }
            None => at += 1 + next_frame(&bytes[at + 1..]),
        }
    }
    Ok((header, entries))
}

/// Where a frame may begin.
fn next_frame(bytes: &[u8]) -> usize {
    bytes.windows(2).position(|two| two == FRAME_MAGIC).unwrap_or(bytes.len())
}

/// Reads `bytes` as a footer of a pack whose trailer fits it: gets past the check sum.
pub(crate) fn fuzz_footer(bytes: &[u8]) {
    let (repo, pack) = (RepoId::from_bytes([0; 16]), PackId::from_bytes([0; 16]));
    let header = PackHeader { repo, pack, kind: Domain::Data, class: 0 }.encode();
    let trailer = Trailer { footer_len: bytes.len() as u32, check: footer_check(&header, bytes) };
    for frames_end in
        [0, PACK_HEADER_LEN, PACK_HEADER_LEN + FRAME_HEADER_LEN, u32::MAX as usize, usize::MAX / 2]
    {
        drop(trailer.footer(&header, bytes, frames_end as u64 + trailer.suffix_len()));
    }
}
