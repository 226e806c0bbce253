//! Lets other restorers of the host take part in a restore: the owner's half.
//!
//! The owner has checked, made and readied the target, and ends it. Meanwhile it says that there is something to do, and
//! tells whoever asks what the target is and which span is next. It goes on by itself all the while, so that nobody's
//! help is waited for who did not begin. Nobody writes any more when [`Shared::beside`] has returned well.

use std::sync::Arc;
use std::time::Duration;

use agent::store::Limit;
use agent::{Answerer, Context, Failure, Service, Stop, Topic};
use async_trait::async_trait;
use futures::future;
use schema::SessionId;
use schema::limits::LEAF_SPAN;
use schema::messages::{About, AskSpan, AskTarget, Message, SharedTarget, Span, SpanNow, TargetShared};
use schema::root::Root;

use crate::claim::Claim;
use crate::compare::Compare;
use crate::hold::{self, Hold, Taken};
use crate::lending::Lending;
use crate::pipeline;
use crate::restorer::{Report, Restorer};
use crate::service::Serving;
use crate::sink::{Opened, Sink};
use crate::spans::Spans;
use crate::unit::Work;

/// Pause before it is looked again whether everybody has let go of a target, and before anybody is asked for help.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// Looks after which it is said that somebody has not.
const LOOKS_MAX: u32 = 40;

/// How restores of an agent are shared.
#[derive(Debug, Clone)]
pub(crate) struct Sharing {
    host: String,
    leaves: u64,
    beat: Duration,
}

impl Sharing {
    /// With the other agents of the host.
    pub fn of(serving: &Serving) -> Self {
        let leaves = (serving.span / LEAF_SPAN).max(1);
        Self { host: serving.host.clone(), leaves, beat: serving.beat }
    }
}

/// A restore in which others may take part.
pub(crate) struct Shared {
    context: Context,
    sharing: Sharing,
    session: SessionId,
    about: About,
    target: SharedTarget,
    hold: Arc<Hold>,
    claim: Claim,
    parts: Arc<Parts>,
}

/// What of a restore whoever helps has.
struct Parts {
    spans: Arc<Spans>,
    /// Of its requests to the store, where these are limited.
    lending: Option<Lending>,
}

impl Restorer {
    /// Shares the target of a job, where it has several spans and nobody can write to it behind the job's back. Not
    /// where only its owner knows what need not be read or fetched, or keeps what is overwritten.
    pub(crate) async fn share(
        &self,
        work: &Work,
        claim: &Claim,
        limit: Option<Arc<Limit>>,
    ) -> Result<Option<Shared>, Failure> {
        let (Some(sharing), Sink::Target(opened)) = (&self.sharing, &work.sink) else { return Ok(None) };
        let (root, spans) = (work.source.map.root(), Spans::of(&work.part, sharing.leaves));
        let knows_more = work.tracked.get().is_some() || work.donor.is_some() || work.snapback.is_some();
        if !claim.is_of_job() || knows_more || root.top.is_none() || spans.len() < 2 {
            return Ok(None);
        }
        let compares = matches!(work.compare, Compare::ToSkip(_));
        let Some(target) = described(root, opened, compares) else { return Ok(None) };
        let session = self.context.environment.session_id();
        let hold = match Hold::share(opened, session) {
            Ok(Some(hold)) => Arc::new(hold),
            Ok(None) => return Ok(None),
            Err(_) => return Err(claim.busy(&opened.path)),
        };
        work.spans.replace(spans);
        Ok(Some(Shared {
            context: self.context.clone(),
            sharing: sharing.clone(),
            session,
            about: About { session: None, volume: root.volume.clone() },
            target,
            hold,
            claim: claim.clone(),
            parts: Parts { spans: work.spans.clone(), lending: limit.map(Lending::of) }.into(),
        }))
    }
}

/// What whoever helps must know; none when it cannot be told.
fn described(root: &Root, opened: &Opened, compares: bool) -> Option<SharedTarget> {
    let place = match &opened.place {
        Some(place) => Some(place.shared()?),
        None => None,
    };
    let path = opened.path.to_str()?.to_owned();
    let file = hold::identity(&opened.file, &opened.path).ok()?;
    Some(SharedTarget { slot: root.slot, path, file, place, is_zero: opened.is_zero(), compares })
}

