//! How far a restore is, and what it did.

use std::ops::{AddAssign, Range};

use schema::messages::{FileIdentity, Verified};

use crate::differences::Differences;

/// Holes that are told.
const HOLES_MAX: usize = 1000;

/// How far a restore is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the volume.
    pub total: u64,
    /// Bytes of it that are written, stand there already, are zero, or are lost.
    pub done: u64,
    /// Bytes fetched from the store.
    pub fetched: u64,
}

/// What a restore did. When only verifying, `written` counts what would have been written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Bytes that were asked for; `written`, `kept`, `copied`, `zeroed` and `lost` add up to it.
    pub size: u64,
    /// Bytes written.
    pub written: u64,
    /// Bytes left alone, because they stood there already.
    pub kept: u64,
    /// Bytes written that were taken from another target of the same restore, or from another place of this one.
    pub copied: u64,
    /// Bytes of the target that were read to see what stands there.
    pub compared: u64,
    /// Bytes of those left alone that were not compared, because they are known not to have changed; zeroes, too.
    pub tracked: u64,
    /// Bytes of those compared that were read to see whether that is so.
    pub audited: u64,
    /// Bytes that read as zero.
    pub zeroed: u64,
    /// Bytes that cannot be read any more, and are zero on the target: only where that was asked for.
    pub lost: u64,
    /// Where they are, in order, and as one what lies side by side; the first thousand.
    pub holes: Vec<Hole>,
    /// Bytes of packs fetched, gaps included; maps are not counted.
    pub fetched: u64,
    /// Requests that fetched them.
    pub requests: u64,
    /// Chunks opened and verified; one that stands at several places near each other counts once.
    pub chunks: u64,
    /// Chunks whose best copy was missing or damaged, read from another: the repository needs repair.
    pub rescued: u64,
    /// Where a target that is only compared, or was read again, differs.
    pub differences: Differences,
    /// What the operator should know of the target.
    pub notes: Vec<String>,
    /// What came of reading it again, where that was asked for.
    pub verified: Option<Verified>,
    /// Which file or device the target is, whatever its name.
    pub stands_on: Option<Box<FileIdentity>>,
}

/// A part of a volume that cannot be read any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hole {
    /// Bytes of the volume.
    pub range: Range<u64>,
    /// Names the first chunk, and every copy and what is wrong with it.
    pub why: String,
    /// Chunks behind the first one.
    pub more: u64,
}

impl Hole {
    /// Why it is one, for people.
    pub fn told(&self) -> String {
        match self.more {
            0 => self.why.clone(),
            more => format!("{}, and {more} more chunks behind it (the log names each)", self.why),
        }
    }
}

/// In order, and joined where they lie side by side.
fn joined(mut holes: Vec<Hole>) -> Vec<Hole> {
    holes.sort_by_key(|hole| hole.range.start);
    let mut joined: Vec<Hole> = Vec::with_capacity(holes.len());
    for hole in holes {
        match joined.last_mut().filter(|last| last.range.end == hole.range.start) {
            Some(last) => {
                last.range.end = hole.range.end;
                last.more += 1 + hole.more;
            }
            None => joined.push(hole),
        }
    }
    joined
}

impl AddAssign for Report {
    fn add_assign(&mut self, other: Self) {
        self.size += other.size;
        self.written += other.written;
        self.kept += other.kept;
        self.copied += other.copied;
        self.compared += other.compared;
        self.tracked += other.tracked;
        self.audited += other.audited;
        self.zeroed += other.zeroed;
        self.lost += other.lost;
        if !other.holes.is_empty() {
            self.holes.extend(other.holes);
            self.holes = joined(std::mem::take(&mut self.holes));
            self.holes.truncate(HOLES_MAX);
        }
        self.fetched += other.fetched;
        self.requests += other.requests;
        self.chunks += other.chunks;
        self.rescued += other.rescued;
        self.differences += other.differences;
        self.notes.extend(other.notes);
        self.verified = other.verified.or(self.verified.take());
        self.stands_on = other.stands_on.or(self.stands_on.take());
    }
}
