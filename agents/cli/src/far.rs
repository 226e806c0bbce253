//! Restores by the restorer agents of another host: hands a job out, follows it, and has it stopped when this command
//! is.

use std::sync::OnceLock;
use std::time::Duration;

use agent::{Context as AgentContext, Failure, Queue, Repository, Topic, sessions};
use anyhow::bail;
use restorer::{Hole, Report, Share};
use schema::messages::{
    About, FailureKind, JobOutcome, LostRange, Message, More, Progress, RestoreJob, RestoreWaits,
    StopRestore, Verified,
};
use schema::names::Slot;
use schema::{JobId, SessionId};

use crate::app::App;
use crate::args::Role;
use crate::restore::{Done, Order};
use crate::{backup, restore, status, text, undo};

/// How often agents are told that a job is to stop, a second apart.
const TELLINGS: u32 = 10;
/// Time between two of them.
const BETWEEN_TELLINGS: Duration = Duration::from_secs(1);

/// The agents of one host.
#[derive(Clone, Copy)]
pub struct Far<'a> {
    /// This run.
    pub app: &'a App,
    /// The bus.
    pub context: &'a AgentContext,
    /// The repository.
    pub repository: &'a Repository,
    /// The host.
    pub host: &'a str,
    /// This command: none of its targets is another's.
    pub command: JobId,
}

/// What is asked beside the order itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked<'a> {
    /// Another target of the host to which the same snapshot was restored.
    pub donor: Option<&'a str>,
    /// What was kept for an undo is put back.
    pub put_back: bool,
    /// The device is said to be the one that it was then.
    pub same_device: bool,
    /// How many requests to the store it may have at once.
    pub share: Option<&'a Share<'a>>,
}

impl Far<'_> {
    /// Restores one volume. Progress is bytes done and all of them.
    pub async fn restore(
        &self,
        order: &Order,
        asked: Asked<'_>,
        progress: impl Fn(u64, u64),
    ) -> anyhow::Result<Done> {
        let (app, context) = (self.app, self.context);
        let started = app.environment.elapsed();
        let message = self.job(order, asked);
        let (job, volume) = (message.job, &order.root.volume);
        let mut heard = context.bus.subscribe(&Topic::progress(job)).await.map_err(Failure::from)?;
        let about = About { session: None, volume: volume.clone() };
        let queue = Queue::restores(self.host);
        let published = context.bus.publish(&queue, Message::new(&about, &message)).await;
        // From now on until its end is told, an agent may be at it.
        let lost = |failure: Failure| {
            asked.share.inspect(|share| share.lose());
            anyhow::Error::from(failure)
        };
        published.map_err(|why| match why.is_transient() {
            true => lost(why.into()),
            // Nobody can have been given it.
            false => Failure::from(why).into(),
        })?;
        let (kept, said) = (OnceLock::new(), OnceLock::new());
        let hear = async {
            while let Ok(message) = heard.next().await {
                if let Ok(waits) = message.read::<RestoreWaits>() {
                    if said.set(()).is_ok() {
                        app.complain(format!("{volume} waits on {}: {}", waits.host, waits.why));
                    }
                    continue;
                }
                let Ok(now) = message.read::<Progress>() else { continue };
                progress(now.done, now.total);
                if let Some(undo) = now.undo.filter(|undo| kept.set(*undo).is_ok()) {
                    self.say_kept(order, undo).await;
                }
            }
            std::future::pending::<()>().await
        };
        let note = OnceLock::new();
        let outcome = tokio::select! {
            biased;
            outcome = backup::end_of(context, job) => outcome?,
            why = self.stopped(job, order, &note) => return Err(lost(why)),
            () = hear => unreachable!("progress has no end"),
        };
        if let Some(note) = note.into_inner() {
            self.forget(note).await;
        }
        if let JobOutcome::Restored { undo: Some(undo), .. } = &outcome
            && kept.set(*undo).is_ok()
        {
            self.say_kept(order, *undo).await;
        }
        let seconds = app.environment.elapsed().saturating_sub(started).as_secs_f64();
        done(order, self.host, outcome, seconds)
    }

    fn job(&self, order: &Order, asked: Asked<'_>) -> RestoreJob {
        let Order { root, target, range, options, preparation } = order;
        let environment = &self.app.environment;
        let job = RestoreJob {
            job: environment.job_id(),
            slot: root.slot,
            target: target.clone(),
            // Agents that know no other word for what is in use would take it for that, too.
            force: false,
            preparation: preparation.clone(),
            full: options.full,
            untracked: options.no_tracking,
            donor: asked.donor.map(str::to_owned),
            command: Some(self.command),
            fetches: asked.share.map(|share| u32::try_from(share.most()).unwrap_or(u32::MAX)),
            more: None,
        };
        job.asking(More {
            target: String::new(),
            range: range.as_ref().map(|range| (range.start, range.end)),
            keep_going: options.keep_going,
            verify: options.verify,
            undo: options.undo.then(|| environment.job_id()),
            put_back: asked.put_back,
            same_device: asked.same_device,
            force: options.force,
            in_use: options.force_in_use,
        })
    }

    async fn say_kept(&self, order: &Order, kept: Slot) {
        undo::say(self.app, self.repository, kept, &order.target, Some(self.host)).await;
    }

    /// When this command is to stop, has the job stopped, and waits a while for the agent's word, which is the job's
    /// end. An error says what is known without it.
    async fn stopped(&self, job: JobId, order: &Order, note: &OnceLock<SessionId>) -> Failure {
        let (app, host) = (self.app, self.host);
        app.stop.raised().await;
        let (volume, target) = (&order.root.volume, &order.target);
        let outcome = JobOutcome::Failed {
            kind: FailureKind::Revoked,
            why: format!(
                "stopped, as asked, when no agent was at it; one that had begun it and died has left a part of it on \
                 {target}"
            ),
        };
        // Whoever is at it hears of it at once, also while the bucket cannot be reached.
        self.tell_to_stop(job).await;
        // For whoever takes the job later.
        let noted =
            sessions::note_end(self.repository, job, volume, &app.settings.host.value, &outcome).await;
        let later = match noted {
            Ok(id) => {
                let _ = note.set(id);
                "no agent begins it any more".to_owned()
            }
            Err(why) => format!("an agent that takes it later does it all the same ({why})"),
        };
        for _ in 0..TELLINGS {
            self.tell_to_stop(job).await;
            app.environment.sleep(BETWEEN_TELLINGS).await;
        }
        let why = format!(
            "no agent of {host} has said that the restore of {volume} to {target} (job {job}) is stopped: {later}; one \
             that has begun it and cannot be reached goes on with it"
        );
        Failure::new(FailureKind::Revoked, why)
    }

    async fn tell_to_stop(&self, job: JobId) {
        let message = Message::new(&About::nothing(), &StopRestore { job });
        if let Err(why) = self.context.bus.broadcast(&Topic::stop_restore(), message).await {
            tracing::debug!(%job, %why, "cannot tell agents that a restore is to stop");
        }
    }

    /// The job has ended: nobody has to be told any more.
    async fn forget(&self, note: SessionId) {
        if let Err(why) = sessions::forget_end(self.repository, note).await {
            tracing::warn!(session = %note, %why, "the note that a restore was stopped stays: `lvkeep cancel` removes it");
        }
    }

    /// Says so when nobody answers who could keep what stands on the targets.
    pub async fn warn_of_no_reader(&self) {
        match status::hosts_of(self.app, &*self.context.bus, Role::Reader).await {
            Ok(hosts) if !hosts.contains(self.host) => self.app.say(format!(
                "no reader on {} answers: nothing is overwritten before one has read what stands there",
                self.host
            )),
            Ok(_) => {}
            Err(why) => tracing::debug!(why = text::error(&why), "cannot ask who is there"),
        }
    }
}