impl Shared {
    /// Does the owner's part beside the others', and says how all of it ended. The target is the owner's alone again
    /// then; otherwise it must not be touched any more, and the second value is false.
    pub async fn beside(
        &self,
        owned: impl Future<Output = Result<Report, Failure>>,
    ) -> (Result<Report, Failure>, bool) {
        let working = async {
            let result = owned.await;
            match self.close().await {
                Ok(()) => (result, true),
                Err(failure) => (Err(failure), false),
            }
        };
        tokio::select! {
            biased;
            ended = working => ended,
            () = self.serve() => unreachable!("it has no end"),
        }
    }

    async fn serve(&self) {
        // Answered until the target is taken back, also when the agent is stopped.
        let context = Context { stop: Stop::default(), ..self.context.clone() };
        let owner =
            Owner { about: self.about.clone(), target: self.target.clone(), parts: self.parts.clone() };
        let service = Service::restore(self.session);
        let (served, ()) = future::join(agent::serve(&context, &service, owner), self.ring()).await;
        if let Err(failure) = served {
            tracing::warn!(%failure, "others cannot help with a restore");
        }
    }

    /// Says again and again that there is something to do.
    async fn ring(&self) {
        let message = Message::new(&self.about, &TargetShared { session: self.session });
        // Whoever hears of it asks at once.
        self.context.environment.sleep(LOOK_PAUSE).await;
        loop {
            if self.parts.want_help()
                && let Err(why) =
                    self.context.bus.broadcast(&Topic::shared(&self.sharing.host), message.clone()).await
            {
                tracing::debug!(%why, "cannot ask for help");
            }
            self.context.environment.sleep(self.sharing.beat).await;
            self.parts.age();
        }
    }

    /// Waits until nobody else writes to the target.
    async fn close(&self) -> Result<(), Failure> {
        let Parts { spans, lending } = &*self.parts;
        spans.close();
        let helped = spans.helped();
        if helped.requests + helped.kept + helped.zeroed > 0 {
            let (volume, written) = (&self.about.volume, helped.written);
            tracing::info!(volume, written, kept = helped.kept, "other agents of this host restored a part");
        }
        let mut looks = 0;
        loop {
            let hold = self.hold.clone();
            let taken = self.context.environment.on_a_thread(move || hold.take_back()).await;
            match taken.unwrap_or(Err(Taken::Shared)) {
                Ok(()) => {
                    lending.iter().for_each(Lending::end);
                    return Ok(());
                }
                Err(Taken::Lost) => return Err(self.claim.busy(self.hold.path())),
                Err(Taken::Shared) => looks += 1,
            }
            if looks == LOOKS_MAX {
                let path = self.hold.path().display();
                tracing::warn!(%path, "waiting for another agent of this host that still writes to it");
            }
            tokio::select! {
                biased;
                () = self.context.stop.raised() => return Err(pipeline::stopped(&self.about.volume)),
                () = self.context.environment.sleep(LOOK_PAUSE) => {}
            }
        }
    }
}

/// Answers those who help.
struct Owner {
    about: About,
    target: SharedTarget,
    parts: Arc<Parts>,
}

impl Parts {
    /// Whether somebody could help.
    fn want_help(&self) -> bool {
        self.spans.want_help() && self.lending.as_ref().is_none_or(Lending::has_some)
    }

    fn age(&self) {
        self.spans.age();
        self.lending.iter().for_each(Lending::age);
    }

    /// What one who helps is to do, and with how many requests to the store at once.
    fn answer(&self, ask: AskSpan) -> Span {
        let (worker, is_idle) = (ask.worker, ask.now == SpanNow::Idle);
        let is_over = matches!(ask.now, SpanNow::Done { .. } | SpanNow::Failed { .. });
        let mut fetches = None;
        if let Some(lending) = self.lending.as_ref().filter(|_| is_idle) {
            let lent = if self.spans.has_for(worker) { lending.lend(worker) } else { None };
            let Some(lent) = lent else { return Span { range: None, fetches } };
            fetches = Some(u32::try_from(lent).unwrap_or(u32::MAX));
        }
        let range = self.spans.answer(ask).map(|span| (span.start, span.end - span.start));
        if let Some(lending) = self.lending.as_ref().filter(|_| is_over || (is_idle && range.is_none())) {
            lending.pause(worker);
        }
        Span { range, fetches }
    }
}

#[async_trait]
impl Answerer for Owner {
    async fn answer(&mut self, message: &Message) -> Result<Message, Failure> {
        if message.read::<AskTarget>().is_ok() {
            return Ok(Message::new(&self.about, &self.target));
        }
        Ok(Message::new(&self.about, &self.parts.answer(message.read::<AskSpan>()?)))
    }
}
