//! Sends changes: reads them from their source and writes a stream, to a pipe or to an `apply` that answers.
//!
//! A connection that worked and then broke is made again, with growing pauses, and goes on where the other side was
//! durable; a pause without any progress is not repeated for ever. What is refused by name is never tried again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use agent::buffer::Pool;
use agent::rate::RateLimit;
use agent::{Environment, Failure, Stop};
use bytes::Bytes;
use schema::limits::STREAM_REPLY_MAX;
use schema::messages::FailureKind;
use schema::stream::{Applied, Encoder, Format, Header, Kind, Reply};
use schema::{StreamId, lvmsync};
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader,
};
use tokio::sync::mpsc;

use super::link::{Connector, Ended, ended};
use super::pieces::{PIECE, Pieces};
use super::snapback::is_zero;
use super::source::Source;
use super::{blocking, interrupted};
use crate::ranges::Ranges;

/// Pieces that are read ahead of what is written.
const AHEAD: usize = 4;
/// Bytes between two looks at the limit.
const STEP: usize = 64 << 10;
/// Connections in a row that bring nothing forward. With the pauses between them they outlast the time that an
/// `apply` whose sender fell silent keeps its target.
const TRIES: u32 = 10;
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long answers are waited for after the way to the other side broke.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// Changes to send.
#[derive(Debug)]
pub struct Sending {
    source: Arc<Source>,
    pieces: Pieces,
    name: String,
    id: StreamId,
    limit: RateLimit,
    stop: Stop,
    environment: Arc<dyn Environment>,
}

/// What was sent, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// Of the changed ranges.
    pub changed: u64,
    /// Content that was sent, again after a break.
    pub data: u64,
    /// Ranges that were told to be zero, again after a break.
    pub zero: u64,
    /// Connections that it took.
    pub connections: u32,
}

/// Why a stream was not written to its end.
enum Trouble {
    /// This side's own.
    Ours(Failure),
    /// Nobody takes it any more.
    Gone(io::Error),
}

/// How a connection came to its end.
enum Outcome {
    Done(Applied),
    Refused(Failure),
    Broken(String),
}

impl Sending {
    /// The content of `ranges` of `source`; `name` is what the stream calls itself.
    pub fn new(
        source: Arc<Source>,
        ranges: Ranges,
        name: &str,
        limit: RateLimit,
        stop: Stop,
        environment: Arc<dyn Environment>,
    ) -> Self {
        let pieces = Pieces::new(ranges.clamp(source.size()));
        let id = StreamId::from_bytes(environment.random());
        Self { source, pieces, name: name.to_owned(), id, limit, stop, environment }
    }

    /// Bytes of all that is to be sent.
    pub fn bytes(&self) -> u64 {
        self.pieces.bytes()
    }

    /// Writes the stream to a pipe or file, from which nobody answers.
    pub async fn write_to(
        &self,
        format: Format,
        mut out: impl AsyncWrite + Unpin,
        progress: impl Fn(u64),
    ) -> Result<Sent, Failure> {
        let mut sent = Sent { changed: self.bytes(), connections: 1, ..Sent::default() };
        match self.feed(format, 0, &mut out, &mut sent, &progress).await {
            Ok(()) => Ok(sent),
            Err(Trouble::Ours(why)) => Err(why),
            Err(Trouble::Gone(why)) => {
                Err(Failure::new(FailureKind::Device, format!("cannot write the stream: {why}")))
            }
        }
    }

    /// Sends to lvmsync, which does not answer: its exit status is all that is known.
    pub async fn send_to_lvmsync(
        &self,
        connector: &dyn Connector,
        progress: impl Fn(u64),
    ) -> Result<Sent, Failure> {
        let mut link = connector.connect(false).await?;
        let mut sent = Sent { changed: self.bytes(), connections: 1, ..Sent::default() };
        let fed = self.feed(Format::Lvmsync, 0, &mut link.input, &mut sent, &progress).await;
        drop(link.input);
        let failed = |why: String| Failure::new(FailureKind::Other, format!("{}: {why}", connector.name()));
        match (fed, ended(link.process).await) {
            (Err(Trouble::Ours(why)), _) => Err(why),
            (_, Ended::Badly(how)) => Err(failed(how)),
            (Err(Trouble::Gone(why)), Ended::Well) => Err(failed(format!("it stopped listening: {why}"))),
            (Ok(()), Ended::Well) => Ok(sent),
        }
    }

