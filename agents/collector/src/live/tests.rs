use schema::ChunkId;

use super::*;

fn id(number: u64) -> ChunkId {
    let mut bytes = [1; 33];
    bytes[1..9].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    ChunkId::parse(&bytes).unwrap()
}

#[test]
fn what_was_inserted_is_contained_and_counted() {
    let mut live = LiveIds::new(0, u64::MAX);
    for number in (0..200_000).chain(0..200_000) {
        live.insert(&id(number));
    }
    live.seal();
    assert_eq!(live.range(), 0..LISTS);
    assert!((0..200_000).all(|number| live.contains(&id(number)) == Some(true)));
    let strangers = (200_000..400_000).filter(|number| live.contains(&id(*number)) == Some(true));
    assert!(strangers.count() < 10);

    live.count(&id(5));
    live.count(&id(6));
    for _ in 0..9 {
        live.count(&id(7));
    }
    live.count(&id(6));
    assert_eq!(
        [4, 5, 6, 7, 8].map(|number| live.counted(&id(number)) == 2),
        [false, false, true, true, false]
    );
}

#[test]
fn what_does_not_fit_the_budget_is_left_for_another_pass() {
    let (mut from, mut found, mut passes) = (0, 0, 0);
    while from < LISTS {
        let mut live = LiveIds::new(from, 2 << 20);
        (0..1_500_000).for_each(|number| live.insert(&id(number)));
        live.seal();
        let room: usize = live.lists.iter().map(Vec::capacity).sum();
        assert!(room * 4 <= 2 << 20, "{room} ids");
        found +=
            (0..1_500_000).filter(|number| live.contains(&id(*number)).is_some_and(|in_it| in_it)).count();
        from = live.range().end;
        passes += 1;
    }
    assert_eq!(found, 1_500_000);
    assert!(passes > 2);
}
