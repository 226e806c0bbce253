//! Keeps what is about to be overwritten, in a file that is itself a stream: applied, it takes the target back.
//!
//! What stood at a byte first is what is kept; a record that comes again, after a broken connection or because a
//! stream says a thing twice, adds nothing. What the caller overwrites only after [`Snapback::sync`] can be brought
//! back whatever happens. A file that exists is never overwritten: it is gone on with, or refused.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use agent::Failure;
use bytes::{Bytes, BytesMut};
use schema::messages::FailureKind;
use schema::stream::{Decoder, Encoder, Event, Format, Header, Kind};
use schema::{FormatError, StreamId, lvmsync};

use super::differences::differing;
use super::incoming::Change;
use super::pieces::PIECE;
use super::target::Target;

/// What is compared, and kept, at once: a multiple of every block size that matters.
const UNIT: usize = 64 << 10;
/// Bytes that are read of an existing file at once.
const READ: usize = 256 << 10;
/// Separate ranges that one snapback may hold: what they take in memory stays below half a GiB.
const RANGES_MAX: usize = 8 << 20;

/// A file that is kept in.
#[derive(Debug)]
pub(crate) struct Snapback {
    path: PathBuf,
    file: BufWriter<File>,
    writer: Writer,
    kept: Kept,
    saved: u64,
}

#[derive(Debug)]
enum Writer {
    Native(Box<Encoder>),
    Lvmsync,
    /// All of the stream was applied before; only its answer got lost.
    Finished,
}

/// What a snapback is for.
#[derive(Debug, Clone)]
pub(crate) struct Purpose {
    /// The stream that is applied; one of lvmsync has none.
    pub of: Option<StreamId>,
    /// An id for the snapback's own stream.
    pub own: StreamId,
    /// Earlier parts of the stream were applied.
    pub goes_on: bool,
    /// The same sender had a connection before.
    pub reconnected: bool,
}

