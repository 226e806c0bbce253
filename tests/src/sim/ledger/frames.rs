//! Opens what packs hold, with the keys in their footers.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use schema::chunk::{FrameHeader, Opener, is_plain};
use schema::keys::{DataKey, FrameKey, Identity, KEY_STRUCTURE, SealedKey, WriterKey, index_of};
use schema::pack::parse_pack;
use schema::{ChunkId, Domain};

/// Opens frames.
pub(super) struct Frames {
    key: WriterKey,
    identity: Option<Arc<Identity>>,
    opener: Option<Opener>,
    keys: BTreeMap<u32, FrameKey>,
}

impl Frames {
    pub fn new(key: WriterKey, identity: Option<Arc<Identity>>) -> Self {
        let opener = Opener::new(key.chunk_ids()).ok();
        Self { key, identity, opener, keys: BTreeMap::new() }
    }

    /// Opens every frame of a pack, and hands on what structure chunks hold.
    pub fn open_pack(
        &mut self,
        bytes: &Bytes,
        mut structure: impl FnMut(ChunkId, &[u8]),
    ) -> Result<Vec<ChunkId>, String> {
        let (header, footer) = parse_pack(bytes).map_err(|why| why.to_string())?;
        footer.keys.iter().try_for_each(|key| self.unseal(key))?;
        for entry in &footer.entries {
            let (start, len) = (entry.offset as usize, entry.len as usize);
            let frame = bytes.get(start..start + len).ok_or("its footer names bytes behind its end")?;
            let plain = self.open(&entry.id, frame)?;
            if header.kind == Domain::Structure {
                structure(entry.id, plain);
            }
        }
        Ok(footer.entries.iter().map(|entry| entry.id).collect())
    }

    /// `no-plaintext-out`: a data key goes with its pack, and only sealed.
    fn unseal(&mut self, sealed: &SealedKey) -> Result<(), String> {
        let Some(identity) = &self.identity else { return Err("a plain repository has a data key".into()) };
        if !self.keys.contains_key(&index_of(&sealed.id)) {
            let key = DataKey::unseal(self.key.family(), sealed, identity).map_err(|why| why.to_string())?;
            self.keys.insert(index_of(&sealed.id), key.frame_key());
        }
        Ok(())
    }

    /// What a frame holds, if it is this chunk.
    pub fn open(&mut self, chunk: &ChunkId, frame: &[u8]) -> Result<&[u8], String> {
        let named = |why: schema::FormatError| format!("chunk {chunk}: {why}");
        let index = FrameHeader::parse(frame).map_err(named)?.key;
        let key = match index {
            KEY_STRUCTURE => self.key.structure_key(),
            index if is_plain(index) && self.identity.is_some() => {
                return Err(format!("no-plaintext-out: chunk {chunk} is not encrypted"));
            }
            index if is_plain(index) => FrameKey::plain(),
            index => self
                .keys
                .get(&index)
                .cloned()
                .ok_or_else(|| format!("chunk {chunk} has no key {index:08x}"))?,
        };
        let opener = self.opener.as_mut().ok_or("there is nothing to open chunks with")?;
        opener.open(chunk, frame, &key).map_err(named)
    }
}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frames").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}
