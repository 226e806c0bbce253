//! What several attempts at one check come to: the same as one attempt would have.

use checker::jobs;
use schema::check::{Content, Report};
use schema::{PackId, names};
use tests::rot::Rot;

use super::agents::{SLOW, ask, checked, damaged, packs, when};
use super::victim;

/// A report without what differs from one check to another.
fn told(mut report: Report) -> Report {
    report.ended_ms = 0;
    // What one attempt saw itself, another one knows from the record.
    let seen = |problem: &mut String| {
        *problem = problem.replace("its frame cannot be read", "it is recorded as damaged")
    };
    report.snapshots_damaged.iter_mut().flat_map(|damaged| &mut damaged.problems).for_each(seen);
    report.found.sort_by(|a, b| (&a.key, &a.why).cmp(&(&b.key, &b.why)));
    report
}

/// As if nothing could be read of a pack.
async fn unreadable(rot: &Rot, pack: PackId) {
    rot.repository.store.put(&names::pack(pack), vec![0; 5000].into()).await.expect("it is stored");
}

#[tokio::test]
async fn numbers_are_those_of_one_attempt() {
    let victim = victim().await;
    let (alone, _) = damaged(&victim).await;
    let objects = alone.objects().await;
    unreadable(&alone, packs(&objects)[1]).await;
    let agents = alone.agents().await.expect("a bus");
    let _agent = agents.start(None);
    let expected = told(checked(&alone, ask(&alone, &agents, Content::All).await).await);
    assert!(expected.objects >= 3 && expected.recorded > 0 && expected.damaged > 0, "{expected:?}");
    assert_eq!(expected.objects, expected.found.len() as u64);

    let rot = victim.rot.with(&objects).await.expect("a repository");
    unreadable(&rot, packs(&objects)[1]).await;
    let agents = rot.agents().await.expect("a bus");
    let dies = agents.start(SLOW);
    let job = ask(&rot, &agents, Content::All).await;
    let reached = when(&rot, job, |check| check.reached.done > 0).await.reached;
    assert!(reached.recorded > 0 && reached.objects() > 1, "{reached:?}");
    dies.task.abort();
    assert!(dies.task.await.is_err());
    let _other = agents.start(None);
    assert_eq!(told(checked(&rot, job).await), expected);
}

/// What is found before the first pack of content was read counts, too: no other attempt finds it again.
#[tokio::test]
async fn what_is_recorded_before_content_is_read_counts() {
    let victim = victim().await;
    let (rot, _) = damaged(&victim).await;
    let agents = rot.agents().await.expect("a bus");
    let dies = agents.start(SLOW);
    // After this one it may read nothing for long.
    let first = ask(&rot, &agents, Content::All).await;
    when(&rot, first, |check| check.reached.done > 0).await;
    jobs::take_back(&rot.repository, first, "a test").await.expect("it is taken back");
    unreadable(&rot, packs(&rot.objects().await)[1]).await;
    let job = ask(&rot, &agents, Content::All).await;
    let reached = when(&rot, job, |check| check.reached.objects() > 0).await.reached;
    assert!(reached.behind.is_none() && reached.objects() == 1, "{reached:?}");
    dies.task.abort();
    assert!(dies.task.await.is_err());
    let _other = agents.start(None);
    let report = checked(&rot, job).await;
    assert!(report.found.contains(&reached.found[0]), "{report:?}");
}
