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
use agent::{Context, Failure, Volume, VolumeError};
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use schema::map::Geometry;
use schema::messages::FailureKind;
use tokio::task::JoinHandle;

use crate::emit::HEADROOM;
use crate::plan::{self, Step};

/// Where and how a request's reads are made.
pub(crate) struct Means<'a> {
    pub(crate) context: &'a Context,
    pub(crate) pool: &'a Pool,
    pub(crate) limit: &'a RateLimit,
    /// Bytes of one read at most.
    pub(crate) segment: u64,
    /// Reads in flight at most.
    pub(crate) depth: usize,
}

/// A step whose data was read.
pub(crate) type Ready = (Step, Option<Buffer>);
type Started = Pin<Box<dyn Future<Output = Result<Ready, Failure>> + Send>>;

/// The steps of some leaves, read ahead.
pub(crate) struct ReadAhead<'a, L> {
    means: Means<'a>,
    volume: Arc<dyn Volume>,
    geometry: Geometry,
    leaves: L,
    planned: VecDeque<Step>,
    started: FuturesOrdered<Started>,
}

impl<'a, L: Iterator<Item = u64> + Send> ReadAhead<'a, L> {
    /// Nothing is read before [`ReadAhead::next`] is called.
    pub(crate) fn new(means: Means<'a>, volume: Arc<dyn Volume>, geometry: Geometry, leaves: L) -> Self {
        Self { means, volume, geometry, leaves, planned: VecDeque::new(), started: FuturesOrdered::new() }
    }

    /// The next step; none when all leaves are read.
    pub(crate) async fn next(&mut self) -> Result<Option<Ready>, Failure> {
        while self.started.len() < self.means.depth {
            if self.planned.is_empty() {
                self.plan().await?;
            }
            let Some(step) = self.planned.front().copied() else { break };
            if step.data == 0 {
                self.started.push_back(Box::pin(std::future::ready(Ok((step, None)))));
            } else if self.started.is_empty() {
                let buffer = blocked(self.means.context, self.means.pool.acquire()).await;
                self.start(step, buffer);
            } else {
                tokio::select! {
                    biased;
                    buffer = self.means.pool.acquire() => self.start(step, buffer),
                    ready = self.started.next() => return ready.transpose(),
                }
            }
            self.planned.pop_front();
        }
        self.started.next().await.transpose()
    }

    async fn plan(&mut self) -> Result<(), VolumeError> {
        if let Some(leaf) = self.leaves.next() {
            let range = self.geometry.leaf_range(leaf);
            let allocated = self.volume.allocated(range.clone()).await?;
            self.planned = plan::steps(range, &allocated, self.means.segment).into();
        }
        Ok(())
    }

    /// Starts a read at once, in a task of its own.
    fn start(&mut self, step: Step, buffer: Buffer) {
        let (volume, limit) = (self.volume.clone(), self.means.limit.clone());
        let mut task = Aborted(tokio::spawn(async move {
            limit.pass(step.data.into()).await;
            volume.read(step.offset, buffer, HEADROOM, step.data as usize).await
        }));
        self.started.push_back(Box::pin(async move {
            match (&mut task.0).await {
                Ok(read) => Ok((step, Some(read?))),
                Err(why) => {
                    let why = format!("the read at offset {} did not finish: {why}", step.offset);
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
