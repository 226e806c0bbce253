//! Checks that agents are given, by their objects in the bucket: asked for, listed, taken back.
//!
//! The object says what is wanted, how far it is and what it came to; the message on the bus only says that it is there. So
//! whoever asks need not wait, and what one agent has read no other one reads again.

use std::time::Duration;

use agent::store::Created;
use agent::{Bus, BusError, Failure, Queue, Repository, sessions};
use schema::check::{Check, Content, End, Reached};
use schema::messages::{About, CheckJob, FailureKind, Message};
use schema::{JobId, PackId, names};

use crate::given::is_damage;

/// Checks that have ended and are kept to be looked at.
const KEPT: usize = 16;
/// How often a check that is taken back is looked at again: its agent may just have written how far it is.
const LOOKS: u32 = 3;
/// Pause before each look.
const LOOK: Duration = Duration::from_secs(1);

/// What became of a check that was to be taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TakenBack {
    /// It is over, and its object says so.
    Ends,
    /// It had ended like this, and stays as it was.
    HadEnded(End),
    /// Its object could not be read, for this reason, and is gone.
    Removed(String),
}

/// Asks for a check; its job.
pub async fn ask(
    repository: &Repository,
    bus: &dyn Bus,
    content: Content,
    by: &str,
) -> Result<JobId, Failure> {
    let environment = repository.environment();
    let check = Check {
        version: Check::VERSION,
        job: environment.job_id(),
        by: by.to_owned(),
        asked_ms: environment.now_ms(),
        content,
        worker: None,
        tries: 0,
        reached: Reached::default(),
        end: None,
    };
    let key = names::check(check.job);
    if let Created::Lost(_) = repository.store.create(&key, repository.seal(&key, &check)?).await? {
        return Err(Failure::refused(format!("{key} exists already: names must be fresh")));
    }
    match send(bus, check.job).await {
        Ok(()) => Ok(check.job),
        Err(why) => {
            if let Err(why) = repository.store.delete(&key).await {
                tracing::warn!(key, %why, "a check that nobody was told of stays: `lvkeep cancel` removes it");
            }
            Err(why.into())
        }
    }
}

/// Tells agents of a check. One that is told twice is done once.
pub async fn send(bus: &dyn Bus, job: JobId) -> Result<(), BusError> {
    bus.publish(&Queue::checks(), Message::new(&About::nothing(), &CheckJob { job })).await
}

/// A check as it stands; none when nothing is there.
pub async fn read(repository: &Repository, job: JobId) -> Result<Option<Check>, Failure> {
    let damaged = match read_once(repository, job).await {
        Err(failure) if is_damage(&failure) => failure,
        read => return read,
    };
    tracing::debug!(%job, %damaged, "reading a check again");
    read_once(repository, job).await.map_err(|failure| match is_damage(&failure) {
        true => Failure {
            why: format!(
                "nobody goes on with the check {job}, because its object cannot be read: {failure}; `lvkeep cancel {job}` \
                 removes it, and the damage that it recorded stays recorded"
            ),
            ..failure
        },
        false => failure,
    })
}

async fn read_once(repository: &Repository, job: JobId) -> Result<Option<Check>, Failure> {
    let key = names::check(job);
    match repository.read::<Check>(&key).await? {
        Some(check) if check.job != job => Err(Failure::damaged(format!("{key} is the check {}", check.job))),
        read => Ok(read),
    }
}

pub(crate) async fn write(repository: &Repository, check: &Check) -> Result<(), Failure> {
    let key = names::check(check.job);
    Ok(repository.store.put(&key, repository.seal(&key, check)?).await?)
}

/// All checks that can be read, in the order in which they were asked for. One of which somebody's clock says that it will
/// be asked for later comes first: nobody knows when it was, and it is not the last one for years.
pub async fn list(repository: &Repository) -> Result<Vec<Check>, Failure> {
    let all = list_all(repository).await?.into_iter();
    Ok(all.filter_map(|(_, check)| check.inspect_err(passed_over).ok()).collect())
}

fn passed_over(failure: &Failure) {
    tracing::warn!(%failure, "a check is passed over");
}

/// All checks in that order, and why one cannot be read where that is so. Fails only when the store cannot be asked.
pub async fn list_all(repository: &Repository) -> Result<Vec<(JobId, Result<Check, Failure>)>, Failure> {
    let mut found = Vec::new();
    for listed in repository.store.list(names::CHECKS).await? {
        let Ok(job) = names::parse_check(&listed.key) else { continue };
        match read(repository, job).await {
            Ok(check) => found.extend(check.map(|check| (job, Ok(check)))),
            Err(failure) if is_damage(&failure) => found.push((job, Err(failure))),
            Err(failure) if failure.kind == FailureKind::Store && repository.gives_others().await => {
                found.push((job, Err(failure)));
            }
            Err(failure) => return Err(failure),
        }
    }
    let now_ms = repository.environment().now_ms();
    found.sort_by_key(|(job, read)| read.as_ref().map_or((false, *job), |check| place(check, now_ms)));
    Ok(found)
}

fn place(check: &Check, now_ms: u64) -> (bool, JobId) {
    (check.asked_ms <= now_ms, check.job)
}

