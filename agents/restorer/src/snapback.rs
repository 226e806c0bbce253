//! Keeps what a restore overwrites in a local file, which is a stream of `schema::stream`: applied, it puts the target
//! back.
//!
//! What a window of the map overwrites is on stable storage in the file before the first byte of that window is
//! written, so that the file is enough at any moment. No byte of the target is written in two windows, so that none is
//! kept twice. A file that exists is never touched: it may be all that is left of what a target was. In a thin pool that
//! does not zero new blocks, writing changes what stands beside: there all of the target is kept first.

mod below;

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent::{Failure, Stop};
use rustix::fs::{SeekFrom, seek};
use schema::StreamId;
use schema::limits::{STREAM_DATA_MAX, VOLUME_NAME_MAX};
use schema::messages::FailureKind;
use schema::stream::{Encoder, Header, Kind};

use crate::plan::Window;
use crate::reading::{Aligned, READ_MAX, Reading};
use crate::sink::Opened;
use crate::unit::{Unit, Work};

/// Bytes of the target that one step keeps.
const STEP: u64 = 8 << 20;
/// Bytes of a target that is kept as a whole, which are begun together.
const PIECE: u64 = 256 << 20;
/// What is looked at by itself for being zero.
const UNIT: u64 = 64 << 10;
const _: () = assert!(READ_MAX <= STREAM_DATA_MAX as u64, "what is read at once is one record");

/// A file that is kept in.
#[derive(Debug)]
pub(crate) struct Snapback {
    path: PathBuf,
    /// The target as it was given.
    target: String,
    reading: Reading,
    /// Bytes of the target.
    size: u64,
    /// All of it is kept before anything is written.
    whole: bool,
    file: Arc<File>,
    writer: Mutex<Writer>,
    /// Held by whoever waits for stable storage.
    syncing: Mutex<()>,
}

#[derive(Debug)]
struct Writer {
    out: BufWriter<Arc<File>>,
    /// None when the file is over, or cannot be written to.
    encoder: Option<Encoder>,
    /// Bytes of the target that are kept.
    saved: u64,
    /// Something of what was kept may be lost.
    has_failed: bool,
}

/// A range that is about to be overwritten.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Overwritten {
    range: Range<u64>,
    /// It becomes zero: what is zero there already stays.
    by_zero: bool,
}

/// What a snapback is made for.
pub(crate) struct Purpose<'a> {
    /// The file, which must not exist.
    pub path: &'a Path,
    /// The target as it was given.
    pub target: &'a str,
    /// An id for the stream.
    pub id: StreamId,
    /// Folders that are never written to: the repository's own.
    pub forbidden: &'a [PathBuf],
    /// All of the target is kept before anything is written.
    pub whole: bool,
}

impl Snapback {
    /// Makes the file for what is overwritten on an opened target. Blocks.
    pub fn begin(purpose: &Purpose<'_>, opened: &Opened) -> Result<Self, Failure> {
        let path = purpose.path;
        below::check(path, &opened.file, purpose.forbidden).map_err(|why| refused(path, why))?;
        let reading = Reading::of(opened)?;
        let size =
            seek(&opened.file, SeekFrom::End(0)).map_err(|why| opened.cannot("keep", 0, &why.into()))?;
        let header = Header {
            id: purpose.id,
            kind: Kind::Snapback,
            of: None,
            size,
            first: 0,
            name: shortened(purpose.target),
        };
        let (encoder, head) = Encoder::begin(&header)?;
        let file = Arc::new(create(path, purpose.target)?);
        let out = BufWriter::with_capacity(READ_MAX as usize, file.clone());
        let writer = Mutex::new(Writer { out, encoder: Some(encoder), saved: 0, has_failed: false });
        let (path, target) = (path.to_owned(), purpose.target.to_owned());
        let whole = purpose.whole;
        let this = Self { path, target, reading, size, whole, file, writer, syncing: Mutex::default() };
        this.append(|writer| writer.out.write_all(&head))?;
        this.sync()?;
        Ok(this)
    }

    /// Keeps what a range holds. Blocks; fails when `halt` is raised, since what was not kept must not be overwritten.
    pub fn keep(&self, range: Range<u64>, by_zero: bool, halt: &Stop) -> Result<(), Failure> {
        let mut buffer = Aligned::new();
        let mut at = range.start;
        while at < range.end {
            if halt.is_raised() {
                return Err(Failure::new(FailureKind::Other, "the restore has failed elsewhere"));
            }
            let part = at..range.end.min((at / READ_MAX + 1) * READ_MAX);
            at = part.end;
            let bytes = self.reading.read(&part, &mut buffer);
            let bytes = bytes.map_err(|why| why.context(format!("keeping it in {}", self.path.display())))?;
            self.append(|writer| writer.records(part.start, bytes, by_zero))?;
        }
        Ok(())
    }

