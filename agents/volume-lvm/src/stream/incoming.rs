//! A stream that comes in: finds out its format, and gives out what it says, one record at a time.
//!
//! Holds at most one record of it, and one read.

use std::time::Duration;

use agent::Failure;
use bytes::{Bytes, BytesMut};
use schema::messages::FailureKind;
use schema::stream::{Decoder, Event, Format, Header};
use schema::{FormatError, lvmsync};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes that are asked for at once.
const READ: usize = 256 << 10;

/// One thing to do to a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// These bytes stand at `offset`.
    Data {
        /// In bytes.
        offset: u64,
        /// Never empty.
        content: Bytes,
    },
    /// This range reads as zero.
    Zero {
        /// In bytes.
        offset: u64,
        /// Never 0.
        len: u64,
    },
}

impl Change {
    /// Where it ends; none when no volume is that long.
    pub(crate) fn end(&self) -> Option<u64> {
        match self {
            Self::Data { offset, content } => offset.checked_add(content.len() as u64),
            Self::Zero { offset, len } => offset.checked_add(*len),
        }
    }

    /// Bytes of memory that it takes.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Self::Data { content, .. } => content.len(),
            Self::Zero { .. } => 64,
        }
    }
}

/// Why no more changes come.
#[derive(Debug)]
pub(crate) struct Broken {
    /// What to tell.
    pub why: Failure,
    /// All that came is whole, and the rest of it is missing.
    pub is_cut_off: bool,
}

impl From<Failure> for Broken {
    fn from(why: Failure) -> Self {
        Self { why, is_cut_off: false }
    }
}

impl From<FormatError> for Broken {
    fn from(why: FormatError) -> Self {
        Self { is_cut_off: matches!(why, FormatError::Truncated { .. }), why: why.into() }
    }
}

/// What a stream begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Begun {
    /// A native one, and its header.
    Native(Header),
    /// One of lvmsync, which says nothing of itself.
    Lvmsync,
}

enum Reader {
    Native(Decoder),
    Lvmsync(lvmsync::Decoder),
}

/// A stream, and where it comes from.
pub(crate) struct Incoming<R> {
    input: R,
    patience: Option<Duration>,
    buffer: BytesMut,
    reader: Reader,
    begun: Begun,
    is_over: bool,
}

/// Bytes, and how long to wait for the next of them.
struct Input<'a, R> {
    input: &'a mut R,
    patience: Option<Duration>,
}

impl<R: AsyncRead + Unpin> Input<'_, R> {
    /// Appends what comes; 0 at the end.
    async fn more(&mut self, buffer: &mut BytesMut) -> Result<usize, Failure> {
        buffer.reserve(READ);
        let read = self.input.read_buf(buffer);
        let read = match self.patience {
            None => read.await,
            Some(patience) => tokio::time::timeout(patience, read).await.map_err(|_| silent(patience))?,
        };
        read.map_err(|why| Failure::new(FailureKind::Device, format!("cannot read the stream: {why}")))
    }
}

fn silent(patience: Duration) -> Failure {
    let why = format!("nothing came for {} s: the connection is taken for dead", patience.as_secs());
    Failure { retry: true, ..Failure::new(FailureKind::Other, why) }
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    /// Reads the beginning. With `only`, another format is refused; with `patience`, nothing is waited for longer.
    pub(crate) async fn begin(
        mut input: R,
        only: Option<Format>,
        patience: Option<Duration>,
    ) -> Result<Self, Broken> {
        let mut buffer = BytesMut::new();
        let mut source = Input { input: &mut input, patience };
        while buffer.len() < Format::LOOKED_AT && source.more(&mut buffer).await? > 0 {}
        let format = Format::detect(&buffer[..buffer.len().min(Format::LOOKED_AT)])?;
        if only.is_some_and(|only| only != format) {
            let (is, other) = match format {
                Format::Native => ("lvkeep's own format", "lvmsync's"),
                Format::Lvmsync => ("lvmsync's format", "lvkeep's own"),
            };
            return Err(Failure::refused(format!("the stream is in {is}, and {other} was asked for")).into());
        }
        let (reader, begun) = match format {
            Format::Lvmsync => (Reader::Lvmsync(lvmsync::Decoder::new()), Begun::Lvmsync),
            Format::Native => {
                let mut decoder = Decoder::new();
                let header = loop {
                    match decoder.decode(&mut buffer)? {
                        Some(Event::Begun(header)) => break header,
                        Some(_) => {
                            return Err(Failure::damaged("the stream does not begin with a header").into());
                        }
                        None if source.more(&mut buffer).await? > 0 => {}
                        None => decoder.finish(&buffer)?,
                    }
                };
                (Reader::Native(decoder), Begun::Native(header))
            }
        };
        Ok(Self { input, patience, buffer, reader, begun, is_over: false })
    }

    /// What it began with.
    pub(crate) fn begun(&self) -> &Begun {
        &self.begun
    }

    /// The next change; none when all of them came. A stream that is cut off is an error.
    pub(crate) async fn next(&mut self) -> Result<Option<Change>, Broken> {
        loop {
            if self.is_over {
                return Ok(None);
            }
            match self.decode()? {
                Step::Change(change) => return Ok(Some(change)),
                Step::Over => self.is_over = true,
                Step::More => {
                    let mut source = Input { input: &mut self.input, patience: self.patience };
                    if source.more(&mut self.buffer).await? == 0 {
                        self.finish()?;
                        self.is_over = true;
                    }
                }
            }
        }
    }

    /// After the last change: nothing may follow it.
    pub(crate) async fn nothing_follows(&mut self) -> Result<(), Broken> {
        let mut source = Input { input: &mut self.input, patience: self.patience };
        if self.buffer.is_empty() {
            source.more(&mut self.buffer).await?;
        }
        self.finish()
    }

    fn decode(&mut self) -> Result<Step, Broken> {
        Ok(match &mut self.reader {
            Reader::Native(decoder) => match decoder.decode(&mut self.buffer)? {
                Some(Event::Data { offset, content }) => Step::Change(Change::Data { offset, content }),
                Some(Event::Zero { offset, len }) => Step::Change(Change::Zero { offset, len }),
                Some(Event::Ended(_)) => Step::Over,
                Some(Event::Begun(_)) => {
                    return Err(Failure::damaged("the stream has a second header").into());
                }
                None => Step::More,
            },
            Reader::Lvmsync(decoder) => match decoder.decode(&mut self.buffer)? {
                Some(piece) => Step::Change(Change::Data { offset: piece.offset, content: piece.content }),
                None => Step::More,
            },
        })
    }

    fn finish(&self) -> Result<(), Broken> {
        let (finished, records) = match &self.reader {
            Reader::Native(decoder) => (decoder.finish(&self.buffer), decoder.next()),
            Reader::Lvmsync(decoder) => (decoder.finish(&self.buffer), decoder.records()),
        };
        finished.map_err(|why| {
            let broken = Broken::from(why);
            match broken.is_cut_off {
                true => Broken {
                    why: Failure::damaged(format!("{} (after {records} whole records)", broken.why)),
                    ..broken
                },
                false => broken,
            }
        })
    }
}

enum Step {
    Change(Change),
    More,
    Over,
}
