//! Serves the read requests of one host.
//!
//! A request names a session, a source, and the leaves wanted: all at first, some again when their extents got lost.
//! Every byte of a wanted leaf is told exactly once per request, in an extent or as zero, and nothing is told of a
//! leaf that could not be read: the session fails by name. Repeating a request repeats the same pieces, as long as
//! the source does not change.
//!
//! Memory is bounded by the pool of buffers, which all requests of this reader share. The reader decides nothing
//! about a source that changed; it says so, and the session's conductor decides.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use agent::buffer::Pool;
use agent::bus::Ticket;
use agent::rate::RateLimit;
use agent::{BusError, Context, Failure, Handler, Outcome, Queue, Topic, Volume, Volumes};
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use schema::ReadingId;
use schema::limits::{BLOCK, LEAF_SPAN, MESSAGE_MAX};
use schema::map::Geometry;
use schema::messages::{About, CloseReading, Extent, FailureKind, Message, ReadVolume, SessionEvent};
use tokio::task::JoinSet;
use tracing::Instrument;

use crate::ahead::{Means, ReadAhead, blocked};
use crate::emit::{Emitted, Emitter, HEADROOM};
use crate::readings::{Reading, Readings};

#[cfg(test)]
mod tests;

/// Buffers that a pool has at least: one being read, one being cut, one with the hashers.
const SEGMENTS_MIN: usize = 3;
/// Sessions whose readings are open at least; more where more volumes are read at once.
const OPEN_MIN: usize = 256;
/// Messages of one segment that are published at once.
const PUBLISHED_AT_ONCE: usize = 4;
/// How often the bus is told that a request is still being served.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Pause before the bus is listened to again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);

/// How a reader works. Each field has a value that suits most hosts, see [`Settings::new`].
#[derive(Debug, Clone)]
pub struct Settings {
    /// The host whose requests are served.
    pub host: String,
    /// Where extents go.
    pub extents: Queue,
    /// Bytes of one read, in whole blocks; at most a leaf.
    pub segment: usize,
    /// Buffers of a segment and 256 KiB each, for all volumes together; at least 3.
    pub segments: usize,
    /// Volumes read at once; at least 1.
    pub readers: usize,
    /// Bytes per second read from all sources together.
    pub limit: RateLimit,
}

impl Settings {
    /// Extents for the host's own hashers, six buffers of 4 MiB, two volumes at once, no limit.
    pub fn new(host: impl Into<String>) -> Self {
        let host = host.into();
        let extents = Queue::extents(&host);
        Self { host, extents, segment: 4 << 20, segments: 6, readers: 2, limit: RateLimit::none() }
    }
}

/// The reader of one host.
pub struct Reader {
    shared: Arc<Shared>,
}

struct Shared {
    context: Context,
    settings: Settings,
    cut_seed: u64,
    pool: Pool,
    readings: Readings,
}

impl Reader {
    /// A reader of `volumes` that cuts with the repository's seed.
    pub fn new(context: Context, volumes: Arc<dyn Volumes>, settings: Settings, cut_seed: u64) -> Self {
        let block = BLOCK as usize;
        let settings = Settings {
            segment: settings.segment.clamp(block, LEAF_SPAN as usize) / block * block,
            segments: settings.segments.max(SEGMENTS_MIN),
            readers: settings.readers.max(1),
            ..settings
        };
        let pool = Pool::new(settings.segments, HEADROOM + settings.segment);
        let readings = Readings::new(volumes, OPEN_MIN.max(settings.readers * 2));
        Self { shared: Arc::new(Shared { context, settings, cut_seed, pool, readings }) }
    }

    /// Serves until the context's flag is raised; requests in progress are then handed back.
    pub async fn run(self) -> Result<(), Failure> {
        let mut tasks = JoinSet::new();
        for _ in 0..self.shared.settings.readers {
            let shared = self.shared.clone();
            tasks.spawn(async move {
                let queue = Queue::reads(&shared.settings.host);
                // A request takes as long as a volume: none is taken before there is time for it.
                agent::consume(&shared.context, &queue, MESSAGE_MAX, Requests { shared: shared.clone() })
                    .await
            });
        }
        let shared = self.shared.clone();
        tasks.spawn(async move {
            shared.close_what_is_over().await;
            Ok(())
        });
        while let Some(ended) = tasks.join_next().await {
            ended.map_err(|why| {
                let why = format!("a reader of host {} ended early: {why}", self.shared.settings.host);
                Failure::new(FailureKind::Other, why)
            })??;
        }
        Ok(())
    }
}

