//! Checks by agents: asked for, followed, and listed for `status`.

use std::time::Duration;

use agent::{Bus, Failure, Repository};
use anyhow::Context as _;
use checker::jobs;
use schema::JobId;
use schema::check::{Check, Content, End, Reached, Worker};
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
    tokio::join!(followed(app, &repository, job), warn_of_no_agent(app, &*bus, job)).0
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
        (End::Checked(report), _) => {
            let marks = check::marks_to_take_away(repository, report.healed).await;
            check::conclude(app, &Checked::told(*report).beside(marks))
        }
        (End::Failed { kind, why, .. }, reached) => {
            for object in &reached.found {
                app.say(format!("DAMAGED {}: {}", object.key, object.why));
            }
            let why = format!("{why}{}", found_so_far(&reached));
            Err(Failure { kind, retry: false, why }).with_context(|| format!("check {job}"))
        }
    }
}

/// What a check found that came to no report.
fn found_so_far(reached: &Reached) -> String {
    match reached.objects() {
        0 => String::new(),
        objects => format!(
            ". Up to there something was wrong with {}, and {} {} recorded: check again to see what that concerns",
            text::count(objects, "object"),
            text::count(reached.recorded, "damaged chunk"),
            text::of(reached.recorded, "was", "were")
        ),
    }
}

/// How a check ended, in few words.
pub fn how(end: &End) -> String {
    match end {
        End::Checked(report) if report.damaged + report.objects == 0 => "nothing is wrong".to_owned(),
        End::Checked(report) => damaged(report.damaged, report.objects),
        End::Failed { kind: FailureKind::Revoked, why, .. } => why.clone(),
        End::Failed { why, .. } => format!("FAILED: {why}"),
    }
}

fn damaged(snapshots: u64, objects: u64) -> String {
    format!("DAMAGED: {}, {}", text::count(snapshots, "snapshot"), text::count(objects, "object"))
}

