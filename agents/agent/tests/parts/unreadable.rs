//! Collections of which something cannot be read: what a session relies on is never what they may delete.

use agent::sessions::OpenSession;
use schema::epoch::Awaited;
use schema::messages::FailureKind;
use schema::names;

use crate::support::{World, pack_id};

/// What stands there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum There {
    Nothing,
    Whole,
    Rotten,
    Empty,
}

/// Packs that count, or what the refusal says.
type Expected = Result<&'static [u8], &'static str>;

async fn rot(world: &World, key: &str, there: There) {
    match there {
        There::Whole => {}
        There::Nothing => world.repository.store.delete(key).await.unwrap(),
        There::Empty => world.empty(key).await,
        There::Rotten => {
            let mut bytes = world.get(key).await.unwrap().to_vec();
            *bytes.last_mut().unwrap() ^= 1;
            world.put(key, bytes.into()).await;
        }
    }
}

/// The epoch condemns the packs 1 and 2, its verdict 2 alone; an older collection condemned 3. The list of sessions that
/// are waited for is there.
#[tokio::test(start_paused = true)]
async fn a_session_relies_on_nothing_that_what_cannot_be_read_may_condemn() {
    use There::{Empty, Nothing, Rotten, Whole};
    let cases: [(There, There, Expected); 15] = [
        (Whole, Whole, Ok(&[1, 3])),
        (Whole, Nothing, Ok(&[3])),
        (Whole, Rotten, Ok(&[3])),
        (Whole, Empty, Ok(&[3])),
        (Rotten, Whole, Ok(&[1, 3])),
        (Nothing, Whole, Ok(&[1, 3])),
        (Rotten, Nothing, Err("lvkeep repair")),
        (Rotten, Rotten, Err("bring one of the two objects back")),
        (Rotten, Empty, Err("bring one of the two objects back")),
        (Nothing, Rotten, Err("bring one of the two objects back")),
        (Nothing, Nothing, Err("lvkeep repair")),
        (Empty, Whole, Ok(&[1, 3])),
        (Empty, Nothing, Err("lvkeep repair")),
        (Empty, Rotten, Err("bring one of the two objects back")),
        (Empty, Empty, Err("bring one of the two objects back")),
    ];
    for (epoch, verdict, expected) in cases {
        let world = World::new().await;
        for number in 1..=3 {
            world.any_pack(number).await;
        }
        world.epoch(4, 4, &[pack_id(3)]).await;
        world.verdict(4, 4, &[pack_id(3)]).await;
        world.epoch(5, 5, &[pack_id(1), pack_id(2)]).await;
        world.verdict(5, 5, &[pack_id(2)]).await;
        let (key, awaited) = (names::awaited(5), Awaited { number: 5, sessions: Vec::new() });
        world.put(&key, world.repository.seal(&key, &awaited).unwrap()).await;
        rot(&world, &names::epoch(5), epoch).await;
        rot(&world, &names::verdict(5), verdict).await;
        let begun = OpenSession::begin(world.repository.clone(), world.session(9)).await;
        match (begun, expected) {
            (Ok(session), Ok(expected)) => {
                let mut counting = Vec::new();
                for number in 1..=3 {
                    if session.counts(pack_id(number)).await.unwrap() {
                        counting.push(number);
                    }
                }
                assert_eq!(counting, expected, "{epoch:?} {verdict:?}");
                let is_known = epoch == Whole;
                assert_eq!(session.knows_what_is_swept(), is_known, "{epoch:?} {verdict:?}");
                assert_eq!(session.sweeps(world.slot(1)), !is_known, "{epoch:?} {verdict:?}");
            }
            (Err(failure), Err(expected)) => {
                assert_eq!(failure.kind, FailureKind::Damaged, "{failure}");
                assert!(failure.why.contains(expected), "{epoch:?} {verdict:?}: {failure}");
            }
            (begun, _) => panic!("{epoch:?} {verdict:?}: {begun:?}"),
        }
    }
}
