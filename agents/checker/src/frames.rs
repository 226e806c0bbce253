//! Reads frames and opens them: each must hold the chunk that the footer says it holds.
//!
//! A frame that is not one is read once more before that is believed. Where the store does not give a part of a pack, its
//! frames are read one by one.

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
use crate::given::{is_damage, is_lost, is_withheld, later};

/// Bytes of one read at most; a single frame always fits.
const READ_MAX: u64 = 4 << 20;
/// Frames in a row that the store does not give alone, after which no other one of that read is asked for.
const ALONE_MAX: usize = 4;

/// Times that a frame which was found whole is read before it counts as one that is not.
const TRIES: usize = 3;

/// What checking the frames of a pack came to.
#[derive(Default)]
pub(crate) struct Checked {
    /// Chunks whose frames are no copies, and why.
    pub(crate) bad: Vec<(ChunkId, String)>,
    /// Chunks whose frames no key is at hand for, and why.
    pub(crate) keyless: Vec<(ChunkId, Failure)>,
    /// Chunks whose frames the store does not give, and why.
    pub(crate) withheld: Vec<(ChunkId, Failure)>,
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
    Withheld(Failure),
    /// A later version wrote it.
    Later(String),
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
            let frames = self.read(pack, header.kind, range, entries, checked.withheld.is_empty()).await?;
            let mut alone = 0;
            for (entry, frame) in entries.iter().zip(frames) {
                match frame {
                    Frame::Damaged(_) => match self.repository.store.head(&names::pack(pack)).await? {
                        Some(size) => self.again(pack, size, header.kind, entry, &mut checked).await?,
                        None => return Ok(Checked { is_gone: true, ..Checked::default() }),
                    },
                    Frame::Withheld(_) if entries.len() > 1 && alone < ALONE_MAX => {
                        let before = checked.withheld.len();
                        self.again(pack, u64::MAX, header.kind, entry, &mut checked).await?;
                        alone = if checked.withheld.len() > before { alone + 1 } else { 0 };
                    }
                    other => checked.take(pack, entry, other)?,
                }
            }
        }
        Ok(checked)
    }

    /// The bytes of a frame that hold its chunk: these very bytes were opened. None where they do not now.
    pub(crate) async fn whole_frame(
        &self,
        pack: PackId,
        kind: Domain,
        entry: &PackEntry,
    ) -> Result<Option<Bytes>, Failure> {
        let (copy, one) = (Copy { pack, offset: entry.offset, len: entry.len }, std::slice::from_ref(entry));
        for _ in 0..TRIES {
            let bytes = self.repository.read_frame(&copy).await?;
            let judged = self.judge(pack, kind, one, u64::from(entry.offset), bytes.clone()).await?;
            if matches!(judged[..], [Frame::Whole]) {
                return Ok(Some(bytes));
            }
            tracing::warn!(%pack, id = %entry.id, "a frame that was whole is not when it is read again");
        }
        Ok(None)
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
        if end(entry) > size {
            checked.bad.push((entry.id, format!("the pack is cut off before offset {}", end(entry))));
            return Ok(());
        }
        let (range, one) = (u64::from(entry.offset)..end(entry), std::slice::from_ref(entry));
        for frame in self.read(pack, kind, range, one, false).await? {
            if matches!(frame, Frame::Whole) {
                tracing::warn!(%pack, id = %entry.id, "a frame could not be read the first time");
            }
            checked.take(pack, entry, frame)?;
        }
        Ok(())
    }

    /// Reads frames that stand in a range. One that the store does not give is asked for once more, if that is wanted.
    async fn read(
        &self,
        pack: PackId,
        kind: Domain,
        range: Range<u64>,
        entries: &[PackEntry],
        insists: bool,
    ) -> Result<Vec<Frame>, Failure> {
        let key = names::pack(pack);
        let (store, range) = (&self.repository.store, &range);
        let read = || async { Ok(store.get_range(&key, range.clone()).await?) };
        let read = if insists { self.given(&key, read).await? } else { self.given_once(&key, read).await? };
        let all = |frame: &dyn Fn() -> Frame| entries.iter().map(|_| frame()).collect();
        match read {
            Ok(bytes) => self.judge(pack, kind, entries, range.start, bytes).await,
            Err(failure) if is_withheld(&failure) => Ok(all(&|| Frame::Withheld(failure.clone()))),
            Err(failure) if is_damage(&failure) => Ok(all(&|| Frame::Damaged(failure.to_string()))),
            Err(failure) => Err(failure),
        }
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
        match self.given(&format!("key {index:08x}"), || self.keys.get(index, pack)).await? {
            Err(failure) if !is_lost(&failure) => Err(failure),
            keys => Ok(keys),
        }
    }
}

impl Checked {
    fn take(&mut self, pack: PackId, entry: &PackEntry, frame: Frame) -> Result<(), Failure> {
        match frame {
            Frame::Whole => {}
            Frame::Damaged(why) => self.bad.push((entry.id, why)),
            Frame::Keyless(why) => self.keyless.push((entry.id, why)),
            Frame::Withheld(why) => self.withheld.push((entry.id, why)),
            Frame::Later(why) => {
                return Err(later(&format!("chunk {} in {}", entry.id, names::pack(pack)), why));
            }
        }
        Ok(())
    }
}

fn judge(opener: &mut Opener, entry: &PackEntry, frame: &[u8], keys: &Keys) -> Frame {
    let header = match FrameHeader::parse(frame) {
        Ok(header) => header,
        Err(why) if FrameHeader::is_later(frame) => return Frame::Later(why.to_string()),
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