/// Waits for a check's end; that, and how far it came. Progress is bytes done and all of them.
async fn ended(
    app: &App,
    repository: &Repository,
    job: JobId,
    progress: impl Fn(u64, u64),
) -> Result<(End, Reached), Failure> {
    let mut was_there = false;
    loop {
        match jobs::read(repository, job).await {
            Ok(Some(Check { end: Some(end), reached, .. })) => return Ok((end, reached)),
            Ok(Some(check)) => {
                was_there = true;
                progress(check.reached.done, check.reached.total);
            }
            Ok(None) if was_there => {
                let why = format!(
                    "the check {job} is not there any more: somebody has removed its object. Ask for another one"
                );
                return Err(Failure::new(FailureKind::Revoked, why));
            }
            Ok(None) => {
                let why = format!(
                    "agents were given no check {job}, or it ended so long ago that it is not kept (`lvkeep status` lists \
                     checks)"
                );
                return Err(Failure::refused(why));
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

async fn warn_of_no_agent(app: &App, bus: &dyn Bus, job: JobId) {
    match status::hosts_of(app, bus, Role::Checker).await {
        Ok(hosts) if hosts.is_empty() => app.say(format!(
            "no agent with the role checker answers: the check waits until one does (start `lvkeep agent --role checker`; \
             `lvkeep cancel {job}` takes the check back)"
        )),
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
    /// waiting, running, paused, checked, failed, cancelled or unreadable
    state: &'static str,
    host: Option<String>,
    bytes_done: u64,
    bytes_total: u64,
    ended: Option<String>,
    snapshots_damaged: Option<u64>,
    objects_damaged: Option<u64>,
    why: Option<String>,
}

/// Checks that have not ended, the last one that has, the last one that came to a report, and what cannot be read.
pub fn rows(checks: Vec<(JobId, Result<Check, Failure>)>) -> Vec<Row> {
    let last = |is_one: fn(&End) -> bool| {
        let mut read = checks.iter().rev().filter_map(|(_, check)| check.as_ref().ok());
        read.find(|check| check.end.as_ref().is_some_and(is_one)).map(|check| check.job)
    };
    let shown = [last(|_| true), last(|end| matches!(end, End::Checked(_)))];
    let row = |(job, check): (JobId, Result<Check, Failure>)| match check {
        Ok(check) if check.end.is_none() || shown.contains(&Some(job)) => Some(Row::from(check)),
        Ok(_) => None,
        Err(failure) => Some(Row::unreadable(job, failure)),
    };
    checks.into_iter().filter_map(row).collect()
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
            (Some(End::Failed { kind: FailureKind::Revoked, .. }), _) => ("cancelled", None),
            (Some(End::Failed { .. }), _) => ("failed", None),
            (None, Some(Worker { is_paused: true, host, .. })) => ("paused", Some(host.clone())),
            (None, Some(Worker { host, .. })) => ("running", Some(host.clone())),
            (None, None) => ("waiting", None),
        };
        let so_far = check.reached.objects();
        let (mut ended, mut snapshots_damaged, mut why) = (None, None, None);
        let mut objects_damaged = (so_far > 0).then_some(so_far);
        match check.end {
            Some(End::Checked(report)) => {
                ended = Some(text::rfc3339(report.ended_ms));
                (snapshots_damaged, objects_damaged) = (Some(report.damaged), Some(report.objects));
            }
            Some(End::Failed { why: failed, ended_ms, .. }) => {
                (why, ended) = (Some(failed), ended_ms.map(text::rfc3339));
            }
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
    fn unreadable(job: JobId, failure: Failure) -> Self {
        Self {
            job: job.to_string(),
            by: String::new(),
            asked: String::new(),
            reads: String::new(),
            state: "unreadable",
            host: None,
            bytes_done: 0,
            bytes_total: 0,
            ended: None,
            snapshots_damaged: None,
            objects_damaged: None,
            why: Some(failure.why),
        }
    }

    fn line(&self) -> String {
        let see = format!("`lvkeep check --job {}`", self.job);
        let host = self.host.as_deref().unwrap_or_default();
        let why = self.why.as_deref().unwrap_or_default();
        let reached = match self.bytes_total {
            0 => String::new(),
            total => format!("{} of {}", text::size(self.bytes_done), text::size(total)),
        };
        let found = match self.objects_damaged {
            Some(objects @ 1..) => format!("; DAMAGED so far: {} ({see})", text::count(objects, "object")),
            _ => String::new(),
        };
        match self.state {
            "unreadable" => format!("UNREADABLE: {why}"),
            "checked" => match (self.snapshots_damaged, self.objects_damaged) {
                (Some(0), Some(0)) => "nothing is wrong".to_owned(),
                (Some(snapshots), Some(objects)) => {
                    format!("{} ({see})", damaged(snapshots, objects))
                }
                _ => String::new(),
            },
            "failed" => format!("FAILED: {why}{found}"),
            "cancelled" if reached.is_empty() => format!("{why}{found}"),
            "cancelled" => format!("{why} at {reached}{found}"),
            "paused" if reached.is_empty() => format!("waits for other work of {host}"),
            "paused" => format!("{reached}, waits for other work of {host}{found}"),
            "running" if reached.is_empty() => format!("reads the structure on {host}"),
            "running" => format!("{reached} on {host}{found}"),
            _ if reached.is_empty() => "waits for an agent".to_owned(),
            _ => format!("{reached}, waits for an agent{found}"),
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

#[cfg(test)]
mod tests {
    use schema::check::Report;

    use super::*;

    fn check(number: u8, end: Option<End>) -> (JobId, Result<Check, Failure>) {
        let job = JobId::from_bytes([number; 16]);
        let reached = Reached { total: 4096, done: 1024, objects: Some(3), ..Reached::default() };
        let check = Check {
            version: Check::VERSION,
            job,
            by: "somebody".into(),
            asked_ms: 0,
            content: Content::All,
            worker: None,
            tries: 0,
            reached,
            end,
        };
        (job, Ok(check))
    }

    fn failed(kind: FailureKind, why: &str) -> Option<End> {
        Some(End::Failed { kind, why: why.into(), ended_ms: Some(1000) })
    }

    fn checked(damaged: u64) -> Option<End> {
        Some(End::Checked(Box::new(Report { damaged, ..Report::default() })))
    }

    #[test]
    fn what_is_open_last_or_wrong_is_shown() {
        let unreadable = JobId::from_bytes([6; 16]);
        let why = "it cannot be read; `lvkeep cancel`";
        let rows = rows(vec![
            check(1, checked(7)),
            check(2, checked(2)),
            check(3, failed(FailureKind::Other, "no further")),
            check(4, failed(FailureKind::Revoked, "cancelled by somebody")),
            check(5, None),
            (unreadable, Err(Failure::damaged(why))),
        ]);
        let shown: Vec<(&str, String)> = rows.iter().map(|row| (row.state, row.line())).collect();
        let [(_, checked), (_, cancelled), (_, waiting), (_, lost)] = &shown[..] else { panic!("{shown:?}") };
        let states: Vec<&str> = shown.iter().map(|(state, _)| *state).collect();
        assert_eq!(states, ["checked", "cancelled", "waiting", "unreadable"]);
        assert!(checked.starts_with("DAMAGED: 2 snapshots") && checked.contains("check --job"), "{checked}");
        assert!(cancelled.starts_with("cancelled by somebody at 1.0 KiB of 4.0 KiB"), "{cancelled}");
        for open in [cancelled, waiting] {
            assert!(open.contains("DAMAGED so far: 3 objects"), "{open}");
        }
        assert!(waiting.contains("waits for an agent"), "{waiting}");
        assert_eq!(*lost, format!("UNREADABLE: {why}"));
        assert!(rows[1].ended.is_some() && rows[2].ended.is_none());
    }
}