    /// Sends to an `apply` that answers, until all of it is on stable storage there.
    pub async fn send_to(
        &self,
        connector: &dyn Connector,
        progress: impl Fn(u64),
    ) -> Result<(Sent, Applied), Failure> {
        let mut sent = Sent { changed: self.bytes(), ..Sent::default() };
        let state = State::default();
        let mut tries = 0;
        loop {
            let first = state.durable.load(Ordering::Relaxed).min(self.pieces.count());
            sent.connections += 1;
            let outcome = self.connection(connector, first, &state, &mut sent, &progress).await?;
            let worked = state.worked.load(Ordering::Relaxed) && connector.comes_back();
            let why = match outcome {
                Outcome::Done(applied) if applied.records == self.pieces.count() - first => {
                    return Ok((sent, applied));
                }
                Outcome::Done(applied) => {
                    let (came, went) = (applied.records, self.pieces.count() - first);
                    format!("it applied {came} records of {went}")
                }
                // It got no more of the stream, or an earlier connection's far end still holds the target.
                Outcome::Refused(why) if why.retry && worked => why.why,
                Outcome::Refused(why) => return Err(why.context(connector.name())),
                Outcome::Broken(why) if worked => why,
                Outcome::Broken(why) => {
                    let why = format!("{}: no `lvkeep apply` answered: {why}", connector.name());
                    return Err(Failure::new(FailureKind::Other, why));
                }
            };
            if state.durable.load(Ordering::Relaxed) > first {
                tries = 0;
            }
            tries += 1;
            if tries >= TRIES {
                let why = format!("{}: gave up after {tries} connections: {why}", connector.name());
                return Err(Failure::new(FailureKind::Other, why));
            }
            let pause = LONGEST_PAUSE.min(Duration::from_secs(1 << (tries - 1).min(6)));
            tracing::warn!(
                to = connector.name(),
                why,
                pause = pause.as_secs(),
                "the connection broke; trying again"
            );
            tokio::select! {
                () = self.environment.sleep(pause) => {}
                () = self.stop.raised() => return Err(interrupted()),
            }
        }
    }

    async fn connection(
        &self,
        connector: &dyn Connector,
        first: u64,
        state: &State,
        sent: &mut Sent,
        progress: &impl Fn(u64),
    ) -> Result<Outcome, Failure> {
        let mut link = connector.connect(state.worked.load(Ordering::Relaxed)).await?;
        let mut hear = std::pin::pin!(hear(&mut link.output, state, first));
        let mut feed = Box::pin(self.feed(Format::Native, first, &mut link.input, sent, progress));
        let heard = tokio::select! {
            biased;
            heard = &mut hear => heard,
            fed = &mut feed => match fed {
                Err(Trouble::Ours(why)) => return Err(why),
                Err(Trouble::Gone(_)) => {
                    let last = tokio::time::timeout(LAST_WORDS, hear).await;
                    last.unwrap_or_else(|_| Ok(Outcome::Broken("it fell silent".to_owned())))
                }
                Ok(()) => tokio::select! {
                    heard = hear => heard,
                    () = self.stop.raised() => return Err(interrupted()),
                },
            },
        };
        drop(feed);
        drop(link.input);
        match heard? {
            Outcome::Broken(why) => match ended(link.process).await {
                Ended::Well => Ok(Outcome::Broken(why)),
                Ended::Badly(how) => Ok(Outcome::Broken(format!("{why}; {how}"))),
            },
            outcome => Ok(outcome),
        }
    }

    /// Writes the stream from record `first` on, to its end.
    async fn feed(
        &self,
        format: Format,
        first: u64,
        out: &mut (impl AsyncWrite + Unpin),
        sent: &mut Sent,
        progress: &impl Fn(u64),
    ) -> Result<(), Trouble> {
        let (pieces, mut taken) = mpsc::channel(AHEAD);
        let read = async { self.read_ahead(first, pieces).await.map_err(Trouble::Ours) };
        let write = async {
            let mut writer = Writer::begin(format, self.header(first), out, &self.limit).await?;
            let mut done = self.pieces.bytes_before(first);
            while let Some((offset, content)) = taken.recv().await {
                writer.piece(offset, &content, sent).await?;
                done += content.len() as u64;
                progress(done);
            }
            Ok(writer)
        };
        // The end is only written after all of it was read.
        let ((), writer) = tokio::try_join!(read, write)?;
        writer.end().await
    }

    fn header(&self, first: u64) -> Header {
        let name = self.name.chars().take(200).collect();
        Header { id: self.id, kind: Kind::Changes, of: None, size: self.source.size(), first, name }
    }

    async fn read_ahead(&self, first: u64, pieces: mpsc::Sender<(u64, Bytes)>) -> Result<(), Failure> {
        let pool = Pool::new(AHEAD + 2, PIECE as usize);
        for number in first..self.pieces.count() {
            let Some(piece) = self.pieces.get(number) else { break };
            let mut buffer = tokio::select! {
                biased;
                () = self.stop.raised() => return Err(interrupted()),
                buffer = pool.acquire() => buffer,
            };
            let (source, offset, len) =
                (self.source.clone(), piece.start, (piece.end - piece.start) as usize);
            let buffer = blocking(move || {
                source.read(offset, buffer.bytes_mut(), len)?;
                Ok(buffer)
            })
            .await?;
            let content = buffer.freeze().slice(..len);
            tokio::select! {
                biased;
                () = self.stop.raised() => return Err(interrupted()),
                taken = pieces.send((offset, content)) => if taken.is_err() {
                    break; // the writer's own trouble is told
                },
            }
        }
        Ok(())
    }
}