    /// Waits until all that was kept is on stable storage. Blocks.
    pub fn sync(&self) -> Result<(), Failure> {
        // The kernel says only once that it could not write back: nobody asks beside another, and all are told.
        let _turn = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        self.append(|writer| writer.out.flush())?;
        self.file.sync_data().map_err(|why| {
            self.writer().fail();
            self.cannot_write(&why)
        })
    }

    /// The restore is over, however it ended. Says what the operator can do with the file. Blocks.
    pub fn end(&self) -> String {
        let (encoder, saved) = {
            let mut writer = self.writer();
            (writer.encoder.take(), writer.saved)
        };
        let ended = encoder.map(|encoder| {
            self.append(|writer| writer.out.write_all(&encoder.end()))?;
            self.sync()
        });
        let option = match ended {
            Some(Ok(())) => "",
            Some(Err(_)) | None => "--unfinished ",
        };
        let (path, target) = (self.path.display(), &self.target);
        format!(
            "{saved} bytes of what was there are kept in {path}: `lvkeep apply {option}{path} {target}` puts them back"
        )
    }

    /// Whether all of the target is kept first.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes to the file. What failed once leaves a torn record, behind which nothing can stand.
    fn append(&self, step: impl FnOnce(&mut Writer) -> io::Result<()>) -> Result<(), Failure> {
        let mut writer = self.writer();
        let written = match writer.has_failed {
            true => Err(io::Error::other("an earlier error has ended it")),
            false => step(&mut writer),
        };
        written.map_err(|why| {
            writer.fail();
            self.cannot_write(&why)
        })
    }

    fn cannot_write(&self, why: &io::Error) -> Failure {
        let path = self.path.display();
        let why = format!("cannot write the snapback {path}: {why}; nothing more is overwritten");
        Failure::new(FailureKind::Device, why)
    }
}

impl Writer {
    fn fail(&mut self) {
        self.has_failed = true;
        self.encoder = None;
    }

    /// Records of what stands from `start` on, zeroes without their bytes.
    fn records(&mut self, start: u64, bytes: &[u8], by_zero: bool) -> io::Result<()> {
        let Some(encoder) = &mut self.encoder else {
            return Err(io::Error::other("an earlier error has ended it"));
        };
        for (range, zero) in alike(start, bytes) {
            let (offset, was) = (start + range.start as u64, &bytes[range]);
            match zero {
                true if by_zero => continue,
                true => {
                    let head = encoder.zero(offset, was.len() as u64).map_err(io::Error::other)?;
                    self.out.write_all(&head)?;
                }
                false => {
                    let head = encoder.data(offset, was).map_err(io::Error::other)?;
                    self.out.write_all(&head)?;
                    self.out.write_all(was)?;
                }
            }
            self.saved += was.len() as u64;
        }
        Ok(())
    }
}

/// The parts of what stands from `start` on, and whether each is zero. They meet at multiples of [`UNIT`], where blocks
/// of pools do.
fn alike(start: u64, bytes: &[u8]) -> Vec<(Range<usize>, bool)> {
    let mut parts: Vec<(Range<usize>, bool)> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let left = UNIT - (start + at as u64) % UNIT;
        let end = bytes.len().min(at + left as usize);
        let zero = bytes[at..end].iter().all(|byte| *byte == 0);
        match parts.last_mut() {
            Some((last, same)) if *same == zero => last.end = end,
            _ => parts.push((at..end, zero)),
        }
        at = end;
    }
    parts
}

