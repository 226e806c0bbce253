//! Which chunks are wanted: a filter that never leaves one out, and takes some that are not.
//!
//! It is as large as it was made, however many chunks it is told: more of them only let more pass in vain.

use schema::ChunkId;

/// Bits that each chunk sets.
const PROBES: usize = 4;
/// Bits per chunk that is expected: one in some ten thousand others passes.
const BITS_PER_CHUNK: u64 = 32;
/// Bits at least.
const BITS_MIN: u64 = 1 << 16;

/// The filter.
pub(crate) struct Wanted {
    words: Vec<u64>,
}

impl Wanted {
    /// None yet; for `expected` chunks, in `bytes` of memory at most.
    pub(crate) fn new(expected: u64, bytes: u64) -> Self {
        let bits = expected.saturating_mul(BITS_PER_CHUNK).min(bytes.saturating_mul(8)).max(BITS_MIN);
        Self { words: vec![0; bits.div_ceil(64) as usize] }
    }

    /// Adds one.
    pub(crate) fn add(&mut self, id: &ChunkId) {
        for (word, bit) in places(id, self.words.len()) {
            self.words[word] |= bit;
        }
    }

    /// Whether it was added; rarely also of one that was not.
    pub(crate) fn has(&self, id: &ChunkId) -> bool {
        places(id, self.words.len()).all(|(word, bit)| self.words[word] & bit != 0)
    }
}

/// Ids are hashes: each eight bytes of one are a place of their own.
fn places(id: &ChunkId, words: usize) -> impl Iterator<Item = (usize, u64)> {
    let parts = id.hash().as_chunks::<8>().0.iter().take(PROBES);
    parts.map(move |part| {
        let hash = u64::from_le_bytes(*part);
        let word = ((u128::from(hash) * words as u128) >> 64) as usize;
        (word, 1 << (hash & 63))
    })
}

#[cfg(test)]
mod tests {
    use schema::Domain;
    use schema::keys::WriterKey;

    use super::*;

    #[test]
    fn what_was_added_is_wanted_and_of_the_rest_as_little_as_there_is_room_for() {
        let key = WriterKey::new(schema::RepoId::from_bytes([1; 16]), Vec::new(), &[7; 64]).unwrap();
        let id = |n: u32| key.chunk_ids().id(Domain::Data, &n.to_le_bytes());
        for (bytes, most) in [(1 << 20, 10), (16 << 10, 2000)] {
            let mut wanted = Wanted::new(20_000, bytes);
            (0..20_000).for_each(|n| wanted.add(&id(n)));
            assert!((0..20_000).all(|n| wanted.has(&id(n))));
            let others = (20_000..40_000).filter(|n| wanted.has(&id(*n))).count();
            assert!(others <= most, "{others} with {bytes} bytes");
            assert!(wanted.words.len() as u64 * 8 <= bytes);
        }
    }
}
