//! `restore --plan`: many volumes, by this process and by the agents of many hosts.
//!
//! Of each host only so many volumes are restored at once, the most urgent first. Those of one snapshot on one host take
//! from the first of them. One that fails is said and keeps nobody else from being restored; the first failure decides
//! the exit code. What this process needs for its own restores ends none of those that agents do.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use agent::{Failure, Repository, Stop};
use anyhow::Context;
use futures::future::join_all;
use indexer::Wish;
use restorer::{Budget, Restorer, Share};
use schema::names::Slot;
use serde::Serialize;
use tokio::sync::Notify;

use crate::app::App;
use crate::args::Role;
use crate::embedded::{self, Embedded};
use crate::fan::{Line, Next};
use crate::far::{Asked, Far};
use crate::plan::{Plan, Planned, Surroundings};
use crate::progress::{Display, Overall};
use crate::restore::{self, Done, Order};
use crate::{bus, status, text, undo};

/// How a volume of a plan ended, as it is printed.
#[derive(Debug, Serialize)]
struct Ended<'a> {
    outcome: &'static str,
    host: &'a str,
    priority: i32,
    #[serde(flatten)]
    done: Option<&'a Done>,
    #[serde(flatten)]
    failed: Option<Failed<'a>>,
}

#[derive(Debug, Serialize)]
struct Failed<'a> {
    snapshot: String,
    volume: &'a str,
    target: &'a str,
    why: String,
}

/// What this process restores with.
struct Ours {
    restorer: Restorer,
    early: Early,
}

/// What ends the restores of this process early, and why, unless somebody asked for that.
#[derive(Default)]
struct Early {
    stop: Stop,
    failed: OnceLock<String>,
}

