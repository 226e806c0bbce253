//! `restore --plan`: many volumes, by this process and by the agents of many hosts.
//!
//! Of each host only so many volumes are restored at once, the most urgent first. One that fails is said and keeps
//! nobody else from being restored; the first failure decides the exit code.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use agent::Context as AgentContext;
use anyhow::Context;
use futures::future::join_all;
use indexer::Wish;
use restorer::{Differences, Restorer};
use serde::Serialize;

use crate::app::App;
use crate::embedded::{self, Embedded};
use crate::exit::Differs;
use crate::plan::{Plan, Planned, Surroundings};
use crate::progress::{Display, Overall};
use crate::restore::{self, Done};
use crate::{bus, status, text};

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

/// Who restores the volumes of one host.
enum By<'a> {
    /// This process.
    Us(Arc<Restorer>),
    /// The agents of a host.
    Agents(&'a str, &'a AgentContext),
}

type Outcome = anyhow::Result<Done>;

/// `lvkeep restore --plan`.
pub async fn run(app: &App, path: &Path) -> anyhow::Result<()> {
    app.stop_on_signals()?;
    let settings = &app.settings;
    let around = Surroundings { host: &settings.host.value, has_nats: settings.nats.value.is_some() };
    let repository = app.repository().await?;
    let plan = Plan::read(path, &repository, &around).await?;
    let ours = plan.orders.iter().filter(|planned| planned.host().is_none());
    let wishes: Vec<Wish> = ours.map(|planned| Wish::all(planned.order.root.clone())).collect();
    let work = match wishes.is_empty() {
        true => None,
        false => Some(Embedded::reading(app, repository, &wishes).await?),
    };
    let outcomes = carry_out(app, &plan, work.as_ref()).await;
    if let Some(work) = work {
        work.finish().await;
    }
    let outcomes = outcomes?;
    print(app, &plan, &outcomes)?;
    conclude(outcomes)
}

async fn carry_out(app: &App, plan: &Plan, work: Option<&Embedded>) -> anyhow::Result<Vec<Outcome>> {
    let mut queues: BTreeMap<Option<&str>, VecDeque<usize>> = BTreeMap::new();
    for (number, planned) in plan.orders.iter().enumerate() {
        queues.entry(planned.host()).or_default().push_back(number);
    }
    let far = match queues.keys().any(Option::is_some) {
        true => Some(app.context(bus::connect(app, "restore").await?)),
        false => None,
    };
    let display = Display::new(app);
    let overall = Overall::new(&display, plan.orders.iter().map(|planned| planned.order.root.size));
    let run = Run { app, plan, display: &display, overall: &overall };
    let queues: Vec<(Option<&str>, Mutex<VecDeque<usize>>)> =
        queues.into_iter().map(|(host, queue)| (host, Mutex::new(queue))).collect();
    let ours = work.map(|work| run.restorer(work)).transpose()?;
    let mut lanes = Vec::new();
    for (host, queue) in &queues {
        let waiting = queue.lock().unwrap_or_else(PoisonError::into_inner).len();
        for _ in 0..plan.at_once(*host).min(waiting) {
            let by = match (host, &far, &ours) {
                (Some(host), Some(far), _) => By::Agents(host, far),
                (None, _, Some(ours)) => By::Us(ours.clone()),
                _ => unreachable!("who restores was made above"),
            };
            lanes.push(run.lane(queue, by));
        }
    }
    let warned = async {
        if let Some(far) = &far {
            run.warn_of_absent(far, queues.iter().filter_map(|(host, _)| *host)).await;
        }
    };
    let (ended, ()) = tokio::join!(join_all(lanes), warned);
    overall.finish();
    let mut ended: Vec<(usize, Outcome)> = ended.into_iter().flatten().collect();
    ended.sort_by_key(|(number, _)| *number);
    Ok(ended.into_iter().map(|(_, outcome)| outcome).collect())
}

/// A plan that is carried out.
#[derive(Clone, Copy)]
struct Run<'a> {
    app: &'a App,
    plan: &'a Plan,
    display: &'a Display,
    overall: &'a Overall,
}

