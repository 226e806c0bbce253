//! Reading ahead: several reads of one request in flight, in order, each into a buffer of the common pool.
//!
//! A buffer is taken before its read starts and in the order of the steps, and nothing that waits for a buffer keeps
//! another one from being used up: what was read first is always ready to be handed on. The pool bounds memory, and
//! waiting for it is the back-pressure of whoever uses extents.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use agent::buffer::{Buffer, Pool};
use agent::rate::RateLimit;
use agent::{Context, Failure, Volume};
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use schema::messages::FailureKind;
use tokio::task::JoinHandle;

use crate::emit::HEADROOM;
use crate::leaves::{Leaves, Task};

/// Where and how a request's reads are made.
pub(crate) struct Means<'a> {
    pub(crate) context: &'a Context,
    pub(crate) pool: &'a Pool,
    pub(crate) limit: &'a RateLimit,
    /// Reads in flight at most.
    pub(crate) depth: usize,
}

/// A task whose data was read, if it has any.
pub(crate) type Ready = (Task, Option<Buffer>);
type Started = Pin<Box<dyn Future<Output = Result<Ready, Failure>> + Send>>;

/// The tasks of some leaves, read ahead.
pub(crate) struct ReadAhead<'a, L> {
    means: Means<'a>,
    volume: Arc<dyn Volume>,
    leaves: Leaves<'a, L>,
    planned: VecDeque<Task>,
    started: FuturesOrdered<Started>,
}

impl<'a, L: Iterator<Item = (u64, bool)> + Send> ReadAhead<'a, L> {
    /// Nothing is read before [`ReadAhead::next`] is called.
    pub(crate) fn new(means: Means<'a>, volume: Arc<dyn Volume>, leaves: Leaves<'a, L>) -> Self {
        Self { means, volume, leaves, planned: VecDeque::new(), started: FuturesOrdered::new() }
    }

    /// The next task; none when all leaves are read.
    pub(crate) async fn next(&mut self) -> Result<Option<Ready>, Failure> {
        while self.started.len() < self.means.depth {
            if self.planned.is_empty() {
                self.planned = self.leaves.next().await?.unwrap_or_default().into();
            }
            let buffer = match self.planned.front() {
                None => break,
                Some(Task::Read { step, .. }) if step.data > 0 => match self.started.is_empty() {
                    true => Some(blocked(self.means.context, self.means.pool.acquire()).await),
                    false => tokio::select! {
                        biased;
                        buffer = self.means.pool.acquire() => Some(buffer),
                        ready = self.started.next() => return ready.transpose(),
                    },
                },
                Some(_) => None,
            };
            match (self.planned.pop_front(), buffer) {
                (Some(task), Some(buffer)) => self.start(task, buffer),
                (Some(task), None) => {
                    self.started.push_back(Box::pin(std::future::ready(Ok((task, None)))));
                }
                (None, _) => {}
            }
        }
        self.started.next().await.transpose()
    }

    /// Starts a read at once, in a task of its own.
    fn start(&mut self, task: Task, buffer: Buffer) {
        let (offset, len) = match &task {
            Task::Read { step, .. } => (step.offset, step.data as usize),
            Task::Unchanged(range) => (range.start, 0),
        };
        let (volume, limit) = (self.volume.clone(), self.means.limit.clone());
        let mut reading = Aborted(tokio::spawn(async move {
            limit.pass(len as u64).await;
            volume.read(offset, buffer, HEADROOM, len).await
        }));
        self.started.push_back(Box::pin(async move {
            match (&mut reading.0).await {
                Ok(read) => Ok((task, Some(read?))),
                Err(why) => {
                    let why = format!("the read at offset {offset} did not finish: {why}");
                    Err(Failure::new(FailureKind::Other, why))
                }
            }
        }));
    }
}

/// A task that ends when nobody waits for it any more.
struct Aborted<T>(JoinHandle<T>);

impl<T> Drop for Aborted<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Waits, and counts the time as spent blocked by what follows the reader.
pub(crate) async fn blocked<F: Future>(context: &Context, future: F) -> F::Output {
    let before = context.environment.elapsed();
    let output = future.await;
    let waited = context.environment.elapsed().saturating_sub(before);
    context.counters.blocked_reader_us.add(waited.as_micros() as u64);
    output
}
