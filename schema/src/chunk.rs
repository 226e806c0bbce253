//! Frames: one sealed chunk each, as packs and messages carry them.
//!
//! ```text
//! 0  magic "lF"        4  key index u32     12 id (33 bytes)
//! 2  version u8 = 1    8  stored length u32 45 check: 3 bytes of BLAKE3 over bytes 0..45
//! 3  codec u8                               48 payload (compressed, then sealed with a 16-byte tag)
//! ```
//!
//! The header describes itself, so that an index can be rebuilt without any content key. It is the AEAD's
//! associated data, so that a frame moves verbatim between packs. The frame's key derives from the data key
//! and the chunk id; the nonce is (codec, payload length): it repeats only for the same plaintext, because one
//! process seals with one data key at one level. The structure key belongs to all processes for ever, whose zstd
//! may compress alike in length and differ in bytes: what it seals is stored raw.

use bytes::Bytes;
use zstd::zstd_safe::CParameter;

use crate::crypt::{self, TAG_LEN};
use crate::cursor::Cursor;
use crate::keys::{ChunkIds, FrameKey, KEY_PLAIN, KEY_STRUCTURE};
use crate::{ChunkId, Domain, FormatError, Result};

/// Bytes of a frame's header.
pub const FRAME_HEADER_LEN: usize = 48;
/// The first bytes of every frame.
pub(crate) const FRAME_MAGIC: [u8; 2] = *b"lF";
const VERSION: u8 = 1;
const WHAT: &str = "frame";
/// The level that most use.
const LEVEL_USUAL: i32 = 3;
/// Logarithm of the entries in each of that level's two tables for chunks. zstd's own choice (15 and 16) is for inputs
/// that are longer; with these a chunk takes 6 % less time and 0.1 % more room, as measured on guest images.
const TABLE_LOG: u32 = 14;

/// How a chunk's plaintext is stored inside a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// As it is.
    Raw = 0,
    /// One zstd frame that carries its content size.
    Zstd = 1,
}

/// A frame's header, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// The chunk inside.
    pub id: ChunkId,
    /// Which key of the pack's key table seals it.
    pub key: u32,
    /// Bytes of the payload after the header, tag included.
    pub payload: u32,
    /// How the plaintext is stored.
    pub codec: Codec,
}

impl FrameHeader {
    /// Bytes of the whole frame.
    pub fn frame_len(&self) -> usize {
        FRAME_HEADER_LEN + self.payload as usize
    }

    fn encode(&self) -> [u8; FRAME_HEADER_LEN] {
        let mut out = [0; FRAME_HEADER_LEN];
        out[..2].copy_from_slice(&FRAME_MAGIC);
        out[2] = VERSION;
        out[3] = self.codec as u8;
        out[4..8].copy_from_slice(&self.key.to_le_bytes());
        out[8..12].copy_from_slice(&self.payload.to_le_bytes());
        out[12..45].copy_from_slice(self.id.as_bytes());
        let check = blake3::hash(&out[..45]);
        out[45..].copy_from_slice(&check.as_bytes()[..3]);
        out
    }

    /// Reads the header at the start of `bytes`.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut cursor = Cursor::new(WHAT, bytes);
        let header: [u8; FRAME_HEADER_LEN] = cursor.array()?;
        if header[..2] != FRAME_MAGIC {
            return Err(FormatError::NotOurs { what: WHAT });
        }
        // A version that rotted fits the check sum of the one that was written.
        let mut ours = header;
        ours[2] = VERSION;
        let is_ours = blake3::hash(&ours[..45]).as_bytes()[..3] == header[45..];
        if header[2] != VERSION && !is_ours {
            return Err(FormatError::version(WHAT, header[2].into(), VERSION.into()));
        }
        if header[2] != VERSION || !is_ours {
            return Err(FormatError::Damaged { what: WHAT, check: "its header's check sum" });
        }
        let mut fields = Cursor::new(WHAT, &header[3..45]);
        let codec = match fields.u8()? {
            0 => Codec::Raw,
            1 => Codec::Zstd,
            other => return Err(FormatError::invalid(WHAT, format!("unknown codec {other}"))),
        };
        let key = fields.u32()?;
        let payload = fields.u32()?;
        let id = ChunkId::parse(&fields.array()?)?;
        let limit = (id.domain()?.max_len() + TAG_LEN) as u64;
        if u64::from(payload) > limit {
            return Err(FormatError::TooLarge { what: "a frame's payload", found: payload.into(), limit });
        }
        Ok(Self { id, key, payload, codec })
    }

    /// Whether a later version wrote the header at the start of `bytes`, and nothing happened to it since: its check sum
    /// fits. Every version has it in the same place.
    pub fn is_later(bytes: &[u8]) -> bool {
        let Some(header) = bytes.get(..FRAME_HEADER_LEN) else { return false };
        let is_newer = header[..2] == FRAME_MAGIC && header[2] > VERSION;
        is_newer && blake3::hash(&header[..45]).as_bytes()[..3] == header[45..]
    }

    fn nonce(&self) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[0] = self.codec as u8;
        nonce[4..8].copy_from_slice(&self.payload.to_le_bytes());
        nonce
    }
}