impl Snapback {
    /// Opens a file for what is overwritten on `target`. Blocks.
    pub(crate) fn open(
        path: &Path,
        format: Format,
        purpose: &Purpose,
        target: &Target,
    ) -> Result<Self, Failure> {
        let cannot = |why: io::Error| cannot(path, "open", &why);
        let options = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).mode(0o600);
            options
        };
        match options().create_new(true).open(path) {
            Ok(_) if purpose.goes_on => {
                // It was only just made.
                std::fs::remove_file(path).map_err(cannot)?;
                let why = "earlier parts of this stream were applied, and what they overwrote is not there";
                Err(refused(path, why))
            }
            Ok(file) => {
                sync_folder(path).map_err(cannot)?;
                Self::begin(path, file, format, purpose, target)
            }
            Err(why) if why.kind() == io::ErrorKind::AlreadyExists => {
                let file = options().open(path).map_err(cannot)?;
                let metadata = file.metadata().map_err(cannot)?;
                if !metadata.is_file() {
                    return Err(refused(path, "it is no regular file"));
                }
                match metadata.len() {
                    0 if !purpose.goes_on => Self::begin(path, file, format, purpose, target),
                    _ => Self::go_on(path, file, format, purpose, target),
                }
            }
            Err(why) => Err(cannot(why)),
        }
    }

    fn begin(
        path: &Path,
        file: File,
        format: Format,
        purpose: &Purpose,
        target: &Target,
    ) -> Result<Self, Failure> {
        let (writer, head) = match format {
            Format::Lvmsync => (Writer::Lvmsync, lvmsync::GREETING.to_vec()),
            Format::Native => {
                let (encoder, head) = Encoder::begin(&Header {
                    id: purpose.own,
                    kind: Kind::Snapback,
                    of: purpose.of,
                    size: target.size(),
                    first: 0,
                    name: shortened(target.name()),
                })?;
                (Writer::Native(Box::new(encoder)), head)
            }
        };
        let mut this = Self::new(path, file, writer, Kept::default());
        this.append(&head)?;
        this.sync()?;
        Ok(this)
    }

    fn new(path: &Path, file: File, writer: Writer, kept: Kept) -> Self {
        let saved = kept.bytes();
        Self { path: path.to_owned(), file: BufWriter::with_capacity(1 << 20, file), writer, kept, saved }
    }

    fn go_on(
        path: &Path,
        mut file: File,
        format: Format,
        purpose: &Purpose,
        target: &Target,
    ) -> Result<Self, Failure> {
        if format == Format::Lvmsync || purpose.of.is_none() {
            return Err(refused(path, "it exists already, and is not overwritten"));
        }
        let found = Existing::read(path, &mut file)?;
        let Some(header) = found.header.filter(|header| header.kind == Kind::Snapback) else {
            return Err(refused(path, "it exists already and is no snapback; it is not overwritten"));
        };
        if header.of != purpose.of {
            return Err(refused(
                path,
                "it exists already and is the snapback of another stream; it is not overwritten",
            ));
        }
        if header.size != target.size() {
            let (name, size) = (target.name(), header.size);
            return Err(refused(
                path,
                &format!("it exists already, and {name} had {size} bytes when it was made"),
            ));
        }
        let writer = match found.decoder.into_encoder() {
            Some(encoder) => Writer::Native(Box::new(encoder)),
            None if purpose.reconnected => Writer::Finished,
            None => return Err(refused(path, "it exists already and is complete; it is not overwritten")),
        };
        // What was not whole was not durable, and nothing was overwritten because of it.
        let cut = file.set_len(found.whole).and_then(|()| file.seek(SeekFrom::Start(found.whole)));
        cut.map_err(|why| cannot(path, "go on with", &why))?;
        tracing::info!(path = %path.display(), "going on with a snapback that exists");
        Ok(Self::new(path, file, writer, found.kept))
    }

    /// Bytes kept so far.
    pub(crate) fn saved(&self) -> u64 {
        self.saved
    }

    /// Keeps what `change` will overwrite and what differs from it. Blocks.
    pub(crate) fn keep(&mut self, target: &Target, change: &Change) -> Result<(), Failure> {
        let (offset, end) = match change {
            Change::Data { offset, content } => (*offset, offset.saturating_add(content.len() as u64)),
            Change::Zero { offset, len } => (*offset, offset.saturating_add(*len)),
        };
        for range in self.kept.lacks(offset..end) {
            let mut at = range.start;
            while at < range.end {
                let part = at..range.end.min(at + PIECE);
                at = part.end;
                let becomes = match change {
                    Change::Data { offset, content } => {
                        content.slice((part.start - offset) as usize..(part.end - offset) as usize)
                    }
                    Change::Zero { .. } => Bytes::from(vec![0; (part.end - part.start) as usize]),
                };
                self.keep_part(target, part.start, &becomes)?;
            }
        }
        Ok(())
    }

    fn keep_part(&mut self, target: &Target, offset: u64, becomes: &[u8]) -> Result<(), Failure> {
        let mut was = vec![0; becomes.len()];
        target.read(offset, &mut was)?;
        for unit in differing(&was, becomes, UNIT) {
            self.record(offset + unit.start as u64, &was[unit.clone()])?;
            self.saved += unit.len() as u64;
        }
        Ok(())
    }

    fn record(&mut self, offset: u64, was: &[u8]) -> Result<(), Failure> {
        if self.kept.len() >= RANGES_MAX {
            return Err(refused(
                &self.path,
                "it would hold too many separate ranges: apply the stream in parts",
            ));
        }
        match &mut self.writer {
            Writer::Native(encoder) if is_zero(was) => {
                let head = encoder.zero(offset, was.len() as u64)?;
                self.append(&head)?;
            }
            Writer::Native(encoder) => {
                let head = encoder.data(offset, was)?;
                self.append(&head)?;
                self.append(was)?;
            }
            Writer::Lvmsync => {
                self.append(&lvmsync::head(offset, was.len() as u32))?;
                self.append(was)?;
            }
            Writer::Finished => {
                let why = format!("it is complete, and holds nothing of offset {offset}");
                return Err(refused(&self.path, &why));
            }
        }
        self.kept.add(offset..offset + was.len() as u64);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.file.write_all(bytes).map_err(|why| cannot(&self.path, "write", &why))
    }

    /// Waits until all that was kept is on stable storage. Blocks.
    pub(crate) fn sync(&mut self) -> Result<(), Failure> {
        let synced = self.file.flush().and_then(|()| self.file.get_ref().sync_data());
        synced.map_err(|why| cannot(&self.path, "write", &why))
    }

    /// All of the stream was applied. Blocks.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        if let Writer::Native(encoder) = std::mem::replace(&mut self.writer, Writer::Finished) {
            self.append(&encoder.end())?;
        }
        self.sync()
    }
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(4096).all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
}

fn shortened(name: &str) -> String {
    let fits =
        (0..=name.len().min(schema::limits::VOLUME_NAME_MAX)).rev().find(|at| name.is_char_boundary(*at));
    name[..fits.unwrap_or(0)].to_owned()
}

