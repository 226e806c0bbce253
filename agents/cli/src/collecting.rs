//! Collections that a conductor's agent begins by itself, every so often, beside its sessions.
//!
//! Any number of agents may do it, and none owns it: whose turn comes first collects, and the others skip theirs. The
//! first turn comes after a random part of the time, so that agents that start together, or often, share them. What
//! fails is logged and tried again within a quarter of an hour. It declares no session dead unless it is told after how long, and
//! never runs without being asked for.

use std::time::Duration;

use agent::{Context, Failure, Repository};
use collector::{Announce, Collector, Latest, Limits, Patience, Report, Settings};

use crate::app::App;
use crate::args::REPACK_BELOW;
use crate::prune::{LOCKED, Waits};
use crate::text;

/// Pause after a failure at most: a collection may wait for a session that nobody looks at meanwhile.
const AFTER_FAILURE: Duration = Duration::from_mins(15);

/// How an agent collects.
pub struct Collecting {
    context: Context,
    repository: Repository,
    settings: Settings,
    every: Duration,
    /// The number of the next collection, as it was after the last turn.
    next: Option<u64>,
}

impl Collecting {
    /// With a small part of the agent's memory, and patience until the next turn, which goes on waiting.
    pub fn new(app: &App, context: Context, repository: Repository, every: Duration) -> Self {
        let revoke_after = app.settings.prune_revoke_after.value.map(Duration::from_secs_f64);
        let settings = Settings {
            limits: Limits { max_repack: app.settings.max_repack.value, repack_below: REPACK_BELOW },
            memory: app.settings.memory.value / 8,
            patience: Patience { wait: every, revoke_after },
            exclusive: false,
            announce: Announce::to(context.bus.clone(), app.settings.index_shards.value),
        };
        Self { context, repository, settings, every, next: None }
    }

    /// Collects until the context's flag is raised.
    pub async fn run(mut self) -> Result<(), Failure> {
        let (environment, stop) = (self.context.environment.clone(), self.context.stop.clone());
        let mut pause = self.every.mul_f64(f64::from(environment.random::<1>()[0]) / 256.0);
        loop {
            environment.timeout(pause, stop.raised()).await;
            if stop.is_raised() {
                return Ok(());
            }
            pause = self.every;
            match self.turn().await {
                // It has waited all the time.
                Ok(true) => pause = Duration::ZERO,
                Ok(false) => {}
                Err(_) if stop.is_raised() => return Ok(()),
                Err(failure) => {
                    self.context.counters.collections_failed.add(1);
                    // Nobody looks at sessions that are waited for until then.
                    pause = self.every.min(AFTER_FAILURE);
                    tracing::error!(
                        %failure,
                        again_in = ?pause,
                        "a collection failed, and nothing is lost by that; `lvkeep prune` tries at once, `lvkeep status` \
                         shows where it stands"
                    );
                }
            }
        }
    }

    /// Goes on with what is unfinished, and collects unless somebody else has since the last turn. Whether it waits for a
    /// session until the next one.
    async fn turn(&mut self) -> Result<bool, Failure> {
        let latest = collector::latest(&self.repository).await?;
        if !matches!(latest, Latest::Open(_)) {
            self.context.counters.collection_waits_seconds.set(0);
        }
        if let Latest::Finished { next } = latest {
            let before = self.next.replace(next);
            if before.is_some_and(|before| before != next) {
                tracing::debug!(collection = next - 1, "another one has collected meanwhile");
                return Ok(false);
            }
        }
        let (repository, settings) = (self.repository.clone(), self.settings.clone());
        let collector = Collector::new(repository, settings, self.context.stop.clone());
        let report = collector.telling(self.context.counters.clone()).prune().await?;
        self.tell(&report);
        if let Some(number) = report.epoch {
            self.next = Some(number + 1);
        }
        Ok(!report.waits.is_empty())
    }

    fn tell(&self, report: &Report) {
        let Some(collection) = report.epoch else {
            tracing::debug!("nothing to collect");
            return;
        };
        let (snapshots, packs, freed) =
            (report.swept.snapshots, report.swept.packs, text::size(report.swept.bytes));
        for waiting in report.waits.iter().filter(|_| !self.context.stop.is_raised()) {
            let waits = Waits::from(waiting).line();
            tracing::warn!(
                collection,
                packs = report.left.packs,
                bytes = report.left.bytes,
                "a collection waits for {waits}: until it has ended, nothing is deleted"
            );
        }
        if !report.swept.is_finished() {
            tracing::warn!(
                collection,
                packs = report.swept.locked.len(),
                snapshots = report.swept.locked_roots.len(),
                bytes = report.left.bytes,
                "the store does not let them go yet ({LOCKED})"
            );
        }
        if report.is_finished() {
            self.context.counters.collections.add(1);
            tracing::info!(collection, snapshots, packs, freed, "collected");
        }
    }
}

#[cfg(test)]
mod tests;