/// Compresses and seals chunks; one per thread, its buffers are reused.
pub struct Sealer {
    compressor: zstd::bulk::Compressor<'static>,
    scratch: Vec<u8>,
}

impl Sealer {
    /// A sealer with a zstd level (1 to 19).
    pub fn new(level: i32) -> Result<Self> {
        if !(1..=19).contains(&level) {
            return Err(FormatError::invalid(
                "compression level",
                format!("{level} is not between 1 and 19"),
            ));
        }
        let refused = |why: std::io::Error| FormatError::invalid("compression level", why.to_string());
        let mut compressor = zstd::bulk::Compressor::new(level).map_err(refused)?;
        if level == LEVEL_USUAL {
            for tables in [CParameter::HashLog(TABLE_LOG), CParameter::ChainLog(TABLE_LOG)] {
                compressor.set_parameter(tables).map_err(refused)?;
            }
        }
        Ok(Self { compressor, scratch: Vec::new() })
    }

    /// Appends the frame of a chunk to `out` and returns its length.
    ///
    /// Stored raw when compression saves less than 3 %: zstd gives up on incompressible data by itself,
    /// which costs less than a test in front of it.
    pub fn seal(
        &mut self,
        id: ChunkId,
        plaintext: &[u8],
        key: &FrameKey,
        out: &mut Vec<u8>,
    ) -> Result<usize> {
        let limit = id.domain()?.max_len();
        if plaintext.is_empty() {
            return Err(FormatError::invalid("a chunk", "it is empty"));
        }
        if plaintext.len() > limit {
            let (found, limit) = (plaintext.len() as u64, limit as u64);
            return Err(FormatError::TooLarge { what: "a chunk", found, limit });
        }
        let (codec, body) = match key.index() {
            KEY_STRUCTURE => (Codec::Raw, plaintext),
            _ => self.compress(plaintext)?,
        };
        let secret = key.for_chunk(&id);
        let tag = if secret.is_some() { TAG_LEN } else { 0 };
        let header = FrameHeader { id, key: key.index(), payload: (body.len() + tag) as u32, codec };
        let start = out.len();
        let bytes = header.encode();
        out.extend_from_slice(&bytes);
        out.extend_from_slice(body);
        if let Some(secret) = secret {
            let tag = crypt::seal(&secret, header.nonce(), &bytes, &mut out[start + FRAME_HEADER_LEN..])?;
            out.extend_from_slice(&tag);
        }
        Ok(out.len() - start)
    }

    fn compress<'a>(&'a mut self, plaintext: &'a [u8]) -> Result<(Codec, &'a [u8])> {
        self.scratch.clear();
        self.scratch.reserve(zstd::zstd_safe::compress_bound(plaintext.len()));
        let compressed = self
            .compressor
            .compress_to_buffer(plaintext, &mut self.scratch)
            .map_err(|why| FormatError::invalid("a chunk", format!("zstd failed: {why}")))?;
        match compressed < plaintext.len() - plaintext.len() * 3 / 100 {
            true => Ok((Codec::Zstd, &self.scratch[..compressed])),
            false => Ok((Codec::Raw, plaintext)),
        }
    }
}

/// Opens frames; one per thread, its buffers are reused.
pub struct Opener {
    ids: ChunkIds,
    decompressor: zstd::bulk::Decompressor<'static>,
    opened: Vec<u8>,
    plain: Vec<u8>,
}

impl Opener {
    /// An opener that verifies ids with `ids`.
    pub fn new(ids: ChunkIds) -> Result<Self> {
        let decompressor = zstd::bulk::Decompressor::new()
            .map_err(|why| FormatError::invalid("decompressor", why.to_string()))?;
        Ok(Self { ids, decompressor, opened: Vec::new(), plain: Vec::new() })
    }

