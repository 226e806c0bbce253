//! Jobs that wait for another restore wait beside the agent's places for jobs, where something can be done meanwhile.
//!
//! A job that waits is kept for this agent, is told about, and can be stopped, as one that is being done. When what it
//! waits for is over it goes back to its queue, which alone knows whether somebody else has ended it. So many wait at
//! once that what is held in memory is bounded; more than that wait in the places.

use std::sync::Arc;

use agent::bus::{Standing, Ticket};
use agent::{Failure, Stop};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use schema::messages::RestoreJob;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{ATTEMPTS_MAX, BUSY_BEATS, Jobs, Over};
use crate::claim::Claim;
use crate::pipeline;
use crate::stopping::Begun;

/// Jobs that wait beside the places. Those of one queue fit its window.
pub(crate) const WAITING_MAX: usize = 16;

/// Where jobs wait.
#[derive(Clone)]
pub(super) struct Aside {
    room: Arc<Semaphore>,
    jobs: mpsc::Sender<BoxFuture<'static, ()>>,
}

/// Those that wait. It ends when nobody can come any more, and all have gone.
pub(super) struct Waiting(mpsc::Receiver<BoxFuture<'static, ()>>);

/// A job that found another restore at its target.
pub(super) struct Busy {
    /// What it failed with.
    pub failure: Failure,
    /// Whether it is still to be done.
    pub standing: Option<Standing>,
    /// Raised when nobody wants it any more.
    pub stop: Stop,
    /// It is known here as long as it waits.
    pub begun: Begun,
}

impl Aside {
    /// Nobody waits yet.
    pub fn new() -> (Self, Waiting) {
        let (jobs, waiting) = mpsc::channel(WAITING_MAX);
        (Self { room: Arc::new(Semaphore::new(WAITING_MAX)), jobs }, Waiting(waiting))
    }
}

impl Waiting {
    /// Lets them wait.
    pub async fn run(mut self) {
        let mut waiting = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(one) = self.0.recv() => waiting.push(one),
                Some(()) = waiting.next() => {}
                else => return,
            }
        }
    }
}

impl Jobs {
    /// Room for one more that waits; none when it has to wait in its place. One that came very often is looked at there.
    fn room(&self) -> Option<OwnedSemaphorePermit> {
        let room = self.aside.room.clone().try_acquire_owned().ok();
        room.filter(|_| self.attempt < ATTEMPTS_MAX)
    }

    /// Lets a job that came again while it is being done here, or waits here, wait for that beside the places; it goes
    /// back to its queue then. False when there is no room.
    pub(super) fn set_aside_again(&self, job: &RestoreJob, ticket: &mut Option<Ticket>) -> bool {
        let (jobs, id) = (self.clone(), job.job);
        self.set_aside(ticket, move |ticket| async move {
            let ticket = Some(ticket);
            while jobs.running.has(id) && !jobs.context().stop.is_raised() {
                jobs.wait(id, &ticket).await;
            }
            jobs.give_back(ticket).await;
        })
    }

    /// Lets a job whose target another restore has wait for that beside the places. What is given back has no room there.
    pub(super) fn set_aside_busy(
        &self,
        job: &RestoreJob,
        busy: Busy,
        ticket: &mut Option<Ticket>,
    ) -> Option<Busy> {
        let (jobs, job) = (self.clone(), job.clone());
        let mut busy = Some(busy);
        let is_aside = self.set_aside(ticket, |ticket| {
            let busy = busy.take();
            async move {
                let mut ticket = Some(ticket);
                let Some(busy) = busy else { return };
                let over = match jobs.until_left(&job, busy, &ticket).await {
                    Ok(over) => jobs.finish(&job, over, &mut ticket).await,
                    Err(failure) => Err(failure),
                };
                if let Err(failure) = over {
                    tracing::debug!(job = %job.job, %failure, "a restore that waited is tried again");
                    jobs.give_back(ticket).await;
                }
            }
        });
        if is_aside { None } else { busy }
    }

    fn set_aside<F: Future<Output = ()> + Send + 'static>(
        &self,
        ticket: &mut Option<Ticket>,
        wait: impl FnOnce(Ticket) -> F,
    ) -> bool {
        let Some(room) = self.room() else { return false };
        let Some(ticket) = ticket.take() else { return false };
        let waiting = wait(ticket);
        let waiting = async move {
            waiting.await;
            drop(room);
        };
        // There is as much room there. When the agent ends, what is dropped goes back to its queue.
        let _ = self.aside.jobs.try_send(Box::pin(waiting));
        true
    }

    async fn give_back(&self, ticket: Option<Ticket>) {
        let Some(ticket) = ticket else { return };
        self.context().counters.messages_retried.add(1);
        if let Err(why) = ticket.again(pipeline::RETRY_PAUSE).await {
            tracing::debug!(%why, "could not hand a restore back that waited; it will come again");
        }
    }

    /// Waits until whoever has a job's target has let go of it. It must be handed back then, and not be tried here,
    /// because the queue alone knows whether the other one has ended it: an error, unless it is over for another reason;
    /// none when whoever else was given it has ended it.
    pub(super) async fn until_left(
        &self,
        job: &RestoreJob,
        busy: Busy,
        ticket: &Option<Ticket>,
    ) -> Result<Option<Box<Over>>, Failure> {
        let Busy { failure, standing, stop, begun: _begun } = busy;
        let is_new = self.is_new(job.job).await;
        while !self.context().stop.is_raised() && matches!(self.is_locked(job).await, Ok(true)) {
            if is_new && stop.is_raised() {
                return self.end_waiting(job, failure, standing.as_ref()).await;
            }
            self.tell_waits(job.job, &failure).await;
            for _ in 0..BUSY_BEATS {
                tokio::select! {
                    () = self.wait(job.job, ticket) => {}
                    () = stop.raised(), if is_new => break,
                }
            }
        }
        self.unless_lost(job, failure, standing.as_ref()).await
    }

    /// An error for a job that is to be tried again, unless nobody is given it any more.
    pub(super) async fn unless_lost(
        &self,
        job: &RestoreJob,
        failure: Failure,
        standing: Option<&Standing>,
    ) -> Result<Option<Box<Over>>, Failure> {
        if self.is_lost(standing).await && !matches!(self.is_locked(job).await, Ok(true)) {
            let failure = failure.context("the message server has lost the job, which never comes again");
            return self.end_lost(job, failure, &Claim::of(job.job)).await.map(|()| None);
        }
        Err(failure)
    }
}