/// Who restores the volumes of one host.
enum By<'a> {
    /// This process.
    Us(&'a Ours),
    /// The agents of a host.
    Agents(Far<'a>),
}

/// The volumes of one host that wait, and those who wait for them.
struct Queue {
    line: Mutex<Line>,
    ended: Notify,
}

type Outcome = anyhow::Result<Done>;

/// Why a volume was not begun.
const NO_SHARE: &str = "it was not begun: all of the plan's requests to the store (fetches_at_once) belong to restores \
                        that may still go on, and of which nobody has said how they ended";

/// `lvkeep restore --plan`.
pub async fn run(app: &App, path: &Path) -> anyhow::Result<()> {
    app.stop_on_signals()?;
    let settings = &app.settings;
    let around = Surroundings { host: &settings.host.value, has_nats: settings.nats.value.is_some() };
    let repository = app.repository().await?;
    let plan = Plan::read(path, &repository, &around).await?;
    let ours = || plan.orders.iter().filter(|planned| planned.host().is_none());
    let keeps = ours().any(|planned| planned.order.options.undo);
    let wishes: Vec<Wish> = ours().map(|planned| planned.order.wish()).collect();
    let mut work = match (wishes.is_empty(), keeps) {
        (true, _) => None,
        (false, true) => Some(Embedded::reading_and_writing(app, &wishes).await?),
        (false, false) => Some(Embedded::reading(app, repository.clone(), &wishes).await?),
    };
    let ended = match &mut work {
        None => carry_out(app, &plan, &repository, None, std::future::pending()).await,
        Some(work) => with_roles(app, &plan, &repository, work, keeps).await,
    };
    if let Some(work) = work {
        work.finish().await;
    }
    let (outcomes, error) = ended?;
    print(app, &plan, &outcomes)?;
    match error {
        Some(error) => Err(error),
        None => conclude(outcomes, app.says()),
    }
}

/// Carries a plan out in this process, too; where something is kept first, as long as all roles work. When one does not,
/// every restore of this process is stopped, and says how that leaves its target.
async fn with_roles(
    app: &App,
    plan: &Plan,
    repository: &Repository,
    work: &mut Embedded,
    keeps: bool,
) -> anyhow::Result<(Vec<Outcome>, Option<anyhow::Error>)> {
    let mut settings = restore::settings(app, &work.repository);
    settings.fetches = plan.fetches_at_once.unwrap_or(settings.fetches);
    // All of its restores share its memory and its requests.
    let restorer = restore::make_with(work, restore::identity(app, work)?, settings);
    let failing = async {
        let error = match keeps {
            true => work.role_failed().await,
            false => std::future::pending().await,
        };
        match app.stop.is_raised() {
            // Restores end by themselves then, and say how.
            true => std::future::pending().await,
            false => error,
        }
    };
    let ours = Ours { restorer, early: Early::default() };
    carry_out(app, plan, repository, Some(&ours), failing).await
}

impl Early {
    /// What `restores` make, which end early when all are to, or when `failing` says why these cannot go on.
    async fn while_all_works<T>(
        &self,
        restores: impl Future<Output = T>,
        all: &Stop,
        failing: impl Future<Output = anyhow::Error>,
    ) -> (T, Option<anyhow::Error>) {
        tokio::pin!(restores);
        let error = tokio::select! {
            biased;
            ended = &mut restores => return (ended, None),
            () = all.raised() => None,
            error = failing => Some(error),
        };
        if let Some(error) = &error {
            // It is set once.
            let _ = self.failed.set(text::error(error));
        }
        self.stop.raise();
        (restores.await, error)
    }

    /// Why a volume was not begun.
    fn ended(&self) -> anyhow::Error {
        let ended = embedded::interrupted();
        let ended = match self.failed.get() {
            Some(why) => Failure { why: why.clone(), ..ended },
            None => ended,
        };
        NotBegun(ended).into()
    }
}

async fn carry_out(
    app: &App,
    plan: &Plan,
    repository: &Repository,
    ours: Option<&Ours>,
    failing: impl Future<Output = anyhow::Error>,
) -> anyhow::Result<(Vec<Outcome>, Option<anyhow::Error>)> {
    let mut numbers: BTreeMap<Option<&str>, Vec<(usize, Slot)>> = BTreeMap::new();
    for (number, planned) in plan.orders.iter().enumerate() {
        numbers.entry(planned.host()).or_default().push((number, planned.order.root.slot));
    }
    let context = match numbers.keys().any(Option::is_some) {
        true => Some(app.context(bus::connect(app, "restore").await?)),
        false => None,
    };
    let display = Display::new(app);
    let overall = Overall::new(&display, plan.orders.iter().map(|planned| planned.order.root.size));
    let queues: Vec<(Option<&str>, Queue)> = numbers
        .into_iter()
        .map(|(host, numbers)| (host, Queue { line: Mutex::new(Line::new(numbers)), ended: Notify::new() }))
        .collect();
    let lanes = |(host, queue): &(Option<&str>, Queue)| plan.at_once(*host).min(queue.line().len());
    let budget = plan.fetches_at_once.map(|most| Budget::new(most, queues.iter().map(lanes).sum()));
    let budget = budget.as_ref();
    let run = Run { app, plan, repository, budget, display: &display, overall: &overall };
    let command = app.environment.job_id();
    let far = |host| context.as_ref().map(|context| Far { app, context, repository, host, command });
    let (mut by_agents, mut by_us) = (Vec::new(), Vec::new());
    for one in &queues {
        let (host, queue) = one;
        for _ in 0..lanes(one) {
            match (host.and_then(far), ours) {
                (Some(far), _) => by_agents.push(run.lane(queue, By::Agents(far))),
                (None, Some(ours)) => by_us.push(run.lane(queue, By::Us(ours))),
                (None, None) => unreachable!("who restores was made above"),
            }
        }
    }
    let warned = async {
        let hosts = queues.iter().filter_map(|(host, _)| host.and_then(far));
        run.warn_of_absent(hosts.collect()).await;
    };
    let ours = async {
        match ours {
            Some(ours) => ours.early.while_all_works(join_all(by_us), &app.stop, failing).await,
            None => (Vec::new(), None),
        }
    };
    let (ended, (ended_here, error), ()) = tokio::join!(join_all(by_agents), ours, warned);
    overall.finish();
    let mut ended: Vec<(usize, Outcome)> = ended.into_iter().chain(ended_here).flatten().collect();
    ended.sort_by_key(|(number, _)| *number);
    let mut outcomes: Vec<Outcome> = ended.into_iter().map(|(_, outcome)| outcome).collect();
    fail_what_is_one(plan, &mut outcomes);
    Ok((outcomes, error))
}

/// Volumes that were restored to one file or device of a host by several names are not there, whoever came last.
fn fail_what_is_one(plan: &Plan, outcomes: &mut [Outcome]) {
    let restored = || {
        let all = plan.orders.iter().zip(outcomes.iter());
        all.filter_map(|(planned, outcome)| Some((planned, outcome.as_ref().ok()?)))
    };
    let why = |planned: &Planned, done: &Done| {
        let others = restored().filter(|(other, _)| other.host() == planned.host());
        let mut overwritten =
            others.filter_map(|(other, there)| done.overwrites(&planned.order, (&other.order, there)));
        overwritten.next()
    };
    let all = plan.orders.iter().zip(outcomes.iter());
    let failures: Vec<Option<Failure>> =
        all.map(|(planned, outcome)| why(planned, outcome.as_ref().ok()?)).collect();
    for (outcome, failure) in outcomes.iter_mut().zip(failures) {
        if let Some(failure) = failure {
            *outcome = Err(failure.into());
        }
    }
}

impl Queue {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to restore next, and what it takes from; none when nothing is left.
    async fn next(&self) -> Option<(usize, Option<usize>)> {
        loop {
            let ended = self.ended.notified();
            let next = self.line().next();
            match next {
                Next::Begin { number, donor } => return Some((number, donor)),
                Next::Wait => ended.await,
                Next::Nothing => return None,
            }
        }
    }
}

/// A plan that is carried out.
#[derive(Clone, Copy)]
struct Run<'a> {
    app: &'a App,
    plan: &'a Plan,
    repository: &'a Repository,
    /// Requests to the store, where they are limited.
    budget: Option<&'a Budget>,
    display: &'a Display,
    overall: &'a Overall,
}

