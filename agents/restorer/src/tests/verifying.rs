//! What was written is read again before anybody is told of it.

use std::path::Path;

use agent::Stop;
use schema::messages::{FailureKind, JobOutcome, More, Verified};

use super::asked::{done, job, send};
use super::fixture::{CHUNK, Fixture, noise, serving};
use super::places::{BY_MAPPER, Volume};
use crate::Target;

const LEN: usize = 1 << 20;

#[tokio::test(start_paused = true)]
async fn what_an_agent_wrote_is_read_again_where_that_is_asked() {
    for (name, verify, lies) in
        [("vg/lv", true, false), (BY_MAPPER, true, false), ("vg/lv", true, true), ("vg/lv", false, true)]
    {
        let fixture = Fixture::plain().await;
        let root = fixture.volume(&noise(1, LEN)).await;
        let mut volume = Volume::of(&fixture, LEN);
        volume.lies = lies;
        let agent = tokio::spawn(volume.restorer(&fixture).run(serving(vec!["vg/*".into()])));
        let order = job(&fixture, &root, Path::new(name)).asking(More { verify, ..More::default() });
        send(&fixture, &order).await;
        let JobOutcome::Restored { verified, notes, .. } = done(&fixture, &order).await else {
            panic!("it failed")
        };
        let (bytes, start) = (CHUNK as u64, 3 * CHUNK as u64);
        let expected = match lies {
            true => Verified::Differs { bytes, start, end: start + bytes },
            false => Verified::Equal,
        };
        assert_eq!(verified, verify.then_some(expected), "{name}");
        assert_eq!(notes, ["a note"]);
        while !fixture.sessions().await.is_empty() {
            tokio::task::yield_now().await;
        }
        fixture.context.stop.raise();
        agent.await.unwrap().unwrap();
    }
}

/// Whoever stops a restore says why: an interrupt, or what failed beside it.
#[tokio::test(start_paused = true)]
async fn what_is_stopped_before_it_is_read_again_was_restored() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, LEN)).await;
    let stop = Stop::default();
    let mut volume = Volume::of(&fixture, LEN);
    volume.stops = Some(stop.clone());
    let target = Target::new("vg/lv", false).until(stop).read_again(true);
    let report = volume.restorer(&fixture).restore(root.clone(), target, |_| ()).await.unwrap();
    let Some(Verified::Unread { kind, why }) = report.verified else { panic!("{report:?}") };
    let told = format!(
        "{} was restored to vg/lv; reading it again failed: stopped before all of it was read again; `lvkeep verify {} \
         vg/lv` on its host reads it",
        root.volume, root.slot.session
    );
    assert_eq!((kind, why), (FailureKind::Revoked, told));
}

/// For whoever prints them.
#[tokio::test(start_paused = true)]
async fn all_differences_that_were_read_again_are_reported() {
    let fixture = Fixture::plain().await;
    let root = fixture.volume(&noise(1, LEN)).await;
    let mut volume = Volume::of(&fixture, LEN);
    volume.lies = true;
    let target = Target::new("vg/lv", false).read_again(true);
    let report = volume.restorer(&fixture).restore(root, target, |_| ()).await.unwrap();
    let (chunk, found) = (CHUNK as u64, report.differences);
    assert_eq!((found.bytes, found.first.len(), &found.first[0]), (chunk, 1, &(3 * chunk..4 * chunk)));
}
