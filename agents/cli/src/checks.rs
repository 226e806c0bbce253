//! Checks by agents: asked for, followed, and listed for `status`.

use std::time::Duration;

use agent::{Bus, Failure, Repository};
use anyhow::Context as _;
use checker::jobs;
use schema::JobId;
use schema::check::{Check, Content, End, Worker};
use schema::messages::FailureKind;
use serde::Serialize;

use crate::app::App;
use crate::args::{CheckArgs, ReadData, Role};
use crate::check::{self, Checked};
use crate::progress::Display;
use crate::{bus, open, status, text};

/// Pause between two looks at how far a check is.
const LOOK: Duration = Duration::from_secs(1);

/// `lvkeep check --by-agents`.
pub async fn by_agents(app: &App, args: &CheckArgs) -> anyhow::Result<()> {
    app.stop_on_signals()?;
    let repository = app.repository().await?;
    open::check_writable(&repository).await?;
    let bus = bus::connect(app, "check").await?;
    let content = match args.read_data {
        None => Content::None,
        Some(ReadData::Percent(100)) => Content::All,
        Some(ReadData::Percent(percent)) => {
            let behind = match args.restart {
                true => None,
                false => jobs::next_behind(&jobs::list(&repository).await?),
            };
            Content::Percent { percent, behind }
        }
        Some(ReadData::Share(share)) => Content::Share { number: share.number, of: share.of },
    };
    let by = format!("lvkeep on {}", app.settings.host.value);
    let job = jobs::ask(&repository, &*bus, content, &by).await?;
    app.say(format!("agents were given the check {job}"));
    tokio::join!(followed(app, &repository, job), warn_of_no_agent(app, &*bus)).0
}

/// `lvkeep check --job`.
pub async fn follow(app: &App, job: &str) -> anyhow::Result<()> {
    app.stop_on_signals()?;
    let job: JobId = job.parse().map_err(open::not_fitting)?;
    let repository = app.repository().await?;
    followed(app, &repository, job).await
}

async fn followed(app: &App, repository: &Repository, job: JobId) -> anyhow::Result<()> {
    let bar = Display::new(app).bar("content");
    let ended = ended(app, repository, job, |done, total| bar.set(done, total)).await;
    bar.finish();
    match ended? {
        End::Checked(report) => check::conclude(app, &Checked::told(*report)),
        End::Failed { kind, why } => {
            Err(Failure { kind, retry: false, why }).with_context(|| format!("check {job}"))
        }
    }
}

/// Waits for a check's end. Progress is bytes done and all of them.
async fn ended(
    app: &App,
    repository: &Repository,
    job: JobId,
    progress: impl Fn(u64, u64),
) -> Result<End, Failure> {
    loop {
        match jobs::read(repository, job).await {
            Ok(Some(Check { end: Some(end), .. })) => return Ok(end),
            Ok(Some(check)) => progress(check.reached.done, check.reached.total),
            Ok(None) => {
                let why = format!("agents have no check {job}: it was cancelled, or there was none");
                return Err(Failure::new(FailureKind::Revoked, why));
            }
            Err(failure) if failure.retry => tracing::warn!(%failure, "cannot see how far the check is"),
            Err(failure) => return Err(failure),
        }
        tokio::select! {
            () = app.environment.sleep(LOOK) => {}
            () = app.stop.raised() => {
                let why = format!(
                    "agents go on with the check {job}: `lvkeep check --job {job}` follows it, `lvkeep cancel {job}` ends it"
                );
                return Err(Failure::new(FailureKind::Revoked, why));
            }
        }
    }
}

async fn warn_of_no_agent(app: &App, bus: &dyn Bus) {
    match status::hosts_of(app, bus, Role::Checker).await {
        Ok(hosts) if hosts.is_empty() => {
            app.say("no agent with the role checker answers: the check waits until one does");
        }
        Ok(_) => {}
        Err(why) => tracing::debug!(why = text::error(&why), "cannot ask who is there"),
    }
}

/// A check as `status` shows it.
#[derive(Debug, Serialize)]
pub struct Row {
    job: String,
    by: String,
    asked: String,
    reads: String,
    /// waiting, running, paused, checked or failed
    state: &'static str,
    host: Option<String>,
    bytes_done: u64,
    bytes_total: u64,
    ended: Option<String>,
    snapshots_damaged: Option<u64>,
    objects_damaged: Option<u64>,
    why: Option<String>,
}

/// Checks that have not ended, and the last one that has.
pub fn rows(mut checks: Vec<Check>) -> Vec<Row> {
    let last = checks.iter().rev().find(|check| check.end.is_some()).map(|check| check.job);
    checks.retain(|check| check.end.is_none() || Some(check.job) == last);
    checks.into_iter().map(Row::from).collect()
}

/// The same for people.
pub fn table(rows: &[Row]) -> String {
    let mut table = text::Table::new(&["check", "reads", "asked for", "by", "state"]);
    for row in rows {
        table.row([row.job.clone(), row.reads.clone(), row.asked.clone(), row.by.clone(), row.line()]);
    }
    table.text()
}

impl From<Check> for Row {
    fn from(check: Check) -> Self {
        let (state, host) = match (&check.end, &check.worker) {
            (Some(End::Checked(_)), _) => ("checked", None),
            (Some(End::Failed { .. }), _) => ("failed", None),
            (None, Some(Worker { is_paused: true, host, .. })) => ("paused", Some(host.clone())),
            (None, Some(Worker { host, .. })) => ("running", Some(host.clone())),
            (None, None) => ("waiting", None),
        };
        let (mut ended, mut snapshots_damaged, mut objects_damaged, mut why) = (None, None, None, None);
        match check.end {
            Some(End::Checked(report)) => {
                ended = Some(text::rfc3339(report.ended_ms));
                (snapshots_damaged, objects_damaged) = (Some(report.damaged), Some(report.objects));
            }
            Some(End::Failed { why: failed, .. }) => why = Some(failed),
            None => {}
        }
        Self {
            job: check.job.to_string(),
            by: check.by,
            asked: text::rfc3339(check.asked_ms),
            reads: reads(check.content),
            state,
            host,
            bytes_done: check.reached.done,
            bytes_total: check.reached.total,
            ended,
            snapshots_damaged,
            objects_damaged,
            why,
        }
    }
}

impl Row {
    fn line(&self) -> String {
        let host = self.host.as_deref().unwrap_or_default();
        let reached = format!("{} of {}", text::size(self.bytes_done), text::size(self.bytes_total));
        match self.state {
            "paused" => format!("{reached}, waits for other work of {host}"),
            "running" => format!("{reached} on {host}"),
            "failed" => format!("FAILED: {}", self.why.as_deref().unwrap_or_default()),
            "checked" => match (self.snapshots_damaged, self.objects_damaged) {
                (Some(0), Some(0)) => "nothing is wrong".to_owned(),
                (Some(snapshots), Some(objects)) => {
                    format!(
                        "DAMAGED: {snapshots} snapshots, {objects} objects (`lvkeep check --job {}`)",
                        self.job
                    )
                }
                _ => String::new(),
            },
            _ if self.bytes_total > 0 => format!("{reached}, waits for an agent"),
            _ => "waits for an agent".to_owned(),
        }
    }
}

fn reads(content: Content) -> String {
    match content {
        Content::None => "structure".to_owned(),
        Content::All => "everything".to_owned(),
        Content::Percent { percent, .. } => format!("{percent} %"),
        Content::Share { number, of } => format!("{number}/{of}"),
    }
}
