//! Serves the read requests of one host.
//!
//! A request names a session, a source, and the leaves wanted: all at first, some again when their extents got lost.
//! Before it reads, the reader asks the session's conductor which of them are still wanted, since a request may have
//! waited for long or come twice. Every byte of a wanted leaf is told exactly once per request, in an extent, as zero
//! or as the parent's, and nothing is told of a leaf that could not be read: the session fails by name. Repeating a
//! request repeats the same pieces, as long as the source does not change. Requests of one session take turns.
//!
//! Memory is bounded by the pool of buffers, which all requests of this reader share, and half a MiB or so per request
//! that is served. The reader decides nothing about a source that changed; it says so, and the session's conductor
//! decides.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use agent::buffer::Pool;
use agent::bus::{Broadcasts, Ticket};
use agent::rate::RateLimit;
use agent::{Context, Failure, Handler, Outcome, Queue, Topic, Volumes};
use async_trait::async_trait;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use schema::keys::ChunkIds;
use schema::limits::{BLOCK, LEAF_SPAN, MESSAGE_MAX};
use schema::messages::{About, CloseReading, FailureKind, Message, ReadVolume};
use tokio::task::JoinSet;
use tracing::Instrument;

use crate::audit::Audit;
use crate::emit::HEADROOM;
use crate::readings::{Entered, Reading, Readings, Waiting};
use crate::request::Serving;

#[cfg(test)]
mod tests;

/// Buffers that a pool has at least: one being read, one being cut, one with the hashers.
const SEGMENTS_MIN: usize = 3;
/// Sessions whose readings are open at least; more where more volumes are read at once.
const OPEN_MIN: usize = 256;
/// How often the bus is told that a request is still being served.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Pause before the bus is listened to again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);
/// Sessions that are closed at once; what closing runs into takes turns by itself.
const CLOSED_AT_ONCE: usize = 8;

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
    /// How much is read again of what sources say is unchanged.
    pub audit: Audit,
}

impl Settings {
    /// Extents for the host's own hashers, six buffers of 4 MiB, two volumes at once, no limit, the usual audit.
    pub fn new(host: impl Into<String>) -> Self {
        let host = host.into();
        let extents = Queue::extents(&host);
        let (limit, audit) = (RateLimit::none(), Audit::default());
        Self { host, extents, segment: 4 << 20, segments: 6, readers: 2, limit, audit }
    }
}

/// The reader of one host.
pub struct Reader {
    shared: Arc<Shared>,
}

/// What all loops of a reader share.
pub(crate) struct Shared {
    pub(crate) context: Context,
    pub(crate) settings: Settings,
    pub(crate) cut_seed: u64,
    pub(crate) ids: ChunkIds,
    pub(crate) pool: Pool,
    pub(crate) readings: Readings,
}

impl Reader {
    /// A reader of `volumes` that cuts with the repository's seed, and audits with its chunk ids.
    pub fn new(
        context: Context,
        volumes: Arc<dyn Volumes>,
        settings: Settings,
        cut_seed: u64,
        ids: ChunkIds,
    ) -> Self {
        let block = BLOCK as usize;
        let settings = Settings {
            segment: settings.segment.clamp(block, LEAF_SPAN as usize) / block * block,
            segments: settings.segments.max(SEGMENTS_MIN),
            readers: settings.readers.max(1),
            ..settings
        };
        let pool = Pool::new(settings.segments, HEADROOM + settings.segment);
        let readings = Readings::new(volumes, OPEN_MIN.max(settings.readers * 2));
        Self { shared: Arc::new(Shared { context, settings, cut_seed, ids, pool, readings }) }
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
        let waiting = Waiting { request: request.clone(), about: about.clone(), ticket: ticket.take() };
        let (mut turn, mut current) = match reading.take_turn(waiting) {
            Entered::Now(turn, waiting) => (turn, waiting),
            Entered::Waits => return Ok(Outcome::Held),
            // What is missing of it is asked for again.
            Entered::Full(waiting) => {
                *ticket = waiting.ticket;
                return Ok(Outcome::Done);
            }
        };
        loop {
            *ticket = current.ticket.take();
            match self.serve_one(&current, &reading, ticket).await? {
                Outcome::Held => return Ok(Outcome::Held),
                Outcome::Done => {}
            }
            match turn.next() {
                None => return Ok(Outcome::Done),
                Some(next) => {
                    if let Some(ticket) = ticket.take() {
                        ticket.done().await?;
                    }
                    current = next;
                }
            }
        }
    }