/// Writes one of the formats.
struct Writer<'a, W> {
    out: &'a mut W,
    encoder: Option<Encoder>,
    limit: &'a RateLimit,
}

impl<'a, W: AsyncWrite + Unpin> Writer<'a, W> {
    async fn begin(
        format: Format,
        header: Header,
        out: &'a mut W,
        limit: &'a RateLimit,
    ) -> Result<Self, Trouble> {
        let (encoder, head) = match format {
            Format::Lvmsync => (None, lvmsync::GREETING.to_vec()),
            Format::Native => {
                let (encoder, head) = Encoder::begin(&header).map_err(|why| Trouble::Ours(why.into()))?;
                (Some(encoder), head)
            }
        };
        out.write_all(&head).await.map_err(Trouble::Gone)?;
        Ok(Self { out, encoder, limit })
    }

    async fn piece(&mut self, offset: u64, content: &[u8], sent: &mut Sent) -> Result<(), Trouble> {
        let len = content.len() as u64;
        let ours = |why: schema::FormatError| Trouble::Ours(why.into());
        match &mut self.encoder {
            Some(encoder) if is_zero(content) => {
                let head = encoder.zero(offset, len).map_err(ours)?;
                self.limit.pass(len).await;
                self.out.write_all(&head).await.map_err(Trouble::Gone)?;
                sent.zero += len;
                return Ok(());
            }
            Some(encoder) => {
                let head = encoder.data(offset, content).map_err(ours)?;
                self.out.write_all(&head).await.map_err(Trouble::Gone)?;
            }
            None => {
                let head = lvmsync::head(offset, content.len() as u32);
                self.out.write_all(&head).await.map_err(Trouble::Gone)?;
            }
        }
        // In small steps: the other side must not take a slow sender for a dead one.
        for step in content.chunks(STEP) {
            self.limit.pass(step.len() as u64).await;
            self.out.write_all(step).await.map_err(Trouble::Gone)?;
        }
        sent.data += len;
        Ok(())
    }

    async fn end(self) -> Result<(), Trouble> {
        let ended = async {
            if let Some(encoder) = self.encoder {
                self.out.write_all(&encoder.end()).await?;
            }
            self.out.flush().await?;
            self.out.shutdown().await
        };
        ended.await.map_err(Trouble::Gone)
    }
}

/// What is known of the other side, over all connections.
#[derive(Debug, Default)]
struct State {
    /// Records below this are on stable storage there.
    durable: AtomicU64,
    /// An `apply` said that it is ready.
    worked: AtomicBool,
}

/// Listens until the last answer. Fails only when the other side does not keep to the protocol.
async fn hear(output: impl AsyncRead + Unpin, state: &State, first: u64) -> Result<Outcome, Failure> {
    let mut lines = BufReader::new(output);
    loop {
        let text = match next_line(&mut lines).await {
            Ok(Some(text)) => text,
            Ok(None) => return Ok(Outcome::Broken("the connection ended".to_owned())),
            Err(why) => return Ok(Outcome::Broken(format!("the connection broke: {why}"))),
        };
        match Reply::parse(text.trim_end())? {
            None => tracing::debug!(line = text.trim_end(), "the other side says"),
            Some(Reply::Ready) => state.worked.store(true, Ordering::Relaxed),
            Some(Reply::Durable(records)) => {
                state.durable.fetch_max(records.max(first), Ordering::Relaxed);
            }
            Some(Reply::Done(applied)) => return Ok(Outcome::Done(applied)),
            Some(Reply::Failed { kind, again, why }) => {
                return Ok(Outcome::Refused(Failure { kind, retry: again, why }));
            }
        }
    }
}

/// The next line that is whole; none at the end. What is longer than any answer is passed over.
async fn next_line(lines: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<String>> {
    let (mut line, mut is_rest) = (Vec::new(), false);
    loop {
        line.clear();
        let read = lines.take(STREAM_REPLY_MAX as u64).read_until(b'\n', &mut line).await?;
        match line.last() {
            Some(b'\n') if !is_rest => return Ok(Some(String::from_utf8_lossy(&line).into_owned())),
            Some(b'\n') => is_rest = false,
            _ if read == STREAM_REPLY_MAX => is_rest = true,
            // Half an answer is none.
            _ => return Ok(None),
        }
    }
}