impl Run<'_> {
    /// The restorer of this process, whose memory and requests all restores share.
    fn restorer(&self, work: &Embedded) -> anyhow::Result<Arc<Restorer>> {
        let mut settings = restore::settings(self.app, &work.repository);
        settings.fetches = self.plan.fetches_at_once.unwrap_or(settings.fetches);
        Ok(restore::make_with(work, restore::identity(self.app, work)?, settings).into())
    }

    /// Restores one volume after the other.
    async fn lane(self, queue: &Mutex<VecDeque<usize>>, by: By<'_>) -> Vec<(usize, Outcome)> {
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let mut ended = Vec::new();
        while let Some(number) = next() {
            let Some(planned) = self.plan.orders.get(number) else { break };
            let outcome = match self.app.stop.is_raised() {
                false => self.one(number, planned, &by).await,
                true => Err(embedded::interrupted().context("it was not begun").into()),
            };
            self.tell(number, planned, &outcome);
            ended.push((number, outcome));
        }
        ended
    }

    async fn one(&self, number: usize, planned: &Planned, by: &By<'_>) -> Outcome {
        let order = &planned.order;
        let bar = self.display.bar(&order.root.volume);
        let progress = |done, total| {
            bar.set(done, total);
            self.overall.set(number, done);
        };
        let outcome = match by {
            By::Us(restorer) => {
                let restored = restore::by_restorer(self.app, restorer, order, order.to(), progress).await;
                match restored {
                    Ok(done) if order.options.verify => {
                        compare(restorer, planned, |d, t| bar.set(d, t)).await.map(|()| done)
                    }
                    restored => restored,
                }
            }
            By::Agents(host, context) => {
                let restored = restore::by_agent(self.app, context, order, host, progress).await;
                restored
                    .with_context(|| format!("restoring {} to {host}:{}", order.root.volume, order.target))
            }
        };
        bar.finish();
        outcome
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
            Err(why) => self.app.say(format!("lvkeep: {}: {}", planned.order.root.volume, text::error(why))),
        });
    }

    /// Says of which hosts no restorer answers: their volumes wait.
    async fn warn_of_absent<'b>(&self, far: &AgentContext, hosts: impl Iterator<Item = &'b str>) {
        let answered = match status::restorers(self.app, &*far.bus).await {
            Ok(answered) => answered,
            Err(why) => {
                tracing::debug!(why = text::error(&why), "cannot ask who is there");
                return;
            }
        };
        for host in hosts.filter(|host| !answered.contains(*host)) {
            let warning = format!("no restorer on {host} answers: its volumes wait until one does");
            self.display.aside(|| self.app.say(warning));
        }
    }
}

/// Reads a target again and compares it.
async fn compare(restorer: &Restorer, planned: &Planned, progress: impl Fn(u64, u64)) -> anyhow::Result<()> {
    let (root, target) = (&planned.order.root, &planned.order.target);
    let compared =
        restorer.compare(root.clone(), &restore::path(target)?, |p| progress(p.done, p.total)).await;
    let Differences { first, .. } =
        compared.with_context(|| format!("comparing {target} with {}", root.volume))?;
    match first.into_iter().next() {
        None => Ok(()),
        Some(first) => Err(Differs { target: target.clone(), volume: root.volume.clone(), first }.into()),
    }
}

fn print(app: &App, plan: &Plan, outcomes: &[Outcome]) -> anyhow::Result<()> {
    let ended = |(planned, outcome): (&'_ Planned, &'_ Outcome)| {
        let order = &planned.order;
        let failed = outcome.as_ref().err().map(text::error);
        (order.root.volume.clone(), planned.to(&app.settings.host.value), failed)
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
        let bytes = plan.orders.iter().zip(outcomes).filter(|(_, outcome)| outcome.is_ok());
        let bytes = text::size(bytes.map(|(planned, _)| planned.order.root.size).sum());
        let head = format!("{restored} of {} volumes restored, {bytes}", rows.len());
        if failed.is_empty() {
            return head;
        }
        let mut table = text::Table::new(&["failed", "target", "why"]);
        for (volume, target, why) in failed {
            table.row([volume, target, why.unwrap_or_default().replace('\n', "; ")]);
        }
        format!("{head}\n{}", table.text())
    })
}

/// The first failure decides the exit code.
fn conclude(outcomes: Vec<Outcome>) -> anyhow::Result<()> {
    let total = outcomes.len();
    let mut failed = outcomes.into_iter().filter_map(Result::err);
    let Some(first) = failed.next() else { return Ok(()) };
    let failures = failed.count() + 1;
    Err(first.context(format!("{failures} of {total} restores failed; the first")))
}

impl Planned {
    fn host(&self) -> Option<&str> {
        self.order.options.to_host.as_deref()
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
            why: text::error(why),
        });
        Self {
            outcome: if failed.is_none() { "restored" } else { "failed" },
            host: planned.host().unwrap_or(here),
            priority: planned.priority,
            done: outcome.as_ref().ok(),
            failed,
        }
    }
}
