//! The collector: deletes packs that no snapshot needs, beside any number of sessions and of other collectors.
//!
//! It owns nothing and locks nothing. A collection is an epoch in the bucket: it says what is condemned, sessions that
//! begin later do not rely on that, and when the earlier ones have ended, a second mark decides what is deleted. Each
//! step is durable before the next one, so that anybody can go on with it after a crash. No clock decides anything but
//! when to give up waiting. It opens structure and never content, and asks the bucket alone: no index, no bus.

mod announce;
mod budget;
mod census;
mod epochs;
mod footers;
mod live;
mod mark;
mod plan;
mod rewrite;
mod sessions;
mod state;
mod structure;
mod sweep;
mod verdict;

use std::collections::BTreeMap;
use std::sync::Arc;

use agent::counters::Counters;
use agent::{Failure, Repository, Stop};
use schema::PackId;
use schema::epoch::{Epoch, Verdict};
use schema::messages::FailureKind;

pub use announce::Announce;
pub use epochs::{Latest, latest};
pub use plan::{Limits, Sums};
pub use sessions::{About, Patience, Waiting};
pub use state::{Left, Standing, Unfinished, standing, unfinished};
pub use sweep::Swept;

use budget::Budget;
use census::Census;
use footers::Footers;
use mark::Sources;
use plan::Plan;

/// Epochs that one run begins when others are quicker each time.
const ATTEMPTS: u32 = 4;

/// Forgotten snapshots that one epoch sweeps at most: its object must stay small.
const FORGOTTEN_MAX: usize = 1 << 18;

/// How a collector works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How much is rewritten.
    pub limits: Limits,
    /// Bytes for the ids of needed chunks, four and a half for each; more chunks take more passes over the maps. As much
    /// again goes to what else is kept of chunks and maps, and some 200 bytes to each pack and each snapshot.
    pub memory: u64,
    /// How long sessions are waited for.
    pub patience: Patience,
    /// Somebody gives their word that nothing else writes to the bucket. Needed where the store lets two creators of one
    /// name win.
    pub exclusive: bool,
    /// Where new packs are announced.
    pub announce: Announce,
}

/// What a run did, and what it left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The epoch that the run ended in; none when there was nothing to collect.
    pub epoch: Option<u64>,
    /// What was swept, of all epochs that this run worked on.
    pub swept: Swept,
    /// Bytes in packs, when a census was taken.
    pub sums: Option<Sums>,
    /// Forgotten snapshots in that census.
    pub forgotten: u64,
    /// Packs in that census that hold nothing that is needed.
    pub dead: u64,
    /// Packs that were rewritten, or would be.
    pub rewritten: u64,
    /// Packs that they were rewritten to.
    pub new_packs: u64,
    /// Bytes of those.
    pub new_bytes: u64,
    /// Sessions that must end before anything more can be done; of a dry run without an epoch, those that are open now: the
    /// epoch that a run begins would wait for them.
    pub waits: Vec<Waiting>,
    /// What the collection is still to take away that the run ended in, or that was met unfinished.
    pub left: Left,
    /// Packs that the store does not give, and what it says: they stay, and nothing is known of what they hold.
    pub withheld: BTreeMap<PackId, String>,
}

impl Report {
    /// Whether nothing is left to do of the epoch that the run ended in.
    pub fn is_finished(&self) -> bool {
        self.waits.is_empty() && self.swept.is_finished()
    }
}

/// A collector of one repository.
pub struct Collector {
    repository: Repository,
    settings: Settings,
    stop: Stop,
    footers: Footers,
    budget: Budget,
    counters: Arc<Counters>,
}

/// Whether an epoch could be brought to its end.
enum Ended {
    Finished,
    Not,
}

impl Collector {
    /// A collector that ends between two steps when `stop` is raised.
    pub fn new(repository: Repository, settings: Settings, stop: Stop) -> Self {
        let budget = Budget::new(settings.memory);
        let footers = Footers::new(repository.clone(), budget.footers);
        Self { repository, settings, stop, footers, budget, counters: Arc::default() }
    }

    /// Tells these counters for how long it waits.
    pub fn telling(mut self, counters: Arc<Counters>) -> Self {
        self.counters = counters;
        self
    }

    /// Finishes what is unfinished, then collects what there is. Ends early, without an error, when it waits for
    /// sessions for longer than it should, or when the store does not let something go yet.
    pub async fn prune(&self) -> Result<Report, Failure> {
        self.check_store()?;
        let mut report = Report::default();
        for _ in 0..ATTEMPTS {
            let next = match latest(&self.repository).await? {
                Latest::Finished { next } => {
                    sessions::mend_list(&self.repository, next - 1).await;
                    next
                }
                open => match self.finish(open, &mut report).await? {
                    Ended::Finished => continue,
                    Ended::Not => return Ok(report),
                },
            };
            let Some(epoch) = self.propose(next, &mut report).await? else { return Ok(report) };
            go_on(&self.stop)?;
            if epochs::create_epoch(&self.repository, &epoch).await? {
                report.epoch = Some(epoch.number);
                self.finish(Latest::Open(epoch), &mut report).await?;
                return Ok(report);
            }
            tracing::info!(
                number = epoch.number,
                "another collector has begun; going on with its collection"
            );
        }
        let why = "other collectors were quicker each time; let them finish";
        Err(Failure::new(FailureKind::Other, why))
    }

