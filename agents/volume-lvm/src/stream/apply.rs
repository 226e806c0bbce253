//! Applies a stream to a target: what `lvkeep apply` does, here or at the far end of `lvkeep send`.
//!
//! A stream arrives in batches of a few MiB. What a batch overwrites is on stable storage in the snapback before the
//! first byte of it is written; what is told to be durable is on stable storage on the target. Records that came whole
//! are applied even when the stream then breaks off, since it can be gone on with; the break is told all the same.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agent::{Environment, Failure, Stop};
use schema::StreamId;
use schema::messages::FailureKind;
use schema::stream::{Applied, Format, Reply};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::incoming::{Begun, Broken, Change, Incoming};
use super::snapback::{Purpose, Snapback};
use super::target::Target;
use super::{blocking, interrupted};

/// Content bytes of one batch. Three may be in memory: one comes in, one waits, one is written.
const BATCH: usize = 8 << 20;
/// Changes of one batch.
const BATCH_COUNT: usize = 4096;
/// Bytes that are written between two waits for the target's stable storage, and the time between them.
const SYNC_BYTES: u64 = 64 << 20;
const SYNC_TIME: Duration = Duration::from_secs(5);
/// How long an `apply` that somebody sends to from elsewhere waits for the next byte. Its target must be free again when the sender,
/// whose connection broke without a word, comes back.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Where what is overwritten is kept.
#[derive(Debug, Clone)]
pub struct Keep {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
}

/// How a stream is applied.
#[derive(Debug, Clone)]
pub struct Apply {
    /// The only format that is taken.
    pub only: Option<Format>,
    /// Where what is overwritten is kept.
    pub keep: Option<Keep>,
    /// A stream that is cut off between two records is taken for a whole one.
    pub unfinished: bool,
    /// A sender waits for answers, and may come back when its connection breaks.
    pub answers: bool,
    /// That sender came back.
    pub reconnected: bool,
    /// How long the next byte is waited for.
    pub patience: Option<Duration>,
    /// Ends the work.
    pub stop: Stop,
    /// Clock and randomness.
    pub environment: Arc<dyn Environment>,
}

impl Apply {
    /// Applies everything, without a snapback, and answers nobody.
    pub fn new(stop: Stop, environment: Arc<dyn Environment>) -> Self {
        Self {
            only: None,
            keep: None,
            unfinished: false,
            answers: false,
            reconnected: false,
            patience: None,
            stop,
            environment,
        }
    }

    /// Reads a whole stream, and changes nothing: whether it is whole, and fits the target.
    pub async fn check(&self, input: impl AsyncRead + Unpin, target: &Target) -> Result<(), Failure> {
        let mut incoming = Incoming::begin(input, self.only, None).await.map_err(|broken| broken.why)?;
        fits(incoming.begun(), target)?;
        loop {
            if self.stop.is_raised() {
                return Err(interrupted());
            }
            match incoming.next().await {
                Ok(Some(change)) => inside(&change, target)?,
                Ok(None) => return incoming.nothing_follows().await.map_err(|broken| broken.why),
                Err(Broken { is_cut_off: true, .. }) if self.unfinished => return Ok(()),
                Err(Broken { is_cut_off: true, why }) => {
                    return Err(why.context("nothing was applied (--unfinished takes what there is of it)"));
                }
                Err(broken) => return Err(broken.why.context("nothing was applied")),
            }
        }
    }

    /// Applies what comes. Answers go to `output`; `progress` hears how far it is.
    pub async fn run(
        &self,
        input: impl AsyncRead + Unpin,
        output: impl AsyncWrite + Unpin,
        target: Arc<Target>,
        progress: impl Fn(&Applied),
    ) -> Result<Applied, Failure> {
        let mut answers = Answers { output, wanted: self.answers };
        let applied = self.apply(input, &mut answers, target, progress).await;
        let last = match &applied {
            Ok(applied) => Reply::Done(*applied),
            Err(Failure { kind, retry, why }) => {
                Reply::Failed { kind: *kind, again: *retry, why: why.clone() }
            }
        };
        match (answers.tell(&last).await, applied) {
            (Err(why), Ok(_)) => Err(why),
            (_, applied) => applied,
        }
    }

    async fn apply<W: AsyncWrite + Unpin>(
        &self,
        input: impl AsyncRead + Unpin,
        answers: &mut Answers<W>,
        target: Arc<Target>,
        progress: impl Fn(&Applied),
    ) -> Result<Applied, Failure> {
        let incoming = Incoming::begin(input, self.only, self.patience).await.map_err(Broken::for_sender)?;
        fits(incoming.begun(), &target)?;
        let first = match incoming.begun() {
            Begun::Native(header) if header.first > 0 && !self.answers => {
                let why =
                    format!("the stream begins with record {}: it is the rest of another", header.first);
                return Err(Failure::refused(why));
            }
            Begun::Native(header) => header.first,
            Begun::Lvmsync => 0,
        };
        let snapback = self.open_snapback(incoming.begun(), first, &target).await?;
        answers.tell(&Reply::Ready).await?;
        let mut work =
            Work { target, snapback, applied: Applied::default(), unsynced: 0, stop: self.stop.clone() };
        let (batches, mut taken) = mpsc::channel(1);
        let target = work.target.clone();
        let receive = async { Ok(self.receive(incoming, &target, batches).await) };
        let write = async {
            let mut synced_at = self.environment.elapsed();
            while let Some(batch) = taken.recv().await {
                work = work.write(batch).await?;
                progress(&work.applied);
                let now = self.environment.elapsed();
                if work.unsynced >= SYNC_BYTES || now.saturating_sub(synced_at) >= SYNC_TIME {
                    work = work.sync().await?;
                    synced_at = now;
                    answers.tell(&Reply::Durable(first + work.applied.records)).await?;
                }
            }
            work.sync().await
        };
        // A failed write ends the receiving; a broken stream does not end the writing of what came.
        let (received, work) = tokio::try_join!(receive, write)?;
        match received {
            Err(Broken { is_cut_off: true, .. }) if self.unfinished => work.finish().await,
            Err(broken) => Err(broken.for_sender()),
            Ok(()) => work.finish().await,
        }
    }

