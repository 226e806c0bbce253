//! Takes part in the restores of other agents of the host, when there is nothing of one's own to do: the half of whoever
//! helps.
//!
//! It opens the target that the owner names, makes sure that it is the same file or device, holds its lock, and only
//! then asks for a span: whoever has the answer and the lock may write, since the owner waits for the lock before it
//! tells the end. What is not told to be done is done by somebody else.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agent::store::Limit;
use agent::{BusError, Context, Failure, Place, Service, Stop, Topic};
use schema::SessionId;
use schema::messages::{
    About, AskSpan, AskTarget, Message, SharedTarget, Span, SpanFigures, SpanNow, TargetShared,
};
use tokio::sync::watch;

use crate::compare::Compare;
use crate::hold;
use crate::pipeline;
use crate::reading::Reading;
use crate::restorer::{Progress, Restorer};
use crate::service::Serving;
use crate::sink::{Before, Opened, Sink};
use crate::spans::figures;
use crate::target::Target;
use crate::task::Task;
use crate::unit::Source;

/// How long an owner may take to answer.
const LIMIT: Duration = Duration::from_secs(5);
/// Words without an answer after which an owner is gone.
const UNHEARD_MAX: u32 = 3;
/// Beats without progress after which it is said that a span stands still.
const STILL_MAX: u32 = 60;
/// Pause before the bus is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The restores of this process that are its own.
#[derive(Debug, Clone, Default)]
pub(crate) struct Own(Arc<AtomicUsize>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(crate) struct OneOfOwn(Arc<AtomicUsize>);

impl Own {
    /// One more.
    pub fn one(&self) -> OneOfOwn {
        self.0.fetch_add(1, Ordering::SeqCst);
        OneOfOwn(self.0.clone())
    }

    fn has_none(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 0
    }
}

impl Drop for OneOfOwn {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A restorer that helps others of its host.
pub(crate) struct Helping {
    /// It.
    pub restorer: Arc<Restorer>,
    /// What it may write to.
    pub serving: Arc<Serving>,
    /// What goes before.
    pub own: Own,
    /// Tells this process from others that help: what it was given and has not heard of is still its own.
    pub worker: u64,
}

/// A target that is open to be written to beside its owner.
struct Joined {
    target: SharedTarget,
    opened: Opened,
    source: Source,
    session: SessionId,
    /// Of its requests to the store.
    limit: Arc<Limit>,
}

impl Helping {
    /// Helps until the context's stop flag is raised.
    pub async fn run(self) -> Result<(), Failure> {
        let context = &self.restorer.context;
        while !context.stop.is_raised() {
            if let Err(why) = self.listen().await {
                tracing::debug!(%why, "cannot hear who wants help");
                self.pause().await;
            }
        }
        Ok(())
    }

    async fn pause(&self) {
        let Context { stop, environment, .. } = &self.restorer.context;
        tokio::select! {
            biased;
            () = stop.raised() => {}
            () = environment.sleep(RETRY_PAUSE) => {}
        }
    }

    /// Waits for one who wants help, and helps. What was said meanwhile is old, so that it is listened anew.
    async fn listen(&self) -> Result<(), BusError> {
        let context = &self.restorer.context;
        let mut told = context.bus.subscribe(&Topic::shared(&self.serving.host)).await?;
        loop {
            let message = tokio::select! {
                biased;
                () = context.stop.raised() => return Ok(()),
                message = told.next() => message?,
            };
            let Ok(TargetShared { session }) = message.read() else { continue };
            if !self.may_go_on() {
                continue;
            }
            context.counters.messages_taken.add(1);
            if let Err(why) = self.help(session).await {
                tracing::debug!(%why, "cannot help with a restore");
            }
            context.counters.messages_handled.add(1);
            return Ok(());
        }
    }

    fn may_go_on(&self) -> bool {
        self.own.has_none() && !self.restorer.context.stop.is_raised()
    }

    async fn help(&self, session: SessionId) -> Result<(), Failure> {
        let asked = Message::new(&About::nothing(), &AskTarget { session });
        let target: SharedTarget = self.request(session, asked).await?.read()?;
        let joined = self.join(session, target).await?;
        let mut is_told = false;
        while self.may_go_on() {
            let Some(span) = self.ask(&joined, SpanNow::Idle).await? else { return Ok(()) };
            let offset = span.start;
            if !std::mem::replace(&mut is_told, true) {
                let path = &joined.target.path;
                tracing::info!(path, "taking part in a restore of another agent of this host");
            }
            let now = match self.restore(&joined, span).await {
                Ok(figures) => SpanNow::Done { offset, figures },
                Err(failure) => SpanNow::Failed { offset, why: failure.why },
            };
            let failed = matches!(now, SpanNow::Failed { .. });
            self.tell(&joined, now).await?;
            if failed {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn request(&self, session: SessionId, message: Message) -> Result<Message, BusError> {
        self.restorer.context.bus.request(&Service::restore(session), message, LIMIT).await
    }

    async fn ask(&self, joined: &Joined, now: SpanNow) -> Result<Option<Range<u64>>, Failure> {
        let is_idle = now == SpanNow::Idle;
        let ask = Message::new(&About::nothing(), &AskSpan { worker: self.worker, now });
        let answer: Span = self.request(joined.session, ask).await?.read()?;
        if is_idle {
            joined.limit.set(answer.fetches.map_or(usize::MAX, |fetches| fetches as usize));
        }
        Ok(answer.range.map(|(offset, len)| offset..offset.saturating_add(len)))
    }

    /// Says how a span ended: an owner that does not hear of it does it again.
    async fn tell(&self, joined: &Joined, now: SpanNow) -> Result<(), Failure> {
        for _ in 1..UNHEARD_MAX {
            match self.ask(joined, now.clone()).await {
                Err(failure) if failure.retry => self.pause().await,
                told => return told.map(drop),
            }
        }
        self.ask(joined, now).await.map(drop)
    }

    /// Opens the target, and holds its lock from then on.
    async fn join(&self, session: SessionId, target: SharedTarget) -> Result<Joined, Failure> {
        let restorer = &self.restorer;
        let root = restorer.root_at(target.slot).await?;
        restorer.keys(&restorer.repository).check()?;
        let place = self.place(&target)?;
        let path = Target::new(&target.path, true).below(&self.serving.allowed);
        let forbidden = restorer.settings.forbidden.clone();
        let (expected, volume) = (target.file.clone(), root.volume.clone());
        let before = match target.is_zero {
            true => Before::Empty,
            false => Before::Content,
        };
        let opened = restorer
            .blocking(move || {
                let file = path.open_beside(place.is_some(), &forbidden)?;
                if hold::identity(&file, path.path())? != expected {
                    let path = path.path().display();
                    return Err(Failure::refused(format!(
                        "cannot help to restore to {path}: it is another file here"
                    )));
                }
                hold::join(&file, path.path())?;
                let len = file.metadata().ok().filter(|found| found.is_file()).map(|found| found.len());
                Ok(Opened { place, len, ..Opened::new(file, path.path().to_owned(), volume, before) })
            })
            .await?;
        // With a span comes how many.
        let limit = Arc::new(Limit::none());
        // The owner's session protects the snapshot.
        let source = restorer.source(restorer.reads(Some(&limit)), root, None)?;
        Ok(Joined { target, opened, source, session, limit })
    }

    /// The logical volume that the target is.
    fn place(&self, target: &SharedTarget) -> Result<Option<Arc<dyn Place>>, Failure> {
        let Some(place) = &target.place else { return Ok(None) };
        Target::new(&place.name, true).below(&self.serving.allowed).check_place(&place.name)?;
        let found = self.restorer.targets.as_ref().and_then(|targets| {
            let path = PathBuf::from(&target.path);
            targets.shared(place, &path)
        });
        let why = || format!("cannot help to restore to {}: {} is not its device", place.name, target.path);
        found.map(Some).ok_or_else(|| Failure::refused(why()))
    }

    /// Restores a span, and returns when it is durable or nobody writes to it any more.
    async fn restore(&self, joined: &Joined, span: Range<u64>) -> Result<SpanFigures, Failure> {
        let Joined { target, opened, source, .. } = joined;
        if span.is_empty() || span.end > source.map.root().size {
            return Err(Failure::refused("the span is no part of the snapshot"));
        }
        let opened = opened.again()?;
        let (compares, part) = (target.compares, span.clone());
        let task = self
            .restorer
            .blocking(move || {
                let compare = match compares {
                    true => Compare::ToSkip(Reading::of(&opened)?),
                    false => Compare::Nothing,
                };
                Ok(Task { compare, ..Task::new(Sink::Target(opened), part) })
            })
            .await?;
        let work = self.restorer.work(source.clone(), task);
        let (latest, enough) = (watch::Sender::new(0), Stop::default());
        let progress = |now: Progress| {
            latest.send_replace(now.done);
        };
        let restoring = async {
            let report = pipeline::run(&work, &enough, &progress).await?;
            let work = work.clone();
            self.restorer.blocking(move || work.sink.sync()).await?;
            Ok(figures(&report))
        };
        // Also while a slow device syncs: a span of which nobody speaks is given to somebody else.
        tokio::select! {
            biased;
            restored = restoring => restored,
            () = self.keep(joined, span.start, &latest, &enough) => unreachable!("it has no end"),
        }
    }

    /// Says that the span is in work, and raises `enough` when nobody wants that any more.
    async fn keep(&self, joined: &Joined, offset: u64, latest: &watch::Sender<u64>, enough: &Stop) {
        let Context { stop, environment, .. } = &self.restorer.context;
        let (mut unheard, mut before, mut still) = (0, 0, 0);
        while unheard < UNHEARD_MAX {
            tokio::select! {
                biased;
                () = stop.raised() => break,
                () = environment.sleep(self.serving.beat) => {}
            }
            let done = *latest.borrow();
            still = if done == before { still + 1 } else { 0 };
            before = done;
            if still == STILL_MAX {
                let path = &joined.target.path;
                tracing::warn!(
                    path,
                    offset,
                    done,
                    "a part of a restore that this agent does has stood still for a while: see whether the disk or the store hangs; the restore ends when this agent goes on or is gone"
                );
            }
            match self.ask(joined, SpanNow::Working { offset, done }).await {
                Ok(Some(_)) => unheard = 0,
                Ok(None) => break,
                Err(_) => unheard += 1,
            }
        }
        enough.raise();
        std::future::pending().await
    }
}