    /// Opens the frame at the start of `frame`, which must hold the chunk `want`, and returns its plaintext,
    /// verified against the id.
    pub fn open(&mut self, want: &ChunkId, frame: &[u8], key: &FrameKey) -> Result<&[u8]> {
        let header = FrameHeader::parse(frame)?;
        if header.id != *want {
            return Err(FormatError::Damaged { what: WHAT, check: "the chunk that it should hold" });
        }
        let mut cursor = Cursor::new(WHAT, frame);
        let aad = cursor.take(FRAME_HEADER_LEN)?;
        let payload = cursor.take(header.payload as usize)?;
        if header.key != key.index() {
            let why = format!("it is sealed with key {:08x}, at hand is {:08x}", header.key, key.index());
            return Err(FormatError::CannotOpen { what: WHAT, why });
        }
        let body: &[u8] = match key.for_chunk(&header.id) {
            Some(secret) => {
                crypt::open(&secret, header.nonce(), aad, payload, &mut self.opened)
                    .map_err(|_| FormatError::Damaged { what: WHAT, check: "its authentication tag" })?;
                &self.opened
            }
            None => payload,
        };
        let domain = header.id.domain()?;
        let plain: &[u8] = match header.codec {
            Codec::Raw => {
                self.plain.clear();
                self.plain.extend_from_slice(body);
                &self.plain
            }
            Codec::Zstd => {
                self.plain.clear();
                let claimed = plain_len(body, domain)?;
                self.plain.reserve(claimed);
                let written = self.decompressor.decompress_to_buffer(body, &mut self.plain);
                if !written.is_ok_and(|written| written == claimed) {
                    return Err(FormatError::Damaged { what: WHAT, check: "its compressed content" });
                }
                &self.plain
            }
        };
        if plain.is_empty() || plain.len() > domain.max_len() {
            return Err(FormatError::invalid("a chunk", format!("it is {} bytes long", plain.len())));
        }
        if self.ids.id(domain, plain) != header.id {
            return Err(FormatError::Damaged { what: WHAT, check: "the chunk's id" });
        }
        Ok(plain)
    }
}

/// The plaintext length that a zstd frame claims, bounded by what a chunk of this domain may have.
fn plain_len(body: &[u8], domain: Domain) -> Result<usize> {
    let claimed = zstd::zstd_safe::get_frame_content_size(body)
        .ok()
        .flatten()
        .ok_or(FormatError::Damaged { what: WHAT, check: "its compressed content's header" })?;
    let limit = domain.max_len() as u64;
    if claimed > limit {
        return Err(FormatError::TooLarge { what: "a chunk", found: claimed, limit });
    }
    Ok(claimed as usize)
}

/// Walks the frames in a message's body: yields each header and the frame's bytes.
pub fn split_frames(body: &Bytes, limit: usize) -> Result<Vec<(FrameHeader, Bytes)>> {
    let mut frames = Vec::new();
    let mut at = 0;
    while at < body.len() {
        if frames.len() == limit {
            return Err(FormatError::TooLarge {
                what: "frames",
                found: limit as u64 + 1,
                limit: limit as u64,
            });
        }
        let header = FrameHeader::parse(&body[at..])?;
        let end = at + header.frame_len();
        if end > body.len() {
            return Err(FormatError::Truncated {
                what: WHAT,
                needed: header.frame_len(),
                left: body.len() - at,
            });
        }
        frames.push((header, body.slice(at..end)));
        at = end;
    }
    Ok(frames)
}

/// Opens `bytes` as the payload behind a header that fits it: gets past the header's check sum.
pub(crate) fn fuzz_open(bytes: &[u8]) {
    let ids = ChunkIds::fuzz();
    for (codec, domain) in
        [(Codec::Zstd, Domain::Data), (Codec::Raw, Domain::Data), (Codec::Zstd, Domain::Structure)]
    {
        let id = ids.id(domain, b"");
        let header = FrameHeader { id, key: KEY_PLAIN, payload: bytes.len() as u32, codec };
        let frame = [&header.encode()[..], bytes].concat();
        drop(
            Opener::new(ids.clone())
                .and_then(|mut opener| opener.open(&id, &frame, &FrameKey::plain()).map(drop)),
        );
    }
}

/// Whether frames that carry this key index are encrypted.
pub fn is_plain(key: u32) -> bool {
    key == KEY_PLAIN
}