    /// What a run would do. Changes nothing.
    pub async fn dry_run(&self) -> Result<Report, Failure> {
        let mut report = Report::default();
        if let Some(unfinished) = unfinished(&self.repository).await? {
            report.epoch = Some(unfinished.number);
            report.waits = unfinished.waits;
            report.left = unfinished.left;
        }
        let (census, plan) = self.census().await?;
        note(&mut report, &census, &plan);
        let is_nothing = plan.dead.is_empty() && plan.rewrite.is_empty() && census.forgotten.is_empty();
        if report.epoch.is_none() && !is_nothing {
            let open = sessions::listed(&self.repository).await?;
            report.waits = sessions::undecided(&self.repository, &open).await?;
        }
        report.withheld = self.footers.withheld();
        report.rewritten = plan.rewrite.len() as u64;
        Ok(report)
    }

    /// A store where two creators of one name may win cannot say which epoch or verdict holds.
    fn check_store(&self) -> Result<(), Failure> {
        if self.repository.config.store.conditional_create || self.settings.exclusive {
            return Ok(());
        }
        Err(Failure::refused(format!(
            "{} does not keep its word on conditional writes: it lets two writers of one name both believe that they won, \
             so that nothing can be deleted safely beside others. Stop every backup, restore and other prune, and give \
             --exclusive",
            self.repository.store.location()
        )))
    }

    fn sources(&self) -> Sources<'_> {
        let Self { repository, footers, stop, budget, .. } = self;
        Sources { repository, footers, stop, budget: *budget }
    }

    /// Step 1.
    async fn census(&self) -> Result<(Census, Plan), Failure> {
        let census = census::list_and_mark(&self.sources()).await?;
        let plan = plan::plan(&census.packs, self.settings.limits);
        Ok((census, plan))
    }

    /// Steps 1 and 2: an epoch to be created, or none when there is nothing to collect.
    async fn propose(&self, number: u64, report: &mut Report) -> Result<Option<Epoch>, Failure> {
        let (mut census, plan) = self.census().await?;
        note(report, &census, &plan);
        report.withheld = self.footers.withheld();
        census.forgotten.truncate(FORGOTTEN_MAX);
        let packs: Vec<_> = plan.rewrite.iter().map(|place| &census.packs[*place]).collect();
        let rewritten = rewrite::rewrite(&self.sources(), &self.settings.announce, &packs).await?;
        report.rewritten = rewritten.old.len() as u64;
        report.new_packs = rewritten.new;
        report.new_bytes = rewritten.bytes;
        let mut condemned = plan.dead;
        condemned.extend(rewritten.old);
        if condemned.is_empty() && census.forgotten.is_empty() {
            return Ok(None);
        }
        Ok(Some(Epoch { number, forgotten: census.forgotten, condemned }))
    }

    /// Steps 4 to 7 of an epoch, whoever created it.
    async fn finish(&self, latest: Latest, report: &mut Report) -> Result<Ended, Failure> {
        let (epoch, verdict) = match latest {
            Latest::Finished { .. } => return Ok(Ended::Finished),
            Latest::Decided(epoch, verdict) => {
                sessions::mend_list(&self.repository, epoch.number).await;
                (epoch, verdict)
            }
            Latest::Open(epoch) => {
                report.epoch = Some(epoch.number);
                let sessions = sessions::list_sessions(&self.repository, epoch.number).await?;
                let (patience, age) = (self.settings.patience, &self.counters.collection_waits_seconds);
                report.waits = sessions::wait(&self.repository, &sessions, patience, &self.stop, age).await?;
                if !report.waits.is_empty() {
                    report.left = Left::of(&self.repository, &epoch.condemned, &epoch.forgotten).await?;
                    return Ok(Ended::Not);
                }
                go_on(&self.stop)?;
                let verdict = self.decide(&epoch, report).await?;
                (epoch, verdict)
            }
        };
        report.epoch = Some(epoch.number);
        let swept = sweep::sweep(&self.repository, &epoch, &verdict, &self.stop).await?;
        let finished = swept.is_finished();
        if !finished {
            report.left = Left::of(&self.repository, &verdict.delete, &epoch.forgotten).await?;
        }
        report.swept.snapshots += swept.snapshots;
        report.swept.packs += swept.packs;
        report.swept.bytes += swept.bytes;
        report.swept.locked = swept.locked;
        report.swept.locked_roots = swept.locked_roots;
        Ok(if finished { Ended::Finished } else { Ended::Not })
    }

    /// Steps 5 and 6. A verdict that came meanwhile holds.
    async fn decide(&self, epoch: &Epoch, report: &mut Report) -> Result<Verdict, Failure> {
        if let Some(verdict) = agent::epochs::verdict(&self.repository, epoch.number).await? {
            return Ok(verdict);
        }
        let delete: Vec<PackId> = verdict::mark_again_and_reprieve(&self.sources(), epoch).await?;
        report.withheld.extend(self.footers.withheld());
        go_on(&self.stop)?;
        epochs::create_verdict(&self.repository, Verdict { number: epoch.number, delete }).await
    }
}

fn note(report: &mut Report, census: &Census, plan: &Plan) {
    report.sums = Some(plan.sums);
    report.forgotten = census.forgotten.len() as u64;
    report.dead = plan.dead.len() as u64;
}

/// Between two steps.
fn go_on(stop: &Stop) -> Result<(), Failure> {
    match stop.is_raised() {
        true => Err(interrupted()),
        false => Ok(()),
    }
}

/// Somebody asked this process to stop.
fn interrupted() -> Failure {
    Failure::new(FailureKind::Revoked, "interrupted; the next prune goes on where this one ended")
}

#[cfg(test)]
mod tests;