/// One loop over the requests.
struct Requests {
    shared: Arc<Shared>,
}

#[async_trait]
impl Handler for Requests {
    fn role(&self) -> &'static str {
        "reader"
    }

    async fn handle(&mut self, message: &Message, ticket: &mut Option<Ticket>) -> Result<Outcome, Failure> {
        let request: ReadVolume = message.read()?;
        let about = About::session(request.session, message.about()?.volume);
        let (session, source) = (request.session, request.source.as_str());
        let span = tracing::info_span!("read", volume = about.volume, %session, source);
        self.shared.serve(&request, &about, ticket).instrument(span).await
    }
}

/// How serving a request ended.
enum End {
    Through(Result<(), Failure>),
    SessionOver,
    Stopping,
}

impl Shared {
    async fn serve(
        &self,
        request: &ReadVolume,
        about: &About,
        ticket: &mut Option<Ticket>,
    ) -> Result<Outcome, Failure> {
        let Some(reading) = self.readings.of(request.session) else {
            tracing::debug!("the session is over; not reading for it");
            return Ok(Outcome::Done);
        };
        let end = tokio::select! {
            biased;
            () = self.context.stop.raised() => End::Stopping,
            () = reading.over().raised() => End::SessionOver,
            result = self.read(request, about, &reading) => End::Through(result),
            never = self.keep(ticket) => match never {},
        };
        match end {
            End::Through(result) => {
                let whose = || format!("volume {}", about.volume);
                result.map(|()| Outcome::Done).map_err(|failure| failure.context(whose()))
            }
            End::SessionOver => {
                tracing::info!("the session is over; stopped reading");
                Ok(Outcome::Done)
            }
            End::Stopping => {
                // Dropped without a word, the request goes to whoever runs next.
                drop(ticket.take());
                Ok(Outcome::Held)
            }
        }
    }

    /// Keeps the request from being given to another while it is served.
    async fn keep(&self, ticket: &Option<Ticket>) -> Infallible {
        loop {
            self.context.environment.sleep(HEARTBEAT).await;
            if let Some(ticket) = ticket
                && let Err(why) = ticket.extend().await
            {
                tracing::debug!(%why, "could not say that the request is being served; it may come twice");
            }
        }
    }

    async fn read(&self, request: &ReadVolume, about: &About, reading: &Reading) -> Result<(), Failure> {
        let volume = self.readings.open(reading, &request.source, request.reading).await?;
        let info = volume.info();
        let (reading, size) = (info.reading, info.size);
        let geometry = Geometry::new(size)?;
        let leaves = wanted(request.leaves.as_deref(), geometry)?;
        self.tell(about, &SessionEvent::Opened { reading, size, layout: info.layout.clone() }).await?;
        tracing::info!(size, "reading");
        let bytes_read = self.read_leaves(request, about, &volume, geometry, leaves).await?;
        let changed = match volume.check_unchanged().await {
            Ok(()) => false,
            Err(why) => {
                tracing::warn!(%why, "the source changed while it was read");
                true
            }
        };
        tracing::info!(bytes_read, changed, "through");
        Ok(self
            .tell(about, &SessionEvent::Read { reading, request: request.request, bytes_read, changed })
            .await?)
    }

