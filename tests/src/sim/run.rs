//! One run: builds the world of a plan, submits its jobs, lets the storm pass, and asks the oracle.
//!
//! Every run ends: whatever waits is bounded in virtual time, and what takes longer is a broken invariant.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use agent::faults::store::StoreFaults;
use agent::{Topic, sessions};
use schema::messages::{About, Cancel, FailureKind, JobOutcome, Message};
use schema::root::Tracking;
use tokio::task::LocalSet;

use super::build::{build, scratch};
use super::client::{self, Job};
use super::cluster::{Cluster, World};
use super::counts::Counts;
use super::oracle;
use super::people::People;
use super::plan::{Plan, Upset};

/// Virtual time in which queues must be empty after the last job, and roles must have ended after they were told to.
const CALM: Duration = Duration::from_secs(600);

/// Outages that last longer are counted by themselves.
const MINUTES: Duration = Duration::from_secs(120);

/// What a run did.
#[derive(Debug, Clone)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Jobs sealed.
    pub sealed: usize,
    /// Jobs of them whose source changed, and that was allowed.
    pub marked: usize,
    /// Jobs of them of which only what had changed was read.
    pub tracked: usize,
    /// Jobs of which everything was read since an audit failed.
    pub found_out: usize,
    /// Jobs that failed, with kind and reason.
    pub failed: Vec<(FailureKind, String)>,
    /// Snapshots that were restored in the end, each of those that nobody had forgotten.
    pub restored: usize,
    /// What was done in the bucket, and by people.
    pub done: Counts,
    /// Faults that were injected.
    pub faults: Counts,
    /// The most that any queue of a family held, in per cent of its limit.
    pub peaks: BTreeMap<&'static str, u64>,
    /// Messages sent, and answers given.
    pub messages: u64,
    /// Answers and acknowledgements given.
    pub answers: u64,
    /// Whether the planned accident happened.
    pub accident: bool,
    /// Writes to the bucket after its creation.
    pub writes: u64,
    /// Lines of the trace.
    pub lines: u64,
    /// Hash of the trace.
    pub trace: blake3::Hash,
    /// Virtual time that it took.
    pub took: Duration,
    /// The part of it in which anything could happen.
    pub awake: Duration,
}

/// Broken invariants of a run.
#[derive(Debug, Clone)]
pub struct Broken {
    /// The plan's seed.
    pub seed: u64,
    /// Each begins with the name of an invariant.
    pub wrong: Vec<String>,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {} (look at it with LVKEEP_SIM_SEED={}):", self.seed, self.seed)?;
        self.wrong.iter().try_for_each(|wrong| write!(f, "\n  {wrong}"))
    }
}

/// Runs a plan. A loud run prints its trace.
pub fn run(plan: Plan, loud: bool) -> Result<Report, Broken> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.map_err(|why| Broken { seed: plan.seed, wrong: vec![why.to_string()] })?;
    let result = LocalSet::new().block_on(&runtime, simulate(plan, loud));
    drop(runtime);
    result
}

async fn simulate(plan: Plan, loud: bool) -> Result<Report, Broken> {
    let seed = plan.seed;
    let broken = |why: String| Broken { seed, wrong: vec![why] };
    let folder = scratch().map_err(|why| broken(format!("cannot make a folder: {why}")))?;
    let (world, history) = build(plan, loud, folder.path()).await.map_err(|why| broken(why.to_string()))?;
    let cluster = Arc::new(Cluster::start(&world));
    let (people, jobs) = (People::begin(&world), client::submit(&world));
    weather(&world, &cluster).await;
    let jobs = client::settle(&world, jobs).await;
    people.finish(&world).await;
    if let Some(sabotage) = world.plan.sabotage
        && let Err(why) = sabotage.happen(&world, &history).await
    {
        world.trace.wrong(format!("the sabotage failed: {why}"));
    }
    drain(&world).await;
    if let Some(cluster) = Arc::into_inner(cluster)
        && !cluster.finish(CALM).await
    {
        world.trace.wrong("progress: a role did not end when it was told to".into());
    }
    let (messages, answers, accident) = world.wires.counts();
    let (lines, trace) = world.trace.summary();
    let took = world.environment.elapsed();
    let leapt = world.plan.life.leaps.iter().map(|(_, time)| *time).sum();
    // What the oracle restores does not count.
    let done = done(&world);
    let restored = oracle::check(&world, &history, &jobs).await;
    let wrong = world.trace.wrongs();
    if !wrong.is_empty() {
        return Err(Broken { seed, wrong });
    }
    let faults = faults(&world);
    let failed = |job: &Job| match &job.outcome {
        Some(JobOutcome::Failed { kind, why }) => Some((*kind, why.clone())),
        _ => None,
    };
    let failed: Vec<_> = jobs.iter().filter_map(failed).collect();
    Ok(Report {
        seed,
        sealed: jobs.len() - failed.len(),
        marked: jobs.iter().filter(|job| is_marked(job)).count(),
        tracked: jobs.iter().filter(|job| is_tracked(job)).count(),
        found_out: jobs.iter().filter(|job| is_found_out(job)).count(),
        failed,
        restored,
        done,
        faults,
        peaks: world.wires.server().peaks(),
        messages,
        answers,
        accident,
        writes: history.writes(),
        lines,
        trace,
        took,
        awake: took.saturating_sub(leapt),
    })
}