    async fn serve_one(
        &self,
        Waiting { request, about, .. }: &Waiting,
        reading: &Reading,
        ticket: &mut Option<Ticket>,
    ) -> Result<Outcome, Failure> {
        let serving = Serving { shared: self, request, about, reading };
        let end = tokio::select! {
            biased;
            () = self.context.stop.raised() => End::Stopping,
            () = reading.over().raised() => End::SessionOver,
            result = serving.serve() => End::Through(result),
            never = self.keep(ticket, reading) => match never {},
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

    /// Keeps the request, and those that wait behind it, from being given to another while it is served.
    async fn keep(&self, ticket: &Option<Ticket>, reading: &Reading) -> Infallible {
        let extend = async |ticket: &Option<Ticket>| {
            if let Some(ticket) = ticket
                && let Err(why) = ticket.extend().await
            {
                tracing::debug!(%why, "could not say that the request is being served; it may come twice");
            }
        };
        loop {
            self.context.environment.sleep(HEARTBEAT).await;
            extend(ticket).await;
            let waiting = reading.take_waiting();
            for request in &waiting {
                extend(&request.ticket).await;
            }
            reading.put_back(waiting);
        }
    }

    /// Listens for sessions that are over. A message that is missed costs an open source until the table is full, and
    /// what volumes keep for the session until its next one.
    async fn close_what_is_over(&self) {
        let mut closing = FuturesUnordered::new();
        let mut over = None;
        while !self.context.stop.is_raised() {
            let next = tokio::select! {
                biased;
                () = self.context.stop.raised() => break,
                Some(()) = closing.next() => continue,
                next = self.next_over(&mut over), if closing.len() < CLOSED_AT_ONCE => next,
            };
            closing.extend(next.and_then(|over| self.close(over)));
        }
        // What was said before the stop: a conductor of the same process ends its sessions first.
        while let Some(next) = self.next_over(&mut over).now_or_never() {
            closing.extend(next.and_then(|over| self.close(over)));
        }
        while closing.next().await.is_some() {}
    }

    /// Waits for the next word that a session is over; none when there was none, and it is to be asked for again.
    async fn next_over(&self, over: &mut Option<Box<dyn Broadcasts>>) -> Option<CloseReading> {
        let heard = async {
            let over = match over {
                Some(over) => over,
                None => over.insert(self.context.bus.subscribe(&Topic::closed()).await?),
            };
            over.next().await
        };
        match heard.await {
            Ok(message) => {
                let why = "a message about a session that is over cannot be read";
                message.read().inspect_err(|error| tracing::warn!(%error, why)).ok()
            }
            Err(why) => {
                tracing::warn!(%why, "cannot hear which sessions are over; listening again");
                *over = None;
                self.context.environment.sleep(RECONNECT_PAUSE).await;
                None
            }
        }
    }

    /// Ends a session: at once for whoever reads for it, and for its volumes when nobody does any more.
    fn close(&self, over: CloseReading) -> Option<impl Future<Output = ()> + '_> {
        let reading = self.readings.close(over.session);
        (over.host == self.settings.host).then_some(async move {
            if let Some(reading) = reading {
                reading.idle().await;
            }
            self.readings.volumes().close(over.session, over.committed).await;
        })
    }
}