    /// Reads, cuts and tells; returns the bytes read.
    async fn read_leaves(
        &self,
        request: &ReadVolume,
        about: &About,
        volume: &Arc<dyn Volume>,
        geometry: Geometry,
        leaves: impl Iterator<Item = u64> + Send,
    ) -> Result<u64, Failure> {
        let Settings { segment, segments, limit, .. } = &self.settings;
        // Half of the buffers are for hashers.
        let (segment, depth) = (*segment as u64, segments / 2);
        let means = Means { context: &self.context, pool: &self.pool, limit, segment, depth };
        let reading = volume.info().reading;
        let mut ahead = ReadAhead::new(means, volume.clone(), geometry, leaves);
        let mut emitter = Emitter::new(self.cut_seed);
        let mut bytes_read = 0;
        while let Some((step, buffer)) = ahead.next().await? {
            bytes_read += u64::from(step.data);
            self.context.counters.bytes_read.add(step.data.into());
            let emitted = emitter.step(&step, buffer).ok_or_else(|| {
                let why = format!("what was read of {} at {} is incomplete", request.source, step.offset);
                Failure::new(FailureKind::Other, why)
            })?;
            self.context.counters.bytes_zero.add(emitter.take_zeroes());
            self.publish(request, about, reading, emitted).await?;
        }
        self.publish(request, about, reading, emitter.finish()).await?;
        Ok(bytes_read)
    }

    async fn publish(
        &self,
        request: &ReadVolume,
        about: &About,
        reading: ReadingId,
        emitted: Vec<Emitted>,
    ) -> Result<(), BusError> {
        let mut rest = emitted.into_iter();
        let mut sending = FuturesUnordered::new();
        let all = async {
            loop {
                while sending.len() < PUBLISHED_AT_ONCE
                    && let Some(next) = rest.next()
                {
                    sending.push(self.send(request, about, reading, next));
                }
                match sending.next().await {
                    Some(sent) => sent?,
                    None => return Ok(()),
                }
            }
        };
        blocked(&self.context, all).await
    }

    async fn send(
        &self,
        request: &ReadVolume,
        about: &About,
        reading: ReadingId,
        emitted: Emitted,
    ) -> Result<(), BusError> {
        let (session, force) = (request.session, request.force);
        match emitted {
            Emitted::Extent { offset, pieces, body } => {
                let extent = Extent { session, reading, offset, pieces, force };
                let message = Message::with_body(about, &extent, body);
                self.context.bus.publish(&self.settings.extents, message).await
            }
            Emitted::Zero { offset, pieces } => {
                let event =
                    SessionEvent::Mapped { reading, offset, pieces, stored: 0, new: 0, chunks_new: 0 };
                self.tell(about, &event).await
            }
        }
    }

    async fn tell(&self, about: &About, event: &SessionEvent) -> Result<(), BusError> {
        match about.session {
            Some(session) => {
                self.context.bus.publish(&Queue::session(session), Message::new(about, event)).await
            }
            None => Ok(()),
        }
    }

    /// Listens for sessions that are over. A message that is missed costs an open source until the table is full.
    async fn close_what_is_over(&self) {
        let listen = async {
            loop {
                let Err(why) = self.listen().await;
                tracing::warn!(%why, "cannot hear which sessions are over; listening again");
                self.context.environment.sleep(RECONNECT_PAUSE).await;
            }
        };
        tokio::select! {
            biased;
            () = self.context.stop.raised() => {}
            () = listen => {}
        }
    }

    async fn listen(&self) -> Result<Infallible, BusError> {
        let mut over = self.context.bus.subscribe(&Topic::closed()).await?;
        loop {
            match over.next().await?.read::<CloseReading>() {
                Ok(over) => self.readings.close(over.session),
                Err(why) => tracing::warn!(%why, "a message about a session that is over cannot be read"),
            }
        }
    }
}

/// The wanted leaves in order, each once; all of them without a list.
fn wanted(
    listed: Option<&[u64]>,
    geometry: Geometry,
) -> Result<impl Iterator<Item = u64> + Send + use<>, Failure> {
    let all = if listed.is_none() { geometry.leaves() } else { 0 };
    let mut listed = listed.unwrap_or_default().to_vec();
    listed.sort_unstable();
    listed.dedup();
    if let Some(beyond) = listed.last().filter(|last| **last >= geometry.leaves()) {
        let (leaves, size) = (geometry.leaves(), geometry.size());
        return Err(Failure::refused(format!(
            "leaf {beyond} was asked for; its {size} bytes have {leaves} leaves"
        )));
    }
    Ok((0..all).chain(listed))
}