/// Behind which pack the next share of the content begins, after these checks.
pub fn next_behind(checks: &[Check]) -> Option<PackId> {
    checks.iter().rev().find_map(|check| match check.content {
        Content::Percent { behind, .. } => Some(check.reached.behind.or(behind)),
        _ => None,
    })?
}

/// Takes a check back, in somebody's name; none when there is no such check. How far it came stays, because the next one
/// goes on from there. Its agent ends when it next says how far it is.
pub async fn take_back(repository: &Repository, job: JobId, by: &str) -> Result<Option<TakenBack>, Failure> {
    let key = names::check(job);
    let ended_ms = Some(repository.environment().now_ms());
    let end = End::Failed { kind: FailureKind::Revoked, why: format!("cancelled by {by}"), ended_ms };
    let mut taken = None;
    for look in 0..=LOOKS {
        if look > 0 {
            repository.environment().sleep(LOOK).await;
        } else if repository.store.head(&key).await?.is_none() {
            return Ok(None);
        }
        match read(repository, job).await {
            Ok(Some(check)) if check.end.as_ref() == Some(&end) => {}
            Ok(Some(Check { end: Some(end), .. })) => return Ok(Some(TakenBack::HadEnded(end))),
            Ok(Some(check)) => {
                write(repository, &Check { worker: None, end: Some(end.clone()), ..check }).await?;
                taken = Some(TakenBack::Ends);
            }
            Ok(None) if taken.is_some() => {}
            Ok(None) => {
                repository.store.delete(&key).await?;
                taken = Some(TakenBack::Removed(format!("{key} is empty")));
            }
            Err(failure) if is_damage(&failure) => {
                repository.store.delete(&key).await?;
                taken = Some(TakenBack::Removed(failure.why));
            }
            Err(failure) => return Err(failure),
        }
    }
    end_sessions(repository, job).await?;
    Ok(taken)
}

/// Ends what protects the reading of attempts that are over.
pub(crate) async fn end_sessions(repository: &Repository, job: JobId) -> Result<(), Failure> {
    for session in sessions::of_job(repository, job).await? {
        sessions::revoke(repository, &session).await?;
    }
    Ok(())
}

/// Removes what nobody looks at any more.
pub(crate) async fn tidy(repository: &Repository) -> Result<(), Failure> {
    for job in of_no_use(&list(repository).await?) {
        repository.store.delete_or_leave(&names::check(job)).await?;
    }
    Ok(())
}

/// The ended checks, in order, that are not among the newest, and that no later one goes on behind or waits for.
fn of_no_use(checks: &[Check]) -> Vec<JobId> {
    let ended: Vec<&Check> = checks.iter().filter(|check| check.end.is_some()).collect();
    let newest = |is_one: fn(&Content) -> bool| ended.iter().rposition(|check| is_one(&check.content));
    let needed = [
        newest(|content| matches!(content, Content::Percent { .. })),
        newest(|content| *content != Content::None),
    ];
    let old = ended.iter().take(ended.len().saturating_sub(KEPT)).enumerate();
    old.filter(|(at, _)| !needed.contains(&Some(*at))).map(|(_, check)| check.job).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(number: u8, content: Content, behind: Option<PackId>) -> Check {
        Check {
            version: Check::VERSION,
            job: JobId::from_bytes([number; 16]),
            by: "a test".into(),
            asked_ms: 0,
            content,
            worker: None,
            tries: 0,
            reached: Reached { behind, ..Reached::default() },
            end: Some(End::Failed { kind: FailureKind::Other, why: String::new(), ended_ms: None }),
        }
    }

    /// The clock of one who asked was wrong once. What was read since is gone on behind all the same.
    #[test]
    fn a_check_of_the_future_is_not_the_last_one() {
        let (old, new) = (Some(PackId::from_bytes([3; 16])), Some(PackId::from_bytes([9; 16])));
        let percent = Content::Percent { percent: 5, behind: None };
        let future = Check { asked_ms: 2000, ..ended(200, percent, old) };
        let mut checks = vec![ended(1, percent, new), future];
        checks.sort_by_key(|check| place(check, 1000));
        assert_eq!(next_behind(&checks), new);
        checks.sort_by_key(|check| place(check, 2000));
        assert_eq!(next_behind(&checks), old);
    }

    #[test]
    fn what_the_next_check_of_content_needs_stays() {
        let behind = Some(PackId::from_bytes([9; 16]));
        let mut checks = vec![
            ended(0, Content::Percent { percent: 5, behind: None }, None),
            ended(1, Content::Percent { percent: 5, behind: None }, behind),
            ended(2, Content::All, None),
            ended(3, Content::All, None),
        ];
        checks.extend((4..=KEPT as u8 + 4).map(|number| ended(number, Content::None, None)));
        let gone = of_no_use(&checks);
        assert_eq!(gone, [0, 2, 4].map(|number| JobId::from_bytes([number; 16])));
        checks.retain(|check| !gone.contains(&check.job));
        assert_eq!(next_behind(&checks), behind);
        assert!(of_no_use(&checks[..KEPT]).is_empty());
    }
}