fn refused(path: &Path, why: &str) -> Failure {
    Failure::refused(format!("cannot use {} as the snapback: {why}", path.display()))
}

fn cannot(path: &Path, verb: &str, why: &io::Error) -> Failure {
    let path = path.display();
    Failure::new(
        FailureKind::Device,
        format!("cannot {verb} the snapback {path}: {why}; nothing more is overwritten"),
    )
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// What a file that exists holds.
struct Existing {
    header: Option<Header>,
    decoder: Decoder,
    kept: Kept,
    /// Bytes of it that are whole records.
    whole: u64,
}

impl Existing {
    /// Reads all of it. What is cut off at its end is no error; what is damaged is.
    fn read(path: &Path, file: &mut File) -> Result<Self, Failure> {
        let mut found = Self { header: None, decoder: Decoder::new(), kept: Kept::default(), whole: 0 };
        let (mut buffer, mut read) = (BytesMut::new(), 0u64);
        let mut part = vec![0; READ];
        loop {
            while let Some(event) = found.decode(path, &mut buffer)? {
                found.whole = read - buffer.len() as u64;
                match event {
                    Event::Begun(header) => found.header = Some(header),
                    Event::Data { offset, content } => found.kept.add(offset..offset + content.len() as u64),
                    Event::Zero { offset, len } => found.kept.add(offset..offset + len),
                    Event::Ended(_) => {}
                }
            }
            match file.read(&mut part).map_err(|why| cannot(path, "read", &why))? {
                0 => return Ok(found),
                n => {
                    buffer.extend_from_slice(&part[..n]);
                    read += n as u64;
                }
            }
        }
    }

    fn decode(&mut self, path: &Path, buffer: &mut BytesMut) -> Result<Option<Event>, Failure> {
        self.decoder.decode(buffer).map_err(|why| match why {
            FormatError::NotOurs { .. } => {
                refused(path, "it exists already and is no snapback; it is not overwritten")
            }
            why => refused(path, &format!("it exists already and cannot be gone on with: {why}")),
        })
    }
}

/// Ranges of a volume, in any order, exactly: a byte that is wrongly taken for kept would be lost.
#[derive(Debug, Default)]
struct Kept {
    /// Start and end; neither overlapping nor touching.
    ranges: BTreeMap<u64, u64>,
}

impl Kept {
    fn len(&self) -> usize {
        self.ranges.len()
    }

    fn bytes(&self) -> u64 {
        self.ranges.iter().map(|(start, end)| end - start).sum()
    }

    fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let Range { mut start, mut end } = range;
        if let Some((before, until)) =
            self.ranges.range(..start).next_back().filter(|(_, until)| **until >= start)
        {
            (start, end) = (*before, end.max(*until));
        }
        while let Some((next, until)) = self.ranges.range(start..=end).next().map(|(a, b)| (*a, *b)) {
            self.ranges.remove(&next);
            end = end.max(until);
        }
        self.ranges.insert(start, end);
    }

    /// The parts of a range that are not among them.
    fn lacks(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let before = self.ranges.range(..=range.start).next_back().map(|(_, end)| *end);
        let mut at = range.start.max(before.unwrap_or(0));
        let mut lacking = Vec::new();
        for (start, end) in self.ranges.range(range.start..range.end) {
            if at < *start {
                lacking.push(at..*start);
            }
            at = at.max(*end);
        }
        if at < range.end {
            lacking.push(at..range.end);
        }
        lacking
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

        #[test]
        fn what_is_kept_and_what_lacks_is_exact(
            ranges in vec((0u64..64, 0u64..16), 0..12),
            (from, len) in (0u64..64, 0u64..40),
        ) {
            let (mut kept, mut model) = (Kept::default(), [false; 128]);
            for (start, len) in ranges {
                kept.add(start..start + len);
                model[start as usize..(start + len) as usize].fill(true);
            }
            let mut lacks = [false; 128];
            for range in kept.lacks(from..from + len) {
                prop_assert!(!range.is_empty());
                lacks[range.start as usize..range.end as usize].fill(true);
            }
            for at in 0..128 {
                let inside = (from..from + len).contains(&(at as u64));
                prop_assert_eq!(lacks[at], inside && !model[at], "byte {}", at);
            }
            let runs = model.chunk_by(|a, b| a == b).filter(|run| run[0]).count();
            prop_assert_eq!(kept.len(), runs, "neighbours are joined");
        }
    }
}
