//! The claim table, as tables of questions in order of time.

use super::*;

const GIVE_UP: Duration = Duration::from_secs(60);

fn id(n: u8) -> ChunkId {
    let mut bytes = [n; 33];
    bytes[0] = 1;
    ChunkId::parse(&bytes).expect("a data chunk")
}

fn owner(session: u8, extent: u64) -> Owner {
    Owner { session: SessionId::from_bytes([session; 16]), extent }
}

/// Plays `(seconds, chunk, owner, force, granted?)` against a table.
fn play(limit: usize, steps: &[(u64, u8, Owner, bool, bool)]) -> Claims {
    let mut claims = Claims::new(GIVE_UP, limit);
    for (place, &(at, chunk, owner, force, granted)) in steps.iter().enumerate() {
        let answer = claims.claim(id(chunk), owner, force, Duration::from_secs(at));
        assert_eq!(answer, granted, "step {place}: {at} s, chunk {chunk}, {owner:?}, force {force}");
    }
    claims
}

#[test]
fn the_first_owner_gets_it_and_gets_it_again() {
    let (a, other_extent, b) = (owner(1, 0), owner(1, 4096), owner(2, 0));
    let claims = play(
        8,
        &[
            (0, 1, a, false, true),
            (1, 1, a, false, true),
            (2, 1, b, false, false),
            (3, 1, other_extent, false, false),
            (4, 2, b, false, true),
        ],
    );
    assert_eq!(claims.len(), 2);
}

#[test]
fn force_takes_the_claim_over() {
    let (a, b) = (owner(1, 0), owner(2, 0));
    play(
        8,
        &[(0, 1, a, false, true), (1, 1, b, true, true), (2, 1, a, false, false), (3, 1, b, false, true)],
    );
}

#[test]
fn a_claim_is_void_only_after_the_give_up_time() {
    let (a, b) = (owner(1, 0), owner(2, 0));
    play(
        8,
        &[
            (0, 1, a, false, true),
            (60, 1, b, false, false),
            (61, 1, b, false, true),
            (61, 1, a, false, false),
        ],
    );
}

#[test]
fn asking_again_makes_a_claim_young_again() {
    let (a, b) = (owner(1, 0), owner(2, 0));
    play(
        8,
        &[
            (0, 1, a, false, true),
            (50, 1, a, false, true),
            (100, 1, b, false, false),
            (111, 1, b, false, true),
        ],
    );
}

#[test]
fn a_stored_chunk_is_not_claimed() {
    let mut claims = play(8, &[(0, 1, owner(1, 0), false, true)]);
    claims.settle(&id(1));
    claims.settle(&id(2));
    assert!(claims.is_empty());
    assert!(claims.claim(id(1), owner(2, 0), false, Duration::ZERO));
}

#[test]
fn a_full_table_drops_the_oldest_first() {
    let (a, b) = (owner(1, 0), owner(2, 0));
    let claims = play(
        2,
        &[
            (0, 1, a, false, true),
            (1, 2, a, false, true),
            (2, 1, a, false, true),
            (3, 3, a, false, true),
            // 2 was the oldest: 1 was asked for again after it.
            (4, 1, b, false, false),
            (4, 3, b, false, false),
            (4, 2, b, false, true),
        ],
    );
    assert_eq!(claims.len(), 2);
}

#[test]
fn void_claims_and_old_grants_do_not_pile_up() {
    let mut claims = Claims::new(GIVE_UP, 4);
    for second in 0..1000 {
        assert!(claims.claim(id(1), owner(1, 0), false, Duration::from_secs(second / 100)));
        assert!(claims.grants.len() <= 8, "{} grants", claims.grants.len());
    }
    assert!(claims.claim(id(2), owner(1, 0), false, Duration::from_secs(1000)));
    assert_eq!((claims.len(), claims.grants.len()), (1, 1), "the void one went");
}
