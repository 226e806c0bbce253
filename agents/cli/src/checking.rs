//! Checks that a conductor's agent asks for by itself, every so often; agents with the role checker do them.
//!
//! Any number of agents may ask, and none owns it: nobody asks while a check is open, or so soon after another one. The
//! clock decides only how often content is read. Agents are told again of a check that does not move, whoever asked for
//! it and whatever it reads: the bus may have lost it. What fails is logged, and tried again at the next turn.

use std::time::Duration;

use agent::{Context, Failure, Repository};
use checker::jobs;
use schema::JobId;
use schema::check::{Check, Content, End};
use schema::messages::FailureKind;

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
#[derive(Debug, Default, PartialEq, Eq)]
struct Turn {
    /// These are open, and nobody seems to be at them: their messages may be lost.
    send: Vec<JobId>,
    /// A check is due.
    asks: bool,
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
        let turn = turn(&checks, &self.before, self.context.environment.now_ms(), self.every);
        for job in turn.send {
            tracing::debug!(%job, "a check does not move: agents are told of it again");
            jobs::send(bus, job).await?;
        }
        if turn.asks {
            let content = Content::Percent { percent: self.percent, behind: jobs::next_behind(&checks) };
            let by = format!("conductor on {}", self.context.host);
            let job = jobs::ask(&self.repository, bus, content, &by).await?;
            tracing::info!(%job, "asked for a check");
        }
        self.before = checks;
        Ok(())
    }
}

fn turn(checks: &[Check], before: &[Check], now_ms: u64, every: Duration) -> Turn {
    let is_open = |check: &&Check| check.end.is_none();
    let still = checks.iter().filter(is_open).filter(|check| before.contains(check));
    let every_ms = u64::try_from(every.as_millis()).unwrap_or(u64::MAX);
    let is_recent = |check: &Check| is_recent(check.job, counts_from(check), now_ms, every_ms);
    let mut of_content = checks.iter().filter(|check| check.content != Content::None);
    let asks = of_content.all(|check| check.end.is_some() && !is_recent(check));
    Turn { send: still.map(|check| check.job).collect(), asks }
}

/// Since when the next check waits: who takes one back does not want another one at once.
fn counts_from(check: &Check) -> u64 {
    match check.end {
        Some(End::Failed { kind: FailureKind::Revoked, ended_ms, .. }) => {
            check.asked_ms.max(ended_ms.unwrap_or_default())
        }
        _ => check.asked_ms,
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
    use schema::check::Reached;

    use super::*;

    fn check(number: u8, content: Content, asked_ms: u64, end: Option<End>) -> Check {
        let (job, by) = (JobId::from_bytes([number; 16]), "somebody".to_owned());
        let reached = Reached::default();
        Check { version: 1, job, by, asked_ms, content, worker: None, tries: 0, reached, end }
    }

    fn failed(kind: FailureKind, ended_ms: Option<u64>) -> Option<End> {
        Some(End::Failed { kind, why: String::new(), ended_ms })
    }

    fn nothing() -> Turn {
        Turn::default()
    }

    fn asks() -> Turn {
        Turn { asks: true, ..Turn::default() }
    }

    fn sends<const N: usize>(checks: [&Check; N], asks: bool) -> Turn {
        Turn { send: checks.map(|check| check.job).to_vec(), asks }
    }

    #[test]
    fn one_check_at_a_time_and_none_too_early() {
        let every = Duration::from_millis(100);
        let ended = check(1, Content::All, 1000, failed(FailureKind::Other, Some(1090)));
        let structure = check(2, Content::None, 1090, None);
        let open = check(3, Content::Percent { percent: 5, behind: None }, 1000, None);
        let mut moved = open.clone();
        moved.reached.done = 1;
        let future = check(4, Content::All, u64::MAX, failed(FailureKind::Other, None));
        for (checks, before, now, expected) in [
            (vec![], vec![], 0, asks()),
            (vec![ended.clone()], vec![], 1099, nothing()),
            (vec![ended.clone()], vec![], 1100, asks()),
            (vec![ended.clone()], vec![], 1000, nothing()),
            // By a clock that is a little ahead, and by one that was years ahead.
            (vec![ended.clone()], vec![], 900, nothing()),
            (vec![ended.clone()], vec![], 899, asks()),
            (vec![ended.clone(), future], vec![], 1100, asks()),
            (vec![ended.clone(), structure.clone()], vec![], 1100, asks()),
            (vec![ended.clone(), open.clone()], vec![ended.clone()], 9999, nothing()),
            (vec![ended.clone(), open.clone()], vec![open.clone()], 9999, sends([&open], false)),
            (vec![moved.clone()], vec![open.clone()], 9999, nothing()),
        ] {
            assert_eq!(turn(&checks, &before, now, every), expected, "{checks:?} at {now}");
        }
    }

    /// The bus may lose any of them.
    #[test]
    fn agents_are_told_again_of_every_check_that_does_not_move() {
        let every = Duration::from_millis(100);
        let ended = check(1, Content::All, 1000, failed(FailureKind::Other, None));
        let structure = check(2, Content::None, 1000, None);
        let open = check(3, Content::All, 1000, None);
        let mut moved = open.clone();
        moved.reached.done = 1;
        for (checks, before, now, expected) in [
            (vec![structure.clone()], vec![], 0, asks()),
            (vec![structure.clone()], vec![structure.clone()], 0, sends([&structure], true)),
            (
                vec![ended.clone(), structure.clone()],
                vec![ended.clone(), structure.clone()],
                1099,
                sends([&structure], false),
            ),
            (
                vec![structure.clone(), open.clone()],
                vec![structure.clone(), open.clone()],
                1099,
                sends([&structure, &open], false),
            ),
            (
                vec![structure.clone(), moved],
                vec![structure.clone(), open.clone()],
                1099,
                sends([&structure], false),
            ),
        ] {
            assert_eq!(turn(&checks, &before, now, every), expected, "{checks:?} at {now}");
        }
    }

    #[test]
    fn a_check_that_was_taken_back_counts_from_then_on() {
        let every = Duration::from_millis(100);
        let percent = Content::Percent { percent: 5, behind: None };
        let taken_back = check(1, percent, 1000, failed(FailureKind::Revoked, Some(5000)));
        let failed = check(2, percent, 1000, failed(FailureKind::Other, Some(5000)));
        for (checks, now, expected) in [
            (vec![taken_back.clone()], 5001, nothing()),
            (vec![taken_back.clone()], 5099, nothing()),
            (vec![taken_back.clone()], 5100, asks()),
            (vec![taken_back, failed.clone()], 5001, nothing()),
            (vec![failed], 5001, asks()),
        ] {
            assert_eq!(turn(&checks, &checks, now, every), expected, "{checks:?} at {now}");
        }
    }
}
