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
use agent::{Audit, Context, Failure, Handler, Outcome, Queue, Topic, Volumes};
use async_trait::async_trait;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use schema::SessionId;
use schema::keys::ChunkIds;
use schema::limits::{BLOCK, LEAF_SPAN, MESSAGE_MAX};
use schema::messages::{About, CloseReading, FailureKind, Message, ReadVolume};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::Instrument;

use crate::emit::HEADROOM;
use crate::places::{Place, Places};
use crate::readings::{Entered, Reading, Readings, Waiting};
use crate::request::{Serving, Through};

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
    /// Volumes that may be read at once, whoever waited for what before.
    pub(crate) at_once: Semaphore,
    pub(crate) places: Places,
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
        let (at_once, places) = (Semaphore::new(settings.readers), Places::default());
        let shared = Shared { context, settings, cut_seed, ids, pool, readings, at_once, places };
        Self { shared: Arc::new(shared) }
    }

    /// Serves until the context's flag is raised; requests in progress are then handed back.
    pub async fn run(self) -> Result<(), Failure> {
        let mut tasks = JoinSet::new();
        for _ in 0..self.shared.settings.readers {
            let shared = self.shared.clone();
            tasks.spawn(async move {
                let queue = Queue::reads(&shared.settings.host);
                // A request takes as long as a volume: none is taken before there is time for it.
                agent::consume(&shared.context, &queue, MESSAGE_MAX, Requests::new(&shared)).await
            });
        }
        let shared = self.shared.clone();
        tasks.spawn(async move {
            shared.close_what_is_over().await;
            Ok(())
        });
        let shared = self.shared.clone();
        tasks.spawn(async move {
            shared.release_what_is_abandoned().await;
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
    /// Requests of this loop that wait for a place.
    waiting: JoinSet<()>,
}

impl Requests {
    fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: shared.clone(), waiting: JoinSet::new() }
    }

    /// The request waits by itself, and this loop goes on.
    fn wait_for_place(&mut self, waiting: Waiting, ticket: &mut Option<Ticket>) -> Result<Outcome, Failure> {
        while self.waiting.try_join_next().is_some() {}
        let session = waiting.request.session;
        match Places::enter(&self.shared, session) {
            Some(place) => {
                self.waiting.spawn(Place::wait(place, waiting).in_current_span());
                Ok(Outcome::Held)
            }
            None if self.shared.places.is_waiting(session) => {
                *ticket = waiting.ticket;
                Ok(Outcome::Done)
            }
            None => {
                *ticket = waiting.ticket;
                let why = format!("too many sessions wait to read on host {}", self.shared.settings.host);
                Err(Failure { retry: true, ..Failure::new(FailureKind::Other, why) })
            }
        }
    }
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
        if self.shared.places.is_waiting(session) {
            tracing::debug!(%session, "a request of the session waits for a place already");
            return Ok(Outcome::Done);
        }
        match self.shared.serve(&request, &about, ticket).instrument(span.clone()).await? {
            Served::Through(outcome) => Ok(outcome),
            Served::NoPlace(waiting) => span.in_scope(|| self.wait_for_place(*waiting, ticket)),
        }
    }

    async fn drain(&mut self) -> Result<(), Failure> {
        while self.waiting.join_next().await.is_some() {}
        Ok(())
    }
}

/// What became of a request that was served.
pub(crate) enum Served {
    Through(Outcome),
    /// Its source cannot be opened yet.
    NoPlace(Box<Waiting>),
}

/// What became of one request.
enum One {
    Done,
    Held,
    NoPlace,
}

/// How serving a request ended.
enum End {
    Through(Result<Through, Failure>),
    SessionOver,
    Stopping,
}

impl Shared {
    pub(crate) async fn serve(
        &self,
        request: &ReadVolume,
        about: &About,
        ticket: &mut Option<Ticket>,
    ) -> Result<Served, Failure> {
        let done = || Ok(Served::Through(Outcome::Done));
        let held = || Ok(Served::Through(Outcome::Held));
        if let Some(parent) = request.parent {
            self.close_parent(parent.session).await;
        }
        let Some(reading) = self.readings.of(request.session) else {
            tracing::debug!("the session is over; not reading for it");
            return done();
        };
        let waiting = Waiting { request: request.clone(), about: about.clone(), ticket: ticket.take() };
        let (mut turn, mut current) = match reading.take_turn(waiting) {
            Entered::Now(turn, waiting) => (turn, waiting),
            Entered::Waits => return held(),
            // What is missing of it is asked for again.
            Entered::Full(waiting) => {
                *ticket = waiting.ticket;
                return done();
            }
        };
        loop {
            *ticket = current.ticket.take();
            match self.serve_one(&current, &reading, ticket).await? {
                One::Held => return held(),
                One::Done => {}
                One::NoPlace => {
                    current.ticket = ticket.take();
                    return Ok(Served::NoPlace(Box::new(current)));
                }
            }
            match turn.next() {
                None => return done(),
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
    ) -> Result<One, Failure> {
        let serving = async {
            let _one_of = self.at_once.acquire().await;
            Serving { shared: self, request, about, reading }.serve().await
        };
        let end = tokio::select! {
            biased;
            () = self.context.stop.raised() => End::Stopping,
            () = reading.over().raised() => End::SessionOver,
            result = serving => End::Through(result),
            never = self.keep(ticket, reading) => match never {},
        };
        match end {
            End::Through(result) => {
                let whose = || format!("volume {}", about.volume);
                match result.map_err(|failure| failure.context(whose()))? {
                    Through::Done => Ok(One::Done),
                    Through::Busy(why) => {
                        tracing::info!(why, "waiting for a place");
                        Ok(One::NoPlace)
                    }
                }
            }
            End::SessionOver => {
                tracing::info!("the session is over; stopped reading");
                Ok(One::Done)
            }
            End::Stopping => {
                // Dropped without a word, the request goes to whoever runs next.
                drop(ticket.take());
                Ok(One::Held)
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

    /// What a session compares with is in the archive: the parent's session is over and was committed, also where
    /// nobody here has heard so.
    async fn close_parent(&self, parent: SessionId) {
        if let Some(reading) = self.readings.close(parent) {
            reading.idle().await;
        }
        self.readings.volumes().close(parent, true).await;
    }

    /// Listens for sessions that are over. What is missed is made good by the next session of the same volume, and
    /// otherwise when nobody has driven the session for a while.
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