/// What an agent did.
fn done(order: &Order, host: &str, outcome: JobOutcome, seconds: f64) -> anyhow::Result<Done> {
    let size = order.range.as_ref().map_or(order.root.size, |range| range.end - range.start);
    match outcome {
        JobOutcome::Restored {
            written,
            kept,
            compared,
            tracked,
            audited,
            zeroed,
            fetched,
            notes,
            copied,
            rescued,
            lost,
            holes,
            undo,
            verified,
            stands_on,
        } => {
            let hole = |LostRange { offset, len, why }| Hole {
                range: offset..offset.saturating_add(len),
                why,
                more: 0,
            };
            let holes = holes.into_iter().map(hole).collect();
            let report = Report {
                size,
                written,
                kept,
                compared,
                tracked,
                audited,
                zeroed,
                fetched,
                notes,
                copied,
                rescued,
                lost,
                holes,
                stands_on,
                ..Report::default()
            };
            let done = Done::new(order, report, seconds);
            let done = done.undone_by(undo.map(|slot| slot.session.to_string()));
            Ok(match order.options.verify {
                true => done.unverified(unverified(order, host, verified)),
                false => done,
            })
        }
        JobOutcome::Failed { kind, why } => Err(Failure::new(kind, why).into()),
        JobOutcome::Sealed { .. } => bail!("the answer to a restore was that of a backup"),
    }
}

/// Why nobody knows that a target holds what an agent restored to it.
fn unverified(order: &Order, host: &str, verified: Option<Verified>) -> Option<anyhow::Error> {
    let Order { root, target, .. } = order;
    if let Some(verified) = verified {
        return restore::why_unverified(order, &format!("{host}:{target}"), verified);
    }
    let (volume, id) = (&root.volume, root.slot.session);
    let why = format!(
        "{volume} was restored to {target}; the agent on {host} is too old to read again what it restored: `lvkeep verify \
         {id} {target}` there"
    );
    Some(Failure::refused(why).into())
}