/// What was done.
fn done(world: &World) -> Counts {
    let mut done = world.ledger.counts();
    done.merge(&world.done.lock().unwrap_or_else(PoisonError::into_inner));
    done.merge(&world.leaks.counts());
    if let Some(second) = &world.second {
        done.merge(&second.counts());
    }
    if world.plan.life.policy.is_some() {
        let commits = world.ledger.commits();
        let forgotten = commits.iter().filter(|root| world.ledger.is_forgotten(root.slot)).count();
        done.add("snapshots forgotten by policies", forgotten as u64);
    }
    done
}

/// What went wrong on purpose.
fn faults(world: &World) -> Counts {
    let mut faults = world.faults.lock().unwrap_or_else(PoisonError::into_inner).clone();
    world.wires.injected().iter().for_each(|injected| faults.add_bus(injected));
    faults.add_store(&world.store.injected());
    let broken = world.sources.iter().map(|sources| sources.all_broken().len() as u64).sum();
    faults.add("sessions that could not read something", broken);
    if let Some(second) = &world.second {
        faults.add_store(&second.store.injected());
    }
    faults
}

fn is_marked(job: &Job) -> bool {
    matches!(job.outcome, Some(JobOutcome::Sealed { changed_while_read: true, .. }))
}

fn is_tracked(job: &Job) -> bool {
    matches!(job.outcome, Some(JobOutcome::Sealed { tracking: Tracking::Since { .. }, .. }))
}

fn is_found_out(job: &Job) -> bool {
    let Some(JobOutcome::Sealed { tracking: Tracking::Everything { why: Some(why) }, .. }) = &job.outcome
    else {
        return false;
    };
    why.contains("audit found")
}

/// The storm: what happens to roles, until the faults stop.
async fn weather(world: &Arc<World>, cluster: &Arc<Cluster>) {
    let storm = async {
        for (pause, upset) in &world.plan.upsets {
            world.environment.sleep(*pause).await;
            let (what, is_hit) = match upset {
                Upset::Crash { which, forgetful } => ("crashes of roles", cluster.crash(*which, *forgetful)),
                Upset::Restart { which } => ("stops of roles", cluster.restart(*which)),
                Upset::Outage(lasts) => {
                    let what = if *lasts > MINUTES { "outages of minutes" } else { "outages of the bucket" };
                    (what, outage(world, *lasts).await)
                }
                Upset::Cancel { which, revoke } => {
                    ("sessions cancelled", cancel(world, *which, *revoke).await)
                }
                Upset::Server => {
                    world.trace.note(format_args!("the message server restarts"));
                    world.wires.server().restart().await;
                    ("restarts of the message server", true)
                }
            };
            // What met nobody was no fault.
            if is_hit {
                world.count_fault(what);
            }
        }
    };
    tokio::join!(storm, world.environment.sleep(world.plan.storm));
    world.wires.quiet();
    // What was planned for one write stays planned, and so does slowness.
    let calm = StoreFaults {
        seed: 0,
        slow: world.plan.store.slow,
        slow_max: world.plan.store.slow_max,
        ..StoreFaults::default()
    };
    if let Some(second) = &world.second {
        second.store.set(calm.clone());
    }
    world.store.set(calm);
    world.trace.note(format_args!("the storm is over"));
}

/// The bucket is away for so long; whether anybody noticed.
async fn outage(world: &World, lasts: Duration) -> bool {
    let (before, from) = (world.store.injected().crashed, world.environment.now_ms());
    world.trace.note(format_args!("the bucket is away"));
    world.store.crash();
    world.environment.sleep(lasts).await;
    world.store.recover();
    world.trace.note(format_args!("the bucket is back"));
    let mut outages = world.outages.lock().unwrap_or_else(PoisonError::into_inner);
    outages.push(from..world.environment.now_ms());
    world.store.injected().crashed > before
}

/// Ends one of the sessions that are open; whether there is one.
async fn cancel(world: &World, which: usize, revoke: bool) -> bool {
    let open = sessions::list(&world.repository).await.unwrap_or_default();
    let Some(session) = open.get(which % open.len().max(1)) else { return false };
    world.trace.note(format_args!("session {} is to end, revoke {revoke}", session.id));
    world.cancelled.lock().unwrap_or_else(PoisonError::into_inner).insert(session.job);
    if revoke {
        if let Err(why) = sessions::revoke(&world.repository, session).await {
            world.trace.wrong(format!("one-winner: a slot could not be occupied: {why}"));
        }
        return true;
    }
    let message = Message::new(&About::nothing(), &Cancel { session: session.id });
    let _ = world.wires.bus("operator").broadcast(&Topic::cancel(), message).await;
    true
}

/// Waits until no queue in memory holds anything.
async fn drain(world: &World) {
    let step = Duration::from_secs(1);
    let mut waited = Duration::ZERO;
    // Even when nothing is held just now, what is late may be on its way.
    while waited < CALM && (!world.wires.server().held().is_empty() || world.wires.late() > 0) {
        world.environment.sleep(step).await;
        waited += step;
    }
    world.environment.sleep(Duration::from_secs(30)).await;
    for over in world.wires.server().over() {
        world.trace.wrong(format!("bounded: {over}"));
    }
    for (queue, bytes) in world.wires.server().held() {
        world.trace.wrong(format!("bounded: queue {queue} still holds {bytes} bytes"));
    }
}