impl Run<'_> {
    /// Restores one volume after the other.
    async fn lane(self, queue: &Queue, by: By<'_>) -> Vec<(usize, Outcome)> {
        let mut ended = Vec::new();
        while let Some((number, donor)) = queue.next().await {
            let Some(planned) = self.plan.orders.get(number) else { break };
            let donor = donor.and_then(|donor| self.plan.orders.get(donor));
            let share = match self.budget {
                Some(budget) => Some(budget.share(number).await),
                None => None,
            };
            let outcome = match &by {
                By::Us(ours) if ours.early.stop.is_raised() => Err(ours.early.ended()),
                By::Agents(_) if self.app.stop.is_raised() => Err(NotBegun(embedded::interrupted()).into()),
                _ if matches!(share, Some(None)) => Err(Failure::refused(NO_SHARE).into()),
                by => {
                    let donor = donor.map(|donor| donor.order.target.as_str());
                    let share = share.as_ref().and_then(Option::as_ref);
                    self.one(number, planned, Asked { donor, share, ..Asked::default() }, by).await
                }
            };
            drop(share);
            queue.line().ended(number, planned.order.root.slot, outcome.is_ok());
            queue.ended.notify_waiters();
            self.tell(number, planned, &outcome);
            ended.push((number, outcome));
        }
        self.budget.inspect(|budget| budget.leave());
        ended
    }

    async fn one(&self, number: usize, planned: &Planned, asked: Asked<'_>, by: &By<'_>) -> Outcome {
        let order = &planned.order;
        let bar = self.display.bar(&order.root.volume);
        let progress = |done, total| {
            bar.set(done, total);
            self.overall.set(number, done);
        };
        let outcome = match by {
            By::Us(ours) => self.by_us(ours, order, asked, progress).await,
            By::Agents(far) => {
                let restored = far.restore(order, asked, progress).await;
                let host = far.host;
                restored
                    .with_context(|| format!("restoring {} to {host}:{}", order.root.volume, order.target))
            }
        };
        bar.finish();
        outcome.and_then(|done| self.verified(done))
    }

    /// Fails where what was restored was read again in vain, and says what its restore has left.
    fn verified(&self, done: Done) -> Outcome {
        let notes = done.notes().to_vec();
        let verified = done.verified();
        if verified.is_err() {
            self.display.aside(|| notes.into_iter().for_each(|note| self.app.say(note)));
        }
        verified
    }

    async fn by_us(
        &self,
        ours: &Ours,
        order: &Order,
        Asked { donor, share, .. }: Asked<'_>,
        progress: impl Fn(u64, u64),
    ) -> Outcome {
        let (restorer, target) = (&ours.restorer, order.to().until(ours.early.stop.clone()));
        let target = target.fetching(share.map(Share::most));
        let (mut target, kept) =
            undo::keep(self.app, self.repository, restorer, order, target, &progress).await?;
        if let Some(donor) = donor {
            target = target.after(restore::path(donor)?);
        }
        target = target.read_again(order.options.verify);
        let done = restore::by_restorer(self.app, restorer, order, target, progress).await?;
        Ok(done.undone_by(kept))
    }

    fn tell(&self, number: usize, planned: &Planned, outcome: &Outcome) {
        let restored = outcome.as_ref().ok().map(|_| planned.order.root.size);
        self.overall.ended(number, restored);
        self.display.aside(|| match outcome {
            Ok(done) if !self.app.json => {
                // Whoever reads has seen enough.
                let _ = self.app.print(done, || done.text());
            }
            Ok(_) => {}
            // The table at the end lists what was not begun.
            Err(why) if why.is::<NotBegun>() => {}
            Err(why) => self.app.say(format!("lvkeep: {}: {}", planned.order.root.volume, planned.why(why))),
        });
    }

    /// Says of which hosts no restorer answers, or no reader that has to keep something: their volumes wait.
    async fn warn_of_absent(&self, hosts: Vec<Far<'_>>) {
        let Some(first) = hosts.first() else { return };
        let answered = match status::hosts_of(self.app, &*first.context.bus, Role::Restorer).await {
            Ok(answered) => answered,
            Err(why) => {
                tracing::debug!(why = text::error(&why), "cannot ask who is there");
                return;
            }
        };
        for far in hosts {
            let host = far.host;
            if !answered.contains(host) {
                let warning = format!("no restorer on {host} answers: its volumes wait until one does");
                self.display.aside(|| self.app.say(warning));
            }
            let mut orders = self.plan.orders.iter().filter(|planned| planned.host() == Some(host));
            if orders.any(|planned| planned.order.options.undo) {
                far.warn_of_no_reader().await;
            }
        }
    }
}

