//! What was announced a moment ago is remembered, within its bound.

use super::*;

fn id(number: u32) -> ChunkId {
    let mut bytes = [0; 33];
    bytes[0] = 1;
    bytes[1..5].copy_from_slice(&number.to_le_bytes());
    ChunkId::from_bytes(bytes)
}

fn pack(number: u8) -> PackId {
    PackId::from_bytes([number; 16])
}

#[test]
fn the_last_pack_of_a_chunk_is_remembered() {
    let mut recent = Recent::default();
    assert_eq!(recent.pack_of(id(1)), None);
    recent.note(id(1), pack(1));
    recent.note(id(2), pack(1));
    recent.note(id(1), pack(2));
    assert_eq!((recent.pack_of(id(1)), recent.pack_of(id(2))), (Some(pack(2)), Some(pack(1))));
}

#[test]
fn the_oldest_are_forgotten_first_and_a_repetition_takes_no_room() {
    let mut recent = Recent::default();
    for number in 0..KEPT as u32 {
        for _ in 0..3 {
            recent.note(id(number), pack(1));
        }
    }
    assert_eq!((recent.packs.len(), recent.order.len()), (KEPT, KEPT));
    assert!(recent.pack_of(id(0)).is_some());
    for number in 0..10 {
        recent.note(id(KEPT as u32 + number), pack(2));
    }
    assert_eq!((recent.packs.len(), recent.order.len()), (KEPT, KEPT));
    assert_eq!((recent.pack_of(id(9)), recent.pack_of(id(10))), (None, Some(pack(1))));
}
