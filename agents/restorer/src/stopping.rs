//! Jobs that an agent has begun, and those of them that nobody wants any more.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent::{Context, Stop, Topic};
use schema::JobId;
use schema::messages::StopRestore;

use crate::pipeline::RETRY_PAUSE;

/// What ends each job early.
#[derive(Debug, Clone, Default)]
pub(crate) struct Running(Arc<Mutex<BTreeMap<JobId, Stop>>>);

/// A job that has begun; over when this is dropped.
pub(crate) struct Begun(Running, JobId);

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.table().remove(&self.1);
    }
}

impl Running {
    fn table(&self) -> MutexGuard<'_, BTreeMap<JobId, Stop>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A job begins, and ends early when `stop` is raised; none while it is being done already.
    pub fn begin(&self, job: JobId, stop: Stop) -> Option<Begun> {
        let mut table = self.table();
        if table.contains_key(&job) {
            return None;
        }
        table.insert(job, stop);
        drop(table);
        Some(Begun(self.clone(), job))
    }

    /// Whether a job is being done, or waits.
    pub fn has(&self, job: JobId) -> bool {
        self.table().contains_key(&job)
    }

    /// Hears which jobs nobody wants any more, until the context's flag is raised. Whoever asks for it asks again.
    pub async fn hear(&self, context: &Context) {
        while !context.stop.is_raised() {
            let Ok(mut heard) = context.bus.subscribe(&Topic::stop_restore()).await else {
                tokio::select! {
                    () = context.stop.raised() => return,
                    () = context.environment.sleep(RETRY_PAUSE) => continue,
                }
            };
            loop {
                let message = tokio::select! {
                    biased;
                    () = context.stop.raised() => return,
                    message = heard.next() => message,
                };
                let Ok(message) = message else { break };
                let Ok(StopRestore { job }) = message.read() else { continue };
                if let Some(stop) = self.table().get(&job) {
                    tracing::info!(%job, "a restore is stopped, as asked");
                    stop.raise();
                }
            }
        }
    }
}
