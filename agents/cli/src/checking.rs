//! Checks that a conductor's agent asks for by itself, every so often; agents with the role checker do them.
//!
//! Any number of agents may ask, and none owns it: nobody asks while a check is open, or so soon after another one. The
//! clock decides only how often content is read. What fails is logged, and tried again at the next turn.

use std::time::Duration;

use agent::{Context, Failure, Repository};
use checker::jobs;
use schema::JobId;
use schema::check::{Check, Content};

/// Turns between two checks.
const TURNS: u32 = 4;

/// How an agent asks for checks.
pub struct Checking {
    context: Context,
    repository: Repository,
    every: Duration,
    percent: u8,
    /// The checks at the last turn.
    before: Vec<Check>,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// A check is due.
    Ask,
    /// One is open, and nobody seems to be at it: its message may be lost.
    Send(JobId),
    Nothing,
}

impl Checking {
    /// Asks for this share of the content each time.
    pub fn new(context: Context, repository: Repository, every: Duration, percent: u8) -> Self {
        Self { context, repository, every, percent, before: Vec::new() }
    }

    /// Asks until the context's flag is raised.
    pub async fn run(mut self) -> Result<(), Failure> {
        let (environment, stop) = (self.context.environment.clone(), self.context.stop.clone());
        let turn = self.every / TURNS;
        let mut pause = turn.mul_f64(f64::from(environment.random::<1>()[0]) / 256.0);
        loop {
            environment.timeout(pause, stop.raised()).await;
            if stop.is_raised() {
                return Ok(());
            }
            pause = turn;
            if let Err(failure) = self.turn().await {
                tracing::warn!(%failure, again_in = ?pause, "cannot ask for a check");
            }
        }
    }

    async fn turn(&mut self) -> Result<(), Failure> {
        let checks = jobs::list(&self.repository).await?;
        let bus = &*self.context.bus;
        match turn(&checks, &self.before, self.context.environment.now_ms(), self.every) {
            Turn::Nothing => {}
            Turn::Send(job) => jobs::send(bus, job).await?,
            Turn::Ask => {
                let content = Content::Percent { percent: self.percent, behind: jobs::next_behind(&checks) };
                let by = format!("conductor on {}", self.context.host);
                let job = jobs::ask(&self.repository, bus, content, &by).await?;
                tracing::info!(%job, "asked for a check");
            }
        }
        self.before = checks;
        Ok(())
    }
}

fn turn(checks: &[Check], before: &[Check], now_ms: u64, every: Duration) -> Turn {
    let mut of_content = checks.iter().filter(|check| check.content != Content::None);
    if let Some(open) = of_content.clone().find(|check| check.end.is_none()) {
        return match before.contains(open) {
            true => Turn::Send(open.job),
            false => Turn::Nothing,
        };
    }
    let every_ms = u64::try_from(every.as_millis()).unwrap_or(u64::MAX);
    match of_content.any(|check| is_recent(check.job, check.asked_ms, now_ms, every_ms)) {
        true => Turn::Nothing,
        false => Turn::Ask,
    }
}

/// Whether it is so little time since then that the next check waits. Clocks may differ a little; a time that lies further
/// ahead says nothing but that a clock was wrong, and for that no check must be left out.
fn is_recent(job: JobId, since_ms: u64, now_ms: u64, every_ms: u64) -> bool {
    if since_ms > now_ms.saturating_add(every_ms) {
        let ahead = Duration::from_millis(since_ms - now_ms);
        tracing::warn!(%job, ?ahead, "a check was asked for in the future, as some clock has it: it is passed over");
        return false;
    }
    since_ms.saturating_add(every_ms) > now_ms
}

#[cfg(test)]
mod tests {
    use schema::check::{End, Reached};
    use schema::messages::FailureKind;

    use super::*;

    fn check(number: u8, content: Content, asked_ms: u64, is_ended: bool) -> Check {
        let end = is_ended.then(|| End::Failed { kind: FailureKind::Other, why: String::new() });
        let (job, by) = (JobId::from_bytes([number; 16]), "somebody".to_owned());
        let reached = Reached::default();
        Check { version: 1, job, by, asked_ms, content, worker: None, tries: 0, reached, end }
    }

    #[test]
    fn one_check_at_a_time_and_none_too_early() {
        let every = Duration::from_millis(100);
        let ended = check(1, Content::All, 1000, true);
        let structure = check(2, Content::None, 1090, false);
        let open = check(3, Content::Percent { percent: 5, behind: None }, 1000, false);
        let mut moved = open.clone();
        moved.reached.done = 1;
        let job = open.job;
        for (checks, before, now, expected) in [
            (vec![], vec![], 0, Turn::Ask),
            (vec![ended.clone()], vec![], 1099, Turn::Nothing),
            (vec![ended.clone()], vec![], 1100, Turn::Ask),
            (vec![ended.clone()], vec![], 1000, Turn::Nothing),
            // By a clock that is a little ahead, and by one that was years ahead.
            (vec![ended.clone()], vec![], 900, Turn::Nothing),
            (vec![ended.clone()], vec![], 899, Turn::Ask),
            (vec![ended.clone(), check(4, Content::All, u64::MAX, true)], vec![], 1100, Turn::Ask),
            (vec![ended.clone(), structure], vec![], 1100, Turn::Ask),
            (vec![ended.clone(), open.clone()], vec![ended.clone()], 9999, Turn::Nothing),
            (vec![ended.clone(), open.clone()], vec![open.clone()], 9999, Turn::Send(job)),
            (vec![moved], vec![open], 9999, Turn::Nothing),
        ] {
            assert_eq!(turn(&checks, &before, now, every), expected, "{checks:?} at {now}");
        }
    }
}