fn print(app: &App, plan: &Plan, outcomes: &[Outcome]) -> anyhow::Result<()> {
    let ended = |(planned, outcome): (&'_ Planned, &'_ Outcome)| {
        let order = &planned.order;
        (order.root.volume.clone(), planned.to(&app.settings.host.value), planned.failed(outcome))
    };
    let rows: Vec<Ended<'_>> = plan
        .orders
        .iter()
        .zip(outcomes)
        .map(|(planned, outcome)| Ended::new(planned, outcome, &app.settings.host.value))
        .collect();
    app.print(&rows, || {
        let failed: Vec<_> =
            plan.orders.iter().zip(outcomes).map(ended).filter(|(.., why)| why.is_some()).collect();
        let restored = rows.len() - failed.len();
        let all = plan.orders.iter().zip(outcomes);
        let bytes = all.filter(|(planned, outcome)| planned.failed(outcome).is_none());
        let bytes = text::size(bytes.map(|(planned, _)| planned.order.root.size).sum());
        let head = format!("{restored} of {} volumes restored, {bytes}", rows.len());
        if failed.is_empty() {
            return head;
        }
        let mut table = text::Table::new(&["failed", "target", "why"]);
        for (volume, target, why) in failed {
            let why = why.unwrap_or_default();
            // What was said when it happened is not said again.
            let why = if app.says() { why.in_short().to_owned() } else { why.text.replace('\n', "; ") };
            table.row([volume, target, why]);
        }
        format!("{head}\n{}", table.text())
    })
}

/// Why a volume is not there as a whole.
#[derive(Default)]
struct Why {
    text: String,
    is_not_begun: bool,
}

impl Why {
    fn in_short(&self) -> &str {
        match self.is_not_begun {
            true => &self.text,
            false => "as said above",
        }
    }
}

