//! What a hasher does with bytes: names chunks, compresses, seals. Synchronous.

use agent::{Environment, Failure};
use bytes::Bytes;
use schema::chunk::Sealer;
use schema::keys::{ChunkIds, DataKey, FrameKey, SealedKey, WriterKey};
use schema::messages::Extent;
use schema::{ChunkId, Domain};

/// The key that this process seals content with: made at start, never stored unsealed.
#[derive(Debug)]
pub struct ContentKey {
    frame: FrameKey,
    sealed: Option<SealedKey>,
}

impl ContentKey {
    /// A fresh data key, sealed to the recipients; no key in a plain repository.
    pub fn new(writer: &WriterKey, environment: &dyn Environment) -> Result<Self, Failure> {
        if !writer.encrypted() {
            return Ok(Self { frame: FrameKey::plain(), sealed: None });
        }
        let key = DataKey::new(&environment.random());
        Ok(Self { frame: key.frame_key(), sealed: Some(key.seal(writer)?) })
    }

    /// The key as the storer files it.
    pub fn sealed(&self) -> Option<&SealedKey> {
        self.sealed.as_ref()
    }
}

/// A piece of an extent: zeroes, or a chunk with its id.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) len: u32,
    pub(crate) id: Option<ChunkId>,
}

pub(crate) struct Sealing {
    ids: ChunkIds,
    sealer: Sealer,
    frames: Vec<u8>,
}

impl Sealing {
    pub(crate) fn new(writer: &WriterKey, level: i32) -> Result<Self, Failure> {
        Ok(Self { ids: writer.chunk_ids(), sealer: Sealer::new(level)?, frames: Vec::new() })
    }

    /// Names the chunks of an extent. The body must be as long as the pieces say.
    pub(crate) fn name(&self, extent: &Extent, body: &Bytes) -> Result<Vec<Piece>, Failure> {
        let total: usize = extent.pieces.iter().map(|(len, _)| *len as usize).sum();
        if total != body.len() || extent.offset.checked_add(total as u64).is_none() {
            return Err(Failure::refused(format!(
                "an extent at offset {} has {} bytes where its pieces have {total}",
                extent.offset,
                body.len()
            )));
        }
        let mut at = 0;
        let name = |(len, zero): &(u32, bool)| {
            let bytes = &body[at..at + *len as usize];
            let offset = extent.offset + at as u64;
            at += *len as usize;
            if !zero && bytes.len() > Domain::Data.max_len() {
                return Err(Failure::refused(format!("a chunk at offset {offset} has {len} bytes")));
            }
            let id = (!zero && !bytes.is_empty()).then(|| self.ids.id(Domain::Data, bytes));
            Ok(Piece { offset, len: *len, id })
        };
        extent.pieces.iter().map(name).collect()
    }

    /// Seals the chunks in `ours`, each once: their frames, and how many bytes of the volume they are.
    pub(crate) fn seal(
        &mut self,
        extent: &Extent,
        body: &Bytes,
        pieces: &[Piece],
        ours: &[ChunkId],
        key: &ContentKey,
    ) -> Result<(Bytes, u64), Failure> {
        self.frames.clear();
        let mut new = 0;
        for id in ours {
            let Some(piece) = pieces.iter().find(|piece| piece.id == Some(*id)) else { continue };
            let start = (piece.offset - extent.offset) as usize;
            let plain = &body[start..start + piece.len as usize];
            self.sealer.seal(*id, plain, &key.frame, &mut self.frames)?;
            new += u64::from(piece.len);
        }
        Ok((Bytes::copy_from_slice(&self.frames), new))
    }
}