/// Keeps all of the target, where that has to be before anything is written.
pub(crate) async fn keep_whole(work: &Arc<Work>) -> Result<(), Failure> {
    match &work.snapback {
        Some(snapback) if snapback.whole => {
            let mut start = 0;
            while start < snapback.size {
                let end = snapback.size.min(start + PIECE);
                keep_all(work, vec![Overwritten { range: start..end, by_zero: false }]).await?;
                start = end;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Keeps what a window overwrites: its chunks, and what its zeroes and `lost` parts do away with.
pub(crate) async fn keep_window(work: &Arc<Work>, window: &Window, lost: &[Unit]) -> Result<(), Failure> {
    if work.snapback.as_ref().is_none_or(Snapback::is_whole) {
        return Ok(());
    }
    let chunks = window.chunks.iter().flat_map(|wanted| {
        let range = |offset: &u64| work.wanted(&(*offset..*offset + u64::from(wanted.len)));
        wanted.offsets.iter().map(range)
    });
    let lost = lost.iter().filter_map(|unit| match unit {
        Unit::Lose(range, _) => Some(range.clone()),
        _ => None,
    });
    let by_zero = |range| Overwritten { range, by_zero: true };
    let zeroes = window.zeroes.iter().cloned().chain(lost).map(by_zero);
    let chunks = chunks.map(|range| Overwritten { range, by_zero: false });
    keep_all(work, joined(chunks.chain(zeroes).collect())).await
}

/// Keeps a range that becomes zero.
pub(crate) async fn keep_zeroed(work: &Arc<Work>, range: Range<u64>) -> Result<(), Failure> {
    match work.snapback.as_ref().is_none_or(Snapback::is_whole) {
        true => Ok(()),
        false => keep_all(work, vec![Overwritten { range, by_zero: true }]).await,
    }
}

/// Each step is waited for in every outcome, so that nobody reads the target when this is over.
async fn keep_all(work: &Arc<Work>, ranges: Vec<Overwritten>) -> Result<(), Failure> {
    if ranges.is_empty() {
        return Ok(());
    }
    let keep = |steps: Vec<Overwritten>| {
        work.blocking(move |work| {
            let Some(snapback) = &work.snapback else { return Ok(()) };
            steps.into_iter().try_for_each(|one| snapback.keep(one.range, one.by_zero, &work.halt))
        })
    };
    let kept = futures::future::join_all(steps(ranges).map(keep)).await;
    kept.into_iter().collect::<Result<(), Failure>>()?;
    work.blocking(|work| work.snapback.as_ref().map_or(Ok(()), Snapback::sync)).await
}

/// In order, neighbours of one kind joined. None of them overlap.
fn joined(mut ranges: Vec<Overwritten>) -> Vec<Overwritten> {
    ranges.sort_by_key(|one| one.range.start);
    let mut joined: Vec<Overwritten> = Vec::new();
    for one in ranges.into_iter().filter(|one| !one.range.is_empty()) {
        match joined.last_mut() {
            Some(last) if last.range.end == one.range.start && last.by_zero == one.by_zero => {
                last.range.end = one.range.end;
            }
            _ => joined.push(one),
        }
    }
    joined
}

/// Ranges of about [`STEP`] bytes together, those of a long one apart.
fn steps(ranges: Vec<Overwritten>) -> impl Iterator<Item = Vec<Overwritten>> {
    let mut steps: Vec<Vec<Overwritten>> = Vec::new();
    let mut bytes = STEP;
    for Overwritten { range, by_zero } in ranges {
        let mut at = range.start;
        while at < range.end {
            let part = at..range.end.min(at + STEP);
            at = part.end;
            if bytes >= STEP {
                steps.push(Vec::new());
                bytes = 0;
            }
            bytes += part.end - part.start;
            if let Some(step) = steps.last_mut() {
                step.push(Overwritten { range: part, by_zero });
            }
        }
    }
    steps.into_iter()
}

fn create(path: &Path, target: &str) -> Result<File, Failure> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made.and_then(|file| sync_folder(path).map(|()| file)) {
        Ok(file) => Ok(file),
        Err(why) if why.kind() == io::ErrorKind::AlreadyExists => {
            let file = path.display();
            Err(refused(
                path,
                format!(
                    "it exists already and is not overwritten. If a restore that was cut off has made it, name \
                     another file for this one; to put {target} back later, apply this one's file first, and \
                     {file} (`lvkeep apply --unfinished {file} {target}`) last"
                ),
            ))
        }
        Err(why) => {
            let why = format!("cannot make the snapback {}: {why}", path.display());
            Err(Failure::new(FailureKind::Device, why))
        }
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn refused(path: &Path, why: impl std::fmt::Display) -> Failure {
    Failure::refused(format!("cannot use {} as the snapback: {why}", path.display()))
}

fn shortened(name: &str) -> String {
    let fits = (0..=name.len().min(VOLUME_NAME_MAX)).rev().find(|at| name.is_char_boundary(*at));
    name[..fits.unwrap_or(0)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_are_told_apart_at_borders_of_blocks() {
        let mut bytes = vec![0; 3 * UNIT as usize];
        bytes[UNIT as usize + 5] = 1;
        let unit = UNIT as usize;
        assert_eq!(alike(0, &bytes), [(0..unit, true), (unit..2 * unit, false), (2 * unit..3 * unit, true)]);
        let off = alike(UNIT - 10, &bytes[..2 * unit]);
        assert_eq!(off, [(0..10, true), (10..unit + 10, false), (unit + 10..2 * unit, true)]);
        assert_eq!(alike(7, &[]), []);
    }

    #[test]
    fn every_byte_of_every_range_is_in_one_step() {
        let range = |range: Range<u64>, by_zero| Overwritten { range, by_zero };
        let ranges = vec![range(5..9, false), range(0..5, false), range(20..30, true), range(9..20, false)];
        let ranges = joined(ranges);
        assert_eq!(ranges, [range(0..20, false), range(20..30, true)]);
        let long = vec![range(0..20, false), range(100..100 + 3 * STEP + 1, true)];
        let steps: Vec<_> = steps(long.clone()).collect();
        assert!(
            steps.iter().all(|step| step.iter().map(|o| o.range.end - o.range.start).sum::<u64>() < 2 * STEP)
        );
        assert_eq!(joined(steps.concat()), long);
    }
}