/// A volume that was not begun.
#[derive(Debug, thiserror::Error)]
#[error("it was not begun")]
struct NotBegun(#[source] Failure);

/// The first failure decides the exit code.
fn conclude(outcomes: Vec<Outcome>, were_said: bool) -> anyhow::Result<()> {
    let total = outcomes.len();
    let mut failed = outcomes.into_iter().filter_map(|outcome| match outcome {
        Ok(done) => done.lost().map(anyhow::Error::from),
        Err(why) => Some(why),
    });
    let Some(first) = failed.next() else { return Ok(()) };
    let failures = failed.count() + 1;
    Err(text::failed(format!("{failures} of {total} restores failed"), first, were_said))
}

impl Planned {
    fn host(&self) -> Option<&str> {
        self.order.options.to_host.as_deref()
    }

    /// Why its restore failed, in the words of plans.
    fn why(&self, why: &anyhow::Error) -> String {
        in_plan(&self.order.target, &text::error(why))
    }

    fn failed(&self, outcome: &Outcome) -> Option<Why> {
        let lost = |lost: Failure| Why { text: lost.why, is_not_begun: false };
        match outcome {
            Ok(done) => done.lost().map(lost),
            Err(why) => Some(Why { text: self.why(why), is_not_begun: why.is::<NotBegun>() }),
        }
    }

    /// Host and target.
    fn to(&self, here: &str) -> String {
        format!("{}:{}", self.host().unwrap_or(here), self.order.target)
    }
}

impl<'a> Ended<'a> {
    fn new(planned: &'a Planned, outcome: &'a Outcome, here: &'a str) -> Self {
        let order = &planned.order;
        let failed = outcome.as_ref().err().map(|why| Failed {
            snapshot: order.root.slot.session.to_string(),
            volume: &order.root.volume,
            target: &order.target,
            why: planned.why(why),
        });
        Self {
            outcome: match outcome {
                Ok(done) if done.lost().is_some() => "incomplete",
                Ok(_) => "restored",
                Err(_) => "failed",
            },
            host: planned.host().unwrap_or(here),
            priority: planned.priority,
            done: outcome.as_ref().ok(),
            failed,
        }
    }
}

/// What a restorer says of the options of `restore`, said of a volume of a plan.
fn in_plan(target: &str, why: &str) -> String {
    let options = [
        (format!("--force-in-use {target}"), "`force_in_use = true` in the plan"),
        ("--force-in-use TARGET".to_owned(), "`force_in_use = true` in the plan"),
        ("--force".to_owned(), "`force = true` in the plan"),
        ("--keep-going".to_owned(), "`keep_going = true` in the plan"),
        ("--create".to_owned(), "`create = true` in the plan"),
    ];
    options.iter().fold(why.to_owned(), |why, (option, key)| why.replace(option, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_named_as_plans_have_them() {
        for (why, said) in [
            (
                "the file has content; --force overwrites it",
                "content; `force = true` in the plan overwrites it",
            ),
            ("(--force-in-use /a b overwrites it)", "(`force_in_use = true` in the plan overwrites it)"),
            ("--keep-going restores the rest", "`keep_going = true` in the plan restores the rest"),
        ] {
            assert!(in_plan("/a b", why).ends_with(said), "{}", in_plan("/a b", why));
        }
    }

    #[tokio::test]
    async fn what_this_process_lacks_ends_its_own_restores_alone() {
        let (all, early) = (Stop::default(), Early::default());
        let failing = async { anyhow::anyhow!("no room for packs") };
        let ours = early.while_all_works(early.stop.raised(), &all, failing);
        let ((), error) = ours.await;
        assert_eq!(error.unwrap().to_string(), "no room for packs");
        assert!(!all.is_raised(), "agents go on");
        assert!(text::error(&early.ended()).contains("not begun: no room for packs"));

        let early = Early::default();
        all.raise();
        let ((), error) = early.while_all_works(early.stop.raised(), &all, std::future::pending()).await;
        assert!(error.is_none() && text::error(&early.ended()).contains("interrupted"));

        // When all of them have ended, nothing is lacking.
        let (all, early) = (Stop::default(), Early::default());
        let (ended, error) =
            early.while_all_works(async { 7 }, &all, async { anyhow::anyhow!("a role ended") }).await;
        assert!(ended == 7 && error.is_none() && !early.stop.is_raised());
    }
}