    async fn open_snapback(
        &self,
        begun: &Begun,
        first: u64,
        target: &Arc<Target>,
    ) -> Result<Option<Snapback>, Failure> {
        let Some(Keep { path, format }) = self.keep.clone() else { return Ok(None) };
        let of = match begun {
            Begun::Native(header) => Some(header.id),
            Begun::Lvmsync => None,
        };
        let own = StreamId::from_bytes(self.environment.random());
        let purpose = Purpose { of, own, goes_on: first > 0, reconnected: self.reconnected };
        let target = target.clone();
        blocking(move || Snapback::open(&path, format, &purpose, &target)).await.map(Some)
    }

    /// Hands on what comes, and says how it ended.
    async fn receive(
        &self,
        mut incoming: Incoming<impl AsyncRead + Unpin>,
        target: &Target,
        batches: mpsc::Sender<Vec<Change>>,
    ) -> Result<(), Broken> {
        let (mut batch, mut weight) = (Vec::new(), 0);
        let ended = loop {
            let next = tokio::select! {
                biased;
                () = self.stop.raised() => Err(interrupted().into()),
                next = incoming.next() => next,
            };
            match next {
                Ok(Some(change)) => {
                    if let Err(why) = inside(&change, target) {
                        break Err(why.into());
                    }
                    weight += change.weight();
                    batch.push(change);
                }
                // A sender waits for the answer before it lets go of the connection.
                Ok(None) if self.answers => break Ok(()),
                Ok(None) => break incoming.nothing_follows().await,
                Err(broken) => break Err(broken),
            }
            if weight >= BATCH || batch.len() >= BATCH_COUNT {
                weight = 0;
                if batches.send(std::mem::take(&mut batch)).await.is_err() {
                    return Ok(()); // the writer's own failure is told
                }
            }
        };
        if !batch.is_empty() {
            // As above.
            let _ = batches.send(batch).await;
        }
        ended
    }
}

impl Broken {
    /// Whoever sends may come back with what was cut off.
    fn for_sender(self) -> Failure {
        Failure { retry: self.why.retry || self.is_cut_off, ..self.why }
    }
}

/// Whether the target holds the volume that a stream is about.
fn fits(begun: &Begun, target: &Target) -> Result<(), Failure> {
    match begun {
        Begun::Native(header) => target.check_holds(header.size, &header.name),
        Begun::Lvmsync => Ok(()),
    }
}

/// lvmsync passes over what does not fit, which loses it.
fn inside(change: &Change, target: &Target) -> Result<(), Failure> {
    match change.end() {
        Some(end) if end <= target.size() => Ok(()),
        end => {
            let end = end.map_or("beyond all bounds".to_owned(), |end| format!("up to offset {end}"));
            let (name, size) = (target.name(), target.size());
            Err(Failure::refused(format!(
                "cannot apply to {name}: it has {size} bytes, and the stream goes {end}"
            )))
        }
    }
}

/// What is moved to a thread that may block, and back.
struct Work {
    target: Arc<Target>,
    snapback: Option<Snapback>,
    applied: Applied,
    /// Bytes written since the last wait for stable storage.
    unsynced: u64,
    stop: Stop,
}

impl Work {
    async fn write(mut self, batch: Vec<Change>) -> Result<Self, Failure> {
        blocking(move || {
            if let Some(snapback) = &mut self.snapback {
                batch.iter().try_for_each(|change| snapback.keep(&self.target, change))?;
                snapback.sync()?;
                self.applied.saved = snapback.saved();
            }
            for change in &batch {
                let bytes = match change {
                    Change::Data { offset, content } => {
                        self.target.write(*offset, content)?;
                        self.applied.written += content.len() as u64;
                        content.len() as u64
                    }
                    Change::Zero { offset, len } => {
                        self.target.zero(*offset..offset.saturating_add(*len), &self.stop)?;
                        self.applied.zeroed += len;
                        *len
                    }
                };
                if self.stop.is_raised() {
                    return Err(interrupted());
                }
                self.unsynced = self.unsynced.saturating_add(bytes);
                self.applied.records += 1;
            }
            Ok(self)
        })
        .await
    }

    async fn sync(mut self) -> Result<Self, Failure> {
        blocking(move || {
            self.target.sync()?;
            self.unsynced = 0;
            Ok(self)
        })
        .await
    }

    async fn finish(self) -> Result<Applied, Failure> {
        blocking(move || {
            if let Some(snapback) = self.snapback {
                snapback.finish()?;
            }
            Ok(self.applied)
        })
        .await
    }
}

/// Answers to whoever sends, if anybody does.
struct Answers<W> {
    output: W,
    wanted: bool,
}

impl<W: AsyncWrite + Unpin> Answers<W> {
    async fn tell(&mut self, reply: &Reply) -> Result<(), Failure> {
        if !self.wanted {
            return Ok(());
        }
        let line = format!("{reply}\n");
        let told = async {
            self.output.write_all(line.as_bytes()).await?;
            self.output.flush().await
        };
        told.await.map_err(|why| Failure::new(FailureKind::Other, format!("the sender is gone: {why}")))
    }
}
