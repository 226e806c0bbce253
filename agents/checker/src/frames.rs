//! Reads frames and opens them: each must hold the chunk that the footer says it holds.
//!
//! A frame that is not one is read once more before that is believed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use agent::Failure;
use bytes::Bytes;
use schema::chunk::{FrameHeader, Opener};
use schema::keys::{FrameKey, KEY_STRUCTURE};
use schema::messages::Copy;
use schema::pack::{PackEntry, PackFooter, PackHeader};
use schema::{ChunkId, Domain, PackId, names};

use crate::Source;
use crate::packs::is_damage;

/// Bytes of one read at most; a single frame always fits.
const READ_MAX: u64 = 4 << 20;

/// What checking the frames of a pack came to.
#[derive(Default)]
pub(crate) struct Checked {
    /// Chunks whose frames are no copies, and why.
    pub(crate) bad: Vec<(ChunkId, String)>,
    /// Chunks whose frames no key is at hand for, and why.
    pub(crate) keyless: Vec<(ChunkId, Failure)>,
    /// The pack is not there any more, so that nothing in it matters.
    pub(crate) is_gone: bool,
}

/// The keys that frames call by these numbers.
type Keys = BTreeMap<u32, Result<Arc<[FrameKey]>, Failure>>;

/// What became of a frame.
enum Frame {
    Whole,
    Damaged(String),
    Keyless(Failure),
}

impl Source {
    /// Checks every frame of a pack.
    pub(crate) async fn check_frames(
        &self,
        pack: PackId,
        header: &PackHeader,
        footer: &PackFooter,
    ) -> Result<Checked, Failure> {
        let mut checked = Checked::default();
        for (range, entries) in reads(&footer.entries) {
            self.go_on()?;
            let read = self.repository.store.get_range(&names::pack(pack), range.clone()).await;
            let frames: Vec<Frame> = match read.map_err(Failure::from) {
                Ok(bytes) => self.judge(pack, header.kind, entries, range.start, bytes).await?,
                Err(failure) if is_damage(&failure) => {
                    entries.iter().map(|_| Frame::Damaged(failure.to_string())).collect()
                }
                Err(failure) => return Err(failure),
            };
            for (entry, frame) in entries.iter().zip(frames) {
                match frame {
                    Frame::Whole => {}
                    Frame::Keyless(why) => checked.keyless.push((entry.id, why)),
                    Frame::Damaged(_) => match self.repository.store.head(&names::pack(pack)).await? {
                        Some(size) => self.again(pack, size, header.kind, entry, &mut checked).await?,
                        None => return Ok(Checked { is_gone: true, ..Checked::default() }),
                    },
                }
            }
        }
        Ok(checked)
    }

    /// Reads one frame alone, of a pack of this size.
    async fn again(
        &self,
        pack: PackId,
        size: u64,
        kind: Domain,
        entry: &PackEntry,
        checked: &mut Checked,
    ) -> Result<(), Failure> {
        let copy = Copy { pack, offset: entry.offset, len: entry.len };
        if end(entry) > size {
            checked.bad.push((entry.id, format!("the pack is cut off before offset {}", end(entry))));
            return Ok(());
        }
        let frames = match self.repository.read_frame(&copy).await {
            Ok(bytes) => {
                self.judge(pack, kind, std::slice::from_ref(entry), entry.offset.into(), bytes).await?
            }
            Err(failure) if is_damage(&failure) => vec![Frame::Damaged(failure.to_string())],
            Err(failure) => return Err(failure),
        };
        for frame in frames {
            match frame {
                Frame::Whole => {
                    tracing::warn!(%pack, id = %entry.id, "a frame was damaged when it was read first")
                }
                Frame::Keyless(why) => checked.keyless.push((entry.id, why)),
                Frame::Damaged(why) => checked.bad.push((entry.id, why)),
            }
        }
        Ok(())
    }

    /// What became of the frames of a range that was read.
    async fn judge(
        &self,
        pack: PackId,
        kind: Domain,
        entries: &[PackEntry],
        start: u64,
        bytes: Bytes,
    ) -> Result<Vec<Frame>, Failure> {
        let mut keys = Keys::new();
        for entry in entries {
            let Ok(header) = FrameHeader::parse(frame(entry, start, &bytes)) else { continue };
            if let std::collections::btree_map::Entry::Vacant(slot) = keys.entry(header.key) {
                slot.insert(self.keys_of(pack, kind, header.key).await?);
            }
        }
        let (entries, ids) = (entries.to_vec(), self.repository.key.chunk_ids());
        let judging = move || {
            let mut opener = Opener::new(ids)?;
            let judge = |entry: &PackEntry| judge(&mut opener, entry, frame(entry, start, &bytes), &keys);
            Ok(entries.iter().map(judge).collect())
        };
        self.repository.environment().on_a_thread(judging).await?
    }

    async fn keys_of(
        &self,
        pack: PackId,
        kind: Domain,
        index: u32,
    ) -> Result<Result<Arc<[FrameKey]>, Failure>, Failure> {
        let structure = self.repository.key.structure_key();
        if kind == Domain::Structure && (index == KEY_STRUCTURE || index == structure.index()) {
            return Ok(Ok(Arc::new([structure])));
        }
        match self.keys.get(index, pack).await {
            Ok(keys) => Ok(Ok(keys)),
            Err(failure) if is_damage(&failure) => Ok(Err(failure)),
            Err(failure) => Err(failure),
        }
    }
}

fn judge(opener: &mut Opener, entry: &PackEntry, frame: &[u8], keys: &Keys) -> Frame {
    let header = match FrameHeader::parse(frame) {
        Ok(header) => header,
        Err(why) => return Frame::Damaged(why.to_string()),
    };
    if header.frame_len() != entry.len as usize {
        return Frame::Damaged("its length is not what the footer says".to_owned());
    }
    let keys = match keys.get(&header.key) {
        Some(Ok(keys)) => keys,
        Some(Err(why)) => return Frame::Keyless(why.clone()),
        None => return Frame::Keyless(Failure::refused("its key was not looked for")),
    };
    let mut last = "no key is at hand".to_owned();
    for key in keys.iter() {
        match opener.open(&entry.id, frame, key) {
            Ok(_) => return Frame::Whole,
            Err(why) => last = why.to_string(),
        }
    }
    Frame::Damaged(last)
}

/// The bytes of a frame inside a range that was read.
fn frame<'a>(entry: &PackEntry, start: u64, bytes: &'a [u8]) -> &'a [u8] {
    let from = (u64::from(entry.offset) - start) as usize;
    bytes.get(from..from + entry.len as usize).unwrap_or_default()
}

/// Where a frame ends in its pack.
fn end(entry: &PackEntry) -> u64 {
    u64::from(entry.offset) + u64::from(entry.len)
}

/// Joins neighbouring frames to reads.
fn reads(entries: &[PackEntry]) -> Vec<(Range<u64>, &[PackEntry])> {
    let mut reads = Vec::new();
    let mut rest = entries;
    while let Some(first) = rest.first() {
        let start = u64::from(first.offset);
        let fits = |entry: &PackEntry| end(entry) - start <= READ_MAX;
        let (now, later) = rest.split_at(rest.partition_point(fits).max(1));
        reads.push((start..now.last().map_or(start, end), now));
        rest = later;
    }
    reads
}
