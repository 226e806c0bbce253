//! Packs that the store does not give, though it gives others.

use std::sync::Arc;

use agent::faults::store::{FaultyStore, StoreFaults};
use schema::messages::FailureKind;
use schema::{Domain, names};

use super::fixture::*;
use crate::{Collector, Latest, latest};

/// One pack that the store does not give, though it gives others, stays, and is named; what is dead beside it goes.
#[tokio::test(start_paused = true)]
async fn a_pack_that_is_not_given_stays_and_stops_nothing() {
    let world = World::plain().await;
    world.backup("kept", &[1, 2, 3]).await;
    let before = world.packs().await;
    let lost = world.backup("lost", &[4, 5, 6]).await;
    let dead: Vec<_> = world.packs().await.difference(&before).copied().collect();
    world.forget(lost).await;
    let kinds = |wanted: Domain| {
        let (repository, before) = (world.repository.clone(), before.clone());
        async move {
            for pack in before {
                if repository.read_header(pack).await.unwrap().kind == wanted {
                    return pack;
                }
            }
            panic!("a pack of each kind")
        }
    };
    for (kind, is_dead) in [(Domain::Data, false), (Domain::Data, true), (Domain::Structure, false)] {
        let world = world.fork();
        let withheld = if is_dead { dead[0] } else { kinds(kind).await };
        let store = FaultyStore::new(
            world.inner.clone(),
            world.repository.store.environment().clone(),
            StoreFaults::default(),
        );
        store.withhold(&names::pack(withheld), None);
        let repository = world.over(Arc::new(store.clone()));
        let ended = Collector::new(repository.clone(), World::settings(), Default::default()).prune().await;
        let left = world.packs().await;
        assert!(left.contains(&withheld));
        if kind == Domain::Structure {
            let failure = ended.expect_err("nobody knows what is needed");
            assert_eq!(failure.kind, FailureKind::Store, "{failure}");
            assert!(
                failure.why.contains(&names::pack(withheld)) && !failure.why.contains("forgotten"),
                "{failure}"
            );
            assert!(dead.iter().all(|pack| left.contains(pack)));
        } else {
            let report = ended.unwrap();
            assert_eq!(report.withheld.keys().collect::<Vec<_>>(), [&withheld]);
            let sums = report.sums.unwrap();
            assert!(sums.withheld > 0 && sums.damaged == 0, "{sums:?}");
            assert!(dead.iter().all(|pack| left.contains(pack) == (*pack == withheld)), "{report:?}");
        }
        store.withhold_nothing();
        world.prune_to_the_end().await;
        assert_eq!(world.check().await, 1);
        assert_eq!(world.packs().await, before);
    }
}

/// A pack of parts of maps that is not given any more when the second mark needs it: the collection ends, and nothing goes.
#[tokio::test(start_paused = true)]
async fn a_pack_that_is_not_given_at_the_second_mark_reprieves_everything() {
    let world = World::plain().await;
    world.backup("kept", &[1, 2, 3]).await;
    let before = world.packs().await;
    let lost = world.backup("lost", &[4, 5, 6]).await;
    world.forget(lost).await;
    let all = world.packs().await;
    let mut open = world.begin("open").await.unwrap();
    open.store(&[7]).await.unwrap();
    let store = FaultyStore::new(
        world.inner.clone(),
        world.repository.store.environment().clone(),
        StoreFaults::default(),
    );
    let prune = || async {
        let repository = world.over(Arc::new(store.clone()));
        Collector::new(repository, World::settings(), Default::default()).prune().await
    };
    assert_eq!(prune().await.unwrap().waits.len(), 1);
    open.commit().await.unwrap();
    for pack in &before {
        if world.repository.read_header(*pack).await.unwrap().kind == Domain::Structure {
            store.withhold(&names::pack(*pack), None);
        }
    }
    // The collection ends with nothing to delete; the next one does not begin.
    let failure = prune().await.expect_err("nobody knows what is needed");
    assert_eq!(failure.kind, FailureKind::Store, "{failure}");
    assert!(matches!(latest(&world.repository).await.unwrap(), Latest::Finished { next: 2 }));
    assert!(world.packs().await.is_superset(&all));
    store.withhold_nothing();
    world.prune_to_the_end().await;
    assert_eq!(world.check().await, 2);
}
